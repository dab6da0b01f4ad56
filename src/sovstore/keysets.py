"""Where the keyset of a store lies, how it is opened and how it is changed (docs/spec/format.md, 6)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import platformdirs

from sovstore import policy
from sovstore.backends.base import Backend
from sovstore.config import StoreConfig
from sovstore.errors import (
    ConfigError,
    IntegrityError,
    NoMatchingKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    UnwrapError,
)
from sovstore.format.keyset import MAX_FILE, Keyset, ParsedKeyset, parse
from sovstore.format.recovery import Recipient, RecoveryKey
from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.secret import Secret

LOCATION = ".sovstore/keyset.json"
_log = logging.getLogger("sovstore")


async def fetch(backend: Backend, config: StoreConfig) -> bytes:
    """Return the bytes of the keyset at the host.

    Raises
    ------
    ObjectNotFoundError
        When there is none; says whether a backup copy exists and which command uses it.
    """
    try:
        # One byte more than is allowed: a longer file is refused by `parse` without reading all of it.
        return bytes(await backend.read(LOCATION, 0, MAX_FILE + 1))
    except ObjectNotFoundError as exc:
        if config.store_id and newest_backup(config):
            what, hint = (
                "its keyset is gone from the host",
                f"'sovstore keys restore {config.name}' puts the backup copy back",
            )
        elif config.store_id:
            what = "its keyset is not at the host"
            hint = (
                f"check 'root'; if it was lost, 'sovstore keys restore {config.name} --from FILE' takes a backup copy"
            )
        else:
            what, hint = "there is no store yet", f"'sovstore init {config.name}' makes it"
        raise ObjectNotFoundError(f"store {config.name!r}: {what}", path=LOCATION, hint=hint) from exc


def unlock(raw: bytes, config: StoreConfig, access: Access) -> Keyset:
    """Return the keyset that the configured KEK opens, authenticated. One call to the KMS.

    Raises
    ------
    FormatError, IntegrityError
        When it is not the authentic keyset of the configured store.
    NoMatchingKeyError
        When the configured KEK is none of those that wrap it.
    KMSError
        When the KEK cannot be used.
    PolicyError
        When the policy refuses the KEK or the host, before the KMS is asked.
    """
    parsed = parse(raw)
    context = parsed.context(config.identity)
    policy.enforce(config, keks=[config.kek])
    kek = registry.open_key(config.kek, access)
    ksk = _unwrap(parsed, kek, context, config)
    keyset = parsed.unlock(ksk, config.identity)
    # The keyset says how names were made, whatever the configuration says now.
    policy.enforce(replace(config, names=keyset.names_mode), keks=())
    return keyset


def _unwrap(parsed: ParsedKeyset, kek: WrappingKey, context: bytes, config: StoreConfig) -> Secret:
    labelled = parsed.wraps.get(kek.uri)
    cause: UnwrapError | None = None
    # The labels are not authentic before the tag is. When none is ours, the key may have moved or the host may have
    # relabelled it: every wrap is tried with the one configured KEK, and never with any other.
    for wrapped in [labelled] if labelled is not None else parsed.wraps.values():
        try:
            return Secret(kek.unwrap(wrapped, context))
        except UnwrapError as exc:
            cause = exc
    if labelled is not None:
        hint = "the host altered it, or the key at that URI is another one; see 'sovstore keys restore'"
        raise IntegrityError(
            f"store {config.name!r}: the keyset failed authentication", path=LOCATION, hint=hint
        ) from cause
    found = ", ".join(repr(uri) for uri in parsed.wraps)
    hint = f"the keyset names {found}; set 'kek' to one that you hold, or check 'root'"
    raise NoMatchingKeyError(
        f"store {config.name!r}: {kek.uri} does not open its keyset", path=LOCATION, hint=hint
    ) from cause


def unlock_with_recovery(raw: bytes, config: StoreConfig, key: RecoveryKey) -> Keyset:
    """Return the keyset that a recovery key opens, authenticated against the pinned fingerprint.

    Raises
    ------
    ConfigError
        When the configuration has no ``auth_fingerprint``.
    NoMatchingKeyError
        When the keyset is not sealed to this key.
    FormatError, IntegrityError
        As `unlock`.
    """
    if config.auth_fingerprint is None:
        hint = "it is kept beside the recovery key: write it into the configuration as 'auth_fingerprint'"
        raise ConfigError(
            f"store {config.name!r}: a recovery key needs the auth fingerprint", path=config.name, hint=hint
        )
    parsed = parse(raw)
    parsed.context(config.identity)
    seal = parsed.seals.get(key.recipient.id)
    if seal is None:
        hint = f"the keyset is sealed to {', '.join(i.hex() for i in parsed.seals) or 'no recovery key'}"
        raise NoMatchingKeyError(f"store {config.name!r}: this recovery key does not open it", path=LOCATION, hint=hint)
    ksk = key.unseal(seal, config.identity)
    return parsed.unlock(ksk, config.identity, auth_fingerprint=config.auth_fingerprint)


async def publish(
    backend: Backend,
    config: StoreConfig,
    keyset: Keyset,
    keks: Sequence[WrappingKey],
    *,
    replaces: str | None,
) -> bytes:
    """Write a new version of the keyset to the host and to the backup folder, and return its bytes.

    Parameters
    ----------
    keks : sequence of WrappingKey
        All that shall open it. One wrap each.
    replaces : str or None
        ETag of the version that this one was made from; None for the first.

    Raises
    ------
    ObjectExistsError, ObjectChangedError
        When there is a keyset already, or another one than `replaces`.
    """
    raw = await asyncio.to_thread(_wrap, keyset, keks, recipients(config))
    digest = hashlib.sha256(raw).hexdigest()[:32]
    await _write(backend, f".sovstore/keyset/{keyset.version}-{digest}.json", raw, create=False, if_match=None)
    await _write(backend, LOCATION, raw, create=replaces is None, if_match=replaces)
    if await fetch(backend, config) != raw:
        hint = "another client changed the keyset at the same time, or the host lies; run the command again"
        raise IntegrityError(f"store {config.name!r}: the host does not return the keyset that was written", hint=hint)
    await asyncio.to_thread(save_backup, config, keyset, raw)
    remember(keyset)
    return raw


def _wrap(keyset: Keyset, keks: Sequence[WrappingKey], to: Sequence[Recipient]) -> bytes:
    draft = keyset.draft(to)
    return draft.finish({kek.uri: kek.wrap(draft.ksk.reveal(), draft.context) for kek in keks})


async def _write(backend: Backend, name: str, raw: bytes, *, create: bool, if_match: str | None) -> None:
    upload = await backend.upload(name, create=create, if_match=if_match)
    try:
        await upload.write(raw)
        await upload.commit()
    except BaseException:
        await upload.abort()
        raise


def recipients(config: StoreConfig) -> list[Recipient]:
    """Return the recovery recipients that the configuration names.

    Raises
    ------
    ConfigError
        When a file is missing or is no recipient.
    """
    return [Recipient.load(read_file(file), what=file) for file in config.recovery]


def read_file(file: str) -> bytes:
    """Return a small local file.

    Raises
    ------
    ConfigError
        When it cannot be read.
    """
    try:
        return Path(file).read_bytes()
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read: {exc.strerror}", path=file, hint="check the path") from exc


def _backups(config: StoreConfig) -> Path:
    return config.backup_folder / config.identity.hex()


def newest_backup(config: StoreConfig) -> Path | None:
    """Return the backup copy of the highest version, or None."""
    found = [path for path in _backups(config).glob("*.json") if path.stem.isdecimal()]
    return max(found, key=lambda path: int(path.stem), default=None)


def save_backup(config: StoreConfig, keyset: Keyset, raw: bytes) -> Path:
    """Write a backup copy, wrapped as on the host, and return its path.

    Raises
    ------
    ConfigError
        When it cannot be written: a keyset without a second copy is one mistake away from losing everything.
    """
    path = _backups(config) / f"{keyset.version}.json"
    try:
        _replace(path, raw)
    except OSError as exc:
        hint = "set 'backup' to a folder that can be written, then run 'sovstore keys backup'"
        raise ConfigError(
            f"{path}: the backup copy of the keyset cannot be written: {exc.strerror}",
            path=str(path),
            hint=hint,
        ) from exc
    return path


async def restore(backend: Backend, config: StoreConfig, access: Access, source: Path | None) -> tuple[Keyset, Path]:
    """Put a backup copy of the keyset back to the host, after it was opened here, and return it.

    Raises
    ------
    ObjectNotFoundError
        When there is no backup copy.
    ObjectExistsError
        When the host has a keyset.
    """
    path = source or newest_backup(config)
    if path is None:
        hint = f"name one with --from; they are kept in {_backups(config)}"
        raise ObjectNotFoundError(
            f"store {config.name!r}: no backup copy of its keyset was found", path=config.name, hint=hint
        )
    raw = read_file(str(path))
    keyset = await asyncio.to_thread(unlock, raw, config, access)
    check_seen(keyset, config)
    try:
        await _write(backend, LOCATION, raw, create=True, if_match=None)
    except ObjectExistsError as exc:
        hint = f"move {LOCATION} at the host away first, if it is damaged"
        raise ObjectExistsError(f"store {config.name!r}: the host has a keyset", path=LOCATION, hint=hint) from exc
    remember(keyset)
    return keyset, path


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _seen_file(store_id: bytes) -> Path:
    return Path(platformdirs.user_state_path("sovstore")) / "seen" / f"{store_id.hex()}.json"


def _seen(store_id: bytes) -> int:
    try:
        return int(json.loads(_seen_file(store_id).read_bytes())["version"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
        _log.warning("%s cannot be read: an older keyset would not be noticed", _seen_file(store_id))
        return 0


def check_seen(keyset: Keyset, config: StoreConfig) -> None:
    """Refuse a keyset that is older than one that this client has seen, and remember it otherwise.

    Raises
    ------
    IntegrityError
        When the host replays an old version.
    """
    if keyset.version < (seen := _seen(keyset.store_id)):
        hint = f"the host put an old keyset back; if you did, delete {_seen_file(keyset.store_id)}"
        raise IntegrityError(
            f"store {config.name!r}: keyset version {keyset.version} is older than version {seen}, which was seen here",
            path=LOCATION,
            hint=hint,
        )
    remember(keyset)


def remember(keyset: Keyset) -> None:
    """Note the version of a keyset as seen; a client that cannot write says so in the log and goes on."""
    if keyset.version <= _seen(keyset.store_id):
        return
    try:
        _replace(_seen_file(keyset.store_id), json.dumps({"version": keyset.version}).encode())
    except OSError as exc:
        _log.warning("%s cannot be written (%s): an older keyset would not be noticed", exc.filename, exc.strerror)

"""Where the keyset of a store lies, how it is opened and how it is changed (docs/spec/format.md, 6)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from sovstore import keyset_copies as copies
from sovstore import policy
from sovstore.backends.base import Backend
from sovstore.config import StoreConfig, variable_of
from sovstore.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    KeyDeniedError,
    KMSUnavailableError,
    NoMatchingKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    UnwrapError,
)
from sovstore.format.keyset import MAX_FILE, MAX_WRAPS, Keyset, ParsedKeyset, parse
from sovstore.format.recovery import Recipient, RecoveryKey
from sovstore.keyset_copies import LOCATION
from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.secret import Secret

#: Where every version lies under a name of its own, below the root.
HISTORY = ".sovstore/keyset"


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
        if config.store_id and copies.newest_backup(config):
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


async def fetch_opened(
    backend: Backend, config: StoreConfig, unlock: Callable[[bytes], Keyset]
) -> tuple[Keyset, bytes]:
    """Return the keyset at the host, opened by `unlock` in a thread and no older than one seen here, and its bytes.

    Raises
    ------
    IntegrityError
        When the host replays an old version.
    ObjectNotFoundError, FormatError, KMSError, PolicyError, ConfigError
        As `fetch` and `unlock`.
    """
    while True:
        raw = await fetch(backend, config)
        if copies.is_older(parse(raw), config):
            # One that says itself that it is old costs no call to the KMS. It is read again, since another process of
            # this machine may have published and noted a newer one meanwhile.
            raw = await fetch(backend, config)
            copies.refuse_older(parse(raw), config)
        keyset = await asyncio.to_thread(unlock, raw)
        # Or while it was opened; then there is a newer one to be had.
        if not copies.is_older(keyset, config):
            copies.remember(keyset)
            copies.sweep(config)
            return keyset, raw


class Keks:
    """The KEKs that a store is configured for, each opened when it is first needed and kept open.

    Parameters
    ----------
    config : StoreConfig
        Names them.
    access : Access
        How they are reached.
    """

    def __init__(self, config: StoreConfig, access: Access) -> None:
        self.config = config
        self.access = access
        self._opened: dict[str, WrappingKey] = {}

    def open(self, uri: str, *, make: bool = False) -> WrappingKey:
        """Return a KEK.

        Parameters
        ----------
        make : bool
            Make it, where it is one of this machine and there is none.

        Raises
        ------
        ConfigError, PolicyError, KMSError
            As `sovstore.kms.registry.open_key`.
        """
        if uri not in self._opened:
            policy.enforce(self.config, keks=[uri])
            new = make and not registry.key_exists(uri)
            self._opened[uri] = (registry.create_key if new else registry.open_key)(uri, self.access)
        return self._opened[uri]

    def primary(self) -> WrappingKey:
        """Return the KEK that opens the store."""
        return self.open(self.config.kek)

    def all(self) -> list[WrappingKey]:
        """Return all KEKs that shall open the store."""
        return [self.open(uri) for uri in (self.config.kek, *self.config.other_keks)]

    def is_old(self, labels: Collection[str]) -> bool:
        """Return whether only a KEK that is kept for older keysets opens one of these labels."""
        named = {registry.label(uri) for uri in (self.config.kek, *self.config.other_keks)}
        return not named.intersection(labels) and any(registry.label(uri) in labels for uri in self.config.old_keks)

    def for_keyset(self, labels: Collection[str]) -> tuple[WrappingKey, bool]:
        """Return the KEK to unwrap a keyset with, and whether a label of the keyset names it.

        The labels are the host's word: they choose among the KEKs that the configuration names, and can name no other.
        There is no way from one KEK to the next when the first does not answer: that would be a guess.
        """
        config = self.config
        for uri in (config.kek, *config.other_keks, *config.old_keks):
            if registry.label(uri) in labels:
                return self.open(uri), True
        return self.primary(), False

    def close(self) -> None:
        """Close connections and sessions; the next use opens them again."""
        for kek in self._opened.values():
            kek.close()
        self._opened.clear()


def read_only(config: StoreConfig) -> KeyDeniedError:
    """Return the error for a change of a store that only a KEK for older keysets opens: somebody may have that KEK."""
    hint = f"'sovstore keys add-kek {config.name} URI', on a client that opens it by another KEK, lets a new one in"
    message = f"store {config.name!r}: is read-only: only a KEK of 'old_keks' opens the keyset that the host shows"
    return KeyDeniedError(message, path=config.name, hint=hint)


def unlock(raw: bytes, config: StoreConfig, access: Access | Keks) -> Keyset:
    """Return the keyset that a configured KEK opens, authenticated. One call to the KMS.

    Parameters
    ----------
    access : Access or Keks
        How KEKs are reached, or those that are open already.

    Raises
    ------
    FormatError, IntegrityError
        When it is not the authentic keyset of the configured store.
    NoMatchingKeyError
        When none of the configured KEKs wraps it.
    PolicyError
        When the policy refuses the KEK or the host, before the KMS is asked.
    KMSError
        When the KEK cannot be used.
    """
    parsed = parse(raw)
    context = parsed.context(config.identity)
    keks = access if isinstance(access, Keks) else Keks(config, access)
    try:
        ksk = _unwrap(parsed, keks, context, config)
    except KMSUnavailableError as exc:
        raise _with_others(exc, parsed, config) from exc
    keyset = parsed.unlock(ksk, config.identity)
    if keks.is_old(parsed.wraps) and copies.is_newer(keyset):
        # Whoever has a KEK that was taken away can make a newer keyset with the host's help; it only opens old ones.
        hint = "the host may be with somebody who has that KEK; see what changed it last in the audit trail"
        message = f"store {config.name!r}: a KEK of 'old_keks' opens a keyset that is newer than any seen here"
        raise IntegrityError(message, path=LOCATION, hint=hint)
    # The keyset says how names were made, whatever the configuration says now.
    policy.enforce(replace(config, names=keyset.names_mode), keks=())
    return keyset


def _unwrap(parsed: ParsedKeyset, keks: Keks, context: bytes, config: StoreConfig) -> Secret:
    kek, labelled = keks.for_keyset(parsed.wraps)
    cause: UnwrapError | None = None
    # The labels are not authentic before the tag is. When none is ours, the key may have moved or the host may have
    # relabelled it: every wrap is tried with the one configured KEK, and never with any other.
    for wrapped in [parsed.wraps[kek.uri]] if labelled else parsed.wraps.values():
        try:
            return Secret(kek.unwrap(wrapped, context))
        except UnwrapError as exc:
            cause = exc
    if labelled:
        hint = "the host altered it, or the key at that URI is another one; see 'sovstore keys restore'"
        raise IntegrityError(
            f"store {config.name!r}: the keyset failed authentication", path=LOCATION, hint=hint
        ) from cause
    found = ", ".join(repr(uri) for uri in parsed.wraps)
    hint = f"the keyset names {found}; set 'kek' to one that you hold, or check 'root'"
    raise NoMatchingKeyError(
        f"store {config.name!r}: {kek.uri} does not open its keyset", path=LOCATION, hint=hint
    ) from cause


def _with_others(error: KMSUnavailableError, parsed: ParsedKeyset, config: StoreConfig) -> KMSUnavailableError:
    """Return the error with a hint at another configured KEK that the keyset names."""
    others = [u for u in config.other_keks if registry.label(u) in parsed.wraps and registry.label(u) != error.path]
    if not others:
        return error
    kek, other = variable_of(config.name, "kek"), variable_of(config.name, "other_keks")
    # No KEK is named twice.
    hint = f"{error.hint}; the store is opened by {others[0]} too: {kek}='{others[0]}' {other}='[]'"
    return KMSUnavailableError(
        error.message, path=error.path, hint=hint, provider=error.provider, request_id=error.request_id
    )


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
    raw = await asyncio.to_thread(wrap_anew, keyset, keks, recipients(config))
    await write_version(backend, config, keyset, raw, create=replaces is None, if_match=replaces)
    return raw


async def write_version(
    backend: Backend, config: StoreConfig, keyset: Keyset, raw: bytes, *, create: bool, if_match: str | None
) -> None:
    """Write the bytes of a version to the host, under its own name and then as the current one, and keep a copy here.

    Raises
    ------
    ObjectExistsError, ObjectChangedError
        When a condition does not hold; the current one is then as it was.
    IntegrityError
        When the host does not return what was written.
    """
    await _write(backend, version_name(keyset, raw), raw, create=False, if_match=None)
    await _write(backend, LOCATION, raw, create=create, if_match=if_match)
    found = await fetch(backend, config)
    # Another client may have made its change of this version already. That one is authenticated when it is opened.
    if found != raw and not _is_later(found, keyset.version):
        hint = "another client changed the keyset at the same time, or the host lies; run the command again"
        raise IntegrityError(f"store {config.name!r}: the host does not return the keyset that was written", hint=hint)
    await asyncio.to_thread(copies.save_backup, config, keyset, raw)
    copies.remember(keyset)


def version_name(keyset: Keyset, raw: bytes) -> str:
    """Return the name of its own that a version has at the host."""
    return f"{HISTORY}/{keyset.version}-{hashlib.sha256(raw).hexdigest()[:32]}.json"


def _is_later(raw: bytes, version: int) -> bool:
    try:
        return parse(raw).version > version
    except FormatError:
        return False


def wrap_anew(keyset: Keyset, keks: Sequence[WrappingKey], to: Sequence[Recipient]) -> bytes:
    """Return the bytes of a version: a fresh KSK, wrapped once by each KEK and sealed to each recipient.

    Raises
    ------
    ConfigError
        When it would be larger than a reader accepts.
    KMSError
        When a KEK cannot be used.
    """
    # Two files may hold the same recipient.
    draft = keyset.draft(list({recipient.id: recipient for recipient in to}.values()))
    wraps = {kek.uri: kek.wrap(draft.ksk.reveal(), draft.context) for kek in keks}
    try:
        return draft.finish(wraps)
    except ValueError as exc:
        hint = f"a keyset takes {MAX_WRAPS} KEKs, and a limited number of epochs and recovery recipients"
        raise ConfigError(str(exc), path=LOCATION, hint=hint) from exc


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
        with Path(file).open("rb") as opened:
            # As from the host: a longer one is refused by its parser without reading all of it.
            return opened.read(MAX_FILE + 1)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read: {exc.strerror}", path=file, hint="check the path") from exc


async def restore(backend: Backend, config: StoreConfig, access: Access, source: Path | None) -> tuple[Keyset, Path]:
    """Put a backup copy of the keyset back to the host, after it was opened here, and return it.

    Raises
    ------
    ObjectNotFoundError
        When there is no backup copy.
    ObjectExistsError
        When the host has a keyset.
    """
    path = source or copies.newest_backup(config)
    if path is None:
        hint = f"name one with --from; they are kept in {copies.backup_folder(config)}"
        raise ObjectNotFoundError(
            f"store {config.name!r}: no backup copy of its keyset was found", path=config.name, hint=hint
        )
    raw = read_file(str(path))
    keyset = await asyncio.to_thread(unlock, raw, config, access)
    copies.check_seen(keyset, config)
    try:
        await _write(backend, LOCATION, raw, create=True, if_match=None)
    except ObjectExistsError as exc:
        hint = f"move {LOCATION} at the host away first, if it is damaged"
        raise ObjectExistsError(f"store {config.name!r}: the host has a keyset", path=LOCATION, hint=hint) from exc
    copies.remember(keyset)
    if access.trail is not None:
        access.trail.record("restore", "done", version=keyset.version, keks=", ".join(parse(raw).wraps))
    return keyset, path

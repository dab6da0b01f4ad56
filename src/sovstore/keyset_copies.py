"""What this machine keeps of a store's keyset: backup copies, wrapped as at the host, and the highest version seen."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import platformdirs

from sovstore import beside
from sovstore.config import StoreConfig
from sovstore.errors import ConfigError, IntegrityError
from sovstore.format.keyset import Keyset, ParsedKeyset

#: The keyset of a store, below its root.
LOCATION = ".sovstore/keyset.json"
#: What backup copies are called while they are written.
_UNFINISHED = "keyset"
_log = logging.getLogger("sovstore")


def backup_folder(config: StoreConfig) -> Path:
    """Return the folder of the backup copies of a store."""
    return config.backup_folder / config.identity.hex()


def newest_backup(config: StoreConfig) -> Path | None:
    """Return the backup copy of the highest version, or None."""
    found = [path for path in backup_folder(config).glob("*.json") if path.stem.isdecimal()]
    return max(found, key=lambda path: int(path.stem), default=None)


def save_backup(config: StoreConfig, keyset: Keyset, raw: bytes) -> Path:
    """Write a backup copy, wrapped as on the host, and return its path.

    Raises
    ------
    ConfigError
        When it cannot be written: a keyset without a second copy is one mistake away from losing everything.
    """
    path = backup_folder(config) / f"{keyset.version}.json"
    try:
        beside.replace(path, raw, name=_UNFINISHED)
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        first = "free some room there" if full else "set 'backup' to a folder that can be written"
        hint = f"{first}, then run 'sovstore keys backup {config.name}'; the host has the keyset already"
        raise ConfigError(
            f"{path}: the backup copy of the keyset cannot be written: {exc.strerror}",
            path=str(path),
            hint=hint,
        ) from exc
    return path


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


def is_older(found: Keyset | ParsedKeyset, config: StoreConfig) -> bool:
    """Return whether this client has seen a newer version of the store than this one is, or says that it is."""
    return found.version < _seen(config.identity)


def is_newer(keyset: Keyset) -> bool:
    """Return whether this client has seen older versions of the store, and none as new as this one."""
    return 0 < _seen(keyset.store_id) < keyset.version


def refuse_older(found: Keyset | ParsedKeyset, config: StoreConfig) -> None:
    """Refuse a keyset that is older than one that this client has seen.

    Raises
    ------
    IntegrityError
        When the host replays an old version.
    """
    if is_older(found, config):
        seen, file = _seen(config.identity), _seen_file(config.identity)
        raise IntegrityError(
            f"store {config.name!r}: keyset version {found.version} is older than version {seen}, which was seen here",
            path=LOCATION,
            hint=f"the host put an old keyset back; if you did, delete {file}",
        )


def check_seen(keyset: Keyset, config: StoreConfig) -> None:
    """Refuse a keyset as `refuse_older`, and remember it otherwise."""
    refuse_older(keyset, config)
    remember(keyset)


def sweep(config: StoreConfig) -> None:
    """Delete the temporary files that killed commands left on this machine when they changed a keyset."""
    # Their numbers are the same for all versions: which one was being written is not known.
    beside.sweep(backup_folder(config) / _UNFINISHED)
    beside.sweep(_seen_file(config.identity))
    if config.source is not None:
        beside.sweep(config.source)


def remember(keyset: Keyset) -> None:
    """Note the version of a keyset as seen; a client that cannot write says so in the log and goes on."""
    if keyset.version <= _seen(keyset.store_id):
        return
    try:
        beside.replace(_seen_file(keyset.store_id), json.dumps({"version": keyset.version}).encode())
    except OSError as exc:
        _log.warning("%s cannot be written (%s): an older keyset would not be noticed", exc.filename, exc.strerror)

"""Making a new store: its KEK where the driver can make one, its keyset and the backup copy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from sovstore import keysets, policy
from sovstore.backends.registry import open_backend
from sovstore.config import StoreConfig
from sovstore.errors import ObjectExistsError, ObjectNotFoundError
from sovstore.format.keyset import Keyset
from sovstore.keyset_copies import LOCATION, newest_backup
from sovstore.keysets import Keks
from sovstore.kms.base import Access, WrappingKey


async def create(config: StoreConfig, access: Access, record: Callable[[dict[str, str]], None]) -> Keyset:
    """Make a new store: its KEK where the driver can make one, its keyset, and the backup copy.

    Parameters
    ----------
    config : StoreConfig
        Without a ``store_id``.
    access : Access
        How a passphrase is had.
    record : callable
        Called with the settings to write into the configuration, before anything is written to the host: a keyset
        that no configuration knows would be worse than a configuration without its keyset.

    Raises
    ------
    ObjectExistsError
        When there is a keyset at the host already.
    PolicyError
        When the policy refuses a KEK or the host.
    """
    policy.enforce(config)
    backend = open_backend(config.place)
    try:
        await backend.stat(LOCATION)
    except ObjectNotFoundError:
        pass
    else:
        hint = "for a store made elsewhere, copy its 'store_id' and 'auth_fingerprint' into this configuration"
        raise ObjectExistsError(
            f"store {config.name!r}: there is a store at {config.root!r} already", path=config.root, hint=hint
        )
    if config.store_id and (backup := newest_backup(config)):
        hint = f"'sovstore keys restore {config.name}' puts {backup} back; new keys could not read what is there"
        raise ObjectExistsError(f"store {config.name!r}: was made before, and its keyset has a backup copy", hint=hint)
    keks = await asyncio.to_thread(_open_or_make, config, access)
    known = bytes.fromhex(config.store_id) if config.store_id else None
    keyset = Keyset.create(now=int(time.time()), names_mode=config.names, store_id=known)
    keysets.recipients(config)
    store_id, fingerprint = keyset.store_id.hex(), keyset.auth_fingerprint
    record({"store_id": store_id, "auth_fingerprint": fingerprint})
    made = replace(config, store_id=store_id, auth_fingerprint=fingerprint)
    await keysets.publish(backend, made, keyset, keks, replaces=None)
    if access.trail is not None:
        access.trail.record("init", "done", version=keyset.version, keks=", ".join(kek.uri for kek in keks))
    await backend.close()
    return keyset


def _open_or_make(config: StoreConfig, access: Access) -> list[WrappingKey]:
    keks = Keks(config, access)
    keks.open(config.kek, make=True)
    return keks.all()

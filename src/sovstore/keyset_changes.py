"""Changing a keyset so that no change of another client is lost (docs/spec/format.md, 6.5)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass

from sovstore import keyset_lock, keysets
from sovstore.backends.base import Backend
from sovstore.config import StoreConfig
from sovstore.errors import ConfigError, ObjectChangedError, SovstoreError
from sovstore.format.keyset import Keyset, ParsedKeyset, parse
from sovstore.keyset_copies import LOCATION
from sovstore.keysets import Keks
from sovstore.kms import registry

#: How often a change is made anew because another client came first.
_TRIES = 20
#: Given the keyset as it is; returns the next version, or None when there is nothing to change.
Alter = Callable[[Keyset, ParsedKeyset], Keyset | None]


@dataclass(frozen=True)
class Change:
    """What is to become of a keyset.

    Parameters
    ----------
    what : str
        What the audit trail calls it.
    alter : callable
        May be called again, so it must have no effect that is not the same then.
    added, removed : frozenset of str
        Labels of KEKs, and ids of recovery recipients in hexadecimal, that shall open it from now on, or no more.
    about : str or None
        The KEK, epoch or recipient that it is about, for the audit trail.
    """

    what: str
    alter: Alter
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    about: str | None = None


async def make(backend: Backend, config: StoreConfig, keks: Keks, change: Change) -> Keyset:
    """Return the keyset after a change; it is made on the newest version, as often as another client comes first.

    Parameters
    ----------
    keks : Keks
        The one that opens it is asked once, and all once more to wrap the new version.

    Raises
    ------
    ConfigError
        When the configuration and the keyset do not name the same KEKs and recipients, but for those that the change is
        about: it would lock somebody out, or let somebody in again.
    KeyDeniedError
        When it was opened by a KEK that is kept for older keysets only.
    ObjectChangedError
        When other clients came first each time.
    """
    trail, version = keks.access.trail, None
    outcome = "interrupted"
    try:
        for attempt in range(_TRIES):
            try:
                keyset = await _make_once(backend, config, keks, change)
            except ObjectChangedError:
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(random.uniform(0, 0.1 * (attempt + 1)))  # noqa: S311  # nosec B311  # no secret
            else:
                outcome, version = "done", keyset.version
                return keyset
        raise AssertionError("the last try returns or raises")
    except SovstoreError as exc:
        outcome = type(exc).__name__
        raise
    finally:
        if trail is not None:
            named = ", ".join((config.kek, *config.other_keks))
            trail.record(change.what, outcome, about=change.about, version=version, keks=named)


async def _make_once(backend: Backend, config: StoreConfig, keks: Keks, change: Change) -> Keyset:
    keyset, raw = await keysets.fetch_opened(backend, config, lambda raw: keysets.unlock(raw, config, keks))
    etag = (await backend.stat(LOCATION)).etag
    parsed = parse(raw)
    if keks.is_old(parsed.wraps):
        raise keysets.read_only(config)
    recipients = keysets.recipients(config)
    _check_keks(parsed, config, change)
    _check_recipients(parsed, [recipient.id.hex() for recipient in recipients], config, change)
    new = change.alter(keyset, parsed)
    if new is None:
        return keyset
    changed = await asyncio.to_thread(lambda: keysets.wrap_anew(new, keks.all(), recipients))
    decided_by_host = etag is not None and "put:replace" in backend.conditions
    async with nullcontext() if decided_by_host else keyset_lock.held(backend, config.name):
        # Nothing may have come between what was read and its ETag; where the host decides nothing, until now.
        if await keysets.fetch(backend, config) != raw:
            raise ObjectChangedError(f"store {config.name!r}: another client changed its keyset", path=LOCATION)
        await keysets.write_version(backend, config, new, changed, create=False, if_match=etag)
    return new


def _check_keks(parsed: ParsedKeyset, config: StoreConfig, change: Change) -> None:
    """Refuse to lock out whoever opens the store, and to let a KEK in again that another client took away."""
    configured = {registry.label(uri): uri for uri in (config.kek, *config.other_keks)}
    unknown = [label for label in parsed.wraps if label not in configured and label not in change.removed]
    absent = [label for label in configured if label not in parsed.wraps and label not in change.added]
    if len(parsed.wraps) == len(unknown) == 1 and absent == [registry.label(config.kek)]:
        # The only one was opened by our KEK, which has another URI now.
        return
    store, remove = f"store {config.name!r}", f"sovstore keys remove-kek {config.name}"
    if unknown:
        hint = f"add it to 'other_keks', or take it away for good: {remove} '{unknown[0]}'"
        message = f"{store}: it is also opened by {unknown[0]}, which the configuration does not name"
        raise ConfigError(message, path=config.name, hint=hint)
    if absent:
        add = f"sovstore keys add-kek {config.name} '{configured[absent[0]]}'"
        hint = f"take it out of the configuration: another client removed it; or let it open the store: {add}"
        message = f"{store}: {absent[0]} is configured, and does not open it"
        raise ConfigError(message, path=config.name, hint=hint)


def _check_recipients(parsed: ParsedKeyset, known: Collection[str], config: StoreConfig, change: Change) -> None:
    """Refuse to take a recovery key away that another client added, and to let one in again that it took away."""
    sealed = [seal.hex() for seal in parsed.seals]
    store = f"store {config.name!r}"
    if unknown := [i for i in sealed if i not in known and i not in change.removed]:
        remove = f"sovstore keys recovery-remove {config.name} {unknown[0]}"
        hint = f"add its file (.pub) to 'recovery', or take it away for good: {remove}"
        message = f"{store}: recovery key {unknown[0]} opens it, and the configuration does not name its file"
        raise ConfigError(message, path=config.name, hint=hint)
    if absent := [i for i in known if i not in sealed and i not in change.added]:
        hint = (
            f"take its file out of 'recovery', or seal the store to it: sovstore keys recovery-add {config.name} FILE"
        )
        message = f"{store}: recovery key {absent[0]} is configured, and does not open it"
        raise ConfigError(message, path=config.name, hint=hint)

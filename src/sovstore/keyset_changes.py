"""Changing a keyset so that no change of another client is lost (docs/spec/format.md, 6.5)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import nullcontext

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


async def change(
    backend: Backend,
    config: StoreConfig,
    keks: Keks,
    what: str,
    alter: Alter,
    *,
    removed: Collection[str] = (),
    about: str | None = None,
) -> Keyset:
    """Return the keyset after a change; it is made on the newest version, as often as another client comes first.

    Parameters
    ----------
    keks : Keks
        The one that opens it is asked once, and all once more to wrap the new version.
    what : str
        What the audit trail calls it.
    alter : callable
        May be called again, so it must have no effect of its own.
    removed : collection of str
        Labels of KEKs that shall open it no more.
    about : str, optional
        The KEK, epoch or recipient that it is about, for the audit trail.

    Raises
    ------
    ConfigError
        When it is also opened by a KEK that the configuration does not name: the change would lock its holder out.
    ObjectChangedError
        When other clients came first each time.
    """
    trail, version = keks.access.trail, None
    outcome = "interrupted"
    try:
        for attempt in range(_TRIES):
            try:
                keyset = await _change_once(backend, config, keks, alter, removed)
            except ObjectChangedError:
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(random.uniform(0, 0.1 * (attempt + 1)))  # noqa: S311  # no secret
            else:
                outcome, version = "done", keyset.version
                return keyset
        raise AssertionError("the last try returns or raises")
    except SovstoreError as exc:
        outcome = type(exc).__name__
        raise
    finally:
        if trail is not None:
            trail.record(what, outcome, about=about, version=version, keks=", ".join((config.kek, *config.other_keks)))


async def _change_once(
    backend: Backend, config: StoreConfig, keks: Keks, alter: Alter, removed: Collection[str]
) -> Keyset:
    keyset, raw = await keysets.fetch_opened(backend, config, lambda raw: keysets.unlock(raw, config, keks))
    etag = (await backend.stat(LOCATION)).etag
    parsed = parse(raw)
    new = alter(keyset, parsed)
    if new is None:
        return keyset
    _check_named(parsed, config, removed)
    recipients = keysets.recipients(config)
    changed = await asyncio.to_thread(lambda: keysets.wrap_anew(new, keks.all(), recipients))
    decided_by_host = etag is not None and "put:replace" in backend.conditions
    async with nullcontext() if decided_by_host else keyset_lock.held(backend, config.name):
        # Nothing may have come between what was read and its ETag; where the host decides nothing, until now.
        if await keysets.fetch(backend, config) != raw:
            raise ObjectChangedError(f"store {config.name!r}: another client changed its keyset", path=LOCATION)
        await keysets.write_version(backend, config, new, changed, create=False, if_match=etag)
    return new


def _check_named(parsed: ParsedKeyset, config: StoreConfig, removed: Collection[str]) -> None:
    """Refuse to lock out whoever opens the store by a KEK that is not configured here."""
    known = {registry.label(uri) for uri in (config.kek, *config.other_keks, *config.old_keks)}
    unknown = [uri for uri in parsed.wraps if uri not in known and uri not in removed]
    # The only one was opened by a KEK of ours that has another URI now.
    if unknown and len(parsed.wraps) > 1:
        hint = (
            f"add it to 'other_keks', or take it away for good: sovstore keys remove-kek {config.name} '{unknown[0]}'"
        )
        message = f"store {config.name!r}: it is also opened by {unknown[0]}, which the configuration does not name"
        raise ConfigError(message, path=config.name, hint=hint)

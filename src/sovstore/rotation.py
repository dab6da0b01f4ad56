"""The life of a store's keys: KEKs come and go, epochs follow one another, objects move to the newest one.

Every change writes one small object, but for `Store.rewrap`, which writes 128 bytes of each object anew. None of them
revokes anybody who kept keys: only writing data again under keys that they never had does.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sovstore import keyset_copies, keysets
from sovstore.config import StoreConfig
from sovstore.errors import ConfigError, FormatError, ObjectNotFoundError
from sovstore.format.keyset import Epoch, Keyset, ParsedKeyset
from sovstore.format.recovery import Recipient
from sovstore.keyset_changes import Change
from sovstore.kms import registry
from sovstore.store import Entry, Store

#: Writes settings into the table of the store.
Record = Callable[[Mapping[str, str | list[str]]], None]


async def rotate_kek(store: Store) -> Keyset:
    """Return the keyset, wrapped anew by the newest version of every configured KEK: one call to each."""
    return await store.change_keyset(Change("rotate-kek", lambda keyset, _: keyset.next_version(now=_now())))


async def add_kek(store: Store, uri: str, record: Record) -> Keyset:
    """Return the keyset, which one more KEK opens from now on.

    Parameters
    ----------
    uri : str
        Its key URI.
    record : callable
        Called with the new list of ``other_keks`` when the keyset is written. A call that was interrupted between the
        two is made again.

    Raises
    ------
    ConfigError, PolicyError, KMSError
        When that KEK cannot be used; nothing has changed then.
    """
    config = store.config
    label, named = registry.label(uri), (config.kek, *config.other_keks)
    others = config.other_keks if uri in named else (*config.other_keks, uri)
    old = tuple(kek for kek in config.old_keks if kek != uri)

    def alter(keyset: Keyset, parsed: ParsedKeyset) -> Keyset | None:
        return None if label in parsed.wraps else keyset.next_version(now=_now())

    # Opened before a key is made: nobody is left with a key for a store that is not theirs, or with another key than
    # the one that opens it.
    if not registry.key_exists(uri) and label in (await store.opened_by()).wraps:
        hint = "bring it to this machine; if it is lost, remove that KEK and add another one"
        raise ConfigError(f"{uri}: opens the store already, and is not here", path=uri, hint=hint)
    change = Change("add-kek", alter, added=frozenset((label,)), about=label)
    changed = replace(config, other_keks=others, old_keks=old)
    keyset = await store.change_keyset(change, config=changed, make=uri)
    if others != config.other_keks:
        record({"other_keks": list(others), **({"old_keks": list(old)} if old != config.old_keks else {})})
    return keyset


async def remove_kek(store: Store, uri: str, record: Record, *, keep_old: bool = False) -> Keyset:
    """Return the keyset, which this KEK opens no more. Its service is not asked: it may be gone.

    Parameters
    ----------
    uri : str
        Its key URI, as the configuration or the keyset has it.
    record : callable
        Called with the changed settings when a KEK that is left has opened the keyset, and *before* it is written: a
        KEK that is still configured would be wrapped to again by the next change.
    keep_old : bool
        Name it in ``old_keks``, so that it may unwrap older keysets: backup copies, for example.

    Raises
    ------
    ConfigError
        When it is the only one.
    """
    config, removed = store.config, registry.label(uri)
    left = [kek for kek in (config.kek, *config.other_keks) if registry.label(kek) != removed]
    if not left:
        hint = f"'sovstore keys add-kek {config.name} URI' adds another one first"
        raise ConfigError(f"store {config.name!r}: {uri} is the only KEK that opens it", path=config.name, hint=hint)
    old = [kek for kek in config.old_keks if registry.label(kek) != removed] + [uri] * keep_old
    changed = replace(config, kek=left[0], other_keks=tuple(left[1:]), old_keks=tuple(old))
    configured = [registry.label(kek) for kek in (config.kek, *config.other_keks, *config.old_keks)]

    def alter(keyset: Keyset, parsed: ParsedKeyset) -> Keyset | None:
        if removed not in parsed.wraps and removed not in configured:
            hint = f"it is opened by {', '.join(parsed.wraps)}"
            raise ConfigError(f"store {config.name!r}: {uri} is none of its KEKs", path=config.name, hint=hint)
        # Not before the KEKs that are left have opened it: a configuration that opens nothing helps nobody. Written
        # again when the change is made anew, it is the same.
        if changed != config:
            record(_differences(config, changed))
        return keyset.next_version(now=_now()) if removed in parsed.wraps else None

    return await store.change_keyset(
        Change("remove-kek", alter, removed=frozenset((removed,)), about=removed), config=changed
    )


def _differences(before: StoreConfig, after: StoreConfig) -> dict[str, str | list[str]]:
    settings: dict[str, str | list[str]] = {"kek": after.kek} if after.kek != before.kek else {}
    for name in ("other_keks", "old_keks"):
        if getattr(after, name) != getattr(before, name):
            settings[name] = list(getattr(after, name))
    return settings


async def add_recovery(store: Store, file: str, record: Record) -> Keyset:
    """Return the keyset, which is sealed to one more recovery recipient from now on.

    Parameters
    ----------
    file : str
        Its file (``.pub``).
    record : callable
        Called with the new list ``recovery`` before the keyset is written.
    """
    recipient = Recipient.load(keysets.read_file(file), what=file)
    config = store.config
    named = [known.id for known in keysets.recipients(config)]
    path = str(Path(file).absolute())
    changed = config if recipient.id in named else replace(config, recovery=(*config.recovery, path))

    def alter(keyset: Keyset, parsed: ParsedKeyset) -> Keyset | None:
        # Not before it was opened, which may fail or need a passphrase.
        if changed != config:
            record({"recovery": list(changed.recovery)})
        return None if recipient.id in parsed.seals else keyset.next_version(now=_now())

    added = recipient.id.hex()
    return await store.change_keyset(
        Change("recovery-add", alter, added=frozenset((added,)), about=added), config=changed
    )


async def remove_recovery(store: Store, recipient: str, record: Record) -> Keyset:
    """Return the keyset, which is sealed to a recovery recipient no more.

    Older keysets, at the host and in backup copies, still are.

    Parameters
    ----------
    recipient : str
        Its id in hexadecimal, or the beginning of it; its file need not be there.
    record : callable
        Called with the new list ``recovery`` before the keyset is written.

    Raises
    ------
    ConfigError
        When the keyset is sealed to none that begins so, or to more than one.
    """
    config = store.config
    sealed = [seal.hex() for seal in (await store.opened_by()).seals]
    found = [known for known in sealed if recipient and known.startswith(recipient.lower())]
    if len(found) != 1:
        what = "is sealed to no recovery key that begins so" if not found else "is sealed to more than one of that name"
        hint = f"it is sealed to {', '.join(sealed) or 'none'}"
        raise ConfigError(f"store {config.name!r}: {what}: {recipient!r}", path=config.name, hint=hint)
    ids = [known.id.hex() for known in keysets.recipients(config)]
    left = tuple(file for file, known in zip(config.recovery, ids, strict=True) if known != found[0])
    changed = replace(config, recovery=left)

    def alter(keyset: Keyset, _: ParsedKeyset) -> Keyset:
        if changed != config:
            record({"recovery": list(left)})
        return keyset.next_version(now=_now())

    return await store.change_keyset(
        Change("recovery-remove", alter, removed=frozenset(found), about=found[0]), config=changed
    )


# Epochs


async def new_epoch(store: Store) -> Epoch:
    """Return a new epoch, under which all is written from now on.

    It is published as readable and made primary in a second version, so that no client meets objects under an epoch
    that it cannot know yet. A call that was interrupted between the two leaves an epoch that nothing is sealed under.
    """
    made: list[Epoch] = []

    def add(keyset: Keyset, _: ParsedKeyset) -> Keyset:
        added = keyset.add_epoch(now=_now())
        made[:] = [added.epochs[-1]]
        return added

    def promote(keyset: Keyset, _: ParsedKeyset) -> Keyset | None:
        added = keyset.epoch(made[0].id)
        if added is None or added.state == "destroyed":
            message = f"epoch {made[0].id.hex()}: another client destroyed it before anything was written under it"
            raise ConfigError(message, path=made[0].id.hex(), hint="run this again")
        ids = [epoch.id for epoch in keyset.epochs]
        # Another client may have made a later one primary already.
        late = ids.index(made[0].id) < ids.index(keyset.primary.id)
        return None if late else keyset.promote(made[0].id, now=_now())

    await store.change_keyset(Change("new-epoch", add))
    await store.change_keyset(Change("promote-epoch", promote))
    return made[0]


@dataclass
class Usage:
    """What the objects of a store are sealed under, as their headers say.

    Parameters
    ----------
    objects, size : dict of bytes to int
        By epoch: how many objects, and their plaintext bytes.
    examples : dict of bytes to list of str
        By epoch: some of their paths.
    foreign : int
        Objects that sovstore did not write.
    """

    objects: dict[bytes, int] = field(default_factory=dict)
    size: dict[bytes, int] = field(default_factory=dict)
    examples: dict[bytes, list[str]] = field(default_factory=dict)
    foreign: int = 0

    def count(self, entry: Entry, key_id: bytes) -> None:
        """Count one object."""
        self.objects[key_id] = self.objects.get(key_id, 0) + 1
        self.size[key_id] = self.size.get(key_id, 0) + (entry.size or 0)
        paths = self.examples.setdefault(key_id, [])
        if len(paths) < _EXAMPLES:
            paths.append(entry.path)


_EXAMPLES = 5


async def objects(store: Store) -> AsyncIterator[Entry]:
    """Yield all objects of a store that sovstore wrote, as the host lists them."""
    async for entry in store.list("", recursive=True):
        if not entry.folder and not entry.foreign:
            yield entry


async def count(store: Store, usage: Usage, entry: Entry) -> None:
    """Count one object under the epoch that its header names; one that is gone meanwhile is none."""
    try:
        usage.count(entry, await store.key_id(entry))
    except ObjectNotFoundError:
        return
    except FormatError:
        usage.foreign += 1


def find_epoch(keyset: Keyset, text: str) -> Epoch:
    """Return the epoch that a person names by its key id or the beginning of it.

    Raises
    ------
    ConfigError
        When there is none, or more than one.
    """
    found = [epoch for epoch in keyset.epochs if text and epoch.id.hex().startswith(text.lower())]
    if len(found) != 1:
        what = "there is no such epoch" if not found else "more than one epoch begins so"
        raise ConfigError(f"epoch {text!r}: {what}", path=text, hint="'sovstore keys list STORE' shows them")
    return found[0]


async def destroy_epoch(store: Store, key_id: bytes) -> Keyset:
    """Return the keyset without the key of an epoch: what is still sealed under it is lost to all who did not keep it.

    Old keysets still hold the key, wrapped. It is gone when every KEK version, recovery key and backup copy that ever
    wrapped it is gone too: `copies_of` lists them.

    Raises
    ------
    ConfigError
        When it is the primary one.
    """

    def alter(keyset: Keyset, _: ParsedKeyset) -> Keyset | None:
        epoch = keyset.epoch(key_id)
        if epoch is None:
            raise ConfigError(f"epoch {key_id.hex()}: there is no such epoch", path=key_id.hex())
        if epoch.state == "primary":
            hint = f"'sovstore keys new-epoch {store.config.name}' makes another one primary first"
            raise ConfigError(f"epoch {key_id.hex()}: all is written under it now", path=key_id.hex(), hint=hint)
        return None if epoch.state == "destroyed" else keyset.destroy(key_id, now=_now())

    return await store.change_keyset(Change("destroy-epoch", alter, about=key_id.hex()))


@dataclass(frozen=True)
class Copies:
    """Where older keysets lie that still hold the key of an epoch, wrapped.

    Parameters
    ----------
    at_host : tuple of str
        Names below the root.
    here : tuple of Path
        Backup copies.
    """

    at_host: tuple[str, ...]
    here: tuple[Path, ...]


async def copies_of(store: Store, keyset: Keyset) -> Copies:
    """Return where other versions lie that are not newer: one that lost a race has the same number, and older keys."""
    raw = await keysets.fetch(store.backend, store.config)
    own = keysets.version_name(keyset, raw)
    listed = [stat.name async for stat in store.backend.list(keysets.HISTORY) if not stat.folder]
    at_host = [name for name in listed if name != own and _version(name) in range(1, keyset.version + 1)]
    folder = keyset_copies.backup_folder(store.config)
    here = [path for path in folder.glob("*.json") if _version(path.name) in range(1, keyset.version)]
    return Copies(tuple(sorted(at_host)), tuple(sorted(here)))


async def delete_copies(store: Store, copies: Copies) -> None:
    """Delete older versions, at the host as far as it obeys, and here."""
    await store.backend.delete(copies.at_host)
    for path in copies.here:
        path.unlink(missing_ok=True)


def _version(name: str) -> int:
    number = name.rpartition("/")[2].partition(".")[0].partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _now() -> int:
    return int(time.time())

"""``keys new-epoch``, ``rewrap`` and ``destroy-epoch``: which store keys data is sealed under, and their end."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import command, usage
from sovstore.cli.arguments import JOBS, Jobs, StoreName, argument
from sovstore.cli.keys import keys
from sovstore.cli.keys_keks import changing
from sovstore.cli.output import count_text, size_text, time_text
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import store_name
from sovstore.concurrency import for_each
from sovstore.errors import ConfigError, ObjectChangedError, ObjectNotFoundError, SovstoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.format.keyset import Epoch, Keyset
    from sovstore.rotation import Copies, Usage
    from sovstore.store import Entry


@command(keys, "new-epoch", examples=["keys new-epoch cohortes"])
def new_epoch(run: Run, store: StoreName) -> None:
    """Make a new store key; all is sealed under it from now on.

    Writes one small object, twice, and no data. Objects that are there stay under their epochs, readable as before,
    until 'sovstore keys rewrap' moves them. Other clients take the new epoch when they next open the store: at the
    latest after the time in 'cache' of their configuration.
    """
    from sovstore import rotation

    epoch = changing(run, store, lambda opened, _: rotation.new_epoch(opened))
    if run.out.as_json:
        run.out.result({"store": store_name(store), "key_id": epoch.id.hex()})
        return
    run.out.line(f"store {store_name(store)!r}: epoch {epoch.id.hex()} is primary now")
    run.out.note(f"'sovstore keys rewrap {store_name(store)}' moves what is there to it")


@command(keys, "rewrap", examples=["keys rewrap cohortes --dry-run", "keys rewrap cohortes --jobs 16"])
def rewrap(
    run: Run,
    store: StoreName,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and change nothing.")] = False,
    jobs: Jobs = JOBS,
) -> int:
    """Move all objects of a store to its newest epoch, by their headers alone.

    128 bytes of each object are written anew; the host copies the rest where it can. What is under the newest epoch
    already is left alone, so a run that was interrupted is simply run again. Run it once more after the time in
    'cache': clients that opened the store before the new epoch write under the old one until then.
    """
    from sovstore import rotation

    fs = run.open(store_name(store))
    outcome, already = Outcome(), 0
    with run.out.progress("rewrapped") as bar:

        async def one(entry: Entry) -> None:
            nonlocal already
            try:
                moved = await _moved(fs, entry, dry_run=dry_run)
            except SovstoreError as exc:
                run.fail(outcome, entry.path, exc)
                return
            if not moved:
                already += 1
                return
            outcome.objects += 1
            outcome.size += entry.size or 0
            bar.advance(entry.size or 0)
            bar.finish()

        run.wait(for_each(rotation.objects(fs.store), one, jobs))
    _summary(run, fs, outcome, already, dry_run=dry_run)
    return outcome.exit_code


async def _moved(fs: SovFileSystem, entry: Entry, *, dry_run: bool) -> bool:
    """Return whether an object was, or would be, moved to the primary epoch."""
    try:
        if dry_run:
            return await fs.store.key_id(entry) != (await fs.store.keyset()).primary.id
        return await fs.store.rewrap(entry)
    except ObjectNotFoundError:
        return False
    except ObjectChangedError:
        # Somebody wrote it meanwhile: under the new epoch, or under an old one if their keys were opened before it.
        return await fs.store.rewrap(entry)


def _summary(run: Run, fs: SovFileSystem, outcome: Outcome, already: int, *, dry_run: bool) -> None:
    if run.out.as_json:
        moved = {"objects": outcome.objects, "bytes": outcome.size, "already": already, "failed": outcome.failed}
        run.out.result({"store": fs.store_name, "dry_run": dry_run, **moved})
        return
    verb = "would rewrap" if dry_run else "rewrapped"
    text = (
        f"{verb} {count_text(outcome.objects)}, {size_text(outcome.size)}; {already:,} under the newest epoch already"
    )
    run.out.line(text + (f"; {len(outcome.failed)} failed" if outcome.failed else ""))


@command(
    keys,
    "destroy-epoch",
    examples=["keys destroy-epoch cohortes 5f0c2a", "keys destroy-epoch cohortes 5f0c2a --yes --delete-copies"],
)
def destroy_epoch(
    run: Run,
    store: StoreName,
    epoch: Annotated[str, argument("EPOCH")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    delete_copies: Annotated[
        bool, typer.Option("--delete-copies", help="Delete older keysets too, at the host and among the backup copies.")
    ] = False,
    jobs: Jobs = JOBS,
) -> int:
    """Destroy the key of an epoch: whatever is still sealed under it becomes unreadable, for ever.

    EPOCH is a key id of 'sovstore keys list', or its beginning. First the objects under it are counted and shown. Put a
    cohort under an epoch of its own to be able to erase it so. Older keysets, at the host and in backup copies, still
    hold the key, wrapped: erasure is complete when every KEK version and recovery key that opens one of them is
    destroyed too.
    """
    from sovstore import rotation

    fs = run.open(store_name(store))
    keyset = run.wait(fs.store.keyset())
    chosen = _destroyable(keyset, epoch, fs.store_name)
    usage_ = rotation.Usage()
    with run.out.progress("looked at") as bar:

        async def one(entry: Entry) -> None:
            await rotation.count(fs.store, usage_, entry)
            bar.finish()

        run.wait(for_each(rotation.objects(fs.store), one, jobs))
    _warn(run, fs, chosen, usage_)
    _warn_of_writers(run, fs, keyset, chosen)
    if not yes:
        _confirm(run, fs.store_name)
    after = run.wait(rotation.destroy_epoch(fs.store, chosen.id))
    copies = run.wait(rotation.copies_of(fs.store, after))
    if delete_copies:
        run.wait(rotation.delete_copies(fs.store, copies))
    _report(run, fs, after, chosen, usage_, copies, deleted=delete_copies)
    return 0


def _destroyable(keyset: Keyset, text: str, store: str) -> Epoch:
    from sovstore import rotation

    found = rotation.find_epoch(keyset, text)
    if found.state == "primary":
        hint = f"'sovstore keys new-epoch {store}' makes another one primary first"
        raise ConfigError(f"epoch {found.id.hex()}: all is written under it now", path=text, hint=hint)
    return found


def _warn(run: Run, fs: SovFileSystem, chosen: Epoch, found: Usage) -> None:
    lost = found.objects.get(chosen.id, 0)
    if not lost:
        run.out.note(f"no object is sealed under epoch {chosen.id.hex()}")
        return
    size = size_text(found.size[chosen.id])
    run.out.warn(
        f"{count_text(lost)}, {size}, sealed under epoch {chosen.id.hex()} will be unreadable for ever, by anybody",
        f"'sovstore keys rewrap {fs.store_name}' keeps them, under the newest epoch",
    )
    for path in found.examples[chosen.id]:
        run.out.note(f"  {path}")
    if lost > len(found.examples[chosen.id]):
        run.out.note("  …")


def _warn_of_writers(run: Run, fs: SovFileSystem, keyset: Keyset, chosen: Epoch) -> None:
    """Say that a client may still write under the epoch, for as long as it may hold keys from before its successor."""
    newer = keyset.primary.created
    if chosen.state == "readable" and time.time() < newer + fs.store.config.cache_s:
        moment = time_text(datetime.fromtimestamp(newer, UTC))
        run.out.warn(
            f"clients that opened the store before {moment} write under this epoch until they open it again",
            f"wait for the time in their 'cache', {fs.store.config.cache} here, and run 'sovstore keys rewrap' first",
        )


def _confirm(run: Run, store: str) -> None:
    if run.out.as_json or sys.stdin is None or not sys.stdin.isatty():
        usage("nobody is there to confirm", "add --yes if what is sealed under that epoch shall be lost")
    sys.stderr.write(f"Type the name of the store, {store}, to destroy it: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != store:
        raise ConfigError("nothing was destroyed: that is not the name of the store", path=store)


def _report(
    run: Run, fs: SovFileSystem, keyset: Keyset, chosen: Epoch, found: Usage, copies: Copies, *, deleted: bool
) -> None:
    older: dict[str, Any] = {"at_host": copies.at_host, "here": [str(path) for path in copies.here], "deleted": deleted}
    if run.out.as_json:
        lost = {"objects": found.objects.get(chosen.id, 0), "bytes": found.size.get(chosen.id, 0)}
        epoch = {"store": fs.store_name, "version": keyset.version, "key_id": chosen.id.hex()}
        run.out.result({**epoch, "lost": lost, "older_keysets": older})
        return
    run.out.line(f"store {fs.store_name!r}: epoch {chosen.id.hex()} is destroyed; keyset version {keyset.version}")
    run.out.line("older keysets hold its key, wrapped:" if not deleted else "older keysets held its key; deleted:")
    for name in (*copies.at_host, *map(str, copies.here)):
        run.out.line(f"  {name}")
    run.out.line("the erasure is complete when these are destroyed too, for all who may have kept a copy of those:")
    for kek in (fs.store.config.kek, *fs.store.config.other_keks, *fs.store.config.old_keks):
        run.out.line(f"  the versions until now of {kek}")
    run.out.line("  every recovery key that was ever among the recipients, and KEKs that were removed")

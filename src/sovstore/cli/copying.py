"""``cp`` and ``mv``: inside a store, and from one store to another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import JOBS, Jobs, Recursive, Url, Urls
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import base_name, below, expand, in_store, is_folder, join
from sovstore.cli.transfer import Callback, Item, readable, transfer
from sovstore.errors import SovstoreError, StoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.store import Entry


@command(
    app,
    "cp",
    examples=["cp sov://cohortes/a.parquet sov://cohortes/b.parquet", "cp -r sov://cohortes/2026 sov://archive/"],
)
def cp(run: Run, sources: Urls, url: Url, *, recursive: Recursive = False, jobs: Jobs = JOBS) -> int:
    """Copy objects inside a store, or from one to another.

    Inside a store the host copies, and only the first 128 bytes are written anew. Between two, each object is
    opened and sealed again in the memory of this process, under the keys of the other store.
    """
    target, store = in_store(url)
    to = run.open(store)
    into = run.wait(is_folder(to, target, sources))
    outcome = Outcome()
    items: list[Item] = []
    for given in sources:
        source, source_store = in_store(given)
        fs = run.open(source_store)
        try:
            items += run.wait(_items(run, fs, to, source.path, target.path, outcome, into=into, recursive=recursive))
        except SovstoreError as exc:
            run.fail(outcome, given, exc)

    async def one(item: Item, callback: Callback) -> None:
        if item.fs is not to:
            await _copy_between(item, to, callback)
        else:
            await to.store.copy(item.source, item.target)
            callback.relative_update(item.size)

    return transfer(run, "copied", items, outcome, jobs, one)


async def _items(
    run: Run,
    fs: SovFileSystem,
    to: SovFileSystem,
    source: str,
    target: str,
    outcome: Outcome,
    *,
    into: bool,
    recursive: bool,
    folders: list[Entry] | None = None,
) -> list[Item]:
    """Return the objects at and below a path; with `folders`, make the same folders and add the old ones to it."""
    items = []
    async for entry, new in _pairs(fs, source, target, into=into, recursive=recursive, same=fs is to):
        if not entry.folder:
            if await readable(run, fs, entry, outcome):
                items.append(Item(fs, entry.path, new, entry.size or 0))
        elif folders is not None:
            await to.store.make_folder(new)
            folders.append(entry)
    return items


async def _copy_between(item: Item, to: SovFileSystem, callback: Callback) -> None:
    reader = await item.fs.store.reader(item.source)
    writer = await to.store.writer(item.target, size=reader.plain_size)
    try:
        async for piece in reader.stream():
            await writer.write(piece)
            callback.relative_update(len(piece))
        await writer.commit()
    except BaseException:
        await writer.abort()
        raise


@command(
    app,
    "mv",
    examples=[
        "mv sov://cohortes/a.parquet sov://cohortes/b.parquet",
        "mv -r sov://cohortes/2026 sov://cohortes/archive/2026",
    ],
)
def mv(run: Run, sources: Urls, url: Url, *, recursive: Recursive = False, jobs: Jobs = JOBS) -> int:
    """Rename objects inside a store.

    Only the first 128 bytes of an object are written anew. It is authenticated at its new path before
    the old one is deleted.
    """
    target, store = in_store(url)
    for given in sources:
        if in_store(given)[1] != store:
            usage(f"{given}: is in another store than {url}", "'sovstore cp' copies between stores")
    fs = run.open(store)
    into = run.wait(is_folder(fs, target, sources))
    outcome = Outcome()
    items: list[Item] = []
    folders: list[Entry] = []
    for given in sources:
        path = in_store(given)[0].path
        try:
            items += run.wait(
                _items(run, fs, fs, path, target.path, outcome, into=into, recursive=recursive, folders=folders)
            )
        except SovstoreError as exc:
            run.fail(outcome, given, exc)

    async def one(item: Item, callback: Callback) -> None:
        await fs.store.move(item.source, item.target)
        callback.relative_update(item.size)

    code = transfer(run, "renamed", items, outcome, jobs, one)
    if not outcome.failed:
        run.wait(fs.store.delete(folders))
    return code


async def _pairs(
    fs: SovFileSystem, source: str, target: str, *, into: bool, recursive: bool, same: bool
) -> AsyncIterator[tuple[Entry, str]]:
    """Yield every object and folder at and below `source`, each with its new path.

    Raises
    ------
    StoreError
        When something would become itself, or a folder would go into itself.
    """
    matches = await expand(fs, source)
    into = into or len(matches) > 1
    for entry in matches:
        top = join(target, base_name(entry.path)) if into else target
        if same and _goes_into_itself(entry, top):
            what = f"sov://{fs.store_name}/{entry.path}"
            raise StoreError(f"{what}: cannot become itself, or go into itself", path=entry.path)
        inside = await below(fs, entry, recursive=recursive) if entry.folder else []
        if entry.path:
            yield entry, top
        for one in inside:
            yield one, join(top, one.path[len(entry.path) + 1 if entry.path else 0 :])


def _goes_into_itself(entry: Entry, top: str) -> bool:
    if not entry.folder:
        return top == entry.path
    return not entry.path or f"{top}/".startswith(f"{entry.path}/")

"""``ls``, ``cat`` and ``rm``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import OptionalUrls, Recursive, Urls
from sovstore.cli.output import count_text, size_text, time_text
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import expand, in_store, refuse_folder
from sovstore.cli.transfer import done
from sovstore.errors import IsFolderError, SovstoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.store import Entry

#: Entries that `ls` sorts at once, and objects that `rm` deletes at once.
_SORTED, _BATCH = 10_000, 1000


@command(
    app,
    "ls",
    reading=True,
    examples=[
        "ls",
        "ls -l sov://cohortes/2026",
        "ls -R --json sov://cohortes/",
        "ls 'sov://cohortes/*/person.parquet'",
    ],
)
def ls(
    run: Run,
    urls: OptionalUrls = None,
    *,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show sizes in bytes and times (UTC) too.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="List all objects below, by path.")] = False,
) -> None:
    """List objects and folders by their real names and sizes.

    Without a URL, list the stores of the configuration. A name at the host that is none of this store's is marked
    foreign, and never opened.
    """
    if not urls:
        _list_stores(run)
        return
    shown = _Shown(run, long=long)
    for url in urls:
        target, store = in_store(url)
        run.wait(_ls(run.open(store), target.path, shown, several=len(urls) > 1, recursive=recursive))
    shown.end()


def _list_stores(run: Run) -> None:
    stores = run.config.stores
    if run.out.as_json:
        run.out.result([f"sov://{name}/" for name in stores])
        return
    for name in stores:
        run.out.line(f"sov://{name}/")
    if not stores:
        run.out.note("no store is configured; 'sovstore init --help' says how to make one")


async def _ls(fs: SovFileSystem, path: str, shown: _Shown, *, several: bool, recursive: bool) -> None:
    found = await expand(fs, path)
    # What was named itself comes first, as in ls.
    shown.entries(fs.store_name, "", [entry for entry in found if not entry.folder])
    folders = [entry.path for entry in found if entry.folder]
    for folder in folders:
        if several or len(found) > 1:
            shown.title(f"sov://{fs.store_name}/{folder}:")
        base = f"{folder}/" if folder else ""
        first: list[Entry] = []
        async for entry in fs.store.list(folder, recursive=recursive):
            if recursive and entry.folder:
                continue
            first.append(entry)
            # In order of their names as far as that takes little memory; a store may hold millions.
            if len(first) == _SORTED:
                shown.entries(fs.store_name, base, first)
                first.clear()
        shown.entries(fs.store_name, base, first)


class _Shown:
    """What `ls` prints, as it comes."""

    def __init__(self, run: Run, *, long: bool) -> None:
        self._out, self._long = run.out, long
        self._objects = self._size = self._lines = self._width = 0

    def title(self, text: str) -> None:
        """Print whose entries follow."""
        if not self._out.as_json:
            if self._lines:
                self._out.line()
            self._out.line(text)
            self._lines += 1

    def entries(self, store: str, base: str, found: list[Entry]) -> None:
        """Print entries, sorted; `base` is left out of their paths."""
        # The last of one path counts: a foreign name may look like one of ours.
        found = list({e.path: e for e in sorted(found, key=lambda e: (e.path, not e.foreign))}.values())
        self._width = max([self._width, *(len(_size(entry)) for entry in found)])
        for entry in found:
            if self._out.as_json:
                self._out.item(_as_json(store, entry))
            else:
                self._line(entry, base)
            self._lines += 1
            if not entry.folder:
                self._objects, self._size = self._objects + 1, self._size + (entry.size or 0)

    def _line(self, entry: Entry, base: str) -> None:
        name = entry.path.removeprefix(base) + ("/" if entry.folder else "")
        name += "  (foreign)" if entry.foreign else ""
        if self._long:
            name = f"{_size(entry):>{self._width}}  {time_text(entry.modified):<20}  {name}"
        self._out.line(name)

    def end(self) -> None:
        """Print how much there was."""
        if self._out.as_json:
            self._out.end_items()
        elif self._long:
            self._out.note(f"{count_text(self._objects)}, {size_text(self._size)}")


def _size(entry: Entry) -> str:
    return "-" if entry.folder else "?" if entry.size is None else str(entry.size)


def _as_json(store: str, entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "url": None if entry.foreign else f"sov://{store}/{entry.path}",
        "type": "folder" if entry.folder else "object",
        "foreign": entry.foreign,
        "size": entry.size,
        "modified": entry.modified,
        "host_name": entry.name,
        "host_size": entry.wire_size,
        "etag": entry.etag,
    }


@command(
    app,
    "cat",
    reading=True,
    examples=[
        "cat sov://cohortes/README.md",
        "cat sov://cohortes/2026/*.csv | head",
        "cat sov://cohortes/dump.gz | zcat",
    ],
)
def cat(run: Run, urls: Urls) -> None:
    """Write objects to stdout, one after the other.

    Every byte was authenticated before it is written. When a later part of an object is not authentic, the output ends
    before it and the exit code is 3: in a pipe, look at it (set -o pipefail).
    """
    for url in urls:
        target, store = in_store(url)
        fs = run.open(store)
        run.wait(_cat(fs, target.path))


async def _cat(fs: SovFileSystem, path: str) -> None:
    for entry in await expand(fs, path):
        if entry.folder:
            raise IsFolderError(f"{entry.path or fs.store_name}: is a folder", path=entry.path)
        reader = await fs.store.reader(entry.path, whole=True)
        async for piece in reader.stream():
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@command(
    app,
    "rm",
    examples=["rm sov://cohortes/2026/person.parquet", "rm -r sov://cohortes/2025", "rm 'sov://cohortes/tmp/*.csv'"],
)
def rm(
    run: Run,
    urls: Urls,
    *,
    recursive: Recursive = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete the content of a whole store.")] = False,
) -> int:
    """Delete objects.

    A host may keep older versions or backups: those stay sealed, and stay readable to whoever holds the keys.
    """
    outcome = Outcome()
    for url in urls:
        target, store = in_store(url)
        if not target.path and recursive and not yes:
            usage(f"{url}: this would delete all objects of the store", "add --yes if that is what you want")
        fs = run.open(store)
        try:
            run.wait(_rm(fs, target.path, outcome, recursive=recursive))
        except SovstoreError as exc:
            run.fail(outcome, url, exc)
    return done(run, "deleted", outcome)


async def _rm(fs: SovFileSystem, path: str, outcome: Outcome, *, recursive: bool) -> None:
    for entry in await expand(fs, path):
        folders: list[Entry] = []
        batch: list[Entry] = []
        if entry.folder:
            refuse_folder(fs, entry, recursive=recursive)
            folders += [entry] if entry.path else []
            # While the host lists: a store may hold millions of objects.
            async for inner in fs.store.list(entry.path, recursive=True):
                (folders if inner.folder else batch).append(inner)
                if len(batch) == _BATCH:
                    await _delete(fs, batch, outcome)
                    batch.clear()
        else:
            batch.append(entry)
        await _delete(fs, batch, outcome)
        await fs.store.delete(folders)


async def _delete(fs: SovFileSystem, objects: list[Entry], outcome: Outcome) -> None:
    await fs.store.delete(objects)
    outcome.objects += len(objects)
    outcome.size += sum(entry.size or 0 for entry in objects)

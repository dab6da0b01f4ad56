"""``ls``, ``cat`` and ``rm``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import OptionalUrls, Recursive, Urls
from sovstore.cli.output import count_text, size_text, time_text
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import below, expand, in_store
from sovstore.cli.transfer import done
from sovstore.errors import IsFolderError, SovstoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem


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
    listings: list[_Listing] = []
    for url in urls:
        target, store = in_store(url)
        listings += run.wait(_listings(run.open(store), target.path, recursive=recursive))
    # What was named itself comes first, as in ls.
    listings.sort(key=lambda listing: listing.folder is not None)
    if run.out.as_json:
        run.out.result([_as_json(listing.store, info) for listing in listings for info in listing.found])
        return
    for number, listing in enumerate(listings):
        if len(listings) > 1 and listing.folder is not None:
            if number:
                run.out.line()
            run.out.line(f"sov://{listing.store}/{listing.folder}:")
        _print(run, listing, long=long)
    if long:
        files = [info for listing in listings for info in listing.found if info["type"] == "file"]
        run.out.note(f"{count_text(len(files))}, {size_text(sum(info['size'] or 0 for info in files))}")


def _list_stores(run: Run) -> None:
    stores = run.config.stores
    if run.out.as_json:
        run.out.result([f"sov://{name}/" for name in stores])
        return
    for name in stores:
        run.out.line(f"sov://{name}/")
    if not stores:
        run.out.note("no store is configured; 'sovstore init --help' says how to make one")


@dataclass(frozen=True)
class _Listing:
    """What is in one folder; `folder` is None for objects that were named themselves."""

    store: str
    folder: str | None
    found: list[dict[str, Any]]


async def _listings(fs: SovFileSystem, path: str, *, recursive: bool) -> list[_Listing]:
    named, listings = [], []
    for entry in await expand(fs, path):
        if not entry.folder:
            named.append(await fs._info(entry.path))
            continue
        if recursive:
            found = list((await fs._find(entry.path, detail=True)).values())
        else:
            found = await fs._ls(entry.path, detail=True)
        listings.append(_Listing(fs.store_name, entry.path, found))
    return [*([_Listing(fs.store_name, None, named)] if named else []), *listings]


def _as_json(store: str, info: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": info["name"],
        "url": None if info["foreign"] else f"sov://{store}/{info['name']}",
        "type": "folder" if info["type"] == "directory" else "object",
        "foreign": info["foreign"],
        "size": info["size"],
        "modified": info["modified"],
        "host_name": info["wire_name"],
        "host_size": info["wire_size"],
        "etag": info["etag"],
    }


def _print(run: Run, listing: _Listing, *, long: bool) -> None:
    found = listing.found
    sizes = ["-" if i["type"] == "directory" else "?" if i["size"] is None else str(i["size"]) for i in found]
    width = max(map(len, sizes), default=0)
    for info, size in zip(found, sizes, strict=True):
        name = info["name"].removeprefix(f"{listing.folder}/" if listing.folder else "")
        name += "/" if info["type"] == "directory" else ""
        name += "  (foreign)" if info["foreign"] else ""
        run.out.line(f"{size:>{width}}  {time_text(info['modified']):<20}  {name}" if long else name)


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
        chosen = [entry] if entry.path else []
        if entry.folder:
            chosen += await below(fs, entry, recursive=recursive)
        await fs.store.delete(chosen)
        outcome.objects += sum(not e.folder for e in chosen)
        outcome.size += sum(e.size or 0 for e in chosen)

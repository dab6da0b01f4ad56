"""``put``: from this machine into a store."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import JOBS, Files, Jobs, Recursive, Url
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import in_store, is_folder, join, local_name, on_this_machine
from sovstore.cli.transfer import Callback, Item, done, transfer
from sovstore.errors import IsFolderError, SovstoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem

_STEP = 2**20


@command(
    app,
    "put",
    examples=[
        "put person.parquet sov://cohortes/2026/",
        "put -r tables sov://cohortes/2026",
        "put - sov://cohortes/dumps/omop.sql < omop.sql",
    ],
)
def put(
    run: Run,
    files: Files,
    url: Url,
    *,
    recursive: Recursive = False,
    jobs: Jobs = JOBS,
) -> int:
    """Seal files of this machine into a store; - is stdin.

    Like cp: a URL that ends with / or names a folder takes the files into it. An object becomes visible when it is
    complete, and replaces the one before it at once.
    """
    target, store = in_store(url)
    sources = [on_this_machine(file) for file in files]
    fs = run.open(store)
    into = run.wait(is_folder(fs, target, sources))
    if any(source.is_pipe for source in sources):
        if into:
            usage("-: stdin has no name to go by", "name one object: sovstore put - sov://STORE/PATH")
        return _put_stdin(run, fs, target.path)
    outcome = Outcome()
    items: list[Item] = []
    for source in sources:
        try:
            items += _items(run, fs, source.path, target.path, into=into, recursive=recursive)
        except (SovstoreError, OSError) as exc:
            run.fail(outcome, source.path, exc)

    async def one(item: Item, callback: Callback) -> None:
        await fs._put_file(item.source, item.target, callback=callback)

    return transfer(run, "sealed", items, outcome, jobs, one)


def _items(run: Run, fs: SovFileSystem, source: str, target: str, *, into: bool, recursive: bool) -> list[Item]:
    top = join(target, local_name(source)) if into else target
    if not os.path.isdir(source):
        return [Item(fs, source, top, os.stat(source).st_size)]
    if not recursive:
        raise IsFolderError(f"{source}: is a folder", path=source, hint="-r takes all that is in it")
    return [Item(fs, path, join(top, inner), os.stat(path).st_size) for path, inner in _files(run, source)]


def _files(run: Run, source: str) -> Iterator[tuple[str, str]]:
    """Yield every file below a folder, and its path in it."""

    def stop(exc: OSError) -> None:
        raise exc

    for folder, folders, files in os.walk(source, onerror=stop):
        folders.sort()
        for name in folders:
            if os.path.islink(path := os.path.join(folder, name)):
                run.out.warn(f"{path}: a link to a folder; left out")
        for name in sorted(files):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                yield path, os.path.relpath(path, source).replace(os.sep, "/")
            else:
                run.out.warn(f"{path}: not a file; left out")


def _put_stdin(run: Run, fs: SovFileSystem, path: str) -> int:
    start, outcome = time.perf_counter(), Outcome()

    async def work() -> None:
        writer = await fs.store.writer(path)
        try:
            # Not in the way of somebody who types.
            with run.out.progress("sealed", shown=not sys.stdin.isatty()) as bar:
                async for piece in _stdin():
                    await writer.write(piece)
                    bar.advance(len(piece))
            await writer.commit()
        except BaseException:
            await writer.abort()
            raise
        outcome.objects, outcome.size = 1, bar.bytes

    run.wait(work())
    return done(run, "sealed", outcome, time.perf_counter() - start)


async def _stdin() -> AsyncIterator[bytes]:
    """Yield what comes in, in large pieces; never blocks the loop, so that Ctrl-C ends it."""
    descriptor = sys.stdin.fileno()
    piece = bytearray()
    while True:
        await _something_to_read(descriptor)
        read = os.read(descriptor, _STEP)
        piece += read
        if len(piece) >= _STEP or (piece and not read):
            yield bytes(piece)
            piece.clear()
        if not read:
            return


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _something_to_read(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(descriptor, _resolve, ready)
    except PermissionError:
        # A regular file: always ready, and epoll does not take it.
        return
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)

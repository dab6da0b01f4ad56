"""``get``: from a store to this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import JOBS, File, Jobs, Recursive, Urls
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import Target, base_name, below, expand, in_store, on_this_machine
from sovstore.cli.transfer import Callback, Item, readable, transfer
from sovstore.errors import SovstoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem


@command(
    app,
    "get",
    reading=True,
    examples=[
        "get sov://cohortes/2026/person.parquet .",
        "get -r sov://cohortes/2026 tables",
        "get sov://cohortes/dumps/omop.sql - | psql omop",
    ],
)
def get(
    run: Run,
    urls: Urls,
    file: File,
    *,
    recursive: Recursive = False,
    jobs: Jobs = JOBS,
) -> int:
    """Fetch objects, in clear, to this machine; - is stdout.

    Like cp: a folder that exists, or a name that ends with /, takes the files into it. A file appears when all of
    it was authenticated; what was there before stays until then.
    """
    target = on_this_machine(file)
    if target.is_pipe and run.out.as_json:
        usage("-: stdout takes the object, so there is no place for --json")
    into = not target.is_pipe and (target.is_folder or len(urls) > 1 or os.path.isdir(file))
    outcome = Outcome()
    items: list[Item] = []
    for url in urls:
        source, store = in_store(url)
        fs = run.open(store)
        try:
            items += run.wait(_items(run, fs, source, target, outcome, into=into, recursive=recursive))
        except SovstoreError as exc:
            run.fail(outcome, url, exc)
    if target.is_pipe and len(items) > 1:
        usage("-: stdout takes one object", "'sovstore cat' writes several, one after the other")
    return transfer(run, "fetched", items, outcome, jobs, _get)


async def _get(item: Item, callback: Callback) -> None:
    if item.target != "-":
        await item.fs._get_file(item.source, item.target, callback=callback)
        return
    reader = await item.fs.store.reader(item.source, whole=True)
    async for piece in reader.stream():
        sys.stdout.buffer.write(piece)
        callback.relative_update(len(piece))
    sys.stdout.buffer.flush()


async def _items(
    run: Run, fs: SovFileSystem, source: Target, target: Target, outcome: Outcome, *, into: bool, recursive: bool
) -> list[Item]:
    items: list[Item] = []
    matches = await expand(fs, source.path)
    into = into or (len(matches) > 1 and not target.is_pipe)
    for entry in matches:
        top = os.path.join(target.path, base_name(entry.path)) if into else target.path
        if not entry.folder:
            items.append(Item(fs, entry.path, top, entry.size or 0))
            continue
        for one in await below(fs, entry, recursive=recursive):
            if not one.folder and await readable(run, fs, one, outcome):
                relative = one.path[len(entry.path) + 1 if entry.path else 0 :]
                items.append(Item(fs, one.path, os.path.join(top, *relative.split("/")), one.size or 0))
    return items

"""``accept``: an older version is the one that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovstore.cli.app import app, command
from sovstore.cli.arguments import JOBS, Jobs, Recursive, Urls
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import below, expand, in_store
from sovstore.cli.transfer import Callback, Item, readable, transfer
from sovstore.errors import ConfigError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.store import Entry


@command(
    app, "accept", reading=True, examples=["accept sov://cohortes/2026/person.parquet", "accept -r sov://cohortes/2025"]
)
def accept(run: Run, urls: Urls, *, recursive: Recursive = False, jobs: Jobs = JOBS) -> int:
    """Take what the host serves now for the newest version.

    For stores with freshness = "pinned", where an object that is older than one seen on this machine is refused: after
    you put a backup back, say so with this command. What it takes is authentic all the same; that it is the version
    that you mean is for you to know.
    """
    items: list[Item] = []
    outcome = Outcome()
    for url in urls:
        target, store = in_store(url)
        fs = run.open(store)
        if fs.store.config.freshness != "pinned":
            hint = 'versions are compared where its table says freshness = "pinned"'
            raise ConfigError(f"store {store!r}: no version is refused as older", path=store, hint=hint)

        found = run.wait(_objects(run, fs, target.path, outcome, recursive=recursive))
        items += [Item(fs, entry.path, f"sov://{store}/{entry.path}", entry.size or 0) for entry in found]

    async def one(item: Item, _: Callback) -> None:
        await item.fs.store.accept(item.source)

    return transfer(run, "accepted", items, outcome, jobs, one)


async def _objects(run: Run, fs: SovFileSystem, path: str, outcome: Outcome, *, recursive: bool) -> list[Entry]:
    found: list[Entry] = []
    for entry in await expand(fs, path):
        found += await below(fs, entry, recursive=recursive) if entry.folder else [entry]
    return [entry for entry in found if not entry.folder and await readable(run, fs, entry, outcome)]

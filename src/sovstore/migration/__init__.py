"""Moves objects into a store, out of one, or from one to another: resumable, verified, in bounded memory.

What is sealed is opened and sealed again in this process; no plaintext is written to a disk here, and the journal
(`sovstore.migration.journal`) holds nothing that the host of the sealed side does not see.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sovstore import config as configuration
from sovstore.errors import ConfigError
from sovstore.migration import ends
from sovstore.migration.cluster import Workers
from sovstore.migration.ends import COPY, End, Opener
from sovstore.migration.job import Job, Options
from sovstore.migration.report import Plan, Report
from sovstore.migration.watching import Failure, Failures, Silent, Watcher
from sovstore.store import Store

__all__ = [
    "Failure",
    "Failures",
    "Job",
    "Options",
    "Plan",
    "Report",
    "Silent",
    "Watcher",
    "Workers",
    "migrate",
    "prepare",
]


def prepare(
    source: str,
    dest: str,
    opener: Opener,
    *,
    config: configuration.Config,
    mode: str | None = None,
    no_keys: bool = False,
    options: Options | None = None,
    journal: Path | None = None,
    watcher: Watcher | None = None,
    workers: Workers | None = None,
) -> Job:
    """Return the job that gets all objects from one end to the other. Makes no request but those of `opener`.

    Parameters
    ----------
    source, dest : str
        ``sov://STORE/FOLDER``, ``plain://LOCATION/FOLDER``, a local folder, or a URL of another fsspec filesystem.
    opener : callable
        Gives the store of an end, opened.
    config : Config
        Where stores and locations are described.
    mode : str, optional
        ``seal``, ``reencrypt``, ``copy`` or ``open``; the one that fits by default.
    no_keys : bool
        Open no store: only a byte copy works then.
    options, journal, watcher, workers
        As `Job`.

    Raises
    ------
    ConfigError
        When the two do not go together.
    """
    found = ends.pair(source, dest, opener, config=config, mode=mode, no_keys=no_keys)
    options = options or Options()
    if found.mode == COPY and (options.include or options.exclude):
        hint = "only its names at the host are known without keys; copy all of it"
        raise ConfigError(f"{source}: no patterns in a byte copy", path=source, hint=hint)
    return Job(found, options, journal=journal, watcher=watcher, workers=workers)


def migrate(
    source: str,
    dest: str,
    *,
    config: str | os.PathLike[str] | None = None,
    mode: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    overwrite: bool = False,
    only_newer: bool = False,
    verify: bool = False,
    limit: float | None = None,
    jobs: int = 8,
    no_keys: bool = False,
    manifest: str | os.PathLike[str] | None = None,
    journal: str | os.PathLike[str] | None = None,
    watcher: Watcher | None = None,
    dask: str | None = None,
    workers: int | None = None,
) -> Report:
    """Get all objects from one place to another, and return what became of them.

    What an earlier call with the same two ends has moved is not moved again.

    Parameters
    ----------
    source, dest : str
        ``sov://STORE/FOLDER``, ``plain://LOCATION/FOLDER``, a local folder, or a URL of another fsspec filesystem.
    config : path, optional
        Configuration file.
    mode : str, optional
        ``seal``, ``reencrypt``, ``copy`` or ``open``; the one that fits by default.
    include, exclude : sequence of str
        Patterns of paths below the source; ``*`` also matches ``/``.
    overwrite : bool
        Replace objects at the destination that this job did not write.
    only_newer : bool
        Leave objects at the destination that are as new as those at the source.
    verify : bool
        Read every object at both ends afterwards, and compare.
    limit : float, optional
        Bytes per second.
    jobs : int
        Objects under way at a time.
    no_keys : bool
        Open no store: a byte copy.
    manifest : path, optional
        Where a manifest of the destination goes, a store; there must be no such file.
    journal : path, optional
        Where the journal is; in the user's state folder by default.
    watcher : Watcher, optional
        Told of each step, from the thread of the event loop.
    dask : str, optional
        Address of the scheduler of a Dask cluster whose workers do the work, such as ``tcp://scheduler:8786``. They
        find the configuration as this process does, and open the stores themselves.
    workers : int, optional
        Processes of this machine that do the work, as a Dask cluster of its own.

    Returns
    -------
    Report
        Its `failures` say what was not moved: only what concerns all objects is raised.

    Raises
    ------
    ConfigError, KMSError, PolicyError, StoreError
        When nothing, or nothing more, can be moved.
    """
    loaded = configuration.load(config)
    options = Options(
        tuple(include),
        tuple(exclude),
        overwrite=overwrite,
        only_newer=only_newer,
        verify=verify,
        limit=limit,
        jobs=jobs,
    )

    async def work() -> Report:
        stores: list[Store] = []

        def opened(end: End) -> Store:
            stores.append(Store(end.config, configuration.access(end.config)))
            return stores[-1]

        job = prepare(
            source,
            dest,
            opened,
            config=loaded,
            mode=mode,
            no_keys=no_keys,
            options=options,
            journal=Path(journal) if journal is not None else None,
            watcher=watcher,
            workers=Workers.of(dask, workers, config),
        )
        try:
            if manifest is not None:
                job.manifested()
            report = await job.run(await job.plan())
            if manifest is not None:
                await job.manifest(Path(manifest).absolute(), report)
            return report
        finally:
            await job.close()
            for store in stores:
                await store.close()

    return _run(work)


def _run(work: Callable[[], Coroutine[Any, Any, Report]]) -> Report:
    """Return what a coroutine function returns; Ctrl-C cancels it and waits until it has cleaned up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    # Called where a loop runs, as in a notebook: that one cannot be waited for.
    with ThreadPoolExecutor(1, thread_name_prefix="sovstore-migrate") as executor:
        return executor.submit(lambda: asyncio.run(work())).result()

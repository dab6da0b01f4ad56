"""A migration on the workers of a Dask cluster: journal, progress and report stay where it was started.

A task is some objects. The scheduler gives the tasks of a worker that dies to another one, which moves what is not
there yet. See `sovstore.migration.task` for what a cluster gets to see.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self
from uuid import uuid4

from sovstore import __version__
from sovstore.concurrency import for_each
from sovstore.errors import ConfigError, MissingDependencyError, StoreError, StoreUnavailableError
from sovstore.migration import journal as states
from sovstore.migration.ends import Pair
from sovstore.migration.journal import Journal, Row
from sovstore.migration.moving import HOPELESS, How, hopeless, in_turn
from sovstore.migration.sides import Sealed
from sovstore.migration.task import ORDER, RECORD, Order, Record, Task, raised, seal, unseal
from sovstore.migration.watching import Failure, Failures, Tally, Watcher

#: Most objects and bytes of a task; one larger object is a task of its own.
_OBJECTS, _SIZE = 100, 256 * 2**20
#: Seconds for the scheduler to answer, and for its first worker to be there.
_ANSWER_S, _WORKER_S = 10, 60
#: What becomes of an object, as a watcher is told.
_TOLD = {"done": "moved", states.LEFT: "left", "verified": "verified"}


@dataclass(frozen=True)
class Workers:
    """The processes that do a migration.

    Parameters
    ----------
    address : str or None
        Of the scheduler of a Dask cluster.
    count : int or None
        Processes of this machine instead.
    config : str or None
        Path of the configuration, where one was given.
    """

    address: str | None
    count: int | None
    config: str | None

    @classmethod
    def of(cls, address: str | None, count: int | None, config: str | os.PathLike[str] | None) -> Self | None:
        """Return the workers that somebody asked for; None when it was nobody.

        Raises
        ------
        ConfigError
            When both were asked for, or less than one.
        """
        if address is None and count is None:
            return None
        if address is not None and count is not None:
            hint = "the scheduler knows its workers; without its address, processes of this machine are started"
            raise ConfigError("a Dask cluster, or a number of workers: not both", hint=hint)
        if count is not None and count < 1:
            raise ConfigError(f"{count} workers: at least one is needed")
        return cls(address, count, None if config is None else os.path.abspath(os.path.expanduser(config)))

    @asynccontextmanager
    async def open(self, pair: Pair, journal: Journal, watcher: Watcher, how: How) -> AsyncIterator[Cluster]:
        """Yield the cluster, connected; what was started here ends with it.

        Raises
        ------
        MissingDependencyError
            Without the extra.
        StoreUnavailableError
            When no scheduler answers, or it has no worker.
        """
        try:
            import distributed

            from sovstore.migration.on_worker import UnderWay
        except ImportError as exc:
            raise MissingDependencyError("Dask is not installed", hint="pip install 'sovstore[dask]'") from exc
        async with AsyncExitStack() as stack:
            address = self.address
            if address is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sovstore-dask-"))
                own = distributed.LocalCluster(  # type: ignore[no-untyped-call]  # Dask has few types
                    n_workers=self.count,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    worker_dashboard_address=None,
                    # Its HTTP server listens all the same: where nobody else does, also beside another cluster.
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    local_directory=folder,
                    silence_logs=logging.CRITICAL,
                    asynchronous=True,
                )
                address = (await stack.enter_async_context(own)).scheduler_address
            connecting = distributed.Client(  # type: ignore[no-untyped-call]  # Dask has few types
                address, asynchronous=True, set_as_default=False, timeout=_ANSWER_S
            )
            try:
                client = await stack.enter_async_context(connecting)
                await client.wait_for_workers(1, timeout=_WORKER_S)
            except (OSError, ValueError, TimeoutError) as exc:
                what = "it has no worker" if connecting.status == "running" else "no Dask scheduler answers there"
                await connecting.close()  # type: ignore[no-untyped-call]  # Dask has few types
                hint = "start it with 'dask scheduler', and workers with 'dask worker'; or --workers N for this machine"
                raise StoreUnavailableError(f"{address}: {what}", path=address, hint=hint) from exc
            threads = sum((await client.nthreads()).values())
            job = f"sovstore-{uuid4().hex}"
            try:
                await client.register_plugin(UnderWay(own=self.address is None), name=job)
            except Exception as exc:  # whatever Dask makes of it
                hint = "install 'sovstore[dask]' for the scheduler and for all workers"
                message = f"{address}: cannot load sovstore: {type(exc).__name__}: {exc}"
                raise StoreError(message, path=address, hint=hint) from exc
            try:
                yield Cluster(client, address, threads, self.config, job, pair, journal, watcher, how)
            finally:
                # The scheduler may be what is gone: then this would hide it, and wait for nobody.
                with suppress(OSError):
                    if client.status == "running":
                        await client.unregister_worker_plugin(job)


class Cluster(Tally):
    """Has the workers of a cluster move what the journal says is to be moved; the calls are those of a `Mover`.

    Parameters
    ----------
    client : distributed.Client
        Connected, of this event loop.
    address : str
        Of its scheduler.
    threads : int
        That the workers have.
    config : str or None
        Path of the configuration.
    job : str
        What tells this run from all others there.
    pair, journal, watcher, how
        As a `Mover` has them.
    """

    def __init__(
        self,
        client: Any,
        address: str,
        threads: int,
        config: str | None,
        job: str,
        pair: Pair,
        journal: Journal,
        watcher: Watcher,
        how: How,
    ) -> None:
        super().__init__()
        self._client, self._address, self._config = client, address, config
        self._pair, self._journal, self._watcher = pair, journal, watcher
        self._how = how if how.limit is None else replace(how, limit=how.limit / threads)
        #: Enough that no worker waits for the next one.
        self._at_once = 2 * threads
        self._store = pair.named.store if isinstance(pair.named, Sealed) else None
        self._job = job
        self._told: dict[str, int] = {}
        self._in_a_row = 0
        self.failures = Failures()
        client.subscribe_topic(job, self._advance)

    async def run(self) -> None:
        """Move every object that is to be moved, as `Mover.run`.

        Raises
        ------
        SovstoreError
            When a worker cannot work, or the scheduler is gone.
        """
        for rows in in_turn(self._journal):
            await for_each(_parts(rows), self._move, self._at_once)

    async def verify(self) -> None:
        """Read every object that was moved at both ends, and compare, as `Mover.verify`."""
        rows = self._journal.rows(states.DONE, unverified=True)
        await for_each(_parts(rows), self._verify, self._at_once)

    async def _move(self, rows: list[Row]) -> None:
        sent = []
        for row in rows:
            if row.state != states.ENDING:
                # A task whose worker dies is done again by another, which must know what may be there already.
                self._journal.ending(row.name, None)
                row = replace(row, state=states.ENDING, version=None, previous=row.version)
            sent.append(row)
        await self._do("move", sent)

    async def _verify(self, rows: list[Row]) -> None:
        await self._do("verify", rows)

    async def _do(self, what: str, rows: list[Row]) -> None:
        name, (one, other) = f"sovstore-{what}-{uuid4().hex}", self._pair.ends
        ends = (one.elsewhere, other.elsewhere, self._pair.mode, self._pair.identity)
        store = None if self._store is None else self._store.config.name
        body = await seal(self._store, Order(what, *ends, self._how, rows).dump(), ORDER)
        outcome = await self._outcome(Task(__version__, self._config, store, name, self._job, body), rows)
        if outcome is not None:
            await self._note(name, outcome)

    async def _outcome(self, task: Task, rows: list[Row]) -> Record | None:
        """Return what became of a task; None when every worker that had it died."""
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError

        from sovstore.migration.on_worker import work

        future = self._client.submit(work, task, key=task.name, pure=False)
        try:
            outcome = await future
        except KilledWorker:
            await self._killed(rows)
            return None
        except (FutureCancelledError, CommClosedError) as exc:
            hint = "the same command goes on from here once there is one"
            message = f"{self._address}: the scheduler is gone, or gave up the work"
            raise StoreUnavailableError(message, path=self._address, hint=hint) from exc
        except Exception as exc:  # whatever Dask could not carry, or run
            hint = "the workers need the sovstore of this machine, with the same extras; their logs say more"
            message = f"{self._address}: a worker failed: {type(exc).__name__}: {exc}"
            raise StoreError(message, path=self._address, hint=hint) from exc
        except asyncio.CancelledError:
            # What no worker has begun, none will.
            with suppress(OSError):
                await self._client.cancel([future], force=True)
            raise
        finally:
            future.release()
        if outcome.error is not None:
            raise raised(outcome.error)
        return Record.load(await unseal(self._store, outcome.body, RECORD))

    async def _killed(self, rows: list[Row]) -> None:
        hint = "see the logs of the workers: out of memory, most often; the same command tries again"
        for row in rows:
            path = await self._pair.named.path(row.name)
            self._journal.set(row.name, states.FAILED)
            self._fail(Failure.of(path, StoreError("every worker that was to move it died", path=path, hint=hint)))

    async def _note(self, task: str, record: Record) -> None:
        first = None
        for name, what in record.replay(self._journal):
            if (told := _TOLD.get(what)) is not None:
                path = await self._pair.named.path(name)
                first = first or (path if told == "moved" else None)
                self._watcher.finished(path, told)
        for failure in record.failures:
            self._fail(failure)
        self.add(record)
        self._watcher.advance(max(0, record.size - self._told.pop(task, 0)))
        if record.error is not None:
            raise raised(record.error)
        await self._expect(first)
        self._in_a_row = 0 if record.moved or not record.failures else self._in_a_row + len(record.failures)
        if self._in_a_row >= HOPELESS:
            raise hopeless(self._in_a_row, record.failures[-1].message)

    async def _expect(self, path: str | None) -> None:
        """Refuse workers whose local disk is another one than that of this machine."""
        dest = self._pair.dest
        if path is None or not dest.backend.real_folders or await dest.find(path) is not None:
            return
        hint = "a local folder must be one that all workers and this machine share; what was written is on the workers"
        raise StoreError(f"{path}: a worker wrote it, and it is not here", path=path, hint=hint)

    def _fail(self, failure: Failure) -> None:
        self.failures.add(failure)
        self._watcher.failed(failure)

    def _advance(self, event: tuple[float, dict[str, Any]]) -> None:
        """Note how far a task is; one that is done again by another worker begins anew, and nothing counts twice."""
        task, size = event[1]["task"], event[1]["size"]
        known = self._told.get(task, 0)
        if size > known:
            self._told[task] = size
            self._watcher.advance(size - known)


def _parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield the objects in groups of about the same work."""
    part: list[Row] = []
    size = 0
    for row in rows:
        if part and (len(part) == _OBJECTS or size + row.found.size > _SIZE):
            yield part
            part, size = [], 0
        part.append(row)
        size += row.found.size
    if part:
        yield part

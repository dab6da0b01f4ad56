"""What a worker of a Dask cluster does with a task of a migration. Imported where Dask is."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import Future
from time import monotonic
from typing import Any

from distributed import WorkerPlugin, get_worker
from fsspec.asyn import get_loop

from sovstore import __version__
from sovstore import config as configuration
from sovstore.errors import ConfigError, SovstoreError
from sovstore.filesystem import SovFileSystem
from sovstore.migration import ends
from sovstore.migration.moving import Mover
from sovstore.migration.sides import Sealed
from sovstore.migration.task import ORDER, RECORD, Order, Outcome, Record, Task, described, seal, unseal
from sovstore.migration.watching import Silent
from sovstore.store import Store

#: Seconds between two events about how far a task is.
_EVENT_S = 0.5
#: Seconds for what is under way to be given up.
_STOP_S = 30


class UnderWay(WorkerPlugin):
    """The tasks of a run that a worker is at. When the run ends, however it does, they give up what they write.

    Parameters
    ----------
    own : bool
        Whether the worker is a process of the client's: Ctrl-C at their terminal is then the client's to handle.
    """

    def __init__(self, *, own: bool) -> None:
        self._own = own
        self._tasks: dict[Future[Outcome], threading.Event] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel without what is under way."""
        return _arrived, (self._own,)

    def setup(self, worker: Any) -> None:  # noqa: ARG002  # as Dask
        """Begin on a worker."""
        if self._own:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def do(self, task: Task, worker: Any) -> Outcome:
        """Return what became of a task, in the thread that it was given."""
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_until_the_end(task, worker, ended), get_loop())
        self._tasks[future] = ended
        try:
            return future.result()
        finally:
            del self._tasks[future]

    async def teardown(self, worker: Any) -> None:  # noqa: ARG002  # as Dask
        """End on a worker: no upload goes on that nobody waits for."""
        tasks = dict(self._tasks)
        for future in tasks:
            future.cancel()
        for ended in tasks.values():
            await asyncio.to_thread(ended.wait, _STOP_S)


def _arrived(own: bool) -> UnderWay:  # noqa: FBT001  # as pickles pass it
    return UnderWay(own=own)


async def _until_the_end(task: Task, worker: Any, ended: threading.Event) -> Outcome:
    try:
        return await _outcome(task, worker)
    finally:
        ended.set()


def work(task: Task) -> Outcome:
    """Do a task, in a thread of a worker.

    Raises
    ------
    RuntimeError
        When something fails that should not; it says where, and nothing else.
    """
    worker = get_worker()
    try:
        under_way = worker.plugins[task.job]
        assert isinstance(under_way, UnderWay)  # noqa: S101  # nosec B101  # the client registered it
        return under_way.do(task, worker)
    except SovstoreError as exc:
        return Outcome(b"", described(exc))
    except Exception as exc:  # noqa: BLE001  # its text might quote a path, and logs would keep it
        trace = exc.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f" at {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"
        failed = RuntimeError(f"{type(exc).__name__}{where}")
    # Outside of the handler: an exception takes along the one that it was raised in, and its text.
    raise failed


async def _outcome(task: Task, worker: Any) -> Outcome:
    if task.version != __version__:
        hint = "install the same version on the workers and where the migration is started"
        raise ConfigError(f"has sovstore {__version__}, and its client {task.version}", hint=hint)

    def opened(name: str) -> Store:
        # The same one for all tasks of this process: the KMS is asked once.
        fs: SovFileSystem = SovFileSystem(name, config=task.config)
        return fs.store

    store = opened(task.store) if task.store else None
    order = Order.load(await unseal(store, task.body, ORDER))
    config = configuration.load(task.config)
    pair = ends.pair(order.source, order.dest, lambda end: opened(end.config.name), config=config, mode=order.mode)
    try:
        if pair.identity != order.identity:
            hint = "give the workers the configuration of the client"
            raise ConfigError("its configuration describes other places under these names", hint=hint)
        record = await _done(pair, order, _Told(worker, task))
    finally:
        for side in (pair.source, pair.dest):
            # No other clean-up: other workers write there.
            if not isinstance(side, Sealed):
                await side.backend.close()
    return Outcome(await seal(store, record.dump(), RECORD))


async def _done(pair: ends.Pair, order: Order, told: _Told) -> Record:
    record = Record(order.rows)
    mover = Mover(pair, record, told, order.how)
    try:
        await (mover.run() if order.what == "move" else mover.verify())
    except SovstoreError as exc:
        record.error = described(exc)
    record.failures = mover.failures.first
    record.add(mover)
    record.size = told.size
    return record


class _Told(Silent):
    """Tells the client how many bytes of a task are through, now and then."""

    def __init__(self, worker: Any, task: Task) -> None:
        self._worker, self._task = worker, task
        self.size, self._last = 0, monotonic()

    def advance(self, size: int) -> None:
        self.size += size
        if monotonic() - self._last >= _EVENT_S:
            self._last = monotonic()
            self._worker.log_event(self._task.job, {"task": self._task.name, "size": self.size})

"""A part of a migration as a task of a Dask cluster, and what becomes of it.

Whoever sees the graph, the logs or the disks of a cluster sees the name that a store has in the configuration, and
bytes that are sealed under the keys of that store. Workers open the store themselves, by their own right at the KMS. A
byte copy has no keys and needs none: its tasks are plain, and hold what the host sees anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Self
from uuid import uuid4

from fsspec.asyn import get_loop, sync

from sovstore import __version__, errors
from sovstore import config as configuration
from sovstore.backends.base import Upload
from sovstore.backends.memory import MemoryBackend
from sovstore.errors import ConfigError, SovstoreError
from sovstore.filesystem import SovFileSystem
from sovstore.format.names import RESERVED
from sovstore.migration import ends
from sovstore.migration.journal import Noted, Row
from sovstore.migration.moving import How, Mover
from sovstore.migration.sides import Found, Sealed
from sovstore.migration.watching import Failure, Silent
from sovstore.store import Store

#: What tasks and outcomes are sealed for. No object can have that path.
_PATH = f"{RESERVED}/migration"
_WHAT = "a task of a migration"
#: Seconds between two events about how far a task is.
_EVENT_S = 0.5


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Parameters
    ----------
    version : str
        Of sovstore, where it was made.
    config : str or None
        Path of the configuration; None is where the worker looks by itself.
    store : str or None
        The store, by its name in the configuration, whose keys the rest is sealed under; None without keys.
    body : bytes
        An `Order`.
    """

    version: str
    config: str | None
    store: str | None
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Parameters
    ----------
    body : bytes
        A `Record`, sealed as the task was; empty when the task could not be opened.
    error : dict or None
        Why it could not be opened, as `described`.
    """

    body: bytes
    error: dict[str, str | None] | None = None


@dataclass(frozen=True)
class Order:
    """What a task holds.

    Parameters
    ----------
    what : str
        ``move`` or ``verify``.
    source, dest, mode, identity : str
        As `sovstore.migration.ends.pair` takes and tells them.
    how : How
        How objects are moved.
    rows : sequence of Row
        The objects.
    topic, task : str
        Under which to tell how far it is.
    """

    what: str
    source: str
    dest: str
    mode: str
    identity: str
    how: How
    rows: Sequence[Row]
    topic: str
    task: str

    def dump(self) -> bytes:
        """Return it as JSON."""
        rows = [[r.name, *_dumped(r.found), r.state, _hex(r.version), _hex(r.previous)] for r in self.rows]
        return json.dumps({**self.__dict__, "how": asdict(self.how), "rows": rows}).encode()

    @classmethod
    def load(cls, raw: bytes) -> Self:
        """Return what `dump` made."""
        found = json.loads(raw)
        rows = [
            Row(name, _loaded(*of), state, _bytes(version), _bytes(previous))
            for name, *of, state, version, previous in found.pop("rows")
        ]
        return cls(**{**found, "how": How(**found["how"]), "rows": rows})


class Record:
    """The journal of one task: what is to be noted of each object, in order.

    Parameters
    ----------
    rows : sequence of Row
        Its objects.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._rows = rows
        self.notes: list[list[Any]] = []
        self.failures: list[Failure] = []
        #: Objects and bytes that were moved, objects that were left, bytes that went through the worker.
        self.moved = self.moved_size = self.left = self.size = 0
        self.error: dict[str, str | None] | None = None

    def rows(self, *states: str, unverified: bool = False) -> Iterator[Row]:  # noqa: ARG002  # as `Noted`
        """Yield the objects that are in one of some states."""
        return (row for row in self._rows if row.state in states)

    def ending(self, name: str, version: bytes | None) -> None:
        """Note that an object is about to become visible."""
        self.notes.append(["ending", name, _hex(version)])

    def done(self, name: str, found: Found, version: bytes | None) -> None:
        """Note that an object is there."""
        self.notes.append(["done", name, *_dumped(found), _hex(version)])

    def set(self, name: str, state: str) -> None:
        """Note another state."""
        self.notes.append(["set", name, state])

    def verified(self, name: str) -> None:
        """Note that an object is the same at both ends."""
        self.notes.append(["verified", name])

    def replay(self, journal: Noted) -> Iterator[tuple[str, str]]:
        """Note everything in another journal, and yield the names of objects with what became of them."""
        for what, name, *rest in self.notes:
            if what == "ending":
                journal.ending(name, _bytes(*rest))
                continue
            if what == "done":
                *of, version = rest
                journal.done(name, _loaded(*of), _bytes(version))
            elif what == "set":
                journal.set(name, *rest)
            else:
                journal.verified(name)
            yield name, rest[0] if what == "set" else what

    def dump(self) -> bytes:
        """Return it as JSON."""
        failures = [asdict(failure) for failure in self.failures]
        counts = {"moved": self.moved, "moved_size": self.moved_size, "left": self.left, "size": self.size}
        return json.dumps({"notes": self.notes, "failures": failures, "error": self.error, **counts}).encode()

    @classmethod
    def load(cls, raw: bytes) -> Self:
        """Return what `dump` made."""
        record, found = cls(), json.loads(raw)
        record.__dict__.update(found, failures=[Failure(**failure) for failure in found["failures"]])
        return record


def _dumped(found: Found) -> tuple[int, str | None, str | None]:
    return found.size, found.etag, found.modified.isoformat() if found.modified else None


def _loaded(size: int, etag: str | None, modified: str | None) -> Found:
    return Found("", size, etag, datetime.fromisoformat(modified) if modified else None)


def _hex(version: bytes | None) -> str | None:
    return None if version is None else version.hex()


def _bytes(version: str | None) -> bytes | None:
    return None if version is None else bytes.fromhex(version)


def described(exc: SovstoreError) -> dict[str, str | None]:
    """Return an error as an outcome carries it."""
    return {"type": type(exc).__name__, "message": exc.message, "path": exc.path, "hint": exc.hint}


def raised(error: dict[str, str | None]) -> SovstoreError:
    """Return the error that `described` was given, as one of a worker."""
    kind = getattr(errors, error["type"] or "", SovstoreError)
    return kind(f"on a worker: {error['message']}", path=error["path"], hint=error["hint"])


# Sealed for the store


async def seal(store: Store | None, body: bytes) -> bytes:
    """Return the body of a task or of an outcome, sealed for a store; as it is without one.

    Raises
    ------
    KeyDeniedError
        When the store is read-only.
    """
    if store is None:
        return body
    pieces = _Pieces()
    writer = await store.writer_outside(pieces, _PATH, what=_WHAT)
    await writer.write(body)
    await writer.commit()
    return bytes(pieces.received)


async def unseal(store: Store | None, sealed: bytes) -> bytes:
    """Return what `seal` was given.

    Raises
    ------
    FormatError, IntegrityError
        When it was altered, or sealed for another store.
    """
    if store is None:
        return sealed
    backend = MemoryBackend(f"/sovstore-{uuid4().hex}")
    upload = await backend.upload("task")
    await upload.write(sealed)
    await upload.commit()
    try:
        reader = await store.reader_outside(backend, "task", _PATH, what=_WHAT)
        return await reader.read(0, reader.plain_size)
    finally:
        await backend.delete(["task"])


class _Pieces(Upload):
    """A write to memory."""

    def __init__(self) -> None:
        self.received = bytearray()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self.received += data

    async def commit(self) -> None:
        """Do nothing: it is all there."""

    async def abort(self) -> None:
        self.received.clear()


# On a worker


def work(task: Task) -> Outcome:
    """Do a task, in a thread of a worker.

    Raises
    ------
    RuntimeError
        When something fails that should not; it says where, and nothing else.
    """
    from distributed import get_worker

    try:
        outcome: Outcome = sync(get_loop(), _work, task, get_worker())
        return outcome
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


async def _work(task: Task, worker: Any) -> Outcome:
    if task.version != __version__:
        hint = "install the same version on the workers and where the migration is started"
        raise ConfigError(f"has sovstore {__version__}, and its client {task.version}", hint=hint)

    def opened(name: str) -> Store:
        # The same one for all tasks of this process: the KMS is asked once.
        fs: SovFileSystem = SovFileSystem(name, config=task.config)
        return fs.store

    store = opened(task.store) if task.store else None
    order = Order.load(await unseal(store, task.body))
    config = configuration.load(task.config)
    pair = ends.pair(order.source, order.dest, lambda end: opened(end.config.name), config=config, mode=order.mode)
    try:
        if pair.identity != order.identity:
            hint = "give the workers the configuration of the client"
            raise ConfigError("its configuration describes other places under these names", hint=hint)
        record = await _done(pair, order, worker)
    finally:
        for side in (pair.source, pair.dest):
            # No other clean-up: other workers write there.
            if not isinstance(side, Sealed):
                await side.backend.close()
    return Outcome(await seal(store, record.dump()))


async def _done(pair: ends.Pair, order: Order, worker: Any) -> Record:
    record, told = Record(order.rows), _Told(worker, order.topic, order.task)
    mover = Mover(pair, record, told, order.how)
    try:
        await (mover.run() if order.what == "move" else mover.verify())
    except SovstoreError as exc:
        record.error = described(exc)
    record.failures = mover.failures.first
    record.moved, record.moved_size, record.left = mover.moved, mover.moved_size, mover.left
    record.size = told.size
    return record


class _Told(Silent):
    """Tells the client how many bytes of a task are through, now and then."""

    def __init__(self, worker: Any, topic: str, task: str) -> None:
        self._worker, self._topic, self._task = worker, topic, task
        self.size, self._last = 0, monotonic()

    def advance(self, size: int) -> None:
        self.size += size
        if monotonic() - self._last >= _EVENT_S:
            self._last = monotonic()
            self._worker.log_event(self._topic, {"task": self._task, "size": self.size})

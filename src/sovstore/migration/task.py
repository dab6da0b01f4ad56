"""A part of a migration as a task of a Dask cluster, and what becomes of it.

Whoever sees the graph, the logs or the disks of a cluster sees the name that a store has in the configuration, and
bytes that are sealed under the keys of that store. Workers open the store themselves, by their own right at the KMS. A
byte copy has no keys and needs none: its tasks are plain, and hold what the host sees anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self
from uuid import uuid4

from sovstore import errors
from sovstore.backends.base import Upload
from sovstore.backends.memory import MemoryBackend
from sovstore.errors import SovstoreError
from sovstore.format.names import RESERVED
from sovstore.migration.journal import Noted, Row, parsed_time, time_text
from sovstore.migration.moving import How
from sovstore.migration.sides import Found
from sovstore.migration.watching import Failure, Tally
from sovstore.store import Store

#: What tasks and outcomes are sealed for, so that neither passes for the other. No object can have these paths.
ORDER, RECORD = f"{RESERVED}/migration/order", f"{RESERVED}/migration/record"


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
    name, job : str
        What tells it, and the run that it is of, from all others.
    body : bytes
        An `Order`.
    """

    version: str
    config: str | None
    store: str | None
    name: str
    job: str
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
    """

    what: str
    source: str
    dest: str
    mode: str
    identity: str
    how: How
    rows: Sequence[Row]

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


class Record(Tally):
    """The journal of one task: what is to be noted of each object, in order.

    Parameters
    ----------
    rows : sequence of Row
        Its objects.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        super().__init__()
        self._rows = rows
        self.notes: list[list[Any]] = []
        self.failures: list[Failure] = []
        #: Bytes that went through the worker.
        self.size = 0
        self.error: dict[str, str | None] | None = None

    def rows(self, *states: str, unverified: bool = False) -> Iterator[Row]:  # noqa: ARG002  # as `Noted`
        """Yield the objects that are in one of some states."""
        return (row for row in self._rows if row.state in states)

    def begun(self, name: str, mark: str, token: str) -> None:
        """Do nothing: the client learns of a task when it is done."""

    def upload(self, name: str, mark: str) -> str | None:  # noqa: ARG002  # as `Noted`
        """Return None, as `begun` notes none."""
        return None

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
        return json.dumps(
            {"notes": self.notes, "failures": failures, "error": self.error, "size": self.size, **self.counts()}
        ).encode()

    @classmethod
    def load(cls, raw: bytes) -> Self:
        """Return what `dump` made."""
        record, found = cls(), json.loads(raw)
        record.__dict__.update(found, failures=[Failure(**failure) for failure in found["failures"]])
        return record


def _dumped(found: Found) -> tuple[int, str | None, str | None]:
    return found.size, found.etag, time_text(found.modified)


def _loaded(size: int, etag: str | None, modified: str | None) -> Found:
    return Found("", size, etag, parsed_time(modified))


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


async def seal(store: Store | None, body: bytes, path: str) -> bytes:
    """Return the body of a task or of an outcome, sealed for a store and for `ORDER` or `RECORD`; as it is without one.

    Raises
    ------
    KeyDeniedError
        When the store is read-only.
    """
    if store is None:
        return body
    pieces = _Pieces()
    writer = await store.writer_outside(pieces, path, what=path)
    await writer.write(body)
    await writer.commit()
    return bytes(pieces.received)


async def unseal(store: Store | None, sealed: bytes, path: str) -> bytes:
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
        reader = await store.reader_outside(backend, "task", path, what=path)
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

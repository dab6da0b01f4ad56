"""Moves the objects of a migration, one by one and several at a time, each whole or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from sovstore.concurrency import for_each
from sovstore.errors import (
    FormatError,
    IntegrityError,
    KMSError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    PolicyError,
    SovstoreError,
    StoreError,
)
from sovstore.format.names import RESERVED
from sovstore.migration import journal as states
from sovstore.migration.bare import KEYSET
from sovstore.migration.comparing import is_same
from sovstore.migration.ends import Pair
from sovstore.migration.journal import Noted, Row
from sovstore.migration.sides import Found, Sink, Source
from sovstore.migration.watching import Failure, Failures, Tally, Watcher

#: How often one object is tried, and the seconds before the second try; each further one waits twice as long.
_TRIES = 5
_PAUSE_S = 0.5
#: Objects larger than this take turns, so that memory stays bounded; each has parallel requests of its own.
_LARGE = 4 * 2**20
_LARGE_AT_ONCE = 3
_RANKS = 3
#: Objects in a row that fail, none in between that does not, after which a migration ends: the reason is not theirs.
HOPELESS = 100


class Throttle:
    """Keeps the bytes of all objects together below a rate.

    Parameters
    ----------
    rate : float or None
        Bytes per second; None is no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may go."""
        if self._rate is None:
            return
        now = asyncio.get_running_loop().time()
        wait = max(0.0, self._free - now)
        self._free = now + wait + size / self._rate
        if wait:
            await asyncio.sleep(wait)


@dataclass(frozen=True)
class How:
    """How objects are moved.

    Parameters
    ----------
    jobs : int
        Objects under way at a time.
    overwrite : bool
        Replace objects at the destination that this job did not write.
    only_newer : bool
        Leave objects at the destination that are as new as those at the source.
    limit : float or None
        Bytes per second.
    """

    jobs: int
    overwrite: bool = False
    only_newer: bool = False
    limit: float | None = None


class Mover(Tally):
    """Moves what the journal says is to be moved.

    Parameters
    ----------
    pair : Pair
        From where to where.
    journal : Noted
        Of the job.
    watcher : Watcher
        Told of each step.
    how : How
        How it is done.
    """

    def __init__(self, pair: Pair, journal: Noted, watcher: Watcher, how: How) -> None:
        super().__init__()
        self._source, self._dest, self._named = pair.source, pair.dest, pair.named
        self._journal, self._watcher, self._how = journal, watcher, how
        self._throttle = Throttle(how.limit)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._in_a_row = 0
        self.failures = Failures()

    async def run(self) -> None:
        """Move every object that is to be moved; what fails is noted, and the others go on.

        Raises
        ------
        KMSError, PolicyError
            When the keys may be used no longer: no other object would fare better.
        StoreError
            When a hundred objects in a row fail.
        """
        for rows in in_turn(self._journal):
            await for_each(rows, self._one, self._how.jobs)

    async def verify(self) -> None:
        """Read every object that was moved at both ends, and compare; what differs is noted as failed."""
        await for_each(self._journal.rows(states.DONE, unverified=True), self._verify, self._how.jobs)

    async def _verify(self, row: Row) -> None:
        path = await self._named.path(row.name)
        try:
            await self._compare(path, row)
        except SovstoreError as exc:
            if not isinstance(exc, ObjectChangedError):
                self._journal.set(row.name, states.FAILED)
            self.fail(path, exc)
            return
        self._journal.verified(row.name)
        self._watcher.advance(row.found.size)
        self._watcher.finished(path, "verified")

    async def _compare(self, path: str, row: Row) -> None:
        expected = replace(row.found, path=path)
        try:
            same = await is_same(self._source, self._dest, path, expected)
        except ObjectChangedError as exc:
            hint = "run it again: it is then moved anew"
            raise ObjectChangedError(f"{path}: changed after it was moved", path=path, hint=hint) from exc
        if not same:
            hint = "ask why the destination changed it; --overwrite moves it anew"
            raise IntegrityError(f"{path}: the destination has other bytes than the source", path=path, hint=hint)

    async def _one(self, row: Row) -> None:
        path = await self._named.path(row.name)
        try:
            state = await self._tried(path, row)
        except SovstoreError as exc:
            self._journal.set(row.name, states.FAILED)
            self.fail(path, exc)
            self._in_a_row += 1
            if self._in_a_row >= HOPELESS:
                raise hopeless(self._in_a_row, exc.message) from exc
            return
        self._in_a_row = 0
        self._watcher.finished(path, "moved" if state == states.DONE else "left")

    def fail(self, path: str, error: SovstoreError) -> None:
        """Note that an object failed."""
        failure = Failure.of(path, error)
        self.failures.add(failure)
        self._watcher.failed(failure)

    async def _tried(self, path: str, row: Row) -> str:
        """Move one object, and return its state; what may pass is waited for."""
        for turn in range(1, _TRIES + 1):
            try:
                async with self._large if row.found.size > _LARGE else nullcontext():
                    return await self._moved(path, row)
            except (KMSError, PolicyError):
                raise
            except SovstoreError as exc:
                if not exc.retryable or turn == _TRIES:
                    raise
                if isinstance(exc, ObjectChangedError) and (found := await self._source.find(path)) is not None:
                    row = replace(row, found=found)
            part = random.uniform(0.5, 1)  # noqa: S311  # nosec B311  # no secret
            await asyncio.sleep(_PAUSE_S * 2 ** (turn - 1) * part)
        raise AssertionError(path)

    async def _moved(self, path: str, row: Row) -> str:
        expected = replace(row.found, path=path)
        if row.state != states.ENDING:
            return await self._moved_now(path, row, expected)
        # An earlier try may have ended well without its being noted.
        if row.version is not None:
            if await self._dest.version(path) != row.version:
                return await self._moved_now(path, row, expected)
        else:
            try:
                return await self._moved_now(path, row, expected)
            except ObjectExistsError:
                # Nothing tells that try from other writes but what it wrote.
                if not await is_same(self._source, self._dest, path, expected):
                    raise
        self._journal.done(row.name, expected, await self._dest.version(path))
        return states.DONE

    async def _moved_now(self, path: str, row: Row, expected: Found) -> str:
        replacing = self._how.overwrite or await self._is_ours(path, row)
        if self._how.only_newer and not row.written and await self._is_as_new(path, expected):
            self._journal.set(row.name, states.LEFT)
            self.left += 1
            return states.LEFT
        source = await self._opened(path, expected)
        sink, start = await self._sink(path, row.name, source, replace=replacing)
        sink.told = self._watcher.advance
        try:
            size = start + await sink.pour(self._throttled(source, start))
            if size != source.found.size:
                raise ObjectChangedError(f"{path}: changed while it was read", path=path)
            self._journal.ending(row.name, sink.version())
            await sink.commit()
        except ObjectExistsError as exc:
            await sink.abort()
            raise _exists(path) from exc
        except BaseException:
            await sink.abort()
            raise
        self._journal.done(row.name, source.found, sink.version() or await self._dest.version(path))
        self.moved += 1
        self.moved_size += size
        if sink.at_host:
            self.at_host += 1
            # It is there already: those that follow wait for it.
            await self._throttle.take(size)
        return states.DONE

    async def _sink(self, path: str, name: str, source: Source, *, replace: bool) -> tuple[Sink, int]:
        """Return a write, and how many bytes of it a process that was killed has left at the host."""
        if source.found.size <= _LARGE:
            return await self._created(path, source, replace=replace), 0
        if (token := self._journal.upload(name, source.mark)) is not None:
            found = await self._dest.resume(path, source, token, replace=replace)
            if found is not None:
                self._watcher.advance(found[1])
                return found
        sink = await self._created(path, source, replace=replace)
        sink.began = lambda token: self._journal.begun(name, source.mark, token)
        return sink, 0

    async def _created(self, path: str, source: Source, *, replace: bool) -> Sink:
        try:
            return await self._dest.create(path, source, replace=replace)
        except ObjectExistsError as exc:
            raise _exists(path) from exc

    async def _opened(self, path: str, expected: Found) -> Source:
        try:
            return await self._source.open(path, expected)
        except ObjectNotFoundError as exc:
            hint = "somebody deleted it after it was listed; run it again to list anew"
            raise ObjectNotFoundError(f"{path}: is not at the source any more", path=path, hint=hint) from exc

    async def _throttled(self, source: Source, start: int) -> AsyncIterator[Any]:
        async for piece in source.stream(start):
            await self._throttle.take(len(piece))
            yield piece
            self._watcher.advance(len(piece))

    async def _is_ours(self, path: str, row: Row) -> bool:
        """Return whether what is at the destination was written by this job, and by nobody since."""
        if not row.written:
            return False
        try:
            there = await self._dest.version(path)
        except (FormatError, IntegrityError):
            there = b""
        if there is not None and there not in (row.version, row.previous):
            hint = "somebody wrote it since; --overwrite replaces it all the same"
            raise ObjectExistsError(f"{path}: is not what this job wrote there", path=path, hint=hint)
        return there is not None

    async def _is_as_new(self, path: str, expected: Found) -> bool:
        there = await self._dest.find(path)
        if there is None or there.modified is None or expected.modified is None:
            return False
        return there.modified >= expected.modified


def _exists(path: str) -> ObjectExistsError:
    hint = "--only-newer leaves what is as new as the source, --overwrite replaces it"
    return ObjectExistsError(f"{path}: exists at the destination, and this job did not write it", path=path, hint=hint)


def hopeless(count: int, last: str) -> StoreError:
    """Return the error that ends a migration when many objects in a row failed; `last` is why the last one did."""
    hint = "its reason is hardly theirs; mend it, then the same command goes on from here"
    return StoreError(f"{count} objects in a row failed; the last one: {last}", hint=hint)


def in_turn(journal: Noted) -> Iterator[Iterator[Row]]:
    """Yield what is to be moved in groups, each of which is to be through before the next begins."""
    for rank in range(_RANKS):
        yield (row for row in journal.rows(states.TODO, states.ENDING) if _rank(row.name) == rank)


def _rank(name: str) -> int:
    """Return when a name has its turn: in a byte copy the keysets follow the objects, and the one that opens them."""
    return 0 if not name.startswith(f"{RESERVED}/") else 2 if name == KEYSET else 1

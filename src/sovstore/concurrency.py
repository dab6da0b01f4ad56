"""Work on many items at a time, in one event loop; and beside a thread, in one other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


async def for_each(items: AsyncIterator[T] | Iterator[T], work: Callable[[T], Awaitable[None]], jobs: int) -> None:
    """Do work on every item, `jobs` of them at a time; the first error ends it."""
    turn = asyncio.Lock()
    coming = items if isinstance(items, AsyncIterator) else _awaited(items)

    async def worker() -> None:
        while True:
            async with turn:
                try:
                    item = await anext(coming)
                except StopAsyncIteration:
                    return
            await work(item)

    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    if first is not None:
        raise first


async def both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Await two things at once; when one fails the other is over before the error is raised."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]  # exceptions were raised above


async def _awaited(items: Iterator[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class Coming(Generic[T]):
    """What a thread of `Aside` will have done: the part of `concurrent.futures.Future` that costs a microsecond."""

    __slots__ = ("_cancelled", "_error", "_ready", "_result", "_work")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._ready = threading.Lock()
        self._ready.acquire()
        self._cancelled = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work, in this thread."""
        work, self._work = self._work, None
        assert work is not None  # noqa: S101  # nosec B101  # only its thread calls this, once
        try:
            if not self._cancelled:
                self._result = work()
        except BaseException as exc:  # noqa: BLE001  # whoever waits for it raises it
            self._error = exc
        finally:
            self._ready.release()

    def done(self) -> bool:
        """Return whether it is over."""
        return not self._ready.locked()

    def cancel(self) -> bool:
        """Spare what has not begun; return whether it is over."""
        self._cancelled = True
        return self.done()

    def result(self) -> T:
        """Wait for it; return what came of it, or raise what it failed with."""
        with self._ready:
            if self._error is not None:
                raise self._error
            return self._result


class Aside:
    """One thread beside the one that asks, which does one piece of work after the other.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    _alone = False

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Coming[object] | None] = SimpleQueue()
        # Its function knows the queue alone: what asks can be lost, and then ends it.
        thread = threading.Thread(target=_run, args=(self._work,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The system has no more of them: the work is done all the same, by whoever asks.
            self._alone = True

    def submit(self, coming: Coming[T]) -> Coming[T]:
        """Have work done when what was asked for before is done; return it."""
        if self._alone:
            coming.run()
            return coming
        self._work.put(coming)  # type: ignore[arg-type]  # nobody takes its result from the queue
        return coming

    def close(self) -> None:
        """End the thread when its work is done, without waiting."""
        self._work.put(None)

    def __del__(self) -> None:
        """End the thread: nobody can ask it for anything any more."""
        self.close()


def _run(work: SimpleQueue[Coming[object] | None]) -> None:
    while (coming := work.get()) is not None:
        coming.run()
        # Not kept until the next one comes: it holds what it read.
        del coming

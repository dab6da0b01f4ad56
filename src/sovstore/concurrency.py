"""Work on many items at a time, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


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


async def _awaited(items: Iterator[T]) -> AsyncIterator[T]:
    for item in items:
        yield item

"""A walk through a store in the order of paths, folder by folder, and work on many objects without losing that order.

A host lists in the order of its own names, which are encrypted, and a whole store does not fit into memory. Sorting it
on a disk would leave plaintext names there; so memory holds the names of the folders on the way down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sovstore.errors import StoreError
from sovstore.store import Store

#: Names of folders on the way down that are held at once, at about 200 bytes each.
_MOST_HELD = 10_000_000
#: Results that wait for an earlier one, for each piece of work under way: a large object must not stop all others.
_WAITING = 16

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Listed:
    """An object that the host lists, or a name that the store did not make.

    Parameters
    ----------
    path : str
        Of the object; a foreign name is escaped, and that of a folder ends with ``/``.
    foreign : bool
        Whether the store did not make its name; what is in such a folder is not listed.
    """

    path: str
    foreign: bool = False


async def walk(store: Store, path: str) -> AsyncIterator[Listed]:
    """Yield the objects below a folder in the order of the UTF-8 of their paths, and foreign names between them.

    A folder is sorted as its name with ``/`` behind it, which is what all paths in it begin with: ``a-b`` and ``a.b``
    come before ``a/b``, and ``a0`` behind it.

    Raises
    ------
    IntegrityError
        When the host's listing is refused.
    StoreError
        When it lists more names than can be sorted here.
    """
    folders = [(path, await _names(store, path, 0))]
    while folders:
        folder, names = folders[-1]
        if not names:
            folders.pop()
            continue
        raw, foreign = names.pop()
        full = f"{folder}/{raw.decode()}" if folder else raw.decode()
        if foreign or not full.endswith("/"):
            yield Listed(full, foreign)
        else:
            held = sum(len(others) for _, others in folders)
            folders.append((full[:-1], await _names(store, full[:-1], held)))


async def _names(store: Store, folder: str, held: int) -> list[tuple[bytes, bool]]:
    """Return the names in one folder, the last one first, each with whether it is foreign; `held` are held already."""
    found: set[tuple[bytes, bool]] = set()
    skip = len(folder) + 1 if folder else 0
    async for entry in store.list(folder):
        name = f"{entry.path[skip:]}/" if entry.folder else entry.path[skip:]
        # A set: a host may list a name twice.
        found.add((name.encode(), not await store.made_name(entry)))
        if held + len(found) > _MOST_HELD:
            hint = "spread the objects over more folders, or make a manifest of each folder"
            raise StoreError(f"{folder or '/'}: more than {_MOST_HELD:,} names to sort", path=folder, hint=hint)
    return sorted(found, reverse=True)


async def in_order(items: AsyncIterator[A], work: Callable[[A], Awaitable[B]], jobs: int) -> AsyncGenerator[B, None]:
    """Yield the result of work on each item, in the order of the items, with `jobs` of them under way at a time."""
    turns = asyncio.Semaphore(jobs)

    async def one(item: A) -> B:
        async with turns:
            return await work(item)

    under_way: deque[asyncio.Task[B]] = deque()
    try:
        async for item in items:
            under_way.append(asyncio.create_task(one(item)))
            if len(under_way) >= jobs * _WAITING:
                yield await under_way[0]
                under_way.popleft()
        while under_way:
            yield await under_way[0]
            under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        if isinstance(items, AsyncGenerator):
            await items.aclose()

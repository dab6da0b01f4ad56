"""A lock object at a host that keeps no condition on a write: one client at a time changes the keyset.

Each client writes an object of its own into one folder and then lists it; whoever sees only its own has the lock. Of
two clients the later one sees the earlier one's, on every host that lists what was written. Whoever sees another's
takes its own back and waits. Does not help on a host whose listings lag behind its writes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from sovstore.backends.base import Backend, Stat
from sovstore.errors import SovstoreError, StoreError, StoreUnavailableError

#: Not `.sovstore/lock`: the local driver has a file of that name, and a byte copy of a store takes it along.
FOLDER = ".sovstore/locks"
#: A lock older than this, by the host's own clock, is of a client that was killed.
ABANDONED = timedelta(minutes=5)
#: The same by the clock of a client: hosts refuse requests whose time is a quarter of an hour off.
SWEPT = ABANDONED + timedelta(minutes=15)
#: Seconds in which the holder must be done: far from the limit, since a request under way cannot be called back.
HOLD_S = 60
#: Seconds that a client waits for its turn.
WAIT_S = 45


@asynccontextmanager
async def held(backend: Backend, store: str) -> AsyncIterator[None]:
    """Hold the lock of a store's keyset while a block runs, for at most `HOLD_S`.

    Raises
    ------
    StoreUnavailableError
        When another client holds it all the time.
    StoreError
        When the block took too long: what it wrote last may have come too late to be safe.
    """
    mine = f"{FOLDER}/{os.urandom(8).hex()}"
    end = time.monotonic() + WAIT_S
    try:
        while not await _taken_in_time(backend, mine):
            await backend.delete([mine])
            if time.monotonic() > end:
                hint = (
                    "try again later; if a client was killed meanwhile, its lock counts for nothing"
                    f" after {ABANDONED.total_seconds() / 60:g} minutes"
                )
                message = f"store {store!r}: another client is changing its keyset"
                raise StoreUnavailableError(message, path=FOLDER, hint=hint)
            # At random, or two clients would see each other for ever.
            await asyncio.sleep(random.uniform(0.05, 1.0))  # noqa: S311  # nosec B311  # no secret
        try:
            async with asyncio.timeout(HOLD_S):
                yield
        except TimeoutError as exc:
            hint = "the host is too slow for a safe change just now; try again"
            raise StoreError(f"store {store!r}: the keyset was not changed in time", path=FOLDER, hint=hint) from exc
    finally:
        # One that stays is abandoned, and counts for nothing in a while.
        with suppress(SovstoreError):
            await backend.delete([mine])


async def _taken_in_time(backend: Backend, mine: str) -> bool:
    """Return whether the lock is ours; not if that took so long that others may soon count it as abandoned."""
    began = time.monotonic()
    return await _taken(backend, mine) and time.monotonic() - began < HOLD_S


async def _taken(backend: Backend, mine: str) -> bool:
    """Write a lock of our own and return whether it is the only one; abandoned ones are removed."""
    upload = await backend.upload(mine)
    await upload.write(b"-")
    await upload.commit()
    found = [stat async for stat in backend.list(FOLDER) if not stat.folder]
    own = next((stat for stat in found if stat.name == mine), None)
    others = [stat for stat in found if stat.name != mine]
    abandoned = [stat.name for stat in others if own is not None and _is_abandoned(stat, own)]
    await backend.delete(abandoned)
    return own is not None and len(abandoned) == len(others)


async def sweep(backend: Backend, *, dry_run: bool = False) -> int:
    """Delete the locks of killed clients, and return how many there were; a dry run only counts.

    None that could be alive: without it, a client that is changing the keyset could undo another's change.
    """
    limit = datetime.now(UTC) - SWEPT
    locks = [stat async for stat in backend.list(FOLDER) if not stat.folder]
    left = [stat.name for stat in locks if stat.modified is not None and stat.modified <= limit]
    if not dry_run:
        await backend.delete(left)
    return len(left)


def _is_abandoned(other: Stat, own: Stat) -> bool:
    # Both times are the host's: no clock of a client counts.
    return other.modified is not None and own.modified is not None and own.modified - other.modified > ABANDONED

"""One event loop for all connections to hosts, whichever loop or thread the caller is in."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fsspec.asyn import get_loop

from sovstore.backends.base import Backend

T = TypeVar("T")
#: Replies that broke off: how many are asked for, and the seconds after which no other is.
_TRIES, _TRIES_WITHIN_S = 6, 10


async def retried(work: Callable[[], Awaitable[T]], broken: type[Exception]) -> T:
    """Return what `work` returns; try again, later and later, when a reply was broken.

    The SDKs do that for requests, and not for the bodies of replies, which they pass on as they come.

    Parameters
    ----------
    work : callable
        MAY be called several times.
    broken : class
        Raised when the next reply may be whole. The last one is passed on.
    """
    # Comes with the extras of the drivers that need it.
    import tenacity

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(broken),
        stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_after_delay(_TRIES_WITHIN_S),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=5),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await work()
    raise AssertionError  # it returns or raises


class LoopBackend(Backend):
    """A backend whose connections belong to fsspec's own loop, which lives as long as the process.

    Connections that belonged to the caller's loop would outlive it, and s3fs and the Azure SDK cannot close them then.
    Subclasses call `after_fork` before they use what `_connect` made: loop, threads and connections stay in the parent.
    """

    def __init__(self) -> None:
        self._pid, self._loop = os.getpid(), get_loop()
        self._connect()

    @abstractmethod
    def _connect(self) -> None:
        """Make the client anew, without a request; ``self._loop`` is the loop that it belongs to."""

    def after_fork(self) -> None:
        """Connect anew when this is not the process that connected."""
        if self._pid != os.getpid():
            self._pid, self._loop = os.getpid(), get_loop()
            self._connect()

    async def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop of the connections; cancelling the caller cancels it."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

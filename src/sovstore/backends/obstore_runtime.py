"""The one runtime of object_store in a process: it does not survive a fork, and must be idle when Python ends.

Its threads come for the interpreter when a request ends. After a fork there are none, and every request would wait for
ever; while the interpreter is taken down they crash it (pyo3-async-runtimes issue 40).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sovstore.errors import StoreError

#: How long the end of the process waits for what is under way to stop, and for the threads to be done with that.
_STOP_S, _SETTLE_S = 3.0, 0.1

# As global as the runtime: the process that made the first request, what is under way, and when the last of it ended.
_pid: int | None = None
_live: dict[asyncio.Task[object], tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = {}
_ended = float("-inf")


def claim(provider: str) -> None:
    """Make this the process that uses the runtime.

    Raises
    ------
    StoreError
        When it is a fork of the one that does.
    """
    global _pid
    if _pid is None:
        _pid = os.getpid()
        atexit.register(_end)
    elif _pid != os.getpid():
        hint = "start processes with 'spawn' or 'forkserver', or leave 'transport' out"
        raise StoreError(f"provider {provider!r}: obstore does not work after a fork", path=provider, hint=hint)


@contextmanager
def under_way(stop: Callable[[], object] | None = None) -> Iterator[None]:
    """Let the end of the process stop what is inside: by `stop`, on its loop, or by cancelling the task."""
    global _ended
    task = asyncio.current_task()
    if task is None:  # never inside a coroutine
        raise RuntimeError("no task")
    _live[task] = (task.get_loop(), stop or task.cancel)
    try:
        yield
    finally:
        del _live[task]
        _ended = time.monotonic()


def _end() -> None:
    if _pid != os.getpid():
        return
    for loop, stop in list(_live.values()):
        with suppress(RuntimeError):  # the loop is closed, and its requests with it
            loop.call_soon_threadsafe(stop)
    deadline = time.monotonic() + _STOP_S
    while any(loop.is_running() for loop, _ in list(_live.values())) and time.monotonic() < deadline:
        time.sleep(0.01)
    # Also after a request that simply ended: a thread still has to let go of the interpreter.
    time.sleep(_SETTLE_S if _live else max(0, _ended + _SETTLE_S - time.monotonic()))

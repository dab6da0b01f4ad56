"""A Dask scheduler and its workers, each a process of its own, and all that could be seen of their work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.servers.ports import LOOPBACK
from tests.servers.process import ProcessGroup, process_group
from tests.servers.tap import Tap, tap

_POLL_S = 0.002


class DaskCluster:
    """A running cluster; `start` starts it. Clients and workers reach the scheduler through a tap.

    Parameters
    ----------
    group : ProcessGroup
        Its processes: ``scheduler``, ``worker-0``, ``worker-1`` and so on.
    tap : Tap
        What the scheduler was sent: graphs, and what workers tell of them.
    """

    def __init__(self, group: ProcessGroup, tap: Tap) -> None:
        self._group, self.tap = group, tap
        self._spilled: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return f"tcp://{LOOPBACK}:{self.tap.port}"

    def kill(self, name: str) -> None:
        """Kill a process."""
        self._group.signal(name, signal.SIGKILL)

    def seen(self) -> Iterator[tuple[str, bytes]]:
        """Yield what was sent to the scheduler, logged, and put on disk by workers, each with the place."""
        for number, stream in enumerate(self.tap.streams):
            yield f"connection {number}", stream
        for log in self._group.logs.iterdir():
            yield log.name, log.read_bytes()
        yield from dict(self._spilled).items()

    @property
    def spilled(self) -> int:
        """How many files workers put on disk, as far as they were seen before they were deleted."""
        return len(self._spilled)

    def watch(self, stopped: threading.Event) -> None:
        """Keep what appears in the folders of the workers, until told to stop."""
        while not stopped.wait(_POLL_S):
            for folder, _, files in os.walk(self._group.directory / "spill"):
                for name in files:
                    path = Path(folder, name)
                    if str(path) not in self._spilled:
                        with contextlib.suppress(OSError):
                            self._spilled[str(path)] = path.read_bytes()


@contextlib.contextmanager
def start(workers: int, environment: Mapping[str, str], **settings: Any) -> Iterator[DaskCluster]:
    """Run a scheduler and workers, one thread each, which log all they can and put every result on disk.

    Parameters
    ----------
    workers : int
        How many.
    environment : mapping
        Of the workers; the scheduler gets ``SOVSTORE_CONFIG`` of it.
    settings : Any
        Of Dask, as ``SCHEDULER__ALLOWED_FAILURES=0``.
    """
    dask = {
        "DASK_LOGGING__DISTRIBUTED": "debug",
        "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100000",
        "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "0.0000001",
        "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "0.0000001",
        **{f"DASK_DISTRIBUTED__{name}": str(value) for name, value in settings.items()},
    }
    with process_group("dask") as group, contextlib.ExitStack() as stack:
        file = group.directory / "scheduler.json"
        options = ["--host", LOOPBACK, "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)]
        found = {name: value for name, value in environment.items() if name == "SOVSTORE_CONFIG"}
        command = [sys.executable, "-m", "dask", "scheduler", *options]
        group.start("scheduler", command, environment={**dask, **found})
        group.wait_until(lambda: file.exists() and bool(file.read_text()), what="the scheduler listens")
        port = int(json.loads(file.read_text())["address"].rpartition(":")[2])
        cluster = DaskCluster(group, stack.enter_context(tap(port)))
        for number in range(workers):
            folder = group.directory / "spill" / str(number)
            folder.mkdir(parents=True)
            options = ["--no-nanny", "--nthreads", "1", "--memory-limit", "2GiB", "--no-dashboard"]
            group.start(
                f"worker-{number}",
                [
                    *(sys.executable, "-m", "dask", "worker", cluster.address, *options),
                    *("--name", str(number), "--local-directory", str(folder), "--host", LOOPBACK),
                ],
                environment={**dask, **environment},
            )
        ready = [group.logs / f"worker-{number}.log" for number in range(workers)]
        group.wait_until(
            lambda: all(b"Registered to" in log.read_bytes() for log in ready), what="the workers are registered"
        )
        stopped = threading.Event()
        watching = threading.Thread(target=cluster.watch, args=(stopped,), daemon=True)
        watching.start()
        try:
            yield cluster
        finally:
            stopped.set()
            watching.join()

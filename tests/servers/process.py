"""Child processes of one test server: their directory, their logs, and how they are stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_PREFIX = "sov-"
_LOCK = "lock"
_POLL_INTERVAL_S = 0.02
_STOP_TIMEOUT_S = 10
_TAIL_LINES = 25


class ServerStartError(Exception):
    """A server did not start; the text ends with the tail of its logs."""


class ProcessGroup:
    """The processes of one server, in a temporary directory that holds their data and logs."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.logs = directory / "logs"
        self.logs.mkdir()
        self._children: list[tuple[str, subprocess.Popen[bytes], signal.Signals]] = []

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start a process that stays in the foreground and writes to `logs/<name>.log`."""
        with (self.logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [*_die_with_parent(), *command],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment(environment),
                # Ctrl-C is for pytest, which then stops the server in order.
                start_new_session=True,
            )
        self._children.append((name, child, stop_signal))
        if child.stdin is not None:
            with child.stdin:
                child.stdin.write(stdin or b"")

    def run(self, command: Sequence[str], *, timeout_s: float = 60) -> str:
        """Run a command to its end and return its standard output, or raise ServerStartError."""
        program = Path(command[0]).name
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=self.directory,
                env=self._environment(None),
                timeout=timeout_s,
                check=False,
                text=True,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise self.failure(f"{program}: {exc}") from exc
        if done.returncode != 0:
            raise self.failure(f"{program} exited with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout_s: float = 60) -> None:
        """Return once `ready()` is true; raise ServerStartError if a process ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            for name, child, _ in self._children:
                if child.poll() is not None:
                    raise self.failure(f"{name} exited with {child.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.failure(f"{what}: not within {timeout_s:g} s")
            time.sleep(_POLL_INTERVAL_S)

    def failure(self, reason: str) -> ServerStartError:
        """Return the error for `reason`, with the tail of every log."""
        tails = [f"--- {log.name}\n{_tail(log)}" for log in sorted(self.logs.glob("*.log"))]
        return ServerStartError("\n".join([f"{self.name}: {reason}", *tails]))

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of the processes; one that stops it has done so when this returns."""
        child = next(child for known, child, _ in self._children if known == name)
        child.send_signal(number)
        if number == signal.SIGSTOP:
            # Its threads go on for a moment, and could still answer.
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)

    def stop(self) -> None:
        """Stop the processes, the last one started first."""
        while self._children:
            _, child, stop_signal = self._children.pop()
            child.send_signal(stop_signal)
            try:
                child.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        # Nothing of the developer's session or of the calling test reaches a server.
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8", **(extra or {})}


@contextlib.contextmanager
def process_group(name: str) -> Iterator[ProcessGroup]:
    """Yield an empty process group; on exit, stop its processes and remove its directory."""
    _sweep()
    # Not pytest's tmp_path: a Unix socket path is limited to 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{name}-", ignore_cleanup_errors=True) as directory,
        _locked(Path(directory)),
    ):
        group = ProcessGroup(name, Path(directory))
        try:
            yield group
        finally:
            group.stop()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock that says that the directory is in use; it ends with this process, however that ends."""
    fresh = directory / "lock.new"
    with fresh.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # It has its name only once it is held: another run never finds it free.
        fresh.rename(directory / _LOCK)
        yield


def _sweep() -> None:
    """Remove the directories of runs that were killed; their processes died with them."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        # An error says that the lock is held, or that another run sweeps too.
        with contextlib.suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent)


def _die_with_parent() -> list[str]:
    """Return a command prefix that ends the process when pytest is killed before it can clean up."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

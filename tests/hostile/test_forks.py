"""Processes that are forked from one that has a store open, while its other threads are in the middle of everything."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sovstore import rotation
from sovstore.backends import local, memory
from sovstore.errors import StoreError
from sovstore.filesystem import SovFileSystem, base
from tests.history import content, value_of
from tests.hosts import PROVIDERS, Host, cheap_key_files, open_host
from tests.stores import open_fs
from tests.stress import amount, record

# From Python 3.12 on: that is what these tests are about.
pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
OLD, LARGE = content((0, 0, 100_000)), content((0, 1, 1_200_000))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return open_host(tmp_path, "local")


def fork(work: Callable[[], Any]) -> int:
    """Return the process that does some work and ends, with 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001  # nothing of the child may go on with the tests
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, within_s: float = 30) -> int:
    """Return the exit code of a process; one that hangs is killed."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("a forked process hangs")


def in_threads(*works: Callable[[], Any]) -> None:
    """Do some work in threads; the first error is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001  # raised below
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def use(fs: SovFileSystem, reader: Any, tag: str, data: bytes = OLD) -> None:
    """Do what a worker does, by what was opened before the fork."""
    reader.seek(60_000)
    assert reader.read(30_000) == OLD[60_000:90_000]
    fs.pipe_file(f"{tag}/piped", OLD)
    with fs.open(f"{tag}/opened", "wb") as file:
        file.write(data)
    assert fs.cat_file(f"{tag}/piped") == fs.cat_file("before") == OLD
    assert fs.cat_file(f"{tag}/opened") == data
    assert fs.find(tag) == [f"{tag}/opened", f"{tag}/piped"]
    fs.mv(f"{tag}/piped", f"{tag}/moved")
    fs.rm(tag, recursive=True)
    value_of(fs.cat_file("busy"))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_forks_while_other_threads_work(tmp_path: Path, provider: str) -> None:
    """Each child uses what it inherited, from two threads at once; nobody waits for what only the parent has."""
    host = open_host(tmp_path, provider)
    fs, stop, written = host.fs, threading.Event(), [0, 0]
    fs.pipe({"before": OLD, "busy": OLD})
    reader = fs.open("before")
    reader.read(10)

    def work(number: int) -> None:
        while not stop.is_set():
            written[number] += 1
            value = (number + 1, written[number], 90_000)
            if number:
                fs.pipe_file("busy", content(value))
            else:
                with fs.open("busy", "wb") as file:
                    file.write(content(value))
            value_of(fs.cat_file("busy"))

    def child() -> None:
        in_threads(lambda: use(fs, reader, "one"), lambda: use(fs, fs.open("before"), "two"))

    forks = amount(50 if provider == "local" else 10, 1000)

    def fork_all() -> None:
        try:
            assert [ended(fork(child)) for _ in range(3)] == [0] * 3
            before = descriptors(), threading.active_count()
            assert [ended(fork(child)) for _ in range(forks)] == [0] * forks
            # Writes under way have some, and a pool of threads may be on its way up; every second fork has none.
            assert len(descriptors()) < len(before[0]) + forks // 2, descriptors() - before[0]
            assert threading.active_count() < before[1] + forks // 2
        finally:
            stop.set()

    in_threads(fork_all, lambda: work(0), lambda: work(1))
    assert reader.read() == OLD[10:]
    # The children's own writes were theirs alone where the host is in memory.
    assert fs.find("") == ["before", "busy"]
    assert host.unfinished() == []
    print(forks, "forks,", written, "writes meanwhile")
    record(f"forks: {provider}", forks=forks, writes=sum(written))


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_fork_of_a_fork_from_threads(host: Host) -> None:
    fs = host.fs
    fs.pipe({"before": OLD, "busy": OLD})
    reader = fs.open("before")
    writer = fs.open("written", "wb")
    writer.write(LARGE)

    def grandchild() -> None:
        use(fs, reader, "grandchild", LARGE)
        with pytest.raises(StoreError, match="another process"):
            writer.close()

    def child() -> None:
        use(fs, reader, "child")
        codes: list[int] = []
        in_threads(lambda: codes.append(ended(fork(grandchild))))
        assert codes == [0]
        use(fs, reader, "child")

    codes: list[int] = []
    # From a thread that is not the main one, as a server does.
    in_threads(lambda: codes.append(ended(fork(child))))
    assert codes == [0]
    assert not fs.exists("written")
    writer.close()
    assert fs.cat_file("written") == LARGE
    assert host.unfinished() == []


def test_two_threads_of_a_child_that_begin_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of the child takes a moment; nobody is given the parent's meanwhile, which runs no more."""
    host.fs.pipe_file("before", OLD)
    real = base.get_loop

    def slow() -> Any:
        time.sleep(0.2)
        return real()

    def read() -> None:
        assert host.fs.cat_file("before") == OLD

    monkeypatch.setattr(base, "get_loop", slow)
    assert ended(fork(lambda: in_threads(read, lambda: (time.sleep(0.1), read()))), within_s=10) == 0


def test_a_fork_while_the_memory_is_locked(tmp_path: Path) -> None:
    fs = open_host(tmp_path, "memory").fs
    fs.pipe_file("before", OLD)
    locked = threading.Event()

    def hold() -> None:
        with memory._LOCK:
            locked.set()
            time.sleep(0.2)

    def child() -> None:
        # By a thread whose number cannot be that of the one that held it: this one was there before.
        assert memory._LOCK.acquire(timeout=5)
        memory._LOCK.release()
        assert fs.cat_file("before") == OLD

    def read() -> None:
        locked.wait()
        assert ended(fork(child), within_s=10) == 0

    in_threads(hold, read)


def test_a_fork_while_the_store_is_locked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child lives on, and holds up nobody."""
    fs, real, children = host.fs, os.replace, list[int]()
    fs.pipe_file("object", OLD)

    def replace(*args: Any) -> None:
        monkeypatch.setattr(local.os, "replace", real)
        children.append(fork(lambda: time.sleep(60)))
        real(*args)

    monkeypatch.setattr(local.os, "replace", replace)
    fs.pipe_file("object", LARGE)
    (child,) = children
    try:
        with open(f"{host.root}/.sovstore/lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    fs._sync(rotation.new_epoch, fs.store)
    assert fs._sync(lambda: fs.store.rewrap(entry_of(fs, "object")))
    assert fs.cat_file("object") == LARGE


def entry_of(fs: SovFileSystem, path: str) -> Any:
    return open_fs(fs.store.config.source, skip_instance_cache=True)._sync(fs.store.stat, path)


def _work(pickled: bytes | SovFileSystem, number: int) -> tuple[bytes, list[str]]:
    fs = pickle.loads(pickled) if isinstance(pickled, bytes) else pickled  # noqa: S301  # our own
    with fs.open(f"child-{number}", "wb") as file:
        file.write(content((number, 0, 100_000)))
    return fs.cat_file("before"), fs.find("")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers(host: Host, method: str) -> None:
    host.fs.pipe_file("before", OLD)
    pickled = pickle.dumps(host.fs)
    context = multiprocessing.get_context(method)
    try:
        # The tasks of a pool are pickled in any case; fewer workers where each is a new interpreter.
        with ProcessPoolExecutor(4 if method == "fork" else 1, mp_context=context) as pool:
            found = list(pool.map(_work, [pickled, host.fs] * 2, range(4)))
    finally:
        # It would live as long as the tests.
        multiprocessing.forkserver._forkserver._stop()
    assert [one[0] for one in found] == [OLD] * 4
    assert all(f"child-{number}" in one[1] for number, one in enumerate(found))
    assert [host.fs.cat_file(f"child-{number}") for number in range(4)] == [content((n, 0, 100_000)) for n in range(4)]
    assert host.unfinished() == []


def test_a_process_that_inherits_the_store(host: Host) -> None:
    """What `multiprocessing` does with the arguments of a forked process: nothing, they are simply there."""
    host.fs.pipe({"before": OLD, "busy": OLD})
    reader = host.fs.open("before")
    child = multiprocessing.get_context("fork").Process(target=use, args=(host.fs, reader, "child"))
    child.start()
    use(host.fs, reader, "parent")
    child.join(30)
    assert child.exitcode == 0


# Scripts, each in a child of one process that has everything imported: they end as interpreters do.

_WARM = """
import json, os, sys
import sovstore.filesystem, sovstore.backends.local, sovstore.kms.keyfile
for line in sys.stdin:
    script, argv, log = json.loads(line)
    child = os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(f"{log}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["-c", *argv]
        exec(script, {"__name__": "__main__"})
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-c", _WARM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(warm: subprocess.Popen[str], tmp_path: Path) -> Callable[..., str]:
    def run(script: str, *args: object) -> str:
        log = tmp_path / "script.log"
        warm.stdin.write(json.dumps([script, [str(arg) for arg in args], str(log)]) + "\n")
        warm.stdin.flush()
        code = int(warm.stdout.readline())
        printed, warned = (Path(f"{log}.{number}").read_text() for number in (1, 2))
        assert code == 0, warned
        assert "Traceback" not in warned, warned
        return printed

    return run


_FORK = """
import os, sys
from sovstore.filesystem import SovFileSystem

config, how = sys.argv[1:]
fs = SovFileSystem("cohortes", config=config)
old, data = b"o" * 100_000, bytes(range(256)) * 12_000
fs.pipe({"before": old, "unfinished": old})
writer = fs.open("unfinished", "wb")
writer.write(data[:2_500_000])
text = fs.open("text", "w")
text.write("begun ")
reader = fs.open("before")
reader.read(10)

child = os.fork()
if child == 0:
    assert fs.cat_file("before") == old
    fs.pipe_file("of-child", b"new")
    with fs.open("of-child-too", "w") as file:
        file.write("text")
    assert fs.cat("of-child-too") == b"text"
    assert fs.find("") == ["before", "of-child", "of-child-too", "unfinished"]
    assert SovFileSystem("cohortes", config=config).cat("of-child") == b"new"
    if how == "os._exit":
        os._exit(0)
    if how == "dropped":
        del writer, text
        import gc
        gc.collect()
        os._exit(0)
    if how == "discarded":
        writer.discard()
    sys.exit(0)

assert os.waitpid(child, 0)[1] == 0
assert fs.cat_file("unfinished") == old
assert fs.cat("of-child") == b"new"
# Also when another process sweeps.
grandchild = os.fork()
if grandchild == 0:
    SovFileSystem("cohortes", config=config, skip_instance_cache=True).pipe_file("swept", b"")
    os._exit(0)
assert os.waitpid(grandchild, 0)[1] == 0
writer.write(data[2_500_000:])
writer.close()
text.write("and done")
text.close()
assert fs.cat_file("unfinished") == data
assert fs.cat_file("text") == b"begun and done"
assert reader.read() == old[10:]
print("done")
"""


@pytest.mark.parametrize("how", ["os._exit", "sys.exit", "dropped", "discarded"])
def test_fork(host: Host, run: Callable[..., str], how: str) -> None:
    assert run(_FORK, host.fs.store.config.source, how) == "done\n"
    assert host.unfinished() == []


_INHERITED = """
import os, sys
from sovstore.errors import SovstoreError
from sovstore.filesystem import SovFileSystem

fs = SovFileSystem("cohortes", config=sys.argv[1])
data = bytes(range(256)) * 12_000
fs.pipe_file("object", data)
# Every thread of the parent has been used.
fs.cat_ranges(["object"] * 20, list(range(0, 2_000_000, 100_000)), list(range(10, 2_000_010, 100_000)), max_gap=0)
reader = fs.open("object")
assert reader.read(10) == data[:10]
writer = fs.open("written", "wb")
writer.write(data)
child = os.fork()
if child == 0:
    if sys.argv[2] == "read":
        reader.seek(1_000_000)
        assert reader.read(100_000) == data[1_000_000:1_100_000]
        assert reader.read() == data[1_100_000:]
    else:
        try:
            if sys.argv[2] == "write":
                writer.write(data)
            writer.close()
        except SovstoreError:
            pass
        else:
            os._exit(3)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert reader.read() == data[10:]
assert not fs.exists("written")
writer.close()
assert fs.cat("written") == data
"""


@pytest.mark.parametrize("use", ["read", "write", "close"])
def test_files_that_a_forked_child_inherits(host: Host, run: Callable[..., str], use: str) -> None:
    """A child reads on; it can neither go on with its parent's write nor end it."""
    run(_INHERITED, host.fs.store.config.source, use)
    assert host.unfinished() == []

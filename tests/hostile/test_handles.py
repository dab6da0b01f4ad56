"""Thousands of open files on one store: what each costs, and what happens when the system has no more of something."""

from __future__ import annotations

import errno
import gc
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sovstore.backends import local
from sovstore.errors import StoreError
from sovstore.filesystem import SovFileSystem
from sovstore.format.cobblestone import WIRE_CHUNK
from tests.history import content
from tests.hosts import PROVIDERS, cheap_key_files, open_host
from tests.stores import make_store, on_azure, on_s3, open_fs
from tests.stress import amount, record

pytestmark = pytest.mark.stress

SMALL, LARGE = content((0, 0, 1_000)), content((0, 1, 300_000))
#: Bytes that an open file takes besides the ten chunks of it that it may keep (`ObjectReader`).
BESIDES = 16_000
SERVERS = {"s3": ("s3_server", on_s3), "azurite": ("azurite_server", on_azure)}


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.server(name)) for name in SERVERS])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SovFileSystem:
    fixture, settings_on = SERVERS[request.param]
    settings = settings_on(request.getfixturevalue(fixture))
    for name, value in settings.pop("environment").items():
        monkeypatch.setenv(name, value)
    return open_fs(make_store(tmp_path, **settings))


@contextmanager
def open_files_at_most(limit: int) -> Iterator[None]:
    """Limit the descriptors of this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit if limit < before[1] else before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def opened(fs: SovFileSystem, paths: list[str], count: int) -> list[Any]:
    return [fs.open(paths[n % len(paths)]) for n in range(count)]


def memory_of(make: Callable[[], list[Any]]) -> float:
    """Return the bytes that each of some new things keeps."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / len(made)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_thousands_of_readers(tmp_path: Path, provider: str) -> None:
    fs = open_host(tmp_path, provider).fs
    paths = [f"folder/{n}" for n in range(10)]
    fs.pipe(dict.fromkeys(paths, SMALL))
    before, count = descriptors(), amount(5000, 50_000)
    # With a limit that so many descriptors would break twenty times.
    with open_files_at_most(256):
        files = opened(fs, paths, count)
        assert descriptors() <= before + 2
        for n, file in enumerate(files):
            start = n % 900
            file.seek(start)
            assert file.read(50) == SMALL[start : start + 50]
        for file in files:
            file.close()
    assert all(file.closed for file in files)
    assert descriptors() <= before + 2
    record(f"handles: {provider}", readers=count)


def check_memory(fs: SovFileSystem, count: int) -> None:
    """A file keeps what is documented, whatever the size of its object, and what was read of it in between."""
    fs.pipe({"small": SMALL, "large": LARGE})
    for file in opened(fs, ["small", "large"], 4):
        file.read(10)
    small = memory_of(lambda: opened(fs, ["small"], count))
    large = memory_of(lambda: opened(fs, ["large"], count))
    print(f"{small:.0f} bytes for a small file, {large:.0f} for a large one")
    record(f"bytes of a handle: {fs.store.config.provider}", small=round(small), large=round(large))
    assert small < BESIDES
    assert large < 10 * WIRE_CHUNK + BESIDES


@pytest.mark.parametrize("provider", PROVIDERS)
def test_memory_of_readers(tmp_path: Path, provider: str) -> None:
    check_memory(open_host(tmp_path, provider).fs, 60)


def test_hundreds_of_files_at_a_host(remote: SovFileSystem) -> None:
    check_memory(remote, 40)
    before, count = descriptors(), amount(80, 1000)
    files = opened(remote, ["large"], count)
    writers = [remote.open(f"written/{n}", "wb") for n in range(count)]
    # Connections, of which there is a limited number.
    assert descriptors() <= before + 64
    for n, file in enumerate(files):
        file.seek(140_000 + n)
        assert file.read(100) == LARGE[140_000 + n : 140_100 + n]
        writers[n].write(SMALL[n % 100 :])
    for n in range(0, count, 10):
        writers[n].close()
    del writers
    gc.collect()
    assert remote.find("written") == sorted(f"written/{n}" for n in range(0, count, 10))
    assert remote.cat_file("written/10") == SMALL[10:]
    remote.rm("written", recursive=True)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_thousand_writers(tmp_path: Path, provider: str) -> None:
    """Half of them are lost unclosed: of those nothing shows, and nothing is left."""
    host = open_host(tmp_path, provider)
    fs, before, count = host.fs, descriptors(), amount(1000, 10_000)
    with open_files_at_most(20_000):
        files = [fs.open(f"folder/{n}", "wb") for n in range(count)]
        for n, file in enumerate(files):
            assert file.write(SMALL[n % 100 :]) == len(SMALL[n % 100 :])
        assert fs.find("") == []
        assert len(host.unfinished()) == count
        for file in files[::2]:
            file.close()
        del file, files
        gc.collect()
    assert fs.find("") == sorted(f"folder/{n}" for n in range(0, count, 2))
    assert [fs.cat_file(f"folder/{n}") for n in range(0, count, 50)] == [SMALL[n % 100 :] for n in range(0, count, 50)]
    assert host.unfinished() == []
    assert descriptors() <= before + 2
    record(f"writers: {provider}", opened=count, closed=count // 2)


def test_more_writers_than_the_system_allows(tmp_path: Path) -> None:
    """The error says so, and all that were opened before can still be completed."""
    host = open_host(tmp_path, "local")
    fs, files = host.fs, list[Any]()
    fs.pipe_file("before", LARGE)
    with open_files_at_most(256):
        with pytest.raises(StoreError, match=r"(?s)open files.*hint: .*ulimit -n") as caught:
            files.extend(fs.open(f"{n}", "wb") for n in range(300))
        assert caught.value.path == f"{len(files)}"
        assert len(files) > 50
        # The last descriptor is taken too: completing needs one, and must not do half of its work without it.
        spare = list[int]()
        with pytest.raises(OSError, match="open files") as full:
            spare.extend(iter(lambda: os.open("/dev/null", os.O_RDONLY), -1))
        assert full.value.errno == errno.EMFILE
        for work in (lambda: fs.pipe_file("before", SMALL), lambda: fs.cat_file("before"), lambda: fs.rm("before")):
            with pytest.raises(StoreError, match="open files"):
                work()
        for descriptor in spare:
            os.close(descriptor)
        # Some are closed, as the hint says; all others are then completed.
        for _ in range(3):
            files.pop().discard()
        for n, file in enumerate(files):
            file.write(SMALL[n:])
            file.close()
    assert fs.find("") == sorted(["before", *(f"{n}" for n in range(len(files)))])
    assert fs.cat_file("before") == LARGE
    assert [fs.cat_file(f"{n}") for n in range(len(files))] == [SMALL[n:] for n in range(len(files))]
    assert host.unfinished() == []


def test_a_write_that_cannot_be_completed_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with too many open files learns of it before anything is visible, not after."""
    host = open_host(tmp_path, "local")
    fs, real = host.fs, os.open
    fs.pipe_file("object", LARGE)
    folder = Path(host.root)

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_DIRECTORY and Path(path) == folder:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(local.os, "open", refusing)
    with pytest.raises(StoreError, match="open files"):
        fs.pipe_file("object", SMALL)
    monkeypatch.undo()
    assert fs.cat_file("object") == LARGE
    assert host.unfinished() == []

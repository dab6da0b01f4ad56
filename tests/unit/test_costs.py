"""What the hot paths cost, in counts that are the same on every machine: bytes, buffers, allocations, calls to a KMS.

Requests per operation are in `tests/integration/test_concurrency.py`, what a file reads ahead in `test_files.py`.
"""

from __future__ import annotations

import gc
import logging
import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovstore.backends.base import Backend, OpenedNow, Upload
from sovstore.backends.local import LocalBackend
from sovstore.filesystem import SovFileSystem
from sovstore.format.body import wire_size
from sovstore.format.cobblestone import ChunkOpener
from sovstore.object_writer import AHEAD
from tests.hosts import PROVIDERS, Through, cheap_key_files, wrap_backends
from tests.stores import make_store, open_fs

MIB = 2**20


def address(data: Any) -> int:
    """Return where the bytes of a buffer lie."""
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


class Costs(Through):
    """A host that notes how many bytes it sends, and from which memory it takes and into which it puts them."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner, Counter())
        self.blocking = inner.blocking
        self.sent, self.taken, self.filled = 0, Counter[int](), Counter[int]()

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        data = await super().read(name, start, end, etag=etag)
        self.sent += 0 if name.startswith(".sovstore/") else len(data)
        return data

    def open_now(self, name: str, *, etag: str | None = None) -> OpenedNow:
        return _Opened(self.inner.open_now(name, etag=etag), self)

    async def upload(self, name: str, **conditions: Any) -> Upload:
        upload = await super().upload(name, **conditions)
        write, write_now = upload.write, upload.write_now

        async def noted(data: Any) -> None:
            self.taken[address(data)] += 1
            await write(data)

        def noted_now(data: Any) -> None:
            self.taken[address(data)] += 1
            write_now(data)

        upload.write, upload.write_now = noted, noted_now  # type: ignore[method-assign]
        return upload


class _Opened(OpenedNow):
    def __init__(self, inner: OpenedNow, costs: Costs) -> None:
        self.inner, self.costs = inner, costs

    def read_into(self, start: int, out: memoryview) -> int:
        read = self.inner.read_into(start, out)
        self.costs.sent += read
        self.costs.filled[address(out)] += 1
        return read


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture(params=PROVIDERS)
def measured(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[SovFileSystem, Costs]:
    made: list[Costs] = []

    def wrap(inner: Backend) -> Backend:
        made.append(Costs(inner))
        return made[-1]

    file = make_store(tmp_path, provider=request.param)
    wrap_backends(monkeypatch, wrap)
    fs = open_fs(file)
    fs.ls("")
    return fs, made[-1]


Measured = tuple[SovFileSystem, Costs]


def write(fs: SovFileSystem, path: str, mib: int) -> None:
    block = bytearray(MIB)
    with fs.open(path, "wb") as file:
        for _ in range(mib):
            file.write(block)


def read(fs: SovFileSystem, path: str) -> None:
    block = bytearray(MIB)
    with fs.open(path) as file:
        while file.readinto(block):
            pass


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """Hold the memory that is taken meanwhile, at its peak, against a limit in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < most


def test_bytes_of_a_whole_read(measured: Measured, tmp_path: Path) -> None:
    """Each byte comes once, by whatever call."""
    fs, host = measured
    for size in (100, 100_000, 300_000, 9 * MIB):
        for call in (
            lambda: fs.cat_file("object"),
            lambda: fs.get_file("object", str(tmp_path / "got")),
            lambda: fs.open("object").read(),
            lambda: read(fs, "object"),
        ):
            # A version that was opened before would not be fetched whole.
            fs.pipe_file("object", bytes(size))
            host.sent = 0
            call()
            # The object, but for what comes twice where head and tail of a small one overlap.
            assert wire_size(size) <= host.sent <= wire_size(size) + 10 * 16_400, size
            if size > MIB:
                assert host.sent == wire_size(size)


def test_bytes_of_a_random_read(measured: Measured) -> None:
    fs, host = measured
    fs.pipe_file("object", bytes(9 * MIB))
    with fs.open("object") as file:
        for start in range(MIB, 8 * MIB, MIB + 12_345):
            host.sent = 0
            file.seek(start)
            file.read(65_536)
            assert host.sent <= 5 * 16_400
            # The next one is nowhere near.
            file.seek(0)
            file.read(1)


def test_buffers_of_a_write(measured: Measured) -> None:
    """A few are used in turn, however much is written."""
    fs, host = measured
    write(fs, "object", 32)
    assert sum(host.taken.values()) >= 32
    assert len(host.taken) <= AHEAD + 3


def test_buffers_of_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of this machine is read into a few buffers in turn, and opened straight into that of the caller."""
    made: list[Costs] = []
    file = make_store(tmp_path, provider="local")
    wrap_backends(monkeypatch, lambda inner: made.append(Costs(inner)) or made[-1])  # type: ignore[func-returns-value]
    fs = open_fs(file)
    write(fs, "object", 32)
    block, opened = bytearray(MIB), Counter[bool]()
    first, real = address(block), ChunkOpener.open_into

    def noted(self: ChunkOpener, chunk_no: int, sealed: memoryview, out: memoryview) -> int:
        opened[first <= address(out) < first + MIB] += len(out)
        return real(self, chunk_no, sealed, out)

    with fs.open("object") as opened_file:
        # Not from the start, where chunks go through the other opener, which cannot be looked at.
        opened_file.seek(MIB)
        monkeypatch.setattr(ChunkOpener, "open_into", noted)
        while opened_file.readinto(block):
            pass
    assert opened[True] >= 31 * MIB
    assert opened[False] <= 16_384
    assert len(made[-1].filled) <= 6
    assert sum(made[-1].filled.values()) >= 30


@pytest.mark.parametrize("mib", [16, 64])
def test_memory_does_not_grow_with_an_object(tmp_path: Path, mib: int) -> None:
    fs = open_fs(make_store(tmp_path, provider="local"))
    fs.ls("")
    with at_most(8 * MIB):
        write(fs, "object", mib)
    with at_most(10 * MIB):
        read(fs, "object")
    with at_most(12 * MIB):
        fs.get_file("object", str(tmp_path / "got"))
    with at_most(8 * MIB):
        fs.put_file(str(tmp_path / "got"), "again")


def test_steps_of_small_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece of work in a thread for each object that is written or read, and no system call that is not needed."""
    fs = open_fs(make_store(tmp_path, provider="local"))
    objects = {f"folder/{n}": bytes(4096) for n in range(10)}
    fs.pipe(objects)
    steps, real_run = Counter[str](), LocalBackend._run

    async def run(self: LocalBackend, work: Any) -> Any:
        steps["work"] += 1
        return await real_run(self, work)

    def count(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            steps[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    monkeypatch.setattr(LocalBackend, "_run", run)
    for name in ("open", "write", "pread", "mkdir", "lstat", "fsync", "replace", "unlink"):
        count(name)
    fs.pipe(objects)
    # Its temporary file, its folder and the lock; each folder and name on the way to the two files is looked at.
    each = {"work": 1, "open": 3, "write": 1, "fsync": 2, "replace": 1, "lstat": 4}
    assert steps == {name: number * len(objects) for name, number in each.items()}
    steps.clear()
    assert fs.cat(list(objects)) == objects
    each = {"work": 1, "open": 1, "pread": 1, "lstat": 2}
    assert steps == {name: number * len(objects) for name, number in each.items()}


def test_calls_to_the_kms(measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    """One opens a store, whatever is done with it then."""
    fs, _ = measured
    with caplog.at_level(logging.INFO, "sovstore.audit"):
        again = open_fs(Path(str(fs.store.config.source)), skip_instance_cache=True)
        again.pipe({f"folder/{n}": b"data" for n in range(50)})
        again.cat([f"folder/{n}" for n in range(50)])
        again.mv("folder/1", "folder/moved")
        again.find("")
    calls = [record for record in caplog.records if record.name == "sovstore.audit" and "unwrap" in record.getMessage()]
    assert len(calls) == 1

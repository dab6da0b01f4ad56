"""One large object in the memory of the process itself: a store with ``provider = "memory"``, beside fsspec's own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from benchmarks.bare import CEILING
from benchmarks.case import MIB, Case, Contender, Measured, measured
from benchmarks.memory import SHARED, block_of_memory, read_blocks, write_blocks
from benchmarks.place import STORE, Facts, Sizes, environment
from tests.stores import make_store, open_fs


@contextlib.contextmanager
def _plain() -> Iterator[Any]:
    yield fsspec.filesystem("memory")


@contextlib.contextmanager
def _sov() -> Iterator[Any]:
    # What is in the memory of the runner is not in that of a contender: each makes its own.
    with tempfile.TemporaryDirectory(dir=SHARED) as folder, environment({"XDG_STATE_HOME": folder, "HOME": folder}):
        yield open_fs(make_store(Path(folder), STORE, provider="memory"), STORE)


_WAYS = {"plain": _plain, "sov": _sov}


def write(facts: Facts, way: str) -> Measured:
    """Measure `open` and `write`."""
    with _WAYS[way]() as fs:
        done = measured(lambda: _write(fs, facts["size"]), facts["size"] / MIB)
        fs.rm("object")
    return done


def read(facts: Facts, way: str) -> Measured:
    """Measure `open` and `readinto`."""
    with _WAYS[way]() as fs:
        _write(fs, facts["size"])
        done = measured(lambda: _read(fs, facts["size"]), facts["size"] / MIB)
        fs.rm("object")
    return done


def _write(fs: Any, size: int) -> None:
    with fs.open("object", "wb") as file:
        write_blocks(file, size, block_of_memory())


def _read(fs: Any, size: int) -> None:
    with fs.open("object", "rb") as file:
        read_blocks(file, size, block_of_memory())


@contextlib.contextmanager
def _prepared(sizes: Sizes) -> Iterator[Facts]:
    yield {"size": sizes.get("stream_mib", 1024) * MIB}


CASES: Sequence[Case] = [
    Case(
        f"stream-{what}-memory",
        f"{what} one object of stream_mib (1,024) MiB, 1 MiB at a time, in the memory of the process",
        "MiB",
        [
            CEILING,
            Contender("fsspec memory", f"{__name__}:{what}:plain"),
            Contender("sovstore", f"{__name__}:{what}:sov"),
        ],
        _prepared,
    )
    for what in ("write", "read")
]

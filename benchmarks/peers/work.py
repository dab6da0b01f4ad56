"""The work of the local cases as done by a peer, named by its module; a slow one does one `part` th of it."""

from __future__ import annotations

import importlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.case import MIB, Measured, measured

SMALL_OBJECT = 4096

Facts = Mapping[str, Any]


class Blocks(io.RawIOBase):
    """A file of so many bytes, out of memory: one block again and again."""

    def __init__(self, size: int) -> None:
        self._left, self._block = size, memoryview(os.urandom(MIB))

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, out: Any) -> int:
        """Fill what it is given, up to a block."""
        view = memoryview(out).cast("B")
        count = min(len(view), self._left, MIB)
        view[:count] = self._block[:count]
        self._left -= count
        return count


class Counter(io.RawIOBase):
    """A file that counts what is written to it, and keeps nothing."""

    def __init__(self) -> None:
        self.count = 0

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def write(self, data: Any) -> int:
        """Count."""
        self.count += len(data)
        return len(data)


def _module(peer: str) -> Any:
    return importlib.import_module(f"benchmarks.peers.{peer}")


def stream_write(facts: Facts, peer: str, part: str = "1") -> Measured:
    """Measure encrypting a stream into a file."""
    module, size = _module(peer), facts["size"] // int(part) // MIB * MIB
    path = Path(facts["folder"], peer)

    def write() -> None:
        with path.open("wb") as target:
            module.encrypt(io.BufferedReader(Blocks(size), MIB), target)

    done = measured(write, size / MIB)
    path.unlink()
    return done


def stream_read(facts: Facts, peer: str, part: str = "1") -> Measured:
    """Measure decrypting what `stream_write` writes."""
    module, size = _module(peer), facts["size"] // int(part) // MIB * MIB
    path, target = _fill(facts, module, peer, size), Counter()

    def read() -> None:
        with path.open("rb") as source:
            module.decrypt(source, target)

    done = measured(read, size / MIB)
    if target.count != size:
        raise RuntimeError(f"{target.count} bytes of {size} were read")
    return done


def random_read(facts: Facts, peer: str) -> Measured:
    """Measure reads at offsets, with what is not needed again for each already there."""
    module = _module(peer)
    read = module.reader(_fill(facts, module, peer, facts["size"]))

    def reads() -> None:
        for offset in facts["offsets"]:
            if len(read(offset, facts["read_size"])) != facts["read_size"]:
                raise RuntimeError(f"short read at {offset}")

    return measured(reads, len(facts["offsets"]))


def _fill(facts: Facts, module: Any, peer: str, size: int) -> Path:
    """Write the file unless an earlier round did."""
    path = Path(facts["folder"], peer)
    if not path.exists():
        with path.open("wb") as target:
            module.encrypt(io.BufferedReader(Blocks(size), MIB), target)
    return path


def seal(facts: Facts, peer: str, part: str = "1") -> Measured:
    """Measure messages in memory."""
    seal_one, data, count = _module(peer).seal, os.urandom(SMALL_OBJECT), _count(facts, part)

    def seals() -> None:
        for _ in range(count):
            seal_one(data)

    return measured(seals, count)


def small_write(facts: Facts, peer: str, part: str = "1") -> Measured:
    """Measure messages into files."""
    module, folder = _module(peer), Path(facts["folder"], f"{peer}-{os.getpid()}")
    folder.mkdir()
    values = {folder / f"{number:06d}": os.urandom(SMALL_OBJECT) for number in range(_count(facts, part))}

    def write() -> None:
        for path, data in values.items():
            path.write_bytes(module.seal(data))

    done = measured(write, len(values))
    shutil.rmtree(folder)
    return done


def small_read(facts: Facts, peer: str, part: str = "1") -> Measured:
    """Measure messages out of files."""
    module, folder = _module(peer), Path(facts["folder"], peer)
    paths = [folder / f"{number:06d}" for number in range(_count(facts, part))]
    if not folder.exists():
        folder.mkdir()
        for path in paths:
            path.write_bytes(module.seal(bytes(SMALL_OBJECT)))

    def read() -> None:
        for path in paths:
            if len(module.unseal(path.read_bytes())) != SMALL_OBJECT:
                raise RuntimeError(f"{path.name}: short")

    return measured(read, len(paths))


def _count(facts: Facts, part: str) -> int:
    return max(1, int(facts["count"]) // int(part))

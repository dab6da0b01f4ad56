"""Memory: where what is measured lies, blocks of it and files in such, and by how much a process grows."""

from __future__ import annotations

import gc
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.case import MIB

_SHARED = Path("/dev/shm")  # noqa: S108  # nosec B108  # own folder
#: Where files go, in memory where there is some mounted: a disk would be measured too.
SHARED = _SHARED if _SHARED.is_dir() else None


def block_of_memory(size: int = MIB) -> memoryview:
    """Return random bytes at the start of a page, where they are in every process.

    A large `bytearray` may lie 16 bytes behind one, and a kernel that copies a page there does so at a third of the
    speed (4 KiB aliasing): whether it does would be what is measured.
    """
    memory = mmap.mmap(-1, size)
    memory[:] = os.urandom(size)
    return memoryview(memory)


def write_blocks(file: Any, size: int, block: bytes | memoryview) -> None:
    """Write a block of 1 MiB again and again, `size` bytes in all."""
    for _ in range(size // MIB):
        file.write(block)


def read_blocks(file: Any, size: int, block: memoryview) -> None:
    """Read a file to its end into the same memory; raise unless it has `size` bytes."""
    found = 0
    while count := file.readinto(block):
        found += count
    if found != size:
        raise RuntimeError(f"{found} bytes of {size} were read")


def peak_of(work: Callable[[], None]) -> float:
    """Return by how many bytes the resident memory of this process grew at most."""
    gc.collect()
    # proc(5): 5 sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status: no {field}")
    return int(found[1]) * 1024

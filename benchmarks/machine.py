"""What was measured on: the machine, the versions, and how quiet it was."""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import statistics
import subprocess  # nosec B404  # asks versions
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.case import Measured, measured
from benchmarks.runner import PEERS

MIB = 2**20
_FLAGS = ("aes", "vaes", "pclmulqdq", "vpclmulqdq", "avx2", "avx512f", "sha_ni", "sha2")
_PACKAGES = [
    "sovstore",
    "cryptography",
    "fsspec",
    "s3fs",
    "aiobotocore",
    "adlfs",
    "azure-storage-blob",
    "obstore",
    "pyarrow",
    "pandas",
    "distributed",
]
_PROGRAMS = {"rclone": ["rclone", "version"], "ceph": ["ceph", "--version"], "haproxy": ["haproxy", "-v"]}


def block_of_memory(size: int = MIB) -> memoryview:
    """Return random bytes at the start of a page, where they are in every process.

    A large `bytearray` may lie 16 bytes behind one, and a kernel that copies a page there does so at a third of the
    speed (4 KiB aliasing): whether it does would be what is measured.
    """
    memory = mmap.mmap(-1, size)
    memory[:] = os.urandom(size)
    return memoryview(memory)


def ceiling(facts: Mapping[str, Any]) -> Measured:
    """Encrypt ``facts["size"]`` bytes with one thread of AES-256-GCM, 1 MiB at a time, into the same memory."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    block, out = block_of_memory(), block_of_memory(MIB + 16)
    aead, nonce, blocks = AESGCM(os.urandom(32)), bytes(12), facts["size"] // MIB

    def encrypt() -> None:
        for _ in range(blocks):
            aead.encrypt_into(nonce, block, None, out)

    return measured(encrypt, blocks)


def noise(speeds: Sequence[float]) -> dict[str, Any]:
    """Return the ceiling's speeds over a run, in MiB/s, and how far they lie apart: (most - least) / median."""
    apart = (max(speeds) - min(speeds)) / statistics.median(speeds) if speeds else None
    return {"ceiling_mib_per_s": list(speeds), "spread": apart}


def machine() -> dict[str, Any]:
    """Return what there is to know about the processor, the memory and the system."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "flags": {flag: flag in known for flag in _FLAGS},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, Any]:
    """Return the versions of what may be measured, and those of each peer's environment."""
    own = {found.name: found.version for found in metadata.distributions() if found.name in _PACKAGES}
    programs = {name: _version(command) for name, command in _PROGRAMS.items()}
    peers = {folder.name: _installed(folder) for folder in sorted(PEERS.glob("*"))}
    return {"packages": dict(sorted(own.items())), "programs": programs, "peers": peers}


def _installed(environment: Path) -> dict[str, str]:
    places = [str(place) for place in environment.glob("lib/python3*/site-packages")]
    return {found.name: found.version for found in metadata.distributions(path=places)}


def _version(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # nosec B603  # our own
    return done.stdout.partition("\n")[0].strip()

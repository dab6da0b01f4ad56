"""What was measured on: the machine, the versions, and how quiet it was."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess  # nosec B404  # asks versions
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.runner import PEERS

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


def noise(speeds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return what the ceiling's speeds over a run, in MiB/s, of one thread and of two, say of the machine.

    Those of one thread; how far they lie apart, (most - least) / median; and by how many times two were as fast: by
    about 2 when both had a core of their own.
    """
    ones = [one for one, _ in speeds]
    apart = (max(ones) - min(ones)) / statistics.median(ones) if ones else None
    return {"ceiling_mib_per_s": ones, "spread": apart, "two_threads": [two / one for one, two in speeds]}


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

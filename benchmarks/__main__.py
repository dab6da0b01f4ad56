"""Streaming through a local store, beside one thread of AES-256-GCM on the same bytes.

Run ``python -m benchmarks``. Each round measures every case once, so that a machine that slows down slows all of them;
a ratio is the median of the rounds' ratios. CPU seconds are of this process, all threads.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fsspec.asyn import get_loop, sync

from sovstore import config, store_creation
from sovstore.filesystem import SovFileSystem

MIB = 2**20


def _store(folder: Path) -> SovFileSystem:
    """Return a new local store below `folder`."""
    passphrase, file = folder / "passphrase", folder / "sovstore.toml"
    passphrase.write_text("of the benchmark")
    settings = {
        "provider": "local",
        "root": "host",
        "kek": f"keyfile:{folder}/kek",
        "passphrase_file": "passphrase",  # nosec B105  # the name of a file
        "backup": "backup",
    }
    config.write_settings(file, "bench", settings)
    described = config.load(file).store("bench")

    async def make() -> None:
        await store_creation.create(
            described, config.access(described), lambda made: config.write_settings(file, "bench", made)
        )

    sync(get_loop(), make)
    fs = SovFileSystem("bench", config=str(file))
    fs.ls("")
    return fs


def _measure(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _cases(fs: SovFileSystem, plain: Path, size: int) -> dict[str, Callable[[], None]]:
    block, out = bytearray(os.urandom(MIB)), bytearray(MIB + 16)
    aead, nonce = AESGCM(os.urandom(32)), bytes(12)

    def ceiling() -> None:
        for _ in range(size // MIB):
            aead.encrypt_into(nonce, block, None, out)

    def write() -> None:
        with fs.open("object", "wb") as file:
            for _ in range(size // MIB):
                file.write(block)

    def read() -> None:
        with fs.open("object", "rb") as file:
            while file.readinto(block):
                pass

    def plain_write() -> None:
        with plain.open("wb") as file:
            for _ in range(size // MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    def plain_read() -> None:
        with plain.open("rb") as file:
            while file.readinto(block):
                pass

    return {
        "AES-256-GCM, one thread, in memory": ceiling,
        "plain file, write and sync": plain_write,
        "plain file, read": plain_read,
        "sov://, write": write,
        "sov://, read": read,
    }


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the object")
    parser.add_argument("--rounds", type=int, default=5)
    # Memory, where there is some mounted: a disk would be what is measured.
    shared = Path("/dev/shm")  # noqa: S108  # nosec B108  # a folder of our own is made in it
    parser.add_argument("--folder", default=shared if shared.is_dir() else None, help="where the store lies")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        os.environ["XDG_STATE_HOME"] = str(folder)
        cases = _cases(_store(folder), folder / "plain", args.mib * MIB)
        results: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case, work in cases.items():
                results[case].append(_measure(work))
    ceiling = next(iter(results.values()))
    print(f"{args.mib} MiB, {args.rounds} rounds, {os.cpu_count()} cores, in {args.folder or 'a temporary folder'}\n")
    print("| case | MiB/s (median) | CPU s/GiB | times the ceiling (median; least to most) |\n|---|---|---|---|")
    for case, rows in results.items():
        speed = statistics.median(args.mib / wall for wall, _ in rows)
        cpu = statistics.median(cpu / args.mib * 1024 for _, cpu in rows)
        ratios = sorted(c[0] / r[0] for c, r in zip(ceiling, rows, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {case} | {speed:.0f} | {cpu:.2f} | {spread} |")


if __name__ == "__main__":
    main()

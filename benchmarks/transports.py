"""The SDK drivers of S3 and Azure Blob beside the transport obstore, on the real servers of the tests.

Run ``python -m benchmarks.transports``. Each round measures every case once, with one transport straight after the
other; a ratio is the median of the rounds' ratios. CPU seconds are of this process, all threads: the servers, which
share the machine, are not in them, but are in the wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess  # nosec B404  # for a fresh process of our own
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fsspec.asyn import get_loop, sync

from sovstore.backends.base import Backend, Place
from sovstore.backends.providers import catalogue
from sovstore.backends.registry import open_backend
from tests.servers import azurite, ceph
from tests.servers.facts import CEPH

MIB = 2**20
SMALL, LARGE, RANGE = 16 * 1024, 64 * MIB, 8 * MIB
#: Small operations at the same time, and ranges of one large object.
AT_ONCE, RANGES_AT_ONCE = 16, 3
TRANSPORTS = (None, "obstore")

Case = Callable[[Backend, int], Awaitable[None]]


async def _put(backend: Backend, name: str, data: memoryview, *, size: int | None = None) -> None:
    upload = await backend.upload(name, size=size)
    for start in range(0, len(data), MIB):
        await upload.write(data[start : start + MIB])
    await upload.commit()


async def _many(count: int, at_once: int, one: Callable[[int], Awaitable[object]]) -> None:
    limit = asyncio.Semaphore(at_once)

    async def limited(number: int) -> None:
        async with limit:
            await one(number)

    await asyncio.gather(*(limited(number) for number in range(count)))


_DATA = memoryview(os.urandom(LARGE))


async def put_small(backend: Backend, count: int) -> None:
    """Write `count` objects of 16 KiB."""
    await _many(count, AT_ONCE, lambda n: _put(backend, f"small/{n:05d}", _DATA[:SMALL]))


async def get_small(backend: Backend, count: int) -> None:
    """Read them."""

    async def one(number: int) -> None:
        data = await backend.read(f"small/{number:05d}", 0, SMALL)
        if bytes(data) != bytes(_DATA[:SMALL]):
            raise AssertionError

    await _many(count, AT_ONCE, one)


async def stat_small(backend: Backend, count: int) -> None:
    """Look at them one by one."""
    await _many(count, AT_ONCE, lambda n: backend.stat(f"small/{n:05d}"))


async def put_large(backend: Backend, count: int) -> None:
    """Write an object of 64 MiB `count` times."""
    for _ in range(count):
        await _put(backend, "large", _DATA, size=LARGE)


async def get_large(backend: Backend, count: int) -> None:
    """Read it in ranges of 8 MiB."""

    async def one(number: int) -> None:
        data = await backend.read("large", number * RANGE, (number + 1) * RANGE)
        if len(data) != RANGE:
            raise AssertionError

    for _ in range(count):
        await _many(LARGE // RANGE, RANGES_AT_ONCE, one)


def _measure(case: Case, backend: Backend, count: int) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    sync(get_loop(), case, backend, count)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _first_request() -> None:
    """Print what the first read costs in a fresh process: MiB of memory, CPU seconds with all imports."""
    values = json.loads(sys.argv[2])
    name = values.pop("provider")
    before, cpu = _resident(), time.process_time()
    backend = open_backend(Place(CEPH if name == CEPH.name else catalogue()[name], **values))
    sync(get_loop(), backend.read, "small/00000", 0, SMALL)
    print(json.dumps([(_resident() - before) / MIB, time.process_time() - cpu]))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _start(place: Place) -> tuple[float, float]:
    keys = ("root", "endpoint", "ca_file", "transport")
    values = {"provider": place.provider.name, **{key: getattr(place, key) for key in keys}}
    command = [sys.executable, "-m", "benchmarks.transports", "first", json.dumps(values)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # nosec B603  # our own
    memory, cpu = json.loads(done.stdout)
    return memory, cpu


def _places(stack: ExitStack) -> dict[str, Place]:
    """Start the servers, and return where they are."""
    s3, azure = stack.enter_context(ceph.start()), stack.enter_context(azurite.start())
    os.environ |= {
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AZURE_STORAGE_CONNECTION_STRING": azure.connection_string,
    }
    s3.create_bucket("bench")
    azure.create_container("bench")
    plain = Place(CEPH, "bench/root", endpoint=s3.endpoint_url)
    return {
        "Ceph, http": plain,
        "Ceph, TLS": replace(plain, endpoint=s3.tls_endpoint_url, ca_file=str(s3.ca_file)),
        "Azurite, http": Place(catalogue()["azurite"], "bench/root"),
    }


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _report(where: str, what: str, rows: list[list[tuple[float, float]]], per: float) -> None:
    """Print one row: `rows` are of the two transports, and `per` makes CPU seconds those of the unit."""
    sdk, fast = rows
    cpu = [statistics.median(cpu for _, cpu in side) * per for side in rows]
    saved = [a[1] / b[1] for a, b in zip(sdk, fast, strict=True)]
    faster = [a[0] / b[0] for a, b in zip(sdk, fast, strict=True)]
    print(f"| {where} | {what} | {cpu[0]:.2f} | {cpu[1]:.2f} | {_middle(saved)} | {_middle(faster)} |", flush=True)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", type=int, default=500, help="small operations in one round")
    parser.add_argument("--large", type=int, default=4, help="objects of 64 MiB in one round")
    args = parser.parse_args()
    cases: dict[str, tuple[Case, int, float]] = {
        "put 16 KiB": (put_small, args.small, 1000 / args.small),
        "get 16 KiB": (get_small, args.small, 1000 / args.small),
        "stat": (stat_small, args.small, 1000 / args.small),
        "put 64 MiB": (put_large, args.large, 1024 * MIB / (args.large * LARGE)),
        "get 64 MiB": (get_large, args.large, 1024 * MIB / (args.large * LARGE)),
    }
    with ExitStack() as stack:
        places = _places(stack)
        print(f"{args.rounds} rounds, {os.cpu_count()} cores shared with the servers\n")
        print("CPU s: per 1,000 operations (small), per GiB (64 MiB). Ratios: SDK / obstore, median (least to most).\n")
        print(
            "| host | case | SDK CPU s | obstore CPU s | CPU ratio | wall ratio |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for where, place in places.items():
            _compare(where, place, cases, args.rounds)
        print("\n| host | transport | first read: MiB | CPU s, with imports |\n|---|---|---|---|")
        for where, place in places.items():
            for transport in TRANSPORTS:
                starts = [_start(replace(place, transport=transport)) for _ in range(args.rounds)]
                memory, cpu = (statistics.median(values) for values in zip(*starts, strict=True))
                print(f"| {where} | {transport or 'SDK'} | {memory:.0f} | {cpu:.2f} |", flush=True)


def _compare(where: str, place: Place, cases: dict[str, tuple[Case, int, float]], rounds: int) -> None:
    backends = [open_backend(replace(place, transport=transport)) for transport in TRANSPORTS]
    results: dict[str, list[list[tuple[float, float]]]] = {case: [[], []] for case in cases}
    for number in range(rounds + 1):
        for case, (work, count, _) in cases.items():
            # Taking turns at being first.
            for side in (0, 1) if number % 2 else (1, 0):
                measured = _measure(work, backends[side], count)
                # The first round warms both up: imports, connections, the server's pools.
                if number:
                    results[case][side].append(measured)
    for case, (_, _, per) in cases.items():
        _report(where, case, results[case], per)
    for backend in backends:
        sync(get_loop(), backend.close)


if __name__ == "__main__":
    if sys.argv[1:2] == ["first"]:
        _first_request()
    else:
        main()

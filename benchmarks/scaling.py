"""What more threads, processes and Dask workers bring, and what a listing costs as a store grows.

All on a local store in memory: what is measured is the client. The many objects of a growing store are hard links of
one, which is enough for a listing: its entries are real, and each has a sealed name of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.case import MIB, Case, Contender, Measured, cpu, measured
from benchmarks.memory import peak_of
from benchmarks.place import STORE, Facts, Sizes, local_store, open_local
from sovstore.filesystem import SovFileSystem

#: Sizes of a trial.
SMALL = {"scaling_mib": 2, "dask_rows": 8000, "growth_objects": 2000}
#: Objects of one folder of a growing store: a page of a listing of S3.
PAGE = 1000
#: Listed one after the other.
_PAGES = 20
#: How many times fewer objects than the largest part of a growing store has.
_GROWN = (1000, 100, 10, 1)
#: Parquet objects that Dask reads.
_PARTS = 8


# Threads and processes


def _stream(fs: SovFileSystem, facts: Facts, number: int) -> None:
    """Write an object by blocks of 1 MiB, or read it."""
    block = bytearray(MIB)
    if facts["what"] == "write":
        with fs.open(f"new/{number}", "wb") as file:
            for _ in range(facts["mib"]):
                file.write(block)
        return
    with fs.open(f"there/{number}", "rb") as file:
        while file.readinto(block):
            pass


def _in_threads(count: int, facts: Facts) -> Measured:
    fs = open_local(facts)
    threads = [threading.Thread(target=_stream, args=(fs, facts, number)) for number in range(count)]

    def work() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return measured(work, count * facts["mib"])


def _child(facts: Facts, number: int, ready: Any, results: Any) -> None:
    fs = open_local(facts)
    ready.wait()
    results.put(measured(lambda: _stream(fs, facts, number), facts["mib"]))


def _in_processes(count: int, facts: Facts) -> Measured:
    """Let processes begin at the same time; the last one to end counts."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    children = [context.Process(target=_child, args=(facts, number, ready, results)) for number in range(count)]
    for child in children:
        child.start()
    found = [results.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    return Measured(
        wall_s=max(one.wall_s for one in found),
        cpu_s=sum(one.cpu_s for one in found),
        amount=sum(one.amount for one in found),
        system_s=sum(one.system_s for one in found),
    )


one_thread, two_threads = (functools.partial(_in_threads, count) for count in (1, 2))
one_process, two_processes = (functools.partial(_in_processes, count) for count in (1, 2))


@contextlib.contextmanager
def _streams(what: str, sizes: Sizes) -> Iterator[Facts]:
    with local_store() as local:
        facts = {**local, "mib": sizes.get("scaling_mib", 256), "what": what}
        fs, block = open_local(facts), os.urandom(MIB)
        for number in range(2 if what == "read" else 0):
            with fs.open(f"there/{number}", "wb") as file:
                for _ in range(facts["mib"]):
                    file.write(block)
        yield facts


# Dask


def _on_dask(count: int, facts: Facts) -> Measured:
    """Read Parquet by workers of one thread each, which have opened the store before."""
    import dask.dataframe

    # It has no types.
    distributed: Any = importlib.import_module("distributed")
    os.environ.update(facts["environment"])
    options = {"n_workers": count, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        frame = dask.dataframe.read_parquet(f"sov://{STORE}/table", storage_options={"config": facts["config"]})
        total = frame["value"].sum()
        # The workers load what they need, and open the store.
        total.compute()
        before = client.run(cpu)
        done = measured(total.compute, facts["rows"])
        spent = [(now[0] - before[worker][0], now[1] - before[worker][1]) for worker, now in client.run(cpu).items()]
        cpu_s, system_s = (sum(each) for each in zip(*spent, strict=True))
        return replace(done, cpu_s=done.cpu_s + cpu_s, system_s=done.system_s + system_s)


one_worker, two_workers = (functools.partial(_on_dask, count) for count in (1, 2))


@contextlib.contextmanager
def _parquet(sizes: Sizes) -> Iterator[Facts]:
    import numpy as np
    import pandas as pd

    with local_store() as local:
        facts = {**local, "rows": sizes.get("dask_rows", 8_000_000) // _PARTS * _PARTS}
        fs, draw = open_local(facts), np.random.default_rng(7)
        for number in range(_PARTS):
            rows = facts["rows"] // _PARTS
            frame = pd.DataFrame({"person_id": np.arange(rows), "value": draw.random(rows)})
            with fs.open(f"table/part.{number}.parquet", "wb") as file:
                frame.to_parquet(file)
        yield facts


# A growing store


def _grown(call: str, part: int, facts: Facts) -> Measured:
    """List one part of the store, of so many times fewer objects than there are in the largest."""
    fs, count = open_local(facts), max(1, facts["objects"] // part)
    page = min(count, PAGE)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "find": (lambda: fs.find(_folder(part)), count),
        "du": (lambda: fs.du(_folder(part)), count),
        "ls": (lambda: [fs.ls(f"{_folder(part)}/00000") for _ in range(_PAGES)], page * _PAGES),
    }
    work, amount = calls[call]
    fs.find(_folder(_GROWN[0]))
    found: list[Measured] = []
    peak = peak_of(lambda: found.append(measured(work, amount)))
    return replace(found[0], extra={"peak_bytes": peak})


def _folder(part: int) -> str:
    return f"part-{part}"


@contextlib.contextmanager
def _growing(call: str, sizes: Sizes) -> Iterator[Facts]:
    with local_store() as local:
        facts = {**local, "objects": sizes.get("growth_objects", 1_000_000), "call": call}
        fs = open_local(facts)
        fs.pipe_file("object", bytes(4096))
        for part in _GROWN:
            count = max(1, facts["objects"] // part)
            paths = [f"{_folder(part)}/{number // PAGE:05d}/{number:07d}" for number in range(count)]
            _link(fs, "object", paths)
        yield facts


def _link(fs: SovFileSystem, source: str, paths: Sequence[str]) -> None:
    """Make an object appear at many paths: it could be opened at none of these, but is listed like any other."""

    async def names() -> list[str]:
        return [await fs.store.name(path) for path in (source, *paths)]

    root = Path(fs.store.config.root)
    first, *others = fs._sync(names)
    folder = None
    for name in others:
        target = root / name
        if target.parent != folder:
            folder = target.parent
            folder.mkdir(parents=True, exist_ok=True)
        os.link(root / first, target)


find_1000, find_100, find_10, find_1 = (functools.partial(_grown, "find", part) for part in _GROWN)
ls_1000, ls_100, ls_10, ls_1 = (functools.partial(_grown, "ls", part) for part in _GROWN)
du_1000, du_100, du_10, du_1 = (functools.partial(_grown, "du", part) for part in _GROWN)


# The cases


def _who(names: Mapping[str, str]) -> list[Contender]:
    return [Contender(name, f"{__name__}:{function}") for function, name in names.items()]


def cases() -> Sequence[Case]:
    """Return the cases of this module."""
    threads = {"one_thread": "1 thread", "two_threads": "2 threads"}
    processes = {"one_process": "1 process", "two_processes": "2 processes"}
    found = [
        Case(
            f"{kind}-{what}",
            f"{what} one object of scaling_mib (256) MiB in each of 1 and 2 {kind}, local store",
            "MiB",
            _who(names),
            functools.partial(_streams, what),
        )
        for kind, names in (("threads", threads), ("processes", processes))
        for what in ("write", "read")
    ]
    found.append(
        Case(
            "dask",
            f"sum over {_PARTS} Parquet objects of dask_rows (8 million) rows, workers of one thread, local store",
            "rows",
            _who({"one_worker": "1 worker", "two_workers": "2 workers"}),
            _parquet,
        )
    )
    titles = {"find": "list all", "ls": "list a page of 1,000", "du": "sum up the sizes"}
    found += [
        Case(
            f"growth-{call}",
            f"{title} of N objects by {call}, N being growth_objects (1 million), local store of hard links",
            "objects",
            _who({f"{call}_{part}": "N" if part == 1 else f"N / {part:,}" for part in _GROWN}),
            functools.partial(_growing, call),
        )
        for call, title in titles.items()
    ]
    return found


CASES: Sequence[Case] = cases()

"""Work on one machine, with no server: a store on memory, beside plain files, the cipher alone, and the peers.

Everything lies on memory where there is some mounted: a disk would be what is measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess  # nosec B404  # fresh interpreters
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bare import CEILING
from benchmarks.case import MIB, Case, Contender, Measured, Skipped, measured
from benchmarks.memory import block_of_memory, peak_of, read_blocks, write_blocks
from benchmarks.place import Facts, Sizes, local_store, open_local
from sovstore.filesystem import SovFileSystem
from sovstore.format.body import BodySealer
from sovstore.format.header import seal_header
from sovstore.secret import Secret

SMALL_OBJECT = 4096
#: For a trial.
SMALL = {
    "stream_mib": 16,
    "random_mib": 16,
    "random_reads": 500,
    "seals": 500,
    "small_objects": 200,
    "memory_mib": 64,
    "imports": 1,
}
_STEPS_MIB = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


# One large object


def _stream(sizes: Sizes) -> contextlib.AbstractContextManager[Facts]:
    return local_store(size=sizes.get("stream_mib", 1024) * MIB)


def write_sov(facts: Facts) -> Measured:
    """Measure `SovFileSystem.open` and `write`."""
    fs, block = open_local(facts), block_of_memory()

    def write() -> None:
        with fs.open("object", "wb") as file:
            write_blocks(file, facts["size"], block)

    done = measured(write, facts["size"] / MIB)
    # Each contender writes where nothing was, and leaves the memory to the next.
    fs.rm("object")
    return done


def write_plain(facts: Facts) -> Measured:
    """Measure the same of a plain file."""
    path, block = Path(facts["folder"], "plain"), block_of_memory()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            write_blocks(file, facts["size"], block)

    done = measured(write, facts["size"] / MIB)
    path.unlink()
    return done


def read_sov(facts: Facts) -> Measured:
    """Measure `SovFileSystem.open` and `readinto`."""
    fs, block = open_local(facts), block_of_memory()
    _fill_sov(fs, facts["size"])

    def read() -> None:
        with fs.open("object", "rb") as file:
            read_blocks(file, facts["size"], block)

    return measured(read, facts["size"] / MIB)


def read_plain(facts: Facts) -> Measured:
    """Measure the same of a plain file."""
    path, block = _fill_plain(facts), block_of_memory()

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            read_blocks(file, facts["size"], block)

    return measured(read, facts["size"] / MIB)


def _fill_sov(fs: SovFileSystem, size: int) -> None:
    """Write the object unless an earlier round did."""
    if not fs.exists("object"):
        with fs.open("object", "wb") as file:
            write_blocks(file, size, os.urandom(MIB))


def _fill_plain(facts: Facts) -> Path:
    path = Path(facts["folder"], "plain")
    if not path.exists():
        with path.open("wb") as file:
            write_blocks(file, facts["size"], os.urandom(MIB))
    return path


# Reads all over it


def _random(read_size: int, sizes: Sizes) -> contextlib.AbstractContextManager[Facts]:
    size = sizes.get("random_mib", 1024) * MIB
    # Steps of the golden ratio: all over the object, none twice, and the same for every contender.
    step, room = int(size * 0.6180339887), size - read_size
    offsets = [number * step % room for number in range(sizes.get("random_reads", 5000))]
    return local_store(size=size, read_size=read_size, offsets=offsets)


def _reads(file: Any, facts: Facts) -> Measured:
    def read() -> None:
        for offset in facts["offsets"]:
            file.seek(offset)
            if len(file.read(facts["read_size"])) != facts["read_size"]:
                raise RuntimeError(f"short read at {offset}")

    return measured(read, len(facts["offsets"]))


def random_sov(facts: Facts) -> Measured:
    """Measure `seek` and `read` of an open handle."""
    fs = open_local(facts)
    _fill_sov(fs, facts["size"])
    with fs.open("object", "rb") as file:
        return _reads(file, facts)


def random_plain(facts: Facts) -> Measured:
    """Measure the same of a plain file."""
    with _fill_plain(facts).open("rb", buffering=0) as file:
        return _reads(file, facts)


# Small objects


def _small(sizes: Sizes) -> contextlib.AbstractContextManager[Facts]:
    return local_store(count=sizes.get("small_objects", 10_000))


def _fresh(facts: Facts) -> dict[str, bytes]:
    """Return new objects in a folder of this process."""
    return {f"{os.getpid()}/{number:06d}": os.urandom(SMALL_OBJECT) for number in range(facts["count"])}


def small_write_sov(facts: Facts) -> Measured:
    """Measure `SovFileSystem.pipe`."""
    fs, values = open_local(facts), _fresh(facts)
    done = measured(lambda: fs.pipe(values), len(values))
    fs.rm(str(os.getpid()), recursive=True)
    return done


def small_write_plain(facts: Facts) -> Measured:
    """Measure `write_bytes` of a path each."""
    values = {Path(facts["folder"], "plain", name): data for name, data in _fresh(facts).items()}
    folder = Path(facts["folder"], "plain", str(os.getpid()))
    folder.mkdir(parents=True)

    def write() -> None:
        for path, data in values.items():
            path.write_bytes(data)

    done = measured(write, len(values))
    shutil.rmtree(folder)
    return done


def small_read_sov(facts: Facts) -> Measured:
    """Measure `SovFileSystem.cat` of a list."""
    fs = open_local(facts)
    paths = _small_sov(fs, facts)
    return measured(lambda: _complete(fs.cat(paths), paths), len(paths))


def small_read_plain(facts: Facts) -> Measured:
    """Measure `read_bytes` of a path each."""
    paths = list(_small_plain(facts).iterdir())
    return measured(lambda: _complete({path: path.read_bytes() for path in paths}, paths), len(paths))


def small_list_sov(facts: Facts) -> Measured:
    """Measure `SovFileSystem.find` with details."""
    fs = open_local(facts)
    paths = _small_sov(fs, facts)
    fs.invalidate_cache()
    return measured(lambda: _complete(fs.find("small", detail=True), paths), len(paths))


def small_list_plain(facts: Facts) -> Measured:
    """Measure `scandir`, with sizes."""
    folder = _small_plain(facts)

    def find() -> None:
        with os.scandir(folder) as found:
            _complete({entry.name: entry.stat().st_size for entry in found}, range(facts["count"]))

    return measured(find, facts["count"])


def _small_sov(fs: SovFileSystem, facts: Facts) -> list[str]:
    values = {f"small/{number:06d}": bytes(SMALL_OBJECT) for number in range(facts["count"])}
    if not fs.exists("small"):
        fs.pipe(values)
    return list(values)


def _small_plain(facts: Facts) -> Path:
    folder = Path(facts["folder"], "small")
    if not folder.exists():
        folder.mkdir()
        for number in range(facts["count"]):
            (folder / f"{number:06d}").write_bytes(bytes(SMALL_OBJECT))
    return folder


def _complete(found: Mapping[Any, Any], asked: Sequence[Any]) -> None:
    if len(found) != len(asked):
        raise RuntimeError(f"{len(found)} objects of {len(asked)} arrived")


# In memory


@contextlib.contextmanager
def _seals(sizes: Sizes) -> Iterator[Facts]:
    yield {"count": sizes.get("seals", 20_000)}


def seal_sov(facts: Facts) -> Measured:
    """Measure a fresh DEK, the header that binds it to a path, and the body."""
    store_key, store_id, key_id = Secret(os.urandom(32)), os.urandom(16), os.urandom(16)
    block, out = os.urandom(SMALL_OBJECT), bytearray(BodySealer.room(SMALL_OBJECT))

    def seal() -> None:
        for number in range(facts["count"]):
            dek = Secret(os.urandom(32))
            header = seal_header(store_key, store_id, key_id, f"folder/{number}", dek)
            sealer = BodySealer(dek)
            size = sealer.update_into(block, out)
            b"".join([header, memoryview(out)[:size], sealer.finalize()])

    return measured(seal, facts["count"])


def seal_bare(facts: Facts) -> Measured:
    """Measure AES-256-GCM under one key, with the path as AAD."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    aead, block = AESGCM(os.urandom(32)), os.urandom(SMALL_OBJECT)

    def seal() -> None:
        for number in range(facts["count"]):
            nonce = os.urandom(12)
            nonce + aead.encrypt(nonce, block, f"folder/{number}".encode())

    return measured(seal, facts["count"])


# Memory


def _memory(sizes: Sizes) -> contextlib.AbstractContextManager[Facts]:
    return local_store(most_mib=sizes.get("memory_mib", 8192))


def memory(facts: Facts, step_mib: str) -> Measured:
    """Measure the peaks while an object of `step_mib` MiB is written, and while it is read."""
    size_mib = int(step_mib)
    if size_mib > facts["most_mib"]:
        raise Skipped(f"memory_mib is {facts['most_mib']}")
    fs, block, into = open_local(facts), block_of_memory(), block_of_memory()
    path, peaks = f"{size_mib}", dict[str, float]()

    def write() -> None:
        with fs.open(path, "wb") as file:
            for _ in range(size_mib):
                file.write(block)

    def read() -> None:
        with fs.open(path, "rb") as file:
            read_blocks(file, size_mib * MIB, into)

    def both() -> None:
        peaks.update(write_bytes=peak_of(write), read_bytes=peak_of(read))
        peaks["peak_bytes"] = max(peaks.values())

    done = measured(both, 2 * size_mib)
    fs.rm_file(path)
    return replace(done, extra=peaks)


# Import


@contextlib.contextmanager
def _imports(sizes: Sizes) -> Iterator[Facts]:
    yield {"count": sizes.get("imports", 5)}


def importing(facts: Facts, package: str) -> Measured:
    """Measure fresh interpreters that import a package; ``sys``, which is there, for none."""
    # By its own clock too: the start of the interpreter is not what is imported.
    code = f"import time; start = time.perf_counter(); import {package}; print(time.perf_counter() - start)"
    taken: list[float] = []

    def start() -> None:
        for _ in range(facts["count"]):
            done = subprocess.run(  # noqa: S603  # nosec B603  # our own
                [sys.executable, "-c", code], capture_output=True, check=True
            )
            taken.append(float(done.stdout))

    done = measured(start, facts["count"])
    return replace(done, extra={"import_s": sum(taken) / len(taken)})


_PACKAGES = {"no import": "sys", **{name: name for name in ("sovstore", "fsspec", "cryptography", "s3fs")}}


# The cases

#: What the environment of each is called.
_PEERS = {
    "Tink": "tink",
    "AWS Encryption SDK": "aws_encryption_sdk",
    "Azure client-side encryption": "azure_storage_blob",
    "Crypt4GH": "crypt4gh",
    "pyrage": "pyrage",
    "fsspec-encrypted": "fsspec_encrypted",
}
#: These do one eighth: the first is slow, the other holds all of it in memory, several times.
_PARTS = {"AWS Encryption SDK": 8, "fsspec-encrypted": 8}


def _ours(function: str, plain: str = "plain file") -> list[Contender]:
    return [Contender(plain, f"{__name__}:{function}_plain"), Contender("sovstore", f"{__name__}:{function}_sov")]


def _peers(function: str, *names: str) -> list[Contender]:
    """Return those peers that can do the work: all that have a module of their own, unless named."""
    work = "benchmarks.peers.work"
    found = {name: _PEERS[name] for name in names or _PEERS}
    return [
        Contender(name, f"{work}:{function}:{peer}{f':{_PARTS[name]}' if name in _PARTS else ''}", peer)
        for name, peer in found.items()
    ]


def _streams(what: str, cipher: str) -> list[Contender]:
    plain, sov = _ours(what)
    alone = Contender(f"{cipher} alone", f"benchmarks.bare:{cipher}")
    bare = Contender("two bare threads", f"benchmarks.bare:two_threads_{what}")
    return [CEILING, alone, plain, bare, sov, *_peers(f"stream_{what}"), _rclone(f"stream_{what}")]


def _rclone(function: str) -> Contender:
    return Contender("rclone crypt", f"benchmarks.peers.rclone:{function}")


CASES: Sequence[Case] = (
    Case(
        "stream-write",
        "write one object of stream_mib (1,024) MiB, 1 MiB at a time, on memory",
        "MiB",
        _streams("write", "sealing"),
        _stream,
        goals={"sovstore": 0.60},
    ),
    Case(
        "stream-read",
        "read one object of stream_mib (1,024) MiB, 1 MiB at a time, on memory",
        "MiB",
        _streams("read", "opening"),
        _stream,
        goals={"sovstore": 0.70},
    ),
    *(
        Case(
            f"random-{label}",
            f"read {read_size // 1024} KiB random_reads (5,000) times, in an open object of random_mib (1,024) MiB",
            "reads",
            [*_ours("random"), *_peers("random_read", "Crypt4GH")],
            functools.partial(_random, read_size),
            speeds=speeds,
        )
        for label, read_size, speeds in (("64k", 65536, {"sovstore": 10_000.0}), ("4k", 4096, {}))
    ),
    Case(
        "seal-4k",
        "seal 4 KiB in memory, seals (20,000) times, on one core",
        "seals",
        [
            Contender("AES-256-GCM", f"{__name__}:seal_bare"),
            Contender("sovstore", f"{__name__}:seal_sov"),
            *_peers("seal"),
        ],
        _seals,
        speeds={"sovstore": 20_000},
    ),
    *(
        Case(
            f"small-{what}",
            f"{what} small_objects (10,000) objects of 4 KiB, on memory",
            "objects",
            [
                *_ours(f"small_{what}", "plain files"),
                *(_peers(f"small_{what}") if what != "list" else []),
                _rclone(f"small_{what}"),
            ],
            _small,
        )
        for what in ("write", "read", "list")
    ),
    Case(
        "memory",
        "peak of resident memory above an opened store, object by object up to memory_mib (8,192) MiB",
        "MiB",
        [Contender(f"sovstore, {size:,} MiB", f"{__name__}:memory:{size}") for size in _STEPS_MIB],
        _memory,
        limits={f"sovstore, {size:,} MiB": {"peak_bytes": 64 * MIB} for size in _STEPS_MIB},
        plotted="peak_bytes",
    ),
    Case(
        "import",
        "start Python and import a package, imports (5) times",
        "imports",
        [Contender(name, f"{__name__}:importing:{package}") for name, package in _PACKAGES.items()],
        _imports,
        limits={"sovstore": {"import_s": 0.1}},
        plotted="import_s",
    ),
)

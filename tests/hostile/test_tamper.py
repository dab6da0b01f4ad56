"""What a host can do to an object: each change is refused by its own error, before a wrong byte reaches the caller."""

from __future__ import annotations

import asyncio
import io
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from sovstore.backends.base import Backend, Stat
from sovstore.errors import FormatError, IntegrityError, ObjectChangedError, ObjectNotFoundError
from sovstore.filesystem import SovFileSystem
from sovstore.format.body import OVERHEAD, WIRE_CHUNK, plain_size, wire_size
from sovstore.format.header import HEADER
from tests import stress
from tests.hosts import PROVIDERS, Host, Through, cheap_key_files, open_host, temporaries, wrap_backends
from tests.stores import make_store, open_fs

CHUNK = 16384
REFUSED = (IntegrityError, FormatError)
#: A local file that was there before a download: it must survive one that is refused.
OLD = b"what was there before"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def memory(tmp_path: Path) -> Host:
    return open_host(tmp_path, "memory")


@pytest.fixture(params=PROVIDERS)
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    return open_host(tmp_path, request.param)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size}").randbytes(size)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def chunks(raw: bytes) -> list[bytes]:
    """Return what stands in front of the body's chunks, and each of them."""
    return [raw[:OVERHEAD], *(raw[i : i + WIRE_CHUNK] for i in range(OVERHEAD, len(raw), WIRE_CHUNK))]


# Ways to read an object whole. Each returns its bytes.


def _cat(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    return fs.cat_file(path)


def _open(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    with fs.open(path) as file:
        return file.read()


def _open_small_steps(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    with fs.open(path, cache_type="readahead", block_size=5000) as file:
        return b"".join(iter(lambda: file.read(7000), b""))


def _backwards(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    pieces = []
    with fs.open(path) as file:
        for start in range(file.seek(0, os.SEEK_END) // 9000 * 9000, -1, -9000):
            file.seek(start)
            pieces.append(file.read(9000))
    return b"".join(reversed(pieces))


def _get_file(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    target = folder / "new" / "downloaded"
    try:
        fs.get_file(path, str(target))
    except REFUSED:
        assert not target.exists()
        assert temporaries(folder) == []
        raise
    data = target.read_bytes()
    target.unlink()
    return data


def _get_over_old(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    target = folder / "old"
    target.write_bytes(OLD)
    try:
        fs.get(path, str(target))
    except REFUSED:
        assert target.read_bytes() == OLD
        assert temporaries(folder) == []
        raise
    return target.read_bytes()


def _ranges(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    size = fs.size(path) or 0
    starts = list(range(0, size, 10_000)) or [0]
    return b"".join(fs.cat_ranges([path] * len(starts), starts, [s + 10_000 for s in starts], on_error="raise"))


def _returned(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    (data,) = fs.cat_ranges([path], [None], [None])
    if isinstance(data, BaseException):
        raise data
    return data


def _many(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    # `omit` leaves out what is not there. An object that was tampered with is there.
    return fs.cat([path], on_error="omit")[path]


def _async(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    async def read() -> bytes:
        async with await fs.open_async(path) as file:
            pieces = []
            while piece := await file.read(6000):
                pieces.append(piece)
            return b"".join(pieces)

    return fs._sync(read)


def _url(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    with fsspec.open(f"sov://cohortes/{path}", "rb", config=str(fs.store.config.source)) as file:
        return file.read()


def _lines(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    with fs.open(path) as file:
        return b"".join(file)


def _mapper(fs: SovFileSystem, path: str, folder: Path) -> bytes:
    return fs.get_mapper("")[path]


WAYS: dict[str, Callable[[SovFileSystem, str, Path], bytes]] = {
    function.__name__.strip("_"): function
    for function in (
        _cat, _open, _open_small_steps, _backwards, _get_file, _get_over_old, _ranges, _returned, _many, _async,
        _url, _lines, _mapper,
    )
}  # fmt: skip


def _first_ten(fs: SovFileSystem, path: str) -> list[Callable[[], bytes]]:
    def opened() -> bytes:
        with fs.open(path) as file:
            return file.read(10)

    def ranged() -> bytes:
        return fs.cat_ranges([path], [0], [10], on_error="raise")[0]

    return [lambda: fs.cat_file(path, 0, 10), opened, ranged, lambda: fs.head(path, 10)]


def refused_everywhere(host: Host, path: str, folder: Path, *, beginning: bool = True) -> int:
    """Assert that no way of reading gives a byte of the object, and return how many ways there were."""
    calls = [lambda way=way: way(host.fs, path, folder) for way in WAYS.values()]
    if beginning:
        calls += _first_ten(host.fs, path)
    for call in calls:
        with pytest.raises(REFUSED):
            call()
    return len(calls)


def test_the_ways_of_reading_read(host: Host, tmp_path: Path) -> None:
    # Everything below says "refused"; this says that it is not refused for another reason.
    for size in (1, CHUNK, 5 * CHUNK + 7, 20 * CHUNK):
        data = noise(size)
        host.fs.pipe_file("a/b", data)
        for name, way in WAYS.items():
            assert way(host.fs, "a/b", tmp_path) == data, name
        for call in _first_ten(host.fs, "a/b"):
            assert call() == data[:10]
        host.set("a/b", host.get("a/b"))
        assert host.fs.cat_file("a/b") == data
    assert len(WAYS) == 13


def test_every_bit_of_the_header(host: Host) -> None:
    for size in (0, 40_000):
        host.fs.pipe_file("folder/object", noise(size))
        good = host.get("folder/object")
        found = Counter[type]()
        for bit in range(8 * HEADER):
            host.set("folder/object", flipped(good, bit))
            with pytest.raises(REFUSED) as caught:
                host.fs.cat_file("folder/object", 0, 10) if bit % 2 else host.fs.cat_file("folder/object")
            found[type(caught.value)] += 1
        # The magic and the version say whose format it is; everything else is authentic or not.
        assert found == {FormatError: 64, IntegrityError: 960}
        stress.record("Flips", of="header", flips=found.total())
        host.set("folder/object", good)
        assert host.fs.cat_file("folder/object") == noise(size)


def test_ten_thousand_bits_of_bodies(memory: Host) -> None:
    rng, refused = random.Random(1), 0
    for size in (1, 15, 16, 100, 3000, CHUNK - 1, CHUNK, CHUNK + 1, 40_000, 102_400):
        memory.fs.pipe_file("object", noise(size))
        good = memory.get("object")
        for _ in range(1000):
            memory.set("object", flipped(good, rng.randrange(8 * HEADER, 8 * len(good))))
            with pytest.raises(IntegrityError):
                memory.fs.cat_file("object")
            refused += 1
        memory.set("object", good)
        assert memory.fs.cat_file("object") == noise(size)
    assert refused == 10_000
    stress.record("Flips", of="body", flips=refused)


@pytest.mark.parametrize("way", WAYS)
def test_flips_through_every_way_of_reading(host: Host, tmp_path: Path, way: str) -> None:
    rng, refused = random.Random(2), 0
    for size in (1, CHUNK, 90_000, 20 * CHUNK + 5):
        host.fs.pipe_file("object", noise(size))
        good = host.get("object")
        for _ in range(10):
            host.set("object", flipped(good, rng.randrange(8 * HEADER, 8 * len(good))))
            with pytest.raises(IntegrityError):
                WAYS[way](host.fs, "object", tmp_path)
            refused += 1
    assert refused == 40
    stress.record("Flips", of="body, by every way of reading", flips=refused)


def test_flips_and_ranges(memory: Host) -> None:
    """A range is right or refused, and it is refused when a chunk that it needs was changed."""
    rng, refused, size = random.Random(3), 0, 6 * CHUNK + 100
    data = noise(size)
    memory.fs.pipe_file("object", data)
    good = memory.get("object")
    for _ in range(600):
        bit = rng.randrange(8 * OVERHEAD, 8 * len(good))
        memory.set("object", flipped(good, bit))
        changed = (bit // 8 - OVERHEAD) // WIRE_CHUNK
        start = rng.randrange(size)
        end = rng.randrange(start + 1, min(size, start + 3 * CHUNK) + 1)
        needs = {*range(start // CHUNK, (end - 1) // CHUNK + 1), size // CHUNK}
        try:
            assert memory.fs.cat_file("object", start, end) == data[start:end]
            assert changed not in needs
        except IntegrityError:
            assert changed in needs
            refused += 1
    assert 150 < refused < 550
    stress.record("Flips", of="body, read in ranges", flips=600)


@pytest.mark.parametrize("size", [100, 3 * CHUNK, 5 * CHUNK + 1000, 20 * CHUNK + 3])
def test_truncation(host: Host, tmp_path: Path, size: int) -> None:
    host.fs.pipe_file("object", noise(size))
    good = host.get("object")
    ends = {0, 1, 7, 8, 24, HEADER, OVERHEAD, OVERHEAD + 16, len(good) - 1, len(good) - 16, len(good) - 17}
    ends |= set(range(OVERHEAD, len(good) + WIRE_CHUNK, WIRE_CHUNK))
    # An end that a shorter object could have: its length is possible, its last chunk is not one.
    ends |= {wire_size(n * CHUNK + rest) for n in range(size // CHUNK) for rest in (0, 1, 5000)}
    cut = sorted({end + step for end in ends for step in (-1, 0, 1) if 0 <= end + step < len(good)})
    for end in cut:
        host.set("object", good[:end])
        with pytest.raises(REFUSED):
            host.fs.cat_file("object")
        for call in _first_ten(host.fs, "object"):
            with pytest.raises(REFUSED):
                call()
    assert len(cut) >= 3 * (size // CHUNK)
    for end in random.Random(4).sample(cut, 4):
        host.set("object", good[:end])
        assert refused_everywhere(host, "object", tmp_path) == 17


@pytest.mark.parametrize("size", [0, 100, CHUNK - 1, CHUNK, 3 * CHUNK + 9, 17 * CHUNK])
def test_extension(host: Host, tmp_path: Path, size: int) -> None:
    host.fs.pipe_file("object", noise(size))
    good = host.get("object")
    last = good[OVERHEAD + size // CHUNK * WIRE_CHUNK :]
    tails = [b"\0", b"x" * 16, last, bytes(WIRE_CHUNK), good[OVERHEAD : OVERHEAD + WIRE_CHUNK], good]
    tails += [noise(n, seed=5) for n in (1, 15, 17, 1000, WIRE_CHUNK - 1, WIRE_CHUNK, WIRE_CHUNK + 1, 40_000)]
    for tail in tails:
        host.set("object", good + tail)
        with pytest.raises(REFUSED):
            host.fs.cat_file("object")
        for call in _first_ten(host.fs, "object"):
            with pytest.raises(REFUSED):
                call()
    host.set("object", good + tails[-1])
    assert refused_everywhere(host, "object", tmp_path) == 17


def _rearranged(good: bytes, older: bytes) -> dict[str, bytes]:
    """Return what can be made of the chunks of two versions of an object."""
    head, *parts = chunks(good)
    _, *old = chunks(older)
    middle = len(parts) // 2
    swapped = [*parts[:1], parts[2], parts[1], *parts[3:]]
    return {
        "swapped": b"".join([head, *swapped]),
        "first and middle swapped": b"".join([head, parts[middle], *parts[1:middle], parts[0], *parts[middle + 1 :]]),
        "rotated": b"".join([head, *parts[1:-1], parts[0], parts[-1]]),
        "duplicated": b"".join([head, *parts[:2], *parts[1:]]),
        "one in place of another": b"".join([head, parts[0], parts[0], *parts[2:]]),
        "dropped": b"".join([head, parts[0], *parts[2:]]),
        "the first dropped": b"".join([head, *parts[1:]]),
        "the last dropped": b"".join([head, *parts[:-1]]),
        "the last twice": b"".join([head, *parts, parts[-1]]),
        "the last first": b"".join([head, parts[-1], *parts[:-1]]),
        "an older chunk": b"".join([head, parts[0], old[1], *parts[2:]]),
        "an older first chunk": b"".join([head, old[0], *parts[1:]]),
        "an older end": b"".join([head, *parts[:-1], old[-1]]),
        "an older body under the new header": good[:HEADER] + older[HEADER:],
        "the new body under the older header": older[:HEADER] + good[HEADER:],
        "the older chunks under the new prefix": b"".join([head, *old]),
        "an older salt": good[:HEADER] + older[HEADER : HEADER + 24] + good[HEADER + 24 :],
        "zeros in place of a chunk": b"".join([head, parts[0], bytes(WIRE_CHUNK), *parts[2:]]),
    }


#: A change that leaves the first chunk and the last as they are is found when what changed is read.
_INNER = {"swapped", "one in place of another", "an older chunk", "zeros in place of a chunk"}


@pytest.mark.parametrize("size", [4 * CHUNK + 500, 5 * CHUNK, 21 * CHUNK + 16])
def test_chunks_rearranged(host: Host, tmp_path: Path, size: int) -> None:
    host.fs.pipe_file("object", noise(size, seed=6))
    older = host.get("object")
    host.fs.pipe_file("object", noise(size, seed=7))
    good = host.get("object")
    cases = _rearranged(good, older)
    for what, raw in cases.items():
        assert raw not in (good, older), what
        host.set("object", raw)
        refused_everywhere(host, "object", tmp_path, beginning=what not in _INNER)
        if what in _INNER:
            assert host.fs.cat_file("object", 0, 10) == noise(size, seed=7)[:10]
    assert len(cases) == 18


def test_objects_that_change_places(host: Host, tmp_path: Path) -> None:
    fs = host.fs
    fs.pipe({"one": noise(50_000, 1), "two": noise(50_000, 2), "folder/one": noise(50_000, 3), "x": b""})
    raw = {path: host.get(path) for path in ("one", "two", "folder/one", "x")}
    moved = {
        "swapped": {"one": raw["two"], "two": raw["one"]},
        "the same name in another folder": {"one": raw["folder/one"], "folder/one": raw["one"]},
        "header of one on the body of another": {
            "one": raw["one"][:HEADER] + raw["two"][HEADER:],
            "two": raw["two"][:HEADER] + raw["one"][HEADER:],
        },
        "an empty one": {"one": raw["x"], "two": raw["one"][:HEADER] + raw["x"][HEADER:]},
        "at a new name": {"never-written": raw["one"], "one": b""},
    }
    for changes in moved.values():
        for path, data in changes.items():
            host.set(path, data)
            assert refused_everywhere(host, path, tmp_path) == 17
    for path, data in raw.items():
        host.set(path, data)
    assert fs.cat_file("two") == noise(50_000, 2)


@pytest.mark.parametrize("names", ["encrypted", "plain"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_object_of_another_store_under_the_same_kek(tmp_path: Path, provider: str, names: str) -> None:
    ours = open_host(tmp_path, provider, "ours", names=names)
    theirs = open_host(tmp_path, provider, "theirs", names=names)
    assert ours.fs.store.config.kek == theirs.fs.store.config.kek
    for host, seed in ((ours, 1), (theirs, 2)):
        host.fs.pipe_file("object", noise(30_000, seed))
    mine, other = ours.get("object"), theirs.get("object")
    cases = [
        other,
        mine[:HEADER] + other[HEADER:],
        other[:HEADER] + mine[HEADER:],
        mine[:24] + other[24:],
        other[:24] + mine[24:],
        mine[:24] + other[24:HEADER] + mine[HEADER:],
    ]
    for raw in cases:
        ours.set("object", raw)
        with pytest.raises(IntegrityError):
            ours.fs.cat_file("object")
        with pytest.raises(IntegrityError):
            ours.fs.cat_file("object", 0, 10)
    ours.set("object", mine)
    assert ours.fs.cat_file("object") == noise(30_000, 1)


def _plaintexts() -> dict[str, bytes]:
    parquet, frame = io.BytesIO(), pd.DataFrame({"person_id": range(3000), "name": "somebody"})
    frame.to_parquet(parquet)
    csv = frame.to_csv().encode()
    return {
        "parquet": parquet.getvalue(),
        "csv": csv,
        "csv of a size that an object has": csv[: wire_size(1000)],
        "nothing": b"",
        "one byte": b"x",
        "zeros": bytes(200),
        "a short header": bytes.fromhex("89534f560d0a1a01"),
        "ones": b"\xff" * wire_size(40_000),
    }


def test_plaintext_in_place_of_an_object(host: Host, tmp_path: Path) -> None:
    cases = _plaintexts()
    for what, raw in cases.items():
        host.fs.pipe_file("object", noise(1000))
        host.set("object", raw)
        for way in WAYS.values():
            with pytest.raises(FormatError):
                way(host.fs, "object", tmp_path)
        for call in _first_ten(host.fs, "object"):
            with pytest.raises(FormatError):
                call()
        info = host.fs.info("object")
        assert info["type"] == "file", what
        # A size is shown when the length allows one, and it is a claim until the object is opened.
        assert (info["size"] is None) == info["foreign"]
    assert len(cases) == 8


def test_a_flip_in_a_name(host: Host) -> None:
    """An object under a name that was changed is shown as foreign, and never under a path of the store."""
    host.fs.pipe_file("folder/object", b"data")
    full, rng = host.name("folder/object"), random.Random(8)
    folder, _, name = full.rpartition("/")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    raw, seen = host.raw.cat_file(full), 0
    host.raw.rm_file(full)
    for _ in range(60):
        place = rng.randrange(len(name))
        other = rng.choice(alphabet.replace(name[place], ""))
        changed = f"{folder}/{name[:place]}{other}{name[place + 1 :]}"
        host.raw.pipe_file(changed, raw)
        (info,) = host.fs.ls("folder")
        assert info["foreign"]
        assert info["size"] is None
        assert host.fs.find("") == [info["name"]] != ["folder/object"]
        with pytest.raises(FormatError):
            host.fs.cat_file(info["name"])
        host.raw.rm_file(changed)
        seen += 1
    assert seen == 60
    stress.record("Flips", of="characters of a name", flips=seen)
    # A whole folder under another folder's name.
    host.fs.pipe_file("second/object", b"data")
    host.raw.pipe_file(f"{folder}/{host.name('second/object').rpartition('/')[2]}", raw)
    assert [info["foreign"] for info in host.fs.ls("folder")] == [True]


@dataclass
class Lies:
    """What a host makes of the size of an object, and of the answer to a request for [start, end) of it."""

    size: Callable[[int], int] | None = None
    answer: Callable[[bytes, int, int], bytes] | None = None


class Liar(Through):
    """A host that answers `stat` and `read` of objects as it likes; the keyset stays as it is."""

    def __init__(self, inner: Backend, lies: Lies) -> None:
        super().__init__(inner, Counter())
        self.lies = lies

    async def stat(self, name: str) -> Stat:
        found = await self.inner.stat(name)
        if found.folder or name.startswith(".sovstore") or self.lies.size is None:
            return found
        return Stat(name, self.lies.size(found.size), etag=found.etag, modified=found.modified)

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        if name.startswith(".sovstore") or self.lies.answer is None:
            return await self.inner.read(name, start, end, etag=etag)
        whole = await self.inner.read(name, 0, 2**40)
        return self.lies.answer(whole, start, end)


SIZES = {
    "a chunk fewer": lambda w: w - WIRE_CHUNK,
    "a byte fewer": lambda w: w - 1,
    "one chunk in all": lambda w: wire_size(5000),
    "none": lambda w: 0,
    "negative": lambda w: -5,
    "the least": lambda w: wire_size(0),
    "the last chunk is full": lambda w: wire_size(plain_size(w) // CHUNK * CHUNK - 1),
    "a byte more": lambda w: w + 1,
    "a chunk more": lambda w: w + WIRE_CHUNK,
    "a thousand chunks more": lambda w: w + 1000 * WIRE_CHUNK,
    "the most": lambda w: wire_size(2**38 * CHUNK - 1),
    "more than any": lambda w: 2**70,
}
ANSWERS = {
    "nothing": lambda raw, a, b: b"",
    "a byte fewer": lambda raw, a, b: raw[a:b][:-1],
    "half": lambda raw, a, b: raw[a:b][: (min(b, len(raw)) - a) // 2],
    "a byte more": lambda raw, a, b: raw[a:b] + b"\0",
    "a chunk more": lambda raw, a, b: raw[a : b + WIRE_CHUNK] + bytes(WIRE_CHUNK),
    "everything": lambda raw, a, b: raw if a else raw + raw,
    "the beginning for any range": lambda raw, a, b: raw[: min(b, len(raw)) - a] if a else raw[1 : b + 1],
    "one byte off": lambda raw, a, b: (raw + b"\0")[a + 1 : b + 1],
    "one chunk off": lambda raw, a, b: raw[a:b] if a == 0 else (raw + bytes(WIRE_CHUNK))[a + WIRE_CHUNK :][: b - a],
    "the end for any range": lambda raw, a, b: raw[-(min(b, len(raw)) - a) :] if a else raw[-min(b, len(raw)) :][::-1],
    "zeros": lambda raw, a, b: bytes(len(raw[a:b])),
}


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Lies, SovFileSystem]:
    lies = Lies()
    file = make_store(tmp_path, provider="memory")
    wrap_backends(monkeypatch, lambda inner: Liar(inner, lies))
    return lies, open_fs(file)


@pytest.mark.parametrize("size", [3 * CHUNK + 500, 30 * CHUNK + 1])
@pytest.mark.parametrize("lie", SIZES)
def test_a_lie_about_the_size(liar: tuple[Lies, SovFileSystem], tmp_path: Path, lie: str, size: int) -> None:
    lies, fs = liar
    data = noise(size)
    fs.pipe_file("object", data)
    for name, way in WAYS.items():
        lies.size = SIZES[lie]
        # A small object is read whole without asking for its size, so there the lie is not even heard.
        if name in ("cat", "many", "mapper") and size < 16 * CHUNK:
            assert way(fs, "object", tmp_path) == data
            continue
        if name == "ranges" and lie in ("the most", "more than any"):
            continue
        with pytest.raises(REFUSED):
            way(fs, "object", tmp_path)
    for call in _first_ten(fs, "object")[:3]:
        with pytest.raises(REFUSED):
            call()
    lies.size = None
    assert fs.cat_file("object") == data


@pytest.mark.parametrize("size", [500, 3 * CHUNK + 500, 30 * CHUNK + 1])
# Of a small object the first answer holds everything, so there no chunk but the first is asked for.
@pytest.mark.parametrize("lie", [lie for lie in ANSWERS if lie != "one chunk off"])
def test_a_wrong_answer(liar: tuple[Lies, SovFileSystem], tmp_path: Path, lie: str, size: int) -> None:
    lies, fs = liar
    data = noise(size)
    fs.pipe_file("object", data)
    lies.answer = ANSWERS[lie]
    for way in WAYS.values():
        with pytest.raises(REFUSED):
            way(fs, "object", tmp_path)
    lies.answer = None
    assert fs.cat_file("object") == data


@pytest.mark.parametrize("lie", ANSWERS)
def test_a_wrong_answer_after_the_object_was_opened(liar: tuple[Lies, SovFileSystem], tmp_path: Path, lie: str) -> None:
    lies, fs = liar
    data = noise(40 * CHUNK)
    fs.pipe_file("object", data)
    with fs.open("object") as file:
        lies.answer = ANSWERS[lie]
        for start in (10 * CHUNK + 5, 20 * CHUNK):
            file.seek(start)
            with pytest.raises(IntegrityError):
                file.read(100)
        lies.answer = None
        file.seek(10 * CHUNK)
        assert file.read(100) == data[10 * CHUNK : 10 * CHUNK + 100]

    async def stream() -> Any:
        async with await fs.open_async("object") as file:
            lies.answer = ANSWERS[lie]
            return await file.read()

    with pytest.raises(IntegrityError):
        fs._sync(stream)


def test_a_host_that_loses_the_object_while_it_is_fetched(liar: tuple[Lies, SovFileSystem], tmp_path: Path) -> None:
    """The error is about the store's object, not about this machine's file."""
    lies, fs = liar
    fs.pipe_file("object", noise(40 * CHUNK))

    def lost(raw: bytes, start: int, end: int) -> bytes:
        if end - start > 10 * WIRE_CHUNK:
            raise ObjectNotFoundError("object: it was there when it was opened")
        return raw[start:end]

    lies.answer = lost
    target = tmp_path / "target"
    target.write_bytes(OLD)
    with pytest.raises(ObjectNotFoundError, match="it was there"):
        fs.get_file("object", str(target))
    assert target.read_bytes() == OLD
    assert temporaries(tmp_path) == []


def test_an_open_file_is_of_one_version(host: Host) -> None:
    """A file that was replaced while it is read gives its own bytes or an error, and never those of both."""
    first, second = noise(60 * CHUNK, 1), noise(60 * CHUNK, 2)
    for start in (0, 30 * CHUNK, 59 * CHUNK + 5):
        host.fs.pipe_file("object", first)
        with host.fs.open("object") as file:
            assert file.read(10) == first[:10]
            host.fs.pipe_file("object", second)
            file.seek(start)
            try:
                assert file.read(2 * CHUNK) == first[start : start + 2 * CHUNK]
            except (IntegrityError, ObjectChangedError):
                assert start == 30 * CHUNK
        assert host.fs.cat_file("object") == second


def test_an_integrity_error_is_no_value_and_no_os_error(memory: Host) -> None:
    memory.fs.pipe_file("object", b"data")
    memory.set("object", flipped(memory.get("object"), 8 * 190))
    with pytest.raises(IntegrityError) as caught:
        memory.fs.cat_file("object")
    assert not isinstance(caught.value, ValueError | OSError)


def test_what_is_refused_is_not_copied_or_renamed(host: Host) -> None:
    for path in ("object", "whole"):
        host.fs.pipe_file(path, noise(3 * CHUNK))
    good = host.get("object")
    for raw in (flipped(good, 8 * 100), good[:-1], good[: wire_size(CHUNK)], b"", b"PAR1" + bytes(500)):
        host.set("object", raw)
        for call in (host.fs.cp_file, host.fs.mv, host.fs.copy):
            with pytest.raises(REFUSED):
                call("object", "target")
        assert not host.fs.exists("target")
        assert host.get("object") == raw
    assert host.unfinished() == []


def test_asynchronous_instances_refuse_too(tmp_path: Path) -> None:
    host = open_host(tmp_path, "memory")
    host.fs.pipe_file("object", noise(40_000))
    host.set("object", flipped(host.get("object"), 8 * 20_000))
    file = host.fs.store.config.source

    async def use() -> int:
        fs = open_fs(file, asynchronous=True)
        calls = [
            lambda: fs._cat_file("object"),
            lambda: fs._cat_file("object", 19_000, 21_000),
            lambda: fs._cat(["object"]),
            lambda: fs._get_file("object", str(tmp_path / "target")),
            lambda: fs._cat_ranges(["object"], [0], [30_000], on_error="raise"),
        ]
        for call in calls:
            with pytest.raises(IntegrityError):
                await call()
        (returned,) = await fs._cat_ranges(["object"], [0], [30_000])
        assert isinstance(returned, IntegrityError)
        return len(calls)

    assert asyncio.run(use()) == 5
    assert not (tmp_path / "target").exists()

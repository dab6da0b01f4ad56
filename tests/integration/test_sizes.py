"""Objects of every size at which something changes, through every way of writing and every way of reading."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sovstore.filesystem import SovFileSystem
from sovstore.format.body import wire_size
from tests.hosts import PROVIDERS, Host, cheap_key_files, open_host, temporaries

CHUNK, MIB = 16384, 2**20
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, MIB - 1, MIB, MIB + 1)


@pytest.fixture(params=PROVIDERS)
def host(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    cheap_key_files(monkeypatch)
    made = open_host(tmp_path, request.param)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(made.fs.store.config.source))
    return made


def content(size: int) -> bytes:
    """Return text of lines of different lengths, so that no two chunks are alike; every way can carry it."""
    lines = []
    for n in range(size // 20 + 20):
        lines.append(f"{n} {'x' * (n % 71)}\n")
    text = "".join(lines).encode()[:size]
    assert len(text) == size
    return text


# Ways to write.


def _pipe(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    fs.pipe_file(path, data)


def _pipe_many(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    fs.pipe({path: memoryview(data), f"{path}.other": bytearray(b"1")})


def _put(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    (folder / "local").write_bytes(data)
    fs.put_file(str(folder / "local"), path)


def _put_pattern(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    (folder / "up").mkdir()
    (folder / "up" / Path(path).name).write_bytes(data)
    fs.put(f"{folder}/up/*", str(Path(path).parent) + "/")


def _open_wb(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    steps, at = (1, 7, 4096, CHUNK - 1, CHUNK, 3 * CHUNK + 5, 400_000), 0
    with fs.open(path, "wb") as file:
        for n in range(10_000):
            assert file.tell() == at
            step = steps[n % len(steps)]
            assert file.write(memoryview(data)[at : at + step]) == len(data[at : at + step])
            at = min(len(data), at + step)
            if n % 5 == 0:
                file.flush()
            if at == len(data):
                break


def _open_wb_whole(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    file = fs.open(path, "wb")
    file.write(data)
    file.write(b"")
    file.close()
    file.close()


def _open_xb(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    with fs.open(path, "xb") as file:
        file.writelines([data[: len(data) // 2], data[len(data) // 2 :]])


def _text(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    with fs.open(path, "w", encoding="utf-8") as file:
        for line in io.StringIO(data.decode()):
            file.write(line)


def _url(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    with fsspec.open(f"sov://cohortes/{path}", "wt") as file:
        file.write(data.decode())


def _async(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    async def write() -> None:
        async with await fs.open_async(path, "wb") as file:
            for start in range(0, len(data), 100_000):
                await file.write(data[start : start + 100_000])

    fs._sync(write)


def _copy(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    fs.pipe_file("source", data)
    fs.cp("source", path)
    assert fs.cat_file("source") == data


def _move(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    fs.pipe_file("source", data)
    fs.mv("source", path)
    assert not fs.exists("source")


def _twice(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    fs.pipe_file(path, data + b"an older and longer version")
    fs.pipe_file(path, data)


def _mapper(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    fs.get_mapper("")[path] = data


WRITERS: dict[str, Callable[[SovFileSystem, str, bytes, Path], None]] = {
    function.__name__.strip("_"): function
    for function in (
        _pipe, _pipe_many, _put, _put_pattern, _open_wb, _open_wb_whole, _open_xb, _text, _url, _async, _copy, _move,
        _twice, _mapper,
    )
}  # fmt: skip


# Ways to read. Each asserts that it gives `data`.


def _cat(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    assert fs.cat_file(path) == data
    assert fs.cat(path) == data
    assert fs.cat([path]) == {path: data}
    assert fs.read_bytes(path) == data
    assert fs.read_text(path) == data.decode()


def places(size: int) -> list[int | None]:
    """Return offsets around everything that matters in an object of `size` bytes, and beyond it."""
    near = {0, 1, CHUNK - 1, CHUNK, CHUNK + 1, size - CHUNK, size - 1, size, size + 1, size + CHUNK, size // 2}
    return [None, -1, -10, -CHUNK, -size - 1, *sorted(n for n in near if n >= 0)]


def _cat_ranges_of_one(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    pairs = [(start, end) for start in places(len(data)) for end in places(len(data))]
    for start, end in pairs[:: 1 if len(data) <= CHUNK + 1 else 3]:
        assert fs.cat_file(path, start, end) == data[start:end], (start, end)
    assert fs.head(path, 10) == data[:10]
    assert fs.tail(path, 10) == data[-10:]


def _cat_ranges(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    pairs = [(start, end) for start in places(len(data)) for end in places(len(data))]
    starts, ends = [start for start, _ in pairs], [end for _, end in pairs]
    for gap in (None, 0, 10**9):
        found = fs.cat_ranges([path] * len(pairs), starts, ends, max_gap=gap, on_error="raise")
        assert found == [data[start:end] for start, end in pairs]
    assert fs.cat_ranges([path, path], 0, 5) == [data[:5]] * 2


def _read(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    with fs.open(path) as file:
        assert file.read() == data
        assert file.read() == file.read(5) == b""
        assert file.tell() == len(data) == file.size
    for step in (1, 100, 5000, CHUNK, 100_000, 5 * MIB):
        if len(data) // step > 2000:
            continue
        with fs.open(path, "rb") as file:
            assert b"".join(iter(lambda file=file, step=step: file.read(step), b"")) == data


def _seek(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    with fs.open(path) as file:
        for place in places(len(data)):
            if place is None:
                continue
            whence, start = (2, max(-len(data), place)) if place < 0 else (0, place)
            assert file.seek(start, whence) == (start if whence == 0 else len(data) + start)
            at = file.tell()
            assert file.read(1000) == data[at : at + 1000]
            assert file.tell() == min(max(at, len(data)), at + 1000)
        file.seek(0)
        file.seek(3, 1)
        assert file.read(2) == data[3:5]


def _readinto(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    for size in (1000, 2 * MIB):
        buffer, got = bytearray(size), bytearray()
        with fs.open(path) as file:
            while n := file.readinto(buffer):
                got += buffer[:n]
        assert got == data


def _lines(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    lines = data.splitlines(keepends=True)
    with fs.open(path) as file:
        assert list(file) == lines
        assert file.readline() == b""
    with fs.open(path) as file:
        assert [file.readline() for _ in lines] == lines
    with fs.open(path) as file:
        assert file.readline(2) + file.readline(0) + file.readline() == b"".join(lines[:1])
    with io.BufferedReader(fs.open(path), 1000) as file:
        assert list(file) == lines


def _read_text(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    for mode in ("r", "rt"):
        with fs.open(path, mode, encoding="utf-8") as file:
            assert file.read() == data.decode()
    with fs.open(path, "r") as file:
        assert list(file) == data.decode().splitlines(keepends=True)


def _get(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    target = folder / "got" / "deeper" / "file"
    fs.get_file(path, str(target))
    assert target.read_bytes() == data
    fs.get(path, str(folder / "second"))
    assert (folder / "second").read_bytes() == data
    stream = io.BytesIO()
    fs.get_file(path, stream)
    assert stream.getvalue() == data
    assert temporaries(folder) == []


def _read_async(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    async def read(step: int) -> bytes:
        pieces = []
        async with await fs.open_async(path) as file:
            while piece := await file.read(step):
                pieces.append(piece)
            assert await file.read() == b""
        return b"".join(pieces)

    for step in (-1, 50_000, CHUNK):
        assert fs._sync(read, step) == data


def _read_url(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    with fsspec.open(f"sov://cohortes/{path}", "rb") as file:
        assert file.read() == data
    with fsspec.open(f"sov://cohortes/{path}", "rt", newline="") as file:
        assert file.read() == data.decode()


def _sizes(fs: SovFileSystem, path: str, data: bytes, folder: Path) -> None:
    info = fs.info(path)
    assert (info["type"], info["size"], info["wire_size"]) == ("file", len(data), wire_size(len(data)))
    assert fs.size(path) == fs.du(path) == fs.sizes([path])[0] == len(data)
    (listed,) = [one for one in fs.ls(fs._parent(path)) if one["name"] == path]
    assert listed["size"] == len(data)


READERS: dict[str, Callable[[SovFileSystem, str, bytes, Path], None]] = {
    function.__name__.strip("_"): function
    for function in (
        _cat, _cat_ranges_of_one, _cat_ranges, _read, _seek, _readinto, _lines, _read_text, _get, _read_async,
        _read_url, _sizes,
    )
}  # fmt: skip


@pytest.mark.parametrize("way", WRITERS)
def test_written_and_read(host: Host, tmp_path: Path, way: str) -> None:
    path = "2026/some folder/naïve ☂.txt"
    for size in SIZES:
        data, folder = content(size), tmp_path / str(size)
        folder.mkdir()
        WRITERS[way](host.fs, path, data, folder)
        assert len(host.get(path)) == wire_size(size)
        assert host.unfinished() == []
        # What the host has depends on the bytes only, so that every reader is tried after one writer, and some after
        # each; and at one host, since all that differs between hosts is how bytes are fetched.
        everything = way == "open_wb" and (host.fs.store.config.provider == "local" or size in (0, CHUNK, MIB + 1))
        for name in READERS if everything else ("cat", "sizes", "get"):
            READERS[name](host.fs, path, data, folder)
        host.fs.rm(path)


def test_every_way_is_there() -> None:
    assert (len(SIZES), len(WRITERS), len(READERS)) == (8, 14, 12)


def test_touch(host: Host, tmp_path: Path) -> None:
    host.fs.touch("empty")
    for reader in READERS.values():
        reader(host.fs, "empty", b"", tmp_path)
    assert len(host.get("empty")) == wire_size(0)


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz", "zip", "infer"])
@pytest.mark.parametrize("host", ["local"], indirect=True)
def test_compressed(host: Host, compression: str) -> None:
    """Above the store, so at one host."""
    for size in (0, 1, CHUNK, 150_000):
        check_compressed(host, compression, content(size))
        host.fs.rm("file.gz")


def check_compressed(host: Host, compression: str, data: bytes) -> None:
    size = len(data)
    url = "sov://cohortes/file.gz"

    def opened(mode: str) -> list[Any]:
        return [
            lambda: host.fs.open("file.gz", mode, compression=compression),
            lambda: fsspec.open(url, mode, compression=compression),
        ]

    for write in opened("wb"):
        with write() as file:
            file.write(data[: size // 2])
            file.write(data[size // 2 :])
        assert size == 0 or host.fs.cat_file("file.gz")[:1000] != data[:1000]
        for read in opened("rb"):
            with read() as file:
                assert file.read() == data
        for read in opened("rt"):
            with read() as file:
                assert file.read() == data.decode()
        host.fs.rm("file.gz")
    for write in opened("wt"):
        with write() as file:
            file.write(data.decode())
        with host.fs.open("file.gz", compression=compression) as file:
            assert list(file) == data.splitlines(keepends=True)
        host.fs.rm("file.gz")
    file = host.fs.open("file.gz", "xb", compression=compression)
    file.write(data)
    file.close()
    assert host.fs.open("file.gz", compression=compression).read() == data


def test_a_size_that_needs_many_requests(host: Host, tmp_path: Path) -> None:
    """Large enough for several windows, read ahead, and both buffers of a writer several times."""
    data = content(MIB) * 9 + content(77_777)
    for write in (_put, _async, _open_wb):
        write(host.fs, "large", data, tmp_path)
        assert host.fs.cat_file("large") == data
    for read in (_read, _seek, _get, _read_async, _cat_ranges_of_one):
        read(host.fs, "large", data, tmp_path)

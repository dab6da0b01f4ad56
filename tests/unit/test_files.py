"""The file objects: what they fetch, when they publish, and how they give a write up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import io
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovstore.backends.base import Backend, OpenedNow, Upload
from sovstore.errors import IntegrityError, ObjectChangedError, StoreError, StoreUnavailableError, UnsupportedError
from sovstore.file_wrappers import CompressedFile
from sovstore.files import check_mode, handled_exception, leaving_by_exception
from sovstore.format.body import OVERHEAD
from sovstore.format.cobblestone import WIRE_CHUNK
from tests.hosts import PROVIDERS, Host, Through, cheap_key_files, open_host, wrap_backends
from tests.stores import make_store, open_fs

CHUNK, MIB = 16384, 2**20
OLD = b"the old object"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture(params=PROVIDERS)
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    made = open_host(tmp_path, request.param)
    made.fs.pipe_file("object", OLD)
    return made


def unharmed(host: Host) -> None:
    gc.collect()
    assert host.fs.cat_file("object") == OLD
    assert host.fs.find("") == ["object"]
    assert host.unfinished() == []


# Reading ahead

_DATA = bytes(range(256)) * (9 * MIB // 256) + b"the end"
_PLACES = st.integers(0, len(_DATA)) | st.sampled_from([0, CHUNK, CHUNK - 1, 4 * MIB, len(_DATA), len(_DATA) - 1])
_LENGTHS = st.sampled_from([0, 1, 100, CHUNK, CHUNK + 1, 200_000, 4 * MIB, 6 * MIB])


class Asked(Through):
    """A host that notes the chunks that it is asked for, in requests of the loop or, where it can, without it."""

    def __init__(self, inner: Backend, asked: list[range]) -> None:
        super().__init__(inner, Counter())
        self.asked, self.blocking = asked, inner.blocking

    def note(self, start: int, end: int) -> None:
        self.asked.append(range((start - OVERHEAD) // WIRE_CHUNK, -((OVERHEAD - end) // WIRE_CHUNK)))

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes | bytearray:
        if name.startswith(".sovstore/"):
            return await self.inner.read(name, start, end, etag=etag)
        self.note(start, end)
        return await self.inner.read(name, start, end, etag=etag)

    def open_now(self, name: str, *, etag: str | None = None) -> OpenedNow:
        return AskedNow(self.inner.open_now(name, etag=etag), self)


class AskedNow(OpenedNow):
    def __init__(self, inner: OpenedNow, host: Asked) -> None:
        self.inner, self.host = inner, host

    def read_into(self, start: int, out: memoryview) -> int:
        self.host.note(start, start + len(out))
        return self.inner.read_into(start, out)


@pytest.fixture
def nine_mib(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A store with one large object, and the chunks that its host is asked for."""
    asked: list[range] = []
    with pytest.MonkeyPatch.context() as patch:
        cheap_key_files(patch)
        file = make_store(tmp_path, provider=request.param)
        wrap_backends(patch, lambda inner: Asked(inner, asked))
        fs = open_fs(file)
        fs.pipe_file("large", _DATA)
        yield fs, asked


on_each_host = pytest.mark.parametrize("nine_mib", PROVIDERS, indirect=True)


@on_each_host
def test_a_file_gives_what_is_there(nine_mib: Any) -> None:
    fs, _ = nine_mib
    hold = Counter[str]()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.none() | _PLACES, _LENGTHS, st.booleans()), max_size=12))
    def check(reads: list[tuple[int | None, int, bool]]) -> None:
        with fs.open("large") as file:
            for start, size, into in reads:
                if start is not None:
                    file.seek(start)
                start = file.tell()
                out = bytearray(size)
                got = bytes(out[: file.readinto(out)]) if into else file.read(size)
                assert got == _DATA[start : start + size]
                hold["bytes"] += len(got)

    check()
    assert hold["bytes"]


@on_each_host
@pytest.mark.parametrize("step", [1000, CHUNK, 50_000, MIB, 5 * MIB])
def test_a_sequential_reader_fetches_each_byte_once(nine_mib: Any, step: int) -> None:
    fs, asked = nine_mib
    asked.clear()
    with fs.open("large") as file:
        assert b"".join(iter(lambda: file.read(step), b"")) == _DATA
        assert file.read() == b""
    numbers = sorted(number for span in asked[2:] for number in span)
    # What came with opening it is not fetched again; the first two are of that: the start, and the end.
    last = len(_DATA) // CHUNK
    assert numbers == list(range(4, last - 5))
    assert len(asked) < (16 if fs.store.config.provider == "memory" else 30)


@on_each_host
def test_a_random_read_fetches_whole_chunks_and_no_more(nine_mib: Any) -> None:
    fs, asked = nine_mib
    with fs.open("large") as file:
        asked.clear()
        for start, size in ((100 * CHUNK + 5, 10), (30 * CHUNK, CHUNK), (200 * CHUNK - 1, 2), (5, 10), (100, 10)):
            file.seek(start)
            assert file.read(size) == _DATA[start : start + size]
    # The start came when it was opened.
    assert asked == [range(100, 101), range(30, 31), range(199, 201)]


@pytest.mark.parametrize("nine_mib", ["memory"], indirect=True)
def test_a_large_read_is_one_request(nine_mib: Any) -> None:
    """A reader of Parquet asks for a column of a row group at once, and pays for each request."""
    fs, asked = nine_mib
    with fs.open("large") as file:
        asked.clear()
        file.seek(MIB)
        assert file.read(6 * MIB) == _DATA[MIB : 7 * MIB]
        assert asked == [range(64, 448)]


@pytest.mark.parametrize("nine_mib", ["memory"], indirect=True)
def test_a_reader_of_columns_goes_on_over_small_gaps(nine_mib: Any) -> None:
    """Ten columns with as much between them are few requests, and no byte is fetched twice."""
    fs, asked = nine_mib
    with fs.open("large") as file:
        asked.clear()
        for start in range(MIB, 6 * MIB, MIB // 2):
            file.seek(start)
            assert file.read(MIB // 4) == _DATA[start : start + MIB // 4]
    numbers = [number for span in asked for number in span]
    assert len(asked) <= 7
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("nine_mib", ["memory"], indirect=True)
@pytest.mark.parametrize("option", ["block_size", "default_block_size"])
def test_blocks_are_read_over_any_gap(nine_mib: Any, option: str) -> None:
    """As `s3fs` reads: few large requests for columns that lie far apart, where somebody wants that."""
    fs, asked = nine_mib
    options = {"block_size": 4 * MIB} if option == "block_size" else {}
    if not options:
        fs = open_fs(Path(fs.storage_options["config"]), default_block_size=4 * MIB)
    with fs.open("large", **options) as file:
        asked.clear()
        for start in range(MIB, 9 * MIB, MIB):
            file.seek(start)
            assert file.read(100) == _DATA[start : start + 100]
    numbers = [number for span in asked for number in span]
    assert len(asked) <= 5
    assert len(numbers) == len(set(numbers))
    # Without, each is a chunk of its own.
    with open_fs(Path(fs.storage_options["config"])).open("large") as file:
        asked.clear()
        for start in range(MIB, 9 * MIB, MIB):
            file.seek(start)
            file.read(100)
    assert [len(span) for span in asked] == [1] * 8


@pytest.mark.parametrize("nine_mib", ["memory"], indirect=True)
def test_a_step_back_forgets_nothing(nine_mib: Any) -> None:
    """The threads of pyarrow ask for two columns in either order."""
    fs, asked = nine_mib
    with fs.open("large") as file:
        asked.clear()
        for start, size in ((3 * MIB, MIB), (4 * MIB, CHUNK), (MIB, CHUNK), (4 * MIB + CHUNK, CHUNK), (2 * MIB, 1)):
            file.seek(start)
            assert file.read(size) == _DATA[start : start + size]
    numbers = [number for span in asked for number in span]
    assert len(numbers) == len(set(numbers))
    # However often it goes back, what is held is little.
    with fs.open("large") as file:
        asked.clear()
        for start in range(8 * MIB, MIB, -CHUNK):
            file.seek(start)
            assert file.read(1) == _DATA[start : start + 1]
            assert len(file.cache._windows) <= 6
    assert len(asked) == 7 * MIB // CHUNK


@pytest.mark.parametrize("nine_mib", ["memory"], indirect=True)
def test_a_second_open_fetches_the_start_alone(nine_mib: Any) -> None:
    """A reader of Parquet opens a table several times, and looks at its end each time."""
    fs, asked = nine_mib
    asked.clear()
    for _ in range(3):
        with fs.open("large") as file:
            file.seek(-64 * 1024, os.SEEK_END)
            assert file.read() == _DATA[-64 * 1024 :]
    # The header counts as chunk -1.
    start, last = range(-1, 4), len(_DATA) // CHUNK
    assert asked == [start, range(last - 5, last + 1), start, start]
    # Another version is another object.
    fs.pipe_file("large", _DATA[::-1])
    assert fs.open("large").read(10) == _DATA[:-11:-1]
    assert fs.tail("large", 10) == _DATA[9::-1]


@pytest.mark.parametrize("nine_mib", ["local"], indirect=True)
@pytest.mark.parametrize("place", [100, 300 * CHUNK + 10, 9 * MIB])
@pytest.mark.parametrize("from_start", [True, False])
def test_what_does_not_authenticate_never_reaches_the_buffer(nine_mib: Any, place: int, from_start: bool) -> None:
    """AES-GCM decrypts before it compares the tag: the buffer is the caller's own, and must not keep it."""
    fs, _ = nine_mib
    path = Path(Host(fs).name("large"))
    original = path.read_bytes()
    number = place // CHUNK
    damaged = bytearray(original)
    damaged[OVERHEAD + number * WIRE_CHUNK + place % CHUNK] ^= 1
    # In place, so that it is the same file with the same times, as a host would do it.
    status = path.stat()
    out = bytearray(b"\xa5" * (10 * MIB))
    with fs.open("large") as file:
        path.write_bytes(damaged)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        try:
            start = 0 if from_start else max(0, number - 1) * CHUNK
            file.seek(start)
            cached = number < 4 or number >= len(_DATA) // CHUNK - 5
            if cached:
                assert file.readinto(out) == len(_DATA) - start
            else:
                with pytest.raises(IntegrityError):
                    file.readinto(out)
                kept = out[number * CHUNK - start : (number + 1) * CHUNK - start]
                assert set(kept) <= {0xA5} or set(kept) == {0}
        finally:
            path.write_bytes(original)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# Reading


def test_lines_do_not_fetch_anything_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = make_store(tmp_path, provider="memory"), Counter[str]()
    wrap_backends(monkeypatch, lambda inner: Through(inner, calls))
    fs = open_fs(file)
    lines = [b"%d %s\n" % (n, b"x" * (n % 200)) for n in range(60_000)]
    fs.pipe_file("lines", b"".join(lines))
    calls.clear()
    with fs.open("lines") as opened:
        assert list(opened) == lines
    # One request per MiB, and a few to begin with; fsspec's own `readline` makes one per line.
    assert calls["read"] < 20


def test_a_reader_is_pickled_with_its_place(host: Host) -> None:
    with host.fs.open("object") as file:
        file.seek(4)
        again = pickle.loads(pickle.dumps(file))  # noqa: S301  # made here
        assert again.read() == file.read() == OLD[4:]
    again.close()


def test_what_a_reader_says_of_itself(host: Host) -> None:
    with host.fs.open("object") as file, host.fs.open("object") as same:
        assert file.info() == host.fs.info("object")
        assert file.details["size"] == file.size == len(OLD)
        assert file == same
        assert hash(file) == hash(same)
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        with pytest.raises(ValueError, match="write mode"):
            file.write(b"1")
        host.fs.pipe_file("object", b"another one")
        with host.fs.open("object") as other:
            assert file != other
    with pytest.raises(ValueError, match="closed"):
        file.read()


# Writing


def test_what_a_writer_says_of_itself(host: Host) -> None:
    file = host.fs.open("new", "wb")
    assert (file.readable(), file.seekable(), file.writable(), file.tell()) == (False, False, True, 0)
    assert file.write(b"12") == 2
    for value in (bytearray(b"3"), memoryview(b"4"), np.frombuffer(b"56", np.uint8), np.array([7], np.int32)):
        file.write(value)
    assert file.tell() == 10
    with pytest.raises(TypeError):
        file.write("text")
    with pytest.raises(OSError, match="Seek"):
        file.seek(0)
    with pytest.raises(RuntimeError, match="writeable"):
        pickle.dumps(file)
    assert not host.fs.exists("new")
    file.commit()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"1")
    assert host.fs.cat_file("new") == b"123456\7\0\0\0"


@pytest.mark.parametrize("mode", ["ab", "a", "r+b", "r+", "w+b", "rb+", "x+", "at"])
def test_modes_that_a_sealed_object_does_not_have(host: Host, mode: str) -> None:
    with pytest.raises(UnsupportedError, match="not possible") as caught:
        host.fs.open("object", mode)
    assert "write it again with 'wb'" in (caught.value.hint or "")
    unharmed(host)


def test_modes_that_it_has() -> None:
    for mode in ("rb", "wb", "xb"):
        check_mode("path", mode)


def test_discarding(host: Host) -> None:
    for size in (0, 10, 3 * MIB):
        file = host.fs.open("object", "wb")
        file.write(bytes(size))
        file.discard()
        file.discard()
        file.close()
        assert file.closed
        unharmed(host)


class Failing(Through):
    """A host that refuses one write in the middle of an upload, and takes those after it."""

    def __init__(self, inner: Backend, fails_at: int) -> None:
        super().__init__(inner, Counter())
        self.fails_at = fails_at

    async def upload(self, name: str, **conditions: Any) -> Upload:
        upload = await self.inner.upload(name, **conditions)
        written, real = iter(range(1000)), upload.write

        async def write(data: Any) -> None:
            if next(written) == self.fails_at:
                raise StoreUnavailableError("the host is away for a moment")
            await real(data)

        upload.write, upload.blocking = write, False  # type: ignore[method-assign]
        return upload


@pytest.fixture
def failing(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = open_host(tmp_path, "local")
    host.fs.pipe_file("object", OLD)
    wrap_backends(monkeypatch, lambda inner: Failing(inner, request.param))
    return Host(open_fs(host.fs.store.config.source, skip_instance_cache=True))


@pytest.mark.parametrize("failing", [0, 1, 3], indirect=True)
def test_a_write_that_the_host_refused_once_is_never_published(failing: Host) -> None:
    """Not even by a caller who goes on after the error: a part of the object is missing."""
    file = failing.fs.open("object", "wb")
    with pytest.raises((StoreError, ValueError)):
        file.writelines([bytes(MIB)] * 9)
    with contextlib.suppress(StoreError):
        file.close()
    unharmed(failing)


@pytest.mark.parametrize("failing", [0, 1, 3], indirect=True)
def test_an_asynchronous_write_that_the_host_refused_once_is_never_published(failing: Host) -> None:
    async def use() -> None:
        file = await failing.fs.open_async("object", "wb")
        with pytest.raises(StoreUnavailableError):
            await file.write(bytes(6 * MIB))
        with pytest.raises(StoreError, match="given up"):
            await file.write(b"more")
        with pytest.raises(StoreError, match="given up"):
            await file.close()

    # Not through `sync`, which loses the failure of a `pytest.raises`: it is no `Exception`.
    asyncio.run_coroutine_threadsafe(use(), failing.fs.loop).result()
    unharmed(failing)


@pytest.mark.parametrize("failing", [0, 1, 2], indirect=True)
def test_an_upload_that_the_host_refused_once(failing: Host, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(bytes(4 * MIB))
    for call in (
        lambda: failing.fs.put_file(str(tmp_path / "local"), "object"),
        lambda: failing.fs.pipe_file("object", bytes(4 * MIB)),
    ):
        with pytest.raises(StoreUnavailableError, match="away for a moment"):
            call()
        unharmed(failing)


def test_giving_up_waits_for_the_write_that_is_under_way(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its descriptor could be another file's when the write gets to it."""
    if host.fs.store.config.provider != "local":
        return
    events, real_write, real_close = [], os.write, os.close
    started, go_on = threading.Event(), threading.Event()

    def slow_write(descriptor: int, data: Any) -> int:
        if len(data) > MIB:
            events.append(("write", descriptor))
            started.set()
            go_on.wait(5)
            events.append(("written", descriptor))
        return real_write(descriptor, data)

    def seen_close(descriptor: int) -> None:
        events.append(("close", descriptor))
        real_close(descriptor)

    file = host.fs.open("object", "wb")
    monkeypatch.setattr(os, "write", slow_write)
    monkeypatch.setattr(os, "close", seen_close)
    file.write(bytes(2 * MIB - 1))
    assert started.wait(5)
    giving_up = threading.Thread(target=file.discard)
    giving_up.start()
    time.sleep(0.1)
    go_on.set()
    giving_up.join(5)
    monkeypatch.undo()
    descriptor = events[0][1]
    assert [what for what, which in events if which == descriptor][:3] == ["write", "written", "close"]
    cheap_key_files(monkeypatch)
    unharmed(host)


# Exceptions


@contextlib.contextmanager
def handling(error: Exception) -> Iterator[None]:
    """Run a block while an exception is handled, in no `with` block that it leaves."""
    try:
        raise error
    except type(error):
        yield


def test_marks_of_exceptions() -> None:
    assert handled_exception() == 0
    try:
        raise KeyError("one")
    except KeyError:
        first = handled_exception()
        assert first == handled_exception() != 0
        try:
            raise KeyError("two")
        except KeyError:
            assert handled_exception() not in (0, first)
        assert handled_exception() == first
    assert handled_exception() == 0


def test_a_mark_is_never_used_twice() -> None:
    """A later exception often lies at the address of one that is gone."""
    marks, addresses = [], []
    for _ in range(50):
        try:
            raise KeyError
        except KeyError as exc:
            marks.append(handled_exception())
            addresses.append(id(exc))
    assert len(set(marks)) == 50
    # Without this the test would show nothing.
    assert len(set(addresses)) < 50


def test_a_second_failure_is_not_taken_for_the_first(host: Host) -> None:
    """Opened while one exception is handled, then left by another at the same address: it is given up all the same."""
    for _ in range(10):
        try:
            raise KeyError
        except KeyError:
            opened = fsspec.open("sov://cohortes/object", "wb", config=str(host.fs.store.config.source))
            file = opened.open()
        with contextlib.suppress(KeyError), contextlib.closing(opened):
            file.write(b"half of it")
            raise KeyError
        del opened, file
        unharmed(host)


def test_leaving_by_exception() -> None:
    seen: list[bool] = []

    class Look:
        known = 0

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> bool:
            seen.append(leaving_by_exception(self.known))
            return True

    with Look():
        pass
    with Look():
        raise KeyError
    with contextlib.ExitStack() as stack:
        stack.enter_context(Look())
        raise KeyError
    with handling(ValueError()), Look():
        pass
    try:
        raise KeyError
    except KeyError:
        seen.append(leaving_by_exception(0))
        look = Look()
        look.known = handled_exception()
        with look:
            pass
    assert seen == [False, True, True, False, False, False]


# Text and compression


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("how", ["own text", "text of fsspec", "compressed", "compressed text", "binary"])
def test_lost_without_being_closed(host: Host, how: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    url, config = "sov://cohortes/object", str(host.fs.store.config.source)
    opened = {
        "own text": lambda: host.fs.open("object", "w"),
        "text of fsspec": lambda: fsspec.open(url, "w", config=config).open(),
        "compressed": lambda: host.fs.open("object", "wb", compression="gzip"),
        "compressed text": lambda: host.fs.open("object", "w", compression="gzip"),
        "binary": lambda: host.fs.open("object", "wb"),
    }
    for cyclic in (False, True):
        file = opened[how]()
        file.write("x" * size if "text" in how else os.urandom(size))
        holder: list[Any] = [file]
        if cyclic:
            holder.append(holder)
        del file, holder
        unharmed(host)
    assert caplog.text.count("never closed") == 2


def test_a_text_file_that_fails(host: Host) -> None:
    for compression in (None, "gzip"):
        with contextlib.suppress(KeyError), host.fs.open("object", "w", compression=compression) as file:
            file.write("half of it" * 300_000)
            raise KeyError
        assert file.buffer.closed
        del file
        unharmed(host)


class Broken(io.BytesIO):
    """A compressor that cannot write its end."""

    def close(self) -> None:
        raise OSError("no end")


def test_a_compressor_that_fails_at_its_end(host: Host) -> None:
    inner = host.fs.open("object", "wb")
    inner.write(b"half of it")
    file = CompressedFile(Broken(), inner)
    with pytest.raises(OSError, match="no end"):
        file.close()
    unharmed(host)


def test_a_compressed_file_is_used_like_a_file(host: Host) -> None:
    with host.fs.open("lines.gz", "wt", compression="infer", newline="") as file:
        file.write("one\ntwo\nthree\n")
    with host.fs.open("lines.gz", compression="infer") as file:
        assert next(file) == b"one\n"
        assert file.tell() == 4
        assert file.readable()
        assert list(file) == [b"two\n", b"three\n"]
    assert gzip.decompress(host.fs.cat_file("lines.gz")) == b"one\ntwo\nthree\n"


def test_text_options(host: Host) -> None:
    with host.fs.open("text", "w", encoding="utf-16-le", errors="strict", newline="\r\n") as file:
        file.write("é\n")
    assert host.fs.cat_file("text") == "é\r\n".encode("utf-16-le")
    with host.fs.open("text", encoding="utf-16-le", mode="rt") as file:
        assert file.read() == "é\n"
    with host.fs.open("text", "r", encoding="ascii", errors="replace") as file:
        assert "�" in file.read()
    with pytest.raises(FileExistsError):
        host.fs.open("text", "x")


# Threads, loops and processes


def test_a_file_is_not_read_or_written_inside_its_loop(host: Host) -> None:
    """It would wait for itself, and everybody else's calls with it."""
    host.fs.pipe_file("large", bytes(3 * MIB))
    reader, writer = host.fs.open("large"), host.fs.open("new", "wb")

    async def use() -> None:
        with pytest.raises(NotImplementedError, match="running loop"):
            reader.read(2 * MIB)
        with pytest.raises(NotImplementedError, match="running loop"):
            reader.readinto(bytearray(2 * MIB))
        with pytest.raises(NotImplementedError, match="running loop"):
            writer.write(bytes(2 * MIB))

    asyncio.run_coroutine_threadsafe(use(), host.fs.loop).result(20)
    reader.close()
    host.fs.rm_file("large")
    unharmed(host)


def test_asynchronous_writes_at_the_same_time_take_turns(host: Host) -> None:
    async def use() -> None:
        async with await host.fs.open_async("new", "wb") as file:
            await asyncio.gather(*(file.write(bytes([n]) * MIB) for n in range(8)))

    asyncio.run_coroutine_threadsafe(use(), host.fs.loop).result(20)
    assert host.fs.cat_file("new") == b"".join(bytes([n]) * MIB for n in range(8))


def test_a_write_that_was_cancelled_is_whole_or_given_up(host: Host) -> None:
    """What was sealed and never sent is a gap, which no later call may publish."""

    async def use() -> bool:
        file = await host.fs.open_async("new", "wb")
        writes = [asyncio.ensure_future(file.write(bytes(2 * MIB))) for _ in range(3)]
        await asyncio.sleep(0)
        writes[1].cancel()
        await asyncio.gather(*writes, return_exceptions=True)
        try:
            await file.write(b"more")
            await file.close()
        except StoreError:
            return False
        return True

    if asyncio.run_coroutine_threadsafe(use(), host.fs.loop).result(20):
        # Cancelled before it began, or too late.
        assert host.fs.cat_file("new") in (bytes(4 * MIB) + b"more", bytes(6 * MIB) + b"more")
    else:
        assert not host.fs.exists("new")


@pytest.mark.parametrize("nine_mib", ["memory"], indirect=True)
def test_one_damaged_reply_does_not_spoil_a_file(nine_mib: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, _ = nine_mib
    real, damaged = Asked.read, iter([True])

    async def read(self: Asked, name: str, start: int, end: int, *, etag: str | None = None) -> bytes | bytearray:
        data = bytearray(await real(self, name, start, end, etag=etag))
        if len(data) > MIB and next(damaged, False):
            data[MIB] ^= 1
        return data

    with fs.open("large") as file:
        monkeypatch.setattr(Asked, "read", read)
        with pytest.raises(IntegrityError):
            file.read()
        file.seek(0)
        assert file.read() == _DATA


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_does_not_end_a_write_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = open_host(tmp_path, "local")
    started, go_on, real = threading.Event(), threading.Event(), os.write

    def slow(descriptor: int, data: Any) -> int:
        if len(data) > MIB:
            started.set()
            go_on.wait(20)
        return real(descriptor, data)

    file = host.fs.open("new", "wb")
    monkeypatch.setattr(os, "write", slow)
    file.write(bytes(MIB))
    assert started.wait(5)
    child = os.fork()
    if not child:
        try:
            file.close()
        except StoreError:
            os._exit(0)
        os._exit(1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    go_on.set()
    assert ended == (child, 0)
    file.close()
    assert host.fs.cat_file("new") == bytes(MIB)


def test_many_open_files_hold_few_descriptors(tmp_path: Path) -> None:
    host = open_host(tmp_path, "local")
    host.fs.pipe_file("large", _DATA)
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    files = [host.fs.open("large") for _ in range(150)]
    for file in files:
        file.seek(MIB)
        assert file.read(3 * CHUNK) == _DATA[MIB : MIB + 3 * CHUNK]
    assert len(os.listdir("/proc/self/fd")) - before <= 70
    for file in files[:10]:
        assert file.read() == _DATA[MIB + 3 * CHUNK :]
    # Who has read to the end keeps no thread.
    gc.collect()
    time.sleep(0.2)
    assert threading.active_count() <= threads + 4
    for file in files:
        file.close()
    assert len(os.listdir("/proc/self/fd")) - before <= 6


@on_each_host
def test_an_open_file_goes_on_with_the_version_that_it_opened(nine_mib: Any) -> None:
    """As files of this machine do; elsewhere it is refused."""
    fs, _ = nine_mib
    with fs.open("large") as file:
        file.seek(MIB)
        assert file.read(10) == _DATA[MIB : MIB + 10]
        fs.pipe_file("large", bytes(len(_DATA)))
        file.seek(5 * MIB)
        if fs.store.config.provider == "local":
            assert file.read() == _DATA[5 * MIB :]
        else:
            with pytest.raises((ObjectChangedError, IntegrityError)):
                file.read()

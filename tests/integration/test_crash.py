"""Writers that are killed, interrupted, or left by an exception: an object is the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet

from sovstore.errors import IntegrityError
from sovstore.filesystem import SovFileSystem
from tests.hosts import Host, cheap_key_files, open_host, temporaries
from tests.stores import open_fs

URL = "sov://cohortes/object"
OLD = b"the old object " * 2000
#: More than one block, so that a part of it is at the host before the exception.
MUCH = 2**20 + 100_000


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = open_host(tmp_path, "local")
    host.fs.pipe_file("object", OLD)
    return host


def config_of(host: Host) -> str:
    return str(host.fs.store.config.source)


def unharmed(host: Host) -> None:
    """Check that there is the old object, and nothing else."""
    assert host.fs.cat_file("object") == OLD
    assert host.fs.find("") == ["object"]
    assert host.unfinished() == []


# Left by an exception

Opener = Callable[[SovFileSystem, str], AbstractContextManager[Any]]


def _stack(fs: SovFileSystem, config: str) -> AbstractContextManager[Any]:
    @contextlib.contextmanager
    def manager() -> Any:
        with contextlib.ExitStack() as stack:
            yield stack.enter_context(fsspec.open(URL, "wb", config=config))

    return manager()


def _callback(fs: SovFileSystem, config: str) -> AbstractContextManager[Any]:
    @contextlib.contextmanager
    def manager() -> Any:
        with contextlib.ExitStack() as stack:
            file = fs.open("object", "wb")
            stack.callback(file.close)
            yield file

    return manager()


def _through(wrap: Callable[[Any], Any]) -> Opener:
    @contextlib.contextmanager
    def manager(fs: SovFileSystem, config: str) -> Any:
        with fs.open("object", "wb") as file, wrap(file) as wrapped:
            yield wrapped

    return manager


BINARY: dict[str, Opener] = {
    "fs.open": lambda fs, config: fs.open("object", "wb"),
    "fs.open gzip": lambda fs, config: fs.open("object", "wb", compression="gzip"),
    "fs.open bz2": lambda fs, config: fs.open("object", "wb", compression="bz2"),
    "fsspec.open": lambda fs, config: fsspec.open(URL, "wb", config=config),
    "fsspec.open gzip": lambda fs, config: fsspec.open(URL, "wb", compression="gzip", config=config),
    "closing": lambda fs, config: contextlib.closing(fs.open("object", "wb")),
    "closing fsspec.open": lambda fs, config: contextlib.closing(fsspec.open(URL, "wb", config=config).open()),
    "ExitStack": _stack,
    "ExitStack.callback": _callback,
    "BufferedWriter": lambda fs, config: io.BufferedWriter(fs.open("object", "wb")),
    "GzipFile": _through(lambda file: gzip.GzipFile(fileobj=file, mode="wb")),
}
TEXT: dict[str, Opener] = {
    "fs.open": lambda fs, config: fs.open("object", "w"),
    "fs.open gzip": lambda fs, config: fs.open("object", "wt", compression="gzip"),
    "fsspec.open": lambda fs, config: fsspec.open(URL, "w", config=config),
    "fsspec.open gzip": lambda fs, config: fsspec.open(URL, "wt", compression="gzip", config=config),
    "TextIOWrapper": lambda fs, config: io.TextIOWrapper(fs.open("object", "wb")),
    "TextIOWrapper of a compressor": lambda fs, config: io.TextIOWrapper(fs.open("object", "wb", compression="gzip")),
    "closing": lambda fs, config: contextlib.closing(io.TextIOWrapper(fs.open("object", "wb"))),
}
ALL = {f"{kind}: {name}": (opener, kind) for kind, o in (("b", BINARY), ("t", TEXT)) for name, opener in o.items()}


def payload(kind: str, size: int) -> Any:
    data = random.Random(3).randbytes(size)
    return data if kind == "b" else data.hex()


def leave(manager: AbstractContextManager[Any], data: Any, error: type[BaseException] = RuntimeError) -> None:
    with manager as file:
        file.write(data)
        raise error("midway")


@pytest.mark.parametrize(
    ("error", "size"), [(RuntimeError, 10), (RuntimeError, MUCH), (KeyboardInterrupt, MUCH), (SystemExit, 10)]
)
@pytest.mark.parametrize("way", ALL)
def test_left_by_an_exception(host: Host, way: str, error: type[BaseException], size: int) -> None:
    opener, kind = ALL[way]
    with pytest.raises(error, match="midway"):
        leave(opener(host.fs, config_of(host)), payload(kind, size), error)
    unharmed(host)


@pytest.mark.parametrize("way", ALL)
def test_left_without_one(host: Host, way: str) -> None:
    """The same, so that the tests above say something: these publish."""
    opener, kind = ALL[way]
    with opener(host.fs, config_of(host)) as file:
        file.write(payload(kind, MUCH))
    raw = host.fs.cat_file("object")
    wanted = payload(kind, MUCH)
    wanted = wanted if kind == "b" else wanted.encode()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    assert raw == wanted or raw[:3] == b"BZh"
    assert host.unfinished() == []


@pytest.mark.parametrize("way", ALL)
def test_an_exception_that_is_caught_inside_gives_nothing_up(host: Host, way: str) -> None:
    opener, kind = ALL[way]
    with opener(host.fs, config_of(host)) as file:
        with contextlib.suppress(KeyError):
            raise KeyError
        try:
            file.write(payload(kind, 1000))
            raise ValueError
        except ValueError:
            file.write(payload(kind, 1000))
    assert host.fs.cat_file("object") != OLD
    assert host.unfinished() == []


def test_left_by_an_exception_in_a_zip(host: Host) -> None:
    def work() -> None:
        with fsspec.open(URL, "wb", config=config_of(host)) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("one", payload("b", MUCH))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    unharmed(host)


def test_left_by_an_exception_while_another_is_handled(host: Host) -> None:
    for opener, kind in ALL.values():
        try:
            raise KeyError
        except KeyError:
            with pytest.raises(RuntimeError):
                leave(opener(host.fs, config_of(host)), payload(kind, MUCH))
        unharmed(host)


def test_left_by_an_exception_that_a_generator_is_thrown(host: Host) -> None:
    def writing() -> Any:
        with fsspec.open(URL, "wb", config=config_of(host)) as file:
            while True:
                file.write((yield) or b"")

    for end in (lambda g: g.throw(RuntimeError("x")), lambda g: g.close()):
        generator = writing()
        next(generator)
        generator.send(payload("b", MUCH))
        with contextlib.suppress(RuntimeError):
            end(generator)
        unharmed(host)


def test_interrupted_at_any_moment(host: Host) -> None:
    """A real signal, which may come while a block is sealed or sent."""
    main, block, rng = threading.main_thread().ident, payload("b", 2**20), random.Random(4)

    def write_for_ever(manager: AbstractContextManager[Any], piece: Any) -> None:
        with manager as file:
            timer = threading.Timer(rng.uniform(0, 0.05), signal.pthread_kill, [main, signal.SIGINT])
            timer.start()
            until = time.monotonic() + 5
            while time.monotonic() < until:
                file.write(piece)
            # Python drops an interrupt that comes while a finaliser runs.
            raise KeyboardInterrupt

    for way in ("b: fs.open", "b: fsspec.open", "b: closing", "b: fs.open gzip", "t: TextIOWrapper"):
        opener, kind = ALL[way]
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                write_for_ever(opener(host.fs, config_of(host)), block if kind == "b" else block.hex())
            gc.collect()
            unharmed(host)


def test_interrupted_while_it_is_opened(host: Host) -> None:
    """The call goes on, and nobody gets the write that it returns."""
    main, rng = threading.main_thread().ident, random.Random(6)

    def open_for_ever() -> None:
        timer = threading.Timer(rng.uniform(0, 0.005), signal.pthread_kill, [main, signal.SIGINT])
        timer.start()
        until = time.monotonic() + 5
        while time.monotonic() < until:
            host.fs.open("object", "wb").discard()
        # Python drops an interrupt that comes while a finaliser runs.
        raise KeyboardInterrupt

    for _ in range(40):
        with pytest.raises(KeyboardInterrupt):
            open_for_ever()
    host.fs.exists("object")
    until = time.monotonic() + 5
    while host.unfinished() and time.monotonic() < until:
        time.sleep(0.01)
        gc.collect()
    unharmed(host)


def frame(rows: int = 50_000) -> pd.DataFrame:
    return pd.DataFrame({"person_id": range(rows), "name": [f"{n:x}" for n in range(rows)]})


def _writer(host: Host) -> None:
    table = pa.Table.from_pandas(frame())
    with parquet.ParquetWriter("object", table.schema, filesystem=host.fs) as writer:
        writer.write_table(table)
        raise RuntimeError("midway")


def _writer_on_a_file(host: Host) -> None:
    table = pa.Table.from_pandas(frame())
    with host.fs.open("object", "wb") as file, parquet.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        raise RuntimeError("midway")


def _writer_on_fsspec(host: Host) -> None:
    table = pa.Table.from_pandas(frame())
    opened = fsspec.open(URL, "wb", config=config_of(host))
    with opened as file, parquet.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        raise RuntimeError("midway")


def _unwritable() -> pd.DataFrame:
    """Return a frame that Arrow takes and Parquet does not: it fails in the middle of the write."""
    intervals = pa.array([(1, 2, 3)] * 1000, pa.month_day_nano_interval())
    return frame(1000).assign(z=pd.Series(intervals, dtype=pd.ArrowDtype(intervals.type)))


def _to_parquet(host: Host) -> None:
    _unwritable().to_parquet(URL, storage_options={"config": config_of(host)})


def _to_parquet_on_a_file(host: Host) -> None:
    with host.fs.open("object", "wb") as file:
        _unwritable().to_parquet(file)


def _to_parquet_on_fsspec(host: Host) -> None:
    with fsspec.open(URL, "wb", config=config_of(host)) as file:
        _unwritable().to_parquet(file)


class _Failing:
    def __str__(self) -> str:
        raise RuntimeError("midway")


def _to_csv(host: Host) -> None:
    broken = frame().astype(object)
    broken.loc[len(broken) - 1, "name"] = _Failing()
    broken.to_csv(URL, storage_options={"config": config_of(host)})


def _to_csv_gzip(host: Host) -> None:
    broken = frame().astype(object)
    broken.loc[len(broken) - 1, "name"] = _Failing()
    broken.to_csv(URL, compression="gzip", storage_options={"config": config_of(host)})


@pytest.mark.parametrize(
    "work",
    [
        _writer,
        _writer_on_a_file,
        _writer_on_fsspec,
        _to_parquet,
        _to_parquet_on_a_file,
        _to_parquet_on_fsspec,
        _to_csv,
        _to_csv_gzip,
    ],
)
def test_a_frame_that_fails_midway(host: Host, work: Callable[[Host], None]) -> None:
    with pytest.raises((RuntimeError, pa.ArrowException)):
        work(host)
    gc.collect()
    unharmed(host)


def test_a_data_set_that_fails_midway(host: Host) -> None:
    """Whatever was published of it is whole."""
    schema = pa.schema({"x": pa.int64()})

    def batches() -> Any:
        for start in range(3):
            yield pa.record_batch([pa.array(range(start, start + 300_000))], schema=schema)
        raise RuntimeError("midway")

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    with pytest.raises(RuntimeError, match="midway"):
        dataset.write_dataset(reader, "folder", filesystem=host.fs, format="parquet")
    del reader
    gc.collect()
    assert host.fs.find("folder") == []
    assert host.fs.cat_file("object") == OLD
    assert host.unfinished() == []


# Lost


@pytest.mark.parametrize("size", [10, MUCH])
@pytest.mark.parametrize("way", [w for w in ALL if "ExitStack" not in w and "GzipFile" not in w])
def test_dropped(host: Host, way: str, size: int) -> None:
    opener, kind = ALL[way]
    manager = opener(host.fs, config_of(host))
    file = manager.open() if isinstance(manager, fsspec.core.OpenFile) else getattr(manager, "thing", manager)
    file.write(payload(kind, size))
    del manager, file
    gc.collect()
    unharmed(host)


def test_dropped_in_a_cycle(host: Host) -> None:
    file = host.fs.open("object", "wb")
    file.itself = file
    file.write(payload("b", MUCH))
    del file
    gc.collect()
    unharmed(host)


@pytest.mark.parametrize("mode", ["wb", "w"])
@pytest.mark.parametrize("how", ["", "sys.exit()", "1 / 0", "os._exit(0)"])
def test_not_closed_when_the_process_ends(host: Host, mode: str, how: str) -> None:
    script = (
        "import os, sys; from sovstore.filesystem import SovFileSystem; "
        f"file = SovFileSystem('cohortes', config={config_of(host)!r}).open('object', {mode!r}); "
        f"file.write({'b' if mode == 'wb' else ''}'x' * 3_000_000); {how}"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
    assert host.fs.cat_file("object") == OLD
    assert host.fs.find("") == ["object"]
    fs = open_fs(host.fs.store.config.source, skip_instance_cache=True)
    fs.pipe_file("object", OLD)
    unharmed(host)


# Closed as usual, although an exception is about


@pytest.mark.parametrize("way", ALL)
def test_written_while_an_exception_is_handled(host: Host, way: str) -> None:
    opener, kind = ALL[way]
    try:
        raise RuntimeError
    except RuntimeError:
        with opener(host.fs, config_of(host)) as file:
            file.write(payload(kind, MUCH))
    assert host.fs.cat_file("object") != OLD
    assert host.unfinished() == []


@pytest.mark.parametrize("way", ALL)
def test_written_while_a_with_block_is_left_by_an_exception(host: Host, way: str) -> None:
    opener, kind = ALL[way]

    class Reporting:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *exc: object) -> None:
            with opener(host.fs, config_of(host)) as file:
                file.write(payload(kind, MUCH))

    with pytest.raises(RuntimeError), Reporting():
        raise RuntimeError
    assert host.fs.cat_file("object") != OLD
    assert host.unfinished() == []


def test_opened_before_and_closed_while_an_exception_is_handled(host: Host) -> None:
    """Nobody but the caller closes it, and says so."""
    for mode, data in (("wb", b"new"), ("w", "new")):
        host.fs.pipe_file("object", OLD)
        file = host.fs.open("object", mode)
        try:
            raise RuntimeError
        except RuntimeError:
            file.write(data)
            file.close()
        assert host.fs.cat_file("object") == b"new"


def test_one_with_block_is_left_and_another_in_it_was_not(host: Host) -> None:
    def work() -> None:
        with fsspec.open(URL, "wb", config=config_of(host)) as outer:
            outer.write(payload("b", MUCH))
            with fsspec.open("sov://cohortes/inner", "w", config=config_of(host)) as inner:
                inner.write("whole")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert host.fs.cat_file("inner") == b"whole"
    host.fs.rm("inner")
    unharmed(host)


# Downloads


@pytest.mark.parametrize("existing", [True, False])
def test_a_download_that_is_refused_late(host: Host, tmp_path: Path, existing: bool) -> None:
    host.fs.pipe_file("big", random.Random(5).randbytes(20 * 2**20))
    raw = bytearray(host.get("big"))
    raw[-200_000] ^= 1
    host.set("big", bytes(raw))
    target = tmp_path / "downloads" / "target"
    if existing:
        target.parent.mkdir()
        target.write_bytes(OLD)
    for get in (host.fs.get_file, host.fs.get, host.fs.download):
        with pytest.raises(IntegrityError):
            get("big", str(target))
        assert (target.read_bytes() == OLD) if existing else not target.exists()
        assert temporaries(tmp_path) == []
        assert list(tmp_path.rglob("*.part")) == []
    assert os.listdir(target.parent) == ["target"] * existing


def test_what_a_killed_download_left_goes_with_the_next_one(host: Host, tmp_path: Path) -> None:
    """It is plaintext."""
    target = tmp_path / "downloads" / "target"
    target.parent.mkdir()
    (target.parent / ".target.sovstore-0.part").write_bytes(b"half")
    host.fs.get_file("object", str(target))
    assert os.listdir(target.parent) == ["target"]
    assert target.read_bytes() == OLD

"""Layers of fsspec that keep plaintext on this machine, and a policy that warns of them, or refuses them.

The plaintext is looked for where each layer could have put it, and where it would have put it but for its tidying up.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import fsspec.generic
import pytest
from fsspec.caching import MMapCache
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.cached import CachingFileSystem, SimpleCacheFileSystem, WholeFileCacheFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.zip import ZipFileSystem

from sovstore import policy
from sovstore.cli import main
from sovstore.errors import PolicyError
from sovstore.filesystem import SovFileSystem
from tests.hosts import cheap_key_files
from tests.stores import make_store, open_fs

# Of the file that fsspec's mapped cache leaves open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

#: Of an object that has several chunks.
CANARY = b"canary-plaintext-93c1"
CONTENT = CANARY * 2000
NAME = "canary-name-7d20.csv"
ARCHIVE = "archive.zip"
MEMBER = "inside.csv"
URL = f"sov://cohortes/{NAME}"


class Own(SimpleCacheFileSystem):
    """A cache of somebody else's."""

    protocol = "own-cache"


class OwnBlocks(CachingFileSystem):
    """A cache of blocks of somebody else's, that asks for a file and for nothing before."""

    protocol = "own-blocks"

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = self.fs._open(path, mode)
        file.cache = MMapCache(file.blocksize, file._fetch_range, file.size, os.path.join(self.storage[-1], "blocks"))
        return file


class OwnCopier(fsspec.generic.GenericFileSystem):
    """A generic copy of somebody else's, block by block."""

    async def _cp_file(self, url: str, url2: str, **kwargs: Any) -> None:
        source = opened()
        async with await source.open_async(url) as file:
            Path(url2.removeprefix("file://")).write_bytes(await file.read())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return where things lie: a store by the policy that it shall have, a cache, and what is temporary."""
    folders = {name: tmp_path / name for name in ("tmp", "cache", "copies")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folders["tmp"]))
    monkeypatch.setattr(tempfile, "tempdir", str(folders["tmp"]))
    monkeypatch.setattr(policy, "_said", set())
    cheap_key_files(monkeypatch)
    # What a generic copy stages, or a mapped file, is deleted at once: here it stays, to be found.
    monkeypatch.setattr(fsspec.generic, "shutil", SimpleNamespace(rmtree=lambda _folder: None))
    monkeypatch.setattr(fsspec.generic, "os", SimpleNamespace(path=os.path, unlink=lambda _path: None))
    stays = functools.partial(tempfile.NamedTemporaryFile, delete=False)
    monkeypatch.setattr(tempfile, "TemporaryFile", stays)

    def make(local_plaintext: str) -> Path:
        folder = tmp_path / "store"
        folder.mkdir()
        (folder / "sovstore.toml").write_text("[policy]\n")
        file = make_store(folder)
        fs = open_fs(file)
        fs.pipe(NAME, CONTENT)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(MEMBER, CONTENT)
        fs.pipe(ARCHIVE, archive.getvalue())
        set_policy(file, local_plaintext)
        monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
        return file

    return SimpleNamespace(**folders, make=make)


def opened(**options: Any) -> SovFileSystem:
    """Return the store that `place` made."""
    return open_fs(Path(os.environ["SOVSTORE_CONFIG"]), **options)


def set_policy(file: Path, local_plaintext: str) -> None:
    """Change the policy; whoever opens the store from now on has the new one."""
    for layer in (SimpleCacheFileSystem, WholeFileCacheFileSystem, CachingFileSystem):
        # fsspec would hand out the layer that it made before, whose target has the old policy (docs/adr/0005).
        layer.clear_instance_cache()
    head, _, tail = file.read_text().partition("[policy]\n")
    tail = "".join(line for line in tail.splitlines(keepends=True) if not line.startswith("local_plaintext"))
    file.write_text(f'{head}[policy]\nlocal_plaintext = "{local_plaintext}"\n{tail}')


def kept(place: Any) -> list[str]:
    """Return what is readable on the disk of this machine: files with plaintext in them, or in their names."""
    found = []
    for folder in (place.tmp, place.cache, place.copies):
        for file in folder.rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            if CANARY in content or NAME.encode() in content or NAME in file.name:
                found.append(str(file))
    return found


def cache(kind: str, place: Any, **more: Any) -> dict[str, Any]:
    return {kind: {"cache_storage": str(place.cache)}, **more}


def read(openable: Any) -> bytes:
    with openable as file:
        return bytes(file.read())


def by_url(kind: str) -> Any:
    return lambda place: read(fsspec.open(f"{kind}::{URL}", **cache(kind, place)))


def on_it(layer: Any) -> Any:
    """Return a cache over a filesystem that was made before, as a function of the place."""
    return lambda place: layer(fs=opened(), cache_storage=str(place.cache))


def through(kind: Any, work: Any) -> Any:
    return lambda place: work(on_it(kind)(place))


def ranges_of(found: Any) -> Any:
    if isinstance(found[0], AttributeError) and fsspec.__version__ < "2026.9":
        pytest.skip("caches of this fsspec cannot read ranges, of any filesystem")
    return found[0]


async def cat_file(layer: Any) -> bytes:
    return bytes(await layer._cat_file(NAME))


async def cat_ranges(layer: Any) -> Any:
    return ranges_of(await layer._cat_ranges([NAME], [0], [100]))


def awaited(kind: Any, work: Any) -> Any:
    def run(place: Any) -> Any:
        fs = opened(asynchronous=True, skip_instance_cache=True)
        return asyncio.run(work(kind(fs=fs, cache_storage=str(place.cache))))

    return run


def local(place: Any) -> bytes:
    return Path(fsspec.open_local(f"simplecache::{URL}", **cache("simplecache", place))).read_bytes()


def many(place: Any) -> Any:
    with fsspec.open_files([f"filecache::{URL}"], **cache("filecache", place)) as files:
        return files[0].read()


def over_folder(place: Any) -> Any:
    below = DirFileSystem(path="/", fs=opened())
    return SimpleCacheFileSystem(fs=below, cache_storage=str(place.cache)).cat(NAME)


def over_archive(place: Any) -> Any:
    file = opened().open(ARCHIVE)
    # All of it is in memory before the cache comes: nothing would be fetched any more.
    file.read(), file.seek(0)
    return SimpleCacheFileSystem(fs=ZipFileSystem(file), cache_storage=str(place.cache)).cat(MEMBER)


def archive_of_cached(place: Any) -> Any:
    return read(fsspec.open(f"zip://{MEMBER}::simplecache::sov://cohortes/{ARCHIVE}", **cache("simplecache", place)))


def cached_archive(place: Any) -> Any:
    return read(fsspec.open(f"filecache::zip://{MEMBER}::sov://cohortes/{ARCHIVE}", **cache("filecache", place)))


def cached_references(place: Any) -> Any:
    refs = {"one": [URL, 0, 1000]}
    target = {"fo": refs, "remote_protocol": "sov", "remote_options": {"store": "cohortes"}}
    fs = fsspec.filesystem(
        "filecache", target_protocol="reference", target_options=target, cache_storage=str(place.cache)
    )
    return fs.cat("one")


def over_references(place: Any) -> Any:
    between = fsspec.filesystem("reference", fo={NAME: [URL, 0, 1000]}, fs=opened())
    return SimpleCacheFileSystem(fs=between, cache_storage=str(place.cache)).cat(NAME)


def by_options(place: Any) -> Any:
    options = {"target_protocol": "sov", "target_options": {"store": "cohortes"}}
    return fsspec.filesystem("filecache", **options, cache_storage=str(place.cache)).cat(NAME)


def unpickled(place: Any) -> Any:
    fs = SimpleCacheFileSystem(fs=opened(), cache_storage=str(place.cache))
    return pickle.loads(pickle.dumps(fs)).cat(NAME)  # noqa: S301  # its own


def mapped(place: Any) -> Any:
    return read(opened().open(NAME, cache_type="mmap"))


#: Reads by way of a layer that keeps plaintext, by what they are; each returns what it read.
READS = {
    "simplecache": by_url("simplecache"),
    "filecache": by_url("filecache"),
    "blockcache": by_url("blockcache"),
    "cached": by_url("cached"),
    "open_local": local,
    "open_files": many,
    "fsspec.filesystem": by_options,
    "blockcache, open": through(CachingFileSystem, lambda fs: read(fs.open(NAME))),
    "blockcache, head": through(CachingFileSystem, lambda fs: fs.head(NAME, 100)),
    "filecache, cat": through(WholeFileCacheFileSystem, lambda fs: fs.cat(NAME)),
    "filecache, cat of several": through(WholeFileCacheFileSystem, lambda fs: fs.cat([NAME, ARCHIVE])[NAME]),
    "filecache, compressed": lambda place: read(
        WholeFileCacheFileSystem(fs=opened(), cache_storage=str(place.cache), compression="zip").open(ARCHIVE)
    ),
    "simplecache, cat_ranges": through(SimpleCacheFileSystem, lambda fs: ranges_of(fs.cat_ranges([NAME], [0], [99]))),
    "simplecache, cat_file": through(SimpleCacheFileSystem, lambda fs: fs.cat_file(NAME, 5, 99)),
    "simplecache, head": through(SimpleCacheFileSystem, lambda fs: fs.head(NAME, 99)),
    "simplecache, awaited": awaited(SimpleCacheFileSystem, cat_file),
    "filecache, awaited ranges": awaited(WholeFileCacheFileSystem, cat_ranges),
    "somebody else's": through(Own, lambda fs: fs.cat(NAME)),
    "somebody else's, of blocks": through(OwnBlocks, lambda fs: read(fs._open(NAME))),
    "unpickled": unpickled,
    "over a folder": over_folder,
    "over an archive": over_archive,
    "an archive over it": archive_of_cached,
    "over an archive, by URL": cached_archive,
    "over references": over_references,
    "over references, by options": cached_references,
    "mapped": mapped,
}


@pytest.mark.parametrize("name", READS)
def test_a_cache_reads_by_default(place: Any, name: str) -> None:
    """Also the proof that what the other tests look for would be found."""
    place.make("allow")
    assert CANARY in READS[name](place)
    assert kept(place)


@pytest.mark.parametrize("name", READS)
def test_a_cache_is_refused(place: Any, name: str) -> None:
    place.make("refuse")
    with pytest.raises(PolicyError) as caught:
        READS[name](place)
    assert kept(place) == []
    assert "store 'cohortes'" in str(caught.value)
    assert "rule local_plaintext" in str(caught.value)
    assert "[stores.cohortes.policy]" in str(caught.value.hint)


@pytest.mark.parametrize("name", READS)
def test_a_cache_is_warned_of_once(place: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    place.make("warn")
    with caplog.at_level(logging.WARNING, "sovstore"):
        assert CANARY in READS[name](place)
        assert CANARY in READS[name](place)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) == 1
    assert "would keep plaintext on a disk of this machine" in said[0]


# Caches that are written through, and what they kept


def write(openable: Any) -> None:
    with openable as file:
        file.write(CONTENT)


WRITES = {
    "simplecache": lambda place: write(fsspec.open(f"simplecache::{URL}", "wb", **cache("simplecache", place))),
    "filecache": through(WholeFileCacheFileSystem, lambda fs: write(fs.open(NAME, "wb"))),
    "simplecache, pipe": through(SimpleCacheFileSystem, lambda fs: write(fs.open(NAME, "wb"))),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_cache_that_is_written_through(place: Any, name: str) -> None:
    file = place.make("allow")
    WRITES[name](place)
    assert kept(place)
    for left in place.cache.iterdir():
        left.unlink()
    set_policy(file, "refuse")
    with pytest.raises(PolicyError):
        WRITES[name](place)
    assert kept(place) == []
    assert open_fs(file).cat(NAME) == CONTENT


def test_a_folder_between_a_cache_and_its_store_is_seen_when_it_is_written(place: Any) -> None:
    """Late: the cache has the plaintext by then. It is refused all the same, not to go on in silence."""
    file = place.make("refuse")
    fs = SimpleCacheFileSystem(fs=DirFileSystem(path="/", fs=open_fs(file)), cache_storage=str(place.cache))
    with pytest.raises(PolicyError):
        write(fs.open("new.csv", "wb"))
    assert kept(place)
    assert not open_fs(file).exists("new.csv")


@pytest.mark.parametrize("name", ["simplecache", "filecache", "blockcache", "open_local", "open_files"])
def test_what_a_cache_kept_from_before_is_refused_too(place: Any, name: str) -> None:
    file = place.make("allow")
    READS[name](place)
    set_policy(file, "refuse")
    with pytest.raises(PolicyError):
        READS[name](place)
    fs = SimpleCacheFileSystem(fs=open_fs(file), cache_storage=str(place.cache))
    with pytest.raises(PolicyError):
        fs.open(NAME)


# Generic copies


def options(protocol: str = "sov") -> dict[str, Any]:
    return {"default_method": "options", "storage_options": {protocol: {}}, "skip_instance_cache": True}


def generic(**kwargs: Any) -> Any:
    return fsspec.filesystem("generic", **(kwargs or options()))


def target(place: Any) -> str:
    return f"file://{place.copies}/{NAME}"


def rsync(place: Any, **kwargs: Any) -> Any:
    return fsspec.generic.rsync("sov://cohortes/", f"file://{place.copies}", inst_kwargs=options(), **kwargs)


def current(place: Any, **kwargs: Any) -> None:
    opened()
    generic(default_method="current", skip_instance_cache=True).cp(URL, target(place), **kwargs)


def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    here = fsspec.filesystem("file")
    known = {"sov": opened(), "file": here}
    monkeypatch.setattr(fsspec.generic, "_generic_fs", known)
    return generic(default_method="generic", skip_instance_cache=True)


COPIES = {
    "rsync": rsync,
    "cp": lambda place: generic().cp(URL, target(place)),
    "cp of several": lambda place: generic().cp([URL], [target(place)]),
    "cp_file": lambda place: generic().cp_file(URL, target(place)),
    "mv": lambda place: generic().mv(URL, target(place)),
    "to memory": lambda place: generic().cp(URL, "memory://copies/one"),
    "current": current,
    "somebody else's": lambda place: OwnCopier(**options()).cp_file(URL, target(place)),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_generic_copy_copies_by_default(place: Any, name: str) -> None:
    place.make("allow")
    COPIES[name](place)
    assert kept(place)


@pytest.mark.parametrize("name", COPIES)
def test_a_generic_copy_is_refused(place: Any, name: str) -> None:
    file = place.make("refuse")
    with pytest.raises(PolicyError, match="rule local_plaintext"):
        COPIES[name](place)
    assert kept(place) == []
    assert open_fs(file).cat(NAME) == CONTENT


@pytest.mark.parametrize("name", COPIES)
def test_a_generic_copy_is_warned_of_once(place: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    place.make("warn")
    with caplog.at_level(logging.WARNING, "sovstore"):
        COPIES[name](place)
    said = [record.getMessage() for record in caplog.records]
    assert ["GenericFileSystem would keep plaintext" in line for line in said] == [True]
    assert kept(place)


def test_a_copy_between_instances_that_fsspec_was_given(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of us before fsspec drops errors, but where it is told not to: then nothing is copied."""
    file = place.make("refuse")
    fs = registered(monkeypatch)
    fs.cp(URL, target(place))
    assert kept(place) == []
    for work in (fs.mv, fs.cp_file):
        with pytest.raises(PolicyError):
            work(URL, target(place))
    with pytest.raises(PolicyError):
        fs.cp(URL, target(place), on_error="raise")
    assert kept(place) == []
    assert open_fs(file).cat(NAME) == CONTENT


def test_a_copy_between_stores_by_fsspec_is_refused(place: Any) -> None:
    """It goes by way of a file; `sovstore cp` does not."""
    file = place.make("refuse")
    make_store(file.parent, "other")
    with pytest.raises(PolicyError):
        generic().cp(URL, f"sov://other/{NAME}")
    assert kept(place) == []
    assert open_fs(file, "other").find("") == []


# What stays as it is


def test_generic_calls_that_keep_no_plaintext(place: Any) -> None:
    file = place.make("refuse")
    (place.copies / "in.csv").write_bytes(b"new")
    fs = generic()
    fs.cp(f"file://{place.copies}/in.csv", "sov://cohortes/in.csv")
    assert open_fs(file).cat("in.csv") == b"new"
    fsspec.generic.rsync(f"file://{place.copies}", "sov://cohortes/folder", inst_kwargs=options())
    assert open_fs(file).cat("folder/in.csv") == b"new"
    fs.cp(URL, "sov://cohortes/same-store.csv")
    assert fs.cat("sov://cohortes/same-store.csv") == CONTENT
    fs.mv("sov://cohortes/same-store.csv", "sov://cohortes/moved.csv")
    assert fs.exists("sov://cohortes/moved.csv")
    fs.pipe("sov://cohortes/piped.csv", b"piped")
    assert fs.find("sov://cohortes/folder") == ["sov://cohortes/folder/in.csv"]
    fs.rm("sov://cohortes/piped.csv")
    assert kept(place) == []


def test_calls_of_its_own_are_allowed(place: Any) -> None:
    file = place.make("refuse")
    fs = open_fs(file)
    assert fs.cat(NAME) == fs.cat_file(NAME) == CONTENT
    assert fs.cat([NAME, ARCHIVE])[NAME] == CONTENT
    assert fs.cat_ranges([NAME], [1], [9])[0] == fs.cat_file(NAME, 1, 9) == fs.read_block(NAME, 1, 8) == CONTENT[1:9]
    assert fs.head(NAME, 9) == CONTENT[:9]
    assert fs.tail(NAME, 9) == CONTENT[-9:]
    assert fs.get_mapper("")[NAME] == CONTENT
    assert b"".join(fs.open(NAME)) == read(fsspec.open(URL)) == CONTENT
    for kind in ("readahead", "bytes", "all", "blockcache", "background", "none", "first"):
        assert fs.open(NAME, cache_type=kind, block_size=5000).read(100) == CONTENT[:100]
    assert read(fsspec.open(f"zip://{MEMBER}::sov://cohortes/{ARCHIVE}")) == CONTENT
    assert read(fsspec.open(f"dir://{NAME}::sov://cohortes/")) == CONTENT
    assert kept(place) == []
    fs.get(NAME, str(place.copies / "one"))
    fs.get_file(NAME, str(place.copies / "two"))
    fs.download(NAME, str(place.copies / "three"))
    assert {file.read_bytes() for file in place.copies.iterdir()} == {CONTENT}
    fs.put(str(place.copies), "all", recursive=True)
    fs.put_file(str(place.copies / "one"), "alone")
    assert fs.cat("alone") == CONTENT
    assert len(fs.find("all")) == 3


def test_calls_that_are_awaited_are_allowed(place: Any) -> None:
    file = place.make("refuse")

    async def work() -> None:
        fs = open_fs(file, asynchronous=True, skip_instance_cache=True)
        assert await fs._cat_file(NAME) == await fs._cat(NAME) == CONTENT
        assert await fs._cat_ranges([NAME], [0], [9]) == [CONTENT[:9]]
        async with await fs.open_async(NAME) as whole:
            assert await whole.read() == CONTENT
        await fs._get_file(NAME, str(place.copies / "one"))
        assert len(await asyncio.gather(*(fs._cat_file(NAME) for _ in range(5)))) == 5
        await fs.close()

    asyncio.run(work())


def test_a_cache_of_another_filesystem_beside_it(place: Any) -> None:
    file = place.make("refuse")
    (place.copies / "public.csv").write_bytes(b"public")
    fs = SimpleCacheFileSystem(fs=fsspec.filesystem("file"), cache_storage=str(place.cache))
    assert fs.cat(f"{place.copies}/public.csv") == b"public"
    assert open_fs(file).cat(NAME) == CONTENT


def test_dataframes_read_and_write_it(place: Any) -> None:
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    frames = pytest.importorskip("dask.dataframe")
    file = place.make("refuse")
    fs = open_fs(file)
    frame = pandas.DataFrame({"name": [CANARY.decode()] * 50, "age": range(50)})
    frame.to_parquet("sov://cohortes/table.parquet")
    frame.to_csv("sov://cohortes/table.csv", index=False)
    assert pandas.read_parquet("sov://cohortes/table.parquet").equals(frame)
    assert pandas.read_csv("sov://cohortes/table.csv").equals(frame)
    assert parquet.read_table("cohortes/table.parquet".partition("/")[2], filesystem=fs).num_rows == 50
    assert parquet.ParquetFile(fs.open("table.parquet")).read(["age"]).num_rows == 50
    assert len(frames.read_parquet("sov://cohortes/table.parquet").compute(scheduler="threads")) == 50
    assert kept(place) == []


def test_the_policy_of_one_store(place: Any) -> None:
    """It overrides that of the file, both ways."""
    file = place.make("refuse")
    make_store(file.parent, "other", policy={"local_plaintext": "allow"})
    open_fs(file, "other").pipe("x", b"x")
    assert SimpleCacheFileSystem(fs=open_fs(file, "other"), cache_storage=str(place.cache)).cat("x") == b"x"
    with pytest.raises(PolicyError):
        SimpleCacheFileSystem(fs=open_fs(file), cache_storage=str(place.cache)).cat(NAME)


def test_its_own_commands_are_allowed(place: Any) -> None:
    file = place.make("refuse")
    make_store(file.parent, "other")
    assert main(["cp", URL, f"sov://other/{NAME}"]) == 0
    assert open_fs(file, "other").cat(NAME) == CONTENT
    assert kept(place) == []
    assert main(["get", URL, str(place.copies / "fetched.csv")]) == 0
    assert main(["put", str(place.copies / "fetched.csv"), "sov://cohortes/again.csv"]) == 0
    assert (place.copies / "fetched.csv").read_bytes() == opened().cat("again.csv") == CONTENT


def test_what_is_not_seen(place: Any) -> None:
    """A limit that docs/policy.md states: a filesystem made before, that moves calls to another thread, is between."""
    place.make("refuse")
    between = AsyncFileSystemWrapper(fs=DirFileSystem(path="/", fs=opened()), asynchronous=False)
    assert SimpleCacheFileSystem(fs=between, cache_storage=str(place.cache)).cat(NAME) == CONTENT
    assert kept(place)

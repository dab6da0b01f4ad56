"""Manifests of a live store: order, concurrency, the file, and what is held against what."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pytest

from sovstore import beside, config, manifests, rotation, walk
from sovstore.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    KeyDeniedError,
    ObjectNotFoundError,
    PathError,
    StoreError,
    StoreUnavailableError,
)
from sovstore.format.manifest import ManifestEntry, Totals
from sovstore.format.recovery import RecoveryKey
from sovstore.manifests import Finding
from sovstore.store import Store
from sovstore.testing import hostile_hosts
from tests.hosts import Host, cheap_key_files
from tests.stores import make_store, open_fs
from tests.unit.format.test_manifest import ORDER, entry
from tests.vectors.load import load_tool


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    cheap_key_files(monkeypatch)


@pytest.fixture(params=["local", "memory", "plain"])
def fs(request, tmp_path):
    kind = request.param
    settings = {"provider": "local", "names": "plain"} if kind == "plain" else {"provider": kind}
    return open_fs(make_store(tmp_path, root=f"{tmp_path}/host", **settings))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.manifest"


def write(fs, file, path="", **options):
    async def work():
        return await manifests.write(fs.store, manifests.record(fs.store, path), file, path=path, **options)

    return fs._sync(work)


def read(fs, file):
    async def work():
        return [found async for found in manifests.read(fs.store, file)]

    return fs._sync(work)


def check(fs, file, *arguments, **options):
    async def work():
        return [found async for found in manifests.check(fs.store, file, *arguments, **options)]

    return fs._sync(work)


def kinds(fs, file, *arguments, **options):
    return {found.path: found.kind for found in check(fs, file, *arguments, **options)}


# What is recorded


def test_all_objects_in_the_order_of_their_paths(fs, file):
    # On a file system a name is a file or a folder, so 'a' itself is left out.
    paths = sorted({*ORDER, "a/b/d"} - {"a", "a/b"}, key=str.encode)
    fs.pipe({path: path.encode() * 3 for path in reversed(paths)})
    assert write(fs, file) == Totals(len(paths), sum(3 * len(path.encode()) for path in paths))
    found = read(fs, file)
    assert [entry.path for entry in found] == paths
    for one in found:
        reader = fs._sync(fs.store.reader, one.path)
        assert (one.size, one.version) == (len(one.path.encode()) * 3, reader.version)
    for content in (False, True):
        assert check(fs, file, content=content) == [Finding("same", one.path, one.size) for one in found]


def test_an_object_and_a_folder_of_one_name(tmp_path, file):
    # Object stores have no folders of their own.
    with hostile_hosts():
        fs = open_fs(make_store(tmp_path, provider="memory"))
        paths = sorted(ORDER, key=str.encode)
        fs.pipe(dict.fromkeys(ORDER, b""))
        assert write(fs, file).objects == len(paths)
        assert [entry.path for entry in read(fs, file)] == paths
        assert set(kinds(fs, file).values()) == {"same"}


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_objects(fs, file, count):
    fs.pipe({f"{n % 7}/{n % 3}/{n}": bytes(n) for n in range(count)})
    assert write(fs, file) == Totals(count, sum(range(count)))
    assert len(read(fs, file)) == count
    assert len(check(fs, file, content=True, jobs=1)) == count


def test_a_manifest_of_a_folder(fs, file):
    fs.pipe({"a/b/c": b"1", "a/d": b"22", "a-b": b"333", "e": b"4"})
    assert write(fs, file, "a") == Totals(2, 3)
    assert [entry.path for entry in read(fs, file)] == ["a/b/c", "a/d"]
    fs.pipe({"e": b"other", "a/x": b"new"})
    fs.rm("a-b")
    assert kinds(fs, file) == {"a/b/c": "same", "a/d": "same", "a/x": "extra"}
    assert kinds(fs, file, "a/b") == {"a/b/c": "same"}
    for path in ("", "e", "a-b"):
        with pytest.raises(ConfigError, match="is a manifest of sov://cohortes/a only"):
            check(fs, file, path)
    # Nobody is told that something was checked which is not there.
    for path in ("a/nope", "a/d"):
        with pytest.raises(ConfigError, match="has nothing in a folder"):
            check(fs, file, path)


def test_what_is_no_folder_has_no_manifest(fs, file):
    fs.pipe_file("a", b"a")
    with pytest.raises(ConfigError, match="is not a folder"):
        write(fs, file, "a")
    with pytest.raises(ObjectNotFoundError):
        write(fs, file, "nope")
    with pytest.raises(PathError):
        write(fs, file, ".sovstore")
    assert not file.exists()


def test_one_object_that_is_not_authentic_and_there_is_no_manifest(fs, file, tmp_path):
    fs.pipe({f"{n}": b"x" for n in range(20)})
    host = Host(fs)
    host.set("7", host.get("8"))
    with pytest.raises(IntegrityError, match="7"):
        write(fs, file)
    assert [name for name in os.listdir(tmp_path) if "manifest" in name] == []


def test_foreign_names_are_told_and_left_out(fs, file):
    fs.pipe({"a/b": b"1"})
    host = Host(fs)
    folder = host.name("a/b").rpartition("/")[0].removeprefix(f"{host.root}/")
    # With plain names a host can make any name; these break the grammar, or hold no object.
    names = ["e\u0301", f"{folder}/e\u0301"]
    for name in names:
        host.set_file(name, b"x" * 300)
    told = []

    async def work():
        recorded = manifests.record(fs.store, foreign=told.append)
        return await manifests.write(fs.store, recorded, file)

    assert fs._sync(work) == Totals(1, 1)
    assert sorted(told) == ["a/e%CC%81", "e%CC%81"]
    assert kinds(fs, file, content=True) == {"a/b": "same", "a/e%CC%81": "foreign", "e%CC%81": "foreign"}


# What is held against what


def test_each_kind_of_finding(fs, file):
    names = ["altered", "gone", "replaced", "resized", "same", "cut"]
    fs.pipe({f"f/{name}": name.encode() for name in names})
    write(fs, file)
    fs.pipe({"f/replaced": b"REPLACED", "f/resized": b"", "f/new": b"new"})
    fs.rm("f/gone")
    host = Host(fs)
    altered = bytearray(host.get("f/altered"))
    altered[190] ^= 1
    host.set("f/altered", bytes(altered))
    host.set("f/cut", host.get("f/cut")[:100])
    expected = {
        "f/altered": "not authentic",
        "f/cut": "not authentic",
        "f/gone": "missing",
        "f/new": "extra",
        "f/replaced": "replaced",
        "f/resized": "replaced",
        "f/same": "same",
    }
    for content in (False, True):
        assert kinds(fs, file, content=content) == expected
    # Content that opening does not look at: only reading finds it.
    fs.pipe_file("f/new", bytes(300_000))
    raw = bytearray(host.get("f/new"))
    raw[150_000] ^= 1
    host.set("f/new", bytes(raw))
    assert kinds(fs, file) == expected
    assert kinds(fs, file, content=True) == {**expected, "f/new": "not authentic"}


def test_what_happens_to_an_object_and_its_version(fs, file):
    fs.pipe({"kept": b"1", "renamed": b"2", "copied": b"3", "again": b"4"})
    write(fs, file)
    fs._sync(lambda: rotation.rotate_kek(fs.store))
    fs._sync(lambda: rotation.new_epoch(fs.store))

    async def rewrap():
        return [await fs.store.rewrap(entry) async for entry in rotation.objects(fs.store)]

    assert fs._sync(rewrap) == [True] * 4
    fs.mv("renamed", "new")
    fs.cp_file("copied", "copy")
    fs.pipe_file("again", b"4")
    assert kinds(fs, file, content=True) == {
        "again": "replaced",
        "copied": "same",
        "copy": "extra",
        "kept": "same",
        "new": "extra",
        "renamed": "missing",
    }


def test_what_cannot_be_read_is_neither_missing_nor_altered(fs, file, monkeypatch):
    fs.pipe({"a": b"a", "b": b"b"})
    write(fs, file)
    opened = Store.reader

    async def failing(self, path, **options):
        if path == "a":
            raise StoreUnavailableError("gone fishing", path=path)
        return await opened(self, path, **options)

    monkeypatch.setattr(Store, "reader", failing)
    one, other = check(fs, file)
    assert (one.kind, str(one.error), other.kind) == ("unreadable", "gone fishing", "same")


def test_progress_is_told_in_bytes(fs, file):
    fs.pipe({"a": bytes(3_000_000), "b": bytes(5)})
    write(fs, file)
    told = []
    assert set(kinds(fs, file, content=True, advance=told.append).values()) == {"same"}
    assert sum(told) == 3_000_005
    assert len(told) > 2


# Keys


def test_a_manifest_under_an_older_epoch_and_under_a_destroyed_one(fs, file):
    fs.pipe_file("a", b"a")
    write(fs, file)
    old = fs._sync(fs.store.keyset).primary.id
    fs._sync(lambda: rotation.new_epoch(fs.store))
    assert kinds(fs, file) == {"a": "same"}
    fs.pipe_file("a", b"a")
    fs._sync(lambda: rotation.destroy_epoch(fs.store, old))
    with pytest.raises(IntegrityError, match=r"a.manifest: sealed under an epoch that is destroyed") as caught:
        check(fs, file)
    assert "its key was destroyed on purpose; a manifest is made anew by" in caught.value.hint


def test_a_client_that_does_not_know_the_epoch_yet(tmp_path, fs, file):
    fs.pipe_file("a", b"a")
    other = open_fs(tmp_path / "sovstore.toml", skip_instance_cache=True)
    assert other.cat_file("a") == b"a"
    fs._sync(lambda: rotation.new_epoch(fs.store))
    write(fs, file)
    assert kinds(other, file) == {"a": "same"}


def test_a_recovery_key_reads_manifests_and_makes_none(tmp_path, file):
    recovery = RecoveryKey.generate()
    (tmp_path / "rescue.pub").write_bytes(recovery.recipient.dump())
    made = make_store(tmp_path, recovery=[str(tmp_path / "rescue.pub")])
    fs = open_fs(made)
    fs.pipe_file("a", b"a")
    write(fs, file)
    described = config.load(made).store("cohortes")

    async def work():
        store = Store(described, config.access(described), recovery)
        assert [found.kind async for found in manifests.check(store, file, content=True)] == ["same"]
        with pytest.raises(KeyDeniedError, match="read-only under a recovery key"):
            await manifests.write(store, [], tmp_path / "other")
        await store.close()

    asyncio.run(work())
    assert not (tmp_path / "other").exists()


# The file


def test_the_standalone_reader_reads_it(fs, file):
    """docs/spec/manifest.md by an implementation of the format that shares nothing with ours."""
    fs.pipe({"b": b"22", "a/é": b"1"})
    write(fs, file)
    sovread, keyset, host = load_tool("sovread"), fs._sync(fs.store.keyset), Host(fs)
    epochs = {epoch.id: epoch.key.reveal() for epoch in keyset.epochs}
    keys = sovread.Keys(keyset.store_id, keyset.names_mode, bytes(64), epochs)
    with file.open("rb") as opened:
        lines = b"".join(sovread.open_object(opened, keys, ".sovstore/manifest")).split(b"\n")
    first, *objects, last = map(json.loads, lines[:-1])
    assert lines[-1] == b""
    assert first == {
        "below": "",
        "created": first["created"],
        "format": "sovstore manifest 1",
        "store_id": keyset.store_id.hex(),
    }
    assert objects == [
        {"path": path, "size": size, "version": host.get(path)[128:184].hex()} for path, size in (("a/é", 1), ("b", 2))
    ]
    assert last == {"bytes": 3, "objects": 2}


def test_no_file_is_overwritten_unless_asked(fs, file, tmp_path):
    fs.pipe_file("a", b"a")
    file.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        write(fs, file)
    assert file.read_bytes() == b"mine"
    write(fs, file, replace=True)
    assert kinds(fs, file) == {"a": "same"}
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        write(fs, tmp_path / "link")
    # One that appears while it is made.
    late = tmp_path / "late"

    async def entries():
        late.write_bytes(b"mine")
        yield entry("a")

    with pytest.raises(ConfigError, match="exists already"):
        fs._sync(lambda: manifests.write(fs.store, entries(), late))
    assert late.read_bytes() == b"mine"
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_file_is_whole_or_not_there(fs, file, tmp_path, monkeypatch):
    async def failing():
        for number in range(20_000):
            yield entry(f"{number:05}")
        raise StoreUnavailableError("gone fishing")

    with pytest.raises(StoreUnavailableError):
        fs._sync(lambda: manifests.write(fs.store, failing(), file))
    with pytest.raises(ValueError, match="order"):
        fs._sync(lambda: manifests.write(fs.store, [entry("b"), entry("a")], file))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(beside, "append", full)
    with pytest.raises(StoreError, match="cannot be written: no space left on device"):
        write(fs, file)
    assert [name for name in os.listdir(tmp_path) if "manifest" in name] == []


def test_entries_of_any_kind_go_through(fs, file):
    given = [ManifestEntry(f"{number:05}", number, bytes(56)) for number in range(30_000)]
    assert fs._sync(lambda: manifests.write(fs.store, given, file)) == Totals(30_000, sum(range(30_000)))
    assert file.stat().st_size > 4 * 2**20
    assert read(fs, file) == given


def test_a_name_behind_a_link_and_a_file_that_is_not_there(fs, file, tmp_path):
    fs.pipe_file("a", b"a")
    write(fs, file)
    (tmp_path / "link").symlink_to(file)
    assert kinds(fs, tmp_path / "link") == {"a": "same"}
    with pytest.raises(ObjectNotFoundError, match=r"nope: not found"):
        check(fs, tmp_path / "nope")


def test_nothing_readable_is_in_the_file(fs, file):
    fs.pipe({"a secret name/person": b"1"})
    version = fs._sync(fs.store.reader, "a secret name/person").version
    write(fs, file)
    raw = file.read_bytes()
    for secret in (b"secret", b"person", version, version.hex().encode(), b"created"):
        assert secret not in raw


def test_what_is_sealed_for_its_path_and_is_no_manifest(fs, file):
    async def work(text):
        made = manifests._FileUpload(file, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), file, replace=True)
        writer = await fs.store.writer_outside(made, manifests.PATH, what="m")
        await writer.write(text)
        await writer.commit()
        os.close(made._descriptor)

    for text in (b"", b"x", b"{}\n", b"\n" * 10_000, b"x" * 10_000):
        fs._sync(lambda text=text: work(text))
        with pytest.raises(FormatError, match=r"a\.manifest: "):
            check(fs, file)


# Many at a time


def test_results_come_in_order_and_not_more_run_than_asked():
    running, most = 0, 0

    async def one(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 5))
        running -= 1
        return number

    async def items():
        for number in range(200):
            yield number

    async def work():
        return [found async for found in walk.in_order(items(), one, 4)]

    assert asyncio.run(work()) == list(range(200))
    assert most == 4


def test_the_first_error_ends_it_and_nothing_goes_on():
    running = set()
    drawn = 0

    async def one(number):
        running.add(number)
        try:
            await asyncio.sleep(0.01 if number == 3 else 30 if number > 3 else 0)
            if number == 3:
                raise StoreUnavailableError("gone fishing")
        finally:
            running.discard(number)

    async def items():
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    async def work():
        with pytest.raises(StoreUnavailableError):
            async for _ in walk.in_order(items(), one, 2):
                pass
        assert not running
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(work())
    assert drawn < 50


def test_more_names_than_can_be_sorted(fs, file, monkeypatch):
    fs.pipe({f"{n}/{m}": b"" for n in range(3) for m in range(5)})
    monkeypatch.setattr(walk, "_MOST_HELD", 8)
    write(fs, file)
    monkeypatch.setattr(walk, "_MOST_HELD", 6)
    with pytest.raises(StoreError, match="more than 6 names to sort"):
        write(fs, file, replace=True)

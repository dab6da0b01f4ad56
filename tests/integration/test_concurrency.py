"""Threads and event loops on one store; instances and what they carry; calls to the KMS and the host."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import json
import pickle
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sovstore import config as configuration
from sovstore.errors import IntegrityError, ObjectChangedError, ObjectNotFoundError
from sovstore.filesystem import SovFileSystem
from sovstore.kms.base import WrappingKey
from sovstore.kms.local import LocalKey
from sovstore.secret import Secret
from tests.hosts import PROVIDERS, Host, Through, cheap_key_files, open_host, wrap_backends
from tests.stores import PASSPHRASE, make_store, open_fs
from tests.stress import amount

pytestmark = pytest.mark.stress

THREADS = 8
#: Of each thread, in a test that `tests/hostile/test_races.py` does with a history and several processes.
TURNS = amount(15, 200)
MIB = 2**20


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture(params=PROVIDERS)
def fs(tmp_path: Path, request: pytest.FixtureRequest) -> SovFileSystem:
    return open_fs(make_store(tmp_path, provider=request.param))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return open_host(tmp_path, "local")


def whole(seed: int, size: int) -> bytes:
    """Return bytes that say themselves whether they are all there."""
    data = random.Random(seed).randbytes(size)
    return hashlib.sha256(data).digest() + data


def is_whole(data: bytes) -> bool:
    return hashlib.sha256(data[32:]).digest() == data[:32]


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Return what `work` returns in threads that all begin at the same moment."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


# Threads

SHARED = {"shared/small": 1000, "shared/large": 300_000, "shared/folder/other": 40_000}


def test_threads_on_one_instance(fs: SovFileSystem, tmp_path: Path) -> None:
    for seed, (path, size) in enumerate(SHARED.items()):
        fs.pipe_file(path, whole(seed, size))

    def work(number: int) -> Counter[str]:
        rng, own, done = random.Random(number), dict[str, bytes](), Counter[str]()
        local = tmp_path / f"local-{number}"
        for turn in range(TURNS):
            path, shared = f"own-{number}/{rng.randrange(4)}", rng.choice(list(SHARED))
            size = rng.choice([0, 100, 16384, 70_000, MIB + 5])
            action = rng.choice(["pipe", "open", "put", "async", "mv", "rm", "share", "read", "read", "list", "range"])
            data = whole(1000 * number + turn, size)
            if action == "pipe":
                fs.pipe_file(path, data)
            elif action == "open":
                with fs.open(path, "wb") as file:
                    file.write(data[:1000])
                    file.write(data[1000:])
            elif action == "put":
                local.write_bytes(data)
                fs.put_file(str(local), path)
            elif action == "async":
                fs._sync(_write_async, fs, path, data)
            elif action == "mv" and own:
                source = rng.choice(list(own))
                fs.mv(source, f"{path}-moved")
                own[f"{path}-moved"] = own.pop(source)
            elif action == "rm" and own:
                path, _ = own.popitem()
                fs.rm_file(path)
            elif action == "share":
                fs.pipe_file(shared, whole(rng.randrange(10**6), SHARED[shared]))
            elif action == "read":
                done["torn"] += _read_shared(fs, shared)
            elif action == "range":
                try:
                    assert len(fs.cat_file(shared, 10, 500)) == 490
                except (IntegrityError, ObjectChangedError):
                    done["torn"] += 1
            elif action == "list":
                assert fs.exists(shared)
                assert fs.info(shared)["size"] == SHARED[shared] + 32
                found = fs.find("shared", detail=True)
                assert found
                assert not found.keys() - SHARED.keys()
                assert all(info["size"] == SHARED[name] + 32 for name, info in found.items())
            if action in ("pipe", "open", "put", "async"):
                own[path] = data
            assert fs.find(f"own-{number}") == sorted(own)
            for name in rng.sample(sorted(own), min(2, len(own))):
                assert fs.cat_file(name) == own[name]
            done[action] += 1
        assert {path: fs.cat_file(path) for path in own} == own
        return done

    done = sum(at_once(work), Counter[str]())
    assert done.total() - done["torn"] == THREADS * TURNS
    assert all(is_whole(fs.cat_file(path)) for path in SHARED)


def _read_shared(fs: SovFileSystem, path: str) -> int:
    """Read an object that others replace; return how often the read was refused because of that."""
    if path != "shared/large":
        # One request, which is of one version.
        assert is_whole(fs.cat_file(path))
    refused = 0
    for read in (lambda: fs.open(path).read(), lambda: fs.cat_file(path)):
        try:
            assert is_whole(read())
        except (IntegrityError, ObjectChangedError):
            refused += 1
    return refused


async def _write_async(fs: SovFileSystem, path: str, data: bytes) -> None:
    async with await fs.open_async(path, "wb") as file:
        await file.write(data[: len(data) // 2])
        await file.write(data[len(data) // 2 :])


def test_threads_that_read_one_object(fs: SovFileSystem) -> None:
    data = whole(1, 3 * MIB)
    fs.pipe_file("object", data)

    def work(number: int) -> None:
        rng = random.Random(number)
        with fs.open("object") as file:
            for _ in range(30):
                start, size = rng.randrange(len(data)), rng.randrange(100_000)
                file.seek(start)
                assert file.read(size) == data[start : start + size]
        assert fs.cat_file("object") == data

    at_once(work)


def test_threads_that_create_one_object(host: Host) -> None:
    """One of them wins; on this provider the file system says which."""

    def work(number: int) -> int | None:
        try:
            with host.fs.open("object", "xb") as file:
                file.write(whole(number, 100_000))
        except FileExistsError:
            return None
        return number

    for _ in range(5):
        (winner,) = [number for number in at_once(work) if number is not None]
        assert host.fs.cat_file("object") == whole(winner, 100_000)
        host.fs.rm("object")
    assert host.unfinished() == []


def test_a_file_that_is_handed_from_thread_to_thread(fs: SovFileSystem) -> None:
    data = whole(2, 2 * MIB)
    with fs.open("object", "wb") as file, ThreadPoolExecutor(1) as pool:
        for start in range(0, len(data), 300_000):
            pool.submit(file.write, data[start : start + 300_000]).result()
    assert fs.cat_file("object") == data


# Event loops


async def _use(fs: SovFileSystem, tag: str) -> None:
    data = whole(3, 300_000)
    await fs._pipe_file(f"{tag}/piped", data)
    await _write_async(fs, f"{tag}/opened", data)
    async with await fs.open_async(f"{tag}/opened") as file:
        assert await file.read(100) + await file.read() == data
    assert await fs._cat_file(f"{tag}/piped") == data
    assert await fs._find(tag) == [f"{tag}/opened", f"{tag}/piped"]
    assert len(await asyncio.gather(*(fs._cat_file(f"{tag}/piped", n, n + 10) for n in range(50)))) == 50
    await fs._mv_file(f"{tag}/piped", f"{tag}/moved")
    assert await fs._exists(f"{tag}/moved")
    await fs._rm(tag, recursive=True)


def test_one_event_loop_after_another(fs: SovFileSystem) -> None:
    source = fs.store.config.source
    asynchronous = open_fs(source, asynchronous=True)

    async def fresh() -> None:
        await _use(open_fs(source, asynchronous=True, skip_instance_cache=True), "fresh")

    for turn in range(2):
        asyncio.run(_use(asynchronous, f"loop-{turn}"))
        asyncio.run(fresh())
        fs.pipe_file("sync", b"data")
        assert fs.cat_file("sync") == b"data"
    assert fs.find("") == ["sync"]


def test_closed_in_each_loop(fs: SovFileSystem) -> None:
    asynchronous = open_fs(fs.store.config.source, asynchronous=True)

    async def use(tag: str) -> None:
        async with asynchronous:
            await _use(asynchronous, tag)
        await _use(asynchronous, tag)
        await asynchronous.close()

    asyncio.run(use("one"))
    asyncio.run(use("two"))


def test_event_loops_in_threads_beside_a_sync_instance(fs: SovFileSystem) -> None:
    source = fs.store.config.source
    shared = open_fs(source, asynchronous=True)

    def work(number: int) -> None:
        if number % 4 == 0:
            fs.pipe_file(f"sync-{number}", b"x" * 50_000)
            assert fs.cat_file(f"sync-{number}") == b"x" * 50_000
            fs.rm(f"sync-{number}")
        else:
            own = open_fs(source, asynchronous=True) if number % 2 else shared
            asyncio.run(_use(own, f"loop-{number}"))

    at_once(work)
    assert fs.find("") == []


def test_open_async(host: Host) -> None:
    fs = open_fs(host.fs.store.config.source, asynchronous=True)
    data = whole(4, 3 * MIB)

    async def use() -> None:
        writer = await fs.open_async("object", "wb")
        for start in range(0, len(data), 500_000):
            assert await writer.write(data[start : start + 500_000]) == len(data[start : start + 500_000])
        assert not await fs._exists("object")
        await writer.close()
        await writer.close()
        with pytest.raises(ValueError, match="closed"):
            await writer.write(b"more")
        async with await fs.open_async("object") as reader:
            assert reader.size == len(data)
            pieces = []
            while piece := await reader.read(700_000):
                pieces.append(piece)
            assert b"".join(pieces) == data
        with pytest.raises(FileExistsError):
            await fs.open_async("object", "xb")
        with pytest.raises(ObjectNotFoundError):
            await fs.open_async("nothing")

    asyncio.run(use())
    assert host.unfinished() == []


@pytest.mark.parametrize("how", ["exception", "discard", "dropped", "cancelled"])
def test_open_async_given_up(host: Host, how: str) -> None:
    fs = open_fs(host.fs.store.config.source, asynchronous=True)
    host.fs.pipe_file("object", b"old")

    async def write() -> None:
        async with await fs.open_async("object", "wb") as writer:
            await writer.write(bytes(2 * MIB))
            if how == "exception":
                raise KeyError
            await asyncio.sleep(60)

    async def use() -> None:
        if how == "exception":
            with pytest.raises(KeyError):
                await write()
        elif how == "cancelled":
            task = asyncio.ensure_future(write())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            writer = await fs.open_async("object", "wb")
            await writer.write(bytes(2 * MIB))
            if how == "discard":
                await writer.discard()
            del writer
            gc.collect()
            # Time for the task that the finaliser started.
            for _ in range(100):
                if not host.unfinished():
                    break
                await asyncio.sleep(0.01)

    asyncio.run(use())
    assert host.fs.cat_file("object") == b"old"
    assert host.unfinished() == []


def test_tasks_that_are_cancelled(host: Host) -> None:
    """Each leaves the old object or its own whole one."""
    fs, rng = open_fs(host.fs.store.config.source, asynchronous=True), random.Random(5)
    allowed = [whole(n, 2 * MIB) for n in range(2)]

    async def use() -> None:
        await fs._pipe_file("object", allowed[0])
        for turn in range(30):
            task = asyncio.ensure_future(fs._pipe_file("object", allowed[turn % 2]))
            await asyncio.sleep(rng.uniform(0, 0.02))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await fs._cat_file("object") in allowed

    asyncio.run(use())
    assert host.unfinished() == []


def test_several_stores_at_once(tmp_path: Path) -> None:
    names = [f"store-{n}" for n in range(4)]
    stores = {}
    for number, name in enumerate(names):
        file = make_store(tmp_path, name, provider=PROVIDERS[number % 2], names=("encrypted", "plain")[number // 2])
        stores[name] = file
    opened = {name: open_fs(file, name) for name, file in stores.items()}
    assert len({id(fs) for fs in opened.values()}) == 4

    def work(number: int) -> None:
        name = names[number % 4]
        fs = opened[name]
        for turn in range(10):
            fs.pipe_file(f"{number}/{turn}", f"{name} {number} {turn}".encode())
            url = f"sov://{name}/{number}/{turn}"
            with fsspec.open(url, "r", config=str(stores[name])) as file:
                assert file.read() == f"{name} {number} {turn}"

    at_once(work)
    for name, fs in opened.items():
        assert len(fs.find("")) == 20
        assert {fs.cat_file(path).split()[0] for path in fs.find("")} == {name.encode()}


# Instances


def test_an_instance_is_used_again_until_its_configuration_changes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    file = host.fs.store.config.source
    assert file is not None
    assert open_fs(file) is host.fs
    assert fsspec.filesystem("sov", store="cohortes", config=str(file)) is fsspec.filesystem(
        "sov", store="cohortes", config=str(file)
    )
    monkeypatch.chdir(file.parent)
    assert SovFileSystem("cohortes", config=file.name) is host.fs
    assert open_fs(file, asynchronous=True) is not host.fs
    assert open_fs(file, skip_instance_cache=True) is not host.fs

    configuration.write_settings(file, "other", {"provider": "memory", "root": "/x", "kek": "keyfile:/x"})
    after = open_fs(file)
    assert after is not host.fs
    assert open_fs(file) is after

    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__BACKUP", str(file.parent / "elsewhere"))
    overridden = open_fs(file)
    assert overridden is not after
    assert overridden.store.config.backup == str(file.parent / "elsewhere")
    assert open_fs(file) is overridden
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__BACKUP", str(file.parent / "third"))
    assert open_fs(file) is not overridden
    monkeypatch.delenv("SOVSTORE_STORES__COHORTES__BACKUP")
    assert open_fs(file) is after


def test_an_instance_of_the_configuration_of_the_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    file = host.fs.store.config.source
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    first = SovFileSystem("cohortes")
    assert SovFileSystem("cohortes") is first
    second = file.parent / "second"
    second.mkdir()
    monkeypatch.setenv("SOVSTORE_CONFIG", str(make_store(second, provider="memory")))
    assert SovFileSystem("cohortes") is not first
    assert SovFileSystem("cohortes").store.config.provider == "memory"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Every key that comes to light while the test runs, and the passphrase."""
    found = {PASSPHRASE.encode()}
    make, unwrap = LocalKey.__init__, WrappingKey.unwrap

    def made(self: LocalKey, uri: str, key: Secret) -> None:
        found.add(key.reveal())
        make(self, uri, key)

    def unwrapped(self: WrappingKey, wrapped: bytes, context: bytes) -> bytes:
        secret = unwrap(self, wrapped, context)
        found.add(secret)
        return secret

    monkeypatch.setattr(LocalKey, "__init__", made)
    monkeypatch.setattr(WrappingKey, "unwrap", unwrapped)
    return found


def _spellings(secret: bytes) -> set[bytes]:
    encoded = {base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b32encode(secret)}
    return {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        repr(secret)[2:-1].encode(),
        *(e.rstrip(b"=") for e in encoded),
    }


def test_nothing_that_an_instance_shows_or_carries_is_secret(
    secrets: set[bytes], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", PASSPHRASE)
    fs = host.fs
    fs.pipe_file("object", b"data")
    keyset = fs._sync(fs.store.keyset)
    secrets |= {keyset.names_key.reveal(), keyset.auth_key.reveal()}
    secrets |= {epoch.key.reveal() for epoch in keyset.epochs}
    header = fs._sync(fs.store.reader, "object").header
    secrets.add(fs._sync(fs.store._dek, "object", header).reveal())
    assert len(secrets) == 7
    with fs.open("object") as file:
        carried = {
            "pickle": pickle.dumps(fs),
            "pickle, oldest": pickle.dumps(fs, protocol=0),
            "pickle of a file": pickle.dumps(file),
            "pickle of an OpenFile": pickle.dumps(
                fsspec.open("sov://cohortes/object", "w", config=fs.store.config.source)
            ),
            "pickle of a mapper": pickle.dumps(fs.get_mapper("")),
            "json": fs.to_json().encode(),
            "dict": repr(fs.to_dict()).encode(),
            "token": repr(fs._fs_token).encode(),
            "hash": repr(hash(fs)).encode(),
            "options": repr((fs.storage_options, fs.storage_args)).encode(),
            "repr": "".join(map(repr, [fs, fs.store, file, keyset, fs.store.config, fs.store.access])).encode(),
            "str": f"{fs} {fs.store} {file} {keyset}".encode(),
            "info": repr(fs.info("object")).encode(),
            "variables": repr((vars(fs), vars(fs.store))).encode(),
        }
    for what, data in carried.items():
        assert data, what
        for secret in secrets:
            for spelling in _spellings(secret):
                assert spelling not in data, what


def test_instances_are_built_again(host: Host) -> None:
    fs = host.fs
    fs.pipe_file("object", b"data")
    builds = {
        "pickle": lambda: pickle.loads(pickle.dumps(fs)),  # noqa: S301  # our own
        "json": lambda: SovFileSystem.from_json(fs.to_json()),
        "json by fsspec": lambda: fsspec.AbstractFileSystem.from_json(fs.to_json()),
        "dict": lambda: SovFileSystem.from_dict(fs.to_dict()),
        "options": lambda: SovFileSystem(*fs.storage_args, **fs.storage_options),
        "url": lambda: fsspec.core.url_to_fs("sov://cohortes/object", **fs.storage_options)[0],
    }
    for what, build in builds.items():
        assert build().cat_file("object") == b"data", what
        SovFileSystem.clear_instance_cache()
        again = build()
        assert again is not fs, what
        assert again.cat_file("object") == b"data", what
        assert again.store_name == "cohortes"
    assert builds["pickle"]() == builds["json"]()
    with fs.open("object") as file:
        file.seek(2)
        with pickle.loads(pickle.dumps(file)) as other:  # noqa: S301  # our own
            assert other.read() == b"ta"


def test_a_pickle_of_an_asynchronous_instance(host: Host) -> None:
    host.fs.pipe_file("object", b"data")
    pickled = pickle.dumps(open_fs(host.fs.store.config.source, asynchronous=True))
    SovFileSystem.clear_instance_cache()

    async def use() -> bytes:
        fs = pickle.loads(pickled)  # noqa: S301  # our own
        assert fs.asynchronous
        return await fs._cat_file("object")

    assert asyncio.run(use()) == b"data"


def test_made_asynchronous_as_zarr_does(host: Host) -> None:
    host.fs.pipe_file("object", b"data")
    described = json.loads(host.fs.to_json())
    described["asynchronous"] = True
    asynchronous = fsspec.AbstractFileSystem.from_json(json.dumps(described))
    assert asynchronous.asynchronous
    assert asyncio.run(asynchronous._cat_file("object")) == b"data"
    assert not host.fs.asynchronous


def test_what_holds_keys_is_not_carried(host: Host) -> None:
    host.fs.pipe_file("object", b"data")
    keyset = host.fs._sync(host.fs.store.keyset)
    for secret in (host.fs.store, keyset, keyset.auth_key):
        with pytest.raises(TypeError):
            pickle.dumps(secret)


# What is asked of the KMS


@pytest.fixture
def unwraps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    real = WrappingKey.unwrap

    def counted(self: WrappingKey, wrapped: bytes, context: bytes) -> bytes:
        calls.append(self.uri)
        return real(self, wrapped, context)

    monkeypatch.setattr(WrappingKey, "unwrap", counted)
    return calls


def fresh(fs: SovFileSystem, **options: Any) -> SovFileSystem:
    return open_fs(fs.store.config.source, skip_instance_cache=True, **options)


def test_one_call_to_the_kms(fs: SovFileSystem, unwraps: list[str]) -> None:
    fs = fresh(fs)
    assert unwraps == []
    for n in range(25):
        fs.pipe_file(f"folder/{n}", b"data")
        assert fs.cat_file(f"folder/{n}") == b"data"
        assert len(fs.ls("folder")) == n + 1
        with fs.open(f"folder/{n}") as file:
            assert file.read() == b"data"
    fs.mv("folder/0", "moved")
    fs.cp_file("moved", "copied")
    fs.rm("folder", recursive=True)
    assert len(unwraps) == 1


def test_one_call_to_the_kms_from_threads_and_from_tasks(fs: SovFileSystem, unwraps: list[str]) -> None:
    fs.pipe_file("object", b"data")
    unwraps.clear()
    for _ in range(5):
        one = fresh(fs)
        assert at_once(lambda n, one=one: one.cat_file("object")) == [b"data"] * THREADS
        assert len(unwraps) == 1
        unwraps.clear()

    async def use() -> list[bytes]:
        one = fresh(fs, asynchronous=True)
        return await asyncio.gather(*(one._cat_file("object") for _ in range(THREADS)))

    assert asyncio.run(use()) == [b"data"] * THREADS
    assert len(unwraps) == 1


def test_one_call_to_the_kms_in_two_loops_one_after_the_other(fs: SovFileSystem, unwraps: list[str]) -> None:
    fs.pipe_file("object", b"data")
    unwraps.clear()
    one = fresh(fs, asynchronous=True)
    for _ in range(3):
        assert asyncio.run(one._cat_file("object")) == b"data"
    assert len(unwraps) == 1


# What is asked of the host


@pytest.fixture(params=PROVIDERS)
def counted(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[SovFileSystem, Counter[str]]:
    calls = Counter[str]()
    file = make_store(tmp_path, provider=request.param)
    wrap_backends(monkeypatch, lambda inner: Through(inner, calls))
    fs = open_fs(file)
    fs.pipe({f"folder/{n // 10}/{n}": b"data" for n in range(50)} | {"large": whole(6, MIB)})
    calls.clear()
    return fs, calls


Counted = tuple[SovFileSystem, Counter[str]]


def test_requests_of_small_reads(counted: Counted) -> None:
    fs, calls = counted
    assert fs.cat_file("folder/0/1") == b"data"
    assert calls == {"read": 1}
    calls.clear()
    assert len(fs.cat([f"folder/0/{n}" for n in range(10)])) == 10
    assert calls == {"read": 10}


def test_requests_of_a_first_use(counted: Counted) -> None:
    fs, calls = counted
    fresh(fs).cat_file("folder/0/1")
    # The keyset, and the object.
    assert calls == {"read": 2}


LISTINGS: list[Callable[[SovFileSystem], Any]] = [
    lambda fs: fs.ls("folder/0"),
    lambda fs: fs.ls("folder/0", detail=False),
    lambda fs: fs.find("folder"),
    lambda fs: fs.find("", detail=True, withdirs=True),
    lambda fs: fs.du("folder"),
    lambda fs: fs.du("", total=False),
    lambda fs: fs.glob("folder/**"),
]


def test_requests_of_listings(counted: Counted) -> None:
    fs, calls = counted
    for number, look in enumerate(LISTINGS):
        calls.clear()
        assert look(fs)
        assert calls["list"] == 1, number
        assert calls["read"] == 0, number
        # Of the folder that was asked for, at most.
        assert calls["stat"] <= 1, number
        assert calls.keys() <= {"list", "stat"}, number


def test_requests_of_walks_and_trees(counted: Counted) -> None:
    fs, calls = counted
    assert sum(len(files) for _, _, files in fs.walk("folder")) == 50
    assert calls["list"] <= 6
    assert calls["read"] == calls["stat"] == 0


def test_requests_of_looks(counted: Counted) -> None:
    fs, calls = counted
    for look in (fs.info, fs.exists, fs.isfile, fs.isdir, fs.size, fs.modified, fs.ukey, fs.checksum):
        calls.clear()
        look("large")
        assert calls == {"stat": 1}, look


def test_requests_of_an_open_file(counted: Counted) -> None:
    fs, calls = counted
    with fs.open("large") as file:
        assert file.read(10) == whole(6, MIB)[:10]
    assert calls["stat"] <= 1
    assert calls["read"] <= 2
    assert calls.keys() <= {"stat", "read"}


def test_requests_of_many_ranges(counted: Counted) -> None:
    fs, calls = counted
    starts = list(range(0, 1_000_000, 50_000))
    found = fs.cat_ranges(["large"] * 20, starts, [start + 10 for start in starts])
    assert found == [whole(6, MIB)[start : start + 10] for start in starts]
    assert calls["stat"] == 1
    # The two of the opening, and what lies between: neighbours are fetched together.
    assert calls["read"] <= 3
    calls.clear()
    fs.cat_ranges(["large"] * 20, starts, [start + 10 for start in starts], max_gap=0)
    assert calls["stat"] == 1
    assert calls["read"] <= 2 + 20


def test_requests_of_writes(counted: Counted) -> None:
    fs, calls = counted
    works: list[tuple[Callable[[], Any], dict[str, int]]] = [
        (lambda: fs.pipe_file("new", b"data"), {"upload": 1}),
        (lambda: fs.rm_file("new"), {"stat": 1, "delete": 1}),
        (lambda: fs.cp_file("large", "copy"), {"stat": 1, "read": 2, "copy": 1}),
    ]
    for work, expected in works:
        calls.clear()
        work()
        assert calls == expected

"""KEKs and epochs of a store: who opens it, what its objects are sealed under, and that data is never touched."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sovstore import config, keyset_lock, keysets, rotation, store_creation
from sovstore.errors import ConfigError, IntegrityError, NoMatchingKeyError, StoreUnavailableError
from sovstore.filesystem import SovFileSystem
from sovstore.format.keyset import parse
from sovstore.format.recovery import RecoveryKey
from sovstore.kms.base import WrappingKey
from tests import stress
from tests.hosts import Host, cheap_key_files
from tests.stores import make_store, open_fs
from tests.zygote import zygote


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count what KEKs are asked, by method and URI."""
    counted: Counter[tuple[str, str]] = Counter()
    for method in ("wrap", "unwrap"):
        real = getattr(WrappingKey, method)

        def counting(self: WrappingKey, *args: bytes, _real: Any = real, _method: str = method) -> bytes:
            counted[_method, self.uri] += 1
            result: bytes = _real(self, *args)
            return result

        monkeypatch.setattr(WrappingKey, method, counting)
    return counted


class Site:
    """A store, its configuration, and what lies at its host."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.file = make_store(folder, **settings)
        self.first = f"keyfile:{folder / 'kek.key'}"
        self.second = f"keyfile:{folder / 'second.key'}"

    def open(self) -> SovFileSystem:
        return open_fs(self.file, skip_instance_cache=True)

    @property
    def described(self) -> config.StoreConfig:
        return config.load(self.file).store("cohortes")

    def record(self, settings: Any) -> None:
        config.write_settings(self.file, "cohortes", dict(settings))

    def do(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Do something of `rotation` on a freshly opened store."""
        fs = self.open()
        try:
            return fs._sync(lambda: work(fs.store, *args, **options))
        finally:
            fs.close()

    def labels(self) -> list[str]:
        raw = (self.folder / "cohortes" / keysets.LOCATION).read_bytes()
        return list(parse(raw).wraps)

    def data(self) -> dict[str, tuple[bytes, int, int]]:
        """Return the bytes, time and inode of each object at the host."""
        root = self.folder / "cohortes"
        files = [path for path in root.rglob("*") if path.is_file() and ".sovstore" not in path.parts]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.open().pipe({"a": b"one", "folder/b": b"two" * 9000})
    return site


# KEKs


def test_data_is_never_touched_and_each_kek_is_asked_once(site: Site, calls: Counter[tuple[str, str]]) -> None:
    before = site.data()
    site.do(rotation.add_kek, site.second, site.record)
    assert site.labels() == sorted([site.first, site.second])
    assert site.described.other_keks == (site.second,)
    calls.clear()
    site.do(rotation.rotate_kek)
    # One call opens it, and one to each KEK wraps it.
    assert calls == {("unwrap", site.first): 1, ("wrap", site.first): 1, ("wrap", site.second): 1}
    site.do(rotation.remove_kek, site.first, site.record)
    assert site.labels() == [site.second]
    assert (site.described.kek, site.described.other_keks) == (site.second, ())
    assert site.data() == before
    Path(site.first.removeprefix("keyfile:")).unlink()
    assert site.open().cat("a") == b"one"


@pytest.mark.stress
def test_one_call_opens_all_objects(tmp_path: Path, calls: Counter[tuple[str, str]]) -> None:
    count = stress.amount(1_000, 10_000)
    fs = open_fs(make_store(tmp_path, provider="memory"))
    fs.pipe({f"{n % 100}/{n}": b"x" for n in range(count)})
    fs.close()
    calls.clear()
    assert len(fs.find("")) == count
    assert fs.cat([f"{n % 100}/{n}" for n in range(0, count, 97)])
    assert calls.total() == 1


def test_either_kek_opens_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.do(rotation.add_kek, site.second, site.record)
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__KEK", site.second)
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OTHER_KEKS", "[]")
    Path(site.first.removeprefix("keyfile:")).rename(site.folder / "away")
    assert site.open().cat("a") == b"one"


def test_a_change_never_locks_somebody_out(site: Site) -> None:
    site.do(rotation.add_kek, site.second, site.record)
    config.write_settings(site.file, "cohortes", {"other_keks": []})
    for change in (rotation.rotate_kek, rotation.new_epoch):
        with pytest.raises(ConfigError, match=r"also opened by keyfile:.*second.key") as caught:
            site.do(change)
        assert "other_keks" in str(caught.value.hint)
        assert f"remove-kek cohortes '{site.second}'" in str(caught.value.hint)
    site.do(rotation.remove_kek, site.second, site.record)
    assert site.labels() == [site.first]


def test_the_only_kek_stays(site: Site) -> None:
    with pytest.raises(ConfigError, match="is the only KEK"):
        site.do(rotation.remove_kek, site.first, site.record)
    with pytest.raises(ConfigError, match="is none of its KEKs"):
        site.do(rotation.remove_kek, site.second, site.record)


def test_an_old_kek_opens_old_keysets_and_nothing_new(site: Site) -> None:
    site.do(rotation.add_kek, site.second, site.record)
    old = (site.folder / "cohortes" / keysets.LOCATION).read_bytes()
    site.do(rotation.remove_kek, site.first, site.record, keep_old=True)
    assert site.described.old_keks == (site.first,)
    assert site.labels() == [site.second]
    described = site.described
    assert keysets.unlock(old, described, config.access(described)).version == 2
    # A keyset that only the old one opens, as on a host that was restored from an old copy.
    only_old = keysets.wrap_anew(
        keysets.unlock(old, described, config.access(described)),
        [keysets.Keks(described, config.access(described)).open(site.first)],
        [],
    )
    assert keysets.unlock(only_old, described, config.access(described)).version == 2
    site.do(rotation.rotate_kek)
    assert site.labels() == [site.second]
    Path(site.second.removeprefix("keyfile:")).unlink()
    with pytest.raises(NoMatchingKeyError):
        site.open().cat("a")


def test_a_failed_add_changes_nothing(site: Site) -> None:
    before = site.file.read_bytes(), (site.folder / "cohortes" / keysets.LOCATION).read_bytes()
    for uri in ("nonsense:x", "keyfile:relative", "awskms://x"):
        with pytest.raises(Exception, match=r"key URI|key file URI|US law"):
            site.do(rotation.add_kek, uri, site.record)
    assert (site.file.read_bytes(), (site.folder / "cohortes" / keysets.LOCATION).read_bytes()) == before


def test_a_recovery_key_is_added_later(site: Site) -> None:
    key = RecoveryKey.generate()
    (site.folder / "rescue").write_bytes(key.dump())
    (site.folder / "rescue.pub").write_bytes(key.recipient.dump())
    before = site.data()
    site.do(rotation.add_recovery, str(site.folder / "rescue.pub"), site.record)
    site.do(rotation.add_recovery, str(site.folder / "rescue.pub"), site.record)
    assert site.described.recovery == (str(site.folder / "rescue.pub"),)
    assert site.data() == before
    Path(site.first.removeprefix("keyfile:")).unlink()
    rescued = open_fs(site.file, recovery_key=str(site.folder / "rescue"), skip_instance_cache=True)
    assert rescued.cat("a") == b"one"
    with pytest.raises(PermissionError, match="read-only"):
        rescued._sync(lambda: rotation.rotate_kek(rescued.store))


# Epochs


def test_rewrap_writes_headers_alone(site: Site) -> None:
    host = Host(site.open())
    before = {path: host.get(path) for path in ("a", "folder/b")}
    first = site.do(lambda store: store.keyset()).primary.id
    epoch = site.do(rotation.new_epoch)

    async def rewrap(store: Any) -> list[bool]:
        return [await store.rewrap(entry) async for entry in rotation.objects(store)]

    assert site.do(rewrap) == [True, True]
    assert site.do(rewrap) == [False, False]
    for path, old in before.items():
        new = host.get(path)
        assert new[128:] == old[128:]
        assert (old[8:24], new[8:24]) == (first, epoch.id)
    assert site.open().cat("folder/b") == b"two" * 9000


def test_a_damaged_object_is_not_rewrapped(site: Site) -> None:
    site.do(rotation.new_epoch)
    host = Host(site.open())
    host.set("folder/b", host.get("folder/b")[:-20])

    async def rewrap(store: Any) -> None:
        await store.rewrap(await store.stat("folder/b"))

    with pytest.raises(IntegrityError):
        site.do(rewrap)


def test_a_destroyed_epoch(site: Site) -> None:
    first = site.do(lambda store: store.keyset()).primary.id
    with pytest.raises(ConfigError, match="all is written under it now"):
        site.do(rotation.destroy_epoch, first)
    site.do(rotation.new_epoch)
    site.open().pipe_file("later", b"kept")
    site.do(rotation.destroy_epoch, first)
    site.do(rotation.destroy_epoch, first)
    fs = site.open()
    for path in ("a", "folder/b"):
        with pytest.raises(IntegrityError, match="destroyed"):
            fs.cat_file(path)
    assert fs.cat_file("later") == b"kept"
    with pytest.raises(ConfigError, match="no such epoch"):
        site.do(rotation.destroy_epoch, bytes(16))
    copies = site.do(lambda store: _copies(store))
    assert (len(copies.at_host), len(copies.here)) == (3, 3)
    site.do(rotation.delete_copies, copies)
    again = site.do(lambda store: _copies(store))
    assert (again.at_host, again.here) == ((), ())
    assert site.open().cat_file("later") == b"kept"


async def _copies(store: Any) -> rotation.Copies:
    return await rotation.copies_of(store, await store.keyset())


def test_what_objects_are_sealed_under(site: Site) -> None:
    first = site.do(lambda store: store.keyset()).primary.id
    epoch = site.do(rotation.new_epoch)
    site.open().pipe_file("c", b"12345")
    (site.folder / "cohortes" / "foreign").write_bytes(b"somebody else's" * 40)

    async def usage(store: Any) -> rotation.Usage:
        found = rotation.Usage()
        async for entry in rotation.objects(store):
            await rotation.count(store, found, entry)
        return found

    found = site.do(usage)
    assert found.objects == {first: 2, epoch.id: 1}
    assert found.size == {first: 3 + 27_000, epoch.id: 5}
    assert sorted(found.examples[first]) == ["a", "folder/b"]


# Several clients


@pytest.mark.parametrize("settings", [{}, {"provider": "fsspec"}], ids=["conditions", "a lock"])
def test_no_change_is_lost(tmp_path: Path, settings: dict[str, str]) -> None:
    if settings:
        settings = {**settings, "root": f"file://{tmp_path / 'cohortes'}"}
    site = Site(tmp_path, **settings)
    commands = [("keys", "new-epoch", "cohortes")] * 3 + [("keys", "rotate-kek", "cohortes")] * 2
    with zygote(tmp_path, {"SOVSTORE_CONFIG": str(site.file)}) as run:
        ran = run.run_all(commands)
        assert ran.codes == [0] * 5, ran.printed
        # A KEK that another client adds meanwhile is kept too: whoever does not know it is refused.
        ran = run.run_all([("keys", "add-kek", "cohortes", site.second), *commands[:4]])
        assert ran.codes[0] == 0
        assert all(code == 0 or "is also opened by" in text for code, text in zip(ran.codes, ran.printed, strict=True))
    keyset = site.do(lambda store: store.keyset())
    added = 3 + sum(code == 0 for code in ran.codes[1:4])
    assert len(keyset.epochs) >= 1 + added
    # Each is one version, and a new epoch two, unless a later one was primary before it.
    assert keyset.version >= 1 + added + 1 + 2 + 1
    assert [epoch.state for epoch in keyset.epochs].count("primary") == 1
    assert site.labels() == sorted([site.first, site.second])
    assert list((tmp_path / "cohortes/.sovstore").glob("locks/*")) == []


def test_a_lock_that_is_held_or_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, provider="fsspec", root=f"file://{tmp_path / 'cohortes'}")
    lock = tmp_path / "cohortes/.sovstore/locks/somebody"
    lock.parent.mkdir()
    lock.write_bytes(b"-")
    monkeypatch.setattr(keyset_lock, "WAIT_S", 1)
    with pytest.raises(StoreUnavailableError, match="another client is changing its keyset"):
        site.do(rotation.rotate_kek)
    assert [path.name for path in lock.parent.iterdir()] == ["somebody"]
    old = lock.stat().st_mtime - 301
    os.utime(lock, (old, old))
    assert site.do(rotation.rotate_kek).version == 2
    assert list(lock.parent.iterdir()) == []


# The audit trail


def test_the_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sovstore.toml").write_text('[audit]\nfile = "audit.jsonl"\n')
    site = Site(tmp_path)
    site.open().pipe_file("secret-path", b"canary-content")
    site.do(rotation.rotate_kek)
    Path(site.first.removeprefix("keyfile:")).rename(tmp_path / "away")
    with pytest.raises(NoMatchingKeyError):
        site.open().cat_file("secret-path")
    (tmp_path / "away").rename(tmp_path / "kek.key")
    site.do(rotation.rotate_kek)
    text = (tmp_path / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["action"], line["outcome"]) for line in lines] == [
        ("wrap", "done"),
        ("init", "done"),
        ("unwrap", "done"),
        *[("unwrap", "done"), ("wrap", "done"), ("rotate-kek", "done")] * 2,
    ]
    assert {line["store"] for line in lines} == {"cohortes"}
    assert all("@" in line["who"] and line["time"].endswith("+00:00") for line in lines)
    assert [line["version"] for line in lines if line["action"] == "rotate-kek"] == [2, 3]
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    for canary in ("secret-path", "canary", "passphrase"):
        assert canary not in text


def test_no_kms_is_asked_that_cannot_be_recorded(tmp_path: Path, calls: Counter[tuple[str, str]]) -> None:
    site = Site(tmp_path)
    site.file.write_text(site.file.read_text() + '[audit]\nfile = "nowhere/audit.jsonl"\n')
    with pytest.raises(ConfigError, match="the audit trail cannot be written"):
        site.open().ls("")


def test_a_store_made_for_several_keks(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.do(rotation.add_kek, site.second, site.record)
    (tmp_path / "passphrase").rename(tmp_path / "kept")
    config.write_settings(
        site.file,
        "twice",
        {
            "provider": "local",
            "root": "twice",
            "kek": site.first,
            "other_keks": [site.second],
            "backup": "backup",
            "passphrase_file": "kept",
        },
    )
    described = config.load(site.file).store("twice")

    def record(made: dict[str, str]) -> None:
        config.write_settings(site.file, "twice", made)

    asyncio.run(store_creation.create(described, config.access(described), record))
    raw = (tmp_path / "twice" / keysets.LOCATION).read_bytes()
    assert sorted(parse(raw).wraps) == sorted([site.first, site.second])

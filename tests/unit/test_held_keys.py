"""How long the keys of a store are used before the KMS is asked again, and what happens when it does not answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from sovstore import config, held_keys, keysets, rotation, store
from sovstore.errors import ConfigError, KeyDeniedError, KMSUnavailableError, SovstoreError
from sovstore.filesystem import SovFileSystem
from sovstore.kms.local import LocalKey
from tests.hosts import cheap_key_files
from tests.stores import make_store, open_fs

#: More than is read ahead.
BIG = bytes(16 * 2**20)


class KMS:
    """A clock, and a KEK that can be out of reach, slow or revoked; it counts what it is asked."""

    def __init__(self, patch):
        self.now, self.asked, self.failure, self.takes_s = 1000.0, 0, None, 0.0
        self.decrypt = LocalKey._decrypt
        patch.setattr(held_keys, "_now", lambda: self.now)
        patch.setattr(LocalKey, "_decrypt", lambda key, *args: self.answer(key, *args))

    def answer(self, key, *args):
        self.asked += 1
        time.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        return self.decrypt(key, *args)


@pytest.fixture
def kms(monkeypatch):
    cheap_key_files(monkeypatch)
    return KMS(monkeypatch)


def opened(tmp_path, **settings) -> SovFileSystem:
    fs = open_fs(make_store(tmp_path, **settings), skip_instance_cache=True)
    fs.pipe({"a": b"1", "b": b"2", "big": BIG})
    return fs


def test_it_is_asked_again_after_an_hour(tmp_path, kms):
    fs = opened(tmp_path)
    assert kms.asked == 1
    kms.now += 3600
    fs.cat("a")
    assert kms.asked == 1
    kms.now += 1
    fs.cat("a")
    fs.ls("")
    assert kms.asked == 2
    kms.now += 3601
    fs.ls("")
    assert kms.asked == 3


def test_the_time_is_a_setting(tmp_path, kms):
    fs = opened(tmp_path, cache="90s")
    kms.now += 91
    fs.ls("")
    assert kms.asked == 2


@pytest.mark.parametrize("grace", ["0s", "2h"])
def test_a_revoked_key_stops_every_reader(tmp_path, kms, grace):
    fs = opened(tmp_path, grace=grace)
    file = fs.open("big", block_size=16384)
    file.read(10)
    kms.failure = KeyDeniedError("revoked")
    kms.now += 3599
    assert file.read(16384)
    kms.now += 2
    for use in (
        lambda: fs.cat("a"),
        lambda: fs.ls(""),
        lambda: fs.pipe_file("b", b"x"),
        lambda: file.seek(12 * 2**20) and file.read(16384),
    ):
        with pytest.raises(KeyDeniedError, match="revoked"):
            use()
    file.close()


def test_a_kms_that_is_down_is_an_error_at_once(tmp_path, kms):
    fs = opened(tmp_path)
    kms.failure = KMSUnavailableError("down", hint="wait")
    kms.now += 3601
    with pytest.raises(KMSUnavailableError, match="down"):
        fs.cat("a")
    kms.failure = None
    assert fs.cat("a") == b"1"


def test_grace_bridges_silence_for_its_time_and_says_so(tmp_path, kms, caplog):
    fs = opened(tmp_path, cache="1h", grace="10m")
    kms.failure = KMSUnavailableError("down")
    kms.now += 3600 + 600
    assert fs.cat("a") == b"1"
    assert "its keys are used beyond their time: down" in caplog.text
    asked = kms.asked
    fs.cat("a")
    # It is asked each time: the first answer counts, whatever it is.
    assert kms.asked > asked
    kms.now += 1
    with pytest.raises(KMSUnavailableError):
        fs.cat("a")


def test_grace_never_opens_a_store(tmp_path, kms):
    fs = opened(tmp_path, grace="10m")
    fs.close()
    kms.failure = KMSUnavailableError("down")
    with pytest.raises(KMSUnavailableError):
        fs.cat("a")


def test_another_kek_of_the_store_is_named_when_one_is_down(tmp_path, kms):
    file = make_store(tmp_path)
    described = config.load(file).store("cohortes")
    other = f"keyfile:{tmp_path / 'other.key'}"
    config.write_settings(file, "cohortes", {"other_keks": [other]})
    changed = config.load(file).store("cohortes")
    keks = keysets.Keks(changed, config.access(changed))
    keks.open(other, make=True)
    keyset = keysets.unlock((tmp_path / "cohortes" / keysets.LOCATION).read_bytes(), described, keks)
    raw = keysets.wrap_anew(keyset, keks.all(), [])
    kms.failure = KMSUnavailableError("down", hint="wait", path=described.kek, provider="local", request_id="r1")
    with pytest.raises(KMSUnavailableError) as caught:
        keysets.unlock(raw, changed, keks)
    assert caught.value.hint == (
        f"wait; the store is opened by {other} too: "
        f"SOVSTORE_STORES__COHORTES__KEK='{other}' SOVSTORE_STORES__COHORTES__OTHER_KEKS='[]'"
    )
    assert (caught.value.provider, caught.value.request_id) == ("local", "r1")


@pytest.mark.parametrize("setting", ["cache", "grace"])
@pytest.mark.parametrize("value", ["1", "h", "1.5h", "-1h", "1 h", "1w", "1234567s"])
def test_what_is_no_duration_is_refused(tmp_path, setting, value):
    file = make_store(tmp_path, provider="memory")
    config.write_settings(file, "cohortes", {setting: value})
    with pytest.raises(ConfigError, match=f"{setting} is not a duration"):
        config.load(file)


@pytest.mark.parametrize(
    ("duration", "seconds"), [("0s", 0), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 7 * 86400)]
)
def test_durations(duration, seconds):
    assert config.StoreConfig("s", cache=duration, grace=duration).cache_s == seconds
    assert config.StoreConfig("s", cache=duration, grace=duration).grace_s == seconds


# Attacks


def test_silence_after_a_refusal_is_not_bridged(tmp_path, kms):
    """A client whose right was taken only has to cut its own line to the KMS to go on."""
    fs = opened(tmp_path, cache="1h", grace="2h")
    kms.now += 3601
    kms.failure = KeyDeniedError("revoked")
    with pytest.raises(KeyDeniedError):
        fs.cat_file("a")
    kms.failure = KMSUnavailableError("down")
    with pytest.raises(SovstoreError):
        fs.cat_file("a")


def test_a_kms_that_is_down_is_asked_once_by_all_who_wait(tmp_path, kms):
    fs = opened(tmp_path)
    kms.now += 3601
    kms.failure, kms.takes_s = KMSUnavailableError("down"), 0.05
    asked = kms.asked

    async def one() -> None:
        with pytest.raises(KMSUnavailableError):
            await fs.store.keyset()

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(40)))

    fs._sync(many)
    assert kms.asked - asked <= 3


def test_grace_is_of_use_while_each_try_times_out(tmp_path, kms):
    fs = opened(tmp_path, grace="2h")
    kms.now += 3601
    kms.failure, kms.takes_s = KMSUnavailableError("down"), 0.05
    asked = kms.asked

    async def many() -> None:
        await asyncio.gather(*(fs._cat_file("a") for _ in range(40)))

    fs._sync(many)
    # Three tries of ten seconds each for every object would be worse than an error.
    assert kms.asked - asked <= 6


def test_a_new_epoch_while_the_kms_is_down_is_no_damaged_object(tmp_path, kms):
    """Without grace too: the old keys are handed back in silence, and the object is called altered."""
    fs = opened(tmp_path)
    other = open_fs(tmp_path / "sovstore.toml", skip_instance_cache=True)
    other._sync(lambda: rotation.new_epoch(other.store))
    other.pipe_file("c", b"3")
    kms.failure = KMSUnavailableError("down")
    with pytest.raises(KMSUnavailableError):
        fs.cat_file("c")


def test_a_listing_that_is_under_way_stops_too(tmp_path, kms, monkeypatch):
    monkeypatch.setattr(store, "_CHECKED", 1)
    fs = opened(tmp_path)

    async def listing() -> list[str]:
        found = []
        async for entry in fs.store.list("", recursive=True):
            found.append(entry.path)
            kms.now += 3601
            kms.failure = KeyDeniedError("revoked")
        return found

    with pytest.raises(KeyDeniedError):
        fs._sync(listing)


def test_an_open_writer_does_not_publish_under_a_destroyed_epoch(tmp_path, kms):
    """A write that takes longer than `cache` ends under keys from before it, long after everybody had waited."""
    fs = opened(tmp_path)
    admin = open_fs(tmp_path / "sovstore.toml", skip_instance_cache=True)
    first = admin._sync(admin.store.keyset).primary.id
    file = fs.open("late", "wb")
    file.write(b"x" * 100)
    admin._sync(lambda: rotation.new_epoch(admin.store))
    kms.now += 2 * 3600
    admin._sync(lambda: rotation.destroy_epoch(admin.store, first))
    try:
        file.close()
    except SovstoreError:
        return
    # Whoever wrote it was told that it is there: then it must be readable.
    assert admin.cat_file("late") == b"x" * 100


def test_headers_and_keysets_that_are_made_up_do_not_cost_a_call_each(tmp_path, kms):
    fs = opened(tmp_path)
    root = Path(fs.store.config.root)
    old = (root / ".sovstore/keyset.json").read_bytes()
    admin = open_fs(tmp_path / "sovstore.toml", skip_instance_cache=True)
    admin._sync(lambda: rotation.rotate_kek(admin.store))
    fs._sync(lambda: fs.store.keyset(reload=True))
    name = fs._sync(fs.store.name, "a")
    raw = bytearray((root / name).read_bytes())
    raw[8:24] = bytes(16)
    (root / name).write_bytes(raw)
    # The host shows an older keyset, which says so itself.
    (root / ".sovstore/keyset.json").write_bytes(old)
    asked = kms.asked
    for _ in range(10):
        with pytest.raises(SovstoreError):
            fs.cat_file("a")
    assert kms.asked - asked <= 2

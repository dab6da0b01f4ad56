"""Attacks on how long the keys of a store are used, and on what their end costs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from sovstore import held_keys, rotation
from sovstore.errors import KeyDeniedError, KMSUnavailableError, SovstoreError
from sovstore.filesystem import SovFileSystem
from sovstore.kms.local import LocalKey
from tests.hosts import cheap_key_files
from tests.stores import make_store, open_fs


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
    fs.pipe({"a": b"1", "b": b"2"})
    return fs


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


def test_a_listing_that_is_under_way_stops_too(tmp_path, kms):
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

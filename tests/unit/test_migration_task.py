"""What a migration sends to workers and gets back: every field of it travels, and only sealed."""

from __future__ import annotations

import asyncio
import pickle
from datetime import UTC, datetime

import pytest

from sovstore.errors import ConfigError, IntegrityError, KMSError, ObjectExistsError
from sovstore.migration import task
from sovstore.migration.journal import Row
from sovstore.migration.moving import How
from sovstore.migration.sides import Found
from sovstore.migration.watching import Failure
from tests.hosts import cheap_key_files
from tests.stores import make_store, open_fs

FOUND = Found("", 5, "etag", datetime(2026, 11, 26, 3, 4, 5, 678, tzinfo=UTC))
ROWS = [Row("one", FOUND, "ending", b"\x00\xff", None), Row("two", Found("", 0, None, None), "done", None, b"")]
ORDER = task.Order("move", "sov://a/", "/b", "open", "identity", How(3, overwrite=True, limit=1.5), ROWS)


@pytest.fixture
def store(tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    fs = open_fs(make_store(tmp_path))
    yield fs.store
    fs.close()


def test_an_order_travels_whole():
    assert task.Order.load(ORDER.dump()) == ORDER


class _Journal:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_a_record_travels_whole_and_is_noted_in_order():
    record = task.Record(ROWS)
    assert [row.name for row in record.rows("ending", "todo")] == ["one"]
    record.ending("one", b"\x01")
    record.done("one", FOUND, b"\x01")
    record.set("two", "failed")
    record.verified("one")
    record.moved, record.moved_size, record.left, record.at_host, record.size = 1, 2, 3, 4, 5
    record.failures = [Failure("two", "StoreError", "two: no", None)]
    record.error = task.described(KMSError("gone", path="kek", hint="wait"))
    arrived, journal = task.Record.load(record.dump()), _Journal()
    assert list(arrived.replay(journal)) == [("one", "done"), ("two", "failed"), ("one", "verified")]
    assert journal.calls == [
        ("ending", "one", b"\x01"),
        ("done", "one", FOUND, b"\x01"),
        ("set", "two", "failed"),
        ("verified", "one"),
    ]
    assert (arrived.moved, arrived.moved_size, arrived.left, arrived.at_host, arrived.size) == (1, 2, 3, 4, 5)
    assert arrived.failures == record.failures
    error = task.raised(arrived.error)
    assert (type(error), error.message, error.path, error.hint) == (KMSError, "on a worker: gone", "kek", "wait")


@pytest.mark.parametrize("kind", [ConfigError, ObjectExistsError, IntegrityError])
def test_an_error_comes_back_as_what_it_was(kind):
    assert type(task.raised(task.described(kind("x", path="p")))) is kind


def test_neither_passes_for_the_other_nor_altered(store):
    async def work():
        sealed = await task.seal(store, ORDER.dump(), task.ORDER)
        assert b"sov://" not in sealed
        assert task.Order.load(await task.unseal(store, sealed, task.ORDER)) == ORDER
        with pytest.raises(IntegrityError):
            await task.unseal(store, sealed, task.RECORD)
        for position in range(0, len(sealed), 97):
            altered = bytearray(sealed)
            altered[position] ^= 1
            with pytest.raises((IntegrityError, task.errors.FormatError, KMSError)):
                await task.unseal(store, bytes(altered), task.ORDER)

    asyncio.run(work())


def test_without_keys_it_is_as_it_is():
    assert asyncio.run(task.seal(None, b"names of the host", task.ORDER)) == b"names of the host"


def test_the_pickle_of_a_task_shows_nothing(store):
    body = asyncio.run(task.seal(store, ORDER.dump(), task.ORDER))
    made = pickle.dumps(task.Task("1", None, "cohortes", "name", "job", body))
    assert b"sov://a" not in made
    assert b"identity" not in made

"""The record of versions seen: what is refused, what is a race, and what the file tells."""

from __future__ import annotations

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sovstore.errors import ConfigError, IntegrityError
from sovstore.format.keyset import Keyset
from sovstore.pins import Pins

ONE, TWO, THREE = b"1" * 56, b"2" * 56, b"3" * 56


@pytest.fixture(scope="module")
def keyset() -> Keyset:
    return Keyset.create(now=1, names_mode="encrypted")


@pytest.fixture
def pins(keyset: Keyset) -> Pins:
    return Pins(keyset, "cohortes")


def wrote(pins: Pins, version: bytes, path: str = "a/b") -> None:
    pins.wrote(path, version, pins.now())


def check(pins: Pins, version: bytes, path: str = "a/b", since: int | None = None) -> None:
    pins.check(path, version, pins.now() if since is None else since)


def refused(pins: Pins, version: bytes, path: str = "a/b") -> None:
    with pytest.raises(IntegrityError, match="is older than a version that was seen here") as caught:
        check(pins, version, path)
    assert caught.value.hint is not None
    assert f"sovstore accept sov://cohortes/{path}" in caught.value.hint


def test_what_was_replaced_is_refused(pins: Pins) -> None:
    wrote(pins, ONE)
    check(pins, ONE)
    wrote(pins, TWO)
    check(pins, TWO)
    refused(pins, ONE)
    # By what somebody else wrote, too; and a refusal changes nothing.
    check(pins, THREE)
    for _ in range(2):
        refused(pins, TWO)
        refused(pins, ONE)
    check(pins, THREE)


def test_what_was_only_read_is_remembered(pins: Pins) -> None:
    check(pins, ONE)
    check(pins, TWO)
    refused(pins, ONE)


def test_paths_do_not_know_each_other(pins: Pins) -> None:
    wrote(pins, ONE, "a")
    wrote(pins, TWO, "b")
    check(pins, ONE, "b")
    check(pins, TWO, "a")


def test_what_was_deleted_is_refused(pins: Pins) -> None:
    wrote(pins, ONE)
    wrote(pins, ONE, "other")
    pins.deleted(["a/b", "never there"], pins.now())
    refused(pins, ONE)
    check(pins, ONE, "other")
    wrote(pins, TWO)
    check(pins, TWO)


def test_a_version_that_comes_back_by_a_rename_is_the_newest_again(pins: Pins) -> None:
    wrote(pins, ONE)
    wrote(pins, ONE, "moved")
    pins.deleted(["a/b"], pins.now())
    wrote(pins, ONE)
    check(pins, ONE)


def test_accepting_an_older_version_refuses_the_newer_one(pins: Pins) -> None:
    wrote(pins, ONE)
    wrote(pins, TWO)
    pins.accept("a/b", ONE)
    check(pins, ONE)
    refused(pins, TWO)


def test_what_was_replaced_while_it_was_read_is_a_race(pins: Pins) -> None:
    wrote(pins, ONE)
    before = pins.now()
    wrote(pins, TWO)
    check(pins, ONE, since=before)
    refused(pins, ONE)
    # One that nobody noted may have been there between the two: it is not taken for the newest.
    check(pins, THREE, since=before)
    check(pins, TWO)


def test_two_writes_at_once_are_both_the_newest_until_one_is_read(pins: Pins) -> None:
    wrote(pins, ONE)
    before = pins.now()
    pins.wrote("a/b", TWO, before)
    pins.wrote("a/b", THREE, before)
    refused(pins, ONE)
    check(pins, TWO, since=before)
    check(pins, THREE)
    refused(pins, TWO)


def test_a_write_that_is_noted_late_does_not_refuse_what_replaced_it(pins: Pins) -> None:
    wrote(pins, ONE)
    before = pins.now()
    check(pins, TWO)
    pins.wrote("a/b", ONE, before)
    check(pins, TWO)


def test_a_delete_that_is_noted_late_does_not_refuse_what_came_after_it(pins: Pins) -> None:
    before = pins.now()
    wrote(pins, ONE)
    pins.deleted(["a/b"], before)
    check(pins, ONE)


def test_other_processes_share_it(pins: Pins, keyset: Keyset) -> None:
    wrote(pins, ONE)
    other = Pins(keyset, "cohortes")
    check(other, TWO)
    refused(pins, ONE)
    other.close()


def test_other_stores_do_not_share_it(pins: Pins) -> None:
    wrote(pins, ONE)
    wrote(pins, TWO)
    check(Pins(Keyset.create(now=1, names_mode="encrypted"), "other"), ONE)


def test_it_goes_on_after_a_fork(pins: Pins) -> None:
    wrote(pins, ONE)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            wrote(pins, TWO)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    refused(pins, ONE)
    wrote(pins, THREE)
    refused(pins, TWO)


def test_many_threads(pins: Pins) -> None:
    def work(n: int) -> None:
        path, versions = f"path {n}", [bytes([i]) * 56 for i in range(20)]
        for version in versions:
            wrote(pins, version, path)
        check(pins, versions[-1], path)
        refused(pins, versions[-2], path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))


def test_the_file_tells_nothing(pins: Pins, keyset: Keyset) -> None:
    path = "canary-path-91c0/person.parquet"
    wrote(pins, ONE, path)
    pins.close()
    files = list(pins.file.parent.iterdir())
    content = b"".join(file.read_bytes() for file in files)
    for secret in (path.encode(), b"canary", ONE, keyset.auth_key.reveal(), keyset.pin_key.reveal()):
        assert secret not in content
    assert not any("canary" in file.name for file in files)
    assert stat.S_IMODE(pins.file.parent.stat().st_mode) == 0o700


def test_a_record_that_cannot_be_used_is_an_error(pins: Pins, keyset: Keyset) -> None:
    wrote(pins, ONE)
    pins.close()
    pins.file.write_bytes(b"no database at all" * 1000)
    for call in (pins.now, lambda: check(pins, ONE, since=0), lambda: wrote(pins, ONE)):
        with pytest.raises(ConfigError, match="the record of versions seen cannot be used"):
            call()
    pins.file.unlink()
    for beside in pins.file.parent.glob("*-wal"):
        beside.unlink()
    check(pins, ONE)


def test_a_folder_that_cannot_be_made_is_an_error(pins: Pins) -> None:
    Path(os.environ["XDG_STATE_HOME"], "sovstore").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used"):
        pins.now()


def test_a_killed_writer_leaves_it_whole(pins: Pins) -> None:
    pins.now()
    pid = os.fork()
    if not pid:
        while True:
            wrote(pins, os.urandom(56))
    with sqlite3.connect(pins.file) as database:
        while not database.execute("SELECT count(*) FROM versions").fetchone()[0] > 50:
            pass
    database.close()
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    wrote(pins, ONE)
    check(pins, ONE)
    with sqlite3.connect(pins.file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM versions WHERE state = 1").fetchone() == (1,)
    database.close()

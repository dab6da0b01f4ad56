"""`migrate` on hosts of this machine: every mode, what is resumed, what is refused, what the journal may hold."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from pathlib import Path

import pytest

import sovstore
from sovstore import manifests
from sovstore.backends.local import LocalBackend, _LocalUpload
from sovstore.errors import ConfigError, FormatError, KeyDeniedError, PolicyError, StoreError, StoreUnavailableError
from sovstore.kms import keyfile
from sovstore.migration import Silent, bare, moving, sides
from sovstore.migration.journal import Journal
from tests.stores import describe_twin, make_store, open_fs, read_all

CHUNK = 16384
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * 2**20 + 7)
#: Names that break naive tools, all of which the format allows.
NAMES = ("x", "sp ace", "per%cent", "q?uestion", "été", "日本", "a'b\"c", "-dash", "new\nline", "x" * 150, "dots...")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(moving, "_PAUSE_S", 0)
    # Key files that open at once: how strong real ones are is tested with their driver.
    monkeypatch.setattr(keyfile, "_MEMORY_KIB", 64)
    monkeypatch.setattr(keyfile, "_PASSES", 1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path):
    make_store(tmp_path, "archive")
    return make_store(tmp_path)


@pytest.fixture
def plain(tmp_path):
    """A folder of plaintext."""
    folder = tmp_path / "clear"
    for size in SIZES:
        (folder / "sizes").mkdir(parents=True, exist_ok=True)
        (folder / "sizes" / str(size)).write_bytes(os.urandom(size))
    for name in NAMES:
        (folder / "names" / name).mkdir(parents=True)
        (folder / "names" / name / "inner").write_bytes(name.encode())
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _migrate(source, dest, file, **options):
    return sovstore.migrate(str(source), str(dest), config=file, **options)


def _journals(tmp_path):
    return sorted((tmp_path / "state").rglob("*.sqlite"))


# Modes


def test_there_and_back(file, plain, tmp_path):
    sealed = _migrate(plain, "sov://cohortes/in", file, verify=True)
    assert (sealed.plan.mode, sealed.failures.count) == ("seal", 0)
    assert sealed.moved == sealed.verified == len(SIZES) + len(NAMES)
    again = _migrate("sov://cohortes/", "sov://archive/", file, verify=True)
    assert (again.plan.mode, again.failures.count, again.verified) == ("reencrypt", 0, sealed.moved)
    opened = _migrate("sov://archive/in", tmp_path / "out", file, verify=True)
    assert (opened.plan.mode, opened.failures.count, opened.verified) == ("open", 0, sealed.moved)
    assert _content(tmp_path / "out") == _content(plain)
    assert not (tmp_path / "out" / ".sovstore").exists()


def test_a_byte_copy_needs_no_key(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file)
    describe_twin(file, tmp_path)
    (tmp_path / "kek.key").rename(tmp_path / "away")
    copied = _migrate("sov://cohortes/", "sov://twin/", file, no_keys=True, verify=True)
    assert (copied.plan.mode, copied.failures.count) == ("copy", 0)
    (tmp_path / "away").rename(tmp_path / "kek.key")
    assert read_all(file, "twin") == _content(plain)
    own = (".sovstore/lock", ".sovstore/tmp")
    ours, theirs = (
        {name: raw for name, raw in _content(tmp_path / store).items() if not name.startswith(own)}
        for store in ("cohortes", "twin")
    )
    assert ours == theirs


def test_the_keyset_of_a_copy_comes_last(file, plain, tmp_path, monkeypatch):
    _migrate(plain, "sov://cohortes/", file)
    describe_twin(file, tmp_path)
    order = []
    commit = bare._AtHost.commit

    async def noted(self):
        order.append(self._name)
        await commit(self)

    monkeypatch.setattr(bare._AtHost, "commit", noted)
    _migrate("sov://cohortes/", "sov://twin/", file)
    assert order[-1] == ".sovstore/keyset.json"
    assert order[-2].startswith(".sovstore/keyset/")
    assert not [name for name in order[:-2] if name.startswith(".sovstore")]


def test_one_folder_goes_into_another(file, plain, tmp_path):
    _migrate(plain / "sizes", "sov://cohortes/a/b", file)
    assert read_all(file, "cohortes") == {f"a/b/{name}": data for name, data in _content(plain / "sizes").items()}


def test_configured_locations(file, plain, tmp_path):
    with file.open("a") as toml:
        toml.write(f'\n[locations.old]\nroot = "{plain}"\n')
    report = _migrate("plain://old/sizes", "sov://cohortes/", file)
    assert (report.moved, report.failures.count) == (len(SIZES), 0)


def test_which_objects(file, plain):
    report = _migrate(plain, "sov://cohortes/", file, include=["sizes/*", "names/é*"], exclude=["*/1", "*16384"])
    assert report.failures.count == 0
    taken = {name for name in _content(plain) if name.startswith(("sizes/", "names/é"))} - {"sizes/1", "sizes/16384"}
    assert set(read_all(file, "cohortes")) == taken


class _Counts(Silent):
    def __init__(self) -> None:
        self.size = 0

    def advance(self, size: int) -> None:
        self.size += size


@pytest.mark.parametrize("refused", [False, True])
def test_what_the_host_copies_counts_as_what_is_sent(refused, file, plain, tmp_path, monkeypatch):
    """For the progress and for `--limit`; and the report says how many were copied, not how many could have been."""
    _migrate(plain, "sov://cohortes/", file)
    describe_twin(file, tmp_path)
    taken, counts = [], _Counts()
    take = moving.Throttle.take

    async def noted(self, size):
        taken.append(size)
        await take(self, size)

    def another_file_system(*_):
        raise OSError(errno.EXDEV, "across two")

    monkeypatch.setattr(moving.Throttle, "take", noted)
    if refused:
        monkeypatch.setattr(os, "copy_file_range", another_file_system)
    report = _migrate("sov://cohortes/", "sov://twin/", file, watcher=counts)
    assert (report.failures.count, report.at_host) == (0, 0 if refused else report.moved)
    assert sum(taken) == counts.size == report.moved_size == report.plan.size
    assert not list((tmp_path / "twin" / ".sovstore" / "tmp").iterdir())


# Runs after the first


def _commits(monkeypatch):
    """Note what is made visible at any local host."""
    noted = []
    commit = _LocalUpload.commit

    async def noting(self):
        await commit(self)
        noted.append(self._name)

    monkeypatch.setattr(_LocalUpload, "commit", noting)
    return noted


def test_nothing_is_moved_twice(file, plain, monkeypatch):
    noted = _commits(monkeypatch)
    first = _migrate(plain, "sov://cohortes/", file)
    assert len(noted) == first.moved
    second = _migrate(plain, "sov://cohortes/", file)
    assert (second.moved, second.plan.done, len(noted)) == (0, first.moved, first.moved)


class _KilledError(Exception):
    """No error of ours: nothing may catch it."""


class _Dies(Silent):
    """Ends the migration after some objects, as a signal would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def finished(self, path: str, what: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise _KilledError


@pytest.mark.parametrize("mode", ["seal", "reencrypt", "open", "copy"])
def test_a_run_that_ended_early_goes_on(mode, file, plain, tmp_path, monkeypatch):
    source, dest = plain, "sov://cohortes/"
    if mode != "seal":
        _migrate(plain, "sov://cohortes/", file)
        describe_twin(file, tmp_path)
        source, dest = (
            "sov://cohortes/",
            {"reencrypt": "sov://archive/", "copy": "sov://twin/"}.get(mode, tmp_path / "out"),
        )
    noted = _commits(monkeypatch)
    with pytest.raises(_KilledError):
        _migrate(source, dest, file, jobs=2, watcher=_Dies(5))
    assert len(noted) >= 5
    report = _migrate(source, dest, file, verify=True)
    assert report.failures.count == 0
    assert sorted(noted) == sorted(set(noted)), "an object was moved twice"
    assert report.verified == report.plan.objects
    if mode in ("seal", "copy", "reencrypt"):
        store = {"seal": "cohortes", "copy": "twin", "reencrypt": "archive"}[mode]
        assert read_all(file, store) == _content(plain)
    else:
        assert _content(tmp_path / "out") == _content(plain)


@pytest.mark.parametrize("mode", ["seal", "open", "copy"])
def test_killed_between_the_object_and_its_note(mode, file, plain, tmp_path, monkeypatch):
    """It is known by what was noted before, and not moved again."""
    source, dest = plain, "sov://cohortes/"
    if mode != "seal":
        _migrate(plain, "sov://cohortes/", file)
        describe_twin(file, tmp_path)
        source, dest = "sov://cohortes/", tmp_path / "out" if mode == "open" else "sov://twin/"
    noted = _commits(monkeypatch)
    with monkeypatch.context() as patch:

        def dies(*arguments):
            raise _KilledError

        patch.setattr(Journal, "done", dies)
        with pytest.raises(_KilledError):
            _migrate(source, dest, file, jobs=1)
    assert len(noted) == 1
    report = _migrate(source, dest, file, verify=True)
    assert report.failures.count == 0
    assert len(noted) == report.plan.objects


def test_killed_before_the_object_is_there(file, plain, monkeypatch):
    with monkeypatch.context() as patch:

        async def dies(self):
            raise _KilledError

        patch.setattr(sides._SealedSink, "commit", dies)
        with pytest.raises(_KilledError):
            _migrate(plain, "sov://cohortes/", file, jobs=1)
    assert _migrate(plain, "sov://cohortes/", file, verify=True).failures.count == 0
    assert read_all(file, "cohortes") == _content(plain)


def test_what_changed_at_the_source_is_moved_again(file, plain):
    _migrate(plain, "sov://cohortes/", file)
    (plain / "sizes" / "1").write_bytes(b"2")
    (plain / "new").write_bytes(b"new")
    report = _migrate(plain, "sov://cohortes/", file, verify=True)
    assert (report.moved, report.failures.count) == (2, 0)
    assert read_all(file, "cohortes") == _content(plain)


def test_what_changes_meanwhile_is_noticed(file, plain):
    class Writes(Silent):
        done = False

        def finished(self, path, what):
            if not self.done:
                self.done = True
                (plain / "sizes" / "1").write_bytes(b"2")
                (plain / "late").write_bytes(b"late")

    report = _migrate(plain, "sov://cohortes/", file, verify=True, watcher=Writes())
    assert report.failures.count == 0
    assert read_all(file, "cohortes") == _content(plain)


def test_what_somebody_else_wrote_there_stays(file, plain):
    fs = open_fs(file)
    fs.pipe_file("sizes/1", b"theirs")
    fs.close()
    report = _migrate(plain, "sov://cohortes/", file)
    assert [failure.path for failure in report.failures.first] == ["sizes/1"]
    assert "--overwrite" in report.failures.first[0].hint
    assert report.exit_code == 5
    assert read_all(file, "cohortes")["sizes/1"] == b"theirs"
    report = _migrate(plain, "sov://cohortes/", file, overwrite=True)
    assert (report.failures.count, report.moved) == (0, 1)
    assert read_all(file, "cohortes") == _content(plain)


def test_what_somebody_wrote_there_since_stays(file, plain):
    _migrate(plain, "sov://cohortes/", file)
    fs = open_fs(file)
    fs.pipe_file("sizes/1", b"theirs")
    fs.close()
    (plain / "sizes" / "1").write_bytes(b"2")
    report = _migrate(plain, "sov://cohortes/", file)
    assert [failure.type for failure in report.failures.first] == ["ObjectExistsError"]
    assert read_all(file, "cohortes")["sizes/1"] == b"theirs"


def test_only_what_is_newer(file, plain):
    fs = open_fs(file)
    fs.pipe_file("sizes/1", b"newer")
    fs.close()
    report = _migrate(plain, "sov://cohortes/", file, only_newer=True)
    assert (report.left, report.failures.count) == (1, 0)
    assert read_all(file, "cohortes")["sizes/1"] == b"newer"
    later = (plain / "sizes" / "1").stat().st_mtime + 3600
    os.utime(plain / "sizes" / "1", (later, later))
    report = _migrate(plain, "sov://cohortes/", file, only_newer=True, overwrite=True)
    assert report.left == 0
    assert read_all(file, "cohortes") == _content(plain)


# What goes wrong


def test_a_destination_that_alters_objects_is_caught(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file)
    path = asyncio.run(open_fs(file, asynchronous=True).store.name("sizes/1"))
    raw = bytearray((tmp_path / "cohortes" / path).read_bytes())
    raw[-1] ^= 1
    (tmp_path / "cohortes" / path).write_bytes(raw)
    report = _migrate(plain, "sov://cohortes/", file, verify=True)
    assert [(f.path, f.type) for f in report.failures.first] == [("sizes/1", "IntegrityError")]
    report = _migrate(plain, "sov://cohortes/", file, verify=True, overwrite=True)
    assert (report.failures.count, report.moved) == (0, 1)


def test_a_destination_in_clear_that_alters_objects_is_caught(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file)
    _migrate("sov://cohortes/", tmp_path / "out", file)
    (tmp_path / "out" / "sizes" / "1").write_bytes(b"?")
    (tmp_path / "out" / "sizes" / "0").unlink()
    report = _migrate("sov://cohortes/", tmp_path / "out", file, verify=True)
    assert sorted((f.path, f.type) for f in report.failures.first) == [
        ("sizes/0", "ObjectNotFoundError"),
        ("sizes/1", "IntegrityError"),
    ]


def test_paths_that_the_format_refuses_are_reported(file, plain):
    names = {"e\u0301", "x" * 200, ".sovstore"}
    for name in names:
        (plain / name).write_bytes(b"x")
    report = _migrate(plain, "sov://cohortes/", file)
    assert {failure.path for failure in report.failures.first} == names
    assert report.moved == len(SIZES) + len(NAMES)
    assert report.exit_code == 5


def _failing(monkeypatch, times):
    """Have each write fail some times before it works."""
    upload, seen = LocalBackend.upload, {}

    async def flaky(self, name, **options):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= times:
            raise StoreUnavailableError(f"{name}: no answer", path=name)
        return await upload(self, name, **options)

    monkeypatch.setattr(LocalBackend, "upload", flaky)


def test_what_passes_is_tried_again(file, plain, monkeypatch):
    _failing(monkeypatch, 2)
    assert _migrate(plain, "sov://cohortes/", file).failures.count == 0


def test_what_does_not_pass_is_reported(file, plain, monkeypatch):
    with monkeypatch.context() as patch:
        _failing(patch, 100)
        report = _migrate(plain, "sov://cohortes/", file)
        assert (report.moved, report.failures.count) == (0, report.plan.objects)
        assert {failure.type for failure in report.failures.first} == {"StoreUnavailableError"}
    assert _migrate(plain, "sov://cohortes/", file).failures.count == 0


def test_a_host_that_takes_nothing_more_ends_it(file, plain, monkeypatch):
    monkeypatch.setattr(moving, "HOPELESS", 3)
    _failing(monkeypatch, 100)
    with pytest.raises(StoreError, match="3 objects in a row failed") as raised:
        _migrate(plain, "sov://cohortes/", file, jobs=1)
    assert "goes on from here" in raised.value.hint


def test_a_passphrase_that_is_wrong(file, plain, tmp_path):
    (tmp_path / "passphrase").write_text("another one that is long enough")
    with pytest.raises(KeyDeniedError):
        _migrate(plain, "sov://cohortes/", file)


@pytest.mark.parametrize(
    ("source", "dest", "options", "message"),
    [
        ("clear", "out", {}, "both hold plaintext"),
        ("sov://cohortes/a", "sov://cohortes/b", {"mode": "reencrypt"}, "one lies in the other"),
        ("clear", "cohortes", {}, "both hold plaintext"),
        ("cohortes", "sov://cohortes/", {}, "one lies in the other"),
        ("sov://cohortes/", "cohortes/inner", {}, "one lies in the other"),
        ("sov://cohortes/", ".", {}, "one lies in the other"),
        ("sov://nope/", "out", {}, "not configured"),
        ("plain://nope/", "sov://cohortes/", {}, "not configured"),
        ("sov://", "out", {}, "which one"),
        ("sov:cohortes", "out", {}, "not understood"),
        ("sov://cohortes/a//b", "out", {}, "not a folder"),
        ("sov://cohortes/", "sov://archive/", {"mode": "copy"}, "not by 'copy'"),
        ("sov://cohortes/", "sov://archive/", {"no_keys": True}, "not by 'copy'"),
        ("clear", "sov://cohortes/", {"no_keys": True}, "not by 'copy'"),
        ("clear", "sov://cohortes/", {"mode": "open"}, "not by 'open'"),
        ("sftp://me:secret@host/x", "sov://cohortes/", {}, "no place for one"),
    ],
)
def test_ends_that_do_not_go_together(source, dest, options, message, file, plain):
    with pytest.raises(ConfigError, match=message) as raised:
        _migrate(source, dest, file, **options)
    assert raised.value.hint
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("inner", ["", "/in"])
def test_the_root_of_a_store_is_no_place_of_plaintext(inner, file, plain, tmp_path):
    """Also of one that is not configured here: what is sealed is not sealed again, and no plaintext lies beside it."""
    _migrate(plain, "sov://cohortes/", file)
    (tmp_path / "cohortes").rename(tmp_path / "unknown")
    (tmp_path / "unknown" / "in").mkdir()
    with file.open("a") as toml:
        toml.write(f'\n[locations.unknown]\nroot = "{tmp_path / "unknown"}"\n')
    with pytest.raises(ConfigError, match="is a store"):
        _migrate(f"plain://unknown{inner}", "sov://archive/", file)
    _migrate(plain, "sov://archive/", file)
    with pytest.raises(ConfigError, match="is a store"):
        _migrate("sov://archive/", f"plain://unknown{inner}", file)


def test_plaintext_goes_into_no_store_of_the_configuration(file, plain, tmp_path):
    for there in (tmp_path / "archive" / "below", tmp_path):
        with pytest.raises(ConfigError, match="one lies in the other"):
            _migrate("sov://cohortes/", there, file)


def test_a_byte_copy_is_held_against_the_policy(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file)
    describe_twin(file, tmp_path, provider="azure", root="container/twin", account="somebody", region="francecentral")
    with file.open("a") as toml:
        toml.write('\n[stores.twin.policy]\nhost_parent = ["FR"]\n')
    with pytest.raises(PolicyError, match="host_parent"):
        _migrate("sov://cohortes/", "sov://twin/", file, no_keys=True)


def test_no_patterns_in_a_byte_copy(file, tmp_path):
    describe_twin(file, tmp_path)
    with pytest.raises(ConfigError, match="no patterns"):
        _migrate("sov://cohortes/", "sov://twin/", file, no_keys=True, include=["a*"])


def test_a_secret_in_the_table_of_a_location(file, plain):
    with file.open("a") as toml:
        toml.write('\n[locations.old]\nprovider = "s3"\nroot = "b"\noptions = { key = "canary-7" }\n')
    with pytest.raises(ConfigError, match="is a secret") as raised:
        _migrate("plain://old/", "sov://cohortes/", file)
    assert "canary-7" not in str(raised.value)


# The manifest


def test_a_manifest_of_what_was_moved(file, plain, tmp_path):
    made = tmp_path / "made"
    report = _migrate(plain, "sov://cohortes/in", file, manifest=made)
    assert (report.failures.count, report.manifest) == (0, made)
    assert _findings(file, made) == {"same": len(SIZES) + len(NAMES)}


def _findings(file, manifest):
    async def found():
        store = open_fs(file, asynchronous=True).store
        counted = {}
        async for finding in manifests.check(store, manifest):
            counted[finding.kind] = counted.get(finding.kind, 0) + 1
        await store.close()
        return counted

    return asyncio.run(found())


@pytest.mark.parametrize("what", ["loses", "replays"])
def test_a_destination_that_changes_before_the_manifest(what, file, plain, tmp_path):
    fs = open_fs(file)
    fs.pipe_file("sizes/1", b"older")
    name = fs._sync(fs.store.name, "sizes/1")
    fs.close()
    older = (tmp_path / "cohortes" / name).read_bytes()

    class Changes(Silent):
        def phase(self, phase, objects=None, size=None):
            if phase == "recording":
                (tmp_path / "cohortes" / name).unlink()
                if what == "replays":
                    (tmp_path / "cohortes" / name).write_bytes(older)

    report = _migrate(plain, "sov://cohortes/", file, overwrite=True, manifest=tmp_path / "made", watcher=Changes())
    assert [failure.path for failure in report.failures.first] == ["sizes/1"]
    assert report.exit_code == 5


def test_no_manifest_without_keys(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file)
    for dest in (tmp_path / "out", "sov://twin/"):
        describe_twin(file, tmp_path)
        with pytest.raises(ConfigError, match="no manifest"):
            _migrate("sov://cohortes/", dest, file, manifest=tmp_path / "made")
    assert not (tmp_path / "made").exists()


# The journal


@pytest.mark.parametrize("mode", ["seal", "reencrypt", "open"])
def test_the_journal_holds_no_plaintext_name(mode, file, plain, tmp_path):
    (plain / "canary-name").write_bytes(b"canary-data")
    (plain / "e\u0301canary-refused").write_bytes(b"")
    _migrate(plain, "sov://cohortes/", file)
    if mode != "seal":
        _migrate("sov://cohortes/", {"reencrypt": "sov://archive/", "open": tmp_path / "out"}[mode], file)
    held = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert len(_journals(tmp_path)) == (1 if mode == "seal" else 2)
    assert b"canary" not in held
    assert b"sizes" not in held


def test_the_journal_of_another_job(file, plain, tmp_path):
    journal = tmp_path / "journal"
    _migrate(plain, "sov://cohortes/", file, journal=journal)
    with pytest.raises(ConfigError, match="journal of another job"):
        _migrate(plain, "sov://archive/", file, journal=journal)
    assert _migrate(plain, "sov://cohortes/", file, journal=journal).moved == 0


def test_a_store_that_was_made_anew_is_another_job(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file)
    for name in ("cohortes", "backup"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "store_id" not in line))
    make_store(tmp_path)
    assert _migrate(plain, "sov://cohortes/", file, verify=True).moved == len(SIZES) + len(NAMES)


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + bytes(4096)])
def test_a_file_that_is_no_journal(content, file, plain, tmp_path):
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(FormatError, match="not a journal"):
        _migrate(plain, "sov://cohortes/", file, journal=tmp_path / "journal")


def test_two_processes_do_not_do_one_job(file, plain, tmp_path):
    _migrate(plain, "sov://cohortes/", file, journal=tmp_path / "journal")
    other = sqlite3.connect(tmp_path / "journal", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="another process has it"):
        _migrate(plain, "sov://cohortes/", file, journal=tmp_path / "journal")
    other.close()


def test_a_clock_that_went_back_changes_nothing(file, plain):
    _migrate(plain, "sov://cohortes/", file)
    os.utime(plain / "sizes" / "1", (1, 1))
    report = _migrate(plain, "sov://cohortes/", file, verify=True)
    assert (report.moved, report.failures.count) == (1, 0)

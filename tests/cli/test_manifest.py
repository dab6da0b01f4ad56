"""Transcripts of manifest, and of verify with one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sovstore.filesystem import SovFileSystem
from tests.cli.conftest import at_host, damage
from tests.hosts import fail_reads
from tests.stores import make_store, open_fs


@pytest.fixture
def filled(fs):
    fs.pipe({"2026/a": b"a" * 40000, "2026/b": b"b", "c": b""})
    return fs


@pytest.fixture
def made(cli, filled):
    assert cli("manifest", "cohortes", "--out", "m").code == 0
    return filled


def test_manifest(cli, filled, tmp_path):
    assert cli("manifest", "cohortes", "--out", "m").transcript == (0, "", "recorded 3 objects, 40.0 kB in m\n")
    assert cli("verify", "cohortes", "--manifest", "m").transcript == (
        0,
        "3 objects, 40.0 kB: authentic, and as in the manifest of MOMENT\n",
        "",
    )
    assert cli("manifest", "sov://cohortes/2026/", "--out", "sub/2026").code == 0
    assert cli("verify", "sov://cohortes/2026", "--manifest", "sub/2026").out.startswith("2 objects, 40.0 kB: ")
    shown = json.loads(cli("manifest", "cohortes", "--out", "other", "--json").raw_out)
    assert shown == {"store": "cohortes", "below": "", "file": "other", "objects": 3, "bytes": 40001, "foreign": []}


def test_no_file_is_overwritten_without_force(cli, made):
    before = Path("m").read_bytes()
    assert cli("manifest", "cohortes", "--out", "m").transcript == (
        2,
        "",
        "sovstore: error: m: exists already\nsovstore: hint: choose another name; --force (replace=True) replaces it\n",
    )
    assert Path("m").read_bytes() == before
    assert cli("manifest", "cohortes", "--out", "m", "--force").code == 0
    assert Path("m").read_bytes() != before


def test_arguments(cli, made):
    assert cli("manifest", "cohortes").code == 2
    ran = cli("manifest", "cohortes", "--out", "sov://cohortes/m")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "sovstore: error: sov://cohortes/m: is in a store")
    assert cli("verify", "cohortes", "--manifest", "nope").transcript == (1, "", "sovstore: error: nope: not found\n")
    assert cli("manifest", "sov://cohortes/2026", "--out", "sub").code == 0
    assert cli("verify", "cohortes", "--manifest", "sub").transcript == (
        2,
        "",
        "sovstore: error: sub: is a manifest of sov://cohortes/2026 only\nsovstore: hint: check sov://cohortes/2026\n",
    )
    assert cli("manifest", "sov://cohortes/c", "--out", "new").code == 2
    assert not os.path.exists("new")


def test_what_is_missing_replaced_altered_and_new(cli, made, tmp_path):
    made.pipe({"2026/b": b"again", "new": b"new"})
    os.unlink(at_host(tmp_path, made, "c"))
    damage(at_host(tmp_path, made, "2026/a"), 20000)
    (tmp_path / "cohortes" / "stray").write_bytes(b"x" * 200)
    ran = cli("verify", "cohortes", "--manifest", "m")
    assert ran.transcript == (
        3,
        """\
0 objects, 0 B: authentic, and as in the manifest of MOMENT
stray: foreign: a name that this store did not make
new: extra: not in the manifest
c: MISSING
2026/b: REPLACED OR OLDER
2026/a: NOT AUTHENTIC (IntegrityError)
""",
        """\
sovstore: error: 2026/a: chunk 1 failed authentication
sovstore: error: 2026/b: is not the version that the manifest has
sovstore: error: c: missing: the manifest has it, and the host does not
""",
    )
    ran = cli("verify", "cohortes", "--manifest", "m", "--json")
    assert ran.code == 3
    report = json.loads(ran.raw_out)
    assert [error["path"] for error in report.pop("failed")] == ["2026/a"]
    created = report.pop("created")
    assert (created[10], created[-1], len(created)) == ("T", "Z", 20)
    assert report == {
        "store": "cohortes",
        "manifest": "m",
        "below": "",
        "objects": 0,
        "bytes": 0,
        "missing": ["c"],
        "replaced": ["2026/b"],
        "extra": ["new"],
        "foreign": ["stray"],
    }
    assert [json.loads(line)["error"]["exit_code"] for line in ran.err.splitlines()] == [3, 3, 3]


def test_an_older_version_that_was_put_back(cli, made, tmp_path):
    file = at_host(tmp_path, made, "2026/b")
    shutil.copy(file, tmp_path / "kept")
    made.pipe_file("2026/b", b"newer")
    assert cli("manifest", "cohortes", "--out", "m2").code == 0
    shutil.copy(tmp_path / "kept", file)
    # All is authentic; the manifest knows better.
    assert cli("verify", "cohortes").code == 0
    ran = cli("verify", "cohortes", "--manifest", "m2")
    assert (ran.code, ran.out.splitlines()[1:]) == (3, ["2026/b: REPLACED OR OLDER"])


def test_what_was_added_since_is_no_failure(cli, made):
    made.pipe_file("2027/x", b"x")
    assert cli("verify", "cohortes", "--manifest", "m").transcript == (
        0,
        "3 objects, 40.0 kB: authentic, and as in the manifest of MOMENT\n2027/x: extra: not in the manifest\n",
        "",
    )


def test_what_could_not_be_read(cli, made, monkeypatch):
    fail_reads(monkeypatch, made.info("c")["wire_name"])
    ran = cli("verify", "cohortes", "--manifest", "m")
    assert (ran.code, ran.out.splitlines()[1:]) == (5, ["c: could not be read (StoreUnavailableError)"])


def test_no_manifest_of_what_is_not_authentic(cli, filled, tmp_path):
    damage(at_host(tmp_path, filled, "2026/b"))
    ran = cli("manifest", "cohortes", "--out", "m")
    assert ran.transcript == (3, "", "sovstore: error: 2026/b: chunk 0 failed authentication\n")
    assert os.listdir() == []


def test_names_that_the_store_did_not_make_are_left_out(cli, filled, tmp_path):
    (tmp_path / "cohortes" / "stray").write_bytes(b"x" * 200)
    assert cli("manifest", "cohortes", "--out", "m").transcript == (
        0,
        "stray: foreign: a name that this store did not make; not in the manifest\n",
        "recorded 3 objects, 40.0 kB in m\n",
    )


def test_a_file_that_is_no_manifest_of_the_store(cli, made, tmp_path):
    other = make_store(tmp_path, "second")
    second: SovFileSystem = open_fs(other, "second")
    second.pipe_file("a", b"a")
    assert cli("manifest", "second", "--out", "foreign").code == 0
    shutil.copy(at_host(tmp_path, made, "2026/b"), "object")
    raw = Path("m").read_bytes()
    for name, content in {
        "altered": raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
        "cut": raw[:-1],
        "text": b"path,size\n" * 100,
        "nothing": b"",
    }.items():
        with open(name, "wb") as file:
            file.write(content)
    for name in ("foreign", "object", "altered", "cut", "text", "nothing"):
        ran = cli("verify", "cohortes", "--manifest", name)
        assert (ran.code, ran.out) == (3, ""), name
        assert ran.err.startswith(f"sovstore: error: {name}: "), ran.err
        assert "sovstore: hint: " in ran.err
    assert "it was altered, or is no manifest of this store" in cli("verify", "cohortes", "--manifest", "object").err


def test_a_recovery_key_verifies_and_makes_no_manifest(cli, tmp_path, monkeypatch):
    assert cli("keys", "recovery-new", "rescue").code == 0
    file = make_store(tmp_path, recovery=[str(tmp_path / "desk" / "rescue.pub")])
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    open_fs(file).pipe_file("a", b"a")
    assert cli("manifest", "cohortes", "--out", "m").code == 0
    os.unlink(tmp_path / "kek.key")
    assert cli("verify", "cohortes", "--manifest", "m").code == 4
    assert cli("verify", "cohortes", "--manifest", "m", "--recovery-key", "rescue").transcript == (
        0,
        "1 object, 1 B: authentic, and as in the manifest of MOMENT\n",
        "",
    )

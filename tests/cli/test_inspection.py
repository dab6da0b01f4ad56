"""Transcripts of info and verify."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.cli.conftest import at_host, damage
from tests.hosts import fail_reads
from tests.stores import make_store, open_fs


@pytest.fixture
def filled(fs):
    fs.pipe({"2026/a": b"a" * 40000, "2026/b": b"b", "c": b""})
    return fs


def test_info(cli, filled):
    ran = cli("info", "sov://cohortes/2026/b")
    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines() if line.strip()]
    assert rows[0] == ["the", "host", "sees", "you", "see"]
    assert ["bytes", "201", "1"] in rows
    assert ["authentic", "yes"] in rows
    assert "first bytes          89534f56 0d0a1a01" in ran.out
    shown = json.loads(cli("info", "--json", "sov://cohortes/2026/b").raw_out)
    assert shown["host"]["name"] == filled.info("2026/b")["wire_name"]
    assert shown["host"]["first_bytes"].startswith("89534f56 0d0a1a01")
    assert shown["you"]["name"] == "2026/b"
    assert shown["you"]["state"] == "primary"
    assert shown["error"] is None


def test_info_of_what_is_not_authentic(cli, filled, tmp_path):
    damage(at_host(tmp_path, filled, "2026/b"))
    ran = cli("info", "sov://cohortes/2026/b")
    assert ran.code == 3
    assert "authentic" in ran.out
    assert "no" in ran.out.split()
    assert ran.err == "sovstore: error: 2026/b: chunk 0 failed authentication\n"


def test_info_of_a_folder(cli, filled):
    ran = cli("info", "sov://cohortes/2026")
    assert ran.code == 0
    assert filled.info("2026")["wire_name"] in ran.out


def test_info_of_a_store(cli, filled):
    assert cli("info", "sov://cohortes").transcript == (
        0,
        """\
store 'cohortes'
  held by    local, in DIR/cohortes
  opened by  keyfile:DIR/kek.key
  store id   HEX32
  keyset     version 1, 1 epoch, primary HEX32
  names      encrypted
the host sees:
  the URIs of the keys that open it, how many objects and folders there are, which is in which,
  how long their names are (in steps of 16 bytes), their sizes and times, and each access
the host does not see:
  content, names, keys
""",
        "",
    )
    shown = json.loads(cli("info", "--json", "sov://cohortes").raw_out)
    assert shown["type"] == "store"
    assert [epoch["state"] for epoch in shown["epochs"]] == ["primary"]


def test_info_of_a_store_with_plain_names(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SOVSTORE_CONFIG", str(make_store(tmp_path, names="plain")))
    ran = cli("info", "sov://cohortes")
    assert "  all names, " in ran.out
    assert ran.out.endswith("the host does not see:\n  content, keys\n")


def test_verify(cli, filled):
    assert cli("verify", "cohortes").transcript == (0, "3 objects, 40.0 kB: authentic\n", "")
    assert cli("verify", "sov://cohortes/2026").transcript == (0, "2 objects, 40.0 kB: authentic\n", "")
    assert cli("verify", "sov://cohortes/2026/b").transcript == (0, "1 object, 1 B: authentic\n", "")
    assert cli("verify", "sov://cohortes/nope").code == 1
    assert json.loads(cli("verify", "cohortes", "--json").raw_out) == {
        "store": "cohortes",
        "objects": 3,
        "bytes": 40001,
        "failed": [],
        "foreign": [],
    }


def test_verify_finds_what_is_not_authentic(cli, filled, tmp_path):
    damage(at_host(tmp_path, filled, "2026/a"), 20000)
    shutil.copy(at_host(tmp_path, filled, "2026/b"), at_host(tmp_path, filled, "c"))
    ran = cli("verify", "cohortes")
    assert ran.code == 3
    assert ran.out == (
        "1 object, 1 B: authentic\n2026/a: NOT AUTHENTIC (IntegrityError)\nc: NOT AUTHENTIC (IntegrityError)\n"
    )
    assert sorted(ran.err.splitlines()) == [
        "sovstore: error: 2026/a: chunk 1 failed authentication",
        "sovstore: error: c: failed authentication",
    ]
    report = json.loads(cli("verify", "cohortes", "--json").raw_out)
    assert [(f["path"], f["type"]) for f in report["failed"]] == [("2026/a", "IntegrityError"), ("c", "IntegrityError")]


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_verify_finds_an_object_that_was_cut_to_no_valid_size(cli, tmp_path, monkeypatch, names):
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file := make_store(tmp_path, names=names)))
    fs = open_fs(file)
    fs.pipe_file("a", b"a")
    os.truncate(at_host(tmp_path, fs, "a"), 100)
    ran = cli("verify", "cohortes")
    assert ran.code == 3
    assert "a: NOT AUTHENTIC (FormatError)" in ran.out


def test_verify_names_what_is_foreign(cli, filled, tmp_path):
    (tmp_path / "cohortes" / "\x1b]0;gotcha\x07").write_bytes(b"x" * 200)
    ran = cli("verify", "cohortes")
    assert ran.transcript == (
        0,
        ("3 objects, 40.0 kB: authentic\n%1B%5D0%3Bgotcha%07: foreign: a name that this store did not make\n"),
        "",
    )
    assert json.loads(cli("verify", "cohortes", "--json").raw_out)["foreign"] == ["%1B%5D0%3Bgotcha%07"]


def test_verify_of_what_cannot_be_read(cli, filled, tmp_path, monkeypatch):
    fail_reads(monkeypatch, filled.info("c")["wire_name"])
    ran = cli("verify", "cohortes")
    assert ran.code == 5
    assert ran.out == "2 objects, 40.0 kB: authentic\nc: could not be read (StoreUnavailableError)\n"

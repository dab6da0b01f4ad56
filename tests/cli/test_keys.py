"""Transcripts of keys, and reading with a recovery key."""

from __future__ import annotations

import json

import pytest

from tests.stores import make_store


@pytest.fixture
def rescued(cli, tmp_path, monkeypatch):
    """A store with a recovery key, whose KEK and passphrase are gone."""
    assert cli("keys", "recovery-new", "rescue").code == 0
    file = make_store(tmp_path, recovery=[str(tmp_path / "desk" / "rescue.pub")])
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    (tmp_path / "desk" / "a.txt").write_bytes(b"content\n")
    assert cli("put", "a.txt", "sov://cohortes/2026/").code == 0
    (tmp_path / "kek.key").unlink()
    (tmp_path / "passphrase").unlink()
    return file


def test_recovery_new(cli, tmp_path):
    ran = cli("keys", "recovery-new", "rescue")
    assert ran.transcript == (
        0,
        """\
made recovery key HEX32
  private    rescue: keep it offline, in two places
  recipient  rescue.pub: not secret
what to do with it:
  1. give --recovery rescue.pub to 'sovstore init'; for a store that is there already, run
     sovstore keys recovery-add STORE rescue.pub
  2. keep the store_id and auth_fingerprint that 'sovstore init' prints beside rescue
""",
        "",
    )
    private = tmp_path / "desk" / "rescue"
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    assert cli("keys", "recovery-new", "rescue").transcript == (
        2,
        "",
        "sovstore: error: rescue: exists already\nsovstore: hint: choose another name\n",
    )
    assert private.read_bytes() == before


def test_recovery_new_overwrites_no_recipient(cli, tmp_path):
    (tmp_path / "desk" / "rescue.pub").write_bytes(b"mine")
    assert cli("keys", "recovery-new", "rescue").code == 2
    assert not (tmp_path / "desk" / "rescue").exists()


def test_recovery_new_where_nothing_can_be_written(cli):
    ran = cli("keys", "recovery-new", "nowhere/rescue")
    assert ran.code == 2
    assert "nowhere/rescue: cannot be written" in ran.err


def test_list(cli, config):
    assert cli("keys", "list", "cohortes").transcript == (
        0,
        """\
store 'cohortes', keyset version 1 of MOMENT
  store_id          HEX32
  auth_fingerprint  HEX64
opened by
  keyfile:DIR/kek.key  (configured here)
  no recovery key
epochs
  HEX32  primary    since MOMENT
""",
        "",
    )
    shown = json.loads(cli("keys", "list", "sov://cohortes/", "--json").raw_out)
    assert shown["version"] == 1
    assert [epoch["state"] for epoch in shown["epochs"]] == ["primary"]


def test_list_with_a_recovery_key(cli, rescued):
    ran = cli("keys", "list", "cohortes", "--recovery-key", "rescue")
    assert ran.code == 0
    assert "  recovery key HEX32  (DIR/desk/rescue.pub)\n" in ran.out


def test_reading_with_a_recovery_key(cli, rescued, tmp_path):
    assert cli("ls", "-R", "sov://cohortes/").code == 4
    key = ("--recovery-key", "rescue")
    assert cli("ls", "-R", "sov://cohortes/", *key).transcript == (0, "2026/a.txt\n", "")
    assert cli("cat", "sov://cohortes/2026/a.txt", *key).transcript == (0, "content\n", "")
    assert cli("get", "sov://cohortes/2026/a.txt", "b.txt", *key).code == 0
    assert cli("verify", "cohortes", *key).transcript == (0, "1 object, 8 B: authentic\n", "")
    assert "opened by  a recovery key" in cli("info", "sov://cohortes/", *key).out


def test_a_recovery_key_of_another_store(cli, rescued):
    cli("keys", "recovery-new", "other")
    ran = cli("ls", "sov://cohortes/", "--recovery-key", "other")
    assert ran.code == 4
    assert "this recovery key does not open it" in ran.err
    assert cli("ls", "sov://cohortes/", "--recovery-key", "rescue.pub").code == 2


def test_backup(cli, config, tmp_path):
    ran = cli("keys", "backup", "cohortes")
    assert ran.transcript == (
        0,
        "copied keyset version 1 of store 'cohortes' to DIR/backup/HEX32/1.json\n",
        "",
    )
    assert cli("keys", "backup", "cohortes", "--to", "copy.json").transcript == (
        0,
        "copied keyset version 1 of store 'cohortes' to DIR/desk/copy.json\n",
        "",
    )
    copy, original = tmp_path / "desk" / "copy.json", tmp_path / "cohortes" / ".sovstore" / "keyset.json"
    assert copy.read_bytes() == original.read_bytes()
    assert cli("keys", "backup", "cohortes", "--to", "copy.json").code == 2


def test_restore(cli, config, tmp_path):
    keyset = tmp_path / "cohortes" / ".sovstore" / "keyset.json"
    before = keyset.read_bytes()
    assert cli("keys", "restore", "cohortes").transcript == (
        1,
        "",
        (
            "sovstore: error: store 'cohortes': the host has a keyset\n"
            "sovstore: hint: move .sovstore/keyset.json at the host away first, if it is damaged\n"
        ),
    )
    keyset.unlink()
    lost = cli("ls", "sov://cohortes/")
    assert lost.code == 1
    assert "'sovstore keys restore cohortes' puts the backup copy back" in lost.err
    assert cli("init", "cohortes").code == 1
    assert cli("keys", "restore", "cohortes").transcript == (
        0,
        "put keyset version 1 of store 'cohortes' back, from DIR/backup/HEX32/1.json\n",
        "",
    )
    assert keyset.read_bytes() == before


def test_restore_from_a_file(cli, config, tmp_path):
    cli("keys", "backup", "cohortes", "--to", "copy.json")
    (tmp_path / "cohortes" / ".sovstore" / "keyset.json").unlink()
    (tmp_path / "desk" / "bad.json").write_bytes(b"{}")
    assert cli("keys", "restore", "cohortes", "--from", "bad.json").code == 3
    assert cli("keys", "restore", "cohortes", "--from", "nope.json").code == 2
    assert cli("keys", "restore", "cohortes", "--from", "copy.json").code == 0
    assert cli("ls", "sov://cohortes/").code == 0

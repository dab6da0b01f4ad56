"""Transcripts of new-epoch, rewrap and destroy-epoch."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import at_host, damage


@pytest.fixture
def filled(cli, config, fs):
    fs.pipe({"a": b"12345", "folder/b": b"1" * 30_000})
    return fs


def _epochs(cli):
    return json.loads(cli("keys", "list", "cohortes", "--json").raw_out)["epochs"]


def test_a_new_epoch_and_rewrap(cli, filled):
    assert cli("keys", "new-epoch", "cohortes").transcript == (
        0,
        "store 'cohortes': epoch HEX32 is primary now\n",
        "'sovstore keys rewrap cohortes' moves what is there to it\n",
    )
    assert [epoch["state"] for epoch in _epochs(cli)] == ["readable", "primary"]
    assert cli("keys", "rewrap", "cohortes", "--dry-run").transcript == (
        0,
        "would rewrap 2 objects, 30.0 kB; 0 under the newest epoch already\n",
        "",
    )
    assert cli("keys", "rewrap", "cohortes").out == "rewrapped 2 objects, 30.0 kB; 0 under the newest epoch already\n"
    ran = cli("keys", "rewrap", "cohortes", "--json")
    assert json.loads(ran.raw_out) == {
        "store": "cohortes",
        "dry_run": False,
        "objects": 0,
        "bytes": 0,
        "already": 2,
        "failed": [],
    }
    assert cli("cat", "sov://cohortes/a").out == "12345"


def test_rewrap_reports_what_is_damaged_and_goes_on(cli, filled, tmp_path):
    cli("keys", "new-epoch", "cohortes")
    damage(at_host(tmp_path, filled, "a"), at=40)
    ran = cli("keys", "rewrap", "cohortes")
    assert ran.code == 3
    assert ran.out == "rewrapped 1 object, 30.0 kB; 0 under the newest epoch already; 1 failed\n"
    assert "sovstore: error: a: " in ran.err


def test_destroy_epoch(cli, filled, config):
    cli("keys", "new-epoch", "cohortes")
    # One that opened the store before would write under the old epoch.
    filled.close()
    filled.pipe_file("later", b"kept\n")
    first = _epochs(cli)[0]["key_id"]
    ran = cli("keys", "destroy-epoch", "cohortes", first[:8])
    assert ran.code == 2
    # pytest's stdin is no terminal.
    assert ran.err == (
        "sovstore: warning: 2 objects, 30.0 kB, sealed under epoch HEX32 will be unreadable for ever, by anybody\n"
        "sovstore: hint: 'sovstore keys rewrap cohortes' keeps them, under the newest epoch\n"
        "  a\n"
        "  folder/b\n"
        "sovstore: warning: clients that opened the store before MOMENT write under this epoch until they open it"
        " again\n"
        "sovstore: hint: wait for the time in their 'cache', 1h here, and run 'sovstore keys rewrap' first\n"
        "sovstore: error: nobody is there to confirm\n"
        "sovstore: hint: add --yes if what is sealed under that epoch shall be lost\n"
    )
    assert _epochs(cli)[0]["state"] == "readable"
    ran = cli("keys", "destroy-epoch", "cohortes", first[:8], "--yes")
    assert ran.code == 0
    assert ran.out.startswith(
        "store 'cohortes': epoch HEX32 is destroyed; keyset version 4\nolder keysets hold its key, wrapped:\n"
        "  .sovstore/keyset/1-HEX32.json\n"
    )
    assert "  the versions until now of keyfile:DIR/kek.key\n" in ran.out
    refused = cli("cat", "sov://cohortes/a")
    assert (refused.code, refused.err.splitlines()[1]) == (3, "sovstore: hint: its key was destroyed on purpose")
    assert cli("cat", "sov://cohortes/later").out == "kept\n"


def test_destroy_epoch_with_its_copies(cli, filled, tmp_path):
    cli("keys", "new-epoch", "cohortes")
    cli("keys", "rewrap", "cohortes")
    first = _epochs(cli)[0]["key_id"]
    ran = cli("keys", "destroy-epoch", "cohortes", first, "--yes", "--delete-copies", "--json")
    shown = json.loads(ran.raw_out)
    assert shown["lost"] == {"objects": 0, "bytes": 0}
    assert shown["older_keysets"]["deleted"] is True
    assert (len(shown["older_keysets"]["at_host"]), len(shown["older_keysets"]["here"])) == (3, 3)
    left = [*(tmp_path / "cohortes/.sovstore/keyset").iterdir(), *(tmp_path / "backup").rglob("*.json")]
    assert len(left) == 2
    assert cli("cat", "sov://cohortes/a").out == "12345"


def test_epochs_that_cannot_be_destroyed(cli, filled):
    primary = _epochs(cli)[0]["key_id"]
    ran = cli("keys", "destroy-epoch", "cohortes", primary, "--yes")
    assert ran.transcript == (
        2,
        "",
        (
            "sovstore: error: epoch HEX32: all is written under it now\n"
            "sovstore: hint: 'sovstore keys new-epoch cohortes' makes another one primary first\n"
        ),
    )
    assert "there is no such epoch" in cli("keys", "destroy-epoch", "cohortes", "zz", "--yes").err
    assert "there is no such epoch" in cli("keys", "destroy-epoch", "cohortes", "", "--yes").err

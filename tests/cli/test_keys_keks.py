"""Transcripts of rotate-kek, add-kek, remove-kek and recovery-add."""

from __future__ import annotations

import json
import tomllib

import pytest


@pytest.fixture
def other(tmp_path):
    return f"keyfile:{tmp_path / 'other.key'}"


def _table(config):
    return tomllib.loads(config.read_text())["stores"]["cohortes"]


def test_rotate_kek(cli, config):
    assert cli("keys", "rotate-kek", "cohortes").transcript == (
        0,
        "store 'cohortes': wrapped anew; keyset version 2\n",
        "",
    )
    ran = cli("keys", "rotate-kek", "sov://cohortes", "--json")
    assert (ran.code, json.loads(ran.raw_out)) == (0, {"store": "cohortes", "version": 3})


def test_from_one_kek_to_another(cli, config, fs, other, tmp_path):
    fs.pipe_file("a", b"content")
    assert cli("keys", "add-kek", "cohortes", other).transcript == (
        0,
        "store 'cohortes': opened by keyfile:DIR/other.key too; keyset version 2\n",
        "",
    )
    listed = cli("keys", "list", "cohortes").out
    assert "  keyfile:DIR/kek.key  (configured here)\n  keyfile:DIR/other.key  (in other_keks)\n" in listed
    # Again: it is done already, and says the same.
    assert cli("keys", "add-kek", "cohortes", other).out == (
        "store 'cohortes': opened by keyfile:DIR/other.key too; keyset version 2\n"
    )
    assert cli("keys", "remove-kek", "cohortes", f"keyfile:{tmp_path / 'kek.key'}").transcript == (
        0,
        "store 'cohortes': no longer opened by keyfile:DIR/kek.key; keyset version 3\n",
        "",
    )
    assert (_table(config)["kek"], _table(config)["other_keks"]) == (other, [])
    assert "old_keks" not in _table(config)
    (tmp_path / "kek.key").unlink()
    assert cli("cat", "sov://cohortes/a").out == "content"


def test_keep_old(cli, config, other, tmp_path):
    cli("keys", "add-kek", "cohortes", other)
    first = f"keyfile:{tmp_path / 'kek.key'}"
    assert cli("keys", "remove-kek", "cohortes", first, "--keep-old").code == 0
    assert _table(config)["old_keks"] == [first]


def test_the_only_one(cli, config, tmp_path):
    before = config.read_bytes()
    assert cli("keys", "remove-kek", "cohortes", f"keyfile:{tmp_path / 'kek.key'}").transcript == (
        2,
        "",
        (
            "sovstore: error: store 'cohortes': keyfile:DIR/kek.key is the only KEK that opens it\n"
            "sovstore: hint: 'sovstore keys add-kek cohortes URI' adds another one first\n"
        ),
    )
    assert config.read_bytes() == before


def test_one_that_is_none_of_its_keks(cli, config, other):
    ran = cli("keys", "remove-kek", "cohortes", other)
    assert ran.transcript == (
        2,
        "",
        (
            "sovstore: error: store 'cohortes': keyfile:DIR/other.key is none of its KEKs\n"
            "sovstore: hint: it is opened by keyfile:DIR/kek.key\n"
        ),
    )


@pytest.mark.parametrize("uri", ["canary-of-a-key", "awskms://arn/x", "openbao://user:pass@host/m/k"])
def test_what_is_no_key_uri_is_not_quoted(cli, config, uri):
    before = config.read_bytes()
    ran = cli("keys", "add-kek", "cohortes", uri)
    assert ran.code in (2, 4)
    assert "canary" not in ran.err
    assert "pass@" not in ran.err
    assert config.read_bytes() == before


def test_a_setting_from_the_environment_cannot_be_written(cli, config, other, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OTHER_KEKS", "[]")
    ran = cli("keys", "add-kek", "cohortes", other)
    assert ran.code == 2
    assert "'other_keks' comes from SOVSTORE_STORES__COHORTES__OTHER_KEKS, which this command cannot change" in ran.err
    assert "unset SOVSTORE_STORES__COHORTES__OTHER_KEKS" in ran.err


def test_somebody_else_who_opens_it(cli, config, other):
    cli("keys", "add-kek", "cohortes", other)
    config.write_text(config.read_text().replace("other_keks", "# other_keks"))
    ran = cli("keys", "rotate-kek", "cohortes")
    assert ran.transcript == (
        2,
        "",
        (
            "sovstore: error: store 'cohortes': it is also opened by keyfile:DIR/other.key,"
            " which the configuration does not name\n"
            "sovstore: hint: add it to 'other_keks', or take it away for good:"
            " sovstore keys remove-kek cohortes 'keyfile:DIR/other.key'\n"
        ),
    )
    assert "keyfile:DIR/other.key  (not configured here)" in cli("keys", "list", "cohortes").out


def test_recovery_add(cli, config, fs, tmp_path):
    fs.pipe_file("a", b"content\n")
    cli("keys", "recovery-new", "rescue")
    assert cli("keys", "recovery-add", "cohortes", "rescue.pub").transcript == (
        0,
        "store 'cohortes': opened by the recovery key of rescue.pub too; keyset version 2\n",
        "",
    )
    assert _table(config)["recovery"] == [str(tmp_path / "desk/rescue.pub")]
    (tmp_path / "kek.key").unlink()
    assert cli("cat", "sov://cohortes/a", "--recovery-key", "rescue").out == "content\n"


def test_recovery_remove(cli, config, tmp_path):
    cli("keys", "recovery-new", "rescue")
    cli("keys", "recovery-add", "cohortes", "rescue.pub")
    recipient = json.loads(cli("keys", "list", "cohortes", "--json").raw_out)["recovery"][0]["recipient"]
    (tmp_path / "desk/rescue.pub").rename(tmp_path / "desk/moved.pub")
    config.write_text(config.read_text().replace("rescue.pub", "moved.pub"))
    assert cli("keys", "recovery-remove", "cohortes", "zz").code == 2
    ran = cli("keys", "recovery-remove", "cohortes", recipient[:6])
    assert ran.transcript == (
        0,
        f"store 'cohortes': no longer opened by recovery key {recipient[:6]}; keyset version 3\n",
        "",
    )
    assert _table(config)["recovery"] == []
    assert cli("cat", "sov://cohortes/a", "--recovery-key", "rescue").code == 4


def test_a_recovery_key_that_another_client_added_or_took_away(cli, config):
    cli("keys", "recovery-new", "rescue")
    cli("keys", "recovery-add", "cohortes", "rescue.pub")
    without = config.read_text().replace("rescue.pub", "").replace('recovery = ["', "# ")
    with_it, _ = config.read_text(), config.write_text(without)
    ran = cli("keys", "rotate-kek", "cohortes")
    assert ran.code == 2
    assert "opens it, and the configuration does not name its file" in ran.err
    assert "sovstore keys recovery-remove cohortes" in ran.err
    recipient = json.loads(cli("keys", "list", "cohortes", "--json").raw_out)["recovery"][0]["recipient"]
    assert cli("keys", "recovery-remove", "cohortes", recipient).code == 0
    config.write_text(with_it)
    ran = cli("keys", "rotate-kek", "cohortes")
    assert ran.code == 2
    assert "is configured, and does not open it" in ran.err
    assert "sovstore keys recovery-add cohortes FILE" in ran.err


def test_recovery_add_of_no_recipient(cli, config, tmp_path):
    before = config.read_bytes()
    (tmp_path / "desk/x.pub").write_text("nothing")
    assert cli("keys", "recovery-add", "cohortes", "x.pub").code != 0
    assert cli("keys", "recovery-add", "cohortes", "missing.pub").code == 2
    assert config.read_bytes() == before


def test_recovery_files_that_stand_there_stay_as_they_are_written(cli, config, tmp_path):
    cli("keys", "recovery-new", "one")
    cli("keys", "recovery-new", "two")
    cli("keys", "recovery-add", "cohortes", "one.pub")
    (tmp_path / "one.pub").write_bytes((tmp_path / "desk/one.pub").read_bytes())
    config.write_text(config.read_text().replace(str(tmp_path / "desk/one.pub"), "one.pub"))
    assert cli("keys", "recovery-add", "cohortes", "two.pub").code == 0
    assert _table(config)["recovery"] == ["one.pub", str(tmp_path / "desk/two.pub")]

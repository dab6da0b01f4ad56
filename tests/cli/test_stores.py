"""Transcripts of init and config."""

from __future__ import annotations

import json
import tomllib

import pytest

from tests.cli.conftest import Ran
from tests.stores import PASSPHRASE


@pytest.fixture
def passphrase(monkeypatch):
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", PASSPHRASE)


@pytest.fixture
def described(tmp_path, passphrase, monkeypatch):
    file = tmp_path / "sovstore.toml"
    file.write_text(
        f"""\
# Ours.
[stores.cohortes]
provider = "local"
root = "host"  # A folder.
kek = "keyfile:{tmp_path}/kek.key"
backup = "backup"
"""
    )
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    return file


_MADE = """\
made store 'cohortes'
  held by      local, in DIR/host
  opened by    keyfile:DIR/kek.key (made now)
  names        encrypted
  recovery     none
  backup copy  DIR/backup/HEX32/1.json
keep somewhere else too:
  store_id          HEX32
  auth_fingerprint  HEX64
"""
_WARNINGS = """\
sovstore: warning: a keyfile: KEK is for one machine and for trying out
sovstore: hint: for real data hold the KEK in a KMS or HSM of your own jurisdiction
sovstore: warning: no recovery key: whoever loses the KEK loses the data
sovstore: hint: 'sovstore keys recovery-new FILE' makes one, 'sovstore keys recovery-add' seals the store to it
"""


def test_init_of_a_described_store(cli, described, tmp_path):
    assert cli("init", "cohortes").transcript == (0, _MADE, _WARNINGS)
    text = described.read_text()
    assert text.startswith("# Ours.\n")
    assert "# A folder." in text
    table = tomllib.loads(text)["stores"]["cohortes"]
    assert len(table["store_id"]) == 32
    assert len(table["auth_fingerprint"]) == 64
    assert (tmp_path / "backup" / table["store_id"] / "1.json").read_bytes() == (
        tmp_path / "host" / ".sovstore" / "keyset.json"
    ).read_bytes()
    assert (tmp_path / "kek.key").stat().st_mode & 0o777 == 0o600


def test_init_again(cli, described):
    cli("init", "cohortes")
    before = described.read_bytes()
    ran = cli("init", "cohortes")
    assert ran.transcript == (
        1,
        "",
        (
            "sovstore: error: store 'cohortes': was made already\n"
            "sovstore: hint: 'sovstore ls sov://cohortes/' opens it; if the host lost its keyset,"
            " 'sovstore keys restore cohortes' puts it back\n"
        ),
    )
    assert described.read_bytes() == before


def test_init_where_there_is_a_store_of_somebody_else(cli, described):
    cli("init", "cohortes")
    kept = [line for line in described.read_text().splitlines() if "store_id" not in line]
    described.write_text("\n".join(kept))
    ran = cli("init", "cohortes")
    assert ran.code == 1
    assert "there is a store at" in ran.err


def test_init_by_options_writes_the_table(cli, passphrase, tmp_path):
    options = ("--provider", "local", "--root", tmp_path / "host", "--kek", f"keyfile:{tmp_path}/kek.key")
    ran = cli("init", "cohortes", *options)
    assert ran.code == 0
    assert ran.err.startswith("wrote [stores.cohortes] into ")
    assert cli("ls", "sov://cohortes/").transcript == (0, "", "")
    assert cli("init", "cohortes", *options).code == 1
    other = cli("init", "cohortes", *options[:2], "--root", "elsewhere", *options[4:])
    assert other.code == 2
    assert "says otherwise of 'root'" in other.err


def test_init_into_a_new_file(cli, passphrase, tmp_path):
    file = tmp_path / "new" / "sovstore.toml"
    ran = cli(
        "--config",
        file,
        "init",
        "a",
        "--provider",
        "local",
        "--root",
        "store",
        "--kek",
        f"keyfile:{tmp_path}/kek.key",
    )
    assert ran.code == 0
    assert (tmp_path / "desk" / "store" / ".sovstore" / "keyset.json").exists()


def test_a_folder_on_the_command_line_is_where_the_person_is(cli, passphrase, tmp_path):
    """No file here yet: the table goes into the user's folder, and the store stays where it was asked for."""
    assert cli("init", "here", "--provider", "local", "--root", "r", "--kek", f"keyfile:{tmp_path}/k").code == 0
    assert (tmp_path / "desk" / "r" / ".sovstore" / "keyset.json").exists()


def test_init_with_too_little(cli, config):
    assert cli("init", "other").transcript == (
        2,
        "",
        (
            "sovstore: error: store 'other': not configured in DIR/sovstore.toml\n"
            "sovstore: hint: describe it: sovstore init other --provider local --root FOLDER"
            " --kek keyfile:~/other.key\n"
        ),
    )
    ran = cli("init", "other", "--provider", "local")
    assert ran.code == 2
    assert "--root, --kek is missing" in ran.err


def test_init_with_a_wrong_option_leaves_the_file_alone(cli, config, tmp_path):
    before = config.read_bytes()
    ran = cli("init", "other", "--provider", "locale", "--root", "x", "--kek", f"keyfile:{tmp_path}/x")
    assert ran.code == 2
    assert "did you mean 'local'?" in ran.err
    assert config.read_bytes() == before


def test_init_without_a_passphrase(cli, described, monkeypatch):
    monkeypatch.delenv("SOVSTORE_PASSPHRASE")
    ran = cli("init", "cohortes")
    assert ran.code == 2
    assert "needs a passphrase" in ran.err
    assert "store_id" not in described.read_text()


def test_init_with_plain_names_and_recovery(cli, passphrase, tmp_path):
    cli("keys", "recovery-new", "rescue")
    ran = cli(
        *("init", "a", "--provider", "local", "--root", tmp_path / "host", "--names", "plain"),
        *("--kek", f"keyfile:{tmp_path}/kek.key", "--recovery", "rescue.pub"),
    )
    assert ran.code == 0
    assert "names        plain" in ran.out
    assert "recovery     DIR/desk/rescue.pub" in ran.out
    assert "keep beside the recovery key" in ran.out
    assert "no recovery key" not in ran.err


def test_init_as_json(cli, described, tmp_path):
    ran = cli("init", "cohortes", "--json")
    made = json.loads(ran.raw_out)
    assert made["store_id"] == tomllib.loads(described.read_text())["stores"]["cohortes"]["store_id"]
    assert made["kek_is_new"]
    assert all("warning" in json.loads(line) for line in ran.raw_err.splitlines())


def test_config_path(cli, config):
    assert cli("config", "path").transcript == (0, "DIR/sovstore.toml\n", "")


def test_config_path_without_a_file(cli):
    ran = cli("config", "path")
    assert ran.code == 0
    assert ran.out.endswith(".config/sovstore/sovstore.toml\n")
    assert ran.err == "there is no such file yet; 'sovstore init' makes it\n"


def test_config_show(cli, config, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__ROOT", "/elsewhere")
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OPTIONS", '{a = 1, b = {c = "d"}}')
    ran = cli("config", "show")
    assert ran.transcript == (
        0,
        """\
# DIR/sovstore.toml

[stores.cohortes]
provider = "local"
root = "/elsewhere"
kek = "keyfile:DIR/kek.key"
cache = "1h"
grace = "0s"
names = "encrypted"
freshness = "unchecked"
store_id = "HEX32"
auth_fingerprint = "HEX64"
options = {a = 1, b = {c = "d"}}
passphrase_file = "DIR/passphrase"
backup = "DIR/backup"
""",
        "",
    )
    tomllib.loads(ran.raw_out)


def test_config_show_hides_what_may_be_a_secret(cli, config, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OPTIONS", '{c = {my_token = "s3cret"}}')
    ran: Ran = cli("config", "show", "cohortes", "--json")
    assert json.loads(ran.raw_out)["stores"]["cohortes"]["options"] == {"c": {"my_token": "(hidden)"}}


def test_config_show_of_an_unknown_store(cli, config):
    assert cli("config", "show", "cohorte").transcript == (
        2,
        "",
        (
            "sovstore: error: store 'cohorte': not configured in DIR/sovstore.toml\n"
            "sovstore: hint: did you mean 'cohortes'?\n"
        ),
    )

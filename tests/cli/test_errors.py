"""Exit codes, errors as text and as JSON, and what must never reach a terminal."""

from __future__ import annotations

import json
import logging

import pytest

from sovstore.cli.output import Output, printable, size_text
from sovstore.cli.run import Outcome
from tests.cli.conftest import at_host, damage
from tests.stores import PASSPHRASE


def test_wrong_passphrase(cli, config, monkeypatch):
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "not it")
    ran = cli("ls", "sov://cohortes/")
    assert ran.transcript == (
        4,
        "",
        (
            "sovstore: error: keyfile:DIR/kek.key: wrong passphrase, or the key file was altered\n"
            "sovstore: hint: try again; a forgotten passphrase can only be bypassed"
            " with the recovery key of the store\n"
        ),
    )
    assert "not it" not in ran.raw_err


def test_unknown_store(cli, config):
    assert cli("ls", "sov://cohorts/x").transcript == (
        2,
        "",
        (
            "sovstore: error: store 'cohorts': not configured in DIR/sovstore.toml\n"
            "sovstore: hint: did you mean 'cohortes'?\n"
        ),
    )


def test_a_configuration_that_is_not_there(cli):
    assert cli("--config", "nope.toml", "ls").transcript == (
        2,
        "",
        "sovstore: error: DIR/desk/nope.toml: no such configuration file\nsovstore: hint: check the path\n",
    )


def test_a_tampered_keyset(cli, config, tmp_path):
    damage(tmp_path / "cohortes" / ".sovstore" / "keyset.json", 100)
    assert cli("ls", "sov://cohortes/").code == 3


def test_wrong_usage(cli):
    assert cli("lss").transcript == (
        2,
        "",
        (
            "sovstore: error: no such command 'lss'. Did you mean 'ls'?\n"
            "sovstore: hint: 'sovstore --help' says what it takes\n"
        ),
    )
    assert cli("ls", "--nope").code == 2
    assert cli("get").err.endswith("sovstore: hint: 'sovstore get --help' says what it takes\n")


@pytest.mark.parametrize("place", ["before", "after"])
def test_errors_as_json(cli, config, place):
    arguments = ("--json", "ls", "sov://cohorts/x") if place == "before" else ("ls", "sov://cohorts/x", "--json")
    ran = cli(*arguments)
    assert ran.code == 2
    assert ran.raw_out == ""
    assert json.loads(ran.raw_err) == {
        "error": {
            "type": "ConfigError",
            "message": f"store 'cohorts': not configured in {config}",
            "path": "cohorts",
            "hint": "did you mean 'cohortes'?",
            "exit_code": 2,
        }
    }


def test_usage_errors_as_json(cli):
    assert json.loads(cli("ls", "--nope", "--json").raw_err)["error"]["exit_code"] == 2


def test_the_shared_options_stand_anywhere(cli, config, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("")
    assert cli("ls", "--config", other).transcript == cli("--config", other, "ls").transcript
    assert cli("--config", other, "ls", "--config", config).out == "sov://cohortes/\n"


def test_debug_shows_where_it_happened(cli, config):
    ran = cli("--debug", "ls", "sov://cohorts/")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.rstrip().splitlines()[-2].startswith("sovstore: error: ")


def test_a_bug_is_called_one(cli, config, monkeypatch):
    monkeypatch.setattr("sovstore.cli.objects._list_stores", lambda run: 1 / 0)
    assert cli("ls").transcript == (
        1,
        "",
        (
            "sovstore: error: unexpected ZeroDivisionError: division by zero\n"
            "sovstore: hint: this is a bug of sovstore: run the command again with --debug and report what it prints\n"
        ),
    )


@pytest.mark.parametrize(
    ("failed", "objects", "code"),
    [([], 3, 0), ([1], 0, 1), ([4], 0, 4), ([1], 1, 5), ([1, 2], 0, 5), ([1, 3], 1, 3), ([3], 0, 3), ([1, 1], 0, 1)],
)
def test_exit_code_of_many(failed, objects, code):
    assert Outcome(objects=objects, failed=[{"exit_code": c} for c in failed]).exit_code == code


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é 日本", "é 日本"),
        ("\x1b[2Jx", "\\x1b[2Jx"),
        ("a\nb\tc\x7f", "a\\x0ab\\x09c\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("csv\u202etxt", "csv\\u202etxt"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2 * 10**15, "2000.0 TB")]
)
def test_size_text(size, text):
    assert size_text(size) == text


def test_names_cannot_steer_the_terminal(cli, fs, tmp_path):
    name = "a\x1b[31m\nb\u202e"
    fs.pipe_file(f"2026/{name}", b"x")
    (tmp_path / "cohortes" / "\x1b[1mforeign").write_bytes(b"x")
    damage(at_host(tmp_path, fs, f"2026/{name}"))
    for arguments in (
        ("ls", "-l", "sov://cohortes/"),
        ("ls", "-R", "sov://cohortes/"),
        ("info", f"sov://cohortes/2026/{name}"),
        ("cat", f"sov://cohortes/2026/{name}"),
        ("verify", "cohortes"),
        ("get", "-r", "sov://cohortes/", "out"),
        ("rm", "sov://cohortes/2026/\x1b[31m"),
    ):
        ran = cli(*arguments)
        for text in (ran.raw_out, ran.raw_err):
            assert "\x1b" not in text
            assert "\u202e" not in text
        if arguments[0] != "rm":
            assert len((ran.raw_out + ran.raw_err).splitlines()) >= 1
    assert "2026/a\\x1b[31m\\x0ab\\u202e\n" in cli("ls", "-R", "sov://cohortes/").raw_out


def test_kek_uris_of_the_host_are_escaped(cli, config, tmp_path):
    keyset = tmp_path / "cohortes" / ".sovstore" / "keyset.json"
    raw = keyset.read_text()
    keyset.write_text(raw.replace(f"keyfile:{tmp_path}/kek.key", "keyfile:\\u001b[31mevil"))
    ran = cli("keys", "list", "cohortes")
    assert ran.code in (3, 4)
    assert "\x1b" not in ran.raw_err


def test_the_log_is_printed_as_warnings(cli, fs, monkeypatch, caplog):
    def list_stores(run):
        logging.getLogger("sovstore").warning("%s cannot be read", "seen\x1b")

    monkeypatch.setattr("sovstore.cli.objects._list_stores", list_stores)
    assert cli("ls").err == "sovstore: warning: seen\\x1b cannot be read\n"
    assert cli("ls", "--quiet").err == ""
    assert json.loads(cli("ls", "--json").raw_err)["warning"]["message"] == "seen\x1b cannot be read"
    assert logging.getLogger("sovstore").handlers == []


def test_foreign_names_are_reported_once(cli, fs, tmp_path):
    """The library logs them, and the commands show them: the text that is left out must be the library's."""
    (tmp_path / "cohortes" / "foreign").write_bytes(b"x")
    assert cli("ls", "sov://cohortes/").transcript == (0, "foreign  (foreign)\n", "")
    assert "did not make" in cli("--debug", "ls", "sov://cohortes/").err


def test_progress_is_for_terminals_only(capsys):
    out = Output()
    with out.progress("sealed", 1, 10) as bar:
        bar.advance(10)
        bar.finish()
    assert (bar.objects, bar.bytes) == (1, 10)
    assert capsys.readouterr() == ("", "")


def test_the_passphrase_is_nowhere(cli, fs, config, monkeypatch):
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", PASSPHRASE)
    fs.pipe_file("a", b"a")
    # The fixture looks for it in everything that was printed.
    for arguments in (
        ("--debug", "ls", "-l", "sov://cohortes/"),
        ("--debug", "ls", "sov://nope/"),
        ("keys", "list", "cohortes"),
        ("config", "show"),
        ("info", "sov://cohortes/a"),
        ("--debug", "init", "cohortes"),
        ("verify", "cohortes"),
    ):
        cli(*arguments)

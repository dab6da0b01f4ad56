"""Transcripts of login and logout, on a real Secret Service."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tomllib
from pathlib import Path

import pytest

from sovstore import config as configuration
from sovstore.backends import credentials
from sovstore.errors import StoreError
from tests.cli.test_process import Person

CANARY = "canary-9-login"
HOST = "keyring://sovstore-host"
TEXT = """\
# Ours.
[stores.s]
provider = "s3"  # Theirs.
root = "bucket/prefix"
kek = "keyfile:~/k"

[stores.a]
provider = "azure"
root = "container/prefix"
kek = "keyfile:~/k"

[stores.here]
root = "/srv/host"
kek = "keyfile:~/k"

[stores.there]
root = "sftp://h/x"
kek = "keyfile:~/k"
"""
S3 = {"access_key_id": "AKIA9", "secret_access_key": CANARY}


@pytest.fixture
def file(tmp_path, monkeypatch):
    file = tmp_path / "sovstore.toml"
    file.write_text(TEXT)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    return file


@pytest.fixture
def entries(os_keyring):
    """The entries that these tests may make, none of them there."""
    uris = [f"{HOST}/{name}" for name in ("s", "a", "other", "s-2")]
    for uri in uris:
        credentials.forget(uri)
    yield
    for uri in uris:
        credentials.forget(uri)


@pytest.fixture
def run(cli, monkeypatch):
    """Run a command with a text, or bytes, on stdin; nothing secret is ever printed."""

    def run(*arguments, stdin=""):
        content = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        ran = cli(*arguments)
        assert CANARY not in ran.raw_out + ran.raw_err
        return ran

    return run


def kept(uri):
    found = credentials.look(uri)
    return found and {name: value.reveal().decode() for name, value in found.items()}


def table(file, name):
    return tomllib.loads(file.read_text())["stores"][name]


def test_login_from_stdin_and_logout(run, file, entries):
    assert run("login", "s", "--stdin", stdin=json.dumps(S3)).transcript == (
        0,
        f"""\
kept the credentials of store 's' in the keyring of the operating system
  entry     {HOST}/s
  values    access_key_id, secret_access_key
  named in  [stores.s] of DIR/sovstore.toml
""",
        "'sovstore check s' tells whether the host takes them\n",
    )
    assert kept(f"{HOST}/s") == S3
    text = file.read_text()
    assert CANARY not in text
    assert text == TEXT.replace('"keyfile:~/k"\n', f'"keyfile:~/k"\ncredentials = "{HOST}/s"\n', 1)
    assert configuration.load(file).store("s").place.credentials == f"{HOST}/s"
    assert run("logout", "s").transcript == (
        0,
        f"store 's' has no credentials in the keyring any more\n  entry  {HOST}/s (deleted)\n",
        "",
    )
    assert kept(f"{HOST}/s") is None
    assert file.read_text() == TEXT
    again = run("logout", "s")
    assert again.code == 2
    assert "has no credentials in the keyring" in again.err


def test_logout_finds_the_entry_gone(run, file, entries):
    run("login", "s", "--stdin", stdin=json.dumps(S3))
    credentials.forget(f"{HOST}/s")
    ran = run("logout", "s")
    assert (ran.code, "(there was none)" in ran.out) == (0, True)
    assert file.read_text() == TEXT


def test_json(run, file, entries):
    ran = run("login", "s", "--stdin", "--json", stdin=json.dumps({**S3, "session_token": CANARY}))
    assert json.loads(ran.raw_out) == {
        "store": "s",
        "credentials": f"{HOST}/s",
        "values": ["access_key_id", "secret_access_key", "session_token"],
        "file": str(file),
        "moved": [],
    }
    assert ran.err == ""
    assert json.loads(run("logout", "s", "--json").raw_out) == {
        "store": "s",
        "credentials": f"{HOST}/s",
        "deleted": True,
        "file": str(file),
    }


@pytest.mark.parametrize(
    ("arguments", "stdin", "values"),
    [
        (["s"], f"AKIA9\n{CANARY}\n", S3),
        (["s"], f"  AKIA9\r\n{CANARY}\r\n{CANARY}", {**S3, "session_token": CANARY}),
        (["a", "--with", "account-key"], f"{CANARY}\n", {"account_key": CANARY}),
        (["a", "--with", "connection-string"], f"A=b;K={CANARY}==", {"connection_string": f"A=b;K={CANARY}=="}),
        (["a", "--with", "sas-token"], f"?sv=1&sig={CANARY}", {"sas_token": f"sv=1&sig={CANARY}"}),
        (["a"], json.dumps({"sas_token": f"?{CANARY}"}), {"sas_token": CANARY}),
    ],
)
def test_forms_of_stdin(run, file, entries, arguments, stdin, values):
    assert run("login", *arguments, "--stdin", stdin=stdin).code == 0
    assert kept(f"{HOST}/{arguments[0]}") == values


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["s"], "", "stdin holds no credentials"),
        (["s"], CANARY, "stdin holds no credentials"),
        (["s"], f"{CANARY}\n\nb", "stdin holds no credentials"),
        (["s"], f"{CANARY}\nb\nc\nd", "stdin holds no credentials"),
        (["s"], b"\xff" + CANARY.encode(), "stdin holds no credentials"),
        (["s"], "{" + CANARY, "stdin holds no credentials"),
        (["s"], json.dumps({**S3, "access_key_id": 3}), "stdin holds no credentials"),
        (["s"], json.dumps({**S3, "access_key_id": " "}), "stdin holds no credentials"),
        (["s"], json.dumps({**S3, CANARY: "x"}), "stdin holds no credentials"),
        (["s"], json.dumps({**S3, "access_key_id": "a\nb"}), "no credentials of a host"),
        (["s"], json.dumps({**S3, "access_key_id": "\ud800"}), "no credentials of a host"),
        (["s"], json.dumps({"account_key": CANARY}), "stdin holds no credentials"),
        (["s", "--with", "sas-token"], CANARY, "--with goes with Azure Blob"),
        (["a"], CANARY, "a line of stdin does not say what it is"),
        (["a", "--with", "sas-token"], json.dumps({"account_key": CANARY}), "stdin holds no credentials"),
        (["a"], json.dumps({"account_key": CANARY, "sas_token": "b"}), "stdin holds no credentials"),
        (["a", "--with", "nothing"], CANARY, "'nothing' is not one of"),
        (["s", "--move"], CANARY, "--move takes what is in the file"),
        (["s", "--as", "keyfile:/x"], CANARY, "not a keyring URI"),
        (["here"], CANARY, "provider 'local' has no credentials to keep"),
        (["there"], CANARY, "provider 'fsspec' has no credentials to keep"),
        (["nowhere"], CANARY, "store 'nowhere': not configured"),
    ],
)
def test_what_is_no_login(run, file, entries, arguments, stdin, message):
    ran = run("login", *arguments, "--stdin", stdin=stdin)
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == ""
    assert not any(credentials.exists(f"{HOST}/{name}") for name in ("s", "a"))
    assert file.read_text() == TEXT


def test_no_terminal_and_no_stdin(run, file, entries):
    assert run("login", "s").transcript == (
        2,
        "",
        (
            "sovstore: error: store 's': there is no terminal to ask for its credentials at\n"
            "sovstore: hint: give them to 'sovstore login s --stdin',"
            " or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment\n"
        ),
    )


@pytest.mark.parametrize("arguments", [["login", "s", "--stdin"], ["login", "s", "--move"], ["logout", "s"]])
def test_no_keyring(run, file, arguments):
    """Without the fixture, the keyring of the tests is none."""
    secrets = 'options = { key = "a", secret = "b" }' if "--move" in arguments else f'credentials = "{HOST}/s"'
    text = TEXT.replace("\n[stores.a]", f"{secrets}\n\n[stores.a]")
    file.write_text(text)
    ran = run(*arguments, stdin=json.dumps(S3))
    assert ran.code == 2
    assert "no keyring of the operating system was found" in ran.err
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (S3) or AZURE_STORAGE_CONNECTION_STRING" in ran.err
    assert file.read_text() == text


def test_login_again_replaces_its_own_entry(run, file, entries):
    run("login", "s", "--stdin", stdin=json.dumps(S3))
    assert run("login", "s", "--stdin", stdin="new\nother\n").code == 0
    assert kept(f"{HOST}/s") == {"access_key_id": "new", "secret_access_key": "other"}


def test_an_entry_of_somebody_else_is_left_alone(run, file, entries):
    uri = f"{HOST}/s"
    run("login", "s", "--stdin", stdin=json.dumps(S3))
    file.write_text(TEXT)
    ran = run("login", "s", "--stdin", stdin="new\nother\n")
    assert ran.transcript == (
        2,
        "",
        (
            f"sovstore: error: {uri}: the OS keyring has such an entry already\n"
            f"sovstore: hint: '--as {uri}' replaces it; '--as {uri}-2', say, leaves it alone\n"
        ),
    )
    assert kept(uri) == S3
    assert run("login", "s", "--stdin", "--as", f"{uri}-2", stdin="new\nother\n").code == 0
    assert (kept(uri), table(file, "s")["credentials"]) == (S3, f"{uri}-2")
    moved = run("login", "s", "--stdin", "--as", uri, stdin="new\nother\n")
    assert moved.code == 2
    assert "'sovstore logout s' deletes them first" in moved.err
    assert run("logout", "s").code == 0
    assert run("login", "s", "--stdin", "--as", uri, stdin="new\nother\n").code == 0
    assert kept(uri)["access_key_id"] == "new"


def test_logout_leaves_what_another_store_uses(run, file, entries):
    file.write_text(TEXT + '\n[stores.t]\nroot = "s3://b/x"\nkek = "keyfile:~/k"\n')
    for name in ("s", "t"):
        assert run("login", name, "--stdin", "--as", f"{HOST}/other", stdin=json.dumps(S3)).code == 0
    assert "(left: t uses it)" in run("logout", "s").out
    assert kept(f"{HOST}/other") == S3
    assert "(deleted)" in run("logout", "t").out


def test_a_variable_that_says_otherwise(run, file, entries, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__S__CREDENTIALS", f"{HOST}/other")
    for command in ("login", "logout"):
        ran = run(command, "s", *(["--stdin"] if command == "login" else []), stdin=json.dumps(S3))
        assert ran.code == 2
        assert "unset SOVSTORE_STORES__S__CREDENTIALS" in ran.err
    assert not credentials.exists(f"{HOST}/other")


def test_a_store_of_the_environment_only(run, file, entries, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__E__ROOT", "s3://b/x")
    monkeypatch.setenv("SOVSTORE_STORES__E__KEK", "keyfile:/k")
    ran = run("login", "e", "--stdin", stdin=json.dumps(S3))
    assert ran.code == 2
    assert "store 'e': not configured in DIR/sovstore.toml" in ran.err


# Out of the file


def with_options(options, store="s"):
    start = TEXT.index(f"[stores.{store}]")
    end = TEXT.index("\n\n", start)
    return f"{TEXT[:end]}\n{options}{TEXT[end:]}"


_WARNING = """\
'sovstore check s' tells whether the host takes them
sovstore: warning: DIR/sovstore.toml held secrets, and backups or older versions of it still do
sovstore: hint: have the provider make new ones and withdraw these; 'sovstore login s' then keeps the new ones
"""


def test_move(run, file, entries):
    file.write_text(with_options(f'options = {{ key = "AKIA9", use_ssl = true, secret = "{CANARY}" }}  # Mine.'))
    file.chmod(0o640)
    refused = run("login", "s", "--stdin", stdin=json.dumps(S3))
    assert refused.code == 2
    hint = "'sovstore login s --move' puts it into the keyring of the operating system and takes it out of the file"
    assert f"sovstore: hint: {hint}\n" in refused.err
    assert run("login", "s", "--move").transcript == (
        0,
        f"""\
kept the credentials of store 's' in the keyring of the operating system
  entry      {HOST}/s
  values     access_key_id, secret_access_key
  named in   [stores.s] of DIR/sovstore.toml
  taken out  options.key, options.secret
""",
        _WARNING,
    )
    assert kept(f"{HOST}/s") == S3
    assert CANARY not in file.read_text()
    assert [line.split("#")[1] for line in file.read_text().splitlines() if "#" in line] == [
        " Ours.",
        " Theirs.",
        " Mine.",
    ]
    described = configuration.load(file).store("s")
    assert described.options == {"use_ssl": True}
    assert file.stat().st_mode & 0o777 == 0o640
    assert run("login", "s", "--move").transcript == (
        0,
        "[stores.s] of DIR/sovstore.toml holds no secret: nothing was moved\n",
        "",
    )


def test_move_out_of_a_file_behind_a_link(run, file, entries, tmp_path):
    target = tmp_path / "dotfiles.toml"
    target.write_text(with_options(f'options = {{ key = "AKIA9", secret = "{CANARY}" }}'))
    file.unlink()
    file.symlink_to(target)
    assert run("login", "s", "--move").code == 0
    assert file.is_symlink()
    assert CANARY not in target.read_text()
    assert kept(f"{HOST}/s") == S3


@pytest.mark.parametrize(
    ("store", "options", "values"),
    [
        (
            "s",
            f'options = {{ client_kwargs = {{ aws_access_key_id = "AKIA9", aws_secret_access_key = "{CANARY}" }} }}',
            S3,
        ),
        ("s", f'options.key = "AKIA9"\noptions.secret = "{CANARY}"', S3),
        ("s", f'access_key_id = "AKIA9"\nsecret_access_key = "{CANARY}"', S3),
        ("s", f'[stores.s.options]\nkey = "AKIA9"\n# Why.\nsecret = "{CANARY}"', S3),
        ("a", f'account_key = "{CANARY}"', {"account_key": CANARY}),
        ("a", f'options = {{ connection_string = "K={CANARY}" }}', {"connection_string": f"K={CANARY}"}),
    ],
)
def test_move_from_where_it_is(run, file, entries, store, options, values):
    file.write_text(with_options(options, store))
    # Another store with a secret is no reason to leave this one.
    file.write_text(
        file.read_text() + f'\n[stores.z]\nroot = "s3://b"\nkek = "keyfile:~/k"\noptions = {{ key = "{CANARY}"}}\n'
    )
    ran = run("login", store, "--move", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.raw_out)["values"] == list(values)
    assert kept(f"{HOST}/{store}") == values
    expected = {**tomllib.loads(TEXT)["stores"][store], "credentials": f"{HOST}/{store}"}
    assert table(file, store) == expected


@pytest.mark.parametrize(
    ("store", "options", "hint"),
    [
        ("s", f'options = {{ secret = "{CANARY}" }}', "then 'sovstore login s' asks for the credentials"),
        ("s", f'options = {{ key = "a", secret = "b", password = "{CANARY}" }}', "AWS_SECRET_ACCESS_KEY"),
        ("a", f'options = {{ client_secret = "{CANARY}" }}', "AZURE_STORAGE_CONNECTION_STRING"),
        ("there", f'options = {{ password = "{CANARY}" }}', "its environment, agent or key files"),
        ("here", f'options = {{ password = "{CANARY}" }}', "provider 'local' needs none"),
    ],
)
def test_what_cannot_be_moved_stays(run, file, entries, store, options, hint):
    text = with_options(options, store) if store != "there" else f"{TEXT}{options}\n"
    file.write_text(text)
    ran = run("login", store, "--move")
    assert ran.code == 2
    assert f"store '{store}': the keyring cannot keep what its table holds: options." in ran.err
    assert hint in ran.err
    assert "--move" not in ran.err
    assert file.read_text() == text


def test_a_move_that_failed_in_between_loses_nothing(run, file, entries, monkeypatch):
    text = with_options(f'options = {{ key = "AKIA9", secret = "{CANARY}" }}')
    file.write_text(text)

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        ran = run("login", "s", "--move")
    assert ran.code == 2
    assert "cannot be written: No space left on device" in ran.err
    assert "take out of [stores.s] yourself: options.key, options.secret" in ran.err
    assert file.read_text() == text
    assert kept(f"{HOST}/s") == S3
    assert run("login", "s", "--move").code == 0
    assert kept(f"{HOST}/s") == S3
    assert CANARY not in file.read_text()


def test_a_move_replaces_no_other_entry(run, file, entries):
    run("login", "s", "--stdin", stdin="new\nother\n")
    text = file.read_text().replace("\n[stores.a]", f'options = {{ key = "AKIA9", secret = "{CANARY}" }}\n\n[stores.a]')
    file.write_text(text)
    ran = run("login", "s", "--move")
    assert ran.code == 2
    assert f"'--as {HOST}/s' replaces it" in ran.err
    assert file.read_text() == text
    assert run("login", "s", "--move", "--as", f"{HOST}/s").code == 0
    assert kept(f"{HOST}/s") == S3


def test_a_keyring_that_keeps_something_else(run, file, entries, monkeypatch):
    text = with_options(f'options = {{ key = "AKIA9", secret = "{CANARY}" }}')
    file.write_text(text)
    monkeypatch.setattr(credentials, "keep", lambda *_arguments: None)
    ran = run("login", "s", "--move")
    assert ran.code == 2
    assert "did not keep what it was given" in ran.err
    assert file.read_text() == text


# At a terminal


def test_a_person_is_asked(file, entries):
    terminal = Person("login", "s")
    terminal.type_at("access key id: ", "AKIA9\n")
    terminal.type_at("secret access key: ", f"{CANARY}\n")
    terminal.type_at("session token (empty if there is none): ", "\n")
    assert terminal.leave() == 0
    assert "AKIA9" in terminal.seen
    assert CANARY not in terminal.seen
    assert kept(f"{HOST}/s") == S3


def test_a_person_is_asked_which(file, entries):
    terminal = Person("login", "a")
    terminal.type_at("which do you have? ", "4\n")
    terminal.type_at("which do you have? ", "2\n")
    terminal.type_at("account key: ", f"{CANARY}\n")
    assert terminal.leave() == 0
    assert CANARY not in terminal.seen
    assert kept(f"{HOST}/a") == {"account_key": CANARY}


@pytest.mark.parametrize(("typed", "code"), [("\n", 2), ("\x04", 2), ("\x03", 130)])
def test_a_person_who_gives_up(file, entries, typed, code):
    terminal = Person("login", "a", "--with", "sas-token")
    terminal.type_at("SAS token: ", typed)
    assert terminal.leave() == code
    assert not credentials.exists(f"{HOST}/a")
    assert file.read_text() == TEXT


def test_stdin_that_is_a_terminal(file, entries):
    terminal = Person("login", "s", "--stdin")
    assert terminal.leave() == 2
    assert "asks for them unseen" in terminal.seen


@pytest.mark.parametrize("name", ["login", "logout"])
def test_help_and_page(cli, name):
    assert f"  Examples:\n    sovstore {name}" in cli(name, "--help").out
    assert f"\n  {name} " in cli("--help").out
    assert f"sovstore {name}" in (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_a_login_travels_as_its_name_only(run, file, entries):
    run("login", "s", "--stdin", stdin=json.dumps(S3))
    pickled = pickle.dumps(configuration.load(file).store("s"))
    assert CANARY.encode() not in pickled
    assert f"{HOST}/s".encode() in pickled
    credentials.forget(f"{HOST}/s")
    with pytest.raises(StoreError, match="no such entry"):
        credentials.fetch(pickle.loads(pickled).place.credentials)  # noqa: S301  # our own, made above

"""The command as a process of its own: start, pipes, Ctrl-C, a person at a terminal, shell completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stores import PASSPHRASE, make_store, open_fs

SOVSTORE = Path(sys.executable).with_name("sovstore")
#: Gives a process a terminal of its own, and passes on what is typed.
_IN_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def sovstore(*arguments, **options):
    options = {"capture_output": True, "timeout": 60, "start_new_session": True, **options}
    return subprocess.run([SOVSTORE, *map(str, arguments)], **options)


def test_help_is_quick_and_teaches():
    ran = sovstore("--help", text=True)
    assert ran.returncode == 0
    assert ran.stderr == ""
    for name in ("init", "ls", "cat", "rm", "put", "get", "cp", "mv", "info", "verify", "keys", "config", "demo"):
        assert f"\n  {name} " in ran.stdout
    assert "\n    sovstore demo\n" in ran.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sovstore.cli import main; assert main(['--help']) == 0;"
        "heavy = ('pandas', 'pyarrow', 'numpy', 's3fs', 'fsspec', 'cryptography', 'rich');"
        "print([m for m in heavy if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "command",
    [
        *("init", "ls", "cat", "rm", "put", "get", "cp", "mv", "info", "verify", "demo"),
        *("keys list", "keys recovery-new", "keys backup", "keys restore", "config show", "config path"),
    ],
)
def test_help_of_every_command_has_examples(cli, command):
    ran = cli(*command.split(), "--help")
    assert ran.code == 0
    assert f"  Examples:\n    sovstore {command}" in ran.out
    assert "--config FILE" in ran.out


def test_without_a_command(cli):
    ran = cli()
    assert ran.code == 0
    assert ran.out.startswith("Usage: sovstore ")
    group = cli("keys")
    assert (group.out + group.err).startswith("Usage: sovstore keys ")


def test_version():
    ran = sovstore("--version", text=True)
    assert ran.returncode == 0
    assert ran.stdout.startswith("sovstore 0.")


def test_stdin_and_stdout(config, fs, tmp_path):
    content = os.urandom(3 * 2**20 + 11)
    assert sovstore("put", "-", "sov://cohortes/piped", input=content).returncode == 0
    assert fs.cat("piped") == content
    assert sovstore("get", "sov://cohortes/piped", "-").stdout == content
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        assert sovstore("put", "-", "sov://cohortes/redirected", stdin=file).returncode == 0
    assert fs.cat("redirected") == content
    refused = sovstore("put", "-", "sov://cohortes/", input=b"", text=False)
    assert refused.returncode == 2
    assert b"stdin has no name" in refused.stderr


def test_empty_stdin_is_an_empty_object(config, fs):
    assert sovstore("put", "-", "sov://cohortes/empty", stdin=subprocess.DEVNULL).returncode == 0
    assert fs.cat("empty") == b""


def test_a_reader_that_has_enough(config, fs):
    fs.pipe_file("big", bytes(8 * 2**20))
    ran = subprocess.run(
        ["bash", "-c", f"{SOVSTORE} cat sov://cohortes/big | head -c 3; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=60,
    )
    assert ran.stdout == b"\x00\x00\x00141\n"
    assert ran.stderr == b""


def test_a_full_disk_under_stdout(config, fs):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    fs.pipe_file("big", bytes(2**20))
    with open("/dev/full", "wb") as full:
        ran = sovstore("cat", "sov://cohortes/big", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert ran.returncode == 1
    assert b"no space left on device" in ran.stderr


def _unfinished(tmp_path):
    return [file for file in (tmp_path / "cohortes" / ".sovstore").glob("tmp/*") if file.is_file()]


@pytest.mark.parametrize("settings", [{}, {"provider": "fsspec", "protocol": "file"}], ids=["local", "fsspec"])
def test_ctrl_c_while_putting_leaves_nothing(tmp_path, monkeypatch, settings):
    file = make_store(tmp_path, root=str(tmp_path / "cohortes"), **settings)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    fs = open_fs(file)
    fs.pipe_file("big", b"before")
    with (tmp_path / "big").open("wb") as big:
        big.truncate(8 * 2**30)
    process = subprocess.Popen(
        [SOVSTORE, "put", tmp_path / "big", "sov://cohortes/"], stderr=subprocess.PIPE, start_new_session=True
    )
    _wait_until(lambda: any(unfinished.stat().st_size > 2**20 for unfinished in _unfinished(tmp_path)))
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.decode() == (
        "sovstore: interrupted; nothing half-written was left, and what was finished before is complete\n"
    )
    assert _unfinished(tmp_path) == []
    assert fs.cat("big") == b"before"


def test_ctrl_c_while_getting_leaves_nothing(config, fs, tmp_path):
    with fs.open("big", "wb") as big:
        for _ in range(48):
            big.write(bytes(2**24))
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [SOVSTORE, "get", "sov://cohortes/big", out], stderr=subprocess.PIPE, start_new_session=True
    )
    _wait_until(lambda: any(out.iterdir()))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(out.iterdir()) == []


def test_ctrl_c_while_stdin_is_silent(config, fs, tmp_path):
    process = subprocess.Popen(
        [SOVSTORE, "put", "-", "sov://cohortes/a"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdin.write(b"some")
    process.stdin.flush()
    _wait_until(lambda: _unfinished(tmp_path))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert _unfinished(tmp_path) == []
    assert not fs.exists("a")


def _wait_until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to it")


class Person:
    """Somebody at a terminal: waits for a prompt, then types."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_TERMINAL, SOVSTORE, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.seen = ""

    def type_at(self, prompt, text):
        while not self.seen.endswith(prompt):
            piece = os.read(self.process.stdout.fileno(), 1000)
            assert piece, self.seen
            self.seen += piece.decode()
        # getpass throws away what was typed before it is ready; it writes its prompt just before that.
        time.sleep(0.1)
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()
        self.seen += "<typed>"

    def leave(self):
        rest, _ = self.process.communicate(timeout=60)
        self.seen += rest.decode()
        return self.process.returncode


def test_a_person_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sovstore.toml").write_text(
        f'[stores.cohortes]\nprovider = "local"\nroot = "host"\nkek = "keyfile:{tmp_path}/kek.key"\n'
    )
    person = Person("init", "cohortes")
    for prompt, typed in (("kek.key: ", "one"), ("again: ", "two"), ("kek.key: ", PASSPHRASE), ("again: ", PASSPHRASE)):
        person.type_at(prompt, f"{typed}\n")
    assert person.leave() == 0
    assert "the two are not the same" in person.seen
    assert PASSPHRASE not in person.seen

    person = Person("ls", "sov://cohortes/")
    person.type_at("kek.key: ", "wrong\n")
    person.type_at("kek.key: ", f"{PASSPHRASE}\n")
    assert person.leave() == 0
    assert "wrong passphrase" in person.seen

    person = Person("ls", "sov://cohortes/")
    for _ in range(3):
        person.type_at("kek.key: ", "wrong\n")
    assert person.leave() == 4

    person = Person("ls", "sov://cohortes/")
    person.type_at("kek.key: ", "\x03")
    assert person.leave() == 130
    assert "interrupted" in person.seen

    person = Person("ls", "sov://cohortes/")
    person.type_at("kek.key: ", "\x04")
    assert person.leave() == 2
    assert "no passphrase was given" in person.seen


def test_progress_on_a_terminal(config, fs, tmp_path):
    (tmp_path / "a").write_bytes(bytes(2**20))
    person = Person("put", tmp_path / "a", "sov://cohortes/")
    assert person.leave() == 0
    assert "sealed 1 object, 1.0 MB" in person.seen


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("sovstore ver", "verify"),
        ("sovstore verify co", "cohortes"),
        ("sovstore keys list co", "cohortes"),
        ("sovstore ls s", "sov://cohortes/"),
        ("sovstore put a sov://co", "sov://cohortes/"),
    ],
)
def test_completion(config, words, completed):
    ran = _complete("complete_zsh", _TYPER_COMPLETE_ARGS=words)
    assert f'"{completed}"' in ran.replace("\\", "")


@pytest.mark.parametrize("before", ["ls", "put\na"])
def test_completion_by_bash_which_splits_at_the_colon(config, before):
    words = f"sovstore\n{before}\nsov\n:\n//co"
    ran = _complete("complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count("\n")))
    assert ran == "//cohortes/"


def test_completion_without_a_configuration(cli):
    assert _complete("complete_bash", COMP_WORDS="sovstore\nls\ns", COMP_CWORD="2") == ""


def _complete(shell, **variables):
    """Return what a shell gets; nobody is asked for a passphrase."""
    ran = sovstore(env={**os.environ, "_SOVSTORE_COMPLETE": shell, **variables}, text=True, stdin=subprocess.DEVNULL)
    assert ran.stderr == ""
    return ran.stdout.strip()

"""Runs the examples of docs/cli.md in their order, in one shell, and compares what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts import cheap_key_files_of_commands

_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_MARK = "---- exit code "


def _examples():
    """Return (command, expected lines) of every example."""
    examples = []
    for block in re.findall(r"^```console\n(.*?)^```$", _PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                examples.append((line[2:], []))
            else:
                examples[-1][1].append(line)
    return examples


def _pattern(expected):
    """Return a regular expression of what is expected: '...' is any text, and alone on its line any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n" for line in expected
    ]
    return "".join(lines)


def test_the_examples_of_the_page(tmp_path, tmp_path_factory, monkeypatch):
    cheap_key_files_of_commands(monkeypatch, tmp_path_factory.mktemp("cheap"))
    examples = _examples()
    assert len(examples) > 40
    script = "".join(f"{command}\necho '{_MARK}'$?\n" for command, _ in examples)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash"],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        start_new_session=True,
    )
    printed = re.split(rf"^{_MARK}(\d+)\n", ran.stdout, flags=re.MULTILINE)
    assert len(printed) == 2 * len(examples) + 1
    for (command, expected), text, code in zip(examples, printed[::2], printed[1::2], strict=False):
        assert re.fullmatch(_pattern(expected), text), f"$ {command}\n{text}"
        assert code == "0" or "--json sov://cohort/" in command, f"$ {command}\n{text}"


_HOSTS = ("providers", "policy", "login", "logout", "check", "gc")


@pytest.mark.parametrize(
    "name",
    [
        "init",
        "ls",
        "cat",
        "rm",
        "put",
        "get",
        "cp",
        "mv",
        "migrate",
        "info",
        "verify",
        "manifest",
        "accept",
        "demo",
        *_HOSTS,
    ],
)
def test_every_command_is_on_the_page(name):
    assert f"sovstore {name}" in _PAGE.read_text()

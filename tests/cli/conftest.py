"""Runs commands in this process and gives back what they printed, without what differs from run to run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sovstore.cli import main
from sovstore.filesystem import SovFileSystem
from sovstore.kms import keyfile
from tests.stores import PASSPHRASE, make_store, open_fs

#: (pattern, what stands for it in the transcripts)
_VARIABLE = (
    (r" in \d+\.\d+ s \([\d.]+ [kMGT]?B/s\)", ""),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "MOMENT"),
    (r"\b[0-9a-f]{64}\b", "HEX64"),
    (r"\b[0-9a-f]{32}\b", "HEX32"),
)


@dataclass(frozen=True)
class Ran:
    """What a command did: exit code, stdout and stderr, and the latter two with placeholders."""

    code: int
    raw_out: str
    raw_err: str
    folder: Path

    @property
    def out(self) -> str:
        """Stdout without what differs from run to run."""
        return self._placed(self.raw_out)

    @property
    def err(self) -> str:
        """Stderr without what differs from run to run."""
        return self._placed(self.raw_err)

    def _placed(self, text: str) -> str:
        text = text.replace(str(self.folder), "DIR")
        for pattern, name in _VARIABLE:
            text = re.sub(pattern, name, text)
        return text

    @property
    def transcript(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        return self.code, self.out, self.err


@pytest.fixture(autouse=True)
def _cheap_key_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make key files that open at once; how strong real ones are is tested with the driver."""
    monkeypatch.setattr(keyfile, "_MEMORY_KIB", 64)
    monkeypatch.setattr(keyfile, "_PASSES", 1)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ran]]:
    """Run a command in an empty working folder; no command ever prints the passphrase."""
    work = tmp_path / "desk"
    work.mkdir()
    monkeypatch.chdir(work)
    printed: list[str] = []

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        printed.extend(captured)
        return Ran(code, captured.out, captured.err, tmp_path)

    yield run
    assert PASSPHRASE not in "".join(printed)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of a store named cohortes, which the commands find by themselves."""
    file = make_store(tmp_path)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    return file


@pytest.fixture
def fs(config: Path) -> SovFileSystem:
    """The same store, for what a test arranges and checks around a command."""
    return open_fs(config)


def at_host(tmp_path: Path, fs: SovFileSystem, path: str) -> Path:
    """Return the file in which the host keeps an object."""
    return tmp_path / fs.store_name / fs.info(path)["wire_name"]


def damage(file: Path, at: int = -1) -> None:
    """Flip a bit of a file at the host."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)

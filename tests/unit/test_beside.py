"""Files that are written beside their place: what a killed writer left goes, what a live one has stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sovstore import beside


def killed_while_it_writes(path: Path) -> None:
    """Let a process begin to write beside a path, and be killed."""
    script = (
        "import os, signal, sys; from pathlib import Path; from sovstore import beside\n"
        "with beside.temporary(Path(sys.argv[1])) as (_, descriptor):\n"
        "    os.write(descriptor, b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert ran.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    killed_while_it_writes(path)
    assert os.listdir(tmp_path) != ["file"]
    beside.sweep(path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_the_next_writer_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    killed_while_it_writes(path)
    beside.replace(path, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"new"


def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with beside.temporary(path) as (made, _):
        beside.sweep(path)
        assert made.exists()
        beside.replace(path, b"another's")
        assert made.exists()
        killed_while_it_writes(path)
        assert len(os.listdir(tmp_path)) == 3
        beside.sweep(path)
        assert sorted(os.listdir(tmp_path)) == [made.name, "file"]
    assert os.listdir(tmp_path) == ["file"]


def test_one_that_was_moved_away_is_nobody_elses(tmp_path: Path) -> None:
    """Its name may be in use again before the block ends."""
    path = tmp_path / "file"
    with beside.temporary(path) as (made, descriptor):
        beside.write_all(descriptor, b"first")
        os.replace(made, path)
        made.write_bytes(b"second")
    assert made.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


def test_links_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    path = tmp_path / "file"
    (tmp_path / ".file.sovstore-0").symlink_to(other)
    beside.sweep(path)
    beside.replace(path, b"new")
    assert other.read_bytes() == b"other"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    beside.create(path, b"mine", mode=0o600)
    with pytest.raises(FileExistsError):
        beside.create(path, b"yours")
    assert path.read_bytes() == b"mine"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]

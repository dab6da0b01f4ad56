"""A migration that is killed at any moment and goes on: nothing is moved twice, nothing is missing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import stress
from tests.hosts import cheap_key_files
from tests.stores import make_store, open_fs

OBJECTS = 120
#: Slow enough that a kill meets it at work, whatever the machine.
RATE = "8MB/s"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cheap_key_files(monkeypatch)
    make_store(tmp_path, "archive")
    return make_store(tmp_path)


def _clear(folder: Path) -> dict[str, bytes]:
    dice, made = random.Random(6), {}
    for number in range(OBJECTS):
        size = 0 if number == 0 else 12_000_000 if number == 1 else int(10 ** dice.uniform(0, 5.2))
        path = folder / f"{number % 7}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = dice.randbytes(size)
        path.write_bytes(data)
        made[str(path.relative_to(folder))] = data
    return made


def _there(root: Path) -> dict[str, tuple[int, int]]:
    """Return what is visible at the destination, and which file it is."""
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith(".sovstore/"):
            status = path.stat()
            found[name] = status.st_ino, status.st_mtime_ns
    return found


@pytest.mark.stress
@pytest.mark.parametrize("mode", ["seal", "reencrypt", "open"])
def test_killed_at_any_moment(mode: str, file: Path, tmp_path: Path) -> None:
    made = _clear(tmp_path / "clear")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    source, dest, root = str(tmp_path / "clear"), "sov://cohortes/", tmp_path / "cohortes"
    if mode != "seal":
        fs = open_fs(file)
        fs.pipe(made)
        fs.close()
        source = "sov://cohortes/"
        dest, root = ("sov://archive/", tmp_path / "archive") if mode == "reencrypt" else (str(tmp_path / "out"),) * 2
        root = Path(root)
    command = [
        *(str(Path(sys.executable).parent / "sovstore"), "--config", str(file), "migrate", source, dest),
        *("--limit", RATE, "--verify", "--quiet"),
    ]
    dice, kills = random.Random(mode), stress.amount(3, 50)
    finished: dict[str, tuple[int, int]] = {}
    at_work = 0
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(dice.uniform(0, 0.4 if stress.is_long() else 2.5) + dice.choice((0, 0.8)))
        process.send_signal(signal.SIGKILL)
        error = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), error
        at_work += process.returncode != 0
        now = _there(root)
        assert {name: now[name] for name in finished} == finished, "a finished object was moved again"
        finished = now
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    now = _there(root)
    assert {name: now[name] for name in finished} == finished
    assert len(now) == OBJECTS
    for journal in (tmp_path / "state").rglob("*.sqlite"):
        with sqlite3.connect(journal) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    if mode == "open":
        assert {name: (root / name).read_bytes() for name in now} == made
    else:
        fs = open_fs(file, "cohortes" if mode == "seal" else "archive")
        assert fs.cat(fs.find("")) == made
        fs.close()
    assert not list((root / ".sovstore" / "tmp").glob("*")) or mode == "open"
    stress.record("Kills of a migration", mode=mode, kills=kills, at_work=at_work)

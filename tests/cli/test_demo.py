"""`sovstore demo`, as `make demo` runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SOVSTORE = Path(sys.executable).with_name("sovstore")


def _run(*arguments, **environment):
    return subprocess.run(
        [_SOVSTORE, "demo", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_demo(tmp_path):
    pytest.importorskip("pyarrow")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    home = _files(os.environ["HOME"])
    # Settings of the user must not lead it astray.
    ran = _run(TMPDIR=str(temporary), SOVSTORE_CONFIG="/nope", SOVSTORE_STORES__COHORTES__ROOT="/nope", COLUMNS="80")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for line in (
        "names of columns   year_of_birth      64               64             0",
        "patients           PAT-014827         20               20             0",
        "✓ every table equals the one that was sealed, row by row",
        '-root = "host-a"',
        '+root = "file://host-b"',
        "✓ the same code with the same URLs gives the same result",
        "part-2.parquet: chunk 305 failed authentication",
        "2026/measurement/part-2.parquet: NOT AUTHENTIC (IntegrityError)",
    ):
        assert line in ran.stdout
    assert len(re.findall(r"^\d  ", ran.stdout, re.MULTILINE)) == 7
    assert "\x1b" not in ran.stdout
    assert re.fullmatch(r"sealed 7 objects, .*\nsovstore: error: 2026/measurement/part-2.parquet: .*\n", ran.stderr)
    assert list(temporary.iterdir()) == []
    assert _files(os.environ["HOME"]) == home
    for name in re.findall(r"(?:docs|tools)/\S+\.(?:md|py)", ran.stdout):
        assert (_ROOT / name).exists(), name


def test_demo_keeps_what_can_be_used(cli, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    # Once in full is enough.
    for table in ("_VISITS", "_CONDITIONS", "_MEASUREMENTS"):
        monkeypatch.setattr(f"sovstore.cli.cohort.{table}", 20_000)
    ran = cli("demo", "--keep", "kept")
    assert ran.code == 0
    kept = tmp_path / "desk" / "kept"
    assert ran.out.endswith("kept: cd DIR/desk/kept && sovstore ls -R sov://cohortes/\n")
    assert (kept / "passphrase").stat().st_mode & 0o777 == 0o600
    assert "SOVSTORE_PASSPHRASE" not in os.environ
    monkeypatch.chdir(kept)
    assert "2026/person.parquet\n" in cli("ls", "-R", "sov://cohortes/").out
    again = cli("demo", "--keep", kept)
    assert again.code == 2
    assert "exists already" in again.err


def test_demo_without_pyarrow(cli, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow" or name == "sovstore.cli.tour"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = cli("demo")
    assert ran.code == 2
    assert "sovstore: hint: pip install 'sovstore[parquet]'\n" in ran.err

"""The benchmark of migrations: its figures, what it says without rclone, and that it runs from end to end."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import migration
from benchmarks.migration import Shape, Spent
from sovstore.errors import MissingDependencyError
from tests.hosts import cheap_key_files
from tests.stress import is_long


def test_ratios_are_of_the_same_round() -> None:
    one = [Spent(2, 6), Spent(9, 1), Spent(4, 4)]
    other = [Spent(1, 2), Spent(3, 1), Spent(4, 1)]
    assert migration.ratios(one, other, "wall_s") == (2, 1, 3)
    assert migration.ratios(one, other, "cpu_s") == (3, 1, 4)
    with pytest.raises(ValueError, match="shorter"):
        migration.ratios(one, other[:2], "wall_s")


def test_order_of_a_round() -> None:
    """The first round counts for nothing, and the cases take turns at being first."""
    ran: list[str] = []

    class Fake:
        cases = dict.fromkeys("abc")

        def spent(self, case: str, name: str) -> Spent:
            ran.append(case)
            return Spent(len(ran), int(name.removeprefix("r")))

    taken = migration.measure(Fake(), 3)
    assert "".join(ran) == "cbaabccbaabc"
    assert taken["a"] == [Spent(4, 1), Spent(9, 2), Spent(10, 3)]


def test_table() -> None:
    taken = {
        "sovstore": [Spent(4, 6), Spent(2, 8)],
        "rclone": [Spent(2, 1), Spent(2, 1)],
        "rclone --transfers 8": [Spent(1, 2), Spent(1, 2)],
    }
    found = [{"host": "Ceph", "objects": "1 x 1 B", **row} for row in migration.rows(taken, 8)]
    # Half and all of rclone's throughput; a quarter and half of it when that moves as many at a time.
    assert found[0]["rounds"] == [[4, 6], [2, 8]]
    assert migration.table(found, 8).splitlines()[2:] == [
        "| Ceph | 1 x 1 B | sovstore | 3.00 | 7.00 | 0.75 (0.50 to 1.00) | 0.38 (0.25 to 0.50) | 3.50 (3.00 to 4.00) |",
        "| Ceph | 1 x 1 B | rclone | 2.00 | 1.00 | 1.00 (1.00 to 1.00) | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) |",
        (
            "| Ceph | 1 x 1 B | rclone --transfers 8 | 1.00 | 2.00 | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) |"
            " 1.00 (1.00 to 1.00) |"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "shape", "shown"),
    [
        ("4x64MiB", Shape(4, 64 * 2**20), "4 x 64 MiB"),
        ("2000x4KiB", Shape(2000, 4096), "2,000 x 4 KiB"),
        ("1x1B", Shape(1, 1), "1 x 1 B"),
    ],
)
def test_shapes(text: str, shape: Shape, shown: str) -> None:
    assert Shape.parse(text) == shape
    assert str(shape) == shown


@pytest.mark.parametrize("text", ["", "4", "4x", "0x1B", "4x64MB", "4x64 MiB"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(ValueError, match="COUNTxSIZE"):
        Shape.parse(text)


def test_without_rclone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError):
        migration.rclone()
    monkeypatch.setattr(sys, "argv", ["migration"])
    assert migration.main() == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(
        "benchmarks: error: rclone: is not installed\nbenchmarks: hint: apt-get install -y rclone"
    )


@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed; only benchmarks need it")
@pytest.mark.stress
@pytest.mark.parametrize(
    "server",
    [
        pytest.param("s3_server", marks=pytest.mark.server("s3")),
        pytest.param(
            "azurite_server",
            marks=[pytest.mark.server("azurite"), pytest.mark.skipif(not is_long(), reason="left to `make stress`")],
        ),
    ],
)
def test_from_end_to_end(server: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    on = migration.on_ceph if server == "s3_server" else migration.on_azurite
    host = on(request.getfixturevalue(server))
    bench = migration.Bench(host, Shape(3, 1024), tmp_path, jobs=2, transports=["sdk"])
    assert list(bench.cases) == ["sovstore", "rclone", "rclone --transfers 2"]
    taken = [bench.spent(case, "place") for case in bench.cases]
    assert all(spent.wall_s > 0 and spent.cpu_s > 0 for spent in taken)
    # What does not arrive is no measurement.
    bench.cases["sovstore"] = lambda name: [sys.executable, "-c", "pass"]
    with pytest.raises(RuntimeError, match="0 objects of 3 arrived"):
        bench.spent("sovstore", "nothing")
    bench.cases["sovstore"] = lambda name: [sys.executable, "-c", "raise SystemExit('no such host')", *"1234"]
    with pytest.raises(RuntimeError, match="exit 1\nno such host"):
        bench.spent("sovstore", "failed")

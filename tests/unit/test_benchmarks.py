"""The runner of the benchmarks: turns, ratios, what fails or is missing, Ctrl-C, and one whole run."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import bare, child, machine, report, runner
from benchmarks.case import MIB, Case, Contender, Measured, OfFirst, measured
from benchmarks.runner import Results
from tests.hosts import cheap_key_files


def _case(*names: str, **more: Any) -> Case:
    contenders = [Contender(name, f"fake:{name}") for name in names]
    return Case("fake", "write much (8) things", "things", contenders, _prepare, **more)


@contextlib.contextmanager
def _prepare(sizes: Mapping[str, int]) -> Iterator[Mapping[str, Any]]:
    yield dict(sizes)


def _measure(case: Case, run: Any, *, rounds: int = 2, warm_up: bool = True, **sizes: int) -> Results:
    results = Results(case, sizes)
    runner.measure(results, run, rounds=rounds, warm_up=warm_up, say=lambda text: None)
    return results


def _results(**rounds: list[Measured]) -> Results:
    return Results(_case(*rounds), rounds=rounds)


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    ran: list[str] = []

    def run(contender: Contender, facts: Mapping[str, Any]) -> Measured:
        assert facts == {"much": 3}
        ran.append(contender.name)
        return Measured(len(ran), 1, 1)

    results = _measure(_case("a", "b", "c"), run, much=3)
    assert "".join(ran) == "cbaabccba"
    assert [one.wall_s for one in results.warm_up.values()] == [1, 2, 3]
    assert [one.wall_s for one in results.rounds["a"]] == [4, 9]
    ran.clear()
    assert not _measure(_case("a", "b"), run, rounds=1, warm_up=False, much=3).warm_up
    assert "".join(ran) == "ab"


def test_ratios_are_of_the_same_round_and_by_the_amount() -> None:
    first = [Measured(2, 4, 2), Measured(9, 9, 1), Measured(4, 2, 4)]
    # Half as long for as much; three times as long; half as much in the same time.
    other = [Measured(1, 2, 2), Measured(27, 3, 1), Measured(4, 2, 2)]
    by_name = {row.name: row for row in report.figures(_results(a=first, b=other))}
    assert by_name["a"].times == by_name["a"].cpu_times == report.Spread(1, 1, 1)
    assert by_name["b"].times == report.Spread(0.5, 1 / 3, 2)
    assert by_name["b"].cpu_times == report.Spread(2, 0.5, 3)
    assert by_name["b"].speed == report.Spread(0.5, 1 / 27, 2)
    # Ctrl-C came before the first one's turn.
    assert report.figures(_results(a=first[:1], b=other))[1].times == report.Spread(2, 2, 2)
    assert report.figures(_results(a=[], b=other))[1].times is None


def test_how_much_of_the_cpu_was_the_kernel() -> None:
    found = measured(lambda: os.urandom(2**22), 4)
    # But for what rounding makes of a difference of sums.
    assert 0 <= found.system_s <= found.cpu_s + 1e-6
    rounds = {"a": [Measured(1, 4, 1, system_s=1), Measured(1, 0, 1), Measured(1, 2, 1, system_s=1)]}
    rounds["b"] = [Measured(1, 0, 1)]
    a, b = report.figures(_results(**rounds))
    assert (a.in_kernel, b.in_kernel) == (0.375, None)
    shown = report.markdown(_results(**rounds)).splitlines()
    assert shown[-2].startswith("| a | 1 | 2 s | 38% |")
    assert shown[-1].startswith("| b | 1 | 0 s |  |")


def test_how_quiet_the_machine_was() -> None:
    found = machine.noise([(100, 200), (80, 80), (120, 180)])
    assert found == {"ceiling_mib_per_s": [100, 80, 120], "spread": 0.4, "two_threads": [2, 1, 1.5]}
    assert machine.noise([]) == {"ceiling_mib_per_s": [], "spread": None, "two_threads": []}


def test_goals() -> None:
    case = _case(
        "a", "b", goals={"b": 0.5}, speeds={"b": 3}, limits={"b": {"peak_bytes": 2**20}, "a": {"import_s": 1.0}}
    )
    rounds = {"a": [Measured(1, 1, 4)], "b": [Measured(1, 1, 2, {"peak_bytes": 2**21})]}
    a, b = report.figures(Results(case, rounds=rounds))
    assert a.goals == {}
    assert b.goals == {">= 0.50 x": True, ">= 3 things/s": False, "peak <= 1.0 MiB": False}
    line = report.markdown(Results(case, {"much": 5000}, rounds=rounds)).splitlines()
    assert line[2] == "Write 5,000 things."
    assert line[-1] == (
        "| b | 2 | 500 ms | 0% | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) | peak: 2.0 MiB |"
        " >= 0.50 x: met; >= 3 things/s: not met; peak <= 1.0 MiB: not met |"
    )


def test_limits_beside_the_first() -> None:
    limits = {"requests": OfFirst(more=2), "fetched_bytes": OfFirst(times=1.2), "sent_bytes": OfFirst(0.5, 2**20)}
    case = _case("a", "b", limits={"b": {**limits, "peak_bytes": OfFirst()}})
    moved = {"requests": 3.0, "fetched_bytes": 2.0**20, "sent_bytes": 2.0**20}
    first = [Measured(1, 1, 1, {**moved, "requests": requests}) for requests in (3, 4, 9)]
    rounds = {"a": first, "b": [Measured(1, 1, 1, {**moved, "requests": 6, "fetched_bytes": 1.3 * 2**20})] * 3}
    results = Results(case, rounds=rounds)
    expected = {
        "requests <= that of a + 2": True,
        "fetched <= 1.2 x that of a": False,
        "sent <= 0.5 x that of a + 1.0 MiB": True,
    }
    assert report.figures(results)[1].goals == expected
    assert "fetched <= 1.2 x that of a: not met" in report.markdown(results)
    assert json.loads(json.dumps(report.as_json(results)))["limits"]["b"]["requests"] == {"times": 1, "more": 2}
    # The first one was not measured, or does not have the figure.
    assert report.figures(Results(case, rounds={**rounds, "a": []}))[1].goals == {}


def test_who_fails_is_said_and_not_run_again() -> None:
    ran: list[str] = []

    def run(contender: Contender, facts: Mapping[str, Any]) -> Measured | str:
        ran.append(contender.name)
        return "failed: no | luck" if contender.name == "b" and len(ran) > 4 else Measured(1, 1, 1)

    results = _measure(_case("a", "b"), run)
    assert "".join(ran) == "baabba"
    assert len(results.rounds["a"]) == 2
    assert report.markdown(results).splitlines()[-1].endswith("| failed: no \\| luck after 1 rounds |")


def test_what_cannot_be_prepared_is_said() -> None:
    @contextlib.contextmanager
    def missing(sizes: Mapping[str, int]) -> Iterator[Mapping[str, Any]]:
        raise ImportError("ceph")
        yield {}

    results = _measure(Case("fake", "title", "things", [Contender("a", "fake:a")], missing), None)
    assert results.trouble == "not installed: ceph"
    assert report.markdown(results).splitlines()[-1].endswith("| not installed: ceph |")


def test_what_a_child_answers(capfd: pytest.CaptureFixture[str]) -> None:
    assert child.run("nowhere:function", {}) == {"trouble": "not installed: No module named 'nowhere'"}
    assert child.run("benchmarks.local:memory:64", {"most_mib": 32}) == {"trouble": "skipped: memory_mib is 32"}
    assert child.run("builtins:int", "many")["trouble"].startswith("failed: ValueError: invalid literal")
    assert "Traceback" in capfd.readouterr().err


def test_a_peer_that_is_not_installed() -> None:
    found = runner.run_fresh(Contender("Peer", "fake:fake", "nobody"), {}, timeout_s=1)
    assert found == "not installed: nobody: make peers"


def test_who_hangs_is_killed() -> None:
    start = time.monotonic()
    assert runner.run_fresh(Contender("a", "time:sleep"), 60, timeout_s=0.5) == "failed: not done within 0.5 s"
    assert time.monotonic() - start < 10


def test_who_dies_is_said() -> None:
    assert str(runner.run_fresh(Contender("a", "os:_exit"), 3, timeout_s=60)).startswith("failed: exit 3")


def test_ctrl_c_ends_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    left: list[bool] = []

    @contextlib.contextmanager
    def prepare(sizes: Mapping[str, int]) -> Iterator[Mapping[str, Any]]:
        try:
            yield {}
        finally:
            left.append(True)

    def run(contender: Contender, facts: Mapping[str, Any]) -> Measured:
        ran.append(contender.name)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return Measured(1, 1, 1)

    case = Case("fake", "title", "things", [Contender("a", "fake:a"), Contender("b", "fake:b")], prepare)
    args = bench._parser({}).parse_args(["--no-warm-up", "--json", str(tmp_path / "new" / "report.json")])
    assert bench._measure([case, case], run, {}, args) == 130
    found = json.loads((tmp_path / "new" / "report.json").read_text())
    assert left == [True]
    assert found["interrupted"]
    assert [len(contender["rounds"]) for contender in found["cases"][0]["contenders"]] == [1, 0]
    assert "not measured" in capsys.readouterr().out


def test_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cheap_key_files(monkeypatch)
    monkeypatch.setattr(bench, "_CEILING_BYTES", 2**20)
    file = tmp_path / "report.json"
    asked = ["stream-write", "--size", "stream_mib=2", "--rounds", "1", "--no-warm-up", "--json", str(file)]
    assert bench.main([*asked, "--only", "sovstore", "plain file"]) == 0
    shown = capsys.readouterr()
    assert "Write one object of 2 MiB" in shown.out
    assert "benchmarks: stream-write: round 1 of 1: sovstore" in shown.err
    found = json.loads(file.read_text())
    keys = {"date", "rounds", "warm_up", "sizes", "interrupted", "machine", "versions", "noise", "cases"}
    assert set(found) == keys
    assert found["sizes"] == {"stream_mib": 2}
    assert {"processor", "cores", "flags", "memory_bytes", "kernel", "python"} <= set(found["machine"])
    assert {"cryptography", "fsspec"} <= set(found["versions"]["packages"])
    assert len(found["noise"]["ceiling_mib_per_s"]) == len(found["noise"]["two_threads"]) == 2
    contenders = found["cases"][0]["contenders"]
    assert [contender["name"] for contender in contenders] == ["AES-256-GCM", "plain file", "sovstore"]
    for contender in contenders:
        assert contender["figures"]["trouble"] == ""
        assert [one["amount"] for one in contender["rounds"]] == [2]
        assert contender["figures"]["times"]["median"] > 0


@pytest.mark.parametrize("what", ["write", "read"])
def test_two_bare_threads(tmp_path: Path, what: str) -> None:
    measure = getattr(bare, f"two_threads_{what}")
    facts = {"folder": str(tmp_path), "size": 6 * MIB}
    assert [measure(facts).amount for _ in range(2)] == [6, 6]
    left = [path.stat().st_size for path in tmp_path.iterdir()]
    # What was written is gone, and what is read is there for the next round.
    assert left == ([] if what == "write" else [6 * (MIB + 16)])


@pytest.mark.parametrize("broken", ["fill", "drain"])
def test_a_bare_thread_that_fails_ends_the_other(broken: str) -> None:
    def fail(buffer: memoryview) -> int:
        raise OSError("disk full")

    works = {"fill": len, "drain": len, broken: fail}
    with pytest.raises(OSError, match="disk full"):
        bare._beside(works["fill"], works["drain"], 50, [memoryview(bytes(1))])


@pytest.mark.parametrize(
    "arguments",
    [["no-such-case"], ["--size", "much"], ["seal-4k", "--size", "stream_mib=1"], ["seal-4k", "--only", "plain file"]],
)
def test_what_is_no_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert "error" in capsys.readouterr().err


def test_every_case_is_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--list"]) == 0
    names = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert len(names) == len(set(names)) >= 10


def test_titles_name_the_sizes_of_a_trial() -> None:
    modules = [importlib.import_module(name) for name in bench.MODULES]
    named = {name for module in modules for case in module.CASES for name in report.sizes_of(case)}
    assert {name for module in modules for name in getattr(module, "SMALL", {})} == named


def test_plots(tmp_path: Path) -> None:
    draw = pytest.importorskip("benchmarks.plots").draw
    case = _case("a", "b", goals={"b": 0.6})
    rounds = {"a": [Measured(1, 1, 1)], "b": [Measured(2, 1, 1), Measured(2, 1, 1)]}
    files = draw(Results(case, rounds=rounds), tmp_path / "plots")
    assert [file.name for file in files] == ["fake.png", "fake.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert draw(Results(case), tmp_path) == []
    peaks = {"b": [Measured(1, 1, 1, {"peak_bytes": 2**20})]}
    limits = {"b": {"peak_bytes": 2.0**21}}
    assert draw(Results(replace(case, limits=limits, plotted="peak_bytes"), rounds=peaks), tmp_path)


def test_the_peers_need_nothing_but_themselves() -> None:
    """What runs in their environments must not import sovstore."""
    folder = Path(runner.__file__).parent
    files = [folder / "case.py", folder / "child.py", *(folder / "peers").glob("*.py")]
    assert len(files) >= 9
    assert not [file for file in files if "import sovstore" in file.read_text() or "from sovstore" in file.read_text()]

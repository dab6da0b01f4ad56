"""`sovstore migrate`: what a person and a script see."""

from __future__ import annotations

import json
import re

import pytest

from tests.stores import describe_twin, make_store, open_fs


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def clear(tmp_path):
    folder = tmp_path / "clear"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "one").write_bytes(b"1" * 1000)
    (folder / "two").write_bytes(b"2" * 500)
    return folder


def _text(ran):
    return re.sub(r"in \d+:\d\d:\d\d \([^)]*\)", "in TIME", ran.err)


def _plan(objects, done=None):
    before = f"  moved before  {done}\n" if done else ""
    return (
        "  mode          seal: plaintext is sealed under the keys of the destination\n"
        "  from          DIR/clear\n"
        "  to            sov://cohortes/\n"
        f"  objects       {objects}\n"
        f"{before}"
        "  to transfer   REST\n"
        "  journal       DIR/state/sovstore/migrations/HEX32.sqlite\n"
    )


def _without_rest(text):
    return re.sub(r"(  to transfer   ).*", r"\1REST", text)


def test_the_plan_moves_nothing(cli, config, clear):
    ran = cli("migrate", clear, "sov://cohortes/", "--dry-run")
    assert (ran.code, ran.out) == (0, "")
    assert _without_rest(ran.err) == _plan("2, 1.5 kB")
    assert "1.5 kB in and 1.5 kB out; 0:00:00 at 100.0 MB/s" in ran.err
    assert cli("ls", "-R", "sov://cohortes/").out == ""


def test_a_migration_and_the_same_again(cli, config, clear):
    ran = cli("migrate", clear, "sov://cohortes/", "--verify")
    assert ran.code == 0
    assert _without_rest(_text(ran)) == _plan("2, 1.5 kB") + (
        "moved 2 objects, 1.5 kB in TIME\n"
        "verified 2 objects, 1.5 kB: each object was opened at the destination, authenticated, and compared with the"
        " source, byte by byte\n"
    )
    assert cli("ls", "-R", "sov://cohortes/").out == "a/one\ntwo\n"
    ran = cli("migrate", clear, "sov://cohortes/")
    assert _without_rest(ran.err) == _plan("2, 1.5 kB", "2, 1.5 kB") + "moved 0 objects, 0 B in 0:00:00; 2 before\n"
    assert cli("migrate", clear, "sov://cohortes/", "-q").transcript == (0, "", "")


def test_events_for_scripts(cli, config, clear, tmp_path):
    (clear / "e\u0301").write_bytes(b"")
    report = tmp_path / "report.json"
    ran = cli("migrate", clear, "sov://cohortes/", "--json", "--verify", "--report", report)
    assert ran.code == 5
    events = [json.loads(line) for line in ran.raw_out.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        *("phase", "plan", "phase", "phase", "phase", "report")
    ]
    assert [event["phase"] for event in events if event["event"] == "phase"] == [
        *("listing", "moving", "listing", "verifying")
    ]
    assert events[1]["refused_objects"] == 1
    assert json.loads(ran.raw_err)["error"]["path"] == "e\u0301"
    written = json.loads(report.read_text())
    assert {**written, "event": "report"} == events[-1]
    assert written["moved"] == {"objects": 2, "bytes": 1500, "at_host": 0}
    assert written["verified"]["objects"] == 2
    assert written["failed"]["objects"] == 1


def test_the_report_as_a_page(cli, config, clear, tmp_path):
    (clear / "<b>e\u0301\x1b").write_bytes(b"")
    assert cli("migrate", clear, "sov://cohortes/", "--report", tmp_path / "r.html").code == 5
    page = (tmp_path / "r.html").read_text()
    assert "<svg" in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "&lt;b&gt;" in page
    assert not re.search(r"<script|https?://|url\(", page)


def test_what_only_the_destination_has(cli, config, clear, monkeypatch):
    cli("migrate", clear, "sov://cohortes/")
    (clear / "two").unlink()
    ran = cli("migrate", clear, "sov://cohortes/", "--delete-extra")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert cli("ls", "-R", "sov://cohortes/").out == "a/one\ntwo\n"
    ran = cli("migrate", clear, "sov://cohortes/", "--delete-extra", "--yes")
    assert ran.code == 0
    assert "  two\n" in ran.err
    assert "1 deleted" in ran.err
    assert cli("ls", "-R", "sov://cohortes/").out == "a/one\n"


def test_nothing_is_deleted_when_something_failed(cli, config, clear):
    cli("migrate", clear, "sov://cohortes/")
    (clear / "two").rename(clear / "e\u0301")
    ran = cli("migrate", clear, "sov://cohortes/", "--delete-extra", "--yes")
    assert ran.code == 5
    assert "nothing is deleted" in ran.err
    assert cli("ls", "-R", "sov://cohortes/").out == "a/one\ntwo\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "fast"), "not a rate"),
        (("--limit", "0MB/s"), "not a rate"),
        (("--mode", "move"), "not by 'move'"),
        (("--report", "/nowhere/at/all.json"), "no such folder"),
        (("--jobs", "0"), "--jobs"),
    ],
)
def test_wrong_options(options, message, cli, config, clear):
    ran = cli("migrate", clear, "sov://cohortes/", *options)
    assert ran.code == 2
    assert message in ran.err
    assert "hint: " in ran.err


def test_hostile_names_of_the_source_steer_no_terminal(cli, config, clear):
    (clear / "a\x1b]0;gotcha\x07").write_bytes(b"x")
    (clear / "a\x1b]0;gotcha\x07e\u0301").write_bytes(b"x")
    ran = cli("migrate", clear, "sov://cohortes/", "--delete-extra", "--yes")
    assert "\x1b" not in ran.raw_err + ran.raw_out


@pytest.mark.parametrize("source", ["empty", "nowhere", "clear/two"])
def test_nothing_to_migrate(source, cli, config, clear, tmp_path):
    """A mistyped path must not look like a migration that is done, nor have the destination emptied."""
    (tmp_path / "empty").mkdir()
    ran = cli("migrate", tmp_path / source, "sov://cohortes/", "--delete-extra", "--yes")
    assert ran.code == 1
    assert f"DIR/{source}: nothing is there to migrate" in ran.err


def test_into_another_store(cli, config, fs, tmp_path):
    make_store(tmp_path, "archive")
    fs.pipe_file("2026/a", b"a")
    ran = cli("migrate", "sov://cohortes/2026", "sov://archive/old")
    assert ran.code == 0
    assert "reencrypt" in ran.err
    assert open_fs(config, "archive").cat_file("old/a") == b"a"


def test_a_byte_copy_at_one_host(cli, config, fs, tmp_path):
    describe_twin(config, tmp_path)
    fs.pipe({"2026/a": b"a", "b": b""})
    ran = cli("migrate", "sov://cohortes/", "sov://twin/", "--no-keys", "--report", tmp_path / "report.json")
    assert ran.code == 0
    assert "\nmoved 4 objects, " in ran.err
    assert "; 4 of them copied at the host\n" in ran.err
    assert json.loads((tmp_path / "report.json").read_text())["moved"]["at_host"] == 4


def test_in_processes_of_this_machine(cli, config, clear):
    ran = cli("migrate", clear, "sov://cohortes/", "--workers", "2", "--verify")
    assert ran.code == 0
    assert _without_rest(_text(ran)) == _plan("2, 1.5 kB") + (
        "moved 2 objects, 1.5 kB in TIME\n"
        "verified 2 objects, 1.5 kB: each object was opened at the destination, authenticated, and compared with the"
        " source, byte by byte\n"
    )

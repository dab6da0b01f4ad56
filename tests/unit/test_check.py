"""`check` without a server: hosts that do wrong, what stays, how answers are judged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from sovstore.backends import providers
from sovstore.backends.base import Place
from sovstore.backends.local import LocalBackend
from sovstore.backends.probe import judge, measure
from sovstore.backends.registry import open_backend
from sovstore.check import check
from sovstore.check.tls import check_tls
from sovstore.errors import StoreError

pytestmark = pytest.mark.usefixtures("small_parts")

_S3 = providers.catalogue()["s3"]


def _run(place):
    report = asyncio.run(check(place))
    assert asyncio.run(_left(place)) == []
    return report


async def _left(place):
    return [found.name async for found in open_backend(place).list("", recursive=True)]


def _results(report):
    return {finding.check: finding.result for finding in report.findings}


def _found(report, check_name):
    return next(finding for finding in report.findings if finding.check == check_name)


def test_a_folder_of_this_machine(tmp_path, usual_parts):
    report = _run(Place(providers.catalogue()["local"], str(tmp_path / "root")))
    assert set(_results(report).values()) == {"ok"}
    assert not list((tmp_path / "root").iterdir())


def test_memory(usual_parts):
    report = _run(Place(providers.catalogue()["memory"], "/checked"))
    assert report.ok
    assert {name for name, result in _results(report).items() if result == "missing"} == {
        f"condition {operation}:{condition}" for operation in ("put", "complete") for condition in ("create", "replace")
    }


def test_any_fsspec_filesystem(tmp_path, usual_parts):
    report = _run(Place(providers.catalogue()["fsspec"], str(tmp_path / "root"), protocol="file"))
    assert report.ok


def test_what_else_is_there_stays(tmp_path):
    (tmp_path / "root" / ".sovstore" / "check").mkdir(parents=True)
    before = [".sovstore/check/other", ".sovstore/keyset.json", ".sovstore/lock", "mine"]
    for name in before:
        (tmp_path / "root" / name).write_text("mine")
    asyncio.run(check(Place(providers.catalogue()["local"], str(tmp_path / "root"))))
    left = sorted(str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*"))
    assert left == sorted([*before, ".sovstore", ".sovstore/check"])


# Hosts that do wrong


def _local(tmp_path):
    return Place(providers.catalogue()["local"], str(tmp_path / "root"))


def _claiming(monkeypatch, **changes):
    """Have every folder claim something else of its objects than what is so."""
    stat = LocalBackend.stat

    async def changed(self, name):
        found = await stat(self, name)
        return replace(found, **{key: change(found) for key, change in changes.items()})

    monkeypatch.setattr(LocalBackend, "stat", changed)


@pytest.mark.parametrize(
    ("seconds", "result", "says"),
    [
        (-400, "failed", "behind"),
        (-90, "missing", "behind"),
        (30, "ok", ""),
        (90, "missing", "ahead"),
        (4000, "failed", "ahead"),
    ],
)
def test_a_clock_that_is_wrong(tmp_path, monkeypatch, seconds, result, says):
    _claiming(monkeypatch, modified=lambda found: found.modified + timedelta(seconds=seconds))
    found = _found(_run(_local(tmp_path)), "clock")
    assert found.result == result
    assert says in found.detail


def test_a_host_without_times(tmp_path, monkeypatch):
    _claiming(monkeypatch, modified=lambda _: None)
    assert _found(_run(_local(tmp_path)), "clock").result == "unknown"


def test_a_host_that_says_other_sizes(tmp_path, monkeypatch):
    _claiming(monkeypatch, size=lambda found: found.size + 1)
    report = _run(_local(tmp_path))
    assert _found(report, "write and read").result == "failed"
    assert "with another size" in _found(report, "write and read").detail


def test_a_host_that_is_not_consistent(tmp_path, monkeypatch):
    read, first = LocalBackend.read, {}

    async def stale(self, name, start, end, *, etag=None):
        data = await read(self, name, start, end, etag=etag)
        return first.setdefault((name, start), data)

    monkeypatch.setattr(LocalBackend, "read", stale)
    assert _found(_run(_local(tmp_path)), "consistency").detail == "a read after an overwrite saw an older version"


def test_a_driver_that_promises_too_much(tmp_path, monkeypatch):
    upload = LocalBackend.upload

    async def unconditional(self, name, **conditions):
        return await upload(self, name)

    monkeypatch.setattr(LocalBackend, "upload", unconditional)
    report = _run(_local(tmp_path))
    assert _found(report, "race to create").detail == "4 of 4 writers were told that they won"
    assert not report.ok


@pytest.mark.parametrize(
    ("broken", "fulfilled", "kept", "says"),
    [
        (412, None, True, ""),
        (409, None, True, ""),
        (None, None, False, "ignores"),
        (501, None, False, "refuses the header"),
        (400, None, False, "refuses the header"),
        (412, 412, False, "also where the condition holds"),
        (503, None, None, "503"),
        (412, 503, None, "503"),
    ],
)
def test_how_an_answer_is_judged(broken, fulfilled, kept, says):
    async def answer(status):
        if status is not None:
            raise StoreError(str(status))

    def status(exc):
        return int(str(exc))

    async def judged():
        return await judge(lambda: answer(broken), lambda: answer(fulfilled), status)

    found = asyncio.run(measure({"it": judged}))["it"]
    assert found.value is kept
    assert says in found.reason


# TLS


def _tls(place, endpoint):
    return asyncio.run(check_tls(place, endpoint))


def test_plain_http_to_another_machine():
    place = Place(_S3, "bucket")
    assert _tls(place, "http://s3.example.org").result == "failed"
    assert _tls(place, "http://127.0.0.2:80").result == "ok"
    assert _tls(place, "http://[::1]:80").result == "ok"


def test_no_direct_connection():
    assert _tls(Place(_S3, "bucket"), "https://127.0.0.1:9").result == "unknown"

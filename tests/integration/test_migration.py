"""The reference job: plaintext on Azurite → sealed on Ceph → another store on Azurite → a byte copy here → plaintext.

The short form moves the OMOP database and a few hundred objects; `make stress` 5,000 of up to 300 MB, 3 GB in all.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest

import sovstore
from sovstore import manifests
from sovstore.migration import Silent
from tests import stress
from tests.hosts import cheap_key_files, quick_retries
from tests.servers.faults import Faults
from tests.stores import describe_twin, make_store, on_azure, on_s3, open_fs

CHUNK = 16384
HOSTILE = (
    "sp ace",
    "per%20cent",
    "plus+",
    "q?x=1&y",
    "été",
    "日本語",
    "a'b\"c",
    "-",
    "dots..",
    "~",
    "#hash",
    "[1]",
    "x" * 150,
)
MIB = 2**20


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cheap_key_files(monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def _objects(omop: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return what is migrated: size and content by path; without a content, it is made from the path."""
    found: dict[str, tuple[int, bytes | None]] = {}
    for path in sorted(omop.rglob("*.parquet")):
        data = path.read_bytes()
        found[f"omop/{path.name}"] = len(data), data
    for name in HOSTILE:
        found[f"names/{name}/{name}"] = 3, None
    for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 8 * MIB - 1, 8 * MIB, 17 * MIB):
        found[f"sizes/{size}"] = size, None
    dice = random.Random(6)
    count = stress.amount(40, 4900)
    for number in range(count):
        found[f"many/{number % 50:02}/{number:05}"] = int(10 ** dice.uniform(0, 4.2)), None
    if stress.is_long():
        for number, size in enumerate((300, 280, 260, 240, 220, 200, 190, 180, 170, 160, 150, 140, 130, 120, 110)):
            found[f"large/{number}"] = size * 10**6 + number, None
    return found


def _made(path: str, size: int) -> bytes:
    dice = random.Random(path)
    # Not at once: it takes a number of bits that fits into an int of C.
    return b"".join(dice.randbytes(min(MIB, size - start)) for start in range(0, size, MIB))


def _content(path: str, expected: tuple[int, bytes | None]) -> bytes:
    return expected[1] if expected[1] is not None else _made(path, expected[0])


def _check(report: Any, mode: str, count: int) -> None:
    assert report.failures.count == 0, report.failures.first[:5]
    assert report.plan.mode == mode
    assert report.moved == report.verified == count
    assert report.plan.foreign_count == 0
    json.dumps(report.as_dict())


@pytest.mark.stress
@pytest.mark.server("s3")
@pytest.mark.server("azurite")
def test_there_and_back(
    s3_server: Any, azurite_server: Any, omop_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = _objects(omop_dir)
    clear = on_azure(azurite_server, prefix="warehouse")
    sealed, anew = on_s3(s3_server), on_azure(azurite_server)
    for place in (clear, sealed, anew):
        for name, value in place.pop("environment").items():
            monkeypatch.setenv(name, value)
    host = fsspec.filesystem("abfs", **azurite_server.storage_options)
    for path, expected in objects.items():
        host.pipe_file(f"{clear['root']}/{path}", _content(path, expected))
    make_store(tmp_path, "sealed", **sealed)
    file = make_store(tmp_path, "anew", **anew)
    _locate(file, "warehouse", clear)
    describe_twin(file, tmp_path, "anew")

    done = {"config": file, "verify": True}
    seal = sovstore.migrate("plain://warehouse/", "sov://sealed/", manifest="sealed.manifest", **done)
    _check(seal, "seal", len(objects))
    reencrypt = sovstore.migrate("sov://sealed/", "sov://anew/", manifest="anew.manifest", **done)
    _check(reencrypt, "reencrypt", len(objects))
    copied = sovstore.migrate("sov://anew/", "sov://twin/", config=file, verify=True, no_keys=True)
    assert (copied.failures.count, copied.plan.mode) == (0, "copy")
    assert copied.moved == len(objects) + 2
    # A copy is the same store: the manifest that was made before it proves that nothing is missing or replaced.
    for store, manifest in (("sealed", "sealed.manifest"), ("anew", "anew.manifest"), ("twin", "anew.manifest")):
        assert _compared(file, store, manifest) == {"same": len(objects)}
    _check(sovstore.migrate("sov://twin/", str(tmp_path / "out"), config=file, verify=True), "open", len(objects))

    out = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert out == set(objects)
    for path, expected in objects.items():
        assert (tmp_path / "out" / path).read_bytes() == _content(path, expected), path
    # Between hosts, and not only out again: what is at each of them is the same.
    for store in ("sealed", "anew", "twin"):
        fs = open_fs(file, store)
        assert fs.find("", detail=True).keys() == objects.keys()
        assert fs.cat_file("sizes/16385") == _content("sizes/16385", objects["sizes/16385"])
        fs.close()


@pytest.mark.server("faults")
def test_a_fifth_of_all_requests_fails_at_both_ends(
    s3_server: Any,
    azurite_server: Any,
    s3_faults: Any,
    azurite_faults: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All is there in the end, or the report says of each object that is not why, and the next run brings it."""
    quick_retries(monkeypatch)
    clear, sealed = on_azure(azurite_server, prefix="warehouse"), on_s3(s3_server, options={"timeout": 15})
    for place in (clear, sealed):
        for name, value in place.pop("environment").items():
            monkeypatch.setenv(name, value)
    made = {f"{n % 3}/{n:02}": _made(str(n), int(10 ** (n % 7))) for n in range(40)}
    host = fsspec.filesystem("abfs", **azurite_server.storage_options)
    for path, data in made.items():
        host.pipe_file(f"{clear['root']}/{path}", data)
    file = make_store(tmp_path, "sealed", **sealed)
    _locate(file, "warehouse", clear)
    source, dest = azurite_faults(), s3_faults()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", source.server.connection_string)
    monkeypatch.setenv("SOVSTORE_STORES__SEALED__ENDPOINT", dest.endpoint_url)
    reading = Faults(lose_reply=True, methods=("GET", "HEAD"), probability=0.2)
    writing = Faults(lose_reply=True, methods=("GET", "HEAD", "PUT", "POST", "DELETE"), probability=0.2)
    source.proxy.faults, dest.proxy.faults = reading, writing
    journal = tmp_path / "journal"
    report = sovstore.migrate("plain://warehouse/", "sov://sealed/", config=file, journal=journal)
    assert source.proxy.count(fault=reading.kind)
    assert dest.proxy.count(fault=writing.kind)
    assert report.moved + report.failures.count == len(made)
    assert all(failure.message for failure in report.failures.first)
    source.proxy.faults = dest.proxy.faults = Faults()
    again = sovstore.migrate("plain://warehouse/", "sov://sealed/", config=file, journal=journal, verify=True)
    assert (again.failures.count, again.verified) == (0, len(made))
    fs = open_fs(file, "sealed")
    assert fs.cat(fs.find("")) == made
    fs.close()


def test_rights_that_are_taken_away_meanwhile(
    s3_server: Any, s3_faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused is reported with its reason, and the next run brings it."""
    through, place = s3_faults(), on_s3(s3_server)
    for name, value in place.pop("environment").items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, "sealed", **{**place, "endpoint": through.endpoint_url})
    (tmp_path / "clear").mkdir()
    made = {f"{n:02}": _made(str(n), 1000) for n in range(60)}
    for name, data in made.items():
        (tmp_path / "clear" / name).write_bytes(data)

    class Revoked(Silent):
        moved = 0

        def finished(self, path: str, what: str) -> None:
            self.moved += 1
            if self.moved == 20:
                through.proxy.faults = Faults(refuse_with=(403, "AccessDenied"), methods=("PUT",))

    report = sovstore.migrate("clear", "sov://sealed/", config=file, watcher=Revoked())
    assert 20 <= report.moved < 30
    assert report.moved + report.failures.count == len(made)
    assert {failure.type for failure in report.failures.first} == {"StoreError"}
    assert all("refused" in failure.message or "denied" in failure.message for failure in report.failures.first)
    assert all(failure.hint for failure in report.failures.first)
    through.proxy.faults = Faults()
    again = sovstore.migrate("clear", "sov://sealed/", config=file, verify=True)
    assert (again.failures.count, again.plan.done, again.verified) == (0, report.moved, len(made))


@pytest.mark.parametrize("refused", [False, True], ids=["copied", "refused"])
def test_a_byte_copy_at_one_host_leaves_the_bytes_there(
    s3_server: Any, s3_faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """Large objects at S3; small ones, and all of a host that refuses to copy, pass through this machine, and count."""
    through = s3_faults()
    one, other = on_s3(s3_server), on_s3(s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    one["endpoint"] = other["endpoint"] = through.endpoint_url
    file = make_store(tmp_path, "sealed", **{key: value for key, value in one.items() if key != "environment"})
    describe_twin(file, tmp_path, "sealed", **{key: value for key, value in other.items() if key != "environment"})
    made = {"large": _made("large", 30 * MIB), "small": _made("small", 100_000), "empty": b""}
    fs = open_fs(file, "sealed")
    fs.pipe(made)
    fs.close()
    through.proxy.forget()
    if refused:
        part = "partNumber=1"
        through.proxy.faults = Faults(refuse_with=(403, "AccessDenied"), methods=("PUT",), target=part, limit=1)
    report = sovstore.migrate("sov://sealed/", "sov://twin/", config=file, no_keys=True)
    assert (report.failures.count, report.moved, report.at_host) == (0, 5, 0 if refused else 1)
    # Of what is copied nothing is fetched but its front, by which the journal knows it.
    assert (_fetched(through) > 30 * MIB) if refused else (_fetched(through) < MIB)
    through.proxy.faults = Faults()
    twin = open_fs(file, "twin")
    assert twin.cat(list(made)) == made
    # A rename copies all but the first part of it at the host, as it would where it was sealed.
    through.proxy.forget()
    twin.mv("large", "renamed")
    assert _fetched(through) < 6 * MIB
    assert twin.cat_file("renamed") == made["large"]
    twin.close()


@pytest.mark.parametrize("mode", ["open", "copy"])
def test_a_large_object_goes_on_where_its_process_was_killed(
    s3_server: Any, azurite_server: Any, s3_faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The parts that were there are not sent again; a sealed object would begin anew (ADR 12)."""
    through = s3_faults()
    store, dest = on_azure(azurite_server), on_s3(s3_server)
    for place in (store, dest):
        for name, value in place.pop("environment").items():
            monkeypatch.setenv(name, value)
    dest["endpoint"] = through.endpoint_url
    file = make_store(tmp_path, "sealed", **store)
    if mode == "copy":
        describe_twin(file, tmp_path, "sealed", **dest)
    else:
        _locate(file, "out", dest)
    data = _made("large", 44 * MIB)
    with open_fs(file, "sealed").open("large", "wb") as large:
        large.write(data)
    ends = ["sov://sealed/", "plain://out/" if mode == "open" else "sov://twin/"]
    command = [Path(sys.executable).parent / "sovstore", "--config", file, "migrate", *ends, "--limit", "8MB/s"]
    if mode == "copy":
        command.append("--no-keys")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while len(_sent(through)) < 3 and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.05)
        running.kill()
    before = _sent(through)
    assert 3 <= len(before) < 6
    through.proxy.forget()
    report = sovstore.migrate(*ends, config=file, no_keys=mode == "copy", verify=True)
    assert (report.failures.count, report.plan.mode) == (0, mode)
    after = _sent(through)
    # One may have been on its way when the process died.
    assert len(before & after) <= 1
    assert before | after == {str(number) for number in range(1, 7)}
    if mode == "open":
        plain = fsspec.filesystem("s3", **s3_server.storage_options)
        assert plain.cat_file(f"{dest['root']}/large") == data
    else:
        twin = open_fs(file, "twin")
        assert twin.cat_file("large") == data
        twin.close()


def _sent(through: Any) -> set[str]:
    """Return the numbers of the parts that the host took."""
    found = (re.search(r"partNumber=(\d+)", r.target) for r in through.proxy.requests if r.status == 200)
    return {match[1] for match in found if match}


def _compared(file: Path, store: str, manifest: str) -> Counter[str]:
    async def found() -> Counter[str]:
        opened = open_fs(file, store, asynchronous=True, skip_instance_cache=True)
        try:
            return Counter([finding.kind async for finding in manifests.check(opened.store, manifest)])
        finally:
            await opened.close()

    return asyncio.run(found())


def test_a_byte_copy_within_an_account_leaves_the_bytes_there(
    azurite_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = on_azure(azurite_server), on_azure(azurite_server)
    for name, value in {**one.pop("environment"), **other.pop("environment")}.items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, "sealed", **one)
    describe_twin(file, tmp_path, "sealed", **other)
    made = {"large": _made("large", 20 * MIB), "small": _made("small", 1000), "empty": b""}
    fs = open_fs(file, "sealed")
    fs.pipe(made)
    fs.close()
    report = sovstore.migrate("sov://sealed/", "sov://twin/", config=file, no_keys=True, verify=True)
    assert (report.failures.count, report.moved, report.at_host, report.verified) == (0, 5, 5, 5)
    twin = open_fs(file, "twin")
    assert twin.cat(list(made)) == made
    twin.mv("large", "renamed")
    assert twin.cat_file("renamed") == made["large"]
    twin.close()


def _fetched(through: Any) -> int:
    """Return the bytes of all ranges that were read."""
    ranges = [
        r.range.removeprefix("bytes=").split("-") for r in through.proxy.requests if r.method == "GET" and r.range
    ]
    return sum(int(last) - int(first) + 1 for first, last in ranges)


def _locate(file: Path, name: str, place: dict[str, Any]) -> None:
    table = "\n".join(f'{key} = "{value}"' for key, value in place.items())
    with file.open("a") as toml:
        toml.write(f"\n[locations.{name}]\n{table}\n")

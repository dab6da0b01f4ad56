"""The reference job: plaintext on Azurite → sealed on Ceph → another store on Azurite → a byte copy here → plaintext.

The short form moves the OMOP database and a few hundred objects; `make stress` 5,000 of up to 300 MB, 3 GB in all.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fsspec
import pytest

import sovstore
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
    return random.Random(path).randbytes(size)


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

    _check(sovstore.migrate("plain://warehouse/", "sov://sealed/", config=file, verify=True), "seal", len(objects))
    _check(sovstore.migrate("sov://sealed/", "sov://anew/", config=file, verify=True), "reencrypt", len(objects))
    copied = sovstore.migrate("sov://anew/", "sov://twin/", config=file, verify=True, no_keys=True)
    assert (copied.failures.count, copied.plan.mode) == (0, "copy")
    assert copied.moved == len(objects) + 2
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


def _locate(file: Path, name: str, place: dict[str, Any]) -> None:
    with file.open("a") as toml:
        toml.write(f'\n[locations.{name}]\nprovider = "{place["provider"]}"\nroot = "{place["root"]}"\n')

"""Each benchmark over servers, and of scaling, once and on little data: it runs, and counts what it says it counts."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import fsspec
import pytest

from benchmarks import in_memory, migration, opening, remote, scaling, tables
from benchmarks.case import Case, Measured
from benchmarks.place import environment
from benchmarks.remote import INSTALLED
from tests.hosts import cheap_key_files, quick_retries

SIZES = remote.SMALL | tables.SMALL | opening.SMALL | scaling.SMALL | migration.SMALL | {"stream_mib": 2}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    quick_retries(monkeypatch)


@contextlib.contextmanager
def _running(server: Any) -> Iterator[Any]:
    yield server


def measure(case: Case) -> dict[str, Measured]:
    """Return what each contender of a case needed, which got the facts as a process of its own would."""
    found = {}
    with case.prepare(SIZES) as prepared:
        facts = json.loads(json.dumps(prepared))
        for contender in case.contenders:
            module, name, *arguments = contender.function.split(":")
            with environment({}):
                found[contender.name] = getattr(importlib.import_module(module), name)(facts, *arguments)
    assert all(one.wall_s > 0 and one.cpu_s >= 0 and one.amount > 0 for one in found.values())
    assert set(case.goals) <= set(found)
    assert all(set(limits) <= set(found[name].extra) for name, limits in case.limits.items())
    return found


def named(cases: Sequence[Case], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def names(cases: Sequence[Case], part: str = "") -> list[str]:
    return [case.name for case in cases if part in case.name]


@pytest.mark.parametrize("case", in_memory.CASES, ids=lambda case: case.name)
def test_objects_in_memory(case: Case) -> None:
    found = measure(replace(case, contenders=case.contenders[1:]))
    assert {name: one.amount for name, one in found.items()} == {"fsspec memory": 2, "sovstore": 2}


@pytest.mark.parametrize("name", names(remote.CASES, "ceph"))
def test_objects_on_ceph(s3_server: Any, name: str) -> None:
    cases = remote.cases(replace(INSTALLED, ceph=lambda: _running(s3_server)))
    found = measure(named(cases, name))
    assert {one.amount for one in found.values()} == {20 if name.startswith("small") else 1}


@pytest.mark.parametrize("name", names(remote.CASES, "azurite"))
def test_objects_on_azurite(azurite_server: Any, name: str) -> None:
    found = measure(named(remote.cases(replace(INSTALLED, azurite=lambda: _running(azurite_server))), name))
    assert list(found) == ["adlfs", "sovstore", "sovstore, obstore", *(["obstore"] if "small" not in name else [])]


@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed; only benchmarks need it")
@pytest.mark.parametrize("name", names(migration.CASES, "ceph"))
def test_migrations_on_ceph(s3_server: Any, name: str) -> None:
    found = measure(named(migration.cases(replace(INSTALLED, ceph=lambda: _running(s3_server))), name))
    assert {one.amount for one in found.values()} == {20 if "small" in name else 4}


@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed; only benchmarks need it")
def test_migrations_on_azurite(azurite_server: Any) -> None:
    cases = migration.cases(replace(INSTALLED, azurite=lambda: _running(azurite_server)))
    measure(named(cases, "migrate-small-azurite"))


def test_what_does_not_arrive_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"environment": {}, "config": "none", "amount": 1, "count": 3}
    with environment({}), pytest.raises(RuntimeError, match="migrate: exit 2"):
        migration.move(facts, "nowhere")
    with pytest.raises(RuntimeError, match="0 objects of 3 arrived"):
        migration._take_away(fsspec.filesystem("memory"), "nowhere", facts)


# For haproxy, which counts.
@pytest.mark.usefixtures("s3_faults")
@pytest.mark.parametrize("name", names(tables.CASES))
def test_tables(s3_server: Any, name: str) -> None:
    found = measure(named(tables.cases(replace(INSTALLED, ceph=lambda: _running(s3_server))), name))
    moved: Mapping[str, Mapping[str, float]] = {who: one.extra for who, one in found.items()}
    way = "sent_bytes" if name == "parquet-write" else "fetched_bytes"
    assert all(one["requests"] > 0 for one in moved.values())
    # Whole objects are fetched or sent, or a part of each; the beginning and the end of one can come more than once.
    assert all(0 < one[way] <= 1.2 * moved["s3fs"][way] + 300_000 for one in moved.values())


@pytest.mark.usefixtures("s3_faults")
def test_opening(s3_server: Any, openbao_server: Any) -> None:
    servers = replace(INSTALLED, ceph=lambda: _running(s3_server), openbao=lambda: _running(openbao_server))
    cold, opened = opening.cases(servers)
    found = measure(cold)
    plain = found.pop("s3fs").extra
    assert plain["kms_calls"] == 0
    # The keyset, and one call of a KMS.
    assert {one.extra["kms_calls"] for one in found.values()} == {1}
    # The keyset, and the object; s3fs asks for the size of an object before its bytes.
    assert {one.extra["requests"] for one in found.values()} == {plain["requests"]} == {2}
    assert all("peak_bytes" in one.extra for one in found.values())
    found = measure(opened)
    assert {one.extra["kms_calls"] for one in found.values()} == {0}
    assert {name: one.extra["requests"] for name, one in found.items()} == {
        name: 2 if name == "s3fs" else 1 for name in found
    }


@pytest.mark.parametrize("name", names(scaling.CASES))
def test_scaling(name: str) -> None:
    amounts = [one.amount for one in measure(named(scaling.CASES, name)).values()]
    # Twenty pages, of as many objects as there are up to 1,000.
    expected = {"growth-ls": [40, 400, 4000, 20_000], "growth": [2, 20, 200, 2000], "dask": [8000, 8000]}
    assert amounts == expected.get(name, expected.get(name.partition("-")[0], [2, 4]))

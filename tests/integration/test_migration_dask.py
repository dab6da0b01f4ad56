"""A migration on the workers of a Dask cluster: complete when one dies, and never seen in graph, logs or disks."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.dataframe
import distributed
import fsspec
import pandas as pd
import pytest

import sovstore
from sovstore.errors import ConfigError, StoreError, StoreUnavailableError
from sovstore.migration import Silent, cluster
from tests import stress
from tests.hostile.canaries import Canary, Searcher
from tests.hostile.key_spy import spy_on_keys
from tests.hosts import cheap_key_files
from tests.servers import dask_cluster
from tests.stores import CONTROLLERS, PASSPHRASE, describe_twin, make_store, on_s3, read_all

FOLDER, PATIENT, DATA = "oncologie-canary-71c3", "dupont-canary-9e2f", "canary-diagnosis-5b8d"
RIGHTS = {"transit/encrypt/*": "update", "transit/decrypt/*": "update", "transit/keys/*": "read"}


#: Dask leaves one behind when a connection is lost, and Python says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'wait_for' was never awaited")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    cheap_key_files(monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    # Many tasks, though there are few objects.
    monkeypatch.setattr(cluster, "_OBJECTS", 10)
    yield
    gc.collect()


def _clear(folder: Path, count: int = 300) -> dict[str, bytes]:
    """Write plaintext, and return it by path."""
    made = {f"{FOLDER}/{n % 7}/{PATIENT}-{n:04}": f"{DATA} {n}\n".encode() * (n * n % 3000) for n in range(count)}
    made[f"{FOLDER}/large"] = os.urandom(20 * 2**20)
    for path, data in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return made


class _When(Silent):
    """Does something once, when some objects are moved."""

    def __init__(self, count: int, what: Callable[[], None]) -> None:
        self._count, self._what = count, what
        self.moved = self.size = 0

    def advance(self, size: int) -> None:
        self.size += size

    def finished(self, path: str, what: str) -> None:
        self.moved += what == "moved"
        if self.moved == self._count:
            self._what()


@pytest.mark.server("openbao")
@pytest.mark.server("s3")
def test_one_of_two_workers_is_killed_and_nothing_of_it_is_seen(
    s3_server: Any, openbao_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = openbao_server.make_token(RIGHTS)
    place = on_s3(s3_server)
    environment = {**place.pop("environment"), "BAO_TOKEN": token, "SOVSTORE_CONFIG": str(tmp_path / "sovstore.toml")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    keys = spy_on_keys(monkeypatch)
    (tmp_path / "sovstore.toml").write_text(
        f'[kms.bao]\nuri = "openbao://{openbao_server.address}"\nca_file = "{openbao_server.ca_file}"\n'
        f'controller = "tests"\n{CONTROLLERS}'
    )
    file = make_store(tmp_path, kek=f"openbao://{openbao_server.address}/transit/{openbao_server.make_key()}", **place)
    made = _clear(tmp_path / "clear")
    taken = f"{FOLDER}/0/{PATIENT}-0007"
    with fsspec.open(f"sov://cohortes/{taken}", "wb") as other:
        other.write(b"of somebody else")
    host = fsspec.filesystem("s3", **s3_server.storage_options, use_listings_cache=False)
    then: dict[str, Any] = {}

    def tags() -> dict[str, str]:
        return {name: info["ETag"] for name, info in host.find(place["root"], detail=True).items()}

    with dask_cluster.start(2, environment) as workers:

        def kill() -> None:
            workers.kill("worker-0")
            then.update(tags())

        watcher = _When(60, kill)
        report = sovstore.migrate(
            "clear", "sov://cohortes/", config=file, dask=workers.address, watcher=watcher, verify=True
        )
        assert [failure.path for failure in report.failures.first] == [taken]
        assert report.verified == len(made) - 1
        assert watcher.size >= sum(map(len, made.values())) - len(made[taken])
        moved = read_all(file, "cohortes")
        assert moved == {**made, taken: b"of somebody else"}
        # What was there when the worker died was compared, and not moved again.
        assert 60 <= len(then) - 3 < len(made)
        assert then.items() <= tags().items()
        secrets = [
            *(Canary.text("path", "folder", FOLDER), Canary.text("path", "patient", PATIENT)),
            *(Canary.text("data", "data", DATA), Canary.text("key", "token", token, whole=True)),
            Canary.text("key", "S3 secret", environment["AWS_SECRET_ACCESS_KEY"], whole=True),
            *keys.canaries(),
        ]
        assert workers.spilled > 3
        assert Searcher(secrets).find_all(workers.seen()) == set()
        # The same search finds what is there.
        assert Searcher([Canary.text("name", "store", "cohortes", whole=True)]).find_all(workers.seen())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    make_store(tmp_path, "archive")
    return make_store(tmp_path)


def _started(file: Path, workers: int = 1, **settings: Any) -> Any:
    return dask_cluster.start(workers, {"SOVSTORE_CONFIG": str(file)}, **settings)


@pytest.mark.stress
def test_modes_in_processes_of_this_machine(file: Path, tmp_path: Path) -> None:
    made = _clear(tmp_path / "clear", 60)
    describe_twin(file, tmp_path)
    jobs: list[tuple[str, str, str, dict[str, Any]]] = [
        ("seal", "clear", "sov://cohortes/in/it", {"limit": 1e9}),
        ("copy", "sov://cohortes/", "sov://twin/", {"no_keys": True}),
    ]
    if stress.is_long():
        jobs += [("reencrypt", "sov://twin/in", "sov://archive/", {}), ("open", "sov://archive/it", "out", {})]
    for mode, source, dest, options in jobs:
        if mode == "copy":
            (tmp_path / "kek.key").rename(tmp_path / "away")
        report = sovstore.migrate(source, dest, config=file, workers=2, verify=True, **options)
        if mode == "copy":
            (tmp_path / "away").rename(tmp_path / "kek.key")
        assert (report.plan.mode, report.failures.count) == (mode, 0)
        # A copy has two files of the keyset more.
        assert report.moved == report.verified == len(made) + 2 * (mode == "copy")
    assert read_all(file, "twin") == {f"in/it/{path}": data for path, data in made.items()}
    if stress.is_long():
        assert {path: (tmp_path / "out" / path).read_bytes() for path in made} == made


def test_a_worker_that_dies_of_its_objects(file: Path, tmp_path: Path) -> None:
    """Its objects are reported, the others are moved, and the next run has it all."""
    made = _clear(tmp_path / "clear")
    for dest in ("sov://cohortes/one", "sov://cohortes/two", "sov://cohortes/three"):
        with _started(file, 2, SCHEDULER__ALLOWED_FAILURES=0) as workers:
            watcher = _When(40, lambda w=workers: w.kill("worker-0"))
            report = sovstore.migrate("clear", dest, config=file, dask=workers.address, watcher=watcher)
            # What it had finished, and nobody had heard of, was compared and not moved.
            assert len(made) - 20 <= report.moved + report.failures.count <= len(made)
            assert report.failures.count <= 20
            if not report.failures.count:
                # It died between two tasks.
                continue
            assert {failure.message for failure in report.failures.first} == {"every worker that was to move it died"}
            again = sovstore.migrate("clear", dest, config=file, dask=workers.address, verify=True)
            assert (again.failures.count, again.verified) == (0, len(made))
            return
    raise AssertionError("it never had a task when it died")


def test_a_scheduler_that_is_gone(file: Path, tmp_path: Path) -> None:
    """What the workers did counts, and any way of running it goes on from there."""
    made = _clear(tmp_path / "clear")
    with _started(file) as workers:
        watcher = _When(40, lambda: workers.kill("scheduler"))
        with pytest.raises(StoreUnavailableError, match="the scheduler is gone"):
            sovstore.migrate("clear", "sov://cohortes/", config=file, dask=workers.address, watcher=watcher)
    again = sovstore.migrate("clear", "sov://cohortes/", config=file, verify=True)
    assert again.plan.done >= 40
    assert (again.failures.count, again.verified) == (0, len(made))
    assert read_all(file, "cohortes") == made


def test_workers_that_are_configured_for_another_place(file: Path, tmp_path: Path) -> None:
    """Not even for a copy of the same store, which their keys would open."""
    _clear(tmp_path / "clear", 3)
    shutil.copytree(tmp_path / "cohortes", tmp_path / "copy")
    environment = {"SOVSTORE_CONFIG": str(file), "SOVSTORE_STORES__COHORTES__ROOT": str(tmp_path / "copy")}
    with (
        dask_cluster.start(1, environment) as workers,
        pytest.raises(ConfigError, match="on a worker: its configuration describes other places"),
    ):
        sovstore.migrate("clear", "sov://cohortes/", config=file, dask=workers.address)
    assert read_all(file, "cohortes") == {}


def test_workers_that_may_not_use_the_key(file: Path, tmp_path: Path) -> None:
    _clear(tmp_path / "clear", 3)
    with (
        dask_cluster.start(1, {"SOVSTORE_PASSPHRASE": "another"}) as workers,
        pytest.raises(sovstore.errors.KeyDeniedError, match="on a worker"),
    ):
        sovstore.migrate("clear", "sov://cohortes/", config=file, dask=workers.address)


def test_what_fails_where_nothing_should(file: Path, tmp_path: Path) -> None:
    """Its text might quote a path, so that only its type and its place come back, and stand in the logs."""
    _clear(tmp_path / "clear", 3)
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from sovstore.migration import moving\n\n"
        "async def moved(self, path, row):\n    raise KeyError(path)\n\n"
        "def dask_setup(worker):\n    moving.Mover._tried = moved\n"
    )
    with _started(file, WORKER__PRELOAD=str(broken)) as workers:
        with pytest.raises(StoreError, match=r"a worker failed: RuntimeError: KeyError at moved, line 4\n"):
            sovstore.migrate("clear", "sov://cohortes/", config=file, dask=workers.address)
        assert Searcher([Canary.text("path", "patient", PATIENT)]).find_all(workers.seen()) == set()


def test_ctrl_c_ends_the_workers_and_what_they_write(file: Path, tmp_path: Path) -> None:
    """As at a terminal, where all processes get it."""
    (tmp_path / "clear").mkdir()
    for name in ("one", "other"):
        (tmp_path / "clear" / name).write_bytes(os.urandom(20 * 2**20))
    program = Path(sys.executable).parent / "sovstore"
    command = [program, "--config", file, "--json", "migrate", "clear", "sov://cohortes/"]
    command += ["--workers", "2", "--limit", "6MB/s"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stdout:
            if '"progress"' in line:
                break
        written = tmp_path / "cohortes" / ".sovstore" / "tmp"
        assert list(written.iterdir())
        os.killpg(running.pid, signal.SIGINT)
        running.stdout.read()
        error = running.stderr.read()
    assert running.returncode == 130
    assert error.count("\n") == 1
    assert "interrupted" in error
    assert list(written.iterdir()) == []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a process is still there")


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers(workers: int, file: Path) -> None:
    with pytest.raises(ConfigError, match="at least one is needed"):
        sovstore.migrate("clear", "sov://cohortes/", config=file, workers=workers)


def test_a_cluster_and_a_number_of_workers(file: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        sovstore.migrate("clear", "sov://cohortes/", config=file, dask="tcp://127.0.0.1:1", workers=2)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x:1"])
def test_no_scheduler(address: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 1)
    _clear(tmp_path / "clear", 3)
    with pytest.raises(StoreUnavailableError, match="no Dask scheduler answers there"):
        sovstore.migrate("clear", "sov://cohortes/", config=file, dask=address)


def test_no_worker(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_WORKER_S", 0.5)
    _clear(tmp_path / "clear", 3)
    with _started(file, 0) as workers, pytest.raises(StoreUnavailableError, match="it has no worker"):
        sovstore.migrate("clear", "sov://cohortes/", config=file, dask=workers.address)


def test_a_cluster_without_sovstore(file: Path, tmp_path: Path) -> None:
    _clear(tmp_path / "clear", 3)
    (tmp_path / "without.py").write_text("import sys\nsys.modules['sovstore'] = None\n")
    without = str(tmp_path / "without.py")
    with (
        _started(file, SCHEDULER__PRELOAD=without, WORKER__PRELOAD=without) as workers,
        pytest.raises(StoreError, match=r"cannot load sovstore: .*ModuleNotFoundError"),
    ):
        sovstore.migrate("clear", "sov://cohortes/", config=file, dask=workers.address)


# Pipelines


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # Dask's call of pandas
def test_data_frames_need_nothing_on_the_workers_but_the_configuration(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on the scheduler, which takes every graph apart to look at it."""
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    with _started(file, 2) as workers, distributed.Client(workers.address, set_as_default=False) as client:
        frame = pd.DataFrame({"patient": range(1000), "year": [1940 + n % 60 for n in range(1000)]})
        sent = dask.dataframe.from_pandas(frame, npartitions=4)
        client.compute(sent.to_parquet("sov://cohortes/table", compute=False)).result()
        read = dask.dataframe.read_parquet("sov://cohortes/table")
        counted = client.compute(read.groupby("year").patient.count()).result()
        assert counted.to_dict() == frame.groupby("year").patient.count().to_dict()
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
        known = [Canary.text("key", "passphrase", PASSPHRASE, whole=True)]
        assert Searcher(known).find_all(workers.seen()) == set()

"""One large object is migrated in bounded memory: 5 GB in the long form, on Ceph and Azurite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sovstore
from tests.hosts import cheap_key_files
from tests.integration.test_memory import Gauge
from tests.stores import make_store, on_azure, on_s3, open_fs
from tests.stress import amount, record

ROOT = Path(__file__).parents[2]
MIB = 2**20
SIZE = amount(192 * MIB, 5 * 10**9)
#: Bytes above the opened stores.
ALLOWED = 128 * MIB
#: What is moved in turn; the servers of the tests keep their objects in memory, so the source goes when it was moved.
STEPS = (("clear", "sov://sealed/"), ("sov://sealed/", "sov://anew/"), ("sov://anew/", "out"))


@pytest.mark.stress
@pytest.mark.server("s3")
@pytest.mark.server("azurite")
def test_memory_of_one_large_object(
    s3_server: Any, azurite_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_key_files(monkeypatch)
    sealed, anew = on_s3(s3_server), on_azure(azurite_server)
    for place in (sealed, anew):
        for name, value in place.pop("environment").items():
            monkeypatch.setenv(name, value)
    make_store(tmp_path, "sealed", **sealed)
    file = make_store(tmp_path, "anew", **anew)
    (tmp_path / "clear").mkdir()
    with (tmp_path / "clear" / "large").open("wb") as large:
        for _ in range(0, SIZE - MIB, MIB):
            large.write(os.urandom(MIB))
        large.truncate(SIZE)
    command = [sys.executable, "-c", "from tests.integration.test_migration_memory import main; main()"]
    ran = subprocess.run([*command, str(tmp_path), str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    grown = json.loads(ran.stdout)
    shown = {step: f"{size / MIB:.0f} MiB" for step, size in grown.items()}
    print(shown)
    assert len(grown) == len(STEPS)
    assert max(grown.values()) <= ALLOWED, shown
    # The measuring works: not even the blocks that are under way fit into nothing.
    assert min(grown.values()) > MIB
    record("memory of a migration above the opened stores", size=SIZE, **shown)


def main() -> None:
    """Print by how much each step makes this process outgrow the opened stores, as JSON; all is verified."""
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    os.chdir(folder)
    stores = {name: open_fs(file, name) for name in ("sealed", "anew")}
    for fs in stores.values():
        fs.pipe_file("small", b"1")
        fs.cat_file("small")
        fs.rm("small")
    gauge = Gauge(in_memory=False)
    for source, dest in STEPS:
        reports = []
        gauge(f"{source} to {dest}", lambda s=source, d=dest, r=reports: r.append(_moved(s, d, file)))  # type: ignore[misc]
        assert (reports[0].failures.count, reports[0].verified_size) == (0, SIZE)
        if source == "clear":
            (folder / "clear" / "large").unlink()
        else:
            stores[source.removeprefix("sov://").strip("/")].rm("large")
    assert (folder / "out" / "large").stat().st_size == SIZE
    print(json.dumps(gauge.grown))


def _moved(source: str, dest: str, file: Path) -> sovstore.migration.Report:
    return sovstore.migrate(source, dest, config=file, verify=True)

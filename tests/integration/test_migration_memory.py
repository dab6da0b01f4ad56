"""One large object is migrated with bounded memory: a limit on what comes on top of the opened stores.

Plaintext on Azurite → sealed on Ceph → another store on Azurite, and verified each time: 192 MiB. In `make stress` it
is 5 GB, and goes out of the store on Ceph as plaintext too.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest

import sovstore
from sovstore.migration import Silent
from tests import stress
from tests.hosts import cheap_key_files
from tests.servers import azurite, ceph
from tests.stores import make_store, on_azure, on_s3, open_fs

ROOT = Path(__file__).parents[2]
MIB = 2**20
#: Half as much again as is allowed at least, so that even a part of an object that is kept would show.
SIZE = stress.amount(192 * MIB, 5 * 10**9)
#: Bytes above a process that has opened the stores.
ALLOWED = 128 * MIB


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Ceph and Azurite; for 5 GB two of its own, one with room for it and one on the disk, both gone afterwards."""
    shared = request.getfixturevalue("s3_server"), request.getfixturevalue("azurite_server")
    if not stress.is_long():
        yield shared
        return
    with ExitStack() as stack:
        yield stack.enter_context(ceph.start()), stack.enter_context(azurite.start(on_disk=True))


@pytest.mark.stress
@pytest.mark.server("s3")
@pytest.mark.server("azurite")
def test_one_large_object(servers: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    s3, azure = servers
    clear, sealed, anew = on_azure(azure, prefix="warehouse"), on_s3(s3), on_azure(azure)
    for place in (clear, sealed, anew):
        for name, value in place.pop("environment").items():
            monkeypatch.setenv(name, value)
    make_store(tmp_path, "sealed", **sealed)
    file = make_store(tmp_path, "anew", **anew)
    out = {**clear, "root": clear["root"].replace("warehouse", "out")}
    _locate(file, warehouse=clear, out=out)
    _write(azure, clear["root"])

    _measure(file, "plain://warehouse/", "sov://sealed/")
    _measure(file, "sov://sealed/", "sov://anew/")
    host = fsspec.filesystem("abfs", **azure.storage_options)
    found = [(open_fs(file, "anew"), "object")]
    if stress.is_long():
        _measure(file, "sov://sealed/", "plain://out/")
        found.append((host, f"{out['root']}/object"))
    expected = _digest(_content())
    for fs, path in found:
        with fs.open(path) as opened:
            assert _digest(iter(lambda opened=opened: opened.read(4 * MIB), b"")) == expected
    # The servers of the short form keep their objects in memory.
    for store in ("sealed", "anew"):
        fs = open_fs(file, store)
        fs.rm("object")
        fs.close()
    host.rm(clear["root"], recursive=True)


def _locate(file: Path, **places: dict[str, Any]) -> None:
    with file.open("a") as toml:
        for name, place in places.items():
            toml.write(f'\n[locations.{name}]\nprovider = "{place["provider"]}"\nroot = "{place["root"]}"\n')


def _content() -> Iterator[bytes]:
    """Yield the object in pieces, no two alike."""
    piece = bytearray(hashlib.shake_128(b"content").digest(4 * MIB))
    for start in range(0, SIZE, len(piece)):
        piece[:8] = start.to_bytes(8, "big")
        yield bytes(piece[: SIZE - start])


def _digest(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _write(azure: azurite.AzuriteServer, root: str) -> None:
    container, _, folder = root.partition("/")
    with azure.client() as client, client.get_blob_client(container, f"{folder}/object") as blob:
        blob.upload_blob(_content(), length=SIZE)


def _measure(file: Path, source: str, dest: str) -> None:
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(file), source, dest]
    start = time.monotonic()
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    mode, grown = json.loads(ran.stdout)
    assert {"moving", "verifying"} <= grown.keys()
    shown = {phase: f"{size / MIB:.0f} MiB" for phase, size in grown.items()}
    print(mode, shown)
    stress.record(
        "memory of a migration, above the opened stores",
        mode=mode,
        bytes=SIZE,
        seconds=round(time.monotonic() - start),
        **shown,
    )
    assert max(grown.values()) <= ALLOWED
    # The measuring works: not even the blocks that are under way fit into nothing.
    assert grown["moving"] > MIB


class Phases(Silent):
    """Measures by how much each phase of a migration outgrows what the process had when it was made."""

    def __init__(self) -> None:
        self._opened = _status("VmRSS")
        self._phase = ""
        self.grown: dict[str, int] = {}

    def phase(self, name: str, objects: int | None = None, size: int | None = None) -> None:
        """Measure the phase that ends, and begin another one."""
        if self._phase:
            self.grown[self._phase] = max(self.grown.get(self._phase, 0), _status("VmHWM") - self._opened)
        self._phase = name
        # Forgets the highest value so far (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def main() -> None:
    """Run in a process of its own: migrate, and print the mode and by how much each phase made it grow, as JSON."""
    file, *ends = sys.argv[1:]
    # Opened as pipelines do, and kept open; the migration opens them once more, which counts.
    opened = [open_fs(Path(file), end.split("/")[2]) for end in ends if end.startswith("sov://")]
    for fs in opened:
        fs.ls("")
    phases = Phases()
    report = sovstore.migrate(*ends, config=file, verify=True, watcher=phases)
    phases.phase("end")
    assert report.moved == report.verified == 1, report.failures.first
    assert report.moved_size == report.verified_size == SIZE
    print(json.dumps([report.plan.mode, phases.grown]))

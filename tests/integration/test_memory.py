"""Large objects, written and read with bounded memory: a limit on what comes on top of the opened store."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sovstore.filesystem import SovFileSystem
from sovstore.format.body import wire_size
from tests.hosts import cheap_key_files
from tests.stores import make_store, on_azure, on_s3, open_fs
from tests.stress import amount

pytestmark = pytest.mark.stress

ROOT = Path(__file__).parents[2]
MIB = 2**20
#: Several times what is allowed, so that even a part of an object that is kept would show. Under stress, 1 GiB.
SIZE = amount(256, 1024) * MIB
#: Bytes above an open client: without a network, and with parts on their way.
ALLOWED, ALLOWED_REMOTE = 64 * MIB, 96 * MIB


# The generic driver too, by the job that does most.
@pytest.mark.parametrize(
    ("provider", "job"),
    [("local", "files"), ("local", "small pieces"), ("local", "large pieces"), ("memory", "large pieces")],
)
def test_memory(tmp_path: Path, provider: str, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    _measure(tmp_path, make_store(tmp_path, provider="local"), provider, job, ALLOWED)


@pytest.mark.parametrize("job", ["files", "large pieces"])
def test_memory_on_s3(s3_server: Any, tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _measure_remote(tmp_path, on_s3(s3_server), job, monkeypatch)


def test_memory_on_s3_over_tls(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Encrypted once more on its way, and buffered for that.
    tls = s3_server.over_tls
    _measure_remote(tmp_path, on_s3(tls, ca_file=str(tls.ca_file)), "files", monkeypatch)


@pytest.mark.parametrize("job", ["files", "large pieces"])
def test_memory_on_azure(azurite_server: Any, tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _measure_remote(tmp_path, on_azure(azurite_server), job, monkeypatch)


def _measure_remote(folder: Path, place: dict[str, Any], job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    for name, value in place.pop("environment").items():
        monkeypatch.setenv(name, value)
    file = make_store(folder, **place)
    _measure(folder, file, place["provider"], job, ALLOWED_REMOTE)
    # The servers of the tests keep their objects in memory.
    fs = open_fs(file)
    fs.rm("", recursive=True)


def _measure(tmp_path: Path, file: Path, provider: str, job: str, allowed: int) -> None:
    command = [sys.executable, "-c", "from tests.integration.test_memory import main; main()"]
    ran = subprocess.run(
        [*command, provider, job, str(file), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    grown = json.loads(ran.stdout)
    assert set(grown) == STEPS[job]
    print(provider, job, {step: f"{size / MIB:.0f} MiB" for step, size in grown.items()})
    too_much = {step: f"{size / MIB:.0f} MiB" for step, size in grown.items() if size > allowed}
    assert not too_much
    # The measuring works: not even the blocks that are under way fit into nothing.
    assert max(grown.values()) > MIB


class Content:
    """An object in pieces, no two alike, all made in one buffer so that nothing but the store takes memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._buffer = bytearray(hashlib.shake_128(b"content").digest(size))
        self.hash = digest(self)

    def __iter__(self) -> Iterator[bytearray]:
        for n in range(SIZE // self.size):
            self._buffer[:8] = n.to_bytes(8, "big")
            yield self._buffer


def digest(pieces: Iterable[bytes | bytearray]) -> str:
    """Return the SHA-256 of all pieces."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


class Gauge:
    """Measures by how much the process outgrows what it had when the store was open.

    Parameters
    ----------
    in_memory : bool
        The objects themselves lie in this process; the limit is on what comes on top of them.
    """

    def __init__(self, *, in_memory: bool) -> None:
        self._in_memory = in_memory
        self._opened = _status("VmRSS")
        self.grown: dict[str, int] = {}

    def __call__(self, step: str, work: Callable[[], Any], *, objects: int = 1) -> None:
        """Do a step during which the store holds at most so many objects."""
        # Forgets the highest value so far (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
        work()
        held = objects * wire_size(SIZE) if self._in_memory else 0
        self.grown[step] = _status("VmHWM") - self._opened - held


def main() -> None:
    """Run in a process of its own: print by how much each step of a job made it grow, as JSON."""
    provider, job, config, folder = sys.argv[1:]
    if provider == "memory":
        # It belongs to this process, so it is made here.
        with pytest.MonkeyPatch.context() as patch:
            cheap_key_files(patch)
            make_store(Path(folder), "inside", provider="memory")
    fs = open_fs(Path(config), "inside" if provider == "memory" else "cohortes")
    content = Content(MIB if job != "large pieces" else 8 * MIB)
    fs.ls("")
    gauge = Gauge(in_memory=provider == "memory")
    JOBS[job](fs, content, gauge, Path(folder))
    print(json.dumps(gauge.grown))


def _files(fs: SovFileSystem, content: Content, gauge: Gauge, folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    with source.open("wb") as file:
        file.writelines(content)
    gauge("put_file", lambda: fs.put_file(str(source), "object"))
    source.unlink()
    gauge("get_file", lambda: fs.get_file("object", str(target)))
    with target.open("rb") as file:
        assert digest(iter(lambda: file.read(MIB), b"")) == content.hash
    target.unlink()


def _write(fs: SovFileSystem, content: Content) -> None:
    with fs.open("object", "wb") as file:
        for piece in content:
            file.write(piece)


def _read(fs: SovFileSystem, path: str, content: Content) -> None:
    with fs.open(path) as file:
        assert file.size == SIZE
        assert digest(iter(lambda: file.read(content.size), b"")) == content.hash


def _small(fs: SovFileSystem, content: Content, gauge: Gauge, folder: Path) -> None:
    gauge("write", lambda: _write(fs, content))
    gauge("read", lambda: _read(fs, "object", content))


def _large(fs: SovFileSystem, content: Content, gauge: Gauge, folder: Path) -> None:
    gauge("write", lambda: _write(fs, content))
    gauge("copy", lambda: fs.cp("object", "copy"), objects=2)
    fs.rm("object")
    # A rename copies beside before it deletes.
    gauge("rename", lambda: fs.mv("copy", "renamed"), objects=2)
    assert fs.find("") == ["renamed"]
    gauge("read", lambda: _read(fs, "renamed", content))


JOBS = {"files": _files, "small pieces": _small, "large pieces": _large}
STEPS = {
    "files": {"put_file", "get_file"},
    "small pieces": {"write", "read"},
    "large pieces": {"write", "copy", "rename", "read"},
}

"""A live store moves Ceph → Azurite → local → Ceph by byte copy and configuration; the pipeline never changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sovstore import config
from tests.hosts import cheap_key_files
from tests.stores import make_store, on_azure, on_s3

PIPELINE = Path(__file__).parent / "pipeline.py"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


def _raw(place: dict[str, Any], servers: dict[str, Any]) -> tuple[Any, str]:
    """Return a plain filesystem at a place, as any tool without keys has it, and its root."""
    kind = place["provider"]
    if kind == "local":
        return fsspec.filesystem("file"), place["root"]
    protocol, server = ("s3", servers["s3"]) if kind == "s3" else ("abfs", servers["azure"])
    return fsspec.filesystem(protocol, **server.storage_options, use_listings_cache=False), place["root"]


def _bytes(place: dict[str, Any], servers: dict[str, Any]) -> dict[str, bytes]:
    raw, root = _raw(place, servers)
    found = raw.find(root)
    return {name[name.index(root.rstrip("/")) + len(root.rstrip("/")) + 1 :]: raw.cat_file(name) for name in found}


def _copy(objects: dict[str, bytes], place: dict[str, Any], servers: dict[str, Any]) -> None:
    raw, root = _raw(place, servers)
    if place["provider"] == "local":
        for name in objects:
            (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
    for name, data in objects.items():
        raw.pipe_file(f"{root}/{name}", data)


def _run_pipeline(file: Path, *, first: bool) -> str:
    """Run the pipeline as its users do: a program that knows a URL and nothing of hosts."""
    command = [sys.executable, str(PIPELINE), "sov://cohortes", "fill" if first else "use"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(file))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _environment(file: Path) -> dict[str, str]:
    return {**os.environ, "SOVSTORE_CONFIG": str(file)}


def _switch(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Change the host in the configuration, and nothing else."""
    config.write_settings(file, "cohortes", new, removes={(key,): old[key] for key in old.keys() - new.keys()})


def test_a_live_store_moves_between_hosts(
    s3_server: Any, azurite_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = {"s3": s3_server, "azure": azurite_server}
    places = [
        on_s3(s3_server),
        on_azure(azurite_server, prefix="other/prefix"),
        {"provider": "local", "root": str(tmp_path / "folder")},
        on_s3(s3_server, prefix="back"),
    ]
    for place in places:
        for name, value in place.pop("environment", {}).items():
            monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **places[0])
    said = [_run_pipeline(file, first=True)]
    code = hashlib.sha256(PIPELINE.read_bytes()).digest()
    for old, new in pairwise(places):
        objects = _bytes(old, servers)
        assert len(objects) > 5
        _copy(objects, new, servers)
        assert _bytes(new, servers) == objects
        _switch(file, old, new)
        # Reads all that was there, and writes one object more: the store is alive.
        said.append(_run_pipeline(file, first=False))
        # Of a folder: what keeps its writers apart, and is no object.
        after = {name: raw for name, raw in _bytes(new, servers).items() if name != ".sovstore/lock" or name in objects}
        assert {name: after[name] for name in objects} == objects
        assert len(after) == len(objects) + 1
    assert said == ["6 objects, 20001234 bytes\n"] + [f"{6 + n} objects, {20001234 + n * 7} bytes\n" for n in (1, 2, 3)]
    assert hashlib.sha256(PIPELINE.read_bytes()).digest() == code

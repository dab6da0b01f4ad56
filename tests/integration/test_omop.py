"""The main job: an OMOP database into a store on real servers and back, with a host that learns nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from sovstore import config
from sovstore.filesystem import SovFileSystem
from tests.stores import make_store, open_fs

TABLES = 39


@dataclass(frozen=True)
class Host:
    """A place that holds ciphertext, and a filesystem without any key that shows all it holds."""

    provider: str
    root: str
    settings: dict[str, Any]
    raw: Any


def _s3(server: Any, patch: pytest.MonkeyPatch) -> Host:
    options = server.storage_options
    patch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    patch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    root = f"{server.create_bucket(f'b{uuid4().hex[:12]}')}/cohortes"
    settings = {"options": {"endpoint_url": options["endpoint_url"]}}
    return Host("s3", root, settings, fsspec.filesystem("s3", **options))


def _azure(server: Any, patch: pytest.MonkeyPatch) -> Host:
    patch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.storage_options["connection_string"])
    root = f"{server.create_container(f'c{uuid4().hex[:12]}')}/cohortes"
    return Host("azure", root, {}, fsspec.filesystem("abfs", **server.storage_options))


@pytest.fixture
def s3_host(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Host:
    return _s3(s3_server, monkeypatch)


@pytest.fixture
def azure_host(azurite_server: Any, monkeypatch: pytest.MonkeyPatch) -> Host:
    return _azure(azurite_server, monkeypatch)


def _everything(host: Host) -> dict[str, bytes]:
    """Return all objects of the host by their full name."""
    host.raw.invalidate_cache()
    return {name: host.raw.cat_file(name) for name in host.raw.find(host.root)}


def _metadata(host: Host) -> bytes:
    """Return all that the host says of its objects besides their bytes; the values, not the words of its API."""

    def values(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in values(item)]
        return [str(value)]

    return "\n".join(text for name in host.raw.find(host.root) for text in values(host.raw.info(name))).encode()


def _needles(omop: Path) -> set[bytes]:
    """Return table names, column names, and 20 values of the database, each long enough not to occur by chance."""
    needles: set[str] = set()
    values: set[str] = set()
    for file in sorted(omop.glob("*.parquet")):
        needles.add(file.stem)
        table = pq.read_table(file)
        needles.update(table.column_names)
        for column in table.column_names:
            cells = table.column(column).slice(0, 50).to_pylist()
            values.update(v for v in cells if isinstance(v, str) and len(v) >= 8)
    chosen = sorted(values)[:: max(1, len(values) // 20)][:20]
    assert len(chosen) == 20
    # `note` or `cost` could stand in base64 or random bytes by chance; longer words cannot, in a few MiB.
    return {n.encode() for n in needles if len(n) >= 7} | {v.encode() for v in chosen}


def _fill(fs: SovFileSystem, omop: Path) -> None:
    fs.put(f"{omop}/*.parquet", "omop/")


def _same_tables(omop: Path, url: str, fs: SovFileSystem) -> int:
    count = 0
    for file in sorted(omop.glob("*.parquet")):
        want = pd.read_parquet(file)
        got = pd.read_parquet(f"{url}/omop/{file.name}")
        pd.testing.assert_frame_equal(want, got)
        scanned = ds.dataset(f"omop/{file.name}", filesystem=fs).to_table()
        assert scanned.equals(pq.read_table(file))
        count += 1
    return count


@pytest.mark.parametrize("kind", ["s3_host", "azure_host"])
def test_omop_goes_in_and_comes_back(
    kind: str, request: pytest.FixtureRequest, omop_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host: Host = request.getfixturevalue(kind)
    file = make_store(tmp_path, provider=host.provider, root=host.root, **host.settings)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    fs = open_fs(file)
    _fill(fs, omop_dir)
    assert len(fs.ls("omop")) == TABLES
    assert fs.du("omop") == sum(f.stat().st_size for f in omop_dir.glob("*.parquet"))
    assert _same_tables(omop_dir, "sov://cohortes", fs) == TABLES

    stored = _everything(host)
    assert len(stored) == TABLES + 2
    shown = b"\n".join(name.encode() for name in stored) + _metadata(host)
    for needle in _needles(omop_dir):
        assert needle not in shown, needle
        for name, content in stored.items():
            assert needle not in content, (needle, name)
    # The search itself finds what is there.
    assert any(b"keyset" in name.encode() for name in stored)
    assert b"person_id" in _needles(omop_dir)
    assert b"person_id" in (omop_dir / "person.parquet").read_bytes()


def test_a_byte_copy_to_another_provider_is_the_same_store(
    s3_host: Host, azure_host: Host, omop_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_store(tmp_path, provider=s3_host.provider, root=s3_host.root, **s3_host.settings)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    pipeline: Callable[[], pd.DataFrame] = lambda: pd.read_parquet("sov://cohortes/omop/person.parquet")  # noqa: E731
    _fill(open_fs(file), omop_dir)
    before = pipeline()

    # A tool without any key copies bytes.
    for name, content in _everything(s3_host).items():
        azure_host.raw.pipe_file(azure_host.root + name.removeprefix(s3_host.root), content)
    s3_host.raw.rm(s3_host.root, recursive=True)

    settings = {"provider": azure_host.provider, "root": azure_host.root}
    config.write_settings(file, "cohortes", settings)
    text = file.read_text()
    file.write_text(os.linesep.join(line for line in text.splitlines() if "endpoint_url" not in line))
    pd.testing.assert_frame_equal(before, pipeline())
    assert _same_tables(omop_dir, "sov://cohortes", open_fs(file)) == TABLES

"""`BackendTests` on every driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sovstore.backends.base import Backend
from sovstore.backends.registry import open_backend as registry_open
from sovstore.testing import BackendTests


def _opener(provider: str, root: str, options: Any = None, protocol: str | None = None) -> Callable[[], Backend]:
    return lambda: registry_open(provider, root, options or {}, protocol)


class TestLocal(BackendTests):
    @pytest.fixture
    def open_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return _opener("local", str(tmp_path / "root"))


class TestMemory(BackendTests):
    @pytest.fixture
    def open_backend(self) -> Callable[[], Backend]:
        return _opener("memory", "/root")


class TestGenericOnFile(BackendTests):
    """A filesystem without a driver of its own: temporary objects, moved into place."""

    @pytest.fixture
    def open_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return _opener("fsspec", str(tmp_path / "root"), protocol="file")


class TestGenericOnS3(BackendTests):
    """s3fs under the generic driver, on Ceph."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        bucket = s3_server.create_bucket(f"b{uuid4().hex[:12]}")
        return _opener("s3", f"{bucket}/root", s3_server.storage_options)


class TestGenericOnAzure(BackendTests):
    """adlfs under the generic driver, on Azurite."""

    @pytest.fixture
    def open_backend(self, azurite_server: Any) -> Callable[[], Backend]:
        container = azurite_server.create_container(f"c{uuid4().hex[:12]}")
        return _opener("azure", f"{container}/root", azurite_server.storage_options)

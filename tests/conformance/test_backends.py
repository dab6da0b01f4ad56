"""`BackendTests` on every driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from sovstore.backends.base import Backend, Place, Upload
from sovstore.backends.local import LocalBackend
from sovstore.backends.providers import catalogue
from sovstore.backends.registry import open_backend as registry_open
from sovstore.testing import BackendTests, HostileBackend
from tests import stress
from tests.servers.facts import CEPH, MOTO


def _opener(provider: str, root: str, **settings: Any) -> Callable[[], Backend]:
    return lambda: registry_open(Place(catalogue()[provider], root, **settings))


def _bucket(server: Any) -> str:
    return f"{server.create_bucket(f'b{uuid4().hex[:12]}')}/root"


class TestLocal(BackendTests):
    @pytest.fixture
    def open_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return _opener("local", str(tmp_path / "root"))


class TestLocalOfSmallObjects(BackendTests):
    """The same where each write is told to be small, and has no file before there is too much of it."""

    @pytest.fixture
    def open_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return lambda: _Small(str(tmp_path / "root"))


class _Small(LocalBackend):
    async def upload(self, name: str, *, size: int | None = None, **conditions: Any) -> Upload:
        return await super().upload(name, size=0, **conditions)


class TestMemory(BackendTests):
    @pytest.fixture
    def open_backend(self) -> Callable[[], Backend]:
        return _opener("memory", "/root")


class TestHostile(BackendTests):
    """The hostile host, as long as nobody tells it to lie: what the attacks change is all that is wrong with it."""

    @pytest.fixture
    def open_backend(self) -> Callable[[], Backend]:
        host = HostileBackend()
        return lambda: host


class TestGenericOnFile(BackendTests):
    """A filesystem without a driver of its own: temporary objects, moved into place."""

    @pytest.fixture
    def open_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return _opener("fsspec", str(tmp_path / "root"), protocol="file")


@stress.long_only
class TestGenericOnS3(BackendTests):
    """s3fs under the generic driver, on Ceph."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        return _opener("fsspec", _bucket(s3_server), protocol="s3", options=s3_server.storage_options)


class TestS3(BackendTests):
    """The driver of S3 on Ceph, of whose conditions it is told."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        place = Place(CEPH, _bucket(s3_server), options=s3_server.storage_options)
        return lambda: registry_open(place)


@stress.long_only
class TestS3OfAnybody(BackendTests):
    """The driver of S3 on a host of which nothing is known: Ceph again."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        return _opener("s3", _bucket(s3_server), options=s3_server.storage_options)


@stress.long_only
class TestS3OverTLS(BackendTests):
    """The driver of S3 on Ceph, over TLS with a private authority."""

    @pytest.fixture
    def open_backend(self, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Backend]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
        tls = s3_server.over_tls
        place = Place(CEPH, _bucket(s3_server), endpoint=tls.endpoint_url, ca_file=str(tls.ca_file))
        return lambda: registry_open(place)


class TestS3OnMoto(BackendTests):
    """The driver of S3 on another family of servers, which keeps other conditions."""

    @pytest.fixture
    def open_backend(self, moto_server: Any) -> Callable[[], Backend]:
        place = Place(MOTO, _bucket(moto_server), options=moto_server.storage_options)
        return lambda: registry_open(place)


class TestGenericOnAzure(BackendTests):
    """adlfs under the generic driver, on Azurite."""

    deviations: ClassVar = {"test_odd_names": "adlfs 2026.8 turns a name 'a?b#c' into 'a#c?b' in its listings"}

    @pytest.fixture
    def open_backend(self, azurite_server: Any) -> Callable[[], Backend]:
        container = azurite_server.create_container(f"c{uuid4().hex[:12]}")
        return _opener("fsspec", f"{container}/root", protocol="abfs", options=azurite_server.storage_options)


class TestAzure(BackendTests):
    """The driver of Azure Blob, on Azurite."""

    @pytest.fixture
    def open_backend(self, azurite_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Backend]:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_server.connection_string)
        return _opener("azurite", f"{azurite_server.create_container(f'c{uuid4().hex[:12]}')}/root")


@stress.long_only
class TestAzureOverTLS(BackendTests):
    """The driver of Azure Blob, on Azurite over TLS with a private authority."""

    @pytest.fixture
    def open_backend(self, azurite_tls_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Backend]:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_tls_server.connection_string)
        container = azurite_tls_server.create_container(f"c{uuid4().hex[:12]}")
        return _opener("azurite", f"{container}/root", ca_file=str(azurite_tls_server.ca_file))


@pytest.fixture
def _s3_keys(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)


@pytest.mark.usefixtures("_s3_keys")
class TestObstoreOnS3(BackendTests):
    """The transport obstore on Ceph, of whose conditions it is told."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        place = Place(CEPH, _bucket(s3_server), endpoint=s3_server.endpoint_url, transport="obstore")
        return lambda: registry_open(place)


@pytest.mark.usefixtures("_s3_keys")
@stress.long_only
class TestObstoreOnS3OfAnybody(BackendTests):
    """The transport obstore on a host of which nothing is known: Ceph again."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        return _opener("s3", _bucket(s3_server), endpoint=s3_server.endpoint_url, transport="obstore")


@pytest.mark.usefixtures("_s3_keys")
@stress.long_only
class TestObstoreOnS3OverTLS(BackendTests):
    """The transport obstore on Ceph, over TLS with a private authority."""

    @pytest.fixture
    def open_backend(self, s3_server: Any) -> Callable[[], Backend]:
        tls = s3_server.over_tls
        place = Place(
            CEPH, _bucket(s3_server), endpoint=tls.endpoint_url, ca_file=str(tls.ca_file), transport="obstore"
        )
        return lambda: registry_open(place)


class TestObstoreOnAzure(BackendTests):
    """The transport obstore on Azurite."""

    @pytest.fixture
    def open_backend(self, azurite_server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Backend]:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_server.connection_string)
        container = azurite_server.create_container(f"c{uuid4().hex[:12]}")
        return _opener("azurite", f"{container}/root", transport="obstore")

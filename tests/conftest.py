"""Fixtures for every test: isolation from the developer's machine, the real servers, the OMOP sample."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from tests.servers import azurite, ceph, haproxy, moto, okms_fake, openbao, pykmip, require, softhsm
from tests.servers import secret_service as secret_service_module
from tests.servers.between import FaultFactory, faults_between
from tests.servers.s3 import read_models_once
from tests.stress import is_long

_ROOT = Path(__file__).parent.parent
_OMOP_DEFAULT = _ROOT.parent / "shared" / "data" / "omop-synthea27nj"

#: fixture -> name of the server it starts, as in `SOVSTORE_TEST_REQUIRE` and the marker `server`
_SERVER_FIXTURES = {
    "s3_server": "s3",
    "moto_server": "moto",
    "azurite_server": "azurite",
    "azurite_tls_server": "azurite",
    "s3_faults": "faults",
    "moto_faults": "faults",
    "azurite_faults": "faults",
    "secret_service": "keyring",
    "os_keyring": "keyring",
    "openbao_server": "openbao",
    "pykmip_server": "kmip",
    "softhsm_token": "softhsm",
    "okms_fake": "okms",
}

_REQUIRED = pytest.StashKey[frozenset[str]]()

#: Variables that could lead a client under test to the developer's accounts, keys or settings.
_FOREIGN_PREFIXES = (
    "SOVSTORE_",
    "XDG_",
    "AWS_",
    "AZURE_",
    "VAULT_",
    "BAO_",
    "SCW_",
    "KMS_",
    "SOFTHSM2_",
    "FSSPEC_",
    "KEYRING_PROPERTY_",
)
_FOREIGN_NAMES = ("DBUS_SESSION_BUS_ADDRESS", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def pytest_configure(config: pytest.Config) -> None:
    """Read which servers must be there, before a test changes the environment."""
    config.stash[_REQUIRED] = require.parse_required(os.environ.get("SOVSTORE_TEST_REQUIRE", ""))


# First, so that `-m "not server"` sees the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a server; put the longest first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: "integration" not in item.path.parts)
    for item in items:
        for fixture in _SERVER_FIXTURES.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server(_SERVER_FIXTURES[fixture]))


def pytest_collection_finish() -> None:
    """Keep the tests themselves out of every later collection: many tests collect, to see what they left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _commands_built_once() -> Iterator[None]:
    """Keep the tree of the commands, which is the same each time: to build it takes longer than to run many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test an empty home and no variable, keyring or cached filesystem of anybody else."""
    _clear_environment(monkeypatch)
    home = tmp_path_factory.mktemp("home")
    for variable, folder in {
        "HOME": home,
        "XDG_CONFIG_HOME": home / ".config",
        "XDG_CACHE_HOME": home / ".cache",
        "XDG_DATA_HOME": home / ".local/share",
        "XDG_STATE_HOME": home / ".local/state",
        "XDG_RUNTIME_DIR": home / "run",
    }.items():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    _forget_keyring(monkeypatch)
    _clear_filesystems()
    yield
    _clear_filesystems()


@pytest.fixture
def small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a check of a host write two parts; in the long form, and with `usual_parts`, the usual number."""
    from sovstore.backends.parts import PART
    from sovstore.check import trials

    if not is_long() and "usual_parts" not in request.fixturenames:
        monkeypatch.setattr(trials, "LARGE", PART + 300_000)


@pytest.fixture
def usual_parts() -> None:
    """Let the check write objects of the size that it writes for a user."""


@pytest.fixture(scope="session")
def s3_server(pytestconfig: pytest.Config) -> Iterator[ceph.CephServer]:
    """A real S3 endpoint (Ceph RGW, HTTP and TLS), shared by the tests of a worker: each makes a bucket of its own."""
    require.skip_or_fail("s3", ceph.missing(), pytestconfig.stash[_REQUIRED])
    read_models_once()
    with ceph.start() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(pytestconfig: pytest.Config) -> Iterator[moto.MotoServer]:
    """An S3 endpoint of another family (moto), with conditions that Ceph 16 lacks and no check of signatures."""
    require.skip_or_fail("moto", moto.missing(), pytestconfig.stash[_REQUIRED])
    read_models_once()
    with moto.start() as server:
        yield server


@pytest.fixture(scope="session")
def azurite_server(pytestconfig: pytest.Config) -> Iterator[azurite.AzuriteServer]:
    """A real Azure Blob endpoint (Azurite), shared by the tests of a worker: each makes its own container."""
    require.skip_or_fail("azurite", azurite.missing(), pytestconfig.stash[_REQUIRED])
    with azurite.start() as server:
        yield server


@pytest.fixture(scope="session")
def azurite_tls_server(pytestconfig: pytest.Config) -> Iterator[azurite.AzuriteServer]:
    """A second Azurite, over TLS with the authority in its `ca_file`."""
    require.skip_or_fail("azurite", azurite.missing(), pytestconfig.stash[_REQUIRED])
    with azurite.start(tls=True) as server:
        yield server


@pytest.fixture
def s3_faults(s3_server: ceph.CephServer, pytestconfig: pytest.Config) -> Iterator[FaultFactory[ceph.CephServer]]:
    """A factory of proxies that break what goes between a client and Ceph."""
    require.skip_or_fail("faults", haproxy.missing(), pytestconfig.stash[_REQUIRED])
    with faults_between(s3_server, busy_code="SlowDown") as factory:
        yield factory


@pytest.fixture
def moto_faults(moto_server: moto.MotoServer, pytestconfig: pytest.Config) -> Iterator[FaultFactory[moto.MotoServer]]:
    """A factory of proxies that break what goes between a client and moto."""
    require.skip_or_fail("faults", haproxy.missing(), pytestconfig.stash[_REQUIRED])
    with faults_between(moto_server, busy_code="SlowDown") as factory:
        yield factory


@pytest.fixture
def azurite_faults(
    azurite_server: azurite.AzuriteServer, pytestconfig: pytest.Config
) -> Iterator[FaultFactory[azurite.AzuriteServer]]:
    """A factory of proxies that break what goes between a client and Azurite."""
    require.skip_or_fail("faults", haproxy.missing(), pytestconfig.stash[_REQUIRED])
    with faults_between(azurite_server, busy_code="ServerBusy") as factory:
        yield factory


@pytest.fixture(scope="session")
def secret_service(pytestconfig: pytest.Config) -> Iterator[secret_service_module.SecretService]:
    """A real Secret Service; only a process given its `environment` uses it."""
    require.skip_or_fail("keyring", secret_service_module.missing(), pytestconfig.stash[_REQUIRED])
    with secret_service_module.start() as service:
        yield service


@pytest.fixture
def os_keyring(secret_service: secret_service_module.SecretService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the real Secret Service the keyring of this test's process and of its children."""
    for name, value in secret_service.environment.items():
        monkeypatch.setenv(name, value)
    _forget_keyring(monkeypatch)


@pytest.fixture(scope="session")
def openbao_server(pytestconfig: pytest.Config) -> Iterator[openbao.OpenBaoServer]:
    """A real OpenBao over TLS, unsealed; a test that seals or stops one starts its own."""
    require.skip_or_fail("openbao", openbao.missing(), pytestconfig.stash[_REQUIRED])
    with openbao.start() as server:
        yield server


@pytest.fixture(scope="session")
def pykmip_server(pytestconfig: pytest.Config) -> Iterator[pykmip.PyKMIPServer]:
    """A real KMIP server (PyKMIP) with mutual TLS."""
    require.skip_or_fail("kmip", pykmip.missing(), pytestconfig.stash[_REQUIRED])
    with pykmip.start() as server:
        yield server


@pytest.fixture(scope="session")
def softhsm_token(pytestconfig: pytest.Config) -> Iterator[softhsm.SoftHSMToken]:
    """A real PKCS#11 token (SoftHSM), initialised, without keys."""
    require.skip_or_fail("softhsm", softhsm.missing(), pytestconfig.stash[_REQUIRED])
    with softhsm.start() as token:
        yield token


@pytest.fixture(name="okms_fake")
def _okms_fake(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[okms_fake.OKMSFake]:
    """A strict fake of OVHcloud KMS, without keys; a request that its description does not allow fails the test."""
    description = okms_fake.description_file()
    missing = [] if description else ["the OpenAPI description of OVHcloud KMS: set SOVSTORE_TEST_OKMS_OPENAPI to it"]
    require.skip_or_fail("okms", missing, pytestconfig.stash[_REQUIRED])
    assert description is not None
    with okms_fake.start(tmp_path_factory.mktemp("okms"), description) as fake:
        yield fake
    assert fake.violations == []


@pytest.fixture(scope="session")
def omop_dir() -> Path:
    """The directory of the OMOP sample database, one Parquet file per table."""
    directory = Path(os.environ.get("SOVSTORE_TEST_OMOP", _OMOP_DEFAULT))
    if not (directory / "person.parquet").is_file():
        pytest.skip("no OMOP sample: set SOVSTORE_TEST_OMOP to a directory with one Parquet file per table")
    return directory.resolve()


def _clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        # SOVSTORE_TEST_* is how the tests themselves are configured; the library does not read it.
        foreign = name.upper().startswith(_FOREIGN_PREFIXES) or name.upper() in _FOREIGN_NAMES
        if foreign and not name.startswith("SOVSTORE_TEST_"):
            monkeypatch.delenv(name)


def _forget_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `keyring` choose its backend again, by the environment of this test."""
    if "keyring.core" in sys.modules:
        monkeypatch.setattr("keyring.core._keyring_backend", None)


def _clear_filesystems() -> None:
    """Empty fsspec's instance caches, and the store that all memory filesystems of a process share."""
    if "fsspec.spec" not in sys.modules:
        return
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.spec import AbstractFileSystem

    pending = [AbstractFileSystem]
    while pending:
        filesystem_class = pending.pop()
        filesystem_class.clear_instance_cache()
        pending += filesystem_class.__subclasses__()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]

"""Hosts and networks in trouble: every operation gives the right bytes or a typed error, in time, and nothing else."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sovstore.backends import loop
from sovstore.errors import (
    IntegrityError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)
from sovstore.filesystem import SovFileSystem
from tests import stress
from tests.hosts import cheap_key_files, quick_retries
from tests.servers.faults import OBJECTS, Faults
from tests.stores import make_store, on_azure, on_s3, open_fs

MIB = 2**20
#: Seconds that the store allows for one request, and that a test allows for one operation of several requests.
TIMEOUT_S, ALLOWED_S = 15, 60
#: The same where nothing will ever succeed.
HOPELESS_S = stress.amount(1, 2)
#: The large one is sent in several parts.
SMALL, LARGE = 100_000, stress.amount(9, 20) * MIB + 12345
HOSTS = ("s3", "azurite")


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


class Faulty:
    """A store at a healthy host, and the same store through a proxy."""

    def __init__(
        self, healthy: SovFileSystem, file: Path, server: Any, patch: pytest.MonkeyPatch, timeout_s: int
    ) -> None:
        self.healthy = healthy
        for name, value in _address(server).items():
            patch.setenv(name, value)
        # Not the instance that is healthy: what leads to the proxy is no argument of it.
        self.fs = open_fs(file, skip_instance_cache=True)
        # The keyset and the connection are there before the trouble begins.
        self.fs.ls("")
        # Now, as the option `timeout` would: opening takes longer than what is hopeless has to.
        self.fs._sync(self._limit, timeout_s)

    async def _limit(self, timeout_s: int) -> None:
        backend: Any = self.fs.store.backend
        client = backend.client if hasattr(backend, "client") else backend._client
        assert client.timeout > timeout_s
        client.timeout = timeout_s

    def attempt(self, work: Callable[[], Any]) -> Any:
        """Return what an operation returns, or the typed error that it raised; it has to end in time."""
        start = time.monotonic()
        try:
            result = work()
        except SovstoreError as exc:
            result = exc
        assert time.monotonic() - start < ALLOWED_S
        return result

    def check(self, path: str, *contents: bytes | None) -> None:
        """Check at the healthy host that an object has one of these contents; None is "there is none"."""
        try:
            found: bytes | None = self.healthy.cat_file(path)
        except ObjectNotFoundError:
            found = None
        assert found in contents


def _address(server: Any) -> dict[str, str]:
    if hasattr(server, "connection_string"):
        return {"AZURE_STORAGE_CONNECTION_STRING": server.connection_string}
    return {"SOVSTORE_STORES__COHORTES__ENDPOINT": server.endpoint_url}


# A request that is given up in the middle of a reply leaves its connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*Connection.__del__")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    if not stress.is_long():
        quick_retries(monkeypatch)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.server(name)) for name in HOSTS])
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def factory(host: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue({"s3": "s3_faults", "azurite": "azurite_faults"}[host])


@pytest.fixture
def behind(
    host: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any], Faulty]:
    """A function that opens the store of this test through a server's proxy."""
    cheap_key_files(monkeypatch)
    server = request.getfixturevalue({"s3": "s3_server", "azurite": "azurite_server"}[host])
    place = {"s3": on_s3, "azurite": on_azure}[host](server)
    for name, value in place.pop("environment").items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **place)
    healthy = open_fs(file)
    healthy.ls("")

    def opened(server: Any, timeout_s: int = TIMEOUT_S) -> Faulty:
        return Faulty(healthy, file, server, monkeypatch, timeout_s)

    return opened


def exercise(faulty: Faulty, folder: Path) -> dict[str, Any]:
    """Do one of each operation; check each result, and after a failure what is at the host."""
    fs, attempt = faulty.fs, faulty.attempt
    small, large, new = content(SMALL), content(LARGE), content(LARGE, 1)
    faulty.healthy.pipe({"old/small": small, "old/large": large})
    (folder / "large").write_bytes(new)
    done = {
        "cat": attempt(lambda: fs.cat_file("old/large") == large),
        "get": attempt(lambda: fs.get_file("old/large", str(folder / "got"))),
        "range": attempt(lambda: fs.cat_file("old/large", start=9 * MIB, end=9 * MIB + 7) == large[9 * MIB :][:7]),
        "info": attempt(lambda: fs.info("old/small")["size"] == SMALL),
        "ls": attempt(lambda: fs.ls("old", detail=False) == ["old/large", "old/small"]),
        "pipe": attempt(lambda: fs.pipe_file("new/small", small)),
        "put": attempt(lambda: fs.put_file(str(folder / "large"), "new/large")),
        "overwrite": attempt(lambda: fs.pipe_file("old/small", small[::-1])),
        "create": attempt(lambda: fs.pipe_file("new/created", small, mode="create")),
        "copy": attempt(lambda: fs.cp_file("old/large", "copy/large")),
        "rename": attempt(lambda: fs.mv("old/large", "moved/large")),
        "rm": attempt(lambda: fs.rm("old", recursive=True)),
    }
    assert not [name for name, result in done.items() if result is False]
    if done["get"] is None:
        assert (folder / "got").read_bytes() == large
    assert {p.name for p in folder.iterdir() if "got" in p.name} <= {"got"}
    whole: dict[str, tuple[bytes | None, ...]] = {
        "new/small": (small,),
        "new/large": (new,),
        "new/created": (small,),
        "copy/large": (large,),
        "moved/large": (large,),
        "old/small": (None,),
        "old/large": (None,),
    }
    by = {"new/small": "pipe", "new/large": "put", "new/created": "create", "copy/large": "copy", "old/small": "rm"}
    by |= {"moved/large": "rename", "old/large": "rm"}
    for path, contents in whole.items():
        before = {"old/small": (small, small[::-1]), "old/large": (large,)}.get(path, (None,))
        failed = isinstance(done[by[path]], SovstoreError)
        faulty.check(path, *contents, *(before if failed else ()))
    return done


@pytest.mark.parametrize(
    "trouble", [{"busy_percent": 15}, {"close_percent": 15}, {"latency_ms": 100}], ids=["503", "closed", "latency"]
)
def test_a_host_that_refuses_closes_or_is_slow(
    behind: Any, factory: Any, trouble: dict[str, int], tmp_path: Path
) -> None:
    done = exercise(behind(factory.haproxy(**trouble)), tmp_path)
    # Retries hide almost all of it; what is left is typed.
    failed = {name: result for name, result in done.items() if isinstance(result, Exception)}
    assert len(failed) <= (0 if "latency_ms" in trouble else 2), failed


@pytest.mark.stress
@pytest.mark.parametrize(
    "faults",
    [
        Faults(lose_reply=True, methods=("GET", "HEAD", "PUT", "POST", "DELETE"), probability=0.2),
        Faults(reset_request_after=10_000, methods=("PUT",), probability=0.3),
        Faults(close_after=5_000, probability=0.3),
        Faults(wrong_content_range=True, probability=0.3),
        # Of one kind with those above; when they are always so, `test_always_when_reading` has them.
        *([Faults(reset_after=5_000, probability=0.3)] if stress.is_long() else []),
        *([Faults(whole_object=True, target=OBJECTS, probability=0.3)] if stress.is_long() else []),
        *([Faults(shorter_by=1, target=OBJECTS, probability=0.3)] if stress.is_long() else []),
        *([Faults(longer_by=1, target=OBJECTS, probability=0.3)] if stress.is_long() else []),
    ],
    ids=lambda faults: faults.kind,
)
def test_now_and_then(behind: Any, factory: Any, faults: Faults, tmp_path: Path) -> None:
    through = factory()
    faulty = behind(through.server)
    through.proxy.faults = faults
    done = exercise(faulty, tmp_path)
    assert through.proxy.count(fault=faults.kind)
    failed = {name: result for name, result in done.items() if isinstance(result, Exception)}
    assert len(failed) <= 2, failed


@pytest.mark.parametrize(
    "faults",
    [
        Faults(lose_reply=True),
        Faults(reset_after=5_000),
        Faults(close_after=5_000),
        Faults(stall_after=5_000),
        Faults(wrong_content_range=True),
        Faults(whole_object=True, target=OBJECTS),
        Faults(shorter_by=1, target=OBJECTS),
        Faults(longer_by=1, target=OBJECTS),
        Faults(packed=0, target=OBJECTS),
        Faults(packed=1 << 26, target=OBJECTS),
    ],
    ids=lambda faults: faults.kind,
)
def test_always_when_reading(behind: Any, factory: Any, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_TRIES_WITHIN_S", 0.5)
    through = factory()
    faulty = behind(through.server, HOPELESS_S)
    faulty.healthy.pipe_file("a", content(3 * MIB))
    through.proxy.faults = faults
    for work in (
        lambda: faulty.fs.cat_file("a"),
        lambda: faulty.fs.cat_file("a", start=2 * MIB, end=2 * MIB + 10),
        lambda: faulty.fs.open("a").read(),
    ):
        assert isinstance(faulty.attempt(work), StoreError)
    assert through.proxy.count(fault=faults.kind)


@pytest.mark.parametrize(
    "faults",
    [Faults(lose_reply=True, methods=("PUT",)), Faults(reset_request_after=1000, methods=("PUT",))],
    ids=lambda faults: faults.kind,
)
def test_always_when_writing(behind: Any, factory: Any, faults: Faults) -> None:
    through = factory()
    faulty = behind(through.server, HOPELESS_S)
    faulty.healthy.pipe({"small": b"old", "large": b"old"})
    through.proxy.faults = faults
    for path, size in (("small", SMALL), ("large", LARGE)):
        result = faulty.attempt(lambda path=path, size=size: faulty.fs.pipe_file(path, content(size)))
        assert result is None or isinstance(result, StoreUnavailableError)
        faulty.check(path, b"old", content(size))


def test_flipped_bits_are_never_returned(behind: Any, factory: Any) -> None:
    through = factory()
    faulty = behind(through.server)
    faulty.healthy.pipe_file("a", content(SMALL))
    through.proxy.faults = Faults(corrupt_at=50_000, target=OBJECTS)
    assert isinstance(faulty.attempt(lambda: faulty.fs.cat_file("a")), IntegrityError)
    assert through.proxy.count(fault="corrupt_at")

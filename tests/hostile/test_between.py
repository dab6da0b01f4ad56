"""Moments of a race that chance rarely meets: somebody else's write between two steps of one client."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sovstore import rotation
from sovstore.backends import local
from sovstore.backends.azure import AzureBackend
from sovstore.errors import ObjectChangedError, ObjectNotFoundError, StoreError
from sovstore.filesystem import SovFileSystem
from tests.history import content
from tests.hosts import PROVIDERS, Host, Through, cheap_key_files, open_host, wrap_backends
from tests.stores import make_store, on_azure, on_s3, open_fs


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return open_host(tmp_path, "local")


OLD, NEW = content((0, 0, 300)), content((0, 1, 20_000))


def another(fs: SovFileSystem) -> SovFileSystem:
    return open_fs(fs.store.config.source, skip_instance_cache=True)


class Between:
    """Writes the object from another client at the moment at which the local driver looks at its ETag to decide."""

    def __init__(self, host: Host, patch: pytest.MonkeyPatch, path: str) -> None:
        self._fs, self._path, self._real = another(host.fs), path, local._etag
        self._fs.ls("")
        self._name = host.name(path)
        self._inode = 0
        self._thread = threading.Thread(target=lambda: self._fs.pipe_file(path, NEW))
        self._patch = patch

    def begin(self) -> None:
        self._inode = Path(self._name).stat().st_ino
        self._patch.setattr(local, "_etag", self._etag)
        self._patch.setattr(local, "_in_turn", self._in_turn)

    @contextmanager
    def _in_turn(self, root: Path, *, alone: bool) -> Iterator[None]:
        with self._locked(root, alone=alone):
            self.deciding = alone
            yield
            self.deciding = False

    deciding = False
    _locked = staticmethod(local._in_turn)

    def _etag(self, status: Any) -> str:
        if self.deciding and status.st_ino == self._inode and not self._thread.ident:
            self._thread.start()
            self._thread.join(0.5)
        return self._real(status)

    def end(self) -> None:
        assert self._thread.ident, "nobody looked"
        self._thread.join()


def test_a_rename_deletes_no_other_version(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.fs.pipe_file("source", OLD)
    between = Between(host, monkeypatch, "source")
    between.begin()
    host.fs.mv("source", "target")
    between.end()
    assert host.fs.cat_file("target") == OLD
    assert host.fs.cat_file("source") == NEW


def test_a_rewrap_overwrites_no_other_version(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.fs.pipe_file("object", OLD)
    host.fs._sync(rotation.new_epoch, host.fs.store)
    entry = host.fs._sync(host.fs.store.stat, "object")
    between = Between(host, monkeypatch, "object")
    between.begin()
    assert host.fs._sync(host.fs.store.rewrap, entry)
    between.end()
    assert host.fs.cat_file("object") == NEW


def test_a_rename_deletes_no_other_version_on_azure(
    azurite_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host decides, after the look."""
    place = on_azure(azurite_server)
    for name, value in place.pop("environment").items():
        monkeypatch.setenv(name, value)
    fs = open_fs(make_store(tmp_path, **place))
    fs.pipe_file("source", OLD)
    other, real = another(fs), AzureBackend.look_first

    async def looked(self: AzureBackend, name: str, **condition: Any) -> None:
        await real(self, name, **condition)
        await other._pipe_file("source", NEW)

    monkeypatch.setattr(AzureBackend, "look_first", looked)
    with pytest.raises(StoreError, match="changed while it was renamed") as caught:
        fs.mv("source", "target")
    assert caught.value.path == "source"
    assert (fs.cat_file("source"), fs.cat_file("target")) == (NEW, OLD)


def test_an_open_file_whose_object_became_shorter(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for lies beyond the end of the other version, and that is no damage either."""
    place = on_s3(s3_server)
    for name, value in place.pop("environment").items():
        monkeypatch.setenv(name, value)
    fs = open_fs(make_store(tmp_path, **place))
    fs.pipe_file("object", content((0, 3, 230_000)))
    with fs.open("object") as file:
        fs.pipe_file("object", OLD)
        file.seek(100_000)
        with pytest.raises(ObjectChangedError) as caught:
            file.read(10)
    assert caught.value.path == "object"


class Meddling(Through):
    """A host at which something happens after each answer to a `stat`, or before each deletion."""

    before_stat: Callable[[], Any] = staticmethod(lambda: None)
    after_stat: Callable[[], Any] = staticmethod(lambda: None)
    read_delay_s = 0.05
    before_delete: Callable[[], Any] = staticmethod(lambda: None)

    async def stat(self, name: str) -> Any:
        await asyncio.sleep(0.05 - self.read_delay_s)
        self.before_stat()
        found = await super().stat(name)
        self.after_stat()
        return found

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        # Of a `stat` that is asked at the same time, either may be answered first.
        await asyncio.sleep(self.read_delay_s)
        return await super().read(name, start, end, etag=etag)

    async def delete_match(self, name: str, etag: str) -> None:
        self.before_delete()
        await self.inner.delete_match(name, etag)


def test_a_source_that_is_gone_is_called_by_its_path(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.fs.pipe_file("source", OLD)
    name = host.name("source")
    monkeypatch.setattr(Meddling, "before_delete", staticmethod(lambda: host.raw.rm(name)))
    wrap_backends(monkeypatch, lambda inner: Meddling(inner, Counter()))
    with pytest.raises(ObjectNotFoundError) as caught:
        another(host.fs).mv("source", "target")
    assert caught.value.path == "source"
    assert host.fs.cat_file("target") == OLD


@pytest.mark.parametrize("times", [3, 100])
def test_overwriting_is_not_taken_for_damage(host: Host, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A read between whose requests the object is replaced is made again; when that does not end, it says so."""
    host.fs.pipe_file("object", OLD)
    # Of two lengths, which do not fit to each other's answers.
    versions = []
    for data in (NEW, OLD):
        host.fs.pipe_file("object", data)
        versions.append(host.get("object"))
    turn, place = iter(range(times)), Path(host.name("object"))

    def replace() -> None:
        if (n := next(turn, None)) is not None:
            beside = place.with_name("new")
            beside.write_bytes(versions[n % 2])
            beside.replace(place)

    monkeypatch.setattr(Meddling, "after_stat", staticmethod(replace))
    wrap_backends(monkeypatch, lambda inner: Meddling(inner, Counter()))
    fs = another(host.fs)
    if times == 3:
        assert fs.open("object").read() == NEW
        return
    with pytest.raises(ObjectChangedError) as caught:
        fs.open("object")
    assert caught.value.retryable


COPIES: dict[str, Callable[[SovFileSystem], Any]] = {
    "copy": lambda fs: fs.cp_file("object", "target"),
    "rename": lambda fs: fs._sync(fs.store.move, "object", "target"),
    "rewrap": lambda fs: fs._sync(fs.store.rewrap, fs._sync(fs.store.stat, "object")),
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("how", COPIES)
def test_a_header_is_never_put_on_the_body_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, provider: str
) -> None:
    """The object is overwritten by one of the same size after its header was read and before its ETag was asked for."""
    host = open_host(tmp_path, provider)
    newer, older = content((0, 2, 300)), OLD
    host.fs.pipe_file("object", newer)
    later, place = host.get("object"), host.name("object")
    host.fs.pipe_file("object", older)
    # The first look is that of the caller or of nobody.
    looks = iter([False, True] if how == "rewrap" else [True])
    host.fs._sync(rotation.new_epoch, host.fs.store)

    def replace() -> None:
        if next(looks, False):
            host.raw.pipe_file(place, later)

    monkeypatch.setattr(Meddling, "read_delay_s", 0)
    monkeypatch.setattr(Meddling, "before_stat", staticmethod(replace))
    wrap_backends(monkeypatch, lambda inner: Meddling(inner, Counter()))
    with suppress(ObjectChangedError):
        COPIES[how](another(host.fs))
    there = {path: host.fs.cat_file(path) for path in host.fs.find("")}
    assert set(there.values()) <= {newer, older}
    assert newer in there.values()

"""The host's side of a store under test: what it holds, changed behind the store's back, and a host that counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sovstore import store
from sovstore.backends.base import STALE, Backend, Stat, Upload
from sovstore.backends.local import LocalBackend
from sovstore.backends.registry import open_backend
from sovstore.errors import StoreUnavailableError
from sovstore.filesystem import SovFileSystem
from sovstore.kms import keyfile
from sovstore.testing.backend import put
from tests.stores import make_store, open_fs

#: Providers that need no server.
PROVIDERS = ("local", "memory")


def cheap_key_files(patch: pytest.MonkeyPatch) -> None:
    """Make new key files with the least Argon2id that the format allows; a store is then opened in no time."""
    for name, value in {"_MEMORY_KIB": 8, "_PASSES": 1, "_LANES": 1}.items():
        patch.setattr(keyfile, name, value)


def cheap_key_files_of_commands(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Do the same in the Pythons that a test starts: commands, and the snippets of a page."""
    (folder / "sitecustomize.py").write_text(
        "from sovstore.kms import keyfile\nkeyfile._MEMORY_KIB, keyfile._PASSES, keyfile._LANES = 8, 1, 1\n"
    )
    patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def quick_retries(patch: pytest.MonkeyPatch) -> None:
    """Let the SDKs of S3 and Azure ask again as often as ever, and wait less before: waiting shows nothing."""
    from botocore.retries.standard import ExponentialBackoff

    from sovstore.backends import azure_client

    patch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.02)
    patch.setattr(azure_client, "_BACKOFF_S", 0.02)
    patch.setattr(azure_client, "_BACKOFF_MAX_S", 0.1)


def fail_reads(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let a local host be away whenever one name is read."""

    def failing(read: Any) -> Any:
        async def call(self: LocalBackend, wanted: str, *args: Any, **kwargs: Any) -> Any:
            if wanted == name:
                raise StoreUnavailableError(f"{wanted}: gone fishing", path=wanted)
            return await read(self, wanted, *args, **kwargs)

        return call

    for method in ("read", "read_first"):
        patch.setattr(LocalBackend, method, failing(getattr(LocalBackend, method)))


class Host:
    """What lies at the host of one store.

    Parameters
    ----------
    fs : SovFileSystem
        A store of one of `PROVIDERS`.
    """

    def __init__(self, fs: SovFileSystem) -> None:
        self.fs = fs
        self.raw = fsspec.filesystem("memory" if fs.store.config.provider == "memory" else "file")
        self.root = fs.store.config.root

    def name(self, path: str) -> str:
        """Return the full name at the host of an object."""
        return f"{self.root}/{self.fs._sync(self.fs.store.name, path)}"

    def get(self, path: str) -> bytes:
        """Return the bytes of an object as they lie there."""
        return bytes(self.raw.cat_file(self.name(path)))

    def set(self, path: str, data: bytes) -> None:
        """Replace the bytes of an object, as a host can."""
        self.raw.pipe_file(self.name(path), data)

    def get_file(self, name: str) -> bytes:
        """Return the bytes under a name below the root."""
        return bytes(self.raw.cat_file(f"{self.root}/{name}"))

    def set_file(self, name: str, data: bytes) -> None:
        """Replace the bytes under a name below the root."""
        full = f"{self.root}/{name}"
        self.raw.makedirs(full.rpartition("/")[0], exist_ok=True)
        self.raw.pipe_file(full, data)

    def unfinished(self) -> list[str]:
        """Return the temporary objects that are there."""
        folder = f"{self.root}/.sovstore/tmp"
        return list(self.raw.find(folder)) if self.raw.exists(folder) else []


def open_host(folder: Path, provider: str, name: str = "cohortes", **settings: Any) -> Host:
    """Make a store and return the host's side of it."""
    return Host(open_fs(make_store(folder, name, provider=provider, **settings), name))


def temporaries(folder: Path) -> list[Path]:
    """Return the unfinished downloads in a local folder."""
    return list(folder.rglob("*.part"))


class Through(Backend):
    """A backend that passes everything on to another one, and counts the calls.

    Parameters
    ----------
    inner : Backend
        The real one.
    calls : Counter
        Where each call is counted under the name of its method.
    """

    def __init__(self, inner: Backend, calls: Counter[str]) -> None:
        self.inner, self.calls = inner, calls
        self.real_folders = inner.real_folders

    async def stat(self, name: str) -> Stat:
        self.calls["stat"] += 1
        return await self.inner.stat(name)

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        self.calls["read"] += 1
        return await self.inner.read(name, start, end, etag=etag)

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        self.calls["upload"] += 1
        return await self.inner.upload(name, create=create, if_match=if_match, size=size)

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        self.calls["list"] += 1
        async for found in self.inner.list(folder, recursive=recursive):
            yield found

    async def delete(self, names: Iterable[str]) -> None:
        self.calls["delete"] += 1
        await self.inner.delete(names)

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        self.calls["copy"] += 1
        await self.inner.copy(source, target, head=head, etag=etag, create=create)

    async def make_folder(self, name: str) -> None:
        self.calls["make_folder"] += 1
        await self.inner.make_folder(name)

    async def sweep(self, older_than: timedelta = STALE, *, dry_run: bool = False) -> int:
        self.calls["sweep"] += 1
        return await self.inner.sweep(older_than, dry_run=dry_run)

    async def close(self) -> None:
        await self.inner.close()


def wrap_backends(patch: pytest.MonkeyPatch, wrapper: Callable[[Backend], Backend]) -> None:
    """Put `wrapper` around the backend of every store that is opened from now on."""
    patch.setattr(store, "open_backend", lambda *args: wrapper(open_backend(*args)))


async def opened_by_one_request(backend: Backend, proxy: Any) -> None:
    """Check that a file is opened without asking what there is: no other version can come between two requests."""
    await put(backend, "a", bytes(1000))
    proxy.forget()
    found, data = await backend.read_first("a", 100)
    assert [request.method for request in proxy.requests] == ["GET"]
    assert (found.size, len(data)) == (1000, 100)
    assert found == await backend.stat("a")

"""What the driver of local folders does besides its interface: small writes that are kept until their commit."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sovstore import beside
from sovstore.backends.local import LocalBackend
from sovstore.errors import NotFolderError, StoreError

SMALL = 4_000


def run(root: Path, use: Callable[[LocalBackend], Awaitable[None]]) -> None:
    async def main() -> None:
        await use(LocalBackend(str(root)))

    asyncio.run(main())


def files(root: Path) -> list[str]:
    """Return all files below a folder, but for the lock."""
    return sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file() and f.name != "lock")


def stopped(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> tuple[threading.Event, threading.Event]:
    """Stop the first call of a function; return what is set when it is reached, and what lets it go on."""
    reached, go_on, real = threading.Event(), threading.Event(), getattr(where, name)

    def call(*args: Any) -> Any:
        reached.set()
        assert go_on.wait(30)
        return real(*args)

    monkeypatch.setattr(where, name, call)
    return reached, go_on


async def cancelled(work: Awaitable[Any], reached: threading.Event, go_on: threading.Event) -> None:
    """Cancel some work where it was stopped."""
    task = asyncio.ensure_future(work)
    assert await asyncio.to_thread(reached.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_small_write_is_kept_until_its_commit(tmp_path: Path) -> None:
    async def use(backend: LocalBackend) -> None:
        upload = await backend.upload("folder/a", size=SMALL)
        buffer = bytearray(b"1" * (SMALL // 2))
        await upload.write(buffer)
        # The caller's to use again.
        buffer[:] = b"2" * len(buffer)
        await upload.write(memoryview(buffer))
        assert list(tmp_path.iterdir()) == []
        await upload.commit()

    run(tmp_path / "root", use)
    assert files(tmp_path) == ["root/folder/a"]
    assert (tmp_path / "root/folder/a").read_bytes() == b"1" * (SMALL // 2) + b"2" * (SMALL // 2)


def test_more_than_was_said_goes_to_a_file(tmp_path: Path) -> None:
    async def use(backend: LocalBackend) -> None:
        upload = await backend.upload("a", size=1)
        for n in range(5):
            await upload.write(bytes([n]) * 30_000)
        (temporary,) = (tmp_path / ".sovstore/tmp").iterdir()
        # Its writer lives.
        with temporary.open("rb") as opened, pytest.raises(BlockingIOError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await upload.commit()

    run(tmp_path, use)
    assert files(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"".join(bytes([n]) * 30_000 for n in range(5))


@pytest.mark.parametrize("how", ["aborted", "lost", "cancelled in time", "cancelled too late"])
def test_a_small_write_that_is_given_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def use(backend: LocalBackend) -> None:
        upload = await backend.upload("a", size=SMALL)
        await upload.write(bytes(SMALL))
        if how == "lost":
            del upload
            gc.collect()
            return
        if how == "cancelled in time":
            # All threads are busy: it has not begun.
            go_on = threading.Event()
            busy = [asyncio.ensure_future(backend._run(go_on.wait)) for _ in range(10)]
            await asyncio.sleep(0)
            task = asyncio.ensure_future(upload.commit())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # A turn of the loop more, in which the threads learn of it.
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(*busy)
        elif how == "cancelled too late":
            with monkeypatch.context() as patch:
                await cancelled(upload.commit(), *stopped(patch, os, "fsync"))
        await upload.abort()
        # Once more, and whatever comes then.
        await upload.abort()
        for late in (upload.write(b"1"), upload.commit()):
            with pytest.raises(StoreError, match="given up"):
                await late

    run(tmp_path, use)
    # A commit that was under way is over before it can be given up: the object is whole.
    assert files(tmp_path) == (["a"] if how == "cancelled too late" else [])
    assert all(len((tmp_path / name).read_bytes()) == SMALL for name in files(tmp_path))


def test_a_large_write_that_is_cancelled_at_its_beginning_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(backend: LocalBackend) -> None:
        await cancelled(backend.upload("a"), *stopped(monkeypatch, beside, "create_locked"))

    run(tmp_path, use)
    assert (tmp_path / ".sovstore/tmp").is_dir()
    assert files(tmp_path) == []


def test_what_stands_in_the_way_of_a_small_write(tmp_path: Path) -> None:
    """It is found at the commit."""

    async def use(backend: LocalBackend) -> None:
        (tmp_path / "a").write_text("object")
        upload = await backend.upload("a/b/c", size=SMALL)
        await upload.write(bytes(SMALL))
        with pytest.raises(NotFolderError, match="a parent of it is an object"):
            await upload.commit()
        await upload.abort()

    run(tmp_path, use)
    assert files(tmp_path) == ["a"]


@pytest.mark.parametrize("size", [SMALL, None])
def test_a_name_that_the_file_system_does_not_take(tmp_path: Path, size: int | None) -> None:
    async def use(backend: LocalBackend) -> None:
        upload = await backend.upload("a" * 300, size=size)
        await upload.write(bytes(SMALL))
        with pytest.raises(StoreError, match="name too long"):
            await upload.commit()
        await upload.abort()

    run(tmp_path, use)
    assert files(tmp_path) == []

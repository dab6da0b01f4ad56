"""What every driver of hosts must pass."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from sovstore.backends.base import Backend, Stat, Upload
from sovstore.errors import (
    IsFolderError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from sovstore.testing.suite import Suite

T = TypeVar("T")
Use = Callable[[Backend], Awaitable[T]]


async def put(backend: Backend, name: str, data: bytes, **conditions: Any) -> None:
    """Write an object in two pieces."""
    upload = await backend.upload(name, **conditions)
    try:
        await upload.write(data[: len(data) // 2])
        await upload.write(memoryview(data)[len(data) // 2 :])
        await upload.commit()
    except BaseException:
        await upload.abort()
        raise


async def _committed(upload: Upload | None) -> None:
    assert upload is not None
    try:
        await upload.commit()
    except BaseException:
        await upload.abort()
        raise


async def everything(backend: Backend, name: str) -> bytes:
    """Return an object's bytes."""
    return bytes(await backend.read(name, 0, (await backend.stat(name)).size))


async def collect(listing: AsyncIterator[Stat]) -> dict[str, Stat]:
    """Return a listing by name."""
    return {entry.name: entry async for entry in listing}


@functools.lru_cache(maxsize=4)
def _large(seed: int = 0) -> bytes:
    """Return bytes that a driver has to send in several parts; no two places of them look alike."""
    return random.Random(seed).randbytes(20 * 2**20 + 12345)  # noqa: S311  # nosec B311  # must be the same each time


def _contents(operation: str) -> list[bytes]:
    """Return what several writers write, by one request each or in parts."""
    return [bytes([n]) * 10 for n in range(8)] if operation == "put" else [_large(n) for n in range(3)]


class BackendTests(Suite):
    """Subclass it and give one fixture: `open_backend`, a function that opens one root, empty at first."""

    @pytest.fixture
    def open_backend(self) -> Callable[[], Backend]:
        """A function that returns a backend of the running loop; each call the same root."""
        raise NotImplementedError

    @pytest.fixture
    def run(self, open_backend: Callable[[], Backend]) -> Callable[[Use[T]], T]:
        """A function that gives a coroutine a backend and runs it in a loop of its own."""

        def runner(use: Use[T]) -> T:
            async def body() -> T:
                backend = open_backend()
                try:
                    return await use(backend)
                finally:
                    await backend.close()

            return asyncio.run(body())

        return runner

    @pytest.mark.parametrize("size", [0, 1, 2, 16384, 2**20 + 1])
    def test_round_trip(self, run: Callable[..., Any], size: int) -> None:
        data = bytes(i * 7 % 256 for i in range(size))

        async def use(backend: Backend) -> None:
            await put(backend, "a", data)
            assert await backend.read("a", 0, size + 10) == data
            assert (await backend.stat("a")).size == size

        run(use)

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 3), (0, 10), (9, 10), (9, 99), (10, 20), (50, 60), (3, 3)])
    def test_ranges(self, run: Callable[..., Any], start: int, end: int) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"0123456789")
            assert await backend.read("a", start, end) == b"0123456789"[start:end]

        run(use)

    def test_stat(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "x/a", b"12345")
            found = await backend.stat("x/a")
            assert (found.name, found.size, found.folder) == ("x/a", 5, False)
            assert found.etag
            assert found.modified is None or abs(found.modified - datetime.now(UTC)) < timedelta(minutes=10)
            assert (await backend.stat("x")).folder

        run(use)

    def test_first_bytes(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "x/a", b"0123456789")
            await put(backend, "empty", b"")
            for size in (1, 10, 50):
                found, data = await backend.read_first("x/a", size)
                assert data == b"0123456789"[:size]
                assert found == await backend.stat("x/a")
            found, data = await backend.read_first("empty", 5)
            assert (found, data) == (await backend.stat("empty"), b"")
            for name in ("no", "x/a/below"):
                with pytest.raises(ObjectNotFoundError):
                    await backend.read_first(name, 1)
            # A folder has none: it is told as one, or refused.
            with suppress(ObjectNotFoundError, IsFolderError):
                found, data = await backend.read_first("x", 1)
                assert (found.folder, data) == (True, b"")

        run(use)

    def test_the_etag_follows_the_object(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"one")
            first = (await backend.stat("a")).etag
            assert (await backend.stat("a")).etag == first
            await put(backend, "a", b"two")
            assert (await backend.stat("a")).etag != first

        run(use)

    def test_what_is_not_there(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "file", b"1")
            for name in ("no", "no/such", "file/below"):
                with pytest.raises(ObjectNotFoundError):
                    await backend.stat(name)
                with pytest.raises(ObjectNotFoundError):
                    await backend.read(name, 0, 1)
                assert await collect(backend.list(name)) == {}
                await backend.delete([name])
            with pytest.raises(ObjectNotFoundError):
                await backend.copy("no", "target", head=b"")

        run(use)

    def test_overwriting_replaces_at_once(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"old" * 10)
            upload = await backend.upload("a")
            await upload.write(b"new")
            assert await everything(backend, "a") == b"old" * 10
            await upload.commit()
            assert await everything(backend, "a") == b"new"

        run(use)

    def test_an_aborted_write_leaves_nothing(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            upload = await backend.upload("new")
            await upload.write(b"x" * 100)
            await upload.abort()
            await upload.abort()
            with pytest.raises(ObjectNotFoundError):
                await backend.stat("new")
            found = await collect(backend.list("", recursive=True))
            assert not [entry for entry in found.values() if not entry.folder]

        run(use)

    def test_an_unfinished_write_is_not_visible(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            upload = await backend.upload("a/b")
            await upload.write(b"x" * 100)
            visible = [
                name for name in await collect(backend.list("", recursive=True)) if not name.startswith(".sovstore")
            ]
            assert visible == []
            await upload.abort()

        run(use)

    def test_create(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"first", create=True)
            with pytest.raises(ObjectExistsError):
                await put(backend, "a", b"second", create=True)
            assert await everything(backend, "a") == b"first"

        run(use)

    def test_replace(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"first")
            etag = (await backend.stat("a")).etag
            await put(backend, "a", b"second", if_match=etag)
            with pytest.raises(ObjectChangedError):
                await put(backend, "a", b"third", if_match=etag)
            assert await everything(backend, "a") == b"second"

        run(use)

    def test_replace_needs_the_object(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            with pytest.raises((ObjectNotFoundError, ObjectChangedError)):
                await put(backend, "a", b"x", if_match="0-0-0")

        run(use)

    @pytest.mark.parametrize("operation", ["put", "complete"])
    def test_two_writers_race_to_create(self, run: Callable[..., Any], operation: str) -> None:
        contents = _contents(operation)

        async def use(backend: Backend) -> None:
            if f"{operation}:create" not in backend.conditions:
                pytest.skip(f"the host is not known to decide a race of {operation}:create")
            results = await asyncio.gather(
                *(put(backend, "a", data, create=True) for data in contents), return_exceptions=True
            )
            assert results.count(None) == 1
            assert all(r is None or isinstance(r, ObjectExistsError) for r in results)
            assert await everything(backend, "a") == contents[results.index(None)]

        run(use)

    @pytest.mark.parametrize("operation", ["put", "complete"])
    def test_two_writers_race_to_replace(self, run: Callable[..., Any], operation: str) -> None:
        contents = _contents(operation)

        async def use(backend: Backend) -> None:
            if f"{operation}:replace" not in backend.conditions:
                pytest.skip(f"the host is not known to decide a race of {operation}:replace")
            await put(backend, "a", b"old")
            etag = (await backend.stat("a")).etag
            results = await asyncio.gather(
                *(put(backend, "a", data, if_match=etag) for data in contents), return_exceptions=True
            )
            assert results.count(None) == 1
            assert all(r is None or isinstance(r, ObjectChangedError) for r in results)
            assert await everything(backend, "a") == contents[results.index(None)]

        run(use)

    def test_list_one_level(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            for name in ("a", "b/c", "b/d/e", "bb"):
                await put(backend, name, name.encode())
            root = await collect(backend.list(""))
            shown = {n: e.folder for n, e in root.items() if n != ".sovstore"}
            assert shown == {"a": False, "b": True, "bb": False}
            assert {n: e.folder for n, e in (await collect(backend.list("b"))).items()} == {
                "b/c": False,
                "b/d": True,
            }
            assert (await collect(backend.list("b")))["b/c"].size == 3

        run(use)

    def test_list_below(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            for name in ("a", "b/c", "b/d/e", "bb"):
                await put(backend, name, name.encode())
            found = await collect(backend.list("", recursive=True))
            objects = {n: e.size for n, e in found.items() if not e.folder and not n.startswith(".sovstore/")}
            assert objects == {"a": 1, "b/c": 3, "b/d/e": 5, "bb": 2}
            below = {n for n, e in (await collect(backend.list("b", recursive=True))).items() if not e.folder}
            assert below == {"b/c", "b/d/e"}

        run(use)

    def test_delete(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            for name in ("a", "b/c", "b/d"):
                await put(backend, name, b"x")
            await backend.delete(["a", "b/c", "never-there"])
            found = await collect(backend.list("", recursive=True))
            objects = [n for n, e in found.items() if not e.folder and not n.startswith(".sovstore/")]
            assert objects == ["b/d"]

        run(use)

    def test_real_folders(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await backend.make_folder("x/y")
            if not backend.real_folders:
                assert await collect(backend.list("", recursive=True)) == {}
                return
            assert (await backend.stat("x/y")).folder
            await put(backend, "x/f", b"1")
            with pytest.raises(StoreError):
                await backend.delete(["x/"])
            with pytest.raises(IsFolderError):
                await put(backend, "x/y", b"1")
            with pytest.raises(StoreError):
                await put(backend, "x/f/below", b"1")
            await backend.delete(["x/y/", "x/f"])
            await backend.delete(["x/"])
            assert not [n for n in await collect(backend.list("")) if n != ".sovstore"]

        run(use)

    @pytest.mark.parametrize("size", [128, 129, 5000, 3 * 2**20])
    def test_copy_replaces_the_head(self, run: Callable[..., Any], size: int) -> None:
        data, head = bytes(i * 11 % 256 for i in range(size)), b"H" * 128

        async def use(backend: Backend) -> None:
            await put(backend, "a", data)
            etag = (await backend.stat("a")).etag
            await backend.copy("a", "d/b", head=head, etag=etag)
            assert await everything(backend, "d/b") == head + data[128:]
            assert await everything(backend, "a") == data
            await backend.copy("a", "a", head=head, etag=etag)
            assert await everything(backend, "a") == head + data[128:]

        run(use)

    @pytest.mark.parametrize("known", [True, False])
    def test_a_large_object(self, run: Callable[..., Any], *, known: bool) -> None:
        data = _large()

        async def use(backend: Backend) -> None:
            await put(backend, "a", data, **({"size": len(data)} if known else {}))
            assert (await backend.stat("a")).size == len(data)
            # One byte at a time round the borders of the parts that a driver may have made, and then all of it.
            for border in (5 * 2**20, 8 * 2**20, 16 * 2**20):
                assert await backend.read("a", border - 1, border + 1) == data[border - 1 : border + 1]
            assert await everything(backend, "a") == data

        run(use)

    def test_a_large_object_is_not_visible_before_its_end(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"old")
            upload = await backend.upload("a")
            await upload.write(_large())
            assert await everything(backend, "a") == b"old"
            await upload.abort()
            assert await everything(backend, "a") == b"old"

        run(use)

    def test_conditions_on_a_large_object(self, run: Callable[..., Any]) -> None:
        data = _large()

        async def use(backend: Backend) -> None:
            await put(backend, "a", data, create=True)
            with pytest.raises(ObjectExistsError):
                await put(backend, "a", data[::-1], create=True)
            etag = (await backend.stat("a")).etag
            await put(backend, "a", data[::-1], if_match=etag)
            with pytest.raises(ObjectChangedError):
                await put(backend, "a", data, if_match=etag)
            assert await everything(backend, "a") == data[::-1]

        run(use)

    def test_copy_of_a_large_object_replaces_the_head(self, run: Callable[..., Any]) -> None:
        data, head = _large(), b"H" * 128

        async def use(backend: Backend) -> None:
            await put(backend, "a", data)
            etag = (await backend.stat("a")).etag
            await backend.copy("a", "d/b", head=head, etag=etag)
            assert await everything(backend, "d/b") == head + data[128:]
            assert await everything(backend, "a") == data
            # In place, of an object that was itself written in parts or by an earlier copy.
            for again in (b"1" * 128, b"2" * 128):
                await backend.copy("d/b", "d/b", head=again)
                assert await everything(backend, "d/b") == again + data[128:]
            with pytest.raises(ObjectExistsError):
                await backend.copy("a", "d/b", head=head, create=True)

        run(use)

    def test_a_copy_races_a_writer(self, run: Callable[..., Any]) -> None:
        """Whatever the host can do: one of the two is there afterwards, whole, and never a mixture."""
        data, head = _large(), b"H" * 128

        async def use(backend: Backend) -> None:
            for delay in (0, 0.005, 0.02):
                await put(backend, "a", data)

                async def write(delay: float) -> None:
                    await asyncio.sleep(delay)
                    await put(backend, "a", _large(7))

                copied = backend.copy("a", "a", head=head)
                results = await asyncio.gather(write(delay), copied, return_exceptions=True)
                # Some hosts let either of them know that it lost, and never both.
                assert all(r is None or isinstance(r, StoreError) for r in results)
                assert None in results
                # The last one: the writer may also have been done before the copy began.
                assert await everything(backend, "a") in (head + data[128:], _large(7), head + _large(7)[128:])

        run(use)

    def test_reading_what_changed_is_refused(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            if "read:match" not in backend.conditions:
                pytest.skip("the filesystem cannot tell which version it reads")
            await put(backend, "a", b"one")
            etag = (await backend.stat("a")).etag
            assert await backend.read("a", 0, 3, etag=etag) == b"one"
            await put(backend, "a", b"two")
            with pytest.raises(ObjectChangedError):
                await backend.read("a", 0, 3, etag=etag)

        run(use)

    def test_odd_names(self, run: Callable[..., Any]) -> None:
        names = ["a b", "é/ü", "e\u0301", "a+b", "a%20b", "%2F", "a&b=c", "q?x#y", "~.-_", "'<\">", "日本", ".x"]

        async def use(backend: Backend) -> None:
            for name in names:
                await put(backend, f"odd/{name}", name.encode())
            found = await collect(backend.list("odd", recursive=True))
            assert sorted(n for n, e in found.items() if not e.folder) == sorted(f"odd/{name}" for name in names)
            for name in names:
                assert await everything(backend, f"odd/{name}") == name.encode()
            await backend.copy("odd/é/ü", "odd/%2B", head=b"")
            assert await everything(backend, "odd/%2B") == "é/ü".encode()
            await backend.delete([f"odd/{name}" for name in [*names, "%2B"]])
            assert not [n for n, e in (await collect(backend.list("odd", recursive=True))).items() if not e.folder]

        run(use)

    def test_copy_of_what_changed_is_refused(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            await put(backend, "a", b"x" * 200)
            etag = (await backend.stat("a")).etag
            await put(backend, "a", b"y" * 200)
            with pytest.raises(ObjectChangedError):
                await backend.copy("a", "b", head=b"", etag=etag)
            with pytest.raises(ObjectNotFoundError):
                await backend.stat("b")

        run(use)

    def test_a_copy_of_another_root(self, run: Callable[..., Any], open_backend: Callable[[], Backend]) -> None:
        """Where the host copies, it is a write like any other; where it does not, nothing is left of the question."""
        data, told = _large()[: 9 * 2**20], list[int]()

        async def use(backend: Backend) -> None:
            origin = open_backend()
            await put(origin, "a", data)
            etag = str((await origin.stat("a")).etag)
            version: dict[str, Any] = {"size": len(data), "etag": etag, "told": told.append}
            upload = await backend.copy_from(origin, "a", "d/b", **version)
            if upload is not None:
                with pytest.raises(ObjectNotFoundError):
                    await backend.stat("d/b")
                await upload.commit()
                assert await everything(backend, "d/b") == data
                await asyncio.sleep(0)
                assert sum(told) == len(data)
                with pytest.raises(ObjectExistsError):
                    await _committed(await backend.copy_from(origin, "a", "d/b", create=True, **version))
                await put(origin, "a", b"other")
                with pytest.raises(ObjectChangedError):
                    await _committed(await backend.copy_from(origin, "a", "d/c", **version))
            found = {n for n, e in (await collect(backend.list("", recursive=True))).items() if not e.folder}
            assert found - {".sovstore/lock"} == ({"a"} if upload is None else {"a", "d/b"})
            assert await backend.sweep(timedelta(0), dry_run=True) == 0
            await origin.close()

        run(use)

    def test_many_at_once(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            names = [f"d{n % 3}/{n}" for n in range(40)]
            await asyncio.gather(*(put(backend, name, name.encode() * 50) for name in names))
            found = await asyncio.gather(*(everything(backend, name) for name in names))
            assert found == [name.encode() * 50 for name in names]

        run(use)

    def test_sweep_leaves_live_writes_alone(self, run: Callable[..., Any]) -> None:
        async def use(backend: Backend) -> None:
            upload = await backend.upload("a")
            await upload.write(b"alive")
            await backend.sweep()
            await upload.commit()
            assert await everything(backend, "a") == b"alive"

        run(use)

    def test_more_than_one_loop(self, run: Callable[..., Any]) -> None:
        async def write(backend: Backend) -> None:
            await put(backend, "a", b"1")

        async def read(backend: Backend) -> bytes:
            return await everything(backend, "a")

        run(write)
        assert run(read) == b"1"

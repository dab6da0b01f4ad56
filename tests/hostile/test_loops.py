"""Event loops that come and go over one store: nothing of them is kept, and none is in the way of another."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sovstore import store as store_module
from sovstore.filesystem import SovFileSystem
from tests.history import content
from tests.hosts import Host, cheap_key_files, temporaries
from tests.stores import make_store, on_azure, on_s3, open_fs
from tests.stress import amount, record

pytestmark = pytest.mark.stress

DATA = content((0, 0, 90_000))
#: Loops one after the other, in every run and under stress.
LOOPS = {"local": (100, 5000), "memory": (100, 5000), "s3": (30, 2000), "azurite": (30, 2000)}
SERVERS = {"s3": ("s3_server", on_s3), "azurite": ("azurite_server", on_azure)}
EVERYWHERE = [pytest.param(name, marks=[pytest.mark.server(name)] if name in SERVERS else []) for name in LOOPS]


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], SovFileSystem]:
    """Make a store at a host, and return its filesystem."""

    def make(host: str) -> SovFileSystem:
        cheap_key_files(monkeypatch)
        if host not in SERVERS:
            return open_fs(make_store(tmp_path, provider=host))
        fixture, settings_on = SERVERS[host]
        settings = settings_on(request.getfixturevalue(fixture))
        for name, value in settings.pop("environment").items():
            monkeypatch.setenv(name, value)
        return open_fs(make_store(tmp_path, **settings))

    return make


@pytest.fixture
def asynchronous(place: Callable[[str], SovFileSystem]) -> Callable[[str], SovFileSystem]:
    return lambda host: open_fs(place(host).store.config.source, asynchronous=True)


class Left:
    """What loops left behind: themselves, descriptors and threads."""

    def __init__(self) -> None:
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self.before = self._now()

    def _now(self) -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def run(self, work: Any) -> Any:
        async def noted() -> Any:
            self._loops.add(asyncio.get_running_loop())
            result = await work
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return result

        return asyncio.run(noted())

    def check(self) -> None:
        descriptors, threads = self._now()
        # The last one is forgotten when the next begins.
        assert len(self._loops) <= 1
        assert descriptors <= self.before[0] + 2
        assert threads <= self.before[1] + 4


@pytest.mark.parametrize("host", EVERYWHERE)
def test_one_loop_after_another(
    host: str,
    asynchronous: Callable[[str], SovFileSystem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning of a resource, task or loop that was left open fails the test: warnings are errors."""
    # Every transfer waits for its turn, and a lock that was waited for knows its loop.
    monkeypatch.setattr(store_module, "_LARGE", 0)
    fs, target = asynchronous(host), tmp_path / "target"

    async def use(turn: int) -> None:
        reads = (fs._cat_file("object", start, start + 100) for start in (0, 40_000)[: 1 + turn % 2])
        assert (await asyncio.gather(*reads))[0] == DATA[:100]
        if turn % 20 == 0:
            await fs._pipe_file("object", DATA)
            await asyncio.gather(*(fs._get_file("object", str(target) + str(n)) for n in range(4)))
            assert Path(f"{target}3").read_bytes() == DATA

    asyncio.run(fs._pipe_file("object", DATA))
    asyncio.run(use(0))
    left, loops = Left(), amount(*LOOPS[host])
    for turn in range(loops):
        left.run(use(turn))
    left.check()
    assert [message for message in caplog.messages if "loop" in message.lower() or "task" in message.lower()] == []
    assert [one for one in caplog.records if one.name == "asyncio" and one.levelno >= logging.WARNING] == []
    assert temporaries(tmp_path) == []
    record(f"loops: {host}", loops=loops)


@pytest.mark.parametrize("host", EVERYWHERE)
def test_a_loop_that_is_closed_under_a_write(host: str, place: Callable[[str], SovFileSystem]) -> None:
    """Nobody says that the write is complete, and it never shows; the next loop works."""
    sync = place(host)
    sync.pipe_file("object", DATA)
    fs, left = open_fs(sync.store.config.source, asynchronous=True), Left()

    async def begin() -> Any:
        writer = await fs.open_async("object", "wb")
        await writer.write(bytes(9 * 2**20))
        return writer

    for _ in range(3):
        loop = asyncio.new_event_loop()
        writer = loop.run_until_complete(begin())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        del writer
        assert left.run(fs._cat_file("object")) == DATA
        assert sync.find("") == ["object"]
    left.run(fs._pipe_file("object", b"new"))
    assert sync.cat_file("object") == b"new"
    left.check()
    if host == "local":
        assert Host(sync).unfinished() == []


@pytest.mark.parametrize("host", EVERYWHERE)
def test_a_loop_is_closed_while_another_works(host: str, asynchronous: Callable[[str], SovFileSystem]) -> None:
    """Two threads, a loop in each, one instance: also when one of them closes the store and with it the keys."""
    fs, stop, left = asynchronous(host), threading.Event(), Left()
    errors: list[BaseException] = []
    worked = [0]

    async def work() -> None:
        while not stop.is_set():
            await fs._pipe_file("long", DATA)
            async with await fs.open_async("long") as file:
                assert await file.read(100) + await file.read() == DATA
            worked[0] += 1

    def thread() -> None:
        try:
            left.run(work())
        except BaseException as exc:  # noqa: BLE001  # raised below
            errors.append(exc)

    async def short(turn: int) -> None:
        await fs._pipe_file("short", DATA[turn:])
        assert await fs._cat_file("short") == DATA[turn:]
        if turn % 2:
            await fs.close()

    other = threading.Thread(target=thread)
    other.start()
    try:
        for turn in range(amount(20, 500)):
            left.run(short(turn))
    finally:
        stop.set()
        other.join()
    assert not errors, errors
    assert worked[0]
    assert left.run(fs._find("")) == ["long", "short"]
    left.check()

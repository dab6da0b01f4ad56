"""Attacks on the lock of a keyset at a host without conditions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from sovstore import keyset_lock
from sovstore.backends.memory import MemoryBackend
from sovstore.errors import StoreUnavailableError


def test_a_lock_that_took_too_long_to_take_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others count it as abandoned from when it was written, not from when its listing came back."""
    monkeypatch.setattr(keyset_lock, "HOLD_S", 0.2)
    monkeypatch.setattr(keyset_lock, "WAIT_S", 0.3)

    class Slow(MemoryBackend):
        async def list(self, folder: str, *, recursive: bool = False) -> Any:
            await asyncio.sleep(0.5)
            async for stat in super().list(folder, recursive=recursive):
                yield stat

    async def hold() -> None:
        async with keyset_lock.held(Slow("/slow-lock"), "store"):
            pass

    with pytest.raises(StoreUnavailableError):
        asyncio.run(hold())


def test_gc_leaves_the_lock_of_a_client_that_may_be_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> list[int]:
        backend = MemoryBackend("/swept-lock")
        swept = []
        async with keyset_lock.held(backend, "store"):
            swept.append(await keyset_lock.sweep(backend))
            monkeypatch.setattr(keyset_lock, "SWEPT", timedelta(0))
            swept += [await keyset_lock.sweep(backend, dry_run=dry_run) for dry_run in (True, False, False)]
        return swept

    assert asyncio.run(work()) == [0, 1, 1, 0]

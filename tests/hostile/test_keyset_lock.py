"""Attacks on the lock of a keyset at a host without conditions."""

from __future__ import annotations

import asyncio
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

"""A large object through the calls that take or return it whole: 1 GiB in the long form.

Tests of memory have the calls that stream.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from sovstore.filesystem import SovFileSystem
from tests.hosts import PROVIDERS, cheap_key_files
from tests.stores import make_store, open_fs
from tests.stress import amount

MIB = 2**20
SIZE = amount(128, 1024) * MIB


@pytest.mark.stress
@pytest.mark.parametrize("provider", PROVIDERS)
def test_whole_and_in_ranges(tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    fs = open_fs(make_store(tmp_path, provider=provider))
    data = hashlib.shake_128(b"one GiB").digest(MIB) * (SIZE // MIB)
    fs.pipe_file("object", data)
    assert fs.size("object") == fs.du("") == SIZE
    assert fs.cat_file("object") == data
    starts = [0, 1, MIB - 1, SIZE // 2 - 7, SIZE - 10]
    ends = [10, 2 * MIB, MIB + 1, SIZE // 2 + 70_000, SIZE]
    assert fs.cat_ranges(["object"] * 5, starts, ends) == [data[a:b] for a, b in zip(starts, ends, strict=True)]
    assert fs.cat_file("object", start=-5) == data[-5:]
    with fs.open("object") as file:
        file.seek(SIZE - 3)
        assert file.read() == data[-3:]
        file.seek(123_456_789)
        assert file.read(100) == data[123_456_789:123_456_889]
    with fs.open("exclusive", "xb") as file:
        file.write(data)
    assert fs.size("exclusive") == SIZE
    fs.rm("exclusive")
    if provider == "local":
        asyncio.run(_async_files(open_fs(tmp_path / "sovstore.toml", asynchronous=True), data))


async def _async_files(fs: SovFileSystem, data: bytes) -> None:
    async with await fs.open_async("object", "wb") as file:
        for start in range(0, SIZE, 64 * MIB):
            await file.write(memoryview(data)[start : start + 64 * MIB])
    found = hashlib.sha256()
    async with await fs.open_async("object") as file:
        while piece := await file.read(16 * MIB):
            found.update(piece)
    assert found.digest() == hashlib.sha256(data).digest()
    await fs.close()

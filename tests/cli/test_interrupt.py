"""A write that is cancelled while it is being opened: nothing is left, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from uuid import uuid4

import pytest

from sovstore.backends.base import Place
from sovstore.backends.providers import catalogue
from sovstore.backends.registry import open_backend


async def _cancel_often(backend):
    """Cancel uploads at every moment of their making; return how large the object is that was there before."""
    before = await backend.upload("a")
    await before.write(b"before")
    await before.commit()
    for turn in range(40):
        task = asyncio.ensure_future(backend.upload("a"))
        await asyncio.sleep(0 if turn % 2 else 0.0002)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).abort()
        # A file that nobody holds is finalised now.
        await asyncio.sleep(0.01)
        gc.collect()
    size = (await backend.stat("a")).size
    left = [stat async for stat in backend.list(".sovstore/tmp")]
    await backend.close()
    return size, left


@pytest.mark.parametrize(("provider", "protocol"), [("local", None), ("fsspec", "file")])
def test_on_this_machine(tmp_path, provider, protocol):
    async def work():
        return await _cancel_often(open_backend(Place(catalogue()[provider], str(tmp_path), protocol=protocol)))

    assert asyncio.run(work()) == (6, [])


def test_on_s3(s3_server, monkeypatch):
    options = s3_server.storage_options
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    root = f"{s3_server.create_bucket(f'b{uuid4().hex[:12]}')}/store"

    async def work():
        return await _cancel_often(open_backend(Place(catalogue()["s3"], root, endpoint=s3_server.endpoint_url)))

    assert asyncio.run(work()) == (6, [])

"""One write through obstore: a `put` for what fits into one part, else a stream of parts, or the SDK driver's."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from sovstore.backends.base import Upload
from sovstore.backends.parts import PART, Body, PartSizes, PartUpload
from sovstore.errors import SovstoreError, StoreError

if TYPE_CHECKING:
    from typing import Any

    from sovstore.backends.obstore import ObstoreBackend


class _Condition(TypedDict):
    create: bool
    if_match: str | None


class _Aborted(Exception):  # noqa: N818  # a signal
    """Makes object_store abort an upload: it does when the iterator fails that it takes the parts from."""


class Feed:
    """The parts of an object, as object_store asks for them. Keeps none of them."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[memoryview | None] = asyncio.Queue()
        self._aborted = False

    def put(self, part: memoryview | None) -> None:
        """Add a part; None is the end."""
        self._items.put_nowait(part)

    def abort(self) -> None:
        """Fail at the next part."""
        self._aborted = True
        self.put(None)

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> memoryview:
        item = await self._items.get()
        if self._aborted:
            raise _Aborted
        if item is None:
            raise StopAsyncIteration
        return item


class Stream(PartUpload):
    """A write without a condition, which object_store takes in parts, as many at a time as there are slots."""

    def __init__(self, host: ObstoreBackend, name: str, sizes: PartSizes) -> None:
        super().__init__(host, name, sizes, host.slots)
        self._host = host

    async def _put(self, body: Body, size: int) -> None:
        del size
        assert isinstance(body, bytearray)  # noqa: S101  # nosec B101  # no part is larger than `obstore.LARGEST_PART`
        await self._host.put(self.name, body, create=False, if_match=None)

    async def _begin(self) -> None:
        await self._host.sweep_if_due()
        self._feed = Feed()
        self._sending = asyncio.ensure_future(self._stream())

    async def _stream(self) -> bool:
        """Return whether the object is there."""
        try:
            await self._host.stream(self.name, self._feed, self._sizes.part)
        except _Aborted:
            return False
        return True

    async def _send(self, number: int, body: Body, size: int) -> None:
        del number
        assert isinstance(body, bytearray)  # noqa: S101  # nosec B101  # no part is larger than `obstore.LARGEST_PART`
        loop = asyncio.get_running_loop()
        sent, view = loop.create_future(), memoryview(body)
        # object_store does not copy a whole part, and lets go of it when the host has it: that frees the slot, so that
        # all uploads of the backend share one bound. Were it to copy, slots were only freed too early.
        gone = weakref.finalize(view, loop.call_soon_threadsafe, _settle, sent)
        gone.atexit = False
        self._feed.put(view)
        del view
        if size == self._sizes.part:
            await asyncio.wait((sent, self._sending), return_when=asyncio.FIRST_COMPLETED)
        # Otherwise it is the last one, which is sent at the end.
        if self._sending.done():
            await self._sending

    def _recycle(self, body: Body) -> None:
        """Never fill a buffer twice: object_store reads it without a copy, and it alone knows for how long."""

    async def _finish(self, receipts: Sequence[Any]) -> None:
        del receipts
        self._feed.put(None)
        if not await asyncio.shield(self._sending):
            raise StoreError(f"{self.name}: the write was stopped, because the process ends", path=self.name)

    async def _discard(self) -> None:
        self._feed.abort()
        # Also after a failed commit: then it has ended already.
        with suppress(SovstoreError):
            await asyncio.shield(self._sending)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Handover(Upload):
    """A write that goes to the SDK driver when it is larger than one part.

    Parameters
    ----------
    host : ObstoreBackend
        Whose connections and SDK driver are used.
    name, create, if_match, size
        As `Backend.upload`.
    """

    def __init__(
        self, host: ObstoreBackend, name: str, *, create: bool, if_match: str | None, size: int | None
    ) -> None:
        self._host, self._name, self._size = host, name, size
        self._condition: _Condition = {"create": create, "if_match": if_match}
        self._body = bytearray()
        self._upload: Upload | None = None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        if self._upload is None and len(self._body) + len(data) > PART:
            await self._host.sweep_if_due()
            self._upload = await self._host.sdk().upload(self._name, **self._condition, size=self._size)
            await self._upload.write(self._body)
            self._body = bytearray()
        if self._upload is None:
            self._body += data
        else:
            await self._upload.write(data)

    async def commit(self) -> None:
        """Make the object visible."""
        if self._upload is None:
            await self._host.put(self._name, self._body, **self._condition)
        else:
            await self._upload.commit()

    async def abort(self) -> None:
        """Forget the write."""
        self._body = bytearray()
        if self._upload is not None:
            await self._upload.abort()

    def forget(self) -> None:
        """Let nothing be committed later."""
        if self._upload is not None:
            self._upload.forget()

"""Writing one sealed object over a `Backend`: sealed a block at a time, visible when it is committed."""

from __future__ import annotations

import asyncio
import atexit
import os
import weakref
from collections import deque
from collections.abc import Awaitable, Callable

from sovstore.backends.base import Upload
from sovstore.errors import StoreError, named
from sovstore.format.body import OVERHEAD, BodySealer
from sovstore.format.cobblestone import CHUNK
from sovstore.format.header import HEADER
from sovstore.secret import Secret

#: Plaintext bytes sealed in one step: 64 chunks.
BLOCK = 64 * CHUNK
#: Sealed blocks of a write that may be on their way while the next one is sealed.
AHEAD = 3

#: Writes that neither committed nor aborted. At the end of the process some filesystems would commit them in a
#: finaliser, and wait for ever for a loop that has stopped.
_unfinished: weakref.WeakSet[ObjectWriter] = weakref.WeakSet()


def _forget_unfinished() -> None:
    for writer in list(_unfinished):
        writer.forget()


atexit.register(_forget_unfinished)


class ObjectWriter:
    """One object being written: seal a block, send it, and at the end commit or abort.

    `seal` and `send` are apart so that one block is sealed in one thread while others are on their way: at most `AHEAD`
    of them, since that many buffers and one more are used in turn.

    Parameters
    ----------
    upload : Upload
        Where the bytes go.
    path, name : str
        Of the object, and at the host.
    header : bytes
        The 128 bytes in front.
    dek : Secret
        The DEK that `header` wraps; no other body may use it.
    """

    def __init__(self, upload: Upload, path: str, name: str, header: bytes, dek: Secret) -> None:
        self.path = path
        self._name = name
        self._upload = upload
        self._sealer = BodySealer(dek)
        self._head = header
        self._buffers = deque(bytearray() for _ in range(AHEAD + 1))
        self._sends, self._writes = asyncio.Lock(), asyncio.Lock()
        self._open = True
        self._finished = False
        self._pid = os.getpid()
        self._first = bytearray()
        #: Awaited before the object is made visible; raises when nobody could read it any more.
        self.may_end: Callable[[], Awaitable[object]] | None = None
        #: Awaited with the 56 bytes in front of the body when the object is visible.
        self.ended: Callable[[bytes], Awaitable[object]] | None = None
        _unfinished.add(self)

    def seal(self, plain: bytes | bytearray | memoryview) -> memoryview:
        """Return the sealed bytes of at most one `BLOCK` of plaintext; valid for `AHEAD` more calls.

        Raises
        ------
        StoreError
            In a child that was forked after the write was opened: both would use the same key and nonces.
        """
        self.check_process()
        self._buffers.rotate()
        buffer = self._buffers[0]
        need = len(self._head) + BodySealer.room(len(plain))
        if len(buffer) < need:
            buffer = self._buffers[0] = bytearray(need)
        head = len(self._head)
        buffer[:head] = self._head
        self._head = b""
        view = memoryview(buffer)
        return view[: head + self._sealer.update_into(plain, view[head:])]

    def check_process(self) -> None:
        """Refuse to go on in a child that was forked after the write was opened.

        Raises
        ------
        StoreError
            There, since both would use the same key and nonces.
        """
        if self._pid != os.getpid():
            hint = "open it in the process that writes it"
            raise StoreError(f"{self.path}: was opened for writing in another process", path=self.path, hint=hint)

    @property
    def sends_now(self) -> bool:
        """Whether `send_now` reaches the host."""
        return self._upload.blocking

    def send_now(self, sealed: memoryview) -> None:
        """Hand sealed bytes to the host, from any one thread and without the loop, where `sends_now`.

        Raises
        ------
        StoreError
            When the host refuses; the caller MUST abort then.
        """
        self._sending(sealed)
        with named(self.path, self._name):
            self._upload.write_now(sealed)

    async def send(self, sealed: memoryview | bytes) -> None:
        """Hand sealed bytes to the host; several calls that are made one after the other go in that order.

        Raises
        ------
        StoreError
            When the host refuses; the write can then only be aborted.
        """
        try:
            async with self._sends:
                self._sending(sealed)
                if sealed:
                    with named(self.path, self._name):
                        await self._upload.write(sealed)
        except BaseException:
            # A gap may be in what the host has now, also when only the turn was waited for; no later commit must make
            # it visible.
            await self.abort()
            raise

    def _sending(self, sealed: memoryview | bytes) -> None:
        if not self._open:
            raise StoreError(f"{self.path}: the write was given up", path=self.path)
        if len(self._first) < OVERHEAD:
            self._first += sealed[: OVERHEAD - len(self._first)]

    async def write(self, plain: bytes | bytearray | memoryview) -> None:
        """Seal and send any number of bytes; several calls at the same time take turns."""
        view = memoryview(plain).cast("B")
        async with self._writes:
            for start in range(0, len(view), BLOCK):
                await self.send(self.seal(view[start : start + BLOCK]))

    @property
    def version(self) -> bytes:
        """The 56 bytes in front of the body, once `finish` has returned: no other write has them."""
        return bytes(self._first[HEADER:])

    async def finish(self) -> None:
        """Seal the last chunk and send it; nothing more can be written, and nothing is visible yet."""
        self.check_process()
        if not self._finished:
            self._finished = True
            await self.send(self._head + self._sealer.finalize())

    async def commit(self) -> None:
        """Seal the last chunk and make the object visible.

        Raises
        ------
        StoreError
            When the host refuses, or a condition does not hold; nothing has changed then.
        """
        await self.finish()
        try:
            if self.may_end is not None:
                await self.may_end()
            with named(self.path, self._name):
                await self._upload.commit()
        except BaseException:
            await self.abort()
            raise
        self._open = False
        _unfinished.discard(self)
        if self.ended is not None:
            await self.ended(self.version)

    def forget(self) -> None:
        """Give the write up without waiting, where nothing can be awaited any more."""
        self._open = False
        self._upload.forget()

    async def abort(self) -> None:
        """Forget the write. May be called at any time, also twice."""
        if self._open:
            self._open = False
            _unfinished.discard(self)
            await self._upload.abort()

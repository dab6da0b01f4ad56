"""File objects over a store: what ``fs.open`` and ``fs.open_async`` return.

A file that is written becomes visible when it is closed, and only then. Leaving a ``with`` block by an exception, or
losing the file without closing it, gives the write up: a half object is never published as a complete one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import opcode
import os
import sys
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AbstractAsyncStreamedFile
from fsspec.spec import AbstractBufferedFile

from sovstore import local_plaintext
from sovstore.concurrency import Aside, Coming
from sovstore.errors import UnsupportedError
from sovstore.format.cobblestone import CHUNK
from sovstore.object_reader import ObjectReader
from sovstore.object_writer import AHEAD, BLOCK, ObjectWriter
from sovstore.read_ahead import ReadAhead

if TYPE_CHECKING:
    from types import FrameType

    from sovstore.filesystem import SovFileSystem

_log = logging.getLogger("sovstore")
_WITH_EXCEPT_START = opcode.opmap["WITH_EXCEPT_START"]
_marks = itertools.count(1)


def handled_exception() -> int:
    """Return a mark of the exception that this thread is handling now; 0 for none."""
    exc = sys.exc_info()[1]
    if exc is None:
        return 0
    # Not its address: a later exception may be put where this one lay, and would then be taken for it. Not a reference
    # to it either, which would keep everything alive that its traceback holds, this file among it.
    if "_sovstore_mark" not in exc.__dict__:
        exc.__dict__["_sovstore_mark"] = next(_marks)
    mark: int = exc.__dict__["_sovstore_mark"]
    return mark


def leaving_by_exception(known: int) -> bool:
    """Return whether a ``with`` block is being left by an exception other than the one marked `known`.

    Wrappers (`fsspec.open`, `io.TextIOWrapper`, pyarrow's writers) call plain ``close()`` from their ``__exit__`` and
    keep the exception to themselves; without this look at the stack, a half object would be committed.
    """
    mark = handled_exception()
    if mark in (0, known):
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_code[frame.f_lasti] == _WITH_EXCEPT_START:
            return True
        frame = frame.f_back
    return False


class SovReader(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A sealed object opened for reading: seekable, its length authentic since it was opened.

    Parameters
    ----------
    fs : SovFileSystem
        Where it is from.
    reader : ObjectReader
        The opened object.
    cache_type : str
        ``sov``, or the name of one of fsspec's caches.
    """

    cache: Any
    loc: int
    size: int
    _ahead: ReadAhead | None = None

    def __init__(self, fs: SovFileSystem, reader: ObjectReader, cache_type: str, **kwargs: Any) -> None:
        self._reader = reader
        own = cache_type == ReadAhead.name
        super().__init__(
            fs,
            reader.path,
            mode="rb",
            size=reader.plain_size,
            cache_type="none" if own else cache_type,
            **kwargs,
        )
        if own:
            self.cache = self._ahead = ReadAhead(reader, kwargs.get("block_size"), fs._submit)

    def read(self, length: int | None = -1) -> bytes:
        """Return up to `length` bytes; all that are left without it.

        Raises
        ------
        IntegrityError
            When a chunk does not authenticate.
        """
        # Some replace the cache of a file by their own.
        if self._ahead is None or self.cache is not self._ahead or self.closed:
            data: bytes = super().read(length)
            return data
        self.fs._refuse_in_loop()
        start, left = self.loc, self.size - self.loc
        end = start + (left if length is None or not 0 <= length <= left else length)
        data = self._ahead.fetch(start, end)
        self.loc = max(start, end)
        return data

    def readinto(self, b: Any) -> int:  # any writable buffer
        """Fill a buffer, and return how many bytes are in it: fewer than fit only at the end of the object.

        Raises
        ------
        IntegrityError
            When a chunk does not authenticate; nothing of it is in the buffer then.
        """
        out = memoryview(b).cast("B")
        if self._ahead is None or self.cache is not self._ahead:
            data = self.read(len(out))
            out[: len(data)] = data
            return len(data)
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        self.fs._refuse_in_loop()
        out = out[: max(0, self.size - self.loc)]
        if out:
            self._ahead.read_into(self.loc, out)
            self.loc += len(out)
        return len(out)

    def close(self) -> None:
        """Close the file."""
        if self._ahead is not None:
            self._ahead.close()
        super().close()

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs._sync(self._reader.read, start, end)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Return one line, of at most `size` bytes; fsspec's own asks for a whole block for each."""
        line: bytes = self.readuntil(b"\n", blocks=CHUNK)
        if size is not None and 0 <= size < len(line):
            self.seek(size - len(line), os.SEEK_CUR)
            return line[:size]
        return line

    @property
    def details(self) -> dict[str, Any]:
        """What ``fs.info`` says of the object that was opened."""
        info: dict[str, Any] = self.fs._describe(self.path, self._reader.stat)
        return info


class WatchedReader(SovReader):
    """A sealed object opened for reading, where the policy says something of layers that keep plaintext.

    A file may be handed to such a layer when it is open already; an archive in a store is read so.
    """

    def read(self, length: int | None = -1) -> bytes:
        """Return up to `length` bytes; all that are left without it.

        Raises
        ------
        PolicyError
            When they would be kept on this machine, and the policy refuses that.
        """
        local_plaintext.hold(self.fs.store.config)
        data: bytes = super().read(length)
        return data

    def readinto(self, b: Any) -> int:  # any writable buffer
        """Fill a buffer, as `SovReader`.

        Raises
        ------
        PolicyError
            As `read`.
        """
        local_plaintext.hold(self.fs.store.config)
        return super().readinto(b)


class SovWriter(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """An object being written: sealed a block at a time, while the block before is on its way.

    Parameters
    ----------
    fs : SovFileSystem
        Where it goes.
    writer : ObjectWriter
        The write.
    mode : str
        ``wb`` or ``xb``.
    """

    closed: bool

    def __init__(self, fs: SovFileSystem, writer: ObjectWriter, mode: str) -> None:
        super().__init__(fs, writer.path, mode=mode)
        self._writer = writer
        self._block = bytearray()
        self._pending: deque[Future[None] | Coming[None]] = deque()
        self._aside: Aside | None = None
        self._opened_under = handled_exception()
        self._pid = os.getpid()
        self._lost = False

    def write(self, data: Any) -> int:  # any buffer
        """Append bytes and return how many they are.

        Raises
        ------
        StoreError
            When the host refused this or an earlier block; the write is given up then.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        if self._lost:
            return size
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._block:
            room = BLOCK - len(self._block)
            self._block += view[:room]
            view = view[room:]
            if len(self._block) == BLOCK:
                self._push(self._block)
                self._block.clear()
        while len(view) >= BLOCK:
            self._push(view[:BLOCK])
            view = view[BLOCK:]
        self._block += view
        self.loc += size
        return size

    def _push(self, plain: bytearray | memoryview) -> None:
        try:
            if self._pid == os.getpid():
                self._settle(AHEAD - 1)
            sealed = self._writer.seal(plain)
            if not self._writer.sends_now:
                self._pending.append(self.fs._submit(self._writer.send(sealed)))
            else:
                self._aside = self._aside or Aside("sovstore-write")
                self._pending.append(self._aside.submit(Coming(partial(self._writer.send_now, sealed))))
        except BaseException:
            self.discard()
            raise

    def _settle(self, left: int = 0) -> None:
        """Wait until at most `left` blocks are on their way; raise what one failed with."""
        self.fs._refuse_in_loop()
        while len(self._pending) > left or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def flush(self, force: bool = False) -> None:
        """Do nothing: an object becomes visible when it is closed, and only then."""

    def tell(self) -> int:
        """Return how many bytes were written."""
        return int(self.loc)

    def close(self) -> None:
        """Make the object visible, unless a ``with`` block is being left by an exception."""
        if self.closed:
            return
        if leaving_by_exception(self._opened_under):
            _log.warning("%s: the write was given up, since an exception is ending it", self.path)
            self.discard()
            return
        try:
            self._writer.check_process()
            if self._block:
                self._push(self._block)
                self._block = bytearray()
            self._settle()
            self.fs._sync(self._writer.commit)
        except BaseException:
            self.discard()
            raise
        self.closed = True
        self._aside = None

    def commit(self) -> None:
        """Close the file."""
        self.close()

    def discard(self) -> None:
        """Give the write up; what was at the path before stays."""
        if self.closed:
            return
        self.closed = True
        self._block = bytearray()
        self._aside = None
        # A child that was forked holds a copy of this file, and must not give its parent's write up.
        if self._pid != os.getpid():
            self._writer.forget()
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.fs._sync(self._writer.abort)
        else:
            # Finalised by the garbage collector inside the loop, which therefore cannot be waited for.
            self.fs._submit(self._writer.abort())

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        """Close the file, or give the write up after an exception."""
        if exc_type is not None:
            self.discard()
        else:
            self.close()

    def _dealloc_warn(self, source: object) -> None:
        """Give the write up: `io.TextIOWrapper` calls this when it is lost without a close, just before."""
        self._lost = True
        self.__del__()

    def __del__(self) -> None:
        """Give the write up: nobody said that it was complete."""
        if not self.closed:
            if not sys.is_finalizing():
                _log.warning("%s: the write was given up, since its file was never closed", self.path)
                self.discard()
            self.closed = True


class AsyncReader(AbstractAsyncStreamedFile):  # type: ignore[misc]  # fsspec has no types
    """A sealed object opened by ``await fs.open_async(path)``: read in order.

    Parameters
    ----------
    fs : SovFileSystem
        Where it is from.
    reader : ObjectReader
        The opened object.
    """

    def __init__(self, fs: SovFileSystem, reader: ObjectReader) -> None:
        super().__init__(fs, reader.path, mode="rb", size=reader.plain_size, cache_type="none")
        self._reader = reader

    async def _fetch_range(self, start: int, end: int) -> bytes:
        return await self._reader.read(start, end)


class AsyncWriter(AbstractAsyncStreamedFile):  # type: ignore[misc]  # fsspec has no types
    """An object opened by ``await fs.open_async(path, "wb")``; visible after ``await close()``.

    Parameters
    ----------
    fs : SovFileSystem
        Where it goes.
    writer : ObjectWriter
        The write.
    """

    closed: bool

    def __init__(self, fs: SovFileSystem, writer: ObjectWriter) -> None:
        super().__init__(fs, writer.path, mode="wb")
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    async def write(self, data: Any) -> int:  # any buffer
        """Append bytes and return how many they are."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        await self._writer.write(data)
        size = memoryview(data).nbytes
        self.loc += size
        return size

    async def flush(self, force: bool = False) -> None:
        """Do nothing: an object becomes visible when it is closed."""

    async def close(self) -> None:
        """Make the object visible."""
        if not self.closed:
            self.closed = True
            await self._writer.commit()

    async def discard(self) -> None:
        """Give the write up."""
        self.closed = True
        await self._writer.abort()

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        """Close the file, or give the write up after an exception."""
        await (self.close() if exc_type is None else self.discard())

    def __del__(self) -> None:
        """Give the write up: nobody said that it was complete."""
        if not self.closed:
            self.closed = True
            if self._loop.is_running():
                asyncio.run_coroutine_threadsafe(self._writer.abort(), self._loop)


def check_mode(path: str, mode: str) -> None:
    """Refuse the modes that a sealed object does not have.

    Raises
    ------
    UnsupportedError
        For appending and updating in place.
    """
    if mode not in ("rb", "wb", "xb"):
        hint = "a sealed object is written whole: read it, then write it again with 'wb'"
        raise UnsupportedError(
            f"{path}: mode {mode!r} is not possible: nothing is appended or changed in place",
            path=path,
            hint=hint,
        )

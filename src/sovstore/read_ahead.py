"""What a file that is read fetches: just the chunks of a random read, and more and more ahead of a sequential one.

Chunks are kept sealed and opened straight into the buffer of the reader, so each byte is moved once after it came.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from fsspec.caching import BaseCache

from sovstore.concurrency import Aside, Coming
from sovstore.format.cobblestone import CHUNK, WIRE_CHUNK
from sovstore.object_reader import ObjectReader, Sealed

#: Requests that are on their way, or waiting to be read, beside the one that is read from.
_AT_ONCE = 4


@dataclass(frozen=True)
class _Limits:
    """Chunks of one request that reads ahead; of one that was asked for; of each where that was more.

    Then of what is kept ahead: at first, at most, and how many times more whenever that was used; and how many may be
    left out by a read that goes on all the same, and how many times what the read before it was.
    """

    window: int
    asked: int
    large: int
    first: int
    ahead: int
    grows: int
    gap: int
    times: int = 4


#: A file of this machine: a megabyte, which the processor's cache holds from the read to the decryption.
_BLOCKING = _Limits(window=64, asked=64, large=64, first=4, ahead=192, grows=2, gap=0)
#: Over the network a request costs as much as a megabyte: a read of up to 32 MiB is one, and a reader of columns that
#: leaves out less than that between two of them is taken to go on.
_REMOTE = _Limits(window=256, asked=2048, large=512, first=16, ahead=1024, grows=4, gap=64)


def _in_blocks(size: int) -> _Limits:
    """Return the limits of who asks for blocks of `size` bytes: one ahead from the start on, whatever is left out."""
    block = -(-size // CHUNK)
    asked, large = max(block, _REMOTE.asked), max(block, _REMOTE.large)
    return _Limits(window=block, asked=asked, large=large, first=block, ahead=block, grows=1, gap=block, times=size)


class _Here:
    """Chunks that were waited for."""

    __slots__ = ("_sealed",)

    def __init__(self, sealed: Sealed) -> None:
        self._sealed = sealed

    def result(self) -> Sealed:
        return self._sealed

    def cancel(self) -> bool:
        return True


@dataclass(slots=True)
class _Window:
    """Chunks that were asked for."""

    span: range
    coming: Future[Sealed] | Coming[Sealed] | _Here
    buffer: bytearray | None


class ReadAhead(BaseCache):  # type: ignore[misc]  # fsspec has no types
    """Reads one object for one file. Calls from several threads wait for each other.

    Parameters
    ----------
    reader : ObjectReader
        The opened object.
    block_size : int, optional
        Bytes to read ahead at a time over a network, from the first read that goes on, also over gaps of that size:
        fewer and larger requests. Up to three such blocks are held.
    submit : callable
        Runs a coroutine in the loop of the reader.
    """

    name = "sov"

    def __init__(
        self, reader: ObjectReader, block_size: int | None, submit: Callable[[Coroutine[Any, Any, Any]], Future[Any]]
    ) -> None:
        # fsspec takes the fetcher of a file for its own, where it copies the whole of it.
        super().__init__(block_size or CHUNK, self._fetch, reader.plain_size)
        self._reader, self._submit = reader, submit
        self._limits = _BLOCKING if reader.reads_now else _in_blocks(block_size) if block_size else _REMOTE
        self._buffer_size = min(self._limits.window, reader.plain_size // CHUNK + 1) * WIRE_CHUNK
        self._start_over()

    def _start_over(self) -> None:
        """Hold nothing: at first, and in a child that was forked, where no thread of the parent goes on."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._aside: Aside | None = None
        self._windows: deque[_Window] = deque()
        self._spare: list[bytearray] = []
        self._current: _Window | None = None
        # The last read; the end of the chunks that were asked for; how many are read ahead.
        self._begun, self._next, self._asked, self._ahead = 0, 0, 0, 0
        self._order = self._reader.in_order()
        # One chunk that was read in part.
        self._plain, self._plain_no, self._plain_size = memoryview(b""), -1, 0

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        return self.fetch(start or 0, self.size if stop is None else min(stop, self.size))

    def fetch(self, start: int, stop: int) -> bytes:
        """Return the plaintext [start, stop), none when that is empty; as `read_into`."""
        if start >= stop:
            return b""
        # BytesIO hands its buffer over; a bytearray would have to be copied once more.
        whole = BytesIO()
        whole.seek(stop - start - 1)
        whole.write(b"\0")
        with whole.getbuffer() as out:
            self.read_into(start, out)
        return whole.getvalue()

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the plaintext from `start` on; the object MUST have as much.

        Raises
        ------
        IntegrityError, ObjectChangedError, StoreError
            As `ObjectReader.sealed`. What is in `out` then is authentic, or zeros, or what was there before.
        """
        if self._pid != os.getpid():
            self._start_over()
        with self._lock:
            try:
                self._read_into(start, out)
            except BaseException:
                self._forget(0)
                raise

    def _read_into(self, start: int, out: memoryview) -> None:
        done, wanted, stop = 0, len(out), -(-(start + len(out)) // CHUNK)
        # A first read goes on from the start, or from nowhere; and what is left out is a few times what was read.
        gap = min(self._limits.gap * CHUNK, self._limits.times * (self._next - self._begun))
        follows = self._begun <= start <= self._next + gap
        held: Sealed | None = None
        while done < wanted:
            number, skipped = divmod(start + done, CHUNK)
            if number != self._plain_no:
                if held is None or number not in held.span:
                    held = self._held(number, stop, follows=follows)
                whole = 0 if skipped else min((wanted - done) // CHUNK, held.span.stop - number)
                if whole:
                    span = range(number, number + whole)
                    self._reader.open_into(span, held.slice(span), out[done : done + whole * CHUNK], self._order)
                    done += whole * CHUNK
                    continue
                self._open_one(number, held)
            piece = self._plain[skipped : min(self._plain_size, skipped + wanted - done)]
            out[done : done + len(piece)] = piece
            done += len(piece)
        self._begun, self._next = start, start + wanted
        if self._next == self.size and self._aside is not None:
            # Most files are read to their end, and closed much later.
            self._let_go()

    def _open_one(self, number: int, held: Sealed) -> None:
        self._plain_no = -1
        if not self._plain:
            self._plain = memoryview(bytearray(min(CHUNK, self.size)))
        span, self._plain_size = range(number, number + 1), min(CHUNK, self.size - number * CHUNK)
        self._reader.open_into(span, held.slice(span), self._plain[: self._plain_size], self._order)
        self._plain_no = number

    def _held(self, chunk_no: int, stop: int, *, follows: bool) -> Sealed:
        """Return chunks with `chunk_no` among them, and see to it that those up to `stop` are on their way."""
        for cached in self._reader.cached:
            if chunk_no in cached.span:
                self.hit_count += 1
                return cached
        window = self._window(chunk_no)
        ahead, limits = self._ahead if follows else 0, self._limits
        if window is None and chunk_no != self._asked:
            if not follows and self._is_before(chunk_no, stop):
                return self._read_before(range(chunk_no, min(stop, self._windows[0].span.start)))
            self._forget(chunk_no)
        if follows and (window is None or window is not self._current):
            ahead = min(limits.ahead, max(limits.first, limits.grows * ahead))
        self._ahead = ahead
        # One that was read stays: a reader of lines goes back a little.
        while len(self._windows) > 2 and chunk_no >= self._windows[2].span.start:
            self._drop(self._windows.popleft())
        self._ask(stop)
        window = self._current = window or self._window(chunk_no)
        assert window is not None  # noqa: S101  # nosec B101  # it was asked for
        return window.coming.result()

    def _is_before(self, chunk_no: int, stop: int) -> bool:
        """Return whether a few chunks are wanted that lie before what is held: no reason to forget that.

        The threads of pyarrow ask for two columns in either order.
        """
        windows, limits = self._windows, self._limits
        few = stop - chunk_no <= limits.window and len(windows) <= _AT_ONCE
        return limits.gap > 0 and few and bool(windows) and chunk_no < windows[0].span.start

    def _read_before(self, span: range) -> Sealed:
        self._windows.appendleft(self._asked_for(span))
        return self._windows[0].coming.result()

    def _window(self, chunk_no: int) -> _Window | None:
        for window in self._windows:
            if chunk_no in window.span:
                return window
        return None

    def _ask(self, stop: int) -> None:
        limits, end = self._limits, self._reader.cached[-1].span.start
        stop = min(stop, end)
        until = min(end, stop + self._ahead)
        while len(self._windows) <= _AT_ONCE:
            missing, rest = stop - self._asked, until - self._asked
            # Not a little at each read: what is only kept ahead is asked for in pieces that are worth a request.
            if missing <= 0 and (rest <= 0 or rest < min(limits.window, self._ahead // 2, end - self._asked)):
                break
            most = limits.asked if missing <= limits.asked else limits.large
            count = max(min(missing, most), min(rest, limits.window))
            # Windows that end where blocks of a power of two do are opened in one piece by whoever reads such blocks.
            past = (self._asked + count) % limits.window
            if past < count - max(missing, 0) and count - past >= limits.window // 2:
                count -= past
            self._windows.append(self._asked_for(range(self._asked, self._asked + count)))
            self._asked += count

    def _asked_for(self, span: range) -> _Window:
        reader = self._reader
        self.miss_count += 1
        self.total_requested_bytes += len(span) * CHUNK
        if not reader.reads_now:
            return _Window(span, self._submit(reader.sealed(span)), None)
        if not reader.may_go_on_now() and reader.may_go_on is not None:
            self._submit(_awaited(reader.may_go_on)).result()
        buffer = self._spare.pop() if self._spare else bytearray(self._buffer_size)
        if len(span) < self._limits.window:
            return _Window(span, _Here(reader.sealed_now(span, buffer)), buffer)
        self._aside = self._aside or Aside("sovstore-ahead")
        return _Window(span, self._aside.submit(Coming(partial(reader.sealed_now, span, buffer))), buffer)

    def _drop(self, window: _Window) -> None:
        # A thread may still be filling a buffer that nobody waits for: it is let go with the buffer.
        over = window.coming.cancel()
        if over and window.buffer is not None:
            self._spare.append(window.buffer)

    def _forget(self, chunk_no: int) -> None:
        while self._windows:
            self._drop(self._windows.popleft())
        self._current, self._asked, self._ahead = None, chunk_no, 0

    def _let_go(self) -> None:
        self._forget(0)
        self._spare.clear()
        self._aside = None

    def close(self) -> None:
        """Give back the buffers, the thread and what is open at the host."""
        # Without waiting: a handler of a signal may close what its own thread is reading.
        if self._pid == os.getpid() and self._lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._lock.release()
        self._reader.close()


async def _awaited(call: Callable[[], Any]) -> None:
    await call()

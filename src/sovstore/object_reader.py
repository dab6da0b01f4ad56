"""Reading one sealed object over a `Backend`: random access, streams, bounded memory.

Whoever calls this has the DEK or the means to get it; nothing here asks a KMS.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from sovstore.backends.base import Backend, OpenedNow, Stat
from sovstore.concurrency import both
from sovstore.errors import FormatError, IntegrityError, IsFolderError, ObjectChangedError, StoreError, named
from sovstore.format.body import (
    OVERHEAD,
    BodyStreamOpener,
    body_opener,
    chunk_span,
    plain_size,
    wire_offset,
)
from sovstore.format.cobblestone import CHUNK, TAG, WIRE_CHUNK
from sovstore.format.header import HEADER
from sovstore.secret import Secret

#: Bytes asked for when an object is opened: the header and the first four chunks.
FIRST = OVERHEAD + 4 * WIRE_CHUNK
#: The same when the whole object is wanted: 16 chunks.
FIRST_WHOLE = OVERHEAD + 16 * WIRE_CHUNK
#: Chunks at the end of an object fetched with its last one: readers of Parquet ask for its last 64 KiB next, which
#: lie in up to six, since the last is short.
_TAIL_CHUNKS = 6
#: Objects whose end is kept for the next time that they are opened.
_ENDS = 16
#: How often an object is opened that others keep replacing, with its size and its bytes asked for one after the other.
_TURNS = 4
#: Fewer chunks than this are opened at once, where a thread would cost more than it saves.
_FEW = 16
#: Chunks fetched by one ranged read over a network, where a request costs milliseconds, and on this machine; and how
#: many of these are under way at once.
_WINDOW = 256
_WINDOW_NOW = 64
_AHEAD = 3

#: Gives the DEK of (path, header); raises what `open_header` raises.
Unwrap = Callable[[str, bytes], Awaitable[Secret]]


def same_length(path: str, got: int, wanted: int) -> None:
    """Refuse a reply that is not as long as what was asked for.

    Raises
    ------
    IntegrityError
        When it is not.
    """
    if got != wanted:
        raise IntegrityError(f"{path}: the host sent {got} bytes for {wanted}", path=path)


@dataclass(frozen=True)
class Sealed:
    """Consecutive whole chunks of an object, still sealed.

    Parameters
    ----------
    span : range
        Their numbers.
    data : memoryview
        16400 bytes of each; the last one of the object is shorter.
    """

    span: range
    data: memoryview

    def holds(self, span: range) -> bool:
        """Return whether all of these chunks are among them."""
        return self.span.start <= span.start and span.stop <= self.span.stop

    def slice(self, span: range) -> memoryview:
        """Return these of them."""
        first = (span.start - self.span.start) * WIRE_CHUNK
        return self.data[first : first + len(span) * WIRE_CHUNK]


class Ends:
    """The last chunks of objects that were opened, still sealed and known to be authentic; of one event loop.

    Readers of Parquet open a table several times: each time but the first takes its first chunks alone from the host.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Stat, bytes, Sealed]] = OrderedDict()

    def of(self, stat: Stat, start: bytes) -> Sealed | None:
        """Return those of the version that is described by `stat` and whose first 184 bytes are `start`."""
        kept = self._kept.get(stat.name)
        if kept is None or stat.etag is None or (kept[0].etag, kept[0].size, kept[1]) != (stat.etag, stat.size, start):
            return None
        return kept[2]

    def keep(self, stat: Stat, start: bytes, end: Sealed) -> None:
        """Remember those of an object that was opened, and forget those of the one that was opened the longest ago."""
        self._kept[stat.name] = (stat, start, end)
        self._kept.move_to_end(stat.name)
        if len(self._kept) > _ENDS:
            self._kept.popitem(last=False)


class ObjectReader:
    """One object, opened: its header, key commitment and length are authentic. `open` makes it.

    Parameters
    ----------
    path : str
        Path of the object.
    plain_size : int
        Its plaintext bytes.
    stat : Stat
        What the host said of it when it was opened.
    header, version : bytes
        Its 128 bytes, and the 56 in front of its body.
    """

    def __init__(
        self,
        backend: Backend,
        path: str,
        stat: Stat,
        header: bytes,
        version: bytes,
        dek: Secret,
        cached: list[Sealed],
    ) -> None:
        self.path = path
        self.stat = stat
        self.header = header
        #: The 56 bytes in front of the body: they are other ones at each write, and stay when a header is replaced.
        self.version = version
        self.plain_size = plain_size(stat.size, what=path)
        #: What came with opening it: its first chunks, and its last.
        self.cached = cached
        self._backend, self._dek, self._opener = backend, dek, body_opener(dek, version, what=path)
        self._opened: OpenedNow | None = None
        self._closed = False
        #: Awaited before the host is asked for more; raises when the keys of the store may be used no longer.
        self.may_go_on: Callable[[], Awaitable[object]] | None = None
        #: Whether that would return at once.
        self.may_go_on_now: Callable[[], bool] = lambda: self.may_go_on is None

    @classmethod
    async def open(
        cls,
        backend: Backend,
        name: str,
        path: str,
        unwrap: Unwrap,
        *,
        whole: bool = False,
        in_turn: bool = False,
        ends: Ends | None = None,
    ) -> Self:
        """Return the reader of the object at `path`, whose name at the host is `name`.

        Parameters
        ----------
        unwrap : callable
            Gives the DEK of a path and a header.
        whole : bool
            The object will be read whole: a small one then takes one request, without asking for its size.
        in_turn : bool
            Ask what there is before asking for its bytes, and not at the same time. Whoever copies an object by its
            ETag must: with an ETag that is newer than the header, a new header would be put on the body of another
            version.
        ends : Ends, optional
            What is known of objects that were opened before, and learns of this one.

        Raises
        ------
        ObjectNotFoundError, IsFolderError
            When there is no such object.
        FormatError, IntegrityError
            When it is not an authentic object of this store at this path, or its length is not authentic.
        """
        with named(path, name):
            try:
                return await cls._open(backend, name, path, unwrap, whole=whole, in_turn=in_turn, ends=ends)
            except (IntegrityError, FormatError, ObjectChangedError):
                # Size and bytes come from two requests, and somebody may have replaced the object between them.
                pass
            for _ in range(_TURNS - 1):
                # An object that is really damaged fails again, and nobody's overwriting is taken for damage.
                with suppress(ObjectChangedError):
                    return await cls._open(backend, name, path, unwrap, in_turn=True)
            return await cls._open(backend, name, path, unwrap, in_turn=True)

    @classmethod
    async def _open(
        cls,
        backend: Backend,
        name: str,
        path: str,
        unwrap: Unwrap,
        *,
        whole: bool = False,
        in_turn: bool = False,
        ends: Ends | None = None,
    ) -> Self:
        if in_turn:
            stat = await backend.stat(name)
            first = await backend.read(name, 0, FIRST, etag=stat.etag) if not stat.folder else b""
        elif whole:
            first = await backend.read(name, 0, FIRST_WHOLE)
            # A reply shorter than was asked for is the whole object, as the last chunk will prove.
            stat = Stat(name, len(first)) if len(first) < FIRST_WHOLE else await backend.stat(name)
        else:
            stat, first = await backend.read_first(name, FIRST)
        if stat.folder:
            raise IsFolderError(f"{path}: is a folder", path=path)
        size = plain_size(stat.size, what=path)
        same_length(path, len(first), min(FIRST_WHOLE if whole else FIRST, stat.size))
        last = size // CHUNK
        body = memoryview(first)[OVERHEAD:]
        cached = [Sealed(range(-(-len(body) // WIRE_CHUNK)), body)]
        start = bytes(first[:OVERHEAD])
        header, version = start[:HEADER], start[HEADER:]
        known = ends.of(stat, start) if ends is not None else None
        if known is not None or len(first) == stat.size:
            dek = await unwrap(path, header)
        else:
            span = range(max(0, last + 1 - _TAIL_CHUNKS), last + 1)
            # The last chunk says how long the object is; it is fetched while the keyset may still be loading.
            dek, tail = await both(
                unwrap(path, header), backend.read(name, wire_offset(span.start), stat.size, etag=stat.etag)
            )
            same_length(path, len(tail), stat.size - wire_offset(span.start))
            known = Sealed(span, memoryview(tail))
        if known is not None:
            cached.append(known)
        reader = cls(backend, path, stat, header, version, dek, cached)
        end = range(last, last + 1)
        reader._open_span(end, cached[-1].slice(end))
        if ends is not None and known is not None:
            ends.keep(stat, start, known)
        return reader

    @property
    def reads_now(self) -> bool:
        """Whether `sealed_now` reaches the host."""
        return self._backend.blocking

    def _span_size(self, span: range) -> int:
        return min(self.plain_size, span.stop * CHUNK) - span.start * CHUNK

    def _open_span(self, span: range, sealed: memoryview) -> memoryview:
        """Return the plaintext of whole chunks."""
        out = memoryview(bytearray(self._span_size(span)))
        self.open_into(span, sealed, out)
        return out

    def open_into(
        self, span: range, sealed: memoryview, out: memoryview, order: BodyStreamOpener | None = None
    ) -> None:
        """Decrypt whole chunks into `out`, which has their size; what does not authenticate is wiped from it.

        Parameters
        ----------
        order : BodyStreamOpener, optional
            As `in_order` made it, for whoever reads all chunks in their order.

        Raises
        ------
        IntegrityError
            When a chunk does not authenticate.
        """
        same_length(self.path, len(sealed), len(out) + TAG * len(span))
        if order is not None and order.next == span.start and len(out) == len(span) * CHUNK:
            # Else again, one by one: that names the chunk.
            with suppress(IntegrityError):
                order.open_into(sealed, out)
                return
        self._opener.open_into(span.start, sealed, out)

    def in_order(self) -> BodyStreamOpener:
        """Return what opens the chunks in their order, faster; not from two threads at once."""
        return BodyStreamOpener(self._dek, self.version, what=self.path)

    async def sealed(self, span: range, buffer: bytearray | None = None) -> Sealed:
        """Return whole chunks as the host has them, in one request; in `buffer` where it spares a copy.

        Raises
        ------
        ObjectChangedError
            When the object was replaced since it was opened.
        IntegrityError
            When they are fewer bytes than the object should have there.
        """
        if self.may_go_on is not None:
            await self.may_go_on()
        if self.reads_now and buffer is not None:
            return await asyncio.to_thread(self.sealed_now, span, buffer)
        start, end = self._wire_range(span)
        with named(self.path, self.stat.name):
            sealed = memoryview(await self._backend.read(self.stat.name, start, end, etag=self.stat.etag))
        same_length(self.path, len(sealed), end - start)
        return Sealed(span, sealed)

    def sealed_now(self, span: range, buffer: bytearray) -> Sealed:
        """Return whole chunks in `buffer`, from any thread and without the loop, where `reads_now`; as `sealed`."""
        start, end = self._wire_range(span)
        out = memoryview(buffer)[: end - start]
        try:
            # Two threads that come here at the same time open it twice, and one of these is closed at once.
            opened = self._opened or self._backend.open_now(self.stat.name, etag=self.stat.etag)
            if not self._closed:
                self._opened = opened
            got = opened.read_into(start, out)
        except StoreError:
            with named(self.path, self.stat.name):
                raise
        same_length(self.path, got, end - start)
        return Sealed(span, out)

    def close(self) -> None:
        """Let go of what is held open at the host; from now on each read opens it for itself."""
        self._closed, self._opened = True, None

    def _wire_range(self, span: range) -> tuple[int, int]:
        return wire_offset(span.start), min(wire_offset(span.stop), self.stat.size)

    async def _sealed(self, span: range, buffer: bytearray | None = None) -> Sealed:
        """Return whole chunks, from what is cached or from the host."""
        for cached in self.cached:
            if cached.holds(span):
                return Sealed(span, cached.slice(span))
        return await self.sealed(span, buffer)

    def _windows(self, span: range) -> Iterator[range]:
        """Yield `span` in the pieces that it is read in: none of what is cached is asked for once more."""
        edges = {self.cached[0].span.stop, self.cached[-1].span.start}
        cuts = [span.start, *sorted(edge for edge in edges if edge in span[1:]), span.stop]
        size = _WINDOW_NOW if self.reads_now else _WINDOW
        for start, stop in pairwise(cuts):
            for first in range(start, stop, size):
                yield range(first, min(first + size, stop))

    def clamp(self, start: int | None, end: int | None) -> tuple[int, int]:
        """Return a range as Python's slices would take it on `plain_size` bytes."""
        first, last, _ = slice(start, end).indices(self.plain_size)
        return first, max(first, last)

    async def read(self, start: int, end: int) -> bytes:
        """Return plaintext bytes [start, end), clamped to the object.

        Raises
        ------
        IntegrityError
            When a chunk does not authenticate; nothing is returned then.
        ObjectChangedError
            When the object was replaced since it was opened.
        """
        start, end = self.clamp(start, end)
        span = chunk_span(start, end)
        if not span:
            return b""
        if len(span) < _FEW:
            chunks = self._open_span(span, (await self._sealed(span)).data)
            return bytes(chunks[start - span.start * CHUNK : end - span.start * CHUNK])
        # BytesIO hands its buffer over; a bytearray would have to be copied once more. Its size is set first, since it
        # would move what it has when it grows.
        whole = io.BytesIO()
        whole.seek(end - start - 1)
        whole.write(b"\0")
        whole.seek(0)
        async for piece in self.stream(start, end):
            whole.write(piece)
        return whole.getvalue()

    async def stream(self, start: int = 0, end: int | None = None) -> AsyncIterator[memoryview]:
        """Yield plaintext bytes [start, end) in order, in pieces of at most 4 MiB, reading a few ahead.

        A piece is valid until the next is asked for: its buffer is used again.

        Raises
        ------
        IntegrityError, ObjectChangedError
            As `read`; everything that was yielded before is authentic.
        """
        start, end = self.clamp(start, end)
        span = chunk_span(start, end)
        waiting = deque(self._windows(span))
        longest = max(map(len, waiting), default=0)
        # Fresh buffers would be given back to the system and asked for again at every turn, which costs more than AES.
        wire = [bytearray(longest * WIRE_CHUNK if self.reads_now else 0) for _ in range(min(_AHEAD, len(waiting)))]
        plain = [memoryview(bytearray(longest * CHUNK)) for _ in range(min(2, len(waiting)))]
        coming: deque[tuple[range, bytearray, asyncio.Task[Sealed]]] = deque()
        order = self.in_order()

        def ask() -> None:
            while waiting and wire:
                window, buffer = waiting.popleft(), wire.pop()
                coming.append((window, buffer, asyncio.ensure_future(self._sealed(window, buffer))))

        async def opened() -> tuple[range, memoryview]:
            window, buffer, task = coming[0]
            sealed = await task
            plain.reverse()
            out = plain[0][: self._span_size(window)]
            await asyncio.to_thread(self.open_into, window, sealed.data, out, order)
            coming.popleft()
            wire.append(buffer)
            ask()
            return window, out

        ask()
        opening: asyncio.Task[tuple[range, memoryview]] | None = None
        try:
            # One is opened while the one before is used.
            opening = asyncio.ensure_future(opened()) if coming else None
            while opening is not None:
                window, piece = await opening
                opening = asyncio.ensure_future(opened()) if coming else None
                base = window.start * CHUNK
                yield piece[max(0, start - base) : end - base]
        finally:
            left = [task for _, _, task in coming] + ([opening] if opening is not None else [])
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

"""HTTP/1.1 messages as a proxy passes them on (RFC 9112): a head that can be changed, a body as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

_PIECE_BYTES = 1 << 18


@dataclass(slots=True)
class Head:
    """The start line and the header fields of a request or a reply."""

    start: str
    fields: list[tuple[str, str]]

    @property
    def method(self) -> str:
        """The method, of a request."""
        return self.start.split(" ", 2)[0]

    @property
    def target(self) -> str:
        """The target with its query, of a request."""
        return self.start.split(" ", 2)[1]

    @property
    def status(self) -> int:
        """The status code, of a reply."""
        return int(self.start.split(" ", 2)[1])

    @property
    def length(self) -> int | None:
        """The Content-Length in bytes, if there is one."""
        value = self.get("Content-Length")
        return None if value is None else int(value)

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks, without a length."""
        return "chunked" in (self.get("Transfer-Encoding") or "").lower()

    @property
    def says_close(self) -> bool:
        """Whether the connection ends with this message."""
        return "close" in (self.get("Connection") or "").lower() or "HTTP/1.0" in self.start

    def get(self, name: str) -> str | None:
        """Return the first field of this name."""
        return next((value for known, value in self.fields if known.lower() == name.lower()), None)

    def put(self, name: str, value: str | None) -> None:
        """Replace the field of this name, or remove it where the value is None."""
        self.fields = [(known, old) for known, old in self.fields if known.lower() != name.lower()]
        if value is not None:
            self.fields.append((name, value))

    def encode(self) -> bytes:
        """Return the head as it is sent, with its empty line."""
        lines = [self.start, *(f"{name}: {value}" for name, value in self.fields), "", ""]
        return "\r\n".join(lines).encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Return the next head, or None where the connection ends before it."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return None
    start, *lines = raw[:-4].decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Head(start, [(name, value.strip()) for name, _, value in pairs])


def request_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """Return the pieces of a request's body, as they are on the wire."""
    return _chunks(reader) if head.is_chunked else _exactly(reader, head.length or 0)


def reply_body(reader: asyncio.StreamReader, head: Head, *, method: str) -> AsyncIterator[bytes]:
    """Return the pieces of a reply's body, as they are on the wire."""
    if method == "HEAD" or head.status in {204, 304}:
        return _exactly(reader, 0)
    if head.is_chunked:
        return _chunks(reader)
    return _to_the_end(reader) if head.length is None else _exactly(reader, head.length)


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)
        yield piece


async def _to_the_end(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(_PIECE_BYTES):
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    size, line = None, b""
    while size != 0:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        yield line
        if size:
            async for piece in _exactly(reader, size + 2):
                yield piece
    while line != b"\r\n":  # The trailer, which is one empty line if there is none.
        line = await reader.readuntil(b"\r\n")
        yield line

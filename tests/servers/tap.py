"""Notes every byte that a client sends to a server, as it is on the wire; it changes none of them.

`proxy.py` reads the requests that it passes on, and writes them anew; this knows of no protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.servers.ports import LOOPBACK
from tests.servers.wire import Head, read_head, request_body

_START_TIMEOUT_S = 10
_PIECE_BYTES = 1 << 18
#: Of one head or chunk line.
_LIMIT = 1 << 20


class Tap:
    """A running tap; `tap` starts it."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._streams: list[bytearray] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    @property
    def endpoint_url(self) -> str:
        """Where a client reaches it."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def streams(self) -> list[bytes]:
        """What was received so far, by connection."""
        return [bytes(stream) for stream in self._streams]

    def requests(self) -> list[tuple[Head, bytes]]:
        """Return the HTTP requests so far: heads, and bodies without the framing of chunks."""
        return [request for stream in self.streams for request in asyncio.run(_requests(stream))]

    def start(self) -> None:
        """Listen on a free loopback port."""
        self._thread.start()
        if not self._listening.wait(_START_TIMEOUT_S):
            raise OSError(f"tap: not listening within {_START_TIMEOUT_S} s")

    def stop(self) -> None:
        """Drop every connection and end the thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stopping.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        # A transport closes its socket in the turn of the loop after it was told to.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._join(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = bytearray()
        self._streams.append(stream)
        try:
            with contextlib.suppress(OSError):
                from_server, to_server = await asyncio.open_connection(LOOPBACK, self._server_port)
                try:
                    await asyncio.gather(_pump(reader, to_server, stream), _pump(from_server, writer, None))
                finally:
                    to_server.transport.abort()
        finally:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        if kept is not None:
            kept += piece
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _requests(stream: bytes) -> list[tuple[Head, bytes]]:
    reader = asyncio.StreamReader(limit=_LIMIT)
    reader.feed_data(stream)
    reader.feed_eof()
    found: list[tuple[Head, bytes]] = []
    # A connection may have been broken off in the middle of a request.
    with contextlib.suppress(asyncio.IncompleteReadError):
        while head := await read_head(reader):
            pieces: list[bytes] = []
            found.append((head, b""))
            async for piece in request_body(reader, head):
                pieces.append(piece)
                if not head.is_chunked:
                    found[-1] = (head, b"".join(pieces))
            if head.is_chunked:
                # Each chunk is a line with its size, and then the bytes with the end of their line.
                found[-1] = (head, _joined(b"".join(pieces)))
    return found


def _joined(chunks: bytes) -> bytes:
    body = bytearray()
    at = 0
    while True:
        end = chunks.index(b"\r\n", at)
        size = int(chunks[at:end].split(b";")[0], 16)
        if size == 0:
            return bytes(body)
        body += chunks[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


@contextlib.contextmanager
def tap(server_port: int) -> Iterator[Tap]:
    """Run a tap before a server on loopback."""
    running = Tap(server_port)
    running.start()
    try:
        yield running
    finally:
        running.stop()

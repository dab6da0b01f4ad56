"""A proxy between client and server that breaks what a test tells it to break, and keeps a list of the requests.

It speaks HTTP/1.1, runs in a thread of the test's process and opens one connection to the server per request.
haproxy.py has the faults that need no look into a reply, at more speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.faults import BUSY_DOCUMENT, CUTS, Dice, Faults, Request
from tests.servers.ports import LOOPBACK
from tests.servers.wire import Head, read_head, reply_body, request_body

_START_TIMEOUT_S = 10
_STREAM_LIMIT = 1 << 20


@dataclass(slots=True)
class _Streams:
    """The two ends of the proxy, for one request."""

    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter


class FaultProxy:
    """A running proxy: tell it what to break by setting `faults`, also between two requests of a test."""

    def __init__(
        self,
        server_port: int,
        *,
        read_target: Callable[[str], bytes],
        busy_code: str,
        certificate: Path | None = None,
    ) -> None:
        self.port = 0
        self._server_port = server_port
        self._read_target = read_target
        self._busy_code = busy_code
        self._certificate = certificate
        self._dice = Dice(Faults())
        self._requests: list[Request] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    @property
    def endpoint_url(self) -> str:
        """Where a client reaches the proxy."""
        return f"{'https' if self._certificate else 'http'}://{LOOPBACK}:{self.port}"

    @property
    def faults(self) -> Faults:
        """What is broken now; setting it starts its seed and its limit afresh."""
        return self._dice.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._dice = Dice(faults)

    @property
    def requests(self) -> list[Request]:
        """The requests so far, in the order they came."""
        return list(self._requests)

    def count(self, method: str | None = None, target: str = "", *, fault: str | None = None) -> int:
        """Count the requests of a method, with a pattern in the target, that met a kind of fault."""
        return sum(
            method in {None, request.method}
            and re.search(target, request.target) is not None
            and fault in {None, request.fault}
            for request in self.requests
        )

    def forget(self) -> None:
        """Empty the list of requests."""
        self._requests.clear()

    def start(self) -> None:
        """Listen on a free loopback port."""
        self._thread.start()
        if not self._listening.wait(_START_TIMEOUT_S):
            raise OSError(f"fault proxy: not listening within {_START_TIMEOUT_S} s")

    def stop(self) -> None:
        """Drop every connection and end the thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _listen(self) -> None:
        context = None
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
        server = await asyncio.start_server(self._accept, LOOPBACK, 0, limit=_STREAM_LIMIT, ssl=context)
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
        task = self._loop.create_task(self._converse(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        # A byte that counts as sent has left this process: a reset would drop what is still here. asyncio's TLS takes
        # a high mark of 0 for "always full", and waits for ever.
        writer.transport.set_write_buffer_limits(high=1 if self._certificate else 0, low=0)
        try:
            # What either side may do to a connection ends this one, and nothing else.
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
                while (head := await read_head(reader)) and await self._exchange(head, reader, writer):
                    pass
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _exchange(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one request on and its reply back; say whether the connection can take another."""
        request = Request(head.method, head.target, head.get("Range") or head.get("x-ms-range"))
        self._requests.append(request)
        dice = self._dice
        await asyncio.sleep(dice.faults.latency_s)
        if dice.faults.kind in {"busy", "refuse_with"} and dice.strike(request):
            status, code = dice.faults.refuse_with or (503, self._busy_code)
            return await self._refuse(head, reader, writer, status, code)
        streams = _Streams(reader, writer, *await self._reach_server())
        sending = self._loop.create_task(_send_request(streams, head, _cut_of_request(dice, request)))
        try:
            reply = await _final_reply(streams)
            request.status = reply.status
            goes_on = await self._pass_reply(streams, dice, request, reply)
            # A reply that came before the end of the request leaves bytes behind that are no next request.
            return goes_on and sending.done() and not head.says_close
        finally:
            # Not an orderly end, after which the local port would be taken for a minute. And before the `await`, which
            # does not return when the proxy is stopped just then.
            _reset(streams.to_server)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _refuse(
        self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, code: str
    ) -> bool:
        """Answer with an error; say whether the connection can take another request."""
        waits = head.get("Expect") is not None
        if not waits:
            # Unread, the rest would turn the end of the connection into a reset, which drops the reply.
            async for _ in request_body(reader, head):
                pass
        body = BUSY_DOCUMENT.format(code=code).encode()
        fields = [("Content-Type", "application/xml"), ("x-ms-error-code", code)]
        reply = Head(f"HTTP/1.1 {status} Refused", [*fields, ("Content-Length", str(len(body)))])
        if waits:
            # Whether the body comes all the same is the client's to choose.
            reply.put("Connection", "close")
        await _send(writer, reply.encode() + (b"" if head.method == "HEAD" else body))
        return not waits and not head.says_close

    async def _reach_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(LOOPBACK, self._server_port, limit=_STREAM_LIMIT)

    async def _pass_reply(self, streams: _Streams, dice: Dice, request: Request, reply: Head) -> bool:
        """Send the reply to the client, broken if the dice say so; say whether the connection can go on."""
        faults = dice.faults
        body = reply_body(streams.from_server, reply, method=request.method)
        has_body = request.method != "HEAD" or faults.kind == "lose_reply"
        if not (has_body and faults.can_change(reply) and dice.strike(request)):
            await _send(streams.to_client, reply.encode(), body)
            return not reply.says_close and (reply.length is not None or reply.is_chunked or reply.status in {204, 304})
        if faults.kind == "lose_reply":
            _reset(streams.to_client)
            return False
        if faults.kind in CUTS:
            await _send(streams.to_client, reply.encode(), body, cut=faults.size)
            await _break_off(streams, faults)
            return False
        content = b"".join([piece async for piece in body])
        if faults.kind == "whole_object":
            content = await asyncio.to_thread(self._read_target, request.target)
        content = _rewrite(faults, reply, content)
        await _send(streams.to_client, reply.encode() + content)
        return not reply.says_close


@contextlib.contextmanager
def fault_proxy(
    server_port: int, *, read_target: Callable[[str], bytes], busy_code: str, certificate: Path | None = None
) -> Iterator[FaultProxy]:
    """Run a proxy to a plain HTTP server on loopback; with a certificate, its clients speak TLS to it.

    `read_target` returns the whole object that a request target names: what a server that ignores ranges sends.
    `busy_code` is the code in the error documents of 503 replies.
    """
    proxy = FaultProxy(server_port, read_target=read_target, busy_code=busy_code, certificate=certificate)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def _cut_of_request(dice: Dice, request: Request) -> int | None:
    """Return after how many bytes of its body the request is to be reset, if it is."""
    return dice.faults.size if dice.faults.kind == "reset_request_after" and dice.strike(request) else None


async def _send_request(streams: _Streams, head: Head, cut: int | None) -> None:
    body = request_body(streams.from_client, head)
    try:
        await _send(streams.to_server, head.encode(), body, cut=cut)
    except BaseException:
        # Also when cancelled. Else the server would wait for the rest, and the proxy for the server.
        _reset(streams.to_server)
        raise
    if cut is not None:
        _reset(streams.to_client)
        _reset(streams.to_server)


async def _final_reply(streams: _Streams) -> Head:
    """Return the head of the reply, after passing on `100 Continue`."""
    while True:
        reply = await read_head(streams.from_server)
        if reply is None:
            raise ConnectionResetError("the server ended the connection")
        if reply.status >= 200:
            return reply
        await _send(streams.to_client, reply.encode())


async def _send(
    writer: asyncio.StreamWriter, head: bytes, body: AsyncIterator[bytes] | None = None, *, cut: int | None = None
) -> None:
    """Send a head and its body, or only the first `cut` bytes of the body."""
    writer.write(head)
    await writer.drain()
    if body is None or cut == 0:
        return
    sent = 0
    async for piece in body:
        writer.write(piece if cut is None else piece[: cut - sent])
        await writer.drain()
        sent += len(piece)
        if cut is not None and sent >= cut:
            return


async def _break_off(streams: _Streams, faults: Faults) -> None:
    """End a reply that was cut, the way the fault says."""
    if faults.kind == "reset_after":
        _reset(streams.to_client)
    elif faults.kind == "stall_after":
        # A client that gives up closes its end; that is all this waits for.
        while await streams.from_client.read(_STREAM_LIMIT):
            pass


def _rewrite(faults: Faults, reply: Head, content: bytes) -> bytes:
    """Return the wrong body of a reply, and make its head agree or disagree with it as the fault says."""
    if faults.kind == "wrong_content_range":
        reply.put("Content-Range", _one_further(reply.get("Content-Range") or ""))
    elif faults.kind == "whole_object":
        reply.start = "HTTP/1.1 200 OK"
        reply.put("Content-Range", None)
    elif faults.kind == "shorter_by":
        content = content[: len(content) - faults.size]
    elif faults.kind == "longer_by":
        content += b"\xa5" * faults.size
    elif faults.kind == "corrupt_at":
        at = faults.size
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    elif faults.kind == "packed":
        content = gzip.compress(content + bytes(faults.size), 1)
        reply.put("Content-Encoding", "gzip")
    reply.put("Content-Length", str(len(content)))
    return content


def _one_further(content_range: str) -> str:
    return re.sub(r"(\d+)-(\d+)", lambda match: f"{int(match[1]) + 1}-{int(match[2]) + 1}", content_range)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST instead of FIN."""
    with contextlib.suppress(OSError):  # Already closed.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

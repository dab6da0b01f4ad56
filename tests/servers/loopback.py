"""Tiny servers on loopback that answer each connection as a test says, well or badly."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

from tests.servers.ports import LOOPBACK

#: What a connection is answered with: bytes to send, or a function that does as it likes with the socket.
Answer = bytes | Callable[[socket.socket], None]
_PATIENCE_S = 10


def reply(status: int, body: object, *fields: str) -> bytes:
    """Return an HTTP reply: JSON, or the bytes given."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} Any", f"Content-Length: {len(content)}", "Connection: close", *fields, "", ""]
    return "\r\n".join(head).encode() + content


class Loopback:
    """A server that reads one request of each connection; the last of its answers is given for ever."""

    def __init__(self, answers: tuple[Answer, ...], tls: ssl.SSLContext | None, address: str) -> None:
        #: head and body of each request, as they came
        self.requests: list[bytes] = []
        #: connections, those without a request among them
        self.connections = 0
        self._answers, self._tls = answers, tls
        self._socket = socket.create_server((address, 0))
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        scheme = "http" if tls is None else "https"
        #: the TCP port
        self.port: int = self._socket.getsockname()[1]
        self.url = f"{scheme}://{address}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """End the threads and close the sockets."""
        self._stopped.set()
        # Waking it by a connection; closing the socket would not.
        with contextlib.suppress(OSError), socket.create_connection(self._socket.getsockname(), timeout=1):
            pass
        self._acceptor.join(_PATIENCE_S)
        self._socket.close()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def wait(self, seconds: float) -> bool:
        """Pause an answer; True once the test is over."""
        return self._stopped.wait(seconds)

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            if self._stopped.is_set():
                connection.close()
                return
            answer = self._answers[min(self.connections, len(self._answers) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection, answer), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, answer: Answer) -> None:
        connection.settimeout(_PATIENCE_S)
        # A client that hangs up is what many tests are about.
        with contextlib.suppress(OSError), connection:
            if self._tls is None:
                self._answer(connection, answer)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secured:
                self._answer(secured, answer)

    def _answer(self, connection: socket.socket, answer: Answer) -> None:
        self.requests.append(_request(connection))
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)


def _request(connection: socket.socket) -> bytes:
    raw = b""
    while b"\r\n\r\n" not in raw:
        if not (piece := connection.recv(65536)):
            return raw
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0]) - len(body) if lengths else 0
    while missing > 0 and (piece := connection.recv(missing)):
        raw, missing = raw + piece, missing - len(piece)
    return raw


@contextlib.contextmanager
def serve(*answers: Answer, tls: ssl.SSLContext | None = None, address: str = LOOPBACK) -> Iterator[Loopback]:
    """Run a server that gives one answer to each connection."""
    server = Loopback(answers, tls, address)
    try:
        yield server
    finally:
        server.stop()

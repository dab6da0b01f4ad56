"""A server over TLS that answers every request with the bytes it was told to: what no sane service says.

It is a fake. It reads requests whole, as HTTP/1.1 has them, and knows nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ports import LOOPBACK


@dataclass(slots=True)
class Script:
    """What is sent for each request."""

    address: str
    #: the whole reply, head and body
    reply: bytes = b""
    #: seconds between two bytes of it
    pause_s: float = 0
    requests: list[bytes] = field(default_factory=list)

    def say(self, status: str, body: bytes, *fields: str, length: int | None = None) -> None:
        """Reply with a status line, header fields and a body."""
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *fields, "", ""]
        self.reply, self.pause_s = "\r\n".join(head).encode() + body, 0


@contextlib.contextmanager
def scripted_server(certificate: Path, *, host: str = LOOPBACK) -> Iterator[Script]:
    """Run the server on loopback, at an address of this machine, with a certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server((host, 0)) as listening:
        listening.settimeout(0.05)
        script, over = Script(f"{host}:{listening.getsockname()[1]}"), threading.Event()
        thread = threading.Thread(target=_accept, args=(listening, context, script, over), daemon=True)
        thread.start()
        try:
            yield script
        finally:
            over.set()
            thread.join()


def _accept(listening: socket.socket, context: ssl.SSLContext, script: Script, over: threading.Event) -> None:
    while not over.is_set():
        # What a client does to its connection ends that one, and nothing else.
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            connection.settimeout(5)
            with connection, context.wrap_socket(connection, server_side=True) as stream:
                _answer(stream, script, over)


def _answer(stream: ssl.SSLSocket, script: Script, over: threading.Event) -> None:
    with stream.makefile("rb") as reader:
        head = b"".join(iter(reader.readline, b"\r\n"))
        fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
        script.requests.append(head + b"\r\n" + reader.read(int(fields.get(b"content-length", b"0"))))
    if not script.pause_s:
        stream.sendall(script.reply)
        return
    for at in range(len(script.reply)):
        if over.is_set():
            return
        stream.sendall(script.reply[at : at + 1])
        time.sleep(script.pause_s)

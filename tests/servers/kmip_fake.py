"""A fake KMIP service: TLS with client certificates, and whatever bytes a test wants it to answer.

It is for what a real service does not do when it is told to: to lie, to break off, to be slow, to refuse with each of
the reasons. It keeps no keys. PyKMIP, in `pykmip.py`, is the real one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sovstore.kms.kmip_messages import Operation, Tag
from sovstore.kms.kmip_ttlv import Item, Type, decode, encode, structure
from sovstore.kms.settings import Service
from tests.servers.clients import ClientAuthority
from tests.servers.ports import LOOPBACK

#: Which key replies are about.
UID = Item(Tag.UID, Type.TEXT, "kek-1")
#: The attributes of a key that may be a KEK.
_FIT = {
    "Object Type": (Type.ENUMERATION, 2),
    "Cryptographic Algorithm": (Type.ENUMERATION, 3),
    "Cryptographic Length": (Type.INTEGER, 256),
    "Cryptographic Usage Mask": (Type.INTEGER, 12),
    "State": (Type.ENUMERATION, 2),
}
#: Given a request, returns what is sent back; `None` closes the connection.
Answer = Callable[[Item], bytes | None]


class KMIPFake:
    """A running fake; set `answer` to say what it does."""

    def __init__(self, directory: Path) -> None:
        self.authority = ClientAuthority(directory, "fake")
        self.certificate = self.authority.issue("client")
        self.answer: Answer = lambda _request: None
        #: what was asked, in order
        self.requests: list[Item] = []
        #: those that are open, the newest last
        self.connections: list[ssl.SSLSocket] = []
        #: host names that clients said they want, one for each connection
        self.names: list[str | None] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.authority.server_certificate("localhost"))
        self._context.load_verify_locations(self.authority.ca_file)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._listening = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="kmip-fake", daemon=True)]
        self._threads[0].start()

    @property
    def uri(self) -> str:
        """The key URI of its key ``kek-1``."""
        return f"kmip://localhost:{self.port}/kek-1"

    def service(self, **settings: float | str) -> Service:
        """Return what ``[kms.NAME]`` says of it."""
        files = {"cert_file": str(self.certificate), "key_file": str(self.certificate)}
        given = {"uri": f"kmip://localhost:{self.port}", "timeout_s": 10.0, **files, **settings}
        return Service(name="fake", **{"ca_file": str(self.authority.ca_file), **given})  # type: ignore[arg-type]

    def answers(self, **payloads: list[Item]) -> None:
        """Answer each operation with its items, such as ``DECRYPT=[…]``; the key is fit unless it is said otherwise."""
        items = {"GET_ATTRIBUTES": attributes(), **payloads}
        self.answer = lambda request: reply(asked(request), UID, *items[Operation(asked(request)).name])

    def stop(self) -> None:
        """Close everything."""
        for connection in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with contextlib.suppress(OSError), connection, self._context.wrap_socket(connection, server_side=True) as tls:
            self._open.add(tls)
            self.connections.append(tls)
            while header := _exactly(tls, 8):
                request = decode(header + _exactly(tls, int.from_bytes(header[4:], "big")))
                self.requests.append(request)
                reply = self.answer(request)
                if reply is None:
                    return
                tls.sendall(reply)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[KMIPFake]:
    """Run a fake on loopback."""
    fake = KMIPFake(directory)
    try:
        yield fake
    finally:
        fake.stop()


def reply(
    operation: int | None,
    *payload: Item,
    version: tuple[int, int] = (1, 4),
    status: int = 0,
    reason: int | None = None,
    header: tuple[Item, ...] = (),
    beside: tuple[Item, ...] = (),
    count: int = 1,
) -> bytes:
    """Return a reply with a payload, or one without that gives a reason; `header` and `beside` hold more items."""
    number = structure(Tag.VERSION, _integer(Tag.MAJOR, version[0]), _integer(Tag.MINOR, version[1]))
    stamp = Item(Tag.TIME_STAMP, Type.DATE_TIME, 1_767_225_600)
    parts = [] if operation is None else [_enumeration(Tag.OPERATION, operation)]
    parts.append(_enumeration(Tag.RESULT_STATUS, status if reason is None else 1))
    if reason is not None:
        parts += [
            _enumeration(Tag.RESULT_REASON, reason),
            Item(Tag.RESULT_MESSAGE, Type.TEXT, "canary-message of the service"),
        ]
    if payload:
        parts.append(structure(Tag.RESPONSE_PAYLOAD, *payload))
    return encode(
        structure(
            Tag.RESPONSE,
            structure(Tag.RESPONSE_HEADER, number, stamp, *header, _integer(Tag.BATCH_COUNT, count)),
            structure(Tag.BATCH_ITEM, *parts, *beside),
        )
    )


def attribute(name: str, kind: Type, value: int) -> Item:
    """Return an attribute as KMIP 1 has it."""
    return structure(Tag.ATTRIBUTE, Item(Tag.ATTRIBUTE_NAME, Type.TEXT, name), Item(Tag.ATTRIBUTE_VALUE, kind, value))


def attributes(**changed: tuple[Type, int] | None) -> list[Item]:
    """Return the attributes of a key that may be a KEK, with others in their place; None leaves one out."""
    found = {**_FIT, **changed}
    return [attribute(name, *value) for name, value in found.items() if value is not None]


def sealed(iv: bytes | None = None, size: int = 64) -> list[Item]:
    """Return what Encrypt gives, with an IV if any."""
    used = [Item(Tag.IV, Type.BYTES, iv)] if iv is not None else []
    return [Item(Tag.DATA, Type.BYTES, b"\xd0" * size), *used, Item(Tag.GCM_TAG, Type.BYTES, b"\x77" * 16)]


def asked(request: Item) -> int:
    """Return which operation a request asks for."""
    operation = find(request, Tag.OPERATION)
    assert operation is not None
    assert isinstance(operation.value, int)
    return operation.value


def find(item: Item, tag: int) -> Item | None:
    """Return the first item of a tag, wherever it lies."""
    if item.tag == tag:
        return item
    inner = item.value if isinstance(item.value, tuple) else ()
    return next((found for part in inner if (found := find(part, tag))), None)


def _integer(tag: int, value: int) -> Item:
    return Item(tag, Type.INTEGER, value)


def _enumeration(tag: int, value: int) -> Item:
    return Item(tag, Type.ENUMERATION, value)


def _exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            return b""
        received += piece
    return received

"""What the fakes of HTTP services share: TLS on loopback, faults on demand, and a list of what clients did wrong.

A fake is no proof of how the real service behaves; it holds clients to what is written down of it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers.ports import LOOPBACK
from tests.servers.tls import TLSFiles, make_certificate


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    #: whether it came with a certificate that the server trusts
    has_certificate: bool


@dataclass(frozen=True)
class Answer:
    """What the server sends back: JSON, or a text as it is."""

    status: int
    body: object
    content_type: str = "application/json"

    def raw(self) -> bytes:
        """Return the bytes of the body."""
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of its answer, or to its answer."""

    #: sent instead of the answer
    answer: Answer | None = None
    #: seconds before anything is sent
    wait_s: float = 0
    #: the reply ends after half of its body
    half: bool = False
    #: a byte of the body each tenth of a second
    drip: bool = False
    #: members of the answer that are replaced
    members: Mapping[str, object] = field(default_factory=dict)


class ViolationError(Exception):
    """A client sent what the interface does not have."""


class HTTPFake:
    """A service that answers by `answer`; start it with `running`."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.requests: list[str] = []
        #: one for each of the next requests
        self.faults: deque[Fault] = deque()
        self.stopping = threading.Event()
        self.url = ""
        self.port = 0
        self.ca_file = Path()
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request; raise ViolationError when it is not one of the interface."""
        raise NotImplementedError

    def invalid(self, request: Request) -> Answer:
        """Return the answer to a request that is not one of the interface."""
        raise NotImplementedError

    def handle(self, request: Request) -> tuple[Answer, Fault]:
        """Return the answer to a request and what happens to it."""
        with self._lock:
            self.requests.append(f"{request.method} {request.target}")
            fault = self.faults.popleft() if self.faults else Fault()
            if fault.answer is not None:
                return fault.answer, fault
            try:
                answer = self.answer(request)
            except ViolationError as exc:
                self.violations.append(f"{request.method} {request.target}: {exc}")
                answer = self.invalid(request)
        if fault.members and isinstance(answer.body, dict):
            answer = Answer(answer.status, {**answer.body, **fault.members})
        return answer, fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes; the second would wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    fake: HTTPFake
    tls: ssl.SSLContext | None

    def setup(self) -> None:
        # Here and not when the connection is accepted: a client that says nothing would keep all others out.
        self.request.settimeout(30)
        if self.tls is not None:
            self.request = self.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        has_certificate = isinstance(self.request, ssl.SSLSocket) and bool(self.request.getpeercert())
        lowered = {name.lower(): value for name, value in self.headers.items()}
        answer, fault = self.fake.handle(Request(self.command, self.path, lowered, body, has_certificate))
        if self.fake.stopping.wait(fault.wait_s):
            return
        raw = answer.raw()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("X-Request-Id", f"request-{len(self.fake.requests)}")
        self.end_headers()
        if fault.half:
            self.wfile.write(raw[: len(raw) // 2])
            self.close_connection = True
            return
        for start in range(0, len(raw), 1 if fault.drip else len(raw)):
            self.wfile.write(raw[start : start + (1 if fault.drip else len(raw))])
            if fault.drip and self.fake.stopping.wait(0.1):
                return

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815  # named by the base class

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        # The server closes the socket that it accepted, which TLS has detached.
        self.request.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # named by the base class
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Else the end of a test would wait for every connection that a client keeps.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients that do not trust the server, or break off, are what some tests are about."""
        if isinstance(request, socket.socket):
            request.close()


@contextlib.contextmanager
def running(fake: HTTPFake, directory: Path, *, tls: bool = True, client_ca: Path | None = None) -> Iterator[None]:
    """Run a fake on loopback; at the end, fail when a client sent what the interface does not have."""
    files = make_certificate(directory) if tls else None
    handler = type("Handler", (_Handler,), {"fake": fake, "tls": _context(files, client_ca) if files else None})
    with _Server((LOOPBACK, 0), handler) as server:
        fake.port = server.server_address[1]
        fake.url = f"{'https' if files else 'http'}://{LOOPBACK}:{fake.port}"
        fake.ca_file = files.ca_file if files else Path()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            fake.stopping.set()
            server.shutdown()
            thread.join()
    assert fake.violations == []


def _context(files: TLSFiles, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(client_ca)
    return context


def checked_json(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request; raise ViolationError when it is none, or not said to be one."""
    if request.headers.get("content-type") != "application/json":
        raise ViolationError("no Content-Type: application/json")
    try:
        parsed = json.loads(request.body, object_pairs_hook=_once_each)
    except ValueError as exc:
        raise ViolationError("the body is not JSON") from exc
    if not isinstance(parsed, dict):
        raise ViolationError("the body is not a JSON object")
    return parsed


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ViolationError("a member occurs twice")
    return found

"""Faults between a test's client and a running server: what the fixtures `*_faults` offer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from tests.servers import haproxy
from tests.servers.faults import Faults
from tests.servers.process import process_group
from tests.servers.proxy import FaultProxy, fault_proxy
from tests.servers.tls import make_certificate


class Server(Protocol):
    """A server that a proxy can stand before."""

    @property
    def port(self) -> int:
        """The port of its plain HTTP endpoint."""

    def at(self, endpoint_url: str, ca_file: Path | None = None) -> Self:
        """Return the server as it is reached at another address."""

    def read_target(self, target: str) -> bytes:
        """Return the whole object that a request target names."""


ServerT = TypeVar("ServerT", bound=Server)


@dataclass(frozen=True, slots=True)
class Faulty(Generic[ServerT]):
    """A server behind a proxy of its own."""

    #: the server as its clients reach it: through the proxy
    server: ServerT
    #: what to break (`proxy.faults = Faults(...)`), and which requests came (`proxy.requests`, `proxy.count(...)`)
    proxy: FaultProxy

    @property
    def endpoint_url(self) -> str:
        """Where the proxy listens."""
        return self.proxy.endpoint_url


class FaultFactory(Generic[ServerT]):
    """Puts proxies before a running server; each lives until the test ends."""

    def __init__(self, server: ServerT, stack: contextlib.ExitStack, *, busy_code: str) -> None:
        self._server = server
        self._stack = stack
        self._busy_code = busy_code

    def __call__(self, faults: Faults | None = None, *, tls: bool = False) -> Faulty[ServerT]:
        """Start a proxy that counts requests and breaks what it is told to; with `tls`, clients speak TLS to it."""
        files = None
        if tls:
            # No process: for its directory, which also goes away after a run that was killed.
            files = make_certificate(self._stack.enter_context(process_group("faults")).directory)
        proxy = self._stack.enter_context(
            fault_proxy(
                self._server.port,
                read_target=self._server.read_target,
                busy_code=self._busy_code,
                certificate=files.certificate if files else None,
            )
        )
        proxy.faults = faults or Faults()
        return Faulty(self._server.at(proxy.endpoint_url, files.ca_file if files else None), proxy)

    def haproxy(self, *, busy_percent: int = 0, close_percent: int = 0, latency_ms: int = 0, seed: int = 1) -> ServerT:
        """Start haproxy: 503 replies, closed connections and latency; return the server behind it."""
        url = self._stack.enter_context(
            haproxy.start(
                self._server.port,
                busy_percent=busy_percent,
                close_percent=close_percent,
                latency_ms=latency_ms,
                busy_code=self._busy_code,
                seed=seed,
            )
        )
        return self._server.at(url)


@contextlib.contextmanager
def faults_between(server: ServerT, *, busy_code: str) -> Iterator[FaultFactory[ServerT]]:
    """Yield a factory of proxies before a server, and stop them all on exit.

    `busy_code` is what the server's error documents say when it wants fewer requests.
    """
    with contextlib.ExitStack() as stack:
        yield FaultFactory(server, stack, busy_code=busy_code)

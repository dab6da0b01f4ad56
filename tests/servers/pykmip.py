"""PyKMIP's server, the KMIP key manager of the tests: a real server, mutual TLS on loopback, its data in a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group

_SERVER = Path(__file__).parent / "pykmip/.venv/bin/pykmip-server"


@dataclass(frozen=True, slots=True)
class PyKMIPServer:
    """A running KMIP server."""

    host: str
    port: int


def missing() -> list[str]:
    """Return what is not installed of all that this server needs."""
    return [] if _SERVER.is_file() else ["PyKMIP"]


@contextlib.contextmanager
def start() -> Iterator[PyKMIPServer]:
    """Run the server on loopback."""
    with process_group("pykmip") as group:
        (port,) = free_ports(1)
        group.start("pykmip", [str(_SERVER), "--help"])
        group.wait_until(lambda: accepts_connections(port), what="PyKMIP accepts connections")
        yield PyKMIPServer(LOOPBACK, port)

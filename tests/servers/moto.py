"""moto, a second S3 server of the tests: another family than Ceph, with its data in memory.

It has the conditions on complete and delete that Ceph 16 lacks. It checks no signature and no digest: nothing can be
shown with it about who may read or write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.servers.require import missing_parts
from tests.servers.s3 import S3Server

# Never resolved: the environment's python is a link, and only by its own name does it find its packages.
_PYTHON = Path(__file__).parent / "moto/.venv/bin/python"


class MotoServer(S3Server):
    """A running moto; any keys will do."""

    __slots__ = ()


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    absent = missing_parts(modules=["s3fs"])
    return absent if _PYTHON.with_name("moto_server").is_file() else [*absent, "moto"]


@contextlib.contextmanager
def start() -> Iterator[MotoServer]:
    """Run moto on loopback."""
    with process_group("moto") as group:
        (port,) = free_ports(1)
        group.start("moto", [str(_PYTHON), "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)])
        group.wait_until(lambda: accepts_connections(port), what="moto accepts connections")
        yield MotoServer(f"http://{LOOPBACK}:{port}", "any", "any")

"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import itertools
import random
import socket

LOOPBACK = "127.0.0.1"

# Below the range from which Linux takes the local port of an outgoing connection (32768 and up), so that a
# port found free is not lost to a client before its server has bound it.
_CANDIDATES = range(20_000, 32_000)
_ATTEMPTS = 200


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that nothing listens on."""
    candidates = random.sample(_CANDIDATES, _ATTEMPTS)
    found = list(itertools.islice(filter(_is_free, candidates), count))
    if len(found) < count:
        raise OSError(f"found {len(found)} free loopback ports, need {count}")
    return found


def accepts_connections(port: int) -> bool:
    """Say whether a server accepts connections on this loopback port now."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True

"""haproxy between client and server: 503 replies, closed connections, latency; at the speed of a real proxy.

The Host header is kept, so that signatures stay valid. proxy.py has the faults that change a reply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.servers.faults import BUSY_DOCUMENT
from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.servers.require import missing_parts

# Its own generator: haproxy's `rand()` cannot be seeded. The low bits of such a generator are poor.
_LUA = """\
local state = {seed}
core.register_action("draw", {{"http-req"}}, function(txn)
    state = (1103515245 * state + 12345) % 2147483648
    txn:set_var("txn.draw", (state >> 16) % 100)
end)
core.register_action("delay", {{"http-req"}}, function(txn)
    core.msleep({latency_ms})
end)
"""

# One thread: the generator above is one sequence. A refused request is answered before its body was read.
_CONFIG = """\
global
    nbthread 1
    maxconn 1000
    lua-load {lua}
defaults
    mode http
    timeout connect 10s
    timeout client 10m
    timeout server 10m
frontend faults
    bind {host}:{port}
    http-request lua.delay if {{ int({latency_ms}) gt 0 }}
    http-request lua.draw
    http-request return status 503 content-type application/xml hdr x-ms-error-code {code} string '{body}' \
if {{ var(txn.draw) -m int lt {busy} }}
    http-request reject if {{ var(txn.draw) -m int lt {closed} }}
    default_backend server
backend server
    server server {host}:{server_port}
"""


def missing() -> list[str]:
    """Return what is not installed of all that this proxy needs."""
    return missing_parts(commands=["haproxy"])


@contextlib.contextmanager
def start(
    server_port: int,
    *,
    busy_percent: int = 0,
    close_percent: int = 0,
    latency_ms: int = 0,
    busy_code: str = "SlowDown",
    seed: int = 1,
) -> Iterator[str]:
    """Run haproxy before a plain HTTP server on loopback and yield its URL.

    `busy_percent` of the requests get 503 with an error document that says `busy_code`, `close_percent` a closed
    connection; every request waits for `latency_ms`. The same seed strikes the same requests, by their order.
    """
    with process_group("haproxy") as group:
        (port,) = free_ports(1)
        lua, config = group.directory / "faults.lua", group.directory / "haproxy.cfg"
        lua.write_text(_LUA.format(seed=seed, latency_ms=latency_ms))
        values = {"busy": busy_percent, "closed": busy_percent + close_percent, "latency_ms": latency_ms}
        body = BUSY_DOCUMENT.format(code=busy_code)
        config.write_text(
            _CONFIG.format(
                lua=lua, host=LOOPBACK, port=port, server_port=server_port, code=busy_code, body=body, **values
            )
        )
        group.start("haproxy", ["haproxy", "-db", "-f", str(config)])
        group.wait_until(lambda: accepts_connections(port), what="haproxy accepts connections")
        yield f"http://{LOOPBACK}:{port}"

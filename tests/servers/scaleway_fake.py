"""A fake of Scaleway Key Manager (v1alpha1), written from its SDK, its documentation and recorded traffic.

It really encrypts, and it is strict: what the interface does not have is answered with an error and is a violation,
which fails the test.
Not known of the real service, and made up here: the body of 401, what a key that is disabled answers, and the layout of
ciphertexts, which was derived from recordings.
"""

from __future__ import annotations

import base64
import os
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.servers.http_fake import Answer, HTTPFake, Request, ViolationError, checked_json

REGION = "fr-par"
_PREFIX = f"/key-manager/v1alpha1/regions/{REGION}/keys/"
_REFUSED = {
    "details": [
        {
            "argument_name": "ciphertext",
            "help_message": "cipher: message authentication failed",
            "reason": "constraint",
        }
    ],
    "message": "invalid argument(s)",
    "type": "invalid_arguments",
}
#: path behind the key -> method, right, members of the body
_ACTIONS = {
    "": ("GET", "read", frozenset[str]()),
    "/encrypt": ("POST", "encrypt", frozenset(("plaintext", "associated_data"))),
    "/decrypt": ("POST", "decrypt", frozenset(("ciphertext", "associated_data"))),
}


@dataclass
class Key:
    """A key and its rotations."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    usage: Mapping[str, str] = field(default_factory=lambda: {"symmetric_encryption": "aes_256_gcm"})
    state: str = "enabled"
    #: None: a reply as before July 2026
    protection_level: str | None = "software"

    def rotate(self) -> None:
        """Make a new version."""
        self.versions.append(os.urandom(32))

    def describe(self) -> dict[str, object]:
        """Return what ``GET /keys/{id}`` does."""
        level = {} if self.protection_level is None else {"protection_level": self.protection_level}
        return {
            **level,
            "id": self.id,
            "project_id": "105bdce1-64c0-48ab-899d-868455867ecf",
            "name": "cohortes",
            "usage": self.usage,
            "state": self.state,
            "rotation_count": len(self.versions),
            "created_at": "2026-10-07T13:45:19.264635Z",
            "updated_at": "2026-10-07T13:45:19.464484Z",
            "protected": False,
            "locked": False,
            "description": None,
            "tags": [],
            "rotated_at": "2026-10-07T13:45:19.464484Z",
            "rotation_policy": None,
            "origin": "scaleway_kms",
            "deletion_requested_at": None,
            "region": REGION,
        }

    def encrypt(self, plaintext: bytes, aad: bytes) -> bytes:
        """Return a ciphertext of the newest version."""
        iv = os.urandom(12)
        head = struct.pack(">BI", 1, len(self.versions))
        return head + iv + AESGCM(self.versions[-1]).encrypt(iv, plaintext, aad)

    def decrypt(self, ciphertext: bytes, aad: bytes) -> tuple[bytes, int]:
        """Return the plaintext and the version that gave it; raise InvalidTag."""
        if len(ciphertext) < 33:
            raise InvalidTag
        mark, version = struct.unpack(">BI", ciphertext[:5])
        if mark != 1 or not 1 <= version <= len(self.versions):
            raise InvalidTag
        return AESGCM(self.versions[version - 1]).decrypt(ciphertext[5:17], ciphertext[17:], aad), version


class ScalewayFake(HTTPFake):
    """The fake; `tokens` says what each token may do."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, Key] = {}
        self.tokens = {
            "writer-5cc8e1f4": {"read", "encrypt", "decrypt"},
            "reader-90a7b2d3": {"decrypt"},
        }

    def add(self, key: Key) -> Key:
        """Add a key and return it."""
        self.keys[key.id] = key
        return key

    def uri(self, key: Key) -> str:
        """Return the key URI of a key."""
        return f"scw-kms://{REGION}/{key.id}?endpoint={self.url}"

    def invalid(self, request: Request) -> Answer:
        """Return what an invalid request gets."""
        return Answer(400, {"details": [], "message": "invalid argument(s)", "type": "invalid_arguments"})

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request."""
        key_id, slash, action = request.target.removeprefix(_PREFIX).partition("/")
        if not request.target.startswith(_PREFIX) or slash + action not in _ACTIONS:
            raise ViolationError("no such path")
        method, right, members = _ACTIONS[slash + action]
        if request.method != method:
            raise ViolationError("no such method")
        if "authorization" in request.headers or "cookie" in request.headers:
            raise ViolationError("credentials that the service does not take")
        arguments = self._arguments(request, members)
        if (rights := self.tokens.get(request.headers.get("x-auth-token", ""))) is None:
            return Answer(401, {"type": "denied_authentication", "method": "api_key", "reason": "not_found"})
        if right not in rights:
            needed = {"resource": "key_manager", "action": "read" if right == "read" else "write"}
            body = {"type": "permissions_denied", "message": "insufficient permissions", "details": [needed]}
            return Answer(403, body)
        if (key := self.keys.get(key_id)) is None:
            body = {"type": "not_found", "resource": "key", "resource_id": key_id, "message": "resource is not found"}
            return Answer(404, body)
        return self._act(key, right, arguments)

    def _arguments(self, request: Request, members: frozenset[str]) -> dict[str, bytes]:
        if not members:
            if request.body:
                raise ViolationError("a body where there is none")
            return {}
        body = checked_json(request)
        if set(body) != members:
            raise ViolationError(f"members {sorted(body)}")
        return {name: _from_base64(name, value) for name, value in body.items()}

    def _act(self, key: Key, right: str, arguments: dict[str, bytes]) -> Answer:
        if right == "read":
            return Answer(200, key.describe())
        if key.state != "enabled":
            body = {"type": "precondition_failed", "precondition": "resource_not_usable", "help_message": key.state}
            return Answer(412, body)
        aad = arguments["associated_data"]
        if right == "encrypt":
            if not 1 <= len(arguments["plaintext"]) <= 65535:
                raise ViolationError("length of the plaintext")
            return Answer(200, {"key_id": key.id, "ciphertext": _base64(key.encrypt(arguments["plaintext"], aad))})
        try:
            plaintext, version = key.decrypt(arguments["ciphertext"], aad)
        except InvalidTag:
            return Answer(400, _REFUSED)
        newer = _base64(key.encrypt(plaintext, aad)) if version < len(key.versions) else None
        return Answer(200, {"key_id": key.id, "plaintext": _base64(plaintext), "ciphertext": newer})


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _from_base64(name: str, value: object) -> bytes:
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError as exc:
        raise ViolationError(f"{name} is not base64") from exc
    if _base64(raw) != value:
        raise ViolationError(f"{name} is not base64 as an encoder writes it")
    return raw

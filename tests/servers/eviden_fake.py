"""A fake of Eviden KMS 5.26 (``/v1/crypto`` and ``/kmip/2_1``), written from its documentation and its source.

It really encrypts, and it is strict: what the interfaces do not have is answered with an error and kept as a violation.
Like the real one it takes data that begins with 87 87 for a list of texts, leaves the type of structures away in its
answers, gives an HSM's refusals as 500, and takes the name of a keyset for each of its keys. What it has of rights is
less: a token may do the same with every key.
"""

from __future__ import annotations

import base64
import datetime
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

from tests.servers.http_fake import Answer, HTTPFake, Request, ViolationError, checked_json
from tests.servers.ports import LOOPBACK

_CLOSED = ("decrypt", "encrypt", "get_attributes")
_LIST = b"\x87\x87"
_HSM_AAD = "Additional authenticated data are not supported on HSMs for now"
_PARAMETERS = {
    "BlockCipherMode": ("Enumeration", "GCM"),
    "CryptographicAlgorithm": ("Enumeration", "AES"),
    "TagLength": ("Integer", 16),
}


class RefusalError(Exception):
    """An error of the service: its class in error.rs and a text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


@dataclass
class Version:
    """One key."""

    uid: str
    key: bytes = field(default_factory=lambda: os.urandom(32))
    state: str = "Active"


@dataclass
class Key:
    """A key, or a keyset: what is rotated stays as a version that decrypts only."""

    uid: str
    object_type: str = "SymmetricKey"
    algorithm: str = "AES"
    length: int = 256
    versions: list[Version] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.versions.append(Version(self.uid))

    @property
    def in_hsm(self) -> bool:
        """Whether it is in an HSM."""
        return self.uid.startswith("hsm::")

    def rotate(self) -> None:
        """Make a new version, which the name then stands for."""
        self.versions[-1].state = "Deactivated"
        self.versions.append(Version(f"{self.uid}@{len(self.versions)}"))


class EvidenFake(HTTPFake):
    """The fake; `tokens` says what each token may do, and `certificate_rights` what a trusted certificate may."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, Key] = {}
        self.tokens = {"writer-2b9f6c01": set(_CLOSED), "reader-7d40aa95": {"decrypt"}}
        self.certificate_rights = set(_CLOSED)
        #: the documentation has the type of structures, the server leaves it away
        self.types_of_structures = False
        #: the next ciphertexts begin with these bytes
        self.begin_with: list[bytes] = []

    def add(self, key: Key) -> Key:
        """Add a key and return it."""
        self.keys[key.uid] = key
        return key

    def uri(self, uid: str, api: str | None = None) -> str:
        """Return a key URI."""
        return f"eviden-kms://{LOOPBACK}:{self.port}/{uid}" + (f"?api={api}" if api else "")

    def invalid(self, request: Request) -> Answer:
        """Return what an invalid request gets."""
        if request.target.startswith("/v1/"):
            return Answer(400, {"error": "bad_request", "description": "Invalid request body"})
        return Answer(422, "Invalid Request: not understood", "text/html; charset=utf-8")

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request."""
        actions: dict[str, Callable[[Request, set[str]], Answer]] = {
            "/v1/crypto/encrypt": self._jose_encrypt,
            "/v1/crypto/decrypt": self._jose_decrypt,
            "/kmip/2_1": self._kmip,
        }
        if request.target not in actions or request.method != "POST":
            raise ViolationError("no such path or method")
        rights = self._rights(request)
        if rights is None:
            return Answer(401, "No authentication provided.", "text/plain; charset=utf-8")
        try:
            return actions[request.target](request, rights)
        except RefusalError as exc:
            return _as_jose(exc) if request.target.startswith("/v1/") else _as_kmip(exc)

    def _rights(self, request: Request) -> set[str] | None:
        if "x-auth-token" in request.headers or "cookie" in request.headers:
            raise ViolationError("credentials that the service does not take")
        if request.has_certificate:
            return self.certificate_rights
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme not in ("", "Bearer"):
            raise ViolationError("Authorization is no bearer")
        return self.tokens.get(token)

    def _jose_encrypt(self, request: Request, rights: set[str]) -> Answer:
        body = _texts(request, ("kid", "alg", "enc", "data", "aad"))
        if (body["alg"], body["enc"]) != ("dir", "A256GCM"):
            raise ViolationError("algorithm")
        header = f'{{"alg":"dir","enc":"A256GCM","kid":"{body["kid"]}"}}'.encode()
        aad = f"{_base64url(header)}.{body['aad']}".encode()
        _from_base64url(body["aad"])
        _uid, iv, sealed = self._seal(body["kid"], _from_base64url(body["data"]), aad, rights)
        return Answer(
            200,
            {
                "protected": _base64url(header),
                "encrypted_key": "",
                "iv": _base64url(iv),
                "ciphertext": _base64url(sealed[:-16]),
                "tag": _base64url(sealed[-16:]),
                "aad": body["aad"],
            },
        )

    def _jose_decrypt(self, request: Request, rights: set[str]) -> Answer:
        body = _texts(request, ("protected", "encrypted_key", "iv", "ciphertext", "tag", "aad"))
        header = checked_json(Request("POST", "", request.headers, _from_base64url(body["protected"]), False))
        if {"alg": "dir", "enc": "A256GCM"}.items() - header.items() or not isinstance(header.get("kid"), str):
            raise ViolationError("header")
        iv, tag = _from_base64url(body["iv"]), _from_base64url(body["tag"])
        if (len(iv), len(tag), body["encrypted_key"]) != (12, 16, ""):
            raise ViolationError("lengths")
        aad = f"{body['protected']}.{body['aad']}".encode()
        _from_base64url(body["aad"])
        _, data = self._open(header["kid"], iv, _from_base64url(body["ciphertext"]) + tag, aad, rights)
        return Answer(200, {"kid": header["kid"], "data": _base64url(data)})

    def _kmip(self, request: Request, rights: set[str]) -> Answer:
        tree = checked_json(request)
        known = {"Encrypt": self._kmip_encrypt, "Decrypt": self._kmip_decrypt, "GetAttributes": self._kmip_attributes}
        operation = tree.get("tag")
        if not isinstance(operation, str) or operation not in known:
            raise ViolationError("operation")
        members = known[operation](_structure(tree, operation), rights)
        return Answer(200, self._tree(f"{operation}Response", members))

    def _kmip_encrypt(self, members: dict[str, Any], rights: set[str]) -> list[object]:
        asked = _read(members, {"Data"}, {"AuthenticatedEncryptionAdditionalData"})
        aad = asked.get("AuthenticatedEncryptionAdditionalData")
        uid, iv, sealed = self._seal(asked["UniqueIdentifier"], asked["Data"], aad, rights)
        return [
            _ttlv("UniqueIdentifier", "TextString", uid),
            _ttlv("Data", "ByteString", sealed[:-16].hex().upper()),
            _ttlv("IVCounterNonce", "ByteString", iv.hex().upper()),
            _ttlv("AuthenticatedEncryptionTag", "ByteString", sealed[-16:].hex().upper()),
        ]

    def _kmip_decrypt(self, members: dict[str, Any], rights: set[str]) -> list[object]:
        needed = {"Data", "IVCounterNonce", "AuthenticatedEncryptionTag"}
        asked = _read(members, needed, {"AuthenticatedEncryptionAdditionalData"})
        iv, tag = asked["IVCounterNonce"], asked["AuthenticatedEncryptionTag"]
        if (len(iv), len(tag)) != (12, 16):
            raise ViolationError("lengths")
        aad = asked.get("AuthenticatedEncryptionAdditionalData")
        uid, data = self._open(asked["UniqueIdentifier"], iv, asked["Data"] + tag, aad, rights)
        return [_ttlv("UniqueIdentifier", "TextString", uid), _ttlv("Data", "ByteString", data.hex().upper())]

    def _kmip_attributes(self, members: dict[str, Any], rights: set[str]) -> list[object]:
        if members != {"UniqueIdentifier": members.get("UniqueIdentifier"), "AttributeReference": ("Structure", [])}:
            raise ViolationError("members of GetAttributes")
        kind, name = members["UniqueIdentifier"]
        if kind != "TextString" or not isinstance(name, str):
            raise ViolationError("UniqueIdentifier")
        key = self._key(name, "get_attributes", rights)
        version = next((item for item in key.versions if item.uid == name and name != key.uid), key.versions[-1])
        attributes = [
            _ttlv("CryptographicAlgorithm", "Enumeration", key.algorithm),
            _ttlv("CryptographicLength", "Integer", key.length),
            _ttlv("CryptographicUsageMask", "Integer", 2108),
            _ttlv("KeyFormatType", "Enumeration", "TransparentSymmetricKey"),
            _ttlv("ObjectType", "Enumeration", key.object_type),
            _ttlv("Sensitive", "Boolean", True),
        ]
        if not key.in_hsm:
            attributes.append(_ttlv("State", "Enumeration", version.state))
        return [_ttlv("UniqueIdentifier", "TextString", version.uid), self._tree("Attributes", attributes)]

    def _key(self, name: str, right: str, rights: set[str]) -> Key:
        key = self.keys.get(name.partition("@")[0])
        if key is None or name not in {key.uid, *(version.uid for version in key.versions)}:
            if name.startswith("hsm::"):
                raise RefusalError("Default", f"no such key {name}")
            raise RefusalError("ItemNotFound", f"no valid key found for identifier: {name}")
        if right not in rights:
            raise RefusalError("Unauthorized", f"the user does not have permission to use key: {name}")
        return key

    def _seal(self, name: str, data: bytes, aad: bytes | None, rights: set[str]) -> tuple[str, bytes, bytes]:
        key = self._key(name, "encrypt", rights)
        _check_aad(key, aad)
        # The name of a keyset stands for its newest key.
        version = key.versions[-1] if name == key.uid else next(v for v in key.versions if v.uid == name)
        if version.state != "Active":
            raise RefusalError("Permission_Denied", f"Encrypt: key {version.uid} is in state {version.state}")
        if data.startswith(_LIST):
            raise ViolationError("data that begins as a list does")
        aead, start = AESGCM(version.key), self.begin_with.pop() if self.begin_with else b""
        while True:
            iv = os.urandom(12)
            sealed = aead.encrypt(iv, data, aad)
            if sealed.startswith(start):
                return version.uid, iv, sealed

    def _open(self, name: str, iv: bytes, sealed: bytes, aad: bytes | None, rights: set[str]) -> tuple[str, bytes]:
        key = self._key(name, "decrypt", rights)
        _check_aad(key, aad)
        if sealed.startswith(_LIST):
            raise ViolationError("data that begins as a list does")
        for version in reversed(key.versions):
            # The name of a keyset stands for each of its keys, and not only for the oldest, whose identifier it is.
            if name not in (version.uid, key.uid) or version.state == "Destroyed":
                continue
            try:
                return version.uid, AESGCM(version.key).decrypt(iv, sealed, aad)
            except InvalidTag:
                continue
        raise RefusalError("Default" if key.in_hsm else "Cryptographic_Failure", "the tag is wrong")

    def _tree(self, tag: str, members: Iterable[object]) -> dict[str, object]:
        kind = {"type": "Structure"} if self.types_of_structures else {}
        return {"tag": tag, **kind, "value": list(members)}


def _check_aad(key: Key, aad: bytes | None) -> None:
    if key.in_hsm and aad is not None:
        raise RefusalError("Default", _HSM_AAD)
    if not key.in_hsm and not aad:
        raise ViolationError("no AAD for a key that takes one")


def _as_jose(refusal: RefusalError) -> Answer:
    status, error, description = {
        "ItemNotFound": (404, "not_found", "Key not found"),
        "Unauthorized": (403, "forbidden", "Access denied"),
        "Default": (500, "internal_error", "Internal server error"),
    }.get(refusal.kind, (422, "crypto_failure", refusal.text))
    return Answer(status, {"error": error, "description": description})


def _as_kmip(refusal: RefusalError) -> Answer:
    if refusal.kind == "Default":
        return Answer(500, "Internal server error", "text/html; charset=utf-8")
    named = {"ItemNotFound": "Item not found", "Unauthorized": "Access denied"}.get(refusal.kind, refusal.kind)
    status = 401 if refusal.kind == "Unauthorized" else 422
    return Answer(status, f"{named}: {refusal.text}", "text/html; charset=utf-8")


def _texts(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    body = checked_json(request)
    if set(body) != set(names) or not all(isinstance(value, str) for value in body.values()):
        raise ViolationError(f"members {sorted(body)}")
    return body


def _structure(tree: object, tag: str) -> dict[str, Any]:
    """Return the members of a structure as {tag: (type, value)}."""
    if not isinstance(tree, dict) or set(tree) != {"tag", "type", "value"} or tree["tag"] != tag:
        raise ViolationError(f"{tag}: not a node")
    if tree["type"] != "Structure" or not isinstance(tree["value"], list):
        raise ViolationError(f"{tag}: not a structure")
    members = {}
    for item in tree["value"]:
        if not isinstance(item, dict) or set(item) != {"tag", "type", "value"} or item["tag"] in members:
            raise ViolationError(f"{tag}: a member is no node, or there twice")
        members[item["tag"]] = (item["type"], item["value"])
    return members


def _read(members: dict[str, Any], needed: set[str], allowed: set[str]) -> dict[str, Any]:
    """Return identifier and bytes of Encrypt and Decrypt, with the parameters of AES-GCM and a whole tag."""
    names = needed | {"UniqueIdentifier", "CryptographicParameters"}
    if not names <= set(members) <= names | allowed:
        raise ViolationError(f"members {sorted(members)}")
    kind, parameters = members.pop("CryptographicParameters")
    tree = {"tag": "CryptographicParameters", "type": kind, "value": parameters}
    if _structure(tree, "CryptographicParameters") != _PARAMETERS:
        raise ViolationError("parameters")
    found: dict[str, Any] = {}
    for name, (kind, value) in members.items():
        if kind != ("TextString" if name == "UniqueIdentifier" else "ByteString") or not isinstance(value, str):
            raise ViolationError(f"{name}: type")
        found[name] = value if name == "UniqueIdentifier" else _from_hex(name, value)
    return found


def _ttlv(tag: str, kind: str, value: object) -> dict[str, object]:
    return {"tag": tag, "type": kind, "value": value}


def _from_hex(name: str, value: str) -> bytes:
    raw = bytes.fromhex(value) if all(char in "0123456789ABCDEF" for char in value) and len(value) % 2 == 0 else None
    if raw is None:
        raise ViolationError(f"{name} is not upper-case hexadecimal")
    return raw


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64url(value: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except ValueError as exc:
        raise ViolationError("not base64url") from exc
    if _base64url(raw) != value:
        raise ViolationError("not base64url as an encoder writes it")
    return raw


def make_client_certificate(directory: Path, name: str = "client") -> Path:
    """Write a client's certificate, which is its own authority, and its key to one file, and return that."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
        now + datetime.timedelta(days=7)
    )
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
        key, hashes.SHA256()
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path

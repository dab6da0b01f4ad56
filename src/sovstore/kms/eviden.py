"""``eviden-kms://host:port/kid``: a KEK in Eviden KMS (once Cosmian KMS), by its interfaces over HTTPS.

Implements two: ``?api=jose``, the default (``/v1/crypto``, RFC 7516 with ``dir`` and ``A256GCM``), and ``?api=kmip``
(``/kmip/2_1``, KMIP 2.1 as JSON), which alone takes the keys of an HSM. Does not implement KMIP as TTLV, which the
driver ``kmip`` speaks.

A wrapped secret is ``mark ‖ length ‖ name ‖ IV (12) ‖ ciphertext ‖ tag (16)``. The mark tells the interface; the name
is the JWE header or the identifier of the key, and its length is one byte. So two byte strings never read the same.
"""

from __future__ import annotations

import base64
import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from sovstore.errors import ConfigError, NoMatchingKeyError
from sovstore.kms.base import CONTEXT, Access, WrappingKey
from sovstore.kms.http import HTTPService, Reply
from sovstore.kms.service import Errors
from sovstore.kms.settings import Service
from sovstore.kms.uri import base_url, parse

_SCHEME = "eviden-kms"
_EXAMPLE = "eviden-kms://kms.example.fr:9998/cohortes"
_PORT = 9998
_HSM = "hsm::"
#: Names of a version that the service takes and never answers with: what was wrapped could not be compared with them.
_ALIAS = re.compile(r".*@(?:latest|first|0[0-9]*)")
_VERSION = re.compile(r"@([1-9][0-9]{0,9})\Z")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IV, _TAG = 12, 16
#: Bytes that the payload of 48 to 96 bytes has, with the one in front of it.
_LEAST, _MOST = 49, 97
#: The service takes data that begins with 87 87 for a list of texts, and what comes back is then not what was sent. So
#: something stands in front of the payload, and a ciphertext that begins so is made again.
_FRONT, _LIST = b"\x01", b"\x87\x87"
_TRIES = 8
#: What the service says of a key that it does not have: words of JOSE, beginnings of KMIP's texts.
_MISSING = frozenset(("not_found", "Item not found", "Item_Not_Found", "Object_Not_Found"))


class _Sealed(NamedTuple):
    name: bytes
    iv: bytes
    ciphertext: bytes
    tag: bytes


def open_key(uri: str, access: Access) -> EvidenKey:
    """Return the KEK at `uri`; asks nothing of the service.

    Raises
    ------
    ConfigError
        When the URI or a setting is wrong, or there is neither a client certificate nor a token.
    MissingDependencyError
        When httpcore is not installed.
    """
    parts = parse(uri, _EXAMPLE, segments={1}, query={"api"})
    kid, api = parts.segments[0], parts.query.get("api", "jose")
    if api not in _APIS:
        shown = uri.partition("?")[0]
        raise ConfigError(f"{shown}: unknown api", path=shown, hint=f"known: {', '.join(_APIS)}")
    if _ALIAS.fullmatch(kid):
        hint = "name the keyset (NAME, always its newest key) or one of its keys (NAME@2)"
        raise ConfigError(f"{uri}: names a key by an alias of its version", path=uri, hint=hint)
    if kid.startswith(_HSM) and api == "jose":
        # Its JOSE interface passes the header as AAD, and its HSM keys take none.
        hint = f"write {uri.partition('?')[0]}?api=kmip"
        raise ConfigError(f"{uri}: a key in an HSM can be used by api=kmip only", path=uri, hint=hint)
    service = access.service(uri)
    address = parts.address if parts.port is not None else f"{parts.address}:{_PORT}"
    url = base_url(f"{'http' if service.plain_http else 'https'}://{address}", uri=uri)
    if not _headers(service, uri) and (service.cert_file is None or service.plain_http):
        # A service without authentication serves everyone as its administrator; this one shall not be used so.
        hint = "set 'cert_file' and 'key_file' in [kms.NAME], or 'token'"
        raise ConfigError(f"{uri}: no credentials for Eviden KMS", path=uri, hint=hint)
    return _APIS[api](uri, service, url, kid)


class EvidenKey(WrappingKey):
    """A KEK in Eviden KMS.

    Parameters
    ----------
    uri : str
        Its key URI.
    service : Service
        How the service is reached.
    url : str
        Of the service.
    kid : str
        Identifier of the key, or name of a keyset of which the service uses the newest.
    """

    provider = _SCHEME
    _mark: ClassVar[int]

    def __init__(self, uri: str, service: Service, url: str, kid: str) -> None:
        self._uri, self._service, self._kid = uri, service, kid
        self._errors = Errors(uri, self.provider, "Eviden KMS")
        self._http = HTTPService(
            service,
            url,
            self._errors,
            extra="eviden",
            # Looked up for each request: the token behind a reference may have been renewed.
            headers=lambda: _headers(service, uri),
            request_id=lambda headers, _body: headers.get("x-request-id"),
        )
        self._looked = self._unwrapped = False

    @property
    def uri(self) -> str:
        """The key URI."""
        return self._uri

    @property
    def in_hsm(self) -> bool:
        """Whether the key is in an HSM: its identifier says so."""
        return self._kid.startswith(_HSM)

    def describe(self) -> Mapping[str, str]:
        """Return what the service says of the KEK, by one request with the right ``get_attributes``."""
        told = self._attributes()
        algorithm = f"{told.get('CryptographicAlgorithm')}-{told.get('CryptographicLength')}"
        version = _VERSION.search(told["UniqueIdentifier"])
        known = {
            "protection_level": "hsm" if self.in_hsm else "software",
            "algorithm": algorithm if told.get("ObjectType") == "SymmetricKey" else told.get("ObjectType"),
            "version": version and version[1],
            "state": told.get("State"),
        }
        # Shown to people as it is, so it must be a word.
        words = {name: str(value) for name, value in known.items() if value is not None}
        return {name: word if _WORD.fullmatch(word) else "unknown" for name, word in words.items()}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @abstractmethod
    def _seal(self, data: bytes, aad: bytes) -> _Sealed:
        """Return `data` encrypted by the service."""

    @abstractmethod
    def _open(self, sealed: _Sealed, aad: bytes) -> bytes:
        """Return what `_seal` was given, by one request."""

    @abstractmethod
    def _kid_in(self, name: bytes) -> str | None:
        """Return the identifier that the name in a wrapped secret has; None when it has none."""

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        self._look()
        for _ in range(_TRIES):
            name, iv, ciphertext, tag = self._seal(_FRONT + payload, aad)
            lengths = len(iv), len(ciphertext), len(tag)
            if not self._is_ours(self._kid_in(name)) or lengths != (_IV, len(_FRONT) + len(payload), _TAG):
                raise self._errors.garbled()
            if not ciphertext.startswith(_LIST):
                return bytes((self._mark, len(name))) + name + iv + ciphertext + tag
        raise self._errors.garbled()

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        sealed = self._parsed(wrapped)
        if len(aad) != CONTEXT:
            raise self.refused()
        try:
            data = self._open(sealed, aad)
        except NoMatchingKeyError as exc:
            if self._kid_in(sealed.name) == self._kid:
                raise
            # The version comes out of the wrapped secret, which may have been altered, and not out of the URI.
            raise self.refused() from exc
        # Every public-key encryption makes it longer; a reader cannot look at the type of the key.
        if not data.startswith(_FRONT) or len(data) != len(sealed.ciphertext):
            del data
            raise self.refused()
        self._unwrapped = True
        return data[len(_FRONT) :]

    def _parsed(self, wrapped: bytes) -> _Sealed:
        # Before anything is sent: the service decrypts under whatever key the header names.
        if len(wrapped) < 2 or wrapped[0] != self._mark:
            raise self.refused()
        name, rest = wrapped[2 : 2 + wrapped[1]], wrapped[2 + wrapped[1] :]
        if not _LEAST <= len(rest) - _IV - _TAG <= _MOST or not self._is_ours(self._kid_in(name)):
            raise self.refused()
        return _Sealed(name, rest[:_IV], rest[_IV:-_TAG], rest[-_TAG:])

    def _is_ours(self, kid: object) -> bool:
        """Return whether an identifier is ours, or one of a key of the keyset that is ours."""
        if not isinstance(kid, str) or not kid.startswith(self._kid):
            return False
        version = kid[len(self._kid) :]
        return not version or ("@" not in self._kid and _VERSION.fullmatch(version) is not None)

    def _look(self) -> None:
        """Refuse a KEK that is none, before the first wrap. What was unwrapped shows a good one, but not its level."""
        declared = self._service.protection_level == "hsm"
        if self._looked or (self._unwrapped and not declared):
            return
        key = self.describe()
        if key.get("algorithm") != "AES-256":
            raise self._errors.unsuitable("it is not a symmetric key for AES-256")
        if declared and not self.in_hsm:
            raise self._errors.unsuitable("[kms.NAME] says protection_level = 'hsm', and the key is not in an HSM")
        if key.get("state", "Active") != "Active":
            raise self._errors.denied("does not let the key wrap: it is not active", "see its state with ckms", None)
        self._looked = True

    def _attributes(self) -> dict[str, Any]:
        """Return the attributes of the key. Both interfaces use the same keys; JOSE has no request for this."""
        asked = (_ttlv("UniqueIdentifier", "TextString", self._kid), _ttlv("AttributeReference", "Structure", []))
        found = self._kmip("GetAttributes", *asked)
        told = _members(found.get("Attributes"))
        if told is None or not self._is_ours(found.get("UniqueIdentifier")):
            raise self._errors.garbled()
        return {**told, "UniqueIdentifier": found["UniqueIdentifier"]}

    def _kmip(self, operation: str, *members: object) -> dict[str, Any]:
        """Return the members of the reply to one operation of KMIP."""
        reply = self._http.request("POST", "/kmip/2_1", _ttlv(operation, "Structure", list(members)))
        kind = reply.body.partition(":")[0] if isinstance(reply.body, str) else ""
        self._check(reply, kind, decrypting=operation == "Decrypt")
        found = _members(reply.body) if reply.text("tag") == f"{operation}Response" else None
        if found is None:
            raise self._errors.garbled(reply.request_id)
        return found

    def _check(self, reply: Reply, kind: str, *, decrypting: bool) -> None:
        """Map what the service says to our errors, in one place; `kind` is its word for the error."""
        self.note_request(reply.request_id)
        status, request_id = reply.status, reply.request_id
        if status == 200:
            return
        if status in (401, 403):
            hint = "check certificate or token, and its rights: 'decrypt' to read; 'encrypt', 'get_attributes' to write"
            raise self._errors.denied("does not allow it", hint, request_id)
        if kind in _MISSING:
            hint = "check the identifier, and that this user was granted a right on the key"
            raise self._errors.missing(hint, request_id)
        if status == 422 and kind == "Permission_Denied":
            raise self._errors.denied("does not let the key be used now", "see its state with ckms", request_id)
        # An HSM's refusal comes as 500, whatever its cause (InterfaceError, in the service's error.rs).
        if decrypting and (status in (400, 422) or (status == 500 and self.in_hsm)):
            raise self.refused()
        if status in (400, 422, 500):
            hint = "check that the key is there, is active and may encrypt, then ask its operator"
            raise self._errors.failed(f"answered with an error ({status})", hint, request_id)
        raise self._errors.garbled(request_id)


class JOSEKey(EvidenKey):
    """A KEK used by ``/v1/crypto``: JWE with direct encryption. The header, and so the key's name, is authenticated."""

    _mark = 1

    def _seal(self, data: bytes, aad: bytes) -> _Sealed:
        asked = {"alg": "dir", "aad": _base64url(aad), "data": _base64url(data), "enc": "A256GCM", "kid": self._kid}
        reply = self._post("encrypt", asked)
        parts = [_from_base64url(reply.text(name)) for name in ("protected", "iv", "ciphertext", "tag")]
        found = [part for part in parts if part is not None]
        if len(found) != len(parts) or reply.text("encrypted_key") != "" or reply.text("aad") != asked["aad"]:
            raise self._errors.garbled(reply.request_id)
        return _Sealed(*found)

    def _open(self, sealed: _Sealed, aad: bytes) -> bytes:
        names = ("protected", "iv", "ciphertext", "tag")
        parts = {name: _base64url(part) for name, part in zip(names, sealed, strict=True)}
        reply = self._post("decrypt", {**parts, "encrypted_key": "", "aad": _base64url(aad)})
        data = _from_base64url(reply.text("data"))
        if data is None or reply.text("kid") != self._kid_in(sealed.name):
            raise self._errors.garbled(reply.request_id)
        return data

    def _kid_in(self, name: bytes) -> str | None:
        try:
            header = json.loads(name.decode("ascii"))
            # White space, a member twice and needless escapes all fail this comparison.
            exact = isinstance(header, dict) and json.dumps(header, separators=(",", ":")).encode() == name
        except (ValueError, RecursionError):
            return None
        # Nothing but what is used here: with RSA-OAEP, anyone could make a JWE that the service decrypts.
        if not exact or set(header) != {"alg", "enc", "kid"} or (header["alg"], header["enc"]) != ("dir", "A256GCM"):
            return None
        return header["kid"] if isinstance(header["kid"], str) else None

    def _post(self, action: str, body: Mapping[str, str]) -> Reply:
        reply = self._http.request("POST", f"/v1/crypto/{action}", body)
        self._check(reply, reply.text("error") or "", decrypting=action == "decrypt")
        return reply


class KMIPKey(EvidenKey):
    """A KEK used by ``/kmip/2_1``. Keys in an HSM take no AAD: the context is then bound in the plaintext only."""

    _mark = 2

    def _seal(self, data: bytes, aad: bytes) -> _Sealed:
        found = self._kmip("Encrypt", *self._asked(self._kid, data, aad))
        kid = found.get("UniqueIdentifier")
        parts = [_hex(found.get(name)) for name in ("IVCounterNonce", "Data", "AuthenticatedEncryptionTag")]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts) or not isinstance(kid, str) or not kid.isascii():
            raise self._errors.garbled()
        return _Sealed(kid.encode(), *known)

    def _open(self, sealed: _Sealed, aad: bytes) -> bytes:
        kid = sealed.name.decode("ascii")
        asked = (
            *self._asked(kid, sealed.ciphertext, aad),
            _ttlv("IVCounterNonce", "ByteString", sealed.iv.hex().upper()),
            _ttlv("AuthenticatedEncryptionTag", "ByteString", sealed.tag.hex().upper()),
        )
        found = self._kmip("Decrypt", *asked)
        data, used = _hex(found.get("Data")), found.get("UniqueIdentifier")
        if data is None or not self._is_ours(used):
            raise self._errors.garbled()
        if used != kid:
            # The name is not authenticated, and the name of a keyset stands for each of its keys.
            del data, found
            raise self.refused()
        return data

    def _kid_in(self, name: bytes) -> str | None:
        return name.decode("ascii") if name.isascii() else None

    def _asked(self, kid: str, data: bytes, aad: bytes) -> list[object]:
        parameters = [
            _ttlv("BlockCipherMode", "Enumeration", "GCM"),
            _ttlv("CryptographicAlgorithm", "Enumeration", "AES"),
            # Said, since the service cuts the tag to what it is asked for.
            _ttlv("TagLength", "Integer", _TAG),
        ]
        asked = [
            _ttlv("UniqueIdentifier", "TextString", kid),
            _ttlv("CryptographicParameters", "Structure", parameters),
            _ttlv("Data", "ByteString", data.hex().upper()),
        ]
        if not self.in_hsm:
            asked.append(_ttlv("AuthenticatedEncryptionAdditionalData", "ByteString", aad.hex().upper()))
        return list(asked)


_APIS: Mapping[str, type[EvidenKey]] = {"jose": JOSEKey, "kmip": KMIPKey}


def _headers(service: Service, uri: str) -> Mapping[str, str]:
    token = service.secret("token")
    if token is None:
        return {}
    if not token.reveal().isascii():
        hint = "correct what 'token' in [kms.NAME] refers to"
        raise ConfigError(f"{uri}: a token with characters that no header takes", path=uri, hint=hint)
    return {"Authorization": f"Bearer {token.reveal().decode()}"}


def _ttlv(tag: str, kind: str, value: object) -> dict[str, object]:
    return {"tag": tag, "type": kind, "value": value}


def _members(structure: object) -> dict[str, Any] | None:
    """Return the members of a structure by their tags, themselves not looked into; None when it is none."""
    if isinstance(structure, dict):
        # The service leaves the type of a structure away (ttlv/serialize.rs), where its documentation has it.
        structure = structure.get("value") if structure.get("type", "Structure") == "Structure" else None
    if not isinstance(structure, list) or not all(isinstance(item, dict) for item in structure):
        return None
    members = {tag: item.get("value") for item in structure if isinstance(tag := item.get("tag"), str)}
    return members if len(members) == len(structure) else None


def _base64url(raw: bytes) -> str:
    """Return base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64url(value: str | None) -> bytes | None:
    """Return the bytes of base64url; None when it is not as `_base64url` writes it."""
    try:
        raw = base64.urlsafe_b64decode(f"{value}{'=' * (-len(value or '') % 4)}")
    except ValueError:
        return None
    return raw if _base64url(raw) == value else None


def _hex(value: object) -> bytes | None:
    """Return the bytes of a ByteString; None when it is not in upper-case hexadecimal."""
    try:
        raw = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return None
    return raw if raw.hex().upper() == value else None

"""``openbao://host:port/mount/key``: a KEK in the transit engine of OpenBao or HashiCorp Vault, or in Clever Cloud KMS.

Implements wrapping by ``encrypt`` and ``decrypt`` of symmetric AEAD keys, with the context as associated data.
``?dialect=clever`` is for Clever Cloud KMS, which speaks the same interface with some differences: no associated data
as far as its documentation says, so that the context is bound in the plaintext only; base64url; errors in another form.
Does not implement Vault's ``rewrap``, which knows no associated data. Public-key, derived and exportable keys are
refused.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sovstore.errors import ConfigError, KMSError
from sovstore.kms import uri as key_uri
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.openbao_login import Login
from sovstore.kms.service import Errors, missing_extra, with_retries
from sovstore.kms.settings import Service

if TYPE_CHECKING:
    from sovstore.kms.openbao_wire import Answer, Call, Outcome

_EXAMPLE = "openbao://bao.example.fr:8200/transit/kek"
#: The port of OpenBao and Vault.
_PORT = 8200
#: A mount has one segment or several; a key one more.
_SEGMENTS = range(2, 17)
_CLEVER = "clever"
#: The KEKs that only the service can wrap for; and the bytes of nonce and tag that each adds.
_ADDED = {"aes128-gcm96": 28, "aes256-gcm96": 28, "chacha20-poly1305": 28, "xchacha20-poly1305": 40}
#: What must not be said of a KEK. `derived` keys want a context of their own; the others may leave the service.
_NEVER = {
    "derived": "its keys are derived",
    "convergent_encryption": "it makes equal wraps of equal keys",
    "exportable": "it can be exported",
    "allow_plaintext_backup": "it can leave the service in a backup",
}
_WRAPPED = re.compile(rb"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]{64,256}={0,2})")
_WRAPPED_CLEVER = re.compile(rb"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9_-]{64,256}={0,2})")
#: What each request needs to be let do, in words and as a capability of a policy.
_RIGHTS = {"encrypt": ("wrap", "update"), "decrypt": ("unwrap", "update"), "keys": ("look at the key", "read")}
_FORBIDDEN = 403
#: Bytes of payload (`WrappingKey`), and so of what an AEAD makes of it. An RSA key makes 256 and more.
_LEAST, _MOST = 48, 96


def open_key(uri: str, access: Access) -> OpenBaoKey:
    """Return the KEK that a URI names; asks the service nothing.

    Raises
    ------
    ConfigError
        When the URI is malformed, or a setting that the login needs is missing or wrong.
    MissingDependencyError
        When hvac is not installed.
    """
    place = key_uri.parse(uri, _EXAMPLE, segments=_SEGMENTS, query=("namespace", "dialect"))
    return (VaultKey if place.scheme == "vault" else OpenBaoKey)(uri, place, access.service(uri))


class OpenBaoKey(WrappingKey):
    """A KEK in a transit engine.

    Parameters
    ----------
    uri : str
        Key URI.
    place : KeyURI
        The same, taken apart.
    service : Service
        How the service is reached.
    """

    provider: ClassVar[str] = "openbao"
    _title: ClassVar[str] = "OpenBao"

    def __init__(self, uri: str, place: key_uri.KeyURI, service: Service) -> None:
        self._uri, self._service = uri, service
        self._mount, self._key = "/".join(place.segments[:-1]), place.segments[-1]
        self._clever = _dialect(uri, place, service)
        self._errors = Errors(uri, self.provider, "Clever Cloud KMS" if self._clever else self._title)
        try:
            from sovstore.kms.openbao_wire import Wire
        except ModuleNotFoundError as exc:
            raise missing_extra(uri, exc.name or "hvac", "openbao") from exc
        self._wire = Wire(service, _url(uri, place, service), _namespace(place), self._errors)
        self._login = Login(service, self._errors, self._wire.call)
        #: Whether the KEK was seen to be one that we may wrap under.
        self._suits = False

    @property
    def uri(self) -> str:
        """The key URI."""
        return self._uri

    def describe(self) -> Mapping[str, str]:
        """Return what the service says of the KEK; needs the right to read its description.

        Raises
        ------
        KMSError
            When the service refuses or does not answer.
        """
        data = self._asked(self._description)
        algorithm, version = data.get("type"), data.get("latest_version")
        return {
            # An HSM may keep the seal of the server. The KEK itself is used in the server's memory.
            "protection_level": "software",
            **({"algorithm": algorithm} if isinstance(algorithm, str) else {}),
            **({"version": str(version)} if type(version) is int else {}),
            "state": "deleted" if data.get("soft_deleted") is True else "enabled",
        }

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._wire.close()

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        if self._service.protection_level == "hsm":
            why = "'protection_level' says hsm, and the service uses it in the memory of a server"
            raise self._errors.unsuitable(why)
        data = self._asked(lambda end: self._encrypted(payload, aad, end))
        text = data.get("ciphertext")
        wrapped = text.encode() if isinstance(text, str) and text.isascii() else b""
        size = self._size(wrapped)
        if size is None or not (self._clever or size - len(payload) in _ADDED.values()):
            raise self._errors.garbled()
        return wrapped

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        size = self._size(wrapped)
        if size is None or not _LEAST + min(_ADDED.values()) <= size <= self._most:
            # The server's own reading is lax: it passes over line breaks and takes v01 for v1.
            raise self.refused()
        ciphertext, bound = wrapped.decode("ascii"), self._bound(aad)
        data = self._asked(
            lambda end: self._data("decrypt", end, lambda call: call.decrypt(self._mount, self._key, ciphertext, bound))
        )
        payload = _bytes(data.get("plaintext"))
        if payload is None:
            del data
            raise self._errors.garbled()
        # It is there, and it is no public key: the form of what it unwrapped says so.
        self._suits = True
        return payload

    def _encrypted(self, payload: bytes, aad: bytes, end: float) -> Mapping[str, Any]:
        if not self._suits:
            # Not only for its type: to encrypt under a key that is not there would make it, where the policy lets it.
            self._check(self._description(end))
            self._suits = True
        bound = self._bound(aad)
        return self._data("encrypt", end, lambda call: call.encrypt(self._mount, self._key, payload, bound))

    def _description(self, end: float) -> Mapping[str, Any]:
        return self._data("keys", end, lambda call: call.read_key(self._mount, self._key))

    def _check(self, data: Mapping[str, Any]) -> None:
        """Refuse a key that anyone could wrap for, that wants more than we send, or that can leave the service."""
        # What Clever Cloud KMS says of a key is not documented; its transit keys are symmetric.
        kind = data.get("type", "xchacha20-poly1305" if self._clever else None)
        if not isinstance(kind, str):
            raise self._errors.garbled()
        if kind not in _ADDED:
            raise self._errors.unsuitable("it is not a key of AES-GCM or ChaCha20-Poly1305")
        for name, why in _NEVER.items():
            said = data.get(name, False if self._clever or name == "convergent_encryption" else None)
            if type(said) is not bool:
                raise self._errors.garbled()
            if said:
                raise self._errors.unsuitable(why)
        if data.get("soft_deleted") is True:
            raise self._deleted(None)

    def _asked(self, step: Callable[[float], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return what a step gives, made again while the service is away, all within the time of one call."""
        return with_retries(lambda left_s: step(time.monotonic() + left_s), self._service.timeout_s)

    def _data(self, right: str, end: float, act: Callable[[Call], Outcome]) -> Mapping[str, Any]:
        """Return the data of the answer to one request, after a login if one is due."""
        token, new = self._login.token(end)
        answer = _answer(act(self._wire.call(token, end)))
        if answer.status == _FORBIDDEN and not new:
            # It may have been revoked, or the server lost it. Once: the right may be what is missing.
            another = self._login.another(token, end)
            answer = answer if another is None else _answer(act(self._wire.call(another, end)))
        self.note_request(answer.request_id)
        data = answer.member("data")
        if answer.status != 200:
            raise self._refusal(answer, right)
        if not isinstance(data, dict):
            raise self._errors.garbled(answer.request_id)
        return data

    def _refusal(self, answer: Answer, right: str) -> KMSError:
        """Return the error for an answer: the one place where they are mapped."""
        status, request_id = answer.status, answer.request_id
        if status == 404 or (status == 400 and "encryption key not found" in answer.complaint()):
            hint = "check mount, key and namespace in its URI, or make the key in the service; wrapping never makes one"
            return self._errors.missing(hint, request_id)
        if status in (401, _FORBIDDEN):
            return self._errors.denied(f"does not let us {_RIGHTS[right][0]}", self._hint(right), request_id)
        if status == 400 and "soft-deleted" in answer.complaint():
            return self._deleted(request_id)
        if status == 400 and right == "decrypt":
            return self.refused()
        if status == 400:
            hint = "look at the key in the service: its type, and its 'min_encryption_version'"
            return self._errors.failed("refused to wrap under the key", hint, request_id)
        return self._errors.garbled(request_id)

    def _deleted(self, request_id: str | None) -> KMSError:
        hint = "ask its operator to restore it; any other KEK of the store opens it meanwhile"
        return self._errors.denied("has the key marked as deleted", hint, request_id)

    def _hint(self, right: str) -> str:
        needs = f'path "{self._mount}/{right}/{self._key}" {{ capabilities = ["{_RIGHTS[right][1]}"] }}'
        # To encrypt under a key that is not there is to make it, and another right.
        gone = ", or the key is not there any more" if right == "encrypt" else ""
        if self._service.auth in (None, "token"):
            return f"have a new token if this one expired, or log in by another 'auth'; its policy needs {needs}{gone}"
        return f"the policy of the role that logs in needs {needs}{gone}"

    def _bound(self, aad: bytes) -> bytes | None:
        return None if self._clever else aad

    @property
    def _most(self) -> int:
        # Clever Cloud KMS encrypts the base64 of what it is given (seen in the examples of its documentation).
        return max(_ADDED.values()) + (-(-_MOST // 3) * 4 if self._clever else _MOST)

    def _size(self, wrapped: bytes) -> int | None:
        """Return how many bytes a wrapped secret has behind its version; None when it is not in its one form."""
        found = (_WRAPPED_CLEVER if self._clever else _WRAPPED).fullmatch(wrapped)
        if found is None:
            return None
        text = found[2].rstrip(b"=")
        decode, encode = (
            (base64.urlsafe_b64decode, base64.urlsafe_b64encode)
            if self._clever
            else (base64.b64decode, base64.b64encode)
        )
        try:
            raw = decode(text + b"=" * (-len(text) % 4))
        except ValueError:
            return None
        again = encode(raw)
        # Whether Clever Cloud KMS pads is not documented. What it sent goes back as it came.
        good = found[2] in (again, again.rstrip(b"=")) if self._clever else found[2] == again
        return len(raw) if good else None


class VaultKey(OpenBaoKey):
    """A KEK in a transit engine of HashiCorp Vault: the same interface."""

    provider: ClassVar[str] = "vault"
    _title: ClassVar[str] = "Vault"


def _url(uri: str, place: key_uri.KeyURI, service: Service) -> str:
    address = place.address if place.port is not None else f"{place.address}:{_PORT}"
    return key_uri.base_url(f"{'http' if service.plain_http else 'https'}://{address}", uri=uri)


def _namespace(place: key_uri.KeyURI) -> str | None:
    namespace = place.query.get("namespace")
    if namespace is not None and not all(
        key_uri.NAME.fullmatch(part) and ".." not in part for part in namespace.split("/")
    ):
        # Not quoted: what stands in its place may be a token.
        hint = "write ?namespace=team or ?namespace=team/child"
        raise ConfigError("kek: not the name of a namespace in its URI", path="kek", hint=hint)
    return namespace


def _dialect(uri: str, place: key_uri.KeyURI, service: Service) -> bool:
    """Return whether the service is Clever Cloud KMS."""
    dialect = place.query.get("dialect")
    if dialect not in (None, _CLEVER):
        hint = f"known: {_CLEVER}; leave it out for OpenBao and Vault"
        raise ConfigError("kek: unknown dialect in its URI", path="kek", hint=hint)
    if dialect == _CLEVER and service.auth not in (None, "token"):
        hint = "take 'auth' out of [kms.NAME], and set 'token'"
        raise ConfigError(f"{uri}: Clever Cloud KMS gives tokens, and no other way in", path=uri, hint=hint)
    return dialect == _CLEVER


def _answer(outcome: Outcome) -> Answer:
    if isinstance(outcome, KMSError):
        raise outcome
    return outcome


def _bytes(text: object) -> bytes | None:
    """Return what a reply holds in base64; None when it does not."""
    if not isinstance(text, str) or not text.isascii():
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None

"""``okms://region/okmsId/keyId``: a service key of OVHcloud KMS, over its REST interface (version 2.14.0).

Logs in by a client's certificate or by a bearer token. Implements encrypt, decrypt and the look at a key. Does not
implement data keys, which take no context, nor KMIP, nor making, rotating or destroying a key: an administrator does.

What is stored is the compact JWE (RFC 7516) that the service makes. Its inside is not documented, so that no more is
asked of it than that it is one, spelled in the one way, and not made with a public key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509

from sovstore.errors import ConfigError, KMSError
from sovstore.kms.base import CONTEXT, Access, WrappingKey
from sovstore.kms.http import HTTPService, Reply
from sovstore.kms.service import Errors
from sovstore.kms.settings import Service
from sovstore.kms.uri import base_url, parse

_EXAMPLE = "okms://eu-west-par/OKMS-ID/KEY-ID"
_REGION = re.compile(r"[a-z]+-[a-z]+-[a-z0-9]+")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Variable of the service's own command line.
_TOKEN = "KMS_RESTAPI_TOKEN"  # noqa: S105  # nosec B105  # the name of a variable

#: otherName of a certificate that says which OKMS it is for.
_UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_DOMAIN = "okms.domain:"
#: Universal tags of DER: UTF8String, PrintableString, IA5String.
_TEXTS = (0x0C, 0x13, 0x16)

#: Categories of `error_code`, a bit field (ovh/okms-sdk-go, errors.go).
_AUTHENTICATION, _AUTHORIZATION, _NOT_FOUND, _DATABASE, _UNAVAILABLE, _THROTTLED, _CONFLICT = 3, 4, 5, 6, 7, 9, 10

#: The longest wrapped key: what `WrappingKey` allows. The service takes 5464.
_LONGEST = 4096
#: No cipher makes less of the 32 bytes of a digest, which cannot be compressed.
_SHORTEST_CIPHERTEXT = 32
#: Key management of JWE by a symmetric key (RFC 7518, 4.1). With RSA or ECDH anybody could make a keyset.
_SYMMETRIC = frozenset(("dir", "A128KW", "A192KW", "A256KW", "A128GCMKW", "A192GCMKW", "A256GCMKW"))

_LEVELS = {"SOFTWARE": "software", "HSM": "hsm", "MANAGED_HSM": "hsm"}
_STATES = ("pre_active", "active", "deactivated", "compromised", "destroyed", "destroyed_compromised")


def open_key(uri: str, access: Access) -> OKMSKey:
    """Return the KEK at `uri`; asks the service nothing.

    Raises
    ------
    ConfigError
        When the URI is malformed, there are no credentials or two kinds of them, one cannot be used, or the
        certificate is for another OKMS.
    KeyDeniedError, KMSUnavailableError
        When the token is in a keyring that is locked or does not answer.
    MissingDependencyError
        When httpcore is not installed.
    """
    okms_id, key_id, url = _parse(uri)
    service = access.service(uri)
    key = OKMSKey(uri, service, url, okms_id, key_id)
    _check_credentials(service, uri, url)
    if service.cert_file is not None:
        _check_certificate(service.cert_file, okms_id, uri)
    return key


class OKMSKey(WrappingKey):
    """A service key of OVHcloud KMS.

    Parameters
    ----------
    uri : str
        Its key URI.
    service : Service
        How the service is reached.
    url : str
        Of the service, checked.
    okms_id, key_id : str
        UUIDs, checked.
    """

    provider = "okms"

    def __init__(self, uri: str, service: Service, url: str, okms_id: str, key_id: str) -> None:
        self._uri, self._service, self._key_id = uri, service, key_id
        self._errors = Errors(uri, self.provider, "OVHcloud KMS")
        self._path = f"/api/{okms_id}/v1/servicekey/{key_id}"
        self._http = HTTPService(
            service, url, self._errors, extra="okms", headers=self._headers, request_id=_request_id
        )
        #: Whether it was seen to be fit to wrap: looked at, or it has unwrapped.
        self._fit = False

    @property
    def uri(self) -> str:
        """The key URI."""
        return self._uri

    def describe(self) -> Mapping[str, str]:
        """Return what the service says of the key; needs the right ``okms:apikms:serviceKey/get``."""
        return _facts(self._description())

    def close(self) -> None:
        """Close the connections, if any."""
        self._http.close()

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        if not self._fit:
            self._look()
            self._fit = True
        reply = self._ask("encrypt", {"plaintext": base64.b64encode(payload).decode(), "context": aad.hex()})
        wrapped = reply.text("ciphertext") or ""
        if not _is_wrapped_key(wrapped):
            raise self._errors.garbled(reply.request_id)
        return wrapped.encode()

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        text = wrapped.decode("ascii") if wrapped.isascii() else ""
        # A context of another length is not sent: the service takes 64 characters at most.
        if len(aad) != CONTEXT or not _is_wrapped_key(text):
            raise self.refused()
        reply = self._ask("decrypt", {"ciphertext": text, "context": aad.hex()})
        payload = _from_base64(reply.text("plaintext") or "")
        if not payload:
            raise self._errors.garbled(reply.request_id)
        # Where an HSM is declared, only the look shows it.
        if self._service.protection_level != "hsm" and hmac.compare_digest(payload[-CONTEXT:], aad):
            self._fit = True
        return payload

    def _look(self) -> None:
        body = self._description()
        facts, operations, state = _facts(body), body.get("operations"), _state(body)
        if body.get("type") != "oct":
            raise self._errors.unsuitable("it is not a symmetric key")
        if not isinstance(operations, list) or not all(name in operations for name in ("encrypt", "decrypt")):
            raise self._errors.unsuitable("its operations are not encrypt and decrypt")
        if self._service.protection_level == "hsm" and facts.get("protection_level") != "hsm":
            raise self._errors.unsuitable("an HSM is declared and the service does not say that the key is in one")
        # The interface promises no state; where there is none, the service refuses by itself.
        if state not in (None, "active"):
            raise self._errors.denied(f"says that the key is {facts.get('state', 'not active')}", _STATE_HINT)

    def _description(self) -> dict[str, Any]:
        reply = self._ask("get")
        if not isinstance(reply.body, dict) or (reply.text("id") or "").lower() != self._key_id:
            raise self._errors.garbled(reply.request_id)
        return reply.body

    def _ask(self, action: str, body: Mapping[str, str] | None = None) -> Reply:
        method, path = ("GET", self._path) if body is None else ("POST", f"{self._path}/{action}")
        reply = self._http.request(method, path, body, check=partial(self._check, action))
        if reply.status != 200:
            raise self._errors.garbled(reply.request_id)
        return reply

    def _check(self, action: str, reply: Reply) -> None:
        """Raise the error for what the service says; http.py does it for 429 and for a proxy's 502, 503 and 504."""
        self.note_request(reply.request_id)
        if reply.status in (200, 429):
            return
        category = _category(reply.body)
        if error := self._by_category(action, reply, category):
            raise error
        if reply.status == 400 and action == "decrypt":
            # The code for what does not authenticate is not documented.
            raise self.refused()
        if category == _CONFLICT:
            what = "does not let the key be used in its present state"
            raise self._errors.denied(what, _STATE_HINT, reply.request_id)
        if reply.status == 500 or (category is not None and reply.status < 500):
            raise self._errors.failed(f"refused the request ({reply.status})", _REFUSED_HINT, reply.request_id)

    def _by_category(self, action: str, reply: Reply, category: int | None) -> KMSError | None:
        # Not by the status: none is documented for a missing right, nor for a service that is not available.
        errors, status, request_id = self._errors, reply.status, reply.request_id
        if category == _AUTHORIZATION or (category is None and status == 403):
            hint = f"its identity needs the IAM action okms:apikms:serviceKey/{action} on this key"
            return errors.denied(f"does not allow it ({action})", hint, request_id)
        if category == _AUTHENTICATION or status == 401:
            hint = "the token or the certificate may have expired, be revoked or be of another OKMS; renew it"
            return errors.denied("does not accept the credentials", hint, request_id)
        if category == _THROTTLED:
            return errors.throttled(request_id)
        if category in (_DATABASE, _UNAVAILABLE):
            return errors.unavailable(f"is not available now ({status})", _AWAY_HINT, request_id)
        if category == _NOT_FOUND:
            return errors.missing("check region, OKMS id and key id; a destroyed key is gone", request_id)
        return None

    def _headers(self) -> Mapping[str, str]:
        if self._service.cert_file is not None:
            return {}
        # Asked for each time: tokens are short-lived, and what renews them replaces the file.
        token = self._service.secret("token", _TOKEN)
        if token is None:
            raise _no_credentials(self._uri)
        return {"Authorization": f"Bearer {token.reveal().decode()}"}


_STATE_HINT = "activate the key again, or replace it: 'sovstore keys add-kek STORE URI'"
_AWAY_HINT = "try again; any other KEK of the store opens it meanwhile"
_REFUSED_HINT = "give the request id to the support of OVHcloud"


def _parse(uri: str) -> tuple[str, str, str]:
    """Return the OKMS id, the key id and the URL of the service."""
    parts = parse(uri, _EXAMPLE, segments=(2,), query=("endpoint",))
    endpoint = parts.query.get("endpoint")
    okms_id, key_id = parts.segments
    given = uri.partition("?")[0], "?" in uri
    # One spelling for each key: a URI is compared with those of the keyset and of the audit trail.
    if given != (f"okms://{parts.host}/{okms_id}/{key_id}", endpoint is not None):
        raise _malformed(uri, "in lower case, without a port or an empty parameter")
    if not _REGION.fullmatch(parts.host):
        raise _malformed(uri, "the host is a region, such as eu-west-par")
    if not _UUID.fullmatch(okms_id) or not _UUID.fullmatch(key_id):
        raise _malformed(uri, "the OKMS id and the key id are UUIDs in lower case")
    country = "us" if parts.host.startswith("us-") else "net"
    url = f"https://{parts.host}.okms.ovh.{country}" if endpoint is None else base_url(endpoint, uri=uri)
    return okms_id, key_id, url


def _malformed(uri: str, hint: str) -> ConfigError:
    # Without its parameter, which may be anything.
    shown = uri.partition("?")[0]
    return ConfigError(f"{shown}: not an okms: URI", path=shown, hint=f"write {_EXAMPLE}: {hint}")


def _check_credentials(service: Service, uri: str, url: str) -> None:
    certificate = service.cert_file is not None
    token = service.secret("token", _TOKEN) is not None
    if certificate and token:
        hint = f"remove 'cert_file' and 'key_file', or 'token' and {_TOKEN}"
        raise ConfigError(f"{uri}: has a certificate and a token, and none is chosen by guessing", path=uri, hint=hint)
    if certificate and not url.startswith("https:"):
        raise ConfigError(f"{uri}: a certificate needs TLS", path=uri, hint="write the endpoint with https://")


def _no_credentials(uri: str) -> ConfigError:
    hint = f"set 'cert_file' and 'key_file' in [kms.NAME], or 'token' there or {_TOKEN}"
    return ConfigError(f"{uri}: has no credentials", path=uri, hint=hint)


def _check_certificate(file: str, okms_id: str, uri: str) -> None:
    """Refuse a certificate that says that it is for another OKMS; one that says nothing passes."""
    try:
        names = _domains(Path(file).read_bytes())
    except (OSError, ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        hint = "check 'cert_file' of [kms.NAME]: PEM, the client's certificate first"
        message = f"{uri}: {file} is no certificate that can be read"
        # Without the frames below, which hold the file: the private key may be in it too.
        raise ConfigError(message, path=file, hint=hint) from exc.with_traceback(None)
    if names and not {okms_id, "*"} & names:
        hint = "name the certificate that was made for this OKMS, or correct the OKMS id in the key URI"
        raise ConfigError(f"{uri}: the certificate is for another OKMS", path=file, hint=hint)


def _domains(pem: bytes) -> set[str]:
    leaf = x509.load_pem_x509_certificates(pem)[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    texts = [_text(name.value) for name in names.get_values_for_type(x509.OtherName) if name.type_id == _UPN]
    return {text.removeprefix(_DOMAIN).lower() for text in texts if text.startswith(_DOMAIN)}


def _text(der: bytes) -> str:
    """Return the characters of a DER string of less than 128 bytes; '' for anything else."""
    is_text = len(der) >= 2 and der[0] in _TEXTS and der[1] < 0x80 and der[1] == len(der) - 2
    return der[2:].decode(errors="replace") if is_text else ""


def _is_wrapped_key(text: str) -> bool:
    """Say whether a text is a compact JWE that a symmetric key could have made, in its only spelling."""
    if not text.isascii() or len(text) > _LONGEST:
        return False
    parts = [_from_base64(part, url=True) for part in text.split(".")]
    if len(parts) != 5 or any(part is None for part in parts):
        return False
    header, _, _, ciphertext, _ = (part or b"" for part in parts)
    return bool(header) and len(ciphertext) >= _SHORTEST_CIPHERTEXT and _algorithms(header) <= _SYMMETRIC


def _algorithms(header: bytes) -> set[str]:
    """Return every ``alg`` of a JWE header, were it there twice; none where it is no JSON, and so opaque."""
    try:
        members = json.loads(header, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return set()
    # Only an object becomes a tuple. Some parsers take names in any case.
    return {str(value) for name, value in members if name.lower() == "alg"} if isinstance(members, tuple) else set()


def _from_base64(text: str, *, url: bool = False) -> bytes | None:
    """Return the bytes that a text stands for in base64, or without padding in base64url; None if not canonical."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4) if url else text, b"-_" if url else None, validate=True)
    except (binascii.Error, ValueError):
        return None
    again = base64.urlsafe_b64encode(raw).rstrip(b"=") if url else base64.b64encode(raw)
    return raw if again.decode() == text else None


def _category(body: object) -> int | None:
    code = body.get("error_code") if isinstance(body, dict) else None
    if type(code) is not int or not 0 < code < 2**31:
        return None
    return code >> 12 & 0xF


def _request_id(headers: Mapping[str, str], body: object) -> str | None:
    """Return the id in an error's body; the interface has no header for it, and none in an answer that is no error."""
    del headers
    found = body.get("request_id") if isinstance(body, dict) else None
    return found if isinstance(found, str) and re.fullmatch(r"[0-9A-Za-z-]{8,64}", found) else None


def _facts(body: Mapping[str, Any]) -> dict[str, str]:
    """Return what is understood of a description; nothing else that the service says is passed on."""
    facts = {}
    if body.get("type") in ("oct", "RSA", "EC"):
        facts["algorithm"] = f"AES-{body['size']}" if _is_aes(body) else str(body["type"])
    if isinstance(level := body.get("protectionLevel"), str) and level in _LEVELS:
        facts["protection_level"] = _LEVELS[level]
    if (state := _state(body)) in _STATES:
        facts["state"] = str(state)
    return facts


def _state(body: Mapping[str, Any]) -> object:
    attributes = body.get("attributes")
    return attributes.get("state") if isinstance(attributes, dict) else None


def _is_aes(body: Mapping[str, Any]) -> bool:
    return body["type"] == "oct" and type(body.get("size")) is int and body["size"] in (128, 192, 256)

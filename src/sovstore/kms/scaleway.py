"""``scw-kms://region/key-id``: a KEK in Scaleway Key Manager (API v1alpha1), by its REST interface.

Wraps and unwraps by the service's ``encrypt`` and ``decrypt``, AES-256-GCM, with the context as associated data. Does
not use ``generate-data-key``, which binds no context. A wrapped secret is the ciphertext of the service, as bytes.
"""

from __future__ import annotations

import base64
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

from sovstore.errors import ConfigError, KeyDeniedError
from sovstore.kms.base import CONTEXT, Access, WrappingKey
from sovstore.kms.http import HTTPService, Reply
from sovstore.kms.service import Errors
from sovstore.kms.settings import Service
from sovstore.kms.uri import base_url, parse

_SCHEME = "scw-kms"
_EXAMPLE = "scw-kms://fr-par/11111111-2222-3333-4444-555555555555"
_ENDPOINT = "https://api.scaleway.com"
_REGION = re.compile(r"[a-z]{2}-[a-z]{3}")
_KEY_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Lengths that AES-GCM can give for a payload of 48 to 96 bytes, whatever else the service puts before it: at least IV
#: and tag are added. RSA, which anyone could use to forge, gives at least 256 bytes (2048 bits, the least it offers).
_LEAST, _BELOW = 48 + 12 + 16, 256
_WORD = re.compile(r"[a-z0-9_]{1,64}")
_ARGUMENTS = frozenset(("ciphertext", "associated_data"))
#: Errors that say that the key is there and cannot be used now.
_NOT_NOW = frozenset(("precondition_failed", "transient_state", "resource_locked", "resource_expired"))
_log = logging.getLogger("sovstore")


def open_key(uri: str, access: Access) -> ScalewayKey:
    """Return the KEK at `uri`; asks nothing of the service.

    Raises
    ------
    ConfigError
        When the URI or a setting is wrong, or there is no token.
    MissingDependencyError
        When httpcore is not installed.
    """
    parts = parse(uri, _EXAMPLE, segments={1}, query={"endpoint"})
    region, key_id = parts.host, parts.segments[0]
    # Compared with the text: what parses in two spellings would be two URIs of one key.
    if not uri.startswith(f"{_SCHEME}://{region}/") or not _REGION.fullmatch(region) or not _KEY_ID.fullmatch(key_id):
        shown, hint = uri.partition("?")[0], f"write {_EXAMPLE}: the region and the id of the key, in lower case"
        raise ConfigError(f"{shown}: not the URI of a key of Scaleway Key Manager", path=shown, hint=hint)
    endpoint = base_url(parts.query.get("endpoint", _ENDPOINT), uri=uri)
    service = access.service(uri)
    _headers(service, uri)
    return ScalewayKey(uri, service, f"{endpoint}/key-manager/v1alpha1/regions/{region}/keys/{key_id}", key_id)


class ScalewayKey(WrappingKey):
    """A KEK in Scaleway Key Manager.

    Parameters
    ----------
    uri : str
        Its key URI.
    service : Service
        How the service is reached.
    url : str
        Of the key.
    key_id : str
        UUID of the key.
    """

    provider = _SCHEME

    def __init__(self, uri: str, service: Service, url: str, key_id: str) -> None:
        self._uri, self._service, self._key_id = uri, service, key_id
        self._errors = Errors(uri, self.provider, "Scaleway Key Manager")
        self._http = HTTPService(
            service,
            url,
            self._errors,
            extra="scaleway",
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
    def rotated(self) -> bool:
        """Whether the key was rotated since it wrapped what this object unwrapped last."""
        return self.newer is not None

    def describe(self) -> Mapping[str, str]:
        """Return what the service says of the KEK, by one request with the right to read keys.

        ``rotated`` is there when the key has a newer version than the one that wrapped what was unwrapped last.
        """
        key = self._key()
        usage = key.get("usage")
        told = {
            "protection_level": key.get("protection_level"),
            "algorithm": usage.get("symmetric_encryption") if isinstance(usage, dict) else None,
            "version": key.get("rotation_count"),
            "state": key.get("state"),
            "rotated": "yes" if self.rotated else None,
        }
        # Shown to people as it is, so it must be a word.
        words = {name: str(value) for name, value in told.items() if value is not None}
        return {name: word if _WORD.fullmatch(word) else "unknown" for name, word in words.items()}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        self._look()
        reply = self._post("encrypt", {"plaintext": _base64(payload), "associated_data": _base64(aad)})
        wrapped = _from_base64(reply.text("ciphertext"))
        if wrapped is None or not _plausible(wrapped):
            raise self._errors.garbled(reply.request_id)
        return wrapped

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        # Before anything is sent: a reader cannot look at the type of the key, but RSA's lengths give it away.
        if not _plausible(wrapped) or len(aad) != CONTEXT:
            raise self.refused()
        reply = self._post("decrypt", {"ciphertext": _base64(wrapped), "associated_data": _base64(aad)})
        payload = _from_base64(reply.text("plaintext"))
        if payload is None:
            raise self._errors.garbled(reply.request_id)
        self._keep_newer(_from_base64(reply.text("ciphertext")))
        self._unwrapped = True
        return payload

    def _keep_newer(self, newer: bytes | None) -> None:
        # One that could not be unwrapped again is none; what was asked for is there, so it is no error either.
        self.newer = newer if newer is not None and _plausible(newer) else None
        if self.rotated:
            _say_rotated(self.uri)

    def _look(self) -> None:
        """Refuse a KEK that is none, before the first wrap. What was unwrapped shows a good one, but not its level."""
        if self._looked or (self._unwrapped and self._service.protection_level != "hsm"):
            return
        key = self.describe()
        if key.get("algorithm") != "aes_256_gcm":
            raise self._errors.unsuitable("its usage is not symmetric encryption with aes_256_gcm")
        if self._service.protection_level == "hsm" and key.get("protection_level", "hsm") != "hsm":
            raise self._errors.unsuitable("[kms.NAME] says protection_level = 'hsm', the service says otherwise")
        if key.get("state") != "enabled":
            raise self._not_now(None)
        self._looked = True

    def _key(self) -> Mapping[str, Any]:
        reply = self._checked(self._http.request("GET", ""))
        if reply.text("id") != self._key_id:
            raise self._errors.garbled(reply.request_id)
        key: Mapping[str, Any] = reply.body
        return key

    def _post(self, action: str, body: Mapping[str, str]) -> Reply:
        reply = self._http.request("POST", f"/{action}", body)
        if action == "decrypt" and _refuses_ciphertext(reply):
            self.note_request(reply.request_id)
            raise self.refused()
        reply = self._checked(reply)
        if reply.text("key_id") != self._key_id:
            raise self._errors.garbled(reply.request_id)
        return reply

    def _checked(self, reply: Reply) -> Reply:
        """Return a reply that says that it was done; the one place that maps what the service says."""
        self.note_request(reply.request_id)
        if reply.status == 200:
            return reply
        kind, request_id = reply.text("type"), reply.request_id
        if kind in _NOT_NOW or (reply.status == 400 and _names_arguments(reply)):
            raise self._not_now(request_id)
        if reply.status == 401:
            hint = "check 'token' of [kms.NAME], or SCW_SECRET_KEY: the secret key of an API key that has not expired"
            raise self._errors.denied("does not accept the token", hint, request_id)
        if reply.status == 403:
            hint = "readers need KeyManagerKeyDecrypt; who wraps needs KeyManagerKeyEncrypt and KeyManagerReadOnly too"
            raise self._errors.denied("does not allow it", hint, request_id)
        if reply.status == 404:
            raise self._errors.missing("check the region and the id, and that the key was not deleted", request_id)
        if reply.status >= 400:
            hint = "ask its operator; any other KEK of the store opens it meanwhile"
            raise self._errors.failed(f"answered with an error ({reply.status})", hint, request_id)
        raise self._errors.garbled(request_id)

    def _not_now(self, request_id: str | None) -> KeyDeniedError:
        hint = "see its state in the console: it may be disabled, locked, without key material or about to be deleted"
        return self._errors.denied("does not let the key be used now", hint, request_id)


def _headers(service: Service, uri: str) -> Mapping[str, str]:
    token = service.secret("token", "SCW_SECRET_KEY")
    if token is None or not token.reveal().isascii():
        what = "no token" if token is None else "a token with characters that no header takes,"
        hint = "set 'token' in [kms.NAME] to where it is, such as \"keyring://SERVICE/NAME\", or SCW_SECRET_KEY"
        raise ConfigError(f"{uri}: {what} for Scaleway Key Manager", path=uri, hint=hint)
    return {"X-Auth-Token": token.reveal().decode()}


def _refuses_ciphertext(reply: Reply) -> bool:
    # Also without details: the service documents no other cause of this answer to a well-formed request.
    return reply.status == 400 and reply.text("type") not in _NOT_NOW and not _names_arguments(reply)


def _names_arguments(reply: Reply) -> bool:
    """Return whether an error names arguments, and none that we could have got wrong by a bad ciphertext."""
    details = reply.body.get("details") if isinstance(reply.body, dict) else None
    named = [item.get("argument_name") for item in details if isinstance(item, dict)] if type(details) is list else []
    return bool(named) and all(isinstance(name, str) and name not in _ARGUMENTS for name in named)


def _plausible(wrapped: bytes) -> bool:
    return _LEAST <= len(wrapped) < _BELOW


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _from_base64(value: str | None) -> bytes | None:
    """Return the bytes of base64; None when it is not as an encoder writes it."""
    try:
        raw = base64.b64decode(value or "")
    except ValueError:
        return None
    return raw if _base64(raw) == value else None


@functools.lru_cache(maxsize=1024)
def _say_rotated(uri: str) -> None:
    """Say it once for each KEK in a process, not at each opening of a store."""
    _log.warning("%s: the KEK was rotated; 'sovstore keys rotate-kek STORE' moves the store to its newest version", uri)

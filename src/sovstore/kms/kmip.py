"""``kmip://host:port/uid``: a KEK in a key manager or HSM that speaks KMIP 1.4 or later, over mutual TLS.

Encrypts and decrypts there, by AES-GCM with the context as AAD. Does not fetch, make or wrap keys there, does not
negotiate a version, and does not speak the HTTPS or JSON profiles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from sovstore.errors import ConfigError, FormatError, KMSError, SovstoreError
from sovstore.kms import kmip_messages as messages
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.kmip_connection import Connections, certificate_refused
from sovstore.kms.kmip_messages import Ciphertext, Operation, Reply, Tag
from sovstore.kms.service import Errors, missing_extra, tls_context, with_retries
from sovstore.kms.settings import Service
from sovstore.kms.uri import KeyURI, parse

_EXAMPLE = "kmip://kmip.example.fr:5696/UID"
#: Registered for KMIP.
_PORT = 5696
#: Bytes of the initialisation vector that is sent, and of the longest that a service may use instead.
_IV, _LONGEST_IV = 12, 16
_SHORTEST, _LONGEST, _AAD = 48, 96, 32
#: First byte of a wrap.
_FORM = 1

# Result reasons (KMIP 1.4, 9.1.3.2.29; KMIP 2.1, 11.46).
_MISSING = frozenset({0x01, 0x36, 0x37})
_AUTHENTICATION = 0x03
#: The right, the state or the kind of the key does not allow it.
_DENIED = frozenset({0x0B, 0x0C, 0x0D, 0x14, 0x15, 0x1A, 0x28, 0x29, 0x30, 0x39, 0x43})
_NOT_OFFERED = frozenset({0x05, 0x08, 0x24, 0x3E})
_INVALID_MESSAGE, _OTHER_VERSION = 0x04, 0x3F
_BUSY = 0x3A
_AWAY = frozenset({0x2A, 0x44})
#: How services say that a ciphertext does not authenticate: InvalidMessage, InvalidField, CryptographicFailure and, by
#: PyKMIP, GeneralFailure.
_NOT_AUTHENTIC = frozenset({0x04, 0x07, 0x0A, 0x100})

_STATES = ("pre-active", "active", "deactivated", "compromised", "destroyed", "destroyed after compromise")
_STATE_HINT = "ask its operator: the key must be active, its usage Encrypt and Decrypt, and this certificate allowed"


def open_key(uri: str, access: Access) -> KMIPKey:
    """Return the KEK at `uri`. Asks nothing of the service yet.

    Raises
    ------
    ConfigError
        When the URI is malformed, or there is no client certificate or it cannot be used.
    MissingDependencyError
        When tenacity is not installed.
    """
    parts = parse(uri, _EXAMPLE, segments={1}, query={"version"})
    version = messages.VERSIONS.get(parts.query.get("version", "1.4"))
    if version is None:
        hint = f"known: {', '.join(messages.VERSIONS)}; before 1.4, KMIP could not bind a context"
        raise ConfigError("kek: a kmip: URI of a version that is not spoken", path="kek", hint=hint)
    try:
        parts.host.encode("idna")
    except UnicodeError as exc:
        raise ConfigError(f"{uri}: not the name of a host", path=uri, hint=f"write {_EXAMPLE}") from exc
    if parts.port == 0:
        raise ConfigError(f"{uri}: there is no port 0", path=uri, hint=f"write {_EXAMPLE}")
    service = access.service(uri)
    if service.cert_file is None:
        hint = "name it in [kms.NAME]: cert_file and key_file, PEM, issued for this client"
        raise ConfigError(f"{uri}: there is no client certificate, and KMIP has no other login", path=uri, hint=hint)
    if find_spec("tenacity") is None:
        raise missing_extra(uri, "tenacity", "kmip")
    # Read again for each connection; now it is to show what is wrong with them.
    tls_context(service, uri)
    return KMIPKey(uri, parts, version, service)


class KMIPKey(WrappingKey):
    """A KEK in a service that speaks KMIP.

    A wrap is: 1 byte 0x01, 1 byte length of the IV, the IV (12 to 16 bytes), the tag (16), the ciphertext (48 to 96).
    Neither key nor algorithm is in it: both are taken from the key URI, never from what the host stored.

    Parameters
    ----------
    uri : str
        Its key URI.
    parts : KeyURI
        The same, taken apart.
    version : tuple of int
        Of KMIP.
    service : Service
        How the service is reached.
    """

    provider = "kmip"

    def __init__(self, uri: str, parts: KeyURI, version: tuple[int, int], service: Service) -> None:
        self._uri, self._uid, self._version, self._service = uri, parts.segments[0], version, service
        self._errors = Errors(uri, self.provider, "the KMIP service")
        self._connections = Connections(parts.host, parts.port or _PORT, service, self._errors)
        #: Whether the key is known to be one that may be a KEK.
        self._suitable = False

    @property
    def uri(self) -> str:
        """The key URI."""
        return self._uri

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        if not self._suitable:
            self._check(self._attributes())
            self._suitable = True
        iv = os.urandom(_IV)
        reply = self._ask(Operation.ENCRYPT, messages.encrypt(self._version, self._uid, iv, payload, aad))
        try:
            sealed = messages.ciphertext(reply.payload)
        except FormatError as exc:
            raise self._errors.garbled(reply.request_id) from exc
        # Some HSMs use an IV of their own whatever they are given, and say which.
        iv = iv if sealed.iv is None else sealed.iv
        if len(sealed.data) != len(payload) or len(sealed.tag) != messages.TAG or not _IV <= len(iv) <= _LONGEST_IV:
            raise self._errors.garbled(reply.request_id)
        return bytes([_FORM, len(iv)]) + iv + sealed.tag + sealed.data

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        sealed = _taken_apart(wrapped)
        # What no AES-GCM could have made is refused here; the service is not asked to make sense of it.
        if sealed is None or len(aad) != _AAD:
            raise self.refused()
        reply = self._ask(Operation.DECRYPT, messages.decrypt(self._version, self._uid, sealed, aad))
        try:
            payload = messages.plaintext(reply.payload)
        except FormatError as exc:
            raise self._errors.garbled(reply.request_id) from exc
        self._suitable = True
        return payload

    def describe(self) -> Mapping[str, str]:
        """Return the algorithm and the state of the key. KMIP does not say whether it is in an HSM."""
        found = self._attributes()
        aes = (found.get(Tag.OBJECT_TYPE), found.get(Tag.ALGORITHM)) == (messages.SYMMETRIC_KEY, messages.AES)
        state = found.get(Tag.STATE, 0)
        return {
            "algorithm": f"AES-{found.get(Tag.LENGTH, 0)}" if aes else "not AES",
            "state": _STATES[state - 1] if 1 <= state <= len(_STATES) else "unknown",
        }

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connections.close()

    def _attributes(self) -> dict[int, int]:
        reply = self._ask(Operation.GET_ATTRIBUTES, messages.get_attributes(self._version, self._uid))
        try:
            return messages.attributes(reply.payload)
        except FormatError as exc:
            raise self._errors.garbled(reply.request_id) from exc

    def _check(self, found: Mapping[int, int]) -> None:
        """Refuse a key that must not be a KEK, by what the service says of it."""
        if found.get(Tag.OBJECT_TYPE) != messages.SYMMETRIC_KEY or found.get(Tag.ALGORITHM) != messages.AES:
            raise self._errors.unsuitable("the service does not say that it is a symmetric AES key")
        if found.get(Tag.LENGTH, 0) not in (128, 192, 256):
            raise self._errors.unsuitable("it is not an AES key of 128 bits or more")
        mask = found.get(Tag.USAGE_MASK, 0)
        if not mask & messages.MAY_ENCRYPT or not mask & messages.MAY_DECRYPT:
            raise self._errors.unsuitable("its usage mask does not have both Encrypt and Decrypt")
        if mask & messages.MAY_EXPORT or found.get(Tag.EXTRACTABLE):
            raise self._errors.unsuitable("it can be taken out of the service")
        if found.get(Tag.STATE) != messages.ACTIVE:
            raise self._errors.denied("has the key, and it is not active", _STATE_HINT)

    def _ask(self, operation: Operation, request: bytes) -> Reply:
        return with_retries(lambda left_s: self._once(operation, request, left_s), self._service.timeout_s)

    def _once(self, operation: Operation, request: bytes, left_s: float) -> Reply:
        reply = self._read(self._connections.exchange(request, left_s))
        self.note_request(reply.request_id)
        if reply.status == messages.FAILED:
            raise self._failure(operation, reply)
        if reply.version != self._version:
            raise self._of_another_version(reply.request_id)
        if reply.status != messages.SUCCESS or reply.operation != operation:
            raise self._errors.garbled(reply.request_id)
        try:
            about = messages.uid_of(reply.payload)
        except FormatError as exc:
            raise self._errors.garbled(reply.request_id) from exc
        if about != self._uid:
            # An alias that will name another key one day would leave what was wrapped behind; and which key decrypts
            # is for the configuration to say, so nothing that the service returns is kept to choose it by.
            hint = "write the unique identifier of the key itself into the key URI, not another name of it"
            raise self._errors.failed("answered for another key than it was asked for", hint, reply.request_id)
        return reply

    def _read(self, raw: bytes) -> Reply:
        try:
            return messages.read(raw)
        except FormatError as exc:
            # It may hold a plaintext, which is for no traceback to show: neither here nor in the frames of the parser.
            del raw
            self.close()
            raise self._errors.garbled() from exc.with_traceback(None)

    def _failure(self, operation: Operation, reply: Reply) -> SovstoreError:
        """Return the error for a request that was refused; the one place where reasons become errors."""
        errors, reason, request_id = self._errors, reply.reason, reply.request_id
        if reason in _MISSING:
            return errors.missing("check the unique identifier in the key URI; a destroyed key is gone", request_id)
        if reason == _AUTHENTICATION:
            return certificate_refused(errors, request_id)
        if reason in _DENIED:
            return errors.denied("does not allow this use of the key", _STATE_HINT, request_id)
        unread = reply.operation is None and reason == _INVALID_MESSAGE
        if reason == _OTHER_VERSION or unread or reply.version != self._version:
            return self._of_another_version(request_id)
        if reason in _NOT_OFFERED:
            hint = "AES-GCM with AAD is what a KEK needs; docs/kms/kmip.md has the services that offer it"
            return errors.failed("does not offer Encrypt and Decrypt by AES-GCM", hint, request_id)
        if reason == _BUSY:
            return errors.throttled(request_id)
        if reason in _AWAY:
            hint = "ask its operator; any other KEK of the store opens it meanwhile"
            return errors.unavailable("is not available now", hint, request_id)
        if operation == reply.operation == Operation.DECRYPT and reason in _NOT_AUTHENTIC:
            return self.refused()
        return errors.failed(f"refused: result reason 0x{reason:X}", "ask its operator what its log says", request_id)

    def _of_another_version(self, request_id: str | None) -> KMSError:
        number = ".".join(map(str, self._version))
        hint = "say which version the service speaks, behind the key URI: '?version=1.4', 2.0 or 2.1"
        return self._errors.failed(f"does not speak KMIP {number}, or did not understand the request", hint, request_id)


def _taken_apart(wrapped: bytes) -> Ciphertext | None:
    """Return what a wrap holds; None when it is none. Each has one form only."""
    if len(wrapped) < 2 or wrapped[0] != _FORM or not _IV <= wrapped[1] <= _LONGEST_IV:
        return None
    iv_end = 2 + wrapped[1]
    tag_end = iv_end + messages.TAG
    if not _SHORTEST <= len(wrapped) - tag_end <= _LONGEST:
        return None
    return Ciphertext(wrapped[2:iv_end], wrapped[iv_end:tag_end], wrapped[tag_end:])

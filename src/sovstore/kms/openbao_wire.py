"""The interface of OpenBao and Vault on the wire: hvac's methods over connections that sovstore can answer for.

Implements one request and its answer. Does not log in, does not try again and knows no errors but those of the
connection and of a service that is away. Does not bound the look-up of a host's name, and waits the whole time for each
of its addresses.

`hvac.Client` is not used: it looks for addresses, tokens and certificates in the environment and in the home folder,
and its sessions trust certifi's authorities besides ours, follow redirects and bound neither a reply's length nor its
whole time. Its methods take an adapter, which is the seam that hvac has for this.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hvac.adapters
import urllib3
from hvac.api.auth_methods import JWT, AppRole, Token
from hvac.api.secrets_engines import Transit
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from sovstore.errors import KMSError
from sovstore.kms.service import Errors, tls_context
from sovstore.kms.settings import Service
from sovstore.secret import Secret

#: The largest reply that is read: a wrapped key takes a few hundred bytes, the description of a key that was rotated
#: a thousand times some 30 kB.
_MOST = 2**17
_PIECE = 2**13
_THROTTLED = 429
#: A replica that does not have yet what its leader has (Vault).
_BEHIND = 412
#: Ends of a connection that `ssl` reports as its own errors; no question of trust.
_ENDS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
#: When the request of each thread must have its answer.
_clock = threading.local()


@dataclass(frozen=True)
class Answer:
    """What the service answered.

    Parameters
    ----------
    status : int
        Of HTTP.
    body : object
        Parsed JSON; a text where it is none. Never shown: it may hold a token or a secret.
    """

    status: int
    body: Any = field(repr=False)

    @property
    def request_id(self) -> str | None:
        """What the service calls the request, where it says so."""
        found = self.member("request_id")
        return found[:128] if isinstance(found, str) and found and found.isprintable() else None

    def member(self, name: str) -> Any:
        """Return a member of the JSON object; None where there is none."""
        return self.body.get(name) if isinstance(self.body, dict) else None

    def complaint(self) -> str:
        """Return what the service says is wrong, in lower case: to tell causes apart, never to be shown."""
        errors = self.member("errors") or self.body
        return " ".join(map(str, errors) if isinstance(errors, list) else [str(errors)]).lower()


#: Errors are returned and not raised through hvac's methods, whose frames hold what is sent: tokens and plaintext.
Outcome = Answer | KMSError


class Wire:
    """Connections to one service. Usable from several threads, and after a fork.

    Parameters
    ----------
    service : Service
        How it is reached.
    url : str
        What all paths begin with, checked by `sovstore.kms.uri.base_url`.
    namespace : str or None
        Sent with every request.
    errors : Errors
        Makes the errors.
    """

    def __init__(self, service: Service, url: str, namespace: str | None, errors: Errors) -> None:
        self._timeout_s, self._url, self._errors = service.timeout_s, url, errors
        self._headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "sovstore",
            # OpenBao and Vault can be told to refuse what a browser or a careless proxy sent.
            "X-Vault-Request": "true",
            **({"X-Vault-Namespace": namespace} if namespace else {}),
        }
        self._tls: ssl.SSLContext | None = None
        if url.startswith("https:"):
            self._tls = tls_context(service, errors.uri)
            self._tls.sslsocket_class = _TimedSocket
        self._pool: tuple[int, urllib3.PoolManager] | None = None

    def call(self, token: Secret | None, end: float) -> Call:
        """Return the service as one holder of a token may use it until the monotonic clock says `end`."""
        return Call(self, token, end)

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].clear()

    def exchange(self, method: str, path: str, body: object, token: Secret | None, end: float) -> Answer:
        """Return the answer to one request.

        Raises
        ------
        KMSUnavailableError
            When there is none in time, or it says that the service is away.
        KMSError
            When TLS fails, or the answer is too long.
        """
        _clock.end = end
        try:
            status, raw = self._send(method, path, body, token, end)
        except HTTPError as exc:
            raise self._failure(exc) from exc
        try:
            answer = Answer(status, json.loads(raw))
        except (ValueError, RecursionError):
            answer = Answer(status, raw.decode(errors="replace"))
        if (away := self._away(answer)) is not None:
            raise away
        return answer

    def _send(self, method: str, path: str, body: object, token: Secret | None, end: float) -> tuple[int, bytes]:
        if (left_s := end - time.monotonic()) <= 0:
            raise self._errors.out_of_time(self._timeout_s)
        response = self._opened().urlopen(
            method.upper(),
            self._url + path,
            body=None if body is None else json.dumps(body).encode(),
            headers=self._headers | ({"X-Vault-Token": token.reveal().decode()} if token else {}),
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(total=left_s),
            preload_content=False,
            decode_content=False,
        )
        try:
            raw = self._read(response, end)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return response.status, raw

    def _read(self, response: urllib3.BaseHTTPResponse, end: float) -> bytes:
        raw = bytearray()
        while piece := response.read1(_PIECE, decode_content=False):
            raw += piece
            if len(raw) > _MOST:
                raise self._errors.garbled()
            # Without TLS no socket of ours is in between, and each wait is bounded, not all of them together.
            if time.monotonic() > end:
                raise self._errors.out_of_time(self._timeout_s)
        return bytes(raw)

    def _opened(self) -> urllib3.PoolManager:
        pid = os.getpid()
        # Connections of the parent are not ours. Two threads that open a pool at once waste one; no lock can be left
        # behind by a fork.
        if self._pool is None or self._pool[0] != pid:
            self._pool = pid, urllib3.PoolManager(maxsize=16, ssl_context=self._tls)
        return self._pool[1]

    def _away(self, answer: Answer) -> KMSError | None:
        """Return the error for an answer that another try, or another node, can change."""
        status, request_id = answer.status, answer.request_id
        if status == _THROTTLED:
            return self._errors.throttled(request_id)
        if status == 503 and "sealed" in answer.complaint():
            hint = "ask its operator to unseal it; any other KEK of the store opens it meanwhile"
            return self._errors.unavailable("is sealed", hint, request_id)
        if status == _BEHIND or status >= 500:
            hint = "ask its operator; any other KEK of the store opens it meanwhile"
            return self._errors.unavailable(f"is not available now ({status})", hint, request_id)
        if 300 <= status < 400:
            # A standby that forwards nothing. A token follows no redirect.
            hint = "name the active node in the key URI, or what always leads to it"
            return self._errors.failed("sends us to another address", hint, request_id)
        return None

    def _failure(self, exc: HTTPError) -> KMSError:
        # In urllib3 2, what could not connect at all is a kind of timeout.
        if isinstance(exc, Urllib3TimeoutError) and not isinstance(exc, NewConnectionError):
            return self._errors.out_of_time(self._timeout_s)
        if any(isinstance(cause, ssl.SSLError) and not isinstance(cause, _ENDS) for cause in _chain(exc)):
            return self._errors.untrusted()
        return self._errors.unreachable()


class Call(hvac.adapters.Adapter):  # type: ignore[misc]  # hvac has no types
    """The service as one holder of a token may use it, until a deadline.

    Parameters
    ----------
    wire : Wire
        Carries the requests.
    token : Secret or None
        Sent with them.
    end : float
        When the monotonic clock says so, there is no more time.
    """

    def __init__(self, wire: Wire, token: Secret | None, end: float) -> None:
        # Not hvac's own: it would open a session of requests.
        self._wire, self._token, self._end = wire, token, end

    def request(self, method: str, url: str, **kwargs: Any) -> Outcome:
        """Return the answer to one request of hvac, or the error."""
        try:
            return self._wire.exchange(method, url, kwargs.get("json"), self._token, self._end)
        except KMSError as exc:
            return _without_frames(exc)

    def get_login_token(self, response: object) -> str:
        """Refuse: a login is read by `sovstore.kms.openbao_login`, which believes nothing in it."""
        raise NotImplementedError

    def read_key(self, mount: str, key: str) -> Outcome:
        """Return what the service says of a key."""
        outcome: Outcome = Transit(self).read_key(key, mount_point=mount)
        return outcome

    def encrypt(self, mount: str, key: str, payload: bytes, aad: bytes | None) -> Outcome:
        """Return the payload under a key, bound to `aad` where there is one."""
        outcome: Outcome = Transit(self).encrypt_data(
            key, plaintext=_base64(payload), associated_data=_base64(aad), mount_point=mount
        )
        return outcome

    def decrypt(self, mount: str, key: str, ciphertext: str, aad: bytes | None) -> Outcome:
        """Return the plaintext of what `encrypt` returned."""
        outcome: Outcome = Transit(self).decrypt_data(
            key, ciphertext=ciphertext, associated_data=_base64(aad), mount_point=mount
        )
        return outcome

    def log_in_by_approle(self, mount: str, role_id: str, secret_id: Secret) -> Outcome:
        """Return a token for an AppRole."""
        outcome: Outcome = AppRole(self).login(role_id, secret_id.reveal().decode(), use_token=False, mount_point=mount)
        return outcome

    def log_in_by_jwt(self, mount: str, role: str, jwt: Secret) -> Outcome:
        """Return a token for a JSON Web Token."""
        outcome: Outcome = JWT(self).jwt_login(role, jwt.reveal().decode(), use_token=False, path=mount)
        return outcome

    def log_in_by_certificate(self, mount: str, role: str | None) -> Outcome:
        """Return a token for the certificate of the connection."""
        # hvac's method wants files to hand to requests.
        return self.request("post", f"/v1/auth/{mount}/login", json={"name": role} if role else {})

    def renew(self) -> Outcome:
        """Return the token of this call with a new lease."""
        outcome: Outcome = Token(self).renew_self()
        return outcome


class _TimedSocket(ssl.SSLSocket):
    """A socket that waits until the end of the call, all waits together.

    With a timeout for each wait alone, whoever sends a byte a second is waited for without end.
    """

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().sendall(*args, **kwargs)
        except OSError:
            # In TLS 1.3 a server refuses our certificate after the handshake, when we send already. Its alert, which
            # says that it does, may be there to read when it takes no more: reading raises it.
            self.recv(1)
            raise

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        end: float | None = getattr(_clock, "end", None)
        if end is not None:
            self.settimeout(max(end - time.monotonic(), 0.001))
        return super().recv_into(*args, **kwargs)


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _without_frames(exc: KMSError) -> KMSError:
    """Return an error that leads to no local variable of what sent the request."""
    for part in _chain(exc):
        part.__traceback__ = None
    return exc

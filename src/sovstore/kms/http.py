"""JSON over HTTPS for the services that have an interface of that kind: one client, bounded replies, typed failures.

Does not map what a service itself says: the driver gets the status and the body of every answer that is not worth
another try.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sovstore.kms.service import Errors, missing_extra, tls_context, with_retries
from sovstore.kms.settings import Service

if TYPE_CHECKING:
    import httpx

#: The largest reply that is read: a wrapped key takes a few hundred bytes.
_MOST = 2**16
_THROTTLED = 429
_AWAY = frozenset((502, 503, 504))


@dataclass(frozen=True)
class Reply:
    """What a service answered.

    Parameters
    ----------
    status : int
        Of HTTP.
    body : object
        Parsed JSON; a text where it is none.
    request_id : str or None
        What the service calls the request.
    """

    status: int
    body: Any
    request_id: str | None

    def text(self, name: str) -> str | None:
        """Return a member of a JSON object that must be a text; None when it is not."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        return value if isinstance(value, str) else None


class HTTPService:
    """A service behind a URL. Usable from several threads, and after a fork.

    Parameters
    ----------
    service : Service
        How it is reached.
    url : str
        What all paths begin with, checked by `sovstore.kms.uri.base_url`.
    errors : Errors
        Makes the errors.
    extra : str
        Extra of sovstore that installs httpx.
    headers : callable
        Gives the headers of a request, the credentials among them.
    request_id : callable
        Finds what the service calls a request, in its headers and its parsed body.
    """

    def __init__(
        self,
        service: Service,
        url: str,
        errors: Errors,
        *,
        extra: str,
        headers: Callable[[], Mapping[str, str]],
        request_id: Callable[[Mapping[str, str], Any], str | None],
    ) -> None:
        try:
            import httpx
        except ImportError as exc:
            raise missing_extra(errors.uri, "httpx", extra) from exc
        self._httpx = httpx
        self._service, self._url, self._errors = service, url, errors
        self._headers, self._request_id = headers, request_id
        self._tls = tls_context(service, errors.uri) if url.startswith("https:") else False
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Return the answer to one request, made again while the service is away or asks for fewer.

        Parameters
        ----------
        path : str
            Begins with ``/``; every part of it must be checked already.
        body : mapping, optional
            Sent as JSON.

        Raises
        ------
        KMSUnavailableError
            When there is no answer in time.
        KMSError
            When TLS fails, or the answer is too long.
        """
        return with_retries(lambda left_s: self._once(method, path, body, left_s), self._service.timeout_s)

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None, left_s: float) -> Reply:
        httpx = self._httpx
        try:
            reply = self._send(method, path, body, left_s)
        except httpx.TimeoutException as exc:
            raise self._errors.out_of_time(self._service.timeout_s) from exc
        except httpx.TransportError as exc:
            if "SSL" in str(exc) or "CERTIFICATE" in str(exc).upper():
                raise self._errors.untrusted() from exc
            raise self._errors.unreachable() from exc
        if reply.status == _THROTTLED:
            raise self._errors.throttled(reply.request_id)
        if reply.status in _AWAY:
            hint = "ask its operator; any other KEK of the store opens it meanwhile"
            raise self._errors.unavailable(f"is not available now ({reply.status})", hint, reply.request_id)
        return reply

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, left_s: float) -> Reply:
        end = time.monotonic() + left_s
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", "Content-Type": "application/json", **self._headers()}
        with self._opened().stream(
            method, self._url + path, content=content, headers=headers, timeout=left_s
        ) as response:
            raw = bytearray()
            for piece in response.iter_raw():
                raw += piece
                if len(raw) > _MOST:
                    raise self._errors.garbled()
                # httpx bounds each wait, not all of them together: a service that sends a byte a second would not end.
                if time.monotonic() > end:
                    raise self._errors.out_of_time(self._service.timeout_s)
            try:
                parsed = json.loads(raw)
            except (ValueError, RecursionError):
                parsed = raw.decode(errors="replace")
            return Reply(response.status_code, parsed, self._printable(self._request_id(response.headers, parsed)))

    @staticmethod
    def _printable(request_id: object) -> str | None:
        return request_id[:128] if isinstance(request_id, str) and request_id.isprintable() and request_id else None

    def _opened(self) -> httpx.Client:
        if self._pid != os.getpid():
            # Connections of the parent are not ours, and another thread of it may have held the lock.
            self._client, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            if self._client is None:
                # Nothing of the environment: a .netrc would replace the credentials. Replies are not unpacked, since
                # their length is bounded before that.
                self._client = self._httpx.Client(
                    verify=self._tls,
                    trust_env=False,
                    follow_redirects=False,
                    headers={"Accept-Encoding": "identity", "User-Agent": "sovstore"},
                )
            return self._client

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

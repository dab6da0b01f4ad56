"""JSON over HTTPS for the services that have an interface of that kind: one client, bounded replies, typed failures.

Does not map what a service itself says: the driver gets the status and the body of every answer that is not worth
another try, and may look at each inside the retries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sovstore.errors import ConfigError
from sovstore.kms.service import Errors, missing_extra, tls_context, with_retries
from sovstore.kms.settings import Service

if TYPE_CHECKING:
    from sovstore.kms.http_wire import Answer

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
        Parsed JSON; a text where it is none. It may hold a plaintext.
    request_id : str or None
        What the service calls the request.
    """

    status: int
    body: Any = field(repr=False)
    request_id: str | None

    def text(self, name: str) -> str | None:
        """Return a member of a JSON object that must be a text; None when it is not."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        return value if isinstance(value, str) else None


def _let_pass(reply: Reply) -> None:
    del reply


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
        Extra of sovstore that installs httpcore.
    headers : callable
        Gives the headers of a request, the credentials among them. Called here too, so that credentials that are not
        there are found when a key is opened.
    request_id : callable
        Finds what the service calls a request, in its headers and its parsed body.

    Raises
    ------
    MissingDependencyError
        When httpcore or tenacity is not installed.
    ConfigError
        When a file cannot be used for TLS, or a credential cannot stand in a header.
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
            for package in ("httpcore", "tenacity"):
                import_module(package)
        except ImportError as exc:
            raise missing_extra(errors.uri, exc.name or "httpcore", extra) from exc
        from sovstore.kms.http_wire import Wire

        self._service, self._url, self._errors = service, url, errors
        self._given_headers, self._request_id = headers, request_id
        tls = tls_context(service, errors.uri) if url.startswith("https:") else None
        self._wire = Wire(tls, errors, service.timeout_s)
        self._headers()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        check: Callable[[Reply], None] = _let_pass,
    ) -> Reply:
        """Return the answer to one request, made again while the service is away or asks for fewer.

        Parameters
        ----------
        path : str
            Begins with ``/``; every part of it must be checked already.
        body : mapping, optional
            Sent as JSON.
        check : callable, optional
            Given each answer, before its status is looked at here; raises the error for what the service says in it.
            One that is retryable makes another try, whatever the status was.

        Raises
        ------
        KMSUnavailableError
            When there is no answer in time.
        KMSError
            When TLS fails, or the answer is too long.
        """
        return with_retries(lambda left_s: self._once(method, path, body, check, left_s), self._service.timeout_s)

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, check: Callable[[Reply], None], left_s: float
    ) -> Reply:
        content = None if body is None else json.dumps(body).encode()
        reply = self._reply(self._wire.exchange(method, self._url + path, self._headers, content, left_s))
        check(reply)
        if reply.status == _THROTTLED:
            raise self._errors.throttled(reply.request_id)
        if reply.status in _AWAY:
            hint = "ask its operator; any other KEK of the store opens it meanwhile"
            raise self._errors.unavailable(f"is not available now ({reply.status})", hint, reply.request_id)
        return reply

    def _reply(self, answer: Answer) -> Reply:
        try:
            parsed = json.loads(answer.raw)
        except (ValueError, RecursionError):
            parsed = answer.raw.decode(errors="replace")
        return Reply(answer.status, parsed, self._printable(self._request_id(answer.headers, parsed)))

    @staticmethod
    def _printable(request_id: object) -> str | None:
        return request_id[:128] if isinstance(request_id, str) and request_id.isprintable() and request_id else None

    def _headers(self) -> dict[str, str]:
        headers = dict(self._given_headers())
        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            # Checked, not tried: the error of the library would carry the whole credential.
            del headers
            hint = "correct the credential that [kms.NAME] refers to"
            message = f"{self._errors.uri}: the credential holds a character that cannot be sent"
            raise ConfigError(message, path=self._errors.uri, hint=hint)
        return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "sovstore", **headers}

    def close(self) -> None:
        """Do nothing: no connection outlives its request."""

"""One exchange over HTTP/1.1 within a deadline, on httpcore.

Not on httpx, whose engine that is: it bounds each wait and not their sum, so that a service that sends a byte a second
would not end; and it takes cookies. Follows no redirect, reads nothing of the environment, unpacks nothing. Each
exchange has a connection of its own: a KMS is asked rarely, and so there is none to inherit in a fork, to find dead, or
to close. Does not bound how long the system's resolver takes.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpcore

from sovstore.kms.service import Errors

#: The largest reply that is read: a wrapped key takes a few hundred bytes.
_MOST = 2**16
#: Called for each exchange, so that no frame that may fail holds a credential for long.
Headers = Callable[[], Mapping[str, str]]
_Options = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]]


@dataclass(frozen=True)
class Answer:
    """What came back.

    Parameters
    ----------
    status : int
        Of HTTP.
    headers : mapping
        By names in lower case.
    raw : bytes
        The body, as it came; it may hold a plaintext.
    """

    status: int
    headers: Mapping[str, str]
    raw: bytes = field(repr=False)


@dataclass(frozen=True)
class Wire:
    """How a service is spoken to.

    Parameters
    ----------
    tls : ssl.SSLContext or None
        None for HTTP without TLS.
    errors : Errors
        Makes the errors.
    timeout_s : float
        What they say of the time that a call may take.
    """

    tls: ssl.SSLContext | None
    errors: Errors
    timeout_s: float

    def exchange(self, method: str, url: str, headers: Headers, content: bytes | None, left_s: float) -> Answer:
        """Return the answer to one request, whatever its status.

        Parameters
        ----------
        left_s : float
            Seconds for all of it, from the first packet to the last byte.

        Raises
        ------
        KMSUnavailableError
            When there is no whole answer in time.
        KMSError
            When TLS fails, or the answer is too long.
        """
        try:
            answer = self._exchange(method, url, headers, content, left_s)
        except httpcore.TimeoutException as exc:
            raise self.errors.out_of_time(self.timeout_s) from _without_frames(exc)
        except (httpcore.NetworkError, httpcore.ProtocolError) as exc:
            made = self.errors.untrusted() if _is_distrust(exc) else self.errors.unreachable()
            raise made from _without_frames(exc)
        if answer is None:
            raise self.errors.garbled()
        return answer

    def _exchange(self, method: str, url: str, headers: Headers, content: bytes | None, left_s: float) -> Answer | None:
        origin = httpcore.URL(url).origin
        fields = {"Host": urlsplit(url).netloc, "Connection": "close", "Accept-Encoding": "identity", **headers()}
        with (
            httpcore.HTTPConnection(origin, ssl_context=self.tls, network_backend=_Clocked(left_s)) as connection,
            connection.stream(method, url, headers=list(fields.items()), content=content) as reply,
        ):
            raw = bytearray()
            for piece in reply.iter_stream():
                raw += piece
                if len(raw) > _MOST:
                    return None
            fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reply.headers}
            return Answer(reply.status, fields, bytes(raw))


def _is_distrust(exc: BaseException) -> bool:
    """Say whether TLS failed for what a certificate or a setting says, and not because the other side went away."""
    while not isinstance(exc, ssl.SSLError):
        cause = exc.__cause__ or exc.__context__
        if cause is None:
            return False
        exc = cause
    return not isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)


def _without_frames(exc: BaseException) -> BaseException:
    """Return an error without its traceback: the frames of httpcore hold the credentials, and reports print locals."""
    link: BaseException | None = exc
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return exc


class _Clock:
    def __init__(self, left_s: float) -> None:
        self._end = time.monotonic() + left_s

    def left_s(self) -> float:
        if (left_s := self._end - time.monotonic()) <= 0:
            raise httpcore.ReadTimeout("out of time")
        return left_s


class _Clocked(httpcore.NetworkBackend):
    """Sockets that keep to one deadline; the timeouts that they are given are not looked at."""

    def __init__(self, left_s: float) -> None:
        self._clock = _Clock(left_s)
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> httpcore.NetworkStream:
        del timeout
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError("no such host") from exc
        # A share for each address: one that is silent must not take the time of the others.
        for index, (*_, address) in enumerate(found):
            share_s = self._clock.left_s() / (len(found) - index)
            try:
                inner = self._inner.connect_tcp(str(address[0]), port, share_s, local_address, socket_options)
                return _ClockedStream(inner, self._clock)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(found) - 1:
                    raise
        raise httpcore.ConnectError("no address")


class _ClockedStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, clock: _Clock) -> None:
        self._inner, self._clock = inner, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        return self._inner.read(max_bytes, self._clock.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        self._inner.write(buffer, self._clock.left_s())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        return _ClockedStream(self._inner.start_tls(ssl_context, server_hostname, self._clock.left_s()), self._clock)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)

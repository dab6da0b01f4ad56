"""One TLS connection to a service that speaks KMIP: whole messages out, whole messages in, each by its deadline.

Verifies the certificate of the service and shows the client's. Does not look into messages, but for their length.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
import threading
import time

from sovstore.errors import FormatError, KeyDeniedError, KMSError
from sovstore.kms.kmip_messages import Tag
from sovstore.kms.kmip_ttlv import HEADER, body_size
from sovstore.kms.service import Errors, tls_context
from sovstore.kms.settings import Service

#: Seconds after which an idle connection is not trusted: what stands between may have forgotten it, and does not say.
_IDLE_S = 30.0


def certificate_refused(errors: Errors, request_id: str | None = None) -> KeyDeniedError:
    """Return the error for a service that does not take the client for who it says it is."""
    hint = "check 'cert_file' of [kms.NAME]: not expired, for clients, of an authority that the service trusts"
    return errors.denied("does not accept the client certificate", hint, request_id)


class _Line:
    """What one process has: at most one open connection, used by one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: ssl.SSLSocket | None = None
        self.used = 0.0

    def drop(self) -> None:
        """Close without a word: in a forked child, the other end of the words is the parent's."""
        connection, self.open = self.open, None
        if connection is not None:
            connection.close()

    __del__ = drop


class Connections:
    """Exchanges messages over TLS, and keeps a connection for the next. Usable from several threads, and after a fork.

    Parameters
    ----------
    host : str
        Name or address; the certificate of the service must be for it.
    port : int
        Of TCP.
    service : Service
        Has the files for TLS, and the time.
    errors : Errors
        Makes the errors.
    """

    def __init__(self, host: str, port: int, service: Service, errors: Errors) -> None:
        self._host, self._port, self._service, self._errors = host, port, service, errors
        self._lines: dict[int, _Line] = {}

    def exchange(self, request: bytes, left_s: float) -> bytes:
        """Return the reply to a request.

        Parameters
        ----------
        request : bytes
            One message.
        left_s : float
            Seconds for all of it.

        Raises
        ------
        KMSUnavailableError
            When there is no reply in time.
        KMSError
            When TLS fails, or what comes is no reply.
        """
        end = time.monotonic() + left_s
        line = self._line()
        if not line.lock.acquire(timeout=left_s):
            raise self._errors.out_of_time(self._service.timeout_s)
        try:
            if line.open is not None and (time.monotonic() - line.used > _IDLE_S or not _is_quiet(line.open)):
                line.drop()
            if line.open is not None:
                # The service may have closed it since: then once more, over a new one.
                with contextlib.suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    return self._converse(line, request, end)
            return self._converse(line, request, end)
        except (OSError, FormatError) as exc:
            raise self._error(exc) from exc
        finally:
            line.lock.release()

    def close(self) -> None:
        """Close the connection; the next exchange opens another."""
        line = self._line()
        with line.lock:
            line.drop()

    def _line(self) -> _Line:
        # Another thread of the parent may have held the lock of its line, and its connection is not ours to use.
        pid = os.getpid()
        for other in [key for key in self._lines if key != pid]:
            self._lines.pop(other, None)
        return self._lines.setdefault(pid, _Line())

    def _converse(self, line: _Line, request: bytes, end: float) -> bytes:
        connection, line.open = line.open or self._connect(end), None
        try:
            connection.settimeout(_left(end))
            # A service that refuses the certificate closes early, and has then said why: it is to be read.
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                connection.sendall(request)
            header = _receive(connection, HEADER, end)
            body = _receive(connection, body_size(header, Tag.RESPONSE), end)
            if connection.pending():
                del body
                raise FormatError("kmip: more than one reply to one request")
            # Kept only now: after anything else, what comes next could still be the reply to this request.
            line.open, line.used = connection, time.monotonic()
            return header + body
        finally:
            if line.open is not connection:
                connection.close()

    def _connect(self, end: float) -> ssl.SSLSocket:
        # The files are read now: a certificate that was renewed is used without a restart.
        context = tls_context(self._service, self._errors.uri)
        plain = self._connect_plain(end)
        try:
            plain.settimeout(_left(end))
            return context.wrap_socket(plain, server_hostname=self._host)
        except (OSError, ValueError):
            plain.close()
            raise

    def _connect_plain(self, end: float) -> socket.socket:
        addresses = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        for number, (*_, (address, *_)) in enumerate(addresses):
            try:
                # The first of several addresses, when nothing answers there, must not take the time of all.
                return socket.create_connection((str(address), self._port), _left(end) / (len(addresses) - number))
            except OSError:
                if number == len(addresses) - 1:
                    raise
        raise ConnectionError

    def _error(self, exc: OSError | FormatError) -> KMSError:
        if isinstance(exc, FormatError):
            return self._errors.garbled()
        if isinstance(exc, TimeoutError):
            return self._errors.out_of_time(self._service.timeout_s)
        if isinstance(exc, ssl.SSLError) and not isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            reason = exc.reason or ""
            # An alert is what the service says, and this one is about our certificate.
            if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
                return certificate_refused(self._errors)
            return self._errors.untrusted()
        return self._errors.unreachable()


def _is_quiet(connection: ssl.SSLSocket) -> bool:
    """Return whether nothing came since the last reply: neither an end, nor what would be taken for the next reply."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return not connection.pending() and not selector.select(0)


def _receive(connection: ssl.SSLSocket, size: int, end: float) -> bytes:
    """Return exactly `size` bytes, all of them by `end`."""
    received = bytearray(size)
    filled = 0
    try:
        while filled < size:
            connection.settimeout(_left(end))
            count = connection.recv_into(memoryview(received)[filled:])
            if not count:
                raise ConnectionResetError
            filled += count
    except OSError:
        # Half a plaintext is for no traceback to show.
        received[:] = bytes(size)
        raise
    return bytes(received)


def _left(end: float) -> float:
    left_s = end - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s

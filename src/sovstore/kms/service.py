"""What the drivers of services share: their errors, in one wording, and when a call is made again."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    MissingDependencyError,
    NoMatchingKeyError,
)
from sovstore.kms.settings import Service

T = TypeVar("T")
#: Seconds before the second try; each further one waits twice as long, and a little more at random.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Errors:
    """Makes the errors of one KEK. None quotes what a service said: it may quote what it was sent.

    Parameters
    ----------
    uri : str
        Key URI.
    provider : str
        Scheme of the driver.
    title : str
        What a person calls the service.
    """

    uri: str
    provider: str
    title: str

    def denied(self, what: str, hint: str, request_id: str | None = None) -> KeyDeniedError:
        """Return the error for credentials or rights that do not suffice, or a key that may not be used now."""
        return KeyDeniedError(
            self._text(f"{self.title} {what}", request_id),
            path=self.uri,
            hint=hint,
            provider=self.provider,
            request_id=request_id,
        )

    def missing(self, hint: str, request_id: str | None = None) -> NoMatchingKeyError:
        """Return the error for a key that the service does not have."""
        return NoMatchingKeyError(
            self._text(f"{self.title} has no such key", request_id),
            path=self.uri,
            hint=hint,
            provider=self.provider,
            request_id=request_id,
        )

    def unavailable(self, what: str, hint: str, request_id: str | None = None) -> KMSUnavailableError:
        """Return the error for a service that does not answer, or not now."""
        return KMSUnavailableError(
            self._text(f"{self.title} {what}", request_id),
            path=self.uri,
            hint=hint,
            provider=self.provider,
            request_id=request_id,
        )

    def failed(self, what: str, hint: str, request_id: str | None = None) -> KMSError:
        """Return the error for an answer that trying again does not change."""
        return KMSError(
            self._text(f"{self.title} {what}", request_id),
            path=self.uri,
            hint=hint,
            provider=self.provider,
            request_id=request_id,
        )

    def unsuitable(self, why: str) -> ConfigError:
        """Return the error for a key that must not be a KEK."""
        hint = "make a symmetric key (AES-256) for sovstore alone; docs/kms says how"
        return ConfigError(f"{self.uri}: must not be a KEK: {why}", path=self.uri, hint=hint)

    def out_of_time(self, timeout_s: float, request_id: str | None = None) -> KMSUnavailableError:
        """Return the error for an answer that did not come in time."""
        hint = "try again; 'timeout_s' of [kms.NAME] sets how long it may take"
        return self.unavailable(f"did not answer within {timeout_s:g} s", hint, request_id)

    def unreachable(self) -> KMSUnavailableError:
        """Return the error for a service that nobody answers for."""
        hint = "check that it runs and that this machine may reach it; any other KEK of the store opens it meanwhile"
        return self.unavailable("cannot be reached", hint)

    def throttled(self, request_id: str | None = None) -> KMSUnavailableError:
        """Return the error for a service that asks for fewer requests."""
        return self.unavailable("asks for fewer requests", "wait, then try again", request_id)

    def untrusted(self) -> KMSError:
        """Return the error for a TLS handshake that failed: their certificate or ours."""
        hint = "check 'ca_file', 'cert_file' and 'key_file' of [kms.NAME], and that the host name is right"
        return self.failed("and this machine do not trust each other: the TLS handshake failed", hint)

    def garbled(self, request_id: str | None = None) -> KMSError:
        """Return the error for an answer that is not what the service's interface says."""
        hint = "check that the key URI names this kind of service, and that nothing stands between"
        return self.failed("did not answer as its interface says", hint, request_id)

    def _text(self, what: str, request_id: str | None) -> str:
        return f"{self.uri}: {what}" + (f" (request {request_id})" if request_id else "")


def missing_extra(uri: str, package: str, extra: str) -> MissingDependencyError:
    """Return the error for a package that is not installed."""
    return MissingDependencyError(
        f"{uri}: {package} is not installed", path=uri, hint=f"pip install 'sovstore[{extra}]'"
    )


def with_retries(call: Callable[[float], T], timeout_s: float) -> T:
    """Return what a call returns; it is made again while what it raises is retryable and time is left.

    Parameters
    ----------
    call : callable
        Given the seconds that are left, which it MUST keep to.
    timeout_s : float
        Seconds for all tries together.
    """
    import tenacity

    end = time.monotonic() + timeout_s
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda exc: isinstance(exc, KMSError) and exc.retryable),
        wait=tenacity.wait_exponential(_FIRST_PAUSE_S, _LONGEST_PAUSE_S) + tenacity.wait_random(0, _FIRST_PAUSE_S),
        # A try with less than that left would only run out of time, and hide why the one before it failed.
        stop=tenacity.stop_before_delay(timeout_s * 0.8),
        reraise=True,
    )
    return retrying(lambda: call(max(end - time.monotonic(), 0.001)))


def tls_context(service: Service, uri: str) -> ssl.SSLContext:
    """Return a context that trusts `ca_file`, or the system's authorities, with the client's certificate if any.

    Raises
    ------
    ConfigError
        When a file cannot be used.
    """
    try:
        # Verification of the certificate and of the host name are on, and nothing here turns them off.
        context = ssl.create_default_context(cafile=service.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise _unusable(service.ca_file, uri, "ca_file") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if service.cert_file is not None:
        try:
            # An empty password, or OpenSSL would ask for one on the terminal.
            context.load_cert_chain(service.cert_file, service.key_file, password=b"")
        except (OSError, ssl.SSLError) as exc:
            raise _unusable(service.cert_file, uri, "cert_file") from exc
    return context


def _unusable(file: str | None, uri: str, setting: str) -> ConfigError:
    hint = f"check {setting!r} of [kms.NAME]: PEM, readable by this user, its private key without a passphrase"
    return ConfigError(f"{uri}: {file} cannot be used for TLS", path=file, hint=hint)

"""The `WrappingKey` waist: what a service that holds a KEK must be able to do."""

from __future__ import annotations

import hmac
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, final

from sovstore.errors import KMSError, SovstoreError, UnwrapError
from sovstore.kms.settings import Service, service_of
from sovstore.trail import Trail

#: Bytes of a context: a SHA-256 digest.
CONTEXT = 32
#: The request under way in each thread.
_noted = threading.local()


@dataclass(frozen=True)
class Access:
    """What a driver may need from the caller to reach a KEK; references and callables, never secrets.

    Parameters
    ----------
    passphrase : callable, optional
        Called with a prompt when a driver needs a passphrase; returns it.
    services : tuple of Service
        How services are reached.
    trail : Trail, optional
        Where each call is recorded.
    """

    passphrase: Callable[[str], str] | None = None
    services: tuple[Service, ...] = ()
    trail: Trail | None = None

    def service(self, uri: str) -> Service:
        """Return how the service that holds the KEK at `uri` is reached."""
        return service_of(uri, self.services)


class WrappingKey(ABC):
    """One KEK. It wraps short secrets, bound to a context, and never shows itself.

    Implementations MUST be usable from several threads at once, MUST raise nothing but `KMSError`,
    `ConfigError` and `MissingDependencyError`, and MUST NOT log, print or pickle a secret. They MUST work in a child
    that was forked after they were opened. They MAY call a service: `unwrap` is then one request, apart from retries
    and a login; `wrap` MAY look first whether the key exists and of what type it is.
    """

    #: What the service is called in errors and in the audit trail; the scheme of its key URIs.
    provider: ClassVar[str]
    #: Where each call is recorded; the registry sets it.
    trail: Trail | None = None
    #: A newer wrap of what was unwrapped last, made by a service whose key was rotated since; None where there is none.
    #: It cannot take the old one's place in a keyset, whose tag covers its wraps: it says that a change of KEK is due.
    newer: bytes | None = None

    @property
    @abstractmethod
    def uri(self) -> str:
        """The key URI. MUST be stable, hold no secret, and open the same KEK again."""

    @abstractmethod
    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        """Return `payload` (48 to 96 bytes) under the KEK, by an AEAD or AES-KW/KWP, in at most 4096 bytes.

        MUST bind `aad` (32 bytes) where the service can; MAY ignore it where it cannot. A public-key KEK
        MUST be refused when it is opened: anyone could then make a keyset.
        """

    @abstractmethod
    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        """Return the payload of `_encrypt`. MUST raise `UnwrapError` for any other input."""

    def describe(self) -> Mapping[str, str]:
        """Return what the service says of the KEK; MAY ask it, which MAY need a right that readers do not have.

        Keys, where known: ``protection_level`` (``software`` or ``hsm``), ``algorithm``, ``version``, ``state``.
        """
        return {}

    def close(self) -> None:  # noqa: B027  # a driver may have nothing to close
        """Close connections and sessions. MAY be called twice; the next call MAY open them again."""

    @final
    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Return `secret` wrapped under this KEK and bound to `context`.

        Parameters
        ----------
        secret : bytes
            16 to 64 bytes.
        context : bytes
            32 bytes, a digest of all that the secret is for.

        Raises
        ------
        ValueError
            When a length is wrong.
        KMSError
            When the service refuses or does not answer.
        """
        if not 16 <= len(secret) <= 64 or len(context) != CONTEXT:
            raise ValueError("a wrap takes a secret of 16 to 64 bytes and a context of 32 bytes")
        # The context is part of the plaintext too, since AES-KW and some HSM keys take no AAD. Here and not in the
        # drivers, so that none can forget it.
        with self._recorded("wrap"):
            return self._encrypt(secret + context, context)

    @final
    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the secret that `wrap` was given, with the same context.

        Raises
        ------
        UnwrapError
            When it was wrapped by another key, for another context, or was changed. Never says which.
        KMSError
            When the service refuses or does not answer.
        """
        with self._recorded("unwrap"):
            payload = self._decrypt(wrapped, context)
            if hmac.compare_digest(payload[-CONTEXT:], context) and 16 + CONTEXT <= len(payload) <= 64 + CONTEXT:
                return payload[:-CONTEXT]
            # Not in a traceback's local variables.
            del payload
            raise self.refused()

    @final
    def refused(self) -> UnwrapError:
        """Return the error for whatever does not unwrap: one message for all causes."""
        return UnwrapError(f"{self.uri}: did not unwrap", path=self.uri, provider=self.provider)

    @final
    def note_request(self, request_id: str | None) -> None:
        """Note what the service calls the request under way in this thread, for the audit trail."""
        _noted.request_id = request_id

    @contextmanager
    def _recorded(self, action: str) -> Iterator[None]:
        """Write a line of the audit trail for one call, whatever comes of it."""
        if self.trail is None:
            yield
            return
        self.trail.check()
        self.note_request(None)
        outcome, request_id = "interrupted", None
        try:
            yield
            outcome = "done"
        except SovstoreError as exc:
            outcome = type(exc).__name__
            request_id = exc.request_id if isinstance(exc, KMSError) else None
            raise
        finally:
            noted: str | None = getattr(_noted, "request_id", None)
            self.trail.record(action, outcome, kek=self.uri, provider=self.provider, request_id=request_id or noted)

    def __repr__(self) -> str:
        """Return the class and the URI."""
        return f"<{type(self).__name__} {self.uri}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse: a key is opened again from its URI, never carried."""
        raise TypeError("a wrapping key cannot be pickled; open it again from its URI")

"""The `WrappingKey` waist: what a service that holds a KEK must be able to do."""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from sovstore.errors import UnwrapError

#: Bytes of a context: a SHA-256 digest.
CONTEXT = 32


@dataclass(frozen=True)
class Access:
    """What a driver may need from the caller to reach a KEK; references and callables, never secrets.

    Parameters
    ----------
    passphrase : callable, optional
        Called with a prompt when a driver needs a passphrase; returns it.
    """

    passphrase: Callable[[str], str] | None = None


class WrappingKey(ABC):
    """One KEK. It wraps short secrets, bound to a context, and never shows itself.

    Implementations MUST be usable from several threads at once, MUST raise nothing but `KMSError`,
    `ConfigError` and `MissingDependencyError`, and MUST NOT log, print or pickle a secret. They MAY call a
    service; each public call is then at most one request, apart from retries.
    """

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
        payload = self._decrypt(wrapped, context)
        if hmac.compare_digest(payload[-CONTEXT:], context) and 16 + CONTEXT <= len(payload) <= 64 + CONTEXT:
            return payload[:-CONTEXT]
        # Not in a traceback's local variables.
        del payload
        raise UnwrapError(f"{self.uri}: did not unwrap", path=self.uri)

    def __repr__(self) -> str:
        """Return the class and the URI."""
        return f"<{type(self).__name__} {self.uri}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse: a key is opened again from its URI, never carried."""
        raise TypeError("a wrapping key cannot be pickled; open it again from its URI")

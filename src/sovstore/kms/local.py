"""What the KEKs of one machine share: 32 bytes in this process that wrap by AES-256-GCM (format.md, 6.3)."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovstore.kms.base import WrappingKey
from sovstore.secret import Secret

KEK = 32
_NONCE = 12


class LocalKey(WrappingKey):
    """A KEK whose bytes are in this process.

    Parameters
    ----------
    uri : str
        Its key URI.
    key : Secret
        32 bytes.
    """

    provider = "local"

    def __init__(self, uri: str, key: Secret) -> None:
        self._uri = uri
        self._aead = AESGCM(key.reveal())

    @property
    def uri(self) -> str:
        """The key URI."""
        return self._uri

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        # A random nonce is safe up to 2^32 wraps (SP 800-38D, 8.3); a keyset makes one per version.
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, payload, aad)

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        try:
            return self._aead.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], aad)
        except (InvalidTag, ValueError) as exc:
            raise self.refused() from exc

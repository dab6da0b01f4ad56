"""pyrage, age in Rust: ChaCha20-Poly1305 in chunks of 64 KiB, one X25519 recipient."""

from __future__ import annotations

from typing import BinaryIO

import pyrage

# Of this benchmark, and of nobody.
_identity = pyrage.x25519.Identity.from_str(
    "AGE-SECRET-KEY-1LYNA6K7Y59GM7AFT99JH2H79TDWAFXNZMREV23PYE5U0ZNV8WY6QN6TAYX"
)
_recipient = _identity.to_public()


def encrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt a stream."""
    pyrage.encrypt_io(source, target, [_recipient])


def decrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt a stream."""
    pyrage.decrypt_io(source, target, [_identity])


def seal(data: bytes) -> bytes:
    """Encrypt a message."""
    return bytes(pyrage.encrypt(data, [_recipient]))


def unseal(sealed: bytes) -> bytes:
    """Decrypt a message."""
    return bytes(pyrage.decrypt(sealed, [_identity]))

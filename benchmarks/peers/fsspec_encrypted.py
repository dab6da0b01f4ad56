"""fsspec-encrypted: AES-CBC without authentication, whole objects in memory; it neither streams nor seeks."""

from __future__ import annotations

from typing import BinaryIO

from fsspec_encrypted import EncryptedFS

_fs = EncryptedFS(bytes(32))


def encrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt all of a stream as one message."""
    target.write(seal(source.read()))


def decrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt all of a stream as one message."""
    target.write(unseal(source.read()))


def seal(data: bytes) -> bytes:
    """Encrypt a message."""
    return bytes(_fs.encrypt(data))


def unseal(sealed: bytes) -> bytes:
    """Decrypt a message."""
    return bytes(_fs.decrypt(sealed))

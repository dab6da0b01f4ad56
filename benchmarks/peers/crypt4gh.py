"""Crypt4GH, the standard of genomics: ChaCha20-Poly1305 in segments of 64 KiB, one recipient."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from crypt4gh import header, lib
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

# It warns at each read that does not start at the first segment.
logging.getLogger("crypt4gh").setLevel(logging.ERROR)
_private = bytes(range(32))
_public = X25519PrivateKey.from_private_bytes(_private).public_key().public_bytes_raw()


def encrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt a stream."""
    lib.encrypt([(0, _private, _public)], source, target)


def decrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt a stream."""
    lib.decrypt([(0, _private, None)], source, target)


def reader(path: Path) -> Callable[[int, int], bytes]:
    """Return a function that reads so many bytes at an offset; the header is opened once."""
    source = path.open("rb")
    keys, _ = header.deconstruct(source, [(0, _private, None)])
    body = source.tell()

    def read(offset: int, size: int) -> bytes:
        source.seek(body)
        found = io.BytesIO()
        output = lib.limited_output(offset=offset % lib.SEGMENT_SIZE, limit=size, process=found.write)
        next(output)
        lib.body_decrypt(source, keys, output, offset)
        return found.getvalue()

    return read


def seal(data: bytes) -> bytes:
    """Encrypt a message."""
    encrypt(io.BytesIO(data), target := io.BytesIO())
    return target.getvalue()


def unseal(sealed: bytes) -> bytes:
    """Decrypt a message."""
    decrypt(io.BytesIO(sealed), target := io.BytesIO())
    return target.getvalue()

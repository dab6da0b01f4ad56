"""Client-side encryption 2.0 of Azure's SDK: what it does with the bytes on their way, by its internal functions.

It takes regions of 4 MiB; a download that is larger is decrypted region by region too.
"""

from __future__ import annotations

from typing import BinaryIO

from azure.storage.blob import _encryption
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

_REGION = 4 * 2**20
_OVERHEAD = 12 + 16


class _KEK:
    """A key encryption key in memory, as the SDK asks for one."""

    def wrap_key(self, key: bytes) -> bytes:
        return aes_key_wrap(bytes(32), key)

    def unwrap_key(self, key: bytes, _algorithm: str) -> bytes:
        return aes_key_unwrap(bytes(32), key)

    def get_kid(self) -> str:
        return "benchmark"

    def get_key_wrap_algorithm(self) -> str:
        return "A256KW"


_kek = _KEK()


def encrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt a stream as an upload does; what would be the blob's metadata goes in front, with its length."""
    key, _, metadata = _encryption.generate_blob_encryption_data(_kek, "2.0")
    if key is None or metadata is None:
        raise RuntimeError("both are there when a key encryption key is")
    target.write(len(metadata).to_bytes(4, "big") + metadata.encode())
    stream = _encryption.GCMBlobEncryptionStream(key, source)
    while block := stream.read(_REGION):
        target.write(block)


def decrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt a stream as a download does."""
    metadata = source.read(int.from_bytes(source.read(4), "big")).decode()
    regions = _encryption._GCMRegionNonceValidator()
    start = 0
    while region := source.read(_REGION + _OVERHEAD):
        target.write(_open(region, metadata, regions, start))
        start += len(region)


def seal(data: bytes) -> bytes:
    """Encrypt a small blob."""
    metadata, sealed = _encryption.encrypt_blob(data, _kek, "2.0")
    return len(metadata).to_bytes(4, "big") + metadata.encode() + bytes(sealed)


def unseal(sealed: bytes) -> bytes:
    """Decrypt a small blob."""
    end = 4 + int.from_bytes(sealed[:4], "big")
    return _open(sealed[end:], sealed[4:end].decode(), _encryption._GCMRegionNonceValidator(), 0)


def _open(region: bytes, metadata: str, regions: _encryption._GCMRegionNonceValidator, start: int) -> bytes:
    last = start + len(region) - 1
    headers = {"x-ms-meta-encryptiondata": metadata, "content-range": f"bytes {start}-{last}/{last + 1}"}
    return bytes(
        _encryption.decrypt_blob(
            require_encryption=True,
            key_encryption_key=_kek,
            key_resolver=None,
            content=region,
            start_offset=0,
            end_offset=len(region),
            response_headers=headers,
            nonce_validator=regions,
        )
    )

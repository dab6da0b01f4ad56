"""AWS Encryption SDK as it is by default: frames of 4 KiB, a key commitment, a signature; a raw AES key in memory."""

from __future__ import annotations

from typing import Any, BinaryIO

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import EncryptionKeyType, WrappingAlgorithm
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKeyProvider

from benchmarks.case import MIB


class _Keys(RawMasterKeyProvider):  # type: ignore[misc]  # no types
    provider_id = "benchmark"

    def _get_raw_key(self, _key_id: bytes) -> Any:
        return WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=bytes(32),
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        )


_client, _keys = aws_encryption_sdk.EncryptionSDKClient(), _Keys()
_keys.add_master_key(b"key")


def encrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt a stream, 1 MiB at a time."""
    _copy("e", source, target)


def decrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt a stream, 1 MiB at a time."""
    _copy("d", source, target)


def _copy(mode: str, source: BinaryIO, target: BinaryIO) -> None:
    with _client.stream(mode=mode, source=source, key_provider=_keys) as found:
        while block := found.read(MIB):
            target.write(block)


def seal(data: bytes) -> bytes:
    """Encrypt a message, with its path as encryption context."""
    return bytes(_client.encrypt(source=data, key_provider=_keys, encryption_context={"path": "path"})[0])


def unseal(sealed: bytes) -> bytes:
    """Decrypt a message."""
    return bytes(_client.decrypt(source=sealed, key_provider=_keys)[0])

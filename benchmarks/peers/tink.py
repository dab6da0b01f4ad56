"""Tink: its streaming AEAD with 1 MiB segments, and its AEAD for messages; AES-256-GCM, keys in memory."""

from __future__ import annotations

import base64
from typing import Any, BinaryIO

import tink
from tink import aead, secret_key_access, streaming_aead

from benchmarks.case import MIB

#: What one process writes another is to read: keysets of a key of zeros.
_STREAMING = ("AesGcmHkdfStreamingKey", b"\x12\x08\x08\x80\x80\x40\x10\x20\x18\x03\x1a\x20" + bytes(32))
_MESSAGES = ("AesGcmKey", b"\x1a\x20" + bytes(32))


def _primitive(kind: str, value: bytes, of: Any) -> Any:
    keyset = (
        '{"primaryKeyId": 1, "key": [{"keyId": 1, "status": "ENABLED", "outputPrefixType": "RAW", "keyData": {'
        f'"typeUrl": "type.googleapis.com/google.crypto.tink.{kind}", "keyMaterialType": "SYMMETRIC", '
        f'"value": "{base64.b64encode(value).decode()}"}}}}]}}'
    )
    return tink.json_proto_keyset_format.parse(keyset, secret_key_access.TOKEN).primitive(of)


aead.register()
streaming_aead.register()
_stream = _primitive(*_STREAMING, streaming_aead.StreamingAead)
_message = _primitive(*_MESSAGES, aead.Aead)


def encrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt a stream, 1 MiB at a time."""
    with _stream.new_encrypting_stream(target, b"") as out:
        while block := source.read(MIB):
            out.write(block)


def decrypt(source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt a stream, 1 MiB at a time."""
    with _stream.new_decrypting_stream(source, b"") as found:
        while block := found.read(MIB):
            target.write(block)


def seal(data: bytes) -> bytes:
    """Encrypt a message."""
    return bytes(_message.encrypt(data, b"path"))


def unseal(sealed: bytes) -> bytes:
    """Decrypt a message."""
    return bytes(_message.decrypt(sealed, b"path"))

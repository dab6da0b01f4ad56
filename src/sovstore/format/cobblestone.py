"""Cobblestone-256 messages, whole and by chunk (docs/spec/format.md, 3).

Streams and whole messages go through `cryptography.cobblestone`. Random access is the "Implementation notes"
of c2sp.org/chunked-encryption over one-shot AES-256-GCM; it reads the same bytes.
"""

from __future__ import annotations

import hmac

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sovstore.errors import IntegrityError
from sovstore.secret import Secret

#: Plaintext bytes of a chunk; the last one is always shorter.
CHUNK = 16384
#: Bytes of an AES-GCM tag.
TAG = 16
#: Bytes of a whole encrypted chunk.
WIRE_CHUNK = CHUNK + TAG
#: Bytes of the salt and of the key commitment that stand in front of the chunks.
SALT, COMMITMENT = 24, 32
PREFIX = SALT + COMMITMENT
#: Most chunks of a message (c2sp.org/chunked-encryption, "Message chunking").
MAX_CHUNKS = 2**38
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"

Buffer = bytes | bytearray | memoryview


def hkdf_expand(key: Secret, info: bytes, length: int) -> bytes:
    """Return `length` bytes of HKDF-Expand with SHA-512 (RFC 5869, 2.3).

    Parameters
    ----------
    key : Secret
        Uniformly random, 32 bytes or more.
    info : bytes
        What the output is for.
    length : int
        Bytes to return, at most 255 * 64.
    """
    return HKDFExpand(algorithm=SHA512(), length=length, info=info).derive(key.reveal())


def seal_message(key: Secret, context: bytes, message: Secret) -> bytes:
    """Return a key wrapped as one Cobblestone message: 72 bytes longer.

    Parameters
    ----------
    key : Secret
        Input key, 32 bytes.
    context : bytes
        Bytes bound in key derivation.
    message : Secret
        The key to wrap, shorter than 16 KiB.
    """
    encryptor = Cobblestone256Encryptor(key.reveal(), context)
    return encryptor.update(message.reveal()) + encryptor.finalize()


def open_message(key: Secret, context: bytes, sealed: Buffer, *, what: str) -> Secret:
    """Return the key that a whole Cobblestone message wraps.

    Parameters
    ----------
    key : Secret
        Input key, 32 bytes.
    context : bytes
        As given to `seal_message`.
    sealed : bytes
        The whole message.
    what : str
        What it is, for the error message.

    Raises
    ------
    IntegrityError
        Whatever is wrong with it, always with the same text.
    """
    # No key is ever in a local variable here: what a host sends can make this frame part of a traceback.
    decryptor = Cobblestone256Decryptor(key.reveal(), context)
    try:
        return Secret(decryptor.update(sealed) + decryptor.finalize())
    except InvalidTag as exc:
        raise IntegrityError(f"{what}: failed authentication", path=what) from exc


def _derive(key: Secret, salt: bytes, context: bytes) -> tuple[AESGCM, int, bytes]:
    """Return the cipher, the base nonce and the commitment (32 bytes) of a message."""
    derived = hkdf_expand(key, _INFO + salt + context, 32 + 12 + COMMITMENT)
    return AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big"), derived[44:]


def wipe(out: memoryview) -> None:
    """Overwrite what did not authenticate: AES-GCM has decrypted it by the time that it compares the tag."""
    out[:] = bytes(len(out))


class ChunkOpener:
    """Opens any chunk of one message, in any order, from any thread.

    Parameters
    ----------
    key : Secret
        Input key, 32 bytes.
    context : bytes
        Bytes bound in key derivation.
    prefix : bytes
        The first 56 bytes of the message: salt and commitment.
    what : str
        What is read, for error messages.

    Raises
    ------
    IntegrityError
        When the commitment is not the one that the key, salt and context give.
    """

    __slots__ = ("_aead", "_base", "what")

    def __init__(self, key: Secret, context: bytes, prefix: Buffer, *, what: str) -> None:
        self.what = what
        salt, commitment = bytes(prefix[:SALT]), bytes(prefix[SALT:PREFIX])
        self._aead, self._base, expected = _derive(key, salt, context)
        # Checked before any chunk is decrypted: AES-GCM alone does not commit to its key.
        if not hmac.compare_digest(expected, commitment):
            raise IntegrityError(f"{what}: failed authentication", path=what)

    def open_into(self, chunk_no: int, sealed: memoryview, out: memoryview) -> int:
        """Decrypt consecutive chunks and return how many plaintext bytes were written.

        Parameters
        ----------
        chunk_no : int
            Number of the first chunk, counted from 0.
        sealed : memoryview
            Whole encrypted chunks of 16400 bytes; only the last chunk of the message is shorter.
        out : memoryview
            Where the plaintext goes; at least ``len(sealed) - 16`` per chunk.

        Raises
        ------
        IntegrityError
            When a chunk does not authenticate. Nothing is in `out` then.
        """
        written = 0
        try:
            for offset in range(0, len(sealed), WIRE_CHUNK):
                piece = sealed[offset : offset + WIRE_CHUNK]
                nonce = (self._base ^ chunk_no).to_bytes(12, "big")
                target = out[written : written + len(piece) - TAG]
                written += self._aead.decrypt_into(nonce, piece, None, target)
                chunk_no += 1
        except (InvalidTag, ValueError) as exc:
            wipe(out)
            raise IntegrityError(f"{self.what}: chunk {chunk_no} failed authentication", path=self.what) from exc
        return written

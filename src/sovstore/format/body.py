"""Body and size of an object (docs/spec/format.md, 4.2 and 4.3)."""

from __future__ import annotations

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import AlreadyFinalized, InvalidTag

from sovstore.errors import FormatError, IntegrityError
from sovstore.format.cobblestone import (
    CHUNK,
    MAX_CHUNKS,
    PREFIX,
    TAG,
    WIRE_CHUNK,
    Buffer,
    ChunkOpener,
    wipe,
)
from sovstore.format.header import HEADER
from sovstore.secret import Secret

CONTEXT = b"sovstore/1 body"
#: Bytes in front of chunk 0: the header, the salt and the commitment.
OVERHEAD = HEADER + PREFIX
#: Largest plaintext, in bytes: the last of 2^38 chunks is one byte short.
MAX_PLAIN = MAX_CHUNKS * CHUNK - 1


def wire_size(plain_size: int) -> int:
    """Return the size in bytes of an object of `plain_size` plaintext bytes.

    Raises
    ------
    ValueError
        Unless 0 <= plain_size <= 2^52 - 1.
    """
    if not 0 <= plain_size <= MAX_PLAIN:
        raise ValueError(f"an object holds 0 to {MAX_PLAIN} bytes, not {plain_size}")
    return OVERHEAD + plain_size + TAG * (plain_size // CHUNK + 1)


def plain_size(wire_size: int, *, what: str = "object") -> int:
    """Return the plaintext size that an object of `wire_size` bytes implies.

    Raises
    ------
    FormatError
        When no object has that size.
    """
    chunks, last = divmod(wire_size - OVERHEAD, WIRE_CHUNK)
    if wire_size < OVERHEAD + TAG or last < TAG or chunks >= MAX_CHUNKS:
        raise FormatError(
            f"{what}: {wire_size} bytes is not the size of any object of a store",
            path=what,
            hint="it was truncated, or sovstore did not write it",
        )
    return wire_size - OVERHEAD - TAG * (chunks + 1)


def chunk_span(start: int, end: int) -> range:
    """Return the chunks that cover plaintext bytes [start, end).

    Parameters
    ----------
    start, end : int
        Plaintext offsets in bytes, half open, 0 <= start <= end.

    Returns
    -------
    range
        Chunk numbers, contiguous, counted from 0. Empty when start == end.

    Raises
    ------
    ValueError
        Unless 0 <= start <= end.

    References
    ----------
    c2sp.org/chunked-encryption, "Implementation notes".
    """
    if not 0 <= start <= end:
        raise ValueError(f"not a range: [{start}, {end})")
    return range(start // CHUNK, -(-end // CHUNK)) if start < end else range(0)


def wire_offset(chunk_no: int) -> int:
    """Return the offset in an object, in bytes, at which chunk `chunk_no` starts."""
    return OVERHEAD + chunk_no * WIRE_CHUNK


def body_opener(dek: Secret, prefix: Buffer, *, what: str) -> ChunkOpener:
    """Return the random-access reader of a body.

    Parameters
    ----------
    dek : Secret
        32 bytes.
    prefix : bytes
        The first 56 bytes of the body.
    what : str
        The object, for error messages.

    Raises
    ------
    IntegrityError
        When the body was not encrypted under this DEK.
    """
    return ChunkOpener(dek, CONTEXT, prefix, what=what)


class BodySealer:
    """Encrypts one body, in order. Not for use from two threads at once.

    Parameters
    ----------
    dek : Secret
        32 bytes that no other body is ever encrypted under.
    """

    __slots__ = ("_encryptor", "_plain")

    def __init__(self, dek: Secret) -> None:
        self._encryptor = Cobblestone256Encryptor(dek.reveal(), CONTEXT)
        self._plain = 0

    @staticmethod
    def room(plain: int) -> int:
        """Return how many bytes `update_into` may need for `plain` plaintext bytes."""
        return plain + TAG * (plain // CHUNK + 2) + PREFIX + CHUNK

    def update_into(self, plain: Buffer, out: Buffer) -> int:
        """Encrypt plaintext and return how many body bytes are now in `out`.

        Parameters
        ----------
        plain : bytes
            Any number of bytes; what does not fill a chunk is kept for the next call.
        out : writable buffer
            At least ``room(len(plain))`` bytes.

        Raises
        ------
        ValueError
            When the object would grow over the format's limit.
        """
        self._plain += len(plain)
        if self._plain > MAX_PLAIN:
            raise ValueError(f"an object holds at most {MAX_PLAIN} bytes")
        return self._encryptor.update_into(plain, out)

    def finalize(self) -> bytes:
        """Return the last bytes of the body: the last, short chunk."""
        return self._encryptor.finalize()


class BodyStreamOpener:
    """Opens the whole chunks of one body in order, from chunk 0 on. Not for use from two threads at once.

    One native call for many chunks, where `body_opener` needs one for each: that lets the other core work.

    Parameters
    ----------
    dek : Secret
        32 bytes.
    prefix : bytes
        The first 56 bytes of the body.
    what : str
        The object, for error messages.

    Attributes
    ----------
    next : int
        Number of the chunk that comes next; -1 when none can come after an error.
    """

    __slots__ = ("_decryptor", "_prefix", "_what", "next")

    def __init__(self, dek: Secret, prefix: Buffer, *, what: str) -> None:
        self._decryptor = Cobblestone256Decryptor(dek.reveal(), CONTEXT)
        self._prefix: Buffer | None = prefix
        self._what, self.next = what, 0

    def open_into(self, sealed: Buffer, out: memoryview) -> None:
        """Decrypt the next chunks.

        Parameters
        ----------
        sealed : bytes
            Whole encrypted chunks of 16400 bytes; the last chunk of a body, which is shorter, is none of them.
        out : memoryview
            Where the plaintext goes: 16384 bytes for each.

        Raises
        ------
        IntegrityError
            When a chunk or the key commitment does not authenticate, now or in an earlier call. Nothing is in `out`
            then.
        """
        # Before anything is tried: an interrupted or failed decryptor is at no known place, and is not asked again.
        at, self.next = self.next, -1
        try:
            if self._prefix is not None:
                self._decryptor.update_into(self._prefix, out[:0])
                self._prefix = None
            self._decryptor.update_into(sealed, out)
        except (InvalidTag, AlreadyFinalized, ValueError) as exc:
            wipe(out)
            raise IntegrityError(f"{self._what}: failed authentication", path=self._what) from exc
        self.next = at + len(sealed) // WIRE_CHUNK

"""Header of an object (docs/spec/format.md, 4.1): 128 bytes that wrap its DEK and bind its path."""

from __future__ import annotations

from sovstore.errors import FormatError
from sovstore.format.cobblestone import Buffer, open_message, seal_message
from sovstore.secret import Secret

#: Bytes of a header.
HEADER = 128
#: Bytes of a store id and of a key id.
ID = 16
#: Bytes of a DEK and of a store key.
KEY = 32
MAGIC = bytes.fromhex("89534f560d0a1a")
VERSION = 1


def _context(store_id: bytes, key_id: bytes, path: str) -> bytes:
    return b"sovstore/1 wrap\x00" + store_id + key_id + path.encode()


def seal_header(store_key: Secret, store_id: bytes, key_id: bytes, path: str, dek: Secret) -> bytes:
    """Return the header that wraps `dek` for the object at `path`.

    Parameters
    ----------
    store_key, dek : Secret
        32 bytes each.
    store_id, key_id : bytes
        16 bytes each.
    path : str
        Already checked (`sovstore.format.names.check_path`).
    """
    wrapped = seal_message(store_key, _context(store_id, key_id, path), dek)
    return MAGIC + bytes([VERSION]) + key_id + wrapped


def header_key_id(header: Buffer, *, what: str) -> bytes:
    """Return the id, 16 bytes, of the store key that a header names.

    It is not authenticated yet: it says which key to try, and nothing else.

    Raises
    ------
    FormatError
        When the bytes are not a header of this version.
    """
    head = bytes(header[:HEADER])
    if len(head) < HEADER or head[:7] != MAGIC:
        raise FormatError(
            f"{what}: not an object of a store",
            path=what,
            hint="sovstore did not write it, or it was overwritten; plaintext is never read in its place",
        )
    if head[7] != VERSION:
        raise FormatError(
            f"{what}: unknown format version {head[7]}",
            path=what,
            hint=f"this release reads version {VERSION}; a newer sovstore may read it",
        )
    return head[8 : 8 + ID]


def open_header(store_key: Secret, store_id: bytes, path: str, header: Buffer, *, what: str) -> Secret:
    """Return the DEK, 32 bytes, of the object at `path`.

    Parameters
    ----------
    store_key : Secret
        The 32 bytes of the key that `header_key_id` names.
    store_id : bytes
        16 bytes, from the client's configuration.
    path : str
        The path that was asked for: an object that was moved or swapped does not open.
    header : bytes
        The first 128 bytes of the object; more is ignored.
    what : str
        The object, for error messages.

    Raises
    ------
    FormatError
        When the bytes are not a header of this version.
    IntegrityError
        When it was not sealed by this key for this store and path.
    """
    key_id = header_key_id(header, what=what)
    return open_message(store_key, _context(store_id, key_id, path), header[24:HEADER], what=what)

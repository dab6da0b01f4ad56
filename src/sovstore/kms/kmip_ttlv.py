"""TTLV, how KMIP writes its messages (KMIP 1.4, 9.1): items to bytes and back, nothing else.

The parser is strict: what it accepts, it would write in the same bytes. Does not know what a message means.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from sovstore.errors import FormatError

#: The largest message that is parsed, in bytes; ours take a few hundred.
MOST = 2**16
#: How deep structures may lie in each other; the deepest of KMIP that is asked for has 5.
DEPTH = 12
HEADER = 8
#: First bytes of tags: those of the standard, and of extensions (9.1.3.1).
_STANDARD, EXTENSION = 0x42, 0x54


class Type(IntEnum):
    """Types of items (9.1.1.2)."""

    STRUCTURE = 1
    INTEGER = 2
    LONG_INTEGER = 3
    BIG_INTEGER = 4
    ENUMERATION = 5
    BOOLEAN = 6
    TEXT = 7
    BYTES = 8
    DATE_TIME = 9
    INTERVAL = 10
    DATE_TIME_EXTENDED = 11


#: How numbers are written.
_NUMBERS = {
    Type.INTEGER: struct.Struct(">i"),
    Type.LONG_INTEGER: struct.Struct(">q"),
    Type.ENUMERATION: struct.Struct(">I"),
    Type.BOOLEAN: struct.Struct(">Q"),
    Type.DATE_TIME: struct.Struct(">q"),
    Type.INTERVAL: struct.Struct(">I"),
    Type.DATE_TIME_EXTENDED: struct.Struct(">q"),
}

Value = int | str | bytes | tuple["Item", ...]


@dataclass(frozen=True)
class Item:
    """One item. Its `repr` leaves out the value, which may be a secret.

    Parameters
    ----------
    tag : int
        3 bytes; the first is 0x42, or 0x54 for an extension.
    type : Type
        Of the value.
    value : int, str, bytes or tuple of Item
        A text is a `str`; bytes and big integers are `bytes`; a structure is a tuple; all others are an `int`.
    """

    tag: int
    type: Type
    value: Value = field(repr=False)


def structure(tag: int, *items: Item) -> Item:
    """Return a structure of items."""
    return Item(tag, Type.STRUCTURE, items)


def encode(item: Item) -> bytes:
    """Return an item as bytes.

    Raises
    ------
    FormatError
        When its value is not of its type, or the bytes would be more than `MOST` or deeper than `DEPTH`.
    """
    raw = _encode(item, DEPTH)
    if len(raw) > MOST:
        raise FormatError("kmip: a message is too long to be sent")
    return raw


def _encode(item: Item, depth: int) -> bytes:
    if not _is_tag(item.tag) or depth == 0:
        raise FormatError("kmip: a message cannot be written: tag or depth")
    raw = _value_bytes(item, depth)
    return item.tag.to_bytes(3, "big") + bytes([item.type]) + len(raw).to_bytes(4, "big") + raw + bytes(-len(raw) % 8)


def _value_bytes(item: Item, depth: int) -> bytes:
    value = item.value
    if item.type is Type.STRUCTURE and isinstance(value, tuple):
        return b"".join(_encode(inner, depth - 1) for inner in value)
    if item.type is Type.BYTES and isinstance(value, bytes):
        return value
    if item.type is Type.BIG_INTEGER and isinstance(value, bytes) and value and len(value) % 8 == 0:
        return value
    try:
        if item.type is Type.TEXT and isinstance(value, str):
            return value.encode()
        if item.type in _NUMBERS and isinstance(value, int) and (item.type is not Type.BOOLEAN or 0 <= value <= 1):
            return _NUMBERS[item.type].pack(value)
    except (struct.error, UnicodeEncodeError):
        # The error of the codec quotes the value.
        raise FormatError("kmip: a message cannot be written: value out of range") from None
    raise FormatError("kmip: a message cannot be written: value of another type")


def body_size(header: bytes, tag: int) -> int:
    """Return how many bytes follow the first 8 of a message.

    Parameters
    ----------
    header : bytes
        8 bytes.
    tag : int
        What the message must be; it is a structure.

    Raises
    ------
    FormatError
        When it is none, or would be longer than `MOST`.
    """
    size = int.from_bytes(header[4:], "big")
    if len(header) != HEADER or header[:4] != tag.to_bytes(3, "big") + bytes([Type.STRUCTURE]):
        raise FormatError("kmip: not a message of the kind that was expected")
    if size % 8 or size > MOST - HEADER:
        raise FormatError("kmip: a message of an impossible length")
    return size


def decode(raw: bytes) -> Item:
    """Return the one item that bytes hold.

    Raises
    ------
    FormatError
        When they are not exactly one item as `encode` writes it, are more than `MOST` or deeper than `DEPTH`.
    """
    if len(raw) > MOST:
        raise FormatError("kmip: a message is too long")
    items = tuple(_decode(memoryview(raw), DEPTH))
    if len(items) != 1:
        raise FormatError("kmip: not one message")
    return items[0]


def _decode(raw: memoryview, depth: int) -> Iterator[Item]:
    """Yield the items that lie one behind the other."""
    if depth == 0:
        raise FormatError("kmip: structures lie too deep in each other")
    while raw:
        if len(raw) < HEADER:
            raise FormatError("kmip: an item is cut")
        tag, size = int.from_bytes(raw[:3], "big"), int.from_bytes(raw[4:HEADER], "big")
        end = HEADER + size
        padded = end + -size % 8
        if not _is_tag(tag) or raw[3] not in Type.__members__.values() or padded > len(raw):
            raise FormatError("kmip: an item is cut, or of an unknown type")
        if any(raw[end:padded]):
            raise FormatError("kmip: the padding of an item is not zero")
        kind = Type(raw[3])
        yield Item(tag, kind, _value(kind, raw[HEADER:end], depth))
        raw = raw[padded:]


def _value(kind: Type, raw: memoryview, depth: int) -> Value:
    if kind is Type.STRUCTURE:
        return tuple(_decode(raw, depth - 1))
    if kind is Type.BYTES or (kind is Type.BIG_INTEGER and len(raw) > 0 and len(raw) % 8 == 0):
        return bytes(raw)
    if kind is Type.TEXT:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            # It would carry the text.
            raise FormatError("kmip: a text is not UTF-8") from None
    number = _NUMBERS.get(kind)
    if number is None or number.size != len(raw):
        raise FormatError("kmip: a value is of an impossible length")
    value: int = number.unpack(raw)[0]
    if kind is Type.BOOLEAN and value not in (0, 1):
        raise FormatError("kmip: a truth value is neither")
    return value


def _is_tag(tag: int) -> bool:
    return tag >> 16 in (_STANDARD, EXTENSION)

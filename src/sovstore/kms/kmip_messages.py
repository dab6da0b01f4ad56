"""The three requests of KMIP that a KEK needs, and what comes back: bytes in, bytes out (KMIP 1.4, 4.29 and 6).

Encrypt and Decrypt by AES-GCM with AAD, and Get Attributes. Does not have a request that would move a key. What a
reply says is checked for its form here, and for its meaning by the driver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from sovstore.errors import FormatError
from sovstore.kms.kmip_ttlv import EXTENSION, Item, Type, decode, encode, structure

#: AAD and tag came with 1.4: with an older version there is no field to bind a context in.
VERSIONS = {"1.4": (1, 4), "2.0": (2, 0), "2.1": (2, 1)}
#: Bytes of the tag of AES-GCM.
TAG = 16
_REQUEST_ID = 128


class Tag(IntEnum):
    """Tags of the items that are written or read (9.1.3.1)."""

    ATTRIBUTE = 0x420008
    ATTRIBUTE_INDEX = 0x420009
    ATTRIBUTE_NAME = 0x42000A
    ATTRIBUTE_VALUE = 0x42000B
    BATCH_COUNT = 0x42000D
    BATCH_ITEM = 0x42000F
    BLOCK_CIPHER_MODE = 0x420011
    CRITICALITY = 0x420026
    ALGORITHM = 0x420028
    LENGTH = 0x42002A
    PARAMETERS = 0x42002B
    USAGE_MASK = 0x42002C
    IV = 0x42003D
    MESSAGE_EXTENSION = 0x420051
    OBJECT_TYPE = 0x420057
    OPERATION = 0x42005C
    VERSION = 0x420069
    MAJOR = 0x42006A
    MINOR = 0x42006B
    REQUEST_HEADER = 0x420077
    REQUEST = 0x420078
    REQUEST_PAYLOAD = 0x420079
    RESPONSE_HEADER = 0x42007A
    RESPONSE = 0x42007B
    RESPONSE_PAYLOAD = 0x42007C
    RESULT_MESSAGE = 0x42007D
    RESULT_REASON = 0x42007E
    RESULT_STATUS = 0x42007F
    STATE = 0x42008D
    TIME_STAMP = 0x420092
    BATCH_ITEM_ID = 0x420093
    UID = 0x420094
    DATA = 0x4200C2
    ATTESTATION_TYPE = 0x4200C7
    NONCE = 0x4200C8
    TAG_LENGTH = 0x4200CE
    AAD = 0x4200FE
    GCM_TAG = 0x4200FF
    CLIENT_CORRELATION = 0x420105
    SERVER_CORRELATION = 0x420106
    EXTRACTABLE = 0x420122
    ATTRIBUTES = 0x420125
    ATTRIBUTE_REFERENCE = 0x42013B
    SERVER_HASHED_PASSWORD = 0x420155


class Operation(IntEnum):
    """Operations that are asked for (9.1.3.2.27)."""

    GET_ATTRIBUTES = 0x0B
    ENCRYPT = 0x1F
    DECRYPT = 0x20


SUCCESS, FAILED = 0, 1
SYMMETRIC_KEY, AES, ACTIVE = 2, 3, 2
MAY_ENCRYPT, MAY_DECRYPT, MAY_EXPORT = 0x04, 0x08, 0x40
_GCM = 9
_ASKED = {
    "Object Type": (Tag.OBJECT_TYPE, Type.ENUMERATION),
    "Cryptographic Algorithm": (Tag.ALGORITHM, Type.ENUMERATION),
    "Cryptographic Length": (Tag.LENGTH, Type.INTEGER),
    "Cryptographic Usage Mask": (Tag.USAGE_MASK, Type.INTEGER),
    "State": (Tag.STATE, Type.ENUMERATION),
    "Extractable": (Tag.EXTRACTABLE, Type.BOOLEAN),
}
_TYPES: dict[int, Type] = dict(_ASKED.values())
_HEADER = (Tag.VERSION, Tag.BATCH_COUNT, Tag.SERVER_CORRELATION)
_RESULT = (Tag.OPERATION, Tag.RESULT_STATUS, Tag.RESULT_REASON, Tag.RESPONSE_PAYLOAD)
#: What may stand beside them; it changes nothing.
_HEADER_IGNORED = (Tag.TIME_STAMP, Tag.ATTESTATION_TYPE, Tag.NONCE, Tag.CLIENT_CORRELATION, Tag.SERVER_HASHED_PASSWORD)
_RESULT_IGNORED = (Tag.BATCH_ITEM_ID, Tag.RESULT_MESSAGE)


@dataclass(frozen=True)
class Ciphertext:
    """What AES-GCM makes.

    Parameters
    ----------
    iv : bytes or None
        None where the service used the one that it was given and did not repeat it.
    tag : bytes
        `TAG` bytes.
    data : bytes
        As long as the plaintext.
    """

    iv: bytes | None
    tag: bytes
    data: bytes


@dataclass(frozen=True)
class Reply:
    """The one answer in a message.

    Parameters
    ----------
    version : tuple of int
        Of KMIP.
    operation : int or None
        What was done; None where the service did not get as far as to look.
    status, reason : int
        Result; the reason is 0 where there is none.
    request_id : str or None
        What the service calls the request.
    payload : Item or None
        Not in its `repr`: it may hold a plaintext.
    """

    version: tuple[int, int]
    operation: int | None
    status: int
    reason: int
    request_id: str | None
    payload: Item | None = field(repr=False)


def encrypt(version: tuple[int, int], uid: str, iv: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Return a request to encrypt."""
    return _request(version, Operation.ENCRYPT, _uid(uid), _parameters(), *_inputs(plaintext, iv, aad))


def decrypt(version: tuple[int, int], uid: str, sealed: Ciphertext, aad: bytes) -> bytes:
    """Return a request to decrypt; `sealed.iv` is there."""
    inputs = _inputs(sealed.data, sealed.iv or b"", aad)
    tag = Item(Tag.GCM_TAG, Type.BYTES, sealed.tag)
    return _request(version, Operation.DECRYPT, _uid(uid), _parameters(), *inputs, tag)


def get_attributes(version: tuple[int, int], uid: str) -> bytes:
    """Return a request for what decides whether a key may be a KEK."""
    if version < (2, 0):
        asked = [Item(Tag.ATTRIBUTE_NAME, Type.TEXT, name) for name in _ASKED]
    else:
        asked = [Item(Tag.ATTRIBUTE_REFERENCE, Type.ENUMERATION, tag) for tag in _TYPES]
    return _request(version, Operation.GET_ATTRIBUTES, _uid(uid), *asked)


def _request(version: tuple[int, int], operation: Operation, *payload: Item) -> bytes:
    number = structure(
        Tag.VERSION, Item(Tag.MAJOR, Type.INTEGER, version[0]), Item(Tag.MINOR, Type.INTEGER, version[1])
    )
    header = structure(Tag.REQUEST_HEADER, number, Item(Tag.BATCH_COUNT, Type.INTEGER, 1))
    asked = Item(Tag.OPERATION, Type.ENUMERATION, operation)
    batch_item = structure(Tag.BATCH_ITEM, asked, structure(Tag.REQUEST_PAYLOAD, *payload))
    return encode(structure(Tag.REQUEST, header, batch_item))


def _uid(uid: str) -> Item:
    return Item(Tag.UID, Type.TEXT, uid)


def _parameters() -> Item:
    # Always said, and never left to the key's own attributes: a key of another kind is then refused by the service.
    return structure(
        Tag.PARAMETERS,
        Item(Tag.BLOCK_CIPHER_MODE, Type.ENUMERATION, _GCM),
        Item(Tag.ALGORITHM, Type.ENUMERATION, AES),
        Item(Tag.TAG_LENGTH, Type.INTEGER, TAG),
    )


def _inputs(data: bytes, iv: bytes, aad: bytes) -> tuple[Item, Item, Item]:
    return Item(Tag.DATA, Type.BYTES, data), Item(Tag.IV, Type.BYTES, iv), Item(Tag.AAD, Type.BYTES, aad)


def read(raw: bytes) -> Reply:
    """Return what a reply says.

    Raises
    ------
    FormatError
        When it is not the reply to one request.
    """
    message = decode(raw)
    parts = message.value
    if message.tag != Tag.RESPONSE or not isinstance(parts, tuple) or len(parts) != 2:
        raise FormatError("kmip: not a reply to one request")
    header = _fields(parts[0], Tag.RESPONSE_HEADER, _HEADER, _HEADER_IGNORED)
    result = _fields(parts[1], Tag.BATCH_ITEM, _RESULT, _RESULT_IGNORED)
    version = _fields(header.get(Tag.VERSION), Tag.VERSION, (Tag.MAJOR, Tag.MINOR))
    if _number(header, Tag.BATCH_COUNT, Type.INTEGER) != 1:
        raise FormatError("kmip: not a reply to one request")
    return Reply(
        (_number(version, Tag.MAJOR, Type.INTEGER), _number(version, Tag.MINOR, Type.INTEGER)),
        _number(result, Tag.OPERATION, Type.ENUMERATION) if Tag.OPERATION in result else None,
        _number(result, Tag.RESULT_STATUS, Type.ENUMERATION),
        _number(result, Tag.RESULT_REASON, Type.ENUMERATION) if Tag.RESULT_REASON in result else 0,
        _request_id(header),
        result.get(Tag.RESPONSE_PAYLOAD),
    )


def uid_of(payload: Item | None) -> str:
    """Return which key a reply is about.

    Raises
    ------
    FormatError
        When the payload does not say.
    """
    # Each of the three payloads has it; what else they have is read, and checked, by the functions below.
    items = payload.value if payload is not None and isinstance(payload.value, tuple) else ()
    found = [item.value for item in items if item.tag == Tag.UID and isinstance(item.value, str)]
    if len(found) != 1:
        raise FormatError("kmip: a reply does not say which key it is about")
    return found[0]


def ciphertext(payload: Item | None) -> Ciphertext:
    """Return what was encrypted.

    Raises
    ------
    FormatError
        When the payload is not that of Encrypt.
    """
    found = _fields(payload, Tag.RESPONSE_PAYLOAD, (Tag.UID, Tag.DATA, Tag.IV, Tag.GCM_TAG))
    iv = _bytes(found, Tag.IV) if Tag.IV in found else None
    return Ciphertext(iv, _bytes(found, Tag.GCM_TAG), _bytes(found, Tag.DATA))


def plaintext(payload: Item | None) -> bytes:
    """Return what was decrypted.

    Raises
    ------
    FormatError
        When the payload is not that of Decrypt.
    """
    return _bytes(_fields(payload, Tag.RESPONSE_PAYLOAD, (Tag.UID, Tag.DATA)), Tag.DATA)


def attributes(payload: Item | None) -> dict[int, int]:
    """Return the attributes that were asked for, those that the service has, by their tags.

    Raises
    ------
    FormatError
        When the payload is not that of Get Attributes, or one is there twice or of another type.
    """
    found: dict[int, int] = {}
    for item in _listed(payload):
        if (kind := _TYPES.get(item.tag)) is None:
            continue
        if item.tag in found or item.type is not kind or not isinstance(item.value, int):
            raise FormatError("kmip: an attribute is there twice, or of another type")
        found[item.tag] = item.value
    return found


def _listed(payload: Item | None) -> Iterable[Item]:
    """Yield the attributes as KMIP 2 has them: by tag. Before, each had a name and a value."""
    items = payload.value if payload is not None and isinstance(payload.value, tuple) else ()
    for item in items:
        if item.tag == Tag.ATTRIBUTES and isinstance(item.value, tuple):
            yield from item.value
        elif item.tag == Tag.ATTRIBUTE:
            parts = _fields(item, Tag.ATTRIBUTE, (Tag.ATTRIBUTE_NAME, Tag.ATTRIBUTE_VALUE), (Tag.ATTRIBUTE_INDEX,))
            name, value = parts.get(Tag.ATTRIBUTE_NAME), parts.get(Tag.ATTRIBUTE_VALUE)
            if name is None or value is None:
                raise FormatError("kmip: an attribute has no name or no value")
            if name.value in _ASKED:
                yield Item(_ASKED[str(name.value)][0], value.type, value.value)


def _fields(item: Item | None, tag: int, known: Collection[int], ignored: Collection[int] = ()) -> dict[int, Item]:
    """Return the known items of a structure by their tags; refuse all that no extension of KMIP allows."""
    if item is None or item.tag != tag or not isinstance(item.value, tuple):
        raise FormatError("kmip: a part of a reply is missing")
    found: dict[int, Item] = {}
    for inner in item.value:
        if inner.tag in known:
            if inner.tag in found:
                raise FormatError("kmip: a part of a reply is there twice")
            found[inner.tag] = inner
        elif inner.tag == Tag.MESSAGE_EXTENSION:
            _check_extension(inner)
        elif inner.tag not in ignored and inner.tag >> 16 != EXTENSION:
            raise FormatError("kmip: a reply holds what does not belong there")
    return found


def _check_extension(extension: Item) -> None:
    """Refuse an extension that says that it must be understood (6.17)."""
    parts = extension.value if isinstance(extension.value, tuple) else ()
    if any(part.tag == Tag.CRITICALITY and part.value for part in parts):
        raise FormatError("kmip: a reply cannot be understood without an extension")


def _number(fields: dict[int, Item], tag: int, kind: Type) -> int:
    item = fields.get(tag)
    if item is None or item.type is not kind or not isinstance(item.value, int):
        raise FormatError("kmip: a number is missing")
    return item.value


def _bytes(fields: dict[int, Item], tag: int) -> bytes:
    item = fields.get(tag)
    if item is None or item.type is not Type.BYTES or not isinstance(item.value, bytes):
        raise FormatError("kmip: a value is missing")
    return item.value


def _request_id(header: dict[int, Item]) -> str | None:
    item = header.get(Tag.SERVER_CORRELATION)
    text = item.value if item is not None else None
    return text[:_REQUEST_ID] if isinstance(text, str) and text.isprintable() and text else None

"""Targets: what services that hold KEKs answer, in TTLV and in JSON, through the drivers as they are."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sovstore.errors import ConfigError, FormatError, KMSError
from sovstore.kms import eviden, kmip_messages, okms, openbao, scaleway
from sovstore.kms.base import WrappingKey
from sovstore.kms.http_wire import Answer
from sovstore.kms.kmip_messages import Tag
from sovstore.kms.kmip_ttlv import DEPTH, MOST, Item, Type, body_size, decode, encode, structure
from sovstore.kms.settings import Service
from sovstore.kms.uri import parse
from sovstore.secret import Secret
from tests.fuzz.secrets import PAYLOAD, TOKEN, draw
from tests.fuzz.target import Target, hold

_CONTEXT = PAYLOAD[32:]
#: HTTP gives no reply that is longer to its drivers; OpenBao's wire takes twice as much.
_LONGEST = 2**16
_STATUS = (200, 400, 401, 403, 404, 409, 412, 422, 429, 500, 503, 302, 204)
#: Too short for a second try, which would wait.
_SERVICE = Service("fuzz", timeout_s=0.05, token="env:SOVSTORE_FUZZ_TOKEN", plain_http=True)


class _Wire:
    """Answers each request with the next reply, and the last again and again."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, bytes]] = []

    def next(self) -> tuple[int, bytes]:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def exchange(self, *_: object) -> Answer:
        status, raw = self.next()
        return Answer(status, {"x-request-id": "r"}, raw)


class _LoggedIn:
    """In place of a login."""

    def token(self, _end: float) -> tuple[Secret, bool]:
        return Secret(TOKEN.encode()), True


_wire = _Wire()


def _by_http(key: Any) -> Any:  # the drivers have no common base for their service
    key._http._wire = _wire
    return key


def _openbao() -> WrappingKey:
    uri = "openbao://127.0.0.1:1/transit/kek"
    key: Any = openbao.OpenBaoKey(uri, parse(uri, uri, segments={2}), _SERVICE)
    key._wire._send = lambda *_: _wire.next()
    key._login = _LoggedIn()
    return key  # type: ignore[no-any-return]  # as `_by_http`


def _okms_wrapped() -> bytes:
    parts = (b'{"alg":"dir","enc":"A256GCM"}', b"", bytes(12), bytes(len(PAYLOAD)), bytes(16))
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def _eviden_wrapped(mark: int, name: bytes) -> bytes:
    return bytes((mark, len(name))) + name + bytes(12) + bytes(len(PAYLOAD) + 1) + bytes(16)


_JOSE = b'{"alg":"dir","enc":"A256GCM","kid":"kek"}'
_UUID = "01234567-89ab-cdef-0123-456789abcdef"
_URL = "http://127.0.0.1:1"
#: First byte of an input: a driver, and something that it has wrapped.
_DRIVERS: Mapping[bytes, tuple[Any, bytes]] = {
    b"b": (_openbao(), b"vault:v1:" + base64.b64encode(bytes(len(PAYLOAD) + 28))),
    b"o": (_by_http(okms.OKMSKey(f"okms://h/{_UUID}/{_UUID}", _SERVICE, _URL, _UUID, _UUID)), _okms_wrapped()),
    b"s": (_by_http(scaleway.ScalewayKey(f"scw-kms://fr-par/{_UUID}", _SERVICE, _URL, _UUID)), bytes(120)),
    b"j": (_by_http(eviden.JOSEKey("eviden-kms://h/kek", _SERVICE, _URL, "kek")), _eviden_wrapped(1, _JOSE)),
    b"k": (_by_http(eviden.KMIPKey("eviden-kms://h/kek?api=kmip", _SERVICE, _URL, "kek")), _eviden_wrapped(2, b"kek")),
}


def parse_reply(data: bytes) -> None:
    """Unwrap, wrap and describe by a service that answers this; a NUL parts one reply from the next."""
    key, wrapped = _DRIVERS.get(data[:1].lower(), _DRIVERS[b"o"])
    replies = [(_STATUS[part[0] % len(_STATUS)], part[1:]) for part in data[1:].split(b"\0") if part]
    _wire.replies = replies or [(200, b"")]
    _forget(key)
    # What is asked is a choice of the first reply's status, so that an input costs one call and not three.
    asked = data[1:2][0] // 64 if data[1:2] else 0
    if asked == 0:
        # Which one is the service's word; a wrong one does not open the keyset.
        hold(16 <= len(key.unwrap(wrapped, _CONTEXT)) <= 64, "what was unwrapped is no key")
    elif asked == 1:
        hold(0 < len(key.wrap(PAYLOAD[:32], _CONTEXT)) <= 4096, "a wrapped secret is too long")
    else:
        hold(all(word.isprintable() for word in key.describe().values()), "a description is no text")


def _forget(key: Any) -> None:
    """Make a driver look at its key again, as one that was opened just now."""
    for name in ("_fit", "_suits", "_looked", "_unwrapped"):
        if hasattr(key, name):
            setattr(key, name, False)


def _good(payload: bytes) -> dict[bytes, list[object]]:
    """Return good replies by driver."""
    text, url = base64.b64encode(payload).decode(), base64.urlsafe_b64encode(b"\1" + payload).rstrip(b"=").decode()
    off = dict.fromkeys(
        ("convergent_encryption", "exportable", "allow_plaintext_backup", "derived", "deletion_allowed"), False
    )
    members = [{"tag": "UniqueIdentifier", "type": "TextString", "value": "kek"}]
    members += [{"tag": "Data", "type": "ByteString", "value": (b"\1" + payload).hex().upper()}]
    attributes = {"ObjectType": "SymmetricKey", "State": "Active", "CryptographicLength": 256}
    return {
        b"b": [
            {"request_id": "r", "data": {"plaintext": text}},
            {"data": {"type": "aes256-gcm96", "latest_version": 2, **off}},
            {"data": {"ciphertext": "vault:v1:" + base64.b64encode(bytes(len(payload) + 28)).decode()}},
            {"errors": ["encryption key not found", "sealed"]},
        ],
        b"o": [
            {"plaintext": text},
            {"type": "oct", "operations": ["encrypt", "decrypt"], "size": 256, "attributes": {"state": "active"}},
            {"ciphertext": _okms_wrapped().decode()},
            {"error_code": 17125377, "error_id": 1, "errors": ["x"], "request_id": "r"},
        ],
        b"s": [
            {"plaintext": text, "ciphertext": None, "key_id": _UUID},
            {"id": _UUID, "state": "enabled", "usage": {"symmetric_encryption": "aes_256_gcm"}, "rotation_count": 1},
            {"ciphertext": text, "key_id": _UUID},
            {"type": "invalid_arguments", "details": [{"argument_name": "ciphertext"}]},
        ],
        b"j": [
            {"data": url, "kid": "kek"},
            {"protected": base64.urlsafe_b64encode(_JOSE).decode().rstrip("="), "iv": "A" * 16, "aad": "", "tag": ""},
            {"error": "not found"},
        ],
        b"k": [
            {"tag": "DecryptResponse", "type": "Structure", "value": members},
            {"tag": "GetAttributesResponse", "value": [{"tag": k, "value": v} for k, v in attributes.items()]},
        ],
    }


def _replies() -> list[bytes]:
    seeds = []
    for kind, replies in _good(PAYLOAD).items():
        raw = [json.dumps(reply).encode() for reply in replies]
        # 13, 65 and 130 are the status 200; unwrap is asked first, then wrap, then a description.
        seeds += [kind + asked + one for asked in (b"\x0d", b"\x41", b"\x82") for one in raw]
        seeds += [kind + b"\x41" + b"\0\x0d".join(raw[1:]), kind + b"\x0e" + raw[-1], kind + b"\x0d\xff", kind]
    return seeds


def _reply_bombs() -> Iterator[tuple[str, bytes]]:
    for kind in _DRIVERS:
        most = _LONGEST * (2 if kind == b"b" else 1)
        for status in (b"\x0d", b"\x82", b"\x0e"):
            for piece in (b"[", b'{"":', b"{},", b"[],", b"1", b'"errors":[', b"\xff"):
                yield f"{kind!r} {status!r}: {piece!r}", kind + status + (piece * most)[:most]
            yield f"{kind!r} {status!r}: empty objects", kind + status + b"[" + b"{}," * (most // 3 - 2) + b"0]"
            for name in (b"errors", b"data", b"plaintext", b"value", b"type", b"usage", b"details", b"request_id"):
                for depth in (960, 985, 995):
                    nested = b"[" * depth + b"]" * depth
                    yield (
                        f"{kind!r} {status!r}: {name!r} that is {depth} deep",
                        kind + status + b'{"%s":%s}' % (name, nested),
                    )
                    nested = b'{"":' * depth + b"0" + b"}" * depth
                    yield (
                        f"{kind!r} {status!r}: {name!r} of {depth} tables",
                        kind + status + b'{"%s":%s}' % (name, nested),
                    )


def parse_ttlv(data: bytes) -> None:
    """Read a message of KMIP for all that it can be."""
    item = decode(data)
    hold(encode(item) == data, "a message comes out otherwise than it went in")
    if item.type is Type.STRUCTURE:
        hold(body_size(data[:8], item.tag) == len(data) - 8, "a message is of another length")
    hold(len(repr(item)) < 200, "a message is shown")
    reply = kmip_messages.read(data)
    refused = []
    readers = (kmip_messages.uid_of, kmip_messages.ciphertext, kmip_messages.plaintext, kmip_messages.attributes)
    for read in readers:
        try:
            read(reply.payload)
        except FormatError as exc:
            refused.append(exc)
    if len(refused) == len(readers):
        raise refused[0]


def _message(*payload: Item, status: int = 0) -> bytes:
    version = structure(Tag.VERSION, Item(Tag.MAJOR, Type.INTEGER, 1), Item(Tag.MINOR, Type.INTEGER, 4))
    header = structure(
        Tag.RESPONSE_HEADER,
        version,
        Item(Tag.TIME_STAMP, Type.DATE_TIME, 1_800_000_000),
        Item(Tag.BATCH_COUNT, Type.INTEGER, 1),
    )
    result = structure(
        Tag.BATCH_ITEM,
        Item(Tag.OPERATION, Type.ENUMERATION, 0x20),
        Item(Tag.RESULT_STATUS, Type.ENUMERATION, status),
        Item(Tag.RESULT_REASON, Type.ENUMERATION, 4),
        Item(Tag.RESULT_MESSAGE, Type.TEXT, "message"),
        structure(Tag.RESPONSE_PAYLOAD, Item(Tag.UID, Type.TEXT, "uid"), *payload),
    )
    return encode(structure(Tag.RESPONSE, header, result))


def _messages() -> list[bytes]:
    attribute = structure(
        Tag.ATTRIBUTE,
        Item(Tag.ATTRIBUTE_NAME, Type.TEXT, "Cryptographic Length"),
        Item(Tag.ATTRIBUTE_INDEX, Type.INTEGER, 0),
        Item(Tag.ATTRIBUTE_VALUE, Type.INTEGER, 256),
    )
    data, iv = Item(Tag.DATA, Type.BYTES, draw("data", 64)), Item(Tag.IV, Type.BYTES, bytes(12))
    tag, attributes = (
        Item(Tag.GCM_TAG, Type.BYTES, bytes(16)),
        structure(Tag.ATTRIBUTES, Item(Tag.LENGTH, Type.INTEGER, 256)),
    )
    kinds = [
        Item(Tag.DATA, kind, 1) for kind in (Type.LONG_INTEGER, Type.BOOLEAN, Type.INTERVAL, Type.DATE_TIME_EXTENDED)
    ]
    messages = [
        _message(),
        _message(data),
        _message(data, iv, tag),
        _message(attribute),
        _message(attributes),
        _message(*kinds),
    ]
    big = encode(structure(Tag.RESPONSE, Item(Tag.DATA, Type.BIG_INTEGER, bytes(8))))
    return [*messages, _message(status=1), big, encode(Item(Tag.DATA, Type.TEXT, "é")), b"", bytes(8)]


def _ttlv_bombs() -> Iterator[tuple[str, bytes]]:
    empty = encode(structure(Tag.RESPONSE))
    yield "as many empty structures as go", encode(structure(Tag.RESPONSE, *[structure(Tag.DATA)] * (MOST // 8 - 1)))
    yield "as many numbers as go", _message(*[Item(Tag.DATA, Type.INTEGER, 1)] * (MOST // 16 - 30))
    yield "as many attributes as go", _message(*[structure(Tag.ATTRIBUTE)] * (MOST // 8 - 60))
    yield "a byte more than is read", empty.ljust(MOST + 1, b"\0")
    yield "8 MiB", bytes(2**23)
    yield "the largest length", empty[:4] + b"\xff\xff\xff\xff"
    yield "one text", encode(Item(Tag.DATA, Type.TEXT, "x" * (MOST - 8)))
    for depth in (DEPTH, DEPTH + 1, 8191):
        raw = b""
        for _ in range(depth):
            raw = empty[:4] + len(raw).to_bytes(4, "big") + raw
        yield f"{depth} structures in each other", raw


REPLIES = Target(
    "replies",
    parse_reply,
    (KMSError, ConfigError),
    _replies,
    _reply_bombs,
    [
        b'"%s"' % word
        for word in b"data errors plaintext ciphertext type operations request_id kid value tag state usage".split()
    ],
    4096,
)
TTLV = Target("ttlv", parse_ttlv, (FormatError,), _messages, _ttlv_bombs, [tag.to_bytes(3, "big") for tag in Tag], 4096)

"""KMIP without a service: the codec, the messages, the form of a wrap, key URIs and settings."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tracemalloc
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from sovstore.errors import ConfigError, FormatError, MissingDependencyError, UnwrapError
from sovstore.kms import kmip_messages as messages
from sovstore.kms import kmip_ttlv as ttlv
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.kmip import _taken_apart
from sovstore.kms.kmip_messages import Ciphertext, Operation, Tag
from sovstore.kms.kmip_ttlv import Item, Type, decode, encode
from sovstore.kms.settings import Service
from tests.servers.clients import ClientAuthority
from tests.servers.kmip_fake import attribute, reply

GOLDEN = json.loads((Path(__file__).parent.parent / "vectors/kmip/messages.json").read_text())
MESSAGES = {vector["cause"]: bytes.fromhex(vector["message"]) for vector in GOLDEN["vectors"]}
GIVEN = {name: bytes.fromhex(GOLDEN["common"][name]) for name in ("kek", "iv", "aad", "plaintext", "data", "tag")}
SEALED = Ciphertext(GIVEN["iv"], GIVEN["tag"], GIVEN["data"])
V14 = (1, 4)
UID = Item(Tag.UID, Type.TEXT, "kek-1")
DATA = Item(Tag.DATA, Type.BYTES, bytes(48))


def _item(tag, kind, size, value):
    return tag.to_bytes(3, "big") + bytes([kind]) + size.to_bytes(4, "big") + value


def test_golden_vectors_are_there():
    assert sorted(MESSAGES) == ["decrypt-request", "encrypt-reply", "encrypt-request", "error-reply"]
    assert AESGCM(GIVEN["kek"]).encrypt(GIVEN["iv"], GIVEN["plaintext"], GIVEN["aad"]) == GIVEN["data"] + GIVEN["tag"]


@pytest.mark.parametrize("cause", MESSAGES)
def test_golden_messages_are_written_as_they_were_read(cause):
    assert encode(decode(MESSAGES[cause])) == MESSAGES[cause]


def test_golden_requests():
    encrypted = messages.encrypt(V14, "kek-1", GIVEN["iv"], GIVEN["plaintext"], GIVEN["aad"])
    assert encrypted == MESSAGES["encrypt-request"]
    assert messages.decrypt(V14, "kek-1", SEALED, GIVEN["aad"]) == MESSAGES["decrypt-request"]


def test_golden_replies():
    found = messages.read(MESSAGES["encrypt-reply"])
    assert (found.version, found.operation, found.status, found.reason) == (V14, Operation.ENCRYPT, 0, 0)
    assert messages.uid_of(found.payload) == "kek-1"
    assert messages.ciphertext(found.payload) == SEALED
    refused = messages.read(MESSAGES["error-reply"])
    assert (refused.operation, refused.status, refused.reason) == (Operation.DECRYPT, 1, 0x0A)
    assert refused.payload is None


@pytest.mark.parametrize("cause", MESSAGES)
def test_a_cut_or_extended_message_is_refused(cause):
    raw = MESSAGES[cause]
    for bad in (*(raw[:size] for size in range(len(raw))), raw + bytes(1), raw + bytes(8), raw + raw):
        with pytest.raises(FormatError):
            decode(bad)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (_item(0x41000D, 2, 4, bytes(8)), "tag of neither the standard nor an extension"),
        (_item(0x42000D, 0, 4, bytes(8)), "type 0"),
        (_item(0x42000D, 12, 4, bytes(8)), "type 12"),
        (_item(0x42000D, 2, 4, bytes(7) + b"\1"), "padding"),
        (_item(0x42000D, 2, 4, bytes(4)), "no padding"),
        (_item(0x42000D, 2, 8, bytes(8)), "integer of 8 bytes"),
        (_item(0x42000D, 3, 4, bytes(8)), "long integer of 4 bytes"),
        (_item(0x42000D, 5, 3, bytes(8)), "enumeration of 3 bytes"),
        (_item(0x42000D, 6, 8, bytes(7) + b"\2"), "truth value of 2"),
        (_item(0x42000D, 4, 4, bytes(8)), "big integer of 4 bytes"),
        (_item(0x42000D, 4, 0, b""), "big integer of no bytes"),
        (_item(0x42000D, 7, 1, b"\xff" + bytes(7)), "not UTF-8"),
        (_item(0x42000D, 7, 3, b"\xed\xa0\x80" + bytes(5)), "surrogate"),
        (_item(0x42000D, 1, 4, bytes(8)), "structure of 4 bytes"),
        (_item(0x42000D, 8, 2**32 - 1, bytes(8)), "length beyond the end"),
        (b"", "nothing"),
    ],
)
def test_a_malformed_item_is_refused(raw, why):
    with pytest.raises(FormatError):
        decode(raw)


def test_structures_lie_in_each_other_to_a_limit():
    def nested(depth):
        return Item(Tag.DATA, Type.STRUCTURE, (nested(depth - 1),) if depth > 1 else ())

    assert decode(encode(nested(ttlv.DEPTH - 1)))
    raw = b""
    for _ in range(ttlv.DEPTH + 1):
        raw = _item(Tag.DATA, 1, len(raw), raw)
    with pytest.raises(FormatError):
        decode(raw)
    with pytest.raises(FormatError):
        encode(nested(ttlv.DEPTH + 1))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Type.INTEGER, 2**31),
        (Type.ENUMERATION, -1),
        (Type.BOOLEAN, 2),
        (Type.TEXT, "\ud800"),
        (Type.TEXT, b"text"),
        (Type.BYTES, "text"),
        (Type.BIG_INTEGER, b"1"),
        (Type.STRUCTURE, 1),
        (Type.BYTES, bytes(ttlv.MOST)),
    ],
)
def test_what_cannot_be_read_again_is_not_written(kind, value):
    with pytest.raises(FormatError):
        encode(Item(Tag.DATA, kind, value))


def test_a_hostile_message_takes_bounded_memory():
    empty = _item(Tag.DATA, 1, 0, b"") * ((ttlv.MOST - 8) // 8)
    hostile = _item(Tag.RESPONSE, 1, len(empty), empty)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            messages.read(hostile)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(FormatError):
        decode(hostile + bytes(8))


@pytest.mark.parametrize("size", [ttlv.MOST - 7, ttlv.MOST, 2**32 - 1, 9])
def test_a_length_that_no_reply_has_is_refused_before_it_is_read(size):
    with pytest.raises(FormatError):
        ttlv.body_size(_item(Tag.RESPONSE, 1, size, b""), Tag.RESPONSE)
    assert ttlv.body_size(_item(Tag.RESPONSE, 1, ttlv.MOST - 8, b""), Tag.RESPONSE) == ttlv.MOST - 8


_numbers = {
    Type.INTEGER: (-(2**31), 2**31 - 1),
    Type.LONG_INTEGER: (-(2**63), 2**63 - 1),
    Type.ENUMERATION: (0, 2**32 - 1),
    Type.BOOLEAN: (0, 1),
    Type.DATE_TIME: (-(2**63), 2**63 - 1),
    Type.INTERVAL: (0, 2**32 - 1),
    Type.DATE_TIME_EXTENDED: (-(2**63), 2**63 - 1),
}
_tags = st.integers(0x420000, 0x42FFFF) | st.integers(0x540000, 0x54FFFF)
_leaves = st.one_of(
    *(st.builds(Item, _tags, st.just(kind), st.integers(*ends)) for kind, ends in _numbers.items()),
    st.builds(Item, _tags, st.just(Type.BYTES), st.binary(max_size=40)),
    st.builds(Item, _tags, st.just(Type.BIG_INTEGER), st.binary(min_size=1, max_size=3).map(lambda raw: raw * 8)),
    st.builds(Item, _tags, st.just(Type.TEXT), st.text(st.characters(codec="utf-8"), max_size=20)),
)
_items = st.recursive(
    _leaves,
    lambda inner: st.builds(Item, _tags, st.just(Type.STRUCTURE), st.lists(inner, max_size=4).map(tuple)),
    max_leaves=12,
).filter(lambda item: _depth(item) <= 8)


def _depth(item):
    return 1 + max(map(_depth, item.value), default=0) if item.type is Type.STRUCTURE else 1


@given(_items)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(item):
    assert decode(encode(item)) == item


_edits = st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from(["set", "insert", "delete"]), st.integers(0, 255)))


def _edited(raw, edits):
    changed = bytearray(raw)
    for position, what, value in edits[:4]:
        at = position % (len(changed) + 1)
        changed[at : at + (what != "insert")] = b"" if what == "delete" else bytes([value])
    return bytes(changed)


@given(st.sampled_from(list(MESSAGES.values())) | _items.map(encode), _edits)
@settings(max_examples=400, deadline=None)
def test_what_is_read_would_be_written_in_the_same_bytes(raw, edits):
    changed = _edited(raw, edits)
    try:
        item = decode(changed)
    except FormatError:
        return
    assert encode(item) == changed


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(raw):
    with contextlib.suppress(FormatError):
        assert encode(decode(raw)) == raw


@given(st.sampled_from([MESSAGES["encrypt-reply"], MESSAGES["error-reply"]]), _edits)
@settings(max_examples=400, deadline=None)
def test_a_changed_reply_is_understood_or_refused(raw, edits):
    with contextlib.suppress(FormatError):
        found = messages.read(_edited(raw, edits))
        for read in (messages.uid_of, messages.ciphertext, messages.plaintext, messages.attributes):
            with contextlib.suppress(FormatError):
                read(found.payload)


def test_no_value_is_shown():
    found = messages.read(reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.BYTES, b"canary" * 8)))
    assert messages.plaintext(found.payload) == b"canary" * 8
    assert "canary" not in f"{found!r}{found.payload!r}{found.payload.value!r}"


@pytest.mark.parametrize(
    "raw",
    [
        reply(Operation.DECRYPT, UID, DATA, count=2),
        reply(Operation.DECRYPT, UID, DATA, count=0),
        reply(Operation.DECRYPT, UID, DATA, header=(Item(Tag.DATA, Type.BYTES, b""),)),
        reply(Operation.DECRYPT, UID, DATA, header=(Item(Tag.BATCH_COUNT, Type.INTEGER, 1),)),
        reply(Operation.DECRYPT, UID, DATA, beside=(Item(Tag.OPERATION, Type.ENUMERATION, 32),)),
        reply(Operation.DECRYPT, UID, DATA, beside=(DATA,)),
        MESSAGES["encrypt-request"],
    ],
)
def test_a_reply_of_another_shape_is_refused(raw):
    with pytest.raises(FormatError):
        messages.read(raw)


def _extension(critical):
    parts = (Item(0x42009D, Type.TEXT, "vendor"), Item(Tag.CRITICALITY, Type.BOOLEAN, critical))
    return Item(Tag.MESSAGE_EXTENSION, Type.STRUCTURE, parts)


def test_extensions_are_passed_over_unless_they_must_be_understood():
    vendor = Item(0x540001, Type.INTEGER, 7)
    read = messages.read(reply(Operation.DECRYPT, UID, DATA, vendor, header=(vendor,), beside=(_extension(0), vendor)))
    assert messages.plaintext(read.payload) == bytes(48)
    with pytest.raises(FormatError):
        messages.read(reply(Operation.DECRYPT, UID, DATA, beside=(_extension(1),)))


def test_the_service_may_give_the_request_a_name():
    def named(name):
        return messages.read(reply(32, UID, DATA, header=(Item(Tag.SERVER_CORRELATION, Type.TEXT, name),))).request_id

    assert (named("r-17"), named(""), named("two\nlines"), len(named("x" * 1000))) == ("r-17", None, None, 128)


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        ((), messages.uid_of),
        ((UID, UID), messages.uid_of),
        ((Item(Tag.UID, Type.BYTES, b"kek-1"),), messages.uid_of),
        ((UID,), messages.plaintext),
        ((UID, Item(Tag.DATA, Type.TEXT, "text")), messages.plaintext),
        ((UID, DATA, DATA), messages.plaintext),
        ((UID, DATA), messages.ciphertext),
        ((UID, attribute("State", Type.INTEGER, 2)), messages.attributes),
        ((UID, *[attribute("State", Type.ENUMERATION, 2)] * 2), messages.attributes),
        ((UID, Item(Tag.ATTRIBUTE, Type.STRUCTURE, ())), messages.attributes),
    ],
)
def test_a_payload_of_another_shape_is_refused(payload, read):
    found = messages.read(reply(Operation.DECRYPT, *payload))
    with pytest.raises(FormatError):
        read(found.payload)


@pytest.mark.parametrize("iv_size", [0, 11, 12, 13, 16, 17, 255])
def test_a_wrap_has_one_form(iv_size):
    for data_size in (0, 16, 47, 48, 64, 96, 97, 256):
        iv, tag, data = b"i" * iv_size, b"t" * 16, b"d" * data_size
        expected = Ciphertext(iv, tag, data) if 12 <= iv_size <= 16 and 48 <= data_size <= 96 else None
        assert _taken_apart(bytes([1, iv_size]) + iv + tag + data) == expected


@pytest.fixture
def access(tmp_path):
    pem = str(ClientAuthority(tmp_path).issue("client"))
    return Access(services=(Service(uri="kmip://", cert_file=pem, key_file=pem, timeout_s=0.5),))


def test_what_cannot_be_a_wrap_is_refused_without_asking(access, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    key = registry.open_key("kmip://kmip.hospital.example:5696/kek-1", access)
    good = bytes([1, 12]) + bytes(12 + 16 + 64)
    for bad in (b"", b"\1", good[:60], b"\0" + good[1:], b"\2" + good[1:], b"\1\x0b" + good[2:], bytes(5000)):
        with pytest.raises(UnwrapError):
            key.unwrap(bad, bytes(32))
    with pytest.raises(UnwrapError):
        key.unwrap(good, bytes(31))


@pytest.mark.parametrize(
    "uri",
    [
        "kmip://",
        "kmip:///kek-1",
        "kmip://kmip.hospital.example",
        "kmip://kmip.hospital.example/",
        "kmip://kmip.hospital.example/a/b",
        "kmip://kmip.hospital.example/..",
        "kmip://kmip.hospital.example:0/kek-1",
        "kmip://kmip.hospital.example:65536/kek-1",
        "kmip://kmip..example/kek-1",
        f"kmip://{'a' * 64}.example/kek-1",
        "kmip://kmip.hospital.example/kek-1?version=1.3",
        "kmip://kmip.hospital.example/kek-1?version=canary",
        "kmip://kmip.hospital.example/kek-1?version=1.4&version=1.4",
        "kmip://kmip.hospital.example/kek-1?password=canary",
        "kmip://user:canary@kmip.hospital.example/kek-1",
        "kmip://kmip.hospital.example/kek-1#canary",
        "kmip://kmip.hospital.example/kek 1",
    ],
)
def test_a_malformed_uri_is_refused(uri, access):
    with pytest.raises(ConfigError) as caught:
        registry.open_key(uri, access)
    assert "canary" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("suffix", ["", "?version=1.4", "?version=2.0", "?version=2.1"])
def test_opening_asks_nothing_and_keeps_the_uri(suffix, access, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    for host in ("kmip.hospital.example:5696", "[::1]:9999", "192.0.2.7", "KMIP.hospital.example"):
        uri = f"kmip://{host}/9b7e8f26-4a{suffix}"
        assert registry.open_key(uri, access).uri == uri


def test_without_a_client_certificate_there_is_no_login():
    with pytest.raises(ConfigError, match="no client certificate") as caught:
        registry.open_key("kmip://kmip.hospital.example/kek-1", Access())
    assert "cert_file" in caught.value.hint


@pytest.mark.parametrize("setting", ["ca_file", "cert_file"])
def test_a_file_that_cannot_be_used_is_named(setting, access, tmp_path):
    (tmp_path / "bad.pem").write_text("canary")
    (service,) = access.services
    given = {"ca_file": None, "cert_file": service.cert_file, setting: str(tmp_path / "bad.pem")}
    bad = Service(uri="kmip://", key_file=service.key_file, **given)
    with pytest.raises(ConfigError, match=r"bad\.pem") as caught:
        registry.open_key("kmip://kmip.hospital.example/kek-1", Access(services=(bad,)))
    assert setting in caught.value.hint
    assert "canary" not in str(caught.value)


def test_a_missing_package_is_named(access, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(MissingDependencyError) as caught:
        registry.open_key("kmip://kmip.hospital.example/kek-1", access)
    assert caught.value.hint == "pip install 'sovstore[kmip]'"

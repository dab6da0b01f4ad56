"""The KMIP driver and services that lie or refuse: a fake (`tests.servers.kmip_fake`)."""

from __future__ import annotations

import io
import json
import logging
import time
import traceback

import pytest

from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    NoMatchingKeyError,
    UnwrapError,
)
from sovstore.kms.kmip_messages import Operation, Tag
from sovstore.kms.kmip_ttlv import Item, Type
from sovstore.trail import Trail
from tests.servers.kmip_fake import UID, asked, attributes, find, reply, running, sealed
from tests.servers.opened import opener

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
WRAPPED = bytes([1, 12]) + bytes(12 + 16) + bytes(64)
DATA = Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT)


@pytest.fixture(scope="module")
def fake_server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("kmip-fake")) as fake:
        yield fake


@pytest.fixture
def fake(fake_server):
    fake_server.requests.clear()
    fake_server.names.clear()
    return fake_server


@pytest.fixture
def fake_key(fake):
    """A key of the fake, with 10 s for a call."""
    with opener(fake.service()) as opened:
        yield opened(fake.uri)


def test_it_says_which_host_it_wants_and_asks_once(fake, fake_key):
    fake.answers(DECRYPT=[DATA])
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert [asked(request) for request in fake.requests] == [Operation.DECRYPT]
    assert fake.names == ["localhost"]
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert fake.names == ["localhost"]


def test_it_looks_at_the_key_once(fake, fake_key):
    fake.answers(ENCRYPT=sealed())
    fake_key.wrap(SECRET, CONTEXT)
    fake_key.wrap(SECRET, CONTEXT)
    expected = [Operation.GET_ATTRIBUTES, Operation.ENCRYPT, Operation.ENCRYPT]
    assert [asked(request) for request in fake.requests] == expected


def test_what_it_sends(fake, fake_key):
    fake.answers(ENCRYPT=sealed())
    wrapped = fake_key.wrap(SECRET, CONTEXT)
    sent = fake.requests[-1]
    assert find(sent, Tag.AAD).value == CONTEXT
    assert find(sent, Tag.DATA).value == SECRET + CONTEXT
    assert find(sent, Tag.IV).value == wrapped[2:14]
    fake_key.wrap(SECRET, CONTEXT)
    assert find(fake.requests[-1], Tag.IV).value != wrapped[2:14]


@pytest.mark.parametrize("iv", [b"\x01" * 12, b"\x02" * 16])
def test_the_iv_that_the_service_used_is_kept(fake, fake_key, iv):
    fake.answers(ENCRYPT=sealed(iv), DECRYPT=[DATA])
    wrapped = fake_key.wrap(SECRET, CONTEXT)
    assert wrapped == bytes([1, len(iv)]) + iv + b"\x77" * 16 + b"\xd0" * 64
    fake_key.unwrap(wrapped, CONTEXT)
    assert find(fake.requests[-1], Tag.IV).value == iv


@pytest.mark.parametrize(
    "payload",
    [
        sealed(b"\x01" * 11),
        sealed(b"\x01" * 17),
        sealed(b""),
        sealed(size=63),
        sealed(size=80),
        sealed()[:1],
        sealed()[1:],
        [*sealed()[:1], Item(Tag.GCM_TAG, Type.BYTES, b"\x77" * 15)],
        [*sealed(), Item(0x420000, Type.BYTES, b"")],
        [],
    ],
)
def test_what_is_no_wrap_is_not_stored(fake, fake_key, payload):
    fake.answers(ENCRYPT=payload)
    with pytest.raises(KMSError, match="did not answer as its interface says"):
        fake_key.wrap(SECRET, CONTEXT)


@pytest.mark.parametrize(
    ("changed", "kind", "why"),
    [
        ({"Object Type": (Type.ENUMERATION, 3)}, ConfigError, "symmetric AES"),
        ({"Object Type": None}, ConfigError, "symmetric AES"),
        ({"Cryptographic Algorithm": (Type.ENUMERATION, 4)}, ConfigError, "symmetric AES"),
        ({"Cryptographic Algorithm": None}, ConfigError, "symmetric AES"),
        ({"Cryptographic Length": (Type.INTEGER, 64)}, ConfigError, "128 bits"),
        ({"Cryptographic Length": None}, ConfigError, "128 bits"),
        ({"Cryptographic Usage Mask": (Type.INTEGER, 8)}, ConfigError, "usage mask"),
        ({"Cryptographic Usage Mask": None}, ConfigError, "usage mask"),
        ({"Extractable": (Type.BOOLEAN, 1)}, ConfigError, "taken out"),
        ({"State": (Type.ENUMERATION, 1)}, KeyDeniedError, "not active"),
        ({"State": None}, KeyDeniedError, "not active"),
        ({"State": (Type.INTEGER, 2)}, KMSError, "interface"),
    ],
)
def test_a_key_that_is_not_fit_is_never_sent_a_secret(fake, fake_key, changed, kind, why):
    fake.answers(GET_ATTRIBUTES=attributes(**changed), ENCRYPT=sealed())
    with pytest.raises(kind, match=why):
        fake_key.wrap(SECRET, CONTEXT)
    assert [asked(request) for request in fake.requests] == [Operation.GET_ATTRIBUTES]


def test_a_key_that_cannot_be_taken_out_will_do(fake, fake_key):
    fake.answers(GET_ATTRIBUTES=attributes(Extractable=(Type.BOOLEAN, 0)), ENCRYPT=sealed())
    assert fake_key.wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("operation", ["DECRYPT", "ENCRYPT", "GET_ATTRIBUTES"])
def test_an_answer_for_another_key_is_not_taken(fake, fake_key, operation):
    def answer(request):
        what = asked(request)
        uid = Item(Tag.UID, Type.TEXT, "canary-2") if Operation(what).name == operation else UID
        payloads = {0x0B: attributes(), 0x1F: sealed(), 0x20: [DATA]}
        return reply(what, uid, *payloads[what])

    fake.answer = answer
    call = fake_key.unwrap if operation == "DECRYPT" else lambda *_: fake_key.wrap(SECRET, CONTEXT)
    with pytest.raises(KMSError, match="another key") as caught:
        call(WRAPPED, CONTEXT)
    assert "canary" not in str(caught.value)


REASONS = [
    # reason, of Decrypt, of Encrypt and Get Attributes
    (0x01, NoMatchingKeyError, NoMatchingKeyError),
    (0x36, NoMatchingKeyError, NoMatchingKeyError),
    (0x37, NoMatchingKeyError, NoMatchingKeyError),
    (0x03, KeyDeniedError, KeyDeniedError),
    (0x0C, KeyDeniedError, KeyDeniedError),
    (0x0D, KeyDeniedError, KeyDeniedError),
    (0x39, KeyDeniedError, KeyDeniedError),
    (0x43, KeyDeniedError, KeyDeniedError),
    (0x04, UnwrapError, KMSError),
    (0x07, UnwrapError, KMSError),
    (0x0A, UnwrapError, KMSError),
    (0x100, UnwrapError, KMSError),
    (0x05, KMSError, KMSError),
    (0x08, KMSError, KMSError),
    (0x3E, KMSError, KMSError),
    (0x3F, KMSError, KMSError),
    (0xFFFFFFFF, KMSError, KMSError),
]


@pytest.mark.parametrize(("reason", "unwrapping", "wrapping"), REASONS)
def test_a_refusal_comes_at_once_and_says_nothing_of_the_service(fake, fake_key, caplog, reason, unwrapping, wrapping):
    caplog.set_level(logging.DEBUG)
    correlation = Item(Tag.SERVER_CORRELATION, Type.TEXT, "r-17")
    fake.answer = lambda request: reply(asked(request), reason=reason, header=(correlation,))
    start = time.monotonic()
    for kind, call in (
        (unwrapping, lambda: fake_key.unwrap(WRAPPED, CONTEXT)),
        (wrapping, lambda: fake_key.wrap(SECRET, CONTEXT)),
    ):
        with pytest.raises(KMSError) as caught:
            call()
        assert type(caught.value) is kind
        assert "canary" not in f"{caught.value}{caught.value.hint}{vars(caught.value)}{caplog.text}"
        assert caught.value.request_id == (None if kind is UnwrapError else "r-17")
    assert len(fake.requests) == 2
    assert time.monotonic() - start < 4


def test_what_is_not_offered_is_said(fake, fake_key):
    fake.answer = lambda request: reply(asked(request), reason=0x05)
    with pytest.raises(KMSError, match="does not offer Encrypt and Decrypt by AES-GCM") as caught:
        fake_key.unwrap(WRAPPED, CONTEXT)
    assert "docs/kms/kmip.md" in caught.value.hint


def test_a_failure_before_the_operation_was_looked_at_is_no_failure_to_unwrap(fake, fake_key):
    fake.answer = lambda _: reply(None, reason=0x100)
    with pytest.raises(KMSError, match="result reason 0x100") as caught:
        fake_key.unwrap(WRAPPED, CONTEXT)
    assert type(caught.value) is KMSError
    fake.answer = lambda _: reply(None, reason=0x04)
    with pytest.raises(KMSError, match=r"does not speak KMIP 1\.4"):
        fake_key.unwrap(WRAPPED, CONTEXT)


@pytest.mark.parametrize(
    ("reason", "what"), [(0x3A, "fewer requests"), (0x2A, "not available"), (0x44, "not available")]
)
def test_a_service_that_is_busy_is_asked_again(fake, fake_key, reason, what):
    busy = [2]

    def answer(request):
        busy[0] -= 1
        if busy[0] >= 0:
            return reply(asked(request), reason=reason)
        return reply(asked(request), UID, DATA)

    fake.answer = answer
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.requests) == 3
    busy[0] = 1000
    with opener(fake.service(timeout_s=0.4)) as open_one, pytest.raises(KMSUnavailableError, match=what) as caught:
        open_one(fake.uri).unwrap(WRAPPED, CONTEXT)
    assert caught.value.retryable


def _garbled():
    good = reply(Operation.DECRYPT, UID, DATA)
    yield "request in place of a reply", good[:2] + b"\x78" + good[3:]
    yield "another type", good[:3] + b"\x08" + good[4:]
    yield "length over the limit", good[:4] + b"\x00\x02\x00\x00" + good[8:]
    yield "length of 4 GiB", good[:4] + b"\xff\xff\xff\xf8" + good[8:]
    yield "length not of 8", good[:7] + bytes([good[7] + 1]) + good[8:]
    yield "shorter than it is", good[:4] + (len(good) - 16).to_bytes(4, "big") + good[8:]
    yield "of another operation", reply(Operation.ENCRYPT, UID, DATA)
    yield "of no operation", reply(None, UID, DATA)
    yield "pending", reply(Operation.DECRYPT, UID, status=2)
    yield "without a payload", reply(Operation.DECRYPT)
    yield "without data", reply(Operation.DECRYPT, UID)
    yield "HTTP", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    yield "zeros", bytes(64)


@pytest.mark.parametrize(("what", "raw"), list(_garbled()))
def test_what_is_no_reply_is_refused_and_the_connection_dropped(fake, fake_key, what, raw):
    fake.answer = lambda _: raw
    start = time.monotonic()
    with pytest.raises(KMSError, match="did not answer as its interface says") as caught:
        fake_key.unwrap(WRAPPED, CONTEXT)
    assert type(caught.value) is KMSError
    assert time.monotonic() - start < 4
    assert "canary" not in str(caught.value)
    # Bytes that were left over are never taken for the next reply.
    fake.answers(DECRYPT=[Item(Tag.DATA, Type.BYTES, bytes(32) + CONTEXT)])
    assert fake_key.unwrap(WRAPPED, CONTEXT) == bytes(32)


@pytest.mark.parametrize("version", [(1, 3), (2, 0), (1, -4)])
def test_a_reply_of_another_version_is_refused(fake, fake_key, version):
    fake.answer = lambda _: reply(Operation.DECRYPT, UID, DATA, version=version)
    with pytest.raises(KMSError, match=r"does not speak KMIP 1\.4"):
        fake_key.unwrap(WRAPPED, CONTEXT)


@pytest.mark.parametrize("size", [0, 16, 31, 32, 47, 97, 4096])
def test_a_plaintext_that_is_no_payload_does_not_unwrap(fake, fake_key, size):
    plaintext = (bytes(size) + CONTEXT)[len(CONTEXT) :]
    fake.answers(DECRYPT=[Item(Tag.DATA, Type.BYTES, plaintext)])
    with pytest.raises(UnwrapError):
        fake_key.unwrap(WRAPPED, CONTEXT)


def _revealing():
    """Yield replies that hold the secret; all but the last are refused."""
    other = Item(Tag.UID, Type.TEXT, "other")
    correlation = Item(Tag.SERVER_CORRELATION, Type.TEXT, "r-17")
    yield reply(Operation.DECRYPT, UID, DATA, DATA)
    yield reply(Operation.DECRYPT, UID, DATA) + b"\0"
    yield reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.TEXT, SECRET.decode()))
    yield reply(Operation.DECRYPT, other, DATA)
    yield reply(Operation.DECRYPT, UID, DATA, version=(1, 3))
    yield reply(Operation.DECRYPT, UID, DATA)[:-9] + b"\xff" * 9
    yield reply(Operation.DECRYPT, UID, DATA, beside=(DATA,))
    yield reply(Operation.DECRYPT, UID, DATA)[:-1]
    yield reply(Operation.DECRYPT, UID, DATA, header=(correlation,))


def test_the_secret_is_nowhere(fake, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    with opener(fake.service(timeout_s=0.5)) as open_one:
        fake_key = open_one(fake.uri)
    fake_key.trail = Trail("store", tmp_path / "audit.jsonl")
    shown = io.StringIO()
    replies = _revealing()
    fake.answer = lambda _: next(replies)
    for _ in range(8):
        with pytest.raises(KMSError) as caught:
            fake_key.unwrap(WRAPPED, CONTEXT)
        # With the local variables of every frame, as error trackers show them.
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).print(file=shown)
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    trail = (tmp_path / "audit.jsonl").read_text()
    for form in (SECRET.decode(), SECRET.hex()):
        assert form not in shown.getvalue() + caplog.text + trail
    assert "_once" in shown.getvalue()
    assert json.loads(trail.splitlines()[-1])["request_id"] == "r-17"

"""KMIP failing, refusing and lying: PyKMIP where a real server does it, else a fake (`tests.servers.kmip_fake`)."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    NoMatchingKeyError,
    UnwrapError,
)
from sovstore.kms import kmip_connection
from sovstore.kms import kmip_messages as messages
from sovstore.kms.kmip_messages import Ciphertext, Operation, Tag
from sovstore.kms.kmip_ttlv import Item, Type
from sovstore.kms.settings import Service
from sovstore.trail import Trail
from tests.servers import pykmip
from tests.servers.client_authority import ClientAuthority
from tests.servers.kmip_fake import attribute, find, reply, running
from tests.servers.opened import opener
from tests.servers.ports import free_ports

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
WRAPPED = bytes([1, 12]) + bytes(12 + 16) + bytes(64)
UID = Item(Tag.UID, Type.TEXT, "kek-1")
GOOD = {
    "Object Type": (Type.ENUMERATION, 2),
    "Cryptographic Algorithm": (Type.ENUMERATION, 3),
    "Cryptographic Length": (Type.INTEGER, 256),
    "Cryptographic Usage Mask": (Type.INTEGER, 12),
    "State": (Type.ENUMERATION, 2),
}


@pytest.fixture
def opened(pykmip_server):
    """A function that opens a key of PyKMIP: by its identifier, as another client, with other settings."""
    with contextlib.ExitStack() as stack:

        def open_one(uid, certificate=None, suffix="", **settings):
            service = pykmip_server.service_as(certificate or pykmip_server.client_certificate, **settings)
            return stack.enter_context(opener(service))(pykmip_server.key_uri(uid) + suffix)

        yield open_one


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
    """A key of the fake, with 3 s for a call."""
    with opener(fake.service()) as opened:
        yield opened(fake.uri)


def _attributes(**changed):
    found = GOOD | changed
    return [attribute(name, *value) for name, value in found.items() if value is not None]


def _asked(request):
    return find(request, Tag.OPERATION).value


def _answers(fake, **answers):
    """Make the fake answer each operation with its items, and a key that is fit by default."""
    payloads = {"GET_ATTRIBUTES": _attributes(), "DECRYPT": [Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT)], **answers}
    fake.answer = lambda request: reply(_asked(request), UID, *payloads[Operation(_asked(request)).name])


def _sealed(iv=None, size=64):
    items = [Item(Tag.DATA, Type.BYTES, b"\xd0" * size)]
    items += [Item(Tag.IV, Type.BYTES, iv)] if iv is not None else []
    return [*items, Item(Tag.GCM_TAG, Type.BYTES, b"\x77" * 16)]


# PyKMIP, a real server.


def test_what_is_written_is_what_another_implementation_writes(pykmip_server):
    """PyKMIP decodes each of our requests and encodes it again to the same bytes."""
    del pykmip_server
    sealed = Ciphertext(os.urandom(12), os.urandom(16), os.urandom(64))
    for name, version in (("KMIP_1_4", (1, 4)), ("KMIP_2_0", (2, 0))):
        requests = [
            messages.encrypt(version, "kek-1", os.urandom(12), os.urandom(48), os.urandom(32)),
            messages.encrypt(version, "9b7e8f26-4a", os.urandom(12), os.urandom(96), os.urandom(32)),
            messages.decrypt(version, "k", sealed, os.urandom(32)),
            messages.get_attributes(version, "kek-1"),
        ]
        written = [request.hex() for request in requests]
        assert pykmip.recode(*written, version=name) == written


def test_what_is_wrapped_is_what_another_client_unwraps(pykmip_server, opened):
    (uid,) = pykmip_server.create_keys(1)
    wrapped = opened(uid).wrap(SECRET, CONTEXT)
    assert (len(wrapped), wrapped[:2]) == (2 + 12 + 16 + 64, b"\x01\x0c")
    parts = {"iv": wrapped[2:14], "tag": wrapped[14:30], "data": wrapped[30:], "aad": CONTEXT}
    command = {"do": "decrypt", "uid": uid, **{name: value.hex() for name, value in parts.items()}}
    assert pykmip_server.administer(command) == [(SECRET + CONTEXT).hex()]


def test_a_reader_needs_no_right_to_look_at_the_key(pykmip_server, opened):
    (uid,) = pykmip_server.administer({"do": "create", "policy": "shared"})
    wrapped = opened(uid).wrap(SECRET, CONTEXT)
    reader = opened(uid, pykmip_server.clients.client_certificate("reader"))
    assert reader.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(KeyDeniedError, match="does not allow"):
        reader.describe()
    # It has unwrapped, so it does not look before it wraps.
    assert opened(uid).unwrap(reader.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_another_client_is_denied(pykmip_server, opened):
    (uid,) = pykmip_server.create_keys(1)
    wrapped = opened(uid).wrap(SECRET, CONTEXT)
    stranger = opened(uid, pykmip_server.clients.client_certificate("stranger"))
    for call in (lambda: stranger.unwrap(wrapped, CONTEXT), lambda: stranger.wrap(SECRET, CONTEXT), stranger.describe):
        with pytest.raises(KeyDeniedError, match="does not allow") as caught:
            call()
        assert "this certificate" in caught.value.hint


@pytest.mark.parametrize("reason", ["CESSATION_OF_OPERATION", "KEY_COMPROMISE"])
def test_a_revoked_key_is_denied_and_a_destroyed_one_is_missing(pykmip_server, opened, reason):
    (uid,) = pykmip_server.create_keys(1)
    key = opened(uid)
    wrapped = key.wrap(SECRET, CONTEXT)
    pykmip_server.administer({"do": "revoke", "uid": uid, "reason": reason})
    state = "compromised" if reason == "KEY_COMPROMISE" else "deactivated"
    assert key.describe() == {"algorithm": "AES-256", "state": state}
    for refused in (lambda: key.unwrap(wrapped, CONTEXT), lambda: key.wrap(SECRET, CONTEXT)):
        with pytest.raises(KeyDeniedError, match="does not allow") as caught:
            refused()
        assert "active" in caught.value.hint
    with pytest.raises(KeyDeniedError, match="not active"):
        opened(uid).wrap(SECRET, CONTEXT)
    pykmip_server.administer({"do": "destroy", "uid": uid})
    with pytest.raises(NoMatchingKeyError, match="no such key"):
        key.unwrap(wrapped, CONTEXT)


def test_keys_that_must_not_be_a_kek_are_refused(pykmip_server, opened):
    pair, triple_des, exported, inactive = pykmip_server.administer(
        {"do": "create_key_pair"},
        {"do": "create", "algorithm": "TRIPLE_DES", "bits": 192},
        {"do": "create", "masks": ["ENCRYPT", "DECRYPT", "EXPORT"]},
        {"do": "create", "active": False},
    )
    for uid, why in (*((uid, "symmetric AES") for uid in pair), (triple_des, "symmetric AES")):
        with pytest.raises(ConfigError, match=why):
            opened(uid).wrap(SECRET, CONTEXT)
    with pytest.raises(ConfigError, match="taken out"):
        opened(exported).wrap(SECRET, CONTEXT)
    with pytest.raises(KeyDeniedError, match="not active"):
        opened(inactive).wrap(SECRET, CONTEXT)
    with pytest.raises(NoMatchingKeyError):
        opened("no-such-key").wrap(SECRET, CONTEXT)


def test_keys_of_128_bits_will_do(pykmip_server, opened):
    (uid,) = pykmip_server.administer({"do": "create", "bits": 128})
    key = opened(uid)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    assert key.describe()["algorithm"] == "AES-128"


def test_a_version_that_the_service_does_not_speak_is_named(opened):
    start = time.monotonic()
    with pytest.raises(KMSError, match=r"does not speak KMIP 2\.1") as caught:
        opened("1", suffix="?version=2.1").unwrap(WRAPPED, CONTEXT)
    assert not caught.value.retryable
    assert "?version=1.4" in caught.value.hint
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("wrong", ["expired", "another authority", "not for clients"])
def test_a_client_certificate_that_is_not_accepted_is_denied(pykmip_server, opened, tmp_path, wrong):
    certificate = {
        "expired": lambda: pykmip_server.clients.client_certificate("c", expired=True),
        "another authority": lambda: ClientAuthority(tmp_path, "foreign").client_certificate("c"),
        "not for clients": lambda: pykmip_server.clients.client_certificate("c", for_clients=False),
    }[wrong]()
    start = time.monotonic()
    with pytest.raises(KeyDeniedError, match="does not accept the client certificate") as caught:
        opened("1", certificate).unwrap(WRAPPED, CONTEXT)
    assert "cert_file" in caught.value.hint
    assert time.monotonic() - start < 2


def test_no_client_certificate_is_said_before_anything_is_sent(pykmip_server):
    service = Service(uri=f"kmip://{pykmip_server.host}:{pykmip_server.port}", ca_file=str(pykmip_server.ca_file))
    with opener(service) as open_one, pytest.raises(ConfigError, match="no client certificate"):
        open_one(pykmip_server.key_uri("1"))


def _assert_untrusted(key):
    start = time.monotonic()
    with pytest.raises(KMSError, match="do not trust each other") as caught:
        key.unwrap(WRAPPED, CONTEXT)
    assert type(caught.value) is KMSError
    assert "ca_file" in caught.value.hint
    assert time.monotonic() - start < 2


def test_a_service_of_another_authority_is_not_trusted(pykmip_server, opened, tmp_path):
    _assert_untrusted(opened("1", ca_file=str(ClientAuthority(tmp_path, "foreign").ca_file)))
    _assert_untrusted(opened("1", ca_file=None))


def test_a_service_of_another_name_is_not_trusted(pykmip_server, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: look_up("127.0.0.1", *args, **kw))
    given = {"ca_file": str(pykmip_server.ca_file), "cert_file": str(pykmip_server.client_certificate)}
    service = Service(uri="kmip://", key_file=str(pykmip_server.client_certificate), **given)
    with opener(service) as open_one:
        for host in ("kmip.hospital.example", "127.0.0.2"):
            _assert_untrusted(open_one(f"kmip://{host}:{pykmip_server.port}/1"))
        # The certificate is for this one, so it was not the connection that failed.
        with pytest.raises((KeyDeniedError, NoMatchingKeyError, UnwrapError)):
            open_one(f"kmip://localhost:{pykmip_server.port}/1").unwrap(WRAPPED, CONTEXT)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_and_forked_children_use_one_key(pykmip_server, opened):
    (uid,) = pykmip_server.create_keys(1)
    key = opened(uid)
    wrapped = key.wrap(SECRET, CONTEXT)

    def unwraps(count):
        return all(key.unwrap(wrapped, CONTEXT) == SECRET for _ in range(count))

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(unwraps, 15) for _ in range(3)]
        # While the other threads are in the middle of it, one of them with the lock.
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if unwraps(3) else 1)
            children.append(child)
        assert all(result.result() for result in results)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert unwraps(1)


def test_a_server_that_was_stopped_cannot_be_reached(tmp_path):
    files = {"ca_file": tmp_path / "ca.pem", "cert_file": tmp_path / "client.pem"}
    with pykmip.start() as server, contextlib.ExitStack() as stack:
        files["ca_file"].write_bytes(server.ca_file.read_bytes())
        files["cert_file"].write_bytes(server.client_certificate.read_bytes())
        given = {name: str(file) for name, file in files.items()}
        service = Service(uri="kmip://", key_file=given["cert_file"], timeout_s=0.5, **given)
        key = stack.enter_context(opener(service))(server.key_uri(*server.create_keys(1)))
        wrapped = key.wrap(SECRET, CONTEXT)
        # Its connection is open when the server is killed.
        stack = stack.pop_all()
    with stack:
        start = time.monotonic()
        with pytest.raises(KMSUnavailableError, match="cannot be reached"):
            key.unwrap(wrapped, CONTEXT)
        assert time.monotonic() - start < 2


# A fake, for what no real server does.


def test_it_says_which_host_it_wants_and_asks_once(fake, fake_key):
    _answers(fake)
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert [_asked(request) for request in fake.requests] == [Operation.DECRYPT]
    assert fake.names == ["localhost"]
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert fake.names == ["localhost"]


def test_it_looks_at_the_key_once(fake, fake_key):
    _answers(fake, ENCRYPT=_sealed())
    fake_key.wrap(SECRET, CONTEXT)
    fake_key.wrap(SECRET, CONTEXT)
    expected = [Operation.GET_ATTRIBUTES, Operation.ENCRYPT, Operation.ENCRYPT]
    assert [_asked(request) for request in fake.requests] == expected


def test_what_it_sends(fake, fake_key):
    _answers(fake, ENCRYPT=_sealed())
    wrapped = fake_key.wrap(SECRET, CONTEXT)
    sent = fake.requests[-1]
    assert find(sent, Tag.AAD).value == CONTEXT
    assert find(sent, Tag.DATA).value == SECRET + CONTEXT
    assert find(sent, Tag.IV).value == wrapped[2:14]
    fake_key.wrap(SECRET, CONTEXT)
    assert find(fake.requests[-1], Tag.IV).value != wrapped[2:14]


@pytest.mark.parametrize("iv", [b"\x01" * 12, b"\x02" * 16])
def test_the_iv_that_the_service_used_is_kept(fake, fake_key, iv):
    _answers(fake, ENCRYPT=_sealed(iv))
    wrapped = fake_key.wrap(SECRET, CONTEXT)
    assert wrapped == bytes([1, len(iv)]) + iv + b"\x77" * 16 + b"\xd0" * 64
    fake_key.unwrap(wrapped, CONTEXT)
    assert find(fake.requests[-1], Tag.IV).value == iv


@pytest.mark.parametrize(
    "payload",
    [
        _sealed(b"\x01" * 11),
        _sealed(b"\x01" * 17),
        _sealed(b""),
        _sealed(size=63),
        _sealed(size=80),
        _sealed()[:1],
        _sealed()[1:],
        [*_sealed()[:1], Item(Tag.GCM_TAG, Type.BYTES, b"\x77" * 15)],
        [*_sealed(), Item(0x420000, Type.BYTES, b"")],
        [],
    ],
)
def test_what_is_no_wrap_is_not_stored(fake, fake_key, payload):
    _answers(fake, ENCRYPT=payload)
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
    _answers(fake, GET_ATTRIBUTES=_attributes(**changed), ENCRYPT=_sealed())
    with pytest.raises(kind, match=why):
        fake_key.wrap(SECRET, CONTEXT)
    assert [_asked(request) for request in fake.requests] == [Operation.GET_ATTRIBUTES]


def test_a_key_that_cannot_be_taken_out_will_do(fake, fake_key):
    _answers(fake, GET_ATTRIBUTES=_attributes(Extractable=(Type.BOOLEAN, 0)), ENCRYPT=_sealed())
    assert fake_key.wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("operation", ["DECRYPT", "ENCRYPT", "GET_ATTRIBUTES"])
def test_an_answer_for_another_key_is_not_taken(fake, fake_key, operation):
    def answer(request):
        asked = _asked(request)
        uid = Item(Tag.UID, Type.TEXT, "canary-2") if Operation(asked).name == operation else UID
        payloads = {0x0B: _attributes(), 0x1F: _sealed(), 0x20: [Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT)]}
        return reply(asked, uid, *payloads[asked])

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
    fake.answer = lambda request: reply(_asked(request), reason=reason, header=(correlation,))
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
    assert time.monotonic() - start < 2


def test_what_is_not_offered_is_said(fake, fake_key):
    fake.answer = lambda request: reply(_asked(request), reason=0x05)
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
            return reply(_asked(request), reason=reason)
        return reply(_asked(request), UID, Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT))

    fake.answer = answer
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.requests) == 3
    busy[0] = 1000
    with opener(fake.service(timeout_s=0.4)) as open_one, pytest.raises(KMSUnavailableError, match=what) as caught:
        open_one(fake.uri).unwrap(WRAPPED, CONTEXT)
    assert caught.value.retryable


def _garbled():
    good = reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT))
    yield "request in place of a reply", good[:2] + b"\x78" + good[3:]
    yield "another type", good[:3] + b"\x08" + good[4:]
    yield "length over the limit", good[:4] + b"\x00\x02\x00\x00" + good[8:]
    yield "length of 4 GiB", good[:4] + b"\xff\xff\xff\xf8" + good[8:]
    yield "length not of 8", good[:7] + bytes([good[7] + 1]) + good[8:]
    yield "shorter than it is", good[:4] + (len(good) - 16).to_bytes(4, "big") + good[8:]
    yield "of another operation", reply(Operation.ENCRYPT, UID, Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT))
    yield "of no operation", reply(None, UID, Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT))
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
    assert time.monotonic() - start < 2
    assert "canary" not in str(caught.value)
    # Bytes that were left over are never taken for the next reply.
    _answers(fake, DECRYPT=[Item(Tag.DATA, Type.BYTES, bytes(32) + CONTEXT)])
    assert fake_key.unwrap(WRAPPED, CONTEXT) == bytes(32)


@pytest.mark.parametrize("version", [(1, 3), (2, 0), (1, -4)])
def test_a_reply_of_another_version_is_refused(fake, fake_key, version):
    data = Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT)
    fake.answer = lambda _: reply(Operation.DECRYPT, UID, data, version=version)
    with pytest.raises(KMSError, match=r"does not speak KMIP 1\.4"):
        fake_key.unwrap(WRAPPED, CONTEXT)


@pytest.mark.parametrize("size", [0, 16, 31, 32, 47, 97, 4096])
def test_a_plaintext_that_is_no_payload_does_not_unwrap(fake, fake_key, size):
    data = (bytes(size) + CONTEXT)[-max(size, 0) :] if size else b""
    _answers(fake, DECRYPT=[Item(Tag.DATA, Type.BYTES, data)])
    with pytest.raises(UnwrapError):
        fake_key.unwrap(WRAPPED, CONTEXT)


def test_a_connection_that_the_service_closed_is_opened_again(fake, fake_key):
    _answers(fake)
    good, closing = fake.answer, [True]
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    fake.answer = lambda request: None if closing and closing.pop() else good(request)
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.names) == 2
    assert len(fake.requests) == 3


def test_a_reply_that_nobody_asked_for_is_never_taken_for_the_next(fake, fake_key):
    false = reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.BYTES, bytes(32) + CONTEXT))
    good = reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT))
    late = threading.Event()

    def answer(_):
        fake.answer = lambda _: good
        connection = fake.connections[-1]
        connection.sendall(good)
        late.wait(10)
        return false

    fake.answer = answer
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    late.set()
    time.sleep(0.2)
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.names) == 2


def test_a_service_that_always_closes_is_unreachable_in_time(fake):
    fake.answer = lambda _: None
    start = time.monotonic()
    with opener(fake.service(timeout_s=0.5)) as open_one, pytest.raises(KMSUnavailableError, match="cannot be reached"):
        open_one(fake.uri).unwrap(WRAPPED, CONTEXT)
    assert time.monotonic() - start < 2


def test_an_idle_connection_is_not_trusted(fake, fake_key, monkeypatch):
    _answers(fake)
    monkeypatch.setattr(kmip_connection, "_IDLE_S", 0.0)
    fake_key.unwrap(WRAPPED, CONTEXT)
    fake_key.unwrap(WRAPPED, CONTEXT)
    assert len(fake.names) == 2


def test_a_renewed_certificate_is_used_without_a_restart(fake, tmp_path):
    renewed = tmp_path / "client.pem"
    renewed.write_bytes(fake.authority.client_certificate("client", expired=True).read_bytes())
    _answers(fake)
    service = fake.service(cert_file=str(renewed), key_file=str(renewed), timeout_s=1.0)
    with opener(service) as open_one:
        key = open_one(fake.uri)
        # In TLS 1.3 the refusal comes after the handshake, together with the end of the connection.
        with pytest.raises(KeyDeniedError, match="does not accept the client certificate"):
            key.unwrap(WRAPPED, CONTEXT)
        renewed.write_bytes(fake.certificate.read_bytes())
        assert key.unwrap(WRAPPED, CONTEXT) == SECRET


# What only listens.


@contextlib.contextmanager
def _listening(serve):
    """Accept connections on loopback and hand each to `serve`, in a thread."""
    over, threads = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def accept():
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=_serve, args=(connection,)))
                    threads[-1].start()

        def _serve(connection):
            with connection, contextlib.suppress(OSError):
                serve(connection, over)

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            for thread in threads:
                thread.join(10)


def _silent(connection, over):
    over.wait(10)


def _dripping(connection, over):
    while not over.wait(0.05):
        connection.sendall(b"\x16")


@pytest.mark.parametrize("serve", [_silent, _dripping])
def test_a_handshake_that_does_not_end_is_ended(fake, serve):
    with _listening(serve) as port, opener(fake.service(uri=f"kmip://localhost:{port}", timeout_s=0.5)) as open_one:
        start = time.monotonic()
        with pytest.raises(KMSError) as caught:
            open_one(f"kmip://localhost:{port}/kek-1").unwrap(WRAPPED, CONTEXT)
        assert time.monotonic() - start < 1.5
    if serve is _silent:
        assert isinstance(caught.value, KMSUnavailableError)
        assert "timeout_s" in caught.value.hint


@pytest.mark.parametrize("part", [0, 4, 8, 40])
def test_half_a_reply_and_silence_is_out_of_time(fake, part):
    over, good = threading.Event(), reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT))

    def answer(_):
        fake.answer = lambda _: over.wait(10) and None
        return good[:part]

    fake.answer = answer
    try:
        with opener(fake.service(timeout_s=0.5)) as open_one:
            start = time.monotonic()
            with pytest.raises(KMSUnavailableError, match=r"within 0\.5 s"):
                open_one(fake.uri).unwrap(WRAPPED, CONTEXT)
            assert time.monotonic() - start < 1.5
    finally:
        over.set()


def test_a_service_that_does_not_speak_tls_is_not_trusted(fake):
    def serve(connection, over):
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with _listening(serve) as port, opener(fake.service(uri=f"kmip://localhost:{port}")) as open_one:
        _assert_untrusted(open_one(f"kmip://localhost:{port}/kek-1"))


def test_a_host_that_is_not_there_is_unreachable(fake):
    (port,) = free_ports(1)
    with opener(fake.service(uri="kmip://", timeout_s=0.5)) as open_one:
        for host in (f"localhost:{port}", f"no-such-host.invalid:{port}"):
            start = time.monotonic()
            with pytest.raises(KMSUnavailableError, match="cannot be reached"):
                open_one(f"kmip://{host}/kek-1").unwrap(WRAPPED, CONTEXT)
            assert time.monotonic() - start < 5


def test_waiting_for_another_thread_counts(fake):
    slow = threading.Event()
    fake.answer = lambda _: slow.wait(10) and None
    with opener(fake.service(timeout_s=0.6)) as open_one, ThreadPoolExecutor(2) as pool:
        key = open_one(fake.uri)
        start = time.monotonic()
        results = [pool.submit(key.unwrap, WRAPPED, CONTEXT) for _ in range(2)]
        for result in results:
            with pytest.raises(KMSUnavailableError, match="did not answer"):
                result.result()
        assert time.monotonic() - start < 2
        slow.set()


def test_no_connection_is_left_open(fake):
    """A `ResourceWarning` would fail this test."""
    _answers(fake)
    with opener(fake.service()) as open_one:
        key = open_one(fake.uri)
        key.unwrap(WRAPPED, CONTEXT)
        del key
    gc.collect()


def _revealing():
    """Yield replies that hold the secret; all but the last are refused."""
    data = Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT)
    other = Item(Tag.UID, Type.TEXT, "other")
    correlation = Item(Tag.SERVER_CORRELATION, Type.TEXT, "r-17")
    yield reply(Operation.DECRYPT, UID, data, data)
    yield reply(Operation.DECRYPT, UID, data) + b"\0"
    yield reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.TEXT, SECRET.decode()))
    yield reply(Operation.DECRYPT, other, data)
    yield reply(Operation.DECRYPT, UID, data, version=(1, 3))
    yield reply(Operation.DECRYPT, UID, data)[:-9] + b"\xff" * 9
    yield reply(Operation.DECRYPT, UID, data, beside=(data,))
    yield reply(Operation.DECRYPT, UID, data)[:-1]
    yield reply(Operation.DECRYPT, UID, data, header=(correlation,))


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

"""Eviden KMS failing, refusing and rotating, by both interfaces: a fake of it, see `tests.servers.eviden_fake`."""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import os
import pickle
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
from sovstore.kms.settings import Service
from sovstore.trail import Trail
from tests.servers.eviden_fake import EvidenFake, Key, make_client_certificate
from tests.servers.http_fake import Answer, Fault, running
from tests.servers.opened import opener

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
WRITER, READER = "writer-2b9f6c01", "reader-7d40aa95"
THROTTLED, BUSY = Answer(429, "canary-body", "text/plain"), Answer(503, "canary-body", "text/html")
HTML = "text/html; charset=utf-8"
#: way of use -> api, beginning of the key's identifier
WAYS = {"jose": ("jose", ""), "kmip": ("kmip", ""), "hsm": ("kmip", "hsm::0::")}
SOFTWARE = ["jose", "kmip"]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eviden")
    fake = EvidenFake()
    fake.certificate = make_client_certificate(folder)
    with running(fake, folder, client_ca=fake.certificate):
        yield fake


@pytest.fixture
def fake(server):
    server.requests.clear()
    server.faults.clear()
    yield server
    assert server.violations == []


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def kek(fake, way):
    return fake.add(Key(f"{WAYS[way][1]}cohortes-{next(_numbers)}"))


@pytest.fixture
def opened(fake, way, monkeypatch):
    """A function that opens a key with settings and a token."""
    monkeypatch.setenv("WRITER", WRITER)

    def make(kek, **settings):
        given = {"token": "env:WRITER", "ca_file": str(fake.ca_file), "timeout_s": 3.0, **settings}
        service = Service(uri=f"eviden-kms://127.0.0.1:{fake.port}", **given)
        uid = kek if isinstance(kek, str) else kek.uid
        return stack.enter_context(opener(service))(fake.uri(uid, WAYS[way][0]))

    with contextlib.ExitStack() as stack:
        yield make


def test_a_reader_needs_one_request_and_the_right_to_decrypt(fake, way, kek, opened, monkeypatch):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    path = "/v1/crypto/{}" if way == "jose" else "/kmip/2_1"
    assert fake.requests == ["POST /kmip/2_1", f"POST {path.format('encrypt')}"]
    fake.requests.clear()
    monkeypatch.setenv("READER", READER)
    reader = opened(kek, token="env:READER")
    assert reader.unwrap(wrapped, CONTEXT) == SECRET
    assert fake.requests == [f"POST {path.format('decrypt')}"]
    with pytest.raises(KeyDeniedError, match="does not allow it"):
        reader.wrap(SECRET, CONTEXT)
    with pytest.raises(KeyDeniedError, match="does not allow it"):
        reader.describe()


def test_a_certificate_will_do(fake, kek, opened):
    pem = str(fake.certificate)
    key = opened(kek, token=None, cert_file=pem, key_file=pem)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_flipped_bit_in_any_byte_is_refused(kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1 << position % 8
        with pytest.raises(UnwrapError):
            key.unwrap(bytes(changed), CONTEXT)


def test_it_looks_at_the_key_once(fake, kek, opened):
    key = opened(kek)
    wraps = [key.wrap(SECRET, CONTEXT) for _ in range(2)]
    assert len(fake.requests) == 3
    again = opened(kek)
    again.unwrap(wraps[0], CONTEXT)
    again.wrap(SECRET, CONTEXT)
    assert len(fake.requests) == 5


@pytest.mark.parametrize("types", [False, True])
def test_describe_says_what_the_service_says(fake, way, kek, opened, monkeypatch, types):
    monkeypatch.setattr(fake, "types_of_structures", types)
    level = {"protection_level": "hsm"} if way == "hsm" else {"protection_level": "software", "state": "Active"}
    assert opened(kek).describe() == {**level, "algorithm": "AES-256"}


@pytest.mark.parametrize(
    "other",
    [
        {"object_type": "PublicKey", "algorithm": "RSA", "length": 3072},
        {"object_type": "PrivateKey", "algorithm": "ECDH"},
        {"object_type": "SecretData"},
        {"object_type": "PublicKey"},
        {"algorithm": "ChaCha20"},
        {"length": 128},
        {"length": None},
        {"object_type": ["SymmetricKey"]},
    ],
)
def test_a_key_of_another_type_is_no_kek(fake, way, opened, other):
    kek = fake.add(Key(f"{WAYS[way][1]}other-{next(_numbers)}", **other))
    with pytest.raises(ConfigError, match="must not be a KEK"):
        opened(kek).wrap(SECRET, CONTEXT)
    assert len(fake.requests) == 1


def test_a_declared_hsm_must_be_one(way, kek, opened):
    key = opened(kek, protection_level="hsm")
    if way == "hsm":
        key.wrap(SECRET, CONTEXT)
        return
    key.unwrap(opened(kek).wrap(SECRET, CONTEXT), CONTEXT)
    with pytest.raises(ConfigError, match="not in an HSM"):
        key.wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("way", SOFTWARE, indirect=True)
@pytest.mark.parametrize("state", ["PreActive", "Deactivated", "Compromised", 2, ""])
def test_a_key_that_is_not_active_wraps_nothing(kek, opened, state):
    kek.versions[0].state = state
    with pytest.raises(KeyDeniedError, match="not active"):
        opened(kek).wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("way", SOFTWARE, indirect=True)
def test_a_deactivated_key_unwraps_only(fake, way, kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    kek.versions[0].state = "Deactivated"
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    fake.requests.clear()
    with pytest.raises(KMSError) as caught:
        key.wrap(SECRET, CONTEXT)
    assert isinstance(caught.value, KeyDeniedError) == (way == "kmip")
    assert len(fake.requests) == 1


def test_a_keyset_wraps_by_its_newest_key_and_unwraps_by_each(kek, opened):
    key = opened(kek)
    first = key.wrap(SECRET, CONTEXT)
    kek.rotate()
    second = key.wrap(SECRET, CONTEXT)
    kek.rotate()
    assert key.describe()["version"] == "2"
    for wrapped in (first, second, key.wrap(SECRET, CONTEXT)):
        assert opened(kek).unwrap(wrapped, CONTEXT) == SECRET


@pytest.mark.parametrize("way", ["kmip", "hsm"], indirect=True)
def test_the_version_that_wrapped_is_kept_and_no_other_name_will_do(kek, opened):
    key = opened(kek)
    kek.rotate()
    wrapped, uid = key.wrap(SECRET, CONTEXT), kek.uid.encode()
    start = bytes((2, len(uid) + 2)) + uid + b"@1"
    assert wrapped.startswith(start)
    rest = wrapped[len(start) :]
    # The name of the keyset would decrypt, too; a version that is not there comes from the wrap, not from the URI.
    for name in (uid, uid + b"@2", uid + b"@01", uid + b"@0", uid + b"@latest", uid + b"@1@1", b"other@1"):
        with pytest.raises(UnwrapError):
            key.unwrap(bytes((2, len(name))) + name + rest, CONTEXT)


@pytest.mark.parametrize("way", ["jose"], indirect=True)
def test_no_version_in_the_header_can_be_changed(kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    kek.rotate()
    for version in (b"@1", b"@7"):
        changed = wrapped.replace(kek.uid.encode(), kek.uid.encode() + version)
        changed = bytes((1, wrapped[1] + len(version))) + changed[2:]
        with pytest.raises(UnwrapError):
            key.unwrap(changed, CONTEXT)


def test_one_key_of_a_keyset_can_be_named(way, kek, opened):
    kek.rotate()
    one = opened(f"{kek.uid}@1")
    wrapped = one.wrap(SECRET, CONTEXT)
    kek.rotate()
    assert one.unwrap(wrapped, CONTEXT) == SECRET
    if way != "hsm":
        with pytest.raises(KeyDeniedError, match="not active"):
            opened(f"{kek.uid}@1").wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("way", SOFTWARE, indirect=True)
def test_data_that_the_service_would_take_for_a_list_is_not_sent(fake, kek, opened):
    key = opened(kek)
    secret = b"\x87\x87" + bytes(30)
    fake.begin_with.append(b"\x87\x87")
    wrapped = key.wrap(secret, CONTEXT)
    assert len(fake.requests) == 3
    assert key.unwrap(wrapped, CONTEXT) == secret


def test_a_missing_key_is_said_to_be_missing(way, opened):
    gone = opened(f"{WAYS[way][1]}gone")
    with pytest.raises(KMSError) as caught:
        gone.wrap(SECRET, CONTEXT)
    # Of a key in an HSM the service says nothing but 500.
    assert type(caught.value) is (KMSError if way == "hsm" else NoMatchingKeyError)
    header = b'{"alg":"dir","enc":"A256GCM","kid":"gone"}'
    name = {"jose": header, "kmip": b"gone", "hsm": b"hsm::0::gone"}[way]
    with pytest.raises(KMSError) as caught:
        gone.unwrap(bytes((1 if way == "jose" else 2, len(name))) + name + bytes(93), CONTEXT)
    assert type(caught.value) is (UnwrapError if way == "hsm" else NoMatchingKeyError)


def test_a_wrong_token_is_denied_and_not_shown(fake, kek, opened, monkeypatch):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    monkeypatch.setenv("WRITER", "canary-token-55aa")
    key = opened(kek)
    fake.requests.clear()
    with pytest.raises(KeyDeniedError) as caught:
        key.unwrap(wrapped, CONTEXT)
    assert len(fake.requests) == 1
    assert "canary-token" not in shown(caught.value)
    monkeypatch.setenv("WRITER", WRITER)
    assert key.unwrap(wrapped, CONTEXT) == SECRET


@pytest.mark.parametrize("answer", [THROTTLED, BUSY])
def test_throttled_and_busy_are_tried_again(fake, kek, opened, answer):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.requests.clear()
    fake.faults.extend([Fault(answer), Fault(answer)])
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert len(fake.requests) == 3


@pytest.mark.parametrize("way", ["jose"], indirect=True)
@pytest.mark.parametrize("fault", [Fault(THROTTLED), Fault(BUSY), Fault(wait_s=30), Fault(half=True), Fault(drip=True)])
def test_a_service_that_stays_away_is_unavailable_in_time(fake, kek, opened, fault):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    fake.faults.extend([fault] * 50)
    key, start = opened(kek, timeout_s=0.7), time.monotonic()
    with pytest.raises(KMSUnavailableError) as caught:
        key.unwrap(wrapped, CONTEXT)
    assert time.monotonic() - start < 1.5
    assert "canary-body" not in shown(caught.value)


def jose(status, error):
    return Answer(status, {"error": error, "description": "canary-body"})


@pytest.mark.parametrize(
    ("way", "answer", "error"),
    [
        ("jose", jose(400, "bad_request"), UnwrapError),
        ("jose", jose(422, "decryption_failed"), UnwrapError),
        ("jose", jose(422, "crypto_failure"), UnwrapError),
        ("jose", jose(403, "forbidden"), KeyDeniedError),
        ("jose", jose(404, "not_found"), NoMatchingKeyError),
        ("jose", jose(500, "internal_error"), KMSError),
        ("jose", Answer(404, "Route not supported: canary-body", HTML), KMSError),
        ("kmip", Answer(422, "Cryptographic_Failure: canary-body", HTML), UnwrapError),
        ("kmip", Answer(422, "canary-body", HTML), UnwrapError),
        ("kmip", Answer(422, "Item not found: canary-body", HTML), NoMatchingKeyError),
        ("kmip", Answer(422, "Item_Not_Found: canary-body", HTML), NoMatchingKeyError),
        ("kmip", Answer(422, "Permission_Denied: canary-body", HTML), KeyDeniedError),
        ("kmip", Answer(401, "Access denied: canary-body", HTML), KeyDeniedError),
        ("kmip", Answer(404, "canary-body", HTML), KMSError),
        ("kmip", Answer(500, "Internal server error", HTML), KMSError),
        ("hsm", Answer(500, "Internal server error", HTML), UnwrapError),
        ("jose", Answer(200, "canary-body", HTML), KMSError),
        ("kmip", Answer(200, "[" * 60_000), KMSError),
        ("kmip", Answer(302, ""), KMSError),
    ],
    indirect=["way"],
)
def test_what_it_says_is_mapped_and_not_repeated(fake, kek, opened, answer, error):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.requests.clear()
    fake.faults.append(Fault(answer))
    with pytest.raises(KMSError) as caught:
        key.unwrap(wrapped, CONTEXT)
    assert type(caught.value) is error
    assert "canary-body" not in shown(caught.value)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("way", ["jose"], indirect=True)
@pytest.mark.parametrize(
    "members",
    [{"kid": "other"}, {"kid": None}, {"data": None}, {"data": 7}, {"data": "QQ=="}, {"data": "QR"}, {"data": "é"}],
)
def test_a_reply_of_jose_to_unwrap_is_not_believed(fake, kek, opened, members):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.faults.append(Fault(members=members))
    with pytest.raises(KMSError, match="as its interface says"):
        key.unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize("way", SOFTWARE, indirect=True)
def test_a_plaintext_of_another_length_is_refused(fake, way, kek, opened):
    # A public-key encryption of a shorter secret would fit the lengths of a wrap, too.
    key = opened(kek)
    wrapped, data = key.wrap(SECRET, CONTEXT), b"\x01" + bytes(16) + CONTEXT
    jose_data = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    kmip_data = [node("UniqueIdentifier", kek.uid), node("Data", data.hex().upper(), "ByteString")]
    fake.faults.append(Fault(members={"data": jose_data} if way == "jose" else {"value": kmip_data}))
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, CONTEXT)


HEADER = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00iLCJraWQiOiJjb2hvcnRlcyJ9"


@pytest.mark.parametrize("way", ["jose"], indirect=True)
@pytest.mark.parametrize(
    "members",
    [
        {"protected": HEADER},
        {"protected": ""},
        {"encrypted_key": "QUJD"},
        {"encrypted_key": None},
        {"aad": "QUJD"},
        {"aad": None},
        {"iv": "QUJD"},
        {"tag": "QUJD"},
        {"ciphertext": "QUJD"},
        {"ciphertext": ["QUJD"]},
    ],
)
def test_a_reply_of_jose_to_wrap_is_not_believed(fake, kek, opened, members):
    fake.faults.extend([Fault(), Fault(members=members)])
    with pytest.raises(KMSError, match="as its interface says"):
        opened(kek).wrap(SECRET, CONTEXT)


def node(tag, value, kind="TextString"):
    return {"tag": tag, "type": kind, "value": value}


OURS = node("UniqueIdentifier", "named")
DATA = node("Data", "41" * 65, "ByteString")


@pytest.mark.parametrize("way", ["kmip"], indirect=True)
@pytest.mark.parametrize(
    "members",
    [
        {"tag": "EncryptResponse"},
        {"type": "TextString"},
        {"value": None},
        {"value": "named"},
        {"value": []},
        {"value": [DATA]},
        {"value": [OURS]},
        {"value": [OURS, DATA, DATA]},
        {"value": [OURS, "Data"]},
        {"value": [OURS, node(["Data"], "41" * 65)]},
        {"value": [OURS, node("Data", "4g")]},
        {"value": [OURS, node("Data", "4a" * 65)]},
        {"value": [OURS, node("Data", 7)]},
        {"value": [node("UniqueIdentifier", "other"), DATA]},
        {"value": [node("UniqueIdentifier", ["named"]), DATA]},
    ],
)
def test_a_reply_of_kmip_to_unwrap_is_not_believed(fake, opened, members):
    key = opened(fake.add(Key("named")))
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.faults.append(Fault(members=members))
    with pytest.raises(KMSError, match="as its interface says"):
        key.unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize("way", ["kmip"], indirect=True)
@pytest.mark.parametrize(
    "value",
    [
        [OURS],
        [OURS, DATA],
        [OURS, DATA, node("IVCounterNonce", "00" * 16), node("AuthenticatedEncryptionTag", "00" * 16)],
        [OURS, DATA, node("IVCounterNonce", "00" * 12), node("AuthenticatedEncryptionTag", "00" * 12)],
        [OURS, DATA, node("IVCounterNonce", "00" * 12)],
        [OURS, node("Data", "41" * 256), node("IVCounterNonce", "00" * 12), node("AuthenticatedEncryptionTag", "")],
        [
            node("UniqueIdentifier", "other"),
            DATA,
            node("IVCounterNonce", "00" * 12),
            node("AuthenticatedEncryptionTag", "00" * 16),
        ],
    ],
)
def test_a_reply_of_kmip_to_wrap_is_not_believed(fake, opened, value):
    key = opened(fake.add(Key("named")))
    fake.faults.extend([Fault(), Fault(members={"value": value})])
    with pytest.raises(KMSError, match="as its interface says"):
        key.wrap(SECRET, CONTEXT)


def test_a_description_of_another_key_is_not_believed(fake, kek, opened):
    fake.faults.append(Fault(members={"value": [node("UniqueIdentifier", "other"), node("Attributes", [])]}))
    with pytest.raises(KMSError, match="as its interface says"):
        opened(kek).wrap(SECRET, CONTEXT)


def test_neither_token_nor_secret_is_anywhere(fake, way, kek, opened, caplog):
    caplog.set_level(logging.DEBUG)
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    key.unwrap(wrapped, CONTEXT)
    fake.faults.extend([Fault(THROTTLED), Fault(half=True), Fault(Answer(403, "canary-body"))])
    with pytest.raises(KeyDeniedError) as caught:
        key.unwrap(wrapped, CONTEXT)
    text = caplog.text + shown(caught.value) + repr(key) + repr(vars(key))
    for secret in (WRITER, SECRET.decode(), SECRET.hex(), SECRET.hex().upper(), "canary-body"):
        assert secret not in text
    assert WRITER.encode() not in pickle.dumps(caught.value)


def test_the_trail_has_the_request(fake, kek, opened, tmp_path):
    key = opened(kek)
    key.trail = Trail("cohortes", tmp_path / "audit.jsonl")
    wrapped = key.wrap(SECRET, CONTEXT)
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT)
    first, second = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert '"request_id": "request-2"' in first
    assert '"request_id": "request-3"' in second


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_it_works_in_a_child(kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if key.unwrap(wrapped, CONTEXT) == SECRET else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_without_tls_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("WRITER", WRITER)
    fake = EvidenFake()
    fake.add(Key("cohortes"))
    with running(fake, tmp_path, tls=False):
        service = Service(uri="eviden-kms://127.0.0.1", token="env:WRITER", plain_http=True)
        with opener(service) as one, pytest.raises(ConfigError, match="no credentials"):
            one(fake.uri("cohortes"))
        service = Service(uri=f"eviden-kms://127.0.0.1:{fake.port}", token="env:WRITER", plain_http=True)
        with opener(service) as one:
            key = one(fake.uri("cohortes"))
            assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def shown(exc: BaseException) -> str:
    """Return all that a report of an error shows: texts, attributes, causes and the trace."""
    text = "".join(traceback.format_exception(exc))
    while exc is not None:
        text += f"{exc} {exc!r} {exc.args} {vars(exc)}"
        exc = exc.__cause__ or exc.__context__
    return text

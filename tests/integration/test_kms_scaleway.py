"""Scaleway Key Manager failing, refusing and rotating: a fake of it, see `tests.servers.scaleway_fake`."""

from __future__ import annotations

import contextlib
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
from sovstore.kms import scaleway
from sovstore.kms.settings import Service
from sovstore.trail import Trail
from tests.servers.http_fake import Answer, Fault, running
from tests.servers.opened import opener
from tests.servers.scaleway_fake import Key, ScalewayFake

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
WRITER, READER = "writer-5cc8e1f4", "reader-90a7b2d3"
THROTTLED = Answer(429, {"type": "quotas_exceeded", "message": "canary-body"})
BUSY = Answer(503, "canary-body", "text/html")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    fake = ScalewayFake()
    with running(fake, tmp_path_factory.mktemp("scaleway")):
        yield fake


@pytest.fixture
def fake(server):
    server.requests.clear()
    server.faults.clear()
    yield server
    assert server.violations == []


@pytest.fixture
def kek(fake):
    return fake.add(Key())


@pytest.fixture
def opened(fake, monkeypatch):
    """A function that opens a key with settings and a token."""
    monkeypatch.setenv("SCW_SECRET_KEY", WRITER)
    scaleway._say_rotated.cache_clear()

    def make(kek, **settings):
        service = Service(uri="scw-kms://fr-par", ca_file=str(fake.ca_file), **{"timeout_s": 3.0, **settings})
        return stack.enter_context(opener(service))(fake.uri(kek))

    with contextlib.ExitStack() as stack:
        yield make


def test_a_reader_needs_one_request_and_the_right_to_decrypt(fake, kek, opened, monkeypatch):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    assert [line.partition(" ")[0] for line in fake.requests] == ["GET", "POST"]
    fake.requests.clear()
    monkeypatch.setenv("READER", READER)
    reader = opened(kek, token="env:READER")
    assert reader.unwrap(wrapped, CONTEXT) == SECRET
    assert fake.requests == [f"POST /key-manager/v1alpha1/regions/fr-par/keys/{kek.id}/decrypt"]
    with pytest.raises(KeyDeniedError) as caught:
        reader.wrap(SECRET, CONTEXT)
    assert caught.value.request_id == "request-2"
    assert "KeyManagerKeyEncrypt" in caught.value.hint


def test_it_looks_at_the_key_once(fake, kek, opened):
    key = opened(kek)
    key.wrap(SECRET, CONTEXT)
    key.wrap(SECRET, CONTEXT)
    assert sum(line.startswith("GET") for line in fake.requests) == 1
    again = opened(kek)
    again.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT)
    fake.requests.clear()
    again.wrap(SECRET, CONTEXT)
    assert len(fake.requests) == 1


def test_a_flipped_bit_in_any_byte_is_refused(kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1 << position % 8
        with pytest.raises(UnwrapError):
            key.unwrap(bytes(changed), CONTEXT)


def test_describe_says_what_the_service_says(kek, opened):
    assert opened(kek).describe() == {
        "protection_level": "software",
        "algorithm": "aes_256_gcm",
        "version": "1",
        "state": "enabled",
    }


def test_a_rotated_key_offers_a_newer_wrap_and_says_so_once(fake, kek, opened, caplog):
    key = opened(kek)
    old = key.wrap(SECRET, CONTEXT)
    key.unwrap(old, CONTEXT)
    assert (key.newer, key.rotated) == (None, False)
    kek.rotate()
    assert key.unwrap(old, CONTEXT) == SECRET
    assert key.rotated
    assert key.newer[:5] == b"\x01\0\0\0\x02"
    newer = key.newer
    opened(kek).unwrap(old, CONTEXT)
    (record,) = [record for record in caplog.records if record.name == "sovstore"]
    assert record.getMessage() == (
        f"{key.uri}: the KEK was rotated; 'sovstore keys rotate-kek STORE' moves the store to its newest version"
    )
    assert key.describe()["rotated"] == "yes"
    assert key.describe()["version"] == "2"
    assert key.unwrap(newer, CONTEXT) == SECRET
    assert (key.newer, key.rotated) == (None, False)
    assert "rotated" not in key.describe()
    assert key.wrap(SECRET, CONTEXT)[:5] == b"\x01\0\0\0\x02"


@pytest.mark.parametrize("newer", ["", "AAAA", "A" * 400, "not base64!", 7, ["x"], "QUJ" * 40 + "QR=="])
def test_a_newer_wrap_that_is_none_is_not_kept(fake, kek, opened, newer):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.faults.append(Fault(members={"ciphertext": newer}))
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert key.newer is None


@pytest.mark.parametrize(
    "usage",
    [
        {"asymmetric_encryption": "rsa_oaep_3072_sha256"},
        {"asymmetric_signing": "ec_p256_sha256"},
        {"symmetric_encryption": "aes_128_cbc"},
        {},
        None,
    ],
)
def test_a_key_of_another_type_is_no_kek(fake, opened, usage):
    with pytest.raises(ConfigError, match="must not be a KEK"):
        opened(fake.add(Key(usage=usage))).wrap(SECRET, CONTEXT)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("unwrapped_first", [False, True])
def test_a_declared_hsm_must_be_one(fake, opened, unwrapped_first):
    software = fake.add(Key())
    key = opened(software, protection_level="hsm")
    if unwrapped_first:
        key.unwrap(opened(software).wrap(SECRET, CONTEXT), CONTEXT)
    with pytest.raises(ConfigError, match="protection_level"):
        key.wrap(SECRET, CONTEXT)
    for level in ("hsm", None):
        kek = fake.add(Key(protection_level=level))
        opened(kek, protection_level="hsm").wrap(SECRET, CONTEXT)
    assert opened(kek).describe().get("protection_level") is None


@pytest.mark.parametrize("state", ["disabled", "pending_key_material", "scheduled_for_deletion", 7])
def test_a_key_that_is_not_enabled_wraps_nothing(fake, opened, state):
    with pytest.raises(KeyDeniedError, match="be used now"):
        opened(fake.add(Key(state=state))).wrap(SECRET, CONTEXT)
    assert len(fake.requests) == 1


def test_a_disabled_key_is_denied_at_once(fake, kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    kek.state = "disabled"
    fake.requests.clear()
    for call in (lambda: key.unwrap(wrapped, CONTEXT), lambda: key.wrap(SECRET, CONTEXT)):
        with pytest.raises(KeyDeniedError, match="be used now"):
            call()
    assert len(fake.requests) == 2


def test_a_missing_key_is_said_to_be_missing(fake, kek, opened):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    gone = opened(Key())
    for call in (lambda: gone.unwrap(wrapped, CONTEXT), lambda: gone.wrap(SECRET, CONTEXT), gone.describe):
        with pytest.raises(NoMatchingKeyError, match="no such key"):
            call()


def test_a_wrong_token_is_denied_and_not_shown(fake, kek, opened, monkeypatch):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    monkeypatch.setenv("SCW_SECRET_KEY", "canary-token-55aa")
    key = opened(kek)
    fake.requests.clear()
    with pytest.raises(KeyDeniedError, match="does not accept the token") as caught:
        key.unwrap(wrapped, CONTEXT)
    assert len(fake.requests) == 1
    assert "canary-token" not in shown(caught.value)
    # Renewed, with the same object.
    monkeypatch.setenv("SCW_SECRET_KEY", WRITER)
    assert key.unwrap(wrapped, CONTEXT) == SECRET


@pytest.mark.parametrize("answer", [THROTTLED, BUSY])
def test_throttled_and_busy_are_tried_again(fake, kek, opened, answer):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.requests.clear()
    fake.faults.extend([Fault(answer), Fault(answer)])
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert len(fake.requests) == 3


@pytest.mark.parametrize("fault", [Fault(THROTTLED), Fault(BUSY), Fault(wait_s=30), Fault(half=True), Fault(drip=True)])
def test_a_service_that_stays_away_is_unavailable_in_time(fake, kek, opened, fault):
    wrapped = opened(kek).wrap(SECRET, CONTEXT)
    fake.faults.extend([fault] * 50)
    key, start = opened(kek, timeout_s=1.0), time.monotonic()
    with pytest.raises(KMSUnavailableError) as caught:
        key.unwrap(wrapped, CONTEXT)
    assert time.monotonic() - start < 2
    assert caught.value.retryable
    assert "canary-body" not in shown(caught.value)


def test_nobody_there_is_unavailable(fake, kek, opened):
    key = opened(kek, timeout_s=0.5)
    key._http._url = key._http._url.replace(str(fake.port), "1")
    with pytest.raises(KMSUnavailableError):
        key.unwrap(bytes(97), CONTEXT)


def test_a_server_that_is_not_trusted_is_refused_at_once(fake, kek, monkeypatch):
    monkeypatch.setenv("SCW_SECRET_KEY", WRITER)
    with opener(Service(uri="scw-kms://fr-par", timeout_s=5.0)) as one:
        key, start = one(fake.uri(kek)), time.monotonic()
        with pytest.raises(KMSError, match="do not trust each other"):
            key.unwrap(bytes(97), CONTEXT)
    assert time.monotonic() - start < 2
    assert fake.requests == []


REFUSED = {"type": "invalid_arguments", "message": "invalid argument(s)", "details": [{"argument_name": "ciphertext"}]}
OTHER = {"type": "invalid_arguments", "message": "invalid argument(s)", "details": [{"argument_name": "key_id"}]}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(400, REFUSED), UnwrapError),
        (Answer(400, {"type": "invalid_arguments"}), UnwrapError),
        (Answer(400, {"details": 7}), UnwrapError),
        (Answer(400, {"details": [7, {}]}), UnwrapError),
        (Answer(400, "no JSON"), UnwrapError),
        (Answer(400, OTHER), KeyDeniedError),
        (Answer(401, {"type": "denied_authentication"}), KeyDeniedError),
        (Answer(403, "no JSON"), KeyDeniedError),
        (Answer(404, {"type": "not_found"}), NoMatchingKeyError),
        (Answer(409, {"type": "transient_state"}), KeyDeniedError),
        (Answer(412, {"type": "precondition_failed"}), KeyDeniedError),
        (Answer(423, {"type": "resource_locked"}), KeyDeniedError),
        (Answer(418, "teapot"), KMSError),
        (Answer(500, {"type": "internal", "message": "canary-body"}), KMSError),
        (Answer(302, ""), KMSError),
        (Answer(204, ""), KMSError),
        (Answer(200, ""), KMSError),
        (Answer(200, "[" * 100_000), KMSError),
        (Answer(200, "x" * 200_000), KMSError),
        (Answer(200, []), KMSError),
        (Answer(200, {}), KMSError),
    ],
)
def test_what_it_says_is_mapped_and_not_repeated(fake, kek, opened, answer, error):
    key = opened(kek)
    fake.faults.append(Fault(answer))
    with pytest.raises(KMSError) as caught:
        key.unwrap(bytes(97), CONTEXT)
    assert type(caught.value) is error
    assert "canary-body" not in shown(caught.value)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "members",
    [
        {"key_id": "11111111-2222-3333-4444-555555555555"},
        {"key_id": None},
        {"plaintext": None},
        {"plaintext": 7},
        {"plaintext": "no base64"},
        {"plaintext": "QUI"},
        {"plaintext": "QUJ="},
    ],
)
def test_a_reply_to_unwrap_is_not_believed(fake, kek, opened, members):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.faults.append(Fault(members=members))
    with pytest.raises(KMSError, match="as its interface says"):
        key.unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize(
    "members",
    [
        {"key_id": "11111111-2222-3333-4444-555555555555"},
        {"ciphertext": ""},
        {"ciphertext": None},
        {"ciphertext": "AAAA"},
        {"ciphertext": "AAAA" * 86},
    ],
)
def test_a_reply_to_wrap_is_not_believed(fake, kek, opened, members):
    fake.faults.extend([Fault(), Fault(members=members)])
    with pytest.raises(KMSError, match="as its interface says"):
        opened(kek).wrap(SECRET, CONTEXT)


def test_a_description_of_another_key_is_not_believed(fake, kek, opened):
    fake.faults.append(Fault(members={"id": "11111111-2222-3333-4444-555555555555"}))
    with pytest.raises(KMSError, match="as its interface says"):
        opened(kek).wrap(SECRET, CONTEXT)


def test_another_plaintext_is_refused(fake, kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.faults.append(Fault(members={"plaintext": "QUJD" * 24}))
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, CONTEXT)


def test_neither_token_nor_secret_is_anywhere(fake, kek, opened, caplog):
    caplog.set_level(logging.DEBUG)
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    key.unwrap(wrapped, CONTEXT)
    fake.faults.extend([Fault(THROTTLED), Fault(half=True), Fault(Answer(403, "canary-body"))])
    with pytest.raises(KeyDeniedError) as caught:
        key.unwrap(wrapped, CONTEXT)
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    text = caplog.text + shown(caught.value) + repr(key) + repr(vars(key))
    for secret in (WRITER, SECRET.decode(), SECRET.hex(), "canary-body"):
        assert secret not in text
    assert WRITER.encode() not in pickle.dumps(caught.value)


def test_the_trail_has_the_request(fake, kek, opened, tmp_path):
    key = opened(kek)
    key.trail = Trail("cohortes", tmp_path / "audit.jsonl")
    wrapped = key.wrap(SECRET, CONTEXT)
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT)
    first, second = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert '"outcome": "done"' in first
    assert '"request_id": "request-2"' in first
    assert '"outcome": "UnwrapError"' in second
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


def test_it_opens_again_after_it_was_closed(kek, opened):
    key = opened(kek)
    wrapped = key.wrap(SECRET, CONTEXT)
    key.close()
    key.close()
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def shown(exc: BaseException) -> str:
    """Return all that a report of an error shows: texts, attributes, causes and the trace."""
    text = "".join(traceback.format_exception(exc))
    while exc is not None:
        text += f"{exc} {exc!r} {exc.args} {vars(exc)}"
        exc = exc.__cause__ or exc.__context__
    return text

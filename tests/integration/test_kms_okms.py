"""The driver of OVHcloud KMS beside a strict fake: rights, states of keys, failures, secrets, a store on it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import time
import traceback
import warnings

import pytest

from sovstore import config
from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    NoMatchingKeyError,
    UnwrapError,
)
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from sovstore.trail import Trail
from tests.servers import okms_fake as fakes
from tests.servers.clients import ClientAuthority
from tests.servers.tls import make_certificate
from tests.stores import CONTROLLERS, make_store, open_fs

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]


@pytest.fixture
def fake(okms_fake):
    return okms_fake


@pytest.fixture
def kek(fake):
    return fake.add_key()


@pytest.fixture
def open_by(fake, kek, monkeypatch):
    """A function that opens the KEK by a new token with some rights."""

    def open_key(*rights, key=kek, trail=None, **settings):
        monkeypatch.setenv("OF_THE_TESTS", fake.token(*rights))
        return _open(fake.uri(key), fake, trail=trail, token="env:OF_THE_TESTS", **settings)

    return open_key


def _open(uri, fake, *, trail=None, ca_file=None, **settings):
    table = {"timeout_s": 5.0, "ca_file": str(ca_file or fake.files.ca_file)} | settings
    return registry.open_key(uri, Access(services=(Service(name="ovh", uri="okms:", **table),), trail=trail))


def _actions(fake):
    return ["get" if method == "GET" else path.rpartition("/")[2] for method, path in fake.requests]


def _certified(fake, kek, pem, **settings):
    return _open(fake.uri(kek), fake, cert_file=str(pem), key_file=str(pem), **settings)


def test_a_reader_makes_one_request_and_needs_one_right(fake, open_by):
    wrapped = open_by().wrap(SECRET, CONTEXT)
    fake.requests.clear()
    assert open_by("decrypt").unwrap(wrapped, CONTEXT) == SECRET
    assert _actions(fake) == ["decrypt"]


def test_a_reader_wraps_nothing(fake, open_by):
    with pytest.raises(KeyDeniedError, match="OVHcloud KMS does not allow it") as caught:
        open_by("decrypt").wrap(SECRET, CONTEXT)
    assert "okms:apikms:serviceKey/get" in caught.value.hint
    assert "encrypt" not in _actions(fake)


@pytest.mark.parametrize(("rights", "missing"), [(("get",), "encrypt"), (("encrypt",), "get")])
def test_a_writer_is_told_which_right_is_missing(open_by, rights, missing):
    with pytest.raises(KeyDeniedError) as caught:
        open_by(*rights).wrap(SECRET, CONTEXT)
    assert f"okms:apikms:serviceKey/{missing} " in caught.value.hint


def test_a_writer_looks_once(fake, open_by):
    key = open_by()
    key.wrap(SECRET, CONTEXT)
    key.wrap(SECRET, CONTEXT)
    assert _actions(fake) == ["get", "encrypt", "encrypt"]


def test_who_has_unwrapped_need_not_look(fake, open_by):
    wrapped = open_by().wrap(SECRET, CONTEXT)
    fake.requests.clear()
    key = open_by("encrypt", "decrypt")
    key.unwrap(wrapped, CONTEXT)
    key.wrap(SECRET, CONTEXT)
    assert _actions(fake) == ["decrypt", "encrypt"]


def test_who_has_unwrapped_in_vain_looks(fake, open_by):
    wrapped = open_by(key=fake.add_key()).wrap(SECRET, CONTEXT)
    fake.requests.clear()
    key = open_by()
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, CONTEXT)
    key.wrap(SECRET, CONTEXT)
    assert _actions(fake) == ["decrypt", "get", "encrypt"]


def test_the_context_is_sent_as_text(fake, kek, open_by):
    wrapped = open_by().wrap(SECRET, CONTEXT)
    assert kek.decrypt(wrapped.decode(), CONTEXT.hex()) == SECRET + CONTEXT
    with pytest.raises(fakes.RefusedError):
        kek.decrypt(wrapped.decode(), "")


def test_a_changed_bit_of_any_byte_is_refused(open_by):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1 << position % 8
        with pytest.raises(UnwrapError):
            key.unwrap(bytes(changed), CONTEXT)
    assert key.unwrap(wrapped, CONTEXT) == SECRET


@pytest.mark.parametrize(
    "particulars",
    [
        {"kind": "RSA", "size": 4096},
        {"kind": "EC"},
        {"operations": ("sign", "verify")},
        {"operations": ("wrapKey", "unwrapKey")},
        {"operations": ("encrypt",)},
    ],
)
def test_a_key_of_another_kind_wraps_nothing(fake, open_by, particulars):
    with pytest.raises(ConfigError, match="must not be a KEK"):
        open_by(key=fake.add_key(**particulars)).wrap(SECRET, CONTEXT)
    assert _actions(fake) == ["get"]


@pytest.mark.parametrize(("level", "said"), [("SOFTWARE", "software"), ("HSM", "hsm"), ("MANAGED_HSM", "hsm")])
def test_a_key_is_described(fake, open_by, level, said):
    described = open_by(key=fake.add_key(level=level)).describe()
    assert described == {"protection_level": said, "algorithm": "AES-256", "state": "active"}


def test_a_key_in_software_is_refused_where_an_hsm_is_declared(fake, open_by):
    with pytest.raises(ConfigError, match="an HSM is declared"):
        open_by(protection_level="hsm").wrap(SECRET, CONTEXT)
    key = open_by(key=fake.add_key(level="HSM"), protection_level="hsm")
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


@pytest.mark.parametrize("state", ["pre_active", "deactivated", "compromised"])
def test_a_key_that_is_not_active_wraps_nothing(kek, open_by, state):
    kek.state = state
    with pytest.raises(KeyDeniedError, match=f"the key is {state}"):
        open_by().wrap(SECRET, CONTEXT)


def test_a_key_that_is_deactivated_stops_writers_and_readers(kek, open_by):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    kek.state = "deactivated"
    with pytest.raises(KeyDeniedError, match="present state") as caught:
        key.wrap(SECRET, CONTEXT)
    assert "activate the key again" in caught.value.hint
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, CONTEXT)
    kek.state = "active"
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_a_destroyed_key_is_missing(kek, open_by):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    kek.state = "destroyed"
    for call in (lambda: key.unwrap(wrapped, CONTEXT), lambda: open_by().wrap(SECRET, CONTEXT), key.describe):
        with pytest.raises(NoMatchingKeyError, match="has no such key"):
            call()


def test_another_okms_has_no_such_key(fake, kek, open_by, monkeypatch):
    wrapped = open_by().wrap(SECRET, CONTEXT)
    uri = fake.uri(kek, okms_id=kek.id)
    with pytest.raises(NoMatchingKeyError):
        _open(uri, fake, token="env:OF_THE_TESTS").unwrap(wrapped, CONTEXT)


def test_a_token_that_nobody_knows_is_denied(fake, kek, open_by, monkeypatch):
    wrapped = open_by().wrap(SECRET, CONTEXT)
    monkeypatch.setenv("OF_THE_TESTS", "canary-token-revoked")
    with pytest.raises(KeyDeniedError, match="does not accept the credentials") as caught:
        _open(fake.uri(kek), fake, token="env:OF_THE_TESTS").unwrap(wrapped, CONTEXT)
    assert caught.value.request_id
    assert _actions(fake).count("decrypt") == 1


def test_a_certificate_that_reads_does_not_write(fake, kek):
    wrapped = _certified(fake, kek, fake.certificate()).wrap(SECRET, CONTEXT)
    reader = _certified(fake, kek, fake.certificate("decrypt"))
    assert reader.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(KeyDeniedError):
        _certified(fake, kek, fake.certificate("decrypt")).wrap(SECRET, CONTEXT)


def test_a_certificate_for_every_okms_is_taken(fake, kek):
    assert _certified(fake, kek, fake.certificate(domain="*")).wrap(SECRET, CONTEXT)


def test_a_certificate_of_another_okms_is_refused_before_any_request(fake, kek):
    with pytest.raises(ConfigError, match="the certificate is for another OKMS"):
        _certified(fake, kek, fake.certificate(domain=kek.id))
    assert fake.requests == []


def test_a_certificate_that_names_no_okms_is_denied_by_the_service(fake, kek):
    with pytest.raises(KeyDeniedError, match="does not accept the credentials"):
        _certified(fake, kek, fake.clients.issue("nobody")).wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("days", [1, -1], ids=["of another authority", "that has expired"])
def test_a_certificate_that_the_service_does_not_trust_ends_the_handshake(fake, kek, tmp_path, days):
    authority = ClientAuthority(tmp_path) if days > 0 else fake.clients
    pem = authority.issue("stranger", f"okms.domain:{fake.okms_id}", days=days)
    with pytest.raises(KMSError, match="do not trust each other") as caught:
        _certified(fake, kek, pem).wrap(SECRET, CONTEXT)
    assert not caught.value.retryable
    assert fake.requests == []


def test_a_service_that_is_not_trusted_is_told_nothing(fake, open_by, tmp_path):
    foreign = make_certificate(tmp_path).ca_file
    with pytest.raises(KMSError, match="do not trust each other"):
        open_by(ca_file=foreign).wrap(SECRET, CONTEXT)
    assert fake.requests == []


@pytest.mark.parametrize(("status", "code"), [(429, fakes.THROTTLED), (500, fakes.AWAY), (400, fakes.THROTTLED)])
def test_what_passes_is_tried_again(fake, open_by, status, code):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.requests.clear()
    fake.plan(status, code, times=2)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert _actions(fake) == ["decrypt"] * 3


@pytest.mark.parametrize(
    ("status", "code", "words"), [(429, fakes.THROTTLED, "fewer requests"), (500, fakes.AWAY, "not available now")]
)
def test_what_does_not_pass_ends_in_time(fake, open_by, status, code, words):
    wrapped = open_by().wrap(SECRET, CONTEXT)
    fake.plan(status, code, times=100)
    key, started = open_by(timeout_s=0.8), time.monotonic()
    with pytest.raises(KMSUnavailableError, match=words) as caught:
        key.unwrap(wrapped, CONTEXT)
    assert time.monotonic() - started < 1.2
    assert caught.value.retryable
    assert caught.value.request_id


def test_a_failure_of_the_service_comes_at_once(fake, open_by):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.requests.clear()
    fake.plan(500, fakes.INTERNAL)
    with pytest.raises(KMSError, match=r"refused the request \(500\) \(request "):
        key.unwrap(wrapped, CONTEXT)
    assert _actions(fake) == ["decrypt"]


def test_a_slow_service_is_waited_for_and_not_for_ever(fake, open_by):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    fake.delay_s = 0.3
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    key = open_by(timeout_s=0.2)
    with pytest.raises(KMSUnavailableError, match=r"did not answer within 0\.2 s"):
        key.unwrap(wrapped, CONTEXT)
    time.sleep(0.3)


def test_a_service_that_is_gone_cannot_be_reached(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("KMS_RESTAPI_TOKEN", "canary-token")
    with fakes.start(tmp_path, fakes.description_file()) as gone:
        key = _open(gone.uri(gone.add_key()), gone, timeout_s=0.4)
    with pytest.raises(KMSUnavailableError, match="cannot be reached"):
        key.wrap(SECRET, CONTEXT)


def test_a_key_works_in_a_forked_child(open_by):
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads, which is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        good = False
        try:
            good = key.unwrap(wrapped, CONTEXT) == SECRET == key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT)
        finally:
            os._exit(0 if good else 1)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _all_of(error):
    """Return an error, its causes, and the local variables of all their frames but those of the tests."""
    shown = ""
    while error is not None:
        frames = [
            frame for frame, _ in traceback.walk_tb(error.__traceback__) if "/tests/" not in frame.f_code.co_filename
        ]
        shown += f"{error!r}{vars(error)}" + "".join(repr(frame.f_locals) for frame in frames)
        error = error.__cause__ or error.__context__
    return shown


def test_no_secret_is_anywhere(fake, kek, open_by, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    key = open_by()
    wrapped = key.wrap(SECRET, CONTEXT)
    errors = []
    for plan, context in (((401, fakes.CREDENTIALS), CONTEXT), ((500, fakes.INTERNAL), CONTEXT), (None, bytes(32))):
        if plan:
            fake.plan(*plan)
        with pytest.raises(KMSError) as caught:
            key.unwrap(wrapped, context)
        errors.append(caught.value)
    shown = caplog.text + repr(key) + "".join(f"{error}{error!r}{vars(error)}{pickle.dumps(error)}" for error in errors)
    frames = "".join(_all_of(error) for error in errors)
    token = os.environ["OF_THE_TESTS"]
    for secret in (SECRET.decode(), SECRET.hex(), token, kek.material.hex(), "words of the service"):
        assert secret not in shown
    assert token not in frames


def test_the_key_of_a_client_is_in_no_error(fake, kek, tmp_path):
    pem = fake.certificate("decrypt")
    lines = [line for line in pem.read_text().splitlines() if len(line) > 40]
    broken = tmp_path / "broken.pem"
    broken.write_text(pem.read_text().replace(lines[-1], lines[-1][:-8]))
    with pytest.raises(KMSError) as denied:
        _certified(fake, kek, pem).wrap(SECRET, CONTEXT)
    with pytest.raises(ConfigError) as unusable:
        _certified(fake, kek, broken)
    for error in (denied.value, unusable.value):
        shown = _all_of(error)
        assert "servicekey" in shown or "cannot be used" in shown
        assert not [line for line in lines if line[:30] in shown]


def test_the_audit_trail_names_the_requests_that_failed(fake, open_by, tmp_path):
    file = tmp_path / "audit.jsonl"
    key = open_by(trail=Trail("cohortes", file))
    wrapped = key.wrap(SECRET, CONTEXT)
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, bytes(32))
    fake.plan(401, fakes.CREDENTIALS)
    with pytest.raises(KeyDeniedError) as denied:
        key.unwrap(wrapped, CONTEXT)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["action"], line["outcome"], line["provider"]) for line in lines] == [
        ("wrap", "done", "okms"),
        ("unwrap", "UnwrapError", "okms"),
        ("unwrap", "KeyDeniedError", "okms"),
    ]
    assert [len(line.get("request_id", "")) for line in lines] == [0, 36, 36]
    assert lines[2]["request_id"] == denied.value.request_id


def test_a_store_is_made_and_read(fake, kek, tmp_path, monkeypatch):
    pem = fake.certificate()
    (tmp_path / "sovstore.toml").write_text(
        f'[kms.ovh]\nuri = "okms://eu-west-par/{fake.okms_id}"\nca_file = "{fake.files.ca_file}"\n'
        f'cert_file = "{pem}"\nkey_file = "{pem}"\ncontroller = "tests"\n{CONTROLLERS}'
    )
    file = make_store(tmp_path, kek=fake.uri(kek))
    fs = open_fs(file)
    fs.pipe_file("a/b", b"content")
    fake.requests.clear()
    fs.clear_instance_cache()
    assert open_fs(file).cat_file("a/b") == b"content"
    assert _actions(fake) == ["decrypt"]
    assert config.load(file).store("cohortes").kek == fake.uri(kek)

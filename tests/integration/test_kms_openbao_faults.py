"""OpenBao away, slow, sealed, busy and not to be believed: which error, after how many tries and how long.

The server is a real one, behind a proxy where something between breaks; where nothing sane is said, a scripted fake.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time

import pytest

from sovstore.errors import KeyDeniedError, KMSError, KMSUnavailableError, NoMatchingKeyError, UnwrapError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers import openbao
from tests.servers.faults import Faults
from tests.servers.proxy import fault_proxy
from tests.servers.scripted import scripted_server
from tests.servers.tls import make_certificate

CONTEXT = bytes(range(32))
SECRET = b"a secret of thirty-two bytes ---"
#: What an AEAD may have made of 64 bytes.
WRAPPED = b"vault:v1:" + b"A" * 122 + b"A="


@pytest.fixture
def opened(openbao_server, monkeypatch):
    """A function that opens a key as the operator; what it opened is closed in the end."""
    monkeypatch.setenv("OPERATOR", openbao_server.root_token)
    keys = []

    def open_key(address, name, **settings):
        base = f"openbao://{address}"
        settings = {"ca_file": str(openbao_server.ca_file), "token": "env:OPERATOR", "timeout_s": 2} | settings
        service = Service(uri=base, **settings)
        keys.append(registry.open_key(f"{base}/transit/{name}", Access(services=(service,))))
        return keys[-1]

    yield open_key
    for key in keys:
        key.close()


@pytest.fixture(scope="module")
def place(openbao_server):
    """A key, and something wrapped by it."""
    name = openbao_server.make_key()
    base = f"openbao://{openbao_server.plain_address}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPERATOR", openbao_server.root_token)
        service = Service(uri=base, token="env:OPERATOR", plain_http=True)
        key = registry.open_key(f"{base}/transit/{name}", Access(services=(service,)))
        wrapped = key.wrap(SECRET, CONTEXT)
        key.close()
    return name, wrapped


@pytest.fixture
def proxy(openbao_server):
    """A proxy that breaks what goes between, with the server's own certificate."""
    with fault_proxy(
        openbao_server.plain_port,
        read_target=lambda _: b"",
        busy_code="busy",
        certificate=openbao_server.tls.certificate,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def script(openbao_server):
    """A server that says what it is told to."""
    with scripted_server(openbao_server.tls.certificate) as running:
        yield running


def _fails(act, error, match, within_s):
    start = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        act()
    assert time.monotonic() - start < within_s
    return caught.value


def test_a_sealed_server_is_one_to_unseal_and_is_tried_again(openbao_server, opened, place):
    key = opened(openbao_server.address, place[0], timeout_s=10)
    openbao_server.seal()
    try:
        short = opened(openbao_server.address, place[0], timeout_s=0.5)
        error = _fails(lambda: short.unwrap(place[1], CONTEXT), KMSUnavailableError, "OpenBao is sealed", 1.5)
        assert "unseal" in error.hint
        assert error.retryable
        timer = threading.Timer(0.7, openbao_server.unseal)
        timer.start()
        assert key.unwrap(place[1], CONTEXT) == SECRET
        timer.join()
    finally:
        openbao_server.unseal()


def test_a_server_that_was_stopped(opened, monkeypatch):
    with openbao.start() as server:
        name = server.make_key()
        monkeypatch.setenv("OTHER", server.root_token)
        key = opened(server.address, name, token="env:OTHER", ca_file=str(server.ca_file), timeout_s=1)
        wrapped = key.wrap(SECRET, CONTEXT)
        server.stop()
        _fails(lambda: key.unwrap(wrapped, CONTEXT), KMSUnavailableError, "cannot be reached", 2)


def test_an_answer_after_five_seconds(opened, place, proxy):
    address = f"127.0.0.1:{proxy.port}"
    proxy.faults = Faults(latency_s=5)
    hasty = opened(address, place[0], timeout_s=1)
    _fails(lambda: hasty.unwrap(place[1], CONTEXT), KMSUnavailableError, "did not answer within 1 s", 1.5)
    start = time.monotonic()
    assert opened(address, place[0], timeout_s=20).unwrap(place[1], CONTEXT) == SECRET
    assert 5 <= time.monotonic() - start < 10


def test_a_server_that_takes_connections_and_says_nothing(openbao_server, opened, place):
    key = opened(openbao_server.address, place[0], timeout_s=0.7)
    assert key.unwrap(place[1], CONTEXT) == SECRET
    with openbao_server.paused():
        fresh = opened(openbao_server.address, place[0], timeout_s=0.7)
        for each in (key, fresh):
            _fails(lambda each=each: each.unwrap(place[1], CONTEXT), KMSUnavailableError, r"within 0\.7 s", 1.4)
    assert key.unwrap(place[1], CONTEXT) == SECRET


def test_503_is_tried_again(opened, place, proxy):
    key = opened(f"127.0.0.1:{proxy.port}", place[0], timeout_s=5)
    proxy.faults = Faults(busy=True, methods=("POST",), limit=2)
    assert key.unwrap(place[1], CONTEXT) == SECRET
    assert proxy.count("POST") == 3
    proxy.faults = Faults(busy=True, methods=("POST",))
    key = opened(f"127.0.0.1:{proxy.port}", place[0], timeout_s=1)
    _fails(lambda: key.unwrap(place[1], CONTEXT), KMSUnavailableError, r"not available now \(503\)", 2)


def test_429_of_a_real_quota_is_tried_again(openbao_server, opened, place):
    openbao_server.mount("limited")
    name = openbao_server.make_key(mount="limited")
    base = f"openbao://{openbao_server.address}"
    service = Service(uri=base, ca_file=str(openbao_server.ca_file), token="env:OPERATOR", timeout_s=6)
    key = registry.open_key(f"{base}/limited/{name}", Access(services=(service,)))
    wrapped = key.wrap(SECRET, CONTEXT)
    openbao_server.ask("POST", "sys/quotas/rate-limit/slow", {"path": "limited/", "rate": 1, "interval": "1s"})
    try:
        assert [key.unwrap(wrapped, CONTEXT) for _ in range(2)] == [SECRET] * 2
        hasty = Service(**{**vars(service), "timeout_s": 0.3})
        hasty_key = registry.open_key(f"{base}/limited/{name}", Access(services=(hasty,)))
        _fails(lambda: hasty_key.unwrap(wrapped, CONTEXT), KMSUnavailableError, "asks for fewer requests", 1.3)
        hasty_key.close()
    finally:
        openbao_server.ask("DELETE", "sys/quotas/rate-limit/slow")
        key.close()


@pytest.mark.parametrize(
    "fault", [{"close_after": 40}, {"reset_after": 40}, {"lose_reply": True}, {"reset_request_after": 10}]
)
def test_half_an_answer_is_asked_for_again(opened, place, proxy, fault):
    key = opened(f"127.0.0.1:{proxy.port}", place[0], timeout_s=5)
    proxy.faults = Faults(**fault, methods=("POST",), limit=1)
    assert key.unwrap(place[1], CONTEXT) == SECRET
    assert proxy.count("POST") == 2
    proxy.faults = Faults(**fault, methods=("POST",))
    hasty = opened(f"127.0.0.1:{proxy.port}", place[0], timeout_s=0.5)
    _fails(lambda: hasty.unwrap(place[1], CONTEXT), KMSUnavailableError, "cannot be reached|within", 1.5)


def test_an_answer_that_stalls_ends_in_time(opened, place, proxy):
    key = opened(f"127.0.0.1:{proxy.port}", place[0], timeout_s=0.7)
    proxy.faults = Faults(stall_after=40, methods=("POST",))
    _fails(lambda: key.unwrap(place[1], CONTEXT), KMSUnavailableError, r"within 0\.7 s", 1.5)


def test_a_changed_answer_raises_nothing_but_ours(opened, place, proxy):
    """Whoever changes it holds the key of the server's certificate, so nothing here can tell; it must not confuse."""
    key = opened(f"127.0.0.1:{proxy.port}", place[0])
    for at in range(0, 250, 9):
        proxy.faults = Faults(corrupt_at=at, methods=("POST",))
        with contextlib.suppress(KMSError):
            assert len(key.unwrap(place[1], CONTEXT)) == len(SECRET)


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n", b""])
def test_a_byte_now_and_then_ends_in_time(opened, script, part):
    """Also in the head of an answer, where every wait alone is short enough."""
    script.reply, script.pause_s = part + b"X-Slow: " + b"a" * 200, 0.1
    if not part:
        script.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + b" " * 200
        script.pause_s = 0.05
    key = opened(script.address, "kek", timeout_s=0.6)
    _fails(lambda: key.unwrap(WRAPPED, CONTEXT), KMSUnavailableError, r"within 0\.6 s", 1.2)


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        ("200 OK", b"<html>", KMSError, "as its interface says"),
        ("200 OK", b"[]", KMSError, "as its interface says"),
        ("200 OK", b"{}", KMSError, "as its interface says"),
        ("200 OK", b"[" * 60000, KMSError, "as its interface says"),
        ("200 OK", b" " * 2**18, KMSError, "as its interface says"),
        ("200 OK", json.dumps({"data": {"plaintext": 5}}).encode(), KMSError, "as its interface says"),
        ("200 OK", json.dumps({"data": {"plaintext": "é"}}).encode(), KMSError, "as its interface says"),
        ("200 OK", json.dumps({"data": {"plaintext": "A\n==="}}).encode(), KMSError, "as its interface says"),
        ("200 OK", json.dumps({"data": {"plaintext": "QUFB"}}).encode(), UnwrapError, "did not unwrap"),
        ("204 No Content", b"", KMSError, "as its interface says"),
        ("405 Method Not Allowed", b'{"errors":["unsupported operation"]}', KMSError, "as its interface says"),
        ("307 Temporary Redirect", b"", KMSError, "another address"),
        ("400 Bad Request", b'"Unable to decrypt the secret"', UnwrapError, "did not unwrap"),
        ("400 Bad Request", b'{"errors":["encryption key not found"]}', NoMatchingKeyError, "no such key"),
        ("401 Unauthorized", b"{}", KeyDeniedError, "does not let us"),
        ("404 Not Found", b"gone", NoMatchingKeyError, "no such key"),
    ],
)
def test_what_is_not_worth_another_try_comes_at_once(opened, script, status, body, error, match):
    fields = ["Location: https://127.0.0.1:1/v1/transit/decrypt/kek"] if status.startswith("307") else []
    script.say(status, body, *fields)
    script.requests.clear()
    caught = _fails(lambda: opened(script.address, "kek").unwrap(WRAPPED, CONTEXT), error, match, 2)
    assert len(script.requests) == 1
    assert not caught.retryable
    assert "kek" in str(caught)
    if status.startswith("4") and body:
        assert body.decode() not in str(caught)


@pytest.mark.parametrize(
    "reply", [{}, {"ciphertext": 5}, {"ciphertext": "vault:v1:AAAA"}, {"ciphertext": WRAPPED.decode() + "\n"}]
)
def test_an_answer_that_is_no_wrap_is_not_stored(opened, script, reply):
    script.say("200 OK", json.dumps({"data": reply}).encode())
    key = opened(script.address, "kek")
    key._suits = True
    _fails(lambda: key.wrap(SECRET, CONTEXT), KMSError, "as its interface says", 2)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"type": 7},
        {"type": "aes256-gcm96"},
        {"type": "aes256-gcm96", "derived": False, "exportable": "no", "allow_plaintext_backup": False},
    ],
)
def test_a_description_that_does_not_say_enough_is_not_believed(opened, script, said):
    script.say("200 OK", json.dumps({"data": said}).encode())
    script.requests.clear()
    _fails(lambda: opened(script.address, "kek").wrap(SECRET, CONTEXT), KMSError, "as its interface says", 2)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "auth",
    [
        None,
        {"client_token": 5, "lease_duration": 60},
        {"client_token": "a\r\nX-Other: b", "lease_duration": 60},
        {"client_token": "token", "lease_duration": "60"},
        {"client_token": "token", "lease_duration": -1},
        {"client_token": "token", "lease_duration": 10**400},
    ],
)
def test_a_login_that_is_none_is_not_believed(opened, script, auth):
    script.say("200 OK", json.dumps({"auth": auth}).encode())
    script.requests.clear()
    key = opened(script.address, "kek", auth="approle", role_id="role", secret_id="env:OPERATOR")
    _fails(lambda: key.unwrap(WRAPPED, CONTEXT), KMSError, "as its interface says", 2)
    assert len(script.requests) == 1


def test_a_token_goes_to_no_other_address(opened, script, openbao_server):
    script.say("307 Temporary Redirect", b"", f"Location: https://{openbao_server.address}/v1/transit/decrypt/kek")
    before = len(openbao_server.requests())
    _fails(lambda: opened(script.address, "kek").unwrap(WRAPPED, CONTEXT), KMSError, "another address", 2)
    assert len(openbao_server.requests()) == before


@pytest.mark.parametrize("seen", ["system", "other"])
def test_an_authority_that_is_not_ours(openbao_server, opened, place, tmp_path, seen):
    """Nothing is sent: neither the token nor what it is for."""
    ca_file = None if seen == "system" else str(make_certificate(tmp_path).ca_file)
    before = len(openbao_server.requests())
    key = opened(openbao_server.address, place[0], ca_file=ca_file)
    error = _fails(lambda: key.unwrap(place[1], CONTEXT), KMSError, "do not trust each other", 2)
    assert not error.retryable
    assert len(openbao_server.requests()) == before


def test_another_host_name(openbao_server, opened, place):
    """The certificate is for 127.0.0.1 and localhost."""
    localhost = openbao_server.address.replace("127.0.0.1", "localhost")
    assert opened(localhost, place[0]).unwrap(place[1], CONTEXT) == SECRET
    with scripted_server(openbao_server.tls.certificate, host="127.0.0.2") as other:
        key = opened(other.address, place[0])
        _fails(lambda: key.unwrap(place[1], CONTEXT), KMSError, "do not trust each other", 2)
        assert other.requests == []


def test_no_client_certificate(openbao_server, opened, place):
    for _ in range(10):
        key = opened(openbao_server.mtls_address, place[0])
        error = _fails(lambda key=key: key.unwrap(place[1], CONTEXT), KMSError, "do not trust each other", 2)
        assert not error.retryable


def test_a_server_without_tls(openbao_server, opened, place):
    key = opened(openbao_server.plain_address, place[0])
    _fails(lambda: key.unwrap(place[1], CONTEXT), KMSError, "do not trust each other", 2)

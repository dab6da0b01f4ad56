"""Tokens of a real OpenBao: how they are had, renewed, lost and found again."""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from sovstore.errors import KeyDeniedError, KMSError, KMSUnavailableError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers.clients import ClientAuthority

CONTEXT = bytes(range(32))
SECRET = b"a secret of thirty-two bytes ---"
LOGIN, RENEWAL = ("update", "auth/approle/login"), ("update", "auth/token/renew-self")


@pytest.fixture
def place(openbao_server):
    """A new key: its name, what a user of it may do, and something wrapped by it."""
    name = openbao_server.make_key()
    rules = {f"transit/{what}/{name}": "update" for what in ("encrypt", "decrypt")}
    token = openbao_server.make_token({**rules, f"transit/keys/{name}": "read"})
    body = {"plaintext": "QUFB" * 16, "associated_data": "QUFB"}
    openbao_server.ask("POST", f"transit/encrypt/{name}", body, token=token)
    return name, {**rules, f"transit/keys/{name}": "read"}


@pytest.fixture
def opened(openbao_server, place):
    """A function that opens the key of `place` with settings; what it opened is closed in the end."""
    keys = []

    def open_key(*, address=None, **settings):
        base = f"openbao://{address or openbao_server.address}"
        service = Service(uri=base, **{"ca_file": str(openbao_server.ca_file), **settings})
        keys.append(registry.open_key(f"{base}/transit/{place[0]}", Access(services=(service,))))
        return keys[-1]

    yield open_key
    for key in keys:
        key.close()


@pytest.fixture
def secret(monkeypatch):
    """A function that puts a secret where a setting can refer to it."""

    def keep(value, name="OF_THE_TEST"):
        monkeypatch.setenv(name, value)
        return f"env:{name}"

    return keep


@pytest.fixture
def approle(openbao_server, place, opened, secret):
    """A function that opens the key by a new AppRole."""

    def open_key(rules=None, **options):
        role_id, secret_id = openbao_server.make_approle(place[1] if rules is None else rules, **options)
        return opened(auth="approle", role_id=role_id, secret_id=secret(secret_id))

    return open_key


@pytest.fixture
def sent(openbao_server):
    """A function that returns the requests which the server had since the last time."""
    seen = 0

    def requests():
        nonlocal seen
        new, seen = openbao_server.requests()[seen:], len(openbao_server.requests())
        return new

    return requests


def test_one_login_serves_many_calls_of_two_threads(approle, sent):
    key = approle()
    sent()
    with ThreadPoolExecutor(2) as pool:
        wrapped = list(pool.map(lambda _: key.wrap(SECRET, CONTEXT), range(6)))
    assert all(key.unwrap(one, CONTEXT) == SECRET for one in wrapped)
    assert sent().count(LOGIN) == 1


def test_a_token_is_renewed_before_its_lease_ends_and_after_that_had_anew(approle, sent):
    key = approle(token_ttl="3s")
    wrapped = key.wrap(SECRET, CONTEXT)
    sent()
    time.sleep(2.1)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert sent()[0] == RENEWAL
    # Past the end of the first lease.
    time.sleep(1.1)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert LOGIN not in sent()
    key._login._held = dataclasses.replace(key._login._held, due=0, ends=0)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert sent()[0] == LOGIN


@pytest.mark.parametrize("after_s", [2.2, 2.85])
def test_a_token_at_its_greatest_age_is_had_anew(approle, sent, after_s):
    """Its last lease is cut short at first; later the server says 500."""
    key = approle(token_ttl="3s", token_max_ttl="3s")
    wrapped = key.wrap(SECRET, CONTEXT)
    start = time.monotonic()
    sent()
    time.sleep(after_s)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    requests = sent()
    assert LOGIN in requests[:2]
    assert requests.count(RENEWAL) <= 1
    assert time.monotonic() - start < after_s + 1


def test_a_token_that_cannot_be_renewed_is_had_anew(approle, sent):
    key = approle(token_ttl="1h", token_type="batch")
    wrapped = key.wrap(SECRET, CONTEXT)
    sent()
    key._login._held = dataclasses.replace(key._login._held, due=time.monotonic())
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    requests = sent()
    assert requests[0] == LOGIN
    assert RENEWAL not in requests


def test_a_revoked_token_leads_to_one_login(openbao_server, approle, place, sent):
    key = approle()
    wrapped = key.wrap(SECRET, CONTEXT)
    openbao_server.ask("POST", "auth/token/revoke", {"token": key._login._held.token.reveal().decode()})
    sent()
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    decrypt = ("update", f"transit/decrypt/{place[0]}")
    # The audit device does not list what was asked with a token that nobody has.
    assert [request for request in sent() if request != decrypt] == [LOGIN]


def test_a_missing_right_leads_to_one_login_and_then_to_an_error(approle, place, sent):
    name, _ = place
    wrapped = approle().wrap(SECRET, CONTEXT)
    reader = approle({f"transit/decrypt/{name}": "update"})
    assert reader.unwrap(wrapped, CONTEXT) == SECRET
    sent()
    with pytest.raises(KeyDeniedError, match="does not let us wrap") as caught:
        reader.wrap(SECRET, CONTEXT)
    assert "the role that logs in needs" in caught.value.hint
    encrypt = f"transit/encrypt/{name}"
    assert [path for _, path in sent()] == [encrypt, LOGIN[1], encrypt]


def test_a_fresh_token_that_is_refused_is_not_had_again(approle, place, sent):
    key = approle({"sys/nothing": "read"})
    sent()
    with pytest.raises(KeyDeniedError):
        key.wrap(SECRET, CONTEXT)
    assert sent() == [LOGIN, ("read", f"transit/keys/{place[0]}")]


def test_a_secret_id_that_is_used_up(openbao_server, approle):
    key = approle(secret_id_num_uses=1)
    wrapped = key.wrap(SECRET, CONTEXT)
    openbao_server.ask("POST", "auth/token/revoke", {"token": key._login._held.token.reveal().decode()})
    with pytest.raises(KeyDeniedError, match="did not accept the login") as caught:
        key.unwrap(wrapped, CONTEXT)
    assert "a secret id may have expired" in caught.value.hint


def test_a_method_mounted_elsewhere(openbao_server, place, opened, secret):
    openbao_server.ask("POST", "sys/auth/ci/approle", {"type": "approle"})
    path = "auth/ci/approle/role/pipeline"
    openbao_server.ask("POST", path, {"token_policies": [openbao_server.make_policy(place[1])]})
    role_id = openbao_server.ask("GET", f"{path}/role-id")["data"]["role_id"]
    secret_id = openbao_server.ask("POST", f"{path}/secret-id", {})["data"]["secret_id"]
    settings = {"auth": "approle", "role_id": role_id, "secret_id": secret(secret_id)}
    key = opened(**settings, auth_mount="ci/approle")
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    for mount in (None, "ci/nothing"):
        with pytest.raises(KeyDeniedError, match="did not accept the login"):
            opened(**settings, auth_mount=mount).wrap(SECRET, CONTEXT)


def test_a_jwt_that_expired_and_its_successor(openbao_server, place, opened, tmp_path):
    file = tmp_path / "jwt"
    file.write_text(openbao_server.sign_jwt(valid_s=-600))
    key = opened(auth="jwt", role=openbao_server.make_jwt_role(place[1]), jwt=f"file:{file}")
    with pytest.raises(KeyDeniedError, match="did not accept the login") as caught:
        key.wrap(SECRET, CONTEXT)
    assert file.read_text() not in str(caught.value)
    file.write_text(openbao_server.sign_jwt())
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_certificate_that_is_of_no_role(openbao_server, place, opened, tmp_path):
    role, stranger = openbao_server.make_certificate_role(place[1]), ClientAuthority(tmp_path).issue("stranger")
    for file, name in ((stranger, role), (openbao_server.client_certificate, "no-such-role")):
        key = opened(auth="cert", cert_file=str(file), key_file=str(file), role=name)
        with pytest.raises(KeyDeniedError, match="did not accept the login"):
            key.wrap(SECRET, CONTEXT)


def test_a_certificate_at_the_listener_that_asks_for_none(openbao_server, place, opened):
    file = str(openbao_server.client_certificate)
    key = opened(auth="cert", cert_file=file, key_file=file, role=openbao_server.make_certificate_role(place[1]))
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_token_over_mutual_tls(openbao_server, place, opened, secret):
    file = str(openbao_server.client_certificate)
    token = secret(openbao_server.make_token(place[1]))
    key = opened(address=openbao_server.mtls_address, token=token, cert_file=file, key_file=file)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_token_that_expired_says_what_to_do(openbao_server, place, opened, secret):
    key = opened(token=secret(openbao_server.make_token(place[1], ttl="1s")))
    wrapped = key.wrap(SECRET, CONTEXT)
    time.sleep(1.3)
    with pytest.raises(KeyDeniedError, match="does not let us unwrap") as caught:
        key.unwrap(wrapped, CONTEXT)
    assert "have a new token if this one expired" in caught.value.hint


def test_a_token_that_an_agent_replaced(openbao_server, place, opened, tmp_path):
    file = tmp_path / "token"
    file.write_text(openbao_server.make_token(place[1], ttl="1s"))
    key = opened(token=f"file:{file}")
    wrapped = key.wrap(SECRET, CONTEXT)
    time.sleep(1.3)
    file.write_text(openbao_server.make_token(place[1]))
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    file.unlink()
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    openbao_server.ask("POST", "auth/token/revoke", {"token": key._login._held.token.reveal().decode()})
    with pytest.raises(KeyDeniedError):
        key.unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize("variable", ["BAO_TOKEN", "VAULT_TOKEN"])
def test_a_token_where_the_tools_of_the_service_have_it(openbao_server, place, opened, secret, variable):
    secret(openbao_server.make_token(place[1]), variable)
    key = opened()
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_a_login_counts_against_the_time_of_the_call(openbao_server, place, opened, secret):
    role_id, secret_id = openbao_server.make_approle(place[1])
    key = opened(auth="approle", role_id=role_id, secret_id=secret(secret_id), timeout_s=0.5)
    with openbao_server.paused():
        start = time.monotonic()
        with pytest.raises(KMSUnavailableError, match=r"did not answer within 0\.5 s"):
            key.wrap(SECRET, CONTEXT)
        assert time.monotonic() - start < 1.5
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_no_credential_is_shown(openbao_server, place, opened, secret, caplog):
    caplog.set_level(logging.DEBUG)
    role_id, secret_id = openbao_server.make_approle({"sys/nothing": "read"})
    key = opened(auth="approle", role_id=role_id, secret_id=secret(secret_id))
    with pytest.raises(KMSError) as caught:
        key.wrap(SECRET, CONTEXT)
    token, (shown, exc) = key._login._held.token.reveal().decode(), ([], caught.value)
    while exc is not None:
        shown += [repr(exc), repr(vars(exc))]
        frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__) if frame.f_code.co_filename != __file__]
        shown += [repr(value) for frame in frames for value in frame.f_locals.values()]
        exc = exc.__cause__ or exc.__context__
    shown += [repr(key), repr(vars(key)), repr(vars(key._login)), caplog.text]
    assert not [text for text in shown if token in text or secret_id in text]

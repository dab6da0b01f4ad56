"""What the driver of OVHcloud KMS does by itself, and what it makes of replies that no description foresees."""

from __future__ import annotations

import base64
import json
import sys
import traceback

import pytest

from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    MissingDependencyError,
    NoMatchingKeyError,
    UnwrapError,
)
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers.clients import ClientAuthority
from tests.servers.loopback import reply, serve

OKMS = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0"
KEY = "11111111-2222-3333-4444-555555555555"
URI = f"okms://eu-west-par/{OKMS}/{KEY}"
CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
GOOD_KEY = {
    "id": KEY,
    "name": "kek",
    "type": "oct",
    "size": 256,
    "operations": ["encrypt", "decrypt"],
    "protectionLevel": "SOFTWARE",
    "attributes": {"state": "active"},
}


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("KMS_RESTAPI_TOKEN", "canary-token")


def _open(uri=URI, **settings):
    return registry.open_key(uri, Access(services=(Service(name="ovh", uri="okms://eu-west-par", **settings),)))


def _at(server, **settings):
    return _open(f"{URI}?endpoint={server.url}", **{"timeout_s": 2.0} | settings)


def _part(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _jwe(header=b'{"alg":"dir","enc":"A256GCM"}', *, key=b"", iv=bytes(12), ciphertext=bytes(64), tag=bytes(16)):
    return ".".join(_part(part) for part in (header, key, iv, ciphertext, tag))


def _failure(status, code=None, **more):
    return reply(status, {"errors": ["words of the service"], "request_id": OKMS, "error_code": code} | more)


def _code(category):
    return 3 << 24 | 3 << 16 | category << 12 | 1


def test_opening_asks_nobody(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    key = _open()
    assert (key.uri, key.provider, repr(key)) == (URI, "okms", f"<OKMSKey {URI}>")


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-par", "eu-west-par.okms.ovh.net"),
        ("ca-east-bhs", "ca-east-bhs.okms.ovh.net"),
        ("us-east-vin", "us-east-vin.okms.ovh.us"),
    ],
)
def test_the_region_is_the_host(region, host, monkeypatch):
    asked = []

    def lookup(name, port, **_):
        asked.append((name, port))
        raise OSError

    key = registry.open_key(f"okms://{region}/{OKMS}/{KEY}", Access(services=(Service("ovh", "okms:", timeout_s=0.1),)))
    monkeypatch.setattr("socket.getaddrinfo", lookup)
    with pytest.raises(KMSUnavailableError):
        key.unwrap(_jwe().encode(), CONTEXT)
    assert set(asked) == {(host, 443)}


@pytest.mark.parametrize(
    "uri",
    [
        "okms:",
        "okms://",
        f"okms:///{OKMS}/{KEY}",
        f"okms://eu-west-par/{OKMS}",
        f"okms://eu-west-par/{KEY}/",
        f"okms://eu-west-par/{OKMS}/{KEY}/",
        f"okms://eu-west-par/{OKMS}/{KEY}/x",
        f"okms://eu-west-par//{OKMS}/{KEY}",
        f"okms://EU-west-par/{OKMS}/{KEY}",
        f"okms://eu-west/{OKMS}/{KEY}",
        f"okms://eu-west-par.evil.example/{OKMS}/{KEY}",
        f"okms://eu-west-par:443/{OKMS}/{KEY}",
        f"okms://eu-west-par/{OKMS.upper()}/{KEY}",
        f"okms://eu-west-par/{OKMS}/{KEY[:-1]}",
        f"okms://eu-west-par/{OKMS}/{KEY}a",
        f"okms://eu-west-par/{OKMS}/{{{KEY}}}",
        f"okms://eu-west-par/{OKMS}/..",
        f"okms://eu-west-par/{OKMS}/{KEY}?",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=ftp://host",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=https://a&endpoint=https://b",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=http://host.example",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=https://host/%0d%0aX:y",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=https://host/%C3%A9",
        f"okms://eu-west-par/{OKMS}/{KEY}?endpoint=https://host/?a",
        f"okms://eu-west-par/{OKMS}/{KEY}\n",
        f"okms://eu-west-par/{OKMS}/{KEY} ",
    ],
)
def test_another_uri_is_refused(uri):
    with pytest.raises(ConfigError) as caught:
        registry.open_key(uri, Access(services=(Service("ovh", "okms:"),)))
    assert caught.value.hint


@pytest.mark.parametrize(
    "secret",
    [
        "okms://user:canary-password@eu-west-par/{}/{}",
        "okms://eu-west-par/{}/{}?endpoint=https://user:canary-password@host",
        "okms://eu-west-par/{}/{}?endpoint=https%3A%2F%2Fuser:canary-password%40host",
        "okms://eu-west-par/{}/{}?endpoint=https://u:canary-password@a&endpoint=https://b",
        "okms://eu-west/{}/{}?endpoint=https://u:canary-password@a",
        "okms://eu-west-par/{}/{}?endpoint=https://host/?token=canary-password",
        "okms://eu-west-par/{}/{}?token=canary-password",
        "okms://eu-west-par/{}/{}#canary-password",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_quoted(secret):
    with pytest.raises(ConfigError) as caught:
        registry.open_key(secret.format(OKMS, KEY), Access())
    assert "canary-password" not in str(caught.value) + repr(caught.value) + str(caught.value.path)


def test_no_credentials_are_an_error_of_the_configuration(monkeypatch):
    monkeypatch.delenv("KMS_RESTAPI_TOKEN")
    with pytest.raises(ConfigError, match="has no credentials") as caught:
        _open()
    assert "cert_file" in caught.value.hint
    assert "KMS_RESTAPI_TOKEN" in caught.value.hint


@pytest.mark.parametrize("settings", [{}, {"token": "env:KMS_RESTAPI_TOKEN"}])
def test_two_kinds_of_credentials_are_refused(settings, tmp_path):
    pem = str(ClientAuthority(tmp_path).issue("both"))
    with pytest.raises(ConfigError, match="a certificate and a token"):
        _open(cert_file=pem, key_file=pem, **settings)


@pytest.mark.parametrize("token", ["é", "a\nb", " "])
def test_a_token_that_cannot_be_sent_is_refused_at_opening(token, monkeypatch):
    monkeypatch.setenv("KMS_RESTAPI_TOKEN", f"canary{token}token")
    if token == " ":
        assert _open()
        return
    with pytest.raises(ConfigError) as caught:
        _open()
    assert "canary" not in str(caught.value)


def test_a_token_that_is_not_where_it_should_be_is_an_error_of_the_configuration():
    with pytest.raises(ConfigError, match="the variable is not set"):
        _open(token="env:NOT_THERE")


def test_a_token_is_read_again_for_each_request(tmp_path):
    file = tmp_path / "token"
    file.write_text("canary-first")
    with serve(_failure(404, _code(5))) as server:
        key = _at(server, token=f"file:{file}")
        for token in ("canary-second", "canary-third"):
            file.write_text(token)
            with pytest.raises(NoMatchingKeyError):
                key.unwrap(_jwe().encode(), CONTEXT)
            assert f"Authorization: Bearer {token}\r\n".encode() in server.requests[-1]


def _opened_by(pem, monkeypatch):
    monkeypatch.delenv("KMS_RESTAPI_TOKEN")
    return _open(cert_file=str(pem), key_file=str(pem))


@pytest.mark.parametrize(
    "principal", [None, "okms.domain:*", f"okms.domain:{OKMS}", f"okms.domain:{OKMS.upper()}", "a@b"]
)
def test_a_certificate_of_this_okms_or_of_none_is_taken(principal, tmp_path, monkeypatch):
    assert _opened_by(ClientAuthority(tmp_path).issue("client", principal), monkeypatch)


@pytest.mark.parametrize("domain", [KEY, "", f"{OKMS}x", f"x{OKMS}"])
def test_a_certificate_of_another_okms_is_refused_before_anything_is_sent(domain, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    pem = ClientAuthority(tmp_path).issue("client", f"okms.domain:{domain}")
    with pytest.raises(ConfigError, match="the certificate is for another OKMS"):
        _opened_by(pem, monkeypatch)


def test_the_file_of_a_certificate_that_cannot_be_read_is_in_no_frame(tmp_path, monkeypatch):
    pem = ClientAuthority(tmp_path).issue("client")
    monkeypatch.setattr("cryptography.x509.load_pem_x509_certificates", lambda _: int("no certificate"))
    with pytest.raises(ConfigError, match="no certificate that can be read") as caught:
        _opened_by(pem, monkeypatch)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "PRIVATE KEY" not in shown
    assert "no certificate" in str(caught.value.__cause__)


def test_a_certificate_needs_tls(tmp_path, monkeypatch):
    monkeypatch.delenv("KMS_RESTAPI_TOKEN")
    pem = str(ClientAuthority(tmp_path).issue("client"))
    with pytest.raises(ConfigError, match="a certificate needs TLS"):
        _open(f"{URI}?endpoint=http://127.0.0.1:1", cert_file=pem, key_file=pem)


def test_a_missing_package_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpcore", None)
    monkeypatch.delenv("KMS_RESTAPI_TOKEN")
    with pytest.raises(MissingDependencyError, match="httpcore is not installed") as caught:
        _open()
    assert caught.value.hint == "pip install 'sovstore[okms]'"


GOOD = _jwe()
NO_JWE = {
    "empty": "",
    "four parts": GOOD.rpartition(".")[0],
    "six parts": f"{GOOD}.",
    "padded": f"{GOOD}==",
    "white space": f"{GOOD}\n",
    "white space inside": GOOD.replace(".", ". ", 1),
    "other alphabet": _jwe(ciphertext=b"\xff" * 64).replace("_", "/"),
    "unused bits": f"{GOOD[:-1]}B",
    "a part that ends in one letter": GOOD.replace(f".{_part(bytes(12))}.", f".{_part(bytes(12))}A."),
    "no header": _jwe(b""),
    "no ciphertext": _jwe(ciphertext=b""),
    "a ciphertext that is too short": _jwe(ciphertext=bytes(31)),
    "too long": _jwe(ciphertext=bytes(3100)),
    "RSA": _jwe(b'{"alg":"RSA-OAEP-256","enc":"A256GCM"}'),
    "ECDH": _jwe(b'{"alg":"ECDH-ES+A256KW","enc":"A256GCM"}'),
    "a password": _jwe(b'{"alg":"PBES2-HS512+A256KW","enc":"A256GCM"}'),
    "none": _jwe(b'{"alg":"none"}'),
    "twice": _jwe(b'{"alg":"RSA-OAEP","alg":"dir"}'),
    "twice, the other way": _jwe(b'{"alg":"dir","alg":"RSA-OAEP"}'),
    "no text": _jwe(b'{"alg":["dir"]}'),
    "in capitals": _jwe(b'{"alg":"dir","Alg":"RSA1_5"}'),
    "escaped": _jwe(b'{"\\u0061lg":"RSA1_5"}'),
    "UTF-16": _jwe('{"alg":"RSA1_5"}'.encode("utf-16")),
}


@pytest.mark.parametrize("text", NO_JWE.values(), ids=NO_JWE.keys())
def test_what_the_service_cannot_have_made_is_refused_and_not_sent(text):
    with serve(b"") as server, pytest.raises(UnwrapError) as caught:
        _at(server).unwrap(text.encode(), CONTEXT)
    assert server.connections == 0
    assert str(caught.value) == f"{URI}?endpoint={server.url}: did not unwrap"


@pytest.mark.parametrize("wrapped", [b"\xff" * 100, GOOD.encode() + b"\0", GOOD.encode().replace(b".", b"\xe9", 1)])
def test_what_is_no_text_is_refused_and_not_sent(wrapped):
    with serve(b"") as server, pytest.raises(UnwrapError):
        _at(server).unwrap(wrapped, CONTEXT)
    assert server.connections == 0


def test_a_changed_bit_of_any_byte_is_refused_or_another_text():
    # The form alone: what is well-formed and changed, the service refuses.
    with serve(_failure(400, _code(2))) as server:
        key = _at(server)
        for position in range(len(GOOD)):
            changed = bytearray(GOOD.encode())
            changed[position] ^= 1
            with pytest.raises(UnwrapError):
                key.unwrap(bytes(changed), CONTEXT)
    sent = [json.loads(raw.partition(b"\r\n\r\n")[2])["ciphertext"] for raw in server.requests]
    assert len(set(sent)) == len(sent) == server.connections
    assert all(_part(base64.urlsafe_b64decode(part + "==")) == part for text in sent for part in text.split("."))


HEADERS = [
    b'{"alg":"dir"}',
    b'{"alg":"A256KW","enc":"A256CBC-HS512"}',
    b'{"alg":"A256GCMKW"}',
    b'{"enc":"A256GCM"}',
    b'{"kid":{"alg":"RSA1_5"}}',
    b"[1, 2]",
    b'["alg"]',
    b"opaque",
    b"\xff\x00",
    b"[" * 2000,
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_says_nothing_else_is_opaque(header):
    payload = base64.b64encode(SECRET + CONTEXT).decode()
    with serve(reply(200, {"plaintext": payload})) as server:
        assert _at(server).unwrap(_jwe(header, key=b"any").encode(), CONTEXT) == SECRET
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /api/{OKMS}/v1/servicekey/{KEY}/decrypt HTTP/1.1\r\n".encode())
    assert json.loads(body) == {"ciphertext": _jwe(header, key=b"any"), "context": CONTEXT.hex()}


REFUSALS = [
    (3, KeyDeniedError, "credentials"),
    (4, KeyDeniedError, "does not allow it"),
    (5, NoMatchingKeyError, "has no such key"),
]


@pytest.mark.parametrize("status", [400, 403, 404, 409, 500, 503])
@pytest.mark.parametrize(("category", "error", "words"), REFUSALS)
def test_the_category_of_a_refusal_counts_and_not_the_status(category, error, words, status):
    with serve(_failure(status, _code(category))) as server:
        key = _at(server)
        for call in (lambda: key.unwrap(GOOD.encode(), CONTEXT), lambda: key.wrap(SECRET, CONTEXT), key.describe):
            with pytest.raises(error, match=words) as caught:
                call()
            assert caught.value.request_id == OKMS
            assert "words of the service" not in str(caught.value)
    assert server.connections == 3


@pytest.mark.parametrize("status", [400, 500, 503])
@pytest.mark.parametrize(("category", "words"), [(6, "not available"), (7, "not available"), (9, "fewer requests")])
def test_the_category_of_what_passes_counts_and_not_the_status(category, words, status):
    unavailable = pytest.raises(KMSUnavailableError, match=words)
    with serve(_failure(status, _code(category))) as server, unavailable as caught:
        _at(server, timeout_s=0.5).unwrap(GOOD.encode(), CONTEXT)
    assert caught.value.request_id == OKMS
    assert server.connections > 1


@pytest.mark.parametrize("category", [6, 7, 9])
@pytest.mark.parametrize("status", [400, 500])
def test_what_passes_is_tried_again_whatever_its_status(category, status):
    good = reply(200, {"plaintext": base64.b64encode(SECRET + CONTEXT).decode()})
    with serve(_failure(status, _code(category)), good) as server:
        assert _at(server).unwrap(GOOD.encode(), CONTEXT) == SECRET
    assert server.connections == 2


@pytest.mark.parametrize("code", [_code(1), _code(2), _code(8), _code(10), 50405377, None, "50475011", True, -1, 2**40])
def test_any_other_400_to_a_reader_is_a_wrong_key(code):
    with serve(_failure(400, code)) as server, pytest.raises(UnwrapError):
        _at(server).unwrap(GOOD.encode(), CONTEXT)
    assert server.connections == 1


@pytest.mark.parametrize("status", [401, 429])
def test_two_statuses_count_by_themselves(status):
    words = {401: "does not accept the credentials", 429: "asks for fewer requests"}[status]
    for body in (b"<html>", b"{}", json.dumps({"error_code": _code(1)}).encode()):
        with serve(reply(status, body)) as server, pytest.raises(KMSError, match=words) as caught:
            _at(server, timeout_s=0.3).unwrap(GOOD.encode(), CONTEXT)
        assert isinstance(caught.value, KeyDeniedError if status == 401 else KMSUnavailableError)


@pytest.mark.parametrize(("action", "call"), [("decrypt", "unwrap"), ("get", "wrap")])
def test_a_missing_right_is_named(action, call):
    with serve(_failure(401, 16924673)) as server, pytest.raises(KeyDeniedError) as caught:
        getattr(_at(server), call)(GOOD.encode() if call == "unwrap" else SECRET, CONTEXT)
    assert f"okms:apikms:serviceKey/{action}" in caught.value.hint


@pytest.mark.parametrize("status", [200, 201, 204, 301, 307, 404, 418])
@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b"null", b'{"plaintext": 5}', b'{"ciphertext": "x"}'])
def test_what_is_not_of_the_interface_is_garbled(status, body):
    with serve(reply(status, body, "Location: /elsewhere")) as server:
        key = _at(server)
        for call in (lambda: key.unwrap(GOOD.encode(), CONTEXT), lambda: key.wrap(SECRET, CONTEXT), key.describe):
            with pytest.raises(KMSError, match="did not answer as its interface says") as caught:
                call()
            assert not caught.value.retryable
    assert server.connections == 3


@pytest.mark.parametrize("code", [None, _code(1), _code(2)])
def test_a_failure_inside_comes_at_once(code):
    with serve(_failure(500, code)) as server, pytest.raises(KMSError, match="refused the request") as caught:
        _at(server).unwrap(GOOD.encode(), CONTEXT)
    assert (server.connections, caught.value.retryable) == (1, False)


PLAIN = base64.b64encode(SECRET + CONTEXT).decode()


@pytest.mark.parametrize("plaintext", [f"{PLAIN}\n", PLAIN.rstrip("="), f" {PLAIN}", "é", "\ud800", "====", ""])
def test_a_plaintext_in_another_spelling_is_garbled(plaintext):
    garbled = pytest.raises(KMSError, match="did not answer as its interface says")
    with serve(reply(200, {"plaintext": plaintext})) as server, garbled as caught:
        _at(server).unwrap(GOOD.encode(), CONTEXT)
    assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize(
    "payload", [SECRET, SECRET + CONTEXT[::-1], SECRET[:15] + CONTEXT, SECRET * 2 + b"a" + CONTEXT]
)
def test_a_plaintext_of_another_length_or_context_is_refused(payload):
    with serve(reply(200, {"plaintext": base64.b64encode(payload).decode()})) as server, pytest.raises(UnwrapError):
        _at(server).unwrap(GOOD.encode(), CONTEXT)


@pytest.mark.parametrize(
    "text", [NO_JWE["RSA"], NO_JWE["four parts"], NO_JWE["unused bits"], NO_JWE["too long"], "\ud800", "é"]
)
def test_a_wrapped_key_that_could_not_be_read_again_is_not_taken(text):
    answers = reply(200, GOOD_KEY), reply(200, json.dumps({"ciphertext": text}).encode())
    with serve(*answers) as server, pytest.raises(KMSError, match="did not answer as its interface says"):
        _at(server).wrap(SECRET, CONTEXT)


UNSUITABLE = [
    ({"type": "RSA", "size": 4096}, ConfigError, "not a symmetric key"),
    ({"type": "EC"}, ConfigError, "not a symmetric key"),
    ({"type": None}, ConfigError, "not a symmetric key"),
    ({"operations": ["encrypt"]}, ConfigError, "its operations"),
    ({"operations": ["decrypt"]}, ConfigError, "its operations"),
    ({"operations": ["wrapKey", "unwrapKey"]}, ConfigError, "its operations"),
    ({"operations": "encrypt decrypt"}, ConfigError, "its operations"),
    ({"operations": None}, ConfigError, "its operations"),
    ({"attributes": {"state": "deactivated"}}, KeyDeniedError, "the key is deactivated"),
    ({"attributes": {"state": "pre_active"}}, KeyDeniedError, "the key is pre_active"),
    ({"attributes": {"state": "words of the service"}}, KeyDeniedError, "the key is not active"),
    ({"attributes": {"state": ["active"]}}, KeyDeniedError, "the key is not active"),
    ({"id": OKMS}, KMSError, "did not answer as its interface says"),
    ({"id": None}, KMSError, "did not answer as its interface says"),
]


@pytest.mark.parametrize(("difference", "error", "words"), UNSUITABLE)
def test_a_key_that_must_not_be_a_kek_wraps_nothing(difference, error, words):
    with serve(reply(200, GOOD_KEY | difference)) as server:
        key = _at(server)
        for _ in range(2):
            with pytest.raises(error, match=words):
                key.wrap(SECRET, CONTEXT)
    assert [request.split(b" ")[0] for request in server.requests] == [b"GET", b"GET"]


@pytest.mark.parametrize("attributes", [None, {}, {"other": 1}, "text"])
def test_a_key_of_unsaid_state_is_left_to_the_service(attributes):
    with serve(reply(200, GOOD_KEY | {"attributes": attributes}), reply(200, {"ciphertext": GOOD})) as server:
        assert _at(server).wrap(SECRET, CONTEXT) == GOOD.encode()


@pytest.mark.parametrize(
    ("level", "good"), [("SOFTWARE", False), ("HSM", True), ("MANAGED_HSM", True), ("X", False), (1, False)]
)
def test_a_declared_hsm_is_looked_for(level, good):
    unwrapped = reply(200, {"plaintext": PLAIN})
    description = reply(200, GOOD_KEY | {"protectionLevel": level})
    with serve(unwrapped, description, reply(200, {"ciphertext": GOOD})) as server:
        key = _at(server, protection_level="hsm")
        # Also by one that has unwrapped: it shows that there is a key, and not where.
        key.unwrap(GOOD.encode(), CONTEXT)
        if good:
            assert key.wrap(SECRET, CONTEXT) == GOOD.encode()
        else:
            with pytest.raises(ConfigError, match="an HSM is declared"):
                key.wrap(SECRET, CONTEXT)


DESCRIPTIONS = [
    ({}, {"algorithm": "AES-256", "protection_level": "software", "state": "active"}),
    ({"protectionLevel": "HSM", "size": 128}, {"algorithm": "AES-128", "protection_level": "hsm", "state": "active"}),
    (
        {"type": "RSA", "protectionLevel": "MANAGED_HSM"},
        {"algorithm": "RSA", "protection_level": "hsm", "state": "active"},
    ),
    ({"type": "x", "protectionLevel": "x", "attributes": {"state": "x"}}, {}),
    ({"type": [], "protectionLevel": [], "attributes": {"state": []}}, {}),
    ({"size": "256", "attributes": None}, {"algorithm": "oct", "protection_level": "software"}),
]


@pytest.mark.parametrize(("difference", "expected"), DESCRIPTIONS)
def test_a_description_says_what_is_understood(difference, expected):
    with serve(reply(200, GOOD_KEY | difference)) as server:
        assert _at(server).describe() == expected


@pytest.mark.parametrize("request_id", ["a b c d e f g h", "short", "x" * 65, 5, None, "é" * 10])
def test_a_request_id_of_another_form_is_left_out(request_id):
    with serve(_failure(404, _code(5), request_id=request_id)) as server, pytest.raises(NoMatchingKeyError) as caught:
        _at(server).unwrap(GOOD.encode(), CONTEXT)
    assert caught.value.request_id is None

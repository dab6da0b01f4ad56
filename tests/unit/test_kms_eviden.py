"""`eviden-kms:` without a server: what is refused before anything is sent."""

from __future__ import annotations

import sys

import pytest

from sovstore.errors import ConfigError, MissingDependencyError, UnwrapError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.http import HTTPService
from sovstore.kms.settings import Service

HOST = "eviden-kms://kms.example.fr:9998"
CONTEXT = bytes(32)


@pytest.fixture(autouse=True)
def _no_request(monkeypatch):
    def request(*_args, **_kwargs):
        raise AssertionError("a request was made")

    monkeypatch.setattr(HTTPService, "request", request)


def opened(uri, **settings):
    settings = settings or {"token": "env:EVIDEN_TOKEN"}
    return registry.open_key(uri, Access(services=(Service(uri="eviden-kms://", **settings),)))


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("EVIDEN_TOKEN", "canary-token-55aa")


@pytest.mark.parametrize(
    "uri",
    [
        f"{HOST}/cohortes",
        f"{HOST}/cohortes?api=jose",
        f"{HOST}/cohortes@2?api=kmip",
        f"{HOST}/hsm::0::cohortes?api=kmip",
        f"{HOST}/hsm::proteccio::1::cohortes@3?api=kmip",
        f"{HOST}/somebody@example.fr",
        "eviden-kms://[::1]:9998/cohortes",
        "eviden-kms://kms.example.fr/cohortes",
    ],
)
def test_opening_asks_nothing_and_keeps_the_uri(uri):
    key = opened(uri)
    assert (key.uri, key.provider) == (uri, "eviden-kms")
    key.close()


@pytest.mark.parametrize(
    "uri",
    [
        HOST,
        f"{HOST}/",
        "eviden-kms:///cohortes",
        f"{HOST}/a/b",
        f"{HOST}/..",
        f"{HOST}/a..b",
        f"{HOST}/%2e%2e",
        f'{HOST}/a"b',
        f"{HOST}/cohortes?api=ttlv",
        f"{HOST}/cohortes?api=",
        f"{HOST}/cohortes?version=2",
        f"{HOST}/cohortes?api=jose&api=kmip",
        f"{HOST}/cohortes@latest",
        f"{HOST}/cohortes@first",
        f"{HOST}/cohortes@0",
        f"{HOST}/cohortes@02",
        f"{HOST}/cohortes#fragment",
        "eviden-kms://kms.example.fr:99999/cohortes",
    ],
)
def test_another_uri_is_refused(uri):
    with pytest.raises(ConfigError):
        opened(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "eviden-kms://user:canary-4711@kms.example.fr/cohortes",
        f"{HOST}/cohortes?api=canary-4711",
        f"{HOST}/cohortes?token=canary-4711",
        f"{HOST}/cohortes#canary-4711",
    ],
)
def test_what_may_be_a_secret_is_not_quoted(uri):
    with pytest.raises(ConfigError) as caught:
        opened(uri)
    assert "canary-4711" not in f"{caught.value} {caught.value.path}"


@pytest.mark.parametrize("query", ["", "?api=jose"])
def test_a_key_in_an_hsm_goes_with_kmip_only(query):
    with pytest.raises(ConfigError, match="api=kmip only") as caught:
        opened(f"{HOST}/hsm::0::cohortes{query}")
    assert caught.value.hint == f"write {HOST}/hsm::0::cohortes?api=kmip"


def test_credentials_are_needed():
    # A service without authentication takes everyone for its administrator.
    with pytest.raises(ConfigError, match="no credentials for Eviden KMS"):
        opened(f"{HOST}/cohortes", ca_file=None)


def test_a_certificate_is_none_without_tls():
    with pytest.raises(ConfigError, match="no credentials"):
        opened("eviden-kms://127.0.0.1:9998/cohortes", plain_http=True, cert_file="c.pem", key_file="c.pem")


def test_plain_http_goes_to_this_machine_only():
    with pytest.raises(ConfigError, match="without TLS"):
        opened(f"{HOST}/cohortes", plain_http=True, token="env:EVIDEN_TOKEN")
    opened("eviden-kms://127.0.0.1:9998/cohortes", plain_http=True, token="env:EVIDEN_TOKEN").close()


@pytest.mark.parametrize("token", ["canary-4711-é", "canary\n4711"])
def test_a_token_that_no_header_takes_is_refused_unquoted(monkeypatch, token):
    monkeypatch.setenv("EVIDEN_TOKEN", token)
    with pytest.raises(ConfigError) as caught:
        opened(f"{HOST}/cohortes")
    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_certificate_that_is_none_is_refused(tmp_path):
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        opened(f"{HOST}/cohortes", cert_file=str(tmp_path / "bad.pem"), key_file=str(tmp_path / "bad.pem"))


def wrapped(mark, name, size=49 + 12 + 16):
    return bytes((mark, len(name))) + name + bytes(size)


HEADER = b'{"alg":"dir","enc":"A256GCM","kid":"cohortes"}'


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"cohortes",
        b"[]",
        b"1",
        b"{}",
        HEADER.replace(b"cohortes", b"other"),
        HEADER.replace(b"cohortes", b"cohortes2"),
        HEADER.replace(b"cohortes", b"cohortes@latest"),
        HEADER.replace(b"cohortes", b"cohortes@0"),
        HEADER.replace(b"cohortes", b"cohortes@01"),
        HEADER.replace(b"cohortes", b"\\u0063ohortes"),
        HEADER.replace(b'"cohortes"', b'["cohortes"]'),
        HEADER.replace(b'"dir"', b'"RSA-OAEP-256"'),
        HEADER.replace(b'"dir"', b'["dir"]'),
        HEADER.replace(b"A256GCM", b"A128GCM"),
        HEADER.replace(b'"enc"', b'"alg":"dir","enc"'),
        HEADER.replace(b"}", b',"zip":"DEF"}'),
        HEADER.replace(b",", b", "),
        HEADER + b" ",
        HEADER.decode().replace("cohortes", "cohortés").encode(),
        b"[" * 200,
    ],
)
def test_a_header_that_is_not_ours_is_refused_unsent(name):
    with pytest.raises(UnwrapError):
        opened(f"{HOST}/cohortes").unwrap(wrapped(1, name), CONTEXT)


@pytest.mark.parametrize(
    "name", [b"", b"other", b"cohorte", b"cohortes@", b"cohortes@0", b"cohortes@x", b"cohort\xe9s"]
)
def test_an_identifier_that_is_not_ours_is_refused_unsent(name):
    with pytest.raises(UnwrapError):
        opened(f"{HOST}/cohortes?api=kmip").unwrap(wrapped(2, name), CONTEXT)


def test_one_key_of_a_keyset_stands_for_no_other():
    with pytest.raises(UnwrapError):
        opened(f"{HOST}/cohortes@2?api=kmip").unwrap(wrapped(2, b"cohortes@2@1"), CONTEXT)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x02\x08cohortes",
        wrapped(1, b"cohortes"),
        wrapped(3, b"cohortes"),
        wrapped(2, b"cohortes", size=48 + 28),
        wrapped(2, b"cohortes", size=98 + 28),
        bytes(100),
        b"\x02\xff" + bytes(100),
    ],
)
def test_another_form_is_refused_unsent(raw):
    with pytest.raises(UnwrapError):
        opened(f"{HOST}/cohortes?api=kmip").unwrap(raw, CONTEXT)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_another_length_of_context_is_refused_unsent(size):
    with pytest.raises(UnwrapError):
        opened(f"{HOST}/cohortes?api=kmip").unwrap(wrapped(2, b"cohortes"), bytes(size))


def test_without_httpcore_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpcore", None)
    with pytest.raises(MissingDependencyError) as caught:
        opened(f"{HOST}/cohortes")
    assert caught.value.hint == "pip install 'sovstore[eviden]'"

"""`scw-kms:` without a server: what is refused before anything is sent."""

from __future__ import annotations

import sys

import pytest

from sovstore.errors import ConfigError, MissingDependencyError, UnwrapError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.http import HTTPService
from sovstore.kms.settings import Service

URI = "scw-kms://fr-par/11111111-2222-3333-4444-555555555555"
CONTEXT = bytes(32)


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("SCW_SECRET_KEY", "canary-token-55aa")


@pytest.fixture(autouse=True)
def _no_request(monkeypatch):
    def request(*_args, **_kwargs):
        raise AssertionError("a request was made")

    monkeypatch.setattr(HTTPService, "request", request)


def opened(uri=URI, **settings):
    services = (Service(uri="scw-kms://", **settings),) if settings else ()
    return registry.open_key(uri, Access(services=services))


def test_opening_asks_nothing_and_keeps_the_uri():
    key = opened()
    assert (key.uri, key.provider, key.newer, key.rotated) == (URI, "scw-kms", None, False)
    key.close()
    key.close()


@pytest.mark.parametrize(
    "uri",
    [
        "scw-kms://fr-par",
        "scw-kms://fr-par/",
        "scw-kms:///11111111-2222-3333-4444-555555555555",
        "scw-kms://fr-par/cohortes",
        "scw-kms://fr-par/11111111-2222-3333-4444-555555555555/encrypt",
        "scw-kms://fr-par/../11111111-2222-3333-4444-555555555555",
        "scw-kms://FR-PAR/11111111-2222-3333-4444-555555555555",
        "scw-kms://fr-par:443/11111111-2222-3333-4444-555555555555",
        "scw-kms://api.evil.example/11111111-2222-3333-4444-555555555555",
        "scw-kms://fr-par/11111111-2222-3333-4444-55555555555A",
        "scw-kms://fr-par/1111111122223333444455555555555511111",
        f"{URI}?region=fr-par",
        f"{URI}?endpoint=https://kms.example.fr?x=1",
        f"{URI}?endpoint=ftp://kms.example.fr",
        f"{URI}?endpoint=http://kms.example.fr",
        f"{URI}?endpoint=https://one.example&endpoint=https://two.example",
        f"{URI}#fragment",
    ],
)
def test_another_uri_is_refused(uri):
    with pytest.raises(ConfigError):
        opened(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "scw-kms://user:canary-4711@fr-par/11111111-2222-3333-4444-555555555555",
        f"{URI}?token=canary-4711",
        f"{URI}?canary-4711=x",
        f"{URI}#canary-4711",
        f"{URI}?endpoint=https://user:canary-4711@kms.example.fr",
        f"{URI}?endpoint=https%3A%2F%2Fuser%3Acanary-4711%40kms.example.fr",
        "scw-kms://fr-par/x?endpoint=https%3A%2F%2Fkms.example.fr%2Fcanary-4711",
    ],
)
def test_what_may_be_a_secret_is_not_quoted(uri):
    with pytest.raises(ConfigError) as caught:
        opened(uri)
    assert "canary-4711" not in f"{caught.value} {caught.value.path}"


def test_a_token_is_needed(monkeypatch):
    monkeypatch.delenv("SCW_SECRET_KEY")
    with pytest.raises(ConfigError, match="no token for Scaleway Key Manager"):
        opened()


@pytest.mark.parametrize("token", ["canary-4711-é", "canary\n4711", " "])
def test_a_token_that_no_header_takes_is_refused_unquoted(monkeypatch, token):
    monkeypatch.setenv("SCW_SECRET_KEY", token)
    with pytest.raises(ConfigError) as caught:
        opened()
    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_setting_goes_before_the_variable(monkeypatch):
    with pytest.raises(ConfigError, match="env:NOT_THERE"):
        opened(token="env:NOT_THERE")


def test_a_file_of_authorities_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        opened(ca_file=str(tmp_path / "none.pem"))


@pytest.mark.parametrize("size", [0, 1, 33, 75, 256, 384, 512, 4096])
def test_what_aes_gcm_cannot_have_made_is_refused_unsent(size):
    # 256, 384 and 512 bytes are what RSA gives: with it, anyone could make a keyset.
    with pytest.raises(UnwrapError):
        opened().unwrap(bytes(size), CONTEXT)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_another_length_of_context_is_refused_unsent(size):
    with pytest.raises(UnwrapError):
        opened().unwrap(bytes(97), bytes(size))


def test_without_httpcore_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpcore", None)
    with pytest.raises(MissingDependencyError) as caught:
        opened()
    assert caught.value.hint == "pip install 'sovstore[scaleway]'"

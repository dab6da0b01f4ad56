"""`sovstore.kms.openbao` before there is a server: URIs, settings, the form of what it wraps."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest

from sovstore.errors import ConfigError, KMSUnavailableError, MissingDependencyError, UnwrapError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers.clients import ClientAuthority

CONTEXT = bytes(range(32))
URI = "openbao://bao.example.fr:8200/transit/kek"


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("BAO_TOKEN", "canary-token")


def _open(uri=URI, **settings):
    return registry.open_key(uri, Access(services=(Service(uri=uri, **settings),)))


@pytest.mark.parametrize(
    ("uri", "url", "place"),
    [
        (URI, "https://bao.example.fr:8200", ("transit", "kek")),
        ("vault://bao.example.fr/transit/kek", "https://bao.example.fr:8200", ("transit", "kek")),
        ("openbao://bao.example.fr:443/team/a/transit/kek", "https://bao.example.fr:443", ("team/a/transit", "kek")),
        ("openbao://[2001:db8::1]:8200/transit/kek", "https://[2001:db8::1]:8200", ("transit", "kek")),
        ("openbao://[2001:db8::1]/transit/kek", "https://[2001:db8::1]:8200", ("transit", "kek")),
    ],
)
def test_a_uri_names_mount_and_key(uri, url, place):
    key = registry.open_key(uri, Access())
    assert (key._wire._url, (key._mount, key._key)) == (url, place)
    assert key.uri == uri
    assert key.provider == uri.partition(":")[0]
    assert repr(key) == f"<{type(key).__name__} {uri}>"


@pytest.mark.parametrize(
    "uri",
    [
        "openbao:transit/kek",
        "openbao:///transit/kek",
        "openbao://bao.example.fr:8200/kek",
        "openbao://bao.example.fr:8200/transit/",
        "openbao://bao.example.fr:8200//transit/kek",
        "openbao://bao.example.fr:8200/transit/../kek",
        "openbao://bao.example.fr:8200/transit/k%2fek",
        "openbao://bao.example.fr:port/transit/kek",
        "openbao://canary-token@bao.example.fr:8200/transit/kek",
        URI + "#canary-token",
        URI + "?token=canary-token",
        URI + "?canary-token",
        URI + "?namespace=a&namespace=b",
        URI + "?namespace=",
        URI + "?namespace=canary-token//b",
        URI + "?namespace=../canary-token",
        URI + "?namespace=canary-token%0d%0aX-Other:b",
        URI + "?dialect=canary-token",
    ],
)
def test_another_uri_is_refused_without_a_secret_in_it(uri):
    with pytest.raises(ConfigError) as caught:
        registry.open_key(uri, Access())
    assert "canary-token" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"auth": "kerberos"}, "'auth' is of no known kind"),
        ({"auth": "approle", "role_id": "r"}, "'secret_id' is missing"),
        ({"auth": "approle", "secret_id": "env:BAO_TOKEN"}, "'role_id' is missing"),
        ({"auth": "cert"}, "'cert_file' is missing"),
        ({"auth": "jwt", "jwt": "env:BAO_TOKEN"}, "'role' is missing"),
        ({"auth": "jwt", "role": "r"}, "'jwt' is missing"),
        ({"auth": "jwt", "role": "r", "jwt": "env:NOT_SET"}, "env:NOT_SET: the variable is not set"),
        ({"auth": "approle", "role_id": "r", "secret_id": "file:/nowhere"}, "file:/nowhere: the file cannot be read"),
        ({"auth_mount": "../sys"}, "'auth_mount' is not the path"),
        ({"auth_mount": "a//b"}, "'auth_mount' is not the path"),
        ({"token": "env:NOT_SET"}, "env:NOT_SET: the variable is not set"),
        ({"plain_http": True}, "would be asked without TLS"),
        ({"ca_file": "/nowhere"}, "/nowhere cannot be used for TLS"),
        ({"cert_file": "/nowhere", "key_file": "/nowhere"}, "/nowhere cannot be used for TLS"),
    ],
)
def test_a_setting_that_is_missing_or_wrong(settings, match):
    with pytest.raises(ConfigError, match=match) as caught:
        _open(**settings)
    assert caught.value.hint


def test_a_login_by_certificate_needs_tls(tmp_path):
    file = str(ClientAuthority(tmp_path).issue("pipeline"))
    uri = "openbao://127.0.0.1:8200/transit/kek"
    with pytest.raises(ConfigError, match="by certificate needs TLS"):
        _open(uri, auth="cert", cert_file=file, key_file=file, plain_http=True)


def test_no_token_at_all(monkeypatch):
    monkeypatch.delenv("BAO_TOKEN")
    with pytest.raises(ConfigError, match="no token to show") as caught:
        _open()
    assert "export BAO_TOKEN" in caught.value.hint


@pytest.mark.parametrize("token", ["canary-\u00e9", "canary\nX-Other: b", " "])
def test_a_token_that_fits_no_header_is_refused_unseen(monkeypatch, token):
    monkeypatch.setenv("BAO_TOKEN", token)
    with pytest.raises(ConfigError) as caught:
        _open()
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_variable_of_openbao_comes_first(monkeypatch):
    monkeypatch.setenv("VAULT_TOKEN", "another")
    assert _open()._login._held.token.reveal() == b"canary-token"


def test_nothing_of_the_environment_leads_elsewhere(monkeypatch):
    """Variables that hvac's own client would follow."""
    for name, value in {
        "VAULT_ADDR": "https://evil.example",
        "BAO_ADDR": "https://evil.example",
        "VAULT_SKIP_VERIFY": "1",
        "VAULT_CACERT": "/nowhere",
        "VAULT_NAMESPACE": "other",
        "HTTPS_PROXY": "http://evil.example",
        "REQUESTS_CA_BUNDLE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    wire = _open()._wire
    assert wire._url == "https://bao.example.fr:8200"
    assert "X-Vault-Namespace" not in wire._headers
    assert wire._tls.check_hostname
    assert wire._opened().proxy is None


def test_clever_cloud_gives_tokens_only():
    with pytest.raises(ConfigError, match="gives tokens"):
        _open(f"{URI}?dialect=clever", auth="approle", role_id="r", secret_id="env:BAO_TOKEN")
    assert repr(_open(f"{URI}?dialect=clever")).endswith("?dialect=clever>")


@pytest.mark.parametrize("module", ["hvac", "urllib3"])
def test_what_is_not_installed_is_named(monkeypatch, module):
    for name in [name for name in sys.modules if name.startswith("sovstore.kms.openbao")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=f"{module} is not installed") as caught:
        _open()
    assert caught.value.hint == "pip install 'sovstore[openbao]'"


def test_the_driver_imports_its_sdk_when_a_key_is_opened():
    code = "import json, sys, sovstore.kms.openbao; print(json.dumps(sorted({'hvac', 'urllib3'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "a" * 250])
def test_a_host_that_cannot_be(host):
    key = _open(f"openbao://{host}:8200/transit/kek", timeout_s=0.1)
    with pytest.raises(KMSUnavailableError, match="cannot be reached"):
        key.unwrap(_text(92), CONTEXT)


def _text(size, version=b"1"):
    return b"vault:v" + version + b":" + base64.b64encode(bytes(size))


@pytest.mark.parametrize(
    "wrapped",
    [
        b"",
        b"vault:v1:",
        b"\xff" * 100,
        _text(75),
        _text(137),
        _text(256),
        _text(512),
        _text(92, b"0"),
        _text(92, b"01"),
        _text(92, b"-1"),
        _text(92, b"\xd9\xa1"),
        _text(92, b"1" * 10),
        _text(92).replace(b"vault", b"bao"),
        _text(92)[:-2] + b"B=",
        _text(92).rstrip(b"="),
        _text(92) + b"=",
        _text(92) + b"\n",
    ],
)
def test_what_is_no_wrap_is_refused_without_a_request(wrapped):
    """There is no server to ask: an attempt would end in another error."""
    with pytest.raises(UnwrapError):
        _open(timeout_s=0.1).unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize("size", [76, 92, 124, 136])
def test_the_form_of_a_wrap(size):
    key = _open()
    assert key._size(_text(size)) == size
    assert key._size(_text(size, b"123456789")) == size
    clever = _open(f"{URI}?dialect=clever")
    text = base64.urlsafe_b64encode(b"\xfb" * size)
    assert clever._size(b"vault:v1:" + text) == clever._size(b"vault:v1:" + text.rstrip(b"=")) == size
    assert clever._size(b"vault:v1:" + text.replace(b"-", b"+")) is None

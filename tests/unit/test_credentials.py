"""Credentials of hosts in the keyring of the operating system, on a real Secret Service."""

from __future__ import annotations

import keyring
import keyring.errors
import pytest

from sovstore import os_keyring
from sovstore.backends import credentials
from sovstore.errors import ConfigError, StoreError, StoreUnavailableError
from sovstore.secret import Secret

CANARY = "canary-9-credentials"
S3 = {"access_key_id": "AKIA9", "secret_access_key": CANARY}
URI = "keyring://sovstore-host-tests/unit"


def _secrets(values):
    return {name: Secret(value.encode()) for name, value in values.items()}


@pytest.fixture
def entry(os_keyring):
    """An entry that is gone after the test."""
    credentials.forget(URI)
    yield URI
    credentials.forget(URI)


def _refused(kind, message, function, *arguments):
    with pytest.raises(kind, match=message) as caught:
        function(*arguments)
    assert type(caught.value) is kind
    # A cause may quote what it was given, as JSON errors do.
    seen = caught.value
    while seen is not None:
        assert CANARY not in f"{seen}{vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    return caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        S3,
        {**S3, "session_token": "t"},
        {"connection_string": "AccountName=a;AccountKey=b=="},
        {"account_key": CANARY},
        {"sas_token": "sv=1&sig=2"},
    ],
)
def test_what_is_kept_is_fetched(entry, values):
    credentials.keep(entry, _secrets(values))
    found = credentials.fetch(entry)
    assert {name: secret.reveal().decode() for name, secret in found.items()} == values
    assert CANARY not in repr(found)


def test_keep_replaces(entry):
    credentials.keep(entry, _secrets({**S3, "session_token": "t"}))
    credentials.keep(entry, _secrets(S3))
    assert set(credentials.fetch(entry)) == set(S3)


def test_credentials_of_another_kind_of_host(entry):
    credentials.keep(entry, _secrets(S3))
    assert set(credentials.fetch(entry, "s3")) == set(S3)
    _refused(ConfigError, "of another kind of host", credentials.fetch, entry, "azure")


def test_forget(entry):
    assert not credentials.forget(entry)
    credentials.keep(entry, _secrets(S3))
    assert credentials.exists(entry)
    assert credentials.forget(entry)
    assert not credentials.exists(entry)
    assert credentials.look(entry) is None


def test_no_entry_names_the_command_that_makes_it(entry):
    assert "sovstore login STORE" in _refused(StoreError, "no such entry", credentials.fetch, entry)


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "{",
        f'["{CANARY}"]',
        f'"{CANARY}"',
        "{}",
        f'{{"secret_access_key": "{CANARY}"}}',
        f'{{"access_key_id": "{CANARY}", "secret_access_key": 3}}',
        f'{{"access_key_id": "{CANARY}", "secret_access_key": ""}}',
        f'{{"access_key_id": "{CANARY}", "secret_access_key": "a\\nb"}}',
        f'{{"account_key": "{CANARY}", "sas_token": "x"}}',
        f'{{"account_key": "{CANARY}", "other": "x"}}',
    ],
)
def test_an_entry_of_another_shape_is_refused_and_not_quoted(entry, text):
    keyring.set_password("sovstore-host-tests", "unit", text)
    assert "sovstore login" in _refused(ConfigError, "holds no credentials of a host", credentials.fetch, entry)
    assert credentials.exists(entry)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"access_key_id": CANARY},
        {"account_key": b"", "x": b""},
        {"account_key": b""},
        {"account_key": CANARY.encode() + b"\xff"},
        {"account_key": CANARY.encode() + b"\r\nx-ms-version: 1"},
    ],
)
def test_only_what_can_be_fetched_is_kept(entry, values):
    raw = {name: Secret(value if isinstance(value, bytes) else value.encode()) for name, value in values.items()}
    _refused(ConfigError, "no credentials of a host", credentials.keep, entry, raw)
    assert not credentials.exists(entry)


@pytest.mark.parametrize(
    "uri", ["keyring://s", "keyring:///n", "keyring://u@s/n", "keyring://[s/n", "keyring://s/n?q", "keyfile:/n", ""]
)
def test_uris(uri):
    assert "keyring://SERVICE/NAME" in _refused(ConfigError, "not a keyring URI", credentials.fetch, uri)


def test_without_a_keyring_the_hint_is_the_environment():
    hint = _refused(ConfigError, "no keyring of the operating system was found", credentials.fetch, URI)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING"):
        assert name in hint


class FailingKeyring:
    """A keyring that does not work; no subclass of keyring's own, which would offer it to every test."""

    error: Exception

    def get_password(self, *_arguments):
        raise self.error

    set_password = delete_password = get_password


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (keyring.errors.KeyringLocked("locked"), StoreError, "is locked"),
        (keyring.errors.InitError("no bus"), StoreUnavailableError, "did not answer"),
    ],
)
def test_a_keyring_that_does_not_work(monkeypatch, error, kind, message):
    backend = FailingKeyring()
    backend.error = error
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    for call in (credentials.fetch, credentials.forget, credentials.exists):
        _refused(kind, message, call, URI)
    _refused(kind, message, credentials.keep, URI, _secrets(S3))


def test_the_parts_of_a_uri():
    assert os_keyring.parse("keyring://sovstore-host/a%20b") == ("sovstore-host", "a b")

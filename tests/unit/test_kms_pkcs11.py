"""PKCS#11 key URIs (RFC 7512), and a fake of a token that makes its own IV."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovstore.errors import ConfigError, UnwrapError
from sovstore.kms import pkcs11 as driver
from sovstore.kms import registry
from sovstore.kms.pkcs11_uri import parse
from sovstore.kms.service import Errors
from sovstore.kms.settings import Service, service_of
from sovstore.secret import Secret


@pytest.mark.parametrize(
    ("uri", "label"),
    [
        ("pkcs11:token=t;object=o", "pkcs11:token=t;object=o"),
        ("pkcs11:object=o;token=t", "pkcs11:token=t;object=o"),
        ("pkcs11:token=t;object=o;type=secret-key", "pkcs11:token=t;object=o"),
        ("pkcs11:id=%01%ff;token=a%20b", "pkcs11:token=a%20b;id=%01%FF"),
        ("pkcs11:id=abc;serial=42", "pkcs11:serial=42;id=%61%62%63"),
        ("pkcs11:token=t;object=h%C3%B4pital", "pkcs11:token=t;object=h%C3%B4pital"),
        ("pkcs11:token=t;object=%6f", "pkcs11:token=t;object=o"),
        ("pkcs11:model=m;manufacturer=f;token=t;object=o", "pkcs11:token=t;manufacturer=f;model=m;object=o"),
        ("pkcs11:token=t;object=o?module-path=/m.so&pin-source=file:/p", "pkcs11:token=t;object=o"),
        ("pkcs11:token=a%3Bb;object=c%3Fd%2F", "pkcs11:token=a%3Bb;object=c%3Fd%2F"),
    ],
)
def test_one_spelling_for_what_a_host_sees(uri, label):
    assert registry.label(uri) == label
    assert registry.label(label) == label


def test_what_it_names():
    named = parse("pkcs11:token=h%C3%B4pital;id=%00%01?module-path=/usr/lib/m.so&pin-source=file:/run/pin")
    assert (named.token, named.id, named.object, named.serial) == ("hôpital", b"\0\1", None, None)
    assert (named.module, named.pin_file) == ("/usr/lib/m.so", "/run/pin")


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:",
        "pkcs11:token=t",
        "pkcs11:object=o",
        "pkcs11:token=;object=o",
        "pkcs11:token=t;object=o;object=o",
        "pkcs11:token=t;object=o;type=private",
        "pkcs11:token=t;object=o;slot-id=1",
        "pkcs11:token=t;object=o;library-description=l",
        "pkcs11:token=t;object=o;pin-value=canary",
        "pkcs11:token=t;object=o?pin-value=canary",
        "pkcs11:token=t;object=o?pin-source=canary",
        "pkcs11:token=t;object=o?pin-source=http://canary/",
        "pkcs11:token=t;object=o?pin-source=file:canary",
        "pkcs11:token=t;object=o?canary=1",
        "pkcs11:token=t;object=o?",
        "pkcs11:token=t;object=o#canary",
        "pkcs11:token=t;object=canary%",
        "pkcs11:token=t;object=canary%4",
        "pkcs11:token=t;object=canary%zz",
        "pkcs11:token=t;object=canary%FF",
        "pkcs11:token=t;object=canary%00",
        "pkcs11:token=t;object=canary%0A",
        "pkcs11:token=t;object=canary with blanks",
        "pkcs11:token=t;object=canarý",
        "pkcs11:token=t;;object=canary",
        "pkcs11:token=%20;object=canary",
        "pkcs11:token",
    ],
)
def test_what_is_refused_is_not_quoted(uri):
    with pytest.raises(ConfigError) as caught:
        parse(uri)
    assert "canary" not in str(caught.value)
    assert caught.value.hint


def test_a_service_is_found_by_its_token():
    service = Service(name="hsm", uri="pkcs11:token=hospital")
    assert service_of("pkcs11:token=hospital;object=o", [service]) is service
    assert service_of("pkcs11:token=hospital2;object=o", [service]) is not service


class LunaInFIPSMode:
    """A fake of a key in a Thales Luna in FIPS mode, from its documentation of CKM_AES_GCM.

    It ignores the caller's IV when it encrypts, makes one of 16 bytes and appends it; for decryption it wants that one.
    """

    def __init__(self) -> None:
        self._aead = AESGCM(os.urandom(32))

    def encrypt(self, data: bytes, *, mechanism: Any, mechanism_param: Any) -> bytes:
        iv = os.urandom(16)
        return self._aead.encrypt(iv, data, mechanism_param.aad) + iv

    def decrypt(self, data: bytes, *, mechanism: Any, mechanism_param: Any) -> bytes:
        import pkcs11

        try:
            return self._aead.decrypt(mechanism_param.nonce, data, mechanism_param.aad)
        except InvalidTag:
            raise pkcs11.EncryptedDataInvalid from None


def test_a_token_that_makes_its_own_iv(monkeypatch):
    named = parse("pkcs11:token=luna;object=kek")
    key = driver.PKCS11Key(named, Service(), "/nowhere.so", Secret(b"pin"))
    luna = LunaInFIPSMode()

    def ask(work: Any, *, decrypting: bool = False) -> Any:
        try:
            return work(luna)
        except RuntimeError as exc:
            raise key._mapped(exc, decrypting=decrypting) from exc

    monkeypatch.setattr(key, "_ask", ask)
    wrapped = key.wrap(b"s" * 32, b"c" * 32)
    assert (wrapped[0], len(wrapped)) == (3, 1 + 64 + 16 + 16)
    assert key.unwrap(wrapped, b"c" * 32) == b"s" * 32
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        with pytest.raises(UnwrapError):
            key.unwrap(bytes(changed), b"c" * 32)


def test_what_a_token_answers_is_one_of_the_closed_list():
    import pkcs11

    key = driver.PKCS11Key(parse("pkcs11:token=t;object=o"), Service(), "/m.so", Secret(b"pin"))
    assert isinstance(key._errors, Errors)
    kinds = {
        cls.__name__: type(key._mapped(cls(), decrypting=False)).__name__
        for cls in vars(pkcs11.exceptions).values()
        if isinstance(cls, type) and issubclass(cls, pkcs11.PKCS11Error)
    }
    assert set(kinds.values()) <= {"KeyDeniedError", "KMSUnavailableError", "ConfigError", "KMSError"}
    assert kinds["PinIncorrect"] == kinds["PinLocked"] == "KeyDeniedError"
    assert kinds["TokenNotPresent"] == "KMSUnavailableError"
    assert kinds["DeviceError"] == "KMSError"
    assert type(key._mapped(pkcs11.GeneralError(), decrypting=True)) is UnwrapError

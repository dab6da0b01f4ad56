"""The PKCS#11 driver without a token: its URIs, its forms, what it says when something is missing."""

import os
import subprocess
import sys

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from sovstore.errors import ConfigError, KeyDeniedError, KMSError, UnwrapError
from sovstore.kms import pkcs11 as driver
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.pkcs11_token import Found
from sovstore.kms.pkcs11_uri import KeyName, parse
from sovstore.kms.settings import Service
from sovstore.secret import Secret

pkcs11 = pytest.importorskip("pkcs11")

SECRET, CONTEXT, OTHER = b"secret of the tests, of 32 bytes", bytes(range(32)), bytes(32)
URI = "pkcs11:token=t;object=k"


@pytest.mark.parametrize(
    ("uri", "canonical", "module", "pin_file"),
    [
        (URI, URI, None, None),
        ("pkcs11:object=k;token=t", URI, None, None),
        ("pkcs11:object=k;type=secret-key;token=t", URI, None, None),
        ("pkcs11:%74oken=t;object=k", None, None, None),
        ("pkcs11:token=%74;object=%6b", URI, None, None),
        ("pkcs11:token=My%20token;object=k%C3%A9", "pkcs11:token=My%20token;object=k%C3%A9", None, None),
        ("pkcs11:token=t;object=a:b@c,d=e&f", "pkcs11:token=t;object=a:b@c,d=e&f", None, None),
        ("pkcs11:token=t;object=a%3Bb%2Fc%3Fd%25", "pkcs11:token=t;object=a%3Bb%2Fc%3Fd%25", None, None),
        ("pkcs11:token=t;id=%01a%fF", "pkcs11:token=t;id=%01%61%FF", None, None),
        ("pkcs11:id=%00;serial=s", "pkcs11:serial=s;id=%00", None, None),
        (
            "pkcs11:id=%01;object=k;model=m;manufacturer=f;serial=s;token=t",
            "pkcs11:token=t;serial=s;manufacturer=f;model=m;object=k;id=%01",
            None,
            None,
        ),
        (f"{URI}?module-path=/usr/lib/a%20b.so", URI, "/usr/lib/a b.so", None),
        (f"{URI}?pin-source=file:/etc/pin&module-path=/a.so", URI, "/a.so", "/etc/pin"),
        (f"{URI}?pin-source=file:///etc/pin", URI, None, "/etc/pin"),
        (f"{URI}?pin-source=file%3A%2Fetc%2Fpin", URI, None, "/etc/pin"),
    ],
)
def test_uris(uri, canonical, module, pin_file):
    if canonical is None:
        with pytest.raises(ConfigError):
            parse(uri)
        return
    parsed = parse(uri)
    assert (parsed.key.uri, parsed.module, parsed.pin_file) == (canonical, module, pin_file)
    assert parse(canonical).key == parsed.key


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("pkcs11:", "not known"),
        ("pkcs11:token=t", "no key"),
        ("pkcs11:object=k", "no token"),
        ("pkcs11:model=m;manufacturer=f;object=k", "no token"),
        ("pkcs11:token=t;object=", "empty"),
        ("pkcs11:token=t;object", "empty"),
        ("pkcs11:token=;object=k", "empty"),
        ("pkcs11:token=t;object=k;", "not known"),
        ("pkcs11:token=t;;object=k", "not known"),
        ("pkcs11:token=t;object=k;object=k", "twice"),
        ("pkcs11:token=t;object=a b", "escaped"),
        ("pkcs11:token=t;object=a\n", "escaped"),
        ("pkcs11:token=t;object=é", "escaped"),
        ("pkcs11:token=t;object=a#b", "escaped"),
        ("pkcs11:token=t;object=a/b", "escaped"),
        ("pkcs11:token=t;object=%", "escaped"),
        ("pkcs11:token=t;object=%4", "escaped"),
        ("pkcs11:token=t;object=%zz", "escaped"),
        ("pkcs11:token=t;object=%ff", "not UTF-8"),
        ("pkcs11:token=t;object=a%00", "U+0000"),
        ("pkcs11:token=t;object=k;type=private", "secret-key"),
        ("pkcs11:token=t;object=k;type=public", "secret-key"),
        ("pkcs11:token=t;object=k;slot-id=1", "not known"),
        ("pkcs11:TOKEN=t;object=k", "not known"),
        ("pkcs11:token=t;object=k?", "not known"),
        ("pkcs11:token=t;object=k?module-path=lib.so", "absolute"),
        ("pkcs11:token=t;object=k?module-path=", "empty"),
        ("pkcs11:token=t;object=k?module-name=softhsm", "not known"),
        ("pkcs11:token=t;object=k?module-path=/a&module-path=/b", "twice"),
        ("pkcs11:token=t;object=k?pin-source=/etc/pin", "pin-source"),
        ("pkcs11:token=t;object=k?pin-source=file:pin", "pin-source"),
        ("pkcs11:token=t;object=k?pin-source=file://host/pin", "pin-source"),
        ("pkcs11:token=t;object=k?pin-source=|/bin/pin", "pin-source"),
        ("pkcs11:token=t;object=k?pin-value=canary-4711", "PIN"),
        ("pkcs11:token=t;object=k;pin-value=canary-4711", "PIN"),
        ("pkcs11:token=t;object=k;pin-source=file:/canary-4711", "PIN"),
        ("pkcs11:token=t;object=k;canary-4711", "not known"),
        ("pkcs11:token=t;object=k?canary-4711=1", "not known"),
    ],
)
def test_uris_that_are_refused(uri, why):
    with pytest.raises(ConfigError, match="not a pkcs11: URI") as caught:
        registry.open_key(uri, Access())
    assert why in str(caught.value)
    assert "canary" not in f"{caught.value!r}{caught.value}{vars(caught.value)}{caught.value.__cause__!r}"


_TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.builds(KeyName, _TEXTS, _TEXTS, _TEXTS, _TEXTS, _TEXTS, st.none() | st.binary(min_size=1)))
def test_a_canonical_uri_names_the_same_key(name):
    if (name.token or name.serial) and (name.object or name.id):
        assert parse(name.uri).key == name
        assert parse(name.uri).key.uri == name.uri


def test_a_missing_package_says_how_to_install_it():
    code = f"""
import sys
sys.modules["pkcs11"] = None
from sovstore.errors import MissingDependencyError
from sovstore.kms import registry
from sovstore.kms.base import Access
try:
    registry.open_key({URI!r}, Access())
except MissingDependencyError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("hint: pip install 'sovstore[pkcs11]'")


def test_the_driver_is_imported_without_its_package():
    code = "import sys, sovstore.kms.pkcs11; print('pkcs11' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class FakeKey:
    """A fake of a key as python-pkcs11 gives it: strict about every parameter, and really AES-GCM.

    `own_iv`: as Thales documents Luna 7 in FIPS mode. It makes an IV of 16 bytes and appends it to the ciphertext;
    the caller's is ignored, or refused where `refuses_iv`. To decrypt, it wants that IV as a parameter, and the
    ciphertext without it. `takes_aad`: otherwise any AAD is refused.
    """

    def __init__(self, *, own_iv=False, refuses_iv=False, takes_aad=True):
        self.own_iv, self.refuses_iv, self.takes_aad = own_iv, refuses_iv, takes_aad
        self._key = AESGCM(os.urandom(32))

    def __getitem__(self, attribute):
        return {pkcs11.Attribute.LABEL: "k"}[attribute]

    def _check(self, mechanism, params):
        assert mechanism is pkcs11.Mechanism.AES_GCM
        assert type(params) is pkcs11.GCMParams
        assert params.tag_bits == 128
        if params.aad is not None and not self.takes_aad:
            raise pkcs11.MechanismParamInvalid

    def encrypt(self, data, *, mechanism, mechanism_param):
        self._check(mechanism, mechanism_param)
        assert 48 <= len(data) <= 96
        if not self.own_iv:
            if len(mechanism_param.nonce) != 12:
                raise pkcs11.MechanismParamInvalid
            return self._key.encrypt(mechanism_param.nonce, data, mechanism_param.aad)
        if self.refuses_iv and mechanism_param.nonce:
            raise pkcs11.ArgumentsBad
        iv = os.urandom(16)
        return self._key.encrypt(iv, data, mechanism_param.aad) + iv

    def decrypt(self, data, *, mechanism, mechanism_param):
        self._check(mechanism, mechanism_param)
        if len(mechanism_param.nonce) not in ((12, 16) if self.own_iv else (12,)):
            raise pkcs11.MechanismParamInvalid
        try:
            return self._key.decrypt(mechanism_param.nonce, data, mechanism_param.aad)
        except InvalidTag:
            raise pkcs11.EncryptedDataInvalid from None


def _key(fake, monkeypatch, *, decrypts=True):
    key = driver.PKCS11Key(parse(URI), Service(), "/absent.so", Secret(b"1234"))
    found = Found(fake, login=None, token=None, encrypts=True, decrypts=decrypts)
    monkeypatch.setattr(key._key, "use", lambda work: work(found))
    return key


@pytest.mark.parametrize(
    ("fake", "mark", "overhead"),
    [
        ({}, 1, 1 + 12 + 16),
        ({"own_iv": True}, 2, 1 + 16 + 16),
        ({"own_iv": True, "refuses_iv": True}, 2, 1 + 16 + 16),
        ({"takes_aad": False}, 3, 1 + 12 + 16),
        ({"own_iv": True, "takes_aad": False}, 4, 1 + 16 + 16),
        ({"own_iv": True, "takes_aad": False, "refuses_iv": True}, 4, 1 + 16 + 16),
    ],
)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_forms(fake, mark, overhead, size, monkeypatch):
    key = _key(FakeKey(**fake), monkeypatch)
    secret = os.urandom(size)
    wrapped = key.wrap(secret, CONTEXT)
    assert (wrapped[0], len(wrapped)) == (mark, size + 32 + overhead)
    assert key.unwrap(wrapped, CONTEXT) == secret
    bad = [wrapped[:-1], wrapped + b"\0", wrapped[1:], b"", *(bytes([other]) + wrapped[1:] for other in range(6))]
    bad += [wrapped[:i] + bytes([wrapped[i] ^ 1]) + wrapped[i + 1 :] for i in range(len(wrapped))]
    for changed in bad:
        if changed != wrapped:
            with pytest.raises(UnwrapError):
                key.unwrap(changed, CONTEXT)
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, OTHER)


class _ZeroIV(FakeKey):
    """A fake of a token that takes no IV for one of no bytes: the same for every wrap, which breaks AES-GCM."""

    def encrypt(self, data, *, mechanism, mechanism_param):
        if mechanism_param.nonce:
            raise pkcs11.MechanismParamInvalid
        return self._key.encrypt(bytes(12), data, mechanism_param.aad)


class _ForgetfulIV(FakeKey):
    """A fake of a token that writes its own IV where the caller's was."""

    def encrypt(self, data, *, mechanism, mechanism_param):
        mechanism_param.nonce = os.urandom(12)
        return super().encrypt(data, mechanism=mechanism, mechanism_param=mechanism_param)


class _Short(FakeKey):
    """A fake of a token whose tags are shorter than asked for."""

    def encrypt(self, data, *, mechanism, mechanism_param):
        return super().encrypt(data, mechanism=mechanism, mechanism_param=mechanism_param)[:-4]


@pytest.mark.parametrize("fake", [_ZeroIV, _Short])
def test_a_token_that_encrypts_in_a_way_that_is_not_known(fake, monkeypatch):
    for decrypts in (True, False):
        with pytest.raises(KMSError, match="in any way") as caught:
            _key(fake(), monkeypatch, decrypts=decrypts).wrap(SECRET, CONTEXT)
        assert not caught.value.retryable


def test_the_iv_is_the_one_that_was_used(monkeypatch):
    key = _key(_ForgetfulIV(), monkeypatch)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


@pytest.mark.parametrize(
    ("error", "expected", "retryable"),
    [
        (pkcs11.PinLocked, KeyDeniedError, False),
        (pkcs11.PinExpired, KeyDeniedError, False),
        (pkcs11.UserPinNotInitialized, KeyDeniedError, False),
        (pkcs11.AnotherUserAlreadyLoggedIn, KeyDeniedError, False),
        (pkcs11.MechanismInvalid, KMSError, False),
        (pkcs11.FunctionNotSupported, KMSError, False),
        (pkcs11.DeviceError, KMSError, True),
        (pkcs11.DeviceRemoved, KMSError, True),
        (pkcs11.TokenNotPresent, KMSError, True),
        (pkcs11.GeneralError, KMSError, True),
        (pkcs11.SessionCount, KMSError, True),
        (pkcs11.HostMemory, KMSError, True),
        (pkcs11.PKCS11Error, KMSError, False),
    ],
)
def test_errors(error, expected, retryable, monkeypatch):
    key = _key(FakeKey(), monkeypatch)

    def use(_work):
        raise error("canary of the library")

    monkeypatch.setattr(key._key, "use", use)
    with pytest.raises(expected) as caught:
        key.wrap(SECRET, CONTEXT)
    assert caught.value.retryable is retryable
    assert caught.value.hint
    assert caught.value.provider == "pkcs11"
    assert "canary" not in str(caught.value)

"""A KEK in a PKCS#11 token: what is refused, and what happens when the token does not do as it should."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSUnavailableError,
    MissingDependencyError,
    NoMatchingKeyError,
    UnwrapError,
)
from sovstore.kms import pkcs11 as driver
from sovstore.kms import pkcs11_module
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers.softhsm import SoftHSMToken

SECRET, CONTEXT = b"canary-secret-in-an-hsm-12345678", bytes(range(32))


@pytest.fixture
def token(softhsm_token: SoftHSMToken, monkeypatch: pytest.MonkeyPatch) -> SoftHSMToken:
    for name, value in softhsm_token.environment.items():
        monkeypatch.setenv(name, value)
    return softhsm_token


_made: set[str] = set()


@pytest.fixture
def kek(token: SoftHSMToken) -> str:
    """The label of a good key."""
    if "good" not in _made:
        token.make_key("good", key_id="c0ffee")
        _made.add("good")
    return "good"


def opened(token: SoftHSMToken, name: str = "object=good", *, pin: str | None = None, **settings: Any) -> Any:
    settings = {"module": token.module, **settings}
    service = Service(name="hsm", uri=f"pkcs11:token={token.label}", **settings)
    access = Access(passphrase=lambda _prompt: pin or token.pin, services=(service,))
    return driver.open_key(f"pkcs11:token={token.label};{name}", access)


# The key


def test_the_token_itself_binds_the_context(token, kek):
    key = opened(token)
    wrapped = key.wrap(SECRET, CONTEXT)
    assert (wrapped[0], len(wrapped)) == (1, 1 + 12 + 64 + 16)
    with pytest.raises(UnwrapError):
        key._decrypt(wrapped, bytes(32))
    # And the other form, of a token that takes no AAD, is bound by what is inside.
    key._takes_aad = False
    bare = key.wrap(SECRET, CONTEXT)
    assert bare[0] == 2
    assert key.unwrap(bare, CONTEXT) == SECRET
    with pytest.raises(UnwrapError):
        key.unwrap(bare, bytes(32))
    for form in (0, 2, 3, 4, 5, 255):
        with pytest.raises(UnwrapError):
            key.unwrap(bytes([form]) + wrapped[1:], CONTEXT)


def test_a_token_that_takes_no_aad(token, kek, monkeypatch):
    import pkcs11

    real = driver._gcm

    def gcm(iv: bytes, aad: bytes | None) -> Any:
        if aad is not None:
            raise pkcs11.MechanismParamInvalid
        return real(iv, aad)

    monkeypatch.setattr(driver, "_gcm", gcm)
    key = opened(token)
    wrapped = key.wrap(SECRET, CONTEXT)
    assert wrapped[0] == 2
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_a_key_is_found_by_its_id(token, kek):
    by_id, by_both = opened(token, "id=%c0%ff%ee"), opened(token, "id=%C0%FF%EE;object=good")
    assert by_id.uri == f"pkcs11:token={token.label};id=%C0%FF%EE"
    assert by_both.unwrap(by_id.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    with pytest.raises(NoMatchingKeyError):
        opened(token, "id=%c0;object=good").wrap(SECRET, CONTEXT)


def test_what_it_is(token, kek):
    described = opened(token).describe()
    assert described["algorithm"] == "AES-256"
    assert described["protection_level"] in ("software", "hsm")


def test_a_token_in_software_is_no_hsm(token, kek, monkeypatch):
    monkeypatch.setattr(driver.PKCS11Key, "_level", lambda *_: {"protection_level": "software"})
    with pytest.raises(ConfigError, match="the token is in software"):
        opened(token, protection_level="hsm").wrap(SECRET, CONTEXT)


@pytest.mark.parametrize(
    ("label", "made", "why"),
    [
        ("not-sensitive", {"SENSITIVE": False}, "CKA_SENSITIVE is not true"),
        ("extractable", {"EXTRACTABLE": True}, "CKA_NEVER_EXTRACTABLE is not true"),
        ("imported", {"value": "42" * 32}, "CKA_ALWAYS_SENSITIVE is not true"),
        ("no-decrypt", {"DECRYPT": False}, "CKA_ENCRYPT and CKA_DECRYPT are not both true"),
        ("no-encrypt", {"ENCRYPT": False}, "CKA_ENCRYPT and CKA_DECRYPT are not both true"),
        ("des", {"kind": "DES3", "bits": 192}, "it is not an AES key"),
        ("generic", {"kind": "GENERIC_SECRET", "bits": 256}, "it is not an AES key"),
    ],
)
def test_a_key_that_must_not_be_a_kek(token, label, made, why):
    token.make_key(label, **made)
    key = opened(token, f"object={label}")
    for use in (lambda: key.wrap(SECRET, CONTEXT), lambda: key.unwrap(b"\1" + bytes(92), CONTEXT), key.describe):
        with pytest.raises(ConfigError, match=f"must not be a KEK: {re.escape(why)}"):
            use()


def test_a_pair_of_keys_is_no_kek(token):
    token.make_key("rsa", kind="RSA", bits=2048)
    with pytest.raises(NoMatchingKeyError):
        opened(token, "object=rsa").wrap(SECRET, CONTEXT)


def test_a_key_that_wraps_other_keys_is_warned_of(token, caplog):
    token.make_key("wrapping", WRAP=True)
    assert opened(token, "object=wrapping").wrap(SECRET, CONTEXT)
    assert "may wrap other keys" in caplog.text


def test_missing_and_ambiguous(token, kek):
    with pytest.raises(NoMatchingKeyError, match="no such key") as caught:
        opened(token, "object=nowhere").wrap(SECRET, CONTEXT)
    assert "pkcs11-tool" in caught.value.hint
    for _ in range(2):
        token.make_key("twice")
    with pytest.raises(ConfigError, match="more than one of the keys"):
        opened(token, "object=twice").wrap(SECRET, CONTEXT)


# The PIN


def test_a_wrong_pin_reaches_the_token_once(token, kek):
    other = token.add_token("lockable")
    other.make_key("good")
    # Another process, whose login is its own: a login holds for all sessions of a process.
    code = f"""
import logging
from sovstore.errors import KeyDeniedError
from sovstore.kms import pkcs11_module
from sovstore.kms.base import Access
from sovstore.kms.pkcs11 import open_key
import pkcs11
service = __import__("sovstore.kms.settings").kms.settings.Service(uri="pkcs11:token=lockable", module={other.module!r})
tries = []
def asked(prompt):
    return "canary-wrong-pin"
key = open_key("pkcs11:token=lockable;object=good", Access(passphrase=asked, services=(service,)))
logins = []
real = key._open_session
def counting(library):
    logins.append(1)
    return real(library)
key._open_session = counting
for use in (key.describe, lambda: key.wrap(bytes(32), bytes(32)), lambda: key.unwrap(b"\\1" + bytes(92), bytes(32))):
    try:
        use()
    except KeyDeniedError as exc:
        assert "canary" not in str(exc) + repr(exc) and "does not accept the PIN" in str(exc), exc
    else:
        raise AssertionError("not refused")
print(len(logins))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "1"), ran.stderr


def test_a_locked_pin(token, kek, monkeypatch):
    import pkcs11

    key = opened(token)
    monkeypatch.setattr(key, "_open_session", lambda _library: (_ for _ in ()).throw(pkcs11.PinLocked()))
    with pytest.raises(KeyDeniedError, match="has locked its PIN"):
        key.describe()
    with pytest.raises(KeyDeniedError):
        key.describe()


@pytest.mark.parametrize("passphrase", [None, lambda _prompt: ""])
def test_no_pin(token, kek, passphrase):
    service = Service(uri=f"pkcs11:token={token.label}", module=token.module)
    with pytest.raises(ConfigError, match="no PIN"):
        driver.open_key(f"pkcs11:token={token.label};object=good", Access(passphrase, (service,)))


def test_the_pin_in_a_file_that_the_uri_names(token, kek, tmp_path):
    (tmp_path / "pin").write_text(token.pin)
    uri = f"pkcs11:token={token.label};object=good?module-path={token.module}&pin-source=file:{tmp_path / 'pin'}"
    key = driver.open_key(uri, Access())
    assert key.uri == f"pkcs11:token={token.label};object=good" == driver.label(uri)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


# The token


def test_a_token_that_is_not_there(token, kek):
    service = Service(uri="pkcs11:token=nowhere", module=token.module)
    key = driver.open_key("pkcs11:token=nowhere;object=good", Access(lambda _p: token.pin, (service,)))
    with pytest.raises(KMSUnavailableError, match="is not there") as caught:
        key.describe()
    assert "client" in caught.value.hint


@pytest.mark.parametrize("name", ["SessionHandleInvalid", "DeviceRemoved", "UserNotLoggedIn", "SessionClosed"])
def test_a_lost_session_is_opened_again_once(token, kek, monkeypatch, name):
    import pkcs11

    key = opened(token)
    wrapped = key.wrap(SECRET, CONTEXT)
    losses = [getattr(pkcs11, name)()]
    real = key._opened

    def losing(library: Any) -> Any:
        found = real(library)
        if losses:
            raise losses.pop()
        return found

    monkeypatch.setattr(key, "_opened", losing)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    losses += [getattr(pkcs11, name)(), getattr(pkcs11, name)()]
    with pytest.raises(KMSUnavailableError, match="is not there"):
        key.unwrap(wrapped, CONTEXT)


def test_a_token_that_was_taken_away(token, kek):
    # In a process of its own: SoftHSM would not take it back within one.
    code = f"""
from sovstore.errors import KMSError
from sovstore.kms.base import Access
from sovstore.kms.pkcs11 import open_key
from sovstore.kms.settings import Service
service = Service(uri="pkcs11:token={token.label}", module={token.module!r}, timeout_s=5)
key = open_key("pkcs11:token={token.label};object=good", Access(lambda _p: {token.pin!r}, (service,)))
key.wrap(bytes(32), bytes(32))
print("open", flush=True)
input()
try:
    key.close()
    key.wrap(bytes(32), bytes(32))
except KMSError as exc:
    print(type(exc).__name__, exc.hint is not None)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "open\n"
        with token.removed():
            said, _ = child.communicate("\n", timeout=30)
    assert child.returncode == 0
    kind, hint = said.split()
    assert (kind in ("KMSUnavailableError", "NoMatchingKeyError", "KMSError", "KeyDeniedError"), hint) == (True, "True")


def test_a_token_that_hangs(token, kek, monkeypatch):
    key = opened(token, timeout_s=0.2)
    wrapped = key.wrap(SECRET, CONTEXT)
    release = threading.Event()
    real = key._opened
    monkeypatch.setattr(key, "_opened", lambda library: release.wait(20) and real(library))
    began = time.monotonic()
    with pytest.raises(KMSUnavailableError, match=r"did not answer within 0\.2 s"):
        key.unwrap(wrapped, CONTEXT)
    assert time.monotonic() - began < 5
    release.set()
    monkeypatch.undo()
    for name, value in token.environment.items():
        monkeypatch.setenv(name, value)
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_a_module_that_cannot_be_loaded(token, tmp_path):
    for path in (tmp_path / "missing.so", tmp_path / "text.so"):
        if path.name == "text.so":
            path.write_text("no library")
        with pytest.raises(ConfigError, match=r"\.so cannot be loaded"):
            opened(token, module=str(path)).describe()
    with pytest.raises(ConfigError, match="no module"):
        opened(token, module=None)
    with pytest.raises(ConfigError, match="no module"):
        opened(token, module="relative.so")


def test_without_the_package_it_says_how_to_install_it(token, monkeypatch):
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(MissingDependencyError) as caught:
        opened(token)
    assert caught.value.hint == "pip install 'sovstore[pkcs11]'"


# The page


def test_the_commands_of_the_page_make_a_kek(token, tmp_path):
    page = (Path(__file__).parents[2] / "docs/kms/pkcs11.md").read_text()
    block = re.search(r"^```console\n(\$ softhsm2-util.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    script = re.sub(r"^\$ ", "", block, flags=re.MULTILINE)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf"),
        "SO_PIN": "12345678",
        "PIN": "87654321",
    }
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, check=True, capture_output=True)
    code = """
import logging
from sovstore.kms.base import Access
from sovstore.kms.pkcs11 import open_key
from sovstore.kms.settings import Service
logging.basicConfig(level=logging.WARNING)
service = Service(uri="pkcs11:token=hospital", module="/usr/lib/softhsm/libsofthsm2.so", pin="env:PIN")
key = open_key("pkcs11:token=hospital;object=cohortes-2026", Access(services=(service,)))
assert key.unwrap(key.wrap(bytes(32), bytes(32)), bytes(32)) == bytes(32)
"""
    ran = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert ran.stderr == ""


# Secrets


def test_neither_pin_nor_secret_is_anywhere(token, kek, caplog):
    caplog.set_level(logging.DEBUG)
    key = opened(token)
    wrapped = key.wrap(SECRET, CONTEXT)
    errors = []
    for use in (
        lambda: key.unwrap(wrapped[:-1], CONTEXT),
        lambda: key.unwrap(wrapped[:-1] + b"\0", CONTEXT),
        lambda: opened(token, "object=nowhere").wrap(SECRET, CONTEXT),
    ):
        with pytest.raises(Exception) as caught:  # whichever it is
            use()
        errors.append(caught.value)
    shown = caplog.text + repr(key) + "".join(str(e) + repr(e) + repr(vars(e)) for e in errors)
    shown += "".join(traceback.format_exception(errors[-1]))
    for canary in (token.pin, SECRET.decode(), SECRET.hex()):
        assert canary not in shown
        assert all(canary.encode() not in pickle.dumps(error) for error in errors)


def test_a_module_has_one_thread(token, kek):
    keys = [opened(token) for _ in range(3)]
    for key in keys:
        key.describe()
    named = [thread for thread in threading.enumerate() if thread.name == f"pkcs11 {token.module}"]
    assert len(named) == 1
    assert named[0].daemon
    assert pkcs11_module.module(token.module) is pkcs11_module.module(token.module)

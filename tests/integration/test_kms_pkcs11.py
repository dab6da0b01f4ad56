"""The PKCS#11 driver on a real token (SoftHSM): what it refuses, what it survives, what it never does twice."""

import _ctypes
import ctypes
import logging
import os
import pickle
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest

from sovstore.config import load
from sovstore.errors import ConfigError, KeyDeniedError, KMSError, KMSUnavailableError, NoMatchingKeyError, UnwrapError
from sovstore.filesystem import SovFileSystem
from sovstore.kms import pkcs11_module, registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers import cryptoki
from tests.stores import CONTROLLERS, make_store, open_fs

SECRET, CONTEXT, OTHER = b"secret of the tests, of 32 bytes", bytes(range(32)), bytes(32)


@pytest.fixture
def hsm(softhsm_token):
    """The shared token; its keys are named after the test."""
    return softhsm_token


@pytest.fixture
def opened(monkeypatch):
    """Opens keys by their URIs; all are closed in the end, so that no test finds the library logged in."""
    keys = []

    def opened(token, uri, *, pin=None, **settings):
        variable = f"TOKEN_PIN_{len(keys)}"
        monkeypatch.setenv(variable, token.pin if pin is None else pin)
        service = Service("hsm", "pkcs11:" + uri.split(":")[1].split(";")[0], module=token.module, **settings)
        service = Service(**{**vars(service), "pin": f"env:{variable}"})
        keys.append(registry.open_key(uri, Access(services=(service,))))
        return keys[-1]

    yield opened
    for key in keys:
        key.close()


@pytest.fixture(scope="module")
def kek(softhsm_token):
    """The URI of a good KEK."""
    return softhsm_token.make_key("integration-kek")


@pytest.fixture
def key(hsm, kek, opened):
    return opened(hsm, kek)


@pytest.fixture
def wrapped(key):
    return key.wrap(SECRET, CONTEXT)


# What is asked of the token, and when.


def test_opening_asks_the_token_nothing(hsm, kek, opened):
    with (
        cryptoki.before(hsm.module, "C_GetSlotList", cryptoki.counted) as slots,
        cryptoki.before(hsm.module, "C_Login", cryptoki.counted) as logins,
        cryptoki.before(hsm.module, "C_Initialize", cryptoki.counted) as starts,
    ):
        opened(hsm, kek)
    assert (slots, logins, starts) == ([], [], [])


def test_keys_of_one_token_log_in_once(hsm, kek, opened):
    with cryptoki.before(hsm.module, "C_Login", cryptoki.counted) as logins:
        for _ in range(3):
            key = opened(hsm, kek)
            assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    assert len(logins) == 1


def test_an_unwrap_is_one_operation(key, hsm, wrapped):
    with (
        cryptoki.before(hsm.module, "C_DecryptInit", cryptoki.counted) as operations,
        cryptoki.before(hsm.module, "C_FindObjectsInit", cryptoki.counted) as searches,
    ):
        key.unwrap(wrapped, CONTEXT)
    assert (len(operations), len(searches)) == (1, 0)


def test_what_is_malformed_never_reaches_the_token(key, hsm, wrapped):
    with cryptoki.before(hsm.module, "C_DecryptInit", cryptoki.counted) as operations:
        for bad in (b"", b"\x01", b"\x00" + wrapped[1:], b"\x05" + wrapped[1:], wrapped[: 12 + 16 + 48], wrapped * 2):
            with pytest.raises(UnwrapError):
                key.unwrap(bad, CONTEXT)
    assert operations == []


def test_a_bit_in_every_byte(key, wrapped):
    for position in range(len(wrapped)):
        for bit in (1, 0x80):
            changed = bytearray(wrapped)
            changed[position] ^= bit
            with pytest.raises(UnwrapError):
                key.unwrap(bytes(changed), CONTEXT)


def test_the_token_itself_refuses_another_context(key, hsm, wrapped):
    codes, aads = [], []

    def decrypt(real, *arguments):
        codes.append(real(*arguments))
        return codes[-1]

    def start(real, session, mechanism, handle):
        parameters = cryptoki.gcm_parameters(mechanism)
        aads.append((ctypes.string_at(parameters.aad, parameters.aad_size), parameters.tag_bits))
        return real(session, mechanism, handle)

    with cryptoki.before(hsm.module, "C_Decrypt", decrypt), cryptoki.before(hsm.module, "C_DecryptInit", start):
        key.unwrap(wrapped, CONTEXT)
        assert codes[-1] == 0
        with pytest.raises(UnwrapError):
            key.unwrap(wrapped, OTHER)
    assert codes[-1] == cryptoki.CKR_GENERAL_ERROR
    assert aads == [(CONTEXT, 128), (OTHER, 128)]


def test_what_is_said_of_the_key(key):
    assert key.describe() == {"protection_level": "software", "algorithm": "AES-256-GCM", "state": "enabled"}


# PINs.


def test_a_wrong_pin_is_tried_once(hsm, opened):
    token = hsm.make_token()
    uri = token.make_key("kek")
    with cryptoki.before(hsm.module, "C_Login", cryptoki.counted) as logins:
        wrong = opened(token, uri, pin="wrong-pin-canary")
        for key in (wrong, wrong, opened(token, uri, pin="wrong-pin-canary")):
            with pytest.raises(KeyDeniedError, match="refused the PIN") as caught:
                key.wrap(SECRET, CONTEXT)
            assert not caught.value.retryable
        assert len(logins) == 1
        right = opened(token, uri)
        assert right.unwrap(right.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
        # A token that is logged in would not look at the PIN.
        with pytest.raises(KeyDeniedError, match="another PIN"):
            opened(token, uri, pin="another-wrong-pin").wrap(SECRET, CONTEXT)
    assert len(logins) == 2


def test_a_wrong_pin_is_not_tried_again_in_a_child(hsm):
    token = hsm.make_token()
    uri = token.make_key("kek")
    script = f"""
import os, sys
from sovstore.errors import KeyDeniedError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers import cryptoki
service = Service("hsm", {uri!r}, module={token.module!r}, pin="env:WRONG")
os.environ["WRONG"] = "wrong"
key = registry.open_key({uri!r}, Access(services=(service,)))
def denied():
    with cryptoki.before({token.module!r}, "C_Login", cryptoki.counted) as logins:
        try:
            key.wrap(bytes(32), bytes(32))
        except KeyDeniedError:
            return len(logins)
print(denied(), flush=True)
if os.fork() == 0:
    print(denied(), flush=True)
    os._exit(0)
os.wait()
"""
    assert hsm.python("-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n{script}").split() == ["1", "0"]


@pytest.mark.parametrize(
    ("code", "what"), [(cryptoki.CKR_PIN_LOCKED, "locked its PIN"), (cryptoki.CKR_PIN_EXPIRED, "PIN to be set")]
)
def test_a_pin_that_no_longer_opens(key, hsm, code, what):
    with (
        cryptoki.before(hsm.module, "C_Login", cryptoki.failing(code)) as logins,
        pytest.raises(KeyDeniedError, match=what) as caught,
    ):
        key.wrap(SECRET, CONTEXT)
    assert len(logins) == 1
    assert caught.value.hint


def test_pins_and_secrets_are_nowhere(hsm, kek, opened, caplog):
    caplog.set_level(logging.DEBUG)
    key, wrong = opened(hsm, kek), opened(hsm, kek, pin="wrong-pin-canary")
    wrapped = key.wrap(SECRET, CONTEXT)
    shown = [repr(key), repr(vars(key)), repr(vars(key._key)), str(dict(key.describe()))]
    for call in (lambda: wrong.wrap(SECRET, CONTEXT), lambda: key.unwrap(wrapped[:-1] + b"x", CONTEXT)):
        with pytest.raises(KMSError) as caught:
            call()
        shown += [str(caught.value), repr(caught.value), repr(caught.value.__cause__), str(vars(caught.value))]
        shown.append(pickle.dumps(caught.value).decode("latin-1"))
        shown += traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    text = caplog.text + "".join(shown)
    assert hsm.pin not in text
    assert "wrong-pin-canary" not in text


# Keys that must not be KEKs.


@pytest.mark.parametrize(
    ("kind", "attributes", "why"),
    [
        ("AES", {"EXTRACTABLE": True}, "CKA_EXTRACTABLE"),
        ("AES", {"SENSITIVE": False}, "CKA_SENSITIVE"),
        ("AES", {"PRIVATE": False}, "CKA_PRIVATE"),
        ("imported", {}, "CKA_ALWAYS_SENSITIVE"),
        ("AES-128", {}, "shorter than 256 bits"),
        ("DES3", {}, "no AES key"),
        ("GENERIC_SECRET", {}, "no AES key"),
        ("RSA", {}, "no secret key"),
    ],
)
def test_an_unsuitable_key_is_refused(hsm, opened, wrapped, kind, attributes, why):
    name = f"bad-{kind}-{'-'.join(attributes)}"
    uri = hsm.make_key(name, kind, **({"SENSITIVE": True, "WRAP": False, "UNWRAP": False} | attributes))
    key = opened(hsm, uri)
    for call in (lambda: key.wrap(SECRET, CONTEXT), lambda: key.unwrap(wrapped, CONTEXT), key.describe):
        with pytest.raises(ConfigError, match=why):
            call()


@pytest.mark.parametrize("attribute", ["WRAP", "UNWRAP"])
def test_a_key_that_wraps_other_keys_is_warned_of(hsm, opened, attribute, caplog):
    key = opened(hsm, hsm.make_key(f"wrapping-{attribute}", **{attribute: True}))
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    assert caplog.text.count("may wrap other keys of its token") == 1


def test_a_key_that_was_extractable_once_is_refused(hsm, opened):
    uri = hsm.make_key("once-extractable", EXTRACTABLE=True)
    script = f"""
import pkcs11
session = pkcs11.lib({hsm.module!r}).get_token(token_label={hsm.label!r}).open(rw=True, user_pin={hsm.pin!r})
session.get_key(label="once-extractable")[pkcs11.Attribute.EXTRACTABLE] = False
"""
    hsm.python("-c", script)
    with pytest.raises(ConfigError, match="CKA_NEVER_EXTRACTABLE"):
        opened(hsm, uri).wrap(SECRET, CONTEXT)


def test_software_is_refused_where_hardware_is_declared(hsm, kek, opened, wrapped):
    key = opened(hsm, kek, protection_level="hsm")
    for call in (lambda: key.wrap(SECRET, CONTEXT), lambda: key.unwrap(wrapped, CONTEXT)):
        with pytest.raises(ConfigError, match="says that it is software"):
            call()


def test_a_key_for_one_direction(hsm, opened, wrapped):
    writer = opened(hsm, hsm.make_key("writer", DECRYPT=False))
    made = writer.wrap(SECRET, CONTEXT)
    with pytest.raises(KeyDeniedError, match="does not let this key decrypt"):
        writer.unwrap(made, CONTEXT)
    reader = opened(hsm, hsm.make_key("reader", ENCRYPT=False))
    with pytest.raises(KeyDeniedError, match="does not let this key encrypt"):
        reader.wrap(SECRET, CONTEXT)
    with pytest.raises(UnwrapError):
        reader.unwrap(wrapped, CONTEXT)


def test_a_token_without_gcm(key, hsm):
    def none(_real, _slot, _list, count):
        ctypes.c_ulong.from_address(count).value = 0
        return 0

    with cryptoki.before(hsm.module, "C_GetMechanismList", none), pytest.raises(ConfigError, match="CKM_AES_GCM"):
        key.wrap(SECRET, CONTEXT)


# Names.


def test_no_such_key(hsm, opened):
    with pytest.raises(NoMatchingKeyError, match="no such key"):
        opened(hsm, hsm.uri("absent")).wrap(SECRET, CONTEXT)


def test_several_keys_match(hsm, opened):
    hsm.make_key("twice", ID="0a")
    uri = hsm.make_key("twice", ID="0b")
    with pytest.raises(ConfigError, match="several keys match"):
        opened(hsm, uri).wrap(SECRET, CONTEXT)
    first, second = opened(hsm, f"{uri};id=%0a"), opened(hsm, f"pkcs11:token={hsm.label};id=%0B")
    wrapped = first.wrap(SECRET, CONTEXT)
    assert first.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(UnwrapError):
        second.unwrap(wrapped, CONTEXT)


def test_a_secret_key_beside_others_of_its_name(hsm, opened):
    hsm.make_key("beside", "RSA")
    key = opened(hsm, hsm.make_key("beside"))
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_several_tokens_match(hsm, opened):
    one = hsm.make_token("namesakes")
    one.make_key("kek")
    hsm.make_token("namesakes")
    script = f"import pkcs11; print(*[t.serial.decode() for t in pkcs11.lib({hsm.module!r}).get_tokens('namesakes')])"
    keys = [opened(one, f"pkcs11:serial={serial};object=kek") for serial in hsm.python("-c", script).split()]
    with pytest.raises(ConfigError, match="several tokens match"):
        opened(one, "pkcs11:token=namesakes;object=kek").wrap(SECRET, CONTEXT)
    outcomes = []
    for key in keys:
        try:
            outcomes.append(len(key.wrap(SECRET, CONTEXT)))
        except KeyDeniedError:
            outcomes.append("wrong PIN")
    assert sorted(map(str, outcomes)) == ["93", "wrong PIN"]


def test_the_canonical_uri_opens_the_key_without_local_paths(hsm, kek, wrapped, tmp_path):
    (tmp_path / "pin").write_text(f"{hsm.pin}\n")
    service = Service("hsm", f"pkcs11:token={hsm.label}", module=hsm.module, pin=f"file:{tmp_path / 'pin'}")
    label = kek.rpartition("=")[2]
    long = (
        f"pkcs11:type=secret-key;object={label};token={hsm.label}"
        f"?module-path={hsm.module}&pin-source=file:{tmp_path / 'pin'}"
    )
    key = registry.open_key(long, Access())
    assert key.uri == kek
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    again = registry.open_key(key.uri, Access(services=(service,)))
    assert again.unwrap(wrapped, CONTEXT) == SECRET


def test_the_pin_is_asked_for_last(hsm, kek, wrapped):
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return hsm.pin

    uri = f"{kek}?module-path={hsm.module}"
    assert registry.open_key(uri, Access(passphrase=ask)).unwrap(wrapped, CONTEXT) == SECRET
    assert asked == [f"PIN of {kek}: "]
    for access in (Access(), Access(passphrase=lambda _prompt: "")):
        with pytest.raises(ConfigError, match="PIN"):
            registry.open_key(uri, access)


def test_libraries_that_cannot_be_loaded(hsm, kek, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    python_only = _ctypes.__file__
    for module in (tmp_path / "absent.so", tmp_path / "text.so", python_only):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            registry.open_key(f"{kek}?module-path={module}", Access(passphrase=lambda _prompt: "1234"))
    with pytest.raises(ConfigError, match="no library is named"):
        registry.open_key(kek, Access(passphrase=lambda _prompt: "1234"))


# Losses.


def test_a_token_that_is_not_there(hsm, opened):
    with pytest.raises(KMSUnavailableError, match="is not there") as caught:
        opened(hsm, "pkcs11:token=absent;object=kek").unwrap(bytes([1]) + bytes(92), CONTEXT)
    assert caught.value.retryable


def test_a_token_that_is_removed_and_comes_back(hsm, opened):
    token = hsm.make_token()
    key = opened(token, token.make_key("kek"))
    wrapped = key.wrap(SECRET, CONTEXT)
    token.remove()
    for call in (lambda: key.unwrap(wrapped, CONTEXT), lambda: key.wrap(SECRET, CONTEXT)):
        with pytest.raises(KMSUnavailableError, match="is not there"):
            call()
    replacement = hsm.make_token(token.label)
    replacement.make_key("kek")
    key = opened(replacement, key.uri)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    # Another token of that name is another token.
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize(
    "code",
    [
        cryptoki.CKR_SESSION_HANDLE_INVALID,
        cryptoki.CKR_USER_NOT_LOGGED_IN,
        cryptoki.CKR_DEVICE_ERROR,
        cryptoki.CKR_TOKEN_NOT_PRESENT,
    ],
)
def test_one_loss_is_made_good(key, hsm, wrapped, code):
    with cryptoki.before(hsm.module, "C_DecryptInit", cryptoki.failing_once(code)) as calls:
        assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert len(calls) == 2


def test_a_device_that_stays_broken(key, hsm, wrapped):
    with (
        cryptoki.before(hsm.module, "C_DecryptInit", cryptoki.failing(cryptoki.CKR_DEVICE_ERROR)) as calls,
        pytest.raises(KMSUnavailableError, match="DeviceError"),
    ):
        key.unwrap(wrapped, CONTEXT)
    assert len(calls) == 2
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_a_code_of_a_vendor_is_a_refusal(key, hsm, wrapped):
    with (
        cryptoki.before(hsm.module, "C_Decrypt", cryptoki.failing(cryptoki.CKR_VENDOR_DEFINED)),
        pytest.raises(UnwrapError),
    ):
        key.unwrap(wrapped, CONTEXT)
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_a_library_that_does_not_start(key, hsm):
    key.close()
    pkcs11.lib(hsm.module).finalize()
    with (
        cryptoki.before(hsm.module, "C_Initialize", cryptoki.failing(cryptoki.CKR_GENERAL_ERROR)),
        pytest.raises(KMSUnavailableError, match="GeneralError"),
    ):
        key.wrap(SECRET, CONTEXT)
    assert key.wrap(SECRET, CONTEXT)


def test_somebody_else_in_the_process_ends_the_library(key, hsm, wrapped):
    pkcs11.lib(hsm.module).finalize()
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_handles_of_another_life_are_not_used(hsm, opened):
    """After a restart the handle of a key may be that of another one: wrapping with it would lose the secret."""
    one, two = opened(hsm, hsm.make_key("life-one")), opened(hsm, hsm.make_key("life-two"))
    wrapped = one.wrap(SECRET, CONTEXT)
    pkcs11.lib(hsm.module).reinitialize()
    two.wrap(SECRET, CONTEXT)
    again = one.wrap(SECRET, CONTEXT)
    one.close()
    two.close()
    fresh = opened(hsm, one.uri)
    assert fresh.unwrap(again, CONTEXT) == fresh.unwrap(wrapped, CONTEXT) == SECRET


def test_an_application_that_is_logged_in_itself_stays_so(hsm, kek, opened, wrapped, key):
    key.close()
    with pkcs11.lib(hsm.module).get_token(token_label=hsm.label).open(user_pin=hsm.pin) as session:
        mine = opened(hsm, kek)
        assert mine.unwrap(wrapped, CONTEXT) == SECRET
        mine.close()
        assert list(session.get_objects({pkcs11.Attribute.PRIVATE: True}))


def test_closing_one_key_leaves_the_other_logged_in(hsm, kek, opened, wrapped):
    one, two = opened(hsm, kek), opened(hsm, kek)
    assert one.unwrap(wrapped, CONTEXT) == two.unwrap(wrapped, CONTEXT)
    with cryptoki.before(hsm.module, "C_Logout", cryptoki.counted) as logouts:
        one.close()
        one.close()
        assert two.unwrap(wrapped, CONTEXT) == SECRET
    assert logouts == []
    assert one.unwrap(wrapped, CONTEXT) == SECRET


def test_the_last_key_logs_out(hsm, kek, opened):
    key = opened(hsm, kek)
    key.wrap(SECRET, CONTEXT)
    assert pkcs11_module.module_at(hsm.module).logins
    key.close()
    assert not pkcs11_module.module_at(hsm.module).logins


def test_a_key_that_is_dropped_is_logged_out_by_the_next_call(hsm, kek, monkeypatch):
    monkeypatch.setenv("DROPPED_PIN", hsm.pin)
    access = Access(services=(Service("hsm", kek, module=hsm.module, pin="env:DROPPED_PIN"),))
    registry.open_key(kek, access).wrap(SECRET, CONTEXT)
    module = pkcs11_module.module_at(hsm.module)
    assert module.run(lambda: dict(module.logins), 5) == {}


# Threads, time, processes.


def test_a_call_that_hangs_is_not_waited_for(hsm, kek, opened, wrapped):
    key = opened(hsm, kek, timeout_s=0.3)
    key.unwrap(wrapped, CONTEXT)

    def slow(real, *arguments):
        time.sleep(1)
        return real(*arguments)

    start = time.monotonic()
    with cryptoki.before(hsm.module, "C_DecryptInit", slow) as calls:
        for _ in range(2):
            with pytest.raises(KMSUnavailableError, match=r"within 0\.3 s"):
                key.unwrap(wrapped, CONTEXT)
        assert time.monotonic() - start < 0.9
        time.sleep(1)
        # The second one gave up before its turn came.
        assert len(calls) == 1
    assert opened(hsm, kek).unwrap(wrapped, CONTEXT) == SECRET


def test_threads_with_keys_that_come_and_go(hsm, kek, opened):
    other = hsm.make_key("threads")

    def work(n):
        key = opened(hsm, (kek, other)[n % 2])
        try:
            return all(key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET for _ in range(5))
        finally:
            key.close()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(20)))


def test_the_library_is_never_called_from_two_threads_at_once(hsm, kek, opened, wrapped):
    at_once, most = [], []

    def watched(real, *arguments):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.005)
        at_once.pop()
        return real(*arguments)

    keys = [opened(hsm, kek) for _ in range(4)]
    with cryptoki.before(hsm.module, "C_DecryptInit", watched), ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda key: key.unwrap(wrapped, CONTEXT), keys * 3)) == {SECRET}
    assert max(most) == 1


def test_a_forked_child_and_its_child(hsm, kek):
    script = f"""
import os
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
os.environ["TOKEN_PIN"] = {hsm.pin!r}
access = Access(services=(Service("hsm", {kek!r}, module={hsm.module!r}, pin="env:TOKEN_PIN"),))
used, fresh = registry.open_key({kek!r}, access), registry.open_key({kek!r}, access)
wrapped = used.wrap(bytes(32), bytes(32))
def check(who):
    for key in (used, fresh):
        assert key.unwrap(key.wrap(bytes(32), bytes(32)), bytes(32)) == key.unwrap(wrapped, bytes(32)) == bytes(32)
    print(who, flush=True)
def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
def both():
    child(lambda: check("grandchild"))
    check("child")
    used.close()
child(both)
check("parent")
"""
    assert hsm.python("-c", script).split() == ["grandchild", "child", "parent"]


def test_children_that_are_forked_amid_calls(hsm, kek):
    """A child that copied the locks of a library at work would wait for ever."""
    script = f"""
import os, threading
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
os.environ["TOKEN_PIN"] = {hsm.pin!r}
service = Service("hsm", {kek!r}, module={hsm.module!r}, pin="env:TOKEN_PIN")
key = registry.open_key({kek!r}, Access(services=(service,)))
wrapped, ends = key.wrap(bytes(32), bytes(32)), threading.Event()
def work():
    while not ends.is_set():
        key.unwrap(wrapped, bytes(32))
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
bad = 0
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(key.unwrap(wrapped, bytes(32)) != bytes(32))
        finally:
            os._exit(2)
    bad += os.waitpid(pid, 0)[1] != 0
ends.set()
[thread.join() for thread in threads]
print(bad)
"""
    assert hsm.python("-c", script).split() == ["0"]


# Tokens of other kinds, before the real one.


def test_a_token_that_takes_no_aad(key, hsm):
    def start(real, session, mechanism, handle):
        refuse = cryptoki.gcm_parameters(mechanism).aad_size
        return cryptoki.CKR_MECHANISM_PARAM_INVALID if refuse else real(session, mechanism, handle)

    with (
        cryptoki.before(hsm.module, "C_EncryptInit", start),
        cryptoki.before(hsm.module, "C_DecryptInit", start),
    ):
        wrapped = key.wrap(SECRET, CONTEXT)
        assert wrapped[:1] == b"\x03"
        assert key.unwrap(wrapped, CONTEXT) == SECRET
        with pytest.raises(UnwrapError):
            key.unwrap(wrapped, OTHER)
        with pytest.raises(UnwrapError):
            key.unwrap(b"\x01" + wrapped[1:], CONTEXT)


class _OwnIV:
    """A fake of Luna's FIPS mode before a real token: its own IV of 16 bytes, appended to what it encrypts.

    Parameters
    ----------
    strict : bool
        Refuse an IV of the caller, instead of ignoring it.
    """

    def __init__(self, *, strict):
        self.strict = strict
        self.iv = None

    def start(self, real, session, mechanism, handle):
        parameters = cryptoki.gcm_parameters(mechanism)
        if self.strict and parameters.iv_size:
            return cryptoki.CKR_MECHANISM_PARAM_INVALID
        self.iv = ctypes.create_string_buffer(os.urandom(16), 16)
        parameters.iv, parameters.iv_size, parameters.iv_bits = ctypes.addressof(self.iv), 16, 128
        return real(session, mechanism, handle)

    def encrypt(self, real, session, data, size, out, out_size):
        code = real(session, data, size, out, out_size)
        length = ctypes.c_ulong.from_address(out_size)
        if out:
            ctypes.memmove(out + length.value, self.iv, 16)
        length.value += 16
        return code


@pytest.mark.parametrize("strict", [False, True])
def test_a_token_that_makes_its_own_iv(key, hsm, strict):
    fake = _OwnIV(strict=strict)
    with (
        cryptoki.before(hsm.module, "C_EncryptInit", fake.start),
        cryptoki.before(hsm.module, "C_Encrypt", fake.encrypt),
    ):
        wrapped = key.wrap(SECRET, CONTEXT)
    assert (wrapped[:1], len(wrapped)) == (b"\x02", 1 + 64 + 16 + 16)
    assert wrapped[-16:] == bytes(fake.iv)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        with pytest.raises(UnwrapError):
            key.unwrap(bytes(changed), CONTEXT)


def test_a_token_whose_wraps_do_not_open_makes_none(key, hsm):
    def start(real, session, mechanism, handle):
        # An IV of its own that it tells nobody.
        iv = ctypes.create_string_buffer(os.urandom(12), 12)
        cryptoki.gcm_parameters(mechanism).iv = ctypes.addressof(iv)
        return real(session, mechanism, handle)

    with cryptoki.before(hsm.module, "C_EncryptInit", start), pytest.raises(KMSError, match="in any way"):
        key.wrap(SECRET, CONTEXT)


def test_a_store_under_a_key_of_the_token(hsm, kek, tmp_path, monkeypatch):
    monkeypatch.setenv("STORE_PIN", hsm.pin)
    table = f'[kms.hsm]\nuri = "pkcs11:token={hsm.label}"\nmodule = "{hsm.module}"\npin = "env:STORE_PIN"\n'
    (tmp_path / "sovstore.toml").write_text(f'{table}controller = "tests"\n{CONTROLLERS}')
    file = make_store(tmp_path, kek=f"{kek}?module-path={hsm.module}")
    open_fs(file).pipe_file("cohortes/a", b"content")
    assert open_fs(file, skip_instance_cache=True).cat_file("cohortes/a") == b"content"
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cohortes").rglob("*") if path.is_file())
    assert kek.encode() in stored
    assert hsm.module.encode() not in stored
    assert hsm.pin.encode() not in stored
    monkeypatch.setenv("STORE_PIN", "wrong-pin")
    SovFileSystem.clear_instance_cache()
    with pytest.raises(KeyDeniedError):
        open_fs(file, skip_instance_cache=True).cat_file("cohortes/a")


# The documentation.


def test_the_key_that_the_documentation_makes_is_accepted(hsm, opened):
    page = (Path(__file__).parents[2] / "docs/kms/pkcs11.md").read_text()
    script = page.partition("python3 - <<'END'\n")[2].partition("\nEND\n")[0]
    variables = {"MODULE": hsm.module, "TOKEN": hsm.label, "LABEL": "from-the-documentation", "PIN": hsm.pin}
    hsm.python("-c", f"import os; os.environ.update({variables!r})\n{script}")
    key = opened(hsm, hsm.uri("from-the-documentation"))
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_the_configuration_of_the_documentation_is_valid(tmp_path):
    page = (Path(__file__).parents[2] / "docs/kms/pkcs11.md").read_text()
    file = tmp_path / "sovstore.toml"
    file.write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert load(file).stores["cohortes"].kek == "pkcs11:token=sovstore;object=kek-2026"

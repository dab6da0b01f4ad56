"""A real OpenBao: what its keys must be, what rights each use needs, rotation, and what is sent."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import traceback

import pytest

from sovstore.errors import ConfigError, KeyDeniedError, KMSError, NoMatchingKeyError, UnwrapError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from sovstore.trail import Trail
from tests.servers.clever import fake_clever

CONTEXT = bytes(range(32))
SECRET = b"a secret of thirty-two bytes ---"


@pytest.fixture
def opened(monkeypatch):
    """A function that opens a KEK at a server; what it opened is closed in the end."""
    keys = []

    def open_at(server, path, *, token="", scheme="openbao", address=None, trail=None, **settings):
        base = f"{scheme}://{address or server.address}"
        if token:
            monkeypatch.setenv(f"TOKEN_{len(keys)}", token)
            settings["token"] = f"env:TOKEN_{len(keys)}"
        service = Service(uri=base, **{"ca_file": str(server.ca_file), **settings})
        keys.append(registry.open_key(f"{base}/{path}", Access(services=(service,), trail=trail)))
        return keys[-1]

    yield open_at
    for key in keys:
        key.close()


def _rights(key, *what):
    return {f"transit/{name}/{key}": "read" if name == "keys" else "update" for name in what}


def test_every_changed_byte_is_refused(openbao_server, opened):
    key = opened(openbao_server, f"transit/{openbao_server.make_key()}", token=openbao_server.root_token)
    wrapped = key.wrap(SECRET, CONTEXT)
    for at in range(len(wrapped)):
        # 0x20 changes case; 0x01 and 0x04 stay in the alphabet; 0x80 leaves it.
        for bit in (0x01, 0x04, 0x20, 0x80):
            with pytest.raises(UnwrapError):
                key.unwrap(wrapped[:at] + bytes([wrapped[at] ^ bit]) + wrapped[at + 1 :], CONTEXT)


def test_other_spellings_of_a_wrap_are_refused_before_they_are_sent(openbao_server, opened):
    name = openbao_server.make_key()
    key = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    wrapped = key.wrap(SECRET, CONTEXT)
    body = wrapped.removeprefix(b"vault:v1:")
    assert body.endswith(b"=")
    sent = len(openbao_server.requests())
    spellings = [b"vault:v01:" + body, b"vault:v0:" + body, b"vault:v-1:" + body, b"vault:v+1:" + body]
    spellings += [b"Vault:v1:" + body, wrapped + b"\n", wrapped[:50] + b"\n" + wrapped[50:], wrapped + b"="]
    # The server itself takes the first of these and those with a line break.
    for other in (*spellings, wrapped.rstrip(b"="), b"vault:v1:" + body.replace(b"+", b"-").replace(b"/", b"_") + b"="):
        with pytest.raises(UnwrapError):
            key.unwrap(other, CONTEXT)
    assert len(openbao_server.requests()) == sent


def test_what_a_public_key_made_is_not_even_sent(openbao_server, opened):
    name = openbao_server.make_key(type="rsa-2048")
    body = {"plaintext": "QUFB" * 16}
    forged = openbao_server.ask("POST", f"transit/encrypt/{name}", body)["data"]["ciphertext"]
    key = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    sent = len(openbao_server.requests())
    with pytest.raises(UnwrapError):
        key.unwrap(forged.encode(), CONTEXT)
    assert len(openbao_server.requests()) == sent


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"type": "rsa-2048"}, "not a key of AES-GCM"),
        ({"type": "ed25519"}, "not a key of AES-GCM"),
        ({"type": "hmac", "key_size": 32}, "not a key of AES-GCM"),
        ({"derived": True}, "derived"),
        ({"derived": True, "convergent_encryption": True}, "derived"),
        ({"exportable": True}, "exported"),
        ({"allow_plaintext_backup": True}, "backup"),
    ],
)
def test_a_key_that_must_not_be_a_kek_is_refused_before_the_first_wrap(openbao_server, opened, options, why):
    name = openbao_server.make_key(**options)
    key = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    with pytest.raises(ConfigError, match=why):
        key.wrap(SECRET, CONTEXT)
    assert ("update", f"transit/encrypt/{name}") not in openbao_server.requests()


def test_a_key_that_is_declared_to_be_in_an_hsm_is_refused(openbao_server, opened):
    path = f"transit/{openbao_server.make_key()}"
    wrapped = opened(openbao_server, path, token=openbao_server.root_token).wrap(SECRET, CONTEXT)
    key = opened(openbao_server, path, token=openbao_server.root_token, protection_level="hsm")
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(ConfigError, match="memory of a server"):
        key.wrap(SECRET, CONTEXT)


def test_a_key_is_described(openbao_server, opened):
    name = openbao_server.make_key(type="aes128-gcm96")
    openbao_server.ask("POST", f"transit/keys/{name}/rotate")
    described = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token).describe()
    assert described == {
        "protection_level": "software",
        "algorithm": "aes128-gcm96",
        "version": "2",
        "state": "enabled",
    }


def test_wrapping_never_makes_a_key(openbao_server, opened):
    """`encrypt` makes one, for whoever may: also for the operator's own token."""
    for token in (
        openbao_server.root_token,
        openbao_server.make_token({"transit/encrypt/not-there": "create", "transit/keys/not-there": "read"}),
    ):
        with pytest.raises(NoMatchingKeyError, match="no such key"):
            opened(openbao_server, "transit/not-there", token=token).wrap(SECRET, CONTEXT)
        assert "not-there" not in openbao_server.key_names()


def test_the_right_to_encrypt_alone_does_not_wrap(openbao_server, opened):
    token = openbao_server.make_token({"transit/encrypt/nor-this": "update"})
    with pytest.raises(KeyDeniedError, match="look at the key") as caught:
        opened(openbao_server, "transit/nor-this", token=token).wrap(SECRET, CONTEXT)
    assert 'path "transit/keys/nor-this" { capabilities = ["read"] }' in caught.value.hint
    assert "nor-this" not in openbao_server.key_names()


def test_a_key_that_is_not_there_does_not_unwrap(openbao_server, opened):
    path = f"transit/{openbao_server.make_key()}"
    wrapped = opened(openbao_server, path, token=openbao_server.root_token).wrap(SECRET, CONTEXT)
    for path in ("transit/not-there", "no-such-mount/key", "transit/not-there?namespace=nobody"):
        with pytest.raises(NoMatchingKeyError):
            opened(openbao_server, path, token=openbao_server.root_token).unwrap(wrapped, CONTEXT)


def test_a_reader_unwraps_and_does_not_wrap(openbao_server, opened):
    name = openbao_server.make_key()
    wrapped = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token).wrap(SECRET, CONTEXT)
    reader = opened(openbao_server, f"transit/{name}", token=openbao_server.make_token(_rights(name, "decrypt")))
    for _ in range(2):
        with pytest.raises(KeyDeniedError):
            reader.wrap(SECRET, CONTEXT)
        assert reader.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(KeyDeniedError, match="look at the key"):
        reader.describe()


def test_a_writer_without_the_right_to_unwrap_is_told_which(openbao_server, opened):
    name = openbao_server.make_key()
    token = openbao_server.make_token(_rights(name, "encrypt", "keys"))
    writer = opened(openbao_server, f"transit/{name}", token=token)
    wrapped = writer.wrap(SECRET, CONTEXT)
    with pytest.raises(KeyDeniedError, match="does not let us unwrap") as caught:
        writer.unwrap(wrapped, CONTEXT)
    assert f'path "transit/decrypt/{name}" {{ capabilities = ["update"] }}' in caught.value.hint


def test_an_unwrap_is_one_request_and_a_wrap_looks_once(openbao_server, opened):
    name = openbao_server.make_key()
    key = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)

    def sent(act):
        before = len(openbao_server.requests())
        act()
        return openbao_server.requests()[before:]

    wrapped = []
    look, encrypt = ("read", f"transit/keys/{name}"), ("update", f"transit/encrypt/{name}")
    assert sent(lambda: wrapped.append(key.wrap(SECRET, CONTEXT))) == [look, encrypt]
    assert sent(lambda: key.wrap(SECRET, CONTEXT)) == [encrypt]
    reader = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    assert sent(lambda: reader.unwrap(wrapped[0], CONTEXT)) == [("update", f"transit/decrypt/{name}")]
    assert sent(lambda: reader.wrap(SECRET, CONTEXT)) == [encrypt]


def test_opening_a_key_asks_nothing(openbao_server, opened):
    before = len(openbao_server.requests())
    opened(openbao_server, "transit/any", token=openbao_server.root_token)
    opened(openbao_server, "transit/any", auth="approle", role_id="role", secret_id="env:HOME")
    assert len(openbao_server.requests()) == before


def test_the_context_is_associated_data(openbao_server, opened):
    name = openbao_server.make_key()
    wrapped = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token).wrap(SECRET, CONTEXT)
    with pytest.raises(AssertionError, match="message authentication failed"):
        openbao_server.ask("POST", f"transit/decrypt/{name}", {"ciphertext": wrapped.decode()})


def test_rotation_in_the_service(openbao_server, opened):
    name = openbao_server.make_key()
    key = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    old = key.wrap(SECRET, CONTEXT)
    openbao_server.ask("POST", f"transit/keys/{name}/rotate")
    new = key.wrap(SECRET, CONTEXT)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert key.unwrap(old, CONTEXT) == key.unwrap(new, CONTEXT) == SECRET
    with pytest.raises(UnwrapError):
        key.unwrap(old.replace(b"v1", b"v2"), CONTEXT)
    openbao_server.ask("POST", f"transit/keys/{name}/config", {"min_decryption_version": 2})
    assert key.unwrap(new, CONTEXT) == SECRET
    for version in (b"v1", b"v3"):
        with pytest.raises(UnwrapError):
            key.unwrap(old.replace(b"v1", version), CONTEXT)


def test_a_key_that_was_deleted_for_now(openbao_server, opened):
    name = openbao_server.make_key()
    key = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    wrapped = key.wrap(SECRET, CONTEXT)
    openbao_server.ask("DELETE", f"transit/keys/{name}/soft-delete")
    assert key.describe()["state"] == "deleted"
    fresh = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token)
    for act in (
        lambda: key.unwrap(wrapped, CONTEXT),
        lambda: key.wrap(SECRET, CONTEXT),
        lambda: fresh.wrap(SECRET, CONTEXT),
    ):
        with pytest.raises(KeyDeniedError, match="marked as deleted"):
            act()
    openbao_server.ask("POST", f"transit/keys/{name}/soft-delete-restore")
    assert key.unwrap(wrapped, CONTEXT) == SECRET


def test_a_key_that_is_gone_after_the_look_is_not_made_again(openbao_server, opened):
    """By a token with the rights that the documentation names; one that may `create` would make it."""
    name = openbao_server.make_key()
    token = openbao_server.make_token(_rights(name, "encrypt", "keys", "decrypt"))
    key = opened(openbao_server, f"transit/{name}", token=token)
    wrapped = key.wrap(SECRET, CONTEXT)
    openbao_server.ask("POST", f"transit/keys/{name}/config", {"deletion_allowed": True})
    openbao_server.ask("DELETE", f"transit/keys/{name}")
    # To the server it asks to make one, which its policy does not allow.
    with pytest.raises(KeyDeniedError) as caught:
        key.wrap(SECRET, CONTEXT)
    assert "or the key is not there any more" in caught.value.hint
    assert name not in openbao_server.key_names()
    with pytest.raises(NoMatchingKeyError):
        key.unwrap(wrapped, CONTEXT)


def test_a_namespace_has_keys_of_its_own(openbao_server, opened):
    openbao_server.make_namespace("registry")
    name = openbao_server.make_key(namespace="registry")
    token = openbao_server.make_token(_rights(name, "keys", "encrypt", "decrypt"), namespace="registry")
    key = opened(openbao_server, f"transit/{name}?namespace=registry", token=token)
    wrapped = key.wrap(SECRET, CONTEXT)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(KeyDeniedError):
        opened(openbao_server, f"transit/{name}", token=token).unwrap(wrapped, CONTEXT)


def test_plain_http_to_this_machine(openbao_server, opened):
    path, address = f"transit/{openbao_server.make_key()}", openbao_server.plain_address
    key = opened(openbao_server, path, token=openbao_server.root_token, address=address, plain_http=True)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_the_trail_names_the_request_of_the_service(openbao_server, opened, tmp_path):
    trail = Trail("store", tmp_path / "audit.jsonl")
    path = f"transit/{openbao_server.make_key()}"
    key = opened(openbao_server, path, token=openbao_server.root_token, trail=trail, scheme="vault")
    key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["outcome"], line["provider"]) for line in lines] == [
        ("wrap", "done", "vault"),
        ("unwrap", "done", "vault"),
    ]
    assert all(line["request_id"] in openbao_server.audit_text() for line in lines)


def test_no_secret_is_shown(openbao_server, opened, caplog):
    caplog.set_level(logging.DEBUG)
    name = openbao_server.make_key()
    token = openbao_server.make_token(_rights(name, "decrypt"))
    key = opened(openbao_server, f"transit/{name}", token=token)
    good = opened(openbao_server, f"transit/{name}", token=openbao_server.root_token).wrap(SECRET, CONTEXT)
    assert key.unwrap(good, CONTEXT) == SECRET
    shown = [repr(key), repr(vars(key)), caplog.text]
    for act in (lambda: key.unwrap(good[:-9] + b"AAAAAAAA=", CONTEXT), key.describe):
        with pytest.raises(KMSError) as caught:
            act()
        shown += [_locals(caught.value), repr(caught.value), repr(vars(caught.value)), repr(pickle.dumps(caught.value))]
    assert "urllib3" in caplog.text
    assert SECRET.decode() not in caplog.text
    assert not [text for text in shown if token in text]


def _locals(exc):
    """Return the local variables of every frame but ours, as a debugger or a crash reporter has them."""
    found = []
    while exc is not None:
        frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__) if frame.f_code.co_filename != __file__]
        found += [repr(value) for frame in frames for value in frame.f_locals.values()]
        exc = exc.__cause__ or exc.__context__
    assert found
    return "\n".join(found)


def test_a_forked_child_has_connections_of_its_own(openbao_server, opened):
    path = f"transit/{openbao_server.make_key()}"
    key = opened(openbao_server, path, token=openbao_server.root_token)
    wrapped = key.wrap(SECRET, CONTEXT)
    with key._login._lock:  # As another thread of the parent may hold it.
        child = multiprocessing.get_context("fork").Process(target=_unwrap_or_fail, args=(key, wrapped))
        child.start()
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    child.join(20)
    assert child.exitcode == 0


def _unwrap_or_fail(key, wrapped):
    for _ in range(5):
        assert key.unwrap(wrapped, CONTEXT) == SECRET


@pytest.fixture(scope="module")
def clever(tmp_path_factory):
    """A fake of Clever Cloud KMS."""
    with fake_clever(tmp_path_factory.mktemp("clever")) as fake:
        yield fake


def test_clever_cloud_gets_no_associated_data_and_its_text_back_as_it_came(clever, opened):
    name = clever.make_key()
    key = opened(clever, f"transit/{name}?dialect=clever", token=clever.token)
    wrapped = key.wrap(SECRET, CONTEXT)
    assert b"+" not in wrapped
    before = len(clever.requests)
    assert key.unwrap(wrapped, CONTEXT) == SECRET
    assert clever.requests[before:] == [("POST", f"/v1/transit/decrypt/{name}")]
    with pytest.raises(UnwrapError):
        key.unwrap(wrapped, CONTEXT[::-1])


def test_clever_cloud_says_errors_in_another_form(clever, opened):
    name = clever.make_key()
    key = opened(clever, f"transit/{name}?dialect=clever", token=clever.token)
    wrapped = key.wrap(SECRET, CONTEXT)
    with pytest.raises(UnwrapError):
        opened(clever, "transit/not-there?dialect=clever", token=clever.token).unwrap(wrapped, CONTEXT)
    with pytest.raises(NoMatchingKeyError):
        opened(clever, "transit/not-there?dialect=clever", token=clever.token).wrap(SECRET, CONTEXT)
    with pytest.raises(KeyDeniedError, match="Clever Cloud KMS does not let us unwrap"):
        opened(clever, f"transit/{name}?dialect=clever", token="of somebody else").unwrap(wrapped, CONTEXT)


def test_clever_cloud_rotates(clever, opened):
    name = clever.make_key()
    key = opened(clever, f"transit/{name}?dialect=clever", token=clever.token)
    old = key.wrap(SECRET, CONTEXT)
    clever.keys[name].append(bytes(32))
    new = key.wrap(SECRET, CONTEXT)
    assert new.startswith(b"vault:v2:")
    assert key.unwrap(old, CONTEXT) == key.unwrap(new, CONTEXT) == SECRET

"""The KMIP driver and a real server (PyKMIP): rights, states of keys, certificates, other implementations, a store."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from sovstore import config
from sovstore.cli import main
from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    NoMatchingKeyError,
    UnwrapError,
)
from sovstore.filesystem import SovFileSystem
from sovstore.kms import kmip_messages as messages
from sovstore.kms.kmip_messages import Ciphertext
from sovstore.kms.settings import Service
from tests.servers import pykmip
from tests.servers.clients import ClientAuthority
from tests.servers.opened import opener
from tests.stores import make_store, open_fs

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
WRAPPED = bytes([1, 12]) + bytes(12 + 16) + bytes(64)


@pytest.fixture
def opened(pykmip_server):
    """A function that opens a key of PyKMIP: by its identifier, as another client, with other settings."""
    with contextlib.ExitStack() as stack:

        def open_one(uid, certificate=None, suffix="", **settings):
            service = pykmip_server.service_as(certificate or pykmip_server.client_certificate, **settings)
            return stack.enter_context(opener(service))(pykmip_server.key_uri(uid) + suffix)

        yield open_one


def test_what_is_written_is_what_another_implementation_writes(pykmip_server):
    """PyKMIP decodes each of our requests and encodes it again to the same bytes."""
    del pykmip_server
    sealed = Ciphertext(os.urandom(12), os.urandom(16), os.urandom(64))
    for name, version in (("KMIP_1_4", (1, 4)), ("KMIP_2_0", (2, 0))):
        requests = [
            messages.encrypt(version, "kek-1", os.urandom(12), os.urandom(48), os.urandom(32)),
            messages.encrypt(version, "9b7e8f26-4a", os.urandom(12), os.urandom(96), os.urandom(32)),
            messages.decrypt(version, "k", sealed, os.urandom(32)),
            messages.get_attributes(version, "kek-1"),
        ]
        written = [request.hex() for request in requests]
        assert pykmip.recode(*written, version=name) == written


def test_what_is_wrapped_is_what_another_client_unwraps(pykmip_server, opened):
    (uid,) = pykmip_server.create_keys(1)
    wrapped = opened(uid).wrap(SECRET, CONTEXT)
    assert (len(wrapped), wrapped[:2]) == (2 + 12 + 16 + 64, b"\x01\x0c")
    parts = {"iv": wrapped[2:14], "tag": wrapped[14:30], "data": wrapped[30:], "aad": CONTEXT}
    command = {"do": "decrypt", "uid": uid, **{name: value.hex() for name, value in parts.items()}}
    assert pykmip_server.administer(command) == [(SECRET + CONTEXT).hex()]


def test_a_reader_needs_no_right_to_look_at_the_key(pykmip_server, opened):
    (uid,) = pykmip_server.administer({"do": "create", "policy": "shared"})
    wrapped = opened(uid).wrap(SECRET, CONTEXT)
    reader = opened(uid, pykmip_server.clients.issue("reader"))
    assert reader.unwrap(wrapped, CONTEXT) == SECRET
    with pytest.raises(KeyDeniedError, match="does not allow"):
        reader.describe()
    # It has unwrapped, so it does not look before it wraps.
    assert opened(uid).unwrap(reader.wrap(SECRET, CONTEXT), CONTEXT) == SECRET


def test_another_client_is_denied(pykmip_server, opened):
    (uid,) = pykmip_server.create_keys(1)
    wrapped = opened(uid).wrap(SECRET, CONTEXT)
    stranger = opened(uid, pykmip_server.clients.issue("stranger"))
    for call in (lambda: stranger.unwrap(wrapped, CONTEXT), lambda: stranger.wrap(SECRET, CONTEXT), stranger.describe):
        with pytest.raises(KeyDeniedError, match="does not allow") as caught:
            call()
        assert "this certificate" in caught.value.hint


@pytest.mark.parametrize("reason", ["CESSATION_OF_OPERATION", "KEY_COMPROMISE"])
def test_a_revoked_key_is_denied_and_a_destroyed_one_is_missing(pykmip_server, opened, reason):
    (uid,) = pykmip_server.create_keys(1)
    key = opened(uid)
    wrapped = key.wrap(SECRET, CONTEXT)
    pykmip_server.administer({"do": "revoke", "uid": uid, "reason": reason})
    state = "compromised" if reason == "KEY_COMPROMISE" else "deactivated"
    assert key.describe() == {"algorithm": "AES-256", "state": state}
    for refused in (lambda: key.unwrap(wrapped, CONTEXT), lambda: key.wrap(SECRET, CONTEXT)):
        with pytest.raises(KeyDeniedError, match="does not allow") as caught:
            refused()
        assert "active" in caught.value.hint
    with pytest.raises(KeyDeniedError, match="not active"):
        opened(uid).wrap(SECRET, CONTEXT)
    pykmip_server.administer({"do": "destroy", "uid": uid})
    with pytest.raises(NoMatchingKeyError, match="no such key"):
        key.unwrap(wrapped, CONTEXT)


def test_keys_that_must_not_be_a_kek_are_refused(pykmip_server, opened):
    pair, triple_des, exported, inactive = pykmip_server.administer(
        {"do": "create_key_pair"},
        {"do": "create", "algorithm": "TRIPLE_DES", "bits": 192},
        {"do": "create", "masks": ["ENCRYPT", "DECRYPT", "EXPORT"]},
        {"do": "create", "active": False},
    )
    for uid, why in (*((uid, "symmetric AES") for uid in pair), (triple_des, "symmetric AES")):
        with pytest.raises(ConfigError, match=why):
            opened(uid).wrap(SECRET, CONTEXT)
    with pytest.raises(ConfigError, match="taken out"):
        opened(exported).wrap(SECRET, CONTEXT)
    with pytest.raises(KeyDeniedError, match="not active"):
        opened(inactive).wrap(SECRET, CONTEXT)
    with pytest.raises(NoMatchingKeyError):
        opened("no-such-key").wrap(SECRET, CONTEXT)


def test_keys_of_128_bits_will_do(pykmip_server, opened):
    (uid,) = pykmip_server.administer({"do": "create", "bits": 128})
    key = opened(uid)
    assert key.unwrap(key.wrap(SECRET, CONTEXT), CONTEXT) == SECRET
    assert key.describe()["algorithm"] == "AES-128"


def test_a_version_that_the_service_does_not_speak_is_named(opened):
    start = time.monotonic()
    with pytest.raises(KMSError, match=r"does not speak KMIP 2\.1") as caught:
        opened("1", suffix="?version=2.1").unwrap(WRAPPED, CONTEXT)
    assert not caught.value.retryable
    assert "?version=1.4" in caught.value.hint
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("wrong", ["expired", "another authority", "not for clients"])
def test_a_client_certificate_that_is_not_accepted_is_denied(pykmip_server, opened, tmp_path, wrong):
    certificate = {
        "expired": lambda: pykmip_server.clients.issue("c", days=-1),
        "another authority": lambda: ClientAuthority(tmp_path, "foreign").issue("c"),
        "not for clients": lambda: pykmip_server.clients.issue("c", for_clients=False),
    }[wrong]()
    start = time.monotonic()
    with pytest.raises(KeyDeniedError, match="does not accept the client certificate") as caught:
        opened("1", certificate).unwrap(WRAPPED, CONTEXT)
    assert "cert_file" in caught.value.hint
    assert time.monotonic() - start < 4


def test_no_client_certificate_is_said_before_anything_is_sent(pykmip_server):
    service = Service(uri=f"kmip://{pykmip_server.host}:{pykmip_server.port}", ca_file=str(pykmip_server.ca_file))
    with opener(service) as open_one, pytest.raises(ConfigError, match="no client certificate"):
        open_one(pykmip_server.key_uri("1"))


def _assert_untrusted(key):
    start = time.monotonic()
    with pytest.raises(KMSError, match="do not trust each other") as caught:
        key.unwrap(WRAPPED, CONTEXT)
    assert type(caught.value) is KMSError
    assert "ca_file" in caught.value.hint
    assert time.monotonic() - start < 4


def test_a_service_of_another_authority_is_not_trusted(pykmip_server, opened, tmp_path):
    _assert_untrusted(opened("1", ca_file=str(ClientAuthority(tmp_path, "foreign").ca_file)))
    _assert_untrusted(opened("1", ca_file=None))


def test_a_service_of_another_name_is_not_trusted(pykmip_server, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: look_up("127.0.0.1", *args, **kw))
    given = {"ca_file": str(pykmip_server.ca_file), "cert_file": str(pykmip_server.client_certificate)}
    service = Service(uri="kmip://", key_file=str(pykmip_server.client_certificate), **given)
    with opener(service) as open_one:
        for host in ("kmip.hospital.example", "127.0.0.2"):
            _assert_untrusted(open_one(f"kmip://{host}:{pykmip_server.port}/1"))
        # The certificate is for this one, so it was not the connection that failed.
        with pytest.raises((KeyDeniedError, NoMatchingKeyError, UnwrapError)):
            open_one(f"kmip://localhost:{pykmip_server.port}/1").unwrap(WRAPPED, CONTEXT)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_and_forked_children_use_one_key(pykmip_server, opened):
    (uid,) = pykmip_server.create_keys(1)
    key = opened(uid)
    wrapped = key.wrap(SECRET, CONTEXT)

    def unwraps(count):
        return all(key.unwrap(wrapped, CONTEXT) == SECRET for _ in range(count))

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(unwraps, 15) for _ in range(3)]
        # While the other threads are in the middle of it, one of them with the lock.
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if unwraps(3) else 1)
            children.append(child)
        assert all(result.result() for result in results)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert unwraps(1)


def test_a_server_that_was_stopped_cannot_be_reached(tmp_path):
    files = {"ca_file": tmp_path / "ca.pem", "cert_file": tmp_path / "client.pem"}
    with pykmip.start() as server, contextlib.ExitStack() as stack:
        files["ca_file"].write_bytes(server.ca_file.read_bytes())
        files["cert_file"].write_bytes(server.client_certificate.read_bytes())
        given = {name: str(file) for name, file in files.items()}
        service = Service(uri="kmip://", key_file=given["cert_file"], timeout_s=0.5, **given)
        key = stack.enter_context(opener(service))(server.key_uri(*server.create_keys(1)))
        wrapped = key.wrap(SECRET, CONTEXT)
        # Its connection is open when the server is killed.
        stack = stack.pop_all()
    with stack:
        start = time.monotonic()
        with pytest.raises(KMSUnavailableError, match="cannot be reached"):
            key.unwrap(wrapped, CONTEXT)
        assert time.monotonic() - start < 4


def test_a_store_on_it_and_from_one_key_to_the_next(pykmip_server, tmp_path, capsys):
    uris = [pykmip_server.key_uri(uid) for uid in pykmip_server.create_keys(2)]
    pem = pykmip_server.client_certificate
    (tmp_path / "sovstore.toml").write_text(
        f'[controllers.us]\nlegal_entity = "us"\njurisdiction = "FR"\nparent = "none"\n'
        f'technology_origin = "open-source"\nas_of = {datetime.now(UTC).date()}\nsource = "us"\n'
        f'[kms.tests]\nuri = "kmip://{pykmip_server.host}:{pykmip_server.port}"\ncontroller = "us"\n'
        f'ca_file = "{pykmip_server.ca_file}"\ncert_file = "{pem}"\nkey_file = "{pem}"\n'
    )
    file = make_store(tmp_path, kek=uris[0])
    open_fs(file).pipe_file("a/b", b"content")
    for command in (["rotate-kek", "cohortes"], ["add-kek", "cohortes", uris[1]], ["remove-kek", "cohortes", uris[0]]):
        assert main(["--config", str(file), "keys", *command]) == 0, capsys.readouterr().err
    pykmip_server.administer(
        {"do": "revoke", "uid": uris[0].rsplit("/", 1)[1]}, {"do": "destroy", "uid": uris[0].rsplit("/", 1)[1]}
    )
    SovFileSystem.clear_instance_cache()
    assert config.load(file).store("cohortes").kek == uris[1]
    assert open_fs(file).cat_file("a/b") == b"content"

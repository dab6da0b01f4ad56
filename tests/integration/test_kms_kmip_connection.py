"""The connection of the KMIP driver when services break off, are slow or silent: a fake (`tests.servers.kmip_fake`)."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sovstore.errors import (
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
)
from sovstore.kms import kmip_connection
from sovstore.kms.kmip_messages import Operation, Tag
from sovstore.kms.kmip_ttlv import Item, Type
from tests.servers.kmip_fake import UID, reply, running
from tests.servers.opened import opener
from tests.servers.ports import free_ports

CONTEXT = bytes(range(32))
SECRET = b"canary-secret-31d0-never-print-it"[:32]
WRAPPED = bytes([1, 12]) + bytes(12 + 16) + bytes(64)
DATA = Item(Tag.DATA, Type.BYTES, SECRET + CONTEXT)


@pytest.fixture(scope="module")
def fake_server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("kmip-fake")) as fake:
        yield fake


@pytest.fixture
def fake(fake_server):
    fake_server.requests.clear()
    fake_server.names.clear()
    return fake_server


@pytest.fixture
def fake_key(fake):
    """A key of the fake, with 10 s for a call."""
    with opener(fake.service()) as opened:
        yield opened(fake.uri)


def _assert_untrusted(key):
    start = time.monotonic()
    with pytest.raises(KMSError, match="do not trust each other") as caught:
        key.unwrap(WRAPPED, CONTEXT)
    assert type(caught.value) is KMSError
    assert "ca_file" in caught.value.hint
    assert time.monotonic() - start < 4


def test_a_connection_that_the_service_closed_is_opened_again(fake, fake_key):
    fake.answers(DECRYPT=[DATA])
    good, closing = fake.answer, [True]
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    fake.answer = lambda request: None if closing and closing.pop() else good(request)
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.names) == 2
    assert len(fake.requests) == 3


def test_a_reply_that_nobody_asked_for_is_never_taken_for_the_next(fake, fake_key):
    false = reply(Operation.DECRYPT, UID, Item(Tag.DATA, Type.BYTES, bytes(32) + CONTEXT))
    good = reply(Operation.DECRYPT, UID, DATA)
    late = threading.Event()

    def answer(_):
        fake.answer = lambda _: good
        connection = fake.connections[-1]
        connection.sendall(good)
        late.wait(10)
        return false

    fake.answer = answer
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    late.set()
    time.sleep(0.2)
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.names) == 2


def test_a_service_that_always_closes_is_unreachable_in_time(fake):
    fake.answer = lambda _: None
    start = time.monotonic()
    with opener(fake.service(timeout_s=0.5)) as open_one, pytest.raises(KMSUnavailableError, match="cannot be reached"):
        open_one(fake.uri).unwrap(WRAPPED, CONTEXT)
    assert time.monotonic() - start < 4


def test_an_idle_connection_is_not_trusted(fake, fake_key, monkeypatch):
    fake.answers(DECRYPT=[DATA])
    monkeypatch.setattr(kmip_connection, "_IDLE_S", 0.0)
    fake_key.unwrap(WRAPPED, CONTEXT)
    fake_key.unwrap(WRAPPED, CONTEXT)
    assert len(fake.names) == 2


def test_a_renewed_certificate_is_used_without_a_restart(fake, tmp_path):
    renewed = tmp_path / "client.pem"
    renewed.write_bytes(fake.authority.issue("client", days=-1).read_bytes())
    fake.answers(DECRYPT=[DATA])
    service = fake.service(cert_file=str(renewed), key_file=str(renewed), timeout_s=1.0)
    with opener(service) as open_one:
        key = open_one(fake.uri)
        # In TLS 1.3 the refusal comes after the handshake, together with the end of the connection.
        with pytest.raises(KeyDeniedError, match="does not accept the client certificate"):
            key.unwrap(WRAPPED, CONTEXT)
        renewed.write_bytes(fake.certificate.read_bytes())
        assert key.unwrap(WRAPPED, CONTEXT) == SECRET


def test_a_refusal_is_read_although_nothing_can_be_sent_any_more(fake, monkeypatch):
    def closed(*_args):
        raise BrokenPipeError

    expired = str(fake.authority.issue("client", days=-1))
    with opener(fake.service(cert_file=expired, key_file=expired)) as open_one:
        monkeypatch.setattr(ssl.SSLSocket, "sendall", closed)
        with pytest.raises(KeyDeniedError, match="does not accept the client certificate"):
            open_one(fake.uri).unwrap(WRAPPED, CONTEXT)


def test_a_connection_is_not_kept_after_a_reply_that_cannot_be_read(fake, fake_key):
    fake.answers(DECRYPT=[DATA], ENCRYPT=[])
    good = fake.answer
    fake.answer = lambda _: reply(Operation.DECRYPT, UID, DATA, beside=(DATA,))
    with pytest.raises(KMSError, match="interface"):
        fake_key.unwrap(WRAPPED, CONTEXT)
    fake.answer = good
    assert fake_key.unwrap(WRAPPED, CONTEXT) == SECRET
    assert len(fake.names) == 2


# What only listens.


@contextlib.contextmanager
def _listening(serve):
    """Accept connections on loopback and hand each to `serve`, in a thread."""
    over, threads = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def accept():
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=_serve, args=(connection,)))
                    threads[-1].start()

        def _serve(connection):
            with connection, contextlib.suppress(OSError):
                serve(connection, over)

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            for thread in threads:
                thread.join(10)


def _silent(connection, over):
    over.wait(10)


def _dripping(connection, over):
    while not over.wait(0.05):
        connection.sendall(b"\x16")


@pytest.mark.parametrize("serve", [_silent, _dripping])
def test_a_handshake_that_does_not_end_is_ended(fake, serve):
    with _listening(serve) as port, opener(fake.service(uri=f"kmip://localhost:{port}", timeout_s=0.5)) as open_one:
        start = time.monotonic()
        with pytest.raises(KMSError) as caught:
            open_one(f"kmip://localhost:{port}/kek-1").unwrap(WRAPPED, CONTEXT)
        assert time.monotonic() - start < 4
    if serve is _silent:
        assert isinstance(caught.value, KMSUnavailableError)
        assert "timeout_s" in caught.value.hint


@pytest.mark.parametrize("part", [0, 4, 8, 40])
def test_half_a_reply_and_silence_is_out_of_time(fake, part):
    over, good = threading.Event(), reply(Operation.DECRYPT, UID, DATA)

    def answer(_):
        fake.answer = lambda _: over.wait(10) and None
        return good[:part]

    fake.answer = answer
    try:
        with opener(fake.service(timeout_s=0.5)) as open_one:
            start = time.monotonic()
            with pytest.raises(KMSUnavailableError, match=r"within 0\.5 s"):
                open_one(fake.uri).unwrap(WRAPPED, CONTEXT)
            assert time.monotonic() - start < 4
    finally:
        over.set()


def test_a_service_that_does_not_speak_tls_is_not_trusted(fake):
    def serve(connection, over):
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with _listening(serve) as port, opener(fake.service(uri=f"kmip://localhost:{port}")) as open_one:
        _assert_untrusted(open_one(f"kmip://localhost:{port}/kek-1"))


def _unknown(host, *_args, **_kwargs):
    raise socket.gaierror(socket.EAI_NONAME, f"canary: {host}")


@pytest.mark.parametrize("known", [True, False])
def test_a_host_that_is_not_there_is_unreachable(fake, monkeypatch, known):
    (port,) = free_ports(1)
    if not known:
        monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    with opener(fake.service(uri="kmip://", timeout_s=0.5)) as open_one:
        start = time.monotonic()
        with pytest.raises(KMSUnavailableError, match="cannot be reached") as caught:
            open_one(f"kmip://localhost:{port}/kek-1").unwrap(WRAPPED, CONTEXT)
        assert time.monotonic() - start < 4
    assert "canary" not in str(caught.value)


def test_an_address_that_nobody_answers_at_does_not_take_the_time_of_the_next(fake, monkeypatch):
    look_up, left = socket.getaddrinfo, []

    def two(host, *args, **kwargs):
        found = look_up("127.0.0.1", *args, **kwargs)
        return [(*found[0][:4], ("192.0.2.1", fake.port)), *found] if host == "localhost" else found

    create = socket.create_connection

    def connect(address, timeout_s):
        left.append(timeout_s)
        if address[0] == "192.0.2.1":
            # As long as the driver lets it.
            time.sleep(timeout_s)
            raise TimeoutError
        return create(address, timeout_s)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    monkeypatch.setattr(socket, "create_connection", connect)
    fake.answers(DECRYPT=[DATA])
    with opener(fake.service(timeout_s=1.0)) as open_one:
        assert open_one(fake.uri).unwrap(WRAPPED, CONTEXT) == SECRET
    assert 0.3 < left[0] <= 0.5


def test_waiting_for_another_thread_counts(fake):
    slow = threading.Event()
    fake.answer = lambda _: slow.wait(10) and None
    with opener(fake.service(timeout_s=0.6)) as open_one, ThreadPoolExecutor(2) as pool:
        key = open_one(fake.uri)
        start = time.monotonic()
        results = [pool.submit(key.unwrap, WRAPPED, CONTEXT) for _ in range(2)]
        for result in results:
            with pytest.raises(KMSUnavailableError, match="did not answer"):
                result.result()
        assert time.monotonic() - start < 4
        slow.set()


def test_no_connection_is_left_open(fake):
    """A `ResourceWarning` would fail this test."""
    fake.answers(DECRYPT=[DATA])
    with opener(fake.service()) as open_one:
        key = open_one(fake.uri)
        key.unwrap(WRAPPED, CONTEXT)
        del key
    gc.collect()

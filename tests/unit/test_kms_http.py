"""The client of services that speak JSON over HTTPS, against tiny servers on loopback."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from sovstore.errors import ConfigError, KeyDeniedError, KMSError, KMSUnavailableError, MissingDependencyError
from sovstore.kms.http import HTTPService
from sovstore.kms.service import Errors
from sovstore.kms.settings import Service
from tests.servers import loopback
from tests.servers.clients import ClientAuthority
from tests.servers.loopback import reply, serve
from tests.servers.tls import make_certificate

ERRORS = Errors("okms://of-the-tests", "okms", "The service")
TOKEN = "canary-token-5a1c"
GOOD = reply(200, {"answer": 42})


@pytest.fixture(scope="module")
def server_files(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    return ClientAuthority(tmp_path_factory.mktemp("clients"))


@pytest.fixture
def server_tls(server_files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_files.certificate)
    return context


@pytest.fixture
def mutual_tls(server_tls, clients):
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.load_verify_locations(clients.ca_file)
    return server_tls


def _service(url, *, headers=lambda: {"Authorization": f"Bearer {TOKEN}"}, **settings):
    settings = {"timeout_s": 5.0} | {name: str(v) if "file" in name else v for name, v in settings.items()}
    return HTTPService(
        Service(**settings),
        url,
        ERRORS,
        extra="okms",
        headers=headers,
        request_id=lambda headers, body: headers.get("x-request-id"),
    )


def _took(seconds, call):
    """Run a call and check that it ended within `seconds`."""
    started = time.monotonic()
    try:
        return call()
    finally:
        assert time.monotonic() - started < seconds


def test_a_reply_comes_with_its_request_id():
    with serve(reply(200, {"answer": 42}, "X-Request-Id: r-1")) as server:
        answer = _service(server.url).request("POST", "/path", {"question": 1})
    assert (answer.status, answer.body, answer.request_id) == (200, {"answer": 42}, "r-1")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /path HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}".encode() in head
    assert f"Authorization: Bearer {TOKEN}".encode() in head
    assert b"Content-Type: application/json" in head
    assert body == b'{"question": 1}'


@pytest.mark.parametrize("name", ["a" * 129, "a\tb", ""])
def test_a_request_id_that_cannot_be_shown_is_cut_or_left_out(name):
    with serve(reply(200, {}, f"X-Request-Id: {name}")) as server:
        assert _service(server.url).request("GET", "/").request_id == (name[:128] if name.isalpha() else None)


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff", b"[" * 60000, b"1" * 5000])
def test_what_is_no_json_is_a_text(body):
    with serve(reply(404, body)) as server:
        assert isinstance(_service(server.url).request("GET", "/").body, str)


def test_a_reply_does_not_show_its_body():
    with serve(GOOD) as server:
        assert "42" not in repr(_service(server.url).request("GET", "/"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_private_authority_is_trusted_where_it_is_named(server_tls, server_files, host):
    with serve(GOOD, tls=server_tls) as server:
        url = f"https://{host}:{server.port}"
        assert _service(url, ca_file=server_files.ca_file).request("GET", "/").status == 200


def test_an_unknown_authority_is_refused_before_anything_is_sent(server_tls):
    with serve(GOOD, tls=server_tls) as server, pytest.raises(KMSError, match="do not trust each other") as caught:
        _service(server.url).request("GET", "/")
    assert not isinstance(caught.value, KMSUnavailableError)
    assert (server.connections, server.requests) == (1, [])


def test_another_host_name_is_refused_before_anything_is_sent(server_tls, server_files):
    distrusted = pytest.raises(KMSError, match="do not trust each other")
    with serve(GOOD, tls=server_tls, address="127.0.0.2") as server, distrusted:
        _service(server.url, ca_file=server_files.ca_file).request("GET", "/")
    assert (server.connections, server.requests) == (1, [])


def test_the_host_name_is_told_to_the_server(server_tls, server_files):
    names = []
    server_tls.sni_callback = lambda _socket, name, _context: names.append(name)
    with serve(GOOD, tls=server_tls) as server:
        _service(f"https://localhost:{server.port}", ca_file=server_files.ca_file).request("GET", "/")
    assert names == ["localhost"]


def test_old_tls_is_refused(server_tls, server_files):
    server_tls.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server_tls.minimum_version = server_tls.maximum_version = ssl.TLSVersion.TLSv1_1
    with serve(GOOD, tls=server_tls) as server, pytest.raises(KMSError, match="TLS handshake failed"):
        _service(server.url, ca_file=server_files.ca_file).request("GET", "/")


def test_a_certificate_of_the_client_is_shown(mutual_tls, server_files, clients):
    pem = clients.issue("known")
    with serve(GOOD, tls=mutual_tls) as server:
        service = _service(server.url, ca_file=server_files.ca_file, cert_file=pem, key_file=pem)
        assert service.request("GET", "/").status == 200


def test_a_client_without_certificate_is_told_so_at_once(mutual_tls, server_files):
    with serve(GOOD, tls=mutual_tls) as server, pytest.raises(KMSError, match="do not trust each other"):
        _took(3, lambda: _service(server.url, ca_file=server_files.ca_file).request("GET", "/"))


@pytest.mark.parametrize("setting", ["ca_file", "cert_file"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_that_cannot_be_used_is_an_error_of_the_configuration(setting, content, tmp_path):
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be used for TLS") as caught:
        _service("https://127.0.0.1:1", **{setting: file})
    assert setting in caught.value.hint


def test_a_private_key_under_a_passphrase_is_refused_and_nobody_is_asked(clients, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    protected = tmp_path / "protected.pem"
    protected.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        _service("https://127.0.0.1:1", cert_file=clients.ca_file, key_file=protected)


def test_a_redirect_is_not_followed():
    with serve(GOOD) as other, serve(reply(307, {}, f"Location: {other.url}/")) as server:
        assert _service(server.url).request("GET", "/").status == 307
    assert other.connections == 0


def test_a_reply_that_is_too_long_is_refused_at_once():
    with serve(reply(200, b"a" * 2**16), reply(200, b"a" * (2**16 + 1))) as server:
        service = _service(server.url)
        assert len(service.request("GET", "/").body) == 2**16
        with pytest.raises(KMSError, match="did not answer as its interface says") as caught:
            service.request("GET", "/")
    assert not caught.value.retryable
    assert server.connections == 2


def test_a_reply_without_end_is_refused():
    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"a" * 65536)

    with serve(flood) as server, pytest.raises(KMSError, match="did not answer as its interface says"):
        _took(3, lambda: _service(server.url).request("GET", "/"))


def test_a_compressed_reply_is_not_unpacked():
    import gzip

    with serve(reply(200, gzip.compress(b"{}" * 2**20), "Content-Encoding: gzip")) as server:
        assert isinstance(_service(server.url).request("GET", "/").body, str)
    assert b"Accept-Encoding: identity" in server.requests[0]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"])
def test_a_server_that_drips_is_given_up_in_time(start):
    def drip(connection):
        connection.sendall(start)
        while not server.wait(0.05):
            connection.sendall(b"a")

    with serve(drip) as server, pytest.raises(KMSUnavailableError, match=r"did not answer within 0\.6 s"):
        _took(1.2, lambda: _service(server.url, timeout_s=0.6).request("GET", "/"))


def test_a_server_that_repeats_informational_replies_is_given_up_in_time():
    def stall(connection):
        while not server.wait(0.02):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    with serve(stall) as server, pytest.raises(KMSUnavailableError, match="did not answer within"):
        _took(1.2, lambda: _service(server.url, timeout_s=0.5).request("GET", "/"))


def test_a_silent_server_is_given_up_in_time():
    with serve(lambda _: server.wait(9)) as server, pytest.raises(KMSUnavailableError, match="did not answer within"):
        _took(1.2, lambda: _service(server.url, timeout_s=0.5).request("GET", "/"))


def test_a_silent_handshake_is_given_up_in_time(server_files):
    # Without TLS it waits for a request that never ends.
    with serve(GOOD) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(KMSUnavailableError, match="did not answer within"):
            _took(1.2, lambda: _service(url, ca_file=server_files.ca_file, timeout_s=0.5).request("GET", "/"))


def test_nobody_there_is_tried_again_until_the_time_is_over():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(KMSUnavailableError, match="cannot be reached"):
            _took(1.5, lambda: _service(url, timeout_s=0.5).request("GET", "/"))


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "a" * 64 + ".invalid"])
def test_a_host_without_address_cannot_be_reached(host, monkeypatch):
    def lookup(name, *args, **kwargs):
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(KMSUnavailableError, match="cannot be reached"):
        _service(f"https://{host}", timeout_s=0.1).request("GET", "/")


def test_the_second_address_is_tried_when_the_first_is_dead(monkeypatch):
    with serve(GOOD) as server:
        dead, alive = (socket.AF_INET, socket.SOCK_STREAM, 6, ""), (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [(*dead, ("127.0.0.3", server.port)), (*alive, ("127.0.0.1", server.port))]
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *a, **k: found if host == "two.example" else _REAL(host, *a, **k)
        )
        assert _service(f"http://two.example:{server.port}").request("GET", "/").status == 200


_REAL = socket.getaddrinfo


@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", GOOD[:-1]])
def test_half_a_reply_is_asked_for_again(half):
    with serve(half, GOOD) as server:
        assert _service(server.url).request("GET", "/").body == {"answer": 42}
    assert server.connections == 2


def test_half_a_reply_over_tls_is_asked_for_again(server_tls, server_files):
    with serve(GOOD[:-1], b"", GOOD, tls=server_tls) as server:
        assert _service(server.url, ca_file=server_files.ca_file).request("GET", "/").status == 200
    assert server.connections == 3


def test_a_handshake_that_breaks_off_is_tried_again(server_files):
    def hang_up(connection):
        connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(5)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(_service(url, ca_file=server_files.ca_file, timeout_s=2.0).request, "GET", "/")
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    hang_up(connection)
            listener.close()
            with pytest.raises(KMSUnavailableError, match="cannot be reached"):
                answer.result()


def test_what_is_no_http_cannot_be_reached():
    with serve(b"SSH-2.0-OpenSSH_9.6\r\n") as server, pytest.raises(KMSUnavailableError, match="cannot be reached"):
        _service(server.url, timeout_s=0.3).request("GET", "/")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_service_that_is_away_for_a_moment_is_asked_again(status):
    with serve(reply(status, b"later"), GOOD) as server:
        assert _service(server.url).request("GET", "/").status == 200
    assert server.connections == 2


@pytest.mark.parametrize(("status", "words"), [(429, "asks for fewer requests"), (503, "not available now")])
def test_a_service_that_is_away_for_ever_ends_in_time(status, words):
    answer = reply(status, b"secret words of the service", "X-Request-Id: r-2")
    with serve(answer) as server, pytest.raises(KMSUnavailableError, match=words) as caught:
        _took(1.5, lambda: _service(server.url, timeout_s=1.0).request("GET", "/"))
    assert caught.value.request_id == "r-2"
    assert "secret words" not in str(caught.value)
    assert 2 <= server.connections <= 10


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_any_other_status_comes_at_once(status):
    with serve(reply(status, {})) as server:
        assert _service(server.url).request("GET", "/").status == status
    assert server.connections == 1


def test_a_driver_may_ask_again_for_what_it_sees_in_a_reply():
    def check(answer):
        if answer.body == "busy":
            raise ERRORS.throttled()

    with serve(reply(400, b"busy"), reply(200, b"busy"), GOOD) as server:
        assert _service(server.url).request("GET", "/", check=check).body == {"answer": 42}
    assert server.connections == 3


def test_a_driver_may_refuse_at_once_what_would_be_asked_for_again():
    def check(answer):
        raise ERRORS.denied("refuses", "hint")

    with serve(reply(503, {})) as server, pytest.raises(KeyDeniedError):
        _service(server.url).request("GET", "/", check=check)
    assert server.connections == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(name, monkeypatch):
    with serve(reply(502, {})) as proxy, serve(GOOD) as server:
        for variable in (name, name.lower()):
            monkeypatch.setenv(variable, proxy.url)
        assert _service(server.url).request("GET", "/").status == 200
    assert proxy.connections == 0


def test_a_netrc_does_not_replace_the_credentials(tmp_path, monkeypatch):
    file = tmp_path / ".netrc"
    file.write_text("machine 127.0.0.1 login somebody password else\ndefault login somebody password else\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(GOOD) as server:
        _service(server.url).request("GET", "/")
        _service(server.url, headers=dict).request("GET", "/")
    assert f"Authorization: Bearer {TOKEN}".encode() in server.requests[0]
    assert b"authorization" not in server.requests[1].lower()


def test_a_cookie_is_not_kept():
    with serve(reply(200, {}, "Set-Cookie: a=b; Path=/"), GOOD) as server:
        service = _service(server.url)
        service.request("GET", "/")
        service.request("GET", "/")
    assert b"cookie" not in server.requests[1].lower()


def test_credentials_are_asked_for_at_each_request():
    tokens = iter(["at opening", "one", "two"])
    with serve(GOOD) as server:
        service = _service(server.url, headers=lambda: {"X-Token": next(tokens)})
        service.request("GET", "/")
        service.request("GET", "/")
    assert [b"X-Token: one" in server.requests[0], b"X-Token: two" in server.requests[1]] == [True, True]


@pytest.mark.parametrize("bad", ["é", "a\nb", "a\0b"])
def test_a_credential_that_cannot_be_sent_is_refused_when_the_key_is_opened(bad):
    with pytest.raises(ConfigError, match="cannot be sent") as caught:
        _service("http://127.0.0.1:1", headers=lambda: {"Authorization": f"{TOKEN}{bad}"})
    _assert_no_token(caught.value)


def _assert_no_token(error):
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert TOKEN not in shown.replace(f"TOKEN = '{TOKEN}'", "")
    assert TOKEN.encode().hex() not in shown


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 2**17, reply(503, {})], ids=["a", "b", "c"]
)
def test_no_error_carries_the_token(answer):
    with serve(answer) as server, pytest.raises(KMSError) as caught:
        _service(server.url, timeout_s=0.2).request("GET", "/")
    _assert_no_token(caught.value)


def test_no_error_of_time_or_of_trust_carries_the_token(server_tls):
    with serve(lambda _: server.wait(9)) as server, pytest.raises(KMSUnavailableError) as late:
        _service(server.url, timeout_s=0.2).request("GET", "/")
    with serve(GOOD, tls=server_tls) as server, pytest.raises(KMSError) as distrusted:
        _service(server.url).request("GET", "/")
    for error in (late.value, distrusted.value):
        _assert_no_token(error)
        assert error.__cause__ is not None


def test_several_threads_at_once():
    with serve(GOOD) as server, ThreadPoolExecutor(8) as pool:
        service = _service(server.url)
        assert all(r.status == 200 for r in pool.map(lambda _: service.request("GET", "/"), range(40)))


def test_a_forked_child_and_its_parent_both_go_on():
    with serve(GOOD) as server:
        service = _service(server.url)
        service.request("GET", "/")
        assert _in_child(lambda: service.close() or service.request("GET", "/").status == 200)
        assert service.request("GET", "/").status == 200
    assert server.connections == 3


def _in_child(check):
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads, which is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        good = False
        try:
            good = check()
        finally:
            os._exit(0 if good else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_closing_twice_and_asking_again_is_allowed():
    with serve(GOOD) as server:
        service = _service(server.url)
        service.close()
        service.close()
        assert service.request("GET", "/").status == 200


@pytest.mark.parametrize("package", ["httpcore", "tenacity"])
def test_a_missing_package_says_which_extra_brings_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"{package} is not installed") as caught:
        _service("http://127.0.0.1:1")
    assert caught.value.hint == "pip install 'sovstore[okms]'"


def test_the_servers_of_this_module_read_whole_requests():
    with serve(GOOD) as server:
        _service(server.url).request("POST", "/", {"long": "a" * 2**20})
    assert len(server.requests[0]) > 2**20
    assert loopback.reply(200, {}).endswith(b"{}")

"""The tap keeps every byte, changes none, and takes requests out of what it kept."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from tests.servers.tap import tap


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding"):
            while (line := self.rfile.readline()) != b"0\r\n":
                content += self.rfile.read(int(line, 16) + 2)[:-2]
            self.rfile.readline()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_bytes_and_requests(port: int) -> None:
    large = bytes(range(256)) * 4096
    with tap(port) as tapped:
        client = http.client.HTTPConnection("127.0.0.1", tapped.port)
        for body, headers in ((b"first", {"X-Odd": "  a "}), (iter([b"sec", b"ond"]), {}), (large, {})):
            client.request("PUT", "/a%20b?c=d", body, headers, encode_chunked=not isinstance(body, bytes))
            echoed = client.getresponse().read()
            assert echoed in (b"first", b"second", large)
        client.close()
        streams, requests = tapped.streams, tapped.requests()
    assert len(streams) == 1
    assert b"X-Odd:   a \r\n" in streams[0]
    assert b"3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n" in streams[0]
    assert [(head.method, head.target, body) for head, body in requests] == [
        ("PUT", "/a%20b?c=d", b"first"),
        ("PUT", "/a%20b?c=d", b"second"),
        ("PUT", "/a%20b?c=d", large),
    ]


def test_a_request_that_was_broken_off_is_kept(port: int) -> None:
    with tap(port) as tapped:
        client = http.client.HTTPConnection("127.0.0.1", tapped.port)
        client.putrequest("PUT", "/x")
        client.putheader("Content-Length", "9")
        client.endheaders(b"half")
        client.close()
        while not (tapped.streams and tapped.streams[0].endswith(b"half")):
            time.sleep(0.01)
        ((head, body),) = tapped.requests()
    assert (head.target, body) == ("/x", b"half")

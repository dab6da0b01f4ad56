"""Tests of the proxies: every fault really happens, nothing else does, and the counts are right."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit
from uuid import uuid4

import adlfs
import pytest
import s3fs
from azure.core.exceptions import AzureError, HttpResponseError
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from tests.servers.between import faults_between
from tests.servers.faults import LISTINGS, OBJECTS, Faults
from tests.servers.ports import accepts_connections

_SIZE = 3_000_000
_CONTENT = bytes(range(251)) * (_SIZE // 251 + 1)
_CONTENT = _CONTENT[:_SIZE]
_RANGE = (1000, 2_001_000)
_PART = _CONTENT[slice(*_RANGE)]


@pytest.fixture(scope="module")
def target(s3_server):
    """The target of an object that anybody may read, so that a bare HTTP client can."""
    bucket = s3_server.create_bucket(f"faults-{uuid4().hex[:8]}")
    with contextlib.closing(s3_server.client()) as client:
        client.put_object(Bucket=bucket, Key="an object", Body=_CONTENT, ACL="public-read")
    return f"/{bucket}/an%20object"


@contextlib.contextmanager
def _connected(url, *, timeout=10):
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)) as connection:
        yield connection


def _get(url, target, *, timeout=10):
    """Ask for a range in a connection of its own; return the reply and its body."""
    with _connected(url, timeout=timeout) as connection:
        connection.request("GET", target, headers={"Range": f"bytes={_RANGE[0]}-{_RANGE[1] - 1}"})
        reply = connection.getresponse()
        return reply, reply.read()


def _read_until_broken(url, target, *, timeout=10):
    """Ask for a range; return how many bytes came and what ended them."""
    received = 0
    with _connected(url, timeout=timeout) as connection:
        connection.request("GET", target, headers={"Range": f"bytes={_RANGE[0]}-{_RANGE[1] - 1}"})
        reply = connection.getresponse()
        try:
            while piece := reply.read1(4096):
                received += len(piece)
        except OSError as exc:
            return received, exc
    return received, None


def test_without_faults_everything_passes_and_is_counted(s3_faults):
    faulty = s3_faults()
    bucket = faulty.server.create_bucket(f"pass-{uuid4().hex[:8]}")
    fs = s3fs.S3FileSystem(**faulty.server.storage_options)
    content = _CONTENT * 4
    with fs.open(f"{bucket}/big", "wb", block_size=5 << 20) as file:
        file.write(content)
    fs.pipe_file(f"{bucket}/empty", b"")
    assert fs.cat_file(f"{bucket}/big") == content
    assert fs.cat_file(f"{bucket}/big", start=5, end=6_000_000) == content[5:6_000_000]
    assert fs.cat_file(f"{bucket}/empty") == b""
    faulty.proxy.forget()
    fs.invalidate_cache()
    assert fs.find(bucket) == [f"{bucket}/big", f"{bucket}/empty"]
    assert faulty.proxy.count("GET", LISTINGS) == 1
    assert faulty.proxy.count("GET", OBJECTS) == 0
    fs.rm(bucket, recursive=True)
    assert all(request.fault is None and request.status < 400 for request in faulty.proxy.requests)


def test_listings_are_counted_page_by_page(s3_faults):
    faulty = s3_faults()
    bucket = faulty.server.create_bucket(f"pages-{uuid4().hex[:8]}")
    with contextlib.closing(faulty.server.client()) as client:
        for number in range(5):
            client.put_object(Bucket=bucket, Key=f"{number}", Body=b"")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
        assert [len(page["Contents"]) for page in pages] == [2, 2, 1]
    assert faulty.proxy.count("GET", LISTINGS) == 3
    assert faulty.proxy.count("PUT", OBJECTS) == 6  # The bucket is one.
    assert faulty.proxy.count() == 9


def test_a_connection_serves_many_requests(s3_faults, target):
    faulty = s3_faults()
    with _connected(faulty.endpoint_url) as connection:
        for method, size in [("HEAD", 0), ("GET", _SIZE), ("GET", _SIZE)]:
            connection.request(method, target)
            assert len(connection.getresponse().read()) == size
        local = connection.sock.getsockname()
        connection.request("GET", "/no-such-bucket/object")
        assert connection.getresponse().read().startswith(b"<?xml")
        assert connection.sock.getsockname() == local
    assert [request.status for request in faulty.proxy.requests] == [200, 200, 200, 404]


def test_a_request_may_ask_before_it_sends_its_body(s3_faults):
    faulty = s3_faults()
    bucket = faulty.server.create_bucket(f"expect-{uuid4().hex[:8]}")
    with contextlib.closing(faulty.server.client()) as client:
        client.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    with socket.create_connection(("127.0.0.1", faulty.proxy.port), timeout=10) as raw:
        raw.sendall(
            f"PUT /{bucket}/object HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 100 ")
        raw.sendall(b"body")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_tls_through_the_proxy_needs_its_authority(s3_faults, target):
    faulty = s3_faults(Faults(corrupt_at=7), tls=True)
    address = urlsplit(faulty.endpoint_url).netloc
    with (
        contextlib.closing(http.client.HTTPSConnection(address, context=ssl.create_default_context())) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        connection.request("GET", target)
    bucket, name = target.strip("/").split("/")
    with contextlib.closing(faulty.server.client()) as client:
        content = client.get_object(Bucket=bucket, Key=name.replace("%20", " "))["Body"].read()
    assert content[:7] == _CONTENT[:7]
    assert content[7] == _CONTENT[7] ^ 1
    assert content[8:] == _CONTENT[8:]


def test_a_reset_comes_over_tls_too(s3_faults, target):
    faulty = s3_faults(Faults(reset_after=100_000), tls=True)
    bucket, name = target.strip("/").split("/")
    with contextlib.closing(faulty.server.client()) as client:
        body = client.get_object(Bucket=bucket, Key=name.replace("%20", " "))["Body"]
        with pytest.raises(ResponseStreamingError):
            body.read()


def test_a_reset_comes_after_so_many_bytes(s3_faults, target):
    faulty = s3_faults(Faults(reset_after=100_000))
    received, error = _read_until_broken(faulty.endpoint_url, target)
    assert (received, type(error)) == (100_000, ConnectionResetError)
    assert faulty.proxy.count(fault="reset_after") == 1


def test_an_orderly_end_comes_after_so_many_bytes(s3_faults, target):
    faulty = s3_faults(Faults(close_after=100_000))
    assert _read_until_broken(faulty.endpoint_url, target) == (100_000, None)
    with pytest.raises(http.client.IncompleteRead):
        _get(faulty.endpoint_url, target)


def test_a_stalled_reply_never_goes_on(s3_faults, target):
    faulty = s3_faults(Faults(stall_after=100_000))
    received, error = _read_until_broken(faulty.endpoint_url, target, timeout=0.5)
    assert (received, type(error)) == (100_000, TimeoutError)


def test_a_fault_beyond_the_end_is_none(s3_faults, target):
    faulty = s3_faults(Faults(reset_after=_SIZE))
    assert _get(faulty.endpoint_url, target)[1] == _PART
    assert faulty.proxy.requests[0].fault is None


def test_a_lost_reply_was_acted_on(s3_faults):
    faulty = s3_faults()
    bucket = faulty.server.create_bucket(f"lost-{uuid4().hex[:8]}")
    faulty.proxy.faults = Faults(lose_reply=True, methods=("PUT",))
    with contextlib.closing(faulty.server.client(retries={"total_max_attempts": 1})) as client:
        with pytest.raises(ConnectionClosedError):
            client.put_object(Bucket=bucket, Key="object", Body=_CONTENT)
        assert client.get_object(Bucket=bucket, Key="object")["Body"].read() == _CONTENT
    assert [(request.method, request.status) for request in faulty.proxy.requests][-2:] == [("PUT", 200), ("GET", 200)]


def test_a_request_cut_short_is_not_acted_on(s3_faults):
    faulty = s3_faults()
    bucket = faulty.server.create_bucket(f"cut-{uuid4().hex[:8]}")
    faulty.proxy.faults = Faults(reset_request_after=1_000_000, methods=("PUT",), limit=1)
    with contextlib.closing(faulty.server.client(retries={"total_max_attempts": 1})) as client:
        with pytest.raises(ConnectionClosedError):
            client.put_object(Bucket=bucket, Key="object", Body=_CONTENT)
        assert "Contents" not in client.list_objects_v2(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="object", Body=_CONTENT)


@pytest.mark.parametrize(
    ("faults", "status", "content_range", "body"),
    [
        (Faults(), 206, (1000, 2_000_999), _PART),
        (Faults(wrong_content_range=True), 206, (1001, 2_001_000), _PART),
        (Faults(whole_object=True), 200, None, _CONTENT),
        (Faults(shorter_by=1), 206, (1000, 2_000_999), _PART[:-1]),
        (Faults(longer_by=3), 206, (1000, 2_000_999), _PART + b"\xa5" * 3),
        (Faults(corrupt_at=0), 206, (1000, 2_000_999), bytes([_PART[0] ^ 1]) + _PART[1:]),
    ],
    ids=lambda value: value.kind or "none" if isinstance(value, Faults) else "",
)
def test_a_wrong_reply_is_well_formed(s3_faults, target, faults, status, content_range, body):
    faulty = s3_faults(faults)
    reply, received = _get(faulty.endpoint_url, target)
    assert reply.status == status
    expected = content_range and f"bytes {content_range[0]}-{content_range[1]}/{_SIZE}"
    assert reply.getheader("Content-Range") == expected
    assert int(reply.getheader("Content-Length")) == len(body)
    assert received == body
    assert faulty.proxy.requests[0].fault == faults.kind
    assert faulty.proxy.requests[0].range == "bytes=1000-2000999"


def _pattern(faulty, target, faults):
    faulty.proxy.forget()
    faulty.proxy.faults = faults
    with _connected(faulty.endpoint_url) as connection:
        for _ in range(40):
            connection.request("GET", target, headers={"Range": "bytes=0-9"})
            connection.getresponse().read()
    return [request.fault is not None for request in faulty.proxy.requests]


def test_the_same_seed_strikes_the_same_requests(s3_faults, target):
    faulty = s3_faults()
    first = _pattern(faulty, target, Faults(corrupt_at=0, probability=0.3, seed=1))
    assert 4 <= sum(first) <= 20
    assert _pattern(faulty, target, Faults(corrupt_at=0, probability=0.3, seed=1)) == first
    assert _pattern(faulty, target, Faults(corrupt_at=0, probability=0.3, seed=2)) != first


def test_faults_are_limited_to_a_number_and_to_targets(s3_faults, target):
    faulty = s3_faults()
    assert _pattern(faulty, target, Faults(corrupt_at=0, limit=2)) == [True, True] + [False] * 38
    assert not any(_pattern(faulty, target, Faults(corrupt_at=0, target="other")))


def test_one_kind_of_fault_at_a_time():
    with pytest.raises(ValueError, match="not whole_object, reset_after"):
        Faults(reset_after=0, whole_object=True)


def test_a_busy_server_is_not_asked(s3_faults):
    faulty = s3_faults()
    bucket = faulty.server.create_bucket(f"busy-{uuid4().hex[:8]}")
    faulty.proxy.faults = Faults(busy=True, methods=("PUT",), limit=3)
    with contextlib.closing(faulty.server.client(retries={"total_max_attempts": 1})) as client:
        for body in (b"", b"a little", _CONTENT):
            with pytest.raises(ClientError, match="SlowDown"):
                client.put_object(Bucket=bucket, Key="object", Body=body)
        assert "Contents" not in client.list_objects_v2(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="object", Body=_CONTENT)
    assert [request.status for request in faulty.proxy.requests] == [200, None, None, None, 200, 200]


def test_a_busy_reply_leaves_the_connection_usable(s3_faults, target):
    faulty = s3_faults(Faults(busy=True, limit=1))
    with _connected(faulty.endpoint_url) as connection:
        connection.request("GET", target)
        assert connection.getresponse().read().startswith(b"<?xml")
        local = connection.sock.getsockname()
        connection.request("GET", target)
        assert connection.getresponse().read() == _CONTENT
        assert connection.sock.getsockname() == local


def test_every_request_waits(s3_faults, target):
    faulty = s3_faults(Faults(latency_s=0.2))
    start = time.monotonic()
    _get(faulty.endpoint_url, target)
    assert time.monotonic() - start >= 0.2


def test_a_proxy_stops_while_clients_wait(s3_server, target):
    threads = set(threading.enumerate())
    with faults_between(s3_server, busy_code="SlowDown") as factory:
        port = (faulty := factory(Faults(stall_after=0))).proxy.port
        waiting = http.client.HTTPConnection(urlsplit(faulty.endpoint_url).netloc, timeout=10)
        waiting.request("GET", target)
        assert waiting.getresponse().status == 200
    waiting.close()
    assert not accepts_connections(port)
    assert set(threading.enumerate()) <= threads


def test_azure_passes_and_is_counted(azurite_faults):
    faulty = azurite_faults()
    container = faulty.server.create_container(f"pass-{uuid4().hex[:8]}")
    fs = adlfs.AzureBlobFileSystem(**faulty.server.storage_options)
    fs.pipe_file(f"{container}/folder/an object", _CONTENT)
    assert fs.cat_file(f"{container}/folder/an object", start=10, end=2_000_000) == _CONTENT[10:2_000_000]
    faulty.proxy.forget()
    fs.invalidate_cache()
    assert fs.find(f"{container}/folder") == [f"{container}/folder/an object"]
    assert faulty.proxy.count("GET", LISTINGS) >= 1
    assert faulty.proxy.count("GET", LISTINGS) == faulty.proxy.count("GET", "comp=list")
    fs.rm(f"{container}/folder", recursive=True)
    assert fs.find(container) == []


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(corrupt_at=0), bytes([_PART[0] ^ 1]) + _PART[1:]),
        (Faults(whole_object=True), None),
        (Faults(longer_by=3), _PART + b"\xa5" * 3),
        (Faults(wrong_content_range=True), None),
        (Faults(reset_after=100_000), None),
        (Faults(close_after=100_000), None),
        (Faults(lose_reply=True), None),
    ],
    ids=lambda value: value.kind if isinstance(value, Faults) else "",
)
def test_azure_meets_every_fault(azurite_faults, faults, expected):
    """The SDK takes some wrong replies for right: what is shown here is what comes to it, not that it is safe."""
    faulty = azurite_faults()
    container = faulty.server.create_container(f"faults-{uuid4().hex[:8]}")
    with faulty.server.client(retry_total=0) as client, client.get_blob_client(container, "an object") as blob:
        blob.upload_blob(_CONTENT)
        faulty.proxy.faults = faults
        try:
            received = blob.download_blob(_RANGE[0], len(_PART)).readall()
        except (AzureError, ValueError, ConnectionError):
            received = None
    assert faulty.proxy.count("GET", OBJECTS, fault=faults.kind) >= 1
    if expected is not None:
        assert received == expected


def test_haproxy_passes_signed_requests(s3_faults):
    server = s3_faults.haproxy()
    bucket = server.create_bucket(f"haproxy-{uuid4().hex[:8]}")
    fs = s3fs.S3FileSystem(**server.storage_options)
    fs.pipe_file(f"{bucket}/object", _CONTENT)
    assert fs.cat_file(f"{bucket}/object") == _CONTENT
    assert fs.find(bucket) == [f"{bucket}/object"]


def _outcomes(url, target, *, count=40):
    found = []
    for _ in range(count):
        try:
            reply, body = _get(url, target)
        except (http.client.RemoteDisconnected, ConnectionResetError):
            found.append("closed")
        else:
            found.append("busy" if reply.status == 503 and b"<Code>SlowDown</Code>" in body else reply.status)
    return found


def test_haproxy_strikes_a_share_of_the_requests(s3_faults, target):
    found = _outcomes(s3_faults.haproxy(busy_percent=30, close_percent=30).endpoint_url, target)
    assert set(found) == {"busy", "closed", 206}
    assert all(5 <= found.count(kind) <= 25 for kind in set(found))
    assert _outcomes(s3_faults.haproxy(busy_percent=30, close_percent=30).endpoint_url, target) == found
    assert _outcomes(s3_faults.haproxy(busy_percent=30, close_percent=30, seed=2).endpoint_url, target) != found


def test_haproxy_strikes_all_or_none(s3_faults, target):
    assert set(_outcomes(s3_faults.haproxy(busy_percent=100).endpoint_url, target, count=5)) == {"busy"}
    assert set(_outcomes(s3_faults.haproxy(close_percent=100).endpoint_url, target, count=5)) == {"closed"}


def test_haproxy_makes_every_request_wait(s3_faults, target):
    url = s3_faults.haproxy(latency_ms=100).endpoint_url
    start = time.monotonic()
    assert set(_outcomes(url, target, count=3)) == {206}
    assert time.monotonic() - start >= 0.3


def test_haproxy_speaks_as_azure_does(azurite_faults):
    server = azurite_faults.haproxy(busy_percent=100)
    with server.client(retry_total=0) as client, pytest.raises(HttpResponseError) as caught:
        client.create_container("never")
    assert (caught.value.status_code, caught.value.error_code) == (503, "ServerBusy")
    azurite_faults.haproxy().create_container(f"haproxy-{uuid4().hex[:8]}")

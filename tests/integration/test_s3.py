"""What is particular to the driver of S3: parts, header replacement at the host, conditions, credentials, errors."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import logging
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sovstore.backends.base import Backend, Place
from sovstore.backends.providers import catalogue, parse
from sovstore.backends.registry import open_backend
from sovstore.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectExistsError,
    StoreError,
    StoreUnavailableError,
)
from sovstore.testing.backend import everything, put
from tests.hosts import cheap_key_files, opened_by_one_request, quick_retries
from tests.servers.facts import CEPH, MOTO
from tests.servers.faults import LISTINGS, Faults
from tests.stores import make_store, on_s3, open_fs
from tests.stress import is_long

MIB = 2**20
CANARY = "canary-secret-9c1e"


def place_at(server: Any, facts: Any = CEPH, **settings: Any) -> Place:
    """Return a new bucket of a server, with its keys among the options."""
    root = settings.pop("root", None) or f"{server.create_bucket(f'b{uuid4().hex[:12]}')}/root"
    options = {**server.storage_options, **settings.pop("options", {})}
    return Place(facts, root, options=options, **settings)


def run(place: Place, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async def body() -> Any:
        backend = open_backend(place)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(body())


def pattern(size: int) -> bytes:
    return (b"%d " * 1000 % tuple(range(1000)) * (size // 3000 + 1))[:size]


# Parts


def test_parts_too_large_for_memory_wait_in_files(s3_server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made: list[int] = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: made.append(1) or real())
    data = pattern(70 * MIB + 5)

    async def use(backend: Backend) -> None:
        await put(backend, "a", data)
        assert await everything(backend, "a") == data

    run(place_at(s3_server, options={"part_size": 20 * MIB}), use)
    # All but the first part, which is written to memory as long as the object may be small.
    assert len(made) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_the_host_would_not_take_is_refused_at_once(s3_server: Any) -> None:
    async def use(backend: Backend) -> None:
        with pytest.raises(StoreError, match="takes 1000 at most"):
            await backend.upload("a", size=2000)

    run(place_at(s3_server, parse("small", {"like": "s3", "object_max": 1000}, "test", catalogue())), use)


def test_too_many_parts_say_what_to_do(s3_server: Any) -> None:
    facts = parse("few", {"like": "s3", "parts_max": 2}, "test", catalogue())

    async def use(backend: Backend) -> None:
        upload = await backend.upload("a")
        with pytest.raises(StoreError, match="more than 2 parts") as caught:
            await upload.write(bytes(60 * MIB))
        assert "part_size" in str(caught.value.hint)
        await upload.abort()
        await put(backend, "a", bytes(15 * MIB), size=15 * MIB)

    run(place_at(s3_server, facts, options={"part_size": 5 * MIB}), use)


def test_parts_are_sent_side_by_side(s3_faults: Any) -> None:
    through = s3_faults(Faults(latency_s=0.2))

    async def use(backend: Backend) -> float:
        start = time.monotonic()
        await put(backend, "a", bytes(40 * MIB))
        return time.monotonic() - start

    took = run(place_at(through.server), use)
    parts = through.proxy.count("PUT", "partNumber=")
    assert parts == 5
    # One after the other, the parts alone would wait 5 times; beside the begin, the completion and the connections.
    assert took < 30


def test_the_first_part_too_waits_in_a_file(s3_server: Any) -> None:
    facts = parse("huge", {"like": "s3", "parts_max": 2}, "test", catalogue())

    async def use(backend: Any) -> None:
        upload = await backend.upload("a", size=100 * MIB)
        await upload.write(pattern(40 * MIB))
        assert not isinstance(upload._body, bytearray)
        await upload.write(pattern(60 * MIB))
        await upload.commit()
        assert await everything(backend, "a") == pattern(40 * MIB) + pattern(60 * MIB)

    run(place_at(s3_server, facts), use)


@pytest.mark.parametrize("trouble", ["refused", "cancelled", "no id"])
def test_an_upload_that_cannot_begin_harms_nothing(s3_faults: Any, trouble: str, monkeypatch: Any) -> None:
    """A host may take the abort of an upload without an id for the deletion of the object that is there."""
    through = s3_faults()

    async def use(backend: Any) -> None:
        await put(backend, "a", b"old")
        real = backend.client.call

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            if operation == "create_multipart_upload":
                if trouble == "cancelled":
                    await asyncio.sleep(60)
                return ""
            return await real(what, operation, **arguments)

        if trouble == "refused":
            quick_retries(monkeypatch)
            through.proxy.faults = Faults(busy=True, methods=("POST",), target=r"\?uploads")
        else:
            monkeypatch.setattr(backend.client, "call", call)
        writing = asyncio.ensure_future(put(backend, "a", bytes(20 * MIB)))
        if trouble == "cancelled":
            await asyncio.sleep(0.5)
            writing.cancel()
        with pytest.raises((StoreUnavailableError, asyncio.CancelledError)):
            await writing
        assert await everything(backend, "a") == b"old"
        assert through.proxy.count("DELETE") == 0

    run(place_at(through.server, options={"timeout": 10}), use)


@pytest.mark.parametrize("server", ["s3", "moto"])
def test_an_upload_is_gone_on_with(server: str, request: pytest.FixtureRequest) -> None:
    through = request.getfixturevalue(f"{server}_faults")()
    data = pattern(30 * MIB)

    async def use(backend: Any) -> None:
        begun = await backend.upload("a", size=len(data))
        assert begun.token() is None
        await begun.write(data[: 20 * MIB])
        token = begun.token()
        assert token
        # Its process is gone: what was on its way has arrived, and nothing is aborted.
        await backend.on_loop(begun.sent())
        through.proxy.forget()
        found = await backend.resume("a", token, size=len(data), create=True)
        assert found is not None
        upload, start = found
        assert start == 16 * MIB
        await upload.write(data[start:])
        await upload.commit()
        assert through.proxy.count("PUT", "partNumber=") == 2
        assert await everything(backend, "a") == data
        assert await backend.resume("a", token, size=len(data)) is None
        assert await backend.resume("a", "never-begun", size=len(data)) is None

    run(place_at(through.server, CEPH if server == "s3" else MOTO), use)


def test_an_upload_without_a_whole_part_is_aborted(s3_server: Any) -> None:
    async def use(backend: Any) -> None:
        begun = await backend.upload("a", size=30 * MIB)
        await backend.on_loop(begun.begin())
        assert await backend.resume("a", begun.token(), size=30 * MIB) is None
        assert await backend.sweep(older_than=timedelta(0)) == 0

    run(place_at(s3_server), use)


def test_all_parts_were_there(s3_server: Any) -> None:
    """The last one is sent again: no host takes an empty one."""
    data = pattern(16 * MIB)

    async def use(backend: Any) -> None:
        begun = await backend.upload("a", size=len(data))
        await begun.write(data)
        await backend.on_loop(begun._launch_part(1))
        await backend.on_loop(begun.sent())
        upload, start = await backend.resume("a", begun.token(), size=len(data))
        assert start == 8 * MIB
        await upload.write(data[start:])
        await upload.commit()
        assert await everything(backend, "a") == data

    run(place_at(s3_server), use)


# Header replacement


@pytest.mark.parametrize("server", ["s3", "moto"])
def test_the_host_copies_the_body(server: str, request: pytest.FixtureRequest) -> None:
    through = request.getfixturevalue(f"{server}_faults")()
    data, head = pattern(30 * MIB), b"H" * 128

    async def use(backend: Backend) -> None:
        await put(backend, "a", data)
        through.proxy.forget()
        await backend.copy("a", "b", head=head)
        # 5 MiB come here and go back: the smallest part there is.
        assert through.proxy.count("PUT", "partNumber=") == 2
        assert [r.range for r in through.proxy.requests if r.method == "GET"] == [f"bytes=128-{5 * MIB - 1}"]
        assert await everything(backend, "b") == head + data[128:]

    run(place_at(through.server, CEPH if server == "s3" else MOTO), use)


@pytest.mark.parametrize("server", ["s3", "moto"])
def test_the_host_copies_from_another_bucket(server: str, request: pytest.FixtureRequest) -> None:
    through = request.getfixturevalue(f"{server}_faults")()
    facts = CEPH if server == "s3" else MOTO
    data, other = pattern(20 * MIB), place_at(through.server, facts)

    async def use(backend: Backend) -> None:
        origin = open_backend(other)
        await put(origin, "a", data)
        version: dict[str, Any] = {"size": len(data), "etag": (await origin.stat("a")).etag, "told": lambda _: None}
        through.proxy.forget()
        assert await backend.copy_from(origin, "a", "b", **{**version, "size": 8 * MIB}) is None
        assert through.proxy.requests == []
        upload = await backend.copy_from(origin, "a", "b", **version)
        assert upload is not None
        await upload.commit()
        # Parts as a rename makes them, all of them copied: nothing is fetched.
        assert through.proxy.count("PUT", "partNumber=") == 2
        assert through.proxy.count("GET") == 0
        assert await everything(backend, "b") == data
        through.proxy.forget()
        await backend.copy("b", "c", head=b"H" * 128)
        assert [r.range for r in through.proxy.requests if r.method == "GET"] == [f"bytes=128-{5 * MIB - 1}"]
        assert await everything(backend, "c") == b"H" * 128 + data[128:]
        upload = await backend.copy_from(origin, "a", "d", **version)
        assert upload is not None
        await upload.abort()
        assert await backend.sweep(timedelta(0)) == 0
        await origin.close()

    run(place_at(through.server, facts), use)


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_host_that_copies_nothing_from_another_bucket(s3_faults: Any, status: int) -> None:
    """It is the second part that is refused, the first one being there: nothing of that is left."""
    through = s3_faults()
    data, other = pattern(20 * MIB), place_at(through.server)

    async def use(backend: Backend) -> None:
        origin = open_backend(other)
        await put(origin, "a", data)
        etag = (await origin.stat("a")).etag
        through.proxy.faults = Faults(refuse_with=(status, "Refused"), methods=("PUT",), target="partNumber=2")
        copied = await backend.copy_from(origin, "a", "b", size=len(data), etag=etag, told=lambda _: None)
        assert copied is None
        assert through.proxy.count(fault="refuse_with")
        through.proxy.faults = Faults()
        assert await backend.sweep(timedelta(0)) == 0
        await origin.close()

    run(place_at(through.server, options={"timeout": 20}), use)


@pytest.mark.parametrize("trouble", ["changed", "cancelled"])
def test_a_copy_from_another_bucket_that_ends_early(s3_server: Any, monkeypatch: Any, trouble: str) -> None:
    """Ceph 16 ignores the condition on a part copy: that the source has changed is seen by looking again."""
    old, other = pattern(20 * MIB), place_at(s3_server)

    async def use(backend: Any) -> None:
        origin = open_backend(other)
        await put(origin, "a", old)
        etag = (await origin.stat("a")).etag
        real, seen = backend.client.call, []

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            reply = await real(what, operation, **arguments)
            if operation == "upload_part_copy" and not seen:
                seen.append(operation)
                if trouble == "cancelled":
                    await asyncio.sleep(60)
                await put(origin, "a", old[::-1])
            return reply

        monkeypatch.setattr(backend.client, "call", call)
        copied = backend.copy_from(origin, "a", "b", size=len(old), etag=etag, told=lambda _: None)
        copying = asyncio.ensure_future(copied)
        while trouble == "cancelled" and not seen:
            await asyncio.sleep(0.05)
        if trouble == "cancelled":
            copying.cancel()
        with pytest.raises(asyncio.CancelledError if trouble == "cancelled" else ObjectChangedError):
            await copying
        assert await backend.sweep(timedelta(0)) == 0
        await origin.close()

    run(place_at(s3_server), use)


def test_a_host_that_copies_no_parts(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, head = pattern(20 * MIB), b"H" * 128

    async def use(backend: Any) -> None:
        await put(backend, "a", data)
        real = backend.client.call

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            if operation == "upload_part_copy":
                # What a host says that does not know the request: a part number that it cannot parse.
                arguments["CopySourceRange"] = "bytes=0-0,2-2"
            return await real(what, operation, **arguments)

        monkeypatch.setattr(backend.client, "call", call)
        await backend.copy("a", "b", head=head)
        assert await everything(backend, "b") == head + data[128:]
        assert await backend.sweep(older_than=timedelta(0)) == 0

    run(place_at(s3_server), use)


def test_where_parts_must_be_equal_copies_are_written_anew(s3_faults: Any) -> None:
    through = s3_faults()
    facts = parse("equal", {"like": "s3", "equal_parts": True}, "test", catalogue())
    data, head = pattern(20 * MIB), b"H" * 128

    async def use(backend: Backend) -> None:
        await put(backend, "a", data)
        through.proxy.forget()
        await backend.copy("a", "b", head=head)
        # 8, 8 and 4 MiB, none of them copied by the host.
        assert through.proxy.count("PUT", "partNumber=") == through.proxy.count("GET", "/a") == 3
        assert await everything(backend, "b") == head + data[128:]

    run(place_at(through.server, facts), use)


def test_a_source_that_changes_after_the_copies_is_noticed(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceph 16 ignores the condition on a part copy: a mixture that neither key would open must not become visible."""
    old, new, head = pattern(20 * MIB), pattern(20 * MIB)[::-1], b"H" * 128

    async def use(backend: Any) -> None:
        await put(backend, "a", old)
        real, seen = backend.client.call, []

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            if operation == "upload_part_copy" and not seen:
                seen.append(operation)
                await put(backend, "a", new)
            return await real(what, operation, **arguments)

        monkeypatch.setattr(backend.client, "call", call)
        with pytest.raises(ObjectChangedError):
            await backend.copy("a", "a", head=head)
        assert seen
        assert await everything(backend, "a") == new

    run(place_at(s3_server), use)


def test_what_can_be_lost_without_a_condition_on_the_completion(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race that remains, as the threat model says: a write between the last look and the completion is gone."""
    old, new, head = pattern(20 * MIB), pattern(20 * MIB)[::-1], b"H" * 128

    async def use(backend: Any) -> None:
        assert "complete:replace" not in backend.conditions
        await put(backend, "a", old)
        real, seen = backend.client.call, []

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            if operation == "complete_multipart_upload" and not seen:
                seen.append(operation)
                await put(backend, "a", new)
            return await real(what, operation, **arguments)

        monkeypatch.setattr(backend.client, "call", call)
        await backend.copy("a", "a", head=head)
        # Lost, and not corrupted.
        assert await everything(backend, "a") == head + old[128:]

    run(place_at(s3_server), use)


# Conditions


def test_a_condition_on_the_completion(moto_server: Any) -> None:
    """moto keeps it for requests that follow each other."""
    facts = parse("moto-complete", {"like": "s3", "conditions": ["complete:create"]}, "test", catalogue())

    async def use(backend: Backend) -> None:
        first, second = [await backend.upload("a", create=True) for _ in range(2)]
        await first.write(bytes(20 * MIB))
        await second.write(b"1" * 20 * MIB)
        await first.commit()
        with pytest.raises(ObjectExistsError):
            await second.commit()
        await second.abort()
        assert await everything(backend, "a") == bytes(20 * MIB)

    run(place_at(moto_server, facts), use)


@pytest.mark.parametrize("size", [1000, 20 * MIB])
@pytest.mark.parametrize("condition", ["create", "replace"])
def test_a_lost_reply_is_no_lost_race(s3_faults: Any, size: int, condition: str) -> None:
    """The host did it, the reply never came, and the request that was sent again meets what the first one did."""
    through = s3_faults()

    async def use(backend: Backend) -> None:
        await put(backend, "a", b"old")
        etag = (await backend.stat("a")).etag
        target = "a" if condition == "replace" else "b"
        through.proxy.faults = Faults(
            lose_reply=True, methods=("PUT", "POST"), target="(/[ab]|uploadId=[^&]*)$", limit=1
        )
        await put(backend, target, bytes(size), **({"create": True} if condition == "create" else {"if_match": etag}))
        assert through.proxy.count(fault="lose_reply") == 1
        assert await everything(backend, target) == bytes(size)

    run(place_at(through.server), use)


def test_a_host_of_which_nothing_is_known_may_refuse_the_header(s3_server: Any, monkeypatch: Any) -> None:
    async def use(backend: Any) -> None:
        real, sent = backend.client.call, []

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            sent.append(arguments.get("IfNoneMatch"))
            if arguments.pop("IfNoneMatch", None):
                # 400 or 501 is what such hosts answer.
                arguments["ContentMD5"] = "not a digest"
            return await real(what, operation, **arguments)

        monkeypatch.setattr(backend.client, "call", call)
        await put(backend, "a", b"1", create=True)
        assert "*" in sent
        assert await everything(backend, "a") == b"1"
        with pytest.raises(ObjectExistsError):
            await put(backend, "a", b"2", create=True)

    run(place_at(s3_server, catalogue()["s3"]), use)


# Opening


def test_the_first_bytes_come_with_size_and_etag(s3_faults: Any) -> None:
    through = s3_faults()

    run(place_at(through.server), partial(opened_by_one_request, proxy=through.proxy))


# Deletes and listings


def test_deletes_take_one_request_for_a_thousand(s3_faults: Any) -> None:
    through = s3_faults()

    async def use(backend: Backend) -> None:
        await asyncio.gather(*(put(backend, f"a/{n}", b"x") for n in range(50)))
        through.proxy.forget()
        await backend.delete([f"a/{n}" for n in range(1050)])
        assert len(through.proxy.requests) == 2
        assert [entry async for entry in backend.list("a")] == []

    run(place_at(through.server), use)


def test_a_host_without_batches(s3_server: Any) -> None:
    facts = parse("single", {"like": "s3", "batch_delete": 1}, "test", catalogue())

    async def use(backend: Backend) -> None:
        # A control character cannot stand in the XML of a batch either.
        for name in ("a", "b", "c\x01d"):
            await put(backend, name, b"x")
        await backend.delete(["a", "b", "never"])
        await backend.delete(["c\x01d", "never"])
        assert [entry async for entry in backend.list("")] == []

    run(place_at(s3_server, facts), use)


def test_the_host_does_not_choose_what_is_deleted(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(backend: Any) -> None:
        for name in ("a", "b", "keep"):
            await put(backend, name, b"x")
        real = backend.client.call

        async def call(what: str, operation: str, **arguments: Any) -> Any:
            if operation == "delete_objects":
                errors = [{"Key": "root/keep", "Code": "InternalError"}, {"Key": "root/b", "Code": "InternalError"}]
                return arguments["pick"]({"Errors": errors})
            return await real(what, operation, **arguments)

        monkeypatch.setattr(backend.client, "call", call)
        await backend.delete(["a", "b"])
        assert sorted([entry.name async for entry in backend.list("")]) == ["a", "keep"]

    run(place_at(s3_server), use)


_LISTING = """<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><IsTruncated>{more}</IsTruncated>
<NextContinuationToken>{token}</NextContinuationToken>{entries}</ListBucketResult>"""
_ENTRY = "<Contents><Key>root/a</Key><LastModified>{time}</LastModified><ETag>x</ETag>{size}</Contents>"
_LIES = {
    "no size": _LISTING.format(more="false", token="", entries=_ENTRY.format(time="2026-01-01T00:00:00Z", size="")),
    "no time": _LISTING.format(more="false", token="", entries=_ENTRY.format(time="9" * 30, size="<Size>1</Size>")),
    "no token": "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    "no XML": "<",
    "no end": None,
    "too much": "<ListBucketResult>" + " " * 40 * MIB + "</ListBucketResult>",
}


@pytest.mark.parametrize("lie", _LIES)
def test_listings_that_lie(lie: str) -> None:
    """Also endless ones: those whose pages are empty, and those of any size."""
    asked: list[str] = []

    class Liar(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            body = (_LIES[lie] or _LISTING.format(more="true", token=f"t{len(asked) % 2}", entries="")).encode()
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):
                for start in range(0, len(body), MIB):
                    piece = body[start : start + MIB]
                    self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            pass

    async def use(backend: Backend) -> None:
        with pytest.raises(StoreUnavailableError):
            async for _ in backend.list(""):
                pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        keys = {"key": "id", "secret": "secret", "timeout": 10, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
        place = Place(CEPH, "bucket/root", endpoint=f"http://127.0.0.1:{server.server_port}", options=keys)
        run(place, use)
        server.shutdown()
    assert len(asked) <= 102


def test_a_listing_asks_once_per_page(s3_faults: Any) -> None:
    through = s3_faults()
    facts = parse("pages", {"like": "s3", "listing_page": 10}, "test", catalogue())

    async def use(backend: Backend) -> None:
        await asyncio.gather(*(put(backend, f"a/{n:02}", b"x") for n in range(35)))
        through.proxy.forget()
        assert len([entry async for entry in backend.list("", recursive=True)]) == 35
        assert through.proxy.count("GET", LISTINGS) == 4

    run(place_at(through.server, facts), use)


# Signing, credentials, errors


@pytest.mark.parametrize("tls", [False, True])
def test_the_payload_is_not_hashed_for_the_signature(s3_server: Any, tls: bool) -> None:
    server = s3_server.over_tls if tls else s3_server

    async def use(backend: Any) -> list[str]:
        seen: list[str] = []
        client = await backend.on_loop(backend.client._fs.set_session())
        client.meta.events.register(
            "before-send.s3", lambda request, **_: seen.append(request.headers["X-Amz-Content-SHA256"].decode())
        )
        await put(backend, "a", bytes(20 * MIB))
        return seen

    # Its own options, and not those of the server's fixture.
    place = place_at(server, CEPH, options={"config_kwargs": {}})
    sent = set(run(place, use))
    assert sent >= {"UNSIGNED-PAYLOAD"}
    # Requests without a body, and the list of parts, are hashed: that costs nothing.
    assert len(sent) <= 3


def test_what_goes_wrong_is_said(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_at(s3_server)
    quick = {"timeout": 5}

    async def look(backend: Backend) -> None:
        await backend.stat("a")

    def refusal(place: Place) -> StoreError:
        with pytest.raises(StoreError) as caught:
            run(place, look)
        assert CANARY not in f"{caught.value!r} {caught.value}"
        return caught.value

    wrong = refusal(replace(place, options={**place.options, "secret": CANARY}))
    assert "sovstore login" in str(wrong.hint)
    missing = refusal(replace(place, root="no-such-bucket/root"))
    assert "no bucket 'no-such-bucket'" in str(missing)
    unreachable = refusal(replace(place, options={**place.options, "endpoint_url": "http://127.0.0.1:1", **quick}))
    assert isinstance(unreachable, StoreUnavailableError)
    own = {key: value for key, value in place.options.items() if key not in ("key", "secret")}
    assert "no credentials" in str(refusal(replace(place, options=own)))
    tls = replace(place, options={**s3_server.storage_options, "client_kwargs": {}, **quick}, ca_file=None)
    tls = replace(tls, options={**tls.options, "endpoint_url": s3_server.tls_endpoint_url})
    assert "ca_file" in str(refusal(tls).hint)
    with pytest.raises(ConfigError, match="unknown option 'endpiont_url'"):
        open_backend(replace(place, options={"endpiont_url": "x"}))


@pytest.mark.stress
def test_an_unreachable_host_fails_soon(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_long():
        quick_retries(monkeypatch)
    start = time.monotonic()
    place = place_at(s3_server)
    place = replace(place, options={**place.options, "endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(StoreUnavailableError):
        run(place, lambda backend: backend.stat("a"))
    assert time.monotonic() - start < 60


def test_credentials_from_the_keyring(
    s3_server: Any, os_keyring: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    cheap_key_files(monkeypatch)
    place = on_s3(s3_server)
    environment = place.pop("environment")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **place)
    for name in environment:
        monkeypatch.delenv(name)
    asked = json.dumps({"access_key_id": s3_server.access_key, "secret_access_key": s3_server.secret_key})
    login = [str(Path(sys.executable).parent / "sovstore"), "login", "cohortes", "--stdin", "--config", str(file)]
    subprocess.run(login, input=asked, text=True, check=True, capture_output=True)
    assert s3_server.secret_key not in file.read_text()
    assert "keyring://" in file.read_text()
    fs = open_fs(file)
    fs.pipe_file("a", b"by the keyring")
    assert fs.cat_file("a") == b"by the keyring"
    assert s3_server.secret_key not in caplog.text
    assert s3_server.secret_key not in fs.to_json()
    assert s3_server.secret_key.encode() not in pickle.dumps(fs)


def test_credentials_from_the_files_of_the_cloud(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    keys = f"aws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    credentials.write_text(f"[study]\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    root = f"{s3_server.create_bucket(f'b{uuid4().hex[:12]}')}/root"
    place = Place(CEPH, root, endpoint=s3_server.endpoint_url, options={"profile": "study"})
    run(place, lambda backend: put(backend, "a", b"1"))
    monkeypatch.setenv("AWS_PROFILE", "study")
    run(replace(place, options={}), lambda backend: put(backend, "b", b"1"))
    with contextlib.closing(s3_server.client()) as client:
        assert len(client.list_objects_v2(Bucket=root.partition("/")[0])["Contents"]) == 2

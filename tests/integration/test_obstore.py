"""What is particular to the transport obstore: what it leaves behind, odd names, forks, memory, secrets, times."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from sovstore.backends import credentials, obstore, obstore_client
from sovstore.backends.base import Backend, Place
from sovstore.backends.providers import catalogue, parse
from sovstore.backends.registry import open_backend
from sovstore.errors import ConfigError, ObjectNotFoundError, StoreError, StoreUnavailableError
from sovstore.secret import Secret
from sovstore.testing.backend import collect, everything, put
from tests.servers.azurite import AzuriteServer
from tests.servers.ceph import CephServer
from tests.servers.facts import CEPH
from tests.stress import amount, is_long

ROOT = Path(__file__).parents[2]
MIB = 2**20
ALLOWED = 96 * MIB
T = TypeVar("T")
CANARY = "c4n4ry0f4s3cr3t"


@pytest.fixture
def s3(s3_server: CephServer, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A root on Ceph, with the keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    bucket = s3_server.create_bucket(f"b{uuid4().hex[:12]}")
    return Place(CEPH, f"{bucket}/root", endpoint=s3_server.endpoint_url, transport="obstore")


@pytest.fixture
def azure(azurite_server: AzuriteServer, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A root on Azurite, with the connection string in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_server.connection_string)
    container = azurite_server.create_container(f"c{uuid4().hex[:12]}")
    return Place(catalogue()["azurite"], f"{container}/root", transport="obstore")


@pytest.fixture(params=["s3", "azure"])
def place(request: pytest.FixtureRequest) -> Place:
    """A root on either."""
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def raw(s3_server: CephServer, s3: Place) -> Iterator[Any]:
    """A client of botocore, and the bucket."""
    with contextlib.closing(s3_server.client()) as client:
        yield client, s3.root.partition("/")[0]


def run(place: Place, use: Callable[[Backend], Awaitable[T]]) -> T:
    async def body() -> T:
        backend = open_backend(place)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(body())


def uploads(raw: Any) -> list[str]:
    client, bucket = raw
    return [found["Key"] for found in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from tests.integration.test_obstore import *; {code}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, **options)


def described(place: Place) -> str:
    """Return a place as `python` can take it."""
    values = {"root": place.root, "endpoint": place.endpoint, "transport": place.transport}
    return json.dumps({"provider": place.provider.name, **values})


def undescribed(text: str) -> Place:
    values = json.loads(text)
    name = values.pop("provider")
    return Place(CEPH if name == CEPH.name else catalogue()[name], **values)


# Unfinished writes


@pytest.mark.parametrize("parts", [0, 1, 9, 40])
def test_an_aborted_upload_leaves_nothing_at_the_host(s3: Place, raw: Any, parts: int) -> None:
    async def use(backend: Backend) -> None:
        upload = await backend.upload("a")
        for _ in range(parts):
            await upload.write(bytes(MIB))
        await upload.abort()
        await upload.abort()
        with pytest.raises(ObjectNotFoundError):
            await backend.stat("a")

    run(s3, use)
    assert uploads(raw) == []


def test_the_end_of_the_callers_loop_leaves_nothing_at_the_host(s3: Place, raw: Any) -> None:
    async def use(backend: Backend) -> None:
        async def write() -> None:
            upload = await backend.upload("a")
            try:
                while True:
                    await upload.write(bytes(MIB))
            finally:
                await upload.abort()

        task = asyncio.ensure_future(write())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(s3, use)
    assert uploads(raw) == []


def test_a_commit_that_fails_can_be_aborted(s3: Place, raw: Any) -> None:
    client, bucket = raw

    async def use(backend: Backend) -> None:
        upload = await backend.upload("a")
        for _ in range(20):
            await upload.write(bytes(MIB))
        for found in client.list_multipart_uploads(Bucket=bucket)["Uploads"]:
            client.abort_multipart_upload(Bucket=bucket, Key=found["Key"], UploadId=found["UploadId"])
        with pytest.raises(StoreError):
            await upload.commit()
        await upload.abort()
        await upload.abort()

    run(s3, use)
    assert uploads(raw) == []


def test_a_killed_writer_leaves_what_sweep_finds(s3: Place, raw: Any) -> None:
    command = [sys.executable, "-c", "from tests.integration.test_obstore import write_for_ever; write_for_ever()"]
    with subprocess.Popen([*command, described(s3)], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert uploads(raw) == ["root/a"]

    async def use(backend: Backend) -> None:
        with pytest.raises(ObjectNotFoundError):
            await backend.stat("a")
        assert await backend.sweep() == 0
        assert await backend.sweep(timedelta(0)) == 1

    run(s3, use)
    assert uploads(raw) == []


@pytest.mark.parametrize("create", [False, True])
def test_a_sweep_that_was_put_off(s3: Place, raw: Any, monkeypatch: pytest.MonkeyPatch, create: bool) -> None:
    """It is done when an object of several parts is written, whichever way that takes, and once."""
    monkeypatch.setattr(obstore, "STALE", timedelta(days=-1))
    client, bucket = raw
    left = {"Bucket": bucket, "Key": "root/left"}

    async def use(backend: Backend) -> None:
        client.create_multipart_upload(**left)
        await backend.sweep()
        await put(backend, "small", b"1" * MIB)
        assert uploads(raw) == ["root/left"]
        await put(backend, "large", bytes(20 * MIB), create=create)
        assert uploads(raw) == []
        client.create_multipart_upload(**left)
        await put(backend, "second", bytes(20 * MIB), create=create)
        assert uploads(raw) == ["root/left"]

    run(s3, use)


def test_a_sweep_that_was_put_off_and_fails_stops_no_write(
    s3: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What this module imports, the processes of other tests do.
    from sovstore.backends.s3 import S3Backend

    async def refused(*args: Any, **kwargs: Any) -> int:
        raise StoreError("the host refused")

    monkeypatch.setattr(S3Backend, "sweep", refused)

    async def use(backend: Backend) -> None:
        await backend.sweep()
        await put(backend, "large", bytes(20 * MIB))
        assert (await backend.stat("large")).size == 20 * MIB

    run(s3, use)
    assert "unfinished writes are not removed: the host refused" in caplog.text


def write_for_ever() -> None:
    async def use(backend: Backend) -> None:
        upload = await backend.upload("a")
        for n in range(1000):
            await upload.write(bytes(MIB))
            if n == 40:
                print("begun", flush=True)

    run(undescribed(sys.argv[1]), use)


def leave() -> None:
    """End the process with an upload and reads under way."""

    async def use(backend: Backend) -> None:
        await put(backend, "b", bytes(20 * MIB))
        upload = await backend.upload("a")
        for _ in range(40):
            await upload.write(bytes(MIB))
        reads = [asyncio.ensure_future(backend.read("b", 0, 20 * MIB)) for _ in range(4)]
        await asyncio.sleep(0.005)
        if sys.argv[2] == "raise":
            raise KeyboardInterrupt
        assert reads

    run(undescribed(sys.argv[1]), use)


@pytest.mark.stress
@pytest.mark.parametrize("how", ["return", "raise"])
def test_the_end_of_the_process_stops_what_is_under_way(s3: Place, raw: Any, how: str) -> None:
    # More than once: threads of object_store that come for the interpreter too late crash it, but not every time.
    for _ in range(amount(2, 12)):
        ran = python("leave()", described(s3), how)
        assert ran.returncode == (0 if how == "return" else -signal.SIGINT), ran.stderr
        assert uploads(raw) == []


# Sizes


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB, 24 * MIB + 5])
@pytest.mark.parametrize("known", [True, False])
def test_sizes_round_the_parts(place: Place, size: int, *, known: bool) -> None:
    data = os.urandom(size)

    async def use(backend: Backend) -> None:
        await put(backend, "a", data, **({"size": size} if known else {}))
        assert await everything(backend, "a") == data
        assert await backend.read("a", size, size + 1) == b""
        assert await backend.read("a", size + 5, size + 9) == b""

    run(place, use)


def test_parts_follow_the_provider(s3: Place, raw: Any) -> None:
    client, bucket = raw
    few = parse("few", {"like": "s3", "parts_max": 3, "part_min": 5 * MIB}, "tests", catalogue())

    async def use(backend: Backend) -> None:
        await put(backend, "a", bytes(36 * MIB), size=36 * MIB)
        with pytest.raises(StoreError):
            await backend.upload("a", size=2**50)

    run(replace(s3, provider=few), use)
    # S3 ends the ETag of an object with the number of its parts.
    assert client.head_object(Bucket=bucket, Key="root/a")["ETag"].endswith('-3"')


# Names


@pytest.mark.parametrize("name", ["a//b", "./a", "a/../b", "a/.", "..", "/a", "a/", "a\nb", "a\x01", "a\x7f"])
def test_a_name_that_obstore_cannot_say_is_refused(place: Place, name: str) -> None:
    async def use(backend: Backend) -> None:
        await put(backend, "a", b"another")
        await put(backend, "b", b"another")
        for call in (
            lambda: backend.stat(name),
            lambda: backend.read(name, 0, 1),
            lambda: put(backend, name, b"x"),
            lambda: put(backend, name, b"x", create=True),
        ):
            with pytest.raises(StoreError) as failed:
                await call()
            assert not isinstance(failed.value, ObjectNotFoundError)
            assert "transport" in str(failed.value.hint)
        with contextlib.suppress(StoreError):
            await backend.delete([name])
        assert await everything(backend, "a") == await everything(backend, "b") == b"another"

    run(place, use)


def test_the_first_bytes_come_with_size_and_etag(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is opened by one request, without asking what there is."""

    async def use(backend: Backend) -> None:
        await put(backend, "a", bytes(1000))
        stat = await backend.stat("a")
        with monkeypatch.context() as patch:
            patch.setattr("sovstore.backends.obstore.obstore.head_async", None)
            found, data = await backend.read_first("a", 100)
        assert (found, len(data)) == (stat, 100)

    run(place, use)


def test_names_of_others_are_no_danger(s3: Place, raw: Any) -> None:
    client, bucket = raw
    for key in ("root/d/", "root/d/a", "root/empty", "root/mark/", "rooted/a", "root", "root/z"):
        client.put_object(Bucket=bucket, Key=key, Body=b"" if key.endswith(("/", "empty")) else b"1")

    async def use(backend: Backend) -> None:
        below = await collect(backend.list("", recursive=True))
        assert sorted(below) == ["d/a", "empty", "z"]
        level = await collect(backend.list(""))
        assert {n: e.folder for n, e in level.items()} == {"d": True, "empty": False, "mark": True, "z": False}
        assert sorted(await collect(backend.list("d"))) == ["d/a"]
        client.put_object(Bucket=bucket, Key="root/q//r", Body=b"1")
        # obstore cannot list this page; the SDK's driver can.
        assert {"d/a", "empty", "z"} <= set(await collect(backend.list("", recursive=True)))
        assert (await backend.stat("q")).folder

    run(s3, use)


@pytest.mark.stress
def test_many_names(place: Place) -> None:
    """More than a page of a listing of S3 and than a batch of deletions; Azure has pages of 5,000 in the long form."""
    count = amount(300, 5200) if place.provider.driver == "azure" else 1200
    names = [f"many/{n:04d}" for n in range(count)]

    async def use(backend: Backend) -> None:
        for start in range(0, len(names), 100):
            await asyncio.gather(*(put(backend, name, b"x") for name in names[start : start + 100]))
        assert sorted(await collect(backend.list("many"))) == names
        assert sorted(await collect(backend.list("", recursive=True))) == names
        await backend.delete(iter(["many/", *names[:-20], "many/never"]))
        assert sorted(await collect(backend.list("many"))) == names[-20:]

    run(place, use)


# Processes


def fork(*, used: bool) -> None:
    async def use(backend: Backend) -> str:
        try:
            await put(backend, "a", b"1")
            return "worked"
        except StoreError as exc:
            return f"refused: {exc}"

    place = undescribed(sys.argv[1])
    backend = open_backend(place)
    if used:
        assert asyncio.run(use(backend)) == "worked"
    if not (child := os.fork()):
        signal.alarm(20)
        print(asyncio.run(use(backend)), flush=True)
        print(run(place, use), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("parent", asyncio.run(use(backend)))


def test_a_fork_after_a_request_is_refused(s3: Place) -> None:
    ran = python("fork(used=True)", described(s3))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("refused: ") == 2
    assert "spawn" in ran.stdout
    assert ran.stdout.endswith("parent worked\n")


def test_a_fork_before_the_first_request_works(s3: Place) -> None:
    ran = python("fork(used=False)", described(s3))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "worked\nworked\nparent worked\n"


def test_one_backend_on_two_loops_and_a_writer_in_each(s3: Place) -> None:
    backend = open_backend(s3)
    for n in range(2):
        asyncio.run(put(backend, f"a{n}", bytes(20 * MIB)))
    assert asyncio.run(everything(backend, "a0")) == bytes(20 * MIB)


def reads_and_writes() -> None:
    place = undescribed(sys.argv[1])

    async def use(backend: Backend) -> None:
        assert await everything(backend, "a") == b"1"
        assert [name async for name in backend.list("")]
        assert [name async for name in backend.list("", recursive=True)]
        # As a store does before its first write.
        assert await backend.sweep() == 0
        await put(backend, "b", b"1" * MIB)
        if place.provider.driver == "azure":
            # Where nothing is left by larger ones either.
            await put(backend, "b", bytes(20 * MIB))

    run(place, use)
    print(sorted({"s3fs", "botocore", "aiobotocore", "adlfs", "azure.storage.blob", "aiohttp"} & set(sys.modules)))


def test_reads_and_small_writes_import_no_sdk(place: Place) -> None:
    run(place, lambda backend: put(backend, "a", b"1"))
    ran = python("reads_and_writes()", described(place))
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure() -> None:
    """Print by how much each step makes the process grow above an open client."""
    size, grown = amount(192, 1024) * MIB, {}
    piece = bytearray(os.urandom(4 * MIB))

    async def write(backend: Backend, **known: int) -> None:
        upload = await backend.upload("one", **known)
        for n in range(size // len(piece)):
            piece[:8] = n.to_bytes(8, "big")
            await upload.write(piece)
        await upload.commit()

    async def read(backend: Backend) -> None:
        for n in range(size // len(piece)):
            found = await backend.read("one", n * len(piece), (n + 1) * len(piece))
            assert found[:8] == n.to_bytes(8, "big")
            assert found[8:] == memoryview(piece)[8:]

    async def use(backend: Backend) -> None:
        await put(backend, "small", b"1")
        await everything(backend, "small")
        opened = _status("VmRSS")

        async def step(name: str, work: Awaitable[None]) -> None:
            Path("/proc/self/clear_refs").write_text("5")
            await work
            grown[name] = _status("VmHWM") - opened

        await step("put", write(backend))
        await step("get", read(backend))
        await backend.delete(["one"])
        await step("put of known size", write(backend, size=size))
        await backend.delete(["one"])

    run(undescribed(sys.argv[1]), use)
    print(json.dumps(grown))


@pytest.mark.stress
def test_memory_of_a_large_object(place: Place) -> None:
    ran = python("measure()", described(place))
    assert ran.returncode == 0, ran.stderr
    grown = json.loads(ran.stdout)
    print({step: f"{size / MIB:.0f} MiB" for step, size in grown.items()})
    assert set(grown) == {"put", "get", "put of known size"}
    assert max(grown.values()) <= ALLOWED
    assert min(grown.values()) > MIB


# Trouble


@pytest.fixture
def mute() -> Iterator[int]:
    """A port that lets nobody in: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.stress
def test_a_host_that_cannot_be_reached(s3: Place, mute: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_long():
        monkeypatch.setattr(obstore_client, "_CONNECT_S", 0.2)
        monkeypatch.setattr(obstore_client, "_BACK_OFF_S", 0.2)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        run(replace(s3, endpoint=f"http://127.0.0.1:{mute}"), lambda backend: backend.stat("a"))
    assert time.monotonic() - started < 30


def test_a_host_that_never_answers(s3: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = replace(s3, endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}", options={"timeout": 1})
        for use in (lambda b: b.stat("a"), lambda b: b.read("a", 0, 1), lambda b: put(b, "a", b"1")):
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError) as failed:
                run(place, use)
            assert time.monotonic() - started < 10
            assert failed.value.retryable


def test_an_unknown_authority(s3: Place, s3_server: CephServer) -> None:
    tls = replace(s3, endpoint=s3_server.tls_endpoint_url)
    with pytest.raises(StoreUnavailableError, match="certificate") as failed:
        run(tls, lambda backend: backend.stat("a"))
    assert "ca_file" in str(failed.value.hint)
    trusted = replace(tls, ca_file=str(s3_server.ca_file))
    run(trusted, lambda backend: put(backend, "a", b"1"))
    with pytest.raises(ConfigError):
        run(replace(tls, ca_file="/no/such/file"), lambda backend: backend.stat("a"))


def test_a_bucket_that_does_not_exist(place: Place) -> None:
    for use in (
        lambda b: b.stat("a"),
        lambda b: put(b, "a", b"1"),
        lambda b: collect(b.list("")),
        lambda b: b.stat(""),
    ):
        with pytest.raises(StoreError, match="no such bucket") as failed:
            run(replace(place, root="nowhere-to-be-found/root"), use)
        assert not isinstance(failed.value, ObjectNotFoundError)


def test_options() -> None:
    place = Place(catalogue()["s3"], "b/r", endpoint="http://127.0.0.1:1", transport="obstore")
    with pytest.raises(ConfigError, match="unknown option 'partsize'") as failed:
        open_backend(replace(place, options={"partsize": 1}))
    assert "part_size" in str(failed.value.hint)
    with pytest.raises(ConfigError):
        open_backend(replace(place, options={"secret": CANARY}))
    old = parse("old", {"like": "s3", "signature": "s3"}, "tests", catalogue())
    with pytest.raises(ConfigError, match="sign"):
        open_backend(replace(place, provider=old))
    with pytest.raises(ConfigError):
        open_backend(replace(place, provider=catalogue()["local"]))


# Credentials


def test_nothing_secret_in_errors(s3: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    backend = open_backend(s3)

    async def use(_: Backend) -> None:
        for call in (backend.stat("a"), backend.read("a", 0, 1), put(backend, "a", b"1"), backend.delete(["a"])):
            with pytest.raises(StoreError, match="refused") as failed:
                await call
            assert CANARY not in "".join(traceback.format_exception(failed.value))

    run(s3, use)
    shown = [repr(backend), repr(vars(backend)), repr(backend._made), repr(backend._made.reading.config), caplog.text]
    assert not [text for text in shown if CANARY in text]


def test_no_signature_of_azure_in_errors(azure: Place, azurite_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2022-11-02&ss=b&srt=sco&sp=rl&se=2040-01-01&sig={CANARY}")
    place = replace(azure, endpoint=azurite_server.blob_endpoint)
    backend = open_backend(place)
    for use in (lambda b: b.stat("a"), lambda b: put(b, "a", b"1")):
        with pytest.raises(StoreError) as failed:
            asyncio.run(use(backend))
        assert CANARY not in "".join(traceback.format_exception(failed.value))
    assert CANARY not in repr(vars(backend)) + repr(backend._made)


def test_the_keyring_goes_before_the_environment(
    s3: Place, s3_server: CephServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    kept = {"access_key_id": s3_server.access_key, "secret_access_key": s3_server.secret_key}
    monkeypatch.setattr(credentials, "fetch", lambda uri: {k: Secret(v.encode()) for k, v in kept.items()})
    run(replace(s3, credentials="keyring://sovstore/x"), lambda backend: put(backend, "a", b"1"))


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """A host that nobody may talk to: its URL, and what it was sent."""
    heard: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        # What closing alone does not: it wakes up the thread.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def all_of(backend: Backend) -> Awaitable[None]:
    """Make each kind of request."""

    async def use() -> None:
        await put(backend, "a", b"1")
        await put(backend, "c", b"1", create=True)
        await put(backend, "b", bytes(20 * MIB))
        assert await everything(backend, "a") == b"1"
        assert sorted(await collect(backend.list("", recursive=True))) == ["a", "b", "c"]
        await backend.delete(["a", "b", "c"])

    return use()


#: What object_store 0.14 would do with it, were it not told otherwise: `aws/builder.rs` and `azure/builder.rs`.
HOSTILE = {
    "s3": {
        **dict.fromkeys(
            ("ENDPOINT_URL_S3", "ENDPOINT_URL", "ENDPOINT", "ENDPOINT_URL_STS", "METADATA_ENDPOINT"), "URL"
        ),
        **dict.fromkeys(("BUCKET", "BUCKET_NAME"), "another--use1-az1--x-s3"),
        **dict.fromkeys(("CONTAINER_CREDENTIALS_FULL_URI", "PROXY_URL"), "URL"),
        **dict.fromkeys(("SKIP_SIGNATURE", "S3_EXPRESS", "VIRTUAL_HOSTED_STYLE_REQUEST", "REQUEST_PAYER"), "true"),
        **dict.fromkeys(("ALLOW_HTTP", "ALLOW_INVALID_CERTIFICATES", "IMDSV1_FALLBACK", "DISABLE_TAGGING"), "true"),
        **dict.fromkeys(("REGION", "DEFAULT_REGION"), "elsewhere"),
        **dict.fromkeys(("SESSION_TOKEN", "TOKEN", "CONTAINER_AUTHORIZATION_TOKEN_FILE"), "/none"),
        **dict.fromkeys(("WEB_IDENTITY_TOKEN_FILE", "ROLE_ARN", "ROLE_SESSION_NAME"), "/none"),
        "CONDITIONAL_PUT": "disabled",
        "CONTAINER_CREDENTIALS_RELATIVE_URI": "/none",
        "ACCESS_KEY_ID": "stranger",
        "SECRET_ACCESS_KEY": "stranger",
    },
    "azure": {
        **dict.fromkeys(("STORAGE_ENDPOINT", "ENDPOINT", "MSI_ENDPOINT", "IDENTITY_ENDPOINT", "AUTHORITY_HOST"), "URL"),
        **dict.fromkeys(("FABRIC_TOKEN_SERVICE_URL", "FABRIC_WORKLOAD_HOST", "PROXY_URL"), "URL"),
        **dict.fromkeys(("STORAGE_USE_EMULATOR", "USE_FABRIC_ENDPOINT", "USE_AZURE_CLI", "SKIP_SIGNATURE"), "true"),
        **dict.fromkeys(("ALLOW_HTTP", "ALLOW_INVALID_CERTIFICATES", "DISABLE_TAGGING"), "true"),
        **dict.fromkeys(("STORAGE_ACCOUNT_NAME", "CONTAINER_NAME", "CREDENTIAL_TYPE", "STORAGE_TOKEN"), "stranger"),
        **dict.fromkeys(("STORAGE_ACCOUNT_KEY", "CLIENT_ID", "CLIENT_SECRET", "TENANT_ID"), "c3RyYW5nZXI="),
        **dict.fromkeys(("FABRIC_SESSION_TOKEN", "FABRIC_CLUSTER_IDENTIFIER", "FEDERATED_TOKEN_FILE"), "/none"),
        "STORAGE_SAS_TOKEN": "sig=stranger",
    },
}


@pytest.mark.parametrize("driver", ["s3", "azure"])
def test_the_environment_does_not_change_the_host(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    place: Place = request.getfixturevalue(driver)
    server = request.getfixturevalue({"s3": "s3_server", "azure": "azurite_server"}[driver])
    if driver == "s3":
        kept = {"access_key_id": server.access_key, "secret_access_key": server.secret_key}
    else:
        kept = {"account_key": server.account_key}
        place = replace(place, account=server.account_name, endpoint=server.blob_endpoint)
    monkeypatch.setattr(credentials, "fetch", lambda *_: {k: Secret(v.encode()) for k, v in kept.items()})
    with listening() as (url, heard):
        for name, value in HOSTILE[driver].items():
            monkeypatch.setenv(f"{'AWS' if driver == 's3' else 'AZURE'}_{name}", url if value == "URL" else value)
        for name in ("AZURITE_BLOB_STORAGE_URL", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"):
            monkeypatch.setenv(name, url)
        run(replace(place, credentials="keyring://sovstore/x"), all_of)
    assert heard == []


@pytest.mark.parametrize("driver", ["s3", "azure"])
def test_the_environment_does_not_change_tls(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    if driver == "s3":
        place = replace(request.getfixturevalue("s3"), endpoint=request.getfixturevalue("s3_server").tls_endpoint_url)
    else:
        server = request.getfixturevalue("azurite_tls_server")
        place = replace(request.getfixturevalue("azure"), endpoint=server.blob_endpoint)
    for prefix in ("AWS", "AZURE"):
        monkeypatch.setenv(f"{prefix}_ALLOW_INVALID_CERTIFICATES", "true")
    with pytest.raises(StoreUnavailableError, match="certificate"):
        run(place, lambda backend: backend.stat("a"))


def test_a_host_of_the_environment_gets_the_bucket(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(s3.endpoint))
    run(replace(s3, endpoint=None, provider=catalogue()["s3"]), all_of)


def test_no_token_of_entra_goes_over_http(azure: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    with listening() as (url, heard):
        place = replace(azure, endpoint=url, account="a", options={"allow_http": True})
        with pytest.raises(ConfigError, match="https"):
            run(place, lambda backend: backend.stat("a"))
    assert heard == []


def test_no_buffer_is_sent_twice(s3: Place) -> None:
    async def use(backend: Backend) -> None:
        upload: Any = await backend.upload("a")
        sent = []
        for _ in range(6):
            await upload.write(bytes(8 * MIB))
            sent.append(upload._body)
        assert len({id(body) for body in sent}) == len(sent)
        await upload.abort()

    run(s3, use)


def test_a_profile(s3: Place, s3_server: CephServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no credentials"):
        run(s3, lambda backend: backend.stat("a"))
    file = Path.home() / ".aws/credentials"
    file.parent.mkdir()
    file.write_text(
        f"[work]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    )
    run(replace(s3, options={"profile": "work"}), lambda backend: put(backend, "a", b"1"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    run(s3, lambda backend: put(backend, "a", b"1"))
    with pytest.raises(StoreError, match="no credentials"):
        run(replace(s3, options={"profile": "nobody"}), lambda backend: backend.stat("a"))


@pytest.mark.parametrize("kind", ["account_key", "sas_token", "connection_string"])
def test_credentials_of_azure(
    azure: Place, azurite_server: AzuriteServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from azure.storage.blob import generate_account_sas

    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    values = {
        "account_key": azurite_server.account_key,
        "connection_string": azurite_server.connection_string,
        "sas_token": generate_account_sas(
            azurite_server.account_name,
            azurite_server.account_key,
            resource_types="sco",
            permission="rwdlac",
            expiry="2040-01-01T00:00:00Z",
        ),
    }
    monkeypatch.setattr(credentials, "fetch", lambda uri: {kind: Secret(values[kind].encode())})
    place = replace(azure, endpoint=azurite_server.blob_endpoint, credentials="keyring://sovstore/x")

    async def use(backend: Backend) -> None:
        await put(backend, "a", b"1")
        assert sorted(await collect(backend.list(""))) == ["a"]
        await backend.delete(["a"])

    run(place, use)

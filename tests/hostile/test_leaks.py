"""The leak hunt: a whole session is recorded, and neither the host nor this machine's side channels show a canary."""

from __future__ import annotations

import logging
import os
import pickle
import re
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sovstore.backends.base import Backend, Stat, Upload
from sovstore.check import trials
from sovstore.errors import SovstoreError
from tests import stress
from tests.hostile.canaries import Found, Searcher
from tests.hostile.key_spy import KeySpy
from tests.hostile.sessions import LOCAL, MIB, STORE, USER, Session, canaries
from tests.hosts import Through, wrap_backends
from tests.servers.tap import Tap, tap
from tests.servers.wire import Head
from tests.stores import on_azure, on_s3

#: What each channel is searched for. Whatever stays on this machine may name objects and settings; the content of
#: objects and keys are nowhere.
CHANNELS: dict[str, set[str]] = {
    # All that was sent or stored: also who the user is, and how things are called on this machine.
    "host": {"data", "column", "path", "key", "here"},
    # They say which object they are about.
    "log": {"data", "column", "key"},
    "error": {"data", "column", "key"},
    # Of a debugger, or of a service that collects errors. What was read or written is among them, by its nature.
    "local variables": {"key"},
    "repr": {"data", "column", "key"},
    "pickle": {"data", "column", "key"},
    # But for `cat`.
    "printed": {"data", "column", "key"},
    # Of sovstore's own: what was put, what was fetched and where the user keeps a secret are left out.
    "file": {"data", "column", "path", "key"},
    "process": {"data", "column", "path", "key"},
}

_UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_DATE = r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"
_RANGE = r"bytes=\d+-\d+"
_ETAG = r"\"?(?:0x)?[0-9A-Fa-f-]+\"?"
_HEADERS = {"accept": r"\*/\*", "host": r"127\.0\.0\.1:\d+", "content-length": r"\d+", "range": _RANGE}
_S3: dict[str, str] = {
    **_HEADERS,
    "authorization": r"AWS4-HMAC-SHA256 Credential=\w+/\d{8}/us-east-1/s3/aws4_request,"
    r" SignedHeaders=[a-z0-9;-]+, Signature=[0-9a-f]{64}",
    "x-amz-date": r"\d{8}T\d{6}Z",
    "x-amz-content-sha256": r"UNSIGNED-PAYLOAD|[0-9a-f]{64}",
    "if-match": _ETAG,
    "if-none-match": r"\*",
    "expect": "100-continue",
    "content-type": "application/xml",
    "accept-encoding": "identity",
    # Of the system and the versions of Python and the SDK; "m/" are the features of the SDK that are in use.
    "user-agent": r"aiobotocore/[\d.]+ md/Botocore#[\d.]+ ua/2\.1 os/linux#[\w.+-]+ md/arch#\w+ lang/python#[\w.+]+"
    r" md/pyimpl#CPython m/[A-Za-z0-9,]+ cfg/retry-mode#standard botocore/[\d.]+",
    "amz-sdk-invocation-id": _UUID4,
    "amz-sdk-request": r"attempt=\d+(?:; max=\d+)?|ttl=\w+; attempt=\d+; max=\d+",
    # Of deletions of several objects: the names at the host.
    "x-amz-checksum-crc32": r"[A-Za-z0-9+/]{6}==",
    "x-amz-sdk-checksum-algorithm": "CRC32",
    "x-amz-copy-source": r"[\w./-]+",
    "x-amz-copy-source-range": _RANGE,
    "x-amz-copy-source-if-match": _ETAG,
}
_OBJECT_STORE = r"object_store/[\d.]+"
_AZURE: dict[str, str] = {
    **_HEADERS,
    "accept": r"\*/\*|application/xml",
    "authorization": r"SharedKey sovtest:[A-Za-z0-9+/]{43}=",
    "accept-encoding": "identity",
    "content-type": r"application/(?:octet-stream|xml)|multipart/mixed; boundary=[\w+/-]+",
    "if-match": _ETAG,
    "if-none-match": r"\*",
    "user-agent": r"azsdk-python-storage-blob/[\d.]+ Python/[\w.+]+ \(Linux-[\w.+-]+-with-glibc[\d.]+\)",
    "x-ms-blob-type": "BlockBlob",
    # Not the SDK's own, of version 1: it would hold the hardware address of this machine.
    "x-ms-client-request-id": _UUID4,
    "x-ms-date": _DATE,
    "x-ms-range": _RANGE,
    "x-ms-version": r"\d{4}-\d\d-\d\d",
}
#: What each transport sends beside bodies and names: a header of a new release of an SDK has to be looked at by a
#: person, and is then added here.
HEADERS: dict[str, dict[str, str]] = {
    "s3": _S3,
    "moto": _S3,
    "azure": _AZURE,
    # Part copies and conditions on large objects are left to the SDK.
    "s3-obstore": {
        **_S3,
        "user-agent": f"{_S3['user-agent']}|{_OBJECT_STORE}",
        "content-md5": r"[A-Za-z0-9+/]{22}==",
        "x-amz-checksum-sha256": r"[A-Za-z0-9+/]{43}=",
    },
    # Some requests are not the SDK's: nobody's, and such with headers that it does not know.
    "s3-check": {
        **_S3,
        "user-agent": rf"{_S3['user-agent']}|Python/[\d.]+ aiohttp/[\d.]+",
        "accept-encoding": "identity|gzip, deflate",
    },
    "azure-check": _AZURE,
    "azure-obstore": {**_AZURE, "user-agent": f"{_AZURE['user-agent']}|{_OBJECT_STORE}", "date": _DATE},
}


_ADDRESS = re.compile(r"0x[0-9a-f]{8,16}\b")
#: What a session may start: Python asks so for the processor, for the user agent of Azure's SDK.
_STARTED = "('uname', ['uname', '-p'], None, None)"


class _Log(logging.Handler):
    """Keeps the text of every record of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # Where an object lies in memory is all in which many thousands differ.
        self.texts.add(_ADDRESS.sub("0x", self.format(record)))


@contextmanager
def logged() -> Iterator[set[str]]:
    """Yield the texts of all that is logged."""
    handler, root = _Log(), logging.getLogger()
    level, handlers = root.level, root.handlers
    # In place of pytest's own, which would print all of it beside a failure.
    root.handlers = [handler]
    root.setLevel(logging.DEBUG)
    try:
        yield handler.texts
    finally:
        root.setLevel(level)
        root.handlers = handlers


# What is searched


def of_errors(session: Session) -> Iterator[tuple[str, str, bytes | str]]:
    """Yield all that the errors of a session say, in every form in which one is shown or passed on."""
    for error in session.errors:
        yield "error", type(error).__name__, f"{error}\n{error!r}\n{error.args}\n{getattr(error, 'hint', '')}"
        yield "error", "traceback", "".join(traceback.format_exception(error))
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        yield "local variables", type(error).__name__, "".join(shown.format())
        if isinstance(error, SovstoreError):
            for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
                yield "pickle", type(error).__name__, pickle.dumps(error, protocol)


def of_objects(session: Session) -> Iterator[tuple[str, str, bytes | str]]:
    """Yield how public objects show themselves, and what is made of them when they are passed on."""
    for one in session.objects:
        name = type(one).__name__
        yield "repr", name, f"{one}\n{one!r}"
        for dump in (pickle.dumps, cloudpickle.dumps):
            try:
                yield "pickle", name, dump(one)
            except (TypeError, RuntimeError, AttributeError, pickle.PicklingError) as exc:
                # What holds keys refuses.
                yield "error", name, str(exc)
        if hasattr(one, "to_json"):
            yield "pickle", name, f"{one.to_json()}\n{one.to_dict()}\n{one._fs_token}\n{one.storage_options}"
            yield "pickle", "cache", repr(list(type(one)._cache.items()))


def of_files(session: Session, folder: Path) -> Iterator[tuple[str, str, bytes | str]]:
    """Yield all files that are on this machine now, but for those whose content the user put there."""
    for path in folder.rglob("*"):
        own = path.relative_to(folder)
        if own.parts[0] == "host" or LOCAL in str(own) or path.name in ("passphrase", "rescue"):
            continue
        yield "file", str(own), str(own)
        if path.is_file():
            yield "file", str(own), path.read_bytes()


def of_this_machine(session: Session, folder: Path, log: set[str]) -> Iterator[tuple[str, str, bytes | str]]:
    """Yield everything of a session that stays here."""
    yield from of_errors(session)
    yield from of_objects(session)
    yield from of_files(session, folder)
    for text in sorted(log):
        yield "log", text[:80], text
    for printed in session.printed:
        if printed.command[0] != "cat":
            yield "printed", " ".join(printed.command), printed.content
    for started in session.started:
        yield "process", started, started


def hunt(session: Session, pieces: Iterator[tuple[str, str, bytes | str]]) -> list[tuple[str, Found]]:
    """Return which canaries are in a channel that is searched for their kind."""
    known = [*canaries(), *session.keys.canaries()]
    searchers: dict[frozenset[str], Searcher] = {}
    seen: set[tuple[str, bytes | str]] = set()
    leaks = []
    for channel, place, content in pieces:
        if (channel, content) not in seen:
            seen.add((channel, content))
            kinds = frozenset(CHANNELS[channel])
            if kinds not in searchers:
                searchers[kinds] = Searcher(canary for canary in known if canary.kind in kinds)
            found = searchers[kinds].find(content, place)
            leaks += [(channel, one) for one in sorted(found)]
    return leaks


def check_keys(session: Session) -> None:
    """A spy that sees nothing would find nothing."""
    labels = list(session.keys.values.values())
    assert set(labels) == {"secret", "recovery", "stretched", "derived"}
    assert labels.count("secret") > 20


# The sessions


def check_here(session: Session, folder: Path, log: set[str]) -> None:
    """What a session left on this machine holds no secret, and lies where it should."""
    check_keys(session)
    assert hunt(session, of_this_machine(session, folder, log)) == []
    assert len(log) > 10
    assert len(session.errors) > 12
    assert set(session.started) <= {_STARTED}
    assert list((folder / "tmp").iterdir()) == []
    written = {Path(path).absolute() for path in session.opened} - {Path(os.devnull)}
    outside = [path for path in written if not path.is_relative_to(folder)]
    assert outside == []


def of_host(tapped: Tap) -> Iterator[tuple[str, str, bytes | str]]:
    """Yield every byte that a host received; bodies that came in chunks also as one."""
    for number, stream in enumerate(tapped.streams):
        yield "host", f"connection {number}", stream
    for head, body in tapped.requests():
        if head.is_chunked:
            yield "host", head.start, body


def check_headers(requests: list[tuple[Head, bytes]], transport: str) -> None:
    """Every header is one that a person has looked at, and holds no more than it did then."""
    allowed = HEADERS[transport]
    sent = {(name.lower(), value) for head, _ in requests for name, value in head.fields}
    assert {(name, value) for name, value in sent if not re.fullmatch(allowed.get(name, "-"), value)} == set()


@contextmanager
def tapping(family: str, request: pytest.FixtureRequest) -> Iterator[tuple[Tap, dict[str, Any]]]:
    """Yield a tap before a real server, and the settings of a store behind it."""
    fixtures = {"s3": "s3_server", "moto": "moto_server", "azure": "azurite_server"}
    server: Any = request.getfixturevalue(fixtures[family])
    with tap(server.port) as tapped:
        if family == "azure":
            through = server.at(tapped.endpoint_url)
            settings = on_azure(server, options={"part_size": MIB})
            settings["environment"] = {"AZURE_STORAGE_CONNECTION_STRING": through.connection_string}
        else:
            # The smallest parts that there are.
            settings = on_s3(server, endpoint=tapped.endpoint_url, options={"part_size": 5 * MIB})
        yield tapped, settings


#: A session takes long; these go the ways that the others go too.
TRANSPORTS = ("s3", "azure", "azure-obstore", *(("s3-obstore", "moto") if stress.is_long() else ()))


@pytest.mark.stress
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_session_shows_nothing_to_the_host_or_here(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    family, _, driver = transport.partition("-")
    server: Any = request.getfixturevalue(
        {"s3": "s3_server", "azure": "azurite_server"}.get(family, f"{family}_server")
    )
    part = MIB if family == "azure" else 5 * MIB
    with tap(server.port) as tapped, logged() as log:
        through = server.at(tapped.endpoint_url)
        if family == "azure":
            settings = on_azure(server)
            settings["environment"] = {"AZURE_STORAGE_CONNECTION_STRING": through.connection_string}
        else:
            settings = {**on_s3(server), "endpoint": tapped.endpoint_url}
        settings["options"] = {"part_size": part}
        if driver:
            settings["transport"] = driver
        session = Session(tmp_path, monkeypatch, settings, big=part + 300_000)
        (session.writing if family == "moto" else session.all)()
        requests = tapped.requests()
        leaks = hunt(session, of_host(tapped))
    assert leaks == []
    assert len(requests) > 100
    assert {head.method for head, _ in requests} >= {"GET", "HEAD", "PUT", "POST"}
    check_headers(requests, transport)
    if family != "moto":
        check_here(session, tmp_path, log)


@pytest.mark.parametrize("family", ["s3", "azure"])
def test_a_check_of_a_host_tells_it_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """It makes requests of its own, besides those of the drivers, and sends what is random or the same for all."""
    with tapping(family, request) as (tapped, settings):
        monkeypatch.setattr(trials, "LARGE", settings["options"]["part_size"] + 300_000)
        monkeypatch.setattr(trials, "PART", MIB)
        session = Session(tmp_path, monkeypatch, settings, big=0)
        session.run("check", STORE, code=None)
        requests = tapped.requests()
        assert hunt(session, of_host(tapped)) == []
    assert len(requests) > 50
    check_headers(requests, f"{family}-check")


class _Recording(Through):
    """A backend that keeps all that is handed to it: names, bytes and conditions."""

    def __init__(self, inner: Backend, seen: list[bytes]) -> None:
        super().__init__(inner, Counter())
        self._seen = seen

    def _note(self, *said: object) -> None:
        for one in said:
            raw = isinstance(one, bytes | bytearray | memoryview)
            self._seen.append(bytes(one) if raw else str(one).encode())

    async def stat(self, name: str) -> Stat:
        self._note(name)
        return await super().stat(name)

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        self._note(name, etag)
        return await super().read(name, start, end, etag=etag)

    async def upload(self, name: str, **options: Any) -> Upload:
        self._note(name, options)
        upload = await super().upload(name, **options)
        write = upload.write

        async def noted(data: bytes | bytearray | memoryview) -> None:
            self._note(data)
            await write(data)

        # Through the loop, where what is handed over is seen.
        upload.write, upload.blocking = noted, False  # type: ignore[method-assign]
        return upload

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        self._note(folder)
        async for found in super().list(folder, recursive=recursive):
            yield found

    async def delete(self, names: Iterable[str]) -> None:
        chosen = [*names]
        self._note(*chosen)
        await super().delete(chosen)

    async def copy(self, source: str, target: str, *, head: bytes, **options: Any) -> None:
        self._note(source, target, head, options)
        await super().copy(source, target, head=head, **options)

    async def make_folder(self, name: str) -> None:
        self._note(name)
        await super().make_folder(name)


def recorded(
    folder: Path, patch: pytest.MonkeyPatch, provider: str, *, writing: bool = False, **settings: Any
) -> tuple[Session, list[bytes], list[tuple[str, Found]]]:
    """Return a session on a host without a network, what that was given, and what of it is a leak."""
    seen: list[bytes] = []
    wrap_backends(patch, lambda inner: _Recording(inner, seen))
    root = str(folder / "host") if provider == "local" else "/host"
    session = Session(folder, patch, {"provider": provider, "root": root, **settings}, big=2 * MIB)
    (session.writing if writing else session.all)()
    return session, seen, hunt(session, (("host", "backend", piece) for piece in seen))


@pytest.mark.parametrize("provider", ["local", "memory"])
def test_a_session_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    with logged() as log:
        session, seen, leaks = recorded(tmp_path, monkeypatch, provider)
    assert leaks == []
    assert sum(map(len, seen)) > 2 * MIB
    check_here(session, tmp_path, log)


def test_plain_names_are_the_only_leak_of_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documented; and it shows that the hunt would find what a store with encrypted names gave away."""
    _, _, leaks = recorded(tmp_path, monkeypatch, "local", writing=True, names="plain")
    # The last is the name of a file that was put under its own name.
    assert {(found.kind, found.label) for _, found in leaks} == {
        ("path", "folder"),
        ("path", "file"),
        ("here", "local file"),
    }


def test_the_name_of_a_kek_is_the_only_leak_of_a_keyset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documented: the host sees the URIs of the KEKs, and that of a key file may say where somebody's home is."""
    kek = f"keyfile:{tmp_path}/home-{USER}/kek.key"
    _, seen, leaks = recorded(tmp_path, monkeypatch, "local", writing=True, kek=kek)
    assert {(found.kind, found.label) for _, found in leaks} == {("here", "user")}
    pieces = [piece for piece in seen if USER.encode() in piece]
    assert all(piece.startswith(b'{"body":') for piece in pieces)
    without = (("host", "keyset", piece.replace(kek.encode(), b"")) for piece in pieces)
    session = Session.__new__(Session)
    session.keys = KeySpy()
    assert hunt(session, without) == []

"""What is particular to the driver of Azure Blob: blocks, races, credentials, TLS, hostile and failing hosts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.server
import io
import itertools
import json
import logging
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import azure.identity.aio as azure_identity
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ServiceResponseError
from azure.identity import CredentialUnavailableError
from azure.storage.blob import (
    AccountSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)
from azure.storage.blob._generated.models import BlockLookupList
from azure.storage.blob.aio import ContainerClient

from sovstore.backends import azure, azure_client, azure_credentials, credentials, loop
from sovstore.backends.azure import AzureBackend
from sovstore.backends.azure_client import _printable, is_modest, is_range
from sovstore.backends.azure_upload import Blocks
from sovstore.backends.base import Place
from sovstore.backends.providers import catalogue
from sovstore.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from sovstore.secret import Secret
from sovstore.testing.backend import collect, everything, put
from tests.hosts import opened_by_one_request
from tests.servers import azurite
from tests.servers.faults import LISTINGS, OBJECTS, Faults
from tests.servers.ports import free_ports
from tests.stress import is_long

MIB = 2**20
HEAD = b"H" * 128


@pytest.fixture
def container(azurite_server):
    return azurite_server.create_container(f"c{uuid4().hex[:12]}")


@pytest.fixture(autouse=True)
def _short_waits(request, monkeypatch):
    if "real_waits" not in request.fixturenames or not is_long():
        monkeypatch.setattr(azure_client, "_BACKOFF_S", 0.02)
        monkeypatch.setattr(azure_client, "_BACKOFF_MAX_S", 0.3)


@pytest.fixture
def real_waits():
    """In the long form, keep the waits between retries as they are."""


@pytest.fixture
def place(azurite_server, container, monkeypatch):
    """A function that makes a place in the container of this test, with a connection string in the environment."""

    def make(server=azurite_server, **settings):
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string)
        return Place(catalogue()["azurite"], settings.pop("root", f"{container}/root"), **settings)

    return make


def use(place, work):
    """Open the place, run a coroutine function on it, close it."""

    async def body():
        backend = AzureBackend(place)
        try:
            return await work(backend)
        finally:
            await backend.close()

    return asyncio.run(body())


@pytest.fixture
def blob(azurite_server, container):
    """A function that gives the SDK's client of a name below the root."""
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(azurite_server.client(max_block_size=4 * MIB, max_single_put_size=MIB))
        yield lambda name: stack.enter_context(service.get_blob_client(container, f"root/{name}"))


def _blocks(client):
    return [(block.id, block.size) for block in client.get_block_list()[0]]


def _data(size):
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


# Blocks


def test_the_head_is_a_block_of_its_own_and_replacing_it_leaves_the_others(place, blob):
    data = _data(20 * MIB + 5)

    async def work(backend):
        await put(backend, "a", data)
        before = _blocks(blob("a"))
        assert [size for _, size in before] == [128, 8 * MIB - 128, 8 * MIB, 4 * MIB + 5]
        for head in (b"1" * 128, b"2" * 128):
            await backend.copy("a", "a", head=head, etag=(await backend.stat("a")).etag)
            assert _blocks(blob("a"))[1:] == before[1:]
            assert await everything(backend, "a") == head + data[128:]

    use(place(), work)


@pytest.mark.parametrize("head", [b"", b"H" * 100, HEAD, b"H" * 5000])
def test_heads_of_other_lengths(place, blob, head):
    data = _data(9 * MIB)

    async def work(backend):
        await put(backend, "a", data)
        await backend.copy("a", "a", head=head)
        assert await everything(backend, "a") == head + data[len(head) :]
        assert _blocks(blob("a"))

    use(place(), work)


def test_the_head_of_a_blob_that_the_sdk_uploaded(place, blob):
    data = _data(100 * MIB)
    blob("a").upload_blob(data)
    before = _blocks(blob("a"))
    assert len(before) == 25

    async def work(backend):
        etag = (await backend.stat("a")).etag
        await backend.copy("a", "a", head=HEAD, etag=etag)
        with pytest.raises(ObjectChangedError):
            await backend.copy("a", "a", head=b"X" * 128, etag=etag)

    use(place(), work)
    after = _blocks(blob("a"))
    assert after[1:] == before[1:]
    assert after[0][1] == before[0][1]
    assert blob("a").download_blob().readall() == HEAD + data[128:]


def test_a_blob_without_blocks_is_rewritten(place, blob):
    data = _data(600_000)

    async def work(backend):
        await put(backend, "a", data)
        assert _blocks(blob("a")) == []
        stale = (await backend.stat("a")).etag
        await backend.copy("a", "a", head=HEAD, etag=stale)
        with pytest.raises(ObjectChangedError):
            await backend.copy("a", "a", head=b"X" * 128, etag=stale)
        assert await everything(backend, "a") == HEAD + data[128:]

    use(place(), work)


def _stage_raw(client, ids, pieces):
    """Write blocks whose ids are any bytes; the public calls of the SDK take text only."""
    for block, piece in zip(ids, pieces, strict=True):
        client._client.block_blob.stage_block(
            block_id=base64.b64encode(block).decode(), content_length=len(piece), body=piece
        )
    names = [base64.b64encode(block).decode() for block in ids]
    client._client.block_blob.commit_block_list(blocks=BlockLookupList(committed=[], uncommitted=[], latest=names))


@pytest.mark.parametrize(
    "ids",
    [[b"0001", b"0002"], [b"\xff\xfe" * 12 + bytes([n]) for n in (1, 2)], [b"\x00" * 24 + bytes([n]) for n in (1, 2)]],
    ids=["short", "no-text", "nul"],
)
def test_ids_of_blocks_that_other_tools_chose(place, blob, ids):
    data = _data(3000)
    _stage_raw(blob("a"), ids, [data[:1000], data[1000:]])

    async def work(backend):
        await backend.copy("a", "a", head=HEAD)
        assert await everything(backend, "a") == HEAD + data[128:]
        await put(backend, "a", data, if_match=(await backend.stat("a")).etag)
        assert await everything(backend, "a") == data

    use(place(), work)


def test_a_large_first_block_is_not_held_in_memory_but_rewritten(place, blob, monkeypatch):
    monkeypatch.setattr(azure, "_HEAD_BLOCK_MAX", MIB)
    data = _data(5 * MIB)
    blob("a").upload_blob(data)

    async def work(backend):
        await backend.copy("a", "a", head=HEAD)

    use(place(), work)
    assert blob("a").download_blob().readall() == HEAD + data[128:]


def test_an_aborted_upload_is_not_visible_and_another_writer_succeeds_over_its_blocks(place):
    async def work(backend):
        killed = await backend.upload("a")
        await killed.write(bytes(400_000))
        await killed.abort()
        assert await collect(backend.list("", recursive=True)) == {}
        await put(backend, "a", b"x" * 300_000)
        assert (await backend.stat("a")).size == 300_000
        assert await backend.sweep() == 0

    use(place(options={"part_size": 100_000}), work)


@pytest.mark.parametrize("size", [99_999, 100_000, 100_001, 200_000, 200_001, 100])
def test_sizes_around_parts(place, size):
    async def work(backend):
        await put(backend, "a", _data(size))
        assert await everything(backend, "a") == _data(size)

    use(place(options={"part_size": 100_000}), work)


def test_parts_that_wait_in_a_file(place, blob):
    data = _data(41 * MIB)

    async def work(backend):
        await put(backend, "a", data)
        await put(backend, "b", data[: 18 * MIB])
        assert await everything(backend, "a") == data
        assert await everything(backend, "b") == data[: 18 * MIB]

    use(place(options={"part_size": 20 * MIB}), work)
    assert [size for _, size in _blocks(blob("a"))] == [128, 20 * MIB - 128, 20 * MIB, MIB]


# Races

RACERS = 8


async def _race(backend, work, loser):
    results = await asyncio.gather(*(work(n) for n in range(RACERS)), return_exceptions=True)
    assert results.count(None) == 1, results
    assert all(r is None or isinstance(r, loser) for r in results), results
    return results.index(None)


@pytest.mark.parametrize("size", [1000, 350_000], ids=["put", "blocks"])
@pytest.mark.parametrize("condition", ["create", "replace"])
def test_one_of_eight_writers_wins(place, size, condition):
    async def work(backend):
        extra, loser = {"create": True}, ObjectExistsError
        if condition == "replace":
            await put(backend, "a", b"old")
            extra, loser = {"if_match": (await backend.stat("a")).etag}, ObjectChangedError
        won = await _race(backend, lambda n: put(backend, "a", bytes([n]) * size, **extra), loser)
        assert await everything(backend, "a") == bytes([won]) * size

    use(place(options={"part_size": 100_000}), work)


@pytest.mark.parametrize("size", [1000, 350_000], ids=["put", "blocks"])
def test_writers_without_a_condition_leave_one_whole_object(place, size):
    async def work(backend):
        results = await asyncio.gather(
            *(put(backend, "a", bytes([n]) * size) for n in range(RACERS)), return_exceptions=True
        )
        assert None in results
        assert all(r is None or isinstance(r, ObjectChangedError) for r in results), results
        data = await everything(backend, "a")
        assert data == data[:1] * size
        assert results[data[0]] is None

    use(place(options={"part_size": 100_000}), work)


@pytest.mark.parametrize("size", [1000, 350_000], ids=["put", "blocks"])
@pytest.mark.parametrize("target", ["a", "b"])
def test_one_of_eight_copies_wins(place, size, target):
    async def work(backend):
        await put(backend, "a", b"x" * size)
        etag = (await backend.stat("a")).etag
        options = {"etag": etag, "create": target != "a"}
        loser = ObjectChangedError if target == "a" else ObjectExistsError
        won = await _race(backend, lambda n: backend.copy("a", target, head=bytes([n]) * 128, **options), loser)
        assert await everything(backend, target) == bytes([won]) * 128 + b"x" * (size - 128)

    use(place(options={"part_size": 100_000}), work)


# Credentials


def _sas(server, container, permissions="racwdl"):
    until = datetime.now(UTC) + timedelta(hours=1)
    return generate_container_sas(
        server.account_name,
        container,
        server.account_key,
        permission=ContainerSasPermissions.from_string(permissions),
        expiry=until,
    )


def _account_sas(server):
    return generate_account_sas(
        server.account_name,
        server.account_key,
        ResourceTypes.from_string("sco"),
        AccountSasPermissions.from_string("rwdlac"),
        datetime.now(UTC) + timedelta(hours=1),
    )


def _secrets(server, container, kind):
    return {
        "string": {"connection_string": server.connection_string},
        "string with sas": {
            "connection_string": f"BlobEndpoint={server.blob_endpoint};SharedAccessSignature={_account_sas(server)}"
        },
        "key": {"account_key": server.account_key},
        "sas": {"sas_token": _sas(server, container)},
        "sas with question mark": {"sas_token": "?" + _sas(server, container)},
    }[kind]


_VARIABLES = {
    "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
    "account_key": "AZURE_STORAGE_KEY",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
}


@pytest.mark.parametrize("origin", ["environment", "keyring"])
@pytest.mark.parametrize("kind", ["string", "string with sas", "key", "sas", "sas with question mark"])
def test_credentials(azurite_server, container, monkeypatch, caplog, origin, kind):
    """Each kind does everything, and shows itself nowhere."""
    caplog.set_level(logging.DEBUG)
    secrets = _secrets(azurite_server, container, kind)
    settings = {} if "string" in kind else {"endpoint": azurite_server.blob_endpoint}
    if origin == "keyring":
        # A wrong one in the environment is not looked at.
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint=http://127.0.0.1:1/x;AccountName=x")
        found = {name: Secret(value.encode()) for name, value in secrets.items()}
        monkeypatch.setattr(credentials, "fetch", lambda uri: found if uri == "keyring://sovstore/x" else {})
        settings["credentials"] = "keyring://sovstore/x"
    else:
        for name, value in secrets.items():
            monkeypatch.setenv(_VARIABLES[name], value)
    seen = []

    async def work(backend):
        await put(backend, "a/b", b"1", create=True)
        await put(backend, "a/c", b"2" * 300_000)
        assert set(await collect(backend.list("a"))) == {"a/b", "a/c"}
        await backend.copy("a/c", "a/c", head=HEAD)
        await backend.copy("a/b", "a/d", head=b"")
        assert await everything(backend, "a/c") == HEAD + b"2" * (300_000 - 128)
        with pytest.raises(ObjectExistsError) as caught:
            await put(backend, "a/b", b"1", create=True)
        seen.extend(traceback.format_exception(caught.value))
        await backend.delete(["a/b", "a/c", "a/d", "a/never"])
        with pytest.raises(ObjectNotFoundError):
            await backend.stat("a/b")
        seen.append(repr(backend) + repr(vars(backend)) + repr(vars(backend._client)))

    use(Place(catalogue()["azurite"], f"{container}/root", options={"part_size": 100_000}, **settings), work)
    _assert_secret(caplog.text + "".join(seen), azurite_server)


def _assert_secret(text, server):
    assert server.account_key not in text
    signatures = [part for line in text.splitlines() for part in line.split("sig=")[1:]]
    assert all(part.startswith(("REDACTED", "*****")) for part in signatures)


def _failure(place, work):
    with pytest.raises(StoreError) as caught:
        use(place, work)
    return caught.value


async def _write(backend):
    await put(backend, "a", b"1")


async def _read(backend):
    await backend.read("a", 0, 1)


async def _list(backend):
    await collect(backend.list(""))


async def _delete(backend):
    await backend.delete(["a", "b"])


EVERYTHING = pytest.mark.parametrize("work", [_write, _read, _list, _delete])


@EVERYTHING
def test_a_wrong_key(azurite_server, container, monkeypatch, caplog, work):
    caplog.set_level(logging.DEBUG)
    wrong = base64.b64encode(b"wrong" * 12 + b"....").decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", wrong)
    error = _failure(Place(catalogue()["azurite"], container, endpoint=azurite_server.blob_endpoint), work)
    assert not error.retryable
    assert "sovstore login" in error.hint
    assert wrong not in "".join(traceback.format_exception(error)) + caplog.text + repr(pickle.dumps(error))


@EVERYTHING
def test_a_missing_container(place, work):
    error = _failure(place(root="no-such-container/root"), work)
    assert "there is no container 'no-such-container'" in str(error)
    assert not isinstance(error, ObjectNotFoundError)


def test_a_token_that_may_not_delete(azurite_server, container, monkeypatch, place):
    use(place(), _write)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    token = _sas(azurite_server, container, "rl")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", token)
    reader = Place(catalogue()["azurite"], f"{container}/root", endpoint=azurite_server.blob_endpoint)
    use(reader, _read)
    for work in (_delete, _write):
        error = _failure(reader, work)
        assert "refused" in str(error)
        assert "sig=" not in "".join(traceback.format_exception(error))


def test_no_traceback_shows_a_signed_url():
    signed, plain = ServiceResponseError("broken"), ServiceResponseError("broken")
    signed.__cause__ = ValueError("http://x/y?sv=1&sig=CANARY")
    assert _printable(signed) is None
    assert _printable(plain) is plain


def test_a_public_container(azurite_server, container, place):
    use(place(), _write)
    with azurite_server.client() as client, client.get_container_client(container) as sdk:
        sdk.set_container_access_policy({}, public_access="blob")
    open_place = Place(
        catalogue()["azurite"], f"{container}/root", endpoint=azurite_server.blob_endpoint, options={"anon": True}
    )
    use(open_place, _read)
    assert "refused" in str(_failure(open_place, _delete))


@pytest.mark.parametrize(
    ("string", "words"),
    [
        ("nonsense", "connection string is not valid"),
        ("AccountKey=QUJD", "connection string is not valid"),
        ("UseDevelopmentStorage=true", "connection string is not valid"),
        ("AccountName=other;AccountKey=QUJD", "another account"),
        ("AccountName=mine;AccountKey=not base64", "key is not valid"),
    ],
)
def test_malformed_credentials(monkeypatch, string, words):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", string)
    with pytest.raises(ConfigError, match=words) as caught:
        azure_credentials.find_login(Place(catalogue()["azure"], "c", account="mine"))
    assert "QUJD" not in str(caught.value)
    assert "base64" not in caught.value.message


def test_endpoints(monkeypatch):
    def endpoint(**settings):
        return azure_credentials.find_login(Place(catalogue()["azure"], "c", **settings)).endpoint

    with pytest.raises(ConfigError, match="names no storage account"):
        endpoint()
    assert endpoint(account="mine") == "https://mine.blob.core.windows.net"
    assert endpoint(endpoint="https://elsewhere.fr/") == "https://elsewhere.fr"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "env")
    assert endpoint() == "https://env.blob.core.windows.net"
    text = "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=QUJD;EndpointSuffix=core.example.fr"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    assert endpoint() == "https://mine.blob.core.example.fr"
    assert endpoint(endpoint="https://elsewhere.fr") == "https://elsewhere.fr"


def test_bleu_is_asked_at_its_own_authority(monkeypatch):
    """No connection is made: what the SDK would be told is looked at."""
    told = {}
    monkeypatch.setattr(azure_identity, "DefaultAzureCredential", lambda **options: told.update(options))
    provider = catalogue()["bleu"]
    place = Place(
        provider, "c/root", endpoint=provider.endpoint(None, "hopital", where="x"), options={"client_id": "someone"}
    )
    login = azure_credentials.find_login(place)
    login.credential()
    assert login.endpoint == "https://hopital.blob.core.sovcloud-api.fr"
    assert told == {"authority": "https://login.sovcloud-identity.fr", "managed_identity_client_id": "someone"}


def _token():
    """Return a token as Entra ID makes them; Azurite does not check its signature."""
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000000/",
        "iat": now - 60,
        "nbf": now - 60,
        "exp": now + 3600,
        "ver": "1.0",
    }
    parts = [{"alg": "RS256", "typ": "JWT"}, claims]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), "CANARY"])


class _Entra:
    """In place of `DefaultAzureCredential`, which would ask the network."""

    found = True
    asked = 0

    def __init__(self, **options):
        pass

    async def get_token(self, *scopes, **options):
        type(self).asked += 1
        if not self.found:
            raise CredentialUnavailableError("CANARY")
        return AccessToken(_token(), int(time.time()) + 3600)

    async def close(self):
        pass


@pytest.fixture
def entra_place(azurite_server, monkeypatch):
    """A place at an Azurite of its own, which takes tokens, and over TLS only."""
    monkeypatch.setattr(azurite, "_OPTIONS", (*azurite._OPTIONS, "--oauth", "basic"))
    monkeypatch.setattr(azure_identity, "DefaultAzureCredential", _Entra)
    monkeypatch.setattr(_Entra, "asked", 0)
    with azurite.start(tls=True) as server:
        server.create_container("ccc")
        yield Place(catalogue()["azurite"], "ccc/root", endpoint=server.blob_endpoint, ca_file=str(server.ca_file))


def test_entra(entra_place, caplog):
    caplog.set_level(logging.DEBUG)

    async def work(backend):
        await put(backend, "a", b"1", create=True)
        await put(backend, "b", b"2" * 300_000)
        await backend.copy("b", "b", head=HEAD)
        assert await everything(backend, "b") == HEAD + b"2" * (300_000 - 128)
        await backend.delete(["a", "b"])
        assert await collect(backend.list("")) == {}

    use(replace(entra_place, options={"part_size": 100_000}), work)
    assert _Entra.asked
    assert "CANARY" not in caplog.text


def test_nobody_is_logged_in(entra_place, monkeypatch):
    monkeypatch.setattr(_Entra, "found", False)
    error = _failure(entra_place, _read)
    assert "no credentials for the host were found" in str(error)
    assert "az login" in error.hint
    assert _Entra.asked == 1


def test_the_client_of_entra_is_made_without_a_request():
    async def work():
        place = Place(catalogue()["bleu"], "c", endpoint="https://x.blob.core.sovcloud-api.fr")
        credential = azure_credentials.find_login(place).credential()
        await credential.close()

    asyncio.run(work())


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part_sise": 1}, "did you mean 'part_size'"),
        ({"connection_string": "AccountKey=CANARY"}, "unknown option 'connection_string'"),
        ({"part_size": "8"}, "'part_size' is not valid"),
        ({"part_size": 0}, "'part_size' is not valid"),
        ({"part_size": True}, "'part_size' is not valid"),
        ({"timeout": -1.0}, "'timeout' is not valid"),
        ({"anon": 1}, "'anon' is not valid"),
        ({"allow_http": "yes"}, "'allow_http' is not valid"),
        ({"client_id": 7}, "'client_id' is not valid"),
    ],
)
def test_options_that_are_not(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        AzureBackend(Place(catalogue()["azurite"], "c", options=options))
    assert "CANARY" not in str(caught.value)


def test_a_root_without_a_container():
    with pytest.raises(ConfigError, match="no container"):
        AzureBackend(Place(catalogue()["azurite"], "/"))


# Hosts that fail, and hosts that lie


def test_an_authority_that_is_not_trusted(azurite_tls_server, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite_tls_server.connection_string)
    began = time.monotonic()
    error = _failure(Place(catalogue()["azurite"], "ccc"), _read)
    assert "ca_file" in error.hint
    assert time.monotonic() - began < 30


def test_over_tls_connections_are_kept(azurite_faults, place, azurite_server):
    """The SDK's own `connection_verify` would make a connection for each request."""
    faulty = azurite_faults(tls=True)

    async def work(backend):
        for _ in range(10):
            await put(backend, "a", b"1")
        session = backend._client._client._config.transport.session
        held = sum(len(c) for c in session.connector._conns.values())
        assert held == 1

    use(place(faulty.server, ca_file=str(faulty.server.ca_file)), work)


@pytest.mark.stress
def test_a_host_that_refuses_connections(monkeypatch, real_waits):
    if not is_long():
        monkeypatch.setattr(loop, "_TRIES_WITHIN_S", 1)
    (port,) = free_ports(1)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "QUJD")
    began = time.monotonic()
    error = _failure(Place(catalogue()["azurite"], "ccc", endpoint=f"http://127.0.0.1:{port}/acc"), _read)
    assert isinstance(error, StoreUnavailableError)
    assert time.monotonic() - began < 30


def test_a_host_that_never_answers(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "QUJD")
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}/acc"
        began = time.monotonic()
        settings = {"endpoint": endpoint, "options": {"timeout": 2}}
        error = _failure(Place(catalogue()["azurite"], "ccc", **settings), _write)
        assert isinstance(error, StoreUnavailableError)
        assert "in time" in str(error)
        assert time.monotonic() - began < 10


_LIES = [
    {"wrong_content_range": True},
    {"whole_object": True},
    {"shorter_by": 3},
    {"longer_by": 3},
    {"close_after": 1000},
    {"reset_after": 1000},
    {"reset_after": 0},
]


def test_the_first_bytes_come_with_size_and_etag(azurite_faults, place):
    through = azurite_faults()

    use(place(through.server), partial(opened_by_one_request, proxy=through.proxy))


def test_the_host_copies_from_another_container(azurite_server, azurite_faults, place):
    """Block list and all, so that a later rename is as cheap; and a lost reply is no other writer."""
    through = azurite_faults()
    data = _data(20 * MIB)

    async def work(backend):
        elsewhere = azurite_server.create_container(f"c{uuid4().hex[:12]}")
        origin = AzureBackend(place(through.server, root=f"{elsewhere}/other"))
        await put(origin, "a", data)
        version = {"size": len(data), "etag": (await origin.stat("a")).etag, "told": lambda size: None}
        through.proxy.forget()
        through.proxy.faults = Faults(lose_reply=True, methods=("PUT",), limit=1)
        upload = await backend.copy_from(origin, "a", "b", create=True, **version)
        await upload.commit()
        assert through.proxy.count(fault="lose_reply") == 1
        assert not [r for r in through.proxy.requests if r.method == "GET"]
        through.proxy.faults = Faults()
        assert await everything(backend, "b") == data
        through.proxy.forget()
        await backend.copy("b", "b", head=b"H" * 128)
        assert not [r for r in through.proxy.requests if r.range]
        assert await everything(backend, "b") == b"H" * 128 + data[128:]
        again = await backend.copy_from(origin, "a", "b", create=True, **version)
        with pytest.raises(ObjectExistsError):
            await again.commit()
        await again.abort()
        await origin.close()

    use(place(through.server), work)


def test_without_the_key_of_the_account_nothing_is_copied(azurite_server, place):
    async def work(backend):
        origin = AzureBackend(place(azurite_server))
        await put(origin, "a", b"1")
        origin._client.has_key = False
        etag = (await origin.stat("a")).etag
        assert await backend.copy_from(origin, "a", "b", size=1, etag=etag, told=lambda size: None) is None
        await origin.close()

    use(place(azurite_server), work)


async def _all(tasks):
    await asyncio.gather(*tasks)


def test_an_upload_is_gone_on_with(azurite_server, place):
    data = _data(30 * MIB)

    async def work(backend):
        begun = await backend.upload("a", size=len(data))
        assert begun.token() is None
        await begun.write(data[: 20 * MIB])
        # Its process is gone: what was on its way has arrived.
        await backend.on_loop(_all(begun._tasks))
        upload, start = await backend.resume("a", begun.token(), size=len(data), create=True)
        assert start == 16 * MIB
        await upload.write(data[start:])
        await upload.commit()
        assert await everything(backend, "a") == data
        assert await backend.resume("a", begun.token(), size=len(data)) is None
        assert await backend.resume("never", begun.token(), size=len(data)) is None

    use(place(azurite_server), work)


@pytest.mark.parametrize("fault", _LIES, ids=str)
def test_reads_that_are_broken_now_and_then_are_right_in_the_end(azurite_faults, place, fault):
    data = _data(3 * MIB)
    faulty = azurite_faults()

    async def work(backend):
        await put(backend, "a", data)
        faulty.proxy.faults = Faults(**fault, probability=0.3, target=OBJECTS, seed=5)
        pieces = await asyncio.gather(*(backend.read("a", n, n + 100_000) for n in range(0, len(data), 100_000)))
        assert b"".join(pieces) == data
        assert faulty.proxy.count(fault=next(iter(fault)))

    use(place(faulty.server), work)


@pytest.mark.parametrize("fault", _LIES, ids=str)
def test_reads_that_are_always_broken_fail(azurite_faults, place, fault, monkeypatch):
    monkeypatch.setattr(loop, "_TRIES_WITHIN_S", 1)
    faulty = azurite_faults()

    async def work(backend):
        await put(backend, "a", _data(MIB))
        faulty.proxy.faults = Faults(**fault, target=OBJECTS)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await backend.read("a", 10_000, 500_000)
        assert time.monotonic() - began < 60

    use(place(faulty.server), work)


@pytest.mark.parametrize("size", [1000, 350_000], ids=["put", "blocks"])
@pytest.mark.parametrize("condition", ["create", "replace", "copy"])
def test_a_lost_reply_is_not_a_lost_race(azurite_faults, place, size, condition):
    """Each request to write is done by the server, and its first reply never comes."""
    faulty = azurite_faults()

    async def work(backend):
        extra = {"create": True}
        if condition != "create":
            await put(backend, "a", b"o" * size)
            extra = {"if_match": (await backend.stat("a")).etag}
        target = r"comp=blocklist$|comp=blocklist&" if size > 1000 else OBJECTS
        faulty.proxy.faults = Faults(lose_reply=True, methods=("PUT",), target=target, limit=1)
        if condition == "copy":
            await backend.copy("a", "a", head=HEAD, etag=extra["if_match"])
            assert await everything(backend, "a") == HEAD + b"o" * (size - 128)
        else:
            await put(backend, "a", b"n" * size, **extra)
            assert await everything(backend, "a") == b"n" * size
        assert faulty.proxy.count(fault="lose_reply") == 1

    use(place(faulty.server, options={"part_size": 100_000}), work)


def test_a_lost_reply_of_the_loser_is_still_a_lost_race(azurite_faults, place):
    faulty = azurite_faults()

    async def work(backend):
        await put(backend, "a", b"first")
        faulty.proxy.faults = Faults(lose_reply=True, methods=("PUT",), limit=1)
        with pytest.raises(ObjectExistsError):
            await put(backend, "a", b"second", create=True)
        assert await everything(backend, "a") == b"first"

    use(place(faulty.server), work)


@pytest.mark.parametrize("trouble", [{"busy_percent": 30}, {"close_percent": 30}], ids=str)
def test_everything_on_a_host_in_trouble(azurite_faults, place, trouble):
    data = _data(900_000)

    async def work(backend):
        await asyncio.gather(*(put(backend, f"d/{n}", data[: 90_000 * n]) for n in range(10)))
        found = await collect(backend.list("d"))
        assert {n: e.size for n, e in found.items()} == {f"d/{n}": 90_000 * n for n in range(10)}
        for n in range(3, 10):
            await backend.copy(f"d/{n}", f"d/{n}", head=HEAD, etag=found[f"d/{n}"].etag)
            assert await everything(backend, f"d/{n}") == HEAD + data[128 : 90_000 * n]
        await backend.delete(list(found))
        assert await collect(backend.list("d")) == {}

    use(place(azurite_faults.haproxy(**trouble), options={"part_size": 200_000}), work)


@pytest.mark.parametrize(
    ("span", "length", "status", "right"),
    [
        ("bytes 5-9/100", "5", 206, True),
        ("bytes 5-7/8", "3", 206, True),
        ("bytes 5-4/5", "0", 206, True),
        ("bytes 5-9/100", "5", 200, False),
        ("bytes 5-9/100", "6", 206, False),
        ("bytes 6-9/100", "4", 206, False),
        ("bytes 5-10/100", "6", 206, False),
        ("bytes 5-7/100", "3", 206, False),
        ("bytes 5-9/*", "5", 206, False),
        ("bytes 5-9/7", "5", 206, False),
        ("bytes 5-4/3", "0", 206, False),
        ("", "5", 206, False),
        ("bytes 5-9/100", "-5", 206, False),
    ],
)
def test_what_is_taken_for_a_range(span, length, status, right):
    assert is_range("bytes=5-9", status, {"Content-Range": span, "Content-Length": length}) is right


def test_a_range_is_not_unpacked():
    reply = {"Content-Range": "bytes 5-9/100", "Content-Length": "5"}
    assert not is_range("bytes=5-9", 206, {**reply, "Content-Encoding": "gzip"})
    assert not is_range("bytes=5-9", 206, {"Content-Range": "bytes 5-9/100"})


# Hosts that mean harm: each is a function that answers one request


@contextlib.contextmanager
def hostile(answer):
    """Give the URL of a host, and the requests that reached it; `answer` takes a handler."""
    asked = []

    class Host(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append((self.command, self.path, dict(self.headers)))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with contextlib.suppress(OSError):
                answer(self)

        do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815  # names that http.server looks for

        def reply(self, status, body=b"", **headers):
            self.send_response(status)
            headers = {"Content_Length": str(len(body)), "Content_Type": "application/xml", **headers}
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/acc", asked
        finally:
            server.shutdown()


def _at(endpoint, **options):
    return Place(catalogue()["azurite"], "ccc/root", endpoint=endpoint, options={"timeout": 20, **options})


@pytest.fixture
def _few_tries(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "QUJD")
    monkeypatch.setattr(azure_client, "_RETRIES", 1)
    monkeypatch.setattr(azure_client, "_BACKOFF_MAX_S", 0.02)


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _blocks_of(backend):
    return await backend.on_loop(Blocks(backend._client, "a").committed())


async def _stat(backend):
    await backend.stat("a")


ANY_REPLY = pytest.mark.parametrize("work", [_list, _delete, _blocks_of, _read, _write], ids=lambda work: work.__name__)


@pytest.fixture(scope="module")
def bomb():
    """400 MiB of zeros in one stream, made without holding them."""
    with io.BytesIO() as file:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
            for _ in range(100):
                packed.write(bytes(4 * MIB))
        return file.getvalue()


@ANY_REPLY
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.usefixtures("_few_tries")
def test_nothing_is_unpacked(work, status, bomb):
    before = _peak_mib()
    with hostile(lambda host: host.reply(status, bomb, Content_Encoding="GZip")) as (endpoint, asked):
        assert isinstance(_failure(_at(endpoint), work), StoreUnavailableError)
    assert all(headers["Accept-Encoding"] == "identity" for _, _, headers in asked)
    assert _peak_mib() - before < 100


def _without_end(host, status):
    host.reply(status, Content_Length=None, Transfer_Encoding="chunked")
    for _ in range(2000):
        host.wfile.write(b"%x\r\n<%s\r\n" % (MIB, b" " * (MIB - 1)))


@ANY_REPLY
@pytest.mark.parametrize("status", [200, 202, 404])
@pytest.mark.usefixtures("_few_tries")
def test_bodies_without_end(work, status):
    before = _peak_mib()
    with hostile(lambda host: _without_end(host, status)) as (endpoint, _):
        assert isinstance(_failure(_at(endpoint), work), StoreUnavailableError)
    assert _peak_mib() - before < 250


@pytest.mark.parametrize(
    "body",
    [
        b'[{"a": 1}]',
        b'<!DOCTYPE x [<!ENTITY a "aa">]><x/>',
        b"<x>" + b"<a/>" * 2**20 + b"</x>",
        b"<x " + b"a='' " * (2**20 + 1) + b"/>",
        b"<x>" + b"<Blob />" * 5001 + b"</x>",
        b"<x>" + b"<BlobPrefix\n/>" * 5001 + b"</x>",
    ],
    ids=["json", "entities", "tags", "attributes", "blobs", "prefixes"],
)
def test_what_a_parser_would_make_much_of(body):
    assert not is_modest(body)


def test_listings_as_they_are():
    for body in (b"", b"\xef\xbb\xbf<?xml version='1.0'?><x/>", b"\r\n<x>" + b"<Blob></Blob>" * 5000 + b"</x>"):
        assert is_modest(body)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("work", [_list, _delete, _blocks_of, _read, _write, _stat], ids=lambda work: work.__name__)
@pytest.mark.usefixtures("_few_tries")
def test_the_host_cannot_send_us_elsewhere(work, status):
    with hostile(lambda host: host.reply(201)) as (other, reached):
        with hostile(lambda host: host.reply(status, Location=other + host.path)) as (endpoint, asked):
            error = _failure(_at(endpoint), work)
        assert "redirects elsewhere" in str(error)
        assert not error.retryable
        assert "endpoint" in error.hint
        assert len(asked) <= 2
        assert not reached


_XML = '<?xml version="1.0" encoding="utf-8"?>'
_SIZE, _ETAG = "<Content-Length>1</Content-Length>", "<Etag>0x1</Etag>"
_PROPERTIES = _SIZE + _ETAG
_BLOCK = "<Block><Name>QQ==</Name><Size>1</Size></Block>"


def _listing(blobs, marker=""):
    text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
    return (_XML + text).encode()


def _blob_xml(properties=_PROPERTIES, name="<Name>root/a</Name>"):
    return f"<Blob>{name}<Properties><BlobType>BlockBlob</BlobType>{properties}</Properties></Blob>"


@pytest.mark.parametrize(
    "body",
    [
        _listing(_blob_xml(_SIZE)),
        _listing(_blob_xml(_ETAG)),
        _listing(_blob_xml(_SIZE.replace("1", "-1") + _ETAG)),
        _listing(_blob_xml(_SIZE.replace("1", "x") + _ETAG)),
        _listing(_blob_xml(_PROPERTIES + "<Last-Modified>yesterday</Last-Modified>")),
        _listing(_blob_xml(_PROPERTIES + "<Creation-Time>Thu, 99 Jan 99999 00:00:00 GMT</Creation-Time>")),
        _listing(_blob_xml(name="")),
        _listing("<Blob/>"),
        _listing("<BlobPrefix/>"),
        b"<EnumerationResults/>",
        b"<",
        b"<x>" * 100_000,
        b"<\xff\xff",
    ],
)
@pytest.mark.usefixtures("_few_tries")
def test_malformed_listings(body):
    with hostile(lambda host: host.reply(200, body)) as (endpoint, _):
        assert isinstance(_failure(_at(endpoint), _list), StoreUnavailableError)


@pytest.mark.usefixtures("_few_tries")
def test_replies_that_are_well_formed():
    """Without what was broken in them, the others of this section are understood."""

    async def work(backend):
        assert (await collect(backend.list("")))["a"].size == 1
        assert (await backend.stat("a")).etag == "0x1"
        assert await _blocks_of(backend) == [("A", 1)]

    def answer(host):
        blocks = f"{_XML}<BlockList><CommittedBlocks>{_BLOCK}</CommittedBlocks></BlockList>".encode()
        body = blocks if "comp=blocklist" in host.path else _listing(_blob_xml())
        host.reply(200, body, ETag='"0x1"', Content_Encoding="identity")

    with hostile(answer) as (endpoint, _):
        use(_at(endpoint), work)


@pytest.mark.parametrize(
    "blocks",
    [
        "<Block><Name>QQ==</Name></Block>",
        "<Block><Size>1</Size></Block>",
        _BLOCK.replace(">1<", ">-1<"),
        _BLOCK.replace(">1<", ">x<"),
        _BLOCK.replace("QQ==", "Q"),
    ],
)
@pytest.mark.usefixtures("_few_tries")
def test_malformed_lists_of_blocks(blocks):
    body = f"{_XML}<BlockList><CommittedBlocks>{blocks}</CommittedBlocks></BlockList>".encode()
    with hostile(lambda host: host.reply(200, body)) as (endpoint, _):
        assert isinstance(_failure(_at(endpoint), _blocks_of), StoreUnavailableError)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Length": "1"},
        {"Content_Length": None, "ETag": '"0x1"'},
        {"Content_Length": "1", "ETag": '"0x1"', "Last_Modified": "yesterday"},
        {"Content_Length": "1", "ETag": '"0x1"', "x_ms_creation_time": "Thu, 99 Jan 99999 00:00:00 GMT"},
        {"Content_Length": "1", "ETag": '"0x1"', "x_ms_or_x": "y"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("_few_tries")
def test_malformed_heads(headers):
    async def copy(backend):
        await backend.copy("a", "a", head=HEAD)

    with hostile(lambda host: host.reply(200, **headers)) as (endpoint, _):
        for work in (_stat, copy):
            assert isinstance(_failure(_at(endpoint), work), StoreUnavailableError)


def _part(text):
    return b"--b\r\nContent-Type: application/http\r\n\r\n" + text + b"\r\n--b--"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        _part(b""),
        _part(b"nonsense"),
        _part(b"HTTP/1.1 abc"),
        _part(b"HTTP/1.1 202 Accepted\r\n" + b"x" * 70_000),
        b"--b\r\n\r\nx\r\n--b--",
        b"--b\r\n" * 100_000,
        b"--b\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * 20_000,
    ],
    ids=range(9),
)
@pytest.mark.parametrize("kind", ["multipart/mixed; boundary=b", "multipart/mixed", "text/plain", None])
@pytest.mark.usefixtures("_few_tries")
def test_malformed_replies_to_a_batch(body, kind):
    """Then each is deleted by itself, or it fails in our words."""

    def answer(host):
        host.reply(202, *([body] if host.command == "POST" else []), Content_Type=kind)

    with hostile(answer) as (endpoint, _), contextlib.suppress(StoreUnavailableError):
        use(_at(endpoint), _delete)


_ELSEWHERE = _blob_xml(name="<Name>elsewhere</Name>")


# What brings something new with each marker is not known to have no end.
@pytest.mark.parametrize(
    ("entry", "markers"), [*itertools.product(["", _ELSEWHERE], [1, 2, 10**9]), (_blob_xml(), 1), (_blob_xml(), 2)]
)
@pytest.mark.usefixtures("_few_tries")
def test_listings_without_end(monkeypatch, entry, markers):
    monkeypatch.setattr(azure_client, "_EMPTY_PAGES", 50)
    pages = []

    def answer(host):
        pages.append(entry if len(pages) % 2 else "")
        host.reply(200, _listing(pages[-1], f"m{len(pages) % markers}"))

    with hostile(answer) as (endpoint, asked):
        error = _failure(_at(endpoint), _list)
    assert isinstance(error, StoreUnavailableError)
    assert "no end" in str(error)
    assert len(asked) <= 52


@pytest.mark.usefixtures("_few_tries")
def test_only_codes_are_quoted():
    with hostile(lambda host: host.reply(400, x_ms_error_code="\x1b[2J sig=CANARY")) as (endpoint, _):
        error = _failure(_at(endpoint), _list)
    assert str(error).endswith("the host refused: 400")


@pytest.mark.parametrize("host", ["storage.example.fr", "10.0.0.1", "[fd00::1]", "localhost.example.fr"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AZURE_STORAGE_KEY", "QUJD"),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=CANARY"),
        ("AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint={};AccountName=acc;AccountKey=QUJD"),
        ("AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint={}?sig=CANARY"),
    ],
)
def test_no_signature_travels_in_clear(monkeypatch, host, variable, value):
    url = f"HTTP://{host}/acc"
    monkeypatch.setenv(variable, value.format(url))
    settings = {} if "{}" in value else {"endpoint": url}
    place = Place(catalogue()["azure"], "ccc", **settings)
    with pytest.raises(ConfigError, match="http://") as caught:
        use(place, _read)
    assert "https" in caught.value.hint
    assert "CANARY" not in str(caught.value)
    assert azure_credentials.find_login(replace(place, options={"allow_http": True}))
    with pytest.raises(ConfigError):
        azure_credentials.find_login(replace(place, options={"allow_http": False}))


@pytest.mark.parametrize("host", ["127.0.0.1:10000", "localhost", "[::1]:1"])
def test_within_this_machine_there_is_no_clear(monkeypatch, host):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "QUJD")
    assert azure_credentials.find_login(Place(catalogue()["azure"], "ccc", endpoint=f"http://{host}/acc"))


def test_nobody_has_no_signature():
    place = Place(catalogue()["azure"], "ccc", endpoint="http://open.example.fr/acc", options={"anon": True})
    assert azure_credentials.find_login(place)


# Listing and deleting


def test_pages_and_batches(azurite_faults, place, monkeypatch):
    faulty = azurite_faults()
    monkeypatch.setattr(azure, "_PAGE", 7)
    monkeypatch.setattr(azure, "_BATCH", 10)

    async def work(backend):
        names = [f"d{n % 3}/{n}" for n in range(40)]
        await asyncio.gather(*(put(backend, name, b"x") for name in names))
        faulty.proxy.forget()
        found = await collect(backend.list("", recursive=True))
        assert sorted(found) == sorted(names)
        assert faulty.proxy.count("GET", LISTINGS) == 6
        faulty.proxy.forget()
        await backend.delete(name for name in [*names, "folder/"])
        assert faulty.proxy.count() == 4
        assert await collect(backend.list("", recursive=True)) == {}

    use(place(faulty.server), work)


def test_deletes_go_one_by_one_where_batches_are_refused(place, monkeypatch):
    def refuse(*names, **options):
        error = HttpResponseError("no")
        error.status_code = 403
        raise error

    monkeypatch.setattr(ContainerClient, "delete_blobs", refuse)

    async def work(backend):
        await put(backend, "a", b"1")
        await put(backend, "b", b"1")
        await backend.delete(["a", "b", "never"])
        assert await collect(backend.list("")) == {}

    use(place(), work)


def test_markers_of_folders(place, blob):
    """Those that the portal, hadoop and hierarchical accounts write."""
    blob("old/").upload_blob(b"")
    blob("empty").upload_blob(b"", metadata={"hdi_isfolder": "true"})
    blob("full").upload_blob(b"", metadata={"hdi_isfolder": "true"})
    blob("full/a").upload_blob(b"1")

    async def work(backend):
        entries = [(e.name, e.folder) async for e in backend.list("")]
        assert sorted(entries) == [("empty", True), ("full", True), ("old", True)]
        assert [e.name async for e in backend.list("full")] == ["full/a"]
        assert [e.name async for e in backend.list("old")] == []
        assert [e.name async for e in backend.list("", recursive=True)] == ["full/a"]
        for name in ("empty", "full", "old", ""):
            assert (await backend.stat(name)).folder

    use(place(), work)


def test_etags_are_the_same_everywhere(place):
    async def work(backend):
        await put(backend, "a", b"1")
        (listed,) = (await collect(backend.list(""))).values()
        assert listed == await backend.stat("a")
        assert await backend.read("a", 0, 9, etag=listed.etag) == b"1"
        with pytest.raises(ObjectChangedError):
            await backend.read("a", 0, 9, etag="0x1234")

    use(place(), work)


@pytest.mark.parametrize("name", ["é ü/ß", "a%2Fb", "a+b&c=d?e#f", "~x", "a.b./c", "日本", "a'b\"c"])
def test_odd_names(place, name):
    async def work(backend):
        await put(backend, name, b"1")
        assert set(await collect(backend.list("", recursive=True))) == {name}
        await backend.delete([name, "other"])
        assert await collect(backend.list("")) == {}

    use(place(), work)


def test_a_root_that_is_the_whole_container(place, container):
    async def work(backend):
        await put(backend, "a/b", b"1")
        assert set(await collect(backend.list("a"))) == {"a/b"}
        assert (await backend.stat("a")).folder

    use(place(root=container), work)


# The life of connections


def test_closing_is_not_the_end(place):
    async def work(backend):
        await put(backend, "a", b"1")
        for _ in range(2):
            await backend.close()
            await backend.close()
            assert await backend.read("a", 0, 1) == b"1"

    use(place(), work)


_FORGETFUL = """
import asyncio, os
from sovstore.backends.azure import AzureBackend
from sovstore.backends.base import Place
from sovstore.backends.providers import catalogue

backend = AzureBackend(Place(catalogue()["azurite"], os.environ["ROOT"]))

async def use():
    upload = await backend.upload("a")
    await upload.write(b"1")
    await upload.commit()
    return await backend.read("a", 0, 1)

assert asyncio.run(use()) == b"1"
if os.environ["FORK"]:
    if (child := os.fork()) == 0:
        assert asyncio.run(use()) == b"1"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert asyncio.run(use()) == b"1"
"""


@pytest.mark.parametrize("fork", ["", "1"])
def test_a_process_that_closes_nothing_ends_in_silence(azurite_server, container, fork):
    environment = {
        **os.environ,
        "AZURE_STORAGE_CONNECTION_STRING": azurite_server.connection_string,
        "ROOT": f"{container}/root",
        "FORK": fork,
    }
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", _FORGETFUL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_token_is_for_storage_only():
    asked = []

    class Inner:
        async def get_token(self, *scopes, **options):
            asked.append(scopes)
            return "token"

    tokens = azure_credentials.StorageTokens(Inner(), "https://acc.blob.core.sovcloud-api.fr")
    for scope in ("https://storage.azure.com/.default", "https://acc.blob.core.sovcloud-api.fr/.default"):
        assert asyncio.run(tokens.get_token(scope, enable_cae=True)) == "token"
    with pytest.raises(StoreError, match="another service"):
        asyncio.run(tokens.get_token("https://management.azure.com/.default"))
    assert len(asked) == 2

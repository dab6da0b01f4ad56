"""One container of Azure Blob: how its client is made, its deadline, and its errors mapped onto ours in one place."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPException
from typing import Any
from uuid import uuid4

import aiohttp
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
)
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient, ExponentialRetry

from sovstore.backends.azure_credentials import Login, check_options, find_login
from sovstore.backends.base import Place
from sovstore.backends.parts import PART
from sovstore.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)

#: Seconds for one request with all its retries, per part's worth of bytes.
TIMEOUT_S = 120.0
_CONNECT_S, _READ_S, _CONNECTIONS = 5, 30, 32
_RETRIES = 8
_BACKOFF_S, _BACKOFF_MAX_S = 0.25, 8.0
#: No retry is begun later: where no connection is made, and where one is.
_UNREACHABLE_S, _TROUBLE_S = 12.0, 60.0
#: Above every part: a range or a small object is one request, and not a series that the SDK makes of it.
_ONE_REQUEST = 2**40
_EXISTS = frozenset({"BlobAlreadyExists", "UnauthorizedBlobOverwrite", "ResourceAlreadyExists"})
_CHANGED = frozenset({"ConditionNotMet", "TargetConditionNotMet", "SourceConditionNotMet", "BlobOverwritten"})
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")
#: What Azure says of limits, with what can be done.
_LIMITS = {
    "AccountIsDisabled": "the provider disabled the account: look there for the reason, such as a spending limit",
    "BlockCountExceedsLimit": "set a larger 'part_size' in the options of the store, then write the object again",
    "RequestBodyTooLarge": "set a smaller 'part_size' in the options of the store, then write the object again",
}
_CREDENTIALS_HINT = "check the credentials and their rights on the container: 'sovstore login STORE' stores new ones"
#: What the SDK's own code raises when a reply is not what it takes for granted, such as a header that is no number, XML
#: that is none (SyntaxError) or is nested without end, and parts of a batch that are not HTTP.
_SLIPS = (
    aiohttp.ClientError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    SyntaxError,
    RecursionError,
    HTTPException,
)
#: Bytes of a body that is read whole: of a listing, whose 5000 entries can be long, and of any other.
_LISTING_MAX, _OTHER_MAX = 64 * 2**20, 2**20
#: What a listing or a list of blocks may hold: what a parser makes of a tag, an attribute or an entry is many times its
#: text. 50 000 blocks, or 5000 blobs with metadata, are some 300 000 tags.
_TAGS_MAX, _ATTRIBUTES_MAX, _ENTRIES_MAX = 2**20, 2**20, 5000
_ENTRY = re.compile(rb"<Blob(?:Prefix)?[\s/>]")
#: Separators in the reply to a batch of 256, with room for a boundary that holds some itself.
_PARTS_MAX = 4096
#: Pages in a row that bring nothing. A few are right: Azure looks through a part of the names for each.
_EMPTY_PAGES = 1000


class _Backoff(ExponentialRetry):
    """The SDK's retries, with shorter waits that are spread out: its own begin at many seconds. Bounded in time."""

    def __init__(self) -> None:
        super().__init__(retry_total=_RETRIES, retry_connect=_RETRIES, retry_read=_RETRIES, retry_status=_RETRIES)

    def configure_retries(self, request: Any) -> dict[str, Any]:
        return {**super().configure_retries(request), "began": time.monotonic()}

    def increment(
        self, settings: dict[str, Any], request: Any, response: Any = None, error: AzureError | None = None
    ) -> bool:
        cause = getattr(error, "inner_exception", None)
        if isinstance(error, ClientAuthenticationError) or isinstance(cause, aiohttp.ClientSSLError):
            return False
        unreachable = isinstance(error, ServiceRequestTimeoutError) or isinstance(cause, aiohttp.ClientConnectorError)
        in_time = time.monotonic() - settings["began"] < (_UNREACHABLE_S if unreachable else _TROUBLE_S)
        return in_time and super().increment(settings, request, response, error)

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        longest = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** settings["count"])
        return random.uniform(longest / 4, longest)  # noqa: S311  # nosec B311  # spreads clients out, protects nothing


class _Refused(Exception):  # noqa: N818  # never leaves this driver: `AzureClient.mapped` gives it a name
    """A reply that is not looked at any further. No error of the SDK: it would ask the host again."""

    def __init__(self, text: str, kind: type[StoreError] = StoreUnavailableError, hint: str | None = None) -> None:
        super().__init__(text)
        self.kind, self.hint = kind, hint


class _Reply(aiohttp.ClientResponse):
    """A reply whose body, where it is read as a whole, is bounded; it may come in chunks, and never end."""

    async def read(self) -> bytes:
        if self._body is None:
            try:
                self._body = await self._bounded()
            except BaseException:
                self.close()
                raise
        return await super().read()

    async def _bounded(self) -> bytes:
        listing = self.method == "GET" and self.status < 300
        limit, body = _LISTING_MAX if listing else _OTHER_MAX, bytearray()
        async for piece in self.content.iter_any():
            body += piece
            if len(body) > limit:
                raise _Refused("the host's reply is too long")
        if (listing and not is_modest(body)) or (self.method == "POST" and body.count(b"--") > _PARTS_MAX):
            raise _Refused("the host's reply holds more than was asked for")
        return bytes(body)


def is_modest(body: bytes | bytearray) -> bool:
    """Return whether a listing or a list of blocks is XML that takes not much more memory than itself."""
    if body and not body.removeprefix(b"\xef\xbb\xbf")[:64].lstrip().startswith(b"<"):
        return False  # the SDK would also try JSON
    if b"<!ENTITY" in body or body.count(b"<") > _TAGS_MAX or body.count(b"=") > _ATTRIBUTES_MAX:
        return False
    return sum(1 for _ in _ENTRY.finditer(body)) <= _ENTRIES_MAX


class _Transport(AioHttpTransport):  # type: ignore[misc]  # exported lazily, which hides its type
    """The SDK's transport, which lets nothing through that the host could harm us with.

    The SDK follows the host to wherever it points, with credentials and bodies, and unpacks compressed replies of any
    kind. Of ranges it believes ``Content-Range`` and joins whatever the body holds. That is: wrong bytes, or more than
    fit into memory, at the host's choice. What raises an error of the SDK here is tried again by the SDK.
    """

    async def send(self, request: Any, *, stream: bool = False, **config: Any) -> Any:  # the SDK has two kinds of each
        request.headers["Accept-Encoding"] = "identity"
        # Its body is not read before its head was looked at.
        reply = await super().send(request, stream=True, **config)
        try:
            _check_head(request, reply, stream=stream)
            if not stream:
                await reply.load_body()
        except BaseException:
            reply.internal_response.close()
            raise
        return reply


def name_at_random(request: Any) -> None:  # of the SDK's pipeline, before it is signed
    """Give a request another id than the SDK's, which holds the hardware address of this machine and the time."""
    request.http_request.headers["x-ms-client-request-id"] = str(uuid4())


class _Batched(SansIOHTTPPolicy):  # type: ignore[type-arg]  # the SDK has two kinds of each
    """What the SDK does to each request inside a batch: gives it our id, then signs it."""

    def __init__(self, signing: Any) -> None:  # the SDK has several; None where the URL is signed, or nothing is
        self._signing = signing

    def on_request(self, request: Any) -> Any:
        name_at_random(request)
        return self._signing.on_request(request) if self._signing is not None else None


def _check_head(request: Any, reply: Any, *, stream: bool) -> None:  # the SDK has two kinds of each
    if 300 <= reply.status_code < 400 and reply.status_code != 304:
        hint = "a store is asked at its own endpoint only: correct 'endpoint' if it has moved"
        raise _Refused("the host redirects elsewhere", StoreError, hint)
    if any(
        said.lower() not in ("", "identity") for said in reply.internal_response.headers.getall("Content-Encoding", ())
    ):
        raise ServiceResponseError("the reply is compressed, which was not asked for")
    asked = request.headers.get("x-ms-range") or request.headers.get("Range")
    if not 200 <= reply.status_code < 300:
        return
    # Of what is streamed only the range is a bound.
    if (asked or stream) and not is_range(asked or "", reply.status_code, reply.headers):
        raise ServiceResponseError("the reply is not the range that was asked for")


def is_range(asked: str, status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a reply says that it holds the range ``bytes=FIRST-LAST``, cut at the end of the object only."""
    try:
        first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        span, _, whole = headers["Content-Range"].removeprefix("bytes ").partition("/")
        expected = min(last + 1, int(whole))
        length = int(headers["Content-Length"])
    except (KeyError, ValueError):
        return False
    # Right at the end some hosts send an empty range, "10-9/10", where others refuse.
    right = status == 206 and span == f"{first}-{expected - 1}" and length == expected - first >= 0
    # Chunks would have no length but their own.
    return right and not headers.get("Content-Encoding") and not headers.get("Transfer-Encoding")


class Pages:
    """The pages of a listing, which end: a host may otherwise say for ever that there is more.

    Parameters
    ----------
    pages : AsyncIterator
        What `by_page` of the SDK returns.
    """

    def __init__(self, pages: Any) -> None:  # the SDK's
        self._pages, self._empty = pages, 0
        self._seen: set[bytes] = set()

    async def next(self, keep: Callable[[Any], bool] = lambda _: True) -> list[Any] | None:
        """Return those of the next page that are to be kept, or None after the last page; inside `mapped`."""
        try:
            page = [item async for item in await anext(self._pages) if keep(item)]
        except StopAsyncIteration:
            return None
        self._empty = 0 if page else self._empty + 1
        if marker := self._pages.continuation_token:
            digest = hashlib.blake2b(marker.encode(), digest_size=16).digest()
            if digest in self._seen or self._empty > _EMPTY_PAGES:
                raise _Refused("the host's listing has no end")
            self._seen.add(digest)
        return page


class AzureClient:
    """Calls of one container, made on one event loop.

    Parameters
    ----------
    place : Place
        The root is the container and a prefix. Options: `part_size` (bytes), `timeout` (seconds), `anon` (a public
        container), `client_id` (of the managed identity), `allow_http` (send a signature in clear, to an ``http://``
        endpoint on another machine: whoever sees it on the way can use it, too).
    loop : asyncio.AbstractEventLoop
        The loop that all calls are made on.

    Raises
    ------
    ConfigError
        When an option is not known, or the root names no container.
    """

    def __init__(self, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        check_options(place)
        self.container, _, prefix = place.root.strip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.timeout = float(place.options.get("timeout", TIMEOUT_S))
        self._place, self._loop = place, loop
        self._opening = asyncio.Lock()
        self._client: ContainerClient | None = None
        self._close: Callable[[], object] | None = None
        #: Whether requests are signed with the key of the account; known once the client is made.
        self.has_key = False

    def path(self, name: str) -> str:
        """Return the blob of a name below the root."""
        return self.prefix + name

    async def open(self) -> ContainerClient:
        """Return the SDK's client, made when it is first needed; no request is made for it."""
        async with self._opening:
            if self._client is None:
                # In a thread: the keyring may ask a person, and everybody's connections live on this loop.
                login = await asyncio.to_thread(find_login, self._place)
                self._client = self._made(login)
        return self._client

    def _made(self, login: Login) -> ContainerClient:
        # One context for all: the SDK, told `connection_verify`, makes a new one and with it a new connection for
        # each request.
        tls = ssl.create_default_context(cafile=self._place.ca_file) if self._place.ca_file else True
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=_CONNECTIONS),
            trust_env=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            response_class=_Reply,
        )
        # Aiohttp tries a request once more by itself, unseen. An upload must know: when it is then refused, it may have
        # been done the first time. The SDK's retries tell it.
        session._retry_connection = False
        credential = login.credential()
        self.has_key = "account_key" in login.secrets
        self._close = weakref.finalize(self, _close_later, self._loop, os.getpid(), session, credential)
        service = BlobServiceClient(
            login.endpoint,
            credential=credential,
            transport=_Transport(
                session=session,
                connection_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                connection_data_block_size=2**18,
            ),
            retry_policy=_Backoff(),
            permit_redirects=False,
            raw_request_hook=name_at_random,
            max_single_put_size=_ONE_REQUEST,
            max_single_get_size=_ONE_REQUEST,
            max_chunk_get_size=_ONE_REQUEST,
        )
        container = service.get_container_client(self.container)
        # With it the SDK signs the requests inside a batch, which no hook sees.
        signing: Any = container._credential_policy
        container._credential_policy = _Batched(signing)  # type: ignore[assignment]  # it knows only its own
        return container

    async def call(self, name: str, operation: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Call an operation of the SDK's `BlobClient` and return its reply.

        Parameters
        ----------
        name : str
            Below the root.
        size : int
            Bytes sent or awaited: the deadline grows with them.

        Raises
        ------
        ObjectNotFoundError, ObjectExistsError, ObjectChangedError, StoreError, StoreUnavailableError
            As the host, or its absence, says.
        """
        async with self.mapped(name, size=size):
            return await getattr(await self.blob(name), operation)(*arguments, **options)

    async def blob(self, name: str) -> BlobClient:
        """Return the SDK's client of one blob."""
        return (await self.open()).get_blob_client(self.path(name))

    @asynccontextmanager
    async def mapped(self, what: str, *, size: int = 0) -> AsyncIterator[None]:
        """Bound the time of what is inside, and raise only our errors from it."""
        try:
            async with asyncio.timeout(self.timeout * (1 + size // PART)):
                yield
        except SovstoreError:
            raise
        except _Refused as exc:
            raise exc.kind(f"{what}: {exc}", path=what, hint=exc.hint) from exc
        except TimeoutError as exc:
            hint = "check the network; a slow one needs a larger 'timeout' in the options of the store"
            raise StoreUnavailableError(f"{what}: the host did not answer in time", path=what, hint=hint) from exc
        except HttpResponseError as exc:
            raise self._refusal(what, exc) from _printable(exc)
        except (AzureError, *_SLIPS) as exc:
            raise _failure(what, exc) from _printable(exc)

    def _refusal(self, what: str, exc: HttpResponseError) -> SovstoreError:
        """Return the error for what the host said. Only its code is quoted: texts can hold signatures."""
        if exc.status_code is None or exc.status_code < 300:
            # Without a status nothing was said. With one of success, it was not what the SDK can read.
            return _failure(what, exc)
        code, status = error_code(exc), exc.status_code or 0
        if code in ("ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"):
            hint = "make the container at the provider, or correct 'root'"
            return StoreError(f"{what}: there is no container {self.container!r}", path=what, hint=hint)
        if status == 404:
            return ObjectNotFoundError(f"{what}: not found", path=what)
        if code in _EXISTS:
            return ObjectExistsError(f"{what}: exists already", path=what)
        if code in _CHANGED or (status == 412 and not code):
            return ObjectChangedError(f"{what}: changed meanwhile", path=what)
        if code == "AuthenticationFailed" and "date header too old" in str(exc).lower():
            text = f"{what}: the clocks of this machine and the host differ"
            return StoreError(text, path=what, hint="set the clock")
        if code in _LIMITS:
            return StoreError(f"{what}: the host refused: {code}", path=what, hint=_LIMITS[code])
        if status in (401, 403):
            return StoreError(f"{what}: the host refused: {code or status}", path=what, hint=_CREDENTIALS_HINT)
        if status >= 500 or status in (0, 408, 429):
            return StoreUnavailableError(f"{what}: the host did not answer as it should: {code or status}", path=what)
        return StoreError(f"{what}: the host refused: {code or status}", path=what)

    async def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        async with self._opening:
            client, self._client = self._client, None
            if client is not None and self._close is not None:
                closing = self._close()
                if isinstance(closing, asyncio.Task):
                    await closing


def _close_later(loop: asyncio.AbstractEventLoop, pid: int, *closed: Any) -> object:
    """Close sessions on the loop that they belong to, from whichever thread, without waiting for it elsewhere."""
    if pid != os.getpid():
        # They are the parent's: closing them here would take its sockets out of the selector that both share.
        _INHERITED.append(closed)
        return None

    async def close() -> None:
        for one in closed:
            if hasattr(one, "close"):
                await one.close()

    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        return loop.create_task(close())
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(close(), loop)
    return None


#: Sessions of the process that this one is a fork of: kept, because their finalisers would close them.
_INHERITED: list[object] = []


def error_code(exc: BaseException) -> str:
    """Return Azure's code of a refusal, or of the refusal that an error comes from; '' without one."""
    said = _said(exc)
    code = getattr(said, "error_code", None) or getattr(said, "response", None)
    if code is not None and hasattr(code, "headers"):
        # The reply to HEAD has no body to say it in.
        code = code.headers.get("x-ms-error-code")
    text = str(getattr(code, "value", code) or "")
    # It is quoted: what is no code but any text of the host's, or an escape for a terminal, is not.
    return text if _CODE.fullmatch(text) else ""


def http_status(exc: BaseException) -> int | None:
    """Return the HTTP status of a refusal, or of the refusal that an error comes from."""
    said = _said(exc)
    return said.status_code if said is not None else None


def _said(exc: BaseException | None) -> HttpResponseError | None:
    while exc is not None and not isinstance(exc, HttpResponseError):
        exc = exc.__cause__ or exc.__context__
    return exc


def _printable(exc: BaseException) -> BaseException | None:
    """Return the cause to show in a traceback: none whose text holds a URL signed by a SAS token."""
    cause: BaseException | None = exc
    while cause is not None:
        if "sig=" in str(cause):
            return None
        cause = cause.__cause__ or cause.__context__
    return exc


def _failure(what: str, exc: BaseException) -> SovstoreError:
    """Return the error for a request that got no reply. Only its class is named: texts hold URLs."""
    if isinstance(exc, ClientAuthenticationError):
        hint = (
            "'sovstore login STORE' stores them; or set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY or"
            " AZURE_STORAGE_SAS_TOKEN, or log in with 'az login'"
        )
        return StoreError(f"{what}: no credentials for the host were found", path=what, hint=hint)
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLError | aiohttp.ClientSSLError):
            hint = "set 'ca_file' to the certificates of a private authority; never switch verification off"
            return StoreUnavailableError(f"{what}: the host's certificate was not accepted", path=what, hint=hint)
        cause = cause.__cause__ or cause.__context__
    return StoreUnavailableError(f"{what}: the host did not answer as it should: {type(exc).__name__}", path=what)

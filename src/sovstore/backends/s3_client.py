"""One S3 client: how it is made from a place, its deadline, and its errors mapped onto ours in one place."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiobotocore.session
import aiohttp
import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientError as HTTPError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)

from sovstore.backends.base import Place
from sovstore.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)

T = TypeVar("T")
#: Seconds for one request with all its retries, per part's worth of bytes.
TIMEOUT_S = 120.0
_CONNECT_S, _READ_S, _ATTEMPTS, _CONNECTIONS = 5, 30, 6, 32
#: Options that are ours and not s3fs's.
_OWN = ("part_size", "timeout")
#: What replies that nobody expected end in, in the SDK or where they are read.
_SLIPS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
#: Most bytes of a reply that is no object: a listing of 1,000 names of 1,024 bytes, and to spare.
_REPLY_MAX = 16 * 2**20
_CREDENTIAL_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
)
#: What hosts say that have no more room, besides status 507: Ceph and those on it, MinIO.
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_FULL_HINT = "free some room there, or ask for a larger quota, then run it again; what was there before is unharmed"
_CREDENTIALS_HINT = "check the credentials and their rights on the bucket: 'sovstore login STORE' stores new ones"


class _Reply(aiohttp.ClientResponse):
    """A reply that is read whole only up to a limit: a listing or an error could be of any size."""

    async def read(self) -> bytes:
        body, size = [], 0
        async for piece in self.content.iter_any():
            body.append(piece)
            size += len(piece)
            if size > _REPLY_MAX:
                self.close()
                raise aiohttp.ClientPayloadError("a reply that does not end")
        return b"".join(body)


class _Session(AIOHTTPSession):  # type: ignore[misc]  # has no types
    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._response_class = _Reply
        return session


class S3Client:
    """Calls of one bucket.

    Parameters
    ----------
    place : Place
        Whose options may be those of `s3fs.S3FileSystem`, besides `part_size` (bytes) and `timeout` (seconds).
    loop : asyncio.AbstractEventLoop
        The loop that all calls are made on.

    Raises
    ------
    ConfigError
        When an option is not known.
    """

    def __init__(self, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        self.bucket = place.root.strip("/").partition("/")[0]
        self.timeout = float(place.options.get("timeout", TIMEOUT_S))
        options = {key: value for key, value in place.options.items() if key not in _OWN}
        _check_options(options, place.provider.name)
        self._fs = s3fs.S3FileSystem(
            **{**options, **_connection(place, options)}, asynchronous=False, loop=loop, use_listings_cache=False
        )

    async def call(
        self, what: str, operation: str, *, weight: int = 1, pick: Callable[[Any], T] | None = None, **arguments: Any
    ) -> Any:
        """Call an operation of the SDK and return its reply, or what `pick` takes from it.

        Parameters
        ----------
        what : str
            The name that an error is about.
        weight : int
            How many times the usual time it may take.
        pick : callable, optional
            Reads the reply; one that it cannot read is an error of the host.

        Raises
        ------
        ObjectNotFoundError, ObjectChangedError, StoreError, StoreUnavailableError
            As the host, or its absence, says.
        """
        async with self.mapped(what, weight=weight):
            client = await self._fs.set_session()
            client.meta.events.register_first("needs-retry.s3", _give_up, unique_id="sovstore")
            reply = await getattr(client, operation)(Bucket=self.bucket, **arguments)
            return reply if pick is None else pick(reply)

    @asynccontextmanager
    async def mapped(self, what: str, *, weight: int = 1) -> AsyncIterator[None]:
        """Bound the time of what is inside, and raise only our errors from it."""
        try:
            async with asyncio.timeout(self.timeout * max(1, weight)):
                yield
        except SovstoreError:
            raise
        except TimeoutError as exc:
            hint = "check the network; a slow one needs a larger 'timeout' in the options of the store"
            raise StoreUnavailableError(f"{what}: the host did not answer in time", path=what, hint=hint) from exc
        except ClientError as exc:
            raise self._refusal(what, exc) from exc
        except (BotoCoreError, HTTPError, OSError, *_SLIPS) as exc:
            raise _failure(what, exc) from exc

    def _refusal(self, what: str, exc: ClientError) -> SovstoreError:
        """Return the error for what the host said. Its text is not quoted: it can hold signed URLs."""
        code, status = str(exc.response.get("Error", {}).get("Code", "")), http_status(exc)
        if code == "NoSuchBucket":
            hint = "make the bucket at the provider, or correct 'root'"
            return StoreError(f"{what}: there is no bucket {self.bucket!r}", path=what, hint=hint)
        if status == 404:
            return ObjectNotFoundError(f"{what}: not found", path=what)
        if status in (409, 412):
            return ObjectChangedError(f"{what}: changed meanwhile", path=what)
        if code == "RequestTimeTooSkewed":
            return StoreError(
                f"{what}: the clocks of this machine and the host differ", path=what, hint="set the clock"
            )
        if code in _FULL_CODES or status == 507:
            return StoreError(f"{what}: no room at the host: {code or status}", path=what, hint=_FULL_HINT)
        if code in _CREDENTIAL_CODES or status in (401, 403):
            return StoreError(f"{what}: the host refused: {code or status}", path=what, hint=_CREDENTIALS_HINT)
        if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307"):
            return StoreError(f"{what}: the bucket is in another region", path=what, hint="correct 'region'")
        if status is not None and (status >= 500 or status == 429):
            return StoreUnavailableError(f"{what}: the host did not answer as it should: {code or status}", path=what)
        return StoreError(f"{what}: the host refused: {code or status}", path=what)


def _check_options(options: Mapping[str, Any], provider: str) -> None:
    known = [*inspect.signature(s3fs.S3FileSystem.__init__).parameters, "profile", *_OWN]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "they are those of s3fs.S3FileSystem"
            raise ConfigError(f"provider {provider!r}: unknown option {key!r}", path=provider, hint=hint)


def _connection(place: Place, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what s3fs is told of the host, under what the options of the store say."""
    facts, given = place.provider, options.get("config_kwargs", {})
    config = {
        "signature_version": facts.get("signature"),
        "request_checksum_calculation": facts.get("checksums"),
        "response_checksum_validation": facts.get("checksums"),
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        # Botocore's own: exponential, with jitter, and a budget that stops a client from hammering a host in trouble.
        "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
        "max_pool_connections": _CONNECTIONS,
        "http_session_cls": _Session,
        **given,
        # Signing would hash every byte once more, over TLS too where no checksum is sent; ours authenticate themselves.
        "s3": {
            "addressing_style": facts.get("addressing"),
            "payload_signing_enabled": facts.get("signed_payload"),
            **given.get("s3", {}),
        },
    }
    client = dict(options.get("client_kwargs", {}))
    if region := facts.get("region_name") or place.region:
        client.setdefault("region_name", region)
    if place.ca_file is not None:
        client.setdefault("verify", place.ca_file)
    made: dict[str, Any] = {"config_kwargs": config, "client_kwargs": client}
    if place.endpoint is not None:
        made["endpoint_url"] = place.endpoint
    if place.credentials is not None:
        made |= {"session": _session(place.credentials), "skip_instance_cache": True}
    return made


def _session(uri: str) -> aiobotocore.session.AioSession:
    # Set on the session and not given to s3fs, which keeps its arguments and would pickle them.
    from sovstore.backends import credentials

    found = credentials.fetch(uri, "s3")
    session = aiobotocore.session.AioSession()
    names = ("access_key_id", "secret_access_key", "session_token")
    session.set_credentials(*(found[name].reveal().decode() if name in found else None for name in names))
    return session


def _give_up(caught_exception: Exception | None = None, **_: object) -> None:
    # Botocore would ask again, and again, whether the certificate is not a good one after all.
    if isinstance(caught_exception, SSLError):
        raise caught_exception


def _failure(what: str, exc: Exception) -> SovstoreError:
    """Return the error for a request that got no reply. Only its class is named: texts hold URLs."""
    if isinstance(exc, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        hint = "'sovstore login STORE' stores them; or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return StoreError(f"{what}: no credentials for the host were found", path=what, hint=hint)
    if isinstance(exc, SSLError) or isinstance(exc.__context__, ssl.SSLError):
        hint = "set 'ca_file' to the certificates of a private authority; never switch verification off"
        return StoreUnavailableError(f"{what}: the host's certificate was not accepted", path=what, hint=hint)
    hint = "check 'endpoint' and 'region', and whether this machine reaches the host; then try again"
    message = f"{what}: the host did not answer as it should: {type(exc).__name__}"
    return StoreUnavailableError(message, path=what, hint=hint)


def http_status(exc: BaseException | None) -> int | None:
    """Return the HTTP status of a refusal, or of the refusal that an error comes from."""
    while exc is not None and not isinstance(exc, ClientError):
        exc = exc.__cause__
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode") if exc is not None else None
    return status if isinstance(status, int) else None


def error_code(exc: BaseException | None) -> str | None:
    """Return the code of S3 of a refusal, or of the refusal that an error comes from."""
    while exc is not None and not isinstance(exc, ClientError):
        exc = exc.__cause__
    return str(exc.response.get("Error", {}).get("Code")) if exc is not None else None

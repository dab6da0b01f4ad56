"""Clients of obstore made from a place, and its errors mapped onto ours in one place.

Reads credentials where the SDK drivers do. Of the environment nothing else has a say over a host that the place names:
object_store takes every variable AWS_… and AZURE_… that is called like one of its settings, so that all of those which
change host, bucket, signature or TLS are set here. Those of its HTTP client count for nothing once it is given options.
What has no value for "none" cannot be: AWS_SERVER_SIDE_ENCRYPTION with AWS_SSE_…, AWS_CHECKSUM_ALGORITHM and
AZURE_STORAGE_ENCRYPTION_KEY. These add headers to requests that go to the same host.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, S3Store

from sovstore.backends import credentials
from sovstore.backends.base import Place
from sovstore.errors import (
    ConfigError,
    MissingDependencyError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)
from sovstore.secret import Secret

if TYPE_CHECKING:
    from sovstore.backends.azure_credentials import Login

Store: TypeAlias = S3Store | AzureStore
#: Gives obstore the credentials of a request; secrets that lay in the configuration of a store would be in its `repr`.
_Credentials: TypeAlias = Callable[[], dict[str, Any]]

#: Seconds for one request with all its retries.
TIMEOUT_S = 120.0
#: Seven attempts to connect, with what lies between them, end before 30 seconds are over.
_CONNECT_S, _READ_S, _RETRIES, _BACK_OFF_S = 3, 30, 6, 1
_OPTIONS = {
    "s3": ("endpoint_url", "part_size", "profile", "timeout"),
    "azure": ("allow_http", "anon", "client_id", "part_size", "timeout"),
}
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_NO_ROOM = ("NoSuchBucket", "ContainerNotFound")
_LOGIN = "'sovstore login STORE' stores them"
#: Said, because variables of the same names in the environment would count otherwise.
_SAID: dict[str, dict[str, Any]] = {
    "s3": {
        "skip_signature": False,
        # Asks another host for a session with which it then signs.
        "s3_express": False,
        "request_payer": False,
        "conditional_put": "etag",
        "disable_tagging": False,
    },
    "azure": {
        # Sends everything to AZURITE_BLOB_STORAGE_URL, over plain HTTP if that says so.
        "use_emulator": False,
        "use_fabric_endpoint": False,
        "disable_tagging": False,
    },
}


@dataclass(frozen=True)
class Clients:
    """Clients of one bucket or container.

    Parameters
    ----------
    reading : S3Store or AzureStore
        Gives up, and asks again, when nothing comes for a while.
    writing : S3Store or AzureStore
        Does not: reqwest's timeout for reading runs while a large body is sent to a slow host, too.
    """

    reading: Store
    writing: Store


def connect(place: Place) -> Clients:
    """Return the clients of a place. Makes no request; may wait for the keyring.

    Raises
    ------
    ConfigError
        When the place is not one that obstore can reach.
    StoreError, StoreUnavailableError
        When there are no credentials.
    MissingDependencyError
        When a package that finds them is not installed.
    """
    make = _s3 if place.provider.driver == "s3" else _azure
    try:
        return make(place)
    except ImportError as exc:
        hint = f"pip install 'sovstore[{place.provider.driver}]', whose packages know the credentials"
        name = place.provider.name
        raise MissingDependencyError(f"provider {name!r}: a package is not installed", path=name, hint=hint) from exc
    except (BaseError, ValueError) as exc:
        if isinstance(exc, SovstoreError):
            raise
        # The cause is not shown: obstore quotes the values that it cannot read.
        hint = "check 'endpoint', 'region', 'account', 'root' and 'ca_file'"
        name = place.provider.name
        raise ConfigError(f"provider {name!r}: obstore does not take this place", path=name, hint=hint) from None


def check(place: Place) -> None:
    """Refuse what only another transport can do.

    Raises
    ------
    ConfigError
        When an option is unknown, or the signature is an old one.
    """
    name, known = place.provider.name, _OPTIONS.get(place.provider.driver, ())
    if not known:
        hint = "leave 'transport' out"
        raise ConfigError(f"provider {name!r}: obstore is a transport of S3 and Azure Blob", path=name, hint=hint)
    for key in place.options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"obstore's are {', '.join(known)}; or leave it out"
            raise ConfigError(f"provider {name!r}: unknown option {key!r}", path=name, hint=hint)
    if place.provider.get("signature") == "s3":
        hint = "leave 'transport' out"
        raise ConfigError(f"provider {name!r}: obstore cannot sign as this host wants", path=name, hint=hint)


def timeout(place: Place) -> float:
    """Return the seconds for one request with all its retries."""
    return float(place.options.get("timeout", TIMEOUT_S))


def _network(place: Place, endpoint: str) -> tuple[Any, Any, Any]:  # obstore's dictionaries
    """Return the client options for reading and for writing, and how requests are tried again."""
    limit = timedelta(seconds=timeout(place))
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "timeout": limit,
        # Only for a host that was written with http://, so that nothing falls back to it.
        "allow_http": endpoint.startswith("http://"),
    }
    if place.ca_file is not None:
        try:
            options["root_certificate"] = Path(place.ca_file).read_bytes()
        except OSError as exc:
            raise ConfigError(f"{place.ca_file}: cannot be read", path=place.ca_file, hint="see 'ca_file'") from exc
    retries = {
        "max_retries": _RETRIES,
        "retry_timeout": limit,
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=_BACK_OFF_S), "base": 2},
    }
    return {**options, "read_timeout": min(limit, timedelta(seconds=_READ_S))}, options, retries


def _s3(place: Place) -> Clients:
    facts, environ = place.provider, os.environ
    bucket, addressing = place.root.strip("/").partition("/")[0], facts.get("addressing")
    region = facts.get("region_name") or place.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    region = region or "us-east-1"
    # Where the place names no host, it is the one that botocore takes. Left to object_store, a host of the environment
    # would count as one of the bucket alone where ours are written so, and requests would go to another bucket.
    endpoint = (
        place.endpoint
        or place.options.get("endpoint_url")
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or f"https://s3.{region}.amazonaws.com"
    )
    host = urlsplit(endpoint).hostname or ""
    virtual = addressing == "virtual" or (addressing == "auto" and host.endswith(".amazonaws.com"))
    url = endpoint.replace("://", f"://{bucket}.", 1) if virtual else endpoint
    config: dict[str, Any] = {
        "credential_provider": _s3_credentials(place),
        "unsigned_payload": not facts.get("signed_payload"),
        "virtual_hosted_style_request": virtual,
        **_SAID["s3"],
        "disable_bulk_delete": facts.get("batch_delete") == 1,
        "region": region,
        "endpoint": url,
        # Because AWS_ENDPOINT_URL_S3 would go before the other one.
        "aws_endpoint_url_s3": url,
    }
    reading, writing, retries = _network(place, endpoint)
    return Clients(
        S3Store(bucket, client_options=reading, retry_config=retries, **config),
        S3Store(bucket, client_options=writing, retry_config=retries, **config),
    )


def _s3_credentials(place: Place) -> _Credentials:
    if place.credentials is not None:
        found = credentials.fetch(place.credentials)
        return lambda: _s3_values(
            found["access_key_id"].reveal(), found["secret_access_key"].reveal(), _revealed(found.get("session_token"))
        )
    environ = os.environ
    if "profile" not in place.options and environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
        return lambda: _s3_values(
            environ["AWS_ACCESS_KEY_ID"].encode(),
            environ["AWS_SECRET_ACCESS_KEY"].encode(),
            environ.get("AWS_SESSION_TOKEN", "").encode(),
        )
    return _from_botocore(place)


def _revealed(secret: Secret | None) -> bytes:
    return secret.reveal() if secret else b""


def _s3_values(key_id: bytes, secret: bytes, token: bytes, expires: datetime | None = None) -> dict[str, Any]:
    return {
        "access_key_id": key_id.decode(),
        "secret_access_key": secret.decode(),
        "token": token.decode() or None,
        "expires_at": expires,
    }


def _from_botocore(place: Place) -> _Credentials:
    """Let botocore look: files, profiles, and what the clouds give to their machines."""
    name = place.provider.name
    hint = f"{_LOGIN}; or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    missing = StoreError(f"provider {name!r}: no credentials for the host were found", path=name, hint=hint)
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        raise missing from None
    try:
        found = Session(profile=place.options.get("profile")).get_credentials()
    except BotoCoreError as exc:
        raise missing from exc
    if found is None:
        raise missing

    def give() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        # Botocore renews its own in time; asking it again is cheap.
        expires = datetime.now(UTC) + timedelta(minutes=5)
        token = (frozen.token or "").encode()
        return _s3_values(frozen.access_key.encode(), frozen.secret_key.encode(), token, expires)

    return give


def _azure(place: Place) -> Clients:
    # Imported here, because it needs packages of Azure that a host of S3 does not.
    from sovstore.backends.azure_credentials import find_login

    login = find_login(place)
    if login.endpoint.startswith("http://") and not login.anon and not login.secrets:
        # As the SDK does: a token of Entra ID opens more than this account.
        name, hint = place.provider.name, "write https:// in 'endpoint', or use an account key"
        raise ConfigError(f"provider {name!r}: Entra ID needs https://", path=name, hint=hint)
    config: dict[str, Any] = {
        "account_name": login.account,
        "endpoint": login.endpoint,
        "skip_signature": login.anon,
        # How object_store would find credentials by itself; it is given some, or needs none.
        "credential_type": "auto",
        **_SAID["azure"],
    }
    if not login.anon:
        config["credential_provider"] = _azure_credentials(login)
    container = place.root.strip("/").partition("/")[0]
    reading, writing, retries = _network(place, login.endpoint)
    return Clients(
        AzureStore(container, client_options=reading, retry_config=retries, **config),
        AzureStore(container, client_options=writing, retry_config=retries, **config),
    )


def _azure_credentials(login: Login) -> _Credentials:
    if key := login.secrets.get("account_key"):
        return lambda: {"access_key": key.reveal().decode(), "expires_at": None}
    if token := login.secrets.get("sas_token"):
        return lambda: {"sas_token": token.reveal().decode().lstrip("?"), "expires_at": None}
    from azure.identity import DefaultAzureCredential

    options = {"authority": login.authority, "managed_identity_client_id": login.client_id}
    entra = DefaultAzureCredential(**{key: value for key, value in options.items() if value})

    def give() -> dict[str, Any]:
        found = entra.get_token("https://storage.azure.com/.default")
        return {"token": found.token, "expires_at": datetime.fromtimestamp(found.expires_on, UTC)}

    return give


@contextmanager
def mapped(name: str) -> Iterator[None]:
    """Map what obstore raises onto our errors. Its texts are not quoted: they hold URLs and replies."""
    try:
        yield
    except (SovstoreError, asyncio.CancelledError):
        raise
    except TimeoutError as exc:
        hint = "check the network; a slow one needs a larger 'timeout' in the options of the store"
        raise StoreUnavailableError(f"{name}: the host did not answer in time", path=name, hint=hint) from exc
    except (BaseError, OSError, ValueError) as exc:
        # A signed URL would be in the traceback.
        raise _error(name, exc) from (None if "sig=" in str(exc) else exc)


def _error(name: str, exc: Exception) -> SovstoreError:
    text = str(exc)
    code, status = code_of(text), status_of(text)
    if code in _NO_ROOM:
        hint = "make it at the provider, or correct 'root'"
        return StoreError(f"{name}: there is no such bucket or container", path=name, hint=hint)
    if isinstance(exc, FileNotFoundError):
        return ObjectNotFoundError(f"{name}: not found", path=name)
    if isinstance(exc, AlreadyExistsError):
        return ObjectExistsError(f"{name}: exists already", path=name)
    if isinstance(exc, PreconditionError):
        return ObjectChangedError(f"{name}: changed meanwhile", path=name)
    if isinstance(exc, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        hint = f"check the credentials and their rights on the bucket or container: {_LOGIN}"
        return StoreError(f"{name}: the host refused: {code or status}", path=name, hint=hint)
    if isinstance(exc, InvalidPathError | ValueError):
        return unspeakable(name)
    if isinstance(exc, NotSupportedError) or (status is not None and 300 <= status < 500 and status != 429):
        return StoreError(f"{name}: the host refused: {code or status or type(exc).__name__}", path=name)
    if "certificate" in text.lower():
        hint = "set 'ca_file' to the certificates of a private authority; never switch verification off"
        return StoreUnavailableError(f"{name}: the host's certificate was not accepted", path=name, hint=hint)
    what = code or status or type(exc).__name__
    return StoreUnavailableError(f"{name}: the host did not answer as it should: {what}", path=name)


def unspeakable(name: str) -> StoreError:
    """Return the error for a name that obstore would take for another one, or not at all."""
    hint = "leave 'transport' out: the provider's own driver takes names with control characters, '.' or '//'"
    return StoreError(f"{name!r}: obstore cannot say this name", path=name, hint=hint)


def status_of(text: str) -> int | None:
    """Return the HTTP status that an error of obstore is about."""
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def code_of(text: str) -> str | None:
    """Return the code that the host gave, a word of S3 or Azure."""
    found = _CODE.search(text)
    return found[1] if found else None

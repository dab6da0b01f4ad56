"""Who a store is to Azure Blob, and at which endpoint: options, keyring, environment, Entra ID. Makes no request."""

from __future__ import annotations

import base64
import difflib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

from sovstore.backends import credentials
from sovstore.backends.base import Place
from sovstore.errors import ConfigError, MissingDependencyError, StoreError
from sovstore.secret import Secret

#: The options of the driver and their types.
OPTIONS: Mapping[str, tuple[type, ...]] = {
    "part_size": (int,),
    "timeout": (int, float),
    "anon": (bool,),
    "client_id": (str,),
    "allow_http": (bool,),
}
_SUFFIX = "blob.core.windows.net"
_ENVIRONMENT = {
    "connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN",),
}
_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")


def check_options(place: Place) -> None:
    """Check the options and the root of a place.

    Raises
    ------
    ConfigError
        When an option is unknown or of the wrong type, or the root names no container.
    """
    where = place.provider.name
    for key, value in place.options.items():
        if key not in OPTIONS:
            near = difflib.get_close_matches(key, OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(OPTIONS)}"
            raise ConfigError(f"provider {where!r}: unknown option {key!r}", path=where, hint=hint)
        numeric = not isinstance(value, bool) and (not isinstance(value, int | float) or value > 0)
        if not isinstance(value, OPTIONS[key]) or not (numeric or bool in OPTIONS[key]):
            kind = " or ".join(t.__name__ for t in OPTIONS[key])
            raise ConfigError(f"provider {where!r}: option {key!r} is not valid", path=where, hint=f"a positive {kind}")
    if not place.root.strip("/"):
        raise ConfigError(f"provider {where!r}: the root names no container", path=where, hint="CONTAINER/PREFIX")


@dataclass(frozen=True, repr=False)
class Login:
    """Where, and as whom.

    Parameters
    ----------
    endpoint : str
        URL of the account.
    account : str or None
        Its name.
    secrets : mapping of str to Secret
        `account_key` or `sas_token`, or nothing.
    anon : bool
        Whether to ask as nobody.
    authority : str or None
        URL of Entra ID, None for the SDK's own choice.
    client_id : str or None
        Of the managed identity.
    """

    endpoint: str
    account: str | None
    secrets: Mapping[str, Secret]
    anon: bool = False
    authority: str | None = None
    client_id: str | None = None

    def credential(self) -> Any:  # the SDK has four kinds
        """Return what the SDK takes."""
        if self.anon:
            return None
        if key := self.secrets.get("account_key"):
            return AzureNamedKeyCredential(self.account or "", key.reveal().decode())
        if token := self.secrets.get("sas_token"):
            return AzureSasCredential(token.reveal().decode().lstrip("?"))
        return self._entra()

    def _entra(self) -> Any:  # typed only where it is installed
        try:
            from azure.identity.aio import DefaultAzureCredential
        except ImportError as exc:
            raise MissingDependencyError(
                "azure-identity is not installed", hint="pip install 'sovstore[azure]'"
            ) from exc
        options = {"authority": self.authority, "managed_identity_client_id": self.client_id}
        inner = DefaultAzureCredential(**{key: value for key, value in options.items() if value})
        return StorageTokens(inner, self.endpoint)


class StorageTokens:
    """Entra ID credentials that give out tokens for storage only.

    The SDK asks for a token of the service that the host names in its refusal: a hostile one would name another.

    Parameters
    ----------
    inner : credential
        Of azure-identity.
    endpoint : str
        Of the store: some hosts have an audience of their own.
    """

    def __init__(self, inner: Any, endpoint: str) -> None:
        self._inner = inner
        host = urlsplit(endpoint).hostname
        self._scopes = {"https://storage.azure.com/.default", f"https://{host}/.default"}

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        """Return a token, as `azure.core.credentials_async.AsyncTokenCredential`.

        Raises
        ------
        StoreError
            When it would not be for storage.
        """
        if not self._scopes.issuperset(scopes):
            raise StoreError("the host asked for a token of another service than storage")
        return await self._inner.get_token(*scopes, **options)

    async def close(self) -> None:
        """Close the connections to Entra ID."""
        await self._inner.close()

    async def __aenter__(self) -> StorageTokens:
        """Return the credentials."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close them."""
        await self.close()


def find_login(place: Place) -> Login:
    """Return the login of a place: its own credentials, else those of the environment, else Entra ID. Waits.

    Raises
    ------
    ConfigError
        When they are malformed, or are those of another account.
    StoreError
        When the keyring does not give them out.
    """
    found = {} if place.options.get("anon") else _found(place)
    settings = _parsed(found["connection_string"], place) if "connection_string" in found else {}
    account = place.account or settings.get("accountname") or _first(_ACCOUNT)
    # A connection string says all of it. What the store itself says wins, such as a private link.
    endpoint = place.endpoint or _endpoint(settings)
    if endpoint is None and (account or "{account}" not in str(place.provider.get("endpoint"))):
        endpoint = place.provider.endpoint(place.region, account, where=f"provider {place.provider.name!r}")
    if endpoint is None:
        hint = "write account = … or endpoint = …, or set AZURE_STORAGE_ACCOUNT_NAME"
        raise _error(place, "names no storage account", hint)
    secrets = {name: value for name, value in found.items() if name != "connection_string"}
    for name, setting in (("account_key", "accountkey"), ("sas_token", "sharedaccesssignature")):
        if setting in settings:
            secrets[name] = Secret(settings[setting].encode())
    _check_clear(place, endpoint, secrets)
    return Login(
        endpoint.rstrip("/"),
        account or _account(endpoint),
        _checked(secrets, place),
        anon=bool(place.options.get("anon")),
        # Without the provider's the SDK reads AZURE_AUTHORITY_HOST by itself.
        authority=place.provider.get("authority"),
        client_id=place.options.get("client_id"),
    )


def _found(place: Place) -> dict[str, Secret]:
    if place.credentials is not None:
        return credentials.fetch(place.credentials)
    for name, variables in _ENVIRONMENT.items():
        if value := _first(variables):
            return {name: Secret(value.encode())}
    return {}


def _first(variables: tuple[str, ...]) -> str | None:
    return next((value for name in variables if (value := os.environ.get(name))), None)


def _parsed(connection_string: Secret, place: Place) -> dict[str, str]:
    text = connection_string.reveal().decode()
    pairs = [item.partition("=") for item in text.strip().strip(";").split(";")]
    settings = {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}
    if len(settings) < len(pairs) or not {"accountname", "blobendpoint"} & set(settings):
        hint = "copy it whole: DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;EndpointSuffix=…"
        raise _error(place, "the connection string is not valid", hint)
    if place.account and settings.get("accountname", place.account) != place.account:
        hint = f"give the one of {place.account!r}, or correct 'account'"
        raise _error(place, "the connection string is that of another account", hint)
    return settings


def _endpoint(settings: Mapping[str, str]) -> str | None:
    if "blobendpoint" in settings:
        return settings["blobendpoint"]
    if "accountname" not in settings:
        return None
    protocol = settings.get("defaultendpointsprotocol", "https")
    suffix = f"blob.{settings['endpointsuffix']}" if "endpointsuffix" in settings else _SUFFIX
    return f"{protocol}://{settings['accountname']}.{suffix}"


def _account(endpoint: str) -> str | None:
    """Return the account that an endpoint names, in its host or, at an emulator, in its path."""
    parts = urlsplit(endpoint)
    return parts.path.strip("/").partition("/")[0] or (parts.hostname or "").partition(".")[0] or None


def _check_clear(place: Place, endpoint: str, secrets: Mapping[str, Secret]) -> None:
    """Refuse to send a signature in clear: a token is all that its reader needs, a signed request can be sent again."""
    parts = urlsplit(endpoint)
    # The text of an endpoint can hold a token itself. One of Entra ID is refused by the SDK.
    if parts.scheme != "http" or not (secrets or parts.query) or place.options.get("allow_http"):
        return
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        hint = "write https:// in 'endpoint' or the connection string; or, in a network of your own, allow_http = true"
        raise _error(place, "the endpoint is http://, which shows the signature to everybody on the way", hint)


def _checked(secrets: dict[str, Secret], place: Place) -> dict[str, Secret]:
    if key := secrets.get("account_key"):
        try:
            base64.b64decode(key.reveal(), validate=True)
        except ValueError:
            # Not chained: the text of the cause could quote it.
            raise _error(place, "the account key is not valid", "it is base64, as the portal shows it") from None
    return secrets


def _error(place: Place, text: str, hint: str) -> ConfigError:
    return ConfigError(f"provider {place.provider.name!r}: {text}", path=place.provider.name, hint=hint)

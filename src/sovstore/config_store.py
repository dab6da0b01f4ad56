"""The table of one store: its settings, what each may be, and which go together."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from sovstore import os_keyring
from sovstore.backends import providers
from sovstore.backends.base import Place
from sovstore.backends.providers import Fact, Provider
from sovstore.config_policy import Policy
from sovstore.config_secrets import has_password
from sovstore.errors import ConfigError
from sovstore.kms.settings import Service, absolute
from sovstore.kms.uri import is_loopback

_HEX = re.compile(r"[0-9a-f]+")
#: Provider of a root that is a URL, where it is not any other fsspec filesystem.
_BY_SCHEME = {"s3": "s3", "s3a": "s3", "abfs": "azure", "abfss": "azure", "az": "azure", "memory": "memory"}
#: What a store has besides the settings of its table.
_NO_SETTINGS = ("name", "source", "facts", "services", "audit_file", "policy", "controllers")
_EXAMPLES = {
    "root": 'write root = "/srv/cohortes", "bucket/prefix" or "container/prefix"',
    "kek": 'write kek = "keyring://sovstore/cohortes" or "keyfile:/path"',
}
#: Drivers of hosts that are reached over a network, and the settings that say how.
_REMOTE = ("s3", "azure")
_REACHED_BY = ("region", "endpoint", "account", "ca_file", "credentials", "transport")
_TRANSPORTS = ("obstore",)
#: Settings that are lists, and what of.
LISTS = {"recovery": "a list of file names", "other_keks": "a list of key URIs", "old_keks": "a list of key URIs"}
_DURATION = re.compile(r"\d{1,6}[smhd]")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class StoreConfig:
    """What the configuration says of one store. References only, so it may be logged and pickled.

    Parameters
    ----------
    name : str
        Name of the store in ``sov://NAME/…``.
    provider : str
        Who holds the ciphertext.
    root : str
        Folder, bucket/prefix or container/prefix, or a URL.
    kek : str
        Key URI.
    other_keks : tuple of str
        URIs of further KEKs that shall open it, wrapped anew at each change of the keyset.
    old_keks : tuple of str
        URIs of KEKs that may still unwrap an older keyset, and are wrapped to no more.
    cache : str
        How long the opened keyset is used before the KMS is asked again: ``30s``, ``15m``, ``1h``.
    grace : str
        How long it may be used beyond that while the KMS cannot be reached.
    names : str
        ``encrypted`` or ``plain``.
    freshness : str
        ``pinned``: an older version of an object than one seen on this machine is refused; ``unchecked`` without.
    store_id : str or None
        32 hexadecimal digits; written by ``sovstore init``.
    auth_fingerprint : str or None
        64 hexadecimal digits; written by ``sovstore init``, needed to open with a recovery key.
    recovery : tuple of str
        Files of recovery recipients.
    protocol : str or None
        fsspec protocol, for the provider ``fsspec``.
    region : str or None
        Where at the provider, in its own words.
    endpoint : str or None
        URL of the service, where the provider does not say it.
    account : str or None
        Storage account (Azure) or namespace.
    ca_file : str or None
        File of the certificates to trust, in place of the system's.
    credentials : str or None
        ``keyring://SERVICE/NAME``, written by ``sovstore login``; None for the environment and the files of the
        host's own tools.
    transport : str or None
        ``obstore``, or None for the driver's own.
    options : mapping
        Options of the driver of the provider.
    passphrase_file : str or None
        File that holds the passphrase of the key file.
    backup : str or None
        Folder for the backup copies of the keyset; the user's data folder by default.
    source : Path or None
        The file that it was read from.
    facts : Provider or None
        What is known of the provider.
    services : tuple of Service
        How the services that hold KEKs are reached.
    audit_file : Path or None
        Where the audit trail is appended.
    policy : Policy
        What is asked of its key holders and its host.
    controllers : mapping
        Facts of the controllers and providers of the file, by name.
    """

    name: str
    provider: str = ""
    root: str = ""
    kek: str = ""
    other_keks: tuple[str, ...] = ()
    old_keks: tuple[str, ...] = ()
    cache: str = "1h"
    grace: str = "0s"
    names: str = "encrypted"
    freshness: str = "unchecked"
    store_id: str | None = None
    auth_fingerprint: str | None = None
    recovery: tuple[str, ...] = ()
    protocol: str | None = None
    region: str | None = None
    endpoint: str | None = None
    account: str | None = None
    ca_file: str | None = None
    credentials: str | None = None
    transport: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    passphrase_file: str | None = None
    backup: str | None = None
    source: Path | None = None
    facts: Provider | None = None
    services: tuple[Service, ...] = ()
    audit_file: Path | None = None
    policy: Policy = field(default_factory=Policy)
    controllers: Mapping[str, Mapping[str, Fact]] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> Place:
        """What the driver is given.

        Raises
        ------
        ConfigError
            When the provider has no such region, or needs one.
        """
        provider = self.facts or providers.catalogue()[self.provider]
        return Place(
            provider=provider,
            root=self.root.partition("://")[2] if _is_remote_url(self.root, provider) else self.root,
            endpoint=_endpoint(self.endpoint, self.region, self.account, provider, f"stores.{self.name}"),
            region=self.region,
            account=self.account,
            ca_file=self.ca_file,
            credentials=self.credentials,
            transport=self.transport,
            protocol=self.protocol,
            options=self.options,
        )

    @property
    def identity(self) -> bytes:
        """The store id, 16 bytes.

        Raises
        ------
        ConfigError
            When the store was never made.
        """
        if self.store_id is None:
            raise ConfigError(
                f"store {self.name!r}: has no store_id",
                path=self.name,
                hint=f"'sovstore init {self.name}' makes it; one made elsewhere needs its 'store_id' from there",
            )
        return bytes.fromhex(self.store_id)

    @property
    def cache_s(self) -> float:
        """Seconds that the opened keyset is used."""
        return _seconds(self.cache)

    @property
    def grace_s(self) -> float:
        """Seconds that it may be used beyond that."""
        return _seconds(self.grace)

    @property
    def backup_folder(self) -> Path:
        """Where backup copies of the keyset go."""
        if self.backup is not None:
            return Path(self.backup)
        return Path(platformdirs.user_data_path("sovstore")) / "backup"


@functools.lru_cache(16)
def _seconds(duration: str) -> float:
    number, unit = duration[:-1], duration[-1]
    return timedelta(**{_UNITS[unit]: int(number)}).total_seconds()


#: The settings that a table may have.
SETTINGS = tuple(f.name for f in fields(StoreConfig) if f.name not in _NO_SETTINGS)

#: Those that a location of plaintext may have.
LOCATION_SETTINGS = ("provider", "root", "protocol", *_REACHED_BY, "options")


def describe(name: str, table: Mapping[str, Any], source: Path | None, known: Mapping[str, Provider]) -> StoreConfig:
    """Return what the table of a store says; it must hold no secret.

    Parameters
    ----------
    name : str
        Name of the store.
    table : mapping
        As TOML has it.
    source : Path or None
        Its file: paths are relative to it.
    known : mapping of str to Provider
        All providers.

    Raises
    ------
    ConfigError
        When a setting is unknown, missing or wrong.
    """
    where = location(name, source)
    refuse_unknown(table, (*SETTINGS, "policy"), where)
    values = {key: _typed(key, value, where) for key, value in table.items()}
    for key in ("root", "kek"):
        if not values.get(key):
            raise ConfigError(f"{where}: {key!r} is missing", path=where, hint=_EXAMPLES[key])
    provider = _provider(values, known, where)
    _check_made(values, where)
    base = source.parent if source else Path.cwd()
    _check_root(values, provider, where, base)
    _check_reached(values, provider, where)
    for key in ("passphrase_file", "backup", "ca_file"):
        if key in values:
            values[key] = absolute(values[key], base)
    values["recovery"] = tuple(absolute(file, base) for file in values.get("recovery", ()))
    _settle_keks(values, where)
    return StoreConfig(name=name, source=source, facts=provider, **values)


def describe_location(
    name: str, table: Mapping[str, Any], source: Path | None, known: Mapping[str, Provider]
) -> StoreConfig:
    """Return where a location lies that holds plaintext: a store without keys; it must hold no secret.

    Parameters
    ----------
    name, table, source, known
        As of `describe`, of a table ``[locations.NAME]``; without a name, of a URL that was given alone.

    Raises
    ------
    ConfigError
        As `describe`.
    """
    where = location(name, source, kind="locations") if name else str(table.get("root"))
    refuse_unknown(table, LOCATION_SETTINGS, where)
    values = {key: _typed(key, value, where) for key, value in table.items()}
    if not values.get("root"):
        raise ConfigError(f"{where}: 'root' is missing", path=where, hint=_EXAMPLES["root"])
    provider = _provider(values, known, where)
    base = source.parent if source else Path.cwd()
    _check_root(values, provider, where, base)
    _check_reached(values, provider, where)
    if "ca_file" in values:
        values["ca_file"] = absolute(values["ca_file"], base)
    return StoreConfig(name=name, source=source, facts=provider, **values)


def location(name: str, source: Path | None, *, kind: str = "stores") -> str:
    """Return how messages call the table of a store."""
    return f"{kind}.{name} in {source}" if source else f"{kind}.{name}"


def refuse_unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a setting that does not exist.

    Raises
    ------
    ConfigError
        Names the nearest one that does.
    """
    for key in table:
        if key not in known:
            hint = nearest(key, known) or f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown setting {key!r}", path=where, hint=hint)


def nearest(word: str, known: Collection[str]) -> str | None:
    """Return the hint that a word may be a mistyped one of some; None when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _typed(key: str, value: object, where: str) -> Any:  # settings have several types
    if key == "options":
        good, what = isinstance(value, dict), "a table"
    elif key in LISTS:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
        what = LISTS[key]
    elif key in ("cache", "grace"):
        good, what = isinstance(value, str) and bool(_DURATION.fullmatch(value)), 'a duration: "30s", "15m", "1h"'
    else:
        good, what = isinstance(value, str), "a string"
    if not good:
        raise ConfigError(f"{where}: {key} is not {what}", path=where, hint="correct its type")
    return value


def _settle_keks(values: dict[str, Any], where: str) -> None:
    """Make tuples of the lists of KEKs, and refuse a KEK that is named twice."""
    named = [values["kek"]]
    for key in ("other_keks", "old_keks"):
        values[key] = tuple(values.get(key, ()))
        named += values[key]
    if len(set(named)) != len(named):
        hint = "each key URI stands in one of 'kek', 'other_keks' and 'old_keks', once"
        raise ConfigError(f"{where}: a KEK is named twice", path=where, hint=hint)


def _choice(value: str, allowed: Collection[str], key: str, where: str) -> None:
    if value not in allowed:
        hint = nearest(value, allowed) or f"known: {', '.join(allowed)}"
        raise ConfigError(f"{where}: unknown {key} {value!r}", path=where, hint=hint)


def _provider(values: dict[str, Any], known: Mapping[str, Provider], where: str) -> Provider:
    """Return who holds the ciphertext, and note the name."""
    scheme, url, _ = values["root"].partition("://")
    # A folder is local and a URL says whose it is, so that one line can be all that a change of host takes.
    values.setdefault("provider", _BY_SCHEME.get(scheme, "fsspec") if url else "local")
    _choice(values["provider"], known, "provider", where)
    return known[values["provider"]]


def _check_made(values: Mapping[str, Any], where: str) -> None:
    """Check what is settled when a store is made."""
    _choice(values.get("names", "encrypted"), ("encrypted", "plain"), "names", where)
    _choice(values.get("freshness", "unchecked"), ("unchecked", "pinned"), "freshness", where)
    for key, length in (("store_id", 32), ("auth_fingerprint", 64)):
        if key in values and (len(values[key]) != length or not _HEX.fullmatch(values[key])):
            hint = "copy it from where the store was made"
            raise ConfigError(f"{where}: {key} is not {length} lower-case hexadecimal digits", path=where, hint=hint)


def _check_root(values: dict[str, Any], provider: Provider, where: str, base: Path) -> None:
    """Check root and protocol against the provider, and make a folder's path absolute."""
    scheme, url, rest = values["root"].partition("://")
    by_scheme = _BY_SCHEME.get(scheme, "fsspec")
    if url and provider.driver not in (by_scheme, "fsspec"):
        hint = f"write {by_scheme!r}, or leave 'provider' out: the URL says it"
        message = f"{where}: provider {provider.name!r} does not go with a root of {scheme}://"
        raise ConfigError(message, path=where, hint=hint)
    if url and has_password(values["root"], where):
        hint = "put the password where that filesystem looks for it: its environment, agent or key files"
        raise ConfigError(f"{where}: 'root' holds a password, and the file is no place for one", path=where, hint=hint)
    if provider.driver == "azure" and "@" in rest.partition("/")[0]:
        hint = "write root = \"abfs://container/prefix\", and the part behind '@' as account or endpoint"
        raise ConfigError(f"{where}: 'root' names more than a container", path=where, hint=hint)
    if provider.driver == "fsspec" and url:
        values.setdefault("protocol", scheme)
    if (provider.driver == "fsspec") != ("protocol" in values):
        hint = 'with provider = "fsspec", and only there, write root = "sftp://…", or protocol = "sftp" beside it'
        raise ConfigError(f"{where}: 'protocol' goes with provider \"fsspec\"", path=where, hint=hint)
    if provider.driver == "local" or values.get("protocol") in ("file", "local"):
        # Not the folder that a process happens to be in: another one would find no store, or make a second.
        values["root"] = absolute(rest if url else values["root"], base)


def _is_remote_url(root: str, provider: Provider) -> bool:
    return provider.driver in _REMOTE and "://" in root


def _check_reached(values: Mapping[str, Any], provider: Provider, where: str) -> None:
    """Check what says how the host is reached."""
    if provider.driver not in _REMOTE:
        for key in _REACHED_BY:
            if key in values:
                hint = f"remove it: provider {provider.name!r} has none"
                message = f"{where}: {key!r} goes with a provider of S3 or Azure Blob"
                raise ConfigError(message, path=where, hint=hint)
        return
    _choice(values.get("transport", _TRANSPORTS[0]), _TRANSPORTS, "transport", where)
    if "credentials" in values:
        _check_credentials(values["credentials"], where)
    if "endpoint" in values:
        _check_endpoint(values["endpoint"], where)
        _check_plain_http(values, provider, where)
    _endpoint(values.get("endpoint"), values.get("region"), values.get("account"), provider, where)


def _check_credentials(uri: str, where: str) -> None:
    try:
        os_keyring.parse(uri)
        return
    except ConfigError:
        # Nor is the error kept as a cause: it quotes a text that may be the credentials themselves.
        pass
    hint = "'sovstore login' writes it; leave it out for the environment and the files of the host's own tools"
    raise ConfigError(f"{where}: 'credentials' is not keyring://SERVICE/NAME", path=where, hint=hint)


def _check_endpoint(url: str, where: str) -> None:
    """Refuse what is no URL of a service; the error does not quote it, since it may hold a token."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, good = urlsplit(""), False
    if not good:
        raise ConfigError(f"{where}: 'endpoint' is not a URL", path=where, hint='write endpoint = "https://…"')
    hint = "'sovstore login' keeps credentials in the keyring of the operating system"
    if "@" in parts.netloc:
        raise ConfigError(
            f"{where}: 'endpoint' holds a password, and the file is no place for one", path=where, hint=hint
        )
    if parts.query or parts.fragment:
        message = f"{where}: 'endpoint' holds more than host and path, and the file is no place for a token"
        raise ConfigError(message, path=where, hint=hint)


def _check_plain_http(values: Mapping[str, Any], provider: Provider, where: str) -> None:
    """Refuse http:// where what proves who asks could be used by whoever reads along.

    That is a SAS or bearer token of Azure. A signature of S3 does not give the key away; `sovstore check` reports it.
    """
    parts = urlsplit(values["endpoint"])
    if provider.driver != "azure" or parts.scheme != "http" or is_loopback(parts.hostname or ""):
        return
    if values.get("options", {}).get("allow_http") is not True:
        hint = "write https://; on a network that nobody else reads, options = { allow_http = true }"
        raise ConfigError(f"{where}: 'endpoint' would send tokens in clear, over http://", path=where, hint=hint)


def _endpoint(given: str | None, region: str | None, account: str | None, provider: Provider, where: str) -> str | None:
    """Return the URL of the service; None where the driver finds it by itself."""
    if given is not None:
        return given
    if provider.driver == "azure":
        # The account, or all of the endpoint, may still come with the credentials.
        provider.check_region(region, where=where)
        return None
    return provider.endpoint(region, account, where=where)

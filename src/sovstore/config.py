"""The TOML file that says where each store lies and which KEK opens it, and its overrides from the environment.

The file holds references only: a secret found in it is refused. `sovstore.config_store` says what a store may have,
`sovstore.config_file` changes the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from sovstore import config_policy, config_secrets, config_text
from sovstore.backends import providers
from sovstore.backends.providers import Fact, Provider
from sovstore.config_file import write_settings
from sovstore.config_secrets import Stray
from sovstore.config_store import (
    LISTS,
    SETTINGS,
    StoreConfig,
    describe,
    describe_location,
    location,
    nearest,
    refuse_unknown,
)
from sovstore.errors import ConfigError
from sovstore.kms import settings
from sovstore.kms.base import Access
from sovstore.kms.settings import Service, absolute
from sovstore.trail import Trail

__all__ = [
    "SETTINGS",
    "Config",
    "StoreConfig",
    "access",
    "default_path",
    "find",
    "load",
    "variable_of",
    "with_secrets",
    "write_settings",
]

FILE = "sovstore.toml"
_PREFIX = "SOVSTORE_STORES__"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Config:
    """All stores that one file and the environment describe.

    Parameters
    ----------
    path : Path or None
        The file; None when there is none.
    stores : mapping of str to StoreConfig
        By name.
    providers : mapping of str to Provider
        The shipped ones, and those of the file.
    locations : mapping of str to StoreConfig
        Where plaintext lies that is migrated, by name: stores without keys.
    """

    path: Path | None
    stores: Mapping[str, StoreConfig]
    providers: Mapping[str, Provider] = field(default_factory=providers.catalogue)
    locations: Mapping[str, StoreConfig] = field(default_factory=dict)

    def store(self, name: str) -> StoreConfig:
        """Return the configuration of one store.

        Raises
        ------
        ConfigError
            When there is none of that name; names the nearest, and the file that was read.
        """
        if name in self.stores:
            return self.stores[name]
        where = f"in {self.path}" if self.path else "since no configuration file was found"
        hint = nearest(name, self.stores) or f"add a table [stores.{name}] to {self.path or default_path()}"
        raise ConfigError(f"store {name!r}: not configured {where}", path=name, hint=hint)

    def location(self, name: str) -> StoreConfig:
        """Return where one location of plaintext lies.

        Raises
        ------
        ConfigError
            As `store`.
        """
        if name in self.locations:
            return self.locations[name]
        where = f"in {self.path}" if self.path else "since no configuration file was found"
        hint = nearest(name, self.locations) or f"add a table [locations.{name}] to {self.path or default_path()}"
        raise ConfigError(f"location {name!r}: not configured {where}", path=name, hint=hint)


def default_path() -> Path:
    """Return the configuration file of the user, whether or not it exists."""
    return Path(platformdirs.user_config_path("sovstore")) / FILE


def find(explicit: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the file to read: `explicit`, ``SOVSTORE_CONFIG``, ``./sovstore.toml`` or the user's; None without any.

    Raises
    ------
    ConfigError
        When a file that was named does not exist.
    """
    named = explicit or os.environ.get("SOVSTORE_CONFIG")
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            origin = "" if explicit else " (from SOVSTORE_CONFIG)"
            raise ConfigError(f"{path}: no such configuration file{origin}", path=str(path), hint="check the path")
        return path
    # A working folder that was deleted, or one that may not be read, holds no file for us.
    for folder in (Path(), default_path().parent):
        with suppress(OSError):
            path = (folder / FILE).absolute()
            if path.is_file():
                return path
    return None


def load(explicit: str | os.PathLike[str] | None = None) -> Config:
    """Return the configuration: the file, overridden by ``SOVSTORE_STORES__NAME__SETTING`` variables.

    Raises
    ------
    ConfigError
        When the file is no TOML, or it or the environment holds a secret, or a setting that is unknown or of the
        wrong type; names the nearest known one.
    """
    file = _read_all(explicit)
    variables = _override(file.stores, os.environ)
    stores = {name: _store(name, table, file, variables.get(name, {})) for name, table in file.stores.items()}
    return Config(file.path, stores, file.providers, _locations(file))


def with_secrets(explicit: str | os.PathLike[str] | None, name: str) -> tuple[StoreConfig, list[Stray]]:
    """Return a store whose table `load` may refuse, and the secrets in its table of the file.

    Raises
    ------
    ConfigError
        When there is no such table, or it is wrong in another way.
    """
    file = _read_all(explicit)
    if file.path is None or name not in file.stores:
        # Its error says what to do about it.
        return Config(file.path, {other: StoreConfig(other) for other in file.stores}).store(name), []
    where = location(name, file.path)
    strays = config_secrets.find(file.stores[name], where)
    _override(file.stores, os.environ)
    table = file.stores[name]
    return file.describe(name, config_secrets.without(table, config_secrets.find(table, where))), strays


def variable_of(store: str, setting: str) -> str:
    """Return the variable of the environment that overrides a setting of a store."""
    return f"{_PREFIX}{_shouted(store)}__{setting.upper()}"


def _shouted(store: str) -> str:
    return store.upper().replace("-", "_")


@dataclass(frozen=True)
class _File:
    """What one file says, the tables of its stores still as TOML has them."""

    path: Path | None
    stores: dict[str, dict[str, Any]]
    providers: Mapping[str, Provider]
    services: tuple[Service, ...] = ()
    audit_file: Path | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    controllers: Mapping[str, Mapping[str, Fact]] = field(default_factory=dict)
    locations: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def describe(self, name: str, table: Mapping[str, Any]) -> StoreConfig:
        """Return what the table of a store says, with what the file says for all stores."""
        own = {key: value for key, value in table.items() if key != "policy"}
        tables = {f"policy in {self.path}": self.policy}
        if "policy" in table:
            tables[f"stores.{name}.policy in {self.path}"] = table["policy"]
        return replace(
            describe(name, own, self.path, self.providers),
            services=self.services,
            audit_file=self.audit_file,
            policy=config_policy.parse(tables),
            controllers=self.controllers,
        )


def _locations(file: _File) -> dict[str, StoreConfig]:
    found = {}
    for name, table in file.locations.items():
        where = location(name, file.path, kind="locations")
        strays = config_secrets.find(table, where)
        found[name] = describe_location(name, config_secrets.without(table, strays), file.path, file.providers)
        if strays:
            elsewhere = config_secrets.ELSEWHERE.get(file.providers[found[name].provider].driver, "none is needed")
            message = f"{where}: option {strays[0].name!r} is a secret, and the file is no place for one"
            raise ConfigError(message, path=where, hint=f"take it out of the file; {elsewhere}")
    return found


def _store(name: str, table: Mapping[str, Any], file: _File, variables: Mapping[str, str]) -> StoreConfig:
    where = location(name, file.path)
    strays = config_secrets.find(table, where)
    described = file.describe(name, config_secrets.without(table, strays))
    if strays:
        # Last, since what to do about it depends on the provider.
        facts = file.providers[described.provider]
        raise config_secrets.refusal(name, strays, facts, where, variables)
    return described


def _read_all(explicit: str | os.PathLike[str] | None) -> _File:
    path = find(explicit)
    if path is None:
        return _File(None, {}, providers.catalogue())
    content = _read(path)
    known, services = providers.extended(_providers(content, path), str(path)), _services(content, path)
    controllers = config_policy.controllers(_tables(content, "controllers", path), known, str(path))
    config_policy.check_services(services, {**controllers, **known}, str(path))
    general = content.get("policy", {})
    # Also where no store is affected: a mistake in a policy must not wait for the first store.
    config_policy.parse({f"policy in {path}": general})
    stores, audit_file = _tables(content, "stores", path), _audit_file(content, path)
    locations = _tables(content, "locations", path)
    return _File(path, stores, known, services, audit_file, general, controllers, locations)


def _read(path: Path) -> dict[str, Any]:
    content = config_text.parse(config_text.read(path), str(path), "correct that line")
    refuse_unknown(content, ["audit", "controllers", "kms", "locations", "policy", "providers", "stores"], str(path))
    return content


def _tables(content: Mapping[str, Any], kind: str, path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables ``[kind.NAME]`` by name."""
    tables = content.get(kind, {})
    for name, table in tables.items() if isinstance(tables, dict) else [(kind, None)]:
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is not a table", path=str(path), hint=f"write [{kind}.NAME]")
        if not _NAME.fullmatch(name):
            hint = "use lower-case letters, digits, '-' and '_', at most 63"
            what = "a store name" if kind == "stores" else f"a name for [{kind}.NAME]"
            raise ConfigError(f"{path}: {name!r} is not {what}", path=str(path), hint=hint)
    return dict(tables)


def _providers(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    tables = content.get("providers", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: providers is not a table", path=str(path), hint="write [providers.NAME]")
    return tables


def _services(content: Mapping[str, Any], path: Path) -> tuple[Service, ...]:
    tables = _tables(content, "kms", path)
    services = [settings.parse(name, table, path.parent, f"kms.{name} in {path}") for name, table in tables.items()]
    uris = [service.uri for service in services]
    if len(set(uris)) != len(uris):
        hint = "give each [kms.NAME] a 'uri' of its own; the longest that a key URI begins with is used"
        raise ConfigError(f"{path}: two tables of [kms] have the same 'uri'", path=str(path), hint=hint)
    return tuple(services)


def _audit_file(content: Mapping[str, Any], path: Path) -> Path | None:
    table = content.get("audit", {})
    if not isinstance(table, dict) or set(table) - {"file"} or not isinstance(table.get("file", ""), str):
        raise ConfigError(f"{path}: [audit] is not right", path=str(path), hint='write file = "/var/log/audit.jsonl"')
    return Path(absolute(table["file"], path.parent)) if table.get("file") else None


def _override(tables: dict[str, dict[str, Any]], environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Put the values of variables into the tables; return the variables by store and setting."""
    names = {_shouted(name): name for name in tables}
    origins: dict[str, dict[str, str]] = {}
    for variable in sorted(v for v in environ if v.startswith(_PREFIX)):
        store, separator, setting = variable.removeprefix(_PREFIX).partition("__")
        if not separator or not store or not setting:
            hint = f"write {_PREFIX}NAME__SETTING, for example {_PREFIX}COHORTES__ROOT"
            raise ConfigError(f"{variable}: not the name of a setting", path=variable, hint=hint)
        name = names.setdefault(store, store.lower())
        table = tables[name] = dict(tables.get(name, {}))
        refuse_unknown({setting.lower(): None}, SETTINGS, variable)
        value: Any = environ[variable]
        if setting.lower() in ("options", *LISTS):
            value = _toml_value(variable, value)
        table[setting.lower()] = value
        origins.setdefault(name, {})[setting.lower()] = variable
    return origins


def _toml_value(variable: str, text: str) -> Any:  # TOML has several types
    hint = 'write it as in TOML, for example {endpoint_url = "https://…"}'
    try:
        parsed = config_text.parse(f"value = {text}", variable, hint)
    except ConfigError as exc:
        raise ConfigError(f"{variable}: not a TOML value", path=variable, hint=hint) from exc
    if len(parsed) > 1:
        raise ConfigError(f"{variable}: more than one TOML value", path=variable, hint=hint)
    return parsed["value"]


def access(store: StoreConfig, ask: Callable[[str], str] | None = None) -> Access:
    """Return what the drivers of KEKs need: how services are reached, the audit trail, a way to a passphrase.

    The passphrase comes from ``SOVSTORE_PASSPHRASE``, a file, else `ask`.

    Parameters
    ----------
    store : StoreConfig
        Its `passphrase_file` is used after ``SOVSTORE_PASSPHRASE`` and ``SOVSTORE_PASSPHRASE_FILE``.
    ask : callable, optional
        Asks a person; None where there is none.
    """

    def passphrase(prompt: str) -> str:
        value = os.environ.get("SOVSTORE_PASSPHRASE")
        if value is not None:
            return value
        if file := os.environ.get("SOVSTORE_PASSPHRASE_FILE") or store.passphrase_file:
            return _read_passphrase(file)
        if ask is None:
            hint = "set SOVSTORE_PASSPHRASE, or SOVSTORE_PASSPHRASE_FILE or 'passphrase_file' to a file that holds it"
            raise ConfigError(f"store {store.name!r}: needs a passphrase", path=store.name, hint=hint)
        return ask(prompt)

    return Access(passphrase, store.services, Trail(store.name, store.audit_file))


def _read_passphrase(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{file}: the passphrase file cannot be read", path=file, hint="check its path and rights"
        ) from exc

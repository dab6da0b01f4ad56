"""The tables ``[policy]``, ``[stores.NAME.policy]`` and ``[controllers.NAME]``: what each setting may be.

`sovstore.policy` says what they do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from typing import Any

from sovstore import countries
from sovstore.backends import providers
from sovstore.backends.providers import NOBODY, OPEN, UNKNOWN, Fact
from sovstore.errors import ConfigError
from sovstore.kms.settings import LEVELS, Service

#: In place of a list of countries: all of them, and unknown ones too.
ANY = "any"
REFUSE, WARN, ALLOW = "refuse", "warn", "allow"
#: Separation: refuse, but warn where host and key holder are in the European Union.
WARN_IN_EU = "warn-in-eu"
_LISTS = (
    *("key_holder_jurisdiction", "key_holder_parent", "key_holder_technology"),
    *("host_jurisdiction", "host_parent", "host_technology"),
)
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "separate_from_storage": (REFUSE, WARN_IN_EU, WARN, ALLOW),
    "protection_level": LEVELS,
    "plain_names": (REFUSE, WARN, ALLOW),
    "local_plaintext": (REFUSE, WARN, ALLOW),
    "stale_facts": (REFUSE, WARN, ALLOW),
}
#: Rules whose setting says what is right: what is done about the rest stands in ``on_violation``.
_ACTIONS: Mapping[str, str] = {
    "controller": REFUSE,
    **dict.fromkeys(_LISTS, REFUSE),
    "key_holder_technology": WARN,
    "protection_level": REFUSE,
}
_DAYS = re.compile(r"[1-9]\d{0,4}d")
#: Who is meant by a key on this machine; no name for anybody else.
_RESERVED = ("self", UNKNOWN, NOBODY)


@dataclass(frozen=True)
class Policy:
    """What is asked of key holder and host of one store; the defaults are those of the configuration.

    Parameters
    ----------
    key_holder_jurisdiction, key_holder_parent : tuple of str
        Countries of which the controller of the KEK, and whoever owns that one, may be; or `ANY`.
    key_holder_technology : tuple of str
        Countries from which its software may come; or `ANY`.
    host_jurisdiction, host_parent, host_technology : tuple of str
        The same of the host.
    separate_from_storage : str
        What to do where host and key holder belong together.
    protection_level : str
        ``software`` or ``hsm``: the least that the service must declare.
    plain_names : str
        What to do about readable names at a host outside the European Union.
    local_plaintext : str
        What to do about layers of fsspec that keep plaintext on a disk of this machine.
    max_age : str
        Days after which a fact is stale, as ``365d``.
    stale_facts : str
        What to do about those.
    on_violation : mapping of str to str
        ``refuse`` or ``warn`` by rule.
    origins : mapping of str to str
        Where a setting stands; a setting that is not there has its default.
    """

    key_holder_jurisdiction: tuple[str, ...] = ("FR", "EU")
    key_holder_parent: tuple[str, ...] = ("FR", "EU")
    key_holder_technology: tuple[str, ...] = ("FR", "EU")
    host_jurisdiction: tuple[str, ...] = (ANY,)
    host_parent: tuple[str, ...] = (ANY,)
    host_technology: tuple[str, ...] = (ANY,)
    separate_from_storage: str = WARN_IN_EU
    protection_level: str = LEVELS[0]
    plain_names: str = REFUSE
    local_plaintext: str = ALLOW
    max_age: str = "365d"
    stale_facts: str = WARN
    on_violation: Mapping[str, str] = field(default_factory=lambda: _ACTIONS)
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def oldest(self) -> timedelta:
        """How old a fact may be."""
        return timedelta(days=int(self.max_age[:-1]))

    def origin(self, setting: str) -> str:
        """Return where a setting stands."""
        return self.origins.get(setting, "default")


#: The settings that ``[policy]`` may have.
SETTINGS = tuple(f.name for f in fields(Policy) if f.name != "origins")
#: The settings that ``[controllers.NAME]`` may have.
CONTROLLER = ("legal_entity", "jurisdiction", "parent", "parent_jurisdiction", "technology_origin", "as_of", "source")


def parse(tables: Mapping[str, object]) -> Policy:
    """Return the policy that some tables say together; a later one overrides an earlier one, setting by setting.

    Parameters
    ----------
    tables : mapping of str to table
        By where each stands, for messages.

    Raises
    ------
    ConfigError
        When a setting is unknown or wrong; names the nearest.
    """
    values: dict[str, Any] = {}
    actions = dict(_ACTIONS)
    origins: dict[str, str] = {}
    for where, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: not a table", path=where, hint="write [policy], or [stores.NAME.policy]")
        _refuse_unknown(table, SETTINGS, where)
        for key, value in table.items():
            if key == "on_violation":
                own = _on_violation(value, where)
                actions |= own
                origins |= {f"{key}.{rule}": where for rule in own}
            else:
                values[key], origins[key] = _typed(key, value, where), where
    return Policy(**values, on_violation=actions, origins=origins)


def _on_violation(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        hint = 'write on_violation = { key_holder_parent = "warn" }'
        raise ConfigError(f"{where}: on_violation is not a table", path=where, hint=hint)
    _refuse_unknown(value, _ACTIONS, f"{where}: on_violation")
    for rule, action in value.items():
        _choice(action, (REFUSE, WARN), f"on_violation.{rule}", where)
    return dict(value)


def _typed(key: str, value: object, where: str) -> Any:  # settings have several types
    if key in _CHOICES:
        _choice(value, _CHOICES[key], key, where)
        return value
    if key == "max_age":
        if isinstance(value, str) and _DAYS.fullmatch(value):
            return value
        raise ConfigError(f"{where}: max_age is not a number of days", path=where, hint='write max_age = "365d"')
    if value == ANY:
        return (ANY,)
    if not isinstance(value, list) or not value or not all(isinstance(code, str) for code in value):
        hint = f'write {key} = ["FR", "EU"], or {key} = "{ANY}"'
        raise ConfigError(f"{where}: {key} is not a list of countries", path=where, hint=hint)
    for code in value:
        if not countries.is_code(code):
            hint = 'use codes of ISO 3166-1 in capitals, such as "FR", or "EU" for all its members'
            raise ConfigError(f"{where}: {key} names {code!r}, which is no country", path=where, hint=hint)
    return tuple(value)


def _choice(value: object, allowed: Collection[str], key: str, where: str) -> None:
    if value not in allowed:
        hint = f"{_near(value, allowed)}known: {', '.join(allowed)}"
        raise ConfigError(f"{where}: {key} is none of its values", path=where, hint=hint)


def _near(word: object, known: Collection[str]) -> str:
    return providers.nearest(word, list(known)) if isinstance(word, str) else ""


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = _near(key, known).rstrip() or f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown setting {key!r}", path=where, hint=hint)


# Controllers


def controllers(
    tables: Mapping[str, Mapping[str, Any]], known: Mapping[str, providers.Provider], file: str
) -> Mapping[str, Mapping[str, Fact]]:
    """Return the facts of those that ``controller`` in ``[kms.NAME]`` may name, but for the shipped ones.

    Parameters
    ----------
    tables : mapping
        The tables ``[controllers.NAME]``.
    known : mapping of str to Provider
        All providers.
    file : str
        The configuration, for messages and as a source.

    Raises
    ------
    ConfigError
        When a setting is missing, unknown or wrong, or a name is taken.
    """
    shipped = providers.catalogue()
    named = {name: provider.facts for name, provider in known.items() if name not in shipped}
    for name, table in tables.items():
        where = f"controllers.{name} in {file}"
        if name in known or name in _RESERVED:
            hint = "choose another name; a provider is named as it is, without a table of its own"
            raise ConfigError(f"{where}: the name is taken", path=where, hint=hint)
        named[name] = _controller(name, table, where)
    return named


def _controller(name: str, table: Mapping[str, Any], where: str) -> Mapping[str, Fact]:
    _refuse_unknown(table, CONTROLLER, where)
    for key in CONTROLLER:
        _check(key, table.get(key), where, name)
    parent = table.get("parent", UNKNOWN if "parent_jurisdiction" in table else NOBODY)
    if parent == NOBODY and "parent_jurisdiction" in table:
        hint = "remove 'parent_jurisdiction', or name the parent"
        raise ConfigError(f"{where}: has no parent, but its jurisdiction", path=where, hint=hint)
    values = {
        "controller": table["legal_entity"],
        "jurisdiction": table["jurisdiction"],
        "parent": parent,
        "parent_jurisdiction": table.get("parent_jurisdiction", UNKNOWN),
        "technology": table.get("technology_origin", UNKNOWN),
    }
    return {key: Fact(value, f"{table['source']} ({where})", table["as_of"]) for key, value in values.items()}


def _check(key: str, value: object, where: str, name: str) -> None:
    """Check one setting of a controller; None is one that is not there."""
    if value is None:
        if key in ("parent", "parent_jurisdiction", "technology_origin"):
            return
        raise ConfigError(f"{where}: {key!r} is missing", path=where, hint=example(name))
    if key == "as_of":
        good, what = type(value) is date, "a date, such as 2026-11-25"
    elif key in ("jurisdiction", "parent_jurisdiction"):
        good, what = value == UNKNOWN or _is_law(value), 'a country by ISO 3166-1, such as "FR"'
    elif key == "technology_origin":
        good = value in (UNKNOWN, OPEN) or _is_law(value)
        what = f'a country by ISO 3166-1, such as "FR", or "{OPEN}"'
    else:
        good, what = isinstance(value, str) and bool(value.strip()), "a text"
    if not good:
        raise ConfigError(f"{where}: {key} is not {what}", path=where, hint=example(name))


def _is_law(value: object) -> bool:
    return isinstance(value, str) and bool(countries.parse(value))


def example(name: str = "NAME", as_of: str = "2026-11-25") -> str:
    """Return what a controller is declared by, on one line."""
    return (
        f'write [controllers.{name}] with legal_entity = "…", jurisdiction = "FR", parent = "none",'
        f' technology_origin = "open-source", as_of = {as_of}, source = "…"'
    )


def check_services(services: Collection[Service], known: Collection[str], file: str) -> None:
    """Refuse a ``controller`` of a service that is none.

    Raises
    ------
    ConfigError
        Names the nearest, and what to write.
    """
    for service in services:
        if service.controller is not None and service.controller not in known:
            where = f"kms.{service.name} in {file}"
            hint = f"{_near(service.controller, known)}or {example(service.controller)}"
            message = f"{where}: there is no controller or provider of the name that 'controller' gives"
            raise ConfigError(message, path=where, hint=hint)

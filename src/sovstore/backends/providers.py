"""The provider catalogue: what is known of each host, as data with its source and date.

``providers.toml`` beside this file is the shipped part; a table ``[providers.NAME]`` of the user's configuration adds
to it. Code asks for facts here and never for a provider's name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from sovstore import countries
from sovstore.errors import ConfigError

UNKNOWN = "unknown"
#: As the parent of a controller: nobody owns it that has a say.
NOBODY = "none"
#: As a technology: everybody can read it and run their own build of it.
OPEN = "open-source"
#: In a table of endpoints: all the regions that it does not name.
OTHERS = "*"
#: Stands for an account that is not known yet: it stays in the endpoint.
ANY_ACCOUNT = "{account}"
DRIVERS = ("s3", "azure", "local", "memory", "fsspec")
#: What a qualification is worth, as its first word: "yes: Object Storage in fr-par, 2025-11-14".
#: ``partly``: of other services of the provider; ``claimed``: somebody says so, without the scope.
QUALIFIED = ("yes", "partly", "claimed", "no")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
#: What may stand for ``{region}`` or ``{account}``: a label of a host name or of a path, never more of a URL.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PLACES = frozenset(("region", "account"))


@dataclass(frozen=True)
class Fact:
    """One thing known of a provider.

    Parameters
    ----------
    value : str, int, bool, tuple or mapping
        `UNKNOWN` where nobody says.
    source : str
        Where it was read, or what was looked at in vain; of a fact in the user's configuration the file.
    as_of : date or None
        When that was true. None only in the user's configuration.
    """

    value: Any
    source: str
    as_of: date | None


@dataclass(frozen=True)
class _Kind:
    """What values a fact may have, of which drivers it is said, and what they take where it is unknown."""

    type: type
    default: Any = None
    choices: tuple[str, ...] = ()
    drivers: tuple[str, ...] = DRIVERS
    #: Default of the drivers that speak something else than S3.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""
    #: Not said where it would only repeat another fact.
    optional: bool = False


#: Operations of a host that may carry a condition, and what it may be; see `Backend.conditions`.
CONDITIONS = (
    *("read:match", "put:create", "put:replace", "complete:create", "complete:replace"),
    *("copy:source", "copy:create", "copy:replace", "part_copy:source", "delete:match"),
)
_WORDS = {
    str: "a text",
    int: "a whole number above 0",
    bool: "true or false",
    list: "a list of texts",
    dict: "a table of countries by region",
}
_COUNTRY = 'a country by ISO 3166-1, such as "FR", or several: "FR, US"'
_MIB, _GIB, _TIB = 2**20, 2**30, 2**40
_S3, _HOSTED = ("s3",), ("s3", "azure")


def _size(default: int, azure: int) -> _Kind:
    return _Kind(int, default, drivers=_HOSTED, defaults={"azure": azure}, unit="bytes")


#: Said of one controller: none is taken over from a provider that is run by another one.
_LEGAL = ("parent", "jurisdiction", "parent_jurisdiction", "group", "region_jurisdiction")
#: Every fact there is. The defaults are those of S3, the common part of what all speak, and of Azure Blob.
FACTS: Mapping[str, _Kind] = {
    "controller": _Kind(str, UNKNOWN),  # the legal person that runs it
    "parent": _Kind(str, UNKNOWN),  # who owns that one, or NOBODY
    "jurisdiction": _Kind(str, UNKNOWN),  # of the controller, as ISO 3166-1 alpha-2
    "parent_jurisdiction": _Kind(str, UNKNOWN),  # of the parent
    "technology": _Kind(str, UNKNOWN),  # country of who writes the software, or OPEN
    "group": _Kind(list, [], optional=True),  # what the controller, its parent and its sisters are called
    "region_jurisdiction": _Kind(dict, {}, drivers=_S3, optional=True),  # of a region, where it is not always the same
    "secnumcloud": _Kind(str, UNKNOWN),  # begins with one of QUALIFIED
    "hds": _Kind(str, UNKNOWN),  # begins with one of QUALIFIED
    "endpoint": _Kind(str, drivers=_HOSTED),  # with {region} and {account} where they belong, or a table by region
    "regions": _Kind(list, [], drivers=_S3),
    "region_name": _Kind(str, drivers=_S3, optional=True),  # what to sign with, where it is not the region
    "authority": _Kind(str, drivers=("azure",)),  # of Entra ID
    "tls": _Kind(str, UNKNOWN),
    "addressing": _Kind(str, "path", ("path", "virtual", "auto"), drivers=_S3),
    "signature": _Kind(
        str,
        "s3v4",
        ("s3v4", "s3", "sas, entra, shared key"),
        drivers=_HOSTED,
        defaults={"azure": "sas, entra, shared key"},
    ),
    "checksums": _Kind(str, "when_required", ("when_required", "when_supported"), drivers=_S3),
    "signed_payload": _Kind(bool, default=False, drivers=_S3),
    "part_min": _size(5 * _MIB, 1),
    "part_max": _size(5 * _GIB, 4000 * _MIB),
    "parts_max": _Kind(int, 10_000, drivers=_HOSTED, defaults={"azure": 50_000}),
    "equal_parts": _Kind(bool, default=False, drivers=_S3),
    "put_max": _size(5 * _GIB, 5000 * _MIB),
    "object_max": _size(5 * _TIB, 50_000 * 4000 * _MIB),
    "upload_seconds": _Kind(int, drivers=_HOSTED, unit="seconds"),  # the longest time that one request may take
    "listing_page": _Kind(int, 1000, drivers=_HOSTED, defaults={"azure": 5000}),
    "batch_delete": _Kind(int, 1000, drivers=_HOSTED, defaults={"azure": 256}),
    "conditions": _Kind(list, [], CONDITIONS),
    "etag_quotes": _Kind(str, "quoted", ("quoted", "bare"), drivers=_S3),
}


@dataclass(frozen=True)
class Provider:
    """One provider.

    Parameters
    ----------
    name : str
        As in the setting ``provider``.
    title : str
        For people.
    driver : str
        One of `DRIVERS`.
    facts : mapping of str to Fact
        By the names in `FACTS`.
    """

    name: str
    title: str
    driver: str
    facts: Mapping[str, Fact]

    def known(self, fact: str) -> bool:
        """Return whether anybody says."""
        return fact in self.facts and self.facts[fact].value != UNKNOWN

    def get(self, fact: str) -> Any:  # facts have several types
        """Return the value of a fact; where it is unknown what is safe to take for it."""
        if self.known(fact):
            return self.facts[fact].value
        kind = FACTS[fact]
        return kind.defaults.get(self.driver, kind.default)

    @property
    def conditions(self) -> frozenset[str]:
        """What of `CONDITIONS` the host keeps, also against another client."""
        return frozenset(self.get("conditions"))

    def check_region(self, region: str | None, *, where: str) -> None:
        """Refuse a region that the provider does not have, where its regions are known.

        Raises
        ------
        ConfigError
            Names the nearest region, and all known ones.
        """
        regions = self.get("regions")
        if region is None or region in regions:
            return
        if regions:
            hint = f"{nearest(region, regions)}known regions: {', '.join(regions)}"
            raise ConfigError(f"{where}: provider {self.name!r} has no region {region!r}", path=where, hint=hint)
        _check_label("region", region, where)

    def endpoint(self, region: str | None, account: str | None, *, where: str) -> str | None:
        """Return the endpoint of a region and an account; None where the provider has none of its own.

        Parameters
        ----------
        region : str or None
            As the provider calls it.
        account : str or None
            Storage account or namespace; `ANY_ACCOUNT` where it is not known yet.
        where : str
            What asks, for messages.

        Raises
        ------
        ConfigError
            When the region is not one of the known ones, its endpoint is unknown, or one of the two is missing.
        """
        self.check_region(region, where=where)
        template = self.get("endpoint")
        if isinstance(template, Mapping):
            template = self._of_region(template, region, where)
        if template is None:
            return None
        if "{region}" in template and region is None:
            raise self._needs_region(where)
        if "{account}" in template:
            self._check_account(account, where)
        return str(template).replace("{region}", region or "").replace("{account}", account or "")

    def _of_region(self, table: Mapping[str, str], region: str | None, where: str) -> str:
        if region is None:
            raise self._needs_region(where)
        template = table.get(region, table.get(OTHERS, UNKNOWN))
        if template == UNKNOWN:
            message = f"{where}: the endpoint of region {region!r} of provider {self.name!r} is unknown"
            raise ConfigError(message, path=where, hint='write endpoint = "https://…", as the provider gives it')
        return template

    def _check_account(self, account: str | None, where: str) -> None:
        if account is None:
            hint = "write account = … (the storage account, the namespace or the space)"
            raise ConfigError(f"{where}: provider {self.name!r} needs an account", path=where, hint=hint)
        if account != ANY_ACCOUNT:
            _check_label("account", account, where)

    def _needs_region(self, where: str) -> ConfigError:
        regions = self.get("regions")
        hint = f'write region = "{regions[0]}"; known regions: {", ".join(regions)}' if regions else "write region = …"
        return ConfigError(f"{where}: provider {self.name!r} needs a region", path=where, hint=hint)


def expected(driver: str) -> tuple[str, ...]:
    """Return the facts that the shipped entry of a provider with this driver states, if only as unknown."""
    return tuple(name for name, kind in FACTS.items() if driver in kind.drivers and not kind.optional)


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a question that names the nearest known word, to begin a hint with; '' when none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


@cache
def catalogue() -> Mapping[str, Provider]:
    """Return the shipped providers by name."""
    text = resources.files("sovstore.backends").joinpath("providers.toml").read_text(encoding="utf-8")
    return {name: parse(name, table, "providers.toml") for name, table in tomllib.loads(text).items()}


def extended(tables: Mapping[str, Any], where: str) -> Mapping[str, Provider]:
    """Return the shipped providers and those of the user's configuration.

    Parameters
    ----------
    tables : mapping
        The tables ``[providers.NAME]``. ``like`` takes over the facts of a shipped provider.
    where : str
        The file, for messages and as the source of its facts.

    Raises
    ------
    ConfigError
        When an entry is not valid.
    """
    shipped = catalogue()
    added = {}
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            hint = "use lower-case letters, digits, '-' and '_', at most 63"
            raise ConfigError(f"{where}: {name!r} is not a provider name", path=where, hint=hint)
        if name in shipped:
            hint = f'choose another name, with like = "{name}" to take its facts over'
            raise ConfigError(f"{where}: provider {name!r} is shipped and stays as it is", path=where, hint=hint)
        added[name] = parse(name, table, where, shipped)
    return {**shipped, **added}


def parse(name: str, table: object, where: str, shipped: Mapping[str, Provider] | None = None) -> Provider:
    """Return the provider that a TOML table describes.

    A fact is ``{ value = …, source = "…", as_of = 2026-11-01 }``, or the bare value in the user's own file.

    Parameters
    ----------
    shipped : mapping of str to Provider, optional
        What ``like`` may name. None for a shipped entry itself: each of its facts then needs source and date.

    Raises
    ------
    ConfigError
        When a fact is not one of `FACTS`, not one of the driver's, or of the wrong type.
    """
    where = f"provider {name!r} in {where}"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: not a table", path=name, hint=f"write [providers.{name}]")
    rest = dict(table)
    base = _base(rest.pop("like", None), where, shipped or {})
    title = rest.pop("title", base.title if base else name)
    driver = rest.pop("driver", base.driver if base else None)
    if not isinstance(title, str) or driver not in DRIVERS:
        hint = f"write driver = one of {', '.join(DRIVERS)}, or like = the name of a shipped provider"
        raise ConfigError(f"{where}: 'driver' or 'title' is missing or not valid", path=name, hint=hint)
    facts = dict(_taken_over(base, driver, rest)) if base else {}
    for key, value in rest.items():
        facts[key] = _fact(key, value, where, bare=shipped is not None)
        if driver not in FACTS[key].drivers:
            hint = f"it is said of the driver {' and '.join(FACTS[key].drivers)}; remove it"
            raise ConfigError(f"{where}: {key} does not go with driver {driver!r}", path=where, hint=hint)
    provider = Provider(name, title, driver, facts)
    _check_endpoint(provider, where)
    return provider


def _taken_over(base: Provider, driver: str, own: Mapping[str, Any]) -> Iterator[tuple[str, Fact]]:
    for key, fact in base.facts.items():
        if driver in FACTS[key].drivers and not ("controller" in own and key in _LEGAL and fact.value != UNKNOWN):
            yield key, fact


def _base(like: object, where: str, shipped: Mapping[str, Provider]) -> Provider | None:
    if like is None:
        return None
    if not isinstance(like, str) or like not in shipped:
        near = nearest(like, list(shipped)) if isinstance(like, str) else ""
        hint = f"{near}known: {', '.join(shipped)}" if shipped else "providers.toml has no 'like'"
        raise ConfigError(f"{where}: there is no provider {like!r} to be like", path=where, hint=hint)
    return shipped[like]


def _fact(key: str, value: Any, where: str, *, bare: bool) -> Fact:  # facts have several types
    if key not in FACTS:
        hint = nearest(key, list(FACTS)).rstrip() or f"known: {', '.join(FACTS)}"
        raise ConfigError(f"{where}: unknown fact {key!r}", path=where, hint=hint)
    source, as_of = where, None
    if isinstance(value, Mapping) and (not bare or "value" in value):
        if set(value) - {"value", "source", "as_of"} or "value" not in value:
            hint = 'write { value = …, source = "…", as_of = 2026-11-01 }'
            raise ConfigError(f"{where}: {key} is not a fact", path=where, hint=hint)
        source, as_of, value = value.get("source", source if bare else ""), value.get("as_of"), value["value"]
    elif not bare:
        raise ConfigError(f"{where}: {key} has no source", path=where, hint="give source and as_of")
    _check_origin(key, source, as_of, where, bare=bare)
    if value != UNKNOWN:
        _check_value(key, value, where)
    return Fact(tuple(value) if isinstance(value, list) else value, source, as_of)


def _check_origin(key: str, source: object, as_of: object, where: str, *, bare: bool) -> None:
    # A time of day is a date too for isinstance, and no fact is that precise.
    good = type(as_of) is date or (bare and as_of is None)
    if not good or not isinstance(source, str) or not source.strip():
        hint = 'source is a text, as_of a date: source = "https://…", as_of = 2026-11-01'
        raise ConfigError(f"{where}: source or as_of of {key} is missing or not valid", path=where, hint=hint)


def _check_value(key: str, value: Any, where: str) -> None:  # facts have several types
    kind = FACTS[key]
    what = f"one of {', '.join(kind.choices)}" if kind.choices else _WORDS[kind.type]
    if key == "endpoint" and isinstance(value, Mapping):
        return  # `_check_endpoint` looks at it, when the regions are known
    good = isinstance(value, kind.type) and isinstance(value, bool) == (kind.type is bool)
    if good and kind.type is int:
        good = value > 0
    if good and kind.type is list:
        good = all(isinstance(item, str) for item in value)
    if good and kind.choices:
        good = set(value if kind.type is list else [value]) <= set(kind.choices)
    if good and key in ("secnumcloud", "hds"):
        good, what = value.partition(":")[0] in QUALIFIED, f'"{UNKNOWN}", or one of {", ".join(QUALIFIED)} and ": …"'
    if good and key in ("jurisdiction", "parent_jurisdiction"):
        good, what = bool(countries.parse(value)), _COUNTRY
    if good and key == "technology":
        good, what = value == OPEN or bool(countries.parse(value)), f'{_COUNTRY}, or "{OPEN}"'
    if good and key == "region_jurisdiction":
        good = all(isinstance(code, str) and countries.parse(code) for code in value.values())
    if not good:
        raise ConfigError(f"{where}: {key} is not {what}", path=where, hint="correct it, or leave it out")


def _check_endpoint(provider: Provider, where: str) -> None:
    """Refuse what would not make a URL in each region, so that it is found before a store needs it."""
    regions = provider.get("regions")
    for region in regions:
        _check_label("region", region, where)
    found = provider.get("endpoint")
    for region, template in found.items() if isinstance(found, Mapping) else [(OTHERS, found)]:
        if region != OTHERS and region not in regions:
            hint = f"{nearest(region, regions)}add it to 'regions'"
            raise ConfigError(f"{where}: endpoint of {region!r}, which is not in 'regions'", path=where, hint=hint)
        if template is not None and template != UNKNOWN and not _is_template(template):
            hint = 'write "https://…", with {region} and {account} where they belong'
            raise ConfigError(f"{where}: endpoint is not a URL", path=where, hint=hint)


def _is_template(value: object) -> bool:
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        return False
    rest = re.sub(r"\{(\w+)\}", lambda found: "" if found[1] in _PLACES else found[0], value)
    return not set(rest) & set("{}@?# ")


def _check_label(what: str, value: str, where: str) -> None:
    if not _LABEL.fullmatch(value):
        hint = "use letters, digits, '.', '_' and '-': it becomes a part of the endpoint"
        raise ConfigError(f"{where}: {value!r} is not a name of {what}", path=where, hint=hint)

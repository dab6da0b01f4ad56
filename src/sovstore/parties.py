"""Who holds a KEK and who holds the ciphertext, as far as the configuration and the shipped facts say it.

Pure: asks nobody. A managed service is known by its key URI; whoever runs any other one must be declared, as
``controller`` in its table ``[kms.NAME]``. A host name proves nothing about who runs it, but some disprove it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from sovstore import countries
from sovstore.backends import providers
from sovstore.backends.providers import NOBODY, UNKNOWN, Fact, Provider
from sovstore.config_store import StoreConfig
from sovstore.errors import ConfigError
from sovstore.kms import registry
from sovstore.kms.settings import TAKES, Service, service_of

#: What rules rest on. Facts of a controller, in the order in which they are explained.
FACTS = ("controller", "jurisdiction", "parent", "parent_jurisdiction", "technology")
Facts = Mapping[str, Fact]

_DATA: dict[str, dict[str, Any]] = tomllib.loads(
    resources.files("sovstore").joinpath("parties.toml").read_text(encoding="utf-8")
)
#: Now, so that no evaluation reads a file.
_SHIPPED = providers.catalogue()
#: Keys that are on this machine, and schemes without a host in their URIs.
_HERE = ("keyring", "keyfile")
_HOSTLESS = (*_HERE, "pkcs11")
#: Parameters of key URIs that are no secrets.
_SHOWN = frozenset(("endpoint", "dialect", "namespace", "version", "api", "module-path", "pin-source"))
_LOCAL_PROTOCOLS = ("file", "local", "memory")
_NAME_OF_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*|[0-9a-f.:]+")
#: Forms of companies, which say nothing about who one is.
_FORMS = frozenset(
    [
        *("sa", "sas", "sasu", "se", "snc", "sarl", "inc", "corp", "corporation", "llc", "ltd", "limited", "plc"),
        *("gmbh", "ag", "nv", "bv", "spa", "ab", "group", "groupe", "company", "co", "the"),
    ]
)


@dataclass(frozen=True)
class Party:
    """One who holds a key or ciphertext.

    Parameters
    ----------
    name : str
        How messages call it.
    facts : mapping of str to Fact
        Of `FACTS`, those that somebody states.
    groups : frozenset of str
        What it, its parent and its sisters are called, to tell whether two belong together.
    here : bool
        It is this machine.
    declared : bool
        The configuration, or a shipped fact, says who it is.
    hosts : tuple of str
        Hosts that its key URI names, in canonical form.
    """

    name: str
    facts: Facts = field(default_factory=dict)
    groups: frozenset[str] = frozenset()
    here: bool = False
    declared: bool = True
    hosts: tuple[str, ...] = ()

    def fact(self, name: str) -> Fact:
        """Return a fact; one that nobody states is unknown."""
        return self.facts.get(name, Fact(UNKNOWN, "nobody says", None))

    def known(self, name: str) -> bool:
        """Return whether somebody says."""
        return bool(self.fact(name).value != UNKNOWN)

    def law(self, name: str) -> tuple[str, ...]:
        """Return the countries that a fact names; none where it is unknown."""
        return countries.parse(str(self.fact(name).value))


@dataclass(frozen=True)
class Domain:
    """What is known of whoever runs what is below a domain.

    Parameters
    ----------
    name : str
        The domain.
    refused : bool
        As a key holder, whatever the policy.
    controller : Fact
        Who that is.
    law, technology : Fact
        Of the controller; of its software.
    """

    name: str
    refused: bool
    controller: Fact
    law: Fact
    technology: Fact


def _domains() -> Iterator[Domain]:
    for kind in ("refused", "foreign"):
        for entry in _DATA[kind].values():
            origin: tuple[str, date] = (entry["source"], entry["as_of"])
            law = entry.get("jurisdiction", UNKNOWN)
            facts = (Fact(value, *origin) for value in (entry["controller"], law, entry.get("technology", law)))
            controller, jurisdiction, technology = facts
            for name in entry["domains"]:
                yield Domain(name, kind == "refused", controller, jurisdiction, technology)


_DOMAINS = tuple(_domains())


# Hosts


def canonical_host(host: str) -> str:
    """Return a host name as a resolver takes it: folded, without what IDNA ignores and without dots at its end."""
    folded = unicodedata.normalize("NFKC", unquote(host)).casefold().replace("\u3002", ".").rstrip(".")
    return "".join(char for char in folded if unicodedata.category(char) != "Cf")


def is_host(host: str) -> bool:
    """Return whether a canonical host is one that every client takes for the same."""
    return _NAME_OF_HOST.fullmatch(host) is not None


def is_under(host: str, domain: str) -> bool:
    """Return whether a canonical host is a domain or below it, at the border of a label."""
    return host == domain or host.endswith(f".{domain}")


def domain_of(host: str) -> Domain | None:
    """Return what is known of the domain that a canonical host is below."""
    return next((domain for domain in _DOMAINS if is_under(host, domain.name)), None)


def _endpoints(query: str) -> Iterator[str]:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name.lower() == "endpoint":
            bare = canonical_host(urlsplit(f"//{value}").hostname or "")
            # Without a scheme it is no URL, and maybe a token that was pasted there: looked at, and never shown.
            yield urlsplit(value).hostname or (bare if domain_of(bare) else "\\")


def _hosts(uri: str) -> tuple[str, ...]:
    """Return the hosts that a key URI names: its own first, then those of its endpoints."""
    scheme = uri.partition(":")[0]
    if scheme in _HOSTLESS:
        return ()
    try:
        parts = urlsplit(uri)
        found = [] if "@" in parts.netloc else [parts.hostname or "", *_endpoints(parts.query)]
    except ValueError:
        found = []
    # Neither quoted nor kept as a cause: what stands there may be a secret.
    if not found or not found[0]:
        hint = "a key URI names a host, without user or password; credentials belong into [kms.NAME], as references"
        raise ConfigError(f"kek: not a {scheme}: URI", path="kek", hint=hint)
    return tuple(canonical_host(host) for host in found)


def shown(uri: str) -> str:
    """Return a key URI for people, or its scheme alone where the rest may be a secret in the wrong place."""
    scheme, _, rest = uri.partition(":")
    if scheme in TAKES and _is_plain(uri, rest.partition("?")[0]):
        return uri
    return f"{scheme if scheme in TAKES or registry.is_refused(scheme) else ''}:…"


def _is_plain(uri: str, path: str) -> bool:
    try:
        pairs = parse_qsl(urlsplit(uri).query, keep_blank_values=True)
        urls = [urlsplit(value) for name, value in pairs if name == "endpoint"]
    except ValueError:
        return False
    known = all(name in _SHOWN for name, _ in pairs) and all(url.hostname and url.scheme for url in urls)
    return known and not set("@#") & set(unquote(uri)) and not re.search(r"(^|;)pin-?\w*=", path)


# Key holders


def key_holder(uri: str, services: Iterable[Service], controllers: Mapping[str, Facts]) -> Party:
    """Return who holds the KEK at a key URI of a known scheme.

    Parameters
    ----------
    services : iterable of Service
        The tables ``[kms.NAME]``.
    controllers : mapping
        Facts of the controllers and providers of the configuration, by name.

    Raises
    ------
    ConfigError
        When the URI is malformed, names a controller that there is not, or says otherwise than its service.
    """
    service = service_of(uri, services)
    if uri.partition(":")[0] in _HERE:
        return _keys_here(service)
    hosts = _hosts(uri)
    managed = _managed(uri, hosts)
    if managed is not None:
        party = _managed_party(managed, service, hosts)
    elif service.controller is not None:
        party = _declared_party(service.controller, service, controllers)
    else:
        party = Party(f"whoever runs {hosts[0] if hosts else 'the token'}", declared=False)
    return replace(
        party, hosts=hosts, facts={**party.facts, **_technology_at(hosts), "protection_level": _level(service)}
    )


def _keys_here(service: Service) -> Party:
    if service.controller is not None:
        hint = "remove 'controller': a keyring: or keyfile: key is held by this machine"
        raise ConfigError(f"kms.{service.name}: says that somebody else holds it", path=service.name, hint=hint)
    fact = Fact("self", "the key is kept on this machine", None)
    return Party("this machine", {"controller": fact, "protection_level": _level(service)}, here=True)


def _level(service: Service) -> Fact:
    if service.protection_level is None:
        return Fact("software", "not declared, which counts as software", None)
    return Fact(service.protection_level, f"declared in [kms.{service.name}]", None)


def _managed(uri: str, hosts: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return the managed service that a key URI names; None when it, or one of its endpoints, is somebody else's."""
    scheme, query = uri.partition(":")[0], dict(parse_qsl(urlsplit(uri).query))
    for entry in _DATA["services"].values():
        if scheme in entry["schemes"] and query.get("dialect") == entry.get("dialect"):
            # Where the service has regions, what stands for a host is the name of one, and endpoints are optional.
            named = hosts[1:] if "regions" in entry else hosts
            if all(any(is_under(host, domain) for domain in entry["domains"]) for host in named):
                return dict(entry)
    return None


def _managed_party(entry: Mapping[str, Any], service: Service, hosts: tuple[str, ...]) -> Party:
    name: str = entry["provider"]
    if service.controller not in (None, name):
        hint = f'write controller = "{name}", or leave it out'
        message = f"kms.{service.name}: its keys are held by {name}, whatever 'controller' says"
        raise ConfigError(message, path=service.name, hint=hint)
    shipped = _SHIPPED[name].facts
    facts = {key: shipped[key] for key in FACTS if key in shipped} | {"technology": Fact(**entry["technology"])}
    if "regions" in entry:
        table = Fact(**entry["regions"])
        regions = {hosts[0], *(host.partition(".")[0] for host in hosts[1:] if host.count(".") > 2)}
        for region in sorted(regions):
            facts["jurisdiction"] = _with_region(facts["jurisdiction"], region, table)
    return Party(name, facts, _groups(name, shipped, {}))


def _declared_party(name: str, service: Service, controllers: Mapping[str, Facts]) -> Party:
    facts = _named(name, controllers)
    if facts is None:
        known = [*controllers, *_SHIPPED]
        hint = f"{providers.nearest(name, known)}add a table [controllers.{name}]"
        raise ConfigError(f"kms.{service.name}: there is no controller {name!r}", path=service.name, hint=hint)
    stated = {key: facts[key] for key in FACTS if key in facts}
    # A provider may be named of whom nobody says who runs it, such as "s3".
    declared = "controller" in stated and stated["controller"].value != UNKNOWN
    return Party(name, stated, _groups(name, facts, controllers), declared=declared)


def _technology_at(hosts: tuple[str, ...]) -> dict[str, Fact]:
    """Return the technology that the domain of a host tells, whoever runs it."""
    found = [domain.technology for domain in map(domain_of, hosts) if domain is not None and not domain.refused]
    return {"technology": found[0]} if found else {}


def _named(name: str, controllers: Mapping[str, Facts]) -> Facts | None:
    if name in controllers:
        return controllers[name]
    return _SHIPPED[name].facts if name in _SHIPPED else None


def _with_region(law: Fact, region: str, table: Fact) -> Fact:
    """Return under which law a controller is in one of its regions: its own, and that of where the region is."""
    origin = f"{law.source}; region {region}: {table.source}"
    dates = [as_of for as_of in (law.as_of, table.as_of) if as_of is not None]
    as_of = min(dates) if len(dates) == 2 else None
    if law.value == UNKNOWN or region not in table.value:
        return Fact(UNKNOWN, f"nobody says where region {region} is ({table.source})", as_of)
    codes = dict.fromkeys((*countries.parse(law.value), *countries.parse(table.value[region])))
    return Fact(", ".join(codes), origin, as_of)


# The host


def host_of(store: StoreConfig) -> Party:
    """Return who holds the ciphertext of a store."""
    provider = store.facts or _SHIPPED.get(store.provider)
    if provider is None:
        return Party(store.provider or "the host", declared=False)
    if provider.driver in ("local", "memory") or store.protocol in _LOCAL_PROTOCOLS:
        return Party("this machine", {"controller": Fact("self", "the host is this machine", None)}, here=True)
    at = canonical_host(urlsplit(store.endpoint).hostname or "") if store.endpoint else ""
    belongs, region = _region_at(provider, at, store.region) if at else (True, store.region)
    if belongs:
        party = _at_provider(provider, region, store.controllers)
    else:
        unknown = Fact(UNKNOWN, f"the endpoint is not one of provider {provider.name!r}", None)
        party = Party("the host", dict.fromkeys(FACTS, unknown))
    return party if party.known("controller") else _by_domain(party, at)


def _at_provider(provider: Provider, region: str | None, controllers: Mapping[str, Facts]) -> Party:
    facts = {key: provider.facts[key] for key in FACTS if key in provider.facts}
    if region is not None and provider.known("region_jurisdiction"):
        law = facts.get("jurisdiction", Fact(UNKNOWN, "nobody says", None))
        facts["jurisdiction"] = _with_region(law, region, provider.facts["region_jurisdiction"])
    return Party(provider.name, facts, _groups(provider.name, provider.facts, controllers))


def _by_domain(party: Party, at: str) -> Party:
    """Return a host of unknown controller with what the domain of its endpoint tells."""
    for provider in _SHIPPED.values():
        belongs, region = _region_at(provider, at, None) if provider.known("controller") else (False, None)
        if belongs and provider.known("endpoint"):
            return _at_provider(provider, region, {})
    domain = domain_of(at)
    if domain is None:
        return replace(party, declared=False)
    told = {"controller": domain.controller, "jurisdiction": domain.law, "technology": domain.technology}
    groups = frozenset(_normal(name) for name in [str(domain.controller.value)])
    return replace(party, name=str(domain.controller.value), facts={**party.facts, **told}, groups=groups)


def _region_at(provider: Provider, at: str, region: str | None) -> tuple[bool, str | None]:
    """Return whether an endpoint is the provider's own, and of which of its regions."""
    template = provider.get("endpoint")
    if template is None:
        return True, region
    for one in provider.get("regions") or [region]:
        url = template.get(one, template.get(providers.OTHERS)) if isinstance(template, Mapping) else template
        if url in (None, UNKNOWN):
            if one == region:
                # Its endpoints are known to nobody but its customers.
                return True, region
            continue
        pattern = re.escape(url.partition("://")[2].partition("/")[0].partition(":")[0])
        pattern = pattern.replace(r"\{region\}", re.escape(one) if one else "[a-z0-9.-]+")
        if re.fullmatch(pattern.replace(r"\{account\}", "[a-z0-9.-]+"), at):
            return True, one
    return False, None


# Groups


def _groups(name: str, facts: Facts, controllers: Mapping[str, Facts]) -> frozenset[str]:
    """Return what a controller and those that it belongs to are called."""
    names = [name]
    if "group" in facts:
        names += facts["group"].value
    for key in ("controller", "parent"):
        value = str(facts[key].value) if key in facts else UNKNOWN
        if value not in (UNKNOWN, NOBODY):
            names += _several(value)
    parent = str(facts["parent"].value) if "parent" in facts else UNKNOWN
    above = _named(parent, controllers) if parent != name else None
    found = frozenset(filter(None, map(_normal, names)))
    return found | (_groups(parent, above, {}) if above is not None else frozenset())


def _several(text: str) -> list[str]:
    """Return the names in a text such as "Docaposte (La Poste) and Bouygues Telecom; since 2022"."""
    return [text, *re.split(r"[,()/&]| and | et ", text.partition(";")[0])]


def _normal(name: str) -> str:
    """Return the name of a company without accents, punctuation and legal form."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace(".", ""))
    words = re.findall(r"\w+", "".join(char for char in plain if not unicodedata.combining(char)))
    return " ".join(word for word in words if word not in _FORMS)

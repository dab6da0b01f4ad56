"""The rules of a policy, each held against what is known of a key holder or a host. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from sovstore import countries, parties
from sovstore.backends.providers import NOBODY, OPEN, UNKNOWN, Fact
from sovstore.config_policy import ALLOW, ANY, REFUSE, WARN, WARN_IN_EU, example
from sovstore.config_store import StoreConfig
from sovstore.kms import registry
from sovstore.kms.settings import service_of
from sovstore.parties import Party

OK = "ok"
#: Where a setting stands that nobody wrote.
DEFAULT = "default"
#: What each rule is, in the order in which they are looked at.
RULES: Mapping[str, str] = {
    "endpoint": "no KEK at a service of a company under US law",
    "controller": "somebody is known to run the service that holds the KEK",
    "key_holder_jurisdiction": "the law that whoever runs it is under",
    "key_holder_parent": "the law that whoever owns that one is under",
    "key_holder_technology": "where its software comes from",
    "protection_level": "where the service keeps the key",
    "separate_from_storage": "the host and the key holder do not belong together",
    "host_jurisdiction": "the law that the host is under",
    "host_parent": "the law that whoever owns the host is under",
    "host_technology": "where the software of the host comes from",
    "plain_names": "readable names only at a host in the European Union",
    "stale_facts": "the facts are not older than max_age",
    "local_plaintext": "plaintext that layers of fsspec keep on this machine",
}
#: The fact that a rule about countries rests on.
_FACT = {"jurisdiction": "jurisdiction", "parent": "parent_jurisdiction", "technology": "technology"}
_WHAT = {
    "jurisdiction": "{0} is under the law of {1}",
    "parent": "whoever owns {0} is under the law of {1}",
    "technology": "the software of {0} comes from {1}",
}
_NOT_KNOWN = {
    "jurisdiction": "nobody says under which law {0} is",
    "parent": "nobody says under which law whoever owns {0} is",
    "technology": "nobody says where the software of {0} comes from",
}


@dataclass(frozen=True)
class Finding:
    """What came of one rule.

    Parameters
    ----------
    rule : str
        One of `RULES`.
    action : str
        ``refuse``, ``warn`` or ``ok``.
    subject : str
        Who or what it is about: a key URI, or the host.
    fact, value : str
        What is known, by name.
    source : str
        Who says so.
    as_of : date or None
        When that was true; None where it is not a matter of time, or nobody says.
    message : str
        All of it in one sentence.
    hint : str or None
        What to do about it.
    setting, origin : str
        What is asked, and where that stands: ``default``, or a table and its file.
    """

    rule: str
    action: str
    subject: str
    fact: str
    value: str
    source: str
    as_of: date | None
    message: str
    hint: str | None = None
    setting: str = ""
    origin: str = "default"


# The key holder


def of_key(store: StoreConfig, uri: str, host: Party, today: date) -> Iterator[Finding]:
    """Yield what the rules say of whoever holds the KEK at a key URI.

    Raises
    ------
    ConfigError
        As `sovstore.parties.key_holder`.
    """
    refused = registry.refusal(uri)
    if refused is not None:
        scheme = uri.partition(":")[0]
        yield _endpoint_finding(uri, REFUSE, scheme, _REGISTRY, refused.message, refused.hint)
        return
    key = parties.key_holder(uri, store.services, store.controllers)
    case = _Case(store, parties.shown(uri), key, today, uri)
    if key.hosts:
        endpoint = _endpoint(uri, key)
        yield endpoint
        if endpoint.action == REFUSE:
            return
    yield (controller := _controller(case))
    if controller.action == REFUSE:
        # All that the other rules ask would be unknown for the same reason.
        return
    for what in _FACT:
        yield case.countries(f"key_holder_{what}", what)
    yield _protection(case)
    yield _separate(case, host)
    if not key.here:
        yield _stale(case, "key_holder", compared=True)


@dataclass(frozen=True)
class _Case:
    """One party of one store, held against its policy."""

    store: StoreConfig
    subject: str
    party: Party
    today: date = date.min
    uri: str = ""

    def finding(self, rule: str, action: str, name: str, message: str, hint: str | None = None) -> Finding:
        """Return a finding that rests on a fact of the party."""
        fact, policy = self.party.fact(name), self.store.policy
        setting, origins = _setting_text(getattr(policy, rule, "declared")), [policy.origin(rule)]
        if rule in policy.on_violation and setting != ANY:
            setting = f"{setting}; else {policy.on_violation[rule]}"
            origins.append(policy.origin(f"on_violation.{rule}"))
        if rule == "stale_facts":
            setting = f"{setting}, after {policy.max_age}"
            origins.append(policy.origin("max_age"))
        written = dict.fromkeys(origin for origin in origins if origin != DEFAULT)
        return Finding(
            rule=rule,
            action=action,
            subject=self.subject,
            fact=name,
            value=str(fact.value),
            source=fact.source,
            as_of=fact.as_of,
            message=message,
            hint=None if action == OK else hint,
            setting=setting,
            origin=", ".join(written) or DEFAULT,
        )

    def violated(self, rule: str) -> str:
        """Return what is done where a rule does not hold."""
        return self.store.policy.on_violation[rule]

    def countries(self, rule: str, what: str) -> Finding:
        """Return whether a fact about a country is among those that a rule allows."""
        allowed: tuple[str, ...] = getattr(self.store.policy, rule)
        name, who = _FACT[what], self.party.name
        if self.party.here:
            return self.finding(rule, OK, "controller", f"{who}: its own user")
        if what == "parent" and self.party.fact("parent").value == NOBODY:
            return self.finding(rule, OK, "parent", f"{who} has no parent")
        value = self.party.fact(name).value
        if value == OPEN:
            return self.finding(rule, OK, name, f"the software of {who} is open source")
        text = (_NOT_KNOWN if value == UNKNOWN else _WHAT)[what].format(who, value)
        if ANY in allowed or countries.within(self.party.law(name), allowed):
            return self.finding(rule, OK, name, text)
        asked = f"{text}; allowed: {', '.join(allowed)}"
        return self.finding(rule, self.violated(rule), name, asked, self._hint(rule))

    def _hint(self, rule: str) -> str:
        asked = f"change {rule} in [policy] or [stores.{self.store.name}.policy]"
        if rule.startswith("key_holder"):
            return f"hold the KEK with somebody whom the policy allows, correct what is declared, or {asked}"
        return f"keep the store at a host that the policy allows, or {asked}"


def _setting_text(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


_REGISTRY = Fact("", "sovstore.kms.registry", None)
_DOMAINS = Fact("", "sovstore, parties.toml (the domains that are refused)", None)


def _endpoint(uri: str, key: Party) -> Finding:
    """Hold the hosts of a key URI against the domains that no policy allows."""
    known = [(at, domain) for at in key.hosts if (domain := parties.domain_of(at)) is not None]
    for at, domain in known:
        if domain.refused:
            who, law = domain.controller.value, domain.law.value
            message = f"{at} is run by {who}, under the law of {law}, which can be ordered to use the key"
            hint = "hold the KEK in a KMS or HSM of your own jurisdiction; no setting allows this"
            return _endpoint_finding(uri, REFUSE, domain.name, domain.controller, message, hint)
    if not all(map(parties.is_host, key.hosts)):
        # A client may read it as another name than we do: as one that is refused.
        message = "a host or endpoint of the key URI is not written in plain letters, digits, '-' and '.'"
        return _endpoint_finding(uri, REFUSE, "not shown", _DOMAINS, message, "write endpoint=https://HOST")
    for at, domain in known:
        message = f"{at} is run by {domain.controller.value}, on technology of {domain.technology.value}"
        hint = "hold the KEK where the technology is of the EU too, or accept the warning"
        return _endpoint_finding(uri, WARN, domain.name, domain.controller, message, hint)
    at = key.hosts[-1]
    return _endpoint_finding(uri, OK, at, _DOMAINS, f"{at} is under none of the domains that are refused", None)


def _endpoint_finding(uri: str, action: str, value: str, fact: Fact, message: str, hint: str | None) -> Finding:
    subject = parties.shown(uri)
    return Finding(
        "endpoint", action, subject, "host", value, fact.source, fact.as_of, message, hint, "always on", "no setting"
    )


def _controller(case: _Case) -> Finding:
    if case.party.declared:
        value = case.party.fact("controller").value
        return case.finding("controller", OK, "controller", f"the key is held by {case.party.name} ({value})")
    service = service_of(case.uri, case.store.services)
    where = f"[kms.{service.name}]" if service.name else f'a table [kms.NAME] with uri = "{prefix(case.uri)}"'
    message = f"nobody says who holds the key: {case.party.name}"
    hint = f'write controller = "NAME" into {where}, and {example(as_of=case.today.isoformat()).removeprefix("write ")}'
    return case.finding("controller", case.violated("controller"), "controller", message, hint)


def prefix(uri: str) -> str:
    """Return what the key URIs of the same service begin with."""
    scheme, _, rest = parties.shown(uri).partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}" if rest else scheme.partition(";")[0]


def _protection(case: _Case) -> Finding:
    rule = "protection_level"
    asked, level = case.store.policy.protection_level, case.party.fact(rule).value
    if asked == "software" or level == "hsm":
        return case.finding(rule, OK, rule, f"the key is kept in {level}")
    message = f"the key is kept in {level}, as far as is declared; asked for: {asked}"
    hint = 'use a key in an HSM, and write protection_level = "hsm" into its table [kms.NAME]'
    return case.finding(rule, case.violated(rule), rule, message, hint)


def _separate(case: _Case, host: Party) -> Finding:
    asked, key = case.store.policy.separate_from_storage, case.party
    if not (host.declared and key.declared):
        message = f"it cannot be told whether {key.name} is separate from the host, of which nobody says who runs it"
        # What is kept on this machine is kept away from a host that is another one.
        action = OK if key.here and asked == WARN_IN_EU else WARN if asked == WARN_IN_EU else asked
        return _separation(case, action, message, _who_runs_the_host(case.store))
    if key.here != host.here or (not key.here and not key.groups & host.groups):
        return _separation(case, OK, f"{key.name} holds the key, {host.name} the ciphertext")
    both = key.name if key.name == host.name else f"{key.name}, which belongs together with {host.name},"
    message = f"{both} holds both the key and the ciphertext"
    if asked != WARN_IN_EU:
        return _separation(case, asked, message, _SEPARATE)
    if key.here:
        return _separation(case, OK, message)
    outside = next((party for party in (host, key) if not _in_eu(party)), None)
    if outside is None:
        return _separation(case, WARN, message, _SEPARATE)
    law = ", ".join(dict.fromkeys((*outside.law("jurisdiction"), *outside.law("parent_jurisdiction"))))
    message = f"{message}, and not in the EU alone: {law or 'nobody says under which law'}"
    return _separation(_Case(case.store, case.subject, outside, case.today), REFUSE, message, _SEPARATE, "jurisdiction")


def _separation(case: _Case, action: str, message: str, hint: str | None = None, fact: str = "controller") -> Finding:
    return case.finding("separate_from_storage", OK if action == ALLOW else action, fact, message, hint)


_SEPARATE = (
    "hold the KEK with somebody else than the host, or set separate_from_storage in [policy]:"
    f" {REFUSE}, {WARN_IN_EU}, {WARN}, {ALLOW}"
)


def _who_runs_the_host(store: StoreConfig) -> str:
    like = store.facts.name if store.facts else "s3"
    return (
        f'write [providers.NAME] with like = "{like}", controller = {{ value = "…", source = "…", as_of = … }},'
        f' jurisdiction and parent the same way, and provider = "NAME" into [stores.{store.name}]'
    )


def _in_eu(party: Party) -> bool:
    """Return whether a party, and whoever owns it, is known to be in the European Union."""
    owned = party.fact("parent").value == NOBODY or countries.within(party.law("parent_jurisdiction"), [countries.EU])
    return owned and countries.within(party.law("jurisdiction"), [countries.EU])


# The host


def of_host(store: StoreConfig, host: Party, today: date, *, compared: bool) -> Iterator[Finding]:
    """Yield what the rules say of the host of a store.

    Parameters
    ----------
    compared : bool
        Whether a key holder was held against it, so that who it is matters.
    """
    case = _Case(store, f"host of {store.name}", host, today)
    for what in _FACT:
        yield case.countries(f"host_{what}", what)
    yield _plain_names(case)
    if not host.here:
        yield _stale(case, "host", compared=compared)


def _plain_names(case: _Case) -> Finding:
    rule, host, asked = "plain_names", case.party, case.store.policy.plain_names
    if host.here:
        return case.finding(rule, OK, "controller", f"{host.name}: its own user")
    if case.store.names != "plain":
        return case.finding(rule, OK, "jurisdiction", f"{host.name} cannot read names: they are encrypted")
    # A parent of which nobody says where it is, is no reason here; one that is known to be outside is.
    owner = host.law("parent_jurisdiction")
    inside = countries.within(host.law("jurisdiction"), [countries.EU])
    if inside and (not owner or countries.within(owner, [countries.EU])):
        return case.finding(rule, OK, "jurisdiction", f"{host.name} reads all names")
    message = f"{host.name} reads all names, and is outside the EU or nobody says where"
    hint = 'make the store with names = "encrypted"; names often say as much as data'
    return case.finding(rule, OK if asked == ALLOW else asked, "jurisdiction", message, hint)


# This machine

_LOCAL = "local_plaintext"
_MINE = Fact("self", "what is read is read on this machine", None)
_LAYERS = "caches and generic copies of fsspec"
_WHAT_LAYERS_MAY = {
    ALLOW: f"{_LAYERS} may keep plaintext on this machine: its own user",
    WARN: f"{_LAYERS} that keep plaintext on this machine are warned of when they are used",
    REFUSE: f"{_LAYERS} that keep plaintext on this machine are refused when they are used",
}


def of_machine(store: StoreConfig) -> Finding:
    """Return what the rules say of the machine that reads; what is used there, only its use can tell."""
    case = _Case(store, "this machine", Party("this machine", {"controller": _MINE}, here=True))
    return case.finding(_LOCAL, OK, "controller", _WHAT_LAYERS_MAY[store.policy.local_plaintext])


def of_layer(store: StoreConfig, name: str, module: str) -> Finding:
    """Return what the rules say of a layer that is about to keep plaintext of a store on this machine.

    Parameters
    ----------
    name, module : str
        What the layer is called in Python, and where it is from.
    """
    asked = store.policy.local_plaintext
    case = _Case(store, "this machine", Party(name, {"layer": Fact(name, module, None)}))
    hint = (
        "read sov:// without it, or fetch with get to a place that you choose;"
        f" or set {_LOCAL} in [policy] or [stores.{store.name}.policy]: {REFUSE}, {WARN}, {ALLOW}"
    )
    message = f"{name} would keep plaintext on a disk of this machine"
    return case.finding(_LOCAL, OK if asked == ALLOW else asked, "layer", message, hint)


# Ages


def _stale(case: _Case, prefix: str, *, compared: bool) -> Finding:
    """Return whether facts are too old on which rules rest that ask for something."""
    policy = case.store.policy
    names = {name for what, name in _FACT.items() if ANY not in getattr(policy, f"{prefix}_{what}")}
    if compared and policy.separate_from_storage != ALLOW:
        names |= {"controller", "parent"}
    if prefix == "host" and case.store.names == "plain" and policy.plain_names != ALLOW:
        names |= {"jurisdiction"}
    known = [name for name in parties.FACTS if name in names and case.party.known(name)]
    old = [name for name in known if not _is_fresh(case.party.fact(name), case.today, policy.oldest)]
    if not old:
        name = min(known, key=lambda name: case.party.fact(name).as_of or date.min, default="controller")
        return case.finding("stale_facts", OK, name, f"no fact about {case.party.name} is too old")
    oldest = min(old, key=lambda name: case.party.fact(name).as_of or date.min)
    when = ", ".join(f"{name} ({case.party.fact(name).as_of or 'without a date'})" for name in old)
    message = f"facts about {case.party.name} are older than {policy.max_age}, or without a date: {when}"
    action = OK if policy.stale_facts == ALLOW else policy.stale_facts
    hint = "look them up again: a newer release of sovstore may have them; of your own, correct as_of; or set max_age"
    return case.finding("stale_facts", action, oldest, message, hint)


def _is_fresh(fact: Fact, today: date, oldest: timedelta) -> bool:
    # One of a date far ahead would never grow old.
    return fact.as_of is not None and abs(today - fact.as_of) <= oldest

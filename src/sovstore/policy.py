"""Who may hold keys and ciphertext: what the configuration asks, held against what is known of both.

A pure function over the configuration and the shipped facts: no clock, no environment, no network. What it says is an
assertion by the operator, not legal proof (docs/policy.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime

from sovstore import parties, rules
from sovstore.config_policy import REFUSE, WARN
from sovstore.config_store import StoreConfig
from sovstore.errors import PolicyError
from sovstore.kms.settings import service_of
from sovstore.rules import OK, RULES, Finding

__all__ = ["OK", "REFUSE", "RULES", "WARN", "Finding", "act", "declaration", "enforce", "evaluate"]

_log = logging.getLogger("sovstore")


def evaluate(store: StoreConfig, *, today: date, kek: str | None = None) -> list[Finding]:
    """Return what the policy of a store says of its key holders and its host, in the order of the rules.

    Parameters
    ----------
    store : StoreConfig
        With its policy, its services and what is known of controllers.
    today : date
        What ages are counted to.
    kek : str, optional
        Look at this key URI; at all that the configuration names when it is left out.

    Raises
    ------
    ConfigError
        When a key URI is malformed, or says otherwise than the table of its service.
    """
    keks = [store.kek, *store.other_keks, *store.old_keks] if kek is None else [kek]
    return _findings(store, keks, today)


def enforce(store: StoreConfig, *, keks: Iterable[str] | None = None, today: date | None = None) -> None:
    """Refuse a store whose policy refuses; log what it only warns of, once per process.

    Parameters
    ----------
    store : StoreConfig
        As of `evaluate`.
    keks : iterable of str, optional
        The key URIs that will be used; all that the configuration names when it is left out. With an empty one only
        the host is looked at.
    today : date, optional
        The day in UTC when it is left out.

    Raises
    ------
    PolicyError
        Names the rule, the fact, its source and its date; the hint has what to do, and all further refusals.
    ConfigError
        As `evaluate`.
    """
    day = today or datetime.now(UTC).date()
    named = [store.kek, *store.other_keks, *store.old_keks] if keks is None else list(keks)
    act(store, _findings(store, named, day))


def act(store: StoreConfig, findings: Iterable[Finding]) -> None:
    """Do what findings ask for: refuse, or log a warning, once per process.

    Raises
    ------
    PolicyError
        As `enforce`.
    """
    findings = list(findings)
    refusals = [finding for finding in findings if finding.action == REFUSE]
    if refusals:
        raise _error(store, refusals)
    for finding in findings:
        if finding.action == WARN:
            _warn(store, finding)


#: What was said already in this process.
_said: set[tuple[str, ...]] = set()


def _warn(store: StoreConfig, finding: Finding) -> None:
    # Each opening of a store evaluates its policy; a pipeline of a thousand of them is warned once.
    key = (store.name, str(store.source), finding.rule, finding.subject, finding.message)
    if key not in _said:
        _said.add(key)
        _log.warning("store %r: %s; 'sovstore policy %s' explains it", store.name, finding.message, store.name)


def _error(store: StoreConfig, refusals: Sequence[Finding]) -> PolicyError:
    first, *others = refusals
    steps = [first.hint] if first.hint else []
    steps += [f"also refused: {_text(other)}" for other in others]
    steps.append(f"'sovstore policy {store.name}' explains all of it")
    return PolicyError(f"store {store.name!r}: {_text(first)}", path=first.subject, hint="; ".join(steps))


def _text(finding: Finding) -> str:
    when = f" of {finding.as_of}" if finding.as_of else ""
    return f"{finding.message} (rule {finding.rule}; fact {finding.fact}{when}: {finding.source})"


def _findings(store: StoreConfig, keks: Sequence[str], today: date) -> list[Finding]:
    host = parties.host_of(store)
    found = [finding for uri in dict.fromkeys(keks) for finding in rules.of_key(store, uri, host, today)]
    # A key on this machine is separate from any other host, whoever that is: no fact of the host is needed.
    compared = any(finding.rule == "separate_from_storage" and finding.value != "self" for finding in found)
    return [*found, *rules.of_host(store, host, today, compared=compared), rules.of_machine(store)]


def declaration(store: StoreConfig, kek: str, today: date) -> str:
    """Return the TOML that declares who runs the service of a KEK, to be filled in."""
    service = service_of(kek, store.services)
    table = f"[kms.{service.name}]" if service.name else f'[kms.NAME]\nuri = "{rules.prefix(kek)}"'
    return (
        f'{table}\ncontroller = "NAME"\n\n[controllers.NAME]\nlegal_entity = "…"\njurisdiction = "FR"\n'
        f'parent = "none"\ntechnology_origin = "open-source"\nas_of = {today.isoformat()}\nsource = "…"'
    )

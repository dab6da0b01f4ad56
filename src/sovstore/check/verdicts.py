"""What the answers of a host mean for a store: beside what the catalogue says, and with what is missing costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sovstore.backends.probe import Measured, Probe
from sovstore.backends.providers import CONDITIONS, Provider
from sovstore.check.report import Finding

#: What it costs when the host does not keep a condition; '' where sovstore does not use it.
COSTS: Mapping[str, str] = {
    "read:match": "nothing: replies say which version they are from, and sovstore looks at that",
    "put:create": "two writers that create one small object at the same time: the last one wins, and both think that"
    " they made it; nothing is corrupted",
    "put:replace": "two writers that replace one small object at the same time: the last one wins; a change of the"
    " keyset, or a rotation of a header, that runs at the same time can be lost; nothing is corrupted",
    "complete:create": "two writers that create one large object at the same time: the last one wins, and both think"
    " that they made it; nothing is corrupted",
    "complete:replace": "two writers that replace one large object at the same time: the last one wins; a rotation of"
    " its header that runs at the same time can be lost; nothing is corrupted",
    "copy:source": "",
    "copy:create": "",
    "copy:replace": "",
    "part_copy:source": "a writer beside a header replacement: sovstore looks again before it completes; nothing is"
    " corrupted",
    "delete:match": "",
}
#: The conditions that a driver without a probe may keep by itself.
_WRITES = ("put:create", "put:replace", "complete:create", "complete:replace")
_WRONG = "sovstore trusts the host with what it does not do: use an entry with what was measured, as below"
_OPEN = "anybody on the network may: close the bucket or container to the public"


def conditions(provider: Provider, probe: Probe, kept: frozenset[str]) -> Iterator[Finding]:
    """Yield a finding for each condition.

    Parameters
    ----------
    provider : Provider
        What the catalogue says.
    probe : Probe
        What was measured.
    kept : frozenset of str
        What the driver says that it keeps; believed, and tried by races, where nothing was measured at all.
    """
    if not probe.conditions:
        for name in _WRITES:
            yield _by_driver(name, kept=name in kept)
        return
    for name in CONDITIONS:
        if name in probe.conditions or name in provider.conditions:
            yield _condition(name, provider, probe.condition(name))


def _by_driver(name: str, *, kept: bool) -> Finding:
    if kept:
        return Finding(f"condition {name}", "ok", "kept by the driver")
    return Finding(f"condition {name}", "missing", "the driver looks first, which can race", COSTS[name])


def _condition(name: str, provider: Provider, measured: Measured) -> Finding:
    check, claimed = f"condition {name}", name in provider.conditions
    if measured.value is None:
        said = "; the catalogue says that it is kept" if claimed else ""
        return Finding(check, "unknown", f"could not be measured: {measured.reason}{said}")
    if not measured.value:
        if claimed:
            detail = f"the catalogue says that it is kept; measured: it is not, {measured.reason}"
            return Finding(check, "failed", detail, "; ".join(filter(None, [COSTS[name], _WRONG])))
        unused = "" if COSTS[name] else "; sovstore does not use it"
        return Finding(check, "missing", measured.reason + unused, COSTS[name])
    detail = f"kept{f', {measured.reason}' if measured.reason else ''}"
    return Finding(check, "ok", detail if claimed else f"{detail}; the catalogue does not say so")


def abilities(provider: Provider, probe: Probe) -> Iterator[Finding]:
    """Yield a finding for each ability that was measured."""
    for name, judge in _ABILITIES.items():
        if name in probe.abilities:
            measured = probe.abilities[name]
            check, result, detail, cost = judge(provider, measured)
            if measured.value is None:
                yield Finding(check, "unknown", f"could not be measured: {measured.reason}")
            else:
                yield Finding(check, result, detail, cost)


_Verdict = tuple[str, str, str, str]


def _quotes(provider: Provider, measured: Measured) -> _Verdict:
    taken, check = provider.get("etag_quotes"), "ETag in conditions"
    if measured.value in (taken, "both"):
        return check, "ok", str(measured.value), ""
    known = provider.known("etag_quotes")
    detail = f"measured: {measured.value}; {'the catalogue says' if known else 'sovstore takes'} {taken}"
    if provider.conditions & {"put:replace", "complete:replace", "read:match"}:
        return check, "failed", detail, "conditional requests fail, or pass where they should not: use the entry below"
    return check, "ok", detail, ""


def _page(_: Provider, measured: Measured) -> _Verdict:
    cost = "listings take as much memory as the host sends at once"
    return _yes("listing pages", measured, "pages of the size that was asked for", cost)


def _yes(check: str, measured: Measured, detail: str, cost: str) -> _Verdict:
    return (check, "ok", detail, "") if measured.value else (check, "missing", measured.reason, cost)


def _checksums(provider: Provider, measured: Measured) -> _Verdict:
    taken = provider.get("checksums")
    seen = "taken" if measured.value else f"not taken: {measured.reason}"
    if taken == "when_supported" and not measured.value:
        detail = f"the catalogue says that the newer ones are taken; measured: {seen}"
        return "checksums", "failed", detail, 'every write fails or is damaged: use checksums = "when_required"'
    return "checksums", "ok", f"the newer ones are {seen}; sent {taken.replace('_', ' ')}", ""


def _parts(provider: Provider, measured: Measured) -> _Verdict:
    least, most, many = (provider.get(fact) for fact in ("part_min", "part_max", "parts_max"))
    if measured.value is False:
        detail = f"the catalogue says {_size(least)} at least; measured: {measured.reason}"
        return "part limits", "failed", detail, "objects of several parts fail: use an entry with a larger part_min"
    detail = f"{_size(least)} to {_size(most)}, {many:,} parts; {_size(measured.value)} was accepted"
    return "part limits", "ok", detail, ""


def _size(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size:,} B"


def _versions(_: Provider, measured: Measured) -> _Verdict:
    if not measured.value:
        return "versioning", "ok", "off", ""
    cost = "deleted and overwritten ciphertext stays at the host: erasure needs key destruction"
    return "versioning", "missing", measured.reason or "on", cost


def _too_wide(check: str, right: str, cost: str) -> Callable[[Provider, Measured], _Verdict]:
    def judge(_: Provider, measured: Measured) -> _Verdict:
        if measured.value:
            return check, "missing", f"these credentials may {right}", cost
        return check, "ok", f"these credentials may not {right}", ""

    return judge


def _public(check: str, what: str) -> Callable[[Provider, Measured], _Verdict]:
    def judge(_: Provider, measured: Measured) -> _Verdict:
        if measured.value:
            return check, "failed", f"{what} without credentials", _OPEN
        return check, "ok", f"{what} are refused without credentials", ""

    return judge


_ABILITIES: Mapping[str, Callable[[Provider, Measured], _Verdict]] = {
    "etag_quotes": _quotes,
    "page_size": _page,
    "smallest_part": _parts,
    "checksums": _checksums,
    "sees_others": _too_wide(
        "rights on others",
        "list other buckets or containers",
        "whoever steals them learns what else there is: use credentials of this one alone",
    ),
    "writes_outside": _too_wide(
        "rights beside the root",
        "write beside the root",
        "whoever steals them can destroy what others keep there: limit them to the root, or use a bucket of its own",
    ),
    "anonymous_read": _public("public read", "reads"),
    "anonymous_list": _public("public listing", "listings"),
    "versioning": _versions,
}


def entry(provider: Provider, probe: Probe) -> dict[str, Any]:
    """Return the measured facts that the catalogue does not have, or has otherwise; empty when they agree."""
    found: dict[str, Any] = {}
    measured = {name: answer.value for name, answer in probe.conditions.items() if answer.value is not None}
    kept = [name for name in CONDITIONS if measured.get(name, name in provider.conditions)]
    if measured and (set(kept) != provider.conditions or not provider.known("conditions")):
        found["conditions"] = kept
    quotes = probe.ability("etag_quotes").value
    if quotes == "both":
        quotes = provider.get("etag_quotes")
    if quotes and (not provider.known("etag_quotes") or quotes != provider.get("etag_quotes")):
        found["etag_quotes"] = quotes
    if provider.get("checksums") == "when_supported" and probe.ability("checksums").value is False:
        found["checksums"] = "when_required"
    return found

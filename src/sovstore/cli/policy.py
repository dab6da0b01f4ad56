"""``policy``: what the policy of a store says of its key holders and its host, and on which facts that rests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command
from sovstore.cli.arguments import StoreName
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name
from sovstore.errors import PolicyError

if TYPE_CHECKING:
    from datetime import date

    from sovstore.config import StoreConfig
    from sovstore.policy import Finding

_ORDER = ("refuse", "warn", "ok")
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
#: The facts that findings rest on: name, value, source and date, numbered in the order of the findings.
Notes = Mapping[tuple[str, str, str, "date | None"], int]


@command(
    app,
    "policy",
    examples=["policy cohortes", "policy cohortes --kek openbao://bao.example.fr:8200/transit/kek-2027"],
)
def show_policy(
    run: Run,
    store: StoreName,
    *,
    kek: Annotated[
        str | None, typer.Option(metavar="URI", help="Look at this key instead of those of the configuration.")
    ] = None,
) -> int:
    """Explain what the policy says of whoever holds the keys and the bytes of a store.

    Each finding is shown with the fact that it rests on, who says so and of which date, what the rule is and where it
    is set. Asks nobody: these are the configuration and the facts that sovstore was shipped with, an assertion and not
    legal proof. Opening a store evaluates the same.

    Exit code 4 when something is refused.
    """
    from datetime import UTC, datetime

    from sovstore import policy

    described, today = run.config.store(store_name(store)), datetime.now(UTC).date()
    findings = policy.evaluate(described, today=today, kek=kek)
    refused = any(finding.action == policy.REFUSE for finding in findings)
    if run.out.as_json:
        run.out.result(_json(described, findings, refused=refused))
    else:
        _print(run, described, findings, today)
    return PolicyError.exit_code if refused else 0


def _json(described: StoreConfig, findings: Sequence[Finding], *, refused: bool) -> dict[str, Any]:
    shown = [{**vars(finding), "as_of": finding.as_of and finding.as_of.isoformat()} for finding in findings]
    return {"store": described.name, "refused": refused, "findings": shown}


def _print(run: Run, described: StoreConfig, findings: Sequence[Finding], today: date) -> None:
    notes: Notes = {fact: number for number, fact in enumerate(dict.fromkeys(map(_fact, findings)), 1)}
    for subject in dict.fromkeys(finding.subject for finding in findings):
        run.out.line(subject)
        run.out.line()
        rows = [row for finding in findings if finding.subject == subject for row in _rows(finding, notes)]
        run.out.table(["result", "rule", "because", "fact"], rows)
        run.out.line()
    counts = {action: sum(finding.action == action for finding in findings) for action in _ORDER}
    run.out.line(", ".join(f"{counts[action]} {action}" for action in _ORDER if counts[action]))
    _show_declaration(run, described, findings, today)
    _show_rules(run, findings)
    _show_facts(run, notes)


def _fact(finding: Finding) -> tuple[str, str, str, date | None]:
    return finding.fact, finding.value, finding.source, finding.as_of


def _rows(finding: Finding, notes: Notes) -> list[list[str]]:
    rows = [[finding.action, finding.rule, finding.message, f"[{notes[_fact(finding)]}]"]]
    return [*rows, ["", "", f"=> {finding.hint}", ""]] if finding.hint else rows


def _show_declaration(run: Run, described: StoreConfig, findings: Sequence[Finding], today: date) -> None:
    """Print the TOML that is missing where nobody says who holds a key."""
    from sovstore import policy

    missing = [finding for finding in findings if finding.rule == "controller" and finding.action != policy.OK]
    if not missing:
        return
    run.out.line()
    run.out.line("to say who holds the key, write into the configuration:")
    run.out.line()
    for line in policy.declaration(described, missing[0].subject, today).splitlines():
        run.out.line(line)


def _show_rules(run: Run, findings: Sequence[Finding]) -> None:
    from sovstore.policy import RULES

    seen = {finding.rule: finding for finding in findings}
    run.out.line()
    rows = [[rule, text, f"{seen[rule].setting} ({seen[rule].origin})"] for rule, text in RULES.items() if rule in seen]
    run.out.table(["rule", "what it asks", "set to"], rows)


def _show_facts(run: Run, notes: Notes) -> None:
    run.out.line()
    run.out.line("facts, when they were true, and who says so")
    margin, width = " " * 19, max(run.out.console().width, 40)
    for (fact, value, source, as_of), number in notes.items():
        # A URL stays whole, to be copied; the lines are cut between words only.
        start = f"  {f'[{number}]':>4} {as_of.isoformat() if as_of else '-':<10}  "
        text = f"{fact} = {value}: {source}"
        for line in wrap(text, width, initial_indent=start, subsequent_indent=margin, **_WHOLE_WORDS):
            run.out.line(line)

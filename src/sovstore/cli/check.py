"""``check``: whether a host does what a store needs of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sovstore.cli.app import app, command
from sovstore.cli.arguments import StoreName
from sovstore.cli.output import count_text
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name

if TYPE_CHECKING:
    from sovstore.check import Finding, Report
    from sovstore.config import StoreConfig

_ORDER = ("ok", "missing", "failed", "unknown")


@command(app, "check", examples=["check cohortes", "check cohortes --json > host.json"])
def check_host(run: Run, store: StoreName) -> int:
    """Try what a store needs of its host, and say what is missing and what that costs.

    Credentials, TLS, clock, parts, ranges, conditional writes, consistency, listings, deletes, names, permissions: all
    of it against the real host, in a folder below .sovstore/check/ of the root that is deleted again. Moves up to
    200 MB each way. Needs no key, and the store need not exist yet.

    Exit code 1 when something failed; an ability that is missing costs what is said beside it, and is no failure.
    """
    from sovstore.check import check

    described = run.config.store(store_name(store))
    with _progress(run) as say:
        report = run.wait(check(described.place, progress=say))
    if run.out.as_json:
        run.out.result(_json(described, report))
    else:
        _print(run, described, report)
    return 0 if report.ok else 1


@contextmanager
def _progress(run: Run) -> Iterator[Callable[[str], None]]:
    """Yield what shows the present step on stderr while a person watches."""
    if run.out.quiet or run.out.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(file=sys.stderr, markup=False, highlight=False).status("checking") as status:
        yield lambda step: status.update(f"checking: {step}")


def _json(described: StoreConfig, report: Report) -> dict[str, Any]:
    return {
        "store": described.name,
        "provider": report.provider,
        "endpoint": report.endpoint,
        "ok": report.ok,
        "checks": [vars(finding) for finding in report.findings],
        "measured": {
            "conditions": _answers(report.probe.conditions),
            "abilities": _answers(report.probe.abilities),
        },
        "entry": dict(report.entry),
    }


def _answers(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"value": answer.value, "reason": answer.reason} for name, answer in measured.items()}


def _print(run: Run, described: StoreConfig, report: Report) -> None:
    where = f" at {report.endpoint}" if report.endpoint else ""
    run.out.line(f"store {described.name!r}: {report.provider}{where}, in {described.root}")
    run.out.line()
    run.out.table(["check", "result", "detail, and what it costs"], [row for f in report.findings for row in _rows(f)])
    run.out.line()
    counts = {result: sum(f.result == result for f in report.findings) for result in _ORDER}
    run.out.line(", ".join(f"{counts[result]} {result}" for result in _ORDER if counts[result]))
    if report.entry:
        _print_entry(run, described, report)


def _rows(finding: Finding) -> Iterator[tuple[str, str, str]]:
    yield finding.check, finding.result, finding.detail
    if finding.cost:
        yield "", "", f"=> {finding.cost}"


def _print_entry(run: Run, described: StoreConfig, report: Report) -> None:
    from sovstore.backends.providers import catalogue

    shipped = report.provider in catalogue()
    name = f"{described.name[:58]}-host" if shipped else report.provider
    what = count_text(len(report.entry), "fact")
    run.out.line()
    run.out.line(f"{what} measured that the catalogue does not have, or has otherwise.")
    run.out.line("To have sovstore go by what was measured, write into the configuration:")
    run.out.line()
    run.out.line(f"[providers.{name}]")
    if shipped:
        run.out.line(f'like = "{report.provider}"')
    for key, value in report.entry.items():
        # TOML writes text and lists as JSON does.
        run.out.line(f"{key} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    if shipped:
        run.out.line()
        run.out.line(f"[stores.{described.name}]")
        run.out.line(f'provider = "{name}"')

"""What a check of a host found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sovstore.backends.probe import Probe

#: ``missing``: works without it, at a cost that is stated; ``failed``: do not keep a store there before it is mended.
RESULTS = ("ok", "missing", "failed", "unknown")


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Parameters
    ----------
    check : str
        What was looked at.
    result : str
        One of `RESULTS`.
    detail : str
        What was seen.
    cost : str
        What it costs, or what to do about it; '' when it is ok.
    """

    check: str
    result: str
    detail: str = ""
    cost: str = ""


@dataclass(frozen=True)
class Report:
    """What was found of one host.

    Parameters
    ----------
    provider : str
        Name of its entry in the catalogue.
    endpoint : str or None
        URL of the service, where there is one.
    findings : sequence of Finding
        In the order in which a person wants to read them.
    probe : Probe
        What the host was seen to do.
    entry : mapping
        Facts that the catalogue does not have, or has otherwise, as the table ``[providers.NAME]`` takes them.
    """

    provider: str
    endpoint: str | None
    findings: Sequence[Finding]
    probe: Probe = field(default_factory=Probe)
    entry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing failed; an ability that is missing is no failure."""
        return all(finding.result != "failed" for finding in self.findings)

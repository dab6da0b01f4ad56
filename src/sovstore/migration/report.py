"""What a migration would do, and what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sovstore import policy
from sovstore.migration.ends import MODES
from sovstore.migration.watching import Failure, Failures, Watcher


@dataclass(frozen=True)
class Plan:
    """What a migration would do.

    Parameters
    ----------
    mode : str
        ``seal``, ``reencrypt``, ``copy`` or ``open``.
    source, dest : str
        As they were given.
    objects, size : int
        What lies at the source, as its host lists it, and is taken; bytes of it.
    done, done_size : int
        Of these, what earlier runs have moved.
    refused : list of Failure
        What cannot be moved, and why; the first ones.
    refused_count, foreign_count : int
        How many these are, and how many objects of the source are not its store's.
    policy : list of Finding
        What the policies of the stores say.
    journal : Path
        Where the journal is.
    """

    mode: str
    source: str
    dest: str
    objects: int
    size: int
    done: int
    done_size: int
    refused: Failures
    foreign: list[str]
    foreign_count: int
    policy: list[policy.Finding]
    journal: Path

    @property
    def what(self) -> str:
        """What the mode does, for people."""
        return MODES[self.mode]


@dataclass
class Report:
    """What became of a migration.

    Parameters
    ----------
    plan : Plan
        What was to be done.
    moved, moved_size : int
        Objects and bytes of this run.
    at_host : int
        Objects of these that the host copied: their bytes did not pass through this machine.
    left : int
        Objects that the destination had as new already.
    failures : Failures
        What was not moved, or is not the same.
    verified, verified_size : int
        Objects that were read at both ends and are the same.
    deleted : int
        Objects of the destination that the source does not have.
    manifest : Path or None
        Where the manifest of the destination is.
    began : datetime
        In UTC.
    seconds : float
        How long it took.
    samples : list of tuple
        (seconds, objects, bytes) since the beginning, for a chart.
    """

    plan: Plan
    moved: int = 0
    moved_size: int = 0
    at_host: int = 0
    left: int = 0
    failures: Failures = field(default_factory=Failures)
    verified: int = 0
    verified_size: int = 0
    verified_how: str | None = None
    deleted: int = 0
    manifest: Path | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when all of it is there, 5 when something failed."""
        return 5 if self.failures.count else 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plan = self.plan
        return {
            "format": "sovstore migration report 1",
            "mode": plan.mode,
            "source": plan.source,
            "destination": plan.dest,
            "began": self.began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "objects": plan.objects,
            "bytes": plan.size,
            "moved": {"objects": self.moved, "bytes": self.moved_size, "at_host": self.at_host},
            "moved_before": {"objects": plan.done, "bytes": plan.done_size},
            "left": self.left,
            "deleted": self.deleted,
            "verified": {"objects": self.verified, "bytes": self.verified_size, "how": self.verified_how},
            "failed": {
                "objects": self.failures.count,
                "first": [
                    {"path": f.path, "type": f.type, "message": f.message, "hint": f.hint} for f in self.failures.first
                ],
            },
            "foreign": {"objects": plan.foreign_count, "first": plan.foreign},
            "manifest": str(self.manifest) if self.manifest else None,
            "journal": str(plan.journal),
            "samples": [[round(s, 2), objects, size] for s, objects, size in self.samples],
        }


class Chart:
    """Passes everything on to a watcher, and keeps a point of the chart each second, fewer as time goes by."""

    _MOST = 600

    def __init__(self, inner: Watcher) -> None:
        self._inner = inner
        self._samples: list[tuple[float, int, int]] = []
        self._start, self._next, self._step = 0.0, 0.0, 1.0
        self._objects = self._bytes = 0
        self._moving = False

    def start(self, samples: list[tuple[float, int, int]]) -> None:
        """Begin a chart."""
        self._samples, self._start, self._next = samples, time.monotonic(), 0.0
        self._sample()

    def stop(self) -> None:
        """End it."""
        self._next = 0.0
        self._sample()

    def _sample(self) -> None:
        passed = time.monotonic() - self._start
        if passed < self._next:
            return
        self._samples.append((passed, self._objects, self._bytes))
        if len(self._samples) > self._MOST:
            del self._samples[1::2]
            self._step *= 2
        self._next = passed + self._step

    def phase(self, name: str, objects: int | None = None, size: int | None = None) -> None:
        """Note a phase."""
        self._moving = name == "moving"
        self._inner.phase(name, objects, size)

    def advance(self, size: int) -> None:
        """Note bytes."""
        if self._moving:
            self._bytes += size
            self._sample()
        self._inner.advance(size)

    def finished(self, path: str, what: str) -> None:
        """Note an object."""
        if self._moving:
            self._objects += 1
            self._sample()
        self._inner.finished(path, what)

    def failed(self, failure: Failure) -> None:
        """Note a failure."""
        self._inner.failed(failure)

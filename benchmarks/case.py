"""What a benchmark is: contenders that do the same work, in turn, each time in a fresh process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20


class Skipped(Exception):  # noqa: N818  # nothing went wrong
    """A contender does not take part at the sizes asked for; the text says why."""


@dataclass(frozen=True)
class Measured:
    """What one contender needed in one round.

    Parameters
    ----------
    wall_s, cpu_s : float
        Seconds of the measured part; CPU of this process and of those it waited for, all threads.
    amount : float
        How much of the case's unit was done: MiB, operations.
    extra : mapping
        Other figures by name, with the unit as the end of the name: ``requests``, ``fetched_bytes``, ``peak_bytes``.
    system_s : float
        The part of `cpu_s` that the kernel took: for copies, page faults, requests.
    """

    wall_s: float
    cpu_s: float
    amount: float
    extra: Mapping[str, float] = field(default_factory=dict)
    system_s: float = 0


def measured(work: Callable[[], object], amount: float, extra: Mapping[str, float] | None = None) -> Measured:
    """Run `work` once and return what it needed."""
    before, start = cpu(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, cpu()
    return Measured(wall, after[0] - before[0], amount, extra or {}, after[1] - before[1])


def cpu() -> tuple[float, float]:
    """Return the CPU seconds of this process and of those it waited for, and how many of them the kernel took."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used), sum(one.ru_stime for one in used)


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Parameters
    ----------
    name : str
        As tables and plots show it.
    function : str
        ``package.module:function``, called in a fresh process with the facts; returns a `Measured`. What follows a
        second colon, and a third, is given to it as further arguments, text.
    peer : str or None
        Name of the folder of ``benchmarks/peers`` that says what it needs, in an environment of its own; None for the
        project's own.
    """

    name: str
    function: str
    peer: str | None = None


@dataclass(frozen=True)
class OfFirst:
    """A limit that the same figure of the case's first contender sets: so many times that, and so much more."""

    times: float = 1
    more: float = 0


@dataclass(frozen=True)
class Case:
    """One kind of work, and who does it.

    Parameters
    ----------
    name : str
        As the command line takes it.
    title : str
        One line: what is done, how much of it; a size that can be asked for as ``name (default)``, such as
        ``stream_mib (1,024) MiB`` or ``rows (10 million)``.
    unit : str
        Of `Measured.amount`: ``MiB``, ``reads``, ``objects``.
    contenders : sequence of Contender
        In the order of the tables; what the ratios are against comes first.
    prepare : callable
        Called once before the rounds, in the runner's process, with the sizes asked for; a context manager that
        starts what the contenders need and yields the facts, JSON, that each of them is given.
    goals : mapping
        What the issue or the docs promise of a contender: least ratio of its speed to the first one's.
    speeds : mapping
        Likewise its least speed, in units per second.
    limits : mapping
        Likewise the most that figures of its `Measured.extra` may be, by their names; numbers, or by the first one's.
    plotted : str
        The figure of `Measured.extra` that the case is about, for its plot; the speed when empty.
    """

    name: str
    title: str
    unit: str
    contenders: Sequence[Contender]
    prepare: Callable[[Mapping[str, int]], AbstractContextManager[Mapping[str, Any]]]
    goals: Mapping[str, float] = field(default_factory=dict)
    speeds: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float | OfFirst]] = field(default_factory=dict)
    plotted: str = ""

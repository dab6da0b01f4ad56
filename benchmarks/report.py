"""What was measured, as figures: medians, ratios pair by pair, Markdown and JSON."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.case import MIB, Case, Measured, OfFirst
from benchmarks.runner import Results

_SMALLER = ("", "m", "µ", "n")
#: Of a title.
_SIZE = re.compile(r"(\w+) \(([\d,]+(?: million)?)\)")


@dataclass(frozen=True)
class Spread:
    """A median, and the least and the most of what it is of."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{ratio(self.median)} ({ratio(self.least)} to {ratio(self.most)})"


@dataclass(frozen=True)
class Figures:
    """What one contender did, over all rounds.

    Parameters
    ----------
    name : str
        Of the contender.
    trouble : str
        Why it has no figures, or not of all rounds; empty when it has.
    rounds : int
        How many the figures are of; the others are None when it is 0.
    speed : Spread
        Units per second.
    cpu_s : float
        CPU seconds per unit, median.
    in_kernel : float
        The share of them that the kernel took, median; None when they are none.
    times, cpu_times : Spread
        Its speed through that of the first contender of the same round, by the clock and by CPU seconds: more is
        better in both. None without one.
    extra : dict
        `Measured.extra`.
    goals : dict
        Each goal, in words, and whether it was met.
    """

    name: str
    trouble: str
    rounds: int
    speed: Spread | None
    cpu_s: float | None
    in_kernel: float | None
    times: Spread | None
    cpu_times: Spread | None
    extra: Mapping[str, Spread]
    goals: Mapping[str, bool]


def figures(results: Results) -> list[Figures]:
    """Return the figures of each contender of a case, in its order."""
    case = results.case
    first = results.rounds.get(case.contenders[0].name, [])
    return [
        _figures(case, name, results.troubles.get(name, results.trouble), results.rounds.get(name, []), first)
        for name in (contender.name for contender in case.contenders)
    ]


def _figures(case: Case, name: str, trouble: str, taken: Sequence[Measured], first: Sequence[Measured]) -> Figures:
    if not taken:
        return Figures(name, trouble or "not measured", 0, None, None, None, None, None, {}, {})
    speed = Spread.of([one.amount / one.wall_s for one in taken])
    times, cpu_times = ratios(taken, first, _wall), ratios(taken, first, _cpu)
    extra = {key: Spread.of([one.extra[key] for one in taken]) for key in taken[0].extra}
    goals = _goals(case, name, speed, times) | _limits(case, name, extra, first)
    cpu_s = statistics.median(_cpu(one) for one in taken)
    shares = [one.system_s / one.cpu_s for one in taken if one.cpu_s]
    in_kernel = statistics.median(shares) if shares else None
    return Figures(name, trouble, len(taken), speed, cpu_s, in_kernel, times, cpu_times, extra, goals)


def _wall(one: Measured) -> float:
    return one.wall_s / one.amount


def _cpu(one: Measured) -> float:
    return one.cpu_s / one.amount


def ratios(one: Sequence[Measured], first: Sequence[Measured], cost: Callable[[Measured], float]) -> Spread | None:
    """Return how many times cheaper `one` is than `first`, pair by pair of the rounds that both have."""
    # A contender that fails, or Ctrl-C, leaves fewer rounds; they are the first ones.
    pairs = [(cost(a), cost(b)) for a, b in zip(one, first, strict=False)]
    found = [b / a for a, b in pairs if a and b]
    return Spread.of(found) if found else None


def _goals(case: Case, name: str, speed: Spread, times: Spread | None) -> dict[str, bool]:
    found = {}
    if name in case.goals and times is not None:
        found[f">= {case.goals[name]:.2f} x"] = times.median >= case.goals[name]
    if name in case.speeds:
        found[f">= {case.speeds[name]:,.0f} {case.unit}/s"] = speed.median >= case.speeds[name]
    return found


def _limits(case: Case, name: str, extra: Mapping[str, Spread], first: Sequence[Measured]) -> dict[str, bool]:
    found = {}
    for key, limit in case.limits.get(name, {}).items():
        if key not in extra:
            continue
        if not isinstance(limit, OfFirst):
            found[f"{named(key)} <= {shown(key, limit)}"] = extra[key].median <= limit
        elif beside := [one.extra[key] for one in first if key in one.extra]:
            most = limit.times * statistics.median(beside) + limit.more
            found[f"{named(key)} <= {_words(key, limit, case.contenders[0].name)}"] = extra[key].median <= most
    return found


def _words(key: str, limit: OfFirst, first: str) -> str:
    times = "" if limit.times == 1 else f"{limit.times:g} x "
    return f"{times}that of {first}{f' + {shown(key, limit.more)}' if limit.more else ''}"


# For people


def markdown(results: Results) -> str:
    """Return the table of a case."""
    case = results.case
    per, unit = (1024, "GiB") if case.unit == "MiB" else (1, case.unit.removesuffix("s"))
    titles = ["contender", f"{case.unit}/s", f"CPU s per {unit}", "of it in the kernel"]
    titles += ["speed, times the first", "by CPU s", "also", "goal"]
    lines = [titles, ["---"] * len(titles)]
    for row in figures(results):
        if row.speed is None or row.cpu_s is None:
            lines.append([row.name, *["" for _ in titles[2:]], _one_line(row.trouble)])
            continue
        also = [f"{named(key)}: {shown(key, value.median)}" for key, value in row.extra.items()]
        goals = [f"{goal}: {'met' if met else 'not met'}" for goal, met in row.goals.items()]
        goals += [f"{_one_line(row.trouble)} after {row.rounds} rounds"] if row.trouble else []
        speeds = [count(row.speed.median), seconds(row.cpu_s * per)]
        speeds.append("" if row.in_kernel is None else f"{row.in_kernel:.0%}")
        times = [str(times) if times else "" for times in (row.times, row.cpu_times)]
        lines.append([row.name, *speeds, *times, "; ".join(also), "; ".join(goals)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {case.name}\n\n{title(results)}.\n\n{table}\n"


def title(results: Results) -> str:
    """Return the title of a case, with the sizes that were asked for in place of their names."""
    sizes = results.sizes
    text = _SIZE.sub(lambda found: f"{sizes[found[1]]:,}" if found[1] in sizes else found[2], results.case.title)
    return text[:1].upper() + text[1:]


def sizes_of(case: Case) -> dict[str, str]:
    """Return the sizes that can be asked for, by name, and what each is by default."""
    return dict(_SIZE.findall(case.title))


def preface(report: Mapping[str, Any]) -> str:
    """Return what to know before the tables: what was measured on, how, and how quiet it was."""
    machine, noise = report["machine"], report["noise"]
    flags = ", ".join(flag if has else f"no {flag}" for flag, has in machine["flags"].items())
    spread = ""
    if noise["spread"] is not None:
        spread = (
            f"; in between one thread of AES-256-GCM was up to {noise['spread']:.0%} apart, and two were "
            f"{Spread.of(noise['two_threads'])} times as fast as one"
        )
    how = f"Rounds that count: {report['rounds']}{', cut short' if report['interrupted'] else ''}{spread}"
    goals = " Goals are of the sizes that a case has by default." if report["sizes"] else ""
    return (
        f"{report['date']}: {machine['processor']}, {machine['usable_cores']} cores ({flags}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, Python {machine['python']}.\n\n"
        f"{how}. Each contender ran once in a round, in a fresh process. Figures are medians; ratios are of the same "
        "round, median (least to most); above 1 is faster, or cheaper."
        f"{goals}\n"
    )


def as_json(results: Results) -> dict[str, Any]:
    """Return all rounds of a case, and its figures."""
    case = results.case
    contenders = [
        {
            "name": contender.name,
            "function": contender.function,
            "peer": contender.peer,
            "warm_up": asdict(results.warm_up[contender.name]) if contender.name in results.warm_up else None,
            "rounds": [asdict(one) for one in results.rounds.get(contender.name, [])],
            "figures": asdict(row),
        }
        for contender, row in zip(case.contenders, figures(results), strict=True)
    ]
    limits = {
        name: {key: asdict(limit) if isinstance(limit, OfFirst) else limit for key, limit in of_one.items()}
        for name, of_one in case.limits.items()
    }
    goals = {"goals": dict(case.goals), "speeds": dict(case.speeds), "limits": limits}
    about = {"name": case.name, "title": title(results), "unit": case.unit, "trouble": results.trouble, **goals}
    return {**about, "contenders": contenders}


def seconds(value: float) -> str:
    """Return seconds with three digits, in s, ms, µs or ns."""
    for prefix in _SMALLER:
        if value >= 0.995 or prefix == _SMALLER[-1] or value == 0:
            return f"{value:.3g} {prefix}s"
        value *= 1000
    raise AssertionError("the last prefix takes all")


def named(key: str) -> str:
    """Return what a figure of `Measured.extra` is called, without its unit."""
    return key.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def shown(key: str, value: float) -> str:
    """Return a figure of `Measured.extra` with its unit."""
    if key.endswith("_bytes"):
        return f"{value / MIB:,.1f} MiB" if value >= MIB else f"{value / 1024:,.1f} KiB"
    return seconds(value) if key.endswith("_s") else count(value)


def count(value: float) -> str:
    """Return a number with at least three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float) -> str:
    """Return a ratio with two decimals, or two digits."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]

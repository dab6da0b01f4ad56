"""Plots of what was measured: one bar for each contender, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.case import MIB, Case
from benchmarks.report import Figures, Spread, count, figures, named, ratio, shown, title
from benchmarks.runner import Results

_OURS, _OTHERS, _GOAL = "#1b6ca8", "#9aa5b1", "#c0392b"
#: Of a letter, in widths of a plot.
_LETTER = 0.011
#: A contender, the length of its bar, and the words behind it.
_Bar = tuple[str, Spread, str]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the plot of a case into a folder and return the files; none when there is nothing to show."""
    case = results.case
    bars = [bar for row in figures(results) for bar in _bars(row, case)]
    if not bars:
        return []
    figure = Figure(figsize=(9, 1.5 + 0.42 * len(bars)), layout="constrained")
    figure.suptitle(title(results), fontsize=11, wrap=True)
    axes = figure.subplots()
    goals = {name: goal for name, goal in _goals(case).items() if any(name == bar for bar, _, _ in bars)}
    _draw(axes, bars)
    _mark_goals(axes, bars, goals)
    # Room for the words behind the longest bar.
    axes.set_xlim(0, axes.dataLim.x1 * 1.45)
    _say(axes, bars, goals)
    _label(axes, case)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{case.name}.{suffix}" for suffix in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=144)
    return files


def _bars(row: Figures, case: Case) -> list[_Bar]:
    if case.plotted:
        found, (scale, _) = row.extra.get(case.plotted), _scale(case)
        if found is None:
            return []
        length = Spread(found.median * scale, found.least * scale, found.most * scale)
        return [(row.name, length, shown(case.plotted, found.median))]
    if row.times is None or row.speed is None:
        return []
    return [(row.name, row.times, f"{ratio(row.times.median)} x, {count(row.speed.median)} {case.unit}/s")]


def _draw(axes: Axes, bars: list[_Bar]) -> None:
    rows = range(len(bars))
    medians = [spread.median for _, spread, _ in bars]
    below = [spread.median - spread.least for _, spread, _ in bars]
    above = [spread.most - spread.median for _, spread, _ in bars]
    ours = [name.startswith("sovstore") for name, _, _ in bars]
    # A case in which nobody is called so has no others.
    colours = [_OURS if own or not any(ours) else _OTHERS for own in ours]
    axes.barh(rows, medians, color=colours, height=0.66)
    axes.errorbar(medians, rows, xerr=[below, above], fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
    axes.set_yticks(rows, [name for name, _, _ in bars])
    # The first one at the top.
    axes.set_ylim(len(bars) - 0.4, -0.6)


def _say(axes: Axes, bars: list[_Bar], goals: dict[str, float]) -> None:
    """Write the words of each bar beyond its whisker, or beyond its goal where that would run through them."""
    for row, (name, spread, words) in enumerate(bars):
        goal, end = goals.get(name, 0), spread.most + axes.get_xlim()[1] * _LETTER * (len(words) + 2)
        at = goal if spread.most < goal < end else spread.most
        axes.annotate(words, (at, row), (7, 0), textcoords="offset points", va="center")


def _label(axes: Axes, case: Case) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    what = (
        f"{named(case.plotted)}{_scale(case)[1]}" if case.plotted else f"speed, times that of {case.contenders[0].name}"
    )
    axes.set_xlabel(f"{what}: median, least to most{'; red: goal' if _goals(case) else ''}")


def _mark_goals(axes: Axes, bars: list[_Bar], goals: dict[str, float]) -> None:
    for row, (name, _, _) in enumerate(bars):
        if name in goals:
            axes.plot([goals[name]] * 2, [row - 0.42, row + 0.42], color=_GOAL, linewidth=2, zorder=5)


def _goals(case: Case) -> dict[str, float]:
    if not case.plotted:
        return dict(case.goals)
    scale, _ = _scale(case)
    limits = {name: of_one.get(case.plotted) for name, of_one in case.limits.items()}
    # One beside the first contender differs from round to round: tables say whether it was met.
    return {name: limit * scale for name, limit in limits.items() if isinstance(limit, float | int)}


def _scale(case: Case) -> tuple[float, str]:
    """Return what the plotted figure is multiplied by, and what it is then in."""
    if case.plotted.endswith("_bytes"):
        return 1 / MIB, ", MiB"
    return (1000, ", ms") if case.plotted.endswith("_s") else (1, "")

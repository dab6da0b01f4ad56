"""Plots of what was measured: one bar for each contender, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report import Figures, figures
from benchmarks.runner import Results

_OURS, _OTHERS = "#1b6ca8", "#9aa5b1"


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the plot of a case into a folder and return the files; none when there is nothing to show."""
    case = results.case
    rows = [row for row in figures(results) if row.speed is not None]
    if not rows:
        return []
    spreads = [row.times or row.speed for row in rows]
    medians = [spread.median for spread in spreads if spread]
    errors = [
        [spread.median - spread.least for spread in spreads if spread],
        [spread.most - spread.median for spread in spreads if spread],
    ]
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = [_OURS if row.name.startswith("sovstore") else _OTHERS for row in rows]
    bars = axes.barh([row.name for row in rows], medians, color=colours, height=0.66)
    tops = [spread.most for spread in spreads if spread]
    axes.errorbar(medians, range(len(rows)), xerr=errors, fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
    for bar, top, row in zip(bars, tops, rows, strict=True):
        # Beyond the whisker, so that neither hides the other.
        middle = bar.get_y() + bar.get_height() / 2
        axes.annotate(_label(row, case.unit), (top, middle), (6, 0), textcoords="offset points", va="center")
    for name, goal in case.goals.items():
        axes.plot([goal] * 2, [y + at for y in _rows_of(rows, name) for at in (-0.42, 0.42)], color="#c0392b", lw=2)
    axes.invert_yaxis()
    # Room for the words behind the longest bar.
    axes.set_xlim(0, max(tops) * 1.45)
    axes.spines[["top", "right"]].set_visible(False)
    first = case.contenders[0].name
    related = all(row.times for row in rows)
    goals = "; red: goal" if case.goals else ""
    axes.set_xlabel(f"speed, times {first}: median, least to most{goals}" if related else f"{case.unit}/s")
    figure.suptitle(case.title, fontsize=11, wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{case.name}.{suffix}" for suffix in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=144)
    return files


def _rows_of(rows: list[Figures], name: str) -> list[int]:
    return [number for number, row in enumerate(rows) if row.name == name]


def _label(row: Figures, unit: str) -> str:
    speed = row.speed.median if row.speed else 0
    shown = f"{speed:,.0f} {unit}/s" if speed >= 100 else f"{speed:.3g} {unit}/s"
    return f"{row.times.median:.2g} x, {shown}" if row.times else shown

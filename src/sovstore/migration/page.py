"""The report of a migration as one page of HTML: counts, a chart of the throughput, and what failed."""

from __future__ import annotations

from html import escape
from string import Template

from sovstore.migration.report import Report

_WIDTH, _HEIGHT, _MARGIN = 720, 220, 56
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top; }
th { font-weight: 600; } td.bad { color: #a40000; } svg { max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
"""
_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>sovstore: migration report</title><style>$style</style></head><body>
<h1>Migration report</h1>
<table>$facts</table>
<h2>Throughput</h2>
$chart
<h2>Not moved, or not the same</h2>
$failures
</body></html>
"""
)


def page(report: Report) -> str:
    """Return a report as HTML that loads nothing and runs no script."""
    return _PAGE.substitute(style=_STYLE, facts=_facts(report), chart=_chart(report), failures=_failures(report))


def _facts(report: Report) -> str:
    plan, failed = report.plan, report.failures.count
    rows = [
        ("Mode", f"{plan.mode}: {plan.what}", ""),
        ("From", plan.source, ""),
        ("To", plan.dest, ""),
        ("Began", f"{report.began:%Y-%m-%d %H:%M:%S} UTC, took {report.seconds:,.1f} s", ""),
        ("At the source", _count(plan.objects, plan.size), ""),
        ("Moved", _count(report.moved, report.moved_size), ""),
        ("Copied at the host", f"{report.at_host:,} of these", ""),
        ("Moved before", _count(plan.done, plan.done_size), ""),
        ("Left as new", f"{report.left:,}", ""),
        ("Deleted there", f"{report.deleted:,}", ""),
        ("Failed", f"{failed:,}", "bad" if failed else ""),
        ("Left out", f"{plan.foreign_count:,} that are not of the store", "bad" if plan.foreign_count else ""),
        ("Verified", _verified(report), ""),
        ("Manifest", str(report.manifest or "none"), ""),
    ]
    return "\n".join(f'<tr><th>{name}</th><td class="{kind}">{escape(text)}</td></tr>' for name, text, kind in rows)


def _verified(report: Report) -> str:
    if report.verified_how is None:
        return "nothing: it was not asked for"
    return f"{_count(report.verified, report.verified_size)}: {report.verified_how}"


def _count(objects: int, size: int) -> str:
    return f"{objects:,} objects, {size:,} bytes"


def _chart(report: Report) -> str:
    """Return the megabytes per second between each two samples, as SVG."""
    rates = [
        (later, (size - before) / 1e6 / (later - earlier))
        for (earlier, _, before), (later, _, size) in zip(report.samples, report.samples[1:], strict=False)
        if later > earlier
    ]
    if not rates:
        return "<p>Too short to tell.</p>"
    end, top = rates[-1][0], max(rate for _, rate in rates) or 1.0
    inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def place(seconds: float, rate: float) -> str:
        return f"{_MARGIN + inner_width * seconds / end:.1f},{_HEIGHT - _MARGIN - inner_height * rate / top:.1f}"

    points = " ".join(place(seconds, rate) for seconds, rate in [(0.0, rates[0][1]), *rates])
    axis = "\n".join(
        f'<line x1="{_MARGIN}" y1="{y:.0f}" x2="{_WIDTH - _MARGIN}" y2="{y:.0f}" stroke="#ddd"/>'
        f'<text x="{_MARGIN - 6}" y="{y + 4:.0f}" text-anchor="end">{top * part:,.3g}</text>'
        for part in (0, 0.5, 1)
        for y in (_HEIGHT - _MARGIN - inner_height * part,)
    )
    label = f"{sum(n for _, n, _ in report.samples[-1:]):,} objects in {end:,.1f} s"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12" aria-label="throughput">'
        f'{axis}<polyline fill="none" stroke="#1f5fa8" stroke-width="2" points="{points}"/>'
        f'<text x="{_MARGIN}" y="{_MARGIN - 16}">MB/s</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - _MARGIN + 18}">0 s</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="end">{end:,.0f} s</text>'
        f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">{label}</text></svg>'
    )


def _failures(report: Report) -> str:
    if not report.failures.count:
        return "<p>None.</p>"
    rows = "\n".join(
        f"<tr><td><code>{_shown(f.path)}</code></td><td>{escape(f.type)}</td><td>{_shown(f.message)}</td></tr>"
        for f in report.failures.first
    )
    rest = report.failures.count - len(report.failures.first)
    more = f"<p>And {rest:,} more.</p>" if rest else ""
    return f"<table><tr><th>Path</th><th>Error</th><th>Reason</th></tr>\n{rows}</table>{more}"


def _shown(text: str) -> str:
    return escape("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))

"""Measures sovstore beside what else does the same work, side by side in one run.

Each case is some work and its contenders. In every round each contender does it once, in a fresh process, and they
take turns at being first: a machine that slows down slows all of them. The first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.bare import CEILING, TWO_CEILINGS
from benchmarks.case import MIB, Case, Measured
from benchmarks.machine import machine, noise, versions
from benchmarks.runner import Results, Run, measure, run_fresh

#: Each has `CASES`, and may have `SMALL`: the sizes of --small, by name.
MODULES = tuple(
    f"benchmarks.{name}" for name in ("local", "in_memory", "remote", "tables", "scaling", "opening", "migration")
)
_CEILING_BYTES = 256 * MIB
_EXAMPLES = """\
examples:
  python -m benchmarks --list
  python -m benchmarks stream-write stream-read --json build/bench.json --plots build/plots
  python -m benchmarks stream-write --size stream_mib=256 --rounds 7 --only AES-256-GCM sovstore
  python -m benchmarks --small                  every case, on little data: shows that all of it runs

The table says of each contender its speed, its CPU seconds, and both as ratios to the first contender's of the same
round: above 1 is faster, or cheaper. Peers have environments of their own, which `make peers` makes.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; print Markdown."""
    modules = [importlib.import_module(name) for name in MODULES if importlib.util.find_spec(name)]
    cases = {case.name: case for module in modules for case in module.CASES}
    small = {name: value for module in modules for name, value in getattr(module, "SMALL", {}).items()}
    parser = _parser(small)
    args = parser.parse_args(arguments)
    _refuse(parser, "case", args.cases, cases)
    if args.list:
        _list(cases.values())
        return 0
    asked = [cases[name] for name in args.cases or cases]
    _refuse(parser, "contender", args.only or [], [one.name for case in asked for one in case.contenders])
    _refuse(parser, "size", dict(args.size), [name for case in asked for name in report.sizes_of(case)])
    asked = [_only(case, args.only) for case in asked]
    sizes = {**(small if args.small else {}), **dict(args.size)}
    run = functools.partial(run_fresh, timeout_s=args.timeout)
    return _measure([case for case in asked if case.contenders], run, sizes, args)


def _parser(small: Mapping[str, int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    little = ", ".join(f"{name}={value}" for name, value in small.items())
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure; everything by default")
    parser.add_argument("--list", action="store_true", help="say which cases and contenders there are, and end")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that count; 5 by default")
    parser.add_argument("--no-warm-up", action="store_true", help="let the first round count")
    parser.add_argument("--only", nargs="+", metavar="CONTENDER", help="leave out all others, but for the first one")
    parser.add_argument(
        "--size", type=_size, action="append", default=[], metavar="NAME=VALUE", help="how much; --list names the sizes"
    )
    parser.add_argument("--small", action="store_true", help=f"sizes for a trial: {little}")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds until a contender is killed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds, the machine and the versions")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write a PNG and an SVG of each case (matplotlib)")
    return parser


def _refuse(parser: argparse.ArgumentParser, what: str, asked: Iterable[str], there: Iterable[str]) -> None:
    """End when something was asked for that is not there: what was meant would be left out in silence."""
    known = list(dict.fromkeys(there))
    if unknown := [name for name in asked if name not in known]:
        parser.error(f"no such {what}: {', '.join(unknown)}; there are: {'; '.join(known)}")


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    return name, int(value)


def _only(case: Case, names: Sequence[str] | None) -> Case:
    """Return the case with some of its contenders: none, or also the one that the ratios are against."""
    kept = [contender for contender in case.contenders if names is None or contender.name in names]
    first = [contender for contender in case.contenders[:1] if kept and contender not in kept]
    return replace(case, contenders=[*first, *kept])


def _list(cases: Iterable[Case]) -> None:
    for case in cases:
        names = "; ".join(contender.name for contender in case.contenders)
        print(f"{case.name}\n  {case.title}\n  {names}")


def _measure(cases: Sequence[Case], run: Run, sizes: Mapping[str, int], args: argparse.Namespace) -> int:
    taken, speeds, interrupted = [Results(case, sizes) for case in cases], [], False
    try:
        for results in taken:
            speeds += _ceiling(run)
            measure(results, run, rounds=args.rounds, warm_up=not args.no_warm_up, say=_say)
        speeds += _ceiling(run)
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted: what follows is what was measured so far")
    found: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "rounds": args.rounds,
        "warm_up": not args.no_warm_up,
        "sizes": dict(sizes),
        "interrupted": interrupted,
        "machine": machine(),
        "versions": versions(),
        "noise": noise(speeds),
        "cases": [report.as_json(results) for results in taken],
    }
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join([report.preface(found), *(report.markdown(results) for results in taken)]))
    if args.plots is not None:
        _draw(taken, args.plots)
    return 130 if interrupted else 0


def _ceiling(run: Run) -> list[tuple[float, float]]:
    """Return the speeds of AES-256-GCM now, in MiB/s, of one thread and of two: no contender is to blame for them."""
    found = [run(contender, {"size": _CEILING_BYTES}) for contender in (CEILING, TWO_CEILINGS)]
    speeds = [one.amount / one.wall_s for one in found if isinstance(one, Measured)]
    return [(speeds[0], speeds[1])] if len(speeds) == 2 else []


def _draw(taken: Sequence[Results], folder: Path) -> None:
    try:
        from benchmarks.plots import draw
    except ImportError as exc:
        _say(f"no plots: {exc}")
        return
    for results in taken:
        for file in draw(results, folder):
            _say(str(file))


def _say(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # As Ctrl-C does: what was measured is written, and no server, process or folder stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

"""``python -m tests.fuzz [TARGET …] --runs N``: run targets guided by coverage, and say what came of it."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
#: Seconds from one line of progress to the next.
_EVERY_S = 30.0
#: What libFuzzer says of its corpus: edges covered, and inputs kept.
_STATE = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)/")


@dataclass
class Outcome:
    """What came of one target.

    Parameters
    ----------
    inputs : int
        How many it had; `state` says whether all of them.
    state : str
        ``running``, ``done``, ``found``, ``failed`` or ``stopped``.
    slowest_s : float
        Seconds of processor time of the slowest input.
    growth_mib : float
        By how much the process was larger at most than before the first input.
    found : list of str
        Files with inputs that something is wrong with.
    """

    target: str
    runs: int
    inputs: int = 0
    seconds: float = 0.0
    edges: int = 0
    corpus: int = 0
    slowest_s: float = 0.0
    growth_mib: float = 0.0
    state: str = "running"
    found: tuple[str, ...] = ()


class Running:
    """A target in a process of its own."""

    def __init__(self, target: str, runs: int, folder: Path) -> None:
        self.outcome, self._folder = Outcome(target, runs), folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "progress.json").unlink(missing_ok=True)
        self._known = set(folder.glob("found/*"))
        self._log = (folder / "log").open("wb")
        command = [sys.executable, "-m", "tests.fuzz.worker", target, str(runs), str(folder)]
        # Not in our process group: Ctrl-C reaches it through us, when it is written down what it did.
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def look(self) -> Outcome:
        """Return what is known now."""
        ended = self._process.poll()
        try:
            for key, value in json.loads((self._folder / "progress.json").read_bytes()).items():
                setattr(self.outcome, key, value)
        except FileNotFoundError:
            pass
        text = (self._folder / "log").read_bytes()[-20_000:].decode(errors="replace")
        if states := _STATE.findall(text):
            self.outcome.edges, self.outcome.corpus = map(int, states[-1])
        self.outcome.found = tuple(sorted(str(file) for file in set(self._folder.glob("found/*")) - self._known))
        if ended is not None and self.outcome.state == "running":
            done = ended == 0 and self.outcome.inputs >= self.outcome.runs
            self.outcome.state = "found" if self.outcome.found else "done" if done else "failed"
            self._log.close()
        return self.outcome

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self.outcome.state = "stopped"

    def tail(self) -> str:
        """Return the end of what the process said."""
        lines = (self._folder / "log").read_bytes().decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("#", "INFO", "MS:", "0x", "stat::")))[-3000:]


def main() -> int:
    """Run what the arguments say and return the exit code."""
    arguments = _arguments()
    if arguments.input:
        return _once(arguments.targets, arguments.input)
    if arguments.bombs:
        return _bombs(arguments.targets, as_json=arguments.json)
    started: list[Running] = []
    waiting = list(arguments.targets)
    told = 0.0
    try:
        while waiting or any(run.look().state == "running" for run in started):
            running = [run for run in started if run.look().state == "running"]
            if waiting and len(running) < arguments.jobs:
                name = waiting.pop(0)
                started.append(Running(name, arguments.runs, arguments.folder / name))
                continue
            if time.monotonic() - told >= _EVERY_S:
                told = time.monotonic()
                _tell(run.outcome for run in running)
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        for run in started:
            run.look()
            run.stop()
    return _report(started, complete=not waiting, as_json=arguments.json)


def _arguments() -> argparse.Namespace:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each target (default: 1000000)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default: 2)")
    parser.add_argument("--folder", type=Path, default=_ROOT / ".fuzz", help="corpora and findings (default: .fuzz)")
    parser.add_argument("--input", type=Path, help="try this one input with one target, without atheris")
    parser.add_argument("--bombs", action="store_true", help="measure time and memory of every bomb instead")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.targets) - set(TARGETS)):
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if arguments.input and len(arguments.targets) != 1:
        parser.error("--input goes with one target")
    arguments.targets = arguments.targets or list(TARGETS)
    arguments.folder = arguments.folder.absolute()
    return arguments


def _once(names: list[str], file: Path) -> int:
    from tests.fuzz.target import MOST_BYTES, MOST_S, peak, processor_time
    from tests.fuzz.targets import TARGETS

    target, data = TARGETS[names[0]], file.read_bytes()
    refused = target(data)
    seconds, size = processor_time(target, data), peak(target, data)
    print(f"{target.name}: {'accepted' if refused is None else f'{type(refused).__name__}: {refused}'}")
    print(f"{len(data)} bytes take {seconds:.3f} s of processor time and {size / 2**20:.1f} MiB")
    return 0 if seconds <= MOST_S and size <= MOST_BYTES else 1


def _bombs(names: list[str], *, as_json: bool) -> int:
    from tests.fuzz.target import MOST_BYTES, MOST_S, peak, processor_time
    from tests.fuzz.targets import TARGETS

    measured, over = [], []
    for name in names:
        target = TARGETS[name]
        costs = [(processor_time(target, data), peak(target, data), what) for what, data in target.bombs()]
        over += [f"{name}: {what}" for seconds, size, what in costs if seconds > MOST_S or size > MOST_BYTES]
        slowest, largest = max(costs), max(costs, key=lambda one: one[1])
        measured.append(
            {
                "target": name,
                "bombs": len(costs),
                "slowest_s": round(slowest[0], 3),
                "slowest": slowest[2],
                "largest_mib": round(largest[1] / 2**20, 1),
                "largest": largest[2],
            }
        )
        if not as_json:
            print(
                "{target:<9} {bombs:>4} bombs: {slowest_s} s ({slowest}), {largest_mib} MiB ({largest})".format(
                    **measured[-1]
                )
            )
    if as_json:
        print(json.dumps(measured, indent=2))
    for what in over:
        print(f"over the limit: {what}", file=sys.stderr)
    return 1 if over else 0


def _tell(outcomes: Iterable[Outcome]) -> None:
    for one in outcomes:
        rate = one.inputs / one.seconds if one.seconds else 0
        line = f"{one.target}: {one.inputs:,} of {one.runs:,} inputs, {rate:,.0f}/s"
        print(f"{line}, {one.edges} edges, corpus of {one.corpus}", file=sys.stderr, flush=True)


def _report(started: list[Running], *, complete: bool, as_json: bool) -> int:
    outcomes = [run.outcome for run in started]
    if as_json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        row = "{:<9} {:>9} {:>8} {:>6} {:>6} {:>10} {:>10}  {}"
        print(row.format("target", "inputs", "seconds", "edges", "corpus", "slowest", "growth", "result"))
        for o in outcomes:
            cells = f"{o.seconds:.0f}", o.edges, o.corpus, f"{o.slowest_s:.3f} s", f"{o.growth_mib:.1f} MiB", o.state
            print(row.format(o.target, o.inputs, *cells))
    for run in started:
        if run.outcome.state in ("found", "failed"):
            print(f"\n{run.outcome.target}: {run.tail()}", file=sys.stderr)
        for file in run.outcome.found:
            print(f"try it again: python -m tests.fuzz {run.outcome.target} --input {file}", file=sys.stderr)
    if any(outcome.state in ("found", "failed") for outcome in outcomes):
        return 1
    return 0 if complete and all(outcome.state == "done" for outcome in outcomes) else 130


if __name__ == "__main__":
    sys.exit(main())

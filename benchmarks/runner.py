"""Runs the contenders of a case in turn, each time in a fresh process, and keeps what came of every round."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess  # nosec B404  # fresh processes
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Contender, Measured

ROOT = Path(__file__).resolve().parent.parent
#: Environments of the peers. Not below `benchmarks`: what is there is linted and audited as our own code.
PEERS = ROOT / "build" / "peers"
#: Settings of whoever runs this.
_FOREIGN = ("RCLONE_", "SOVSTORE_", "AWS_", "AZURE_")


@dataclass
class Results:
    """What came of one case so far.

    Parameters
    ----------
    case : Case
        What was measured.
    sizes : mapping
        What was asked for.
    warm_up, rounds : dict
        What each contender needed, by its name: in the round that does not count, and in each of the others, in order.
    troubles : dict
        Why a contender was not measured, or not in all rounds.
    trouble : str
        Why nothing was.
    """

    case: Case
    sizes: Mapping[str, int] = field(default_factory=dict)
    warm_up: dict[str, Measured] = field(default_factory=dict)
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    trouble: str = ""


#: Runs one contender with the facts; text is why it could not.
Run = Callable[[Contender, Mapping[str, Any]], Measured | str]


def measure(results: Results, run: Run, *, rounds: int, warm_up: bool, say: Callable[[str], None]) -> None:
    """Measure a case into `results`, which are good for what was measured whenever this is interrupted.

    Parameters
    ----------
    results : Results
        Of the case and its sizes, empty.
    run : callable
        Runs one contender.
    rounds : int
        How many count.
    warm_up : bool
        Whether there is one before that does not.
    say : callable
        Told what is going on.
    """
    case = results.case
    with contextlib.ExitStack() as stack:
        try:
            facts = stack.enter_context(case.prepare(results.sizes))
        # A server that does not start is the trouble of this case; the others are measured all the same.
        except Exception as exc:  # noqa: BLE001
            kind = "not installed" if isinstance(exc, ImportError) else f"failed: {type(exc).__name__}"
            results.trouble = f"{kind}: {exc}"
            return
        for number in range(0 if warm_up else 1, rounds + 1):
            for contender in _order(case, number):
                if contender.name not in results.troubles:
                    say(f"{case.name}: {f'round {number} of {rounds}' if number else 'warm-up'}: {contender.name}")
                    _keep(results, contender.name, number, run(contender, facts))


def _order(case: Case, number: int) -> list[Contender]:
    """Return who is next in round `number`: they take turns at being first."""
    return list(case.contenders if number % 2 else reversed(case.contenders))


def _keep(results: Results, name: str, number: int, found: Measured | str) -> None:
    if isinstance(found, str):
        results.troubles[name] = found
    elif number:
        results.rounds.setdefault(name, []).append(found)
    else:
        results.warm_up[name] = found


def run_fresh(contender: Contender, facts: Mapping[str, Any], *, timeout_s: float) -> Measured | str:
    """Run a contender in a fresh process and return what it needed, or why it could not.

    Parameters
    ----------
    contender : Contender
        Whom to run.
    facts : mapping
        For its function, as JSON.
    timeout_s : float
        Seconds after which it is killed.
    """
    python = Path(sys.executable) if contender.peer is None else PEERS / contender.peer / "bin" / "python"
    if not python.exists():
        return f"not installed: {contender.peer}: make peers"
    command = [*_die_with_parent(), str(python), "-m", "benchmarks.child", contender.function]
    with _started(command, _environment(own=contender.peer is None)) as child:
        try:
            out, log = child.communicate(json.dumps(facts), timeout_s)
        except subprocess.TimeoutExpired:
            return f"failed: not done within {timeout_s:g} s"
    if child.returncode != 0:
        return f"failed: exit {child.returncode}: {' '.join(log.split()[-40:])}"
    found = json.loads(out)
    if "trouble" in found:
        sys.stderr.write(log)
    return str(found["trouble"]) if "trouble" in found else Measured(**found)


@contextlib.contextmanager
def _started(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603  # nosec B603  # our own
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            # Also what it started itself, and also after Ctrl-C, which reaches only this process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def _environment(*, own: bool) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    # Compiled once, in the first round, as it is where it was installed.
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    # A peer sees nothing of sovstore.
    theirs = os.environ.get("PYTHONPATH", "") if own else ""
    return found | {"PYTHONPATH": os.pathsep.join([*filter(None, [theirs]), str(ROOT)])}


def _die_with_parent() -> list[str]:
    """Return a command prefix that ends the process when the runner is killed before it can."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []

"""Runs commands in children of a process that has everything imported, and kills them at chosen moments.

A command takes milliseconds then, and not the second that Python needs to begin; what a kill interrupts is the command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ZYGOTE = """
import functools, json, os, signal, sys, time
from datetime import timedelta
import botocore.loaders, botocore.session, typer.main
import s3fs, sovstore.check, sovstore.filesystem, sovstore.rotation, sovstore.keyset_lock as lock
from sovstore.backends import azure, generic, local, s3
from sovstore.cli import main
from sovstore.kms import keyfile

keyfile._MEMORY_KIB, keyfile._PASSES, keyfile._LANES = 8, 1, 1
lock.ABANDONED = timedelta(seconds=float(sys.argv[1]))
# What every command would build anew before it begins: the SDK's models of S3, and the tree of the commands.
_load = functools.cache(functools.partial(botocore.loaders.JSONFileLoader.load_file, botocore.loaders.JSONFileLoader()))
botocore.loaders.JSONFileLoader.load_file = lambda self, path: _load(path)
botocore.session.Session().create_client("s3", region_name="x", aws_access_key_id="x", aws_secret_access_key="x")
typer.main.get_command = functools.cache(typer.main.get_command)
main(["config", "path"])

def run(command):
    # Out of the way of what the command prints; nothing of the parent's is inherited but the imports.
    sink = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1); os.dup2(sink, 2); os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(command["environment"])
    os._exit(main(command["argv"]))

for line in sys.stdin:
    command = json.loads(line)
    began = time.monotonic()
    pids = []
    for argv in command["several"]:
        pid = os.fork()
        if pid == 0:
            run({**command, "argv": argv, "log": f"{command['log']}.{len(pids)}"})
        pids.append(pid)
    if command["kill_after_s"] is not None:
        time.sleep(command["kill_after_s"])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps({"codes": codes, "seconds": time.monotonic() - began}), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What became of commands: exit codes (-9 of a killed one), seconds, and what each printed."""

    codes: list[int]
    seconds: float
    printed: list[str]


class Zygote:
    """The process that forks; `zygote` starts it."""

    def __init__(self, child: subprocess.Popen[str], log: Path, environment: dict[str, str]) -> None:
        self._child, self._log, self._environment = child, log, environment

    def run(self, *argv: object, kill_after_s: float | None = None, environment: dict[str, str] | None = None) -> Ran:
        """Run one command; what `environment` says is set for it alone."""
        return self.run_all([argv], kill_after_s=kill_after_s, environment=environment)

    def run_all(
        self,
        several: list[tuple[object, ...]],
        *,
        kill_after_s: float | None = None,
        environment: dict[str, str] | None = None,
    ) -> Ran:
        """Run commands at the same time."""
        command: dict[str, Any] = {
            "several": [[str(word) for word in argv] for argv in several],
            "kill_after_s": kill_after_s,
            "log": str(self._log),
            "environment": {**self._environment, **(environment or {})},
        }
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline())
        logs = [self._log.with_name(f"{self._log.name}.{number}") for number in range(len(several))]
        printed = [log.read_text(errors="replace") if log.exists() else "" for log in logs]
        return Ran(answer["codes"], answer["seconds"], printed)


@contextmanager
def zygote(
    folder: Path, environment: dict[str, str] | None = None, *, abandoned_after_s: float = 300
) -> Iterator[Zygote]:
    """Start the process; what `environment` says is set in each command.

    Parameters
    ----------
    abandoned_after_s : float
        When the lock of a killed client counts for nothing, on hosts that keep no condition.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _ZYGOTE, str(abandoned_after_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        text=True,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        yield Zygote(child, folder / "command.log", environment or {})
        assert child.stdin is not None
        child.stdin.close()

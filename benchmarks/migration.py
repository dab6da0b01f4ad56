"""`sovstore migrate` beside `rclone copy` into an rclone crypt remote: from plaintext to ciphertext on one S3 server.

Run ``python -m benchmarks.migration``. Each round moves the same objects once by each program, each in a fresh process
and into a bucket of its own, in turn; a ratio is the median of the rounds' ratios. CPU seconds are of the client alone:
the server, which shares the machine, is not in them, but is in the wall time. Start-up is in both, and with sovstore
the opening of the store too, for which a passphrase is stretched.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess  # nosec B404  # the two programs that are measured
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec

from tests.servers import ceph
from tests.stores import make_store

MIB = 2**20
_ORDER = random.Random(1)  # noqa: S311  # nosec B311  # no secret


class MissingProgramError(Exception):
    """rclone is not installed."""


def program() -> str:
    """Return the path of rclone.

    Raises
    ------
    MissingProgramError
        When it is not installed; the text says how it would be.
    """
    found = shutil.which("rclone")
    if found is None:
        raise MissingProgramError("rclone is not installed; on Debian: apt-get install rclone")
    return found


Run = tuple[float, float]
"""Wall and CPU seconds of one run."""


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run a program in a fresh process and return its wall and CPU seconds.

    Raises
    ------
    RuntimeError
        When it fails; the text is what it printed.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # noqa: S603  # nosec B603  # our own
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise RuntimeError(f"{command[0]}: {output.read().decode(errors='replace')}")
    return wall, used.ru_utime + used.ru_stime


class Programs:
    """The programs that move the objects of one bucket, each time to a new place.

    Parameters
    ----------
    server : CephServer
        Where everything lies.
    folder : Path
        For configurations and journals.
    jobs : int
        Objects under way at a time.
    """

    def __init__(self, server: ceph.CephServer, folder: Path, jobs: int) -> None:
        self._server, self._folder, self._jobs = server, folder, jobs
        self._number = 0
        self._rclone = program()

    def _place(self) -> tuple[str, Path]:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        return self._server.create_bucket(f"to-{self._number}"), folder

    def sovstore(self, source: str, transport: str | None = None) -> Run:
        """Seal a bucket by sovstore."""
        bucket, folder = self._place()
        place = {"provider": "s3", "endpoint": self._server.endpoint_url}
        fast = {"transport": transport} if transport else {}
        file = make_store(folder, **{**place, **fast, "root": f"{bucket}/store"})
        table = "\n".join(f'{name} = "{value}"' for name, value in {**place, **fast, "root": source}.items())
        file.write_text(f"{file.read_text()}\n[locations.clear]\n{table}\n")
        command = [str(Path(sys.executable).parent / "sovstore"), "--config", str(file), "--quiet", "migrate"]
        command += [
            "plain://clear/",
            "sov://cohortes/",
            "--jobs",
            str(self._jobs),
            "--journal",
            str(folder / "journal"),
        ]
        return measure(command, dict(os.environ))

    def rclone(self, source: str) -> Run:
        """Encrypt a bucket by rclone, names and all."""
        bucket, folder = self._place()
        hidden = subprocess.run(  # noqa: S603  # nosec B603  # rclone
            [self._rclone, "obscure", "of the benchmark"], check=True, capture_output=True, text=True
        ).stdout.strip()
        remotes = {
            "HOST_TYPE": "s3",
            "HOST_PROVIDER": "Ceph",
            "HOST_ACCESS_KEY_ID": self._server.access_key,
            "HOST_SECRET_ACCESS_KEY": self._server.secret_key,
            "HOST_ENDPOINT": self._server.endpoint_url,
            "SEALED_TYPE": "crypt",
            "SEALED_REMOTE": f"host:{bucket}",
            "SEALED_PASSWORD": hidden,
        }
        variables = {f"RCLONE_CONFIG_{name}": value for name, value in remotes.items()}
        command = [self._rclone, "copy", f"host:{source}", "sealed:", "--transfers", str(self._jobs), "--config"]
        # Without what is said of AWS to others: rclone stumbles over a bundle of authorities.
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return measure([*command, str(folder / "none")], {**own, **variables})


def filled(server: ceph.CephServer, bucket: str, count: int, size: int) -> str:
    """Return a new bucket with objects of random bytes."""
    host = fsspec.filesystem("s3", **server.storage_options)
    name = server.create_bucket(bucket)
    data = os.urandom(size)
    for start in range(0, count, 100):
        host.pipe({f"{name}/{n % 10}/{n:05}": data for n in range(start, min(start + 100, count))})
    return name


def compared(programs: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run each program once a round, in an order that changes, and return what each took."""
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name in _ORDER.sample(sorted(programs), len(programs)):
            runs[name].append(programs[name]())
    return runs


def ratios(runs: dict[str, list[Run]], base: str, which: int) -> dict[str, tuple[float, float, float]]:
    """Return how many times less of wall (0) or CPU (1) seconds than `base` each took: median, least, most."""
    found = {}
    for name, rows in runs.items():
        each = sorted(b[which] / r[which] for b, r in zip(runs[base], rows, strict=True))
        found[name] = (statistics.median(each), each[0], each[-1])
    return found


def table(what: str, size: int, runs: dict[str, list[Run]]) -> Iterator[str]:
    """Yield the rows of a shape, in Markdown."""
    walls, cpus = ratios(runs, "rclone", 0), ratios(runs, "rclone", 1)
    for name, rows in runs.items():
        wall, cpu = (statistics.median(row[which] for row in rows) for which in (0, 1))
        faster, saved = (f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in (walls[name], cpus[name]))
        yield f"| {what} | {name} | {size / MIB / wall:.1f} | {cpu:.2f} | {faster} | {saved} |"


@contextmanager
def _server() -> Iterator[ceph.CephServer]:
    with ceph.start() as server:
        os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        yield server


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=8, help="objects under way at a time: --jobs and --transfers")
    parser.add_argument("--large", type=int, default=6, help="objects of 64 MiB")
    parser.add_argument("--small", type=int, default=1000, help="objects of 4 KiB")
    parser.add_argument("--json", type=Path, help="write every run here, with the machine and the versions")
    args = parser.parse_args()
    try:
        rclone = subprocess.run([program(), "version"], check=True, capture_output=True, text=True)  # noqa: S603  # nosec B603  # rclone
    except MissingProgramError as exc:
        parser.exit(2, f"{exc}\n")
    about = {"rclone": rclone.stdout.splitlines()[0], "sovstore": version("sovstore"), "machine": platform.platform()}
    about |= {"cores": str(os.cpu_count()), "rounds": str(args.rounds), "jobs": str(args.jobs)}
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print("Ratios: rclone's seconds to the program's, median (least to most): above 1, it takes fewer.\n")
    print(
        "| objects | program | MiB/s | client CPU s | wall ratio | CPU ratio |\n|---|---|---|---|---|---|", flush=True
    )
    shapes = {f"{args.large} x 64 MiB": (args.large, 64 * MIB), f"{args.small:,} x 4 KiB": (args.small, 4096)}
    everything: dict[str, Any] = {}
    with _server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        programs = Programs(server, Path(folder), args.jobs)
        for number, (what, (count, size)) in enumerate(shapes.items()):
            source = filled(server, f"from-{number}", count, size)
            sides: dict[str, Callable[[], Run]] = {
                "rclone": lambda source=source: programs.rclone(source),  # type: ignore[misc]
                "sovstore": lambda source=source: programs.sovstore(source),  # type: ignore[misc]
                "sovstore, obstore": lambda source=source: programs.sovstore(source, "obstore"),  # type: ignore[misc]
            }
            everything[what] = compared(sides, args.rounds)
            print("\n".join(table(what, count * size, everything[what])), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"about": about, "runs": everything}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""`sovstore migrate` of plaintext into a store, beside `rclone copy` into an rclone crypt remote, on the same servers.

Run ``python -m benchmarks.migration``. Each round runs every case once, each in a fresh process and into a place of
its own, forwards and backwards in turn; a ratio is the median of the rounds' ratios. Wall time is of the whole
command, with its start and its listings; CPU seconds are of its process, not of the servers, which share the machine.
Neither verifies afterwards: the benchmark counts what arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess  # nosec B404  # rclone, and fresh processes of our own
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from benchmarks.place import environment
from sovstore import config
from sovstore.errors import MissingDependencyError, SovstoreError
from tests.servers import azurite, ceph
from tests.servers.facts import CEPH
from tests.stores import make_store

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_BUCKET = "bench"
#: What sovstore reaches the host with, and what a case of it is called.
_TRANSPORTS = {"sdk": "sovstore", "obstore": "sovstore, obstore"}
_RCLONE = "rclone"
#: How many objects rclone moves at a time unless told.
_RCLONE_TRANSFERS = 4
#: Settings of whoever runs this. rclone 1.60 does not start with an AWS_CA_BUNDLE.
_FOREIGN = ("RCLONE_", "SOVSTORE_", "AWS_", "AZURE_")
_PACKAGES = ("sovstore", "cryptography", "s3fs", "aiobotocore", "azure-storage-blob", "obstore")
PROVIDER = f"""
[providers.ceph]
like = "s3"
conditions = {json.dumps(sorted(CEPH.conditions))}
etag_quotes = "bare"
"""


@dataclass(frozen=True)
class Shape:
    """How many objects there are, and of how many bytes each."""

    count: int
    size: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``COUNTxSIZE`` says, such as ``4x64MiB``.

        Raises
        ------
        ValueError
            When it says nothing.
        """
        found = re.fullmatch(rf"([1-9]\d*)x([1-9]\d*)({'|'.join(_UNITS)})", text)
        if found is None:
            raise ValueError(f"{text}: not COUNTxSIZE, such as 4x64MiB; units: {', '.join(_UNITS)}")
        return cls(int(found[1]), int(found[2]) * _UNITS[found[3]])

    def __str__(self) -> str:
        unit, size = next((u, s) for u, s in reversed(_UNITS.items()) if self.size % s == 0)
        return f"{self.count:,} x {self.size // size} {unit}"


@dataclass(frozen=True)
class Host:
    """A server of the tests as both tools reach it.

    Parameters
    ----------
    name : str
        For people.
    settings : dict
        Of a place of sovstore, but for its root.
    environment : dict
        The credentials of sovstore.
    remote : dict
        The same server for rclone.
    """

    name: str
    settings: dict[str, str]
    environment: dict[str, str] = field(repr=False)
    remote: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Spent:
    """What a command took: seconds by the clock, and seconds of the CPU."""

    wall_s: float
    cpu_s: float


#: A command for a place that is given to it alone.
Case = Callable[[str], list[str]]
Results = Mapping[str, Sequence[Spent]]


# The servers


def on_ceph(server: ceph.CephServer) -> Host:
    """Return Ceph, with a bucket in it."""
    server.create_bucket(_BUCKET)
    user, secret = server.access_key, server.secret_key
    return Host(
        "Ceph, http",
        {"provider": "ceph", "endpoint": server.endpoint_url},
        {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": secret},
        {
            "type": "s3",
            "provider": "Ceph",
            "endpoint": server.endpoint_url,
            "access_key_id": user,
            "secret_access_key": secret,
        },
    )


def on_azurite(server: azurite.AzuriteServer) -> Host:
    """Return Azurite, with a container in it."""
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    server.create_container(_BUCKET)
    signed = generate_account_sas(
        server.account_name,
        server.account_key,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True),
        datetime.now(UTC) + timedelta(days=2),
    )
    # With name and key, rclone 1.60 asks an https host that is named after the account.
    remote = {"type": "azureblob", "sas_url": f"{server.blob_endpoint}?{signed}"}
    environment = {"AZURE_STORAGE_CONNECTION_STRING": server.connection_string}
    return Host("Azurite, http", {"provider": "azurite"}, environment, remote)


@contextlib.contextmanager
def _started(name: str) -> Iterator[Host]:
    server: Any = {"ceph": ceph, "azurite": azurite}[name]
    if absent := server.missing():
        raise MissingDependencyError(f"{name}: {', '.join(absent)} not installed", path=name, hint="make servers")
    with server.start() as running:
        yield (on_ceph if name == "ceph" else on_azurite)(running)


# The commands


def rclone() -> str:
    """Return the path of rclone.

    Raises
    ------
    MissingDependencyError
        When it is not installed.
    """
    found = shutil.which(_RCLONE)
    if found is None:
        hint = "apt-get install -y rclone, or as https://rclone.org/install says"
        raise MissingDependencyError("rclone: is not installed", path=_RCLONE, hint=hint)
    return found


class Bench:
    """One server with plaintext objects on it, a store for each transport, and a crypt remote.

    Parameters
    ----------
    host : Host
        The server.
    shape : Shape
        The objects.
    folder : Path
        For configurations, logs and journals.
    jobs : int
        Objects under way at a time.
    transports : sequence of str
        What sovstore reaches the host with.
    """

    def __init__(self, host: Host, shape: Shape, folder: Path, *, jobs: int, transports: Sequence[str]) -> None:
        self._rclone, self._host, self._shape, self._folder = rclone(), host, shape, folder
        ours = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        state = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
        # Compiled once, as it is where it was installed, and not by each process anew.
        ours.pop("PYTHONDONTWRITEBYTECODE", None)
        state["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        tools = {"SOVSTORE_CONFIG": str(folder / "sovstore.toml"), "RCLONE_CONFIG": str(folder / "rclone.conf")}
        self._environment = {**ours, **host.environment, **state, **tools}
        self.cases: dict[str, Case] = {}
        for transport in transports:
            self.cases[_TRANSPORTS[transport]] = self._store(transport, jobs)
        self._crypt()
        self.cases[_RCLONE] = self._copies()
        self.cases[_with_transfers(jobs)] = self._copies("--transfers", str(jobs))
        self._fill()

    def _store(self, transport: str, jobs: int) -> Case:
        """Make a store, and return the command that migrates into it."""
        file = self._folder / "sovstore.toml"
        if not file.exists():
            file.write_text(PROVIDER)
        settings = {**self._host.settings, **({} if transport == "sdk" else {"transport": transport})}
        with environment(self._host.environment):
            make_store(self._folder, transport, root=f"{_BUCKET}/sealed-{transport}", **settings)
        table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        with file.open("a") as text:
            text.write(f'\n[locations.{transport}]\nroot = "{_BUCKET}/plain"\n{table}')
        config.load(file)
        program = [sys.executable, "-c", "from sovstore.cli import main; raise SystemExit(main())", "migrate"]
        return lambda name: [*program, f"plain://{transport}/", f"sov://{transport}/{name}", "--jobs", str(jobs)]

    def _crypt(self) -> None:
        sections = {"host": self._host.remote}
        (self._folder / "rclone.conf").write_text(_sections(sections))
        # For rclone the passphrase is to be one that it has made unreadable itself; it is of no value.
        obscured = self._asked("obscure", "of the benchmark")
        sections["crypt"] = {"type": "crypt", "remote": f"host:{_BUCKET}/crypt", "password": obscured}
        (self._folder / "rclone.conf").write_text(_sections(sections))

    def _copies(self, *options: str) -> Case:
        return lambda name: [self._rclone, "copy", f"host:{_BUCKET}/plain", f"crypt:{name}", *options]

    def _fill(self) -> None:
        """Write the objects, of random bytes."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            for number in range(self._shape.count):
                file = Path(name, f"{number % 10}", f"{number:06}")
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(os.urandom(self._shape.size))
            self._asked("copy", name, f"host:{_BUCKET}/plain")

    def spent(self, case: str, name: str) -> Spent:
        """Run a case into a place called `name`, look what is there, delete it, and return what the command took."""
        spent = self._run(self.cases[case](name))
        # What a store keeps for itself stays.
        there = [f"host:{_BUCKET}", "--exclude", "plain/**", "--exclude", "**/.sovstore/**"]
        found = json.loads(self._asked("size", "--json", *there))["count"]
        if found != self._shape.count:
            raise RuntimeError(f"{case}: {found} objects of {self._shape.count} arrived")
        self._asked("delete", *there)
        return spent

    def _run(self, command: list[str]) -> Spent:
        with (self._folder / "log").open("w+b") as log:
            start = time.perf_counter()
            child = subprocess.Popen(  # noqa: S603  # nosec B603  # list of arguments, our own
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            _, status, used = os.wait4(child.pid, 0)
            wall_s = time.perf_counter() - start
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"{command[:-4]}: exit {child.returncode}\n{log.read().decode(errors='replace')}")
        return Spent(wall_s, used.ru_utime + used.ru_stime)

    def _asked(self, *arguments: str) -> str:
        command = [self._rclone, *arguments]
        done = subprocess.run(  # noqa: S603  # nosec B603  # list of arguments, our own
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"rclone {arguments[0]}: {done.stderr}")
        return done.stdout.strip()


def _sections(sections: Mapping[str, Mapping[str, str]]) -> str:
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items()) + "\n"
        for name, section in sections.items()
    )


def _with_transfers(jobs: int) -> str:
    return f"rclone --transfers {jobs}"


# The figures


def measure(bench: Bench, rounds: int) -> dict[str, list[Spent]]:
    """Return what each case took in each round."""
    results: dict[str, list[Spent]] = {case: [] for case in bench.cases}
    for number in range(rounds + 1):
        for case in results if number % 2 else reversed(results):
            spent = bench.spent(case, f"r{number}")
            # The first round warms the server up, and the files of both programs.
            if number:
                results[case].append(spent)
    return results


def ratios(one: Sequence[Spent], other: Sequence[Spent], what: str) -> tuple[float, float, float]:
    """Return median, least and most of the rounds' ratios of `what`, which is ``wall_s`` or ``cpu_s``."""
    found = [getattr(a, what) / getattr(b, what) for a, b in zip(one, other, strict=True)]
    return statistics.median(found), min(found), max(found)


def rows(results: Results, jobs: int) -> list[dict[str, Any]]:
    """Return the figures of each case; a throughput above 1 is more than that of rclone."""
    default, same = results[_RCLONE], results[_with_transfers(jobs)]
    return [
        {
            "case": case,
            "wall_s": statistics.median(spent.wall_s for spent in taken),
            "cpu_s": statistics.median(spent.cpu_s for spent in taken),
            "throughput_of_rclone": ratios(default, taken, "wall_s"),
            "throughput_of_rclone_with_as_many": ratios(same, taken, "wall_s"),
            "cpu_of_rclone_with_as_many": ratios(taken, same, "cpu_s"),
            "rounds": [[spent.wall_s, spent.cpu_s] for spent in taken],
        }
        for case, taken in results.items()
    ]


def table(found: Sequence[Mapping[str, Any]], jobs: int) -> str:
    """Return the figures as Markdown."""
    titles = ["host", "objects", "case", "wall s", "CPU s", "throughput / rclone's", f"/ with {jobs} transfers"]
    titles.append(f"CPU / rclone's, {jobs} transfers")
    lines = [titles, ["---"] * len(titles)]
    for row in found:
        times = [f"{row['wall_s']:.2f}", f"{row['cpu_s']:.2f}"]
        beside = [row[f"{what}_with_as_many"] for what in ("throughput_of_rclone", "cpu_of_rclone")]
        spread = [f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in (row["throughput_of_rclone"], *beside)]
        lines.append([row["host"], row["objects"], row["case"], *times, *spread])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Return what was measured on, and the versions of what was measured."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "rclone": _version([rclone(), "version"]),
        "ceph": _version(["ceph", "--version"]),
        "rclone_transfers": _RCLONE_TRANSFERS,
    }


def _version(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # nosec B603  # our own
    return done.stdout.partition("\n")[0].strip()


def main() -> int:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=8, help="objects under way at a time")
    parser.add_argument("--shape", type=Shape.parse, action="append", help="objects, such as 4x64MiB; may be repeated")
    parser.add_argument("--host", choices=["ceph", "azurite"], action="append", help="both by default")
    parser.add_argument("--transport", choices=list(_TRANSPORTS), action="append", help="of sovstore; all by default")
    parser.add_argument("--json", type=Path, help="file for all figures, with machine and versions")
    args = parser.parse_args()
    try:
        _measure_all(args)
    except SovstoreError as exc:
        print(f"benchmarks: error: {exc.message}\nbenchmarks: hint: {exc.hint}", file=sys.stderr)
        return 1
    return 0


def _measure_all(args: argparse.Namespace) -> None:
    about, found = machine(), []
    for name in args.host or ["ceph", "azurite"]:
        for shape in args.shape or [Shape.parse(text) for text in ("1x1B", "4x64MiB", "2000x4KiB")]:
            # A server that has only this in its memory.
            with _started(name) as host, tempfile.TemporaryDirectory() as folder:
                transports = args.transport or list(_TRANSPORTS)
                bench = Bench(host, shape, Path(folder), jobs=args.jobs, transports=transports)
                taken = rows(measure(bench, args.rounds), args.jobs)
            found += [{"host": host.name, "objects": str(shape), **row} for row in taken]
            print(f"{host.name}, {shape}: measured", file=sys.stderr, flush=True)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    print(f"{date}, {args.rounds} rounds, {about['processor']}, {about['cores']} cores shared with the servers")
    print(f"{about['rclone']}: {_RCLONE_TRANSFERS} transfers unless said; sovstore: {args.jobs} jobs\n")
    print("Ratios: median (least to most) of the rounds; a throughput above 1 is more than that of rclone.\n")
    print(table(found, args.jobs))
    if args.json is not None:
        report = {"date": date, "rounds": args.rounds, "jobs": args.jobs, "machine": about, "results": found}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

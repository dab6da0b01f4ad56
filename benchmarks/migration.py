"""`sovstore migrate` of plaintext into a store, beside `rclone copy` into an rclone crypt remote, on the same server.

Timed is the whole command, with its start and its listings. Neither verifies afterwards: what arrived is counted here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess  # nosec B404  # our own command
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.case import MIB, Case, Contender, Measured, measured
from benchmarks.peers import rclone
from benchmarks.place import STORE, Facts, Sizes
from benchmarks.remote import INSTALLED, OBJECT_BYTES, TWIN, Servers, Start, hosted, open_plain, open_sov
from tests.servers import azurite

#: Sizes of a trial.
SMALL = {"migrate_mib": 4, "migrate_objects": 20}
#: Objects under way at a time. rclone has four unless told.
_JOBS = 8
#: Of the case of large ones.
_LARGE = 4


def move(facts: Facts, store: str) -> Measured:
    """Measure `sovstore migrate`, by the transport of a store."""
    os.environ.update({**facts["environment"], "SOVSTORE_CONFIG": facts["config"]})
    program = [sys.executable, "-c", "from sovstore.cli import main; raise SystemExit(main())"]
    target = f"moved/{store}/{os.getpid()}"
    command = [*program, "migrate", f"plain://{store}/", f"sov://{store}/{target}", "--jobs", str(_JOBS)]
    done = measured(lambda: _run(command), facts["amount"])
    _take_away(open_sov(facts, store)[0], target, facts)
    return done


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # nosec B603  # our own
    if done.returncode:
        raise RuntimeError(f"migrate: exit {done.returncode}: {done.stderr}")


def copy(facts: Facts, *options: str) -> Measured:
    """Measure `rclone copy`."""
    sealed, target = f"{facts['bucket']}/crypt", str(os.getpid())
    rclone.configure(facts, f"host:{sealed}", host=facts["rclone"])
    command = ["copy", f"host:{facts['source']}", f"crypt:{target}", *options]
    done = measured(lambda: rclone.run(facts, *command), facts["amount"])
    _take_away(open_plain(facts)[0], sealed, facts)
    return done


def _take_away(fs: Any, folder: str, facts: Facts) -> None:
    """Delete what arrived, all that should have; the servers keep everything in memory."""
    found = fs.find(folder)
    if len(found) != facts["count"]:
        raise RuntimeError(f"{folder}: {len(found)} objects of {facts['count']} arrived")
    fs.rm(found)


@contextlib.contextmanager
def _prepared(start: Start, sizes: Sizes, *, is_large: bool) -> Iterator[Facts]:
    if is_large:
        count, amount = _LARGE, sizes.get("migrate_mib", 256)
        size = amount * MIB // count
    else:
        count = amount = sizes.get("migrate_objects", 2000)
        size = OBJECT_BYTES
    with start() as server, hosted(server) as facts:
        source = f"{facts['bucket']}/source"
        _describe(facts, source)
        fs, _ = open_plain(facts)
        fs.pipe({f"{source}/{number % 10}/{number:06d}": os.urandom(size) for number in range(count)})
        yield {**facts, "source": source, "count": count, "amount": amount, "rclone": _remote(server)}


def _describe(facts: Facts, source: str) -> None:
    """Let the plaintext be found by the transport of each store."""
    with Path(facts["config"]).open("a") as file:
        for name, more in ((STORE, {}), (TWIN, {"transport": "obstore"})):
            place = {**facts["place"], "root": source, **more}
            table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in place.items())
            file.write(f"\n[locations.{name}]\n{table}")


def _remote(server: Any) -> dict[str, str]:
    """Return the server for rclone."""
    if not isinstance(server, azurite.AzuriteServer):
        keys = {"access_key_id": server.access_key, "secret_access_key": server.secret_key}
        return {"type": "s3", "provider": "Ceph", "endpoint": server.endpoint_url, **keys}
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    # With name and key, rclone 1.60 asks an https host that is named after the account.
    signed = generate_account_sas(
        server.account_name,
        server.account_key,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True),
        datetime.now(UTC) + timedelta(days=2),
    )
    return {"type": "azureblob", "sas_url": f"{server.blob_endpoint}?{signed}"}


def cases(servers: Servers = INSTALLED) -> Sequence[Case]:
    """Return the cases of this module, on the servers as `servers` says."""
    who = [
        Contender(f"rclone, {_JOBS} transfers", f"{__name__}:copy:--transfers={_JOBS}"),
        Contender("rclone", f"{__name__}:copy"),
        Contender("sovstore", f"{__name__}:move:{STORE}"),
        Contender("sovstore, obstore", f"{__name__}:move:{TWIN}"),
    ]
    hosts = {"ceph": ("Ceph", servers.ceph), "azurite": ("Azurite", servers.azurite)}
    works = {
        "migrate": ("MiB", f"{_LARGE} objects of migrate_mib (256) MiB in all"),
        "migrate-small": ("objects", "migrate_objects (2,000) objects of 4 KiB"),
    }
    return [
        Case(
            f"{what}-{key}",
            f"move {title} from plaintext into a store or a crypt remote, {host}, whole commands",
            unit,
            who,
            functools.partial(_prepared, start, is_large=unit == "MiB"),
        )
        for key, (host, start) in hosts.items()
        for what, (unit, title) in works.items()
    ]


CASES: Sequence[Case] = cases()

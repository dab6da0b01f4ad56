"""Objects over Ceph and Azurite: sovstore beside the plain filesystems and the plain client that it is built on.

The servers are those of the tests and share the machine, so that wall time is theirs too; CPU seconds are the client's.
Whoever takes part opens what it needs and reads one small object before it is measured: `opening` measures that.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from benchmarks.case import MIB, Case, Contender, Measured, measured
from benchmarks.memory import SHARED
from benchmarks.place import STORE, Facts, Sizes, environment
from sovstore.errors import MissingDependencyError
from sovstore.filesystem import SovFileSystem
from tests.servers import azurite, ceph, openbao
from tests.servers.facts import CEPH
from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.stores import describe_twin, make_store, on_azure, on_s3

#: Of a small object.
OBJECT_BYTES = 4096
#: An object that any of them writes in several parts; the first of a process may cost more than the next.
IN_PARTS = 24 * MIB
#: Name of the store over obstore in the configuration.
TWIN = "twin"
#: Read before anything is measured, so that connections and keys are there.
WARM = "warm/object"
_PROVIDER = f"""
[providers.ceph]
like = "s3"
conditions = {json.dumps(sorted(CEPH.conditions))}
etag_quotes = "bare"
"""
_HAPROXY = """\
global
    nbthread 1
defaults
    mode http
    timeout connect 10s
    timeout client 10m
    timeout server 10m
frontend counted
    bind {host}:{port}
    default_backend server
backend server
    server server {host}:{server_port}
frontend figures
    bind {host}:{figures_port}
    stats enable
    stats uri /
"""

#: Sizes of a trial.
SMALL = {"remote_mib": 1, "remote_objects": 20}

Start = Callable[[], AbstractContextManager[Any]]
#: A filesystem, and the folder of it that is one's own.
Opened = tuple[Any, str]
Open = Callable[[Facts], Opened]


def _installed(server: Any) -> Start:
    @contextlib.contextmanager
    def start() -> Iterator[Any]:
        if absent := server.missing():
            name = server.__name__.rpartition(".")[2]
            raise MissingDependencyError(f"{name}: {', '.join(absent)} not installed", path=name, hint="make servers")
        with server.start() as running:
            yield running

    return start


@dataclass(frozen=True)
class Servers:
    """How the servers of the cases are started; a test gives those that run already.

    Parameters
    ----------
    ceph, azurite, openbao : callable
        Returns a context manager of the running server.
    """

    ceph: Start
    azurite: Start
    openbao: Start


#: Each case starts one of its own.
INSTALLED = Servers(_installed(ceph), _installed(azurite), _installed(openbao))


# What the cases need


@contextlib.contextmanager
def hosted(server: Any, more: str = "") -> Iterator[dict[str, Any]]:
    """Make a store at a running server, and beside it a place for plaintext, and yield the facts about both.

    Parameters
    ----------
    server : CephServer or AzuriteServer
        Gets a bucket, or container, of its own; over TLS when its endpoint is.
    more : str
        Of the configuration, as TOML.
    """
    is_azure = isinstance(server, azurite.AzuriteServer)
    place = on_azure(server) if is_azure else on_s3(server, provider="ceph")
    place |= {"ca_file": str(server.ca_file)} if place.get("endpoint", "").startswith("https:") else {}
    bucket = place["root"].partition("/")[0]
    with tempfile.TemporaryDirectory(dir=SHARED) as folder:
        variables = {**place.pop("environment"), "XDG_STATE_HOME": folder, "HOME": folder}
        file = Path(folder, "sovstore.toml")
        file.write_text(_PROVIDER + more)
        with environment(variables):
            make_store(file.parent, STORE, **place)
            describe_twin(file, file.parent, STORE, **place, transport="obstore")
            facts = {
                "folder": folder,
                "stores": [STORE, TWIN],
                "config": str(file),
                "place": {key: value for key, value in place.items() if key != "root"},
                "bucket": bucket,
                "environment": variables,
                "plain": f"{bucket}/plain",
                **(_plain_azure(server, bucket) if is_azure else _plain_s3(server, bucket)),
            }
            for fs, root in (open_plain(facts), open_sov(facts)):
                fs.pipe_file(f"{root}/{WARM}", os.urandom(OBJECT_BYTES))
            yield facts


def _plain_s3(server: Any, bucket: str) -> dict[str, Any]:
    """Return how s3fs and obstore reach a server, with no setting but those without which they do not."""
    is_tls = server.endpoint_url.startswith("https:")
    options = {
        "key": server.access_key,
        "secret": server.secret_key,
        "endpoint_url": server.endpoint_url,
        "client_kwargs": server.client_kwargs,
    }
    if is_tls:
        # Ceph 16 does not know the trailer that botocore puts its checksum in, over TLS, and refuses it.
        options["config_kwargs"] = {"request_checksum_calculation": "when_required"}
    config = {
        "endpoint": server.endpoint_url,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
    }
    network = {"ca_file": str(server.ca_file)} if is_tls else {}
    obstore = {"url": f"s3://{bucket}/plain", "config": config, **network}
    return {"protocol": "s3", "options": options, "obstore": obstore}


def _plain_azure(server: azurite.AzuriteServer, container: str) -> dict[str, Any]:
    config = {
        "account_name": server.account_name,
        "account_key": server.account_key,
        "endpoint": server.blob_endpoint,
    }
    obstore = {"url": f"az://{container}/plain", "config": config}
    return {"protocol": "abfs", "options": server.storage_options, "obstore": obstore}


def open_plain(facts: Facts) -> Opened:
    """Return s3fs or adlfs."""
    return fsspec.filesystem(facts["protocol"], skip_instance_cache=True, **facts["options"]), facts["plain"]


def open_sov(facts: Facts, store: str = STORE, **options: Any) -> Opened:
    """Return sovstore over its own driver."""
    os.environ.update(facts["environment"])
    return SovFileSystem(store, config=facts["config"], skip_instance_cache=True, **options), ""


def open_twin(facts: Facts) -> Opened:
    """Return sovstore over obstore."""
    return open_sov(facts, TWIN)


def warm(opened: Opened, *, writes: int = 0) -> Opened:
    """Read a small object of what was opened, and write one of so many bytes, which may need more; return the same."""
    fs, root = opened
    if writes:
        fs.pipe_file(f"{root}/warm/{os.getpid()}", bytes(writes))
        fs.rm_file(f"{root}/warm/{os.getpid()}")
    fs.cat_file(f"{root}/{WARM}")
    return opened


# What is counted, at a proxy, and never in what is timed


@contextlib.contextmanager
def counted(server: Any, facts: Facts) -> Iterator[dict[str, Any]]:
    """Yield the facts of the same store and place as reached through a proxy that counts; plain HTTP only."""
    with process_group("haproxy") as group:
        port, figures_port = free_ports(2)
        config, url = group.directory / "haproxy.cfg", f"http://{LOOPBACK}:{port}"
        config.write_text(_HAPROXY.format(host=LOOPBACK, port=port, figures_port=figures_port, server_port=server.port))
        group.start("haproxy", ["haproxy", "-db", "-f", str(config)])
        group.wait_until(lambda: accepts_connections(figures_port), what="haproxy accepts connections")
        endpoints = {f"SOVSTORE_STORES__{name.upper()}__ENDPOINT": url for name in facts["stores"]}
        yield {
            **facts,
            "options": {**facts["options"], "endpoint_url": url},
            "environment": {**facts["environment"], **endpoints},
            "figures": f"http://{LOOPBACK}:{figures_port}/;csv",
        }


def traffic(facts: Facts, work: Callable[[], object]) -> dict[str, float]:
    """Return how many requests `work` makes and bytes it moves, heads included, through the proxy of `counted`."""
    before = _figures(facts)
    work()
    return {name: value - before[name] for name, value in _figures(facts).items()}


def _figures(facts: Facts) -> dict[str, float]:
    with urllib.request.urlopen(facts["figures"]) as reply:  # noqa: S310  # nosec B310  # loopback only
        lines = [line.split(",") for line in reply.read().decode().splitlines()]
    found = next(dict(zip(lines[0], line, strict=False)) for line in lines if line[:2] == ["counted", "FRONTEND"])
    columns = {"requests": "req_tot", "fetched_bytes": "bout", "sent_bytes": "bin"}
    return {name: float(found[column]) for name, column in columns.items()}


# One large object


def _put(open_it: Open, facts: Facts) -> Measured:
    fs, root = warm(open_it(facts), writes=min(facts["size"], IN_PARTS))
    done = measured(lambda: fs.put_file(facts["file"], f"{root}/put"), facts["size"] / MIB)
    # Ceph has all in memory.
    fs.rm_file(f"{root}/put")
    return done


def _get(open_it: Open, facts: Facts) -> Measured:
    fs, root = warm(open_it(facts))
    target = Path(facts["folder"], "got")
    done = measured(lambda: fs.get_file(f"{root}/get", str(target)), facts["size"] / MIB)
    _check(target, facts["size"])
    return done


def put_obstore(facts: Facts) -> Measured:
    """Measure `obstore.put` of a file."""
    import obstore

    store = _obstore(facts)
    done = measured(lambda: obstore.put(store, "put", Path(facts["file"])), facts["size"] / MIB)
    obstore.delete(store, "put")
    return done


def get_obstore(facts: Facts) -> Measured:
    """Measure `obstore.get` into a file."""
    import obstore

    store, target = _obstore(facts), Path(facts["folder"], "got")

    def get() -> None:
        with target.open("wb") as file:
            for piece in obstore.get(store, "get"):
                file.write(piece)

    done = measured(get, facts["size"] / MIB)
    _check(target, facts["size"])
    return done


def _obstore(facts: Facts) -> Any:
    import obstore

    given = facts["obstore"]
    client: dict[str, Any] = {"allow_http": True}
    if "ca_file" in given:
        client["root_certificate"] = Path(given["ca_file"]).read_bytes()
    make: Any = obstore.store.from_url  # typed by scheme, which is not known here
    store = make(given["url"], config=given["config"], client_options=client)
    obstore.get(store, WARM).bytes()
    return store


def _check(target: Path, size: int) -> None:
    if target.stat().st_size != size:
        raise RuntimeError(f"{target.stat().st_size} bytes of {size} arrived")
    target.unlink()


@contextlib.contextmanager
def _large(start: Start, what: str, sizes: Sizes) -> Iterator[Facts]:
    size = sizes.get("remote_mib", 256) * MIB
    with start() as server, hosted(server) as facts:
        file = Path(facts["folder"], "payload")
        file.write_bytes(os.urandom(size))
        if what == "get":
            for fs, root in (open_plain(facts), open_sov(facts)):
                fs.put_file(str(file), f"{root}/get")
        yield {**facts, "what": what, "file": str(file), "size": size}


# Many small objects


def _small_put(open_it: Open, facts: Facts) -> Measured:
    fs, root = warm(open_it(facts), writes=OBJECT_BYTES)
    values = {path: os.urandom(OBJECT_BYTES) for path in _small_paths(f"{root}/put", facts)}
    done = measured(lambda: fs.pipe(values), len(values))
    fs.rm(list(values))
    return done


def _small_get(open_it: Open, facts: Facts) -> Measured:
    fs, root = warm(open_it(facts))
    paths = _small_paths(f"{root}/get", facts)
    found: dict[str, bytes] = {}
    done = measured(lambda: found.update(fs.cat(paths)), len(paths))
    if sum(map(len, found.values())) != OBJECT_BYTES * len(paths):
        raise RuntimeError(f"{len(found)} objects of {len(paths)} arrived")
    return done


def _small_stat(open_it: Open, facts: Facts) -> Measured:
    fs, root = warm(open_it(facts))
    paths = _small_paths(f"{root}/stat", facts)

    def stat() -> None:
        for path in paths:
            if fs.info(path)["size"] != OBJECT_BYTES:
                raise RuntimeError(f"{path}: not of {OBJECT_BYTES} bytes")

    return measured(stat, len(paths))


def _small_paths(folder: str, facts: Facts) -> list[str]:
    return [f"{folder}/{number:06d}" for number in range(facts["count"])]


@contextlib.contextmanager
def _small(start: Start, what: str, sizes: Sizes) -> Iterator[Facts]:
    with start() as server, hosted(server) as facts:
        found = {**facts, "what": f"small-{what}", "count": sizes.get("remote_objects", 1000)}
        if what != "put":
            for fs, root in (open_plain(facts), open_sov(facts)):
                fs.pipe({path: os.urandom(OBJECT_BYTES) for path in _small_paths(f"{root}/{what}", found)})
        yield found


# The cases


_WORKS = {"put": _put, "get": _get, "small-put": _small_put, "small-get": _small_get, "small-stat": _small_stat}


def _take(open_it: Open, facts: Facts) -> Measured:
    return _WORKS[facts["what"]](open_it, facts)


plain, sov, twin = (functools.partial(_take, open_it) for open_it in (open_plain, open_sov, open_twin))


def _who(plain: str) -> list[Contender]:
    names = {"plain": plain, "sov": "sovstore", "twin": "sovstore, obstore"}
    return [Contender(name, f"{__name__}:{function}") for function, name in names.items()]


def cases(servers: Servers = INSTALLED) -> Sequence[Case]:
    """Return the cases of this module, on the servers as `servers` says."""
    over_tls = functools.partial(_over_tls, servers.ceph)
    hosts: dict[str, tuple[str, Start, str]] = {
        "ceph-tls": ("Ceph over TLS", over_tls, "s3fs"),
        "ceph": ("Ceph", servers.ceph, "s3fs"),
        "azurite": ("Azurite", servers.azurite, "adlfs"),
    }
    goals = {"put": {"sovstore": 1.2, "sovstore, obstore": 1.5}, "get": {"sovstore": 1.0, "sovstore, obstore": 1.5}}
    found = [
        Case(
            f"{what}-{key}",
            f"{what} an object of remote_mib (256) MiB, {host}, whole files",
            "MiB",
            [*_who(plain), Contender("obstore", f"{__name__}:{what}_obstore")],
            functools.partial(_large, start, what),
            # What the goals were set for.
            goals[what] if key == "ceph-tls" else {},
        )
        for key, (host, start, plain) in hosts.items()
        for what in ("put", "get")
    ]
    found += [
        Case(
            f"small-{what}-{key}",
            f"{what} remote_objects (1,000) objects of 4 KiB {how}, {host}",
            "objects",
            _who(plain),
            functools.partial(_small, start, what),
            {"sovstore": 0.9, "sovstore, obstore": 2.0} if key == "ceph" and what != "stat" else {},
        )
        for key, (host, start, plain) in hosts.items()
        for what, how in (("put", "in one call"), ("get", "in one call"), ("stat", "one by one"))
    ]
    return found


@contextlib.contextmanager
def _over_tls(start: Start) -> Iterator[Any]:
    with start() as server:
        yield server.over_tls


CASES: Sequence[Case] = cases()

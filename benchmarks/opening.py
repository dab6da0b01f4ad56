"""How long it takes to the first byte of a small object on Ceph, in a new process and in a store that is open.

Packages are loaded before: how long that takes is a case of its own, but what memory they take is in the peak. Requests
and calls of a KMS are counted afterwards, by a second filesystem that goes through a proxy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.case import Case, Contender, Measured, measured
from benchmarks.memory import peak_of
from benchmarks.place import STORE, Facts, Sizes, environment
from benchmarks.remote import (
    INSTALLED,
    OBJECT_BYTES,
    TWIN,
    WARM,
    Open,
    Opened,
    Servers,
    counted,
    hosted,
    open_plain,
    open_sov,
    traffic,
    warm,
)
from tests.stores import CONTROLLERS, make_store

#: Sizes of a trial.
SMALL = {"open_reads": 5}
_BAO = "bao"


class _Calls(logging.Handler):
    """Counts what the audit trail says of wraps and unwraps."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += json.loads(record.getMessage())["action"] in {"wrap", "unwrap"}


def _first_byte(opened: Opened) -> None:
    fs, root = opened
    with fs.open(f"{root}/{WARM}".lstrip("/")) as file:
        if len(file.read(1)) != 1:
            raise RuntimeError("no byte arrived")


def _counted(facts: Facts, work: Callable[[], object]) -> dict[str, float]:
    """Return what `work` asks of the host and of the KMS."""
    trail, calls = logging.getLogger("sovstore.audit"), _Calls()
    level = trail.level
    trail.setLevel(logging.INFO)
    trail.addHandler(calls)
    try:
        found = traffic(facts, work)
    finally:
        trail.removeHandler(calls)
        trail.setLevel(level)
    return {**found, "kms_calls": calls.count}


def _cold(modules: Sequence[str], open_it: Open, facts: Facts) -> Measured:
    found: list[Measured] = []

    def first() -> None:
        for module in modules:
            importlib.import_module(module)
        found.append(measured(lambda: _first_byte(open_it(facts)), 1))

    peak, proxied = peak_of(first), facts["proxied"]
    counts = _counted(proxied, lambda: _first_byte(open_it(proxied)))
    return replace(found[0], extra={**counts, "peak_bytes": peak})


def _warm(open_it: Open, facts: Facts) -> Measured:
    opened, proxied = warm(open_it(facts)), warm(open_it(facts["proxied"]))

    def read() -> None:
        for _ in range(facts["reads"]):
            _first_byte(opened)

    done = measured(read, facts["reads"])
    return replace(done, extra=_counted(facts["proxied"], lambda: _first_byte(proxied)))


_S3, _OBSTORE = "sovstore.backends.s3", "sovstore.backends.obstore"
_store, _twin, _bao = (functools.partial(open_sov, store=store) for store in (STORE, TWIN, _BAO))
cold_plain = functools.partial(_cold, ["s3fs"], open_plain)
cold_sov = functools.partial(_cold, [_S3, "sovstore.kms.keyfile"], _store)
cold_twin = functools.partial(_cold, [_OBSTORE, "sovstore.kms.keyfile"], _twin)
cold_bao = functools.partial(_cold, [_S3, "sovstore.kms.openbao"], _bao)
warm_plain, warm_sov, warm_twin = (functools.partial(_warm, open_it) for open_it in (open_plain, _store, _twin))


@contextlib.contextmanager
def _prepared(servers: Servers, sizes: Sizes) -> Iterator[Facts]:
    with servers.ceph() as server, servers.openbao() as bao:
        table = f'[kms.bao]\nuri = "openbao://{bao.address}"\nca_file = "{bao.ca_file}"\ncontroller = "tests"\n'
        with hosted(server, table + CONTROLLERS) as facts:
            variables = {**facts["environment"], "BAO_TOKEN": bao.root_token}
            place = {"provider": "ceph", "root": f"{facts['bucket']}/bao", "endpoint": server.endpoint_url}
            kek = f"openbao://{bao.address}/transit/{bao.make_key()}"
            found = {**facts, "environment": variables, "stores": [*facts["stores"], _BAO]}
            with environment(variables):
                make_store(Path(facts["folder"]), _BAO, kek=kek, **place)
                fs, _ = _bao(found)
                fs.pipe_file(WARM, bytes(OBJECT_BYTES))
            with counted(server, found) as proxied:
                yield {**found, "proxied": proxied, "reads": sizes.get("open_reads", 100)}


def cases(servers: Servers = INSTALLED) -> Sequence[Case]:
    """Return the cases of this module, on the servers as `servers` says."""
    prepare = functools.partial(_prepared, servers)
    cold = {
        "plain": "s3fs",
        "sov": "sovstore, key file",
        "twin": "sovstore, obstore, key file",
        "bao": "sovstore, OpenBao",
    }
    opened = {"plain": "s3fs", "sov": "sovstore", "twin": "sovstore, obstore"}
    return [
        Case(
            "open",
            "the first byte of a small object in a new process, from no filesystem on, Ceph",
            "opens",
            [Contender(name, f"{__name__}:cold_{which}") for which, name in cold.items()],
            prepare,
        ),
        Case(
            "open-warm",
            "the first byte of a small object, open_reads (100) times, in a store that is open, Ceph",
            "opens",
            [Contender(name, f"{__name__}:warm_{which}") for which, name in opened.items()],
            prepare,
        ),
    ]


CASES: Sequence[Case] = cases()

"""A Parquet table on Ceph, read and written by PyArrow through each filesystem as a user does.

Timed is the way straight to the server. What is asked of it and fetched is counted afterwards, by doing the same once
more through a proxy.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.case import MIB, Case, Contender, Measured, OfFirst, measured
from benchmarks.place import Facts, Sizes
from benchmarks.remote import (
    IN_PARTS,
    INSTALLED,
    Open,
    Opened,
    Servers,
    Start,
    counted,
    hosted,
    open_plain,
    open_sov,
    open_twin,
    traffic,
    warm,
)

#: Sizes of a trial.
SMALL = {"rows": 10_000}
GROUPS = 10
#: Person and visit, concept, day, value, unit: as a table of measurements in OMOP.
COLUMNS = ("measurement_id", "person_id", "concept_id", "date", "value", "range_high", "unit")
TWO = ["person_id", "value"]
_UNITS = ("mmol/L", "mg/dL", "g/L", "10*9/L", "%", "U/L")
#: Does something with a table of a filesystem: its path, and the properties of PyArrow's own encryption.
Work = Callable[[Any, str, Facts, Any], object]


def _make(rows: int) -> Any:
    """Return a table, the same each time."""
    import numpy as np
    import pyarrow as pa

    draw = np.random.default_rng(7)
    columns = [
        np.arange(rows, dtype=np.int64),
        np.sort(draw.integers(1, max(2, rows // 50), rows)),
        draw.choice(draw.integers(3_000_000, 3_050_000, 400, dtype=np.int32), rows),
        (np.datetime64("2015-01-01") + draw.integers(0, 4000, rows)).astype("datetime64[D]"),
        np.round(draw.gamma(2.0, 20.0, rows), 2),
        draw.choice([5.5, 11.0, 140.0, 400.0], rows),
    ]
    unit = pa.DictionaryArray.from_arrays(pa.array(draw.integers(0, len(_UNITS), rows, dtype=np.int8)), _UNITS)
    return pa.table([*map(pa.array, columns), unit.cast(pa.string())], names=COLUMNS)


# PyArrow's own encryption


@functools.cache
def _factory() -> Any:
    """Return what makes its properties, with a KMS in memory that shows the key it wraps: no call, no cost."""
    import pyarrow.parquet.encryption as pe

    class _Memory(pe.KmsClient):  # type: ignore[misc]  # pyarrow has no types
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:  # noqa: ARG002  # of the interface
            return key_bytes.hex()

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:  # noqa: ARG002
            return bytes.fromhex(wrapped_key)

    return pe.CryptoFactory(lambda _: _Memory())


def _sealing() -> Any:
    import pyarrow.parquet.encryption as pe

    chosen = pe.EncryptionConfiguration(footer_key="kek", uniform_encryption=True, data_key_length_bits=256)
    return _factory().file_encryption_properties(pe.KmsConnectionConfig(), chosen)


def _opening() -> Any:
    import pyarrow.parquet.encryption as pe

    return _factory().file_decryption_properties(pe.KmsConnectionConfig())


# The work


def _write(fs: Any, path: str, facts: Facts, properties: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.memory_map(facts["table"]) as file:
        pq.write_table(
            pa.ipc.open_file(file).read_all(),
            path,
            filesystem=fs,
            row_group_size=facts["group"],
            encryption_properties=properties,
        )


def _scan(fs: Any, path: str, facts: Facts, properties: Any, columns: Sequence[str] | None = None) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=columns, filesystem=fs, decryption_properties=properties)
    _check(table, facts["rows"])


def _columns(fs: Any, path: str, facts: Facts, properties: Any) -> None:
    _scan(fs, path, facts, properties, TWO)


def _row_group(fs: Any, path: str, facts: Facts, properties: Any) -> None:
    import pyarrow.parquet as pq

    with fs.open(path) as file, pq.ParquetFile(file, decryption_properties=properties) as parquet:
        _check(parquet.read_row_group(parquet.num_row_groups // 2), facts["group"])


def _check(table: Any, rows: int) -> None:
    if table.num_rows != rows:
        raise RuntimeError(f"{table.num_rows} rows of {rows} arrived")


#: By case: what is done, and the fact that says how many rows that is.
_WORKS: dict[str, tuple[Work, str]] = {
    "parquet-write": (_write, "rows"),
    "parquet-scan": (_scan, "rows"),
    "parquet-columns": (_columns, "rows"),
    "parquet-row-group": (_row_group, "group"),
}

#: Of a case that reads, the most that it may ask for: one request more than s3fs for each time that PyArrow opens the
#: table, which is twice in `read_table`.
_READS = {
    name: {"requests": OfFirst(more=opens), "fetched_bytes": OfFirst(times=1.2)}
    for name, opens in (("parquet-scan", 2), ("parquet-columns", 2), ("parquet-row-group", 1))
}

# Who does it


def _take(open_it: Open, facts: Facts, *, is_modular: bool = False) -> Measured:
    """Do the work of a case: timed, and then once more, counted."""
    # What `read_table` would load when it is first called.
    import pyarrow.dataset  # noqa: F401

    work, rows = _WORKS[facts["case"]]
    writes, name = work is _write, "modular" if is_modular else "table"
    properties = (_sealing() if writes else _opening()) if is_modular else None

    def do(opened: Opened) -> None:
        fs, root = opened
        work(fs, f"{root}/{name}".lstrip("/"), facts, properties)

    straight, proxied = (warm(open_it(found), writes=IN_PARTS * writes) for found in (facts, facts["proxied"]))
    done = measured(lambda: do(straight), facts[rows])
    return replace(done, extra=traffic(facts["proxied"], lambda: do(proxied)))


plain, sov, twin = (functools.partial(_take, open_it) for open_it in (open_plain, open_sov, open_twin))
#: As far ahead as s3fs reads by default.
blocks = functools.partial(_take, functools.partial(open_sov, default_block_size=50 * MIB))
modular = functools.partial(_take, open_plain, is_modular=True)


# The cases


@contextlib.contextmanager
def _prepared(start: Start, case: str, sizes: Sizes) -> Iterator[Facts]:
    import pyarrow as pa

    rows = sizes.get("rows", 10_000_000)
    with start() as server, hosted(server) as facts, counted(server, facts) as proxied:
        local = Path(facts["folder"], "table.arrow")
        table = _make(rows)
        with pa.ipc.new_file(local, table.schema) as file:
            file.write_table(table)
        found = {**facts, "case": case, "table": str(local), "rows": rows, "group": rows // GROUPS, "proxied": proxied}
        if case != "parquet-write":
            for (fs, root), name, properties in (
                (open_plain(facts), "table", None),
                (open_plain(facts), "modular", _sealing()),
                (open_sov(facts), "table", None),
            ):
                _write(fs, f"{root}/{name}".lstrip("/"), found, properties)
        yield found


def cases(servers: Servers = INSTALLED) -> Sequence[Case]:
    """Return the cases of this module, on the servers as `servers` says."""
    titles = {
        "parquet-write": "write the table, row groups of a tenth",
        "parquet-scan": "read all columns of the table",
        "parquet-columns": "read two of seven columns of the table",
        "parquet-row-group": "read one row group of ten",
    }
    ours = {"sov": "sovstore", "twin": "sovstore, obstore"}
    reads = {**ours, "blocks": "sovstore, blocks as s3fs"}

    def who(name: str) -> Mapping[str, str]:
        return reads if name in _READS else ours

    return [
        Case(
            name,
            f"{title}; Parquet of rows (10 million) rows, Ceph",
            "rows",
            [
                Contender(shown, f"{__name__}:{function}")
                for function, shown in {"plain": "s3fs", **who(name), "modular": "PyArrow encryption"}.items()
            ],
            functools.partial(_prepared, servers.ceph, name),
            dict.fromkeys(who(name).values(), 0.9),
            limits=dict.fromkeys(who(name).values(), _READS[name]) if name in _READS else {},
        )
        for name, title in titles.items()
    ]


CASES: Sequence[Case] = cases()

"""How much the tests do: little in `make test`, much in `make stress`; and the figures of the last full run.

``python -m tests.stress FILE`` prints the figures of a run as tables.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

#: Set to 1 by `make stress`.
_LONG = "SOVSTORE_TEST_STRESS"
#: Where the figures go, one JSON object a line.
_FIGURES = "SOVSTORE_TEST_FIGURES"


def is_long() -> bool:
    """Return whether this is the long form of the tests."""
    return os.environ.get(_LONG, "") not in ("", "0")


def amount(short: int, long: int) -> int:
    """Return how often something is done: `short` in `make test`, `long` in `make stress`."""
    return long if is_long() else short


def long_only(cls: type) -> type:
    """Leave the tests of a class to `make stress`: they go ways that others go too."""
    return pytest.mark.stress(pytest.mark.skipif(not is_long(), reason="left to `make stress`")(cls))


def kills(short: int) -> int:
    """Return how many kills one operation gets: `short`, or what `SOVSTORE_TEST_KILLS` says."""
    return int(os.environ.get("SOVSTORE_TEST_KILLS") or short)


def record(name: str, **figures: Any) -> None:
    """Append the figures of one test to the file of this run, if it has one; workers may do so at the same time."""
    file = os.environ.get(_FIGURES)
    if not file:
        return
    line = (json.dumps({"name": name, **figures}) + "\n").encode()
    # One write to a file that was opened for appending is one piece, also beside other processes.
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
    finally:
        os.close(descriptor)
    assert written == len(line)


def tables(lines: Iterable[str]) -> str:
    """Return what `record` wrote as Markdown tables, one for each name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        row = json.loads(line)
        found.setdefault(row.pop("name"), []).append(row)
    return "\n\n".join(f"{name}\n\n{_table(rows)}" for name, rows in sorted(found.items()))


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    ruled = [columns, ["-" * width for width in widths], *sorted(cells)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in ruled
    )


if __name__ == "__main__":
    print(tables(Path(sys.argv[1]).read_text().splitlines()))

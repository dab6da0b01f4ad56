"""The store of a case that needs no server, and the environment that a store is found by."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.memory import SHARED
from sovstore.filesystem import SovFileSystem
from tests.stores import make_store, open_fs

#: Name of the store in the configuration.
STORE = "cohortes"

Facts = Mapping[str, Any]
Sizes = Mapping[str, int]


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these variables set, and afterwards all as they were."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def local_store(**facts: Any) -> Iterator[dict[str, Any]]:
    """Make a store in a new folder, and yield the facts about both, and those given."""
    with tempfile.TemporaryDirectory(dir=SHARED) as folder:
        # Where sovstore keeps what it knows of a store.
        variables = {"XDG_STATE_HOME": folder, "HOME": folder}
        with environment(variables):
            file = make_store(Path(folder), STORE)
        yield {"folder": folder, "config": str(file), "environment": variables, **facts}


def open_local(facts: Facts) -> SovFileSystem:
    """Return that store, with its keys there."""
    os.environ.update(facts["environment"])
    fs = open_fs(Path(facts["config"]), STORE, skip_instance_cache=True)
    fs.ls("")
    return fs

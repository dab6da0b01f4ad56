"""Whether a server may be missing: a missing one skips its tests, or fails them where it is required.

`SOVSTORE_TEST_REQUIRE=s3,azurite` names the servers that must be there.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable

import pytest

SERVERS = ("s3", "moto", "azurite", "faults", "keyring", "openbao", "kmip", "softhsm", "okms")


def parse_required(value: str) -> frozenset[str]:
    """Return the server names in a comma-separated list; an unknown one is refused, not ignored."""
    names = frozenset(filter(None, (name.strip() for name in value.split(","))))
    if unknown := names - set(SERVERS):
        listed, known = ", ".join(sorted(unknown)), ", ".join(SERVERS)
        raise pytest.UsageError(f"SOVSTORE_TEST_REQUIRE: unknown server {listed} (known: {known})")
    return names


def missing_parts(*, commands: Iterable[str] = (), modules: Iterable[str] = ()) -> list[str]:
    """Return the commands and Python modules, of those given, that are not installed."""
    absent = [command for command in commands if shutil.which(command) is None]
    return absent + [f"Python module {name}" for name in modules if importlib.util.find_spec(name) is None]


def skip_or_fail(server: str, missing: list[str], required: frozenset[str]) -> None:
    """Skip or fail the running test when parts of its server are missing; else do nothing."""
    if not missing:
        return
    reason = f"{server}: not installed: {', '.join(missing)} (run `make servers`)"
    if server in required:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

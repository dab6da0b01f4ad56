"""SoftHSM, the PKCS#11 token of the tests: a real module, its token in a directory of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import process_group
from tests.servers.require import missing_parts


@dataclass(frozen=True, slots=True)
class SoftHSMToken:
    """An initialised token."""

    label: str


def missing() -> list[str]:
    """Return what is not installed of all that this token and its client need."""
    return missing_parts(commands=["softhsm2-util"], modules=["pkcs11"])


@contextlib.contextmanager
def start() -> Iterator[SoftHSMToken]:
    """Make a token."""
    with process_group("softhsm") as group:
        (group.directory / Path("tokens")).mkdir()
        yield SoftHSMToken("sovstore-tests")

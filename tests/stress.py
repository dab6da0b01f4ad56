"""How much a test does: little in every run, much when somebody asks for it; and where its figures go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def amount(short: int, long: int) -> int:
    """Return how many times something is done: `long` where ``SOVSTORE_TEST_STRESS`` is set."""
    return long if os.environ.get("SOVSTORE_TEST_STRESS") else short


def record(name: str, **figures: Any) -> None:
    """Append what was measured, as a line of JSON, to the file that ``SOVSTORE_TEST_FIGURES`` names, if it does."""
    if file := os.environ.get("SOVSTORE_TEST_FIGURES"):
        with Path(file).open("a") as lines:
            lines.write(json.dumps({"name": name, **figures}) + "\n")

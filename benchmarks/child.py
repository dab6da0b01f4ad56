"""Runs one contender, once: ``python -m benchmarks.child MODULE:FUNCTION[:ARGUMENT]``, facts in, figures out, as JSON.

Peers run it in environments of their own: the standard library is all that it needs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.case import Skipped


def run(function: str, facts: Any) -> dict[str, Any]:
    """Return what was measured, or as ``trouble`` why nothing was."""
    module, name, *arguments = function.split(":")
    try:
        return asdict(getattr(importlib.import_module(module), name)(facts, *arguments))
    except Skipped as exc:
        return {"trouble": f"skipped: {exc}"}
    except ImportError as exc:
        return {"trouble": f"not installed: {exc}"}
    # Whatever it is, it is the contender's own, and said in the table. The traceback goes to the log.
    except Exception as exc:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        return {"trouble": f"failed: {type(exc).__name__}: {exc}"}


def main() -> None:
    """Run what the command line names."""
    # What a contender or its programs print is not the result.
    with os.fdopen(os.dup(1), "w") as result:
        os.dup2(2, 1)
        json.dump(run(sys.argv[1], json.load(sys.stdin)), result)


if __name__ == "__main__":
    main()

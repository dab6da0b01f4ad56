"""The command line ``sovstore``: arguments in, text and an exit code out.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not authentic, 4 no access to the key, 5 partly done,
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the name of the program; those of this process by default.
    """
    from sovstore.cli.output import Output

    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    out = Output(as_json="--json" in options, debug="--debug" in options)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding does not have must not end the listing.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from sovstore.cli.app import guarded, load

        return guarded(out, lambda: load()(args=given or ["--help"], prog_name="sovstore", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        out.failure({"message": "interrupted", "type": "Interrupted", "path": None, "hint": None, "exit_code": 130})
        return 130

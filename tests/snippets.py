"""Runs the fenced snippets of a Markdown page, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What pyarrow 26 ends with now and then when a program ends right after it read from any Python file object, also one
#: that is no store's: a thread of its own meets the end of the interpreter. The snippet itself has passed by then.
_ARROW_AT_EXIT = "terminate called without an active exception"
#: Lines of shell snippets that set up a machine, or are what runs the tests: not for a test to run.
NOT_HERE = re.compile(r"^(make|pip install)\b.*$", re.MULTILINE)


def snippets(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each fenced block; a block without a language is not a snippet."""
    return _FENCE.findall(page.read_text(encoding="utf-8"))


def run(page: Path, folder: Path) -> int:
    """Run every snippet of a page and return how many there were.

    TOML goes into ``sovstore.toml``: a table that is there already is updated, as a person would who edits the file.
    """
    from sovstore import config

    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    count = 0
    for language, text in snippets(page):
        if language == "toml":
            import tomllib

            tables = tomllib.loads(text)
            for name, table in tables.get("stores", {}).items():
                config.write_settings(folder / "sovstore.toml", name, table)
            config.load(folder / "sovstore.toml")
            if tables.keys() - {"stores"}:
                # What is said of more than stores is loaded alone, and changes nothing for what follows.
                (folder / "alone.toml").write_text(text, encoding="utf-8")
                config.load(folder / "alone.toml")
        elif language in ("sh", "python"):
            script = NOT_HERE.sub("", text)
            command = (
                [sys.executable, "-c", script] if language == "python" else ["bash", "-euo", "pipefail", "-c", script]
            )
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if done.returncode < 0 and _ARROW_AT_EXIT in done.stderr:
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page.name}: {text}\n{done.stdout}\n{done.stderr}"
        else:
            raise AssertionError(f"{page.name}: a snippet in {language!r} is run by no test")
        count += 1
    return count

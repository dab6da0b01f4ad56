"""The TOML of the configuration as text: read and parsed within bounds that no configuration comes near.

tomllib takes memory by the square of the length of a dotted key, a call for each level of nesting, and whatever time a
file is long. `sovstore.config` says what the tables mean.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from sovstore.errors import ConfigError

#: Characters of a file; a store takes some 200.
MOST = 2**17
#: Dots outside strings and comments: of a line, and so of a key; and of all lines. The name of a table has one or two.
_MOST_DOTS_IN_LINE, _MOST_DOTS = 16, 2**15
#: Tables and lists that may lie in each other on lines below one ``[table]``.
_DEEPEST = 8
#: Strings and comments; one that is not closed ends where tomllib refuses it. Possessive: nothing is tried twice.
_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?|'
    r"'''(?:[^']|'(?!''))*+(?:'{3,5})?|"
    r'"(?:[^"\\\n]|\\[^\n])*+"?|'
    r"'[^'\n]*+'?|"
    r"#[^\n]*+",
    re.DOTALL,
)
#: A number of so many digits that Python would not print it; in base ten, it does not read them either.
_LONG_NUMBER = re.compile(r"\b0[xob][0-9A-Fa-f_]{65}")
_BRACKET = re.compile(r"[\[\]{}]")


def read(path: Path) -> str:
    """Return the text of a configuration file.

    Raises
    ------
    ConfigError
        When it cannot be read, is no UTF-8 or is too long.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}", path=str(path)) from exc
    if len(text) > MOST:
        hint = "name the file of the configuration; stores of different pipelines can be in files of their own"
        raise ConfigError(f"{path}: more than {MOST} characters, the most for a file", path=str(path), hint=hint)
    return text


def parse(text: str, what: str, hint: str) -> dict[str, Any]:
    """Return what TOML says.

    Parameters
    ----------
    text : str
        The document.
    what, hint : str
        What it is, and what can be done about a mistake, for the error.

    Raises
    ------
    ConfigError
        When it is no TOML, or nested deeper than a configuration is.
    """
    if (why := _excess(text)) is not None:
        raise ConfigError(f"{what}: {why}", path=what, hint=hint)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        # Not only tomllib's own error: a number of more than 4300 digits has one of `int`.
        raise ConfigError(f"{what}: {exc}", path=what, hint=hint) from exc


def _excess(text: str) -> str | None:
    """Return what a text has too much of; None when nothing."""
    if len(text) > MOST:
        return f"more than {MOST} characters"
    bare = _OPAQUE.sub('""', text)
    if bare.count(".") > _MOST_DOTS or any(line.count(".") > _MOST_DOTS_IN_LINE for line in bare.split("\n")):
        return f"more than {_MOST_DOTS_IN_LINE} dots outside strings in a line, or {_MOST_DOTS} in all"
    if _LONG_NUMBER.search(bare):
        return "a number of more than 64 digits"
    depth = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            return f"more than {_DEEPEST} tables and lists in each other"
    return None

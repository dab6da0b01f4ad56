"""Countries by their ISO 3166-1 alpha-2 code, and the members of the European Union: data with its source and date."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Any

#: In a list of countries: all members of the European Union. As a fact: somewhere in it.
EU = "EU"

_DATA: dict[str, Any] = tomllib.loads(
    resources.files("sovstore").joinpath("countries.toml").read_text(encoding="utf-8")
)
CODES = frozenset(_DATA["iso_3166_1"]["value"])
MEMBERS = frozenset(_DATA["eu"]["value"])


def parse(text: str) -> tuple[str, ...]:
    """Return the codes of a text such as ``FR`` or ``FR, US``; none when any of them is no code.

    Parameters
    ----------
    text : str
        Codes of ISO 3166-1 alpha-2 in capitals, or ``EU``, with commas between them.
    """
    codes = tuple(part.strip() for part in text.split(","))
    return codes if all(is_code(code) for code in codes) else ()


def is_code(text: str) -> bool:
    """Return whether a text is the code of a country, or ``EU``."""
    return text == EU or text in CODES


def within(codes: Iterable[str], allowed: Iterable[str]) -> bool:
    """Return whether there is a code, and every one is allowed by itself or as a member of the European Union."""
    found, named = set(codes), set(allowed)
    return bool(found) and found <= (named | MEMBERS if EU in named else named)

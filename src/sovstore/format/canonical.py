"""Canonical JSON and strict field readers (docs/spec/format.md, 1 and 6.1)."""

from __future__ import annotations

import base64
import json
import string
from typing import Any

from sovstore.errors import FormatError

#: Most bytes ``{`` and ``[`` of one document. The least object of a keyset takes 60 bytes, so 1 MiB has fewer.
MOST_BRACKETS = 2**15
_LOWER_HEX = frozenset(string.hexdigits.lower())


def dump(value: object) -> bytes:
    """Return the canonical JSON of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def load(raw: bytes, *, limit: int, what: str) -> dict[str, Any]:
    """Return the object that canonical JSON holds.

    Parameters
    ----------
    raw : bytes
        The document.
    limit : int
        Most bytes that are looked at.
    what : str
        What it is, for error messages.

    Raises
    ------
    FormatError
        When it is too long, no JSON object, or not byte for byte what `dump` gives.
    """
    if len(raw) > limit:
        raise FormatError(f"{what}: {len(raw)} bytes, more than the limit of {limit}", path=what)
    # Counted before they are parsed, those in strings too: two bytes of nested lists become a hundred in memory.
    if raw.count(b"{") + raw.count(b"[") > MOST_BRACKETS:
        raise FormatError(f"{what}: more objects and lists than any keyset has", path=what)
    try:
        value = json.loads(raw.decode("ascii"), parse_float=_refuse, parse_constant=_refuse)
        # Duplicate keys, another order, spaces and upper-case escapes all fail this comparison.
        canonical = isinstance(value, dict) and dump(value) == raw
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{what}: not canonical JSON", path=what) from exc
    if not canonical:
        raise FormatError(f"{what}: not canonical JSON", path=what)
    result: dict[str, Any] = value
    return result


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is not an integer")


def to_base64(raw: bytes) -> str:
    """Return base64 with padding."""
    return base64.b64encode(raw).decode()


class Fields:
    """Reads the members of one JSON object and refuses any that is missing, unknown or of another type.

    Parameters
    ----------
    value : object
        The parsed JSON.
    names : str
        The members it must have, separated by spaces.
    what : str
        What it is, for error messages.

    Raises
    ------
    FormatError
        When the members are not exactly these.
    """

    def __init__(self, value: object, names: str, *, what: str) -> None:
        self.what = what
        if not isinstance(value, dict) or set(value) != set(names.split()):
            raise FormatError(f"{what}: must have exactly the members {names}", path=what)
        self._value = value

    def _bad(self, name: str, expected: str) -> FormatError:
        return FormatError(f"{self.what}: {name} is not {expected}", path=self.what)

    def integer(self, name: str, least: int, most: int) -> int:
        """Return an integer of [least, most]."""
        value = self._value[name]
        if type(value) is not int or not least <= value <= most:
            raise self._bad(name, f"an integer from {least} to {most}")
        return value

    def text(self, name: str) -> str:
        """Return a string."""
        value = self._value[name]
        if not isinstance(value, str):
            raise self._bad(name, "a string")
        return value

    def choice(self, name: str, *allowed: str) -> str:
        """Return a string that is one of `allowed`."""
        value = self.text(name)
        if value not in allowed:
            raise self._bad(name, "one of " + ", ".join(allowed))
        return value

    def identifier(self, name: str) -> bytes:
        """Return the 16 bytes of an id written as 32 lower-case hexadecimal digits."""
        value = self.text(name)
        if len(value) != 32 or not _LOWER_HEX.issuperset(value):
            raise self._bad(name, "32 lower-case hexadecimal digits")
        return bytes.fromhex(value)

    def base64(self, name: str, least: int, most: int) -> bytes:
        """Return the bytes of canonical base64, `least` to `most` of them."""
        value = self.text(name)
        try:
            raw = base64.b64decode(value, validate=True)
        except ValueError:
            raw = b""
        if not least <= len(raw) <= most or to_base64(raw) != value:
            raise self._bad(name, f"canonical base64 of {least} to {most} bytes")
        return raw

    def array(self, name: str, least: int = 0) -> list[Any]:
        """Return a list of at least `least` entries."""
        value = self._value[name]
        if not isinstance(value, list) or len(value) < least:
            raise self._bad(name, f"a list of at least {least} entries")
        return value

    def __getitem__(self, name: str) -> object:
        """Return a member as it is."""
        return self._value[name]

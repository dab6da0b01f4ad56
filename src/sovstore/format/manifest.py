"""Manifests: what a store held, one line for each object (docs/spec/manifest.md).

Lines to values and back, a piece at a time. How the lines are sealed, and where they are kept, is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sovstore.errors import FormatError, PathError
from sovstore.format.body import MAX_PLAIN
from sovstore.format.canonical import Fields, dump, load
from sovstore.format.cobblestone import PREFIX, Buffer
from sovstore.format.names import MAX_NAME, RESERVED, check_path

#: The path that a manifest is sealed for. No object can have it, so neither passes for the other.
PATH = f"{RESERVED}/manifest"
FORMAT = "sovstore manifest 1"
#: Most bytes of a line: 900 bytes of path become 5400 where all of them are escaped.
MAX_LINE = 8192
_MOST = 2**63 - 1
_VERSION = re.compile(rf"[0-9a-f]{{{2 * PREFIX}}}")
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
_DIGITS = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One object of a manifest.

    Parameters
    ----------
    path : str
        Of the object.
    size : int
        Its plaintext bytes.
    version : bytes
        The 56 bytes in front of its body.
    """

    path: str
    size: int
    version: bytes


@dataclass(frozen=True)
class ManifestHead:
    """What the first line says.

    Parameters
    ----------
    store_id : bytes
        16 bytes.
    created : datetime
        When it was begun, in UTC, in whole seconds.
    below : str
        The folder whose objects it has; '' for the whole store.
    """

    store_id: bytes
    created: datetime
    below: str = ""


@dataclass(frozen=True)
class Totals:
    """What the last line says.

    Parameters
    ----------
    objects, size : int
        How many objects there are, and the sum of their plaintext bytes.
    """

    objects: int = 0
    size: int = 0


class _Order:
    """Checks each entry against those before it, and counts."""

    def __init__(self, head: ManifestHead) -> None:
        self.totals = Totals()
        self._prefix = f"{head.below}/" if head.below else ""
        self._previous = b""

    def take(self, entry: ManifestEntry) -> None:
        """Count one entry.

        Raises
        ------
        ValueError
            When no manifest has it at this place.
        """
        check_path(entry.path)
        raw = entry.path.encode()
        if len(raw) > MAX_NAME:
            raise ValueError(f"a path of {len(raw)} bytes; the limit is {MAX_NAME}")
        if not entry.path.startswith(self._prefix):
            raise ValueError("a path outside of the manifest's folder")
        if raw <= self._previous:
            raise ValueError("not in the order of paths")
        if not 0 <= entry.size <= MAX_PLAIN or len(entry.version) != PREFIX:
            raise ValueError("a size or version that no object has")
        self._previous = raw
        self.totals = Totals(self.totals.objects + 1, self.totals.size + entry.size)


class ManifestLines:
    """Makes the lines of one manifest, in order: `first`, `entry` for each object, `last`.

    Parameters
    ----------
    head : ManifestHead
        What the first line says.

    Raises
    ------
    PathError
        When the format does not allow the folder.
    """

    def __init__(self, head: ManifestHead) -> None:
        if head.below:
            check_path(head.below)
        self._head = head
        self._order = _Order(head)

    @property
    def totals(self) -> Totals:
        """What was taken until now."""
        return self._order.totals

    def first(self) -> bytes:
        """Return the first line."""
        created = self._head.created.astimezone(UTC).strftime(_MOMENT)
        store_id = self._head.store_id.hex()
        return _line({"below": self._head.below, "created": created, "format": FORMAT, "store_id": store_id})

    def entry(self, entry: ManifestEntry) -> bytes:
        """Return the line of one object.

        Raises
        ------
        ValueError
            When its path does not follow the one before it, is outside of the folder, or when no object is like that.
        """
        self._order.take(entry)
        return _line({"path": entry.path, "size": entry.size, "version": entry.version.hex()})

    def last(self) -> bytes:
        """Return the last line."""
        return _line({"bytes": self.totals.size, "objects": self.totals.objects})


def _line(value: object) -> bytes:
    return dump(value) + b"\n"


def _moment(text: str) -> datetime:
    # `strptime` also takes other digits, and numbers without their zeros.
    if not _DIGITS.fullmatch(text):
        raise ValueError("created is not a moment")
    return datetime.strptime(text, _MOMENT).replace(tzinfo=UTC)


class ManifestParser:
    """Reads one manifest, a piece at a time; the pieces MUST be authentic.

    Parameters
    ----------
    what : str
        The manifest, for error messages.

    Attributes
    ----------
    head : ManifestHead or None
        What the first line says, once it was read.
    """

    def __init__(self, *, what: str) -> None:
        self.head: ManifestHead | None = None
        self._what = what
        self._rest = b""
        self._lines = 0
        self._order: _Order | None = None
        self._totals: Totals | None = None

    def feed(self, data: Buffer) -> list[ManifestEntry]:
        """Return the entries of the lines that are complete by now.

        Parameters
        ----------
        data : bytes
            Any number of bytes.

        Raises
        ------
        FormatError
            When no manifest has this line at this place.
        """
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        found = [entry for line in lines if (entry := self._read(line)) is not None]
        if len(self._rest) > MAX_LINE:
            raise self._bad("is longer than any line", 1)
        return found

    def finish(self) -> Totals:
        """Return what the last line says.

        Raises
        ------
        FormatError
            When it is not there: the manifest is not complete.
        """
        if self._rest or self._totals is None:
            raise FormatError(f"{self._what}: not a complete manifest", path=self._what, hint=_HINT)
        return self._totals

    def _bad(self, why: str, ahead: int = 0) -> FormatError:
        return FormatError(f"{self._what}: line {self._lines + ahead}: {why}", path=self._what, hint=_HINT)

    def _read(self, raw: bytes) -> ManifestEntry | None:
        self._lines += 1
        if self._totals is not None:
            raise self._bad("stands behind the last line")
        value = load(raw, limit=MAX_LINE, what=f"{self._what}: line {self._lines}")
        try:
            if self._order is None:
                self.head = self._first(value)
                self._order = _Order(self.head)
            elif "objects" in value:
                self._totals = self._last(value, self._order.totals)
            else:
                entry = self._entry(value)
                self._order.take(entry)
                return entry
        except PathError as exc:
            raise self._bad("a path that the format does not allow") from exc
        except ValueError as exc:
            raise self._bad(str(exc)) from exc
        return None

    def _fields(self, value: object, names: str) -> Fields:
        return Fields(value, names, what=f"{self._what}: line {self._lines}")

    def _first(self, value: object) -> ManifestHead:
        fields = self._fields(value, "below created format store_id")
        fields.choice("format", FORMAT)
        if below := fields.text("below"):
            check_path(below)
        return ManifestHead(fields.identifier("store_id"), _moment(fields.text("created")), below)

    def _entry(self, value: object) -> ManifestEntry:
        fields = self._fields(value, "path size version")
        version = fields.text("version")
        if not _VERSION.fullmatch(version):
            raise ValueError(f"version is not {2 * PREFIX} lower-case hexadecimal digits")
        return ManifestEntry(fields.text("path"), fields.integer("size", 0, MAX_PLAIN), bytes.fromhex(version))

    def _last(self, value: object, counted: Totals) -> Totals:
        fields = self._fields(value, "bytes objects")
        totals = Totals(fields.integer("objects", 0, _MOST), fields.integer("bytes", 0, _MOST))
        if totals != counted:
            raise ValueError("not as many objects or bytes as there are")
        return totals


_HINT = "it is authentic, and nothing that this release writes: a newer sovstore may read it"

"""What a migration tells while it runs: phases, bytes, objects, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, Self

from sovstore.errors import SovstoreError

#: Failures that are kept for the report, word by word; the others are counted.
_MOST_FAILURES = 10_000


class Watcher(Protocol):
    """Told what a migration is doing; `Silent` does nothing of it.

    All calls come from the thread of the event loop.
    """

    def phase(self, name: str, objects: int | None = None, size: int | None = None) -> None:
        """Note that ``listing``, ``moving``, ``verifying`` or ``deleting`` begins, with what there is to do in it."""

    def advance(self, size: int) -> None:
        """Note that `size` more bytes are through."""

    def finished(self, path: str, what: str) -> None:
        """Note that an object is through: ``moved``, ``verified``, ``left`` or ``deleted``."""

    def failed(self, failure: Failure) -> None:
        """Note that an object could not be moved or verified, after all tries."""


class Silent:
    """Tells nobody; a base for those that want only some of it."""

    def phase(self, name: str, objects: int | None = None, size: int | None = None) -> None:
        """Do nothing."""

    def advance(self, size: int) -> None:
        """Do nothing."""

    def finished(self, path: str, what: str) -> None:
        """Do nothing."""

    def failed(self, failure: Failure) -> None:
        """Do nothing."""


class Tally:
    """What was done so far.

    Parameters
    ----------
    moved, moved_size : int
        Objects that were moved, and their bytes.
    at_host : int
        Objects of these that the host copied.
    left : int
        Objects that the destination had as new already.
    """

    COUNTS = ("moved", "moved_size", "at_host", "left")

    def __init__(self) -> None:
        self.moved = self.moved_size = self.at_host = self.left = 0

    def counts(self) -> dict[str, int]:
        """Return all of it by name."""
        return {name: getattr(self, name) for name in self.COUNTS}

    def add(self, other: Tally) -> None:
        """Count what another one has counted."""
        for name, count in other.counts().items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True)
class Failure:
    """Why one object was not moved, or is not what it should be.

    Parameters
    ----------
    path : str
        Below the folder that is migrated.
    type, message : str
        The error.
    hint : str or None
        What to do about it.
    """

    path: str
    type: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, path: str, error: SovstoreError) -> Self:
        """Return the failure that an error of an object is."""
        return cls(path, type(error).__name__, error.message, error.hint)


@dataclass
class Failures:
    """The failures of a migration: all are counted, the first ones are kept."""

    count: int = 0
    first: list[Failure] = field(default_factory=list)

    def add(self, failure: Failure) -> None:
        """Count a failure."""
        self.count += 1
        if len(self.first) < _MOST_FAILURES:
            self.first.append(failure)

"""What clients did to one store at the same time, and whether one order of it explains all that they were told.

Times are those of the monotonic clock, which all processes of a machine share. Every value says itself which write it
is of, so a read is explained by naming that write: it must have begun before the read ended, and nothing that surely
changed the object may lie wholly between the two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

#: Who wrote a value, the how manieth of that client it is, and its bytes.
Value = tuple[int, int, int]
_LINE = 64
_LABEL = re.compile(rb"(\d{4}) (\d{6}) (\d{8}) (\d{8}) \.{33}\n")
#: A range of at least this many bytes holds a whole line.
SHORTEST = 2 * _LINE


@lru_cache(maxsize=64)
def content(value: Value) -> bytes:
    """Return the bytes of a value: lines that say which it is and where they stand in it, and a digest at the end."""
    client, number, size = value
    lines = (b"%04d %06d %08d %08d %s\n" % (client, number, size, at, b"." * 33) for at in range(0, size, _LINE))
    data = b"".join(lines)[: size - 32]
    return data + hashlib.sha256(data).digest()


def value_of(data: bytes, start: int | None = None) -> Value:
    """Return the value that was read whole, or from `start` on; every byte of it must be of that value.

    Raises
    ------
    AssertionError
        When it is a part, a mixture, or nothing that anybody wrote.
    """
    label = _LABEL.search(data)
    assert label is not None, data[:SHORTEST]
    client, number, size, _ = map(int, label.groups())
    whole = content((client, number, size))
    assert data == (whole if start is None else whole[start : start + len(data)]), data[:SHORTEST]
    return client, number, size


@dataclass(frozen=True)
class Done:
    """One thing that a client did or saw, between two moments in nanoseconds.

    Parameters
    ----------
    what : str
        ``write``, ``create``, ``copy`` and ``delete`` change the object at `path`; ``read`` and ``gone`` say what was
        there.
    value : Value or None
        What was written or read. None of a copy: whoever copies does not see the bytes.
    source : str or None
        Where a copy is from.
    sure : bool
        False where the client was told of a failure after which the change may be there or not.
    """

    what: str
    path: str
    begin: int
    end: int
    value: Value | None = None
    source: str | None = None
    sure: bool = True

    def put(self) -> bool:
        return self.what in ("write", "create", "copy")

    def changes(self) -> bool:
        return self.put() or self.what == "delete"


class History:
    """All that was done to one store that was empty before."""

    def __init__(self, done: Iterable[Done]) -> None:
        self.done = list(done)
        self._of: dict[str, list[Done]] = {}
        for one in self.done:
            self._of.setdefault(one.path, []).append(one)
        self._written = {one.value for one in self.done if one.what in ("write", "create")}
        self._seen = {path: self._first_seen(of) for path, of in self._of.items()}

    def _first_seen(self, of: list[Done]) -> dict[Value, int]:
        """Return when each value that was put here once, and not by a copy, had surely arrived."""
        copied = any(one.what == "copy" for one in of)
        seen: dict[Value, int] = {}
        for one in of:
            if one.value is not None and not copied:
                seen[one.value] = min(one.end, seen.get(one.value, one.end))
        return seen

    def check(self) -> int:
        """Return how many reads were checked.

        Raises
        ------
        AssertionError
            For the first that no order explains.
        """
        checked = 0
        for one in self.done:
            if one.what == "read":
                assert one.value in self._written, f"nobody wrote this: {one}"
                assert self._explained(one.path, one.value, one.begin, one.end), self._tell(one)
                checked += 1
            elif one.what == "gone":
                assert self._may_be_gone(one), self._tell(one)
                checked += 1
        return checked

    def check_creates(self) -> None:
        """Refuse a creation that can have met no moment at which there was nothing."""
        for one in self.done:
            assert one.what != "create" or not one.sure or self._may_be_gone(one), self._tell(one)

    def _arrived(self, change: Done) -> int:
        """Return when a change had surely happened: at its end, or when somebody saw it."""
        return self._seen[change.path].get(change.value, change.end) if change.value else change.end

    def _overtaken(self, change: Done, begin: int) -> bool:
        """Return whether another change lies wholly after `change` and before a read that began at `begin`."""
        after = min(self._arrived(change), change.end)
        return any(
            other.sure and other.changes() and other.begin > after and self._arrived(other) < begin
            for other in self._of[change.path]
        )

    def _candidates(self, path: str, end: int) -> Iterator[Done]:
        return (one for one in self._of.get(path, ()) if one.put() and one.begin < end)

    def _explained(
        self, path: str, value: Value, begin: int, end: int, asked: frozenset[tuple[str, int, int]] = frozenset()
    ) -> bool:
        """Return whether `value` can have been at `path` at a moment between `begin` and `end`."""
        if (path, begin, end) in asked:
            return False
        asked |= {(path, begin, end)}
        for one in self._candidates(path, end):
            if self._overtaken(one, begin):
                continue
            if one.value == value:
                return True
            if one.source is not None and self._explained(one.source, value, one.begin, one.end, asked):
                return True
        return False

    def _may_be_gone(self, read: Done) -> bool:
        of = self._of[read.path]
        deletes = [one for one in of if one.what == "delete" and one.begin < read.end]
        if any(not self._overtaken(one, read.begin) for one in deletes):
            return True
        # As in the beginning, when it was empty.
        return not any(one.sure and one.put() and self._arrived(one) < read.begin for one in of)

    def _tell(self, read: Done) -> str:
        near = sorted((one for one in self._of[read.path] if one.changes()), key=lambda one: one.begin)
        lines = [f"  {one}" for one in near if one.begin < read.end][-20:]
        return "\n".join([f"no order explains {read}", "changes before it:", *lines])

"""Whether an object is the same at both ends, by all of its bytes."""

from __future__ import annotations

from sovstore.migration.sides import Found, Pieces, Side


async def is_same(source: Side, dest: Side, path: str, expected: Found | None = None) -> bool:
    """Return whether both ends have the same bytes at a path: what is sealed is authenticated and opened for it.

    Parameters
    ----------
    expected : Found, optional
        The version of the source that is meant.

    Raises
    ------
    ObjectChangedError
        When the source is another version by now.
    ObjectNotFoundError, FormatError, IntegrityError
        When either end has no authentic object there.
    """
    ours, theirs = await source.open(path, expected), await dest.open(path)
    if ours.found.size != theirs.found.size:
        return False
    left, right = ours.stream(), theirs.stream()
    try:
        return await _equal(left, right)
    finally:
        for stream in (left, right):
            if close := getattr(stream, "aclose", None):
                await close()


async def _equal(left: Pieces, right: Pieces) -> bool:
    one, other = memoryview(b""), memoryview(b"")
    while True:
        if not one:
            one = memoryview(await anext(left, b""))
        if not other:
            other = memoryview(await anext(right, b""))
        if not one or not other:
            return not one and not other
        size = min(len(one), len(other))
        # As bytes: Python compares those at once, and views item by item.
        if bytes(one[:size]) != bytes(other[:size]):
            return False
        one, other = one[size:], other[size:]

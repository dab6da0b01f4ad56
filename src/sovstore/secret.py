"""A holder for key bytes that does not show them.

Python cannot reliably wipe memory (docs/threat-model.md); what this does is keep keys out of `repr`, logs,
tracebacks that print locals, pickles and copies.
"""

from __future__ import annotations

from typing import NoReturn


class Secret:
    """Key bytes that only `reveal` gives out.

    Parameters
    ----------
    value : bytes
        The key, of any length.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        # Not `bytes(value)`, which makes a key of 32 zeros of the number 32, and takes a list of numbers.
        self._value = memoryview(value).tobytes()

    def reveal(self) -> bytes:
        """Return the key bytes. Every use of a raw key can be found by this word."""
        return self._value

    def __len__(self) -> int:
        """Return the length in bytes."""
        return len(self._value)

    def __repr__(self) -> str:
        """Return a text without the value."""
        return f"<secret of {len(self._value)} bytes>"

    def __eq__(self, other: object) -> NoReturn:
        """Refuse: `==` is not constant time."""
        raise TypeError("compare secrets with hmac.compare_digest")

    __hash__ = None  # type: ignore[assignment]  # an unhashable holder cannot become a cache key by accident

    def __reduce__(self) -> NoReturn:
        """Refuse: a key never travels in a pickle."""
        raise TypeError("a secret cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        """Refuse: since Python 3.11 every object has one, which serialisers other than pickle ask for the value."""
        raise TypeError("a secret cannot be pickled or copied")

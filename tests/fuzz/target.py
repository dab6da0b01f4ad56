"""What a target is: one parser, what it may refuse with, and what it may cost."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sovstore.errors import SovstoreError
from tests.fuzz.secrets import shown_in

#: What one input may cost: seconds of processor time, and bytes of memory.
MOST_S, MOST_BYTES = 1.0, 64 * 2**20


class Finding(Exception):  # noqa: N818  # what a target finds is no error of its own
    """An oracle does not hold."""


def hold(condition: object, what: str) -> None:
    """Raise a finding unless a condition holds."""
    if not condition:
        raise Finding(what)


@dataclass(frozen=True)
class Target:
    """One parser.

    Parameters
    ----------
    name : str
        How it is called.
    parse : callable
        Given the bytes of an enemy; returns when they are accepted and all that must then hold does.
    refusals : tuple of classes
        What it may raise; everything else is a finding.
    seeds : callable
        Returns good objects and near misses.
    bombs : callable
        Yields a name and the largest and worst that a reader would hand to the parser.
    words : sequence of bytes
        Tokens for the mutator.
    longest : int
        Bytes of an input that the mutator makes. Longer ones are the bombs' business: a run of a million takes them
        too slowly.
    """

    name: str
    parse: Callable[[bytes], object]
    refusals: tuple[type[SovstoreError], ...]
    seeds: Callable[[], list[bytes]]
    bombs: Callable[[], Iterator[tuple[str, bytes]]]
    words: Sequence[bytes] = field(default=())
    longest: int = 4096

    def __call__(self, data: bytes) -> SovstoreError | None:
        """Try one input; return what it was refused with.

        Raises
        ------
        Finding
            When an oracle does not hold, or a refusal shows a key.
        Exception
            Whatever is not a refusal.
        """
        try:
            self.parse(data)
        except self.refusals as exc:
            if (secret := shown_in(exc)) is not None:
                raise Finding(f"a refusal shows a secret: {secret}") from exc
            return exc
        return None


def processor_time(target: Target, data: bytes) -> float:
    """Return the seconds of processor time that an input takes; other processes do not count."""
    start = time.thread_time()
    target(data)
    return time.thread_time() - start


def peak(target: Target, data: bytes) -> int:
    """Return the bytes that an input takes at most. tracemalloc counts all that Python allocates, and slows it."""
    tracemalloc.start()
    try:
        target(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

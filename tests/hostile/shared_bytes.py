"""Finds what two sets of byte strings have in common: every string of 16 bytes or more."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: Bytes that two ciphertexts share by chance only once in 2^128.
GRAM = 16
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def shared(one: Iterable[bytes], other: Iterable[bytes], constants: Iterable[bytes] = ()) -> set[bytes]:
    """Return the longest strings that both have, of 16 bytes at least, besides constants.

    What stands before a constant and what stands behind it are strings of their own: a byte that is the same by chance
    does not make a long string of a constant that is known.
    """
    borders = sorted({constant for constant in constants if constant}, key=len, reverse=True)
    split = re.compile(b"|".join(map(re.escape, borders))).split if borders else lambda piece: [piece]
    left, right = (_Grams(part for piece in pieces for part in split(piece)) for pieces in (one, other))
    found = np.isin(left.hashes, np.unique(right.hashes))
    runs: list[tuple[int, int]] = []
    for place in left.places[found].tolist():
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return {left.joined[start : end + GRAM] for start, end in runs}


class _Grams:
    """A number for each 16 bytes that stand beside each other in one of several strings."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        kept = [piece for piece in pieces if len(piece) >= GRAM]
        self.joined = b"".join(kept)
        ends = np.cumsum([len(piece) for piece in kept], dtype=np.int64)
        whole = np.ones(max(0, len(self.joined) - GRAM + 1), dtype=bool)
        # None reaches from one string into the next.
        for end in ends.tolist()[:-1]:
            whole[end - GRAM + 1 : end] = False
        self.places: NDArray[np.int64] = np.flatnonzero(whole)
        shape = (len(whole),)
        first = np.ndarray(shape, "<u8", self.joined, 0, (1,)) if len(whole) else np.zeros(0, np.uint64)
        second = np.ndarray(shape, "<u8", self.joined, 8, (1,)) if len(whole) else first
        # Two different ones of some millions get the same number about once in a million runs.
        self.hashes = (first * _FIRST ^ second * _SECOND)[self.places]

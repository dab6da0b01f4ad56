"""That `tests/history.py` refuses what cannot have been, and nothing else."""

from __future__ import annotations

import pytest

from tests.history import Done, History

A, B = (1, 1, 300), (2, 1, 300)
WROTE_A = Done("write", "x", 10, 20, A)
WROTE_B = Done("write", "x", 30, 40, B)


@pytest.mark.parametrize(
    ("done", "explained"),
    [
        ([WROTE_A, Done("read", "x", 15, 16, A)], True),
        ([WROTE_A, Done("read", "x", 5, 9, A)], False),
        ([WROTE_A, WROTE_B, Done("read", "x", 35, 36, A)], True),
        ([WROTE_A, WROTE_B, Done("read", "x", 41, 42, A)], False),
        # Somebody saw the later one already.
        ([WROTE_A, WROTE_B, Done("read", "x", 33, 34, B), Done("read", "x", 35, 36, A)], False),
        ([WROTE_A, Done("read", "y", 25, 26, A)], False),
        ([WROTE_A, Done("read", "x", 25, 26, B)], False),
        ([WROTE_A, Done("copy", "y", 25, 28, source="x"), Done("read", "y", 30, 31, A)], True),
        ([WROTE_A, WROTE_B, Done("copy", "y", 45, 48, source="x"), Done("read", "y", 50, 51, A)], False),
        ([WROTE_A, Done("gone", "x", 5, 6)], True),
        ([WROTE_A, Done("gone", "x", 25, 26)], False),
        ([WROTE_A, Done("delete", "x", 25, 30), Done("gone", "x", 26, 27)], True),
        ([WROTE_A, Done("delete", "x", 25, 30), Done("read", "x", 35, 36, A)], False),
        ([WROTE_A, Done("delete", "x", 22, 25), WROTE_B, Done("gone", "x", 45, 46)], False),
        ([WROTE_A, Done("create", "x", 25, 26, B)], False),
        ([Done("create", "x", 10, 20, A), Done("create", "x", 12, 22, B)], True),
    ],
)
def test_histories(done: list[Done], explained: bool) -> None:
    history = History(done)
    try:
        history.check()
        history.check_creates()
    except AssertionError:
        assert not explained
    else:
        assert explained

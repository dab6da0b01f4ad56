"""Every parser, a little in every suite: seeds and what is near them, bombs, and inputs that were found once."""

from __future__ import annotations

import heapq
import json
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovstore.errors import SovstoreError
from tests import stress
from tests.fuzz.target import MOST_BYTES, MOST_S, Finding, Target, peak, processor_time
from tests.fuzz.targets import TARGETS

_REGRESSIONS = Path(__file__).parent / "regressions"
_NAMES = sorted(TARGETS)
#: How often what was too slow is tried again, and how many bombs have their memory measured.
_TRIES, _MEASURED = 3, stress.amount(1, 3)


@st.composite
def changed(draw, target: Target, seeds: list[bytes]) -> bytes:
    """A seed with some changes, each of which leaves most of it as it was."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        at, end = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        end = min(end, at + 64)
        piece = draw(st.one_of(st.binary(max_size=8), st.sampled_from([*target.words, b""])))
        other = draw(st.sampled_from(seeds))
        data = draw(
            st.sampled_from(
                [
                    data[:at] + piece + data[at:],
                    data[:at] + piece + data[end:],
                    data[:at] + data[at:end] + data[at:],
                    data[:at],
                    data[:at] + other[at:],
                    data[:at] + bytes(byte ^ 1 << at % 8 for byte in data[at : at + 1]) + data[at + 1 :],
                ]
            )
        )
    return data


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**54) | st.sampled_from(["", "AA==", "primary", "0" * 32, "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "state", ""]), inner, max_size=3)
    ),
    max_leaves=4,
)


def _edited(value, draw):
    """Return a JSON value with one member of it, at any depth, replaced, doubled or taken out."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(list(keys)))
        made = dict(value) if isinstance(value, dict) else list(value)
        if not draw(st.integers(0, 5)):
            del made[key]
        elif isinstance(made, list) and not draw(st.integers(0, 3)):
            made.append(made[key])
        else:
            made[key] = _edited(value[key], draw)
        return made
    return draw(_values)


@st.composite
def edited(draw, seeds: list[tuple[bytes, object]]) -> bytes:
    """A seed in JSON with one member changed, in canonical form: what is behind the first checks is reached."""
    front, value = draw(st.sampled_from(seeds))
    return front + json.dumps(_edited(value, draw), sort_keys=True, separators=(",", ":")).encode()


def _in_json(target: Target) -> list[tuple[bytes, object]]:
    found = []
    for seed in target.seeds():
        for front in (0, 1, 2):
            try:
                value = json.loads(seed[front:])
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append((seed[:front], value))
                break
    return found


def _tried(target: Target, data: bytes) -> None:
    refused = target(data)
    if refused is not None:
        again = pickle.loads(pickle.dumps(refused))  # noqa: S301  # our own
        assert (type(again), str(again)) == (type(refused), str(refused))


@pytest.mark.parametrize("name", _NAMES)
def test_what_is_near_a_good_object(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(changed(target, target.seeds()))
    def check(data: bytes) -> None:
        _tried(target, data)

    check()


@pytest.mark.parametrize("name", ["keyset", "recovery", "replies"])
def test_good_json_that_says_something_else(name: str) -> None:
    target, seeds = TARGETS[name], _in_json(TARGETS[name])
    assert len(seeds) >= 8

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(edited(seeds))
    def check(data: bytes) -> None:
        _tried(target, data)

    check()


@pytest.mark.parametrize("name", _NAMES)
def test_any_bytes(name: str) -> None:
    target, source = TARGETS[name], random.Random(name)
    for _ in range(300):
        _tried(target, source.randbytes(source.randrange(200)))


@pytest.mark.parametrize("name", _NAMES)
def test_seeds_reach_what_they_are_for(name: str) -> None:
    """Each target accepts something, refuses something, and knows no other way to end."""
    outcomes = {type(TARGETS[name](seed)) for seed in TARGETS[name].seeds()}
    assert len(outcomes) > 1
    assert all(outcome is type(None) or issubclass(outcome, TARGETS[name].refusals) for outcome in outcomes)
    assert type(None) in outcomes


@pytest.mark.stress
@pytest.mark.parametrize("name", _NAMES)
def test_bombs(name: str) -> None:
    """No input that a reader would take costs more than a second or 64 MiB.

    The memory of the slowest is measured here, since tracemalloc makes them slower still; that of all by `make fuzz`.
    """
    target = TARGETS[name]
    timed = []
    for what, data in target.bombs():
        # Again, if need be: a bomb must not look slow because the machine is.
        seconds = _least_seconds(target, data)
        assert seconds <= MOST_S, f"{what}: {seconds:.2f} s"
        timed.append((seconds, what, data))
    assert len(timed) >= 2
    for _, what, data in heapq.nlargest(_MEASURED, timed):
        size = peak(target, data)
        assert size <= MOST_BYTES, f"{what}: {size / 2**20:.0f} MiB"


def _least_seconds(target: Target, data: bytes) -> float:
    seconds = processor_time(target, data)
    return seconds if seconds <= MOST_S else min(seconds, *(processor_time(target, data) for _ in range(_TRIES)))


@pytest.mark.parametrize("file", sorted(_REGRESSIONS.glob("*/*")), ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_was_found_once(file: Path) -> None:
    _tried(TARGETS[file.parent.name], file.read_bytes())


def test_the_regressions_are_found() -> None:
    assert len(list(_REGRESSIONS.glob("*/*"))) >= 8


def test_a_target_sees_what_it_is_for() -> None:
    """A secret in a refusal, an error of another kind and an oracle that does not hold are not taken for a refusal."""
    from tests.fuzz.secrets import KSK

    def shown(_: bytes) -> None:
        try:
            raise ValueError(KSK.reveal().hex())
        except ValueError:
            raise SovstoreError("x: refused") from None

    def wrong(_: bytes) -> None:
        raise KeyError("x")

    with pytest.raises(Finding, match="shows a secret"):
        Target("x", shown, (SovstoreError,), list, lambda: iter(()))(b"")
    with pytest.raises(KeyError):
        Target("x", wrong, (SovstoreError,), list, lambda: iter(()))(b"")

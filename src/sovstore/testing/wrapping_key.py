"""What every driver of KEKs must pass."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle  # nosec B403  # to see that keys refuse it
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sovstore.errors import ConfigError, SovstoreError, UnwrapError
from sovstore.kms.base import WrappingKey
from sovstore.testing.suite import Suite
from sovstore.trail import Trail

#: 32 bytes that must show up nowhere.
CANARY = b"canary-secret-31d0-never-print-it"[:32]
CONTEXT = bytes(range(32))


class WrappingKeyTests(Suite):
    """Subclass it and give two fixtures: `key` and `other_key`, two different KEKs of one driver.

    Override `reopen` to open a key again from its URI.
    """

    @pytest.fixture
    def key(self) -> WrappingKey:
        """A KEK."""
        raise NotImplementedError

    @pytest.fixture
    def other_key(self) -> WrappingKey:
        """Another KEK of the same driver."""
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[[str], WrappingKey]:
        """A function that opens a KEK from its URI."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [16, 32, 64])
    def test_round_trip(self, key: WrappingKey, size: int) -> None:
        secret = bytes(range(size))
        assert key.unwrap(key.wrap(secret, CONTEXT), CONTEXT) == secret

    def test_two_wraps_differ(self, key: WrappingKey) -> None:
        assert key.wrap(CANARY, CONTEXT) != key.wrap(CANARY, CONTEXT)

    def test_a_wrap_does_not_show_the_secret(self, key: WrappingKey) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        assert CANARY not in wrapped
        assert len(wrapped) <= 4096

    def test_another_key_is_refused(self, key: WrappingKey, other_key: WrappingKey) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        with pytest.raises(UnwrapError):
            other_key.unwrap(wrapped, CONTEXT)

    @pytest.mark.parametrize("position", [0, 15, 31])
    def test_another_context_is_refused(self, key: WrappingKey, position: int) -> None:
        changed = bytearray(CONTEXT)
        changed[position] ^= 1
        wrapped = key.wrap(CANARY, CONTEXT)
        with pytest.raises(UnwrapError):
            key.unwrap(wrapped, bytes(changed))

    @pytest.mark.parametrize("context", [b"", CONTEXT[:-1], CONTEXT + b"\0"])
    def test_a_context_of_another_length_is_refused(self, key: WrappingKey, context: bytes) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        with pytest.raises(UnwrapError):
            key.unwrap(wrapped, context)
        with pytest.raises(ValueError, match="context of 32 bytes"):
            key.wrap(CANARY, context)

    @pytest.mark.parametrize("size", [0, 15, 65])
    def test_a_secret_of_another_length_is_refused(self, key: WrappingKey, size: int) -> None:
        with pytest.raises(ValueError, match="16 to 64 bytes"):
            key.wrap(bytes(size), CONTEXT)

    def test_malformed_is_refused(self, key: WrappingKey) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        cut = [wrapped[:length] for length in range(0, len(wrapped), 5)]
        for bad in (
            *cut,
            wrapped[:-1],
            wrapped[1:],
            wrapped + b"\0",
            wrapped + wrapped,
            b"\0" + wrapped,
            bytes(len(wrapped)),
            b"\xff" * len(wrapped),
            wrapped[::-1],
            wrapped.swapcase(),
            wrapped + b"=",
            wrapped + b"\n",
            b" " + wrapped,
            bytes(5000),
        ):
            if bad == wrapped:
                continue
            with pytest.raises(UnwrapError):
                key.unwrap(bad, CONTEXT)

    def test_a_bit_flipped_in_any_byte_is_refused(self, key: WrappingKey) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        for position in range(len(wrapped)):
            changed = bytearray(wrapped)
            # The low bits are those that a lax decoder of text ignores.
            changed[position] ^= 1 << (position % 3)
            with pytest.raises(UnwrapError):
                key.unwrap(bytes(changed), CONTEXT)

    def test_the_uri_opens_the_same_key(
        self, key: WrappingKey, other_key: WrappingKey, reopen: Callable[[str], WrappingKey]
    ) -> None:
        again = reopen(key.uri)
        assert again.uri == key.uri != other_key.uri
        assert again.unwrap(key.wrap(CANARY, CONTEXT), CONTEXT) == CANARY

    def test_the_secret_is_nowhere(self, key: WrappingKey, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        wrapped = key.wrap(CANARY, CONTEXT)
        key.unwrap(wrapped, CONTEXT)
        with pytest.raises(UnwrapError) as caught:
            key.unwrap(wrapped[:-1], CONTEXT)
        shown = repr(key) + str(caught.value) + repr(caught.value) + caplog.text
        for form in (CANARY.decode(), CANARY.hex(), base64.b64encode(CANARY).decode()[:-1]):
            assert form not in shown
        assert CANARY not in pickle.dumps(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # nosec B301  # our own
        assert (type(again), str(again), again.path) == (UnwrapError, str(caught.value), key.uri)

    def test_it_does_not_pickle(self, key: WrappingKey) -> None:
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(key)

    def test_errors_of_two_causes_look_alike(self, key: WrappingKey, other_key: WrappingKey) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        with pytest.raises(SovstoreError) as changed:
            key.unwrap(wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT)
        with pytest.raises(SovstoreError) as foreign:
            key.unwrap(other_key.wrap(CANARY, CONTEXT), CONTEXT)
        assert str(changed.value) == str(foreign.value)

    def test_two_threads(self, key: WrappingKey) -> None:
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(lambda n: _round_trip(key, n), range(50)))

    def test_two_processes(self, key: WrappingKey, reopen: Callable[[str], WrappingKey]) -> None:
        # The child has a key that was opened before it was forked, and one that it opens itself.
        assert _round_trip(key, 0)
        child = os.fork()
        if child == 0:
            _leave(lambda: all(_round_trip(each, n) for n in range(5) for each in (key, reopen(key.uri))))
        assert all(_round_trip(key, n) for n in range(5, 10))
        assert _exit_code(child) == 0

    def test_it_can_be_used_after_it_was_closed(self, key: WrappingKey) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        key.close()
        key.close()
        assert key.unwrap(wrapped, CONTEXT) == CANARY

    def test_what_it_says_of_itself(self, key: WrappingKey) -> None:
        described = dict(key.describe())
        assert described.keys() <= {"protection_level", "algorithm", "version", "state"}
        assert all(described.values())
        assert described.get("protection_level", "software") in ("software", "hsm")

    def test_each_call_is_a_line_of_the_audit_trail(
        self, key: WrappingKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key, "trail", Trail("store", tmp_path / "audit.jsonl"))
        wrapped = key.wrap(CANARY, CONTEXT)
        key.unwrap(wrapped, CONTEXT)
        with pytest.raises(UnwrapError):
            key.unwrap(wrapped[:-1], CONTEXT)
        text = (tmp_path / "audit.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["action"], line["outcome"]) for line in lines] == [
            ("wrap", "done"),
            ("unwrap", "done"),
            ("unwrap", "UnwrapError"),
        ]
        assert {(line["store"], line["kek"], line["provider"]) for line in lines} == {("store", key.uri, key.provider)}
        for form in (CANARY.decode(), CANARY.hex(), base64.b64encode(CANARY).decode()[:-1], CONTEXT.hex()):
            assert form not in text

    def test_a_trail_that_cannot_be_written_stops_the_call(
        self, key: WrappingKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrapped = key.wrap(CANARY, CONTEXT)
        monkeypatch.setattr(key, "trail", Trail("store", tmp_path / "nowhere" / "audit.jsonl"))
        with pytest.raises(ConfigError, match="audit trail"):
            key.unwrap(wrapped, CONTEXT)


def _round_trip(key: WrappingKey, number: int) -> bool:
    secret = number.to_bytes(32, "big")
    return key.unwrap(key.wrap(secret, CONTEXT), CONTEXT) == secret


def _leave(work: Callable[[], bool]) -> None:
    """End a forked child, which must run nothing of the tests' own end."""
    code = 1
    try:
        code = 0 if work() else 1
    finally:
        os._exit(code)


def _exit_code(child: int) -> int:
    """Return how a child ended; one that hangs is killed."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

"""What every driver of KEKs must pass."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sovstore.errors import SovstoreError, UnwrapError
from sovstore.kms.base import WrappingKey
from sovstore.testing.suite import Suite

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
        first, last = bytearray(wrapped), bytearray(wrapped)
        first[0] ^= 0x80
        last[-1] ^= 0x01
        for bad in (
            b"",
            wrapped[:-1],
            wrapped[1:],
            wrapped + b"\0",
            bytes(first),
            bytes(last),
            bytes(len(wrapped)),
        ):
            with pytest.raises(UnwrapError):
                key.unwrap(bad, CONTEXT)

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
        for form in (CANARY.decode(), CANARY.hex()):
            assert form not in shown
        assert CANARY not in pickle.dumps(caught.value)

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
        def work(n: int) -> bool:
            secret = n.to_bytes(32, "big")
            return key.unwrap(key.wrap(secret, CONTEXT), CONTEXT) == secret

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(work, range(50)))

"""`WrappingKeyTests` on every driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.testing import WrappingKeyTests

ACCESS = Access(passphrase=lambda _prompt: "passphrase of the conformance tests")


def _reopen(uri: str) -> WrappingKey:
    return registry.open_key(uri, ACCESS)


class TestKeyFile(WrappingKeyTests):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("keys")
        for name in ("one", "two"):
            registry.create_key(f"keyfile:{folder / name}", ACCESS)
        return folder

    @pytest.fixture
    def key(self, folder: Path) -> WrappingKey:
        return _reopen(f"keyfile:{folder / 'one'}")

    @pytest.fixture
    def other_key(self, folder: Path) -> WrappingKey:
        return _reopen(f"keyfile:{folder / 'two'}")

    @pytest.fixture
    def reopen(self) -> Callable[[str], WrappingKey]:
        return _reopen


@pytest.mark.usefixtures("os_keyring")
class TestKeyring(WrappingKeyTests):
    """On a real Secret Service."""

    def _made(self, uri: str) -> WrappingKey:
        return _reopen(uri) if registry.key_exists(uri) else registry.create_key(uri, ACCESS)

    @pytest.fixture
    def key(self) -> WrappingKey:
        return self._made("keyring://sovstore-tests/one")

    @pytest.fixture
    def other_key(self) -> WrappingKey:
        return self._made("keyring://sovstore-tests/two")

    @pytest.fixture
    def reopen(self) -> Callable[[str], WrappingKey]:
        return _reopen

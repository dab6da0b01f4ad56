"""`WrappingKeyTests` on a real PKCS#11 token (SoftHSM)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.settings import Service
from sovstore.testing import WrappingKeyTests
from tests.servers.softhsm import SoftHSMToken


class TestPKCS11(WrappingKeyTests):
    @pytest.fixture(scope="class")
    @classmethod
    def keys(cls, softhsm_token: SoftHSMToken) -> SoftHSMToken:
        for name in ("one", "two"):
            softhsm_token.make_key(f"conformance-{name}")
        return softhsm_token

    @pytest.fixture
    def reopen(self, keys: SoftHSMToken, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WrappingKey]:
        for name, value in keys.environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "pin").write_text(f"{keys.pin}\n")
        service = Service(
            name="hsm", uri=f"pkcs11:token={keys.label}", module=keys.module, pin=f"file:{tmp_path / 'pin'}"
        )
        return lambda uri: registry.open_key(uri, Access(services=(service,)))

    @pytest.fixture
    def key(self, keys: SoftHSMToken, reopen: Callable[[str], WrappingKey]) -> WrappingKey:
        return reopen(f"pkcs11:token={keys.label};object=conformance-one")

    @pytest.fixture
    def other_key(self, keys: SoftHSMToken, reopen: Callable[[str], WrappingKey]) -> WrappingKey:
        return reopen(f"pkcs11:token={keys.label};object=conformance-two;type=secret-key")

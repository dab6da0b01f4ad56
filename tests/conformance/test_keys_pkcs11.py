"""`WrappingKeyTests` on a real PKCS#11 token (SoftHSM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.settings import Service
from sovstore.testing import WrappingKeyTests
from tests.servers.softhsm import SoftHSMToken


class TestPKCS11(WrappingKeyTests):
    """By the token's label, with the PIN from a variable."""

    @pytest.fixture(scope="class")
    @classmethod
    def uris(cls, softhsm_token: SoftHSMToken) -> tuple[str, str]:
        return softhsm_token.make_key("conformance-one"), softhsm_token.make_key("conformance-two")

    @pytest.fixture
    def reopen(
        self, softhsm_token: SoftHSMToken, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[str], WrappingKey]]:
        monkeypatch.setenv("TOKEN_PIN", softhsm_token.pin)
        service = Service(
            "hsm", f"pkcs11:token={softhsm_token.label}", module=softhsm_token.module, pin="env:TOKEN_PIN"
        )
        opened: list[WrappingKey] = []

        def reopen(uri: str) -> WrappingKey:
            opened.append(registry.open_key(uri, Access(services=(service,))))
            return opened[-1]

        yield reopen
        for key in opened:
            key.close()

    @pytest.fixture
    def key(self, uris: tuple[str, str], reopen: Callable[[str], WrappingKey]) -> WrappingKey:
        return reopen(uris[0])

    @pytest.fixture
    def other_key(self, uris: tuple[str, str], reopen: Callable[[str], WrappingKey]) -> WrappingKey:
        return reopen(uris[1])

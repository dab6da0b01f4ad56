"""`WrappingKeyTests` on OVHcloud KMS, against a strict fake, by each way to log in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from sovstore.kms import registry
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.settings import Service
from sovstore.testing import WrappingKeyTests
from tests.servers.okms_fake import OKMSFake


class _OKMSTests(WrappingKeyTests):
    @pytest.fixture
    def service(self, okms_fake: OKMSFake, monkeypatch: pytest.MonkeyPatch) -> Service:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self, service: Service) -> Callable[[str], WrappingKey]:
        return lambda uri: registry.open_key(uri, Access(services=(service,)))

    @pytest.fixture
    def key(self, okms_fake: OKMSFake, reopen: Callable[[str], WrappingKey]) -> WrappingKey:
        return reopen(okms_fake.uri(okms_fake.add_key()))

    @pytest.fixture
    def other_key(self, okms_fake: OKMSFake, reopen: Callable[[str], WrappingKey]) -> WrappingKey:
        return reopen(okms_fake.uri(okms_fake.add_key()))


def _table(fake: OKMSFake) -> Service:
    return Service(name="ovh", uri="okms://eu-west-par", ca_file=str(fake.files.ca_file))


class TestByCertificate(_OKMSTests):
    @pytest.fixture
    def service(self, okms_fake: OKMSFake, monkeypatch: pytest.MonkeyPatch) -> Service:
        pem = str(okms_fake.certificate())
        return dataclasses.replace(_table(okms_fake), cert_file=pem, key_file=pem)


class TestByToken(_OKMSTests):
    @pytest.fixture
    def service(self, okms_fake: OKMSFake, monkeypatch: pytest.MonkeyPatch) -> Service:
        monkeypatch.setenv("OF_THE_TESTS", okms_fake.token())
        return dataclasses.replace(_table(okms_fake), token="env:OF_THE_TESTS")


class TestByTokenOfTheCommandLineTool(_OKMSTests):
    @pytest.fixture
    def service(self, okms_fake: OKMSFake, monkeypatch: pytest.MonkeyPatch) -> Service:
        monkeypatch.setenv("KMS_RESTAPI_TOKEN", okms_fake.token())
        return _table(okms_fake)

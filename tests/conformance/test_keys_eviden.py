"""`WrappingKeyTests` on Eviden KMS, by both interfaces: a fake of it, see `tests.servers.eviden_fake`."""

from __future__ import annotations

import pytest

from sovstore.kms.settings import Service
from sovstore.testing import WrappingKeyTests
from tests.servers.eviden_fake import EvidenFake, Key, make_client_certificate
from tests.servers.http_fake import running
from tests.servers.opened import opener


class _Eviden(WrappingKeyTests):
    api = "jose"
    uids = ("027cced1-ff2b-4bd3-a200-db1041583bdc", "cohortes")

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("eviden")
        fake, certificate = EvidenFake(), make_client_certificate(folder)
        for uid in cls.uids:
            fake.add(Key(uid))
        with running(fake, folder, client_ca=certificate):
            yield fake, certificate

    @pytest.fixture
    def reopen(self, service):
        fake, certificate = service
        files = {"cert_file": str(certificate), "key_file": str(certificate), "ca_file": str(fake.ca_file)}
        with opener(Service(uri=f"eviden-kms://127.0.0.1:{fake.port}", **files)) as opened:
            yield opened

    @pytest.fixture
    def key(self, service, reopen):
        return reopen(service[0].uri(self.uids[0], self.api))

    @pytest.fixture
    def other_key(self, service, reopen):
        return reopen(service[0].uri(self.uids[1], self.api))


class TestEvidenJOSE(_Eviden):
    """With ``/v1/crypto``."""


class TestEvidenKMIP(_Eviden):
    """With ``/kmip/2_1``, keys in software."""

    api = "kmip"


class TestEvidenHSM(_Eviden):
    """With ``/kmip/2_1``, keys in an HSM, which take no AAD."""

    api = "kmip"
    uids = ("hsm::0::cohortes", "hsm::proteccio::1::registry")

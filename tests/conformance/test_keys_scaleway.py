"""`WrappingKeyTests` on Scaleway Key Manager: a fake of it, see `tests.servers.scaleway_fake`."""

from __future__ import annotations

import pytest

from sovstore.kms.settings import Service
from sovstore.testing import WrappingKeyTests
from tests.servers.http_fake import running
from tests.servers.opened import opener
from tests.servers.scaleway_fake import Key, ScalewayFake


class TestScaleway(WrappingKeyTests):
    @pytest.fixture(scope="class")
    @classmethod
    def fake(cls, tmp_path_factory):
        fake = ScalewayFake()
        with running(fake, tmp_path_factory.mktemp("scaleway")):
            yield fake

    @pytest.fixture(scope="class")
    @classmethod
    def keys(cls, fake):
        return fake.add(Key()), fake.add(Key())

    @pytest.fixture
    def reopen(self, fake, monkeypatch):
        monkeypatch.setenv("SCW_SECRET_KEY", "writer-5cc8e1f4")
        with opener(Service(uri="scw-kms://fr-par", ca_file=str(fake.ca_file))) as opened:
            yield opened

    @pytest.fixture
    def key(self, fake, keys, reopen):
        return reopen(fake.uri(keys[0]))

    @pytest.fixture
    def other_key(self, fake, keys, reopen):
        return reopen(fake.uri(keys[1]))

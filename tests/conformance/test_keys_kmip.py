"""`WrappingKeyTests` on a real KMIP server (PyKMIP) over mutual TLS, with KMIP 1.4 and 2.0."""

from __future__ import annotations

import pytest

from sovstore.testing import WrappingKeyTests
from tests.servers.opened import opener


class _KMIP(WrappingKeyTests):
    suffix = ""

    @pytest.fixture(scope="class")
    @classmethod
    def uris(cls, pykmip_server):
        return [pykmip_server.key_uri(uid) + cls.suffix for uid in pykmip_server.create_keys(2)]

    @pytest.fixture
    def reopen(self, pykmip_server):
        with opener(pykmip_server.service) as opened:
            yield opened

    @pytest.fixture
    def key(self, uris, reopen):
        return reopen(uris[0])

    @pytest.fixture
    def other_key(self, uris, reopen):
        return reopen(uris[1])


class TestKMIP14(_KMIP):
    """With KMIP 1.4, the default."""


class TestKMIP20(_KMIP):
    """With KMIP 2.0."""

    suffix = "?version=2.0"

"""`WrappingKeyTests` on a real OpenBao, for every way to log in; and on a fake of Clever Cloud KMS."""

from __future__ import annotations

import pytest

from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from sovstore.testing import WrappingKeyTests
from tests.servers.clever import fake_clever


def rules(mount, *keys):
    """Return what a writer may do: look at its keys, wrap and unwrap."""
    rights = {"keys": "read", "encrypt": "update", "decrypt": "update"}
    return {f"{mount}/{what}/{key}": right for key in keys for what, right in rights.items()}


class _Transit(WrappingKeyTests):
    """One class of keys: gives `place`, the two URIs and the service."""

    @pytest.fixture
    def reopen(self, place):
        access = Access(services=(place[2],))
        opened = []

        def reopen(uri):
            opened.append(registry.open_key(uri, access))
            return opened[-1]

        yield reopen
        for key in opened:
            key.close()

    @pytest.fixture
    def key(self, place, reopen):
        return reopen(place[0])

    @pytest.fixture
    def other_key(self, place, reopen):
        return reopen(place[1])


def _secret_file(folder, value):
    path = folder / "secret"
    path.write_text(f"{value}\n")
    return f"file:{path}"


class TestToken(_Transit):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, openbao_server, tmp_path_factory):
        one, two = openbao_server.make_key(), openbao_server.make_key(type="chacha20-poly1305")
        token = _secret_file(tmp_path_factory.mktemp("token"), openbao_server.make_token(rules("transit", one, two)))
        base = f"openbao://{openbao_server.address}"
        service = Service(uri=base, ca_file=str(openbao_server.ca_file), token=token)
        return f"{base}/transit/{one}", f"{base}/transit/{two}", service


class TestVaultAlias(_Transit):
    """With keys of the other kinds, in a mount of several segments."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, openbao_server, tmp_path_factory):
        mount = "team/alias/transit"
        openbao_server.mount(mount)
        one = openbao_server.make_key(mount=mount, type="xchacha20-poly1305")
        two = openbao_server.make_key(mount=mount, type="aes128-gcm96")
        token = _secret_file(tmp_path_factory.mktemp("token"), openbao_server.make_token(rules(mount, one, two)))
        base = f"vault://{openbao_server.address}"
        service = Service(uri=base, ca_file=str(openbao_server.ca_file), token=token)
        return f"{base}/{mount}/{one}", f"{base}/{mount}/{two}", service


class TestAppRole(_Transit):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, openbao_server, tmp_path_factory):
        one, two = openbao_server.make_key(), openbao_server.make_key()
        role_id, secret_id = openbao_server.make_approle(rules("transit", one, two))
        base = f"openbao://{openbao_server.address}"
        service = Service(
            uri=base,
            ca_file=str(openbao_server.ca_file),
            auth="approle",
            role_id=role_id,
            secret_id=_secret_file(tmp_path_factory.mktemp("approle"), secret_id),
        )
        return f"{base}/transit/{one}", f"{base}/transit/{two}", service


class TestClientCertificate(_Transit):
    """At the listener that takes nobody without one."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, openbao_server):
        one, two = openbao_server.make_key(), openbao_server.make_key()
        base = f"openbao://{openbao_server.mtls_address}"
        service = Service(
            uri=base,
            ca_file=str(openbao_server.ca_file),
            cert_file=str(openbao_server.client_certificate),
            key_file=str(openbao_server.client_certificate),
            auth="cert",
            role=openbao_server.make_certificate_role(rules("transit", one, two)),
        )
        return f"{base}/transit/{one}", f"{base}/transit/{two}", service


class TestJWT(_Transit):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, openbao_server, tmp_path_factory):
        one, two = openbao_server.make_key(), openbao_server.make_key()
        base = f"openbao://{openbao_server.address}"
        service = Service(
            uri=base,
            ca_file=str(openbao_server.ca_file),
            auth="jwt",
            role=openbao_server.make_jwt_role(rules("transit", one, two)),
            jwt=_secret_file(tmp_path_factory.mktemp("jwt"), openbao_server.sign_jwt()),
        )
        return f"{base}/transit/{one}", f"{base}/transit/{two}", service


class TestNamespace(_Transit):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, openbao_server, tmp_path_factory):
        openbao_server.make_namespace("hospital")
        one, two = (openbao_server.make_key(namespace="hospital") for _ in range(2))
        token = openbao_server.make_token(rules("transit", one, two), namespace="hospital")
        base = f"openbao://{openbao_server.address}"
        reference = _secret_file(tmp_path_factory.mktemp("token"), token)
        service = Service(uri=base, ca_file=str(openbao_server.ca_file), token=reference)
        where = f"{base}/transit/{{}}?namespace=hospital"
        return where.format(one), where.format(two), service


class TestFakeOfCleverCloud(_Transit):
    """On a fake: it shows that the driver does what the documentation of Clever Cloud KMS says, and no more."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory):
        with fake_clever(tmp_path_factory.mktemp("clever")) as fake:
            one, two = fake.make_key(), fake.make_key()
            token = _secret_file(tmp_path_factory.mktemp("token"), fake.token)
            base = f"openbao://{fake.address}"
            service = Service(uri=base, ca_file=str(fake.ca_file), token=token)
            yield f"{base}/transit/{one}?dialect=clever", f"{base}/transit/{two}?dialect=clever", service

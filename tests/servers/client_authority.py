"""An authority that issues certificates to clients, and to servers of other names than loopback has.

`tls.py` makes the certificate of a server and forgets the authority's key; here it is kept in memory, so that a test
can ask for one more certificate, also for one that is wrong in one way.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

_DAY = datetime.timedelta(days=1)


class ClientAuthority:
    """An authority of the tests; its certificate is in `ca_file`, its key nowhere.

    Parameters
    ----------
    directory : Path
        Where it writes what it makes; the names of files begin with `name`.
    name : str
        Of the authority.
    """

    def __init__(self, directory: Path, name: str = "clients") -> None:
        self._directory, self._name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = _distinguished(f"sovstore test authority {name}")
        builder = _builder(subject, subject, self._key.public_key(), _DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.ca_file = directory / f"{name}-ca.pem"
        self.ca_file.write_bytes(_pem(self._certificate))

    def client_certificate(self, identity: str, *, expired: bool = False, for_clients: bool = True) -> Path:
        """Return a PEM file with a client's certificate and its private key.

        Parameters
        ----------
        identity : str
            Common name: who the server takes the client for.
        expired : bool
            Make one that was valid until an hour ago.
        for_clients : bool
            Let its extended key usage say that it is for clients.
        """
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if for_clients else ExtendedKeyUsageOID.EMAIL_PROTECTION
        return self._issue(identity, usage, (), -_DAY / 24 if expired else _DAY)

    def server_certificate(self, *names: str) -> Path:
        """Return a PEM file with the certificate of a server of these DNS names, and its private key."""
        return self._issue(names[0], ExtendedKeyUsageOID.SERVER_AUTH, names, _DAY)

    def _issue(self, common_name: str, usage: ObjectIdentifier, names: Sequence[str], ends: datetime.timedelta) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_distinguished(common_name), self._certificate.subject, key.public_key(), ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        path = self._directory / f"{self._name}-{certificate.serial_number:x}.pem"
        # Created with its mode: it is never open to others, not even between two calls.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_pem(certificate) + _private_pem(key))
        return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = (
        builder.serial_number(x509.random_serial_number()).not_valid_before(now - _DAY).not_valid_after(now + ends)
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _distinguished(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

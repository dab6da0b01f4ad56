"""Certificates of clients, for servers that ask for one: an authority of their own, and what it issues."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class ClientAuthority:
    """An authority whose certificate is in `ca_file`; its key is in memory only."""

    directory: Path
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def ca_file(self) -> Path:
        """What a server must trust."""
        return self.directory / "clients.pem"

    def issue(self, name: str, principal: str | None = None, *, days: int = 1) -> Path:
        """Return a PEM file with a client's certificate and key.

        Parameters
        ----------
        name : str
            The common name, and the name of the file.
        principal : str, optional
            Stands in an otherName, as a Microsoft user principal name does.
        days : int
            For how long it is valid; negative for one that has expired.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self.certificate.subject, key, days)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if principal is not None:
            other = x509.OtherName(_UPN, b"\x0c" + bytes([len(principal)]) + principal.encode())
            builder = builder.add_extension(x509.SubjectAlternativeName([other]), critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        path = self.directory / f"{name}.pem"
        content = signed.public_bytes(serialization.Encoding.PEM) + _pem(key)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        return path


def make_client_authority(directory: Path) -> ClientAuthority:
    """Make an authority; write its certificate to `directory`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("sovstore test authority of clients")
    builder = _builder(name, name, key, 1).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority = ClientAuthority(directory, key, builder.sign(key, hashes.SHA256()))
    authority.ca_file.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    return authority


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - 2 * _DAY).not_valid_after(now + days * _DAY)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

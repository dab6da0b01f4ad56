"""An authority that issues certificates to clients, good and bad, and to servers of other names than loopback has.

`tls.py` makes the certificate of a server and forgets the authority's key; here it is kept in memory, so that a test
can ask for one more.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from tests.servers import tls

#: otherName of a Microsoft user principal name.
_UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")


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
        subject = tls.distinguished_name(f"sovstore test authority {name}")
        builder = tls.certificate_builder(subject, subject, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(tls.key_usage(signs_certificates=True), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.ca_file = directory / f"{name}-ca.pem"
        self.ca_file.write_bytes(tls.pem(self._certificate))

    def issue(self, name: str, principal: str | None = None, *, days: int = 1, for_clients: bool = True) -> Path:
        """Return a PEM file with a client's certificate and its private key.

        Parameters
        ----------
        name : str
            Common name: who a server takes the client for.
        principal : str, optional
            Stands in an otherName, as a Microsoft user principal name does.
        days : int
            For how long it is valid; negative for one that has expired.
        for_clients : bool
            Let its extended key usage say that it is for clients.
        """
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if for_clients else ExtendedKeyUsageOID.EMAIL_PROTECTION
        names: list[x509.GeneralName] = []
        if principal is not None:
            names.append(x509.OtherName(_UPN, b"\x0c" + bytes([len(principal)]) + principal.encode()))
        return self._issue(name, usage, names, datetime.timedelta(days=days))

    def server_certificate(self, *names: str) -> Path:
        """Return a PEM file with the certificate of a server of these DNS names, and its private key."""
        dns = [x509.DNSName(name) for name in names]
        return self._issue(names[0], ExtendedKeyUsageOID.SERVER_AUTH, dns, datetime.timedelta(days=1))

    def _issue(
        self, name: str, usage: ObjectIdentifier, names: Sequence[x509.GeneralName], valid_for: datetime.timedelta
    ) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        subject, issuer = tls.distinguished_name(name), self._certificate.subject
        builder = tls.certificate_builder(subject, issuer, key.public_key(), valid_for=valid_for)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(tls.key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        path = self._directory / f"{self._name}-{certificate.serial_number:x}.pem"
        tls.write_private(path, tls.pem(certificate) + tls.private_pem(key))
        return path

"""An authority for the clients of one server of a run, and the certificates it issues to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.servers import tls


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """The PEM files of a client that shows a certificate."""

    #: the authority that the server trusts
    ca_file: Path
    #: the client's certificate and its private key, one after the other
    certificate: Path


def make_client(directory: Path, name: str) -> ClientFiles:
    """Make an authority of that name and a client's certificate with it as common name; write them to `directory`."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = tls._authority(ca_key)
    builder = tls._builder(tls._name(name), ca.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = builder.add_extension(issuer, critical=False).sign(ca_key, hashes.SHA256())
    files = ClientFiles(directory / f"{name}-ca.pem", directory / f"{name}.pem")
    files.ca_file.write_bytes(tls._pem(ca))
    tls._write_private(files.certificate, tls._pem(certificate) + tls._private_pem(key))
    return files

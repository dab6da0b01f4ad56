"""Recovery keys and recipients: HPKE, hybrid post-quantum (docs/spec/format.md, 6.4 and 7).

The suite is MLKEM1024-P384 of draft-ietf-hpke-pq with HKDF-SHA512 and AES-256-GCM: ANSSI asks that a post-quantum
key exchange be combined with a pre-quantum one. A recovery key is made offline, and is the only private key of a store.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sovstore.errors import ConfigError, FormatError, IntegrityError
from sovstore.format import canonical
from sovstore.secret import Secret

_SUITE = hpke.Suite(hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA512, hpke.AEAD.AES_256_GCM)
_MLKEM_SEED, _MLKEM_PUBLIC, _P384_SCALAR, _P384_PUBLIC = 64, 1568, 48, 97
_KEY_FORMAT = "sovstore recovery key 1"
_RECIPIENT_FORMAT = "sovstore recovery recipient 1"
_FILE_LIMIT = 16384


def _info(store_id: bytes) -> bytes:
    return b"sovstore/1 recovery\x00" + store_id


@dataclass(frozen=True)
class Recipient:
    """The public half: seals the KSK of a store.

    Parameters
    ----------
    mlkem1024 : bytes
        ML-KEM-1024 public key, 1568 bytes.
    p384 : bytes
        P-384 public key, uncompressed point of 97 bytes.
    """

    mlkem1024: bytes
    p384: bytes

    @property
    def id(self) -> bytes:
        """The recipient id, 16 bytes."""
        return hashlib.sha256(self.mlkem1024 + self.p384).digest()[:16]

    def seal(self, ksk: Secret, store_id: bytes) -> bytes:
        """Return the KSK (32 bytes) sealed for this recipient: 1713 bytes."""
        public = hpke.MLKEM1024P384PublicKey(
            mlkem.MLKEM1024PublicKey.from_public_bytes(self.mlkem1024),
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), self.p384),
        )
        return _SUITE.encrypt(ksk.reveal(), public, _info(store_id))

    def dump(self) -> bytes:
        """Return the file content of a recipient."""
        encode = canonical.to_base64
        return canonical.dump(
            {"format": _RECIPIENT_FORMAT, "mlkem1024": encode(self.mlkem1024), "p384": encode(self.p384)}
        )

    @classmethod
    def load(cls, raw: bytes, *, what: str) -> Recipient:
        """Return the recipient that a file holds.

        Raises
        ------
        ConfigError
            When the file is something else, among them the private recovery key.
        """
        mlkem1024, p384 = _load(raw, _RECIPIENT_FORMAT, _MLKEM_PUBLIC, _P384_PUBLIC, what)
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), p384)
            mlkem.MLKEM1024PublicKey.from_public_bytes(mlkem1024)
        except ValueError as exc:
            raise ConfigError(f"{what}: not a recovery recipient", path=what) from exc
        return cls(mlkem1024, p384)


class RecoveryKey:
    """The private half: opens a seal. Never stored at the host.

    Parameters
    ----------
    mlkem_seed : bytes
        ML-KEM-1024 seed, 64 bytes.
    p384_scalar : bytes
        P-384 private scalar, 48 bytes, big endian.

    Raises
    ------
    ValueError
        When the scalar is not one of the curve.
    """

    def __init__(self, mlkem_seed: bytes, p384_scalar: bytes) -> None:
        self._seed, self._scalar = mlkem_seed, p384_scalar
        self._mlkem = mlkem.MLKEM1024PrivateKey.from_seed_bytes(mlkem_seed)
        self._p384 = ec.derive_private_key(int.from_bytes(p384_scalar, "big"), ec.SECP384R1())

    @classmethod
    def generate(cls) -> RecoveryKey:
        """Return a new key."""
        scalar = ec.generate_private_key(ec.SECP384R1()).private_numbers().private_value
        return cls(os.urandom(_MLKEM_SEED), scalar.to_bytes(_P384_SCALAR, "big"))

    @property
    def recipient(self) -> Recipient:
        """The public half."""
        point = self._p384.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return Recipient(self._mlkem.public_key().public_bytes_raw(), point)

    def unseal(self, seal: bytes, store_id: bytes) -> Secret:
        """Return the KSK, 32 bytes.

        Raises
        ------
        IntegrityError
            When the seal was not made for this key and this store.
        """
        private = hpke.MLKEM1024P384PrivateKey(self._mlkem, self._p384)
        try:
            return Secret(_SUITE.decrypt(seal, private, _info(store_id)))
        except InvalidTag as exc:
            raise IntegrityError("keyset: the recovery seal failed authentication") from exc

    def dump(self) -> bytes:
        """Return the file content of the private key. It is not encrypted: it belongs offline."""
        encode = canonical.to_base64
        return canonical.dump({"format": _KEY_FORMAT, "mlkem1024": encode(self._seed), "p384": encode(self._scalar)})

    @classmethod
    def load(cls, raw: bytes, *, what: str) -> RecoveryKey:
        """Return the key that a file holds.

        Raises
        ------
        ConfigError
            When the file is something else.
        """
        seed, scalar = _load(raw, _KEY_FORMAT, _MLKEM_SEED, _P384_SCALAR, what)
        # Outside the handler, so that not even the context of the error leads to the library's, which could hold it.
        with suppress(ValueError):
            return cls(seed, scalar)
        del seed, scalar
        raise ConfigError(f"{what}: not a recovery key", path=what)

    def __repr__(self) -> str:
        """Return a text without the key."""
        return f"<recovery key {self.recipient.id.hex()}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse: a key never travels in a pickle."""
        raise TypeError("a recovery key cannot be pickled or copied")


def _load(raw: bytes, kind: str, mlkem_len: int, p384_len: int, what: str) -> tuple[bytes, bytes]:
    # Not in a handler: the errors of the parsers hold the whole file, and would stay the context of ours.
    with suppress(FormatError):
        fields = canonical.Fields(
            canonical.load(raw.removesuffix(b"\n"), limit=_FILE_LIMIT, what=what),
            "format mlkem1024 p384",
            what=what,
        )
        fields.choice("format", kind)
        return fields.base64("mlkem1024", mlkem_len, mlkem_len), fields.base64("p384", p384_len, p384_len)
    raise ConfigError(
        f"{what}: not a {kind[9:-2]}",
        path=what,
        hint="'sovstore keys recovery-new' makes the pair; the .pub file is the recipient",
    )

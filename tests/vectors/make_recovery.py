"""Make the vectors of keysets that a recovery key opens."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors.keyset_parts import (
    KSK,
    OTHER_AUTH,
    b64,
    body_of,
    canonical,
    changed,
    compact,
    encrypted,
    fingerprint,
    opened,
    outer_of,
    setting,
    tag_of,
)
from tests.vectors.make_objects import OTHER_STORE, STORE_ID, Made, draw, vector

SUITE = hpke.Suite(hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA512, hpke.AEAD.AES_256_GCM)
ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)
SEED, SCALAR = draw("ML-KEM seed", 64), draw("P-384 scalar", 48)
#: Which bytes are sealed for which store, by the name that a seal has in recovery.json.
SEALED = {
    "own": (KSK, STORE_ID),
    "other_store": (KSK, OTHER_STORE),
    "other_ksk": (draw("other ksk", 32), STORE_ID),
    "short_ksk": (KSK[:31], STORE_ID),
}


def private_key(seed: bytes = SEED, scalar: bytes = SCALAR) -> hpke.MLKEM1024P384PrivateKey:
    """Return a recovery key for HPKE."""
    p384 = ec.derive_private_key(int.from_bytes(scalar), ec.SECP384R1())
    return hpke.MLKEM1024P384PrivateKey(mlkem.MLKEM1024PrivateKey.from_seed_bytes(seed), p384)


def recipient_of(seed: bytes = SEED, scalar: bytes = SCALAR) -> str:
    """Return a recipient id (section 6.4)."""
    point = ec.derive_private_key(int.from_bytes(scalar), ec.SECP384R1()).public_key()
    kem = mlkem.MLKEM1024PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
    public = kem + point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha256(public).hexdigest()[:32]


def recovery_key_of(seed: bytes = SEED, scalar: bytes = SCALAR) -> dict[str, str]:
    """Return a recovery key of section 7."""
    return {"format": "sovstore recovery key 1", "mlkem1024": b64(seed), "p384": b64(scalar)}


def keep_seals(file: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the seals, kept from the file where they open, and the names of those made anew."""
    kept = json.loads(file.read_text(encoding="ascii"))["seals"] if file.exists() else {}
    seals, new = {}, []
    for name, (plaintext, store_id) in SEALED.items():
        info = b"sovstore/1 recovery\0" + store_id
        seals[name] = bytes.fromhex(kept.get(name, ""))
        try:
            good = SUITE.decrypt(seals[name], private_key(), info=info) == plaintext
        except InvalidTag:
            good = False
        if not good:
            seals[name] = SUITE.encrypt(plaintext, private_key().public_key(), info=info)
            new.append(name)
    return seals, new


def make_recovery(seals: dict[str, bytes]) -> tuple[Made, list[Made]]:
    """Return what the vectors of recovery have in common, and the vectors."""
    made: list[Made] = []

    def add(cause: str, comment: str, expect: str, *, file: str | None = None, **fields: Any) -> None:
        learned = opened(body_of()) if expect == "ok" else {}
        made.append(vector(cause, comment, expect, file=compact(file or _file(seals["own"])), **fields, **learned))

    good = _file(seals["own"])
    add("ok", "one recipient", "ok")
    add("ok", "a line feed after the recovery key", "ok", recovery_key=canonical(recovery_key_of()) + "\n")
    add("ok", "the second of three recipients", "ok", file=_file(seals["own"], "0" * 32, "f" * 32))
    for bit in (0, 255):
        flipped = (int(fingerprint(), 16) ^ 1 << 255 - bit).to_bytes(32).hex()
        comment = f"{'first' if bit == 0 else 'last'} bit of the auth fingerprint"
        add("fingerprint", comment, "integrity", auth_fingerprint=flipped)
    add("fingerprint", "half of the auth fingerprint", "integrity", auth_fingerprint=fingerprint()[:32])
    forged = _forged(seals["own"])
    add(
        "forged",
        "all made anew under a KSK that is sealed right, with another auth key",
        "integrity",
        file=forged,
    )
    add("other-store", "the configured store is another", "integrity", store_id=OTHER_STORE.hex())
    add("info", "sealed with another store id in the info", "integrity", file=_file(seals["other_store"]))
    add("other-ksk", "the seal of another KSK", "integrity", file=_file(seals["other_ksk"]))
    add("ksk-size", "a KSK of 31 bytes is sealed", "integrity", file=_file(seals["short_ksk"]))
    size = len(seals["own"])
    for bit, what in (
        (0, "first bit of the ML-KEM ciphertext"),
        (1568 * 8 - 1, "last bit of the ML-KEM ciphertext"),
        (1568 * 8, "first bit of the P-384 point"),
        (1665 * 8 - 1, "last bit of the P-384 point"),
        (1665 * 8, "first bit of the ciphertext"),
        (size * 8 - 1, "last bit of the tag of the seal"),
    ):
        seal = bytearray(seals["own"])
        seal[bit // 8] ^= 0x80 >> bit % 8
        add("seal", what, "integrity", file=_file(bytes(seal)))
    add("tag", "the tag is that of no wraps", "integrity", file=_file(seals["own"], tag_of_no_wraps=True))
    wraps = outer_of(canonical(body_of()))["wraps"]
    add("tag", "a wrap is removed", "integrity", file=_file(seals["own"], wraps=wraps[:1]))
    add(
        "recipient",
        "sealed to another recipient only",
        "no_matching_key",
        file=_file(seals["own"], own="1" * 32),
    )
    add("recipient", "no recipient", "no_matching_key", file=canonical(outer_of(canonical(body_of()))))
    other = draw("other scalar", 48)
    text = canonical(recovery_key_of(scalar=other))
    add("recipient", "a recovery key with another P-384 key", "no_matching_key", recovery_key=text)
    text = canonical(recovery_key_of(seed=draw("other seed", 64)))
    add("recipient", "a recovery key with another ML-KEM key", "no_matching_key", recovery_key=text)
    own = canonical(recovery_key_of())
    for cause, comment, text in (
        ("key-text", "a line feed before the recovery key", "\n" + own),
        ("key-text", "a space in the recovery key", own.replace(",", ", ", 1)),
        ("key-text", "a member of the recovery key twice", own.replace("}", f',"p384":"{b64(SCALAR)}"}}')),
        ("key-text", "an unknown member of the recovery key", canonical({**recovery_key_of(), "zone": 1})),
        ("key-text", "nothing for a recovery key", ""),
        ("key-format", "format 2 of the recovery key", own.replace("key 1", "key 2")),
        ("key-format", "a recipient for a recovery key", own.replace("key 1", "recipient 1")),
        ("key-size", "a seed of 63 bytes", _with(mlkem1024=SEED[:63])),
        ("key-size", "a seed of 32 bytes", _with(mlkem1024=SEED[:32])),
        ("key-size", "a scalar of 47 bytes", _with(p384=SCALAR[:47])),
        ("key-size", "a scalar of 49 bytes", _with(p384=b"\0" + SCALAR)),
        ("key-range", "the scalar 0", _with(p384=bytes(48))),
        ("key-range", "the scalar that is the order of the group", _with(p384=ORDER.to_bytes(48))),
        ("key-range", "a scalar above the order of the group", _with(p384=b"\xff" * 48)),
    ):
        add(cause, comment, "format", recovery_key=text)
    assert good == _file(seals["own"])
    common = {"store_id": STORE_ID.hex(), "recovery_key": own, "auth_fingerprint": fingerprint()}
    return common, made


def _with(**parts: bytes) -> str:
    return canonical({**recovery_key_of(), **{name: b64(value) for name, value in parts.items()}})


def _file(
    seal: bytes,
    *others: str,
    own: str | None = None,
    wraps: Any = None,
    tag_of_no_wraps: bool = False,
) -> str:
    """Return a keyset with the seal and other recipients; `wraps` replaces its wraps under the old tag."""
    entries = [{"recipient": own or recipient_of(), "seal": b64(seal)}]
    entries += [{"recipient": name, "seal": b64(draw(f"seal to {name}", 1713))} for name in others]
    entries.sort(key=lambda item: item["recipient"])
    text = canonical(changed(setting("recovery", entries)))
    outer = outer_of(text)
    if tag_of_no_wraps:
        outer["tag"] = b64(tag_of(text, []))
    if wraps is not None:
        outer["wraps"] = wraps
    return canonical(outer)


def _forged(seal: bytes) -> str:
    """Return a keyset of one who knows the KSK of a seal but not the auth key."""
    entries = [{"recipient": recipient_of(), "seal": b64(seal)}]
    auth = encrypted("auth", "auth", key=OTHER_AUTH)
    text = canonical(changed(setting("recovery", entries), setting("auth.key", auth)))
    outer = outer_of(text)
    return canonical({**outer, "tag": b64(tag_of(text, outer["wraps"], OTHER_AUTH))})

#!/usr/bin/env python3
"""Unwrap the keys of a sovstore keyset, with the standard library and `cryptography` alone.

Written from docs/spec/format.md and nothing else; the docstrings cite its sections. It prints the keys.json
that tools/sovread.py reads. It asks no KMS (a KSK that one has unwrapped goes into --ksk), and it remembers
nothing, so it cannot know whether a keyset is the newest.
"""

import base64
import hashlib
import hmac
import json
import re
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

EPILOG = """\
  (umask 077; sovkeys.py COPY/.sovstore/keyset.json STORE_ID \\
      --recovery-key recovery.json --auth-fingerprint HEX > keys.json)

keys.json opens every object of the store: treat it as a secret. An argument @FILE stands for the arguments in
FILE, one a line: with `--ksk=HEX` or `--kek=HEX` in it, the key stays out of the list of processes.

exit codes: 0 done, 1 failed, 2 usage, 3 not authentic, 4 no entry for this key"""
EXIT_CODES = {"format": 1, "integrity": 3, "no_matching_key": 4}
# Canonical JSON with known members is a regular language: what matches is the one form of its value.
HEX, INT = '"[0-9a-f]{32}"', "(?:0|[1-9][0-9]{0,15})"
BASE64 = '"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?"'
TEXT = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
WRAP = rf'{{"kek":{TEXT},"wrapped":{BASE64}}}'
FILE = rf'{{"body":{TEXT},"tag":{BASE64},"wraps":\[{WRAP}(?:,{WRAP}){{0,15}}\]}}'
KEY = rf'"id":{HEX},"key":{BASE64}'
EPOCH = rf'{{"created":{INT},(?:{KEY},"state":"(?:primary|readable)"|"id":{HEX},"state":"destroyed")}}'
SEAL = rf'{{"recipient":{HEX},"seal":{BASE64}}}'
BODY = (
    rf'{{"auth":{{{KEY}}},"created":{INT},"epochs":\[{EPOCH}(?:,{EPOCH})*\],"format":1,"names":{{{KEY},'
    rf'"mode":"(?:encrypted|plain)"}},"recovery":\[(?:{SEAL}(?:,{SEAL})*)?\],"store_id":{HEX},"version":{INT}}}'
)
RECOVERY_KEY = rf'{{"format":"sovstore recovery key 1","mlkem1024":{BASE64},"p384":{BASE64}}}'


class RefusedError(Exception):
    """What was read is refused: the arguments are one of EXIT_CODES and the reason."""


def require(condition: object, kind: str, reason: str) -> None:
    """Raise RefusedError unless the condition holds."""
    if not condition:
        raise RefusedError(kind, reason)


def expand(key: bytes, info: bytes, size: int) -> bytes:
    """Return HKDF-Expand with SHA-512 (section 1)."""
    return HKDFExpand(SHA512(), size, info).derive(key)


def decrypt(message: bytes, key: bytes, context: bytes) -> bytes:
    """Return the plaintext, shorter than one chunk, of a Cobblestone message (section 3)."""
    salt, commitment, chunk = message[:24], message[24:56], message[56:]
    derived = expand(key, b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context, 76)
    require(len(key) == 32 and hmac.compare_digest(derived[44:], commitment), "integrity", "wrong KSK or key")
    require(len(chunk) < 16400, "format", "encrypted key too long")
    try:
        return AESGCM(derived[:32]).decrypt(derived[32:44], chunk, None)
    except InvalidTag as exc:
        raise RefusedError("integrity", "encrypted key failed authentication") from exc


def parse(pattern: str, data: bytes, longest: int) -> dict[str, Any]:
    """Return the JSON object that the pattern describes, which is in canonical form (section 6.1)."""
    good = len(data) <= longest and re.fullmatch(pattern.encode(), data)
    require(good, "format", "too long, not canonical JSON, or not of the right members")
    return dict(json.loads(data))


def read_keyset(file: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the file and its body, in canonical form and believed by nobody (sections 6.1 and 6.2)."""
    outer = parse(FILE, file, 1 << 21)
    body = parse(BODY, outer["body"].encode(errors="surrogatepass"), 1 << 20)
    require(len(base64.b64decode(outer["tag"])) == 64, "format", "tag has not 64 bytes")
    longest = max(len(base64.b64decode(wrap["wrapped"])) for wrap in outer["wraps"])
    require(longest <= 4096 and 1 <= body["version"] < 1 << 53, "format", "wrap too long, or no version")
    ids = sorted(entry["id"] for entry in (body["auth"], body["names"], *body["epochs"]))
    keks, recipients = [w["kek"] for w in outer["wraps"]], [r["recipient"] for r in body["recovery"]]
    once = all(entries == sorted(set(entries)) for entries in (ids, keks, recipients))
    require(once, "format", "entries out of order, or one twice")
    require([epoch["state"] for epoch in body["epochs"]].count("primary") == 1, "format", "not one primary")
    return outer, body


def ksk_from_kek(file: bytes, store_id: bytes, uri: str, kek: bytes) -> bytes:
    """Return the KSK that a local KEK wraps (section 6.3)."""
    outer, _ = read_keyset(file)
    context = hashlib.sha256(b"sovstore/1 keyset\0" + store_id + outer["body"].encode()).digest()
    wraps = {wrap["kek"]: base64.b64decode(wrap["wrapped"]) for wrap in outer["wraps"]}
    require(uri in wraps, "no_matching_key", f"the keyset has no {uri}, but {', '.join(map(ascii, wraps))}")
    try:
        unwrapped = AESGCM(kek).decrypt(wraps[uri][:12], wraps[uri][12:], context)
    except (InvalidTag, ValueError) as exc:
        raise RefusedError("integrity", "wrapped KSK failed authentication") from exc
    require(hmac.compare_digest(unwrapped[32:], context), "integrity", "KSK of another keyset")
    return unwrapped[:32]


def ksk_from_recovery_key(file: bytes, store_id: bytes, recovery_key: bytes) -> bytes:
    """Return the KSK that is sealed to a recovery key (sections 6.4 and 7)."""
    halves = parse(RECOVERY_KEY, recovery_key.removesuffix(b"\n"), 4096)
    seed, scalar = base64.b64decode(halves["mlkem1024"]), base64.b64decode(halves["p384"])
    require(len(seed) == 64 and len(scalar) == 48, "format", "recovery key has another size")
    mlkem1024 = mlkem.MLKEM1024PrivateKey.from_seed_bytes(seed)
    try:
        p384 = ec.derive_private_key(int.from_bytes(scalar), ec.SECP384R1())
    except ValueError as exc:
        raise RefusedError("format", "recovery key is not on P-384") from exc
    point = p384.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    recipient = hashlib.sha256(mlkem1024.public_key().public_bytes_raw() + point).hexdigest()[:32]
    seals = {entry["recipient"]: entry["seal"] for entry in read_keyset(file)[1]["recovery"]}
    require(recipient in seals, "no_matching_key", f"the keyset has no recipient {recipient}")
    suite = hpke.Suite(hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA512, hpke.AEAD.AES_256_GCM)
    private, info = hpke.MLKEM1024P384PrivateKey(mlkem1024, p384), b"sovstore/1 recovery\0" + store_id
    try:
        return suite.decrypt(base64.b64decode(seals[recipient]), private, info)
    except InvalidTag as exc:
        raise RefusedError("integrity", "seal failed authentication") from exc


def unlock(file: bytes, store_id: bytes, ksk: bytes, fingerprint: bytes | None) -> dict[str, Any]:
    """Return keys.json, having verified the tag; a KSK from a seal needs a fingerprint (section 6)."""
    outer, body = read_keyset(file)
    require(body["store_id"] == store_id.hex(), "integrity", "keyset of another store")

    def key(entry: dict[str, str], purpose: bytes, size: int) -> bytes:
        context = b"sovstore/1 key\0" + store_id + bytes.fromhex(entry["id"]) + purpose
        plaintext = decrypt(base64.b64decode(entry["key"]), ksk, context)
        require(len(plaintext) == size, "format", f"key {entry['id']} has not {size} bytes")
        return plaintext

    auth = key(body["auth"], b"auth", 32)
    own = expand(auth, b"sovstore/1 auth fingerprint\0" + store_id, 32)
    same = fingerprint is None or hmac.compare_digest(own, fingerprint)
    require(same, "integrity", "the keyset has another auth fingerprint")
    # The file is canonical, so what stands in it between `"wraps":` and its last brace is canonical too.
    signed = outer["body"].encode() + b"\0" + file.rpartition(b',"wraps":')[2][:-1]
    tag = hmac.digest(expand(auth, b"sovstore/1 tag\0" + store_id, 64), signed, "sha512")
    require(hmac.compare_digest(tag, base64.b64decode(outer["tag"])), "integrity", "tag does not match")
    name_key = key(body["names"], b"names", 64).hex()
    epochs = {entry["id"]: key(entry, b"epoch", 32).hex() for entry in body["epochs"] if "key" in entry}
    names = {"names_mode": body["names"]["mode"], "name_key": name_key}
    return {"store_id": body["store_id"], **names, "epochs": epochs}


def run(args: Namespace) -> dict[str, Any]:
    """Return keys.json for the arguments."""
    file, ksk = args.keyset.read_bytes(), args.ksk
    if args.recovery_key:
        ksk = ksk_from_recovery_key(file, args.store_id, args.recovery_key.read_bytes())
    if args.kek:
        ksk = ksk_from_kek(file, args.store_id, args.uri, args.kek)
    return unlock(file, args.store_id, ksk, args.auth_fingerprint)


def main() -> int:
    """Read the arguments, unwrap, and say what went wrong."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, fromfile_prefix_chars="@")
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("keyset", type=Path, help="the keyset, .sovstore/keyset.json of the store")
    parser.add_argument("store_id", type=bytes.fromhex, help="hex of the store id, from your configuration")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--recovery-key", type=Path, help="file of the recovery key; needs --auth-fingerprint")
    ways.add_argument("--ksk", type=bytes.fromhex, help="hex of the KSK, which a KEK unwrapped elsewhere")
    ways.add_argument("--kek", type=bytes.fromhex, help="hex of a local KEK; needs --uri")
    parser.add_argument("--uri", help="the URI of the KEK in the keyset")
    parser.add_argument("--auth-fingerprint", type=bytes.fromhex, help="hex, kept beside the recovery key")
    args = parser.parse_args()
    if (args.recovery_key and not args.auth_fingerprint) or (args.kek and not args.uri):
        parser.error("--recovery-key needs --auth-fingerprint, --kek needs --uri")
    try:
        sys.stdout.write(json.dumps(run(args)) + "\n")
    except RefusedError as exc:
        sys.stderr.write(f"sovkeys: {args.keyset}: {exc.args[1]}\n")
        return EXIT_CODES[exc.args[0]]
    except OSError as exc:
        sys.stderr.write(f"sovkeys: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The vectors of others: C2SP and AES-SIV of Wycheproof, and RFC 5297.

They are run against the library that sovstore builds on and against tools/sovread.py: both implement the
published constructions, and no variant of their own.
"""

import hashlib
import io
import zlib

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from tests.vectors.load import load_rfc5297, load_tool, load_wycheproof
from tests.vectors.make_names import encrypt_siv

sovread = load_tool("sovread")

COBBLESTONE = load_wycheproof("c2sp_chunked_encryption_aes_256_gcm_test")
SIV_ONE = load_wycheproof("aes_siv_cmac_test")
SIV_TWO = load_wycheproof("aead_aes_siv_cmac_test")


def name_of(test):
    return f"{test['tcId']}-{test['result']}"


def decrypt_by_library(test, message, piece):
    """Yield what the library emits for a message that arrives in pieces of this many bytes."""
    decryptor = Cobblestone256Decryptor(bytes.fromhex(test["key"]), bytes.fromhex(test["ctx"]))
    for start in range(0, len(message), piece):
        yield decryptor.update(message[start : start + piece])
    yield decryptor.finalize()


def decrypt_by_reader(test, message, piece):
    """Yield what the reader emits."""
    yield from sovread.decrypt_chunks(io.BytesIO(message), bytes.fromhex(test["key"]), bytes.fromhex(test["ctx"]))


@pytest.mark.parametrize(
    ("decrypt", "piece"),
    [
        (decrypt_by_library, 1000),
        (decrypt_by_library, 16400),
        (decrypt_by_library, 1 << 20),
        # The reader pulls, so there are no pieces to choose.
        (decrypt_by_reader, 0),
    ],
)
@pytest.mark.parametrize("test", COBBLESTONE, ids=name_of)
def test_cobblestone(test, decrypt, piece):
    emitted, failed = bytearray(), False
    try:
        for plaintext in decrypt(test, zlib.decompress(bytes.fromhex(test["ct"])), piece):
            emitted += plaintext
    except (InvalidTag, ValueError, sovread.RefusedError):
        failed = True
    if test["result"] == "valid":
        assert not failed
        assert len(emitted) == test["msgLength"]
        assert hashlib.sha512(emitted).hexdigest() == test["msgSha512"]
    else:
        assert failed
        # Not one byte may come out beyond the chunks that are authentic.
        assert len(emitted) <= test.get("msgLength", 0)
        if len(emitted) == test.get("msgLength"):
            assert hashlib.sha512(emitted).hexdigest() == test["msgSha512"]


def test_cobblestone_vectors_hold_what_they_are_kept_for():
    flags = {flag for test in COBBLESTONE for flag in test["flags"]}
    wanted = {
        "ChunkReordering",
        "ModifiedCiphertext",
        "TrailingData",
        "Truncation",
        "WrongContext",
        "WrongKey",
    }
    assert wanted <= flags


def siv_cases():
    """Yield key, associated data, message, sealed bytes and validity of every AES-SIV vector."""
    for number, test in enumerate(SIV_ONE):
        fields = {name: bytes.fromhex(test[name]) for name in ("key", "aad", "msg", "ct")}
        yield pytest.param(
            fields["key"],
            [fields["aad"]],
            fields["msg"],
            fields["ct"],
            test["result"] == "valid",
            id=f"one-{number}",
        )
    for number, test in enumerate(SIV_TWO):
        fields = {name: bytes.fromhex(test[name]) for name in ("key", "aad", "iv", "msg", "tag", "ct")}
        yield pytest.param(
            fields["key"],
            [fields["aad"], fields["iv"]],
            fields["msg"],
            fields["tag"] + fields["ct"],
            test["result"] == "valid",
            id=f"two-{number}",
        )
    for test in load_rfc5297():
        context = [bytes.fromhex(item) for item in test["ad"]]
        key, message, sealed = (bytes.fromhex(test[name]) for name in ("key", "msg", "ct"))
        yield pytest.param(key, context, message, sealed, True, id=f"rfc5297-{test['id']}")


@pytest.mark.parametrize(("key", "context", "message", "sealed", "valid"), list(siv_cases()))
def test_aes_siv(key, context, message, sealed, valid):
    if valid:
        assert AESSIV(key).encrypt(message, context) == sealed
        assert AESSIV(key).decrypt(sealed, context) == message
    else:
        with pytest.raises(InvalidTag):
            AESSIV(key).decrypt(sealed, context)
    # The generator of our own vectors has an AES-SIV of its own.
    assert (encrypt_siv(key, context, message) == sealed) is valid


def test_aes_siv_counts_an_empty_string():
    # OpenSSL before 3.0.10 and 3.1.2 left it out (CVE-2023-2975); a first segment has an empty parent.
    siv, store_id = AESSIV(bytes(64)), bytes(16)
    with_parent = siv.encrypt(b"x" * 16, [store_id, b""])
    assert with_parent != siv.encrypt(b"x" * 16, [store_id])
    assert with_parent == encrypt_siv(bytes(64), [store_id, b""], b"x" * 16)

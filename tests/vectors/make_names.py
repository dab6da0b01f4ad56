"""Make the vectors of names and sizes. AES-SIV is written out from AES, by RFC 5297."""

import base64
import itertools
import unicodedata
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.cmac import CMAC

from tests.vectors.load import CHUNK
from tests.vectors.make_objects import OTHER_STORE, STORE_ID, WIRE_CHUNK, Made, draw, vector

NAME_KEY = draw("name key", 64)


# AES-SIV, RFC 5297


def encrypt_siv(key: bytes, context: Sequence[bytes], plaintext: bytes) -> bytes:
    """Return the synthetic IV (16 bytes), then the ciphertext (RFC 5297, 2.4 and 2.6)."""
    half = len(key) // 2
    siv = _s2v(key[:half], [*context, plaintext])
    counter = bytearray(siv)
    counter[8] &= 0x7F
    counter[12] &= 0x7F
    encryptor = Cipher(AES(key[half:]), CTR(bytes(counter))).encryptor()
    return siv + encryptor.update(plaintext) + encryptor.finalize()


def _s2v(key: bytes, strings: list[bytes]) -> bytes:
    total = _cmac(key, bytes(16))
    for string in strings[:-1]:
        total = _xor(_double(total), _cmac(key, string))
    last = strings[-1]
    if len(last) >= 16:
        return _cmac(key, last[:-16] + _xor(last[-16:], total))
    return _cmac(key, _xor(_double(total), (last + b"\x80").ljust(16, b"\0")))


def _cmac(key: bytes, data: bytes) -> bytes:
    cmac = CMAC(AES(key))
    cmac.update(data)
    return cmac.finalize()


def _double(block: bytes) -> bytes:
    shifted = int.from_bytes(block) << 1
    return (shifted ^ (0x87 | 1 << 128 if shifted >> 128 else 0)).to_bytes(16)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


# Names


def pad(segment: bytes) -> bytes:
    """Return the padded segment of section 5.2."""
    return segment + b"\x80" + bytes(-(len(segment) + 1) % 16)


def encode(padded: bytes, parent: bytes = b"", *, context: Sequence[bytes] | None = None) -> str:
    """Return the encoded segment of these padded bytes, whatever they are."""
    sealed = encrypt_siv(NAME_KEY, [STORE_ID, parent] if context is None else context, padded)
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def encode_path(path: str) -> str:
    """Return the encoded name of any path, even of one that must be refused."""
    segments = path.encode().split(b"/")
    return "/".join(encode(pad(s), b"/".join(segments[:i])) for i, s in enumerate(segments))


def make_names() -> tuple[Made, list[Made]]:
    """Return what the vectors of names have in common, and the vectors."""
    made = [*_good_names(), *_bad_paths(), *_bad_names(), *_aliases()]
    return {"store_id": STORE_ID.hex(), "name_key": NAME_KEY.hex()}, made


def _good_names() -> list[Made]:
    paths = {
        "a": "1 byte",
        "fifteen bytes.x": "15 bytes: one byte of padding",
        "sixteen bytes.xy": "16 bytes: a block of padding",
        "seventeen bytes.x": "17 bytes",
        "n" * 158: "158 bytes",
        "n" * 159: "159 bytes",
        "\u00e9" * 79 + "n": "159 bytes in 80 characters",
        "a/b/c": "three segments",
        "a/a/a": "the same segment below three parents",
        "data/2026/\u65e5\u672c\u8a9e/caf\u00e9.csv": "Unicode in NFC",
        "\U0001f512/\U0010ffff": "characters beyond the basic plane",
        "q\u0323\u0307": "combining characters that NFC keeps",
        "a b/%2F+%25": "spaces and percent signs are themselves",
        "a\\b": "a backslash is a character",
        "a\nb/\x01\x7f": "control characters other than U+0000",
        ".../..a/a..": "segments with dots",
        "a/.sovstore": ".sovstore below the first segment",
        ".sovstore2/x": "a first segment that starts with .sovstore",
        ".\u017fovstore/x": "long s is no ASCII letter and is not folded",
    }
    made = []
    for path, comment in paths.items():
        for mode, name in (("encrypted", encode_path(path)), ("plain", path)):
            fields = {"mode": mode, "direction": "both", "path": path, "name": name}
            made.append(vector("ok", comment, "ok", **fields))
    for path, comment in {
        "n" * 255: "255 bytes",
        "\u00e9" * 127 + "n": "255 bytes in 128 characters",
        "/".join(["n" * 255] * 3 + ["n" * 132]): "a path of 900 bytes",
    }.items():
        fields = {"mode": "plain", "direction": "both", "path": path, "name": path}
        made.append(vector("ok", comment, "ok", **fields))
    path = _path_of(900)
    fields = {"mode": "encrypted", "direction": "both", "path": path, "name": encode_path(path)}
    made.append(vector("ok", "an encoded path of 900 bytes", "ok", **fields))
    return made


def _path_of(size: int) -> str:
    """Return a path whose encoded name has this size."""
    for count in range(1, 22):
        for blocks in itertools.combinations_with_replacement(range(1, 11), count):
            if sum(-(-(16 + 16 * b) * 4 // 3) for b in blocks) + count - 1 == size:
                return "/".join("n" * (16 * b - 1) for b in blocks)
    raise ValueError(f"no name has {size} bytes")


def _bad_paths() -> list[Made]:
    """Return paths that the grammar refuses: plain in both directions, encrypted as a path and as a name."""
    made = []
    paths = {
        "": ("empty-path", "the empty path"),
        "/a": ("slash", "a leading slash"),
        "a/": ("slash", "a trailing slash"),
        "a//b": ("slash", "an empty segment"),
        ".": ("dots", "the segment ."),
        "..": ("dots", "the segment .."),
        "a/./b": ("dots", "the segment . inside"),
        "a/../b": ("dots", "the segment .. inside"),
        "a/..": ("dots", "the segment .. at the end"),
        "a\0b": ("nul", "U+0000"),
        "a/\0": ("nul", "a segment of U+0000"),
        "cafe\u0301": ("nfd", "a letter and an accent, decomposed"),
        unicodedata.normalize("NFD", "\ud55c"): ("nfd", "Hangul, decomposed"),
        "\u212b": ("nfd", "the Angstrom sign, which NFC replaces"),
        "\uf900": ("nfd", "a compatibility ideograph, which NFC replaces"),
        "q\u0307\u0323": ("nfd", "combining characters out of their canonical order"),
        ".sovstore": ("reserved", "the folder .sovstore"),
        ".sovstore/keyset.json": ("reserved", "the keyset"),
        ".SovStore/x": ("reserved", ".sovstore in capitals"),
    }
    for path, (cause, comment) in paths.items():
        fields = {"path": path, "name": path}
        made.append(vector(cause, comment, "format", mode="plain", direction="both", **fields))
        fields = {"path": path, "name": encode_path(path)}
        made.append(vector(cause, comment, "format", mode="encrypted", direction="both", **fields))
    for mode in ("encrypted", "plain"):
        fields = {"mode": mode, "direction": "encode", "path": "a\ud800"}
        made.append(vector("surrogate", "a lone surrogate", "format", **fields))
    for mode, path, comment in (
        ("plain", "n" * 256, "a segment of 256 bytes"),
        ("plain", "\u00e9" * 128, "a segment of 256 bytes in 128 characters"),
        ("plain", "/".join(["n" * 255] * 3 + ["n" * 133]), "a path of 901 bytes"),
        ("plain", "/".join(["\u00e9" * 127] * 3 + ["n" * 136]), "a path of 901 bytes in 520 characters"),
        ("encrypted", "n" * 160, "a segment of 160 bytes"),
        ("encrypted", "\u00e9" * 80, "a segment of 160 bytes in 80 characters"),
        ("encrypted", _path_of(901), "an encoded path of 901 bytes"),
    ):
        name = path if mode == "plain" else encode_path(path)
        fields = {"mode": mode, "direction": "both", "path": path, "name": name}
        made.append(vector("too-long", comment, "format", **fields))
    return made


def _bad_names() -> list[Made]:
    """Return names that are authentic but are not the encoding of a path."""
    bad = {
        "padding-missing": ("no 80 in the padding", b"report".ljust(16, b"\0")),
        "padding-zero-block": ("a block of zeros", bytes(16)),
        "padding-absent": ("16 bytes without padding", b"sixteen bytes.xy"),
        "padding-nonzero": ("a byte behind the 80 is not zero", b"report\x80".ljust(15, b"\0") + b"\x01"),
        "padding-long": ("a block of padding too many", pad(b"report") + bytes(16)),
        "padding-short": ("not filled to a multiple of 16", b"report\x80"),
        "padding-pkcs7": ("the padding of PKCS #7", b"report" + b"\x0a" * 10),
        "slash-inside": ("a segment with a slash inside", pad(b"a/b")),
        "utf8": ("a byte that is not UTF-8", pad(b"caf\xe9")),
        "utf8-overlong": ("a slash in two bytes", pad(b"\xc0\xaf")),
        "utf8-surrogate": ("a surrogate in three bytes", pad(b"\xed\xa0\x80")),
    }
    made = []
    for cause, (comment, padded) in bad.items():
        fields = {"mode": "encrypted", "direction": "decode", "name": encode(padded)}
        made.append(vector(cause, comment, "format", **fields))
    name = encode(pad(b"caf\xe9")) + "/" + encode(pad(b"x"), b"caf\xe9")
    fields = {"mode": "encrypted", "direction": "decode", "name": name}
    made.append(vector("utf8", "a parent that is not UTF-8", "format", **fields))
    return made


def _aliases() -> list[Made]:
    """Return strings that are not the one name of a path."""
    name, deep = encode_path("report.csv"), encode_path("data/report.csv")
    short = encode_path("n" * 16)
    top, leaf = deep.split("/")
    report, parent = pad(b"report.csv"), b"data"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    loose = name[:-1] + alphabet[alphabet.index(name[-1]) | 1]
    plus = next(n for n in (encode_path(f"report {i}") for i in range(99)) if "-" in n)
    slash = next(n for n in (encode_path(f"report {i}") for i in range(99)) if "_" in n)
    swapped_case = next(i for i, c in enumerate(name) if c.isalpha())
    made = []
    for cause, comment, alias, expect in (
        ("trailing-bits", "unused bits of the last character are set", loose, "format"),
        ("base64-padding", "base64 with its padding", name + "=", "format"),
        ("base64-alphabet", "+ for -", plus.replace("-", "+"), "format"),
        ("base64-alphabet", "the escape %5F for _", slash.replace("_", "%5F"), "format"),
        ("white-space", "a line feed at the end", name + "\n", "format"),
        ("white-space", "a space inside", name[:8] + " " + name[8:], "format"),
        ("not-ascii", "a full-width letter", "\uff21" + name[1:], "format"),
        ("slash", "a leading slash", "/" + name, "format"),
        ("slash", "a trailing slash", name + "/", "format"),
        ("slash", "two slashes", deep.replace("/", "//"), "format"),
        ("dots", "the segment . before it", "./" + name, "format"),
        ("empty-name", "the empty name", "", "format"),
        ("plain-name", "a plain name", "report.csv", "format"),
        ("other-case", "a letter in the other case", _swapcase(name, swapped_case), "integrity"),
        ("flip", "first bit of the synthetic IV", _flip(name, 0), "integrity"),
        ("flip", "last bit of the ciphertext", _flip(name, 255), "integrity"),
        ("truncated", "the last block is missing", _cut(short, 32), "integrity"),
        (
            "other-parent",
            "the name of a segment below another parent",
            f"{encode_path('other')}/{leaf}",
            "integrity",
        ),
        ("other-parent", "the first segment's name below a parent", f"{top}/{name}", "integrity"),
        ("other-parent", "a deeper name as a first segment", leaf, "integrity"),
        (
            "parent-of-child",
            "the parent is its last segment alone",
            f"{encode_path('a/data')}/{leaf}",
            "integrity",
        ),
        (
            "encoded-parent",
            "bound to the encoded parent",
            f"{top}/{encode(report, top.encode())}",
            "integrity",
        ),
        (
            "parent-slash",
            "bound to the parent with a slash",
            f"{top}/{encode(report, b'data/')}",
            "integrity",
        ),
        ("other-store", "of another store", encode(report, context=[OTHER_STORE, b""]), "integrity"),
        (
            "swapped-context",
            "parent before store id",
            f"{top}/{encode(report, context=[parent, STORE_ID])}",
            "integrity",
        ),
        (
            "joined-context",
            "store id and parent in one string",
            f"{top}/{encode(report, context=[STORE_ID + parent])}",
            "integrity",
        ),
        (
            "empty-parent-left-out",
            "an empty parent is a string of the vector",
            encode(report, context=[STORE_ID]),
            "integrity",
        ),
        ("no-context", "without associated data", encode(report, context=[]), "integrity"),
        (
            "nonce",
            "with an empty nonce as a third string",
            encode(report, context=[STORE_ID, b"", b""]),
            "integrity",
        ),
    ):
        fields = {"mode": "encrypted", "direction": "decode", "name": alias}
        made.append(vector(cause, comment, expect, **fields))
    return made


def _raw(name: str) -> bytes:
    return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4))


def _flip(name: str, bit: int) -> str:
    raw = bytearray(_raw(name))
    raw[bit // 8] ^= 0x80 >> bit % 8
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _cut(name: str, size: int) -> str:
    return base64.urlsafe_b64encode(_raw(name)[:size]).decode().rstrip("=")


def _swapcase(name: str, index: int) -> str:
    return name[:index] + name[index].swapcase() + name[index + 1 :]


# Sizes


def make_sizes() -> tuple[Made, list[Made]]:
    """Return what the vectors of sizes have in common, and the vectors."""
    made = []
    most = CHUNK << 38
    chunks = (1, 2, 3, 256, 257, (1 << 38) - 1)
    good = {0, 1, 2, most - 1, most - 2} | {CHUNK * k + d for k in chunks for d in (-1, 0, 1)}
    for size in sorted(good):
        wire_size = 184 + size + 16 * (size // CHUNK + 1)
        fields = {"direction": "both", "plain_size": size, "wire_size": wire_size}
        made.append(vector("ok", f"{size // CHUNK + 1} chunks", "ok", **fields))
    for size in (most, most + 1):
        fields = {"direction": "plain_to_wire", "plain_size": size}
        made.append(vector("too-large", "more than 2^38 chunks", "format", **fields))
    for wire_size in (0, 1, 127, 128, 183, 184, 185, 198, 199):
        fields = {"direction": "wire_to_plain", "wire_size": wire_size}
        made.append(vector("too-small", "smaller than an empty object", "format", **fields))
    for full_chunks in chunks:
        for rest in (0, 1, 14, 15):
            fields = {"direction": "wire_to_plain", "wire_size": 184 + WIRE_CHUNK * full_chunks + rest}
            comment = f"{full_chunks} full chunks and {rest} bytes, less than a tag"
            made.append(vector("no-last-chunk", comment, "format", **fields))
    for rest in (0, 15, 16, 17):
        fields = {"direction": "wire_to_plain", "wire_size": 184 + (WIRE_CHUNK << 38) + rest}
        made.append(vector("too-large", f"2^38 full chunks and {rest} bytes", "format", **fields))
    return {}, made

"""The searcher of the leak hunt finds a planted secret in every form, and nothing where there is none."""

from __future__ import annotations

import base64
import bz2
import gzip
import html
import io
import json
import lzma
import os
import pickle
import quopri
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from urllib.parse import quote

import pyarrow as pa
import pytest

from tests.hostile.canaries import Canary, Searcher

TEXT = "Zqvoxk-ÿœ-wjpyqz"
#: No byte of it is like the next, and none of it is text.
KEY = bytes((index * 73 + 129) % 256 for index in range(32))
SECRETS = [Canary.text("data", "text", TEXT), Canary("key", "key", KEY)]
ALL = {"data", "key"}


@pytest.fixture(scope="module")
def searcher() -> Searcher:
    return Searcher(SECRETS)


def kinds(searcher: Searcher, content: bytes | str) -> set[str]:
    return {found.kind for found in searcher.find(content)}


def both(encode: Callable[[bytes], bytes]) -> bytes:
    """Return both secrets encoded, each in the middle of other things."""
    return b"\r\n".join(b"before " + encode(value) + b" after" for value in (TEXT.encode(), KEY))


def raw_deflate(value: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(value) + packer.flush()


def zstd(value: bytes) -> bytes:
    sink = io.BytesIO()
    with pa.output_stream(sink, compression="zstd") as stream:
        stream.write(value)
        stream.flush()
        return sink.getvalue()


def zipped(value: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("member", value)
    return sink.getvalue()


def chunked(value: bytes, *, extension: bytes = b"") -> bytes:
    pieces = [value[start : start + 3] for start in range(0, len(value), 3)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n\r\n"


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "base64": base64.b64encode,
    "base64, one byte further": lambda value: base64.b64encode(b"?" + value),
    "base64, two bytes further": lambda value: base64.b64encode(b"??" + value),
    "base64 behind letters": lambda value: b"token" + base64.b64encode(value),
    "base64 in lines": lambda value: base64.encodebytes(b"x" * 50 + value * 2),
    "base64url": base64.urlsafe_b64encode,
    "base64url without padding": lambda value: base64.urlsafe_b64encode(b"?" + value).rstrip(b"="),
    "base32": base64.b32encode,
    "base32, further": lambda value: base64.b32encode(b"???" + value),
    "base32 in small letters": lambda value: base64.b32encode(value).lower().rstrip(b"="),
    "hex": lambda value: value.hex().encode(),
    "hex in capitals": lambda value: value.hex().upper().encode(),
    "hex after a digit": lambda value: b"7" + value.hex().encode(),
    "hex with colons": lambda value: value.hex(":").encode(),
    "hex with blanks": lambda value: value.hex(" ").encode(),
    "C array": lambda value: b", ".join(b"0x%02x" % byte for byte in value),
    "numbers": lambda value: repr(list(value)).encode(),
    "percent": lambda value: quote(value).encode(),
    "percent throughout": lambda value: b"".join(b"%%%02x" % byte for byte in value),
    "percent twice": lambda value: quote(quote(value)).encode(),
    "quoted-printable": quopri.encodestring,
    "quoted-printable throughout": lambda value: b"".join(b"=%02X" % byte for byte in value),
    "repr": lambda value: repr(value).encode(),
    "escapes": lambda value: b"".join(b"\\x%02x" % byte for byte in value),
    "octal": lambda value: b"".join(b"\\%03o" % byte for byte in value),
    "JSON": lambda value: json.dumps({"a": value.decode("latin-1")}).encode(),
    "entities": lambda value: b"".join(b"&#x%x;" % byte for byte in value),
    "UTF-16, little": lambda value: value.decode("latin-1").encode("utf-16-le"),
    "UTF-16, big": lambda value: value.decode("latin-1").encode("utf-16-be"),
    "UTF-8 of bytes": lambda value: value.decode("latin-1").encode(),
    "zlib": lambda value: zlib.compress(b"first " * 99 + value + b" last" * 99),
    "zlib, stored": lambda value: zlib.compress(value, 0),
    "zlib, best": lambda value: zlib.compress(value * 9, 9),
    "gzip": lambda value: gzip.compress(b"first " * 99 + value + b" last" * 99),
    "gzip, cut": lambda value: gzip.compress(b"first " * 99 + value + os.urandom(5000))[:3000],
    "bzip2": lambda value: bz2.compress(b"first " * 99 + value),
    "xz": lambda value: lzma.compress(b"first " * 99 + value),
    "zstd": lambda value: zstd(b"first " * 99 + value),
    "zip": lambda value: zipped(b"first " * 99 + value),
    "pickle": pickle.dumps,
    "old pickle": lambda value: pickle.dumps({"a": [value]}, 0),
    "pickle of protocol 2": lambda value: pickle.dumps([value], 2),
    "chunks": lambda value: b"\r\n" + chunked(value),
    "signed chunks": lambda value: b"\r\n" + chunked(value, extension=b";chunk-signature=00ff"),
    "gzip in base64 in JSON": lambda value: json.dumps([base64.b64encode(gzip.compress(value)).decode()]).encode(),
    "zlib in a pickle in gzip": lambda value: gzip.compress(pickle.dumps({"x": zlib.compress(value)})),
    "hex in zlib in chunks": lambda value: b"\r\n" + chunked(zlib.compress(value.hex().encode())),
    "gzip in zip": lambda value: zipped(gzip.compress(value)),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_secret_is_found_in_every_form(searcher: Searcher, name: str) -> None:
    assert kinds(searcher, both(ENCODINGS[name])) == ALL


@pytest.mark.parametrize("name", ["raw", "hex", "base64", "gzip", "zstd", "repr", "percent throughout"])
def test_it_is_found_deep_in_noise(searcher: Searcher, name: str) -> None:
    noise = os.urandom(2**20)
    assert kinds(searcher, noise + both(ENCODINGS[name]) + noise) == ALL


@pytest.mark.parametrize("start", range(0, 25, 4))
@pytest.mark.parametrize("name", ["raw", "hex", "repr", "zlib"])
def test_eight_bytes_of_a_key_are_enough(searcher: Searcher, name: str, start: int) -> None:
    assert kinds(searcher, b"before " + ENCODINGS[name](KEY[start : start + 8]) + b" after") == {"key"}


def test_a_secret_over_the_border_of_two_slices(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hostile.canaries._SLICE", 64)
    for start in range(40, 80):
        assert kinds(searcher, b"\0" * start + KEY[:8] + b"\0" * 99) == {"key"}


def test_text_in_other_letters(searcher: Searcher) -> None:
    for form in (TEXT.upper(), TEXT.lower(), TEXT.title(), unicodedata.normalize("NFD", TEXT), html.escape(TEXT)):
        assert kinds(searcher, f"x-amz-meta-{form}: 1") == {"data"}
    assert kinds(searcher, "\udce9" + TEXT) == {"data"}


def test_raw_deflate_from_the_start(searcher: Searcher) -> None:
    assert kinds(searcher, raw_deflate(b"first " * 99 + TEXT.encode() + KEY)) == ALL


def test_nothing_is_found_in_noise(searcher: Searcher) -> None:
    noise = os.urandom(2**21)
    few = noise[: 2**15]
    for content in (noise, base64.b64encode(few), few.hex(), gzip.compress(few), repr(few)):
        assert searcher.find(content) == set()
    assert searcher.find("") == set()


def test_a_bomb_ends(searcher: Searcher) -> None:
    began = time.monotonic()
    searcher.find(gzip.compress(bytes(2**26)))
    assert time.monotonic() - began < 30


def test_what_is_found_says_where_and_how(searcher: Searcher) -> None:
    found = searcher.find_all([("first", b"nothing"), ("second", base64.b64encode(gzip.compress(KEY)))])
    assert {(one.kind, one.label, one.place, one.how) for one in found} == {("key", "key", "second", "<base64<gzip")}


def test_a_part_of_a_whole_is_no_leak() -> None:
    searcher = Searcher([Canary.text("key", "words", "a-passphrase-of-words", whole=True)])
    assert kinds(searcher, "the passphrase is wrong") == set()
    assert kinds(searcher, b"A-Passphrase-Of-Words".hex()) == {"key"}


def test_too_short_a_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="by chance"):
        Searcher([Canary("data", "short", b"12345")])

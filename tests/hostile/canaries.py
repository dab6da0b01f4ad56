"""Looks for secrets in whatever a test caught: raw, and in every form in which software hands bytes on.

Two things are done with what is searched. It is compared with windows of 8 bytes of each secret, so that a part of a
key is found as well as the whole of it. And whatever in it is an encoding or a compressed stream is decoded, and
searched again, as deep as `_DEPTH`: base64, base32, hex, percent-encoding, quoted-printable, escapes of Python, JSON
and XML, lists of numbers, zlib, gzip, bzip2, xz, zstd, zip and the chunks of HTTP, each at any offset and in any order.

Not found: a raw deflate stream that does not begin what holds it, and what was encrypted, split up or shuffled.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import io
import lzma
import quopri
import re
import struct
import unicodedata
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa

#: Bytes of a secret that nothing holds by chance: 1 in 2^64 for each place and window.
_WINDOW = 8
#: Fewer would be found by chance.
_SHORTEST = 6
_DEPTH = 3
#: Bytes that one compressed stream may become: a bomb must not end the test.
_UNPACKED = 2**23
_SLICE = 2**22
#: Bytes of a layer that is not searched again where it was found clean: headers and log lines are much the same.
_REMEMBERED = 4096

#: What a text encoding is made of: only runs of it are decoded as text.
_PRINTABLE = re.compile(rb"[\t\r\n\x20-\x7e]{12,}")
_FRAMING = re.compile(rb"\r\n[0-9A-Fa-f]{1,8}(?:;[^\r\n]{0,200})?\r\n")
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/_-]\s{0,2}){16,}")
_BASE32 = re.compile(rb"[A-Z2-7]{20,}|[a-z2-7]{20,}")
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2}(?:[ :,-]|0x|\\x){0,3}){6,}")
_NUMBERS = re.compile(rb"(?:\d{1,3}[\s,;:]{1,3}){6,}\d{1,3}")
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|u00([0-9A-Fa-f]{2})|([0-7]{3})|([\\'\"/abfnrtv0]))")
_ENTITY = re.compile(rb"&#(?:x([0-9A-Fa-f]{1,4})|(\d{1,4}));")
_SIMPLE = dict(zip(b"\\'\"/abfnrtv0", b"\\'\"/\a\b\f\n\r\t\v\0", strict=True))


@dataclass(frozen=True)
class Canary:
    """One secret.

    Parameters
    ----------
    kind : str
        Such as ``data``, ``path`` or ``key``; what a channel is searched for.
    label : str
        What it is, for the reader of a failure.
    value : bytes
        At least 6 bytes.
    whole : bool
        Whether only all of it is a leak: a part of it is a word of the language.
    """

    kind: str
    label: str
    value: bytes
    whole: bool = False

    @classmethod
    def text(cls, kind: str, label: str, value: str, *, whole: bool = False) -> Canary:
        """Return a secret that is text."""
        return cls(kind, label, value.encode(), whole)


@dataclass(frozen=True, order=True)
class Found:
    """A secret in the place where it was found, and what had to be decoded before it showed."""

    kind: str
    label: str
    place: str
    how: str


class Searcher:
    """Looks for a set of secrets.

    Parameters
    ----------
    canaries : iterable of Canary
        What to look for.
    """

    def __init__(self, canaries: Iterable[Canary]) -> None:
        self._windows: dict[bytes, list[tuple[bytes, Canary]]] = {}
        for canary in canaries:
            if len(canary.value) < _SHORTEST:
                raise ValueError(f"{canary.label}: {len(canary.value)} bytes are found by chance")
            for form in _forms(canary.value):
                size = len(form) if canary.whole else min(len(form), _WINDOW * len(form) // len(canary.value))
                for start in range(len(form) - size + 1):
                    window = form[start : start + size]
                    self._windows.setdefault(window[:_SHORTEST], []).append((window, canary))
        self._clean: dict[bytes, int] = {}
        # Nearly every place of what is searched is told from a window by its first three bytes.
        self._begins = np.zeros(2**24, dtype=bool)
        for window in self._windows:
            self._begins[int.from_bytes(window[:3], "little")] = True

    def find(self, content: bytes | str, place: str = "") -> set[Found]:
        """Return which secrets are in some bytes or text."""
        raw = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else bytes(content)
        found: dict[Canary, Found] = {}
        seen: dict[bytes, int] = {}
        level = [("raw", raw)]
        for depth in range(_DEPTH + 1):
            fresh = {layer: how for how, layer in reversed(level) if self._is_new(layer, depth) and layer not in seen}
            for how, canary in self._hits(fresh):
                # The shortest way to it comes first.
                found.setdefault(canary, Found(canary.kind, canary.label, place, how))
            seen |= dict.fromkeys(fresh, depth)
            if depth < _DEPTH:
                before = {layer: "" if depth == 0 else how for layer, how in fresh.items()}
                level = [(f"{how}<{name}", inner) for layer, how in before.items() for name, inner in layers(layer)]
        if not found:
            self._clean |= {layer: depth for layer, depth in seen.items() if len(layer) <= _REMEMBERED}
        return set(found.values())

    def _is_new(self, layer: bytes, depth: int) -> bool:
        """Return whether a layer has not been searched as deep as now, and found clean."""
        return len(layer) >= _SHORTEST and self._clean.get(layer, _DEPTH + 1) > depth

    def find_all(self, pieces: Iterable[tuple[str, bytes | str]]) -> set[Found]:
        """Return which secrets are in any of several named pieces; equal ones are searched once."""
        seen: dict[bytes | str, str] = {}
        for place, content in pieces:
            seen.setdefault(content, place)
        return {found for content, place in seen.items() for found in self.find(content, place)}

    def _hits(self, searched: Mapping[bytes, str]) -> Iterator[tuple[str, Canary]]:
        """Yield what is in several layers, each with how it came to be: many small ones cost as much as a large one."""
        ways = list(searched.values())
        starts = [0, *accumulate(len(layer) + 1 for layer in searched)]
        joined = b"\n".join(searched)
        for begin in range(0, max(1, len(joined) - 2), _SLICE):
            view = np.frombuffer(joined, np.uint8)[begin : begin + _SLICE + 2].astype(np.uint32)
            places = np.flatnonzero(self._begins[view[:-2] | view[1:-1] << 8 | view[2:] << 16])
            for at in (places + begin).tolist():
                for window, canary in self._windows.get(joined[at : at + _SHORTEST], ()):
                    if joined.startswith(window, at):
                        yield ways[bisect_right(starts, at) - 1], canary


def _forms(value: bytes) -> set[bytes]:
    """Return the forms that are searched for as they are; all others are decoded."""
    as_text = value.decode("latin-1")
    forms = {value, as_text.encode("utf-16-le"), as_text.encode("utf-16-be")}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        # Bytes that somebody took for text, as old pickles do.
        return forms | {as_text.encode()}
    cases = {text, text.upper(), text.lower(), text.title()}
    for case in cases | {unicodedata.normalize("NFD", case) for case in cases}:
        forms |= {case.encode(), case.encode("utf-16-le"), case.encode("utf-16-be")}
    return forms


# Layers


def layers(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what is encoded or compressed in some bytes, decoded, with the name of the encoding."""
    yield from _unpacked(content)
    for run in _PRINTABLE.finditer(content):
        yield from _texts(run[0])
    # Also in what is not printable: the chunks of HTTP are framed text around any bytes.
    if b"\r\n" in content:
        joined = _FRAMING.sub(b"", content)
        if joined != content:
            yield "chunks", joined


def _texts(text: bytes) -> Iterator[tuple[str, bytes]]:
    for name, run, decode in _RUNS:
        for found in run.finditer(text):
            for decoded in decode(found[0]):
                yield name, decoded
    for name, sign, whole in _WHOLE:
        if sign in text and (decoded := whole(text)) != text:
            yield name, decoded


def _base64(run: bytes) -> Iterator[bytes]:
    letters = b"".join(run.split()).translate(bytes.maketrans(b"-_", b"+/"))
    for start in range(4):
        rest = letters[start:]
        whole = rest[: len(rest) - len(rest) % 4]
        tail = rest[len(whole) :]
        # What is left of the last group holds one or two more bytes.
        if len(tail) > 1:
            whole += tail + b"=" * (4 - len(tail))
        yield binascii.a2b_base64(whole)


def _base32(run: bytes) -> Iterator[bytes]:
    for start in range(8):
        rest = run[start:].upper()
        usable = len(rest) - (len(rest) % 8 if len(rest) % 8 in (1, 3, 6) else 0)
        rest = rest[: usable - (1 if len(rest[:usable]) % 8 in (1, 3, 6) else 0)]
        with_padding = rest + b"=" * (-len(rest) % 8)
        try:
            yield base64.b32decode(with_padding)
        except binascii.Error:
            whole = rest[: len(rest) - len(rest) % 8]
            yield base64.b32decode(whole)


def _hex(run: bytes) -> Iterator[bytes]:
    digits = re.sub(rb"0x|\\x|[^0-9A-Fa-f]", b"", run)
    for start in range(2):
        rest = digits[start:]
        yield bytes.fromhex(rest[: len(rest) - len(rest) % 2].decode())


def _numbers(run: bytes) -> Iterator[bytes]:
    values = [int(number) for number in re.findall(rb"\d+", run)]
    yield bytes(value for value in values if value < 256)


def _escapes(text: bytes) -> bytes:
    def one(match: re.Match[bytes]) -> bytes:
        if digits := match[1] or match[2]:
            return bytes.fromhex(digits.decode())
        return bytes([int(match[3], 8) % 256]) if match[3] else bytes([_SIMPLE[match[4][0]]])

    return _ESCAPE.sub(one, text)


def _entities(text: bytes) -> bytes:
    def one(match: re.Match[bytes]) -> bytes:
        number = int(match[1], 16) if match[1] else int(match[2])
        return bytes([number]) if number < 256 else match[0]

    return _ENTITY.sub(one, text)


#: (name, what a run of it looks like, all that such a run may stand for)
_RUNS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes], Iterator[bytes]]], ...] = (
    ("base64", _BASE64, _base64),
    ("base32", _BASE32, _base32),
    ("hex", _HEX, _hex),
    ("numbers", _NUMBERS, _numbers),
)
#: (name, a sign of it, what decodes all of a text)
_WHOLE: tuple[tuple[str, bytes, Callable[[bytes], bytes]], ...] = (
    ("percent", b"%", unquote_to_bytes),
    ("percent, plus", b"+", lambda text: unquote_to_bytes(text.replace(b"+", b" "))),
    ("quoted-printable", b"=", quopri.decodestring),
    ("escapes", b"\\", _escapes),
    ("entities", b"&#", _entities),
)


# Compressed


def _unpacked(content: bytes) -> Iterator[tuple[str, bytes]]:
    for name, magic, unpack in _PACKED:
        at = content.find(magic)
        while at >= 0:
            inner = unpack(content, at)
            if len(inner) >= _SHORTEST:
                yield name, inner
            at = content.find(magic, at + 1)
    if len(content) < 2 * _SHORTEST:
        return
    inner = _inflate(content, 0, -zlib.MAX_WBITS)
    if len(inner) >= _SHORTEST:
        yield "deflate", inner


def _inflate(content: bytes, at: int, bits: int) -> bytes:
    """Return what a stream gives until it ends, breaks or becomes too much; random bytes give next to nothing."""
    inflater, out = zlib.decompressobj(bits), bytearray()
    # A little at a time, since an error takes with it what the same call would have returned.
    for start in range(at, len(content), 512):
        try:
            out += inflater.decompress(content[start : start + 512], _UNPACKED)
        except zlib.error:
            break
        if inflater.eof or len(out) > _UNPACKED:
            break
    return bytes(out)


def _stream(make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Callable[[bytes, int], bytes]:
    def unpack(content: bytes, at: int) -> bytes:
        try:
            return make().decompress(content[at:], _UNPACKED)
        except (OSError, EOFError, lzma.LZMAError):
            return b""

    return unpack


def _zstd(content: bytes, at: int) -> bytes:
    out = bytearray()
    try:
        with pa.input_stream(io.BytesIO(content[at:]), compression="zstd") as stream:
            while len(out) < _UNPACKED and (piece := stream.read(2**10)):
                out += piece
    except (OSError, pa.ArrowException):
        pass  # What came before the end of the stream counts.
    return bytes(out)


def _zip_member(content: bytes, at: int) -> bytes:
    if len(content) < at + 30:
        return b""
    method, name, extra = struct.unpack("<8xH16x2H", content[at : at + 30])
    return _inflate(content, at + 30 + name + extra, -zlib.MAX_WBITS) if method == 8 else b""


#: (name, how a stream begins, what returns its content)
_PACKED: tuple[tuple[str, bytes, Callable[[bytes, int], bytes]], ...] = (
    *(
        (("zlib", magic, lambda content, at: _inflate(content, at, zlib.MAX_WBITS)))
        for magic in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
    ),
    ("gzip", b"\x1f\x8b\x08", lambda content, at: _inflate(content, at, zlib.MAX_WBITS + 16)),
    ("bzip2", b"BZh", _stream(bz2.BZ2Decompressor)),
    ("xz", b"\xfd7zXZ\x00", _stream(lzma.LZMADecompressor)),
    ("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    ("zip", b"PK\x03\x04", _zip_member),
)

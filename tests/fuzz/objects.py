"""Targets: headers, bodies and names."""

from __future__ import annotations

import base64
import hmac
import unicodedata
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from sovstore.errors import FormatError, IntegrityError, PathError
from sovstore.format import body, header
from sovstore.format.cobblestone import CHUNK, TAG, WIRE_CHUNK
from sovstore.format.names import MAX_NAME, EncryptedNames, Names, PlainNames
from sovstore.listing import Decoder
from tests.bodies import open_in_order
from tests.fuzz.secrets import DEK, KEY_ID, NAME_KEY, STORE_ID, STORE_KEY, draw
from tests.fuzz.target import Finding, Target, hold

_PATH = "2026/persön.parquet"
_PLAIN = draw("plaintext", 2 * CHUNK + 77)


def _sealed() -> tuple[bytes, bytes]:
    """Return a header and a body, which no other process has alike: their salts are random."""
    sealer, out = body.BodySealer(DEK), bytearray(body.BodySealer.room(len(_PLAIN)))
    del out[sealer.update_into(_PLAIN, out) :]
    return header.seal_header(STORE_KEY, STORE_ID, KEY_ID, _PATH, DEK), bytes(out) + sealer.finalize()


_HEADER, _BODY = _sealed()
#: So that what a run finds can be tried again in another process, an input that starts with this is a difference.
_DIFFERENCE = b"^"


def _applied(genuine: bytes, difference: bytes) -> bytes:
    """Return genuine bytes, each changed by one of a difference."""
    size = len(genuine)
    changed = int.from_bytes(genuine) ^ int.from_bytes(difference[:size].ljust(size, b"\0"))
    return changed.to_bytes(size)


def parse_header(data: bytes) -> None:
    """Open a header; only the genuine one opens."""
    raw = _applied(_HEADER, data[1:]) if data[:1] == _DIFFERENCE else data
    try:
        key_id = header.header_key_id(raw, what=_PATH)
        hold(raw[:8] == header.MAGIC + b"\1" and key_id == raw[8:24], "a header of another form was taken")
        opened = header.open_header(STORE_KEY, STORE_ID, _PATH, raw, what=_PATH)
    except (FormatError, IntegrityError):
        hold(raw[: header.HEADER] != _HEADER, "the genuine header was refused")
        raise
    hold(raw[: header.HEADER] == _HEADER, "a forged header opened")
    hold(hmac.compare_digest(opened.reveal(), DEK.reveal()), "a header opened to another key")


def _headers() -> list[bytes]:
    front = header.MAGIC + b"\1" + KEY_ID
    return [b"^", b"^" + bytes(30) + b"\1", b"^" + bytes(8) + b"\1", front, front + bytes(104), front + bytes(500), b""]


def _long_headers() -> Iterator[tuple[str, bytes]]:
    yield "a header of 16 MiB", (header.MAGIC + b"\1").ljust(2**24, b"\xff")
    yield "nothing but magic, 8 MiB", header.MAGIC * 2**20


def parse_body(data: bytes) -> None:
    """Read a size, a prefix and chunks, at random and as a stream."""
    kind, rest = data[:1], data[1:]
    if kind == b"s":
        _parse_size(rest)
    elif kind == b"p":
        body.body_opener(DEK, rest[:56], what=_PATH)
        hold(rest[:56] == _BODY[:56], "a forged prefix was taken")
    elif kind == b"t":
        _parse_stream(rest)
    else:
        _parse_chunks(kind == _DIFFERENCE, rest)


def _parse_size(raw: bytes) -> None:
    size = int.from_bytes(raw[:10], "big", signed=True)
    plain = body.plain_size(size)
    hold(body.wire_size(plain) == size, "a size does not go both ways")


def _parse_chunks(difference: bool, raw: bytes) -> None:
    chunk_no, rest = int.from_bytes(raw[:1], "big") % 4, raw[1:]
    start = body.wire_offset(chunk_no) - header.HEADER
    genuine = _BODY[start : start + WIRE_CHUNK]
    sealed = _applied(genuine, rest) if difference else rest
    room = max(len(sealed) - TAG * -(-len(sealed) // WIRE_CHUNK), 0)
    # What lies behind the plaintext must stay as it is.
    out = bytearray(b"\xa5" * (room + 64))
    opener = body.body_opener(DEK, _BODY[:56], what=_PATH)
    written = opener.open_into(chunk_no, memoryview(sealed), memoryview(out)[:room])
    hold(out[room:] == b"\xa5" * 64, "plaintext was written behind its place")
    if sealed:
        hold(sealed == _BODY[start : start + len(sealed)], "forged chunks opened")
    hold(out[:written] == _PLAIN[chunk_no * CHUNK :][:written], "chunks opened to another plaintext")


def _parse_stream(raw: bytes) -> None:
    step, rest = int.from_bytes(raw[:2]), raw[2:]
    sealed = _BODY[:-7] + rest if step % 2 else rest
    plain = open_in_order(DEK, sealed, step + 1)
    hold((sealed, plain) == (_BODY, _PLAIN), "a forged stream opened")


def _bodies() -> list[bytes]:
    sizes = [200, 199, 16583, 16584, 16600, 2**52, 2**52 + 2**43, -1]
    seeds = [b"s" + size.to_bytes(10, "big", signed=True) for size in sizes]
    seeds += [
        b"^\0",
        b"^\1\0\1",
        b"^\2",
        b"^\3",
        b"c\0",
        b"c\1" + bytes(16),
        b"c\2" + bytes(100),
        b"p" + bytes(56),
        b"p",
    ]
    return [*seeds, b"t\0\1" + bytes(60), b"t\x40\x01" + bytes(7), b"t\0\0" + bytes(99), b"t\xff\xff"]


def _long_bodies() -> Iterator[tuple[str, bytes]]:
    yield "8 MiB of chunks", b"c\0" + bytes(2**23)
    yield "a stream of 8 MiB", b"t\xff\xff" + bytes(2**23)
    yield "a stream of 1 MiB in small steps", b"t\0\1" + bytes(2**20)
    yield "the largest size", b"s\x7f" + b"\xff" * 9


_ENCRYPTED, _READABLE = EncryptedNames(NAME_KEY.reveal(), STORE_ID), PlainNames()
_SIV = AESSIV(NAME_KEY.reveal())
#: First byte of an input: the coder, and a folder that is there.
_KINDS: dict[bytes, tuple[Names, str]] = {
    b"e": (_ENCRYPTED, ""),
    b"E": (_ENCRYPTED, "dossiers/é"),
    b"p": (_READABLE, ""),
    b"P": (_READABLE, "dossiers/é"),
}


def parse_name(data: bytes) -> None:
    """Decode what a host lists, and encode what a caller asks for."""
    kind, text = data[:1], _text(data[1:])
    if kind in _KINDS:
        _parse_segment(*_KINDS[kind], text)
    elif kind == b"s":
        sealed = _SIV.encrypt(data[1:] or b"\0", [STORE_ID, b""])
        _parse_segment(_ENCRYPTED, "", base64.urlsafe_b64encode(sealed).rstrip(b"=").decode())
    elif kind in (b"d", b"D"):
        _parse_listed(_ENCRYPTED if kind == b"d" else _READABLE, text)
    else:
        _parse_path(text)


def _text(raw: bytes) -> str:
    """Return a name as file systems (surrogates for bytes) and JSON (any surrogate) give it."""
    try:
        return raw.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return raw.decode(errors="surrogateescape")


def _joined(parent: str, segment: str) -> str:
    return f"{parent}/{segment}" if parent else segment


def _parse_segment(names: Names, parent: str, name: str) -> None:
    plain = names.decode_segment(parent, name)
    hold(names.encode(_joined(parent, plain)) == _joined(names.encode(parent), name), "an alias was taken")
    _hold_grammar(_joined(parent, plain))


def _hold_grammar(path: str) -> None:
    segments = path.split("/")
    hold(not {"", ".", ".."} & set(segments) and "\0" not in path, "a path breaks the grammar")
    hold(segments[0].lower() != ".sovstore", "a path is reserved")
    hold(unicodedata.normalize("NFC", path) == path and len(path.encode()) <= MAX_NAME, "a path breaks the grammar")


def _parse_listed(names: Names, name: str) -> None:
    decoder = Decoder(names, "", "")
    path, foreign = decoder.decode(name)
    hold(decoder.decode(name) == (path, foreign), "the same name is another path")
    if not foreign:
        hold(names.encode(path) == name, "an alias was taken")
        _hold_grammar(path)
    path.encode()
    hold(path.rpartition("/")[2].isprintable() or not foreign, "a foreign name is shown as it is")
    hold(not {".", ".."} & set(path.split("/")) and "\0" not in path, "a foreign name leads out of its folder")


def _parse_path(path: str) -> None:
    refused = None
    for names in (_ENCRYPTED, _READABLE):
        try:
            name = names.encode(path)
        except PathError as exc:
            refused = exc
            continue
        hold(len(name.encode()) <= MAX_NAME, "a name is too long")
        hold(Decoder(names, "", "").decode(name) == (path, False) or not path, "a path does not come back")
    if refused is not None:
        raise refused


def _names() -> list[bytes]:
    paths = ["a", "2026/persön.parquet", "dossiers/é/x", "a" * 159, "x/" * 20, "a//b", "..", ".sovstore/x", "e\u0301"]
    seeds = [b"d" + _ENCRYPTED.encode(path).encode() for path in paths[:4]]
    seeds += [kind + path.encode() for path in paths for kind in (b"D", b"c", b"p", b"P")]
    own = _ENCRYPTED.encode("dossiers/é/x").encode().split(b"/")
    seeds += [
        b"e" + own[0],
        b"E" + own[2],
        b"e" + own[2],
        b"e",
        b"d" + b"/".join(own) + b"/%2e",
        b"D\xff",
        b"D\xed\xa0\x80",
    ]
    padded = [b"a\x80" + bytes(14), b"a\x80", b"\x80" + bytes(15), b"..\x80" + bytes(13), b"a/b\x80" + bytes(12)]
    return seeds + [b"s" + raw for raw in (*padded, bytes(16), b"\xff\x80" + bytes(14), b"a" * 159 + b"\x80")]


def _long_names() -> Iterator[tuple[str, bytes]]:
    most = 10**6
    for kind in "eEpPdDcs":
        front = kind.encode()
        yield f"{kind}: 10^6 letters", front + b"a" * most
        yield f"{kind}: 10^6 folders", front + b"a/" * most
        yield f"{kind}: folders outside the first plane", front + "😀/".encode() * 1024
        yield f"{kind}: 10^6 slashes", front + b"/" * most
        yield f"{kind}: 10^6 dots", front + b"." * most
        yield f"{kind}: 10^6 marks to be put in order", front + b"a" + "\u0327\u0300".encode() * (most // 4)
        yield f"{kind}: 10^6 marks to be composed", front + b"a" + "\u0300".encode() * (most // 2)
        yield f"{kind}: 10^6 jamo", front + "\u1100\u1161\u11a8".encode() * (most // 9)
        yield f"{kind}: 10^6 bytes that are no UTF-8", front + b"\xff" * most


HEADER = Target(
    "header",
    parse_header,
    (FormatError, IntegrityError),
    _headers,
    _long_headers,
    [header.MAGIC, header.MAGIC + b"\1" + KEY_ID],
    512,
)
BODY = Target("body", parse_body, (FormatError, IntegrityError), _bodies, _long_bodies, longest=20_000)
NAMES = Target(
    "names", parse_name, (FormatError, IntegrityError, PathError), _names, _long_names, [b"/", b"..", b"\x80"], 512
)
__all__ = ["BODY", "HEADER", "NAMES", "Finding"]

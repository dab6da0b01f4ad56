"""Make the vectors of headers and bodies."""

import hashlib
import unicodedata
from typing import Any

from tests.vectors.load import CHUNK, derive, expand

WIRE_CHUNK = CHUNK + 16
MAGIC = "89534f560d0a1a01"
BODY_CONTEXT = {"text": "sovstore/1 body"}
Made = dict[str, Any]


def draw(label: str, size: int) -> bytes:
    """Return bytes that depend on the label alone."""
    return hashlib.shake_256(b"sovstore test vectors 1\0" + label.encode()).digest(size)


def vector(cause: str, comment: str, expect: str, **fields: Any) -> Made:
    """Return a vector without its id."""
    return {"cause": cause, "comment": comment, "expect": expect, **fields}


STORE_ID, OTHER_STORE = draw("store id", 16), draw("other store id", 16)
EPOCHS = [
    {"id": draw(f"epoch {state}", 16).hex(), "state": state, "key": draw(f"store key {state}", 32).hex()}
    for state in ("destroyed", "readable", "primary")
]


# Headers


def header(
    path: str = "data/report.parquet",
    *,
    epoch: int = 2,
    store_id: bytes = STORE_ID,
    magic: str = MAGIC,
    label: str = "sovstore/1 wrap",
    swapped: bool = False,
) -> bytes:
    """Return the header (128 bytes) of an object at this path."""
    key_id = bytes.fromhex(EPOCHS[epoch]["id"])
    ids = key_id + store_id if swapped else store_id + key_id
    message = {
        "key": EPOCHS[epoch]["key"],
        "context": [{"text": label}, "00", ids.hex(), {"text": path}],
        "salt": draw(f"wrap salt {path}", 24).hex(),
        "plaintext": draw(f"dek {path}", 32).hex(),
    }
    return bytes.fromhex(magic) + key_id + expand({"cobblestone": message})


def make_header() -> tuple[Made, list[Made]]:
    """Return what the vectors of headers have in common, and the vectors."""
    made: list[Made] = []

    def add(cause: str, comment: str, expect: str, data: Any, path: str = "data/report.parquet") -> None:
        fields = {"path": path, "header": data.hex() if isinstance(data, bytes) else data}
        if expect == "ok":
            fields["dek"] = draw(f"dek {path}", 32).hex()
        made.append(vector(cause, comment, expect, **fields))

    for path in (
        "data/report.parquet",
        "a",
        "caf\u00e9/\u65e5\u672c\u8a9e.csv",
        "\U0001f512",
        "x" * 900,
        "a\nb",
    ):
        add("ok", f"a path of {len(path.encode())} bytes", "ok", header(path), path)
    readable = header("old", epoch=1)
    add("ok-readable", "an epoch that unwraps only", "ok", readable, "old")
    for byte in range(7):
        add("magic", f"byte {byte} of the magic is wrong", "format", _flipped(header(), 8 * byte + 7))
    for version in (0, 2, 255):
        add("version", f"format version {version}", "format", header(magic=MAGIC[:-2] + f"{version:02x}"))
    for size in (0, 1, 7, 8, 24, 127):
        add("short", f"the object has {size} bytes", "format", header()[:size])
    add("unknown-key-id", "first bit of the key id", "integrity", _flipped(header(), 64))
    add("unknown-key-id", "last bit of the key id", "integrity", _flipped(header(), 191))
    add("destroyed-epoch", "the epoch is destroyed", "integrity", header(epoch=0))
    other_id = header()[:8] + bytes.fromhex(EPOCHS[1]["id"]) + header()[24:]
    add("other-key-id", "the key id of another epoch of the store", "integrity", other_id)
    spans = {"salt": (24, 48), "commitment": (48, 80), "ciphertext": (80, 112), "tag": (112, 128)}
    for field, (start, end) in spans.items():
        add("flip", f"first bit of the {field}", "integrity", _flipped(header(), 8 * start))
        add("flip", f"last bit of the {field}", "integrity", _flipped(header(), 8 * end - 1))
    for path, why in {
        "data/report.parquet2": "the path is longer",
        "data/report.parque": "the path is shorter",
        "data/Report.parquet": "the path differs in case",
        "report.parquet": "the path is below another folder",
        "": "the path is empty",
    }.items():
        add("other-path", why, "integrity", header(), path)
    nfd = unicodedata.normalize("NFD", "caf\u00e9")
    add("nfd-path", "the path in NFD: bytes are bound, not characters", "integrity", header("caf\u00e9"), nfd)
    add("other-store", "the header of an object of another store", "integrity", header(store_id=OTHER_STORE))
    add("other-context", "context of an encrypted key", "integrity", header(label="sovstore/1 key"))
    add("other-context", "context of format 2", "integrity", header(label="sovstore/2 wrap"))
    add("swapped-context", "key id before store id in the context", "integrity", header(swapped=True))
    public = [{k: v for k, v in e.items() if k != "key" or e["state"] != "destroyed"} for e in EPOCHS]
    return {"store_id": STORE_ID.hex(), "epochs": public}, made


def _flipped(data: bytes, bit: int) -> bytes:
    return expand({"edit": data.hex(), "ops": [{"op": "flip", "bit": bit}]})


# Bodies


def make_body() -> tuple[Made, list[Made]]:
    """Return what the vectors of bodies have in common, and the vectors."""
    made: list[Made] = []

    def add(
        cause: str,
        comment: str,
        plaintext: Any,
        *ops: Made,
        expect: str = "integrity",
        number: int = 0,
        dek: bytes | None = None,
        **changes: Any,
    ) -> None:
        # The number finds other keys for a vector that needs a base nonce of its kind.
        label = f"body {len(made)} {number}"
        key = draw(f"{label} dek", 32)
        message = {"key": key.hex(), "context": BODY_CONTEXT, "salt": draw(f"{label} salt", 24).hex()}
        source: Made = {"cobblestone": {**message, "plaintext": plaintext, **changes}}
        if ops:
            source = {"edit": source, "ops": list(ops)}
        fields = {"dek": (dek or key).hex(), "message": _compact(source)}
        if expect == "ok":
            fields["plaintext"] = plaintext
        made.append(vector(cause, comment, expect, **fields))

    for size in (0, 1, 15, 16, 16383, 16384, 16385, 32767, 32768):
        add("ok", f"{size} bytes", _pattern(size), expect="ok")
    label = f"body {len(made)}"
    number = next(n for n in range(1 << 16) if _base_nonce(f"{label} {n}")[-1] == 0xFF)
    add(
        "ok-xor",
        "base nonce ends in ff: the index is XORed, not added",
        _pattern(32769),
        expect="ok",
        number=number,
    )

    three, end = _pattern(2 * CHUNK + 100), 56 + 2 * WIRE_CHUNK + 116
    boundaries = {
        0: "nothing",
        24: "the salt",
        56: "the header",
        56 + WIRE_CHUNK: "chunk 0",
        56 + 2 * WIRE_CHUNK: "chunk 1",
    }
    for boundary, what in boundaries.items():
        for size in (boundary - 1, boundary, boundary + 1):
            if size >= 0:
                comment = f"{size - boundary:+d} byte from the end of {what}".replace("+0 byte", "0 bytes")
                add("truncated", comment, three, {"op": "truncate", "to": size})
    for size in (end - 100, end - 16, end - 1):
        add(
            "truncated",
            f"{end - size} bytes of the last chunk are missing",
            three,
            {"op": "truncate", "to": size},
        )
    add(
        "truncated",
        "the tag of an empty last chunk lacks a byte",
        _pattern(CHUNK),
        {"op": "truncate", "to": 56 + WIRE_CHUNK + 15},
    )
    for data, what in (
        ("00", "one byte"),
        ({"fill": 0, "n": 16}, "16 bytes"),
        ({"fill": 0, "n": WIRE_CHUNK}, "a chunk of zeros"),
    ):
        add("extended", f"{what} after the last chunk", three, {"op": "append", "data": data})
    add("extended", "the last chunk once more", three, {"op": "copy", "span": [end - 116, end], "to": end})
    add(
        "extended",
        "an authentic empty chunk after a short one",
        _pattern(100),
        layout=_layout((0, 100), (1, 0)),
    )
    add("extended", "an authentic chunk after a short one", _pattern(200), layout=_layout((0, 100), (1, 100)))
    first, second = [56, 56 + WIRE_CHUNK], [56 + WIRE_CHUNK, 56 + 2 * WIRE_CHUNK]
    add("reordered", "chunks 0 and 1 are swapped", three, {"op": "swap", "a": first, "b": second})
    add("reordered", "chunk 0 twice", three, {"op": "copy", "span": first, "to": first[1]})
    add("reordered", "chunk 0 is missing", three, {"op": "delete", "span": first})
    add("reordered", "chunk 1 is missing", three, {"op": "delete", "span": second})
    add("full-last-chunk", "the last chunk has 16384 bytes", _pattern(CHUNK), layout=_layout((0, CHUNK)))
    add(
        "full-last-chunk",
        "the last of two chunks has 16384 bytes",
        _pattern(2 * CHUNK),
        layout=_layout((0, CHUNK), (1, CHUNK)),
    )
    add("overfull-chunk", "one chunk of 16385 bytes", _pattern(CHUNK + 1), layout=_layout((0, CHUNK + 1)))
    add("empty-first-chunk", "chunk 0 is empty", _pattern(100), layout=_layout((0, 0), (1, 100)))
    add("index", "the first chunk has index 1", _pattern(100), layout=_layout((1, 100)))
    add("index", "the second chunk has index 0", _pattern(CHUNK + 1), layout=_layout((0, CHUNK), (0, 1)))
    add("index", "the index is little endian", _pattern(CHUNK + 1), layout=_layout((0, CHUNK), (1 << 88, 1)))
    spans = {
        "salt": (0, 24),
        "commitment": (24, 56),
        "ciphertext of chunk 0": (56, 56 + CHUNK),
        "tag of chunk 0": (56 + CHUNK, 56 + WIRE_CHUNK),
        "chunk 1": (56 + WIRE_CHUNK, 56 + 2 * WIRE_CHUNK),
        "ciphertext of the last chunk": (end - 116, end - 16),
        "tag of the last chunk": (end - 16, end),
    }
    for what, (start, stop) in spans.items():
        add("flip", f"first bit of the {what}", three, {"op": "flip", "bit": 8 * start})
        add("flip", f"last bit of the {what}", three, {"op": "flip", "bit": 8 * stop - 1})
    for context, what in (
        ("", "empty"),
        ({"text": "sovstore/1 wrap"}, "of a wrap"),
        ([BODY_CONTEXT, "00"], "with a zero byte more"),
    ):
        add("other-context", f"the context is {what}", _pattern(100), context=context)
    add("other-dek", "encrypted under another DEK", _pattern(100), dek=draw("other dek", 32))
    add("aad", "a chunk has associated data", _pattern(100), aad="00")
    return {}, made


def _base_nonce(label: str) -> bytes:
    return derive(draw(f"{label} dek", 32), draw(f"{label} salt", 24), expand(BODY_CONTEXT))[32:44]


def _compact(source: Made) -> Any:
    """Return the hex of a short message, or the way to make a long one and its SHA-256."""
    data = expand(source)
    return data.hex() if len(data) <= 512 else {"sha256": hashlib.sha256(data).hexdigest(), "of": source}


def _pattern(size: int) -> list[Made]:
    """Return plaintext in which every chunk differs, and is told by its bytes."""
    starts = range(0, size, CHUNK)
    return [{"fill": 0xA0 + number, "n": min(CHUNK, size - start)} for number, start in enumerate(starts)]


def _layout(*chunks: tuple[int, int]) -> list[dict[str, int]]:
    return [{"index": index, "size": size} for index, size in chunks]

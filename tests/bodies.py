"""Bodies read in order, as a reader does that wants all of one."""

from __future__ import annotations

from sovstore.format import body
from sovstore.format.cobblestone import CHUNK, PREFIX, WIRE_CHUNK
from sovstore.format.header import HEADER
from sovstore.secret import Secret


def open_in_order(dek: Secret, message: bytes, at_once: int) -> bytes:
    """Return the plaintext of a body, opening `at_once` chunks in one step; the last, short one by its number."""
    out = memoryview(bytearray(body.plain_size(HEADER + len(message))))
    prefix, sealed = message[:PREFIX], memoryview(message)[PREFIX:]
    stream, whole = body.BodyStreamOpener(dek, prefix, what="object"), len(out) // CHUNK
    for start in range(0, whole, at_once):
        end = min(start + at_once, whole)
        stream.open_into(sealed[start * WIRE_CHUNK : end * WIRE_CHUNK], out[start * CHUNK : end * CHUNK])
    opener = body.body_opener(dek, prefix, what="object")
    opener.open_into(whole, sealed[whole * WIRE_CHUNK :], out[whole * CHUNK :])
    return bytes(out)

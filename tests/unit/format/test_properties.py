"""Each parser: what was changed is refused, what is accepted comes out as it went in."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovstore.errors import FormatError, IntegrityError, PathError
from sovstore.format import body, header
from sovstore.format.cobblestone import CHUNK
from sovstore.format.names import EncryptedNames, PlainNames, check_path
from sovstore.secret import Secret
from tests.bodies import open_in_order

STORE, KEY_ID, STORE_KEY = bytes(range(16)), bytes(range(16, 32)), Secret(bytes(range(32)))
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5]

segments = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12).map(
    lambda s: unicodedata.normalize("NFC", s)
)
paths = st.lists(segments, min_size=1, max_size=4).map("/".join)


def _valid(path: str) -> bool:
    try:
        check_path(path)
    except PathError:
        return False
    return True


@given(paths.filter(_valid), st.sampled_from(["plain", "encrypted"]))
def test_a_name_decodes_to_its_path_and_nothing_else(path, mode):
    names = PlainNames() if mode == "plain" else EncryptedNames(bytes(range(64)), STORE)
    parent = ""
    for segment in names.encode(path).split("/"):
        plain = names.decode_segment(parent, segment)
        parent = f"{parent}/{plain}" if parent else plain
    assert parent == path


@given(st.text(max_size=80))
def test_a_foreign_name_is_refused(name):
    names = EncryptedNames(bytes(range(64)), STORE)
    with pytest.raises((FormatError, IntegrityError)):
        names.decode_segment("", name)


def test_a_name_belongs_to_its_folder_and_store():
    names, other = EncryptedNames(bytes(range(64)), STORE), EncryptedNames(bytes(range(64)), KEY_ID)
    encoded = names.encode("a/b").split("/")[1]
    assert names.decode_segment("a", encoded) == "b"
    for coder, parent in ((names, "c"), (names, ""), (other, "a")):
        with pytest.raises(IntegrityError):
            coder.decode_segment(parent, encoded)


@given(paths.filter(_valid))
def test_a_header_opens_for_its_path_only(path):
    dek = Secret(os.urandom(32))
    sealed = header.seal_header(STORE_KEY, STORE, KEY_ID, path, dek)
    assert len(sealed) == header.HEADER
    assert header.header_key_id(sealed, what=path) == KEY_ID
    assert header.open_header(STORE_KEY, STORE, path, sealed, what=path).reveal() == dek.reveal()
    with pytest.raises(IntegrityError):
        header.open_header(STORE_KEY, STORE, path + "x", sealed, what=path)


@pytest.mark.parametrize("size", SIZES)
def test_a_body_streams_and_reads_at_random(size):
    plain, dek = os.urandom(size), Secret(os.urandom(32))
    for step in (1, 1000, CHUNK, 10 * CHUNK):
        if step == 1 and size > 100:
            continue
        sealer, out = body.BodySealer(dek), bytearray()
        for start in range(0, size, step):
            piece = plain[start : start + step]
            buffer = bytearray(body.BodySealer.room(len(piece)))
            out += buffer[: sealer.update_into(piece, buffer)]
        out += sealer.finalize()
        assert header.HEADER + len(out) == body.wire_size(size)
        assert open_in_order(dek, bytes(out), max(1, step // CHUNK)) == plain
    reader = body.body_opener(dek, out[:56], what="x")
    for chunk_no in range(size // CHUNK + 1):
        start = body.wire_offset(chunk_no) - header.HEADER
        target = bytearray(CHUNK)
        n = reader.open_into(
            chunk_no, memoryview(out)[start : start + 16400], memoryview(target)[: len(out[start : start + 16400]) - 16]
        )
        assert target[:n] == plain[chunk_no * CHUNK : (chunk_no + 1) * CHUNK]


@given(st.integers(0, 2**52 - 1))
def test_sizes_go_both_ways(size):
    assert body.plain_size(body.wire_size(size)) == size


@given(st.integers(-10, 2**40))
def test_a_size_is_valid_or_refused(wire):
    try:
        size = body.plain_size(wire)
    except FormatError:
        return
    assert body.wire_size(size) == wire


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_chunk_span_covers_just_the_range(a, b):
    start, end = min(a, b), max(a, b)
    span = body.chunk_span(start, end)
    if start == end:
        assert len(span) == 0
        return
    assert span.start * CHUNK <= start < (span.start + 1) * CHUNK
    assert (span.stop - 1) * CHUNK < end <= span.stop * CHUNK


@pytest.mark.parametrize("names", [PlainNames(), EncryptedNames(bytes(range(64)), STORE)], ids=["plain", "encrypted"])
def test_a_long_name_is_refused_without_being_shown(names):
    for name in ("a" * 10**6, "\u0327\u0300" * 10**5, "a/" * 10**5):
        with pytest.raises(FormatError) as caught:
            names.decode_segment("", name)
        assert len(str(caught.value)) < 2000
        with pytest.raises(PathError, match=r"the limit is (159|255|900)"):
            names.encode(name)

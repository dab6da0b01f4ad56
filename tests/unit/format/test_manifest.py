"""Lines of a manifest: what was changed is refused, what is accepted comes out as it went in."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sovstore.errors import FormatError, PathError
from sovstore.format.body import MAX_PLAIN
from sovstore.format.manifest import (
    MAX_LINE,
    PATH,
    ManifestEntry,
    ManifestHead,
    ManifestLines,
    ManifestParser,
    Totals,
)
from sovstore.format.names import EncryptedNames, PlainNames
from tests.unit.format.test_properties import _valid, paths

HEAD = ManifestHead(bytes(range(16)), datetime(2026, 11, 25, 23, 30, 39, tzinfo=UTC))
BELOW = ManifestHead(HEAD.store_id, HEAD.created, "a")
#: Where the order of paths is not that of folders and names.
ORDER = ["a", "a b", "a-b", "a.b", "a/b", "a/b-c/d", "a/b.c", "a/b/c", "a/é", "a0", "b", "\U0001f600", "\ufb01"]

entries = st.lists(
    st.builds(ManifestEntry, paths.filter(_valid), st.integers(0, MAX_PLAIN), st.binary(min_size=56, max_size=56)),
    unique_by=lambda entry: entry.path,
    max_size=6,
).map(lambda found: sorted(found, key=lambda entry: entry.path.encode()))


def entry(path, size=1):
    return ManifestEntry(path, size, path.encode()[:56].ljust(56, b"\0"))


def dumped(given, head=HEAD):
    lines = ManifestLines(head)
    return b"".join([lines.first(), *map(lines.entry, given), lines.last()])


def parsed(raw, piece=None):
    """Return what a parser makes of bytes, given whole or in pieces of some size."""
    parser, found = ManifestParser(what="m"), []
    for start in range(0, len(raw), piece or len(raw) or 1):
        found += parser.feed(raw[start : start + (piece or len(raw))])
    totals = parser.finish()
    return parser.head, found, totals


def refused(raw, match=None):
    with pytest.raises(FormatError, match=match) as caught:
        parsed(raw)
    assert caught.value.path.startswith("m")


def test_the_example_of_the_specification():
    given = [ManifestEntry("a/1.txt", 14, b"\1" * 56), ManifestEntry("a/p.csv", 38, b"\xfe" * 56)]
    raw = dumped(given, BELOW)
    assert raw.decode() == (
        '{"below":"a","created":"2026-11-25T23:30:39Z","format":"sovstore manifest 1",'
        '"store_id":"000102030405060708090a0b0c0d0e0f"}\n'
        f'{{"path":"a/1.txt","size":14,"version":"{"01" * 56}"}}\n'
        f'{{"path":"a/p.csv","size":38,"version":"{"fe" * 56}"}}\n'
        '{"bytes":52,"objects":2}\n'
    )
    assert parsed(raw) == (BELOW, given, Totals(2, 52))


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
@pytest.mark.parametrize("piece", [1, 7, 4096, None])
def test_any_number_of_objects_in_any_pieces(count, piece):
    given = [entry(f"{number:06}/x", number) for number in range(count)]
    assert parsed(dumped(given), piece) == (HEAD, given, Totals(count, sum(range(count))))


@given(entries, st.sampled_from([None, 1, 100]))
def test_what_is_accepted_is_written_again_as_the_same_bytes(given, piece):
    raw = dumped(given)
    assert raw.isascii()
    head, found, totals = parsed(raw, piece)
    assert (head, found) == (HEAD, given)
    assert totals == Totals(len(given), sum(entry.size for entry in given))
    assert dumped(found, head) == raw


@given(entries, st.data())
def test_what_was_changed_is_refused_or_says_something_else(given, data):
    raw = dumped(given)
    at = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(at, min(len(raw), at + 3)))
    other = raw[:at] + data.draw(st.binary(max_size=3)) + raw[end:]
    assume(other != raw)
    try:
        head, found, _ = parsed(other)
    except FormatError:
        return
    # One byte of a name or a version may be another one; then it is that manifest, and not an alias of this one.
    assert (head, found) != (HEAD, given)
    assert dumped(found, head) == other


@given(entries, st.data())
def test_lines_that_are_dropped_doubled_or_exchanged_are_refused(given, data):
    lines = dumped(given).splitlines(keepends=True)
    one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    refused(b"".join(lines[:one] + lines[one + 1 :]))
    refused(b"".join(lines[: one + 1] + lines[one:]))
    assume(one != other)
    lines[one], lines[other] = lines[other], lines[one]
    refused(b"".join(lines))


def test_every_truncation_is_refused():
    raw = dumped([entry("a"), entry("b/c")])
    for end in range(len(raw)):
        refused(raw[:end])
    for tail in (b"\n", b"\0", b"{}", raw):
        refused(raw + tail)


def test_the_order_is_that_of_bytes():
    ordered = sorted(ORDER, key=str.encode)
    assert ordered == [*ORDER[:-2], "\ufb01", "\U0001f600"]
    assert [found.path for found in parsed(dumped(map(entry, ordered)))[1]] == ordered
    for one, other in pairwise(ordered):
        lines = ManifestLines(HEAD)
        lines.entry(entry(other))
        for late in (one, other):
            with pytest.raises(ValueError, match="order"):
                lines.entry(entry(late))


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "..", "a\0", "\ud800", "e\u0301", PATH, ".SOVSTORE/x"])
def test_paths_that_no_object_has(path):
    with pytest.raises(PathError):
        ManifestLines(HEAD).entry(ManifestEntry(path, 1, bytes(56)))
    if path:
        with pytest.raises(PathError):
            ManifestLines(ManifestHead(HEAD.store_id, HEAD.created, path))
    good = dumped([entry("x")])
    refused(good.replace(b'"path":"x"', b'"path":' + json.dumps(path).encode()), "a path that the format does not")


def test_no_object_has_the_path_of_a_manifest():
    for names in (PlainNames(), EncryptedNames(bytes(range(64)), bytes(16))):
        with pytest.raises(PathError):
            names.encode(PATH)


@pytest.mark.parametrize("wrong", [{"size": -1}, {"size": MAX_PLAIN + 1}, {"version": b"1" * 55}, {"path": "x" * 901}])
def test_what_no_object_is_like(wrong):
    with pytest.raises(ValueError, match=r"a path of|a size or version"):
        ManifestLines(HEAD).entry(ManifestEntry(**{"path": "a", "size": 1, "version": bytes(56), **wrong}))


def test_paths_of_a_folder_are_in_it():
    good = dumped([entry("a/b")], BELOW)
    for outside in ("a", "ab", "b", "A/b"):
        with pytest.raises(ValueError, match="outside"):
            ManifestLines(BELOW).entry(entry(outside))
        refused(good.replace(b'"path":"a/b"', f'"path":"{outside}"'.encode()), "line 2: a path outside")


_FIRST = '{"below":"","created":"2026-11-25T23:30:39Z","format":"sovstore manifest 1","store_id":"%s"}' % ("0" * 32)


@pytest.mark.parametrize(
    ("line", "other", "match"),
    [
        (_FIRST, _FIRST.replace(" 1", " 2"), "line 1: format is not one of sovstore manifest 1"),
        (_FIRST, _FIRST.replace("T23", "T24"), "line 1"),
        (_FIRST, _FIRST.replace("11-25", "11-31"), "line 1"),
        (_FIRST, _FIRST.replace("2026-", "\\uff12026-"), "line 1"),
        (_FIRST, _FIRST.replace("39Z", "39+00:00"), "created is not a moment"),
        (_FIRST, _FIRST.replace("0" * 32, "0" * 31), "store_id is not"),
        (_FIRST, _FIRST.replace("0" * 32, "A" * 32), "store_id is not"),
        (_FIRST, _FIRST.replace('"below":"",', ""), "exactly the members"),
        (_FIRST, _FIRST.replace('{"', '{ "'), "not canonical"),
        ('"size":1', '"size":1.0', "not canonical"),
        ('"size":1', '"size":-0', "not canonical"),
        ('"size":1', '"size":true', "size is not an integer"),
        ('"size":1', '"size":"1"', "size is not an integer"),
        ('"size":1', '"size":4503599627370496', "size is not an integer"),
        ('"size":1', '"size":1,"size":1', "not canonical"),
        ('"size":1', '"size":1,"t":1', "exactly the members"),
        ("6100", "610A", "version is not 112"),
        ("6100", "61", "version is not 112"),
        ('"path":"a"', '"path":"\\u0061"', "not canonical"),
        ('"path":"a"', '"path":"é"', "not canonical"),
        ('"path":"a"', '"path":"%s"' % ("x" * 901), "a path of 901 bytes"),
        ('"path":"a"', '"path":"%s"' % ("x" * MAX_LINE), "more than the limit"),
        ('"bytes":1', '"bytes":2', "not as many"),
        ('"objects":1', '"objects":0', "not as many"),
        ('"objects":1', '"objects":1,"path":"b"', "exactly the members"),
        ("\n", "\r\n", "not canonical"),
        ("\n", "", "not canonical|complete"),
        ("{", "[" * 3000 + "{", "not canonical"),
    ],
)
def test_one_thing_wrong(line, other, match):
    raw = dumped([entry("a")], ManifestHead(bytes(16), HEAD.created)).decode()
    assert line in raw
    refused(raw.replace(line, other).encode(), match)


def test_a_line_without_end_takes_no_memory():
    parser = ManifestParser(what="m")
    for _ in range(8):
        parser.feed(b"x" * 1000)
    with pytest.raises(FormatError, match="longer than any line"):
        parser.feed(b"x" * 1000)


def test_the_longest_paths_fit_into_a_line():
    for path in ("\x01" * 900, "\u0800" * 300, "\U0001f600" * 225, '"' * 900):
        raw = dumped([ManifestEntry(path, MAX_PLAIN, b"\xff" * 56)], ManifestHead(bytes(16), HEAD.created, ""))
        assert max(map(len, raw.splitlines())) <= MAX_LINE
        assert parsed(raw)[1][0].path == path
    assert len(ManifestLines(ManifestHead(bytes(16), HEAD.created, "\x01" * 900)).first()) <= MAX_LINE

"""How an object is cut into parts, and the body that a client sends."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from sovstore.backends.parts import PART, PartSizes, Pieces
from sovstore.backends.providers import catalogue
from sovstore.errors import StoreError

MIB, GIB, TIB = 2**20, 2**30, 2**40
S3 = PartSizes(PART, 5 * GIB, 10_000, 5 * TIB)
SCALEWAY = PartSizes(PART, 5 * GIB, 1000, 5 * 10**12)


@pytest.mark.parametrize("sizes", [S3, SCALEWAY], ids=["S3", "Scaleway"])
@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, GIB, 8 * GIB, 100 * GIB, 10**12, 5 * 10**12])
def test_a_known_size_fits(sizes: PartSizes, size: int) -> None:
    cut = sizes.of(size, name="a")
    assert cut.size(0, name="a") * sizes.parts_max >= size
    assert PART <= cut.size(0, name="a") <= sizes.part_max
    # All of one size, as some hosts want it.
    assert cut.size(0, name="a") == cut.size(sizes.parts_max - 1, name="a")


def test_a_terabyte_at_scaleway_takes_less_than_its_thousand_parts() -> None:
    assert -(-(10**12) // SCALEWAY.of(10**12, name="a").size(0, name="a")) <= 1000
    assert catalogue()["scaleway"].get("parts_max") == 1000


@pytest.mark.parametrize("sizes", [S3, SCALEWAY], ids=["S3", "Scaleway"])
def test_of_an_unknown_size_parts_grow(sizes: PartSizes) -> None:
    found = [sizes.size(number, name="a") for number in range(sizes.parts_max)]
    assert found == sorted(found)
    assert found[0] == PART
    assert found[-1] <= sizes.part_max
    assert sum(found) > 2 * TIB


def test_where_parts_must_be_equal_they_do_not_grow() -> None:
    equal = PartSizes(PART, 5 * GIB, 10_000, 5 * TIB, equal=True)
    assert {equal.size(number, name="a") for number in (0, 700, 9999)} == {PART}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(StoreError, match="takes 5497558138880 at most"):
        S3.of(5 * TIB + 1, name="a")
    with pytest.raises(StoreError, match="more than 1000 parts"):
        SCALEWAY.size(1000, name="a")


def _bodies() -> list[Any]:
    data = bytes(range(256)) * 5000
    return [bytearray(data), io.BytesIO(data)]


@pytest.mark.parametrize("body", _bodies(), ids=["memory", "file"])
def test_a_body_is_sent_in_pieces_and_again_from_its_start(body: Any) -> None:
    data = bytes(range(256)) * 5000

    async def send(pieces: Pieces) -> list[bytes]:
        return [bytes(piece) async for piece in pieces]

    pieces = Pieces(body, len(data))
    assert len(pieces) == len(data)
    sent = asyncio.run(send(pieces))
    assert b"".join(sent) == data
    assert max(map(len, sent)) <= 2**18
    assert asyncio.run(send(pieces)) == []
    assert pieces.seek(0) == pieces.tell() == 0
    assert b"".join(asyncio.run(send(pieces))) == data


@pytest.mark.parametrize("body", _bodies(), ids=["memory", "file"])
def test_a_client_that_signs_reads_first(body: Any) -> None:
    pieces = Pieces(body, 1000)
    assert pieces.read(10) == bytes(range(10))
    assert len(pieces.read()) == 990
    assert pieces.read() == b""
    assert pieces.seek(-10, 2) == 990
    assert pieces.seek(5, 1) == 995
    assert len(pieces.read(100)) == 5

"""What a host was seen to do, as data, and how an answer to a condition is judged. Makes no request by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sovstore.errors import SovstoreError, StoreError

#: What is measured besides the conditions, and what the value is where it could be.
ABILITIES: Mapping[str, str] = {
    "etag_quotes": "'quoted', 'bare' or 'both': how an ETag is written in a condition",
    "page_size": "whether a listing keeps to the page size that it is asked for",
    "checksums": "whether the newer checksums (CRC-32 in a header or trailer) are taken",
    "smallest_part": "bytes of the smallest part that was accepted before another one; False where none was",
    "versioning": "whether overwritten and deleted bytes are kept",
    "sees_others": "whether these credentials list other buckets or containers",
    "writes_outside": "whether these credentials write beside the root",
    "anonymous_read": "whether anybody may read an object",
    "anonymous_list": "whether anybody may list the names",
}


_RACES = 2


@dataclass(frozen=True)
class Measured:
    """One answer of a host.

    Parameters
    ----------
    value : bool, int, str or None
        None where it could not be measured.
    reason : str
        Why it is so, in a few words; '' where the value says all.
    """

    value: Any  # answers have several types
    reason: str = ""


def yes(reason: str = "") -> Measured:
    """Return that it is so."""
    return Measured(value=True, reason=reason)


def no(reason: str = "") -> Measured:
    """Return that it is not so."""
    return Measured(value=False, reason=reason)


NOT_MEASURED = Measured(None, "this driver cannot measure it")


@dataclass(frozen=True)
class Probe:
    """What a host was seen to do. What is not in the mappings was not measured.

    Parameters
    ----------
    endpoint : str or None
        URL that the requests went to.
    conditions : mapping of str to Measured
        By `sovstore.backends.providers.CONDITIONS`: whether the host itself keeps it.
    abilities : mapping of str to Measured
        By `ABILITIES`.
    """

    endpoint: str | None = None
    conditions: Mapping[str, Measured] = field(default_factory=dict)
    abilities: Mapping[str, Measured] = field(default_factory=dict)

    def condition(self, name: str) -> Measured:
        """Return what was measured of a condition."""
        return self.conditions.get(name, NOT_MEASURED)

    def ability(self, name: str) -> Measured:
        """Return what was measured of an ability."""
        return self.abilities.get(name, NOT_MEASURED)


async def measure(works: Mapping[str, Callable[[], Awaitable[Measured]]]) -> dict[str, Measured]:
    """Return what each measurement found; one that fails says why, and the others go on."""

    async def one(work: Callable[[], Awaitable[Measured]]) -> Measured:
        try:
            return await work()
        except SovstoreError as exc:
            # The name of a scratch object tells the reader nothing.
            return Measured(None, exc.message.removeprefix(f"{exc.path}: "))

    return dict(zip(works, await asyncio.gather(*map(one, works.values())), strict=True))


async def judge(
    broken: Callable[[], Awaitable[object]],
    fulfilled: Callable[[], Awaitable[object]],
    status: Callable[[BaseException], int | None],
) -> Measured:
    """Return whether a host keeps a condition.

    Parameters
    ----------
    broken : callable
        Makes the request with a condition that does not hold: it must be refused.
    fulfilled : callable
        Makes it with one that does: a host that refuses this too refuses everything, and keeps nothing.
    status : callable
        Returns the HTTP status of a refusal.

    Raises
    ------
    StoreError
        When the host refuses for another reason.
    """
    try:
        await broken()
    except StoreError as exc:
        if status(exc) in (400, 405, 501):
            return no("the host refuses the header")
        if status(exc) not in (409, 412):
            raise
    else:
        return no("the host ignores the header")
    try:
        await fulfilled()
    except StoreError as exc:
        if status(exc) in (400, 409, 412, 501):
            return no("the host refuses also where the condition holds")
        raise
    return yes()


async def race(
    prepared: Callable[[], Awaitable[Sequence[Callable[[], Awaitable[object]]]]],
    status: Callable[[BaseException], int | None],
) -> Measured:
    """Return whether at most one of several writers wins: some hosts look first themselves, and two find nothing.

    Parameters
    ----------
    prepared : callable
        Returns requests of which the condition lets one through.
    status : callable
        Returns the HTTP status of a refusal.

    Raises
    ------
    SovstoreError
        When a request fails for another reason than the condition.
    """
    for _ in range(_RACES):
        requests = await prepared()
        ends = await asyncio.gather(*(request() for request in requests), return_exceptions=True)
        lost = [end for end in ends if isinstance(end, BaseException)]
        if others := [end for end in lost if status(end) not in (404, 409, 412)]:
            raise others[0]
        if (won := len(ends) - len(lost)) > 1:
            return no(f"kept by requests one after the other; of {len(ends)} at once {won} won")
    return yes()


async def allowed(work: Callable[[], Awaitable[object]], status: Callable[[BaseException], int | None]) -> Measured:
    """Return whether the host lets somebody do something.

    Raises
    ------
    StoreError
        When it fails for another reason than a refusal.
    """
    try:
        await work()
    except StoreError as exc:
        # Some hosts say 404 where they do not want to tell that it is there, and Azure 409 for a private account.
        if status(exc) in (401, 403, 404, 409):
            return no()
        raise
    return yes()

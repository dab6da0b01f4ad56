"""What is tried through the driver, as a store uses it. Each trial writes below its own names of a scratch root."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sovstore.backends.base import Backend, Stat
from sovstore.backends.parts import PART
from sovstore.check.report import Finding
from sovstore.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)

#: Bytes of an object that drivers send in several parts.
LARGE = 20 * 2**20 + 12345
#: Uploads of any age, also where the host's clock is ahead of ours.
ANY_AGE = timedelta(days=-2)
_HEAD = 128
_ROUNDS, _WRITERS = 5, 4
_SKEW_S, _SKEW_MAX_S = 60, 300
_ODD = ("a b", "é/ü", "e\u0301", "a+b", "a%20b", "%2F", "a&b=c", "q?x#y", "~.-_", "'<\">", "日本", ".x")


class _WrongError(Exception):
    """The host did something else than it was asked for."""


def _expect(condition: object, text: str) -> None:
    if not condition:
        raise _WrongError(text)


async def put(backend: Backend, name: str, data: bytes, **conditions: Any) -> None:
    """Write an object, and leave nothing when that fails or is cancelled."""
    upload = await backend.upload(name, **conditions)
    try:
        await upload.write(data)
        await upload.commit()
    except BaseException:
        await upload.abort()
        raise


async def _all(backend: Backend, name: str) -> bytes | bytearray:
    return await backend.read(name, 0, (await backend.stat(name)).size + 1)


async def _objects(listing: AsyncIterator[Stat]) -> dict[str, Stat]:
    return {found.name: found async for found in listing if not found.folder}


async def tried(name: str, trial: Callable[[Backend], Awaitable[Finding | str]], backend: Backend) -> Finding:
    """Return what a trial found; what it returns as text is the detail of one that went well."""
    try:
        found = await trial(backend)
    except _WrongError as exc:
        return Finding(name, "failed", str(exc), "do not keep a store there before the provider has mended it")
    except SovstoreError as exc:
        return failed(name, exc)
    return found if isinstance(found, Finding) else Finding(name, "ok", found)


def failed(name: str, exc: SovstoreError) -> Finding:
    """Return the finding for an error."""
    # The name of a scratch object tells the reader nothing.
    return Finding(name, "failed", exc.message.removeprefix(f"{exc.path}: "), exc.hint or "")


# The trials


async def connection(backend: Backend) -> Finding | str:
    """Write and read a first object: endpoint, bucket and credentials are right."""
    try:
        await put(backend, "first", b"first")
    except StoreUnavailableError:
        raise
    except StoreError:
        try:
            await _objects(backend.list(""))
        except StoreError:
            pass
        else:
            return Finding("connection", "failed", "the host refuses to write", "give the credentials that right")
        raise
    _expect(await backend.read("first", 0, 5) == b"first", "what was written is not what is read")
    return "endpoint and credentials are accepted"


async def permissions(backend: Backend) -> Finding | str:
    """Try each thing that credentials may be too narrow for."""
    await put(backend, "narrow", b"narrow")
    work: Mapping[str, tuple[Callable[[], Awaitable[object]], str]] = {
        "list objects": (lambda: _objects(backend.list("")), "ls, find, rm -r and verify do not work"),
        "list unfinished uploads": (
            lambda: backend.sweep(ANY_AGE, dry_run=True),
            "gc cannot find what killed writers left, and that costs storage",
        ),
        "delete": (lambda: backend.delete(["narrow"]), "rm and mv do not work, and nothing here can be cleaned up"),
    }
    refused = {}
    for what, (call, cost) in work.items():
        try:
            await call()
        except StoreError as exc:
            refused[what] = f"{exc.message.removeprefix(f'{exc.path}: ')}: {cost}"
    if refused:
        return Finding("rights needed", "failed", f"refused: {', '.join(refused)}", "; ".join(refused.values()))
    return "writes, reads, lists and deletes"


async def clock(backend: Backend) -> Finding | str:
    """Compare the host's clock with ours, by the time of a fresh object."""
    before = datetime.now(UTC)
    await put(backend, "clock", b"")
    after, found = datetime.now(UTC), (await backend.stat("clock")).modified
    if found is None:
        return Finding("clock", "unknown", "the host does not say when an object was written")
    # Many hosts cut the time to whole seconds.
    ahead, behind = found - after, before - found - timedelta(seconds=1)
    skew = max(ahead, behind, timedelta()).total_seconds()
    if skew <= _SKEW_S:
        return f"within {_SKEW_S} s of this machine's"
    detail = f"{skew:.0f} s {'ahead of' if ahead > behind else 'behind'} this machine's"
    cost = "requests are refused beyond some minutes, and gc takes uploads for older or younger than they are"
    return Finding("clock", "failed" if skew > _SKEW_MAX_S else "missing", detail, cost)


async def round_trip(backend: Backend) -> str:
    """Write and read objects around the borders of what one request takes."""
    sizes = (0, 1, PART)
    for size in sizes:
        data = os.urandom(size)
        await put(backend, f"round/{size}", data)
        _expect((await backend.stat(f"round/{size}")).size == size, f"{size} bytes are listed with another size")
        _expect(await _all(backend, f"round/{size}") == data, f"{size} bytes came back as others")
    return f"objects of {', '.join(map(str, sizes))} bytes"


async def ranges(backend: Backend) -> str:
    """Read parts of an object, up to and beyond its end."""
    data = os.urandom(1000)
    await put(backend, "ranges", data)
    for start, end in ((0, 1), (1, 3), (500, 1000), (999, 1000), (990, 2000), (1000, 1001), (5000, 6000)):
        read = await backend.read("ranges", start, end)
        _expect(read == data[start:end], f"bytes {start} to {end} of 1000 came back as {len(read)} others")
    return "also at and beyond the end"


async def parts(backend: Backend) -> str:
    """Write an object in several parts and read it back."""
    data = os.urandom(LARGE)
    await put(backend, "parts", data)
    await _same(backend, "parts", data)
    return f"{LARGE // 2**20} MiB"


async def _same(backend: Backend, name: str, data: bytes) -> None:
    _expect((await backend.stat(name)).size == len(data), "an object in parts is listed with another size")
    read = hashlib.sha256()
    for start in range(0, len(data), PART):
        read.update(await backend.read(name, start, start + PART))
    _expect(read.digest() == hashlib.sha256(data).digest(), "an object in parts came back as other bytes")


async def aborting(backend: Backend) -> str:
    """Give an upload in parts up, and look for what it left."""
    upload = await backend.upload("aborted")
    try:
        await upload.write(bytes(LARGE))
    finally:
        await upload.abort()
    try:
        await backend.stat("aborted")
    except ObjectNotFoundError:
        pass
    else:
        raise _WrongError("an aborted upload is visible")
    left = await backend.sweep(ANY_AGE, dry_run=True)
    # A host that has no way to delete staged blocks drops them when the object is written.
    await put(backend, "aborted", b"")
    _expect(left == 0, f"{left} unfinished uploads are left after an abort")
    return "leaves no unfinished upload"


async def header(backend: Backend) -> str:
    """Replace the first bytes of an object in parts, at a new name and in place."""
    data = os.urandom(LARGE)
    await put(backend, "header/old", data)
    for target, head in (("header/new", b"1"), ("header/new", b"2"), ("header/old", b"3")):
        source = "header/old" if target == "header/old" or head == b"1" else "header/new"
        await backend.copy(source, target, head=head * _HEAD)
        await _same(backend, target, head * _HEAD + data[_HEAD:])
    return "at a new name, in place, and again"


async def consistency(backend: Backend) -> str:
    """Overwrite, read, list and delete in turns: each must see the newest."""
    for number in range(_ROUNDS):
        data = f"version {number}".encode() * (number + 1)
        await put(backend, "fresh/a", data)
        _expect(await _all(backend, "fresh/a") == data, "a read after an overwrite saw an older version")
        listed = await _objects(backend.list("fresh"))
        _expect("fresh/a" in listed, "a listing after a write did not have the object")
        _expect(listed["fresh/a"].size == len(data), "a listing after an overwrite had an older version")
        if number % 2:
            await backend.delete(["fresh/a"])
            _expect(not await _objects(backend.list("fresh")), "a listing after a delete had the object")
            await _gone(backend, "fresh/a")
    return "reads and listings see the newest at once"


async def _gone(backend: Backend, name: str) -> None:
    try:
        await backend.stat(name)
    except ObjectNotFoundError:
        return
    raise _WrongError("a deleted object was still there")


async def listing(backend: Backend) -> str:
    """List one level, and all below."""
    names = ("list/a", "list/b/c", "list/b/d/e", "list/bb")
    for name in names:
        await put(backend, name, name.encode())
    below = await _objects(backend.list("list", recursive=True))
    _expect({n: s.size for n, s in below.items()} == {n: len(n) for n in names}, "names or sizes are wrong")
    level = {found.name: found.folder async for found in backend.list("list")}
    _expect(level == {"list/a": False, "list/b": True, "list/bb": False}, "one level is not what lies in it")
    return "one level, and all below"


async def deleting(backend: Backend) -> str:
    """Delete many objects at once, and one that is not there."""
    names = [f"many/{number}" for number in range(12)]
    await asyncio.gather(*(put(backend, name, b"x") for name in names))
    await backend.delete([*names[1:], "many/never"])
    _expect(list(await _objects(backend.list("many"))) == names[:1], "other objects are left than should be")
    return "several at once, and of what is not there"


async def odd_names(backend: Backend) -> str:
    """Write, list, read and delete names that some hosts confuse."""
    names = [f"odd/{name}" for name in _ODD]
    for name in names:
        await put(backend, name, name.encode())
    found = await _objects(backend.list("odd", recursive=True))
    lost = ", ".join(repr(name.removeprefix("odd/")) for name in names if name not in found)
    _expect(not lost and len(found) == len(names), f"listed as others: {lost or 'there are too many'}")
    for name in names:
        _expect(await _all(backend, name) == name.encode(), f"{name!r} is another object")
    await backend.delete(names)
    _expect(not await _objects(backend.list("odd", recursive=True)), "some are not deleted")
    return "spaces, %, +, ?, #, quotes, accents in both forms, Japanese"


async def race_to_create(backend: Backend) -> str:
    """Let writers race to create one object: one wins, and the others are told."""
    return await _race(backend, "race/create", {"create": True}, ObjectExistsError)


async def race_to_replace(backend: Backend) -> str:
    """Let writers race to replace one object: one wins, and the others are told."""
    await put(backend, "race/replace", b"old")
    etag = (await backend.stat("race/replace")).etag
    return await _race(backend, "race/replace", {"if_match": etag}, ObjectChangedError)


async def _race(backend: Backend, name: str, condition: dict[str, Any], lost: type[StoreError]) -> str:
    writers = (put(backend, name, f"writer {n}".encode(), **condition) for n in range(_WRITERS))
    ends = await asyncio.gather(*writers, return_exceptions=True)
    others = [end for end in ends if isinstance(end, BaseException) and not isinstance(end, lost)]
    if others:
        raise others[0]
    _expect(ends.count(None) == 1, f"{ends.count(None)} of {_WRITERS} writers were told that they won")
    _expect(await _all(backend, name) == f"writer {ends.index(None)}".encode(), "the winner's bytes are not there")
    return f"one of {_WRITERS} writers won, and the others were told"


#: By the name of the finding, in the order in which they are tried after the connection.
TRIALS: Mapping[str, Callable[[Backend], Awaitable[Finding | str]]] = {
    "rights needed": permissions,
    "clock": clock,
    "write and read": round_trip,
    "ranges": ranges,
    "upload in parts": parts,
    "abort": aborting,
    "header replacement": header,
    "consistency": consistency,
    "listing": listing,
    "delete": deleting,
    "odd names": odd_names,
}
#: Tried where the driver says that the host keeps the condition.
RACES: Mapping[str, tuple[str, Callable[[Backend], Awaitable[str]]]] = {
    "race to create": ("put:create", race_to_create),
    "race to replace": ("put:replace", race_to_replace),
}

"""``transport = "obstore"``: the data path of S3 and Azure Blob on Rust's object_store.

Reads, writes in parallel parts, listings and deletes. What obstore cannot do is left to the SDK driver of the same
place, which is made when it is first needed: header replacement, conditions on an object of several parts (obstore
would hold it in memory whole), sweeping, probing. Does not work in a fork of a process that has made a request.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import Any

import obstore
from obstore.exceptions import BaseError, GenericError, InvalidPathError

from sovstore.backends.base import STALE, Backend, Place, Stat, Upload
from sovstore.backends.loop import LoopBackend
from sovstore.backends.obstore_client import Clients, Store, check, connect, mapped, status_of, timeout, unspeakable
from sovstore.backends.obstore_runtime import claim, under_way
from sovstore.backends.obstore_upload import Feed, Handover, Stream
from sovstore.backends.parts import PART, SLOTS, PartSizes
from sovstore.backends.probe import Probe
from sovstore.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)

_log = logging.getLogger("sovstore")

#: A larger part would not be held in memory; the SDK drivers put it into a file.
LARGEST_PART = 16 * 2**20
#: An object of unknown size goes through obstore where it may grow to this: all parts have one size there.
_ENOUGH = 64 * 2**30
#: Names that one request deletes. Azure's batches take 256, and object_store fails on several of them at once.
_DELETES = {"s3": 1000, "azure": 256}
_PAGE = 1000
#: Seconds that a sweep may hold up a write.
_SWEEP_S = 20
#: Most seconds before a broken reply is asked for again.
_WAITS = (0.1, 0.2, 0.4, 0.8, 1.6)
#: Empty segments, "." and "..", control characters.
_UNSPEAKABLE = re.compile(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]")


class ObstoreBackend(LoopBackend):
    """A prefix of a bucket or container.

    Parameters
    ----------
    place : Place
        With ``bucket/prefix`` or ``container/prefix`` as its root.
    sdk : callable
        Returns the SDK driver of the same place.

    Raises
    ------
    ConfigError
        When the place needs another transport.
    """

    def __init__(self, place: Place, sdk: Callable[[], Backend]) -> None:
        check(place)
        self._place, self._make_sdk = place, sdk
        self._made_sdk: Backend | None = None
        self._sweep_is_due = False
        self._timeout = timeout(place)
        self._prefix = place.root.strip("/").partition("/")[2]
        facts = place.provider
        self.conditions = facts.conditions
        self._sizes = PartSizes(
            min(max(int(place.options.get("part_size", PART)), facts.get("part_min")), facts.get("part_max")),
            facts.get("part_max"),
            facts.get("parts_max"),
            facts.get("object_max"),
            equal=True,
        )
        super().__init__()

    def _connect(self) -> None:
        self._made: Clients | None = None
        self.slots = asyncio.Semaphore(SLOTS)

    def sdk(self) -> Backend:
        """Return the SDK driver of the same place."""
        if self._made_sdk is None:
            self._made_sdk = self._make_sdk()
        return self._made_sdk

    def _clients(self) -> Clients:
        self.after_fork()
        if self._made is None:
            self._made = connect(self._place)
        claim(self._place.provider.name)
        return self._made

    @property
    def _reading(self) -> Store:
        return self._clients().reading

    @property
    def _writing(self) -> Store:
        return self._clients().writing

    def _path(self, name: str) -> str:
        """Return the full name; of some others obstore would strip a slash, and so mean another object."""
        if name and _UNSPEAKABLE.search(name):
            raise unspeakable(name)
        return f"{self._prefix}/{name}" if self._prefix and name else self._prefix or name

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._prefix}/") if self._prefix else path

    @asynccontextmanager
    async def _request(self, name: str) -> AsyncIterator[None]:
        """Bound the time of a request and map its errors."""
        with mapped(name), under_way():
            async with asyncio.timeout(self._timeout):
                yield

    # Looking

    async def stat(self, name: str) -> Stat:
        """Return what the host says of an object, or of a folder: names below it."""
        if name:
            with suppress(ObjectNotFoundError):
                return await self._head(name)
        # Also tells a missing bucket from a missing object, which a reply without a body cannot.
        below = await self._first_below(name)
        if name and not below:
            raise ObjectNotFoundError(f"{name}: not found", path=name)
        return Stat(name, 0, folder=True)

    async def _head(self, name: str) -> Stat:
        async with self._request(name):
            return self._stat(await obstore.head_async(self._reading, self._path(name)))

    async def _first_below(self, name: str) -> bool:
        try:
            async with self._request(name):
                stream = obstore.list(self._reading, self._path(name), chunk_size=1)
                return bool(await anext(aiter(stream), None))
        except StoreError as exc:
            if isinstance(exc.__cause__, InvalidPathError):
                return True
            raise

    def _stat(self, found: Any) -> Stat:  # obstore's dictionary
        etag = (found["e_tag"] or "").strip('"') or None
        return Stat(self._name(found["path"]), found["size"], etag=etag, modified=found["last_modified"])

    def quoted(self, etag: str) -> str:
        """Return an ETag as the host wants it in a condition."""
        return f'"{etag}"' if self._place.provider.get("etag_quotes") == "quoted" else etag

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """Return bytes [start, end) of an object, by one ranged request."""
        return (await self._read_range(name, start, end, etag))[1] if start < end else b""

    async def read_first(self, name: str, size: int) -> tuple[Stat, bytes]:
        """Return what the host says of an object, and its first `size` bytes, by one request."""
        try:
            return await self._read_range(name, 0, size, None)
        except ObjectNotFoundError:
            # It may be a folder.
            return await self.stat(name), b""

    async def _read_range(self, name: str, start: int, end: int, etag: str | None) -> tuple[Stat, bytes]:
        for wait in (*_WAITS, None):
            try:
                return await self._read(name, start, end, etag)
            except StoreUnavailableError as exc:
                if wait is None or not _is_broken_reply(exc):
                    raise
                await asyncio.sleep(random.uniform(0, wait))  # noqa: S311  # nosec B311  # not a secret
        raise AssertionError  # the last round returns or raises

    async def _read(self, name: str, start: int, end: int, etag: str | None) -> tuple[Stat, bytes]:
        options: Any = {"range": (start, end)}
        if etag is not None and "read:match" in self.conditions:
            options["if_match"] = self.quoted(etag)
        try:
            async with self._request(name):
                reply = await obstore.get_async(self._reading, self._path(name), options=options)
                if etag is not None and (reply.meta["e_tag"] or "").strip('"') != etag:
                    raise ObjectChangedError(f"{name}: changed meanwhile", path=name)
                data = bytes(await reply.bytes_async())
        except StoreError as exc:
            if _out_of_range(exc) and (found := await self._ends_before(name, start, etag)):
                return found, b""
            raise
        if reply.range != (start, min(end, reply.meta["size"])) or len(data) != reply.range[1] - start:
            message = f"{name}: the host sent another range than it was asked for"
            raise StoreUnavailableError(message, path=name) from _BrokenReplyError()
        return self._stat(reply.meta), data

    async def _ends_before(self, name: str, start: int, etag: str | None) -> Stat | None:
        found = await self._head(name)
        if etag is not None and found.etag != etag:
            raise ObjectChangedError(f"{name}: changed meanwhile", path=name)
        return found if found.size <= start else None

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield what the host lists in or below a folder.

        Below it page by page. In it, obstore has no pages: about 1 KiB of memory per entry of that one folder.
        """
        pages = self._pages(folder) if recursive else self._level(folder)
        start = f"{folder}/" if folder else ""
        yielded = False
        try:
            async for page in pages:
                for found in page:
                    if found.name.startswith(start) and found.name != start:
                        yielded = True
                        yield found
        except StoreError as exc:
            # Somebody else's object with a name that obstore refuses to list, and with it the whole page.
            if yielded or not isinstance(exc.__cause__, InvalidPathError):
                raise
        else:
            return
        async for found in self.sdk().list(folder, recursive=recursive):
            yield found

    async def _pages(self, folder: str) -> AsyncIterator[Sequence[Stat]]:
        with mapped(folder):
            stream = aiter(obstore.list(self._reading, self._path(folder), chunk_size=_PAGE))
        while True:
            async with self._request(folder):
                page = await anext(stream, None)
            if page is None:
                return
            yield await self._true([self._stat(found) for found in page if self._is_below(found["path"])])

    def _is_below(self, path: str) -> bool:
        return not self._prefix or path.startswith(f"{self._prefix}/")

    async def _true(self, page: Sequence[Stat]) -> Sequence[Stat]:
        """Leave out what is not there under its name.

        The mark that some tools make for a folder, an empty object whose name ends in a slash, is listed without it. No
        object of ours is empty, so that there are few to look at.
        """

        async def there(found: Stat) -> bool:
            with suppress(ObjectNotFoundError):
                await self._head(found.name)
                return True
            return False

        empty = [found for found in page if not found.size]
        if not empty:
            return page
        answers = await asyncio.gather(*(there(found) for found in empty))
        marks = {found.name for found, answer in zip(empty, answers, strict=True) if not answer}
        return [found for found in page if found.size or found.name not in marks]

    async def _level(self, folder: str) -> AsyncIterator[Sequence[Stat]]:
        async with self._request(folder):
            found = await obstore.list_with_delimiter_async(self._reading, self._path(folder))
        yield [Stat(self._name(path), 0, folder=True) for path in found["common_prefixes"] if self._is_below(path)]
        # A few at a time: made all at once they would take more memory than the listing itself.
        objects = iter(found["objects"])
        while some := list(islice(objects, _PAGE)):
            yield [self._stat(o) for o in some if self._is_below(o["path"])]

    # Writing

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        """Return a write in parts, or by one request when the object fits into one part."""
        self._path(name)
        self._clients()
        sizes = self._sizes.of(size, name=name)
        fits = sizes.part <= LARGEST_PART and (size is not None or sizes.part * sizes.parts_max >= _ENOUGH)
        if fits and not create and if_match is None:
            return Stream(self, name, sizes)
        return Handover(self, name, create=create, if_match=if_match, size=size)

    async def put(self, name: str, body: bytearray, *, create: bool, if_match: str | None) -> None:
        """Write a whole object by one request, under a condition."""
        mode: Any = "overwrite"
        if create and "put:create" in self.conditions:
            mode = "create"
        elif if_match is not None and "put:replace" in self.conditions:
            mode = {"e_tag": self.quoted(if_match)}
        elif create or if_match is not None:
            await self.look_first(name, create=create, if_match=if_match)
        try:
            async with self._request(name):
                await obstore.put_async(self._writing, self._path(name), body, mode=mode, use_multipart=False)
        except (ObjectExistsError, ObjectChangedError):
            # A request whose reply was lost is sent again, and meets what it did itself.
            if not await self._landed(name, body):
                raise

    async def _landed(self, name: str, body: bytearray) -> bool:
        with suppress(ObjectNotFoundError):
            return await self.read(name, 0, len(body) + 1) == body
        return False

    async def stream(self, name: str, feed: Feed, part: int) -> None:
        """Write an object from its parts. MUST NOT be cancelled: object_store would leave the upload behind."""
        with mapped(name), under_way(feed.abort):
            await obstore.put_async(
                self._writing, self._path(name), feed, use_multipart=True, chunk_size=part, max_concurrency=SLOTS
            )

    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects, as many by one request as the host takes."""
        most = min(_DELETES[self._place.provider.driver], self._place.provider.get("batch_delete"))
        # There are no folders to delete.
        remaining: Iterator[str] = (name for name in names if not name.endswith("/"))
        while batch := list(islice(remaining, most if most > 1 else 16)):
            paths = [self._path(name) for name in batch]
            try:
                async with self._request(batch[0]):
                    await obstore.delete_async(self._writing, paths)
            except StoreError as exc:
                # Azure calls a missing name an error, and with it the rest of the batch is lost sight of; some hosts
                # of S3 have no such request, and some fail at it.
                if not isinstance(exc, ObjectNotFoundError) and _status(exc) not in (400, 405, 411, 500, 501):
                    raise
                await self.sdk().delete(batch)

    # What obstore cannot do

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Leave it to the SDK driver: obstore can copy no part of an object."""
        await self.sdk().copy(source, target, head=head, etag=etag, create=create)

    async def copy_from(
        self,
        origin: Backend,
        source: str,
        target: str,
        *,
        size: int,
        etag: str,
        create: bool = False,
        told: Callable[[int], None],
    ) -> Upload | None:
        """Leave it to the SDK driver, as `copy`."""
        if not isinstance(origin, ObstoreBackend):
            return None
        sdk = self.sdk()
        return await sdk.copy_from(origin.sdk(), source, target, size=size, etag=etag, create=create, told=told)

    async def sweep(self, older_than: timedelta | None = None, *, dry_run: bool = False) -> int:
        """Leave it to the SDK driver, since obstore cannot list unfinished uploads; without an age, put it off.

        Loading the SDK costs more than many small writes, none of which leaves an upload: `sweep_if_due` is called
        before the first one of several parts.
        """
        if older_than is None and not dry_run:
            # On Azure there is nothing to sweep, and the SDK would be loaded to find none.
            self._sweep_is_due = self._place.provider.driver == "s3"
            return 0
        return await self.sdk().sweep(STALE if older_than is None else older_than, dry_run=dry_run)

    async def sweep_if_due(self) -> None:
        """Do what `sweep` put off. It stops no write, nor holds one up for long."""
        if not self._sweep_is_due:
            return
        self._sweep_is_due = False
        try:
            async with asyncio.timeout(_SWEEP_S):
                await self.sdk().sweep(STALE)
        except (SovstoreError, TimeoutError) as exc:
            # A client may have the right to write and not to list or delete.
            what = exc.message if isinstance(exc, SovstoreError) else "it takes long"
            _log.warning("unfinished writes are not removed: %s; 'sovstore gc' does it", what)

    async def probe(self, scratch: str) -> Probe:
        """Leave it to the SDK driver: what it measures is the host."""
        return await self.sdk().probe(scratch)

    async def close(self) -> None:
        """Close connections."""
        self._made = None
        if self._made_sdk is not None:
            await self._made_sdk.close()


class _BrokenReplyError(Exception):
    """A reply that is not what was asked for; the next one may be right."""


def _is_broken_reply(exc: SovstoreError) -> bool:
    """Return whether there was a reply: object_store tries again when there is none, and says what it performed."""
    cause = exc.__cause__
    return isinstance(cause, _BrokenReplyError) or (
        isinstance(cause, GenericError) and "Error performing" not in str(cause)
    )


def _status(exc: SovstoreError) -> int | None:
    return status_of(str(exc.__cause__)) if isinstance(exc.__cause__, BaseError) else None


def _out_of_range(exc: SovstoreError) -> bool:
    """Return whether obstore may mean a range that starts at or beyond the end: the host's word, or its own."""
    text = str(exc.__cause__).lower() if isinstance(exc.__cause__, BaseError) else ""
    return _status(exc) in (None, 416) and "range" in text

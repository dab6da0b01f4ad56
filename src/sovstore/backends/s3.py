"""``driver = "s3"``: any S3 host, on the client of s3fs.

Uploads in parallel parts, header replacement by `UploadPartCopy`, conditions where the provider has them per operation,
deletes in batches, listings page by page. What a host lacks is known from the provider catalogue, never from its name.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sovstore.backends import s3_copy, s3_probe
from sovstore.backends.base import STALE, Backend, Place, Stat, Upload
from sovstore.backends.loop import LoopBackend, retried
from sovstore.backends.parts import PART, SLOTS, PartSizes
from sovstore.backends.probe import Probe
from sovstore.backends.s3_client import S3Client, http_status
from sovstore.backends.s3_upload import S3Upload
from sovstore.errors import (
    ObjectChangedError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)

_DELETES = 16
#: Pages without an entry, one after the other, after which a listing is taken for one without an end.
_EMPTY_PAGES = 100
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _BrokenReplyError(Exception):
    """A reply that is not what was asked for; the next one may be right."""


class S3Backend(LoopBackend):
    """A prefix of a bucket.

    Parameters
    ----------
    place : Place
        With ``bucket/prefix`` as its root.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        # Replies carry the ETag of what they are from, so this one is kept whatever the host does with the header.
        self.conditions = place.provider.conditions | {"read:match"}
        self.known_conditions = place.provider.known("conditions")
        prefix = place.root.strip("/").partition("/")[2]
        self.prefix = f"{prefix}/" if prefix else ""
        facts = place.provider
        self.part_min: int = facts.get("part_min")
        self.sizes = PartSizes(
            min(max(int(place.options.get("part_size", PART)), facts.get("part_min")), facts.get("part_max")),
            facts.get("part_max"),
            facts.get("parts_max"),
            facts.get("object_max"),
            facts.get("equal_parts"),
        )
        super().__init__()

    def _connect(self) -> None:
        self.client = S3Client(self._place, self._loop)
        self.slots = asyncio.Semaphore(SLOTS)

    def quoted(self, etag: str) -> str:
        """Return an ETag as the host wants it in a condition."""
        return f'"{etag}"' if self._place.provider.get("etag_quotes") == "quoted" else etag

    async def call(self, name: str, operation: str, **arguments: Any) -> Any:
        """Call an operation on the object `name`."""
        return await self.client.call(name, operation, Key=self.prefix + name, **arguments)

    # Looking

    async def stat(self, name: str) -> Stat:
        """Return what the host says of an object, or of a folder: names below it."""
        self.after_fork()
        return await self.on_loop(self._stat(name))

    async def _stat(self, name: str) -> Stat:
        if name:
            try:
                return await self.head(name)
            except ObjectNotFoundError:
                pass
        # Also tells a missing bucket from a missing object, which a reply without a body cannot.
        found = await self._page(name, f"{name}/" if name else "", MaxKeys=1)
        if name and not found.get("Contents"):
            raise ObjectNotFoundError(f"{name}: not found", path=name)
        return Stat(name, 0, folder=True)

    async def head(self, name: str) -> Stat:
        """Return what the host says of an object."""
        found: Stat = await self.call(name, "head_object", pick=lambda r: _stat(name, r["ContentLength"], r))
        return found

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes | bytearray:
        """Return bytes [start, end) of an object, by one ranged request."""
        self.after_fork()
        return b"" if start >= end else (await self.on_loop(self._read(name, start, end, etag)))[1]

    async def read_first(self, name: str, size: int) -> tuple[Stat, bytes | bytearray]:
        """Return what the host says of an object, and its first `size` bytes, by one request."""
        self.after_fork()
        return await self.on_loop(self._read_first(name, size))

    async def _read_first(self, name: str, size: int) -> tuple[Stat, bytes | bytearray]:
        try:
            return await self._read(name, 0, size, None)
        except ObjectNotFoundError:
            # It may be a folder.
            return await self._stat(name), b""

    async def _read(self, name: str, start: int, end: int, etag: str | None) -> tuple[Stat, bytes | bytearray]:
        condition = (
            {"IfMatch": self.quoted(etag)}
            if etag is not None and "read:match" in self._place.provider.conditions
            else {}
        )
        try:
            # One deadline for all tries together.
            async with self.client.mapped(name):
                return await retried(lambda: self._read_once(name, start, end, etag, condition), _BrokenReplyError)
        except _BrokenReplyError as exc:
            raise StoreUnavailableError(f"{name}: {exc}", path=name) from exc
        except StoreError as exc:
            # A range that starts at or beyond the end, also of an empty object.
            if http_status(exc) != 416:
                raise
            # That may be the end of another version, on a host that was asked without a condition.
            stat = await self.head(name)
            if etag is not None and stat.etag != etag:
                raise ObjectChangedError(f"{name}: changed meanwhile", path=name) from exc
            return stat, b""

    async def _read_once(
        self, name: str, start: int, end: int, etag: str | None, condition: dict[str, str]
    ) -> tuple[Stat, bytearray]:
        reply = await self.call(name, "get_object", Range=f"bytes={start}-{end - 1}", **condition)
        async with reply["Body"] as body:
            if etag is not None and _bare(reply.get("ETag")) != etag:
                raise ObjectChangedError(f"{name}: changed meanwhile", path=name)
            size, total = _reply_sizes(reply, start, end)
            try:
                async with self.client.mapped(name):
                    return _stat(name, total, reply), await _received(body.raw_stream.content, size)
            except StoreUnavailableError as exc:
                raise _BrokenReplyError("the host stopped in the middle of a reply") from exc

    async def _page(self, what: str, prefix: str, **arguments: Any) -> Any:
        return await self.client.call(what, "list_objects_v2", Prefix=self.prefix + prefix, **arguments)

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield what the host lists in or below a folder, page by page."""
        self.after_fork()
        prefix = f"{folder}/" if folder else ""
        arguments: dict[str, Any] = {"MaxKeys": self._place.provider.get("listing_page")}
        if not recursive:
            arguments["Delimiter"] = "/"
        empty = 0
        while empty < _EMPTY_PAGES:
            pick = partial(self._listed, prefix)
            found, following = await self.on_loop(self._page(folder, prefix, pick=pick, **arguments))
            for entry in found:
                yield entry
            if following is None:
                return
            if following == arguments.get("ContinuationToken"):
                break
            arguments["ContinuationToken"] = following
            empty = 0 if found else empty + 1
        raise StoreUnavailableError(f"{folder}: the host's listing does not end", path=folder)

    def _listed(self, prefix: str, page: Any) -> tuple[Sequence[Stat], str | None]:
        """Return the entries of a page, and where the next one begins."""
        folders = (self._below(found["Prefix"], prefix).rstrip("/") for found in page.get("CommonPrefixes", ()))
        entries = [Stat(name, 0, folder=True) for name in folders if name]
        for found in page.get("Contents", ()):
            name = self._below(found["Key"], prefix)
            # A name that ends in a slash is how some tools mark a folder.
            if name and not (name.endswith("/") and not found["Size"]):
                entries.append(_stat(name, found["Size"], found))
        return entries, str(page["NextContinuationToken"]) if page.get("IsTruncated") else None

    def _below(self, key: str, prefix: str) -> str:
        """Return the name of a listed key, '' when the host listed what was not asked for."""
        start = self.prefix + prefix
        return key.removeprefix(self.prefix) if key.startswith(start) and key != start else ""

    # Writing

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> S3Upload:
        """Return a write in parts, or by one request when the object fits into one part."""
        self.after_fork()
        return S3Upload(self, name, self.sizes.of(size, name=name), create=create, if_match=if_match)

    async def resume(self, name: str, token: str, *, size: int, create: bool = False) -> tuple[Upload, int] | None:
        """Return a write in parts of which the host has some."""
        upload = await self.upload(name, create=create, size=size)
        start = await upload.go_on(token, size)
        if start:
            return upload, start
        if upload.token() is not None:
            # There is not one whole part of it.
            await self.on_loop(self.discard(name, token))
        return None

    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects, as many by one request as the host takes."""
        self.after_fork()
        most, batch = min(1000, self._place.provider.get("batch_delete")), list[str]()
        for name in names:
            # There are no folders to delete.
            if not name.endswith("/"):
                batch.append(name)
            if len(batch) == most:
                await self.on_loop(self._delete(batch))
                batch = []
        if batch:
            await self.on_loop(self._delete(batch))

    async def _delete(self, names: Sequence[str]) -> None:
        if len(names) > 1:
            try:
                names = await self._delete_batch(names)
            except StoreError as exc:
                # Some hosts have no such request, or want a checksum with it that ours does not carry; and a name with
                # a control character cannot stand in its XML.
                if http_status(exc) not in (400, 405, 411, 501):
                    raise
        limit = asyncio.Semaphore(_DELETES)

        async def one(name: str) -> None:
            async with limit:
                try:
                    await self.call(name, "delete_object")
                except ObjectNotFoundError:
                    await self._page(name, f"{name}/", MaxKeys=1)  # a missing bucket is an error

        await asyncio.gather(*(one(name) for name in names))

    async def _delete_batch(self, names: Sequence[str]) -> Sequence[str]:
        """Delete by one request; return the names to try once more, alone."""

        def failed(reply: Any) -> set[str]:
            return {error["Key"] for error in reply.get("Errors", ()) if error.get("Code") != "NoSuchKey"}

        keys = [{"Key": self.prefix + name} for name in names]
        reply = await self.client.call(names[0], "delete_objects", Delete={"Objects": keys, "Quiet": True}, pick=failed)
        # Only what was to be deleted: the host may name anything.
        return [name for name in names if self.prefix + name in reply]

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Copy at the host, but for the first part, which carries the new head; small objects pass through here."""
        self.after_fork()
        await self.on_loop(s3_copy.copy(self, source, target, head, etag, create=create))

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
        """Copy from another bucket or prefix at the host, if it is large enough to be copied in parts."""
        if not isinstance(origin, S3Backend):
            return None
        self.after_fork()
        origin.after_fork()
        found = Stat(source, size, etag=etag)
        return await s3_copy.copy_from(self, origin, found, target, create=create, told=told)

    async def whole(self, found: Stat, start: int, end: int) -> bytes | bytearray:
        """Return bytes [start, end) of a version that is copied, none of them missing. On the loop of the host."""
        data = (await self._read(found.name, start, end, found.etag))[1] if start < end else b""
        if len(data) != max(0, end - start):
            raise ObjectChangedError(f"{found.name}: changed while it was copied", path=found.name)
        return data

    # Keeping order

    async def sweep(self, older_than: timedelta = STALE, *, dry_run: bool = False) -> int:
        """Abort the uploads in parts that began longer ago than `older_than`: nobody can tell whether one is alive."""
        self.after_fork()
        return await self.on_loop(self._sweep(datetime.now(UTC) - older_than, dry_run=dry_run))

    async def _sweep(self, limit: datetime, *, dry_run: bool) -> int:
        swept, empty, arguments = 0, 0, dict[str, Any]()
        while empty < _EMPTY_PAGES:
            pick = partial(self._abandoned, limit)
            found, following = await self.client.call(
                "", "list_multipart_uploads", Prefix=self.prefix, pick=pick, **arguments
            )
            for name, upload_id in found if not dry_run else ():
                await self.discard(name, upload_id)
            swept += len(found)
            if following is None or following == arguments:
                return swept
            arguments, empty = following, 0 if found else empty + 1
        raise StoreUnavailableError("the host's list of unfinished uploads does not end")

    def _abandoned(self, limit: datetime, page: Any) -> tuple[Sequence[tuple[str, str]], dict[str, str] | None]:
        """Return name and id of the uploads of a page that are old enough, and where the next page begins."""
        found = [
            (upload["Key"].removeprefix(self.prefix), upload["UploadId"])
            for upload in page.get("Uploads", ())
            if upload["Key"].startswith(self.prefix) and upload["Initiated"] <= limit
        ]
        if not page.get("IsTruncated"):
            return found, None
        return found, {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def discard(self, name: str, upload_id: str) -> None:
        """Abort an upload in parts; one that the host does not know any more is no error."""
        if not upload_id:
            # Some hosts take an empty id for none, and the request for one that deletes the object.
            raise StoreError(f"{name}: an upload has no id", path=name)
        try:
            await self.call(name, "abort_multipart_upload", UploadId=upload_id)
        except ObjectNotFoundError:
            return

    async def probe(self, scratch: str) -> Probe:
        """Return what the host itself is seen to do."""
        self.after_fork()
        return await self.on_loop(s3_probe.probe(self, self._place, scratch))


async def _received(stream: Any, size: int) -> bytearray:  # aiohttp's stream
    """Return all of a reply, in a buffer that is made once."""
    data, filled = bytearray(size), 0
    # A bytearray would copy each piece once more on its way in.
    view = memoryview(data)
    async for piece in stream.iter_any():
        filled += len(piece)
        if filled > size:
            break
        view[filled - len(piece) : filled] = piece
    if filled != size:
        raise _BrokenReplyError(f"the host sent {filled} bytes of {size}")
    return data


def _stat(name: str, size: int, found: Any) -> Stat:  # a reply, or an entry of a listing
    return Stat(name, int(size), etag=_bare(found.get("ETag")), modified=found.get("LastModified"))


def _bare(etag: str | None) -> str | None:
    """Return an ETag without the quotes that some replies have and others have not."""
    return etag.strip('"') or None if etag is not None else None


def _reply_sizes(reply: Any, start: int, end: int) -> tuple[int, int]:
    """Return how many bytes the reply to a ranged request must have, and the whole object.

    Raises
    ------
    _BrokenReplyError
        When it does not say, or says that it is another range.
    """
    length, said = reply.get("ContentLength"), reply.get("ContentRange")
    if said is None:
        # The whole object, from a host that does not know ranges: right only when that is what was asked for.
        if start == 0 and length is not None and length <= end:
            return int(length), int(length)
        raise _BrokenReplyError("the host ignored the range of a request")
    parsed = _RANGE.fullmatch(said)
    if parsed is None:
        raise _BrokenReplyError("the host's reply has no valid range")
    first, last, total = map(int, parsed.groups())
    if first != start or last != min(end, total) - 1 or length != last + 1 - first:
        raise _BrokenReplyError("the host sent another range than it was asked for")
    return int(length), total

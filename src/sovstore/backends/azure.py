"""The driver of Azure Blob, on azure-storage-blob: block blobs of one container, every condition kept by the host.

Copies as it is, from another root, at the server (`azure_copy`). With a new head it does not: Copy Blob would show the
target before its head is replaced, and Put Block From URL cannot be tried on any server of ours. Such copies to another
name pass through this process, in bounded memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import accumulate, islice
from secrets import token_hex
from typing import Any

from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import BlobPrefix

from sovstore.backends import azure_probe
from sovstore.backends.azure_client import AzureClient, Pages, http_status, name_at_random
from sovstore.backends.azure_copy import AzureCopy
from sovstore.backends.azure_upload import AzureUpload, Blocks, condition, refused_blocks
from sovstore.backends.base import STALE, Backend, Place, Stat, Upload
from sovstore.backends.loop import LoopBackend, retried
from sovstore.backends.parts import PART, SLOTS, PartSizes
from sovstore.backends.probe import Probe
from sovstore.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)

_BATCH, _PAGE, _DELETES = 256, 5000, 16
_BLOCKS_MAX, _BLOCK_MAX = 50_000, 4000 * 2**20
#: A first block with more bytes behind the head is not held in memory for replacing that.
_HEAD_BLOCK_MAX = 16 * 2**20
#: A writer's id of a block must not be met by another writer's by chance.
_ID_MIN = 16


class AzureBackend(LoopBackend):
    """A container of Azure Blob, or a prefix in it.

    Parameters
    ----------
    place : Place
        See `AzureClient` for its options.

    Raises
    ------
    ConfigError
        When an option is not known, or the root names no container.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.conditions = place.provider.conditions
        super().__init__()

    def _connect(self) -> None:
        facts, part = self._place.provider, int(self._place.options.get("part_size", PART))
        self._client = AzureClient(self._place, self._loop)
        self._slots = asyncio.Semaphore(SLOTS)
        self._sizes = PartSizes(
            part,
            min(facts.get("part_max"), _BLOCK_MAX),
            min(facts.get("parts_max"), _BLOCKS_MAX) - 1,  # one is the head
            facts.get("object_max"),
        )

    async def stat(self, name: str) -> Stat:
        """Return what the host says of a blob, or of a folder: a prefix that has blobs, or a marker."""
        self.after_fork()
        return await self.on_loop(self._stat(name))

    async def _stat(self, name: str) -> Stat:
        if not name:
            return Stat("", 0, folder=True)
        try:
            return await self._head(name)
        except ObjectNotFoundError:
            async with self._client.mapped(name):
                container = await self._client.open()
                below = container.list_blobs(name_starts_with=self._client.path(f"{name}/"), results_per_page=1)
                if [blob async for page in _first(below) async for blob in page]:
                    return Stat(name, 0, folder=True)
            raise

    async def _head(self, name: str) -> Stat:
        async with self._client.mapped(name):
            return _described(await self._client.call(name, "get_blob_properties"), name)

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """Return bytes [start, end) of a blob; the host checks the ETag."""
        self.after_fork()
        return await self.on_loop(self._read(name, start, end, etag)) if start < end else b""

    async def read_first(self, name: str, size: int) -> tuple[Stat, bytes]:
        """Return what the host says of a blob, and its first `size` bytes, by one request."""
        self.after_fork()
        return await self.on_loop(self._read_first(name, size))

    async def _read_first(self, name: str, size: int) -> tuple[Stat, bytes]:
        try:
            said, data = await self._read_described(name, 0, size, None)
        except ObjectNotFoundError:
            # It may be a folder.
            return await self._stat(name), b""
        if said is None:
            return await self._head(name), data
        async with self._client.mapped(name):
            # The SDK puts the size of the reply in place of that of the blob, which stands behind the range.
            said.size = int(str(said.content_range).rpartition("/")[2])
            return _described(said, name), data

    async def _read(self, name: str, start: int, end: int, etag: str | None) -> bytes:
        return (await self._read_described(name, start, end, etag))[1]

    async def _read_described(
        self, name: str, start: int, end: int, etag: str | None
    ) -> tuple[BlobProperties | None, bytes]:
        """Return the bytes of a range and what the reply says of the blob; None when it ends before."""
        # The SDK tries requests again, and bodies that broke off only sometimes. One deadline for all together.
        async with self._client.mapped(name, size=end - start):
            return await retried(lambda: self._range(name, start, end, etag), StoreUnavailableError)

    async def _range(self, name: str, start: int, end: int, etag: str | None) -> tuple[BlobProperties | None, bytes]:
        asked = {"offset": start, "length": end - start, **condition(create=False, if_match=etag)}
        try:
            async with self._client.mapped(name, size=end - start):
                reply = await (await self._client.blob(name)).download_blob(**asked)
                data = b"".join([piece async for piece in reply.chunks()])
        except StoreError as exc:
            if http_status(exc) == 416:
                return None, b""
            raise
        if len(data) != reply.size:
            raise StoreUnavailableError(f"{name}: the reply is not what was asked for", path=name)
        return reply.properties, data

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        """Return a write of one request or of blocks; makes no request."""
        self.after_fork()
        return self._upload(name, create=create, if_match=if_match, size=size)

    def _upload(self, name: str, *, create: bool, if_match: str | None, size: int | None) -> AzureUpload:
        sizes = self._sizes.of(size, name=name)
        return AzureUpload(self, self._client, name, sizes, self._slots, create=create, if_match=if_match)

    async def resume(self, name: str, token: str, *, size: int, create: bool = False) -> tuple[Upload, int] | None:
        """Return a write of which the host has some blocks."""
        self.after_fork()
        upload = self._upload(name, create=create, if_match=None, size=size)
        start = await upload.go_on(token, size)
        return (upload, start) if start else None

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield what lies in a folder or below it, a page of the host at a time."""
        self.after_fork()
        pages = await self.on_loop(self._pages(folder, recursive=recursive))
        markers: set[str] = set()
        while (page := await self.on_loop(self._page(folder, pages))) is not None:
            for entry in page:
                if recursive and entry.folder:
                    continue
                if entry.folder:
                    # Azure lists the folder of a hierarchical account twice: its marker, then its prefix.
                    if entry.name in markers:
                        markers.discard(entry.name)
                        continue
                    markers.add(entry.name)
                yield entry

    async def _pages(self, folder: str, *, recursive: bool) -> Pages:
        prefix = self._client.path(f"{folder}/" if folder else "")
        options: dict[str, Any] = {
            "name_starts_with": prefix,
            "include": ["metadata"],  # tells the markers of folders
            "results_per_page": _PAGE,
        }
        async with self._client.mapped(folder):
            container = await self._client.open()
            found = container.list_blobs(**options) if recursive else container.walk_blobs(**options, delimiter="/")
            return Pages(found.by_page())

    async def _page(self, folder: str, pages: Pages) -> Sequence[Stat] | None:
        prefix = self._client.path(f"{folder}/" if folder else "")
        async with self._client.mapped(folder or self._client.container):
            # What is not below the prefix was not asked for, whatever the host says.
            page = await pages.next(lambda item: item.name.startswith(prefix) and item.name != prefix)
            if page is None:
                return None
            page.sort(key=lambda item: item.name)
            return [_described(item, item.name.removeprefix(self._client.prefix)) for item in page]

    async def delete(self, names: Iterable[str]) -> None:
        """Delete blobs, 256 by a request."""
        self.after_fork()
        # Folders are not real here.
        rest = (name for name in names if not name.endswith("/"))
        while batch := list(islice(rest, _BATCH)):
            await self.on_loop(self._delete(batch))

    async def _delete(self, batch: Sequence[str]) -> None:
        if len(batch) > 1 and await self._batch_deleted(batch):
            return
        limit = asyncio.Semaphore(_DELETES)

        async def one(name: str) -> None:
            async with limit:
                with suppress(ObjectNotFoundError):
                    await self._client.call(name, "delete_blob")

        await asyncio.gather(*(one(name) for name in batch))

    async def delete_match(self, name: str, etag: str) -> None:
        """Delete a blob that nobody replaced, as the host sees it."""
        self.after_fork()
        # Whoever meets none, after a reply that was lost, may have deleted it; so it is looked for before.
        await self.look_first(name, create=False, if_match=etag)
        with suppress(ObjectNotFoundError):
            await self.on_loop(self._client.call(name, "delete_blob", **condition(create=False, if_match=etag)))

    async def _batch_deleted(self, batch: Sequence[str]) -> bool:
        """Return whether a request for all of them deleted each; some credentials and hosts refuse it."""
        # Few retries: there is another way.
        options: dict[str, Any] = {
            "raise_on_any_failure": False,
            "raw_request_hook": _plain_boundary,
            "retry_status": 1,
            "retry_read": 0,
        }
        try:
            async with self._client.mapped(self._client.container):
                container = await self._client.open()
                replies = await container.delete_blobs(*(self._client.path(name) for name in batch), **options)
                gone = [_is_gone(reply) async for reply in replies]
        except StoreUnavailableError:
            # It may have been too many for a slow host.
            return False
        except StoreError as exc:
            if http_status(exc) is None:
                raise
            return False
        # The order of the replies is not promised, so one that failed does not say which blob it is about.
        return len(gone) == len(batch) and all(gone)

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Copy a blob with its head replaced; in place by one new block, where it has blocks."""
        self.after_fork()
        await self.on_loop(self._copy(source, target, head, etag, create=create))

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
        """Copy a blob of another container or prefix of the account; shown at once, when it is committed."""
        if not isinstance(origin, AzureBackend):
            return None
        self.after_fork()
        origin.after_fork()
        url = await self.on_loop(self._source_of(origin, source))
        told(0 if url is None else size)
        return None if url is None else AzureCopy(self, self._client, url, etag, target, create=create)

    async def _source_of(self, origin: AzureBackend, name: str) -> str | None:
        blob = await origin._client.blob(name)
        await self._client.open()
        return blob.url if self._client.has_key and origin._client.has_key else None

    async def _copy(self, source: str, target: str, head: bytes, etag: str | None, *, create: bool) -> None:
        found = await self._head(source)
        if etag is not None and found.etag != etag:
            raise ObjectChangedError(f"{source}: changed meanwhile", path=source)
        if source != target:
            await self._rewrite(found, target, head, create=create, if_match=None)
        elif create:
            raise ObjectExistsError(f"{target}: exists already", path=target)
        elif not await self._head_replaced(found, head):
            await self._rewrite(found, target, head, create=False, if_match=found.etag)

    async def _head_replaced(self, found: Stat, head: bytes) -> bool:
        """Return whether the first blocks were replaced by one with the new head; not every blob has such blocks."""
        blocks = Blocks(self._client, found.name)
        listed = await blocks.committed()
        count = next((n for n, end in enumerate(accumulate(size for _, size in listed), 1) if end >= len(head)), 0)
        covered = sum(size for _, size in listed[:count])
        widths = {len(block.encode()) for block, _ in listed}
        if not count or len(widths) != 1 or min(widths) < _ID_MIN or covered - len(head) > _HEAD_BLOCK_MAX:
            return False
        rest = await self._read(found.name, len(head), covered, found.etag) if covered > len(head) else b""
        width = widths.pop()
        new = token_hex(width)[:width]
        try:
            await blocks.stage(new, bytearray(head + rest), 0, len(head) + len(rest))
            await blocks.commit([new], [block for block, _ in listed[count:]], if_match=found.etag)
        except StoreError as exc:
            # Ids that are no text do not survive the SDK. If nothing else has changed, it was that.
            if not refused_blocks(exc) or (await self._head(found.name)).etag != found.etag:
                raise
            return False
        return True

    async def _rewrite(self, found: Stat, target: str, head: bytes, *, create: bool, if_match: str | None) -> None:
        """Copy a blob through this process."""
        upload = self._upload(target, create=create, if_match=if_match, size=max(found.size, len(head)))
        try:
            await upload.write(head)
            for start in range(len(head), found.size, PART):
                end = min(start + PART, found.size)
                piece = await self._read(found.name, start, end, found.etag)
                if len(piece) != end - start:
                    raise ObjectChangedError(f"{found.name}: changed meanwhile", path=found.name)
                await upload.write(piece)
            await upload.commit()
        except BaseException:
            await upload.abort()
            raise

    async def sweep(self, older_than: timedelta = STALE, *, dry_run: bool = False) -> int:
        """Do nothing: staged blocks are unseen, cannot be deleted without their blob, and expire after a week."""
        del older_than, dry_run
        return 0

    async def probe(self, scratch: str) -> Probe:
        """Return what the host itself is seen to do."""
        self.after_fork()
        return await self.on_loop(azure_probe.probe(self._client, scratch))

    async def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        self.after_fork()
        await self.on_loop(self._client.close())


async def _first(pages: Any) -> AsyncIterator[Any]:  # the SDK's pager
    async for page in pages.by_page():
        yield page
        return


def _plain_boundary(request: Any) -> None:  # of the SDK's pipeline, before it is signed
    """Take the "=" out of a batch's boundary: without quotes, as the SDK sends it, not every host can read that."""
    name_at_random(request)
    http = request.http_request
    boundary = http.headers["Content-Type"].partition("boundary=")[2]
    plain = boundary.replace("=", "_")
    http.headers["Content-Type"] = f"multipart/mixed; boundary={plain}"
    http.set_bytes_body(http.body.replace(boundary.encode(), plain.encode()))


def _is_gone(reply: Any) -> bool:  # of the SDK's batch
    # A missing container is a 404, too.
    return bool(reply.status_code == 202 or reply.headers.get("x-ms-error-code") == "BlobNotFound")


def _described(item: BlobProperties | BlobPrefix, name: str) -> Stat:
    if isinstance(item, BlobPrefix):
        return Stat(name.rstrip("/"), 0, folder=True)
    size: Any = item.size  # None where the host leaves it out, whatever the SDK's types say
    if size is None or size < 0 or not item.etag:
        # For `AzureClient.mapped`.
        raise ValueError("the host says no size or no ETag")
    marker = (item.metadata or {}).get("hdi_isfolder") == "true" or (name.endswith("/") and not item.size)
    return Stat(
        name.rstrip("/"),
        0 if marker else item.size,
        folder=marker,
        etag=None if marker else item.etag.strip('"'),
        modified=item.last_modified,
        created=item.creation_time,
    )

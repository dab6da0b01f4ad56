"""Copies that an S3 host makes itself, by `UploadPartCopy`: of an object with a new head, and from another bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from sovstore.backends.base import Stat
from sovstore.backends.parts import PART
from sovstore.backends.s3_client import http_status
from sovstore.backends.s3_upload import S3Upload
from sovstore.errors import ObjectChangedError, StoreError

if TYPE_CHECKING:
    from sovstore.backends.s3 import S3Backend

#: Bytes that the host copies by one `UploadPartCopy`, unless the object would need too many.
_COPIED_PART = 64 * 2**20
#: What is said by hosts that have no such request.
_UNKNOWN = frozenset({400, 405, 501})
#: And between two buckets: credentials may be for one to read, for the other to write, and for no copy between them.
_DENIED = _UNKNOWN | {403, 404}


async def copy(host: S3Backend, source: str, target: str, head: bytes, etag: str | None, *, create: bool) -> None:
    """Copy all but the first part at the host; small objects pass through here. On the loop of the host."""
    found = await host.head(source)
    if etag is not None and found.etag != etag:
        raise ObjectChangedError(f"{source}: changed meanwhile", path=source)
    if_match = found.etag if source == target else None
    upload = S3Upload(host, target, host.sizes.of(found.size, name=target), create=create, if_match=if_match)
    try:
        if _is_small(host, found.size) or not await _copy_parts(upload, host, host, found, head):
            await _copy_through(upload, host, found, head)
        await upload.commit()
    except BaseException:
        await upload.abort()
        raise


async def copy_from(
    host: S3Backend, origin: S3Backend, found: Stat, target: str, *, create: bool, told: Callable[[int], None]
) -> S3Upload | None:
    """Copy a version of an object of another bucket or prefix, as `Backend.copy_from`. On the loop of the caller."""
    if _is_small(host, found.size):
        return None
    upload = S3Upload(host, target, host.sizes.of(found.size, name=target), create=create)
    loop = asyncio.get_running_loop()

    def tell(size: int) -> None:
        loop.call_soon_threadsafe(partial(told, size))

    try:
        # Here and not there: whatever happens, this side knows the upload, and can abort it.
        copied = await host.on_loop(_copy_parts(upload, host, origin, found, told=tell))
    except BaseException:
        await upload.abort()
        raise
    return upload if copied else None


def _is_small(host: S3Backend, size: int) -> bool:
    """Return whether an object is written by one request: more hosts keep a condition on it."""
    return size <= max(PART, host.part_min) or host.sizes.equal


async def _copy_through(upload: S3Upload, host: S3Backend, found: Stat, head: bytes) -> None:
    """Copy through this process, a little at a time."""
    await upload.write(head)
    for start in range(len(head), found.size, PART):
        await upload.write(await host.whole(found, start, min(start + PART, found.size)))


async def _copy_parts(
    upload: S3Upload,
    host: S3Backend,
    origin: S3Backend,
    found: Stat,
    head: bytes = b"",
    *,
    told: Callable[[int], None] = lambda _: None,
) -> bool:
    """Let the host copy all of it, but for a first part with a new head; return False when it does not do that."""
    first = max(host.part_min, len(head))
    size = max(_COPIED_PART, -(-found.size // (host.sizes.parts_max - 1)))
    # Also without a new head: a later rename then copies whole parts, which is what some hosts do fastest.
    borders = [*range(first, found.size, min(size, host.sizes.part_max)), found.size]
    await upload.begin()
    if head:
        await upload.add_bytes(head + await host.whole(found, len(head), first))
    else:
        borders.insert(0, 0)
    try:
        for start, end in pairwise(borders):
            await upload.add_copy(origin.client.bucket, origin.prefix + found.name, start, end, found.etag, told)
        await upload.sent()
    except StoreError as exc:
        if http_status(exc) == 416:
            # Where the host ignores the condition: the range is one of a longer version.
            raise _changed(found.name) from exc
        if http_status(exc) not in (_UNKNOWN if origin is host else _DENIED):
            raise
        await upload.restart()
        return False
    # Hosts that ignore the condition on a part copy could have mixed two versions: neither would open. What is
    # written between this look and the completion is lost where the host keeps no condition on the completion.
    if (await origin.head(found.name)).etag != found.etag:
        raise _changed(found.name)
    return True


def _changed(name: str) -> ObjectChangedError:
    return ObjectChangedError(f"{name}: changed while it was copied", path=name)

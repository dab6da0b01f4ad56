"""One write to S3: `PutObject` for what fits into one part, else a multipart upload."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

from sovstore.backends.parts import PART, Body, PartSizes, PartUpload, Pieces
from sovstore.backends.s3_client import error_code, http_status
from sovstore.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from sovstore.backends.s3 import S3Backend

_CONFLICTS = 5


class S3Upload(PartUpload):
    """A write in the bucket of a backend.

    Parameters
    ----------
    host : S3Backend
        Whose connections, conditions and slots are used.
    name : str
        Name below the root.
    sizes : PartSizes
        How the object is cut.
    create, if_match
        As `Backend.upload`.
    """

    def __init__(
        self, host: S3Backend, name: str, sizes: PartSizes, *, create: bool = False, if_match: str | None = None
    ) -> None:
        super().__init__(host, name, sizes, host.slots)
        self._host, self._create, self._if_match = host, create, if_match
        self._upload_id = ""

    async def _put(self, body: Body, size: int) -> None:
        async def put(**condition: str) -> None:
            await self._host.call(self.name, "put_object", Body=Pieces(body, size), weight=size // PART, **condition)

        await self._publish("put", put, lambda: _md5(body))

    async def _begin(self) -> None:
        found = await self._host.call(self.name, "create_multipart_upload", pick=lambda reply: reply["UploadId"])
        if not found:
            raise StoreUnavailableError(f"{self.name}: the host gave an upload no id", path=self.name)
        self._upload_id = found

    async def _send(self, number: int, body: Body, size: int) -> Any:
        return await self._host.call(
            self.name,
            "upload_part",
            pick=lambda reply: reply["ETag"],
            UploadId=self._upload_id,
            PartNumber=number + 1,
            Body=Pieces(body, size),
            weight=size // PART,
        )

    async def _finish(self, receipts: Sequence[Any]) -> None:
        parts = [{"ETag": etag, "PartNumber": number} for number, etag in enumerate(receipts, 1)]

        async def complete(**condition: str) -> None:
            # Some hosts put the parts together while the client waits.
            await self._host.call(
                self.name,
                "complete_multipart_upload",
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
                weight=4,
                **condition,
            )

        await self._publish("complete", complete, lambda: _md5_of_parts(receipts))

    async def _discard(self) -> None:
        await self._host.discard(self.name, self._upload_id)

    def token(self) -> str | None:
        """Return the id of the upload in parts, once it has one."""
        return self._upload_id or None

    async def _received(self, token: str) -> Sequence[tuple[str, int]]:
        found: dict[int, tuple[str, int]] = {}
        marker: int | None = 0
        while marker is not None:
            try:
                parts, marker = await self._host.call(
                    self.name, "list_parts", UploadId=token, PartNumberMarker=marker, pick=partial(_parts, marker)
                )
            except ObjectNotFoundError:
                return ()
            found |= parts
        self._upload_id = token
        return [found[number] for number in takewhile(found.__contains__, count(1))]

    # Copying at the host, for `s3_copy`

    async def begin(self) -> None:
        """Start an upload in parts, whatever its size."""
        await self._begin()
        self._begun = True

    async def add_bytes(self, data: bytes) -> None:
        """Send one part."""
        await self._launch(self._send(len(self._tasks), bytearray(data), len(data)))

    async def add_copy(
        self, bucket: str, key: str, start: int, end: int, etag: str | None, told: Callable[[int], None]
    ) -> None:
        """Let the host copy bytes [start, end) of the object `key` of a bucket as one part; tell when it has."""
        condition: dict[str, Any] = {}
        if etag is not None and "part_copy:source" in self._host.conditions:
            condition["CopySourceIfMatch"] = self._host.quoted(etag)
        copied = {"CopySource": {"Bucket": bucket, "Key": key}, "CopySourceRange": f"bytes={start}-{end - 1}"}
        await self._launch(self._copy(len(self._tasks), end - start, {**copied, **condition}, told))

    async def _copy(self, number: int, size: int, copied: dict[str, Any], told: Callable[[int], None]) -> Any:
        receipt = await self._host.call(
            self.name,
            "upload_part_copy",
            pick=lambda reply: reply["CopyPartResult"]["ETag"],
            UploadId=self._upload_id,
            PartNumber=number + 1,
            weight=size // PART,
            **copied,
        )
        told(size)
        return receipt

    async def sent(self) -> None:
        """Wait for all parts."""
        await asyncio.gather(*self._tasks)

    async def restart(self) -> None:
        """Forget all that was sent; the next `write` begins anew."""
        await self._abort()
        self._tasks.clear()
        self._begun = self._done = False

    # Conditions

    async def _publish(self, operation: str, call: Callable[..., Awaitable[None]], etag: Callable[[], str]) -> None:
        """Make the object visible under the condition of this write.

        Parameters
        ----------
        operation : str
            ``put`` or ``complete``.
        call : callable
            Takes the headers of the condition.
        etag : callable
            Returns the ETag that the object has when this write made it.
        """
        condition = await self._condition(operation)
        for attempt in range(_CONFLICTS):
            try:
                return await call(**condition)
            except (ObjectChangedError, ObjectNotFoundError) as exc:
                # A request whose reply was lost is sent again, and meets what it did itself.
                if await self._landed(etag()):
                    return None
                if http_status(exc) != 409:
                    raise self._lost(exc) from exc
            except StoreError as exc:
                # Nobody says whether this host knows the header, and it does not.
                if not condition or self._host.known_conditions or http_status(exc) not in (400, 501):
                    raise
                condition = {}
            # Two conditional writes at once: the host decides neither, and wants to be asked again.
            await asyncio.sleep(random.uniform(0, 0.1 * 2**attempt))  # noqa: S311  # nosec B311  # not a secret
        raise StoreUnavailableError(f"{self.name}: other writers of it are in the way", path=self.name)

    async def _condition(self, operation: str) -> dict[str, str]:
        """Return the header of the condition; where the host does not keep it, look first."""
        if self._create and f"{operation}:create" in self._host.conditions:
            return {"IfNoneMatch": "*"}
        if self._if_match is not None and f"{operation}:replace" in self._host.conditions:
            return {"IfMatch": self._host.quoted(self._if_match)}
        if self._create or self._if_match is not None:
            await self._host.look_first(self.name, create=self._create, if_match=self._if_match)
        # A host of which nothing is known may still keep this one, and ignoring it does no harm.
        return {"IfNoneMatch": "*"} if self._create and operation == "put" and not self._host.known_conditions else {}

    async def _landed(self, etag: str) -> bool:
        try:
            return (await self._host.head(self.name)).etag == etag
        except ObjectNotFoundError:
            return False

    def _lost(self, exc: StoreError) -> StoreError:
        if error_code(exc) == "NoSuchUpload":
            hint = "somebody aborted it, or it was older than the host allows: write the object again"
            return StoreError(f"{self.name}: the host does not know this upload any more", path=self.name, hint=hint)
        if self._create:
            return ObjectExistsError(f"{self.name}: exists already", path=self.name)
        return ObjectChangedError(f"{self.name}: changed meanwhile", path=self.name)


def _parts(marker: int, page: Any) -> tuple[dict[int, tuple[str, int]], int | None]:
    """Return the parts of a page by number, and where the next page begins; an end that is none ends it."""
    parts = {part["PartNumber"]: (part["ETag"], part["Size"]) for part in page.get("Parts", ())}
    following = page.get("NextPartNumberMarker") if page.get("IsTruncated") else None
    return parts, following if following is not None and following > marker else None


def _md5(body: Body) -> str:
    """Return the ETag that S3 gives to an object of one request. Not for security: the host could make it up."""
    if isinstance(body, bytearray):
        return hashlib.md5(body, usedforsecurity=False).hexdigest()
    body.seek(0)
    digest = hashlib.md5(usedforsecurity=False)
    while piece := body.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def _md5_of_parts(receipts: Sequence[Any]) -> str:
    try:
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in receipts)
    except ValueError:
        return ""
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(receipts)}"

"""One write to Azure Blob: Put Blob for what fits into one part, else blocks staged side by side and one commit.

Nothing is visible before the commit. Staged blocks of a writer that was killed are invisible and expire after a week.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from itertools import count, takewhile
from typing import Any
from uuid import uuid4

from azure.core import MatchConditions
from azure.storage.blob import BlobBlock, BlockState

from sovstore.backends.azure_client import AzureClient, error_code
from sovstore.backends.loop import LoopBackend
from sovstore.backends.parts import Body, PartSizes, PartUpload
from sovstore.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError, StoreError

#: The first block of an object: as long as our header, so that replacing that costs one small block. It has no other
#: meaning here.
FIRST_BLOCK = 128
#: A whole object up to this size is one request, for which the SDK copies it.
_PUT_MAX = 8 * 2**20
#: Handed to the SDK at once: it would write a part as a whole into the buffer of the connection.
_PIECE = 256 * 2**10
_REFUSED_BLOCKS = ("InvalidBlockList", "InvalidBlobOrBlock")


class _Pieces:
    """Bytes [start, end) of a body, read anew each time that the SDK tries again."""

    def __init__(self, body: Body, start: int, end: int) -> None:
        self._body, self._start, self._end = body, start, end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(self._start, self._end, _PIECE):
            yield read_body(self._body, at, min(at + _PIECE, self._end))


def read_body(body: Body, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a body."""
    if isinstance(body, bytearray):
        # No view of it may outlive this call: the upload would fail to resize its buffer.
        return bytes(memoryview(body)[start:end])
    body.seek(start)
    return body.read(end - start)


def condition(*, create: bool, if_match: str | None) -> dict[str, Any]:
    """Return the arguments of the SDK for a condition of `Backend.upload`."""
    if create:
        return {"match_condition": MatchConditions.IfMissing}
    if if_match is not None:
        return {"etag": quoted(if_match), "match_condition": MatchConditions.IfNotModified}
    return {}


def quoted(etag: str) -> str:
    """Return an ETag as it is written in a request; in `Stat` it has no quotes, as in Azure's listings."""
    return f'"{etag}"'


class Blocks:
    """Staged blocks of one blob and their commit.

    Parameters
    ----------
    client : AzureClient
        Of the container.
    name : str
        Below the root.
    """

    def __init__(self, client: AzureClient, name: str) -> None:
        self._client, self._name = client, name

    async def stage(self, block: str, body: Body, start: int, end: int) -> None:
        """Send bytes [start, end) of a body as a block that nobody sees yet."""
        size = end - start
        await self._client.call(
            self._name, "stage_block", block, data=_Pieces(body, start, end), length=size, size=size
        )

    async def committed(self) -> list[tuple[str, int]]:
        """Return the blocks that the blob is made of, as id and bytes; none for one that was put as a whole."""
        return await self._list(0)

    async def staged(self) -> list[tuple[str, int]]:
        """Return the blocks that are staged, of all writers, as id and bytes."""
        return await self._list(1)

    async def _list(self, which: int) -> list[tuple[str, int]]:
        async with self._client.mapped(self._name):
            kind = ("committed", "uncommitted")[which]
            found = (await self._client.call(self._name, "get_block_list", kind))[which]
            if any(not isinstance(block.id, str) or block.size is None or block.size < 0 for block in found):
                # For `mapped`. The SDK leaves out what the host left out.
                raise ValueError("the host says no id or no size of a block")
            return [(block.id, block.size) for block in found]

    async def commit(
        self, staged: Sequence[str], kept: Sequence[str] = (), *, create: bool = False, if_match: str | None = None
    ) -> None:
        """Make the blob these staged blocks, and then those of its present ones that are kept.

        Raises
        ------
        ObjectExistsError, ObjectChangedError
            When the condition does not hold, or another writer's commit discarded the staged blocks.
        """
        blocks = [BlobBlock(block, BlockState.UNCOMMITTED) for block in staged]
        blocks += [BlobBlock(block, BlockState.COMMITTED) for block in kept]
        try:
            await self._client.call(
                self._name, "commit_block_list", blocks, **condition(create=create, if_match=if_match)
            )
        except StoreError as exc:
            lost = isinstance(exc, ObjectExistsError | ObjectChangedError | ObjectNotFoundError)
            if not lost and not refused_blocks(exc):
                raise
            if not await self._is([*staged, *kept]):
                raise loser(self._name, create=create) from exc

    async def _is(self, blocks: list[str]) -> bool:
        """Return whether the blob is these blocks: the reply to a commit that was made may have been lost."""
        try:
            return [block for block, _ in await self.committed()] == blocks
        except ObjectNotFoundError:
            return False


def refused_blocks(exc: BaseException) -> bool:
    """Return whether the host did not know the blocks, or did not want them beside those that it has."""
    return error_code(exc) in _REFUSED_BLOCKS


def loser(name: str, *, create: bool) -> StoreError:
    """Return the error of a writer that another one was faster than."""
    if create:
        return ObjectExistsError(f"{name}: exists already", path=name)
    return ObjectChangedError(f"{name}: changed meanwhile", path=name)


class AzureUpload(PartUpload):
    """A write of Put Blob or of blocks.

    Parameters
    ----------
    backend : LoopBackend
        Whose loop is used.
    client : AzureClient
        Of the container.
    name : str
        Below the root.
    sizes : PartSizes
        How the object is cut.
    slots : asyncio.Semaphore
        Taken by each part on its way.
    create : bool
        Only if there is no object.
    if_match : str or None
        Only if the object has this ETag.
    """

    def __init__(
        self,
        backend: LoopBackend,
        client: AzureClient,
        name: str,
        sizes: PartSizes,
        slots: asyncio.Semaphore,
        *,
        create: bool,
        if_match: str | None,
    ) -> None:
        super().__init__(backend, name, sizes, slots)
        self._client, self._blocks = client, Blocks(client, name)
        self._create, self._if_match = create, if_match
        # 32 characters with the number, as adlfs writes: a blob takes blocks of one length of id only, also beside
        # those that a killed writer left.
        self._writer = uuid4().hex[:24]

    def _id(self, number: int) -> str:
        return f"{self._writer}{number:08x}"

    async def _put(self, body: Body, size: int) -> None:
        if size > _PUT_MAX:
            await self._finish([await self._send(0, body, size)])
            return
        data = read_body(body, 0, size)
        tries: list[bool] = []
        kept = condition(create=self._create, if_match=self._if_match)
        try:
            await self._client.call(
                self.name,
                "upload_blob",
                data,
                length=size,
                size=size,
                overwrite=not self._create,
                retry_hook=lambda **_: tries.append(True),
                **({} if self._create else kept),
            )
        except (ObjectExistsError, ObjectChangedError, ObjectNotFoundError) as exc:
            # Refused the second time because the first one was done, and only its reply was lost?
            if not (tries and await self._is_stored(data)):
                raise loser(self.name, create=self._create) from exc

    async def _is_stored(self, data: bytes) -> bool:
        try:
            found = await self._client.call(self.name, "get_blob_properties")
        except ObjectNotFoundError:
            return False
        stored = found.content_settings.content_md5
        # Azure computes it for Put Blob. Here it only tells two writes apart.
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return stored is not None and bytes(stored) == digest and found.size == len(data)

    async def _begin(self) -> None:
        # A large object that could not be committed is not sent first.
        if self._create:
            try:
                await self._client.call(self.name, "get_blob_properties")
            except ObjectNotFoundError:
                return
            raise loser(self.name, create=True)

    async def _send(self, number: int, body: Body, size: int) -> list[str]:
        if number:
            await self._blocks.stage(self._id(number + 1), body, 0, size)
            return [self._id(number + 1)]
        blocks: list[str] = []
        start = 0
        for end in (min(FIRST_BLOCK, size), size):
            if start < end:
                blocks.append(self._id(len(blocks)))
                await self._blocks.stage(blocks[-1], body, start, end)
                start = end
        return blocks

    async def _finish(self, receipts: Sequence[list[str]]) -> None:
        blocks = [block for receipt in receipts for block in receipt]
        await self._blocks.commit(blocks, create=self._create, if_match=self._if_match)

    def token(self) -> str | None:
        """Return what the ids of its blocks begin with, once there are some."""
        return self._writer if self._begun else None

    async def _received(self, token: str) -> Sequence[tuple[list[str], int]]:
        try:
            sizes = dict(await self._blocks.staged())
        except ObjectNotFoundError:
            return ()
        self._writer = token
        first, parts = [self._id(0), self._id(1)], list[tuple[list[str], int]]()
        if all(block in sizes for block in first):
            parts.append((first, sizes[first[0]] + sizes[first[1]]))
            following = takewhile(sizes.__contains__, (self._id(number) for number in count(2)))
            parts += [([block], sizes[block]) for block in following]
        return parts

    async def _discard(self) -> None:
        # There is nothing that deletes staged blocks and spares the object: they expire after a week, unseen.
        return

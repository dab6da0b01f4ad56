"""Copies that Azure makes itself, by Copy Blob: of a whole blob of the same account, its block list and all.

Not for a new head: the copy shows as it is. Only where requests are signed with the key of the account, which is a
right to read all of it; any other login would have to put a signature into the URL of the source.
"""

from __future__ import annotations

import asyncio
from typing import Any

from azure.core import MatchConditions

from sovstore.backends.azure_client import AzureClient
from sovstore.backends.azure_upload import condition, loser, quoted
from sovstore.backends.base import Upload
from sovstore.backends.loop import LoopBackend
from sovstore.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreUnavailableError,
)

#: Seconds between two looks at a copy that takes the host some time.
_LOOK_S = 1.0


class AzureCopy(Upload):
    """A copy that the host makes when it is committed.

    Within an account it is done when the reply comes. Should the host take longer, the blob is there before its bytes
    are, and this waits: a store that is being copied has no keyset yet, so that nobody reads there.

    Parameters
    ----------
    backend : LoopBackend
        Whose loop is used.
    client : AzureClient
        Of the container of the target.
    source : str
        URL of the blob, without a signature.
    etag : str
        Its version.
    target : str
        Below the root.
    create : bool
        Only if there is no object.
    """

    def __init__(
        self, backend: LoopBackend, client: AzureClient, source: str, etag: str, target: str, *, create: bool
    ) -> None:
        self._backend, self._client, self._source, self._etag = backend, client, source, etag
        self._target, self._create = target, create
        self._copy_id = ""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Refuse: all of it is the host's to copy."""
        raise NotImplementedError

    async def commit(self) -> None:
        """Have the host copy, and wait for it."""
        await self._backend.on_loop(self._commit())

    async def _commit(self) -> None:
        # What is there after a refusal, and was not before, is what this write made.
        if self._create and await self._found() is not None:
            raise loser(self._target, create=True)
        asked = {
            "source_etag": quoted(self._etag),
            "source_match_condition": MatchConditions.IfNotModified,
            **condition(create=self._create, if_match=None),
        }
        try:
            reply = await self._client.call(self._target, "start_copy_from_url", self._source, **asked)
            status, self._copy_id = reply["copy_status"], reply["copy_id"]
        except ObjectExistsError:
            # A request whose reply was lost is sent again, and meets what it did itself.
            found = await self._found()
            if found is None or found.copy.source != self._source:
                raise
            status, self._copy_id = found.copy.status, found.copy.id
        while status == "pending":
            await asyncio.sleep(_LOOK_S)
            found = await self._found()
            status = None if found is None else found.copy.status
        self._copy_id = ""
        if status != "success":
            raise StoreUnavailableError(f"{self._target}: the host gave up a copy", path=self._target)

    async def _found(self) -> Any:  # the SDK's
        try:
            return await self._client.call(self._target, "get_blob_properties")
        except ObjectNotFoundError:
            return None

    async def abort(self) -> None:
        """Have the host give up a copy that it is at."""
        if self._copy_id:
            try:
                await self._backend.on_loop(self._client.call(self._target, "abort_copy", self._copy_id))
            except SovstoreError:
                return

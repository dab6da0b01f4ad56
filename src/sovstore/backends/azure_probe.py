"""What an Azure Blob host really does, by raw requests. Conditions of Copy Blob are not measured: no driver uses it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any

from azure.core import MatchConditions
from azure.storage.blob import BlobBlock
from azure.storage.blob.aio import ContainerClient

from sovstore.backends.azure_client import AzureClient, Pages, http_status, name_at_random
from sovstore.backends.probe import Measured, Probe, allowed, judge, measure
from sovstore.errors import SovstoreError

#: Bytes that are read: more than any blob here has, and a bound for what a host sends.
_SOME = 100
_CREATE: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}


def _if_match(etag: str) -> dict[str, Any]:
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


async def probe(client: AzureClient, scratch: str) -> Probe:
    """Measure what the host of a client does, on the client's loop.

    Parameters
    ----------
    client : AzureClient
        Of the root.
    scratch : str
        Folder below the root for what has to be written. It is empty again afterwards.
    """
    prober = _Prober(client, scratch)
    try:
        return await prober.all()
    finally:
        for name in prober.written:
            with suppress(SovstoreError):
                await client.call(name, "delete_blob")


class _Prober:
    """The measurements; each makes blobs of its own."""

    def __init__(self, client: AzureClient, scratch: str) -> None:
        self._client, self._scratch = client, scratch
        self.written: list[str] = []

    async def all(self) -> Probe:
        """Measure everything."""
        conditions = await measure(
            {
                "read:match": partial(self._with_etag, self._get),
                "put:create": partial(self._creating, self._put),
                "put:replace": partial(self._with_etag, self._put),
                "complete:create": partial(self._creating, self._complete),
                "complete:replace": partial(self._with_etag, self._complete),
                "delete:match": partial(self._with_etag, self._delete),
            }
        )
        abilities = await measure(
            {
                "page_size": self._page_size,
                "versioning": self._versioning,
                "sees_others": self._sees_others,
                "writes_outside": self._writes_outside,
                "anonymous_read": self._anonymous_read,
                "anonymous_list": self._anonymous_list,
            }
        )
        return Probe(await self._endpoint(), conditions, abilities)

    async def _endpoint(self) -> str:
        url = (await self._client.open()).primary_endpoint.partition("?")[0]
        return str(url).removesuffix(f"/{self._client.container}")

    # Requests

    def _name(self) -> str:
        self.written.append(f"{self._scratch}/{token_hex(8)}")
        return self.written[-1]

    async def _put(self, name: str, data: bytes = b"put", **condition: Any) -> Any:
        # Without a condition the SDK sets "only if there is none" by itself.
        options = condition or {"overwrite": True}
        return await self._client.call(name, "upload_blob", data, length=len(data), **options)

    async def _get(self, name: str, **condition: Any) -> None:
        reply = await self._client.call(name, "download_blob", offset=0, length=_SOME, **condition)
        async with self._client.mapped(name):
            await reply.readall()

    async def _delete(self, name: str, **condition: Any) -> None:
        await self._client.call(name, "delete_blob", **condition)

    async def _complete(self, name: str, **condition: Any) -> None:
        block = secrets.token_hex(16)
        await self._client.call(name, "stage_block", block, b"block", length=5)
        await self._client.call(name, "commit_block_list", [BlobBlock(block)], **condition)

    # Conditions

    async def _creating(self, write: Callable[..., Awaitable[object]]) -> Measured:
        """Return whether a write "only if there is none" is refused where there is one, and not elsewhere."""
        await self._put(there := self._name())
        return await judge(lambda: write(there, **_CREATE), lambda: write(self._name(), **_CREATE), http_status)

    async def _with_etag(self, request: Callable[..., Awaitable[object]]) -> Measured:
        """Return whether a request with the ETag of an older version is refused, and with the present one is not."""
        stale = (await self._put(name := self._name(), b"older"))["etag"]
        present = (await self._put(name, b"present"))["etag"]
        return await judge(
            lambda: request(name, **_if_match(stale)), lambda: request(name, **_if_match(present)), http_status
        )

    # Abilities

    async def _page_size(self) -> Measured:
        folder = self._name()
        for name in "abc":
            self.written.append(f"{folder}/{name}")
            await self._put(self.written[-1])
        async with self._client.mapped(folder):
            container = await self._client.open()
            found = container.list_blobs(name_starts_with=self._client.path(f"{folder}/"), results_per_page=2)
            pages, sizes = Pages(found.by_page()), []
            while (page := await pages.next()) is not None:
                sizes.append(len(page))
        return Measured(sizes == [2, 1], "" if sizes == [2, 1] else "asked for 2 of 3 names, it sent another number")

    async def _versioning(self) -> Measured:
        return Measured(bool((await self._put(self._name())).get("version_id")))

    async def _sees_others(self) -> Measured:
        names: list[str] = []

        async def listing() -> None:
            async with self._client.mapped("the list of containers"):
                service = (await self._client.open())._get_blob_service_client()  # its only way from one to the other
                pages = Pages(service.list_containers().by_page())
                while (page := await pages.next()) is not None:
                    names.extend(container.name for container in page)

        may = await allowed(listing, http_status)
        return Measured(bool(may.value and set(names) - {self._client.container}))

    async def _writes_outside(self) -> Measured:
        if not self._client.prefix:
            return Measured(None, "the root is the whole container")

        async def write() -> None:
            async with self._client.mapped("a blob beside the root"):
                blob = (await self._client.open()).get_blob_client(f"sovstore-check-{token_hex(8)}")
                try:
                    await blob.upload_blob(b"", length=0)
                finally:
                    await blob.delete_blob()

        return await allowed(write, http_status)

    async def _anybody(self) -> ContainerClient:
        known = await self._client.open()
        # The connections are the client's own, and so is what they trust; they are not closed here.
        return ContainerClient(
            await self._endpoint(),
            self._client.container,
            transport=known._pipeline._transport,
            raw_request_hook=name_at_random,
        )

    async def _anonymous_read(self) -> Measured:
        await self._put(name := self._name())

        async def read() -> None:
            async with self._client.mapped(name):
                blob = (await self._anybody()).get_blob_client(self._client.path(name))
                await (await blob.download_blob(offset=0, length=_SOME)).readall()

        return await allowed(read, http_status)

    async def _anonymous_list(self) -> Measured:
        async def listing() -> None:
            async with self._client.mapped(""):
                found = (await self._anybody()).list_blobs(name_starts_with=self._client.path(self._scratch))
                await Pages(found.by_page()).next()

        return await allowed(listing, http_status)

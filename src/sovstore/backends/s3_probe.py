"""What an S3 host really does, by raw requests: no look-first logic between the header and the answer."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import aiohttp
import yarl

from sovstore.backends.base import Place
from sovstore.backends.probe import Measured, Probe, allowed, judge, measure, no, race, yes
from sovstore.backends.s3_client import http_status
from sovstore.errors import ObjectNotFoundError, SovstoreError, StoreError

if TYPE_CHECKING:
    from sovstore.backends.s3 import S3Backend

_MIB = 2**20
_WRITERS = 4
#: Pages of old versions: more than a check can have left.
_VERSION_PAGES = 100
#: How an ETag may be written in a header.
_FORMS: Mapping[str, Callable[[str], str]] = {"quoted": '"{}"'.format, "bare": str}


async def probe(backend: S3Backend, place: Place, scratch: str) -> Probe:
    """Measure what the host of a backend does, on its loop.

    Parameters
    ----------
    backend : S3Backend
        Of the root; its connections are used.
    place : Place
        That it was made from.
    scratch : str
        Folder below the root for what has to be written. It is empty again afterwards, old versions included.
    """
    prober = _Prober(backend, place, scratch)
    try:
        found = await prober.all()
    except BaseException:
        with suppress(SovstoreError):
            await prober.purge(versions=True)
        raise
    try:
        await prober.purge(versions=found.ability("versioning").value is not False)
    except SovstoreError as exc:
        left = Measured(found.ability("versioning").value, f"old versions could not be deleted: {exc.message}")
        return replace(found, abilities={**found.abilities, "versioning": left})
    return found


class _Prober:
    """The measurements; each makes objects of its own."""

    def __init__(self, backend: S3Backend, place: Place, scratch: str) -> None:
        self._backend, self._place, self._scratch = backend, place, scratch
        self._forms: dict[str, set[str]] = {}

    async def all(self) -> Probe:
        """Measure everything."""
        conditions = await measure(
            {
                "read:match": partial(self._with_etag, "read:match", self._get),
                "put:create": partial(self._creating, self._put, self._ready_to_put),
                "put:replace": partial(self._with_etag, "put:replace", self._put, self._ready_to_put),
                "complete:create": partial(self._creating, self._complete, self._staged_large),
                "complete:replace": partial(self._with_etag, "complete:replace", self._complete, self._staged_large),
                "copy:source": partial(self._with_etag, "copy:source", self._copy, header="CopySourceIfMatch"),
                "copy:create": partial(self._creating, self._copy_from_other),
                "copy:replace": partial(self._with_etag, "copy:replace", self._copy_from_other),
                "part_copy:source": partial(
                    self._with_etag, "part_copy:source", self._part_copy, header="CopySourceIfMatch"
                ),
                "delete:match": partial(self._with_etag, "delete:match", self._delete),
            }
        )
        abilities = await measure(
            {
                "page_size": self._page_size,
                "checksums": self._checksums,
                "smallest_part": self._smallest_part,
                "versioning": self._versioning,
                "sees_others": self._sees_others,
                "writes_outside": self._writes_outside,
                "anonymous_read": self._anonymous_read,
                "anonymous_list": self._anonymous_list,
            }
        )
        client = await self._client()
        return Probe(client.meta.endpoint_url, conditions, {"etag_quotes": self._quotes(), **abilities})

    # Requests

    def _name(self) -> str:
        return f"{self._scratch}/{token_hex(8)}"

    async def _client(self) -> Any:  # the SDK makes its class at run time
        return await self._backend.client._fs.set_session()

    async def _call(self, name: str, operation: str, **arguments: Any) -> Any:
        return await self._backend.call(name, operation, **arguments)

    async def _get(self, name: str, **condition: str) -> None:
        reply = await self._call(name, "get_object", **condition)
        async with reply["Body"] as body:
            await body.read()

    async def _put(self, name: str, data: bytes = b"put", **condition: str) -> str:
        return str((await self._call(name, "put_object", Body=data, **condition))["ETag"]).strip('"')

    async def _delete(self, name: str, **condition: str) -> None:
        await self._call(name, "delete_object", **condition)

    async def _ready_to_put(self, name: str, **condition: str) -> Callable[[], Awaitable[None]]:
        async def put() -> None:
            await self._put(name, b"put", **condition)

        return put

    async def _staged(
        self, name: str, sizes: tuple[int, ...] = (5,), **condition: str
    ) -> Callable[[], Awaitable[None]]:
        """Send an object in parts, and return what completes it, with the condition on that."""
        upload = (await self._call(name, "create_multipart_upload"))["UploadId"]
        parts = []
        try:
            for number, size in enumerate(sizes, 1):
                body = {"Body": bytes(size), "PartNumber": number, "UploadId": upload}
                parts.append({"ETag": (await self._call(name, "upload_part", **body))["ETag"], "PartNumber": number})
        except BaseException:
            await self._discard(name, upload)
            raise
        whole = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}

        async def complete() -> None:
            try:
                await self._call(name, "complete_multipart_upload", **whole, **condition)
            except BaseException:
                await self._discard(name, upload)
                raise

        return complete

    async def _staged_large(self, name: str, **condition: str) -> Callable[[], Awaitable[None]]:
        # A host that looks first is found out where putting the parts together takes it some time.
        return await self._staged(name, (5 * _MIB,), **condition)

    async def _complete(self, name: str, sizes: tuple[int, ...] = (5,), **condition: str) -> None:
        await (await self._staged(name, sizes, **condition))()

    async def _discard(self, name: str, upload: str) -> None:
        with suppress(SovstoreError):
            await self._backend.discard(name, upload)

    def _source(self, name: str) -> dict[str, str]:
        return {"Bucket": self._backend.client.bucket, "Key": self._backend.prefix + name}

    async def _copy(self, name: str, **condition: str) -> None:
        """Copy an object to a new name."""
        await self._call(self._name(), "copy_object", CopySource=self._source(name), **condition)

    async def _copy_from_other(self, name: str, **condition: str) -> None:
        """Copy another object over this one."""
        await self._put(other := self._name())
        await self._call(name, "copy_object", CopySource=self._source(other), **condition)

    async def _part_copy(self, name: str, **condition: str) -> None:
        upload = (await self._call(target := self._name(), "create_multipart_upload"))["UploadId"]
        try:
            part = {"CopySource": self._source(name), "PartNumber": 1, "UploadId": upload}
            await self._call(target, "upload_part_copy", **part, **condition)
        finally:
            await self._discard(target, upload)

    # Conditions

    async def _creating(
        self, write: Callable[..., Awaitable[object]], stage: Callable[..., Awaitable[Any]] | None = None
    ) -> Measured:
        """Return whether a write "only if there is none" is refused where there is one, and not elsewhere."""
        await self._put(there := self._name())
        header = {"IfNoneMatch": "*"}
        found = await judge(lambda: write(there, **header), lambda: write(self._name(), **header), http_status)

        async def racing() -> list[Callable[[], Awaitable[None]]]:
            name = self._name()
            return [await stage(name, **header) for _ in range(_WRITERS)] if stage else []

        return await race(racing, http_status) if found.value and stage else found

    async def _with_etag(
        self,
        condition: str,
        request: Callable[..., Awaitable[object]],
        stage: Callable[..., Awaitable[Any]] | None = None,
        *,
        header: str = "IfMatch",
    ) -> Measured:
        """Return whether a request with the ETag of an older version is refused, and with the present one is not."""
        found = {form: await self._with_form(written, request, header) for form, written in _FORMS.items()}
        kept = self._forms[condition] = {form for form, answer in found.items() if answer.value}
        if not kept:
            return found["quoted"]

        async def racing() -> list[Callable[[], Awaitable[None]]]:
            etag = _FORMS[max(kept)](await self._put(name := self._name(), b"present"))
            return [await stage(name, **{header: etag}) for _ in range(_WRITERS)] if stage else []

        raced = await race(racing, http_status) if stage else yes()
        return yes(f"with a {max(kept)} ETag only") if raced.value and len(kept) == 1 else raced

    async def _with_form(
        self, written: Callable[[str], str], request: Callable[..., Awaitable[object]], header: str
    ) -> Measured:
        stale = written(await self._put(name := self._name(), b"older"))
        present = written(await self._put(name, b"present"))
        return await judge(
            partial(request, name, **{header: stale}), partial(request, name, **{header: present}), http_status
        )

    def _quotes(self) -> Measured:
        """Return how an ETag must be written so that every condition that is kept is kept."""
        kept = [forms for forms in self._forms.values() if forms]
        if not kept:
            return Measured(None, "the host keeps no condition on an ETag")
        common = set.intersection(*kept)
        if not common:
            return Measured(None, "it differs from operation to operation")
        return Measured("both" if len(common) > 1 else common.pop())

    # Abilities

    async def _page_size(self) -> Measured:
        folder = self._name()
        for name in "abc":
            await self._put(f"{folder}/{name}")
        asked: dict[str, Any] = {"Prefix": f"{self._backend.prefix}{folder}/", "MaxKeys": 2}
        first = await self._backend.client.call(folder, "list_objects_v2", **asked)
        if len(first.get("Contents", ())) != 2 or not first.get("IsTruncated"):
            return no("asked for 2 of 3 names, it sent another number")
        token = first.get("NextContinuationToken")
        second = await self._backend.client.call(folder, "list_objects_v2", **asked, ContinuationToken=token)
        if len(second.get("Contents", ())) != 1:
            return no("the second page is not the rest")
        return yes()

    async def _checksums(self) -> Measured:
        # As the SDK sends it by default: in a header, or over TLS in a trailer.
        data, name = b"checked" * 100, self._name()
        try:
            await self._call(name, "put_object", Body=data, ChecksumAlgorithm="CRC32")
        except StoreError as exc:
            if http_status(exc) in (400, 403, 411, 501):
                return no("the host refuses it")
            raise
        reply = await self._call(name, "get_object")
        async with reply["Body"] as body:
            stored = await body.read()
        # Hosts that do not know the trailer store its framing with the bytes.
        return yes() if stored == data else no("the host stores other bytes than it was sent")

    async def _smallest_part(self) -> Measured:
        least = self._place.provider.get("part_min")
        for size in sorted({min(_MIB, least), least}):
            try:
                await self._complete(self._name(), (size, 1))
            except StoreError as exc:
                if http_status(exc) != 400:
                    raise
            else:
                return Measured(size)
        return no(f"parts of {least} bytes are refused")

    async def _versioning(self) -> Measured:
        try:
            state = (await self._backend.client.call("", "get_bucket_versioning")).get("Status")
        except StoreError as exc:
            if http_status(exc) not in (400, 403, 405, 501):
                raise
            # Not allowed to ask, or the host does not know the question: the reply to a write tells too.
            reply = await self._call(self._name(), "put_object", Body=b"")
            state = "Enabled" if reply.get("VersionId", "null") != "null" else None
        # A suspended one keeps what it has.
        return Measured(state is not None, "suspended" if state == "Suspended" else "")

    async def _sees_others(self) -> Measured:
        async def others() -> int:
            # Not by `call`, which names our bucket.
            async with self._backend.client.mapped("the list of buckets"):
                found = await (await self._client()).list_buckets()
            return len([b for b in found["Buckets"] if b["Name"] != self._backend.client.bucket])

        may = await allowed(others, http_status)
        return Measured(bool(may.value and await others()))

    async def _writes_outside(self) -> Measured:
        if not self._backend.prefix:
            return Measured(None, "the root is the whole bucket")
        key = f"sovstore-check-{token_hex(8)}"

        async def write() -> None:
            try:
                await self._backend.client.call(key, "put_object", Key=key, Body=b"")
            finally:
                with suppress(SovstoreError):
                    await self._backend.client.call(key, "delete_object", Key=key)

        return await allowed(write, http_status)

    async def _anonymous_read(self) -> Measured:
        await self._put(name := self._name())
        return await self._anonymous("get_object", Key=self._backend.prefix + name)

    async def _anonymous_list(self) -> Measured:
        return await self._anonymous("list_objects_v2", query="?list-type=2&max-keys=1")

    async def _anonymous(self, operation: str, query: str = "", **arguments: str) -> Measured:
        """Return whether a request without any signature is answered."""
        client = await self._client()
        async with self._backend.client.mapped("without credentials"), aiohttp.ClientSession(trust_env=True) as session:
            signed = await client.generate_presigned_url(
                operation, Params={"Bucket": self._backend.client.bucket, **arguments}
            )
            # Made by the SDK for the sake of its path or host name, and without what it signed with.
            url = yarl.URL(signed.partition("?")[0] + query, encoded=True)
            async with session.get(url, ssl=_trusted(self._place), allow_redirects=False) as reply:
                status = reply.status
        if status == 200:
            return yes()
        return no() if status in (401, 403, 404) else Measured(None, f"the host answered with status {status}")

    # Afterwards

    async def purge(self, *, versions: bool) -> None:
        """Delete what lies in the scratch folder; with `versions` also all that ever lay there."""
        await self._backend.delete([found.name async for found in self._backend.list(self._scratch, recursive=True)])
        if versions:
            await purge_versions(self._backend, self._scratch)


async def purge_versions(backend: S3Backend, folder: str) -> None:
    """Delete all versions and delete markers below a folder.

    Raises
    ------
    StoreError
        When the host does not let go of them, or lists others for ever.
    """
    deleted: set[tuple[str, str]] = set()
    # Always the first page, since what was on it is gone. The host could go on sending one, old or made up.
    for _ in range(_VERSION_PAGES):
        found, more = await _versions(backend, f"{backend.prefix}{folder}/")
        for key, version in found - deleted:
            with suppress(ObjectNotFoundError):
                await backend.client.call("", "delete_object", Key=key, VersionId=version)
        if not found or not more:
            return
        if found <= deleted:
            break
        deleted |= found
    raise StoreError(f"{folder}: the host does not stop listing versions that were deleted", path=folder)


async def _versions(backend: S3Backend, prefix: str) -> tuple[set[tuple[str, str]], bool]:
    """Return one page of versions, and whether there is another one."""
    page = await backend.client.call("", "list_object_versions", Prefix=prefix)
    found = [version for kind in ("Versions", "DeleteMarkers") for version in page.get(kind, ())]
    # What the host lists beside the prefix is not ours to delete.
    ours = {(v["Key"], v.get("VersionId", "null")) for v in found if v.get("Key", "").startswith(prefix)}
    return ours, bool(page.get("IsTruncated"))


def _trusted(place: Place) -> ssl.SSLContext | bool:
    """Return what a connection of our own trusts: what those of the SDK do."""
    given = place.options.get("client_kwargs", {}).get("verify", place.ca_file)
    return ssl.create_default_context(cafile=given) if isinstance(given, str) else given is not False

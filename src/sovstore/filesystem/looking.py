"""Listings and what they say: sizes and times, at the cost of the host's own listing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from sovstore.backends.base import Stat
from sovstore.errors import ObjectNotFoundError, UnsupportedError
from sovstore.filesystem.base import SovBase
from sovstore.store import Entry


class Looking(SovBase):
    """The calls that look at names and sizes."""

    def _describe(self, path: str, stat: Stat) -> dict[str, Any]:
        return _info_of(self.store._entry(path, stat))

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return _info_of(await self.store.stat(self._strip_own(path)))

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_own(path)
        found = [_info_of(entry) async for entry in self.store.list(path)]
        if not found:
            own = await self._info(path)
            found = [] if own["type"] == "directory" else [own]
        found = sorted(_unique(found).values(), key=lambda info: info["name"])
        return found if detail else [info["name"] for info in found]

    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        prefix: str = "",
        **kwargs: Any,
    ) -> Any:
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_own(path)
        base = f"{path}/" if path else ""
        found: dict[str, dict[str, Any]] = {}
        async for entry in self.store.list(path, recursive=maxdepth != 1):
            inner = entry.path[len(base) :]
            if not inner.startswith(prefix):
                continue
            if withdirs:
                _add_parents(found, base, inner, maxdepth)
            # A foreign name never takes the place of one of ours.
            if (
                _near(inner, maxdepth)
                and (withdirs or not entry.folder)
                and not (entry.foreign and entry.path in found)
            ):
                found[entry.path] = _info_of(entry)
        if withdirs and path and (found or await self._isdir(path)):
            found[path] = _folder(path)
        if not found and path and await self._isfile(path):
            found[path] = await self._info(path)
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    async def _walk(self, path: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        # fsspec takes any OSError for an empty folder; a KEK that is denied must not look like one.
        await self.store.keyset()
        async for item in super()._walk(path, *args, **kwargs):
            yield item

    async def _du(self, path: str, total: bool = True, maxdepth: int | None = None, **kwargs: Any) -> Any:
        if not total:
            found = await self._find(path, maxdepth=maxdepth, detail=True, **kwargs)
            return {name: info["size"] or 0 for name, info in found.items()}
        path = self._strip_own(path)
        size, empty = 0, True
        async for entry in self._below(path, maxdepth):
            size, empty = size + (entry.size or 0), False
        return (await self._info(path))["size"] or 0 if empty and path and await self._isfile(path) else size

    async def _below(self, path: str, maxdepth: int | None) -> AsyncIterator[Entry]:
        """Yield what is below a folder, down to a depth, as the host lists it: in no order and in constant memory."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        base = f"{path}/" if path else ""
        async for entry in self.store.list(path, recursive=maxdepth != 1):
            if _near(entry.path[len(base) :], maxdepth):
                yield entry

    async def _type(self, path: str) -> str | None:
        # Only "there is none" is an answer; fsspec's own versions take any failure for it.
        try:
            kind: str = (await self._info(path))["type"]
        except ObjectNotFoundError:
            return None
        return kind

    async def _isfile(self, path: str) -> bool:
        return await self._type(path) == "file"

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == "directory"

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        return await self._type(path) is not None

    def created(self, path: str) -> datetime:
        """Return when the object was made, as the host says, in UTC."""
        return self._moment(path, "created")

    def modified(self, path: str) -> datetime:
        """Return when the object was last written, as the host says, in UTC."""
        return self._moment(path, "modified")

    def _moment(self, path: str, which: str) -> datetime:
        moment = self.info(path).get(which)
        if moment is None:
            raise UnsupportedError(f"{path}: the host does not say when it was {which}", path=path)
        found: datetime = moment
        return found

    def ukey(self, path: str) -> str:
        """Return a mark, hex, that changes whenever the object does."""
        info = self.info(path)
        mark = (info["wire_name"], info["wire_size"], info["etag"], str(info["modified"]))
        return hashlib.sha256(repr(mark).encode()).hexdigest()

    def checksum(self, path: str) -> int:
        """Return `ukey` as an integer."""
        return int(self.ukey(path), 16)


def _info_of(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.path,
        "size": entry.size,
        "type": "directory" if entry.folder else "file",
        "wire_name": entry.name,
        "wire_size": entry.wire_size,
        "etag": entry.etag,
        "created": entry.created,
        "modified": entry.modified,
        "mtime": entry.modified.timestamp() if entry.modified else None,
        "foreign": entry.foreign,
    }


def _near(inner: str, maxdepth: int | None) -> bool:
    return maxdepth is None or inner.count("/") < maxdepth


def _folder(path: str) -> dict[str, Any]:
    return _info_of(Entry(path, "", 0, 0, True, False, None, None, None))


def _unique(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return one entry per path: a host may list a name twice, or a foreign one that looks like one of ours."""
    return {info["name"]: info for info in sorted(found, key=lambda info: not info["foreign"])}


def _add_parents(found: dict[str, dict[str, Any]], base: str, inner: str, maxdepth: int | None) -> None:
    """Add the folders that an object implies: most hosts do not list them."""
    parts = inner.split("/")[:-1]
    for depth in range(1, len(parts) + 1 if maxdepth is None else min(len(parts), maxdepth) + 1):
        path = base + "/".join(parts[:depth])
        found.setdefault(path, _folder(path))

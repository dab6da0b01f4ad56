"""Reading whole objects and ranges, and fetching them to this machine."""

from __future__ import annotations

import asyncio
import bisect
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.mapping import FSMap
from fsspec.utils import isfilelike

from sovstore import beside
from sovstore.errors import IsFolderError, SovstoreError, StoreError
from sovstore.filesystem.base import Rooted, sync_form, watched
from sovstore.filesystem.looking import Looking
from sovstore.format.cobblestone import CHUNK
from sovstore.object_reader import ObjectReader

#: Ranges of one object that are nearer than this are fetched by one request.
_GAP = 4 * CHUNK


class SovMap(FSMap):  # type: ignore[misc]  # fsspec has no types
    """A mapping of keys to objects in which only what is not there is missing."""

    def getitems(self, keys: Any, on_error: str = "raise") -> dict[str, Any]:
        """Return several objects; `on_error` is about those that are not there."""
        found: dict[str, Any] = super().getitems(keys, on_error="return")
        for key, value in found.items():
            if isinstance(value, BaseException) and (on_error == "raise" or not isinstance(value, KeyError)):
                if on_error == "return":
                    continue
                raise KeyError(key) if isinstance(value, KeyError) else value
        if on_error == "omit":
            return {key: value for key, value in found.items() if not isinstance(value, BaseException)}
        return found

    def __delitem__(self, key: str) -> None:
        """Delete the object of just this key, whatever characters are in it."""
        try:
            self.fs.rm_file(self._key_to_str(key))
        except FileNotFoundError as exc:
            raise KeyError(key) from exc

    def delitems(self, keys: Any) -> None:
        """Delete the objects of just these keys."""
        for key in keys:
            del self[key]


class Reading(Looking):
    """The calls that read."""

    def get_mapper(self, root: str = "", check: bool = False, create: bool = False, **kwargs: Any) -> SovMap:
        """Return a mapping of keys to the objects below `root`."""
        return SovMap(root, self, check=check, create=create, **kwargs)

    @watched
    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        whole = start in (None, 0) and end is None
        reader = await self.store.reader(self._strip_own(path), whole=whole)
        return await reader.read(*reader.clamp(start, end))

    @watched
    async def _cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        if on_error != "omit":
            return await super()._cat(path, recursive=recursive, on_error=on_error, **kwargs)
        found = await super()._cat(path, recursive=recursive, on_error="return", **kwargs)
        if not isinstance(found, dict):
            if isinstance(found, BaseException):
                raise found
            return found
        for value in found.values():
            # Leaving out what is not there is what was asked for; leaving out what was tampered with is not.
            if isinstance(value, BaseException) and not isinstance(value, FileNotFoundError | IsADirectoryError):
                raise value
        return {name: value for name, value in found.items() if not isinstance(value, BaseException)}

    @watched
    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        if not isinstance(paths, list):
            raise TypeError("cat_ranges takes a list of paths")
        firsts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        lasts = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(paths) == len(firsts) == len(lasts):
            raise ValueError("cat_ranges takes as many starts and ends as paths")
        wanted: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            wanted.setdefault(self._strip_own(path), []).append(index)
        results: list[Any] = [b""] * len(paths)
        limit = asyncio.Semaphore(batch_size or self.batch_size)

        async def one(path: str, indices: list[int]) -> None:
            async with limit:
                try:
                    reader = await self.store.reader(path)
                    ranges = [reader.clamp(firsts[i], lasts[i]) for i in indices]
                    for i, data in zip(indices, await _read_ranges(reader, ranges, max_gap), strict=True):
                        results[i] = data
                except Exception as exc:
                    if on_error != "return":
                        raise
                    for i in indices:
                        results[i] = exc

        await asyncio.gather(*(one(path, indices) for path, indices in wanted.items()))
        return results

    @watched
    async def _get(self, rpath: Any, lpath: Any, *args: Any, **kwargs: Any) -> Any:
        return await AsyncFileSystem._get(Rooted(self), rpath, lpath, *args, **kwargs)

    @watched
    async def _get_file(self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        rpath = self._strip_own(rpath)
        try:
            reader = await self.store.reader(rpath)
        except IsFolderError:
            os.makedirs(lpath, exist_ok=True)
            return
        callback.set_size(reader.plain_size)
        if isfilelike(lpath):
            await _pour(reader, lpath, callback)
            return
        target = Path(lpath)
        if target.is_dir():
            raise IsFolderError(
                f"{target}: is a folder of this machine", path=str(target), hint="name the file to write"
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            async with self.store.transfer(reader.plain_size):
                # Names may be as long as a file system takes them.
                with beside.temporary(target, name=target.name[:50], end=".part") as (made, descriptor):
                    with open(descriptor, "wb", closefd=False) as file:
                        await _pour(reader, file, callback)
                    made.replace(target)
        except SovstoreError:
            # Some of ours are an `OSError` too, and are about the store, not about this machine.
            raise
        except OSError as exc:
            raise _local_error(exc, target) from exc

    cat, cat_file, cat_ranges = sync_form("cat"), sync_form("cat_file"), sync_form("cat_ranges")
    get, get_file = sync_form("get"), sync_form("get_file")


async def _read_ranges(reader: ObjectReader, ranges: list[tuple[int, int]], max_gap: int | None) -> list[bytes]:
    """Return several ranges of one object; neighbours are fetched together."""
    gap = _GAP if max_gap is None else max_gap
    merged: list[list[int]] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start - merged[-1][1] <= gap:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    pieces = await asyncio.gather(*(reader.read(start, end) for start, end in merged))
    starts = [start for start, _ in merged]
    results = []
    for start, end in ranges:
        home = bisect.bisect_right(starts, start) - 1
        results.append(pieces[home][start - starts[home] : end - starts[home]] if start < end else b"")
    return results


async def _pour(reader: ObjectReader, file: Any, callback: Any) -> None:  # fsspec's callback
    """Write an object into a local file, piece by authentic piece."""
    async for piece in reader.stream():
        await asyncio.to_thread(file.write, piece)
        callback.relative_update(len(piece))


def _local_error(exc: OSError, target: Path) -> StoreError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "free some room, then run it again; nothing half-written was left"
    else:
        hint = "check the path and its rights"
    return StoreError(f"{target}: cannot be written: {exc.strerror}", path=str(target), hint=hint)

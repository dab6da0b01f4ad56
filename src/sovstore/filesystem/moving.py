"""Copying, renaming and deleting, and folders."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync

from sovstore.errors import IsFolderError, ObjectExistsError, ObjectNotFoundError, PathError, StoreError
from sovstore.filesystem.base import Rooted, SovBase
from sovstore.filesystem.writing import Writing
from sovstore.store import Entry

#: Objects that one step of a recursive `rm` deletes.
_BATCH = 1000


class Moving(Writing):
    """The calls that copy, rename and delete."""

    async def _cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        source, target = self._strip_own(path1), self._strip_own(path2)
        try:
            await self.store.copy(source, target)
        except IsFolderError:
            if not await self._isdir(source):
                raise
            await self._makedirs(target, exist_ok=True)

    async def _mv_file(self, path1: str, path2: str) -> None:
        await self.store.move(self._strip_own(path1), self._strip_own(path2))

    async def _plan(self, path1: Any, path2: Any, recursive: bool, maxdepth: int | None) -> list[tuple[str, str]]:
        """Return which source goes where, as fsspec maps them.

        Raises
        ------
        PathError
            When two sources would get one target, or a target is itself a source: something would be lost.
        """
        pairs = _Pairs(self)
        await AsyncFileSystem._copy(pairs, path1, path2, recursive=recursive, maxdepth=maxdepth, on_error="raise")
        found = [pair for pair in pairs.found if pair[0] != pair[1]]
        sources, targets = {source for source, _ in found}, Counter(target for _, target in found)
        clash = next((t for t, times in targets.items() if t in sources or times > 1), None)
        inside = next((t for s, t in found if t.startswith(f"{s}/") and recursive), None)
        if inside is not None:
            hint = "choose a target outside of what is copied or renamed"
            raise PathError(f"{inside}: is inside of its own source", path=inside, hint=hint)
        if clash is not None:
            hint = "copy or rename in two steps, by way of another folder"
            raise PathError(f"{clash}: would be the target of more than one, or is a source too", path=clash, hint=hint)
        return found

    async def _copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        on_error: str | None = None,
        maxdepth: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        async def one(source: str, target: str) -> None:
            # What was listed and is gone now is an error, unless the caller says otherwise: fsspec would skip it.
            with suppress(*([FileNotFoundError] if on_error == "ignore" else [])):
                await self._cp_file(source, target)

        await self._each(one, await self._plan(path1, path2, recursive, maxdepth), batch_size)

    async def _each(
        self,
        work: Callable[[str, str], Awaitable[None]],
        pairs: list[tuple[str, str]],
        batch_size: int | None = None,
    ) -> None:
        """Do the same to all pairs, a few at a time; the first error ends it."""
        limit = asyncio.Semaphore(batch_size or self.batch_size)

        async def one(source: str, target: str) -> None:
            async with limit:
                await work(source, target)

        tasks = [asyncio.ensure_future(one(*pair)) for pair in pairs]
        try:
            await asyncio.gather(*tasks)
        finally:
            # None may go on behind the back of a caller who has its error already.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        pairs = await self._plan(path1, path2, recursive, maxdepth)
        if not pairs and isinstance(path1, str) and not recursive and await self._isdir(path1):
            raise IsFolderError(f"{path1}: is a folder", path=path1, hint="use recursive=True (-r) to rename all of it")
        folders: list[Entry] = []

        async def one(source: str, target: str) -> None:
            entry = await self.store.stat(source)
            if entry.folder:
                await self._makedirs(target, exist_ok=True)
                folders.append(entry)
            else:
                await self.store.move(source, target)

        await self._each(one, pairs)
        await self.store.delete(folders)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Rename objects: new headers, bodies as they are; each is checked at its new path before the old one goes."""
        sync(self.loop, self._mv, path1, path2, recursive=recursive, maxdepth=maxdepth)

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        # Not `_rm`, which takes '*' in the name of an object for a pattern.
        path = self._strip_own(path)
        entry = await self.store.stat(path)
        if entry.folder:
            raise IsFolderError(f"{path}: is a folder", path=path, hint="use rmdir, or rm with recursive=True")
        await self.store.delete([entry])

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        objects: dict[str, Entry] = {}
        folders: dict[str, Entry] = {}
        for one in [path] if isinstance(path, str | os.PathLike) else path:
            plain = self._strip_own(one)
            # Names may hold any character: an object of just this name is what is meant, before any pattern.
            if any(sign in plain for sign in "*?[") and not await self._exists(plain):
                matches = await self._glob(plain, detail=True)
            else:
                matches = {plain: await self._info(plain)}
            for name, info in matches.items():
                if info["type"] != "directory":
                    objects[name] = _entry_of(info)
                elif recursive:
                    folders[name] = _entry_of(info)
                else:
                    raise IsFolderError(
                        f"{name}: is a folder", path=name, hint="use recursive=True (-r) to delete all of it"
                    )
            if not matches:
                raise ObjectNotFoundError(f"{plain}: no such object in store {self.store_name!r}", path=plain)
        await self.store.delete(objects.values())
        for folder in folders.values():
            await self._rm_folder(folder, maxdepth)

    async def _rm_folder(self, own: Entry, maxdepth: int | None) -> None:
        """Delete a folder while the host lists it; only folders that are real are remembered until the end."""
        folders, batch = [own] if own.path else [], list[Entry]()
        async for entry in self._below(own.path, maxdepth):
            (folders if entry.folder else batch).append(entry)
            if len(batch) == _BATCH:
                await self.store.delete(batch)
                batch.clear()
        await self.store.delete([*batch, *folders])

    async def _mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        path = self._strip_own(path)
        if not path:
            return
        kind = await self._type(path)
        if kind == "file" or (kind and self.store.backend.real_folders):
            raise ObjectExistsError(f"{path}: exists already", path=path)
        parent = self._parent(path)
        if not create_parents and self.store.backend.real_folders and not await self._isdir(parent):
            raise ObjectNotFoundError(f"{parent}: no such folder", path=parent)
        await self.store.make_folder(path)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_own(path)
        kind = await self._type(path)
        if kind == "file" or (kind and not exist_ok):
            raise ObjectExistsError(f"{path}: exists already", path=path)
        # Also when there is one: on some hosts it may only be implied by an object in it, and go away with that.
        if path:
            await self.store.make_folder(path)

    async def _rmdir(self, path: str) -> None:
        path = self._strip_own(path)
        entry = await self.store.stat(path)
        if not entry.folder:
            raise StoreError(f"{path}: is not a folder", path=path)
        async for _ in self.store.list(path):
            raise StoreError(
                f"{path}: the folder is not empty", path=path, hint="rm with recursive=True deletes all of it"
            )
        if path:
            await self.store.delete([entry])

    def rmdir(self, path: str) -> None:
        """Delete an empty folder."""
        sync(self.loop, self._rmdir, path)


def _entry_of(info: dict[str, Any]) -> Entry:
    folder = info["type"] == "directory"
    return Entry(info["name"], info["wire_name"], info["size"], 0, folder, False, None, None, None)


class _Pairs(Rooted):
    """Stands in for a filesystem while fsspec works out which source goes where, and copies nothing."""

    def __init__(self, fs: SovBase) -> None:
        super().__init__(fs)
        self.found: list[tuple[str, str]] = []

    async def _cp_file(self, source: str, target: str) -> None:
        self.found.append((self._fs._strip_own(source), self._fs._strip_own(target)))

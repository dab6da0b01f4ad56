"""Writing whole objects, and opening them as files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from stat import S_ISREG
from typing import Any

from fsspec.asyn import sync
from fsspec.caching import caches
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression

from sovstore import local_plaintext
from sovstore.errors import UnsupportedError
from sovstore.file_wrappers import CompressedFile, TextFile
from sovstore.files import (
    AsyncReader,
    AsyncWriter,
    SovReader,
    SovWriter,
    WatchedReader,
    check_mode,
)
from sovstore.filesystem.base import watched
from sovstore.filesystem.reading import Reading
from sovstore.format.cobblestone import CHUNK
from sovstore.object_writer import BLOCK, ObjectWriter

#: What filesystems of hosts take beside the data: s3fs, adlfs and gcsfs, in any case and with or without '_'.
_METADATA = frozenset(
    {
        *("acl", "cachecontrol", "contentdisposition", "contentencoding", "contentlanguage", "contentsettings"),
        *("contenttype", "fixedkeymetadata", "headers", "metadata", "storageclass", "tagging", "tags"),
    }
)


class Writing(Reading):
    """The calls that write or open."""

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        _refuse_metadata(path, kwargs)
        await self.store.put(self._strip_own(path), value, create=mode == "create")

    async def _put_file(
        self, lpath: str, rpath: str, mode: str = "overwrite", callback: Any = DEFAULT_CALLBACK, **kwargs: Any
    ) -> None:
        _refuse_metadata(rpath, kwargs)
        rpath = self._strip_own(rpath)
        if os.path.isdir(lpath):
            await self._makedirs(rpath, exist_ok=True)
            return
        with await asyncio.to_thread(open, lpath, "rb") as file:
            status = os.fstat(file.fileno())
            # What is no regular file (a pipe, /proc) says nothing of its size; one that is may be growing.
            size = status.st_size if S_ISREG(status.st_mode) else None
            callback.set_size(size)
            async with self.store.transfer(BLOCK if size is None else size):
                writer = await self.store.writer(rpath, create=mode == "create", size=size)
                await self._pour_in(file, size, writer, callback)

    def put(self, *args: Any, **kwargs: Any) -> Any:  # as fsspec
        """Seal local files as objects: of a file or a folder, a pattern, or a list of them."""
        if self._is_watched:
            # Of a cache that was written through, which has them on its disk and keeps them there.
            local_plaintext.hold(self.store.config, copies=False)
        return sync(self.loop, self._put, *args, **kwargs)

    async def _pour_in(self, file: Any, size: int | None, writer: ObjectWriter, callback: Any) -> None:
        """Seal a local file as an object: one block is on its way while the next is read and sealed in a thread."""
        block = bytearray(BLOCK if size is None else max(CHUNK, min(BLOCK, size + 1)))

        def next_block() -> tuple[memoryview, int]:
            read = file.readinto(block)
            return writer.seal(memoryview(block)[:read]), read

        try:
            sealed, read = await asyncio.to_thread(next_block)
            while read:
                sending = asyncio.ensure_future(writer.send(sealed))
                try:
                    sealed, following = await asyncio.to_thread(next_block)
                finally:
                    await sending
                callback.relative_update(read)
                read = following
            await writer.send(sealed)
            await writer.commit()
        except BaseException:
            await writer.abort()
            raise

    @watched
    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_type: str = "sov",
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SovReader | SovWriter:
        path = self._strip_own(path)
        check_mode(path, mode)
        _refuse_metadata(path, kwargs)
        if mode == "rb":
            kind = self._kind_of_reader(cache_type)
            reader = self._sync(self.store.reader, path)
            block_size = block_size or self.default_block_size
            return kind(self, reader, cache_type, block_size=block_size, cache_options=cache_options)
        return SovWriter(self, self._sync(self._new_writer, path, mode), mode)

    def _kind_of_reader(self, cache_type: str) -> type[SovReader]:
        """Return the class of files that are read; held against the policy where that says anything of them."""
        if not self._is_watched:
            return SovReader
        local_plaintext.hold_cache_type(self.store.config, cache_type, caches.get(cache_type))
        return WatchedReader

    async def _new_writer(self, path: str, mode: str) -> Any:
        return await self.store.writer(path, create=mode == "xb")

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open an object; text modes, compression and buffering are fsspec's.

        Parameters
        ----------
        path : str
            Path or URL.
        mode : str
            ``rb``, ``wb``, ``xb`` (fail if there is one) and their text forms.

        Raises
        ------
        UnsupportedError
            For appending and updating in place.
        ObjectNotFoundError, ObjectExistsError, IntegrityError, FormatError
            As the mode says. Nothing that was not authenticated is ever returned.
        """
        text = {key: kwargs.pop(key) for key in ("encoding", "errors", "newline") if key in kwargs}
        compression = get_compression(path, kwargs.pop("compression", None))
        file = wrapped = super().open(path, mode if "b" in mode else mode.replace("t", "") + "b", **kwargs)
        if compression is not None:
            wrapped = CompressedFile(compr[compression](file, mode=file.mode[0]), file)
        return wrapped if "b" in mode else TextFile(wrapped, file, **text)

    @watched
    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> AsyncReader | AsyncWriter:
        """Open an object for ``await``: read in order (``rb``), or written (``wb``, ``xb``)."""
        path = self._strip_own(path)
        check_mode(path, mode)
        _refuse_metadata(path, kwargs)
        if mode == "rb":
            return AsyncReader(self, await self.store.reader(path))
        return AsyncWriter(self, await self._new_writer(path, mode))

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Write an empty object.

        Raises
        ------
        UnsupportedError
            With ``truncate=False`` on an object that exists: its time cannot be changed alone.
        """
        path = self._strip_own(path)
        if not truncate and self.exists(path):
            raise UnsupportedError(f"{path}: exists, and its time cannot be changed alone", path=path)
        self.pipe_file(path, b"")


def _refuse_metadata(path: str, options: Collection[str]) -> None:
    """Refuse what would lie beside the object, in clear: the host is told nothing of it, and vouches for nothing."""
    for option in options:
        if option.replace("_", "").lower() in _METADATA:
            hint = "write it into the data, or into an object beside it"
            raise UnsupportedError(
                f"{path}: {option}: a sealed object has no metadata at the host", path=path, hint=hint
            )

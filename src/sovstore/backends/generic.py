"""Any fsspec filesystem as a `Backend`: sync or async, object store or not.

An object store (S3, Azure Blob, GCS) shows an object when its upload ends, so the upload is written in place.
Elsewhere a temporary object is moved over the target. Header replacement copies the object through this process;
conditions are kept by looking first. The drivers of single services do both at the server.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.asyn import AsyncFileSystem

from sovstore.backends.base import TEMPORARY, Stat, Upload
from sovstore.backends.loop import LoopBackend
from sovstore.errors import (
    IsFolderError,
    NotFolderError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    StoreUnavailableError,
)

#: Protocols whose `open("wb")` shows nothing before `close`.
_OBJECT_STORES = frozenset({"s3", "s3a", "abfs", "az", "abfss", "gs", "gcs"})
#: Bytes of one part of an upload and of one step of a copy.
_PART = 8 * 2**20
_THREADS = 16


@contextmanager
def _mapped(name: str) -> Iterator[None]:
    """Map whatever a filesystem raises onto our errors, in one place."""
    try:
        yield
    except (SovstoreError, asyncio.CancelledError):
        raise
    except FileNotFoundError as exc:
        raise ObjectNotFoundError(f"{name}: not found", path=name) from exc
    except FileExistsError as exc:
        raise ObjectExistsError(f"{name}: exists already", path=name) from exc
    except IsADirectoryError as exc:
        raise IsFolderError(f"{name}: is a folder", path=name) from exc
    except NotADirectoryError as exc:
        raise NotFolderError(f"{name}: a parent of it is an object", path=name) from exc
    except PermissionError as exc:
        hint = "check the credentials and their rights on the bucket or container"
        raise StoreError(f"{name}: the host refused", path=name, hint=hint) from exc
    except Exception as exc:  # any filesystem may raise anything; nothing of it may leave a driver
        if isinstance(exc, OSError) and exc.errno == errno.ENOTEMPTY:
            raise StoreError(f"{name}: the folder is not empty", path=name) from exc
        # Only the class of the cause: SDKs put signed URLs and headers into their messages.
        raise StoreUnavailableError(
            f"{name}: the host did not answer as it should: {type(exc).__name__}", path=name
        ) from exc


class GenericBackend(LoopBackend):
    """A root in any fsspec filesystem.

    Parameters
    ----------
    protocol : str
        As in `fsspec.filesystem`.
    root : str
        Bucket and prefix, container and prefix, or folder.
    options : mapping
        Options of that filesystem.
    """

    def __init__(self, protocol: str, root: str, options: Mapping[str, Any]) -> None:
        self._protocol, self._options = protocol, dict(options)
        super().__init__()
        self._in_place = protocol in _OBJECT_STORES
        self.real_folders = not self._in_place
        self._root = self._fs._strip_protocol(root).rstrip("/")

    def _connect(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="sovstore-host")
        cls = fsspec.get_filesystem_class(self._protocol)
        if issubclass(cls, AsyncFileSystem):
            self._fs = cls(**{"use_listings_cache": False, **self._options}, asynchronous=False, loop=self._loop)
        else:
            self._fs = cls(**self._options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    async def _call(self, name: str, method: str, *args: object, **kwargs: object) -> Any:  # as fsspec
        """Call a method of the filesystem: its coroutine where it has one, else in a thread."""
        self.after_fork()
        with _mapped(name):
            if self._fs.async_impl and hasattr(self._fs, f"_{method}"):
                call = getattr(self._fs, f"_{method}")(*args, **kwargs)
                return await self.on_loop(call)
            return await self._in_thread(getattr(self._fs, method), *args, **kwargs)

    async def _in_thread(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        self.after_fork()
        # Files of async filesystems wait in their thread for coroutines, and those may need a thread of their loop's
        # own executor (to look up a host name): taking that one here could block it for ever.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(function, *args, **kwargs))

    async def stat(self, name: str) -> Stat:
        """Return what the filesystem says of an object or folder."""
        self._fs.invalidate_cache()
        try:
            info = await self._call(name, "info", self._path(name))
            with _mapped(name):
                return self._stat(info)
        except NotFolderError as exc:
            raise ObjectNotFoundError(f"{name}: not found", path=name) from exc

    def _stat(self, info: Mapping[str, Any]) -> Stat:
        name = str(info["name"])
        modified = _time(info, "LastModified", "last_modified", "mtime", "modified", "created")
        folder = info["type"] == "directory" or (name.endswith("/") and not info.get("size"))
        # No object has a size of -1: one whose host does not say it is shown as foreign.
        size = 0 if folder else int(-1 if info["size"] is None else info["size"])
        etag = info.get("ETag") or info.get("etag") or (f"{modified.isoformat()}-{size}" if modified else None)
        return Stat(
            name.rstrip("/").removeprefix(self._root).removeprefix("/"),
            size,
            folder=folder,
            etag=None if folder or etag is None else str(etag),
            modified=modified,
            created=_time(info, "creation_time", "created"),
        )

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """Return bytes [start, end) of an object. The ETag is not checked: fsspec has no way to ask for it."""
        del etag
        if start >= end:
            return b""
        try:
            return bytes(await self._call(name, "cat_file", self._path(name), start=start, end=end))
        except NotFolderError as exc:
            raise ObjectNotFoundError(f"{name}: not found", path=name) from exc
        except StoreUnavailableError as exc:
            # HTTP hosts refuse a range that starts at or beyond the end, also of an empty object.
            if _http_status(exc) == 416:
                return b""
            raise

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        """Return a write, in place or beside."""
        del size
        target = self._path(name)
        if self._in_place:
            mode = "xb" if create else "wb"
            file = await self._open(name, target, mode)
            return _GenericUpload(self, name, file, None, create=create, if_match=if_match)
        temporary = self._path(f"{TEMPORARY}/{uuid4().hex}")
        await self._call(name, "makedirs", self._path(TEMPORARY), exist_ok=True)
        file = await self._open(name, temporary, "wb")
        return _GenericUpload(self, name, file, temporary, create=create, if_match=if_match)

    async def _open(self, name: str, path: str, mode: str) -> Any:  # fsspec files have no type
        opening = asyncio.ensure_future(self._in_thread(self._fs.open, path, mode, block_size=_PART))
        with _mapped(name):
            try:
                return await asyncio.shield(opening)
            except asyncio.CancelledError:
                # The thread opens it all the same, and the finaliser of a file that nobody holds would commit it: an
                # empty object in place of the one that is there.
                with suppress(Exception):
                    temporary = None if self._in_place else path
                    await _GenericUpload(self, name, await opening, temporary, create=False, if_match=None).abort()
                raise

    async def publish(self, temporary: str, name: str) -> None:
        """Move a finished temporary object over its target."""
        target = self._path(name)
        # Some filesystems would move the object into a folder of that name.
        if await self._call(name, "isdir", target):
            raise IsFolderError(f"{name}: is a folder", path=name)
        await self._call(name, "makedirs", target.rpartition("/")[0], exist_ok=True)
        with _mapped(name):
            await self._in_thread(self._fs.mv, temporary, target)

    async def remove(self, path: str) -> None:
        """Delete a temporary object, whatever happens."""
        with suppress(SovstoreError):
            await self._call(path, "rm_file", path)

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield what the filesystem lists in or below a folder."""
        self._fs.invalidate_cache()
        path = self._path(folder)
        try:
            if recursive:
                found = await self._call(folder, "find", path, detail=True, withdirs=self.real_folders)
            else:
                found = await self._call(folder, "ls", path, detail=True)
        except (ObjectNotFoundError, NotFolderError):
            return
        prefix = f"{folder}/" if folder else ""
        # Filesystems disagree on what they return here: dicts or lists, with or without the folder itself.
        for info in found.values() if isinstance(found, dict) else found:
            with _mapped(folder):
                entry = self._stat(info)
            if entry.name.startswith(prefix) and entry.name != folder:
                yield entry

    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects one by one, a few at a time."""
        limit = asyncio.Semaphore(16)

        async def one(name: str) -> None:
            async with limit:
                with suppress(ObjectNotFoundError, NotFolderError):
                    if not name.endswith("/"):
                        await self._call(name, "rm_file", self._path(name))
                    elif self.real_folders:
                        await self._call(name, "rmdir", self._path(name.rstrip("/")))

        await asyncio.gather(*(one(name) for name in names))

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Copy an object through this process, with its head replaced."""
        found = await self.stat(source)
        _check_etag(source, etag, found.etag)
        upload = await self.upload(target, create=create)
        try:
            await upload.write(head)
            for start in range(len(head), found.size, _PART):
                piece = await self.read(source, start, min(start + _PART, found.size))
                if len(piece) != min(_PART, found.size - start):
                    raise ObjectChangedError(f"{source}: changed while it was copied", path=source)
                await upload.write(piece)
            # Reads carry no condition here, so the source is looked at again before anything becomes visible.
            _check_etag(source, found.etag, (await self.stat(source)).etag)
            await upload.commit()
        except BaseException:
            await upload.abort()
            raise

    async def make_folder(self, name: str) -> None:
        """Make a folder and its parents where the filesystem has them."""
        if self.real_folders:
            await self._call(name, "makedirs", self._path(name), exist_ok=True)


def _http_status(exc: BaseException) -> int | None:
    """Return the HTTP status that an SDK put into one of the causes of an error."""
    cause: BaseException | None = exc
    while cause is not None:
        response = getattr(cause, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = metadata.get("HTTPStatusCode") or getattr(cause, "status_code", None)
        if isinstance(status, int):
            return status
        cause = cause.__cause__ or cause.__context__
    return None


def _check_etag(name: str, expected: str | None, found: str | None) -> None:
    if expected is not None and found != expected:
        raise ObjectChangedError(f"{name}: changed meanwhile", path=name)


def _time(info: Mapping[str, Any], *keys: str) -> datetime | None:
    for key in keys:
        value = info.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
    return None


class _GenericUpload(Upload):
    """A file that a filesystem opened for writing: the target itself, or a temporary one beside."""

    def __init__(
        self,
        backend: GenericBackend,
        name: str,
        file: Any,  # fsspec files have no type
        temporary: str | None,
        *,
        create: bool,
        if_match: str | None,
    ) -> None:
        self._backend, self._name, self._file, self._temporary = backend, name, file, temporary
        self._create, self._if_match = create, if_match

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        with _mapped(self._name):
            await self._backend._in_thread(self._file.write, data)

    async def commit(self) -> None:
        """Check the condition, then close the file and move it into place."""
        if self._create or self._if_match is not None:
            await self._backend.look_first(self._name, create=self._create, if_match=self._if_match)
        with _mapped(self._name):
            await self._backend._in_thread(self._file.close)
        if self._temporary is not None:
            await self._backend.publish(self._temporary, self._name)

    def forget(self) -> None:
        """Keep the finaliser of the file from committing it."""
        if self._temporary is None:
            with suppress(AttributeError):
                self._file.closed = True

    async def abort(self) -> None:
        """Discard what was written; a file that is only dropped would be committed by its finaliser."""
        with suppress(Exception):
            await self._backend._in_thread(self._file.discard)
        if self._temporary is None:
            self.forget()
        else:
            with suppress(Exception):
                await self._backend._in_thread(self._file.close)
            await self._backend.remove(self._temporary)

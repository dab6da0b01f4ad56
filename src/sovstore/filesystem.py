"""``sov://STORE/PATH``: the fsspec filesystem of a sealed store.

Paths are relative to the store. Listings cost what the host's own listing costs; sizes are plaintext sizes. Nothing is
cached on disk, and the options hold references only: a store's name, and the paths of a configuration and of a
recovery key.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import getpass
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

from fsspec.asyn import AsyncFileSystem, get_loop, sync
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike, stringify_path

from sovstore import config as configuration
from sovstore.backends.base import Stat
from sovstore.errors import (
    ConfigError,
    IsFolderError,
    ObjectExistsError,
    ObjectNotFoundError,
    PathError,
    SovstoreError,
    StoreError,
    UnsupportedError,
)
from sovstore.files import AsyncReader, AsyncWriter, CompressedFile, SovReader, SovWriter, TextFile, check_mode
from sovstore.format.cobblestone import CHUNK
from sovstore.format.recovery import RecoveryKey
from sovstore.keysets import read_file
from sovstore.objects import BLOCK, ObjectReader, ObjectWriter
from sovstore.store import Entry, Store

T = TypeVar("T")
_SCHEME = "sov://"
#: Ranges of one object that are nearer than this are fetched by one request.
_GAP = 4 * CHUNK
#: Objects handled at a time by calls on many; fsspec's own default grows with the limit of open files.
_BATCH = 32
_surroundings: contextvars.ContextVar[str] = contextvars.ContextVar("surroundings", default="")


class _Surroundings:
    """Class attribute that fsspec mixes into the identity of an instance: the configuration as it is now."""

    def __get__(self, instance: object, owner: type) -> str:
        return _surroundings.get()


class _Configured(type(AsyncFileSystem)):  # type: ignore[misc]  # fsspec has no types
    """Lets a cached instance be reused only while the configuration that it was made from has not changed."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # as fsspec
        # Absolute, since a pickle may be opened by a process with another working folder.
        for option in ("config", "recovery_key"):
            if kwargs.get(option) is not None:
                kwargs[option] = os.path.abspath(os.path.expanduser(os.fspath(kwargs[option])))
        token = _surroundings.set(_fingerprint(kwargs.get("config")))
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _surroundings.reset(token)


def _fingerprint(config: str | None) -> str:
    path = configuration.find(config)
    status = path.stat() if path else None
    seen = (str(path), status and (status.st_mtime_ns, status.st_size, status.st_ino))
    overrides = sorted(item for item in os.environ.items() if item[0].startswith("SOVSTORE_STORES__"))
    # A digest, since the values of the environment must not stand in a token.
    return hashlib.sha256(repr((seen, overrides)).encode()).hexdigest()


class SovFileSystem(AsyncFileSystem, metaclass=_Configured):  # type: ignore[misc]  # fsspec has no types
    """One sealed store as a filesystem, for sync and async use.

    Parameters
    ----------
    store : str
        Name of the store in the configuration.
    config : path, optional
        Configuration file; ``SOVSTORE_CONFIG``, ``./sovstore.toml`` or the user's by default.
    recovery_key : path, optional
        File of a recovery key to open the store with, instead of its KEK; read-only then.
    asynchronous : bool
        Whether the coroutines are awaited by the caller, in the caller's event loop.

    Raises
    ------
    ConfigError
        When the configuration is wrong. No request is made before the first use.
    """

    protocol = "sov"
    root_marker = ""
    _extra_tokenize_attributes = ("_surroundings",)
    _surroundings = _Surroundings()
    _pid: int

    def __init__(
        self,
        store: str | None = None,
        *,
        config: str | None = None,
        recovery_key: str | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **kwargs: Any,  # fsspec's own options
    ) -> None:
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size or _BATCH, **kwargs)
        loaded = configuration.load(config)
        if store is None:
            hint = f"write store='NAME' or sov://NAME/…; configured: {', '.join(loaded.stores) or 'none'}"
            raise ConfigError("sov: which store?", path="store", hint=hint)
        described = loaded.store(store)
        key = None
        if recovery_key is not None:
            key = RecoveryKey.load(read_file(str(Path(recovery_key).expanduser())), what=str(recovery_key))
        ask = getpass.getpass if sys.stdin is not None and sys.stdin.isatty() else None
        self.store_name = store
        self.store = Store(described, configuration.access(described, ask), key)
        # fsspec strips by instance and by class; only the instance can tell that a URL is of another store.
        self._strip_protocol = self._strip_own  # type: ignore[method-assign]

    # Paths and URLs

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:  # a path or a list of them
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return _split(path)[1]

    def _strip_own(self, path: Any) -> Any:  # a path or a list of them
        if isinstance(path, list):
            return [self._strip_own(p) for p in path]
        store, plain = _split(path)
        if store not in (None, self.store_name):
            hint = f"open it with fsspec.filesystem('sov', store={store!r})"
            raise PathError(f"{path}: is in another store than {self.store_name!r}", path=plain, hint=hint)
        return plain

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        store = _split(path)[0]
        return {"store": store} if store else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"{_SCHEME}{self.store_name}/{self._strip_own(name)}"

    # Threads, loops, processes

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that sync calls run in; a forked child gets its own."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loop = None if self.asynchronous else get_loop()
        found: asyncio.AbstractEventLoop | None = self._loop
        return found

    def _sync(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        result: T = sync(self.loop, function, *args)
        return result

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        loop = self.loop
        assert loop is not None  # noqa: S101  # only the files of sync instances call this
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    async def close(self) -> None:
        """Forget the keys and close the connections of the running loop; the next use opens the store again."""
        await self.store.close()

    async def __aenter__(self) -> SovFileSystem:
        """Return the filesystem itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the connections of the running loop."""
        await self.close()

    # Looking

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
            if (withdirs or not entry.folder) and (maxdepth is None or inner.count("/") < maxdepth):
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
        found = await self._find(path, maxdepth=maxdepth, detail=True, **kwargs)
        sizes = {name: info["size"] or 0 for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

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

    # Reading

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        whole = start in (None, 0) and end is None
        reader = await self.store.reader(self._strip_own(path), whole=whole)
        return await reader.read(*reader.clamp(start, end))

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
        temporary = target.with_name(f".{target.name[:50]}.{uuid4().hex[:8]}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            async with self.store.transfer(reader.plain_size):
                with temporary.open("xb") as file:
                    await _pour(reader, file, callback)
            temporary.replace(target)
        except SovstoreError:
            # Some of ours are an `OSError` too, and are about the store, not about this machine.
            raise
        except OSError as exc:
            raise _local_error(exc, target) from exc
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    # Writing

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        await self.store.put(self._strip_own(path), value, create=mode == "create")

    async def _put_file(
        self, lpath: str, rpath: str, mode: str = "overwrite", callback: Any = DEFAULT_CALLBACK, **kwargs: Any
    ) -> None:
        rpath = self._strip_own(rpath)
        if os.path.isdir(lpath):
            await self._makedirs(rpath, exist_ok=True)
            return
        with await asyncio.to_thread(open, lpath, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            callback.set_size(size)
            async with self.store.transfer(size):
                await self._pour_in(file, size, await self.store.writer(rpath, create=mode == "create"), callback)

    async def _pour_in(self, file: Any, size: int, writer: ObjectWriter, callback: Any) -> None:
        """Seal a local file as an object: one block is on its way while the next is read and sealed in a thread."""
        block = bytearray(max(1, min(BLOCK, size)))

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
        if mode == "rb":
            reader = self._sync(self.store.reader, path)
            return SovReader(self, reader, cache_type, block_size=block_size, cache_options=cache_options)
        return SovWriter(self, self._sync(self._new_writer, path, mode), mode)

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

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> AsyncReader | AsyncWriter:
        """Open an object for ``await``: read in order (``rb``), or written (``wb``, ``xb``)."""
        path = self._strip_own(path)
        check_mode(path, mode)
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

    async def _mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        pairs = _Pairs(self)
        await AsyncFileSystem._copy(pairs, path1, path2, recursive=recursive, maxdepth=maxdepth, on_error="raise")
        folders = []
        for source, target in pairs.found:
            if await self._isdir(source):
                await self._makedirs(target, exist_ok=True)
                folders.append(await self.store.stat(source))
            else:
                await self.store.move(source, target)
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
        found: dict[str, dict[str, Any]] = {}
        for one in [path] if isinstance(path, str | os.PathLike) else path:
            plain = self._strip_own(one)
            if any(sign in plain for sign in "*?["):
                matches = await self._glob(plain, detail=True)
            else:
                matches = {plain: await self._info(plain)}
            for name, info in matches.items():
                if info["type"] != "directory":
                    found[name] = info
                elif recursive:
                    found.update(await self._find(name, maxdepth=maxdepth, withdirs=True, detail=True))
                    found.setdefault(name, info)
                else:
                    raise IsFolderError(
                        f"{name}: is a folder", path=name, hint="use recursive=True (-r) to delete all of it"
                    )
            if not matches:
                raise ObjectNotFoundError(f"{plain}: no such object in store {self.store_name!r}", path=plain)
        found.pop("", None)
        entries = [await self._entry_of(name, info) for name, info in found.items()]
        await self.store.delete(entries)

    async def _entry_of(self, name: str, info: dict[str, Any]) -> Entry:
        wire = info.get("wire_name") or await self.store.name(name)
        folder = info["type"] == "directory"
        return Entry(name, wire, info["size"], 0, folder, False, None, None, None)

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

    # What a sealed store does not have

    @property
    def transaction(self) -> NoReturn:
        """Refused: every write is complete or absent by itself, and several cannot be made one at any host."""
        raise _no_transactions()

    def start_transaction(self) -> NoReturn:
        """Refused, as `transaction`."""
        raise _no_transactions()

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> NoReturn:
        """Refused: whoever followed the link would get ciphertext."""
        raise UnsupportedError(f"{path}: a signed link would only give ciphertext", path=path, hint="use get")


def _no_transactions() -> UnsupportedError:
    hint = "write to new paths, then rename; each write is atomic by itself"
    return UnsupportedError("sov: transactions are not supported", path="transaction", hint=hint)


class _Pairs:
    """Stands in for a filesystem while fsspec works out which source goes where, and copies nothing."""

    def __init__(self, fs: SovFileSystem) -> None:
        self._fs = fs
        self.batch_size = fs.batch_size
        self.found: list[tuple[str, str]] = []

    async def _cp_file(self, source: str, target: str) -> None:
        self.found.append((self._fs._strip_own(source), self._fs._strip_own(target)))

    def __getattr__(self, name: str) -> Any:  # whatever fsspec asks for
        return getattr(self._fs, name)


def _split(path: Any) -> tuple[str | None, str]:  # whatever fsspec accepts as a path
    """Return the store of a URL, None for a plain path, and the path in it."""
    text = stringify_path(path)
    store = None
    if text.startswith(_SCHEME):
        store, _, text = text.removeprefix(_SCHEME).partition("/")
    # One slash at either end is habit; more would be empty segments, which the format refuses.
    return store, text.removeprefix("/").removesuffix("/")


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


def _folder(path: str) -> dict[str, Any]:
    return _info_of(Entry(path, "", 0, 0, True, False, None, None, None))


def _unique(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return one entry per path; a lying host may list a name twice."""
    return {info["name"]: info for info in found}


def _add_parents(found: dict[str, dict[str, Any]], base: str, inner: str, maxdepth: int | None) -> None:
    """Add the folders that an object implies: most hosts do not list them."""
    parts = inner.split("/")[:-1]
    for depth in range(1, len(parts) + 1 if maxdepth is None else min(len(parts), maxdepth) + 1):
        path = base + "/".join(parts[:depth])
        found.setdefault(path, _folder(path))


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
    results = []
    for start, end in ranges:
        home = next((i for i, (a, b) in enumerate(merged) if a <= start and end <= b), None)
        results.append(b"" if home is None else pieces[home][start - merged[home][0] : end - merged[home][0]])
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


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def open_store(
    store: str,
    *,
    config: str | os.PathLike[str] | None = None,
    recovery_key: str | os.PathLike[str] | None = None,
) -> SovFileSystem:
    """Return the filesystem of a store, opened: its keyset is read and its KEK is asked, now.

    Parameters
    ----------
    store : str
        Name of the store in the configuration.
    config : path, optional
        Configuration file.
    recovery_key : path, optional
        File of a recovery key to open the store with.

    Raises
    ------
    ConfigError, ObjectNotFoundError, FormatError, IntegrityError, KMSError
        When it cannot be opened; the hint says what to do.
    """
    fs = SovFileSystem(store, config=_text(config), recovery_key=_text(recovery_key))
    fs._sync(fs.store.keyset)
    return fs

"""An open store: a backend and a keyset. Seals, opens, lists, copies and renames objects by their paths."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from sovstore.backends.base import Backend, Stat, Upload
from sovstore.backends.registry import open_backend
from sovstore.config import StoreConfig
from sovstore.errors import (
    FormatError,
    IntegrityError,
    IsFolderError,
    KeyDeniedError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
    named,
)
from sovstore.format import body
from sovstore.format.header import HEADER, KEY, header_key_id, open_header, seal_header
from sovstore.format.keyset import Keyset, ParsedKeyset, parse
from sovstore.format.names import RESERVED, Names
from sovstore.format.recovery import RecoveryKey
from sovstore.held_keys import HeldKeys, Keys
from sovstore.keyset_changes import Change
from sovstore.keysets import read_only
from sovstore.kms.base import Access
from sovstore.listing import Decoder
from sovstore.object_reader import Ends, ObjectReader
from sovstore.object_writer import ObjectWriter
from sovstore.pins import Pins
from sovstore.secret import Secret

_log = logging.getLogger("sovstore")


#: Objects larger than this take turns when many are moved, so that memory stays bounded; each has parallel requests.
_LARGE = 4 * 2**20
_LARGE_AT_ONCE = 2
#: Entries of a listing after which it is looked whether the keys may still be used.
_CHECKED = 100
#: Foreign paths that are remembered, to name them as such when they are opened.
_MOST_FOREIGN = 1000
#: Seconds that removing what killed writers left may hold up the first write.
_SWEEP_S = 20


@dataclass(frozen=True)
class Entry:
    """One object or folder as a user sees it.

    Parameters
    ----------
    path : str
        Plaintext path; of a foreign name, the name at the host with its special characters escaped.
    name : str
        Name at the host.
    size : int or None
        Plaintext bytes, computed from what the host lists; 0 for a folder, None for a foreign object.
    wire_size : int
        Bytes at the host.
    folder, foreign : bool
        Foreign: sovstore did not write it, so it is shown and never opened.
    etag : str or None
        The host's mark of this version of the object.
    modified, created : datetime or None
        As the host says, in UTC.
    """

    path: str
    name: str
    size: int | None
    wire_size: int
    folder: bool
    foreign: bool
    etag: str | None
    modified: datetime | None
    created: datetime | None


@dataclass
class _PerLoop:
    """What belongs to one event loop.

    Connections, a lock that keeps two tasks from asking the KMS at once, and what the next open needs not fetch.
    """

    backend: Backend
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    swept: bool = False
    ends: Ends = field(default_factory=Ends)
    large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LARGE_AT_ONCE))


class Store:
    """One store. Usable from several threads and event loops, and after a fork.

    Parameters
    ----------
    config : StoreConfig
        Where it lies and which KEK opens it.
    access : Access
        How a passphrase is had.
    recovery_key : RecoveryKey, optional
        Open with it instead of the KEK; the store is then read-only.
    """

    def __init__(self, config: StoreConfig, access: Access, recovery_key: RecoveryKey | None = None) -> None:
        self.config = config
        self.access = access
        self._held = HeldKeys(config, access, recovery_key)
        self._pins: Pins | None = None
        self._foreign: set[str] = set()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _PerLoop] = weakref.WeakKeyDictionary()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        """Return the name and where it lies."""
        return f"<store {self.config.name!r} at {self.config.provider} {self.config.root!r}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: it holds keys. Pickle the filesystem, which opens it again."""
        raise TypeError("an open store cannot be pickled; it holds keys")

    # Opening

    def _per_loop(self) -> _PerLoop:
        if self._pid != os.getpid():
            # Connections and locks of the parent are not ours; its keys are the same.
            self._loops, self._pid = weakref.WeakKeyDictionary(), os.getpid()
        loop = asyncio.get_running_loop()
        state = self._loops.get(loop)
        if state is None:
            # Locks that were waited for hold on to their loop, so those of closed loops would never be forgotten.
            for closed in [known for known in list(self._loops) if known.is_closed()]:
                self._loops.pop(closed, None)
            state = self._loops[loop] = _PerLoop(open_backend(self.config.place))
        return state

    @property
    def backend(self) -> Backend:
        """The backend of the running event loop."""
        return self._per_loop().backend

    def transfer(self, size: int) -> AbstractAsyncContextManager[Any]:
        """Return what to hold while an object of `size` plaintext bytes is moved from or to a local file."""
        return self._per_loop().large if size > _LARGE else nullcontext()

    async def keyset(self, *, reload: bool = False) -> Keyset:
        """Return the keyset. One call to the KMS opens it, and one more whenever `StoreConfig.cache` has passed.

        Parameters
        ----------
        reload : bool
            Read it again from the host.

        Raises
        ------
        ObjectNotFoundError, FormatError, IntegrityError, KMSError, PolicyError, ConfigError
            As `sovstore.keysets.unlock` and `fetch`.
        """
        return (await self._held.get(self.backend, self._per_loop().lock, reload=reload)).keyset

    async def opened_by(self) -> ParsedKeyset:
        """Return the keyset as the host has it, with the KEKs and recovery keys that open it; it is authentic.

        Raises
        ------
        ObjectNotFoundError, FormatError, IntegrityError, KMSError, PolicyError, ConfigError
            As `keyset`.
        """
        return parse((await self._keys()).raw)

    async def _keys(self) -> Keys:
        return await self._held.get(self.backend, self._per_loop().lock)

    async def _names(self) -> Names:
        return (await self._keys()).names

    async def change_keyset(
        self, change: Change, *, config: StoreConfig | None = None, make: str | None = None
    ) -> Keyset:
        """Change the keyset, as `sovstore.keyset_changes.make`, and use the new one from now on.

        Parameters
        ----------
        config : StoreConfig, optional
            The configuration from now on, where it names other KEKs or recipients.
        make : str, optional
            URI of a KEK that is made if it is one of this machine and there is none.
        """
        self._refuse_recovery()
        config = config or self.config
        keyset = await self._held.change(self.backend, config, change, make=make)
        self.config = config
        return keyset

    async def close(self) -> None:
        """Forget the keys and close the connections of this loop and to the KMS."""
        await asyncio.to_thread(self._held.close)
        if self._pins is not None:
            self._pins.close()
        state = self._loops.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.backend.close()

    async def name(self, path: str) -> str:
        """Return the name at the host of a path; '' is the root.

        Raises
        ------
        PathError
            When the format does not allow the path.
        """
        return (await self._names()).encode(path)

    async def path(self, name: str) -> str:
        """Return the path of a name at the host.

        Raises
        ------
        FormatError, IntegrityError
            When the store did not make it.
        """
        names, path = await self._names(), ""
        for segment in name.split("/") if name else ():
            decoded = names.decode_segment(path, segment)
            path = f"{path}/{decoded}" if path else decoded
        return path

    async def _dek(self, path: str, header: bytes, *, what: str | None = None) -> Secret:
        """Return the DEK of an object, after reloading the keyset once when its epoch is unknown."""
        what = what or path
        key_id = header_key_id(header, what=what)
        keyset = await self.keyset()
        epoch = keyset.epoch(key_id)
        if epoch is None:
            keyset = await self.keyset(reload=True)
            epoch = keyset.epoch(key_id)
        if epoch is None or epoch.key is None:
            state = "unknown to this store" if epoch is None else "destroyed"
            hint = (
                "it belongs to another store, or was altered" if epoch is None else "its key was destroyed on purpose"
            )
            raise IntegrityError(f"{what}: sealed under an epoch that is {state}", path=what, hint=hint)
        return open_header(epoch.key, keyset.store_id, path, header, what=what)

    # Reading

    async def reader(self, path: str, *, whole: bool = False, in_turn: bool = False) -> ObjectReader:
        """Return the reader of an object; its header and its length are authentic.

        Parameters
        ----------
        whole : bool
            The object will be read whole; saves a request when it is small.
        in_turn : bool
            Its ETag will be used to copy it, as `ObjectReader.open` says.

        Raises
        ------
        ObjectNotFoundError, IsFolderError, FormatError, IntegrityError
            When it is not there, or not authentic.
        """
        since = await self._moment()
        reader = await self._open(path, whole=whole, in_turn=in_turn)
        if self._pins is not None:
            await asyncio.to_thread(self._pins.check, path, reader.version, since)
        return reader

    async def accept(self, path: str) -> None:
        """Take the version that the host serves now for the newest one, where ``freshness`` is ``pinned``.

        Raises
        ------
        ObjectNotFoundError, IsFolderError, FormatError, IntegrityError
            As `reader`: it is authentic all the same.
        """
        await self._moment()
        reader = await self._open(path)
        if self._pins is not None:
            await asyncio.to_thread(self._pins.accept, path, reader.version)

    async def _moment(self) -> int:
        """Return the moment before a request, where versions are pinned: what is noted later is no replay."""
        if self.config.freshness != "pinned":
            return 0
        if self._pins is None:
            self._pins = Pins(await self.keyset(), self.config.name)
        return await asyncio.to_thread(self._pins.now)

    async def _open(self, path: str, *, whole: bool = False, in_turn: bool = False) -> ObjectReader:
        name = await self.name(path)
        if not name:
            raise IsFolderError(f"{self.config.name}: the root is a folder", path=path)
        try:
            # A file of this machine is read as fast as what is kept of it would be found.
            state = self._per_loop()
            ends = None if state.backend.blocking else state.ends
            reader = await ObjectReader.open(
                state.backend, name, path, self._dek, whole=whole, in_turn=in_turn, ends=ends
            )
        except ObjectNotFoundError as exc:
            raise await self._missing(path) from exc
        # A handle stays open for longer than the keys of its store may be used: a revoked KEK stops it too.
        reader.may_go_on, reader.may_go_on_now = self.keyset, self._held.are_young
        return reader

    async def reader_outside(self, backend: Backend, name: str, path: str, *, what: str) -> ObjectReader:
        """Return the reader of what `writer_outside` wrote; its header and its length are authentic.

        Parameters
        ----------
        backend, name : Backend, str
            Where it is kept.
        path : str
            The path that it was sealed for.
        what : str
            What it is, for error messages.

        Raises
        ------
        ObjectNotFoundError, IsFolderError, FormatError, IntegrityError
            When it is not there, or not authentic.
        """

        async def unwrap(_: str, header: bytes) -> Secret:
            return await self._dek(path, header, what=what)

        reader = await ObjectReader.open(backend, name, what, unwrap)
        reader.may_go_on, reader.may_go_on_now = self.keyset, self._held.are_young
        return reader

    async def _missing(self, path: str) -> StoreError | FormatError:
        """Return the error for a path that is not there: maybe it is a folder, or a foreign name from a listing."""
        with suppress(ObjectNotFoundError):
            if (await self.stat(path)).folder:
                return IsFolderError(f"{path}: is a folder", path=path)
        # Only what a listing showed: asking the host for a plaintext name would tell it that name.
        if path in self._foreign:
            return FormatError(f"{path}: not an object of this store: its name does not decrypt", path=path)
        return ObjectNotFoundError(f"{path}: no such object in store {self.config.name!r}", path=path)

    async def stat(self, path: str) -> Entry:
        """Return what is known of an object or folder without opening it: one request.

        Raises
        ------
        ObjectNotFoundError
            When there is neither.
        """
        name = await self.name(path)
        if not name:
            return self._entry(path, Stat("", 0, folder=True))
        try:
            with named(path, name):
                return self._entry(path, await self.backend.stat(name))
        except ObjectNotFoundError as exc:
            raise ObjectNotFoundError(f"{path}: no such object in store {self.config.name!r}", path=path) from exc

    def _entry(self, path: str, stat: Stat, *, foreign: bool = False) -> Entry:
        size: int | None = None
        if stat.folder:
            size = 0
        elif not foreign:
            try:
                size = body.plain_size(stat.size)
            except FormatError:
                foreign = True
        return Entry(path, stat.name, size, stat.size, stat.folder, foreign, stat.etag, stat.modified, stat.created)

    async def list(self, path: str, *, recursive: bool = False) -> AsyncIterator[Entry]:
        """Yield what is in a folder, or below it; nothing when there is no such folder.

        A name that does not decrypt is yielded as foreign and logged, never skipped.

        Raises
        ------
        IntegrityError
            When the host lists what is not in the folder, or would go on for ever.
        """
        names = await self._names()
        folder = names.encode(path)
        decoder = Decoder(names, folder, path)
        count = 0
        async for stat in self.backend.list(folder, recursive=recursive):
            if (count := count + 1) % _CHECKED == 0:
                # A long listing does not outlast the right to open the store.
                await self._names()
            # The keyset and unfinished writes are not objects; in any case, since some file systems fold it.
            if stat.name.split("/", 1)[0].lower() == RESERVED:
                continue
            inner = stat.name.removeprefix(f"{folder}/") if folder else stat.name
            if (folder and inner == stat.name) or (not recursive and "/" in inner):
                raise IntegrityError(f"{path}: the host listed {stat.name!r}, which is not in this folder", path=path)
            if not decoder.is_new(stat.name, folder=stat.folder):
                continue
            plain, foreign = decoder.decode(stat.name)
            if foreign and len(self._foreign) < _MOST_FOREIGN:
                self._foreign.add(plain)
            yield self._entry(plain, stat, foreign=foreign)

    async def made_name(self, entry: Entry) -> bool:
        """Return whether the store made the name of an entry: of a foreign one, whether that is for its size alone.

        Such an object was damaged, and is refused when it is opened; anything else is somebody else's.
        """
        if not entry.foreign:
            return True
        try:
            return await self.name(entry.path) == entry.name
        except SovstoreError:
            return False

    # Writing

    async def writer(
        self, path: str, *, create: bool = False, size: int | None = None, look_first: bool = True
    ) -> ObjectWriter:
        """Return a write to `path` under a fresh DEK; nothing is visible before its `commit`.

        Parameters
        ----------
        create : bool
            Fail when there is an object already.
        size : int, optional
            Plaintext bytes that will be written, where they are known.
        look_first : bool
            With `create`, look before anything is sent, for a folder too, and not only when the object is committed.

        Raises
        ------
        ObjectExistsError, IsFolderError, NotFolderError
            When something stands in the way.
        KeyDeniedError
            When the store was opened with a recovery key.
        """
        name = await self._writable_name(path)
        if create and look_first and await self._exists(name):
            raise ObjectExistsError(f"{path}: exists already", path=path)
        dek = Secret(os.urandom(KEY))
        header = await self._header(path, dek)
        state = self._per_loop()
        if not state.swept:
            state.swept = True
            await self._sweep(state.backend)
        with named(path, name):
            wire_size = None if size is None else body.wire_size(size)
            upload = await state.backend.upload(name, create=create, size=wire_size)
        writer = ObjectWriter(upload, path, name, header, dek)
        # A write may take longer than keys are held, and than anybody waited before an epoch was destroyed.
        key_id, since = header_key_id(header, what=path), 0

        async def may_end() -> None:
            nonlocal since
            await self._check_epoch(path, key_id)
            since = await self._moment()

        async def ended(version: bytes) -> None:
            if self._pins is not None:
                await asyncio.to_thread(self._pins.wrote, path, version, since)

        writer.may_end, writer.ended = may_end, ended
        return writer

    async def writer_outside(self, upload: Upload, path: str, *, what: str) -> ObjectWriter:
        """Return a write of something that is sealed for the store and kept outside of it, such as a manifest.

        Parameters
        ----------
        upload : Upload
            Where the bytes go.
        path : str
            The path that it is sealed for: a reserved one, which no object has.
        what : str
            What it is, for error messages.

        Raises
        ------
        KeyDeniedError
            When the store is read-only: a reader's keyset may be an old one, and nothing is sealed under its epochs.
        """
        await self._refuse_read_only()
        dek = Secret(os.urandom(KEY))
        header = await self._header(path, dek)
        writer = ObjectWriter(upload, what, what, header, dek)
        writer.may_end = partial(self._check_epoch, what, header_key_id(header, what=what))
        return writer

    async def _check_epoch(self, path: str, key_id: bytes) -> None:
        """Refuse to publish what is sealed under an epoch that was destroyed meanwhile."""
        keyset = await self.keyset()
        if keyset.primary.id != key_id:
            keyset = await self.keyset(reload=True)
        epoch = keyset.epoch(key_id)
        if epoch is None or epoch.key is None:
            hint = "write it again: it is then sealed under the newest epoch"
            raise StoreError(f"{path}: its epoch was destroyed while it was written", path=path, hint=hint)

    async def _sweep(self, backend: Backend) -> None:
        try:
            # A host with a long list of them must not hold up a write.
            async with asyncio.timeout(_SWEEP_S):
                swept = await backend.sweep()
            if swept:
                _log.info("%s: %d unfinished writes of killed processes were removed", self.config.name, swept)
        except TimeoutError:
            _log.warning("%s: removing unfinished writes takes long; 'sovstore gc' does it", self.config.name)
        except SovstoreError as exc:
            # A client may have the right to write and not to list or delete.
            _log.warning("%s: unfinished writes cannot be removed: %s", self.config.name, exc.message)

    async def _header(self, path: str, dek: Secret) -> bytes:
        keyset = await self.keyset()
        primary = keyset.primary
        assert primary.key is not None  # noqa: S101  # nosec B101  # `parse` accepts no primary without a key
        return seal_header(primary.key, keyset.store_id, primary.id, path, dek)

    async def _writable_name(self, path: str) -> str:
        name = await self.name(path)
        await self._refuse_read_only()
        if not name:
            raise IsFolderError(f"{self.config.name}: the root is a folder", path=path)
        return name

    async def _refuse_read_only(self) -> None:
        self._refuse_recovery()
        if (await self._keys()).read_only:
            raise read_only(self.config)

    def _refuse_recovery(self) -> None:
        if self._held.recovery_key is not None:
            hint = "read what you need and write it to a store that a KEK opens"
            message = f"store {self.config.name!r}: is read-only under a recovery key"
            raise KeyDeniedError(message, path=self.config.name, hint=hint)

    async def _exists(self, name: str) -> bool:
        try:
            await self.backend.stat(name)
        except ObjectNotFoundError:
            return False
        return True

    async def put(self, path: str, value: bytes | bytearray | memoryview, *, create: bool = False) -> None:
        """Seal bytes as the object at `path`."""
        writer = await self.writer(path, create=create, size=memoryview(value).nbytes)
        try:
            await writer.write(value)
            await writer.commit()
        except BaseException:
            await writer.abort()
            raise

    async def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store: a new header, the body as it is.

        Raises
        ------
        ObjectNotFoundError, FormatError, IntegrityError
            When the source is not there or not authentic.
        """
        target_name = await self._writable_name(target)
        reader = await self.reader(source, in_turn=True)
        await self._copy(reader, target, target_name)

    async def _copy(self, reader: ObjectReader, target: str, target_name: str) -> None:
        header = await self._header(target, await self._dek(reader.path, reader.header))
        since = await self._moment()
        with named(target, target_name), named(reader.path, reader.stat.name):
            await self.backend.copy(reader.stat.name, target_name, head=header, etag=reader.stat.etag)
        if self._pins is not None:
            await asyncio.to_thread(self._pins.wrote, target, reader.version, since)

    async def move(self, source: str, target: str) -> None:
        """Rename an object: a new header at the new name, checked, before the old name is deleted."""
        target_name = await self._writable_name(target)
        reader = await self.reader(source, in_turn=True)
        if source == target:
            return
        await self._copy(reader, target, target_name)
        await self.reader(target)
        name, etag, since = reader.stat.name, reader.stat.etag, await self._moment()
        try:
            with named(source, name):
                await (self.backend.delete([name]) if etag is None else self.backend.delete_match(name, etag))
        except ObjectChangedError as exc:
            hint = "both are kept: the copy at the new path, and what was written to the old one meanwhile"
            raise StoreError(f"{source}: changed while it was renamed", path=source, hint=hint) from exc
        if self._pins is not None:
            await asyncio.to_thread(self._pins.deleted, [source], since)

    async def key_id(self, entry: Entry) -> bytes:
        """Return the id, 16 bytes, of the epoch that an object says it is sealed under: one small request.

        Raises
        ------
        ObjectNotFoundError, FormatError
            When it is not there, or not an object of a store.
        """
        with named(entry.path, entry.name):
            return header_key_id(await self.backend.read(entry.name, 0, HEADER), what=entry.path)

    async def rewrap(self, entry: Entry) -> bool:
        """Move an object to the primary epoch, by its header alone; return whether it was under another one.

        Raises
        ------
        ObjectNotFoundError, FormatError, IntegrityError
            When it is not there or not authentic.
        ObjectChangedError
            When somebody else wrote it meanwhile; it is then under the primary epoch of that client.
        """
        name = await self._writable_name(entry.path)
        if await self.key_id(entry) == (await self.keyset()).primary.id:
            return False
        await self._copy(await self.reader(entry.path, in_turn=True), entry.path, name)
        return True

    async def delete(self, entries: Iterable[Entry]) -> None:
        """Delete objects, then folders, deepest first."""
        await self._writable_name("-")
        chosen = list(entries)
        await self._delete([(e.path, e.name) for e in chosen if not e.folder])
        for folder in sorted((e for e in chosen if e.folder), key=lambda entry: -entry.name.count("/")):
            with named(folder.path, f"{folder.name}/"):
                await self.backend.delete([f"{folder.name}/"])

    async def _delete(self, objects: Sequence[tuple[str, str]]) -> None:
        """Delete objects by their paths and names."""
        since = await self._moment()
        await self.backend.delete([name for _, name in objects])
        if self._pins is not None:
            await asyncio.to_thread(self._pins.deleted, [path for path, _ in objects], since)

    async def make_folder(self, path: str) -> None:
        """Make a folder where the host has real ones."""
        name = await self._writable_name(path)
        with named(path, name):
            await self.backend.make_folder(name)

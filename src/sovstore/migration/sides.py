"""What a migration reads from and writes to: a store with its keys, a store without them, a place of plaintext.

Each is one class with the same calls; `sovstore.migration.moving` knows no other difference between them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from sovstore.backends.base import Backend, Place
from sovstore.errors import IsFolderError, ObjectNotFoundError
from sovstore.object_reader import ObjectReader
from sovstore.object_writer import BLOCK, ObjectWriter
from sovstore.store import Entry, Store

#: Bytes of an object, in order; one is valid until the next is asked for.
Pieces = AsyncIterator[memoryview | bytes | bytearray]
#: Below it, a block is sealed faster than another thread is woken.
_FEW = 64 * 2**10
#: Objects up to this size are sent before anybody looks whether there is one already: the host says so then.
SMALL = 2**20


@dataclass(frozen=True)
class Found:
    """One object as a listing shows it.

    Parameters
    ----------
    path : str
        Below the folder that is migrated; '' when that is an object itself.
    size : int
        Bytes that are moved: of plaintext, or of ciphertext in a byte copy.
    etag : str or None
        The host's mark of this version.
    modified : datetime or None
        As the host says, in UTC.
    foreign : str or None
        Why it cannot be moved.
    """

    path: str
    size: int
    etag: str | None
    modified: datetime | None
    foreign: str | None = None

    @property
    def mark(self) -> str:
        """What changes whenever the object does, as far as its host says."""
        return self.etag or f"{self.size}@{self.modified.isoformat() if self.modified else ''}"


class Source(ABC):
    """One object that is being read.

    Parameters
    ----------
    found : Found
        What is being read; settled when its first bytes are there.
    """

    found: Found

    @property
    @abstractmethod
    def mark(self) -> str:
        """What no other version of it has."""

    @abstractmethod
    def stream(self, start: int = 0) -> Pieces:
        """Yield its bytes from `start` on, in order; a piece is valid until the next is asked for.

        Raises
        ------
        ObjectChangedError
            When it is no longer the version that was opened.
        """


class Sink(ABC):
    """One object that is being written."""

    #: Whether the host copied it, and nothing passed through this process; settled when `pour` returns.
    at_host = False
    #: Called with what a later process finds the write by, where one can go on with it.
    began: Callable[[str], None] | None = None
    #: Told of bytes that the host has copied.
    told: Callable[[int], None]

    @abstractmethod
    async def pour(self, pieces: Pieces) -> int:
        """Write all pieces and return how many bytes they were; nothing is visible before `commit`."""

    @abstractmethod
    def version(self) -> bytes | None:
        """Return what tells this write from every other one, before it is visible; None where nothing does."""

    @abstractmethod
    async def commit(self) -> None:
        """Make the object visible, whole."""

    @abstractmethod
    async def abort(self) -> None:
        """Forget the write. May be called at any time, also twice."""


class Side(ABC):
    """One end of a migration: a folder of a store, or of a place of plaintext.

    Parameters
    ----------
    url : str
        As it was given.
    place : Place
        Where it lies.
    folder : str
        What is migrated below its root; '' is all.
    store_id : str
        Of a store, as its configuration has it.
    """

    #: Whether the host reads what lies there.
    readable = False

    def __init__(self, url: str, place: Place, folder: str, store_id: str = "") -> None:
        self.url, self.place, self.folder, self.store_id = url, place, folder, store_id

    @property
    def identity(self) -> str:
        """What this end is, in one line that does not depend on its name in the configuration."""
        place = self.place
        where = (place.provider.driver, place.protocol, place.endpoint, place.account, place.root, self.folder)
        return "|".join(part or "" for part in (*where, self.store_id))

    @property
    @abstractmethod
    def backend(self) -> Backend:
        """The backend of the running loop."""

    async def check(self) -> None:  # noqa: B027  # most are what they are
        """Refuse an end that is not what it is taken for; one or two small requests."""

    @abstractmethod
    def list(self) -> AsyncIterator[Found]:
        """Yield all objects below the folder."""

    @abstractmethod
    async def open(self, path: str, expected: Found | None = None) -> Source:
        """Return an object to be read.

        Parameters
        ----------
        expected : Found, optional
            What a listing said of it: saves a request where the host keeps conditions.
        """

    @abstractmethod
    async def create(self, path: str, source: Source, *, replace: bool) -> Sink:
        """Return a write of what a source has; without `replace` it fails when there is an object already."""

    async def resume(  # most cannot
        self,
        path: str,  # noqa: ARG002
        source: Source,  # noqa: ARG002
        token: str,  # noqa: ARG002
        *,
        replace: bool,  # noqa: ARG002
    ) -> tuple[Sink, int] | None:
        """Return a write that a process which is gone had begun of the same version, and the bytes that are there."""
        return None

    @abstractmethod
    async def find(self, path: str) -> Found | None:
        """Return what is at a path now; None when there is nothing."""

    @abstractmethod
    async def version(self, path: str) -> bytes | None:
        """Return what tells the version at a path from every other one; None where there is none."""

    @abstractmethod
    async def delete(self, paths: Iterable[str]) -> None:
        """Delete objects."""

    @abstractmethod
    async def name(self, path: str) -> str:
        """Return the name at the host of a path.

        Raises
        ------
        PathError
            When there can be no such object.
        """

    @abstractmethod
    async def path(self, name: str) -> str:
        """Return the path of a name at the host."""

    @abstractmethod
    async def close(self) -> None:
        """Close connections; what this process made for its own use is deleted."""

    def join(self, path: str) -> str:
        """Return a path below the folder as one below the root."""
        return f"{self.folder}/{path}" if self.folder and path else self.folder or path

    def below(self, path: str) -> str:
        """Return a path below the root as one below the folder."""
        return path[len(self.folder) + 1 :] if self.folder else path


class Sealed(Side):
    """A folder of a store that is open.

    Parameters
    ----------
    url : str
        ``sov://STORE/FOLDER``.
    store : Store
        Its keys are used; nothing else opens or seals.
    folder : str
        Path in the store.
    """

    def __init__(self, url: str, store: Store, folder: str) -> None:
        super().__init__(url, store.config.place, folder, store.config.store_id or "")
        self.store = store

    @property
    def backend(self) -> Backend:
        """The backend of the running loop."""
        return self.store.backend

    async def list(self) -> AsyncIterator[Found]:
        """Yield all objects below the folder; names that the store did not make are foreign."""
        async for entry in self.store.list(self.folder, recursive=True):
            if not entry.folder:
                yield self._found(entry)

    def _found(self, entry: Entry) -> Found:
        reason = "not an object of this store" if entry.foreign else None
        return Found(self.below(entry.path), entry.size or 0, entry.etag, entry.modified, reason)

    async def open(self, path: str, expected: Found | None = None) -> Source:
        """Return an object to be read; its header and its length are authentic."""
        whole = expected is not None and expected.size <= _FEW
        reader = await self.store.reader(self.join(path), whole=whole)
        stat = reader.stat
        if stat.etag is None and stat.modified is None and expected is not None and expected.size == reader.plain_size:
            # A small one took one request, which said nothing of it but its bytes.
            return _SealedSource(reader, expected)
        return _SealedSource(reader, Found(path, reader.plain_size, stat.etag, stat.modified))

    async def create(self, path: str, source: Source, *, replace: bool) -> Sink:
        """Return a write under a fresh DEK."""
        size = source.found.size
        look_first = size > SMALL
        writer = await self.store.writer(self.join(path), create=not replace, size=size, look_first=look_first)
        return _SealedSink(writer)

    async def find(self, path: str) -> Found | None:
        """Return what is at a path now, not opened."""
        try:
            entry = await self.store.stat(self.join(path))
        except ObjectNotFoundError:
            return None
        return None if entry.folder else self._found(entry)

    async def version(self, path: str) -> bytes | None:
        """Return the 56 bytes in front of the body, authenticated."""
        try:
            return (await self.store.reader(self.join(path))).version
        except (ObjectNotFoundError, IsFolderError):
            return None

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete objects."""
        await self.store.delete([await self.store.stat(self.join(path)) for path in paths])

    async def name(self, path: str) -> str:
        """Return the name that the store makes of a path."""
        return await self.store.name(self.join(path))

    async def path(self, name: str) -> str:
        """Return the path that the store made a name of."""
        return self.below(await self.store.path(name))

    async def close(self) -> None:
        """Do nothing: the store is its opener's to close."""


class _SealedSource(Source):
    def __init__(self, reader: ObjectReader, found: Found) -> None:
        self._reader, self.found = reader, found

    @property
    def mark(self) -> str:
        # Authentic, where an ETag is what the host says.
        return self._reader.version.hex()

    def stream(self, start: int = 0) -> AsyncIterator[memoryview]:
        return self._reader.stream(start)


class _SealedSink(Sink):
    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer

    async def pour(self, pieces: Pieces) -> int:
        """Seal all pieces: one block is on its way while the next is sealed."""
        total = 0
        sending: asyncio.Future[None] | None = None
        try:
            async for piece in pieces:
                view = memoryview(piece)
                for start in range(0, len(view), BLOCK):
                    block = view[start : start + BLOCK]
                    total += len(block)
                    if len(block) < _FEW:
                        sealed = self._writer.seal(block)
                    else:
                        sealed = await asyncio.to_thread(self._writer.seal, block)
                    if sending is not None:
                        await sending
                    sending = asyncio.ensure_future(self._writer.send(sealed))
            if sending is not None:
                await sending
        except BaseException:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            raise
        await self._writer.finish()
        return total

    def version(self) -> bytes | None:
        return self._writer.version

    async def commit(self) -> None:
        await self._writer.commit()

    async def abort(self) -> None:
        await self._writer.abort()

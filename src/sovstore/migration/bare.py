"""The ends of a migration that use no key: a place of plaintext, and a store as its host has it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import replace as replaced

from sovstore.backends.base import TEMPORARY, Backend, Place, Stat, Upload
from sovstore.errors import (
    ConfigError,
    FormatError,
    IsFolderError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
)
from sovstore.format.body import OVERHEAD, plain_size
from sovstore.format.names import RESERVED
from sovstore.migration.sides import SMALL, Found, Pieces, Side, Sink, Source

#: Bytes of one ranged read of a source, and how many of these are under way at once.
_WINDOW = 4 * 2**20
_AHEAD = 2
#: The keyset of a store, without which nobody can open a copy, and where the older ones are.
KEYSET = f"{RESERVED}/keyset.json"
_KEYSETS = f"{RESERVED}/keyset/"
#: Of the local driver.
_LOCK = f"{RESERVED}/lock"


class _Ranges(Source):
    """Reads an object of a backend as it is, by ranges, each on condition that it is still the same version."""

    def __init__(self, backend: Backend, place: Place, name: str, found: Found) -> None:
        self.backend, self.place, self.name, self.found = backend, place, name, found

    @property
    def mark(self) -> str:
        return f"{self.found.size} {self.found.mark}"

    async def stream(self, start: int = 0) -> AsyncIterator[bytes | bytearray]:
        size, etag = self.found.size, self.found.etag
        starts = deque(range(start, size, _WINDOW))
        under_way: deque[tuple[int, asyncio.Future[bytes | bytearray]]] = deque()
        try:
            while starts or under_way:
                while starts and len(under_way) < _AHEAD:
                    start = starts.popleft()
                    end = min(start + _WINDOW, size)
                    reading = asyncio.ensure_future(self.backend.read(self.name, start, end, etag=etag))
                    under_way.append((end - start, reading))
                length, first = under_way[0]
                piece = await first
                under_way.popleft()
                if len(piece) != length:
                    raise ObjectChangedError(f"{self.name}: changed while it was read", path=self.name)
                yield piece
        finally:
            left = [unread for _, unread in under_way]
            for unread in left:
                unread.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        if etag is None or not size:
            # Nothing was conditional: what the host says of it now must be what it said before.
            stat = await self.backend.stat(self.name)
            if Found(self.name, stat.size, stat.etag, stat.modified).mark != self.found.mark:
                raise ObjectChangedError(f"{self.name}: changed while it was read", path=self.name)


class _Written(Sink):
    """Writes an object to a backend as it is."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._front = bytearray()

    async def pour(self, pieces: Pieces) -> int:
        total = 0
        async for piece in pieces:
            total += len(piece)
            if len(self._front) < OVERHEAD:
                self._front += piece[: OVERHEAD - len(self._front)]
            await self._upload.write(piece)
            if self.began is not None and (token := self._upload.token()) is not None:
                self.began(token)
                self.began = None
        return total

    async def take_front(self, source: Source) -> None:
        """Note the first bytes, which an earlier process has written, where they tell one write from another."""

    def version(self) -> bytes | None:
        return None

    async def commit(self) -> None:
        await self._upload.commit()

    async def abort(self) -> None:
        await self._upload.abort()


class _Bare(Side):
    """What lies at a backend, moved as it is."""

    def __init__(self, url: str, place: Place, folder: str, backend: Backend, store_id: str = "") -> None:
        super().__init__(url, place, folder, store_id)
        self._backend = backend

    @property
    def backend(self) -> Backend:
        """The backend that it was made with."""
        return self._backend

    def _found(self, stat: Stat) -> Found:
        return Found(self.below(stat.name), stat.size, stat.etag, stat.modified)

    async def open(self, path: str, expected: Found | None = None) -> Source:
        """Return an object to be read."""
        name = self.join(path)
        if expected is None or expected.etag is None:
            stat = await self._backend.stat(name)
            if stat.folder:
                raise IsFolderError(f"{name}: is a folder", path=name)
            expected = self._found(stat)
        return _Ranges(self._backend, self.place, name, expected)

    async def create(self, path: str, source: Source, *, replace: bool) -> Sink:
        """Return a write."""
        name, size = self.join(path), source.found.size
        if not replace and size > SMALL and await self.find(path) is not None:
            raise ObjectExistsError(f"{name}: exists already", path=name)
        return await self._made(name, source, create=not replace)

    async def _made(self, name: str, source: Source, *, create: bool) -> Sink:
        return self._sink(await self._backend.upload(name, create=create, size=source.found.size))

    def _sink(self, upload: Upload) -> _Written:
        return _Written(upload)

    async def resume(self, path: str, source: Source, token: str, *, replace: bool) -> tuple[Sink, int] | None:
        """Return a write of which the host has some parts already."""
        found = await self._backend.resume(self.join(path), token, size=source.found.size, create=not replace)
        if found is None:
            return None
        upload, start = found
        sink = self._sink(upload)
        await sink.take_front(source)
        return sink, start

    async def find(self, path: str) -> Found | None:
        """Return what is at a path now."""
        try:
            stat = await self._backend.stat(self.join(path))
        except ObjectNotFoundError:
            return None
        return None if stat.folder else self._found(stat)

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete objects."""
        await self._backend.delete([self.join(path) for path in paths])

    async def name(self, path: str) -> str:
        """Return the path below the root: names are as they are."""
        return self.join(path)

    async def path(self, name: str) -> str:
        """Return the path below the folder."""
        return self.below(name)

    async def close(self) -> None:
        """Close the connections of the backend."""
        await self._backend.close()


class Plain(_Bare):
    """A folder of a place that holds plaintext: its host reads all of it."""

    readable = True

    async def list(self) -> AsyncIterator[Found]:
        """Yield all objects below the folder."""
        async for stat in self._backend.list(self.folder, recursive=True):
            # Without what a driver keeps for itself while it writes.
            if not stat.folder and stat.name != _LOCK and not stat.name.startswith(f"{TEMPORARY}/"):
                yield self._found(stat)

    async def check(self) -> None:
        """Refuse the root of a store.

        Raises
        ------
        ConfigError
            What lies there is sealed already; and plaintext must not lie beside it.
        """
        for keyset in dict.fromkeys((KEYSET, f"{self.folder}/{KEYSET}" if self.folder else KEYSET)):
            try:
                await self._backend.stat(keyset)
            except ObjectNotFoundError:
                continue
            except StoreError as exc:
                # The first request to this host: whatever is wrong with it is not about that name.
                message = exc.message.removeprefix(f"{keyset}: ")
                raise type(exc)(f"{self.url}: {message}", path=self.url, hint=exc.hint) from exc
            hint = "describe it in a table [stores.NAME], and give sov://NAME/"
            raise ConfigError(f"{self.url}: is a store, and not a place of plaintext", path=self.url, hint=hint)

    async def version(self, path: str) -> bytes | None:
        """Return the mark of what is there: nothing in plaintext tells two writes apart."""
        found = await self.find(path)
        return None if found is None else found.mark.encode()

    async def close(self) -> None:
        """Close the connections; folders for unfinished writes go when they are empty."""
        if self._backend.real_folders:
            with suppress(SovstoreError):
                for folder in (f"{TEMPORARY}/", f"{RESERVED}/"):
                    await self._backend.delete([folder])
        await super().close()


class Raw(_Bare):
    """A store as its host has it: ciphertext, moved without any key."""

    async def list(self) -> AsyncIterator[Found]:
        """Yield all objects and keysets; what no store writes is foreign."""
        async for stat in self._backend.list("", recursive=True):
            if stat.folder:
                continue
            if stat.name.split("/", 1)[0].lower() == RESERVED:
                if stat.name == KEYSET or stat.name.startswith(_KEYSETS):
                    yield self._found(stat)
                continue
            try:
                plain_size(stat.size)
            except FormatError:
                yield Found(stat.name, stat.size, None, stat.modified, "not an object of a store: its size is none")
                continue
            yield self._found(stat)

    async def version(self, path: str) -> bytes | None:
        """Return the first 184 bytes of what is there: no other write of an object has them."""
        try:
            return bytes(await self._backend.read(path, 0, OVERHEAD))
        except (ObjectNotFoundError, IsFolderError):
            return None

    def _sink(self, upload: Upload) -> _Written:
        return _RawSink(upload)

    async def _made(self, name: str, source: Source, *, create: bool) -> Sink:
        # At one host, by the same credentials; and a version that is known by more than its size and time.
        if (
            isinstance(source, _Ranges)
            and source.found.etag is not None
            and replaced(source.place, root="") == replaced(self.place, root="")
        ):
            return _AtHost(self._backend, name, source, create=create)
        return await super()._made(name, source, create=create)


class _RawSink(_Written):
    async def take_front(self, source: Source) -> None:
        assert isinstance(source, _Ranges)  # noqa: S101  # nosec B101  # a byte copy has no other source
        self._front += await source.backend.read(source.name, 0, OVERHEAD, etag=source.found.etag)

    def version(self) -> bytes | None:
        return bytes(self._front)


class _AtHost(Sink):
    """Has the host copy an object; where it does not, the bytes are sent."""

    def __init__(self, backend: Backend, name: str, source: _Ranges, *, create: bool) -> None:
        self._backend, self._name, self._source, self._create = backend, name, source, create
        self._write: _RawSink | None = None

    async def pour(self, pieces: Pieces) -> int:
        found = self._source.found
        assert found.etag is not None  # noqa: S101  # nosec B101  # else `Raw` would not have made it
        where = (self._source.backend, self._source.name, self._name)
        copied = await self._backend.copy_from(
            *where, size=found.size, etag=found.etag, create=self._create, told=self.told
        )
        if copied is not None:
            self.at_host, self._write = True, _RawSink(copied)
            await self._write.take_front(self._source)
            return found.size
        upload = await self._backend.upload(self._name, create=self._create, size=found.size)
        self._write = _RawSink(upload)
        self._write.began = self.began
        return await self._write.pour(pieces)

    def version(self) -> bytes | None:
        return None if self._write is None else self._write.version()

    async def commit(self) -> None:
        assert self._write is not None  # noqa: S101  # nosec B101  # `pour` comes first
        await self._write.commit()

    async def abort(self) -> None:
        if self._write is not None:
            await self._write.abort()

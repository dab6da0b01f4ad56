"""Manifests of a live store: made, kept in a file of this machine, and held against what the host serves.

A listing is the host's claim. A manifest is the user's: with it, objects that are gone, and older ones that were put
back, are found (docs/spec/manifest.md). Objects are walked folder by folder, in the order of their paths, so that
memory holds the names of the folders on the way down and no plaintext name is ever sorted on a disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from sovstore import beside
from sovstore.backends.base import Upload
from sovstore.backends.local import LocalBackend
from sovstore.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    IsFolderError,
    ObjectNotFoundError,
    SovstoreError,
    StoreError,
)
from sovstore.format.cobblestone import CHUNK
from sovstore.format.manifest import (
    MAX_LINE,
    PATH,
    ManifestEntry,
    ManifestHead,
    ManifestLines,
    ManifestParser,
    Totals,
)
from sovstore.object_reader import ObjectReader
from sovstore.object_writer import BLOCK
from sovstore.store import Store
from sovstore.walk import Listed, in_order, walk

#: Characters of a file's name that its temporary file is called after.
_CALLED = 50

A = TypeVar("A")

#: What became of an object: as the manifest has it; not there; of another size or version, newer or older, which a
#: manifest cannot tell; refused; not read for another reason; not in the manifest; under a name of somebody else.
Kind = Literal["same", "missing", "replaced", "not authentic", "unreadable", "extra", "foreign"]


@dataclass(frozen=True)
class Finding:
    """What `check` found of one object.

    Parameters
    ----------
    kind : Kind
        What became of it.
    path : str
        Of the object; a foreign name is escaped, and that of a folder ends with ``/``.
    size : int
        Its plaintext bytes, authenticated; 0 where it was not opened.
    error : SovstoreError or None
        Why it could not be read.
    """

    kind: Kind
    path: str
    size: int = 0
    error: SovstoreError | None = None


# Writing


async def record(
    store: Store, path: str = "", *, jobs: int = 8, foreign: Callable[[str], object] | None = None
) -> AsyncGenerator[ManifestEntry, None]:
    """Yield the entries of a live store, in order; every object is opened, `jobs` of them at a time.

    Opening takes two or three small requests, and authenticates header, key and length: what the manifest holds is what
    is there, not what a listing says.

    Parameters
    ----------
    path : str
        The folder; '' for the whole store.
    foreign : callable, optional
        Called with each name that the store did not make; it is not in the manifest.

    Raises
    ------
    ObjectNotFoundError, FormatError, IntegrityError, StoreError
        When an object, or the folder, cannot be opened: a manifest without it would be no evidence.
    """
    if path and not (await store.stat(path)).folder:
        raise ConfigError(
            f"{path}: is not a folder", path=path, hint="a manifest is of a folder, or of the whole store"
        )

    async def one(listed: Listed) -> ManifestEntry | None:
        if listed.foreign:
            if foreign is not None:
                foreign(listed.path)
            return None
        try:
            reader = await store.reader(listed.path)
        except ObjectNotFoundError as exc:
            hint = "it was deleted meanwhile: run it again when nobody writes; or the host lists what it does not have"
            raise ObjectNotFoundError(exc.message, path=listed.path, hint=hint) from exc
        return ManifestEntry(listed.path, reader.plain_size, reader.version)

    async with aclosing(in_order(walk(store, path), one, jobs)) as entries:
        async for entry in entries:
            if entry is not None:
                yield entry


async def write(
    store: Store,
    entries: AsyncIterable[ManifestEntry] | Iterable[ManifestEntry],
    file: str | Path,
    *,
    path: str = "",
    replace: bool = False,
) -> Totals:
    """Seal entries as a manifest, in bounded memory, and return how many there were.

    The file is there when it is complete, or not at all.

    Parameters
    ----------
    entries : iterable or async iterable of ManifestEntry
        In ascending order of the UTF-8 of their paths, as `record` yields them.
    file : str or Path
        Where it goes, on this machine.
    path : str
        The folder whose objects they are; '' for the whole store.
    replace : bool
        Put it in place of a file that is there.

    Raises
    ------
    ConfigError
        When the file is there already, and `replace` was not asked for.
    ValueError
        When an entry does not follow the one before it.
    KeyDeniedError
        When the store is read-only.
    StoreError
        When the file cannot be written.
    """
    file, what = Path(file), str(file)
    with _writing(what):
        if not replace and os.path.lexists(file):
            raise FileExistsError
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.temporary(file, name=file.name[:_CALLED]) as (made, descriptor):
            writer = await store.writer_outside(_FileUpload(made, descriptor, file, replace=replace), PATH, what=what)
            try:
                head = ManifestHead((await store.keyset()).store_id, datetime.now(UTC).replace(microsecond=0), path)
                lines = ManifestLines(head)
                # Sealed by the block: each write is a request to a disk.
                waiting = bytearray(lines.first())
                async for entry in _iterated(entries):
                    waiting += lines.entry(entry)
                    if len(waiting) >= BLOCK:
                        await writer.write(waiting)
                        waiting.clear()
                await writer.write(waiting + lines.last())
                await writer.commit()
            except BaseException:
                await writer.abort()
                raise
    return lines.totals


async def _iterated(entries: AsyncIterable[A] | Iterable[A]) -> AsyncIterator[A]:
    if isinstance(entries, AsyncIterable):
        async for entry in entries:
            yield entry
    else:
        for entry in entries:
            yield entry


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Map the errors of the operating system onto ours."""
    try:
        yield
    except SovstoreError:
        # Some of ours are such errors too.
        raise
    except FileExistsError as exc:
        hint = "choose another name; --force (replace=True) replaces it"
        raise ConfigError(f"{what}: exists already", path=what, hint=hint) from exc
    except OSError as exc:
        text = (exc.strerror or type(exc).__name__).lower()
        raise StoreError(f"{what}: cannot be written: {text}", path=what) from exc


class _FileUpload(Upload):
    """A write to a temporary file, which takes its name when it is complete."""

    def __init__(self, made: Path, descriptor: int, file: Path, *, replace: bool) -> None:
        self._made, self._descriptor, self._file, self._replace = made, descriptor, file, replace

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await asyncio.to_thread(beside.append, self._descriptor, data)

    async def commit(self) -> None:
        await asyncio.to_thread(os.fsync, self._descriptor)
        if self._replace:
            os.replace(self._made, self._file)
        else:
            beside.settle(self._made, self._file)

    async def abort(self) -> None:
        """Do nothing: whoever made the file deletes it."""


# Reading


class Manifest:
    """A manifest in a file of this machine, opened: header, length and first line are authentic. `load` makes it.

    Parameters
    ----------
    store : Store
        That it is of.
    what : str
        The file, for error messages.
    head : ManifestHead
        What its first line says.
    """

    def __init__(self, store: Store, what: str, head: ManifestHead, reader: ObjectReader) -> None:
        self.store, self.what, self.head = store, what, head
        self._reader = reader

    async def entries(self, path: str | None = None) -> AsyncGenerator[ManifestEntry, None]:
        """Yield the entries, in order; each is authentic.

        Parameters
        ----------
        path : str, optional
            Only what is in this folder.

        Raises
        ------
        FormatError, IntegrityError
            When it is altered, or not as docs/spec/manifest.md has it. Counts are compared behind the last entry.
        """
        parser = ManifestParser(what=self.what)
        prefix = f"{path}/" if path else ""
        async for piece in self._reader.stream():
            # A little at a time: thousands of entries would hold up all else that this loop does.
            for start in range(0, len(piece), CHUNK):
                for entry in parser.feed(piece[start : start + CHUNK]):
                    if entry.path.startswith(prefix):
                        yield entry
        parser.finish()

    async def check(
        self,
        path: str | None = None,
        *,
        content: bool = False,
        jobs: int = 8,
        advance: Callable[[int], object] | None = None,
    ) -> AsyncGenerator[Finding, None]:
        """Yield what became of each object, in the order of paths; of all that the host lists or the manifest has.

        Parameters
        ----------
        path : str, optional
            Only this folder, which must be that of the manifest or in it; all that the manifest is of by default.
        content : bool
            Read every object to its end, those that are not in the manifest too, and not only what opening
            authenticates.
        advance : callable, optional
            Called with the number of plaintext bytes that were read.

        Raises
        ------
        ConfigError
            When the manifest says nothing of that folder.
        FormatError, IntegrityError
            As `entries`, and when the host's listing is refused.
        """
        below, prefix = self.head.below, f"{self.head.below}/" if self.head.below else ""
        path = below if path is None else path
        if path != below and not path.startswith(prefix):
            shown = f"sov://{self.store.config.name}/{below}"
            raise ConfigError(f"{self.what}: is a manifest of {shown} only", path=self.what, hint=f"check {shown}")
        read = _Reading(self.store, content, advance)
        pairs, count = _joined(self.entries(path), walk(self.store, path)), 0
        async with aclosing(in_order(pairs, lambda pair: read.compare(*pair), jobs)) as findings:
            async for finding in findings:
                count += 1
                yield finding
        if not count and path != below:
            # Of a folder that is not there, or of an object, nobody must believe that it was checked.
            raise ConfigError(f"{self.what}: has nothing in a folder {path}", path=self.what, hint="correct the path")


async def load(store: Store, file: str | Path) -> Manifest:
    """Return the manifest in a file; its header and length are authentic, as is what its first line says.

    Raises
    ------
    ObjectNotFoundError
        When there is no such file.
    FormatError, IntegrityError
        When it is not a manifest of this store.
    """
    place, what = Path(os.path.realpath(file)), str(file)
    backend = LocalBackend(str(place.parent))
    try:
        reader = await store.reader_outside(backend, place.name, PATH, what=what)
    except IntegrityError as exc:
        hint = "it was altered, or is no manifest of this store: an object, or the manifest of another store"
        if exc.hint is not None:
            hint = f"{exc.hint}; a manifest is made anew by 'sovstore manifest'"
        raise IntegrityError(exc.message, path=what, hint=hint) from exc
    parser = ManifestParser(what=what)
    parser.feed(await reader.read(0, MAX_LINE + 1))
    if parser.head is None:
        raise FormatError(f"{what}: not a manifest: it has no first line", path=what)
    if parser.head.store_id != (await store.keyset()).store_id:
        raise IntegrityError(f"{what}: is a manifest of another store", path=what)
    return Manifest(store, what, parser.head, reader)


async def read(store: Store, file: str | Path) -> AsyncGenerator[ManifestEntry, None]:
    """Yield the entries of the manifest in a file, as `load` and `Manifest.entries`."""
    async with aclosing((await load(store, file)).entries()) as entries:
        async for entry in entries:
            yield entry


async def check(
    store: Store,
    file: str | Path,
    path: str | None = None,
    *,
    content: bool = False,
    jobs: int = 8,
    advance: Callable[[int], object] | None = None,
) -> AsyncGenerator[Finding, None]:
    """Yield what became of each object since a manifest was made, as `load` and `Manifest.check`."""
    manifest = await load(store, file)
    async with aclosing(manifest.check(path, content=content, jobs=jobs, advance=advance)) as findings:
        async for finding in findings:
            yield finding


class _Reading:
    """Opens the objects of a check, and reads them to their ends where that was asked for."""

    def __init__(self, store: Store, content: bool, advance: Callable[[int], object] | None) -> None:  # noqa: FBT001
        self._store, self._content, self._advance = store, content, advance

    async def compare(self, entry: ManifestEntry | None, listed: Listed | None) -> Finding:
        """Return what became of one object, which the manifest has, the host lists, or both."""
        if listed is None:
            assert entry is not None  # noqa: S101  # nosec B101  # one of the two is there
            return Finding("missing", entry.path)
        if listed.foreign:
            return Finding("foreign", listed.path)
        if entry is None and not self._content:
            return Finding("extra", listed.path)
        try:
            reader = await self._store.reader(listed.path)
            if self._content:
                await self._read(reader)
        except (FormatError, IntegrityError) as exc:
            return Finding("not authentic", listed.path, error=exc)
        except (ObjectNotFoundError, IsFolderError) as exc:
            return Finding("unreadable" if entry is None else "missing", listed.path, error=exc)
        except SovstoreError as exc:
            return Finding("unreadable", listed.path, error=exc)
        if entry is None:
            return Finding("extra", listed.path, reader.plain_size)
        same = reader.version == entry.version and reader.plain_size == entry.size
        return Finding("same" if same else "replaced", listed.path, reader.plain_size)

    async def _read(self, reader: ObjectReader) -> None:
        async for piece in reader.stream():
            if self._advance is not None:
                self._advance(len(piece))


async def _joined(
    entries: AsyncIterator[ManifestEntry], listed: AsyncIterator[Listed]
) -> AsyncIterator[tuple[ManifestEntry | None, Listed | None]]:
    """Yield what two sorted sequences have, side by side; a foreign name has no other side."""
    entry, found = await anext(entries, None), await anext(listed, None)
    while entry is not None or found is not None:
        order = _order(entry, found)
        yield (entry if order <= 0 else None), (found if order >= 0 else None)
        if order <= 0:
            entry = await anext(entries, None)
        if order >= 0:
            found = await anext(listed, None)


def _order(entry: ManifestEntry | None, found: Listed | None) -> int:
    """Return below 0 when the entry comes first, above it when the listed one does, 0 when they are of one path."""
    if entry is None or (found is not None and found.foreign):
        return 1
    if found is None:
        return -1
    one, other = entry.path.encode(), found.path.encode()
    return (one > other) - (one < other)

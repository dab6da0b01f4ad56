"""The `Backend` waist: what a host must be able to do. Names and bytes here are the host's: encoded and sealed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sovstore.backends.probe import Probe
from sovstore.backends.providers import Provider
from sovstore.concurrency import both
from sovstore.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError

#: Where unfinished writes lie, below the root.
TEMPORARY = ".sovstore/tmp"
#: After this long an unfinished write is taken for abandoned, where a driver has no better sign: a terabyte takes days.
STALE = timedelta(days=7)


@dataclass(frozen=True)
class Place:
    """Where a store lies and how its host is reached: all that a driver is given. References only, no secret.

    Parameters
    ----------
    provider : Provider
        What is known of the host.
    root : str
        Folder, bucket/prefix or container/prefix, without a scheme.
    endpoint : str or None
        URL of the service; None where the driver finds it by itself.
    region : str or None
        As the host calls it.
    account : str or None
        Storage account of Azure, namespace of other hosts.
    ca_file : str or None
        File of the certificates to trust, in place of the system's.
    credentials : str or None
        ``keyring://SERVICE/NAME``; None for the environment and the files that the host's own tools read.
    transport : str or None
        ``obstore``, or None for the driver's own.
    protocol : str or None
        fsspec protocol, for the driver ``fsspec``.
    options : mapping
        Options of the driver.
    """

    provider: Provider
    root: str
    endpoint: str | None = None
    region: str | None = None
    account: str | None = None
    ca_file: str | None = None
    credentials: str | None = None
    transport: str | None = None
    protocol: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stat:
    """What the host says of one name. All of it is its claim.

    Parameters
    ----------
    name : str
        Name below the root; of a folder without a trailing ``/``.
    size : int
        Bytes stored; 0 for a folder.
    folder : bool
        Whether it is a folder.
    etag : str or None
        Changes whenever the object does; None where the host has none.
    modified, created : datetime or None
        In UTC; None where the host does not say.
    """

    name: str
    size: int
    folder: bool = False
    etag: str | None = None
    modified: datetime | None = None
    created: datetime | None = None


class Upload(ABC):
    """One write under way. Nothing of it is visible under its name before `commit` returns."""

    #: Whether bytes get to the host without the loop: `write_now` is there then.
    blocking: bool = False

    @abstractmethod
    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. MUST be done with `data` when it returns; the caller reuses the buffer.

        Raises
        ------
        StoreError
            When the host refuses; the upload can then only be aborted.
        """

    def write_now(self, data: bytes | bytearray | memoryview) -> None:
        """As `write`, in any one thread, where `blocking`. MUST be done with `data` when it returns."""
        raise NotImplementedError

    @abstractmethod
    async def commit(self) -> None:
        """Make the object visible, whole and durable, replacing an older one at once.

        Raises
        ------
        ObjectExistsError, ObjectChangedError
            When the condition that `Backend.upload` was given does not hold. Nothing has changed then.
        """

    @abstractmethod
    async def abort(self) -> None:
        """Forget the write and free what it holds. MAY be called twice, and after a failed `commit`; MUST NOT raise."""

    def token(self) -> str | None:
        """Return what `Backend.resume` finds this write by, once the host has some of it; None where nothing would."""
        return None

    def forget(self) -> None:  # noqa: B027  # most drivers have no finaliser that would commit
        """Let nothing be committed later, without waiting: the process is ending, or is a fork of the writer's."""


class OpenedNow(ABC):
    """One version of an object, held open; whoever replaces or deletes it changes nothing of what is read from here."""

    @abstractmethod
    def read_into(self, start: int, out: memoryview) -> int:
        """Fill `out` with the bytes from `start` on, in any thread.

        Returns
        -------
        int
            Bytes read: fewer than fit only where the object ends.
        """


class Backend(ABC):
    """One root at one host, used from one event loop.

    Names are relative to the root, without leading or trailing ``/``. Implementations MUST raise nothing but
    `SovstoreError`, MUST NOT interpret the bytes, and MUST be usable by many coroutines at once.
    """

    #: Whether folders exist by themselves at this host, also when empty.
    real_folders: bool = False
    #: Whether bytes come from the host without the loop: `open_now` is there then.
    blocking: bool = False
    #: Conditions that the host itself keeps, also against another client, as ``operation:condition``. ``put`` is an
    #: object of one request, ``complete`` a larger one; ``create`` is "only if there is none", ``replace`` and
    #: ``match`` "only if the ETag is still this"; all are in `sovstore.backends.providers.CONDITIONS`. A driver keeps
    #: the rest by looking first, which can race.
    conditions: frozenset[str] = frozenset()

    @abstractmethod
    async def stat(self, name: str) -> Stat:
        """Return what the host says of an object, or of a folder.

        Raises
        ------
        ObjectNotFoundError
            When there is neither.
        """

    @abstractmethod
    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes | bytearray:
        """Return bytes [start, end) of an object; fewer only where the object ends, none beyond its end.

        Parameters
        ----------
        etag : str, optional
            Refuse when the object has another one now, where the host can tell.

        Raises
        ------
        ObjectNotFoundError, IsFolderError
            When there is no such object.
        ObjectChangedError
            When the ETag is another one.
        """

    async def read_first(self, name: str, size: int) -> tuple[Stat, bytes | bytearray]:
        """Return what the host says of an object, and its first `size` bytes; fewer only where it ends.

        In one request where the reply says both; else in two at once, between which somebody may replace the object.

        Raises
        ------
        ObjectNotFoundError, IsFolderError
            When there is no such object. A folder MAY be returned instead, without any bytes.
        """
        return await both(self.stat(name), self.read(name, 0, size))

    def open_now(self, name: str, *, etag: str | None = None) -> OpenedNow:
        """Return one version of an object, held open, without the loop, where `blocking`.

        Raises
        ------
        ObjectNotFoundError, IsFolderError, ObjectChangedError
            As `read`.
        """
        raise NotImplementedError

    @abstractmethod
    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        """Return a new write to `name`.

        Parameters
        ----------
        create : bool
            Fail at `Upload.commit`, or here, when there is an object already.
        if_match : str, optional
            Fail at `Upload.commit` when the object does not have this ETag.
        size : int, optional
            Bytes that will be written, where they are known: parts are then cut to fit.

        Raises
        ------
        IsFolderError, NotFolderError
            When a folder stands there, or an object stands where a parent must be; here or at `Upload.commit`,
            on hosts that have real folders.
        """

    async def resume(
        self,
        name: str,  # noqa: ARG002  # for those that can
        token: str,  # noqa: ARG002
        *,
        size: int,  # noqa: ARG002
        create: bool = False,  # noqa: ARG002
    ) -> tuple[Upload, int] | None:
        """Return a write that a process which is gone had begun, and how many of its first bytes the host has.

        It was to be of `size` bytes, and was begun by `upload` with that size. What the host has is its claim: the
        caller MUST know that the bytes were to be the same. None when the host has nothing of it, and where no write
        can be gone on with.

        Parameters
        ----------
        token : str
            As `Upload.token` returned it.
        size, create : int, bool
            As `upload`.
        """
        return None

    @abstractmethod
    def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield what lies in a folder ('' is the root), or below it; nothing when there is no such folder.

        Recursively, folders are yielded only where they are real. The order is free. MUST NOT make a request
        per object beyond the host's own listing.
        """

    @abstractmethod
    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects, and the empty folders whose names end with ``/``. Names that do not exist are no error.

        Raises
        ------
        StoreError
            When the host refuses one, or a folder is not empty.
        """

    @abstractmethod
    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Make `target` the bytes of `source` with the first ``len(head)`` of them replaced by `head`.

        As visible and as conditional as an upload. `target` MAY be `source`.

        Raises
        ------
        ObjectNotFoundError
            When there is no source.
        ObjectChangedError
            When the source has not, or not any more, the ETag `etag`. Nothing has changed then.
        """

    async def copy_from(
        self,
        origin: Backend,  # noqa: ARG002  # for hosts that can
        source: str,  # noqa: ARG002
        target: str,  # noqa: ARG002
        *,
        size: int,  # noqa: ARG002
        etag: str,  # noqa: ARG002
        create: bool = False,  # noqa: ARG002
        told: Callable[[int], None],  # noqa: ARG002
    ) -> Upload | None:
        """Have the host copy an object of another root as it is, now or at the commit, and return the write of it.

        Its bytes do not pass through this process. None where the host does not copy such an object, or refuses to:
        nothing is left of it then, and the caller sends the bytes. `Upload.write` MUST NOT be called.

        Parameters
        ----------
        origin : Backend
            At the same host, with the same credentials: the caller knows.
        source, target : str
            Below the root of `origin`, and below this one.
        size, etag : int, str
            Of the version that is meant.
        create : bool
            As `upload`.
        told : callable
            Told of bytes that are copied, in the thread of the running loop.

        Raises
        ------
        ObjectChangedError
            When the source has not, or not any more, this ETag; here or at `Upload.commit`. Nothing is left then.
        """
        return None

    async def delete_match(self, name: str, etag: str) -> None:
        """Delete one object that has not changed since it had the ETag `etag`.

        By looking, where the host keeps no condition on deletions: another writer may still come between.

        Raises
        ------
        ObjectChangedError, ObjectNotFoundError
            When it is another one, or gone. Nothing was deleted then.
        """
        await self.look_first(name, create=False, if_match=etag)
        await self.delete([name])

    async def look_first(self, name: str, *, create: bool, if_match: str | None) -> None:
        """Keep a condition by looking, where the host keeps none: another writer may still come between.

        Raises
        ------
        ObjectExistsError, ObjectChangedError, ObjectNotFoundError
            When it does not hold.
        """
        try:
            found = await self.stat(name)
        except ObjectNotFoundError:
            if if_match is not None:
                raise
            return
        if create:
            raise ObjectExistsError(f"{name}: exists already", path=name)
        if if_match is not None and found.etag != if_match:
            raise ObjectChangedError(f"{name}: changed meanwhile", path=name)

    async def make_folder(self, name: str) -> None:  # noqa: B027  # most hosts have no folders to make
        """Make a folder and its parents where folders are real; else do nothing."""

    async def sweep(self, older_than: timedelta = STALE, *, dry_run: bool = False) -> int:
        """Delete what writes that were killed left behind, and return how many there were; a dry run only counts.

        MUST NOT delete what a live writer, here or elsewhere, still needs: where the host cannot tell, a write that
        began less than `older_than` ago is taken for a live one. A sweep that is asked for without an age, as it is
        before a first write, MAY be put off to a write that could leave something behind itself.
        """
        limit = datetime.now(UTC) - older_than
        found = [s async for s in self.list(TEMPORARY) if not s.folder and s.modified and s.modified <= limit]
        if not dry_run:
            await self.delete([s.name for s in found])
        return len(found)

    async def probe(self, scratch: str) -> Probe:  # noqa: ARG002  # this one measures nothing
        """Return what the host itself is seen to do, by requests that no look-first logic stands before.

        Parameters
        ----------
        scratch : str
            Folder for what has to be written: MUST be the only one that is written to, but for one object beside the
            root that is deleted again, and SHOULD be empty afterwards.
        """
        return Probe()

    async def close(self) -> None:  # noqa: B027  # a driver may have nothing to close
        """Close connections. MAY be called twice."""

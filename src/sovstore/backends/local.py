"""``provider = "local"``: a folder of this machine, through system calls.

fsspec's own local writer leaves a half-written target when the process is killed; this one writes beside, syncs, and
moves into place. See docs/adr/0003-local-driver.md.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import stat as stat_module
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sovstore import beside
from sovstore.backends.base import STALE, TEMPORARY, Backend, OpenedNow, Stat, Upload
from sovstore.errors import (
    FormatError,
    IsFolderError,
    NotFolderError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)

#: Most bytes of one read or copy call; Linux moves at most 0x7ffff000 per call.
_SLICE = 2**24
#: A write of no more bytes keeps them until its commit, which then goes to a thread once.
_SMALL = 2**16
#: Bytes of a copy from another root between two looks at whether it is still wanted.
_STEP = 2**28
_THREADS = 4
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
#: What the system says when it does not copy: not on this file system, or not across two.
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Opening waits for nobody (a pipe would) and follows no link.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
#: What only this driver makes: a file that its writers lock.
_OWN_FOLDER = ".sovstore/"
_LOCK = f"{_OWN_FOLDER}lock"
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{24}")

#: Files that are held open while they are read; of programs that open thousands, the others are opened for each read.
_may_be_held = threading.BoundedSemaphore(64)

T = TypeVar("T")
_Run = Callable[[Callable[[], Any]], Awaitable[Any]]


@contextmanager
def _mapped(name: str, *, writing: bool = False) -> Iterator[None]:
    """Map the errors of the operating system onto ours, in one place."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ObjectNotFoundError(f"{name}: not found", path=name) from exc
    except IsADirectoryError as exc:
        raise IsFolderError(f"{name}: is a folder", path=name) from exc
    except NotADirectoryError as exc:
        if not writing:
            raise ObjectNotFoundError(f"{name}: not found", path=name) from exc
        raise NotFolderError(f"{name}: a parent of it is an object", path=name) from exc
    except FileExistsError as exc:
        raise ObjectExistsError(f"{name}: exists already", path=name) from exc
    except PermissionError as exc:
        hint = "check the rights of the store's folder"
        raise StoreError(f"{name}: the system refused: {exc.strerror}", path=name, hint=hint) from exc
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:
            raise StoreError(f"{name}: the folder is not empty", path=name) from exc
        if exc.errno == errno.EROFS:
            raise StoreError(f"{name}: the file system is read-only", path=name, hint="mount it for writing") from exc
        if exc.errno in _TOO_MANY:
            hint = "close some files, or raise the limit (ulimit -n); what was there before is unharmed"
            raise StoreError(f"{name}: {exc.strerror}", path=name, hint=hint) from exc
        if exc.errno in _FULL:
            hint = "free some room, then run it again; what was there before is unharmed"
            raise StoreError(f"{name}: no room: {exc.strerror}", path=name, hint=hint) from exc
        raise StoreUnavailableError(f"{name}: {exc.strerror or type(exc).__name__}", path=name) from exc


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _stat(name: str, status: os.stat_result) -> Stat:
    folder = stat_module.S_ISDIR(status.st_mode)
    return Stat(
        name,
        0 if folder else status.st_size,
        folder=folder,
        etag=None if folder else _etag(status),
        modified=datetime.fromtimestamp(status.st_mtime, UTC),
        created=datetime.fromtimestamp(getattr(status, "st_birthtime", status.st_ctime), UTC),
    )


@contextmanager
def _in_turn(root: str, *, alone: bool) -> Iterator[None]:
    """Keep a change that looks first apart from every other one, so that nothing comes between its look and its move.

    Parameters
    ----------
    alone : bool
        For a change that looks first; all others may go on at the same time.
    """
    flags = (os.O_RDWR if alone else os.O_RDONLY) | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = _locked(f"{root}/{_LOCK}", flags, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    except (FileNotFoundError, PermissionError):
        if alone:
            raise
        # No store yet, or somebody who may delete objects and nothing else: nobody is kept from that.
        yield
        return
    try:
        yield
    finally:
        # Closing is not enough: a child that was forked meanwhile would hold the lock for as long as it lives.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(path: str, flags: int, kind: int) -> int:
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever held it deleted it, with the folder: others hold the new one.
        os.close(descriptor)


def _delete_lock(root: str) -> None:
    """Delete the lock file where nothing else is left in its folder."""
    with suppress(FileNotFoundError):
        if os.listdir(f"{root}/{_OWN_FOLDER}") == ["lock"]:
            with _in_turn(root, alone=True):
                os.unlink(f"{root}/{_LOCK}")


def _below(root: str, name: str) -> str:
    """Return the path of a name below `root`.

    Raises
    ------
    FormatError
        When a component of it is a symbolic link: a folder that somebody else can write to (NFS, SMB) could lead
        reads, writes and deletions anywhere on this machine.
    """
    if not name:
        return root
    path, whole = root, f"{root}/{name.rstrip('/')}"
    # What is not there leads nowhere.
    with suppress(FileNotFoundError, NotADirectoryError):
        for part in name.rstrip("/").split("/"):
            path = f"{path}/{part}"
            if stat_module.S_ISLNK(os.lstat(path).st_mode):
                hint = "sovstore did not make it; remove it"
                raise FormatError(f"{name}: leads through a symbolic link", path=name, hint=hint)
    return whole


class _LocalFile(OpenedNow):
    """A file held open, until nobody has this any more; when many are, one that is opened for each read.

    Parameters
    ----------
    name : str
        Of the file, for error messages.
    open_it : callable
        Returns a descriptor of the version that is meant.
    """

    def __init__(self, name: str, open_it: Callable[[], int]) -> None:
        self._name, self._open_it = name, open_it
        self._descriptor: int | None = None
        if _may_be_held.acquire(blocking=False):
            try:
                self._descriptor = open_it()
            except BaseException:
                _may_be_held.release()
                raise

    def read_into(self, start: int, out: memoryview) -> int:
        """Fill `out` with the bytes from `start` on."""
        try:
            if self._descriptor is not None:
                return _filled(self._descriptor, start, out)
            descriptor = self._open_it()
            try:
                return _filled(descriptor, start, out)
            finally:
                os.close(descriptor)
        except OSError as exc:
            if isinstance(exc, StoreError):
                raise
            with _mapped(self._name):
                raise

    def __del__(self) -> None:
        """Close it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            _may_be_held.release()


def _filled(descriptor: int, start: int, out: memoryview) -> int:
    done = 0
    while done < len(out) and (read := os.preadv(descriptor, [out[done : done + _SLICE]], start + done)):
        done += read
    return done


class LocalBackend(Backend):
    """A folder of this machine.

    Parameters
    ----------
    root : str
        Absolute path of the folder; it is made with the first write.
    """

    real_folders = True
    blocking = True
    conditions = frozenset({"read:match", "put:create", "put:replace", "complete:create", "complete:replace"})

    def __init__(self, root: str) -> None:
        self._root = str(Path(root))
        self._start_threads()

    def _start_threads(self) -> None:
        # Few, whatever the number of cores: each keeps some of the memory that it once used.
        self._executor, self._pid = ThreadPoolExecutor(_THREADS, thread_name_prefix="sovstore-local"), os.getpid()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._pid != os.getpid():
            # The threads stayed in the parent; a reader that was opened before the fork may still be used here.
            self._start_threads()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _path(self, name: str) -> str:
        """Return the path of a name, none of whose components below the root is a symbolic link."""
        return _below(self._root, name)

    async def stat(self, name: str) -> Stat:
        """Return what the file system says of a file or folder."""

        def work() -> Stat:
            with _mapped(name):
                return _stat(name, os.stat(self._path(name)))

        return await self._run(work)

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """Return bytes [start, end) of a file."""
        return await self._run(partial(self._read, name, start, end, etag))

    async def read_first(self, name: str, size: int) -> tuple[Stat, bytes]:
        """Return what the file system says of a file, and its first `size` bytes, from one descriptor."""

        def work() -> tuple[Stat, bytes]:
            status, data = self._read_with_status(name, 0, size, None)
            return _stat(name, status), data

        return await self._run(work)

    def _read(self, name: str, start: int, end: int, etag: str | None) -> bytes:
        return self._read_with_status(name, start, end, etag)[1]

    def _read_with_status(self, name: str, start: int, end: int, etag: str | None) -> tuple[os.stat_result, bytes]:
        with _mapped(name):
            descriptor, status = self._open(name, etag)
            try:
                # A buffer is made for all that is asked for, and the end of the file is known.
                end, pieces = min(end, status.st_size), []
                while start < end and (piece := os.pread(descriptor, min(end - start, _SLICE), start)):
                    pieces.append(piece)
                    start += len(piece)
                return status, pieces[0] if len(pieces) == 1 else b"".join(pieces)
            finally:
                os.close(descriptor)

    def open_now(self, name: str, *, etag: str | None = None) -> OpenedNow:
        """Return a file held open."""
        with _mapped(name):
            return _LocalFile(name, lambda: self._open(name, etag)[0])

    def _open(self, name: str, etag: str | None) -> tuple[int, os.stat_result]:
        """Return the descriptor of a file that is still the one of `etag`, and what the system says of it."""
        descriptor = os.open(self._path(name), _READ)
        try:
            status = os.fstat(descriptor)
            if stat_module.S_ISDIR(status.st_mode):
                raise IsFolderError(f"{name}: is a folder", path=name)
            if not stat_module.S_ISREG(status.st_mode):
                raise FormatError(f"{name}: not a file", path=name, hint="sovstore did not make it; remove it")
            if etag is not None and _etag(status) != etag:
                raise ObjectChangedError(f"{name}: changed while it was read", path=name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, status

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        """Return a write that goes to a temporary file of the same file system; at its commit, when it is small."""
        upload = _LocalUpload(self._root, name, self._run, create=create, if_match=if_match)
        if size is None or size > _SMALL:
            try:
                await self._run(upload.begin_now)
            except asyncio.CancelledError:
                # The thread makes its file all the same, and nobody else would delete it before the next write.
                await upload.abort()
                raise
        return upload

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield the entries of a folder; symbolic links to folders are not followed."""
        waiting = [folder]
        while waiting:
            found = await self._run(partial(self._scan, waiting.pop()))
            for entry in found:
                if recursive and entry.folder:
                    waiting.append(entry.name)
                yield entry

    def _scan(self, folder: str) -> Sequence[Stat]:
        found = []
        with (
            suppress(ObjectNotFoundError),
            _mapped(folder),
            os.scandir(self._path(folder)) as entries,
        ):
            for entry in entries:
                # A file that went away between the listing and here is not listed.
                with suppress(FileNotFoundError):
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    found.append(_stat(name, entry.stat(follow_symlinks=False)))
        return found

    async def delete(self, names: Iterable[str]) -> None:
        """Delete files, and the empty folders whose names end with ``/``."""

        def work() -> None:
            for name in names:
                with _mapped(name), suppress(FileNotFoundError, NotADirectoryError):
                    if name.endswith("/"):
                        if name == _OWN_FOLDER:
                            _delete_lock(self._root)
                        os.rmdir(self._path(name))
                    else:
                        path = self._path(name)
                        with _in_turn(self._root, alone=False):
                            os.unlink(path)

        await self._run(work)

    async def delete_match(self, name: str, etag: str) -> None:
        """Delete a file that nobody replaced; no other writer comes between the look and the deletion."""

        def work() -> None:
            with _mapped(name), _in_turn(self._root, alone=True):
                path = self._path(name)
                if _etag(os.stat(path)) != etag:
                    raise ObjectChangedError(f"{name}: somebody else changed it first", path=name)
                os.unlink(path)

        await self._run(work)

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Copy a file with its head replaced; the system shares the blocks where it can."""
        await self._run(partial(self._copy, source, target, head, etag, create=create))

    def _copy(self, source: str, target: str, head: bytes, etag: str | None, *, create: bool) -> None:
        with _mapped(source):
            descriptor = os.open(self._path(source), _READ)
        status = os.fstat(descriptor)
        # In place, whatever somebody wrote while it was copied must stay.
        if_match = _etag(status) if source == target else None
        upload = _LocalUpload(self._root, target, self._run, create=create, if_match=if_match)
        try:
            if etag is not None and _etag(status) != etag:
                raise ObjectChangedError(f"{source}: changed while it was copied", path=source)
            upload.write_now(head)
            # The descriptor pins the file: whoever replaces the name now leaves these bytes alone.
            upload.append_now(descriptor, len(head), status.st_size)
            upload.commit_now()
        except BaseException:
            upload.abort_now()
            raise
        finally:
            os.close(descriptor)

    async def copy_from(
        self,
        origin: Backend,
        source: str,
        target: str,
        *,
        size: int,
        etag: str,
        create: bool = False,
        told: Callable[[int], None],
    ) -> Upload | None:
        """Copy a file of another folder inside the system, which shares the blocks where it can."""
        if not isinstance(origin, LocalBackend):
            return None
        upload = _LocalUpload(self._root, target, self._run, create=create)
        try:
            # A step at a time, so that whoever gives up waits for no more than that.
            for start in range(0, size, _STEP):
                end = min(start + _STEP, size)
                if not await self._run(partial(upload.copy_now, origin, source, etag, start, end)):
                    await upload.abort()
                    return None
                told(end - start)
        except BaseException:
            await upload.abort()
            raise
        return upload

    async def make_folder(self, name: str) -> None:
        """Make a folder and its parents."""

        def work() -> None:
            with _mapped(name, writing=True):
                os.makedirs(self._path(name), exist_ok=True)

        await self._run(work)

    async def sweep(self, older_than: timedelta = STALE, *, dry_run: bool = False) -> int:
        """Delete the temporary files that no live process has locked, whatever their age."""
        del older_than
        return await self._run(partial(self._sweep, dry_run=dry_run))

    def _sweep(self, *, dry_run: bool) -> int:
        swept = 0
        for entry in self._scan(TEMPORARY):
            # Nothing but what `_LocalUpload` makes: a host may have put other things there.
            if entry.folder or not _TEMPORARY_NAME.fullmatch(entry.name.rpartition("/")[2]):
                continue
            swept += beside.delete_if_dead(self._path(entry.name), dry_run=dry_run)
        return swept


def _copied(source: int, target: int, start: int, end: int) -> int:
    """Append bytes [start, end) of one open file to another, inside the system, and return how far it came."""
    try:
        while start < end and (n := os.copy_file_range(source, target, end - start, start)):
            start += n
    except OSError as exc:
        if exc.errno not in _NO_COPY:
            raise
    return start


class _LocalUpload(Upload):
    """A temporary file, locked while its writer lives; there is none yet while the little that was written is kept."""

    blocking = True

    def __init__(self, root: str, name: str, run: _Run, *, create: bool, if_match: str | None = None) -> None:
        self._run, self._root, self._name, self._create, self._if_match = run, root, name, create, if_match
        #: What the file will begin with; None once there is one, or the write was given up.
        self._kept: bytearray | None = bytearray()
        self._descriptor: int | None = None
        # A cancelled call goes on in its thread. Without this, `abort` could close the descriptor under it, and its
        # bytes could land in another file that was given the same number.
        self._lock = threading.RLock()

    def begin_now(self) -> None:
        """Make the temporary file, in this thread."""
        with self._lock:
            self._opened()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        if not self._keep(data):
            await self._run(partial(self.write_now, data))

    def write_now(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes, in this thread."""
        with self._lock:
            if not self._keep(data):
                descriptor = self._opened()
                with _mapped(self._name):
                    beside.append(descriptor, data)

    def _keep(self, data: bytes | bytearray | memoryview) -> bool:
        with self._lock:
            if self._kept is None or len(self._kept) + len(data) > _SMALL:
                return False
            self._kept += data
            return True

    def _opened(self) -> int:
        """Return the descriptor of the temporary file, with all in it that was written so far."""
        kept, self._kept = self._kept, None
        if kept is not None:
            with _mapped(self._name, writing=True):
                self._descriptor = self._created()
                beside.append(self._descriptor, kept)
        if self._descriptor is None:
            raise StoreError(f"{self._name}: the write was given up", path=self._name)
        return self._descriptor

    def _created(self) -> int:
        self._pid = os.getpid()
        folder = _below(self._root, TEMPORARY)
        while True:
            self._temporary = f"{folder}/{os.urandom(12).hex()}"
            try:
                descriptor = beside.create_locked(self._temporary)
            except (FileNotFoundError, NotADirectoryError):
                _make_temporary(self._root, folder)
                descriptor = beside.create_locked(self._temporary)
            if descriptor is not None:
                return descriptor

    def append_now(self, descriptor: int, start: int, end: int) -> None:
        """Append bytes [start, end) of an open file, inside the system where it can, in this thread."""
        opened = self._opened()
        with _mapped(self._name):
            start = _copied(descriptor, opened, start, end)
            # Not on this file system, or not across two: the bytes go through this process.
            while start < end and (piece := os.pread(descriptor, min(_SLICE, end - start), start)):
                self.write_now(piece)
                start += len(piece)
        if start < end:
            raise ObjectChangedError(f"{self._name}: the source was cut while it was copied", path=self._name)

    def copy_now(self, origin: LocalBackend, source: str, etag: str, start: int, end: int) -> bool:
        """Append bytes [start, end) of a file of some root, in this thread; return False where only a process can."""
        with self._lock:
            opened = self._opened()
            with _mapped(source):
                descriptor = os.open(_below(origin._root, source), _READ)
            try:
                with _mapped(self._name):
                    reached = _copied(descriptor, opened, start, end)
                # Afterwards: somebody may have written into the file meanwhile.
                if _etag(os.fstat(descriptor)) != etag:
                    raise ObjectChangedError(f"{source}: changed while it was copied", path=source)
            finally:
                os.close(descriptor)
        return reached == end

    async def commit(self) -> None:
        """Sync the file and move it into place."""
        await self._run(self.commit_now)

    def commit_now(self) -> None:
        """Sync the file and move it into place, in this thread."""
        with self._lock, _mapped(self._name, writing=True):
            target = _below(self._root, self._name)
            os.fsync(self._opened())
            # Opened before anything is visible: a process with too many open files must not learn of it after that.
            folder = _opened_folder(os.path.dirname(target))
            try:
                self._publish(target)
                os.fsync(folder)
            finally:
                os.close(folder)
            self._close()

    def _publish(self, target: str) -> None:
        with _in_turn(self._root, alone=self._if_match is not None):
            if self._create:
                os.link(self._temporary, target)
                os.unlink(self._temporary)
                return
            if self._if_match is not None and _etag(os.stat(target)) != self._if_match:
                raise ObjectChangedError(f"{self._name}: somebody else changed it first", path=self._name)
            os.replace(self._temporary, target)

    async def abort(self) -> None:
        """Delete the temporary file."""
        await self._run(self.abort_now)

    def abort_now(self) -> None:
        """Delete the temporary file, in this thread."""
        with self._lock:
            self._kept = None
            if self._descriptor is not None:
                with suppress(OSError):
                    os.unlink(self._temporary)
                self._close()

    def __del__(self) -> None:
        """Delete the temporary file: an interrupted call may have left it to nobody."""
        # Not in a child that was forked: the file is its parent's. Not at the end either: the next sweep finds it.
        if self._descriptor is not None and self._pid == os.getpid() and not sys.is_finalizing():
            self.abort_now()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _opened_folder(path: str) -> int:
    """Return the descriptor of a folder, which is made if there is none."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        # Whatever somebody else made there meanwhile: opening it tells.
        with suppress(FileExistsError):
            os.makedirs(path)
        return os.open(path, flags)


def _make_temporary(root: str, folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as exc:
        if exc.errno in (*_FULL, *_TOO_MANY):
            raise
        hint = "check 'root' in the configuration, and the rights of that folder"
        raise StoreError(f"{root}: the store's folder cannot be written: {exc.strerror}", path=root, hint=hint) from exc

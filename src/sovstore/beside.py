"""Files of this machine that appear whole: written beside their place, then moved there.

A writer holds a lock on its temporary file for as long as it lives, and the system frees the lock of one that is
killed: whoever comes next tells by it what was left, and deletes that. The names are numbered, so that nobody has to
look through a folder for them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

#: Numbers in a row that nobody uses, after which no larger one is looked for.
_GAP = 4


def create_locked(path: Path | str, mode: int = 0o666) -> int | None:
    """Return a descriptor of a new locked file, or None when a sweep took it before it was locked.

    Raises
    ------
    OSError
        When it cannot be made, or is there already.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    # On a file system without locks nobody can take it for a dead writer's, either.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def delete_if_dead(path: Path | str, *, dry_run: bool = False) -> bool:
    """Return whether the writer of a temporary file is dead; the file is deleted then, unless it is a dry run."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not dry_run:
                os.unlink(path)
            return True
        finally:
            os.close(descriptor)
    return False


def sweep(path: Path, *, name: str | None = None, end: str = "") -> None:
    """Delete what killed writers left beside a file; arguments as `temporary`."""
    unused = 0
    for place in _places(path, name, end):
        if os.path.lexists(place):
            unused = 0
            delete_if_dead(place)
        elif (unused := unused + 1) == _GAP:
            return


def _places(path: Path, name: str | None, end: str) -> Iterator[Path]:
    return (path.with_name(f".{name or path.name}.sovstore-{number}{end}") for number in count())


@contextmanager
def temporary(path: Path, *, name: str | None = None, end: str = "", mode: int = 0o666) -> Iterator[tuple[Path, int]]:
    """Give a new file beside `path`, and its descriptor; it is deleted at the end, unless it was moved away.

    Parameters
    ----------
    name : str, optional
        What it is called after, in place of `path`.
    end : str
        How its name ends.
    mode : int
        Rights of the file, less those that the umask takes.

    Raises
    ------
    OSError
        When it cannot be made.
    """
    made, descriptor = _made(path, name, end, mode)
    try:
        yield made, descriptor
    finally:
        # Moved away, its name may be another writer's by now.
        with suppress(OSError):
            if os.path.samestat(os.lstat(made), os.fstat(descriptor)):
                os.unlink(made)
        os.close(descriptor)


def _made(path: Path, name: str | None, end: str, mode: int) -> tuple[Path, int]:
    for place in _places(path, name, end):
        while True:
            try:
                descriptor = create_locked(place, mode)
            except FileExistsError:
                # A live writer's, or one that cannot be deleted: the next number.
                if not delete_if_dead(place):
                    break
            else:
                if descriptor is not None:
                    return place, descriptor
    raise AssertionError("numbers do not end")


def append(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Write all of some bytes to a file.

    Raises
    ------
    OSError
        When they cannot be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_all(descriptor: int, content: bytes) -> None:
    """Write bytes to a file, as `append`, and wait until they are on its disk."""
    append(descriptor, content)
    os.fsync(descriptor)


def replace(path: Path, content: bytes, *, name: str | None = None) -> None:
    """Make a file these bytes, at once and durably.

    Raises
    ------
    OSError
        When it cannot be written; it is as before then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path, name=name) as (made, descriptor):
        write_all(descriptor, content)
        os.replace(made, path)


def create(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Make a new file of these bytes, at once and durably.

    Raises
    ------
    OSError
        When it cannot be written, or is there already: of two that make the same file one fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path, mode=mode) as (made, descriptor):
        write_all(descriptor, content)
        settle(made, path, mode=mode)


def settle(made: Path, path: Path, *, mode: int = 0o666) -> None:
    """Give a temporary file that is complete its name, which must be free.

    Raises
    ------
    OSError
        When there is a file of that name already: of two that make the same file one fails.
    """
    try:
        os.link(made, path)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links: the name is taken first.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        os.replace(made, path)

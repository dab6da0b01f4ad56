"""What the arguments of commands name: objects and folders of stores, files and folders of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovstore.errors import ConfigError, IsFolderError, ObjectNotFoundError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.store import Entry

_SCHEME = "sov://"
#: Characters that make a path a pattern, where no object has exactly that path.
_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Target:
    """One argument, taken apart.

    Parameters
    ----------
    text : str
        As it was given.
    store : str or None
        Name of the store; None for a file of this machine.
    path : str
        Path in the store without slashes at its ends, '' for its root; or the local path as given.
    """

    text: str
    store: str | None
    path: str

    @property
    def is_folder(self) -> bool:
        """Whether it says by itself that it is a folder."""
        return self.text.endswith("/") or (self.store is not None and not self.path)

    @property
    def is_pipe(self) -> bool:
        """Whether it stands for stdin or stdout."""
        return self.store is None and self.path == "-"


def parse(text: str) -> Target:
    """Return what an argument names.

    Raises
    ------
    ConfigError
        When it starts like a URL of a store and is none.
    """
    if text.startswith(_SCHEME):
        store, _, path = text.removeprefix(_SCHEME).partition("/")
        if not store:
            raise ConfigError(f"{text}: which store?", path=text, hint="write sov://STORE/PATH")
        return Target(text, store, path.removesuffix("/"))
    if text.startswith("sov:"):
        raise ConfigError(f"{text}: not a URL of a store", path=text, hint="write sov://STORE/PATH")
    return Target(text, None, text)


def in_store(text: str) -> tuple[Target, str]:
    """Return an argument that must name something in a store, and the name of the store.

    Raises
    ------
    ConfigError
        When it is a local path.
    """
    target = parse(text)
    if target.store is None:
        raise ConfigError(f"{text}: not in a store", path=text, hint=f"write sov://STORE/{text.lstrip('./')}")
    return target, target.store


def store_name(text: str) -> str:
    """Return the store that an argument names, with or without ``sov://``."""
    return (parse(text).store or text) if text.startswith("sov:") else text


def on_this_machine(text: str) -> Target:
    """Return an argument that must be a local path.

    Raises
    ------
    ConfigError
        When it is in a store.
    """
    target = parse(text)
    if target.store is not None:
        raise ConfigError(f"{text}: is in a store", path=text, hint="'sovstore cp' copies inside and between stores")
    return target


def join(folder: str, name: str) -> str:
    """Return the path of `name` in a folder of a store; '' is the root."""
    return f"{folder}/{name}" if folder and name else folder or name


def base_name(path: str) -> str:
    """Return the last segment of a path."""
    return path.rpartition("/")[2]


def local_name(path: str) -> str:
    """Return the last segment of a local path, also of ``.`` and ``a/..``."""
    return os.path.basename(os.path.abspath(path))


async def is_folder(fs: SovFileSystem, target: Target, sources: Sequence[object]) -> bool:
    """Return whether things are to be written into `target`, rather than as it."""
    if target.is_folder or len(sources) > 1:
        return True
    try:
        return (await fs.store.stat(target.path)).folder
    except ObjectNotFoundError:
        return False


async def expand(fs: SovFileSystem, path: str) -> list[Entry]:
    """Return the object or folder at a path, or all that a pattern matches.

    Raises
    ------
    ObjectNotFoundError
        When there is none.
    """
    try:
        return [await fs.store.stat(path)]
    except ObjectNotFoundError:
        if not _PATTERN.intersection(path):
            raise
    found = [await fs.store.stat(match) for match in await fs._glob(path)]
    if not found:
        raise ObjectNotFoundError(f"{path}: nothing in store {fs.store_name!r} matches", path=path)
    return found


def refuse_folder(fs: SovFileSystem, folder: Entry, *, recursive: bool) -> None:
    """Raise `IsFolderError` when nobody asked for folders."""
    if not recursive:
        path = folder.path or f"{_SCHEME}{fs.store_name}/"
        raise IsFolderError(f"{path}: is a folder", path=folder.path, hint="-r takes all that is in it")


async def below(fs: SovFileSystem, folder: Entry, *, recursive: bool) -> list[Entry]:
    """Return all that lies below a folder, sorted by path.

    Raises
    ------
    IsFolderError
        When nobody asked for folders.
    """
    refuse_folder(fs, folder, recursive=recursive)
    found = [entry async for entry in fs.store.list(folder.path, recursive=True)]
    return sorted(found, key=lambda entry: entry.path)

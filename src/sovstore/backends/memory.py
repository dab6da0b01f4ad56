"""``provider = "memory"``: fsspec's memory filesystem, for tests and trying out. Gone with the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from sovstore.backends.generic import GenericBackend, _mapped
from sovstore.errors import IsFolderError, NotFolderError

#: The store that all memory filesystems of a process share is changed under this lock only.
_LOCK = threading.RLock()
# A thread that holds it is not there in a child, which would wait for it for ever, and find its change half done.
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class MemoryBackend(GenericBackend):
    """The generic driver, with moves that copy nothing and calls that need no thread.

    Parameters
    ----------
    root : str
        A folder in the process's one memory filesystem.
    """

    def __init__(self, root: str) -> None:
        super().__init__("memory", root, {})

    async def _in_thread(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        with _LOCK:
            return function(*args, **kwargs)

    async def publish(self, temporary: str, name: str) -> None:
        """Move the finished object itself; fsspec's `mv` would copy its bytes."""
        target, fs = self._path(name), self._fs
        with _mapped(name), _LOCK:
            if fs.isdir(target):
                raise IsFolderError(f"{name}: is a folder", path=name)
            parent = fs._parent(target)
            while len(parent) > len(self._root):
                if fs.isfile(parent):
                    raise NotFolderError(f"{name}: a parent of it is an object", path=name)
                parent = fs._parent(parent)
            file = fs.store.pop(temporary)
            file.path = target
            fs.store[target] = file

"""The names of one listing: what a host lists, decoded to paths."""

from __future__ import annotations

import logging
from urllib.parse import quote

from sovstore.errors import FormatError, IntegrityError
from sovstore.format.names import Names

#: Characters of names and paths of the folders of one listing that are remembered.
_MOST_REMEMBERED = 2**21
#: Characters of a name that is looked at segment by segment. Ours have 900 at most, and S3 and Azure Blob 1024.
_MOST_NAME = 2048
#: Characters of a name that are shown.
_SHOWN = 80
_log = logging.getLogger("sovstore")


class Decoder:
    """Decodes the names of one listing; each folder's name once.

    Parameters
    ----------
    names : Names
        Of the store.
    folder, path : str
        What is listed: its name at the host, and its path.
    """

    def __init__(self, names: Names, folder: str, path: str) -> None:
        self._names = names
        self._below_folder = f"{folder}/" if folder else ""
        self._prefix = f"{path}/" if path else ""
        self._known = {"": ("", False), folder: (path, False)}
        self._folders = dict(self._known)
        self._remembered = 0

    def decode(self, name: str) -> tuple[str, bool]:
        """Return the path of a name, and whether it is foreign."""
        if len(name) > _MOST_NAME or name.startswith("/"):
            # Taken whole: a million characters can be half a million folders, each of which has a long name itself, and
            # the folder without a name would be taken for the root.
            return self._prefix + self._escaped(name.removeprefix(self._below_folder), name), True
        parent_name = name.rpartition("/")[0]
        if self._remembered > _MOST_REMEMBERED:
            # A store may have any number of them, and a host lists names of any depth.
            self._folders, self._remembered = dict(self._known), 0
        unknown = []
        # No recursion: a host may list names of any depth.
        while (parent := self._folders.get(parent_name)) is None:
            unknown.append(parent_name)
            parent_name = parent_name.rpartition("/")[0]
        for folder in reversed(unknown):
            parent = self._folders[folder] = self._below(parent, folder)
            self._remembered += len(folder) + len(parent[0])
        return self._below(parent, name)

    def _below(self, parent: tuple[str, bool], name: str) -> tuple[str, bool]:
        path, foreign = parent
        segment = name.rpartition("/")[2]
        prefix = f"{path}/" if path else ""
        if not foreign:
            try:
                return prefix + self._names.decode_segment(path, segment), False
            except (FormatError, IntegrityError):
                return prefix + self._escaped(segment, name), True
        return prefix + _escape(segment), True

    @staticmethod
    def _escaped(segment: str, name: str) -> str:
        shown = name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..."
        _log.warning("%r: a name at the host that this store did not make", shown)
        return _escape(segment)


def _escape(segment: str) -> str:
    """Return a hostile name so that it can be neither '..' nor a path of its own."""
    try:
        # A file system gives a byte that is no UTF-8 as one half of a surrogate pair.
        raw = segment.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        # A reply in JSON may hold any half.
        raw = segment.encode(errors="surrogatepass")
    return quote(raw, safe="") if segment.strip(".") else "%2E" * len(segment)

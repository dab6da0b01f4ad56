"""The names of one listing: what a host lists, decoded to paths."""

from __future__ import annotations

import logging
from urllib.parse import quote

from sovstore.errors import FormatError, IntegrityError
from sovstore.format.names import Names

#: Folders of one listing whose decoded names are remembered.
_MOST_FOLDERS = 10_000
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
        self._known = {"": ("", False), folder: (path, False)}
        self._folders = dict(self._known)

    def decode(self, name: str) -> tuple[str, bool]:
        """Return the path of a name, and whether it is foreign."""
        parent_name = name.rpartition("/")[0]
        if len(self._folders) > _MOST_FOLDERS:
            # A store may have any number of them.
            self._folders = dict(self._known)
        unknown = []
        # No recursion: a host may list names of any depth.
        while (parent := self._folders.get(parent_name)) is None:
            unknown.append(parent_name)
            parent_name = parent_name.rpartition("/")[0]
        for folder in reversed(unknown):
            parent = self._folders[folder] = self._below(parent, folder)
        return self._below(parent, name)

    def _below(self, parent: tuple[str, bool], name: str) -> tuple[str, bool]:
        path, foreign = parent
        segment = name.rpartition("/")[2]
        prefix = f"{path}/" if path else ""
        if not foreign:
            try:
                return prefix + self._names.decode_segment(path, segment), False
            except (FormatError, IntegrityError):
                _log.warning("%r: a name at the host that this store did not make", name)
        # Escaped, so that a hostile name can be neither '..' nor a path of its own.
        escaped = quote(segment, safe="", errors="surrogateescape") if segment.strip(".") else "%2E" * len(segment)
        return prefix + escaped, True

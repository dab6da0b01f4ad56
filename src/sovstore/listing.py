"""The names of one listing: what a host lists, decoded to paths, once each, and not for ever."""

from __future__ import annotations

import logging
import random
from urllib.parse import quote

from sovstore.errors import FormatError, IntegrityError
from sovstore.format.names import Names

#: Folders of one listing whose decoded names are remembered.
_MOST_FOLDERS = 10_000
#: Names of one listing that are remembered, to notice those that come again; of a longer one, a random sample.
_REMEMBERED = 10_000
#: How often remembered names may come again: pages can overlap while somebody writes.
_MOST_REPEATED = 1000
#: Names of one listing that are not of the store. Only these can be new without end: nobody else makes names of ours.
_MOST_FOREIGN = 100_000
#: Names of one listing that the log says are foreign, one by one.
_LOGGED = 100
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
        self._path = path
        self._known = {"": ("", False), folder: (path, False)}
        self._folders = dict(self._known)
        self._remembered: list[tuple[str, bool]] = []
        self._seen: set[tuple[str, bool]] = set()
        self._count = self._repeated = self._foreign = self._undecodable = 0

    def is_new(self, name: str, *, folder: bool) -> bool:
        """Return whether a name did not come before, as far as is remembered.

        Raises
        ------
        IntegrityError
            When names come again and again: a listing of them has no end.
        """
        key = name, folder
        if key in self._seen:
            self._repeated += 1
            if self._repeated > _MOST_REPEATED:
                raise IntegrityError(f"{self._path}: the host's listing repeats itself without end", path=self._path)
            return False
        self._count += 1
        if len(self._remembered) < _REMEMBERED:
            self._remembered.append(key)
            self._seen.add(key)
        elif (place := random.randrange(self._count)) < _REMEMBERED:  # noqa: S311  # nosec B311  # not seen by the host
            self._seen.remove(self._remembered[place])
            self._remembered[place] = key
            self._seen.add(key)
        return True

    def decode(self, name: str) -> tuple[str, bool]:
        """Return the path of a name, and whether it is foreign.

        Raises
        ------
        IntegrityError
            When there are more foreign names than any folder beside a store has.
        """
        path, foreign = self._decode(name)
        self._foreign += foreign
        if self._foreign > _MOST_FOREIGN:
            hint = "the host invents names, or others write into the store's root: give it one of its own"
            message = (
                f"{self._path}: the host's listing has more than {_MOST_FOREIGN:,} names that are not of this store"
            )
            raise IntegrityError(message, path=self._path, hint=hint)
        return path, foreign

    def _decode(self, name: str) -> tuple[str, bool]:
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
                self._undecodable += 1
                if self._undecodable <= _LOGGED:
                    more = "; others are not logged" if self._undecodable == _LOGGED else ""
                    _log.warning("%r: a name at the host that this store did not make%s", name, more)
        # Escaped, so that a hostile name can be neither '..' nor a path of its own.
        escaped = quote(segment, safe="", errors="surrogateescape") if segment.strip(".") else "%2E" * len(segment)
        return prefix + escaped, True

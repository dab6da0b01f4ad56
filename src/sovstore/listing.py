"""The names of one listing: what a host lists, decoded to paths, once each, and not for ever."""

from __future__ import annotations

import logging
import random
from hashlib import sha256
from urllib.parse import quote

from sovstore.errors import FormatError, IntegrityError
from sovstore.format.names import Names

#: Characters of names and paths of the folders of one listing that are remembered.
_MOST_REMEMBERED = 2**21
#: Characters of a name that is looked at segment by segment. Ours have 900 at most, and S3 and Azure Blob 1024.
_MOST_NAME = 2048
#: Characters of a name that are shown.
_SHOWN = 80
#: Names of one listing that are remembered, to notice those that come again; of a longer one, a random sample.
_SAMPLE = 10_000
#: How often remembered names may come again: pages can overlap while somebody writes.
_MOST_REPEATED = 1000
#: Names of one listing that are not of the store. Only these can be new without end: nobody else makes names of ours.
_MOST_FOREIGN = 100_000
#: Names of one listing that the log says are foreign, one by one.
_LOGGED = 100
#: What the log says of a foreign name; the commands, which report such names by themselves, know it by this.
FOREIGN_NAME = "%r: a name at the host that this store did not make%s"
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
        self._below_folder = f"{folder}/" if folder else ""
        self._prefix = f"{path}/" if path else ""
        self._known = {"": ("", False), folder: (path, False)}
        self._folders = dict(self._known)
        self._remembered = 0
        self._sample: list[tuple[str, bool]] = []
        self._sampled: set[tuple[str, bool]] = set()
        self._count = self._repeated = self._foreign = self._undecodable = 0

    def is_new(self, name: str, *, folder: bool) -> bool:
        """Return whether a name did not come before, as far as is remembered.

        Raises
        ------
        IntegrityError
            When names come again and again: a listing of them has no end.
        """
        key = name if len(name) <= _MOST_NAME else sha256(name.encode(errors="surrogatepass")).hexdigest(), folder
        if key in self._sampled:
            self._repeated += 1
            if self._repeated > _MOST_REPEATED:
                raise IntegrityError(f"{self._path}: the host's listing repeats itself without end", path=self._path)
            return False
        self._count += 1
        if len(self._sample) < _SAMPLE:
            self._sample.append(key)
            self._sampled.add(key)
        elif (place := random.randrange(self._count)) < _SAMPLE:  # noqa: S311  # nosec B311  # not seen by the host
            self._sampled.remove(self._sample[place])
            self._sample[place] = key
            self._sampled.add(key)
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

    def _escaped(self, segment: str, name: str) -> str:
        self._undecodable += 1
        if self._undecodable <= _LOGGED:
            shown = name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..."
            more = "; others are not logged" if self._undecodable == _LOGGED else ""
            _log.warning(FOREIGN_NAME, shown, more)
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

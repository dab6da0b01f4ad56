"""A hostile host: it keeps every version of everything that it ever received, and lies in any reply that a script says.

It is a whole host in memory, and an honest one until it is told otherwise: it passes `BackendTests`. What the adversary
of docs/threat-model.md does is done to it in three ways: change `HostileBackend.objects` behind the client's back, take
anything out of `HostileBackend.versions`, or answer with `HostileBackend.lying`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest import mock

from sovstore import store, store_creation
from sovstore.backends import registry
from sovstore.backends.base import Backend, Place, Stat, Upload
from sovstore.backends.providers import CONDITIONS
from sovstore.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError


@dataclass(frozen=True)
class Request:
    """One thing that the host was asked.

    Parameters
    ----------
    method : str
        A method of `Backend`; ``write``, ``commit`` and ``abort`` are those of its uploads.
    name : str
        Of the object or folder; of a copy, its target.
    start, end : int
        Range of a ``read``.
    data : bytes
        What came with it: the bytes of a ``write``, all bytes of a ``commit``, the new head of a ``copy``.
    source : str
        Of a ``copy``.
    """

    method: str
    name: str
    start: int = 0
    end: int = 0
    data: bytes = field(default=b"", repr=False)
    source: str = ""


#: Takes what was asked and the truthful answer; returns what is answered, or an error to raise. The answer to ``read``
#: is bytes, to ``stat`` a `Stat`, to ``list`` any iterable of them (also one without end), to ``write`` and ``commit``
#: the bytes that are kept (None: none of them), and to everything else None.
Lie = Callable[[Request, Any], Any]


class HostileBackend(Backend):
    """One root at a host that lies. Usable from several threads and event loops; nothing of it outlives the process.

    Attributes
    ----------
    objects : dict of str to bytes
        What it serves now, by name below the root. Tests change it as they like.
    versions : dict of str to list of bytes
        Every version that was ever completed, by name, the oldest first; also of what was deleted.
    received : list of Request
        Everything that it was ever asked, with the bytes that came along.
    """

    conditions = frozenset(CONDITIONS)

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.versions: dict[str, list[bytes]] = {}
        self.received: list[Request] = []
        self._times: dict[str, datetime] = {}
        self._lies: list[tuple[str, str | None, Lie]] = []
        self._lock = threading.RLock()

    @contextmanager
    def lying(self, method: str, lie: Lie, *, name: str | None = None) -> Iterator[None]:
        """Answer `method` by `lie` within the block; of several lies, the later one is told what the earlier one said.

        Parameters
        ----------
        name : str, optional
            Only about this object or folder.
        """
        entry = (method, name, lie)
        self._lies.append(entry)
        try:
            yield
        finally:
            self._lies.remove(entry)

    def replay(self, name: str, version: int = -2) -> None:
        """Serve an older version again; by default the one before the last."""
        self.objects[name] = self.versions[name][version]

    def exchange(self, one: str, other: str) -> None:
        """Serve each of two objects as the other."""
        self.objects[one], self.objects[other] = self.objects[other], self.objects[one]

    # What a host does

    async def stat(self, name: str) -> Stat:
        """Return what is held, or what a lie says."""
        found: Stat = self._answer(Request("stat", name), lambda: self._stat(name))
        return found

    async def read(self, name: str, start: int, end: int, *, etag: str | None = None) -> bytes:
        """Return a range of what is held, or what a lie says."""

        def truth() -> bytes:
            data = self._held(name)
            if etag is not None and etag != _etag(data):
                raise ObjectChangedError(f"{name}: changed meanwhile", path=name)
            return data[start:end]

        answer: bytes = self._answer(Request("read", name, start, end), truth)
        return answer

    async def upload(
        self, name: str, *, create: bool = False, if_match: str | None = None, size: int | None = None
    ) -> Upload:
        """Return a write whose bytes are kept whatever becomes of it."""
        self._answer(Request("upload", name), lambda: None)
        return _HostileUpload(self, name, create=create, if_match=if_match)

    async def list(self, folder: str, *, recursive: bool = False) -> AsyncIterator[Stat]:
        """Yield what is held below a folder, or what a lie lists."""
        answer = self._answer(Request("list", folder), lambda: self._below(folder, recursive=recursive))
        for stat in answer:
            yield stat

    async def delete(self, names: Iterable[str]) -> None:
        """Delete, unless a lie returns anything but None; every version is kept."""
        for name in names:
            if self._answer(Request("delete", name), lambda: None) is None:
                with self._lock:
                    self.objects.pop(name, None)

    async def copy(
        self, source: str, target: str, *, head: bytes, etag: str | None = None, create: bool = False
    ) -> None:
        """Copy with another head; a lie may return other bytes to keep."""
        with self._lock:
            data = self._held(source)
            if etag is not None and etag != _etag(data):
                raise ObjectChangedError(f"{source}: changed meanwhile", path=source)
            made = head + data[len(head) :]
            request = Request("copy", target, data=head, source=source)
            self.keep(target, self._answer(request, lambda: made), create=create)

    # Inside

    def ask(self, request: Request, truth: Callable[[], Any]) -> Any:
        """Return the answer to a request of an upload."""
        return self._answer(request, truth)

    def keep(self, name: str, data: bytes | None, *, create: bool = False, if_match: str | None = None) -> None:
        """Complete a write under its conditions; None completes nothing."""
        with self._lock:
            found = self.objects.get(name)
            if create and found is not None:
                raise ObjectExistsError(f"{name}: exists already", path=name)
            if if_match is not None and (found is None or _etag(found) != if_match):
                raise ObjectChangedError(f"{name}: changed meanwhile", path=name)
            if data is not None:
                self.objects[name] = data
                self._times[name] = datetime.now(UTC)
                self.versions.setdefault(name, []).append(data)

    def _answer(self, request: Request, truth: Callable[[], Any]) -> Any:
        with self._lock:
            self.received.append(request)
            told = request.method, request.name
            lies = [lie for method, name, lie in self._lies if (method, name or request.name) == told]
            try:
                answer = truth()
            except (ObjectNotFoundError, ObjectChangedError) as exc:
                if not lies:
                    raise
                answer = exc
        for lie in lies:
            answer = lie(request, answer)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _held(self, name: str) -> bytes:
        if name not in self.objects:
            raise ObjectNotFoundError(f"{name}: no such object", path=name)
        return self.objects[name]

    def _stat(self, name: str) -> Stat:
        if name in self.objects:
            return self._describe(name)
        if any(known.startswith(f"{name}/") for known in self.objects):
            return Stat(name, 0, folder=True)
        raise ObjectNotFoundError(f"{name}: no such object", path=name)

    def _describe(self, name: str) -> Stat:
        # What was changed behind the client's back keeps its time.
        modified = self._times.setdefault(name, datetime.now(UTC))
        return Stat(name, len(self.objects[name]), etag=_etag(self.objects[name]), modified=modified)

    def _below(self, folder: str, *, recursive: bool) -> Iterable[Stat]:
        base = f"{folder}/" if folder else ""
        found: dict[str, Stat] = {}
        for name in sorted(self.objects):
            inner, below, _ = name.removeprefix(base).partition("/")
            if not name.startswith(base):
                continue
            if recursive or not below:
                found[name] = self._describe(name)
            else:
                found[f"{base}{inner}/"] = Stat(base + inner, 0, folder=True)
        return found.values()


class _HostileUpload(Upload):
    """A write to a `HostileBackend`."""

    def __init__(self, host: HostileBackend, name: str, *, create: bool, if_match: str | None) -> None:
        self._host, self._name = host, name
        self._create, self._if_match = create, if_match
        self._pieces: list[bytes] = []

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        piece = bytes(data)
        kept = self._host.ask(Request("write", self._name, data=piece), lambda: piece)
        if kept is not None:
            self._pieces.append(kept)

    async def commit(self) -> None:
        whole = b"".join(self._pieces)
        kept = self._host.ask(Request("commit", self._name, data=whole), lambda: whole)
        self._host.keep(self._name, kept, create=self._create, if_match=self._if_match)

    async def abort(self) -> None:
        self._host.ask(Request("abort", self._name), lambda: None)
        self._pieces.clear()


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@contextmanager
def hostile_hosts() -> Iterator[Callable[[str], HostileBackend]]:
    """Let every store that is made or opened within the block lie at hostile hosts, whatever its provider.

    Yields
    ------
    callable
        Returns the `HostileBackend` of a root. Stores whose configuration names the same root share it.
    """
    hosts: dict[str, HostileBackend] = {}

    def at(root: str) -> HostileBackend:
        return hosts.setdefault(root, HostileBackend())

    def open_backend(place: Place) -> Backend:
        return at(place.root)

    with ExitStack() as stack:
        for module in (registry, store, store_creation):
            stack.enter_context(mock.patch.object(module, "open_backend", open_backend))
        yield at

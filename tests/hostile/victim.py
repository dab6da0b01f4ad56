"""A store at a hostile host, and everything that its user may do with it: the API of fsspec and the command line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sovstore.cli import main
from sovstore.errors import FormatError, IntegrityError
from sovstore.filesystem import SovFileSystem
from sovstore.testing import HostileBackend
from tests.stores import make_store, open_fs

REFUSED = (IntegrityError, FormatError)
#: The exit code of what is not authentic.
NOT_AUTHENTIC = 3
#: A local file that was there before a download: it survives one that is refused.
OLD = b"what was there before"


@dataclass
class Victim:
    """A store, its host, and the folder of its user.

    Parameters
    ----------
    at : callable
        Returns the hostile host of a root.
    capture : pytest.CaptureFixture
        Of bytes: what commands print is data.
    """

    folder: Path
    at: Callable[[str], HostileBackend]
    capture: pytest.CaptureFixture[bytes]
    name: str = "cohortes"

    def __post_init__(self) -> None:
        self.file = self.folder / "sovstore.toml"
        self.fs = open_fs(self.file, self.name)
        self.host = self.at(self.fs.store.config.root)

    @property
    def fresh(self) -> SovFileSystem:
        """The store as a new client opens it."""
        return open_fs(self.file, self.name, skip_instance_cache=True)

    def named(self, path: str) -> str:
        """Return the name at the host."""
        return self.fs._sync(self.fs.store.name, path)

    def get(self, path: str) -> bytes:
        """Return what the host has of an object."""
        return self.host.objects[self.named(path)]

    def set(self, path: str, data: bytes) -> None:
        """Let the host serve something else at a path."""
        self.host.objects[self.named(path)] = data

    def command(self, *words: str) -> tuple[int, bytes, str]:
        """Run a command; return its exit code, its stdout and its stderr."""
        self.capture.readouterr()
        code = main(["--config", str(self.file), *words])
        out, err = self.capture.readouterr()
        return code, out, err.decode()

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"sov://{self.name}/{path}"

    def ways(self, path: str) -> list[Callable[[], bytes]]:
        """Return all ways to read an object, or ten bytes of it."""
        return self._whole(path) + self._first(path)

    # What must hold

    def whole(self, path: str, data: bytes) -> None:
        """Check that the object reads by every way: what is refused elsewhere is not refused for another reason."""
        assert {way() for way in self._whole(path)} == {data}
        assert {way() for way in self._first(path)} == {data[:10]}
        assert self.command("cat", self.url(path))[:2] == (0, data)
        assert self.command("verify", self.url(path))[0] == 0

    def refused(self, path: str, *, beginning: bytes = b"", by: Any = REFUSED) -> None:
        """Check that no way of reading gives a byte.

        Parameters
        ----------
        beginning : bytes
            What was written in front of the part that is attacked: as authentic as ever, so a reader of it or a pipe
            may have it.
        """
        for way in self._whole(path) + ([] if beginning else self._first(path)):
            with pytest.raises(by):
                way()
        for way in self._first(path) if beginning else []:
            # Reading ahead may meet the attack.
            with suppress(*REFUSED):
                assert way() == beginning[:10]
        code, out, err = self.command("cat", self.url(path))
        assert (code, beginning.startswith(out)) == (NOT_AUTHENTIC, True), err
        assert err.startswith("sovstore: error: ")
        target = self.folder / "taken"
        target.write_bytes(OLD)
        code, _, err = self.command("get", self.url(path), str(target))
        assert (code, target.read_bytes()) == (NOT_AUTHENTIC, OLD), err
        assert self.command("verify", self.url(path))[0] == NOT_AUTHENTIC
        # A host may copy what nobody has read yet; the copy is refused like the object itself.
        if self.command("cp", self.url(path), self.url("elsewhere"))[0] != NOT_AUTHENTIC:
            with pytest.raises(by):
                self.fs.cat_file("elsewhere")
            self.fs.rm("elsewhere")
        assert not self.fs.exists("elsewhere")

    def _whole(self, path: str) -> list[Callable[[], bytes]]:
        def opened() -> bytes:
            with self.fs.open(path) as file:
                return bytes(file.read())

        def by_url() -> bytes:
            with fsspec.open(self.url(path), "rb", config=str(self.file)) as file:
                return bytes(file.read())

        def fetched() -> bytes:
            target = self.folder / "fetched"
            target.write_bytes(OLD)
            try:
                self.fs.get_file(path, str(target))
            except REFUSED:
                assert target.read_bytes() == OLD
                raise
            return target.read_bytes()

        return [lambda: self.fs.cat_file(path), lambda: self.fs.cat([path])[path], opened, by_url, fetched]

    def _first(self, path: str) -> list[Callable[[], bytes]]:
        """Return the ways to read ten bytes."""

        def opened() -> bytes:
            with self.fs.open(path) as file:
                return bytes(file.read(10))

        def ranged() -> bytes:
            (found,) = self.fs.cat_ranges([path], [0], [10], on_error="raise")
            return bytes(found)

        return [lambda: self.fs.cat_file(path, 0, 10), lambda: self.fs.head(path, 10), opened, ranged]


def make_victim(
    folder: Path,
    at: Callable[[str], HostileBackend],
    capture: pytest.CaptureFixture[bytes],
    name: str = "cohortes",
    **settings: Any,
) -> Victim:
    """Make a store at a hostile host."""
    make_store(folder, name, provider="memory", **settings)
    return Victim(folder, at, capture, name)

"""Random sequences of everything that a store can do, against a dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sovstore.errors import (
    IntegrityError,
    IsFolderError,
    NotFolderError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from sovstore.filesystem import SovFileSystem
from tests.hosts import PROVIDERS, Host, cheap_key_files, open_host
from tests.stores import open_fs
from tests.stress import amount

pytestmark = pytest.mark.stress

CHUNK = 16384
#: Few names, so that they meet: as objects, as folders, below each other.
NAMES = ("a", "é", "名前", "A b.txt")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
CONTENTS = st.builds(
    lambda size, seed: (bytes([seed]) * 61 * (size // 61 + 1))[:size],
    st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 70_000, 300_000]),
    st.integers(0, 255),
)
OFFSETS = st.none() | st.integers(-310_000, 310_000) | st.sampled_from([0, CHUNK, CHUNK - 1, -1])


#: What must have happened, each several times. That an open file meets another version is rarer.
RULES = {
    "pipe", "write in pieces", "create", "create what is there", "fail in the middle", "finish", "give up", "read",
    "read what is not there", "seek and read", "copy", "rename", "copy a folder", "rename a folder", "delete",
    "delete a folder that must be asked for", "delete what is not there", "delete recursively", "make a folder", "list",
    "refused by IsFolderError", "refused by NotFolderError",
}  # fmt: skip


class StoreMachine(RuleBasedStateMachine):
    """A store and what it should hold. `host` is set by the test."""

    host: ClassVar[Host]
    ran: ClassVar[Counter[str]]

    handles = Bundle("handles")
    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.fs: SovFileSystem = self.host.fs
        self.objects: dict[str, bytes] = {}
        #: How often each path was written: an open file is of one version.
        self.versions: Counter[str] = Counter()
        self.unfinished: list[Any] = []

    @initialize(content=CONTENTS)
    def start(self, content: bytes) -> None:
        """Begin with a few objects, since not every sequence has all the rules."""
        self.fs.rm("", recursive=True)
        assert self.fs.find("", withdirs=True) == []
        for path, data in {"a": b"a" * 300_000, "é/a": content, "名前/é/a": content, "名前/A b.txt": b""}.items():
            self.fs.pipe_file(path, data)
            self.written(path, data)

    # What the model says

    def some(self, data: st.DataObject) -> str:
        """Return a path: mostly of what is there, or a folder that it is in, or any."""
        there = sorted(self.objects)
        folders = sorted({path.rpartition("/")[0] for path in there} - {""})
        choices = [st.sampled_from(there)] * 2 if there else []
        choices += [st.sampled_from(folders)] if folders else []
        return data.draw(st.one_of(*choices, PATHS))

    def below(self, path: str) -> list[str]:
        return [name for name in self.objects if not path or name.startswith(f"{path}/")]

    def obstacle(self, path: str) -> type[Exception] | None:
        """Return the error of a write to `path`; an empty folder may be left where a host has real ones."""
        parents = [path[:at] for at in range(len(path)) if path[at] == "/"]
        if any(parent in self.objects for parent in parents):
            return NotFolderError
        return IsFolderError if self.fs.isdir(path) else None

    def written(self, path: str, content: bytes) -> None:
        self.objects[path] = content
        self.versions[path] += 1

    def write(self, path: str, content: bytes, how: Callable[[], Any]) -> None:
        error = self.obstacle(path)
        if error is None:
            how()
            self.written(path, content)
            return
        self.ran[f"refused by {error.__name__}"] += 1
        with pytest.raises(error):
            how()

    # Writing

    @rule(data=st.data(), content=CONTENTS)
    def pipe(self, data: st.DataObject, content: bytes) -> None:
        path = self.some(data)
        self.ran["pipe"] += 1
        self.write(path, content, lambda: self.fs.pipe_file(path, content))

    @rule(path=PATHS, content=CONTENTS, step=st.sampled_from([1000, CHUNK, 100_000]))
    def write_in_pieces(self, path: str, content: bytes, step: int) -> None:
        self.ran["write in pieces"] += 1

        def work() -> None:
            with self.fs.open(path, "wb") as file:
                for start in range(0, len(content), step):
                    file.write(content[start : start + step])

        self.write(path, content, work)

    @rule(data=st.data(), content=CONTENTS, opened=st.booleans())
    def create(self, data: st.DataObject, content: bytes, opened: bool) -> None:
        path = self.some(data)

        def work() -> None:
            if opened:
                with self.fs.open(path, "xb") as file:
                    file.write(content)
            else:
                self.fs.pipe_file(path, content, mode="create")

        if path in self.objects or self.fs.isdir(path):
            self.ran["create what is there"] += 1
            with pytest.raises((ObjectExistsError, IsFolderError)):
                work()
        else:
            self.ran["create"] += 1
            self.write(path, content, work)

    @rule(data=st.data(), content=CONTENTS)
    def fail_in_the_middle(self, data: st.DataObject, content: bytes) -> None:
        path = self.some(data)
        self.ran["fail in the middle"] += 1
        with pytest.raises(RuntimeError, match="half"), self.fs.open(path, "wb") as file:  # noqa: PT012  # two contexts
            file.write(content)
            raise RuntimeError("half of it")

    @rule(target=writers, data=st.data(), content=CONTENTS)
    def begin(self, data: st.DataObject, content: bytes) -> tuple[Any, str, bytes]:
        path = self.some(data)
        file = self.fs.open(path, "wb")
        self.unfinished.append(file)
        file.write(content)
        return file, path, content

    @rule(writer=consumes(writers))
    def finish(self, writer: tuple[Any, str, bytes]) -> None:
        self.ran["finish"] += 1
        file, path, content = writer
        self.unfinished.remove(file)
        self.write(path, content, file.close)

    @rule(writer=consumes(writers))
    def give_up(self, writer: tuple[Any, str, bytes]) -> None:
        self.ran["give up"] += 1
        self.unfinished.remove(writer[0])
        writer[0].discard()

    # Reading

    @rule(data=st.data(), start=OFFSETS, end=OFFSETS)
    def read(self, data: st.DataObject, start: int | None, end: int | None) -> None:
        path = self.some(data)
        if path in self.objects:
            self.ran["read"] += 1
            assert self.fs.cat_file(path, start, end) == self.objects[path][start:end]
            assert self.fs.cat_file(path) == self.objects[path]
            assert self.fs.isfile(path)
            assert not self.fs.isdir(path)
        else:
            self.ran["read what is not there"] += 1
            with pytest.raises((ObjectNotFoundError, IsFolderError)):
                self.fs.cat_file(path)
            assert not self.fs.isfile(path)

    @precondition(lambda self: self.objects)
    @rule(target=handles, data=st.data(), cache=st.sampled_from(["sov", "none", "readahead"]))
    def open_to_read(self, data: st.DataObject, cache: str) -> tuple[Any, str, bytes, int]:
        path = data.draw(st.sampled_from(sorted(self.objects)))
        return self.fs.open(path, cache_type=cache), path, self.objects[path], self.versions[path]

    @rule(handle=handles, place=st.integers(0, 310_000), size=st.integers(-1, 50_000))
    def seek_and_read(self, handle: tuple[Any, str, bytes, int], place: int, size: int) -> None:
        file, path, content, version = handle
        if file.closed:
            return
        file.seek(place)
        expected = content[place:] if size < 0 else content[place : place + size]
        try:
            assert file.read(size) == expected
            self.ran["seek and read"] += 1
        except (IntegrityError, ObjectChangedError, ObjectNotFoundError):
            self.ran["read what was replaced"] += 1
            assert (path not in self.objects) or self.versions[path] != version

    @rule(handle=handles)
    def close(self, handle: tuple[Any, str, bytes, int]) -> None:
        handle[0].close()

    # Moving

    def destination(self, source: str, to: str) -> str:
        """Return where fsspec puts an object: into a folder that is there."""
        return f"{to}/{source.rpartition('/')[2]}" if self.fs.isdir(to) else to

    @precondition(lambda self: self.objects)
    @rule(data=st.data(), to=PATHS, move=st.booleans())
    def copy_or_rename(self, data: st.DataObject, to: str, move: bool) -> None:
        source = data.draw(st.sampled_from(sorted(self.objects)))
        final = self.destination(source, to)
        possible = self.obstacle(final) is None
        self.ran["rename" if move else "copy"] += 1
        self.write(final, self.objects[source], lambda: (self.fs.mv if move else self.fs.cp)(source, to))
        if move and possible and final != source:
            del self.objects[source]

    @precondition(lambda self: any("/" in path for path in self.objects))
    @rule(data=st.data(), to=PATHS, move=st.booleans())
    def copy_or_rename_a_folder(self, data: st.DataObject, to: str, move: bool) -> None:
        source = data.draw(st.sampled_from(sorted({p.rpartition("/")[0] for p in self.objects if "/" in p})))
        if self.fs.exists(to) or self.obstacle(to) or f"{to}/".startswith(f"{source}/"):
            return
        self.ran["rename a folder" if move else "copy a folder"] += 1
        (self.fs.mv if move else self.fs.cp)(source, to, recursive=True)
        for path in self.below(source):
            self.written(to + path.removeprefix(source), self.objects[path])
            if move:
                del self.objects[path]
        assert self.fs.exists(source) is not move

    # Deleting

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        path = self.some(data)
        if path in self.objects:
            self.ran["delete"] += 1
            self.fs.rm(path)
            del self.objects[path]
        elif self.fs.isdir(path):
            self.ran["delete a folder that must be asked for"] += 1
            with pytest.raises(IsFolderError):
                self.fs.rm(path)
        else:
            self.ran["delete what is not there"] += 1
            with pytest.raises(FileNotFoundError):
                self.fs.rm(path)

    @rule(data=st.data())
    def delete_recursively(self, data: st.DataObject) -> None:
        path = self.some(data)
        if not self.fs.exists(path):
            return
        self.ran["delete recursively"] += 1
        self.fs.rm(path, recursive=True)
        for name in [path, *self.below(path)]:
            self.objects.pop(name, None)
        assert not self.fs.exists(path)

    @rule(path=PATHS)
    def make_folder(self, path: str) -> None:
        if self.obstacle(path) is NotFolderError or path in self.objects:
            return
        self.ran["make a folder"] += 1
        self.fs.makedirs(path, exist_ok=True)
        assert self.fs.isdir(path)

    # Looking

    @rule(path=PATHS | st.just(""))
    def list_a_folder(self, path: str) -> None:
        inside = self.below(path)
        if not inside:
            return
        self.ran["list"] += 1
        listed = {info["name"]: info for info in self.fs.ls(path)}
        base = f"{path}/" if path else ""
        files = {name for name in inside if "/" not in name.removeprefix(base)}
        assert {name for name, info in listed.items() if info["type"] == "file"} == files
        folders = {base + name.removeprefix(base).split("/")[0] for name in inside} - files
        # Empty folders may be there besides.
        assert folders <= set(listed) - files
        assert all(listed[name]["size"] == len(self.objects[name]) for name in files)
        assert self.fs.find(path) == sorted(inside)
        assert self.fs.du(path) == sum(len(self.objects[name]) for name in inside)
        walked = [f"{top}/{name}" if top else name for top, _, names in self.fs.walk(path) for name in names]
        assert sorted(walked) == sorted(inside)
        assert self.fs.glob(f"{base}*/*") or not any(name.count("/") == base.count("/") + 1 for name in inside)

    @rule()
    def open_the_store_again(self) -> None:
        self.fs = open_fs(self.host.fs.store.config.source, skip_instance_cache=True)

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        found = self.fs.find("", detail=True)
        assert {name: info["size"] for name, info in found.items()} == {
            name: len(content) for name, content in self.objects.items()
        }

    @invariant()
    def nothing_else_lies_at_the_host(self) -> None:
        assert len(self.host.unfinished()) == len(self.unfinished)

    def teardown(self) -> None:
        for file in self.unfinished:
            file.discard()
        assert {path: self.fs.cat_file(path) for path in self.objects} == self.objects


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_store_is_a_dictionary(tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)

    class Machine(StoreMachine):
        host: ClassVar[Host] = open_host(tmp_path, provider)
        ran: ClassVar[Counter[str]] = Counter()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=amount(35, 400),
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    # A rule that never applies would test nothing.
    assert set(Machine.ran) >= RULES
    assert all(Machine.ran[name] >= 3 for name in RULES), Machine.ran

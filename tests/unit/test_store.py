"""The open store: what a look costs, foreign names, and where things go when they are copied."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from sovstore.backends.base import Stat
from sovstore.errors import FormatError, IsFolderError, ObjectNotFoundError, StoreError
from sovstore.filesystem import SovFileSystem
from sovstore.format.recovery import RecoveryKey
from sovstore.listing import Decoder
from tests.hosts import PROVIDERS, Host, Through, cheap_key_files, open_host, wrap_backends
from tests.stores import make_store, open_fs


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture(params=PROVIDERS)
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    return open_host(tmp_path, request.param)


# What is not there


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_a_look_at_what_is_missing_lists_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Readers of sparse arrays ask for what is not there all the time, in folders of many objects."""
    file, calls = make_store(tmp_path, provider="memory", names=names), Counter[str]()
    wrap_backends(monkeypatch, lambda inner: Through(inner, calls))
    fs = open_fs(file)
    fs.pipe({f"array/{n}": b"1" for n in range(20)})
    for path in ("array/missing", "no/such/folder", "missing", "100%", "%41"):
        calls.clear()
        with pytest.raises(ObjectNotFoundError, match=path):
            fs.cat_file(path)
        assert calls["list"] == 0
        assert calls.total() <= 4
    for path in ("array", ""):
        with pytest.raises(IsFolderError):
            fs.cat_file(path)


# Foreign names


def _foreign(host: Host) -> dict[str, str]:
    """Return names that the store did not make, and the paths under which they are shown."""
    shown = {"README.txt": "README.txt", "what is this?": "what%20is%20this%3F", "100%": "100%25", "…": "%E2%80%A6"}
    return shown | {"A" * 43: "A" * 43}


@pytest.mark.parametrize("folder", ["", "a/b"])
def test_foreign_names(host: Host, folder: str) -> None:
    fs = host.fs
    fs.pipe_file("a/b/ours", b"12")
    parent = host.name(folder) if folder else host.root
    base = f"{folder}/" if folder else ""
    for name in _foreign(host):
        host.raw.pipe_file(f"{parent}/{name}", b"x" * 1000)
    listed = {info["name"]: info for info in fs.ls(folder)}
    for shown in _foreign(host).values():
        assert listed[base + shown]["foreign"]
        assert listed[base + shown]["size"] is None
        for read in (fs.cat_file, fs.open):
            with pytest.raises(FormatError, match="not an object of this store"):
                read(base + shown)
    assert fs.du("") == 2
    assert fs.cat_file("a/b/ours") == b"12"


def test_a_foreign_folder(host: Host) -> None:
    for name in ("junk/inner/file", "junk/other"):
        host.set_file(name, b"x" * 500)
    assert host.fs.find("") == ["junk/inner/file", "junk/other"]
    for path in host.fs.find(""):
        with pytest.raises(FormatError, match="does not decrypt"):
            host.fs.cat_file(path)
    host.fs.rm("", recursive=True)
    assert host.fs.find("") == []
    # Its own files are not among what is deleted.
    assert open_fs(host.fs.store.config.source, skip_instance_cache=True).ls("") == []


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    """File systems hold any bytes."""
    host = open_host(tmp_path, "local")
    host.fs.pipe_file("ours", b"1")
    raw = os.fsencode(host.root) + b"/\xff\xfe.txt"
    with open(raw, "wb") as file:
        file.write(b"x" * 300)
    assert host.fs.ls("", detail=False) == ["%FF%FE.txt", "ours"]
    with pytest.raises(FormatError):
        host.fs.cat_file("%FF%FE.txt")
    host.fs.rm("", recursive=True)
    assert not os.path.exists(raw)


def test_a_path_that_looks_like_a_foreign_name(tmp_path: Path) -> None:
    """With plain names every name is its own path: '%41' is not 'A'."""
    fs = open_fs(make_store(tmp_path, names="plain"))
    fs.pipe_file("A", b"1")
    with pytest.raises(ObjectNotFoundError):
        fs.cat_file("%41")
    fs.pipe_file("%41", b"2")
    assert (fs.cat_file("%41"), fs.cat_file("A")) == (b"2", b"1")


@pytest.mark.parametrize(
    "path", ["%2E%2E", "%2E%2E/%2E%2E/etc/passwd", "a%2Fb", "%00", "%2Esovstore/keyset.json", "%2E"]
)
def test_escapes_lead_nowhere(host: Host, path: str) -> None:
    """A path is taken as it is; what is tried to explain its absence never leaves the root or meets the keyset."""
    with pytest.raises(ObjectNotFoundError):
        host.fs.cat_file(path)
    host.fs.pipe_file(path, b"1")
    assert host.fs.cat_file(path) == b"1"
    assert host.fs.find("") == [path]


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_names_of_any_depth(tmp_path: Path, names: str) -> None:
    """A host may list what it likes, also names deeper than Python can recurse."""
    host = open_host(tmp_path, "memory", names=names)
    keyset = host.fs._sync(host.fs.store.keyset)
    decoder = Decoder(keyset.names(), "", "")
    deep = "/".join(["x"] * 1020)
    path, foreign = decoder.decode(deep)
    assert (path, foreign) == (deep, True)
    assert decoder.decode(f"{deep}/y") == (f"{deep}/y", True)
    assert host.fs.store._entry(path, Stat(deep, 300), foreign=True).size is None


@pytest.mark.parametrize(
    "name",
    ["..", "../x", "a/../../b", ".", "//", "/etc/passwd", "a//b", "\0", "a\nb", "..%2F", "\udcff", "json\ud800", "/a"],
)
def test_hostile_names_are_shown_as_what_they_are_not(tmp_path: Path, name: str) -> None:
    keyset = open_host(tmp_path, "memory").fs
    decoder = Decoder(keyset._sync(keyset.store.keyset).names(), "", "")
    path, foreign = decoder.decode(name)
    assert foreign
    assert not {".", ".."} & set(path.split("/"))
    assert not path.startswith("/")
    assert path.isprintable()
    path.encode()


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_a_folder_without_a_name_is_not_the_root(tmp_path: Path, names: str) -> None:
    """'/a' would else be taken for 'a': an alias."""
    fs = open_host(tmp_path, "memory", names=names).fs
    names_ = fs._sync(fs.store.keyset).names()
    assert Decoder(names_, "", "").decode("/" + names_.encode("a")) == ("%2F" + names_.encode("a"), True)


def test_a_name_of_a_million_folders_costs_no_more_than_itself(tmp_path: Path) -> None:
    fs = open_host(tmp_path, "memory", names="plain").fs
    decoder = Decoder(fs._sync(fs.store.keyset).names(), "a", "a")
    tracemalloc.start()
    try:
        path, foreign = decoder.decode("a" + "/b" * 10**6)
        # One that is looked at folder by folder, and many of them.
        for number in range(100):
            decoder.decode(f"a/{number}" + "/b" * 1000)
        size = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (path[:7], foreign) == ("a/b%2Fb", True)
    assert size < 64 * 2**20


# Copies into folders that are there


@pytest.fixture
def tree(host: Host) -> SovFileSystem:
    host.fs.pipe({"x.csv": b"x", "dir/f": b"f", "folder/o": b"o"})
    return host.fs


@pytest.mark.parametrize("target", ["folder", "folder/"])
@pytest.mark.parametrize("move", [False, True])
def test_an_object_of_the_root_goes_into_a_folder(tree: SovFileSystem, target: str, move: bool) -> None:
    (tree.mv if move else tree.cp)("x.csv", target)
    assert tree.cat_file("folder/x.csv") == b"x"
    assert tree.exists("x.csv") is not move


def test_a_pattern_that_matches_one_object_of_the_root(tree: SovFileSystem, tmp_path: Path) -> None:
    tree.cp("*.csv", "new/")
    assert tree.cat_file("new/x.csv") == b"x"
    tree.get("*.csv", f"{tmp_path}/out/")
    assert (tmp_path / "out" / "x.csv").read_bytes() == b"x"


def test_a_folder_of_the_root_goes_into_a_folder(tree: SovFileSystem, tmp_path: Path) -> None:
    tree.cp("dir", "folder", recursive=True)
    assert tree.find("") == ["dir/f", "folder/dir/f", "folder/o", "x.csv"]
    tree.mv("dir", "folder/dir", recursive=True)
    assert tree.find("") == ["folder/dir/dir/f", "folder/dir/f", "folder/o", "x.csv"]


def test_downloads_from_the_root(tree: SovFileSystem, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tree.get("x.csv", str(out))
    tree.get("x.csv", f"{out}/y.csv")
    tree.get("dir", str(out), recursive=True)
    tree.get("dir/", str(out / "copy"), recursive=True)
    tree.get(["x.csv", "folder/o"], str(out / "list"))
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == ["copy/f", "dir/f", "list/o", "list/x.csv", "x.csv", "y.csv"]
    tree.get("", str(tmp_path / "everything"), recursive=True)
    assert (tmp_path / "everything" / "folder" / "o").read_bytes() == b"o"


def test_a_name_with_signs_of_a_pattern_is_deleted_alone(host: Host) -> None:
    host.fs.pipe({"a*": b"1", "ab": b"2", "[x]": b"3", "x": b"4", "q?": b"5"})
    for path in ("a*", "[x]", "q?"):
        host.fs.rm_file(path)
    assert host.fs.find("") == ["ab", "x"]
    with pytest.raises(FileNotFoundError):
        host.fs.rm_file("a*")
    host.fs.pipe_file("folder/one", b"1")
    with pytest.raises(IsFolderError):
        host.fs.rm_file("folder")


def test_a_folder_that_was_asked_for_outlives_its_objects(host: Host) -> None:
    host.fs.pipe_file("folder/one", b"1")
    host.fs.makedirs("folder", exist_ok=True)
    host.fs.rm("folder/one")
    assert host.fs.isdir("folder")


# Downloads and this machine


@pytest.mark.parametrize("name", ["é" * 127, "x" * 255, "名" * 85])
def test_the_longest_names_of_this_machine(tmp_path: Path, name: str) -> None:
    """A temporary file beside the target has a longer name than the target."""
    fs = open_fs(make_store(tmp_path))
    fs.pipe_file("object", b"1")
    fs.get_file("object", str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == b"1"


def test_a_target_below_a_file(tmp_path: Path) -> None:
    fs = open_fs(make_store(tmp_path))
    fs.pipe_file("object", b"1")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(StoreError, match="file/below: cannot be written"):
        fs.get_file("object", str(tmp_path / "file" / "below"))


def test_a_relative_recovery_key_survives_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that opens the pickle may be in another folder."""
    key = RecoveryKey.generate()
    (tmp_path / "offline.key").write_bytes(key.dump())
    (tmp_path / "offline.key.pub").write_bytes(key.recipient.dump())
    file = make_store(tmp_path, recovery=["offline.key.pub"])
    open_fs(file).pipe_file("object", b"1")
    monkeypatch.chdir(tmp_path)
    fs = SovFileSystem("cohortes", config=file.name, recovery_key="offline.key", skip_instance_cache=True)
    carried = pickle.dumps(fs)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(carried).cat_file("object") == b"1"  # noqa: S301  # made here

"""What fsspec's own suite does not look at."""

from __future__ import annotations

import io
import os
import threading

import fsspec
import pytest

from sovstore import errors
from tests.hosts import PROVIDERS, Host, cheap_key_files
from tests.stores import make_store, open_fs

TREE = {"a.txt": b"1", "d/b.txt": b"22", "d/e/c.txt": b"333", "d/e/f.csv": b"4444", "g/é.txt": b"55555"}


@pytest.fixture(params=PROVIDERS)
def fs(request, tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    file = make_store(tmp_path, provider=request.param)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    fs = open_fs(file)
    for path, data in TREE.items():
        fs.pipe_file(path, data)
    return fs


# Looking


def test_ls(fs):
    assert fs.ls("", detail=False) == ["a.txt", "d", "g"]
    assert {i["name"]: (i["size"], i["type"]) for i in fs.ls("d")} == {
        "d/b.txt": (2, "file"),
        "d/e": (0, "directory"),
    }
    assert fs.ls("a.txt", detail=False) == ["a.txt"]
    with pytest.raises(FileNotFoundError):
        fs.ls("no")


def test_find(fs):
    assert fs.find("") == sorted(TREE)
    assert fs.find("d") == ["d/b.txt", "d/e/c.txt", "d/e/f.csv"]
    assert fs.find("d", maxdepth=1) == ["d/b.txt"]
    assert fs.find("", maxdepth=2, withdirs=True) == ["a.txt", "d", "d/b.txt", "d/e", "g", "g/é.txt"]
    assert fs.find("d", withdirs=True) == ["d", "d/b.txt", "d/e", "d/e/c.txt", "d/e/f.csv"]
    assert fs.find("a.txt") == ["a.txt"]
    assert fs.find("no") == []
    assert {n: i["size"] for n, i in fs.find("d", detail=True).items()} == {
        "d/b.txt": 2,
        "d/e/c.txt": 3,
        "d/e/f.csv": 4,
    }
    with pytest.raises(ValueError, match="at least 1"):
        fs.find("", maxdepth=0)


def test_glob_walk_du(fs):
    assert fs.glob("*.txt") == ["a.txt"]
    assert fs.glob("d/**/*.txt") == ["d/b.txt", "d/e/c.txt"]
    assert fs.glob("**/*.csv") == ["d/e/f.csv"]
    assert fs.glob("g/?.txt") == ["g/é.txt"]
    assert [(p, sorted(d), sorted(f)) for p, d, f in fs.walk("d")] == [
        ("d", ["e"], ["b.txt"]),
        ("d/e", [], ["c.txt", "f.csv"]),
    ]
    assert fs.du("") == 15
    assert fs.du("d", total=False) == {"d/b.txt": 2, "d/e/c.txt": 3, "d/e/f.csv": 4}


def test_what_is_what(fs):
    assert fs.exists("d")
    assert fs.isdir("d")
    assert fs.isfile("d/b.txt")
    assert fs.isdir("")
    assert not fs.exists("d/no")
    assert not fs.isfile("d")
    assert not fs.isdir("a.txt")
    assert not fs.exists("a.txt/below")
    assert fs.size("d/e/c.txt") == 3
    assert fs.sizes(["a.txt", "d/b.txt"]) == [1, 2]


def test_info_has_both_sides(fs):
    info = fs.info("d/b.txt")
    assert (info["name"], info["size"], info["wire_size"], info["foreign"]) == ("d/b.txt", 2, 202, False)
    assert "b.txt" not in info["wire_name"]
    assert info["wire_name"].count("/") == 1


def test_times_and_marks(fs):
    assert fs.created("a.txt").tzinfo is not None
    assert abs((fs.modified("a.txt") - fs.created("a.txt")).total_seconds()) < 60
    before = fs.ukey("a.txt"), fs.checksum("a.txt")
    assert before == (fs.ukey("a.txt"), fs.checksum("a.txt"))
    fs.pipe_file("a.txt", b"2")
    assert before[0] != fs.ukey("a.txt")
    assert before[1] != fs.checksum("a.txt")


@pytest.mark.parametrize("call", ["exists", "isfile", "isdir", "ls", "find", "glob", "du", "info"])
def test_a_denied_key_never_looks_like_nothing(tmp_path, monkeypatch, call):
    cheap_key_files(monkeypatch)
    file = make_store(tmp_path)
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "wrong")
    with pytest.raises(errors.KeyDeniedError, match="wrong passphrase"):
        getattr(open_fs(file), call)("x*" if call == "glob" else "x")


def test_a_denied_key_does_not_look_like_an_empty_walk(tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    file = make_store(tmp_path)
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "wrong")
    with pytest.raises(errors.KeyDeniedError):
        list(open_fs(file).walk(""))


# URLs


def test_urls(fs):
    assert fs.unstrip_protocol("d/b.txt") == "sov://cohortes/d/b.txt"
    assert fs.cat("sov://cohortes/a.txt") == fs.cat("/a.txt") == b"1"
    assert fsspec.open("sov://cohortes/a.txt").open().read() == b"1"
    assert fsspec.url_to_fs("sov://cohortes/d/e")[1] == "d/e"
    with pytest.raises(errors.PathError, match="in another store") as caught:
        fs.cat("sov://other/a.txt")
    assert "store='other'" in caught.value.hint


def test_without_a_store(fs):
    with pytest.raises(errors.ConfigError, match="which store") as caught:
        fsspec.filesystem("sov")
    assert "cohortes" in caught.value.hint


def test_mapper(fs):
    mapper = fs.get_mapper("m")
    mapper["x/y"] = b"z"
    assert dict(mapper) == {"x/y": b"z"}
    assert "no" not in mapper
    with pytest.raises(KeyError):
        mapper["no"]


# Folders


def test_folders(fs):
    fs.mkdir("new/deep")
    assert fs.isdir("new/deep")
    assert fs.ls("new/deep") == []
    with pytest.raises(FileExistsError):
        fs.mkdir("new/deep")
    with pytest.raises(FileExistsError):
        fs.makedirs("new/deep")
    fs.makedirs("new/deep", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.mkdir("a.txt")
    with pytest.raises(FileNotFoundError):
        fs.mkdir("not/there", create_parents=False)
    fs.rmdir("new/deep")
    assert not fs.exists("new/deep")
    with pytest.raises(errors.StoreError, match="not empty"):
        fs.rmdir("d")


def test_an_object_is_no_folder(fs):
    with pytest.raises(errors.StoreError):
        fs.pipe_file("a.txt/below", b"")
    with pytest.raises(IsADirectoryError, match=r"^d: is a folder$"):
        fs.pipe_file("d", b"")
    with pytest.raises(IsADirectoryError, match=r"^d: is a folder$"):
        fs.cat_file("d")
    assert fs.find("") == sorted(TREE)


# Copying, renaming, deleting


def test_cp_and_mv(fs):
    fs.cp("a.txt", "copy.txt")
    fs.mv("copy.txt", "d/moved.txt")
    assert fs.cat("d/moved.txt") == b"1"
    assert not fs.exists("copy.txt")
    fs.mv("d", "h", recursive=True)
    assert fs.find("h") == ["h/b.txt", "h/e/c.txt", "h/e/f.csv", "h/moved.txt"]
    assert not fs.exists("d")
    assert fs.cat("h/e/f.csv") == b"4444"


def test_mv_onto_an_object_and_onto_itself(fs):
    fs.mv("a.txt", "d/b.txt")
    assert fs.cat("d/b.txt") == b"1"
    fs.mv("d/b.txt", "d/b.txt")
    assert fs.cat("d/b.txt") == b"1"


def test_rm(fs):
    with pytest.raises(FileNotFoundError):
        fs.rm("no")
    with pytest.raises(FileNotFoundError):
        fs.rm("no/*")
    with pytest.raises(IsADirectoryError):
        fs.rm("d")
    fs.rm(["a.txt", "g/é.txt"])
    fs.rm("d", recursive=True)
    assert fs.find("") == []
    assert not fs.exists("d")


def test_the_root_stays(fs):
    fs.rm("", recursive=True)
    assert fs.ls("") == []
    fs.pipe_file("again", b"1")
    assert fs.cat("again") == b"1"


def test_touch(fs):
    fs.touch("a.txt")
    assert fs.cat("a.txt") == b""
    with pytest.raises(NotImplementedError):
        fs.touch("a.txt", truncate=False)


# Files


@pytest.mark.parametrize("mode", ["ab", "r+b", "a", "w+b"])
def test_nothing_is_changed_in_place(fs, mode):
    with pytest.raises(errors.UnsupportedError) as caught:
        fs.open("a.txt", mode)
    assert "write it again" in caught.value.hint
    assert fs.cat("a.txt") == b"1"


def test_transactions_and_links_are_refused(fs):
    with pytest.raises(NotImplementedError), fs.transaction:
        pass
    with pytest.raises(NotImplementedError):
        fs.start_transaction()
    with pytest.raises(NotImplementedError):
        fs.sign("a.txt")


def test_exclusive(fs):
    with pytest.raises(FileExistsError):
        fs.open("a.txt", "xb")
    with pytest.raises(FileExistsError):
        fs.pipe_file("a.txt", b"", mode="create")
    with fs.open("new", "xb") as file:
        file.write(b"1")
    assert fs.cat("new") == b"1"


def test_text(fs):
    with fs.open("t", "w", encoding="latin-1", newline="\r\n") as file:
        file.write("é\nb\n")
    assert fs.cat("t") == b"\xe9\r\nb\r\n"
    with fs.open("t", "r", encoding="latin-1") as file:
        assert list(file) == ["é\n", "b\n"]
    with fs.open("t.gz", "wt", compression="infer") as file:
        file.write("packed")
    with fs.open("t.gz", "rt", compression="infer") as file:
        assert file.read() == "packed"
    assert fs.cat("t.gz")[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    "cache_type", ["none", "readahead", "bytes", "blockcache", "first", "all", "background", "sov"]
)
def test_fsspec_caches(fs, cache_type):
    data = bytes(range(256)) * 1000
    fs.pipe_file("big", data)
    with fs.open("big", cache_type=cache_type, block_size=50_000) as file:
        assert file.read(10) == data[:10]
        file.seek(-5, io.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(100_000)
        assert file.read(70_000) == data[100_000:170_000]


def test_parts_of_files(fs):
    fs.pipe_file("lines", b"one\ntwo\nthree\n")
    assert fs.head("lines", 3) == b"one"
    assert fs.tail("lines", 6) == b"three\n"
    assert fs.read_block("lines", 2, 5, delimiter=b"\n") == b"two\n"
    with fs.open("lines") as file:
        assert file.readlines() == [b"one\n", b"two\n", b"three\n"]


def test_cat_omits_what_is_missing_and_nothing_else(fs):
    assert fs.cat(["a.txt", "no"], on_error="omit") == {"a.txt": b"1"}
    fs.pipe_file("bad", b"x")
    Host(fs).set("bad", b"y" * 300)
    with pytest.raises(errors.FormatError):
        fs.cat(["a.txt", "bad"], on_error="omit")
    assert isinstance(fs.cat(["a.txt", "bad"], on_error="return")["bad"], errors.FormatError)


def test_local_cache_files_hold_plaintext_only_where_the_user_asks(fs, tmp_path):
    with fsspec.open("simplecache::sov://cohortes/a.txt", simplecache={"cache_storage": str(tmp_path / "c")}) as file:
        assert file.read() == b"1"


# What an adversarial review found


def test_the_host_is_never_asked_for_a_plaintext_name(fs, monkeypatch):
    asked = []
    backend = type(fs._sync(_backend, fs))
    for method in ("stat", "read", "upload", "copy"):
        original = getattr(backend, method)

        def spy(self, name, *args, _original=original, **kwargs):
            asked.append(name)
            return _original(self, name, *args, **kwargs)

        monkeypatch.setattr(backend, method, spy)
    for path in ("secretname", "d/secretname", "d/e/c.txt/secretname"):
        for call in (fs.cat_file, fs.open, fs.info, fs.rm):
            with pytest.raises(FileNotFoundError):
                call(path)
        with pytest.raises(FileNotFoundError):
            fs.cp(path, "x")
    assert asked
    assert not [name for name in asked if "secret" in name or "c.txt" in name]


async def _backend(fs):
    return fs.store.backend


def test_unknown_options_are_refused_and_not_kept(fs):
    with pytest.raises(errors.ConfigError, match="unknown option 'passphrase'") as caught:
        fsspec.filesystem("sov", store="cohortes", passphrase="hunter2")
    assert "hunter2" not in str(caught.value)


def test_renames_that_would_lose_something_are_refused(fs):
    for source, target in ((["a.txt", "d/b.txt"], ["d/b.txt", "a.txt"]), (["a.txt", "d/b.txt"], ["x", "x"])):
        for call in (fs.mv, fs.cp):
            with pytest.raises(errors.PathError, match="more than one"):
                call(source, target)
    with pytest.raises(errors.IsFolderError, match="is a folder"):
        fs.mv("d", "new")
    assert {path: fs.cat(path) for path in fs.find("")} == TREE


def test_a_name_is_meant_before_a_pattern(fs):
    for path in ("r[1].csv", "r1.csv", "s*", "st"):
        fs.pipe_file(path, b"x")
    fs.rm("r[1].csv")
    fs.rm("s*")
    assert fs.exists("r1.csv")
    assert fs.exists("st")
    mapper = fs.get_mapper("")
    mapper["x[1]"], mapper["x1"] = b"1", b"2"
    del mapper["x[1]"]
    assert mapper["x1"] == b"2"


def test_a_mapping_never_drops_what_was_tampered_with(fs):
    mapper = fs.get_mapper("z")
    for key in "012":
        mapper[key] = b"x"
    Host(fs).set("z/1", b"y" * 300)
    with pytest.raises(errors.FormatError):
        mapper.getitems(["0", "1", "2"], on_error="omit")
    assert mapper.getitems(["0", "no"], on_error="omit") == {"0": b"x"}
    with pytest.raises(KeyError):
        mapper.getitems(["no"])


def test_no_key_is_in_the_locals_of_a_traceback(fs):
    fs.pipe_file("t", b"x")
    keyset = fs._sync(fs.store.keyset)
    keys = [s.reveal() for s in (keyset.names_key, keyset.auth_key, keyset.primary.key)]
    host, count = Host(fs), 0
    sealed = host.get("t")
    for at in (30, 130, 160, 190):
        host.set("t", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        with pytest.raises(errors.IntegrityError) as caught:
            fs.cat("t")
        error = caught.value
        while error is not None:
            frame = error.__traceback__
            while frame is not None:
                for value in frame.tb_frame.f_locals.values():
                    if (
                        isinstance(value, bytes | bytearray)
                        and frame.tb_frame.f_code.co_name != "test_no_key_is_in_the_locals_of_a_traceback"
                    ):
                        count += 1
                        assert not any(key in value for key in keys)
                frame = frame.tb_next
            error = error.__cause__
    assert count


def test_links_in_a_local_folder_lead_nowhere(tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    fs = open_fs(make_store(tmp_path))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / ("a" * 24)).write_text("mine")
    root = tmp_path / "cohortes"
    (root / ".sovstore" / "tmp").rmdir()
    (root / ".sovstore" / "tmp").symlink_to(victim)
    with pytest.raises(errors.FormatError, match="symbolic link"):
        fs.pipe_file("x", b"1")
    (root / ".sovstore" / "tmp").unlink()
    (root / fs._sync(fs.store.name, "folder")).symlink_to(victim)
    with pytest.raises((errors.FormatError, FileNotFoundError)):
        fs.rm("folder", recursive=True)
    assert (victim / ("a" * 24)).read_text() == "mine"


def test_a_pipe_in_a_local_folder_stops_nobody(tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    fs = open_fs(make_store(tmp_path))
    os.mkfifo(tmp_path / "cohortes" / fs._sync(fs.store.name, "pipe"))
    with pytest.raises(errors.FormatError):
        fs.cat_file("pipe")


def test_two_key_files_open_at_once(tmp_path):
    """Two derivations with several lanes at once wait for each other for ever in cryptography 50.0."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        open_fs(make_store(tmp_path / name, name), name).pipe_file("x", b"1")
    found = []
    threads = [
        threading.Thread(
            target=lambda n=n: found.append(
                open_fs(tmp_path / n / "sovstore.toml", n, skip_instance_cache=True).cat_file("x")
            ),
            daemon=True,
        )
        for n in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [b"1", b"1"]


def test_deleting_several_keys_deletes_just_these(fs):
    fs.pipe({"m/ab": b"1", "m/ac": b"2", "m/b": b"3"})
    mapper = fs.get_mapper("m")
    mapper.delitems(["b"])
    with pytest.raises(KeyError):
        mapper.delitems(["a*"])
    assert set(mapper) == {"ab", "ac"}


def test_a_pipe_is_put_in_blocks(fs, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(bytes(300_000)), daemon=True)
    writer.start()
    fs.put_file(str(fifo), "from-a-pipe")
    assert fs.cat("from-a-pipe") == bytes(300_000)


def test_a_foreign_name_never_hides_ours(fs):
    host = Host(fs)
    for n in range(12):
        fs.pipe_file(f"d{n}/f.csv", b"own")
        host.set_file(f"{fs._sync(fs.store.name, f'd{n}')}/f.csv", b"x")
        assert [i["foreign"] for i in fs.ls(f"d{n}")] == [False]
        assert [i["foreign"] for i in fs.find(f"d{n}", detail=True).values()] == [False]


def test_into_itself_is_refused(fs):
    for call in (fs.mv, fs.cp):
        with pytest.raises(errors.PathError, match="inside of its own source"):
            call("d", "d/z", recursive=True)
    assert {path: fs.cat(path) for path in fs.find("")} == TREE


def test_closing_forgets_the_keys_and_breaks_nobody(fs):
    fs.pipe_file("big", bytes(3_000_000))
    handle = fs.open("big")
    fs.close()
    assert fs.store._held._keys is None
    assert handle.read() == bytes(3_000_000)
    assert fs.cat("a.txt") == b"1"


def test_a_sweep_that_is_not_permitted_stops_no_write(fs, monkeypatch):
    async def sweep(self):
        raise errors.StoreError("no right to list")

    monkeypatch.setattr(type(fs._sync(_backend, fs)), "sweep", sweep)
    fresh = open_fs(fs.store.config.source, skip_instance_cache=True)
    fresh.pipe_file("new", b"1")
    assert fresh.cat("new") == b"1"


def test_a_folder_that_is_not_empty_is_named_by_its_path(fs):
    # In memory a folder that only objects imply is no folder to delete.
    fs.mkdir("real")
    fs.pipe_file("real/x", b"1")
    with pytest.raises(errors.StoreError) as caught:
        fs._sync(fs.store.delete, [fs._sync(fs.store.stat, "real")])
    assert str(caught.value).startswith("real")
    assert not caught.value.retryable

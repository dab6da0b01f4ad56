"""What other software makes of a store on this machine, and what the commands take and start: none of it shows keys."""

from __future__ import annotations

import gc
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.bag
import dask.dataframe
import fsspec
import pandas as pd
import pytest
import typer

from sovstore.cli.app import load
from sovstore.filesystem import SovFileSystem
from tests.hostile.canaries import Canary, Found, Searcher
from tests.hostile.key_spy import KeySpy, spy_on_keys
from tests.hostile.sessions import COLUMN, DATA, FILE, FOLDER, Session, watching
from tests.hosts import cheap_key_files
from tests.stores import PASSPHRASE, make_store

ROOT = Path(__file__).parents[2]
DATA_CANARY, COLUMN_CANARY = Canary.text("data", "data", DATA), Canary.text("column", "column", COLUMN)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> KeySpy:
    cheap_key_files(monkeypatch)
    return spy_on_keys(monkeypatch)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: KeySpy) -> Path:
    file = make_store(tmp_path)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    frame = pd.DataFrame({COLUMN: [DATA] * 100, "n": range(100)})
    frame.to_parquet(f"sov://cohortes/{FOLDER}/t.parquet")
    with fsspec.open(f"sov://cohortes/{FOLDER}/{FILE}", "wt") as text:
        text.write(f"{DATA}\n" * 100)
    return file


def searcher(keys: KeySpy) -> Searcher:
    """Return what looks for all that is known so far."""
    passphrase = Canary.text("key", "passphrase", PASSPHRASE, whole=True)
    return Searcher([DATA_CANARY, COLUMN_CANARY, passphrase, *keys.canaries()])


def search(keys: KeySpy, content: bytes | str) -> set[tuple[str, str]]:
    return {(found.kind, found.label) for found in searcher(keys).find(content)}


# Graphs


def graphs(config: Path) -> Iterator[tuple[str, Any]]:
    """Yield what dask makes of a store: collections, as they are built and as they are sent to workers."""
    options = {"config": str(config)}
    url = f"sov://cohortes/{FOLDER}"
    frame = dask.dataframe.read_parquet(f"{url}/t.parquet", storage_options=options)
    text = dask.bag.read_text(f"{url}/{FILE}", storage_options=options)
    fs = SovFileSystem("cohortes", **options)
    delayed = dask.delayed(fs.cat_file)(f"{FOLDER}/{FILE}")
    mapped = frame.map_partitions(len)
    for name, made in {"frame": frame, "mapped": mapped, "text": text, "delayed": delayed}.items():
        yield name, made
        yield f"{name}, optimised", dask.optimize(made)[0]
        yield f"{name}, graph", dict(made.__dask_graph__())
    yield "opened", fsspec.open(f"{url}/{FILE}", "rb", **options)
    yield "open files", fsspec.open_files([f"{url}/{FILE}"], "rb", **options)
    yield "read", fs.open(f"{FOLDER}/{FILE}", "rb")


def test_no_graph_carries_data_or_keys(config: Path, keys: KeySpy) -> None:
    """Paths and the names of columns are in a graph, as the user put them there; what they lead to is not."""
    count = 0
    for name, graph in graphs(config):
        found = search(keys, cloudpickle.dumps(graph)) | search(keys, repr(graph)) | search(keys, str(graph))
        assert found <= {("column", "column")}, name
        count += 1
    assert count == 15


def test_a_graph_works_where_it_arrives(config: Path, keys: KeySpy) -> None:
    """What was searched above is all that a worker needs."""
    sent = {name: cloudpickle.dumps(graph) for name, graph in graphs(config) if "graph" not in name}
    SovFileSystem.clear_instance_cache()
    assert len(pickle.loads(sent["frame"]).compute(scheduler="sync")) == 100  # noqa: S301  # our own
    assert pickle.loads(sent["text"]).compute(scheduler="sync")[0].strip() == DATA  # noqa: S301
    assert pickle.loads(sent["delayed"]).compute(scheduler="sync").startswith(DATA.encode())  # noqa: S301


def test_a_file_that_was_read_pickles_without_what_was_read(config: Path, keys: KeySpy) -> None:
    fs = SovFileSystem("cohortes", config=str(config))
    with fs.open(f"{FOLDER}/{FILE}", "rb") as file:
        assert file.read(200).startswith(DATA.encode())
        assert search(keys, pickle.dumps(file) + cloudpickle.dumps(file)) == set()


# Caches on disk


def on_disk(folder: Path, keys: KeySpy) -> set[Found]:
    known = Searcher([DATA_CANARY, *keys.canaries()])
    files = [path for path in folder.rglob("*") if path.is_file()]
    return known.find_all((str(path), path.read_bytes()) for path in files)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_a_cache_that_is_asked_for_is_in_clear(tmp_path: Path, config: Path, keys: KeySpy, cache: str) -> None:
    """fsspec's, by the user's own wish, and documented; it also shows that the search of files finds plaintext."""
    folder = tmp_path / "cache"
    options = {cache: {"cache_storage": str(folder)}, "sov": {"config": str(config)}}
    with fsspec.open(f"{cache}::sov://cohortes/{FOLDER}/{FILE}", "rb", **options) as file:
        assert file.read().startswith(DATA.encode())
    assert {found.kind for found in on_disk(folder, keys)} == {"data"}


# fsspec drops the file that it maps, and Python warns of it.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_cache_in_a_mapped_file_is_on_disk_too(config: Path, keys: KeySpy) -> None:
    """Another one of fsspec's, by the user's own wish; its file has no name, and is gone when it is closed."""
    opened: list[str] = []
    fs = SovFileSystem("cohortes", config=str(config))
    with watching(opened, []), fs.open(f"{FOLDER}/{FILE}", "rb", cache_type="mmap") as file:
        assert file.read(100).startswith(DATA.encode())
    assert len(opened) > 0


def test_without_one_nothing_is_in_clear(tmp_path: Path, config: Path, keys: KeySpy) -> None:
    opened: list[str] = []
    with watching(opened, []):
        fs = SovFileSystem("cohortes", config=str(config))
        for cache in ("readahead", "bytes", "blockcache", "background", "all", "sov"):
            with fs.open(f"{FOLDER}/{FILE}", "rb", cache_type=cache, block_size=2**14) as file:
                assert file.read(100).startswith(DATA.encode())
        pd.read_parquet(f"sov://cohortes/{FOLDER}/t.parquet")
        fs.glob("**")
    assert on_disk(tmp_path, keys) == set()
    assert opened == []


# Processes and what they are told


def parameters() -> Iterator[tuple[str, Any]]:
    """Yield every option and argument of every command."""
    waiting = [("sovstore", typer.main.get_command(load()))]
    while waiting:
        path, command = waiting.pop()
        yield from ((path, parameter) for parameter in command.params)
        waiting += [(f"{path} {name}", below) for name, below in getattr(command, "commands", {}).items()]


#: Options that say where a key is, and never what it is.
REFERENCES = {
    "recovery_key": "FILE",
    "kek": "URI of the key",
    "keep_old": "old_keks",
    # A switch.
    "no_keys": "Open no store",
}
_SECRET = re.compile(r"pass|secret|token|credential|password|pin\b|key|kek", re.IGNORECASE)


def test_no_command_takes_a_secret_as_an_argument() -> None:
    """Every process of the machine sees the arguments of all others."""
    found = {}
    for path, parameter in parameters():
        text = f"{parameter.name} {parameter.metavar or ''} {getattr(parameter, 'help', None) or ''}"
        if _SECRET.search(" ".join([parameter.name, *parameter.opts])):
            found[parameter.name] = text
        # Never asked for by the library of the command line, which would take an argument in its place.
        assert not getattr(parameter, "prompt", None), (path, parameter.name)
        assert not getattr(parameter, "hide_input", False), (path, parameter.name)
        # Read by us, in one place.
        assert not parameter.envvar, (path, parameter.name)
    assert found.keys() == {"recovery_key", "kek", "no_keys"}
    for name, text in found.items():
        assert REFERENCES[name] in text or "FILE" in text or "URI" in text or "this key instead" in text


def test_a_command_starts_nothing_and_shows_nothing_of_itself(tmp_path: Path, config: Path, keys: KeySpy) -> None:
    """In a process of its own: its arguments and its environment are as they were given, and it has no children."""
    script = f"""
import sys
from pathlib import Path
from tests.hostile.sessions import watching
from sovstore.cli import main
started = []
with watching([], started):
    code = main(["cat", "sov://cohortes/{FOLDER}/{FILE}"])
own = Path("/proc/self")
sys.stdout.flush()
sys.stderr.write(repr([code, started, (own / "cmdline").read_bytes(), (own / "environ").read_bytes()]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, env=environment, check=True)
    assert ran.stdout.startswith(DATA.encode())
    assert ran.stderr.startswith(b"[0, [], ")
    assert search(keys, ran.stderr) == set()


def test_the_watch_sees_files_and_processes(tmp_path: Path) -> None:
    opened: list[str] = []
    started: list[str] = []
    with watching(opened, started):
        (tmp_path / "a").write_text("x")
        (tmp_path / "a").read_text()
        subprocess.run(["true"], check=True)
    (tmp_path / "b").write_text("x")
    assert opened[0] == str(tmp_path / "a")
    assert str(tmp_path / "b") not in opened
    assert opened.count(str(tmp_path / "a")) == 1
    assert len(started) == 1


def complete(shell: str, words: str) -> bytes:
    """Return what a shell is told when somebody presses the tab key behind some words."""
    asked = {"_SOVSTORE_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    asked |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {**os.environ, **asked, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = "import sys; from sovstore.cli import main; sys.argv[0] = 'sovstore'; sys.exit(main())"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, env=environment, check=False)
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_shows_nothing(config: Path, keys: KeySpy, shell: str) -> None:
    """A shell asks for it at each tab: it opens no store."""
    assert b"verify" in complete(shell, "sovstore ver")
    shown = complete(shell, f"sovstore cat sov://cohortes/{FOLDER}/")
    assert search(keys, shown) == set()
    assert FILE.encode() not in shown


# Objects in memory


def test_no_object_shows_a_key(config: Path, keys: KeySpy) -> None:
    """Whatever sovstore made is in `repr`s: of a debugger, a notebook, an error report with local variables."""
    fs = SovFileSystem("cohortes", config=str(config))
    fs.cat_file(f"{FOLDER}/{FILE}")
    with fs.open(f"{FOLDER}/{FILE}", "rb"):
        # Of some types of others it is no text.
        ours = [one for one in gc.get_objects() if str(type(one).__module__).startswith("sovstore.")]
        shown = {f"{type(one).__qualname__}: {one!r}" for one in ours}
    names = {type(one).__name__ for one in ours}
    assert names >= {"Keyset", "Epoch", "Keys", "Store", "LocalKey", "EncryptedNames", "HeldKeys"}
    every = searcher(keys)
    assert {text for text in shown if any(found.kind == "key" for found in every.find(text))} == set()


def test_the_hunt_of_a_session_sees_a_planted_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in each channel: a channel that is not searched would look like one without leaks."""
    from tests.hostile.test_leaks import CHANNELS, hunt, of_this_machine

    session = Session(tmp_path, monkeypatch, {"provider": "memory", "root": "/host"}, big=0)
    session.keys.note("planted", bytes(range(100, 132)))
    key = bytes(range(100, 132)).hex()
    try:
        secret = bytes.fromhex(key)
        raise ValueError(f"wrong key {secret!r}")
    except ValueError as exc:
        session.errors.append(exc)
    session.objects.append([key])
    session.started.append(key)
    session.run("config", "path")
    session.printed.append(session.printed[-1]._replace(content=key.encode()))
    (session.desk / "left").write_text(DATA)
    leaks = hunt(session, of_this_machine(session, tmp_path, {f"opened with {key}"}))
    assert {channel for channel, _ in leaks} == CHANNELS.keys() - {"host"}

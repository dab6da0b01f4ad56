"""One session of a user with a store, with canaries in all that the host and others must not learn.

Everything that a user does is done once, through the API and through the commands; what was printed, raised, made and
written meanwhile is kept.
"""

from __future__ import annotations

import asyncio
import io
import os
import platform
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pandas as pd
import pytest

from sovstore import config
from sovstore.cli import main
from sovstore.errors import SovstoreError
from sovstore.filesystem import SovFileSystem
from sovstore.kms import registry
from tests.hostile.canaries import Canary
from tests.hostile.key_spy import KeySpy, spy_on_keys
from tests.hosts import cheap_key_files

MIB = 2**20
# Letters that stand beside each other in no word: each 8 of them are found in a secret only.
DATA, COLUMN = "Qzvwkx-Patjént-Wqhjzy", "Vqjxzw-Spalte-Kzqhyx"
FOLDER, FILE, MISSING = "Jxqzvk-Ordnér-Wqzkhy", "Zkqxwj-Datei-Hvqzyx", "Xwqzkj-keine-Vhqzxw"
STORE, USER, MACHINE = "hqxzwv-lager-kjqzyx", "wjqzxv-person-hxqkzy", "kxqjzv-rechner-wzqhyx"
PASSPHRASE = "Wqjxvz-geheim-Zhkqyx"
DESK, LOCAL = "xqjzwv-tisch-kzqwhy", "qwxjzv-lokal-zkqhyw"


def canaries() -> list[Canary]:
    """Return what a session must not show, but for the keys."""
    paths = {"folder": FOLDER, "file": FILE, "missing": MISSING}
    here = {"store": STORE, "user": USER, "machine": MACHINE, "desk": DESK, "local file": LOCAL}
    real = socket.gethostname()
    return [
        Canary.text("data", "data", DATA),
        Canary.text("column", "column", COLUMN),
        *(Canary.text("path", label, value) for label, value in paths.items()),
        *(Canary.text("here", label, value) for label, value in here.items()),
        *([Canary.text("here", "real machine", real)] if len(real) > 6 else []),
        Canary("here", "hardware address", uuid.getnode().to_bytes(6, "big")),
        Canary.text("key", "passphrase", PASSPHRASE),
    ]


class Printed(NamedTuple):
    """What a command printed."""

    command: tuple[str, ...]
    content: bytes


class Session:
    """A user at a desk.

    Parameters
    ----------
    folder : Path
        An empty one; the desk is made in it.
    patch : pytest.MonkeyPatch
        Undoes what is changed.
    settings : dict
        Of the store.
    big : int
        Bytes of the largest object: more than one part.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, settings: dict[str, Any], *, big: int) -> None:
        self.desk = folder / DESK
        self.desk.mkdir()
        self.printed: list[Printed] = []
        self.errors: list[BaseException] = []
        self.objects: list[object] = []
        self.opened: list[str] = []
        self.started: list[str] = []
        self._patch = patch
        cheap_key_files(patch)
        _be_somebody(patch, folder)
        self.keys: KeySpy = spy_on_keys(patch)
        patch.chdir(self.desk)
        (self.desk / "passphrase").write_text(PASSPHRASE)
        self.config = self.desk / "sovstore.toml"
        self.config.write_text('[audit]\nfile = "audit.jsonl"\n')
        environment = settings.pop("environment", {})
        for name, value in environment.items():
            patch.setenv(name, value)
        # Not by its absolute path, which would tell the host where the home folder is.
        table = {"kek": "keyfile:~/kek.key", "backup": "backup", "passphrase_file": "passphrase", **settings}
        config.write_settings(self.config, STORE, table)
        self.big = f"{DATA};{COLUMN}\n".encode() * (big // 45)
        self.url = f"sov://{STORE}"

    def open(self, **options: Any) -> SovFileSystem:
        """Return the store, opened anew."""
        return SovFileSystem(STORE, config=str(self.config), skip_instance_cache=True, **options)

    def run(self, *command: object, code: int | None = 0) -> bytes:
        """Run a command and return what it prints."""
        words = tuple(str(word) for word in command)
        before, sink = (sys.stdout, sys.stderr), io.BytesIO()
        text = io.TextIOWrapper(sink, encoding="utf-8", write_through=True)
        sys.stdout = sys.stderr = text
        try:
            ended = main(list(words))
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before
            text.detach()
        content = sink.getvalue()
        self.printed.append(Printed(words, content))
        assert code is None or ended == code, (words, ended, content.decode())
        return content

    def fails(self, work: Callable[[], object]) -> None:
        """Keep the error of what must fail."""
        try:
            work()
        except Exception as exc:  # noqa: BLE001  # of fsspec and pandas too
            self.errors.append(exc)
        else:
            raise AssertionError("it did not fail")

    # The session

    def all(self, *, check: bool = False) -> None:
        """Do everything once."""
        with watching(self.opened, self.started):
            self._set_up()
            self._write()
            self._read()
            self._tables()
            self._change()
            self._keys()
            self._go_wrong()
            if check:
                self.run("check", STORE, code=None)
            self.run("gc", STORE, "--older-than", "30m")
            self.run("verify", STORE, "--json")
            self.run("rm", "-r", "--yes", self.url + "/")

    def writing(self) -> None:
        """Do only what writes, for a host that differs in conditions on writes."""
        with watching(self.opened, self.started):
            self._set_up()
            self._write()
            self._change()

    def _set_up(self) -> None:
        self.run("keys", "recovery-new", "rescue")
        self.run("init", STORE, "--json")
        self.run("keys", "recovery-add", STORE, "rescue.pub")
        self.run("policy", STORE)
        self.run("config", "show")
        self.run("providers")

    def _write(self) -> None:
        fs = self.open()
        self.objects += [fs, fs.store, fs.store.config, fs.store.access, fs._sync(fs.store.keyset)]
        fs.pipe_file(f"{FOLDER}/{FILE}", DATA.encode())
        fs.pipe({f"{FOLDER}/{name}-{FILE}": DATA.encode() * number for number, name in enumerate("abcd")})
        with fs.open(f"{FOLDER}/big-{FILE}", "wb") as file:
            self.objects.append(file)
            for start in range(0, len(self.big), MIB):
                file.write(self.big[start : start + MIB])
        for compression in ("gzip", "bz2", "xz"):
            with fsspec.open(f"{self.url}/{FOLDER}/{FILE}.{compression}", "wt", compression=compression) as file:
                file.write(f"{DATA}\n" * 99)
        asyncio.run(self._write_async())
        local = self.desk / LOCAL
        (local / FOLDER).mkdir(parents=True)
        (local / FOLDER / LOCAL).write_text(DATA * 3)
        self.run("put", "-r", local, f"{self.url}/{FOLDER}/put")
        self.run("put", local / FOLDER / LOCAL, f"{self.url}/{FOLDER}/one-{FILE}")

    async def _write_async(self) -> None:
        fs = self.open(asynchronous=True)
        async with fs:
            await fs._pipe_file(f"{FOLDER}/async-{FILE}", DATA.encode())
            file = await fs.open_async(f"{FOLDER}/stream-{FILE}", "wb")
            await file.write(DATA.encode())
            await file.close()

    def _read(self) -> None:
        fs = self.open()
        assert fs.cat_file(f"{FOLDER}/big-{FILE}") == self.big
        fs.cat_ranges([f"{FOLDER}/big-{FILE}"] * 2, [0, 70_000], [9, 70_010])
        with fs.open(f"{FOLDER}/big-{FILE}", "rb") as file:
            file.seek(200_000)
            file.readline()
            self.objects.append(file)
        with fsspec.open(f"{self.url}/{FOLDER}/{FILE}.gzip", "rt", compression="gzip") as file:
            file.read()
        for path in ("", FOLDER):
            fs.ls(path)
            fs.find(path, withdirs=True)
            fs.du(path)
            list(fs.walk(path))
        fs.glob(f"{FOLDER}/*{FILE}*")
        self.objects.append(fs.get_mapper(FOLDER))
        fs.get(f"{FOLDER}/{FILE}", str(self.desk / f"{LOCAL}.got"))
        self.run("cat", f"{self.url}/{FOLDER}/{FILE}")
        self.run("get", "-r", f"{self.url}/{FOLDER}/put", self.desk / f"{LOCAL}.tree")
        self.run("ls", "-l", "-R", self.url)
        self.run("info", f"{self.url}/{FOLDER}/big-{FILE}")
        self.run("info", "--json", self.url)
        self.run("verify", STORE)

    def _tables(self) -> None:
        frame = pd.DataFrame({COLUMN: [DATA] * 500, "n": range(500)})
        options = {"config": str(self.config)}
        frame.to_parquet(f"{self.url}/{FOLDER}/t.parquet", storage_options=options)
        frame.to_csv(f"{self.url}/{FOLDER}/t.csv.gz", storage_options=options)
        frame.to_json(f"{self.url}/{FOLDER}/t.json", storage_options=options)
        for read, name in ((pd.read_parquet, "t.parquet"), (pd.read_csv, "t.csv.gz"), (pd.read_json, "t.json")):
            assert len(read(f"{self.url}/{FOLDER}/{name}", storage_options=options)) == 500

    def _change(self) -> None:
        fs = self.open()
        fs.mv(f"{FOLDER}/a-{FILE}", f"{FOLDER}/moved-{FILE}")
        fs.mv(f"{FOLDER}/big-{FILE}", f"{FOLDER}/large-{FILE}")
        fs.cp_file(f"{FOLDER}/b-{FILE}", f"{FOLDER}/copied-{FILE}")
        fs.pipe_file(f"{FOLDER}/b-{FILE}", DATA.encode() * 9)
        fs.rm([f"{FOLDER}/c-{FILE}", f"{FOLDER}/d-{FILE}"])
        fs.rm(f"{FOLDER}/large-{FILE}")
        self.run("mv", "-r", f"{self.url}/{FOLDER}/put", f"{self.url}/{FOLDER}/renamed")
        self.run("cp", "-r", f"{self.url}/{FOLDER}/renamed", f"{self.url}/{FOLDER}/twice")
        self.run("rm", "-r", f"{self.url}/{FOLDER}/renamed")

    def _keys(self) -> None:
        second = "keyfile:~/second.key"
        old = self.open()._sync(self.open().store.keyset).primary.id.hex()
        self.run("keys", "add-kek", STORE, second)
        self.run("keys", "rotate-kek", STORE)
        self.run("keys", "new-epoch", STORE)
        self.run("keys", "rewrap", STORE)
        self.run("keys", "destroy-epoch", STORE, old, "--yes")
        self.run("keys", "remove-kek", STORE, second)
        self.run("keys", "list", STORE)
        self.run("keys", "list", STORE, "--json")
        self.run("keys", "backup", STORE)
        self.run("cat", "--recovery-key", "rescue", f"{self.url}/{FOLDER}/{FILE}")
        recovered = self.open(recovery_key=str(self.desk / "rescue"))
        recovered.cat_file(f"{FOLDER}/{FILE}")
        self.objects += [recovered, recovered.store]
        self.fails(lambda: recovered.pipe_file(FILE, DATA.encode()))

    def _described(self) -> Any:
        return config.load(str(self.config)).store(STORE)

    def _go_wrong(self) -> None:
        fs = self.open()
        missing = f"{FOLDER}/{MISSING}"
        for work in (fs.cat_file, fs.info, fs.open, fs.rm, fs.ls, lambda path: fs.mv(path, FILE)):
            self.fails(lambda work=work: work(missing))
        self.fails(lambda: fs.open(FILE, "ab"))
        self.fails(lambda: fs.open(f"{FOLDER}/{FILE}", "xb"))
        self.fails(lambda: fs.pipe_file(f"{MISSING}//{FILE}", DATA.encode()))
        self.fails(lambda: fs.pipe_file(FILE * 99, DATA.encode()))
        self.fails(lambda: SovFileSystem(STORE, config=str(self.config), secret=DATA))
        self.fails(lambda: SovFileSystem(MISSING, config=str(self.config)))
        self.fails(lambda: _fail_in(fs, f"{FOLDER}/half-{FILE}"))
        self.run("cat", f"{self.url}/{missing}", code=1)
        self.run("--debug", "cat", f"{self.url}/{missing}", code=1)
        self.run("info", "--json", f"{self.url}/{missing}", code=1)
        self.run("put", self.desk / MISSING, self.url + "/", code=None)
        self._damaged(fs)
        self._denied()

    def _damaged(self, fs: SovFileSystem) -> None:
        """Read an object that is another one: nothing of either may be in the error."""
        store = fs.store

        async def swapped() -> None:
            names = [await store.name(f"{FOLDER}/{name}{FILE}") for name in ("b-", "copied-")]
            backend = store.backend
            found = await backend.read(names[0], 0, MIB)
            upload = await backend.upload(names[1])
            await upload.write(found)
            await upload.commit()

        fs._sync(swapped)
        self.fails(lambda: fs.cat_file(f"{FOLDER}/copied-{FILE}"))
        self.run("--debug", "verify", STORE, code=3)
        fs.rm(f"{FOLDER}/copied-{FILE}")

    def _denied(self) -> None:
        # A key file that cannot be written, after the key was made.
        self.fails(lambda: registry.create_key(f"keyfile:{self.config}/x.key", config.access(self._described())))
        (self.desk / "passphrase").write_text(f"{PASSPHRASE} is wrong so")
        denied = self.open()
        self.fails(lambda: denied.ls(""))
        self.run("--debug", "ls", self.url, code=4)
        (self.desk / "passphrase").write_text(PASSPHRASE)
        with suppress(SovstoreError):
            denied.close()


def _fail_in(fs: SovFileSystem, path: str) -> None:
    with fs.open(path, "wb") as file:
        file.write(DATA.encode())
        raise RuntimeError("the pipeline failed")


def _be_somebody(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the user, the machine and the home folder known ones, so that they can be searched for."""
    home = folder / f"home-{USER}"
    home.mkdir()
    for name, value in {"HOME": home, "TMPDIR": folder / "tmp", "USER": USER, "LOGNAME": USER}.items():
        patch.setenv(name, str(value))
    for name, below in {"CONFIG": ".config", "CACHE": ".cache", "DATA": ".data", "STATE": ".state"}.items():
        patch.setenv(f"XDG_{name}_HOME", str(home / below))
    (folder / "tmp").mkdir()
    patch.setattr("tempfile.tempdir", str(folder / "tmp"))
    patch.setattr(socket, "gethostname", lambda: MACHINE)
    patch.setattr(socket, "getfqdn", lambda *_: f"{MACHINE}.example")
    patch.setattr(platform, "node", lambda: MACHINE)
    known = os.uname()
    patch.setattr(os, "uname", lambda: os.uname_result((known[0], MACHINE, *known[2:])))
    patch.setattr(platform, "_uname_cache", None)
    patch.setattr(platform, "_platform_cache", {})


# What the interpreter says of files and processes

_watchers: list[tuple[list[str], list[str]]] = []
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_STARTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "pty.spawn")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    if event == "open":
        path, _, flags = arguments
        if flags & _WRITING and not isinstance(path, int):
            _watchers[-1][0].append(os.fsdecode(path))
    elif event in _STARTS:
        _watchers[-1][1].append(repr(arguments))


@contextmanager
def watching(opened: list[str], started: list[str]) -> Iterator[None]:
    """Note every file that is opened for writing and every process that is started."""
    _install()
    _watchers.append((opened, started))
    try:
        yield
    finally:
        _watchers.pop()


def _install() -> None:
    if not _installed:
        _installed.append(True)
        # There is no way to take it out again.
        sys.addaudithook(_hook)


_installed: list[bool] = []

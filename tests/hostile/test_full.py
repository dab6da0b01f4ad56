"""A disk that is full or read-only, and hosts whose quota is used up: an error that says so, and nothing half-done."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sovstore
from sovstore import config, rotation
from sovstore.cli import main
from sovstore.errors import ConfigError, SovstoreError, StoreError
from sovstore.filesystem import SovFileSystem
from tests.hosts import cheap_key_files
from tests.servers.faults import Faults
from tests.stores import make_store, on_azure, on_s3, open_fs

MIB = 2**20
OLD = b"old" * 100_000
BIG = bytes(3 * MIB)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


def refused(message: str, hint: str, work: Callable[[], object], kind: type[SovstoreError] = StoreError) -> None:
    with pytest.raises(kind, match=message) as caught:
        work()
    assert type(caught.value) is kind
    assert hint in (caught.value.hint or ""), caught.value.hint


# A disk of this machine


class Disk:
    """A small file system, and how much of it is free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes free."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError:
                pass
            ballast.truncate(ballast.tell() // 4096 * 4096 - leave)

    def free(self) -> None:
        """Free all that `fill` took."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 4 MiB, where the one who runs the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system takes rights that these tests do not have")
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def temporaries(*folders: Path) -> list[Path]:
    """Return the temporary files of any kind."""
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if ".sovstore-" in path.name or path.parent.name == "tmp"]


def in_pieces(fs: SovFileSystem) -> None:
    with fs.open("object", "wb") as file:
        file.writelines([bytes(300_000)] * 10)


#: What needs room on the disk of the store, and how much of it is free.
CHANGES: dict[str, tuple[Callable[[SovFileSystem, Path], object], int]] = {
    "write": (lambda fs, _: fs.pipe_file("new", BIG), MIB),
    "write of one byte": (lambda fs, _: fs.pipe_file("new", b"1"), 0),
    "overwrite": (lambda fs, _: fs.pipe_file("object", BIG), MIB),
    "overwrite in pieces": (lambda fs, _: in_pieces(fs), MIB),
    "put": (lambda fs, local: fs.put_file(str(local), "object"), MIB),
    "copy": (lambda fs, _: fs.cp("object", "second"), 100_000),
    "rename": (lambda fs, _: fs.mv("object", "new"), 100_000),
    "rotate-kek": (lambda fs, _: fs._sync(rotation.rotate_kek, fs.store), 0),
    "new-epoch": (lambda fs, _: fs._sync(rotation.new_epoch, fs.store), 0),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_full_disk_under_a_store(disk: Disk, tmp_path: Path, what: str) -> None:
    change, leave = CHANGES[what]
    file = make_store(tmp_path, root=str(disk.folder / "store"))
    fs = open_fs(file)
    fs.pipe_file("object", OLD)
    version = fs._sync(fs.store.keyset).version
    local = tmp_path / "local"
    local.write_bytes(BIG)
    disk.fill(leave)
    for _ in range(2):
        refused("no room: No space left on device", "free some room", lambda: change(fs, local))
        again = open_fs(file, skip_instance_cache=True)
        assert again.cat_file("object") == OLD
        assert again.find("") == ["object"]
        assert again._sync(again.store.keyset).version == version
        assert temporaries(disk.folder, tmp_path) == []
    disk.free()
    fs = open_fs(file, skip_instance_cache=True)
    fs.pipe_file("object", OLD)
    change(fs, local)
    assert temporaries(disk.folder, tmp_path) == []
    assert open_fs(file, skip_instance_cache=True)._sync(fs.store.keyset).version >= version


def test_a_full_disk_under_rewrap(disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_store(tmp_path, root=str(disk.folder / "store"))
    fs = open_fs(file)
    fs.pipe({"object": OLD, "small": b"1"})
    fs._sync(rotation.new_epoch, fs.store)
    disk.fill(8192)
    rewrap = ["--config", str(file), "keys", "rewrap", "cohortes"]
    # The small one finds its room.
    assert main(rewrap) == 5
    assert "object: no room: No space left on device" in capsys.readouterr().err
    fs = open_fs(file, skip_instance_cache=True)
    assert fs.cat(["object", "small"]) == {"object": OLD, "small": b"1"}
    assert temporaries(disk.folder) == []
    disk.free()
    assert main(rewrap) == 0
    assert "rewrapped 1 object" in capsys.readouterr().out
    assert open_fs(file, skip_instance_cache=True).cat_file("object") == OLD


@pytest.mark.parametrize("what", ["root", "kek", "backup"])
def test_a_full_disk_under_a_new_store(disk: Disk, tmp_path: Path, what: str) -> None:
    place = disk.folder / "new" / "place"
    settings = {what: f"keyfile:{place}" if what == "kek" else str(place)}
    disk.fill()
    kind = StoreError if what == "root" else ConfigError
    refused("No space left", "room", lambda: make_store(tmp_path, **settings), kind)
    assert temporaries(disk.folder, tmp_path) == []
    disk.free()
    file = tmp_path / "sovstore.toml"
    if what == "backup":
        # The host has its keyset; what is missing is the copy.
        assert main(["--config", str(file), "keys", "backup", "cohortes"]) == 0
    else:
        make_store(tmp_path, **settings)
    fs = open_fs(file)
    fs.pipe_file("object", OLD)
    assert fs.cat_file("object") == OLD


def test_a_full_disk_under_the_configuration(disk: Disk) -> None:
    file = disk.folder / "sovstore.toml"
    file.write_text("# mine\n")
    disk.fill()
    refused("No space left", "write into", lambda: config.write_settings(file, "a", {"root": "/" * 5000}), ConfigError)
    assert file.read_text() == "# mine\n"
    assert sorted(os.listdir(disk.folder)) == ["ballast", "sovstore.toml"]


def test_a_disk_that_is_mounted_read_only(disk: Disk, tmp_path: Path) -> None:
    fs = open_fs(make_store(tmp_path, root=str(disk.folder / "store")))
    fs.pipe_file("a", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], check=True)
    for write in (
        lambda: fs.pipe_file("a", b"new"),
        lambda: fs.open("b", "wb"),
        lambda: fs.rm("a"),
        lambda: fs.mv("a", "b"),
        lambda: fs.cp("a", "b"),
        lambda: fs.makedirs("folder"),
    ):
        with pytest.raises(StoreError, match=r"[Rr]ead-only|cannot be written"):
            write()
    assert fs.cat_file("a") == b"old"
    assert fs.find("", withdirs=True) == ["a"]


def test_a_full_disk_under_the_backup_copies(disk: Disk, tmp_path: Path) -> None:
    file = make_store(tmp_path, backup=str(disk.folder / "backup"))
    fs = open_fs(file)
    fs.pipe_file("object", OLD)
    disk.fill()
    refused("No space left", "free some room", lambda: fs._sync(rotation.rotate_kek, fs.store), ConfigError)
    # The host has it by then.
    fs = open_fs(file, skip_instance_cache=True)
    assert fs.cat_file("object") == OLD
    assert fs._sync(fs.store.keyset).version == 2
    assert temporaries(disk.folder, tmp_path) == []
    disk.free()
    assert main(["--config", str(file), "keys", "backup", "cohortes"]) == 0
    assert {path.name for path in disk.folder.rglob("*.json")} == {"1.json", "2.json"}


def test_a_full_disk_under_the_audit_trail(disk: Disk, tmp_path: Path) -> None:
    trail = disk.folder / "audit.jsonl"
    (tmp_path / "sovstore.toml").write_text(f'[audit]\nfile = "{trail}"\n')
    file = make_store(tmp_path)
    open_fs(file).pipe_file("object", OLD)
    # To the end of its last page.
    with trail.open("a") as opened:
        opened.write(f'"{"-" * (4096 - 3 - trail.stat().st_size % 4096)}"\n')
    lines = trail.read_text()
    disk.fill()
    # What must be recorded and cannot be is not done.
    fs = open_fs(file, skip_instance_cache=True)
    refused("audit trail cannot be written", "free some room", lambda: fs.cat_file("object"), ConfigError)
    assert trail.read_text() == lines
    disk.free()
    assert open_fs(file, skip_instance_cache=True).cat_file("object") == OLD
    assert [json.loads(line) for line in trail.read_text().splitlines()][-1]


def test_a_full_disk_under_a_download(disk: Disk, tmp_path: Path) -> None:
    fs = open_fs(make_store(tmp_path))
    fs.pipe_file("big", BIG)
    target = disk.folder / "download"
    target.write_bytes(OLD)
    disk.fill(MIB)
    refused("cannot be written: No space left", "free some room", lambda: fs.get_file("big", str(target)))
    assert target.read_bytes() == OLD
    assert sorted(os.listdir(disk.folder)) == ["ballast", "download"]
    disk.free()
    fs.get_file("big", str(target))
    assert target.read_bytes() == BIG


@pytest.mark.parametrize("mode", ["seal", "open"])
def test_a_migration_to_a_full_disk_goes_on_when_there_is_room(
    disk: Disk, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = {f"{n:02}": os.urandom(100_000) for n in range(20)}
    file = make_store(tmp_path, root=str((disk.folder if mode == "seal" else tmp_path) / "store"))
    source, dest = str(tmp_path / "clear"), "sov://cohortes/"
    (tmp_path / "clear").mkdir()
    for name, data in made.items():
        (tmp_path / "clear" / name).write_bytes(data)
    if mode == "open":
        sovstore.migrate(source, dest, config=file)
        source, dest = dest, str(disk.folder / "out")
    disk.fill(leave=MIB)
    report = sovstore.migrate(source, dest, config=file)
    assert 0 < report.moved < len(made)
    assert report.moved + report.failures.count == len(made)
    assert all("no room" in failure.message for failure in report.failures.first)
    assert all("free some room" in (failure.hint or "") for failure in report.failures.first)
    disk.free()
    report = sovstore.migrate(source, dest, config=file, verify=True)
    assert (report.failures.count, report.verified) == (0, len(made))


# A quota


def keeps(fs: SovFileSystem, file: Path) -> None:
    """Check that a fresh client finds the old object, and nothing else."""
    again = open_fs(file, skip_instance_cache=True)
    assert again.cat_file("object") == OLD
    assert again.find("") == ["object"]
    again.close()


#: What a host without room refuses.
WRITES: dict[str, Callable[[SovFileSystem], object]] = {
    "write small": lambda fs: fs.pipe_file("new", bytes(MIB)),
    "write large": lambda fs: fs.pipe_file("new", bytes(12 * MIB)),
    "overwrite": lambda fs: fs.pipe_file("object", bytes(12 * MIB)),
    "rename": lambda fs: fs.mv("object", "new"),
    "rotate-kek": lambda fs: fs._sync(rotation.rotate_kek, fs.store),
}


def test_a_quota_of_ceph(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = on_s3(s3_server, options={"part_size": 5 * MIB})
    for name, value in settings.pop("environment").items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **settings)
    fs = open_fs(file)
    fs.pipe_file("object", OLD)
    bucket = settings["root"].partition("/")[0]
    s3_server.limit(bucket, size=len(OLD))
    for write in WRITES.values():
        refused("no room at the host: QuotaExceeded", "larger quota", lambda write=write: write(fs))
        keeps(fs, file)
    client = s3_server.client()
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    client.close()
    s3_server.limit(bucket)
    fs.pipe_file("object", bytes(12 * MIB))
    WRITES["rename"](fs)
    WRITES["rotate-kek"](fs)
    assert fs.find("") == ["new"]


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (403, "AccountIsDisabled", "disabled the account"),
        (409, "BlockCountExceedsLimit", "larger 'part_size'"),
        (413, "RequestBodyTooLarge", "smaller 'part_size'"),
    ],
)
def test_limits_of_azure(
    azurite_faults: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    hint: str,
) -> None:
    between = azurite_faults()
    settings = on_azure(between.server, options={"part_size": MIB})
    for name, value in settings.pop("environment").items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **settings)
    fs = open_fs(file)
    fs.pipe_file("object", OLD)
    between.proxy.faults = Faults(refuse_with=(status, code), methods=("PUT",))
    for write in WRITES.values():
        refused(f"the host refused: {code}", hint, lambda write=write: write(fs))
        keeps(fs, file)
    between.proxy.faults = Faults()
    fs.pipe_file("object", bytes(3 * MIB))
    WRITES["rename"](fs)
    WRITES["rotate-kek"](fs)
    assert fs.find("") == ["new"]

"""The standalone reader on what sovstore wrote: the user's guarantee of leaving it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sovstore import config
from sovstore.format.recovery import RecoveryKey
from tests.stores import make_store, open_fs

TOOLS = Path(__file__).parents[2] / "tools"
CONTENT = {
    "a.txt": b"hello",
    "empty": b"",
    "été/2026/données médicales.bin": os.urandom(100_000),
    "chunk": bytes(16384),
    "deep/er/and/deep/er": os.urandom(2**20 + 1),
}


def _tool(name: str, *args: object) -> bytes:
    command = [sys.executable, TOOLS / name, *map(str, args)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_objects_and_names_come_out(tmp_path: Path, names: str) -> None:
    key = RecoveryKey.generate()
    (tmp_path / "recovery.key").write_bytes(key.dump())
    (tmp_path / "recovery.pub").write_bytes(key.recipient.dump())
    file = make_store(tmp_path, names=names, recovery=["recovery.pub"])
    fs = open_fs(file)
    for path, data in CONTENT.items():
        fs.pipe_file(path, data)
    fs.mv("a.txt", "renamed.txt")
    expected = {("renamed.txt" if path == "a.txt" else path): data for path, data in CONTENT.items()}

    store = config.load(file).store("cohortes")
    root = Path(store.root)
    keyset = root / ".sovstore" / "keyset.json"
    with_key = ("--recovery-key", tmp_path / "recovery.key", "--auth-fingerprint", store.auth_fingerprint)
    keys = tmp_path / "keys.json"
    keys.write_bytes(_tool("sovkeys.py", keyset, store.store_id, *with_key))
    assert set(json.loads(keys.read_bytes())) == {"store_id", "names_mode", "name_key", "epochs"}

    listed = _tool("sovread.py", "list", root, "--keys", keys).decode()
    assert {line.split("\t", 1)[1]: int(line.split("\t")[0]) for line in listed.splitlines()} == {
        (path if path.isprintable() else ascii(path)): len(data) for path, data in expected.items()
    }
    for path, data in expected.items():
        assert _tool("sovread.py", "cat", root, path, "--keys", keys) == data
    out = tmp_path / "out"
    out.mkdir()
    _tool("sovread.py", "extract", root, out, "--keys", keys)
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == expected


def test_the_recovery_key_alone_opens_the_store(tmp_path: Path) -> None:
    key = RecoveryKey.generate()
    (tmp_path / "recovery.key").write_bytes(key.dump())
    (tmp_path / "recovery.pub").write_bytes(key.recipient.dump())
    file = make_store(tmp_path, recovery=["recovery.pub"])
    open_fs(file).pipe_file("a", b"1")
    (tmp_path / "kek.key").unlink()
    assert open_fs(file, recovery_key=str(tmp_path / "recovery.key")).cat("a") == b"1"

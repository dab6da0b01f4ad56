"""What a host can tell of two stores, or of two objects, by comparing bytes: nothing but the format's constants."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sovstore import rotation
from sovstore.filesystem import SovFileSystem
from sovstore.format.cobblestone import SALT
from sovstore.format.header import HEADER, ID, MAGIC
from sovstore.format.keyset import parse
from sovstore.format.recovery import RecoveryKey
from sovstore.keyset_copies import LOCATION
from tests.hostile.shared_bytes import shared
from tests.hosts import cheap_key_files
from tests.servers.tap import Tap, tap
from tests.stores import make_store, on_s3, open_fs

MIB = 2**20
#: Of a store at the host: names of ours, and the members of a keyset (docs/spec/format.md, 6.1), without the values
#: between them. They are nothing that a host could tell stores by.
CONSTANTS = (
    b".sovstore/keyset.json",
    b".sovstore/keyset/1-",
    b".sovstore/keyset",
    b'{"body":"{\\"auth\\":{\\"id\\":\\"',
    b'\\",\\"key\\":\\"',
    b'\\"},\\"created\\":',
    b',\\"epochs\\":[{\\"created\\":',
    b',\\"id\\":\\"',
    b'\\",\\"state\\":\\"primary\\"}],\\"format\\":1,\\"names\\":{\\"id\\":\\"',
    b'\\",\\"mode\\":\\"encrypted\\"},\\"recovery\\":[{\\"recipient\\":\\"',
    b'\\",\\"seal\\":\\"',
    b'\\"}],\\"store_id\\":\\"',
    b'\\",\\"version\\":1}","tag":"',
    b'","wraps":[{"kek":"',
    b'","wrapped":"',
    b'"}]}',
)
DATA = {f"patients/{name}.csv": f"nom;né;{name}\n".encode() * 40_000 for name in "abc"}
DATA |= {"patients/small": b"1234567890123456", "empty": b"", "zeros": bytes(100_000)}


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


def filled(folder: Path, name: str, data: dict[str, bytes] = DATA, **settings: Any) -> SovFileSystem:
    """Return a new store that holds the data."""
    (folder / "rescue.pub").touch()
    if not (folder / "rescue.pub").read_bytes():
        (folder / "rescue.pub").write_bytes(RecoveryKey.generate().recipient.dump())
    settings = {"recovery": ["rescue.pub"], **settings}
    fs = open_fs(make_store(folder, name, **settings), name)
    fs.pipe(data)
    return fs


def at_host(folder: Path) -> list[bytes]:
    """Return all that lies at a host: names, contents and attributes."""
    pieces = []
    for path in sorted(folder.rglob("*")):
        pieces += [str(path.relative_to(folder)).encode(), *(name.encode() for name in os.listxattr(path))]
        if path.is_file():
            pieces.append(path.read_bytes())
    return pieces


def public(raw: bytes) -> list[bytes]:
    """Return what a keyset says of a store in clear, and two stores may have in common.

    When it was made, which KEKs open it and which recovery keys: not hidden, as the threat model says.
    """
    parsed = parse(raw)
    moments = {parsed.created, *(epoch.created for epoch in parsed._epochs)}
    return [
        *(str(moment).encode() for moment in moments),
        *(kek.encode() for kek in parsed.wraps),
        *(recipient.hex().encode() for recipient in parsed.seals),
    ]


def keyset_of(folder: Path) -> bytes:
    return (folder / LOCATION).read_bytes()


@pytest.mark.parametrize("other_kek", [False, True], ids=["the same KEK", "another KEK"])
def test_two_stores_with_the_same_data_share_nothing(tmp_path: Path, *, other_kek: bool) -> None:
    filled(tmp_path, "one")
    settings = {"kek": f"keyfile:{tmp_path}/other"} if other_kek else {}
    filled(tmp_path, "two", **settings)
    folders = [tmp_path / "one", tmp_path / "two"]
    one, two = map(at_host, folders)
    assert sum(map(len, one)) > MIB
    keysets = [keyset_of(folder) for folder in folders]
    known = [*CONSTANTS, *(value for raw in keysets for value in public(raw))]
    # A part of the name of another KEK: the folder that both key files lie in.
    known += [f"keyfile:{tmp_path}/".encode()] * other_kek
    assert shared(one, two, known) == set()
    # Nothing is allowed for ever: all constants are in use.
    assert all(constant in keysets[0] for constant in CONSTANTS[3:])


def test_two_copies_of_a_store_do_share(tmp_path: Path) -> None:
    """What looks for shared bytes finds them: the premise of the other tests."""
    filled(tmp_path, "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    found = shared(at_host(tmp_path / "one"), at_host(tmp_path / "two"))
    assert sum(map(len, found)) > MIB


def object_of(fs: SovFileSystem, path: str) -> bytes:
    return Path(fs.store.config.root, fs.info(path)["wire_name"]).read_bytes()


def epoch_mark(wire: bytes) -> list[bytes]:
    """Return what all objects of an epoch begin with."""
    return [wire[: len(MAGIC) + 1 + ID]]


def dek_of(fs: SovFileSystem, path: str) -> bytes:
    """Return the DEK of an object: one that is used twice shows in no byte, since each body has a salt of its own."""
    return fs._sync(fs.store._dek, path, object_of(fs, path)[:HEADER]).reveal()


@pytest.mark.parametrize("path", ["patients/a.csv", "patients/small", "empty", "zeros"])
def test_the_same_data_twice_in_one_store_shares_nothing(tmp_path: Path, path: str) -> None:
    fs = filled(tmp_path, "one", data={path: DATA[path]})
    first, deks = object_of(fs, path), [dek_of(fs, path)]
    fs.pipe_file("elsewhere/again", DATA[path])
    fs.pipe_file(path, DATA[path])
    again, over = object_of(fs, "elsewhere/again"), object_of(fs, path)
    for one, other in ((first, again), (first, over), (again, over)):
        assert shared([one], [other], epoch_mark(one)) == set()
    deks += [dek_of(fs, "elsewhere/again"), dek_of(fs, path)]
    assert len(set(deks)) == 3


def test_an_edit_shares_nothing(tmp_path: Path) -> None:
    """Not even the part in front of the edit: whoever sees both versions does not learn where they differ."""
    path, data = next(iter(DATA.items()))
    fs = filled(tmp_path, "one", data={path: data})
    first = object_of(fs, path)
    fs.pipe_file(path, data + b"one more line\n")
    assert shared([first], [object_of(fs, path)], epoch_mark(first)) == set()


def test_a_copy_shares_its_body_only(tmp_path: Path) -> None:
    """Renames and copies keep the body, which is how they cost nothing; the threat model says so."""
    path, data = next(iter(DATA.items()))
    fs = filled(tmp_path, "one", data={path: data})
    first = object_of(fs, path)
    fs.cp_file(path, "copy")
    assert shared([first], [object_of(fs, "copy")], epoch_mark(first)) == {first[HEADER:]}


def test_two_versions_of_a_keyset_share_no_ciphertext(tmp_path: Path) -> None:
    fs = filled(tmp_path, "one")
    before = keyset_of(tmp_path / "one")
    fs._sync(rotation.rotate_kek, fs.store)
    after = keyset_of(tmp_path / "one")
    body = json.loads(json.loads(after)["body"])
    # Key ids and the id of the store stay.
    ids = [body["store_id"], body["auth"]["id"], body["names"]["id"], body["epochs"][0]["id"]]
    known = [*CONSTANTS, *public(before), *public(after), *(one.encode() for one in ids), b'\\",\\"version\\":']
    assert shared([before], [after], known) == set()


def test_two_children_of_one_process_share_nothing(tmp_path: Path) -> None:
    """Randomness that was drawn before a fork would be drawn twice."""
    data = DATA["zeros"]
    fs = filled(tmp_path, "one", data={"before": data})
    fs.cat_file("before")
    children = []
    for name in ("child-0", "child-1"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fs.pipe({f"{name}/{number}": data for number in range(3)})
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    fs.pipe({f"parent/{number}": data for number in range(3)})
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    writers = [[f"{name}/{number}" for number in range(3)] for name in ("child-0", "child-1", "parent")]
    wires = [[object_of(fs, path) for path in paths] for paths in writers]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert shared(wires[one], wires[other], epoch_mark(wires[0][0])) == set()
    salts = {wire[HEADER : HEADER + SALT] for written in wires for wire in written}
    deks = {dek_of(fs, path) for paths in writers for path in paths}
    assert len(salts) == len(deks) == 9


# Requests

#: Of the queries and the XML of S3, as the SDK writes them.
S3_CONSTANTS = (
    b"/?list-type=2&prefix=root%2F",
    b"/?uploads&prefix=root%2F",
    b"%2F&max-keys=1",
    b"000&delimiter=%2F",
    b"000&encoding-type=url",
    b"&encoding-type=url",
    b".sovstore%2Fkeyset.json",
    b'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>root/',
    b"</Key></Object><Object><Key>root/",
    b"</Key></Object><Quiet>true</Quiet></Delete>",
)


async def raw_keyset(fs: SovFileSystem) -> bytes:
    return bytes(await fs.store.backend.read(LOCATION, 0, MIB))


def chosen(tapped: Tap, bucket: str) -> Iterator[bytes]:
    """Yield what of the requests a client chose: targets without the bucket, signatures, and bodies.

    All other headers have a fixed shape that holds nothing of a store (`test_leaks.HEADERS`).
    """
    for head, body in tapped.requests():
        yield head.target.replace(bucket, "").encode()
        yield (head.get("Authorization") or "").rpartition("Signature=")[2].encode()
        yield body


def test_the_requests_of_two_stores_share_nothing(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, keysets = [], []
    for name in ("one", "two"):
        with tap(s3_server.port) as tapped:
            settings = on_s3(s3_server, endpoint=tapped.endpoint_url)
            for variable, value in settings.pop("environment").items():
                monkeypatch.setenv(variable, value)
            fs = filled(tmp_path, name, **settings)
            for path, data in DATA.items():
                assert fs.cat_file(path) == data
            fs.find("")
            fs.ls("patients")
            fs.cp_file("patients/small", "copy")
            fs.rm(["patients/small", "zeros"])
            keysets.append(fs._sync(raw_keyset, fs))
            fs.close()
            seen.append(list(chosen(tapped, settings["root"].partition("/")[0])))
    allowed = [*CONSTANTS, *S3_CONSTANTS, *(value for raw in keysets for value in public(raw))]
    assert sum(map(len, seen[0])) > MIB
    assert shared(*seen, allowed) == set()

"""Commands that are killed at random moments, on a folder of this machine, on Ceph and on Azurite.

Afterwards the store opens, each object is its old or its new self, nothing half-written is listed, and no temporary
file stays after the next command, as far as a host can tell a dead writer from a live one: where it cannot, `sovstore
gc --older-than 0s` is that command. `SOVSTORE_TEST_KILLS` says how many kills each operation gets.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sovstore import keyset_copies, keyset_lock, keysets, rotation
from sovstore.cli import main
from sovstore.filesystem import SovFileSystem
from sovstore.format.keyset import parse
from tests import stress
from tests.hosts import cheap_key_files
from tests.stores import make_store, on_azure, on_s3, open_fs
from tests.zygote import Zygote, zygote

MIB = 2**20
#: Kills of each kind of operation in `make test`, by host.
SHORT = {"local": 4, "ceph": 2, "azurite": 2}
#: The servers of hosts that are none of this machine's folders.
SERVERS = {"ceph": "s3", "azurite": "azurite"}
#: Of a kill at a moment between 0 and 1.1 times the time that the command takes, this share must find it at work.
WORTH_IT = 0.5
#: Kills after which the command is measured again: other work on the machine comes and goes.
AGAIN = 25

#: What is in a store: size and digest by path.
State = dict[str, tuple[int, str]]


def content(version: int, size: int) -> bytes:
    """Return bytes of which every piece says which version it is of."""
    return (hashlib.sha256(str(version).encode()).digest() * (size // 32 + 1))[:size]


def mark(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


class Site:
    """A store whose commands are killed: as a client sees it, and what lies at its host."""

    #: Of an object of several parts, of one that a host copies all but the first part of.
    large = 3 * MIB

    def __init__(self, file: Path, run: Zygote, environment: dict[str, str]) -> None:
        self.file, self.folder = file, file.parent
        self._zygote = run
        own = {name: value for name, value in os.environ.items() if name.startswith(("XDG_", "HOME"))}
        self._environment = {**own, **environment, "SOVSTORE_CONFIG": str(file)}

    def run(self, *argv: object, kill_after_s: float | None = None, codes: tuple[int, ...] = (0,)) -> tuple[int, float]:
        """Run a command, or kill it; return its exit code, and the seconds that it took."""
        ran = self._zygote.run(*argv, kill_after_s=kill_after_s, environment=self._environment)
        assert ran.codes[0] in (codes if kill_after_s is None else (0, -9)), ran.printed
        return ran.codes[0], ran.seconds

    def fs(self) -> SovFileSystem:
        """Open the store as anybody would."""
        return open_fs(self.file, skip_instance_cache=True)

    def local(self, name: str, data: bytes) -> Path:
        """Return a file of this machine."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def left_here(self) -> list[str]:
        """Return the temporary files on this machine, but for those of a host that is a folder of it."""
        places = [self.folder / "backup", Path(os.environ["XDG_STATE_HOME"])]
        hidden = [path for place in places for path in place.rglob(".*")]
        return sorted(map(str, [*hidden, *self.folder.glob(".*")]))

    def names(self) -> list[str]:
        """Return all names at the host, below the root, but for those of objects."""
        raise NotImplementedError

    def unfinished(self) -> list[str]:
        """Return what lies at the host of writes that were not finished."""
        return [name for name in self.names() if name.startswith((".sovstore/tmp/", ".sovstore/locks/"))]

    def after_a_write(self) -> list[str]:
        """Return what the next write must have deleted."""
        return self.left_here()

    def after_gc(self) -> list[str]:
        """Return what `gc --older-than 0s` must have deleted."""
        return self.unfinished()

    def close(self) -> None:
        """Close what looks at the host."""


class LocalSite(Site):
    """A folder of this machine: the lock of a writer's file says whether it is alive."""

    def names(self) -> list[str]:
        root = self.folder / "cohortes"
        return [str(path.relative_to(root)) for path in (root / ".sovstore").rglob("*") if path.is_file()]

    def after_a_write(self) -> list[str]:
        return [*super().after_a_write(), *self.unfinished()]


class CephSite(Site):
    """A bucket: nothing but its age tells an upload of a killed writer from one under way."""

    large = 11 * MIB

    def __init__(self, server: Any, bucket: str, *args: Any) -> None:
        super().__init__(*args)
        self._client, self._bucket = server.client(), bucket

    def _keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"root/{prefix}")
        return [found["Key"].removeprefix("root/") for page in pages for found in page.get("Contents", ())]

    def names(self) -> list[str]:
        return self._keys(".sovstore/")

    def unfinished(self) -> list[str]:
        uploads = self._client.list_multipart_uploads(Bucket=self._bucket).get("Uploads", ())
        left = [*self._keys(".sovstore/tmp/"), *self._keys(".sovstore/locks/")]
        return [*left, *(f"upload of {upload['Key']}" for upload in uploads)]

    def close(self) -> None:
        self._client.close()


class AzuriteSite(Site):
    """A container: blocks that were not committed cannot be deleted by themselves."""

    def __init__(self, server: Any, container: str, *args: Any) -> None:
        super().__init__(*args)
        self._client = server.client()
        self._container = self._client.get_container_client(container)

    def names(self) -> list[str]:
        return [blob.name.removeprefix("root/") for blob in self._container.list_blobs("root/.sovstore/")]

    def unfinished(self) -> list[str]:
        names = [blob.name for blob in self._container.list_blobs("root/", include=["uncommittedblobs"])]
        data = [name for name in names if not name.startswith("root/.sovstore/keyset")]
        blocks = [name for name in data if self._container.get_blob_client(name).get_block_list("uncommitted")[1]]
        left = [name for name in names if name.startswith(("root/.sovstore/tmp/", "root/.sovstore/locks/"))]
        return [*left, *(f"blocks of {name}" for name in blocks)]

    def after_gc(self) -> list[str]:
        # Blocks are unseen, and go with the next write to their path, or after a week.
        return [name for name in self.unfinished() if not name.startswith("blocks of ")]

    def close(self) -> None:
        self._container.close()
        self._client.close()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    # A killed client's lock must not stop the tests for minutes.
    with zygote(tmp_path_factory.mktemp("commands"), abandoned_after_s=0) as run:
        yield run


@pytest.fixture
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Zygote
) -> Iterator[Site]:
    cheap_key_files(monkeypatch)
    # As in the commands: it is known here that nobody else is alive.
    monkeypatch.setattr(keyset_lock, "ABANDONED", timedelta(0))
    monkeypatch.setattr(keyset_lock, "SWEPT", timedelta(0))
    settings: dict[str, Any] = {}
    if request.param == "ceph":
        # Parts as small as Ceph takes them.
        server = request.getfixturevalue("s3_server")
        settings = on_s3(server, options={"part_size": 5 * MIB})
    elif request.param == "azurite":
        server = request.getfixturevalue("azurite_server")
        settings = on_azure(server, options={"part_size": MIB})
    environment = settings.pop("environment", {})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **settings)
    place = file, commands, environment
    if request.param == "local":
        yield LocalSite(*place)
        return
    make = {"ceph": CephSite, "azurite": AzuriteSite}[request.param]
    with contextlib.closing(make(server, settings["root"].partition("/")[0], *place)) as made:
        yield made


class Operation:
    """A command that is run again and again, and what it may leave when it is killed."""

    def __init__(self, site: Site) -> None:
        self.site = site
        #: The outcome of a whole run.
        self.done = "new"
        #: What is in the store; `begin` and `settle` keep it.
        self.state: State = {}
        self.turn = 0
        fs = site.fs()
        self.write(fs, {f"beside/{n}": content(n, 5000 * n + 1) for n in range(2)})
        self.prepare(fs)
        fs.close()

    def write(self, fs: SovFileSystem, data: dict[str, bytes]) -> None:
        """Write objects that the command finds."""
        fs.pipe(data)
        self.state |= {path: mark(value) for path, value in data.items()}

    def prepare(self, fs: SovFileSystem) -> None:
        """Write what is there before the first command."""

    def begin(self, fs: SovFileSystem) -> None:
        """Bring the store to where the next command starts."""

    def argv(self) -> list[object]:
        """Return the command, after `begin`."""
        raise NotImplementedError

    def outcome(self, found: State) -> str | None:
        """Return what became of it: old, new, or between the two; None when nothing of that may be."""
        raise NotImplementedError

    def settle(self, found: State) -> None:
        """Go on from what was found."""
        self.state = found

    def look(self, fs: SovFileSystem) -> None:
        """Check what is special to this operation."""


class Write(Operation):
    """A new object by `put`."""

    size: ClassVar[int | None] = 2000

    def prepare(self, fs: SovFileSystem) -> None:
        size = self.size or self.site.large
        # Not of one size: a listed size says which version it is.
        versions = [content(n, size + n) for n in (10, 11)]
        self.files = [self.site.local(f"version-{n}", data) for n, data in enumerate(versions)]
        self.marks = [mark(data) for data in versions]

    def begin(self, fs: SovFileSystem) -> None:
        if "object" in self.state:
            fs.rm_file("object")
            del self.state["object"]
        self.turn += 1

    def argv(self) -> list[object]:
        return ["put", self.files[self.turn % 2], "sov://cohortes/object"]

    def outcome(self, found: State) -> str | None:
        new = {**self.state, "object": self.marks[self.turn % 2]}
        return "old" if found == self.state else "new" if found == new else None


class WriteLarge(Write):
    size = None


class Overwrite(Write):
    """Another version of an object by `put`."""

    def prepare(self, fs: SovFileSystem) -> None:
        super().prepare(fs)
        fs.put_file(str(self.files[0]), "object")
        self.state["object"] = self.marks[0]

    def begin(self, fs: SovFileSystem) -> None:
        self.turn = 1 - self.marks.index(self.state["object"])


class OverwriteLarge(Overwrite):
    size = None


class Copy(Overwrite):
    """Another version of an object by `cp`: a host that can copies all but the first part."""

    size = None

    def prepare(self, fs: SovFileSystem) -> None:
        super().prepare(fs)
        for n, file in enumerate(self.files):
            fs.put_file(str(file), f"version-{n}")
            self.state[f"version-{n}"] = self.marks[n]

    def argv(self) -> list[object]:
        return ["cp", f"sov://cohortes/version-{self.turn}", "sov://cohortes/object"]


class Rename(Operation):
    """A large object by `mv`, there and back: it is at one of the two paths, or at both, and never at none."""

    def prepare(self, fs: SovFileSystem) -> None:
        data = content(20, self.site.large)
        self.paths = ["here", "there"]
        self.mark = mark(data)
        self.write(fs, {"here": data})

    def begin(self, fs: SovFileSystem) -> None:
        # Of one that is at both paths the renaming is run again.
        if self.paths[0] not in self.state:
            self.paths.reverse()

    def argv(self) -> list[object]:
        return ["mv", *(f"sov://cohortes/{path}" for path in self.paths)]

    def outcome(self, found: State) -> str | None:
        rest = {path: value for path, value in self.state.items() if path not in self.paths}
        source, target = ({path: self.mark} for path in self.paths)
        allowed = {"old": rest | source, "between": rest | source | target, "new": rest | target}
        return next((name for name, state in allowed.items() if state == found), None)


class Delete(Operation):
    """Several objects by `rm`: each is there, as it was, or is gone."""

    command: ClassVar[list[str]] = ["rm", *(f"sov://cohortes/gone/{n % 2}/{n}" for n in range(6))]
    data: ClassVar[dict[str, bytes]] = {f"gone/{n % 2}/{n}": content(n, 100 + 3000 * n) for n in range(6)}

    def begin(self, fs: SovFileSystem) -> None:
        self.write(fs, {path: value for path, value in self.data.items() if path not in self.state})

    def argv(self) -> list[object]:
        return [*self.command]

    def outcome(self, found: State) -> str | None:
        rest = {path: value for path, value in self.state.items() if path not in self.data}
        left = {path: value for path, value in found.items() if path in self.data}
        if {**rest, **left} != found or not left.items() <= self.state.items():
            return None
        return "old" if len(left) == len(self.data) else "between" if left else "new"


class DeleteFolder(Delete):
    """A folder with folders in it by `rm -r`."""

    command: ClassVar[list[str]] = ["rm", "-r", "sov://cohortes/gone"]


class Keys(Operation):
    """A change of the keyset: it is the old or the new one, with one primary epoch, and opens all there is."""

    def prepare(self, fs: SovFileSystem) -> None:
        self.seen = self.keys = self.read_keys(fs)

    def read_keys(self, fs: SovFileSystem) -> dict[str, Any]:
        keyset = fs._sync(fs.store.keyset)
        states = [epoch.state for epoch in keyset.epochs]
        assert states.count("primary") == 1

        async def fetch() -> bytes:
            return await keysets.fetch(fs.store.backend, fs.store.config)

        return {
            "version": keyset.version,
            "epochs": len(states),
            "primary": states.index("primary"),
            "wraps": sorted(parse(fs._sync(fetch)).wraps),
        }

    def look(self, fs: SovFileSystem) -> None:
        self.seen = self.read_keys(fs)

    def settle(self, found: State) -> None:
        super().settle(found)
        self.keys = self.seen

    def outcome(self, found: State) -> str | None:
        versions = self.seen["version"] - self.keys["version"]
        return self.of_keys(versions) if found == self.state else None

    def of_keys(self, versions: int) -> str | None:
        """Return the outcome, when the keyset went on by so many versions."""
        raise NotImplementedError


class RotateKEK(Keys):
    def argv(self) -> list[object]:
        return ["keys", "rotate-kek", "cohortes"]

    def of_keys(self, versions: int) -> str | None:
        same = {**self.seen, "version": 0} == {**self.keys, "version": 0}
        return {0: "old", 1: "new"}.get(versions) if same else None


class NewEpoch(Keys):
    def argv(self) -> list[object]:
        return ["keys", "new-epoch", "cohortes"]

    def of_keys(self, versions: int) -> str | None:
        # One version adds it, the next makes it primary.
        added = self.seen["epochs"] - self.keys["epochs"] == (1 if versions else 0)
        primary = self.seen["epochs"] - 1 if versions == 2 else self.keys["primary"]
        right = added and self.seen["primary"] == primary and self.seen["wraps"] == self.keys["wraps"]
        return {0: "old", 1: "between", 2: "new"}.get(versions) if right else None


class ChangeKEKs(Keys):
    """A second KEK comes and goes; whatever a kill left, the same command brings it to its end."""

    def prepare(self, fs: SovFileSystem) -> None:
        super().prepare(fs)
        self.other = f"keyfile:{self.site.folder / 'other.key'}"
        self.one = self.keys["wraps"]
        # The first time makes the key, which takes longer.
        self.verb = "add-kek"
        self.site.run(*self.argv())
        self.both = self.read_keys(self.site.fs())["wraps"]
        assert len(self.both) == 2

    def begin(self, fs: SovFileSystem) -> None:
        # What is removed already is refused as unknown.
        self.site.run(*self.argv(), codes=(0, 2))
        again = self.site.fs()
        self.keys = self.read_keys(again)
        again.close()
        assert self.keys["wraps"] == (self.both if self.verb == "add-kek" else self.one)
        self.verb = "remove-kek" if self.verb == "add-kek" else "add-kek"

    def argv(self) -> list[object]:
        return ["keys", self.verb, "cohortes", self.other]

    def of_keys(self, versions: int) -> str | None:
        old, new = (self.one, self.both) if self.verb == "add-kek" else (self.both, self.one)
        return {(0, str(old)): "old", (1, str(new)): "new"}.get((versions, str(self.seen["wraps"])))


class Rewrap(Operation):
    """Objects of all sizes: each is under the old or the new epoch, and its content as it was."""

    def prepare(self, fs: SovFileSystem) -> None:
        self.write(fs, {"large": content(30, self.site.large), **{f"small/{n}": content(n, n) for n in range(4)}})
        self.moved = 0

    def begin(self, fs: SovFileSystem) -> None:
        fs._sync(rotation.new_epoch, fs.store)

    def argv(self) -> list[object]:
        return ["keys", "rewrap", "cohortes"]

    def look(self, fs: SovFileSystem) -> None:
        primary = fs._sync(fs.store.keyset).primary.id

        async def count() -> int:
            entries = [await fs.store.stat(path) for path in self.state]
            return [await fs.store.key_id(entry) for entry in entries].count(primary)

        self.moved = fs._sync(count)

    def outcome(self, found: State) -> str | None:
        if found != self.state:
            return None
        return "old" if not self.moved else "new" if self.moved == len(self.state) else "between"


class Verify(Operation):
    """Reads all, and changes nothing."""

    def prepare(self, fs: SovFileSystem) -> None:
        self.write(fs, {"large": content(40, self.site.large), "small": content(41, 100)})
        self.done = "old"

    def argv(self) -> list[object]:
        return ["verify", "cohortes"]

    def outcome(self, found: State) -> str | None:
        return "old" if found == self.state else None


#: By what is done: how, and how much of the kills of its kind it gets. What has no kind of its own gets a quarter.
OPERATIONS: dict[str, tuple[type[Operation], float]] = {
    "write small": (Write, 0.5),
    "write large": (WriteLarge, 0.5),
    "overwrite small": (Overwrite, 0.5),
    "overwrite large": (OverwriteLarge, 0.5),
    "copy": (Copy, 0.25),
    "rename": (Rename, 1),
    "delete": (Delete, 0.5),
    "delete folder": (DeleteFolder, 0.5),
    "rotate-kek": (RotateKEK, 0.5),
    "new-epoch": (NewEpoch, 0.5),
    "add-kek, remove-kek": (ChangeKEKs, 0.25),
    "rewrap": (Rewrap, 1),
    "verify": (Verify, 1),
}
#: Left to `make stress` at hosts whose commands take long: the others go the same ways, and further.
ONLY_LONG = ("write small", "overwrite small", "copy", "delete", "add-kek, remove-kek")


def cells() -> list[Any]:
    """Return which operations are killed at which host."""
    return [
        pytest.param(host, what, marks=pytest.mark.server(SERVERS[host]) if host in SERVERS else ())
        for host in SHORT
        for what in OPERATIONS
        if stress.is_long() or host == "local" or what not in ONLY_LONG
    ]


def read(fs: SovFileSystem) -> State:
    """Return all that is listed, as it is read; what is listed is what is read, and nothing of it foreign."""
    listed = fs.find("", detail=True)
    assert not any(info["foreign"] for info in listed.values())
    found = {path: mark(data) for path, data in fs.cat(list(listed)).items()} if listed else {}
    assert {path: info["size"] for path, info in listed.items()} == {path: size for path, (size, _) in found.items()}
    return found


def gc(site: Site, *options: str) -> dict[str, Any]:
    """Run the command that deletes what killed writers left, here: it is not to be killed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["--config", str(site.file), "--json", "gc", "cohortes", "--older-than", "0s", *options]) == 0
    return json.loads(out.getvalue())


def copies_are_whole(site: Site, fs: SovFileSystem) -> None:
    """Check that every copy of a keyset that has its name is whole, at the host and here."""
    config, access = fs.store.config, fs.store.access
    names = [name for name in site.names() if name.startswith(f"{keysets.HISTORY}/")]

    async def fetch() -> list[bytes]:
        return [bytes(await fs.store.backend.read(name, 0, MIB)) for name in names]

    for name, raw in zip(names, fs._sync(fetch), strict=True):
        assert name.rpartition("-")[2] == f"{hashlib.sha256(raw).hexdigest()[:32]}.json"
    copies = {path.stem: path.read_bytes() for path in keyset_copies.backup_folder(config).glob("*.json")}
    assert copies
    for version in sorted(copies, key=int)[-3:]:
        assert str(keysets.unlock(copies[version], config, access).version) == version
    assert all(parse(raw).version == int(version) for version, raw in copies.items())


def kill_once(operation: Operation, seconds: float, share: float) -> tuple[int, str, bool]:
    """Kill a command and check all that it left; return its exit code, what became of it, and whether it left a trace.

    Parameters
    ----------
    seconds : float
        How long the command takes.
    share : float
        How much of that passes before the kill.
    """
    site = operation.site
    code, _ = site.run(*operation.argv(), kill_after_s=seconds * share)
    left = len(site.unfinished()) + len(site.left_here())
    fs = site.fs()
    found = read(fs)
    operation.look(fs)
    outcome = operation.outcome(found)
    assert outcome is not None, (code, sorted(found), sorted(operation.state))
    operation.settle(found)
    # The next command, of this fresh client.
    fs.pipe_file("next", b"next")
    operation.state["next"] = mark(b"next")
    assert site.after_a_write() == []
    if waiting := site.after_gc():
        planned = gc(site, "--dry-run")
        assert planned["deleted"] == 0
        assert gc(site)["deleted"] == planned["unfinished"] == len(waiting)
        assert site.after_gc() == []
        assert read(fs) == operation.state
    # Before the next one.
    operation.begin(fs)
    fs.close()
    return code, outcome, left > 0


def whole(operation: Operation) -> float:
    """Run a command to its end, check what it did, and return the seconds that it took."""
    _, seconds = operation.site.run(*operation.argv())
    fs = operation.site.fs()
    found = read(fs)
    operation.look(fs)
    assert operation.outcome(found) == operation.done
    operation.settle(found)
    operation.begin(fs)
    fs.close()
    return seconds


@pytest.mark.stress
@pytest.mark.parametrize(("site", "what"), cells(), indirect=["site"])
def test_killed(request: pytest.FixtureRequest, site: Site, what: str) -> None:
    host = request.node.callspec.params["site"]
    made, share = OPERATIONS[what]
    operation = made(site)
    fs = site.fs()
    operation.begin(fs)
    fs.close()
    took = [whole(operation) for _ in range(stress.amount(1, 3))]
    dice, times = random.Random(f"{what} {host}"), max(1, int(stress.kills(SHORT[host]) * share))
    codes: Counter[int] = Counter()
    outcomes: Counter[str] = Counter()
    traces = 0
    for turn in range(times):
        if turn and turn % AGAIN == 0:
            took.append(whole(operation))
        seconds = sorted(took[-5:])[len(took[-5:]) // 2]
        code, outcome, trace = kill_once(operation, seconds, dice.uniform(0, 1.1))
        codes[code] += 1
        outcomes[outcome] += 1
        traces += trace
    # Whatever the last kill left, the command can be run to its end, and leaves nothing.
    site.run(*operation.argv())
    assert site.unfinished() == site.left_here() == []
    fs = site.fs()
    copies_are_whole(site, fs)
    fs.close()
    stress.record(
        "Kills",
        operation=what,
        host=host,
        kills=times,
        at_work=codes[-9],
        old=outcomes["old"],
        between=outcomes["between"],
        new=outcomes["new"],
        left_a_trace=traces,
        command_ms=round(sorted(took)[len(took) // 2] * 1000),
    )
    if times >= 100:
        assert codes[-9] >= WORTH_IT * times, codes
        assert what == "verify" or (outcomes["old"] and outcomes["new"]), outcomes

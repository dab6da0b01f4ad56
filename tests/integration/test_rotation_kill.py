"""Changes of keys that are killed: the store opens afterwards, as it was or as it was to be; the command runs again."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sovstore import keysets
from sovstore.filesystem import SovFileSystem
from sovstore.format.keyset import parse
from tests.hosts import cheap_key_files
from tests.stores import make_store, on_s3, open_fs
from tests.zygote import Zygote, zygote

DATA = {f"2026/object-{n}": bytes([n]) * (n * 9000) for n in range(5)}
HOSTS = ["local", "no conditions", pytest.param("s3", marks=pytest.mark.server("s3"))]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


class Killed:
    """A store whose commands are killed."""

    def __init__(self, file: Path, run: Zygote, seed: int) -> None:
        self.file, self.zygote = file, run
        self.random = random.Random(seed)
        self.other = f"keyfile:{file.parent / 'other.key'}"
        self.codes: Counter[int] = Counter()

    def fs(self) -> SovFileSystem:
        return open_fs(self.file, skip_instance_cache=True)

    def state(self) -> dict[str, Any]:
        """Open the store as anybody would, read everything, and return what its keyset says."""
        fs = self.fs()
        assert {path: fs.cat_file(path) for path in fs.find("")} == DATA
        keyset = fs._sync(fs.store.keyset)

        async def fetch() -> bytes:
            return await keysets.fetch(fs.store.backend, fs.store.config)

        raw = fs._sync(fetch)
        fs.close()
        return {
            "version": keyset.version,
            "wraps": sorted(parse(raw).wraps),
            "epochs": len(keyset.epochs),
            "primary": [epoch.state for epoch in keyset.epochs].index("primary"),
        }

    def kill(self, *argv: str, within_s: float) -> dict[str, Any]:
        """Kill a command at a random moment and return the state that it left."""
        ran = self.zygote.run(*argv, kill_after_s=self.random.uniform(0, within_s))
        assert ran.codes[0] in (0, -9), ran.printed
        self.codes[ran.codes[0]] += 1
        return self.state()

    def whole(self, *argv: str) -> float:
        """Run a command to its end and return the seconds that it took."""
        ran = self.zygote.run(*argv)
        assert ran.codes == [0], ran.printed
        return ran.seconds


@pytest.fixture(params=HOSTS)
def killed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    environment: dict[str, str] = {}
    if request.param == "s3":
        settings = on_s3(request.getfixturevalue("s3_server"))
        environment = settings.pop("environment")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings["provider"] = "own"
        (tmp_path / "sovstore.toml").write_text(
            '[providers.own]\nlike = "s3"\nconditions = ["read:match", "put:create", "put:replace"]\n'
            'etag_quotes = "bare"\n'
        )
    elif request.param == "local":
        settings = {}
    else:
        settings = {"provider": "fsspec", "root": f"file://{tmp_path / 'host'}"}
    file = make_store(tmp_path, **settings)
    fs = open_fs(file)
    fs.pipe(DATA)
    fs.close()
    # A killed client's lock must not stop the tests for minutes.
    with zygote(tmp_path, {**environment, "SOVSTORE_CONFIG": str(file)}, abandoned_after_s=0) as run:
        yield Killed(file, run, seed=len(request.param))


def is_local(killed: Killed) -> bool:
    """Return whether it is a folder of this machine, where each command is short."""
    return "provider" not in killed.file.read_text().replace('provider = "local"', "")


def times(killed: Killed, most: int) -> int:
    """Return how many kills there are: 100 on this machine's disk, fewer where each takes longer."""
    return most if is_local(killed) else most // 10


def was_worth_it(killed: Killed, seen: set[int], wanted: set[int]) -> None:
    """Check that kills hit, and before and after the change; so many are needed that chance cannot fail it."""
    if is_local(killed):
        assert seen >= wanted
        assert killed.codes[-9] > killed.codes.total() / 3


def test_rotate_kek(killed: Killed) -> None:
    took = killed.whole("keys", "rotate-kek", "cohortes")
    before = killed.state()
    for _ in range(times(killed, 100)):
        after = killed.kill("keys", "rotate-kek", "cohortes", within_s=took * 1.2)
        assert after["version"] - before["version"] in (0, 1)
        assert {**after, "version": 0} == {**before, "version": 0}
        before = after
    killed.whole("keys", "rotate-kek", "cohortes")
    was_worth_it(killed, set(), set())


def test_new_epoch(killed: Killed) -> None:
    took = killed.whole("keys", "new-epoch", "cohortes")
    before = killed.state()
    seen = set()
    for _ in range(times(killed, 100)):
        after = killed.kill("keys", "new-epoch", "cohortes", within_s=took * 1.2)
        versions = after["version"] - before["version"]
        assert versions in (0, 1, 2)
        # One version adds it, the next makes it primary.
        assert after["epochs"] - before["epochs"] == (1 if versions else 0)
        assert after["primary"] == (after["epochs"] - 1 if versions == 2 else before["primary"])
        seen.add(versions)
        before = after
    killed.whole("keys", "new-epoch", "cohortes")
    assert killed.state()["primary"] == killed.state()["epochs"] - 1
    was_worth_it(killed, seen, {0, 2})


def test_rewrap(killed: Killed) -> None:
    killed.whole("keys", "new-epoch", "cohortes")
    took = killed.whole("keys", "rewrap", "cohortes")
    for _ in range(times(killed, 100)):
        killed.whole("keys", "new-epoch", "cohortes")
        before = killed.state()
        assert killed.kill("keys", "rewrap", "cohortes", within_s=took * 1.2) == before
    killed.whole("keys", "rewrap", "cohortes")
    fs = killed.fs()
    primary = fs._sync(fs.store.keyset).primary.id
    entries = [fs._sync(fs.store.stat, path) for path in DATA]
    assert {fs._sync(fs.store.key_id, entry) for entry in entries} == {primary}
    was_worth_it(killed, set(), set())


def test_add_kek_and_remove_kek(killed: Killed) -> None:
    # The first time makes the key, which takes longer.
    killed.whole("keys", "add-kek", "cohortes", killed.other)
    killed.whole("keys", "remove-kek", "cohortes", killed.other)
    took = killed.whole("keys", "add-kek", "cohortes", killed.other)
    both = killed.state()["wraps"]
    assert len(both) == 2
    killed.whole("keys", "remove-kek", "cohortes", killed.other)
    one = killed.state()["wraps"]
    seen = set()
    for _ in range(times(killed, 100)):
        after = killed.kill("keys", "add-kek", "cohortes", killed.other, within_s=took * 1.2)
        assert after["wraps"] in (one, both)
        seen.add(len(after["wraps"]))
        killed.whole("keys", "add-kek", "cohortes", killed.other)
        assert killed.state()["wraps"] == both
        after = killed.kill("keys", "remove-kek", "cohortes", killed.other, within_s=took * 1.2)
        assert after["wraps"] in (one, both)
        # Whatever it left, the same command brings it to its end.
        killed.zygote.run("keys", "remove-kek", "cohortes", killed.other)
        assert killed.state()["wraps"] == one
    was_worth_it(killed, seen, {1, 2})

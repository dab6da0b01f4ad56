"""Threads and processes that do everything at once on one store, against what one order of it all would have shown."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sovstore import rotation
from sovstore.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError, SovstoreError, StoreError
from sovstore.filesystem import SovFileSystem
from tests.history import SHORTEST, Done, History, Value, content, value_of
from tests.hosts import Host, cheap_key_files
from tests.stores import make_store, on_azure, on_s3, open_fs
from tests.stress import amount, record

pytestmark = pytest.mark.stress

#: Few, so that everybody meets everybody; in two folders, one of which is now and then empty.
PATHS = tuple(f"{folder}/{name}" for folder in ("a", "b") for name in range(3))
#: Of one request, of a few chunks, and of more than what an opened reader has at hand.
SIZES = (300, 20_000, 230_000)
ACTIONS = {
    "write": 5, "open and write": 2, "read": 6, "handle": 5, "list": 2, "look": 2, "rename": 3, "copy": 2, "delete": 2,
    "create": 2, "once": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


def outcome(work: Callable[[], Any]) -> Any:
    """Return what `work` returns, or the error of ours that it raises."""
    try:
        return work()
    except SovstoreError as exc:
        return exc


class Client:
    """One thread of one process: does things and writes down what became of each."""

    def __init__(self, fs: SovFileSystem, number: int) -> None:
        self.fs, self.number = fs, number
        self.rng = random.Random(number)
        self.done: list[Done] = []
        self.ran, self.refused = Counter[str](), Counter[str]()
        self.written = self.once = 0

    def run(self, turns: int) -> Client:
        for action in self.rng.choices(list(ACTIONS), list(ACTIONS.values()), k=turns):
            getattr(self, f"_{action.replace(' ', '_')}")(self.rng.choice(PATHS))
            self.ran[action] += 1
        return self

    def _note(
        self, what: str, path: str, work: Callable[[], Any], allowed: tuple[type[SovstoreError], ...], **about: Any
    ) -> Any:
        """Do something that changes or reads one object; return what it returns, or the error that it may raise."""
        begin = time.monotonic_ns()
        result = outcome(work)
        end = time.monotonic_ns()
        if not isinstance(result, SovstoreError):
            self.done.append(Done(what, path, begin, end, **about))
            return result
        # Of the very class: what derives from an allowed one says something else.
        assert type(result) in allowed, (what, path, result)
        # No name at the host, and nobody else's path.
        assert result.path in (path, about.get("source")), (what, path, result.path)
        self.refused[f"{what}: {type(result).__name__}"] += 1
        if type(result) is ObjectNotFoundError and what == "read":
            self.done.append(Done("gone", path, begin, end))
        elif what == "copy":
            # It may have been copied, and be somebody else's when it is looked at.
            self.done.append(Done(what, path, begin, end, sure=False, **about))
        return result

    def _value(self) -> dict[str, Any]:
        self.written += 1
        return {"value": (self.number, self.written, self.rng.choice(SIZES))}

    # Changes

    def _write(self, path: str) -> None:
        new = self._value()
        self._note("write", path, lambda: self.fs.pipe_file(path, content(new["value"])), (), **new)

    def _open_and_write(self, path: str) -> None:
        new = self._value()

        def work() -> None:
            with self.fs.open(path, "wb") as file:
                for start in range(0, new["value"][2], 50_000):
                    file.write(content(new["value"])[start : start + 50_000])

        self._note("write", path, work, (), **new)

    def _create(self, path: str) -> None:
        new = self._value()
        work = functools.partial(self.fs.pipe_file, path, content(new["value"]), mode="create")
        self._note("create", path, work, (ObjectExistsError,), **new)

    def _once(self, _: str) -> None:
        """Create what nobody deletes, at about the same time as the others."""
        self._create(f"once/{self.once}")
        self.once += 1

    def _copy(self, path: str) -> None:
        source = self.rng.choice([other for other in PATHS if other != path])
        work = functools.partial(self.fs.cp_file, source, path)
        self._note("copy", path, work, (ObjectNotFoundError, ObjectChangedError), source=source)

    def _rename(self, path: str) -> None:
        source = self.rng.choice([other for other in PATHS if other != path])
        begin = time.monotonic_ns()
        work = functools.partial(self.fs._sync, self.fs.store.move, source, path)
        # `StoreError` itself: it changed while it was renamed, and both are kept.
        result = self._note("copy", path, work, (ObjectNotFoundError, ObjectChangedError, StoreError), source=source)
        if result is None:
            self.done.append(Done("delete", source, begin, time.monotonic_ns()))

    def _delete(self, path: str) -> None:
        self._note("delete", path, lambda: self.fs.rm_file(path), (ObjectNotFoundError,))

    # Looks

    def _read(self, path: str) -> None:
        begin = time.monotonic_ns()
        data = self._note("read", path, lambda: self.fs.cat_file(path), (ObjectNotFoundError, ObjectChangedError))
        self._note_value(data, begin)

    def _note_value(self, data: Any, begin: int, start: int | None = None) -> None:
        """Replace the note of a read by one that says what was read."""
        if isinstance(data, bytes):
            noted = self.done.pop()
            self.done.append(Done("read", noted.path, begin, noted.end, value=value_of(data, start)))

    def _handle(self, path: str) -> None:
        """Read ranges of one open file: all are of the version that was there when it was opened."""
        begin = time.monotonic_ns()
        file = self._note("read", path, lambda: self.fs.open(path), (ObjectNotFoundError, ObjectChangedError))
        if isinstance(file, SovstoreError):
            return
        opened = self.done.pop()
        seen, paths = set[Value](), set[str | None]()
        with file:
            assert file.size in SIZES
            for _ in range(3):
                start = self.rng.randrange(file.size - SHORTEST - 32)
                file.seek(start)
                try:
                    seen.add(value_of(file.read(self.rng.randrange(SHORTEST, 100_000)), start))
                except (ObjectChangedError, ObjectNotFoundError) as exc:
                    self.refused[f"range: {type(exc).__name__}"] += 1
                    paths.add(exc.path)
        assert paths <= {path}
        assert len(seen) <= 1
        self.done += [Done("read", path, begin, opened.end, value=value) for value in seen]

    def _list(self, _: str) -> None:
        found = self.fs.find("", detail=True)
        for path, info in found.items():
            assert path in PATHS or path.startswith("once/") or path == "kept", path
            assert not info["foreign"]
            assert info["size"] in SIZES
        assert "kept" in found
        listed = outcome(lambda: self.fs.ls("a", detail=False))
        if isinstance(listed, SovstoreError):
            # Where a folder is there for as long as something is in it.
            assert (type(listed), listed.path) == (ObjectNotFoundError, "a")
        else:
            assert set(listed) <= set(PATHS[:3])

    def _look(self, path: str) -> None:
        info = self._note("read", path, lambda: self.fs.info(path), (ObjectNotFoundError,))
        if isinstance(info, dict):
            self.done.pop()
            assert info["size"] in SIZES


def race(file: Path, *, processes: int, threads: int, turns: int, rewraps: bool) -> list[Client]:
    """Return the clients of several processes, forked from this one, when all have done their turns."""
    open_fs(file, skip_instance_cache=True).pipe_file("kept", content((9999, 0, SIZES[0])))
    fork = multiprocessing.get_context("fork")
    stop, begin = fork.Event(), fork.Barrier(processes)
    workers = [
        fork.Process(target=_work, args=(file, number, threads, turns, begin), name=f"worker-{number}")
        for number in range(processes)
    ]
    rotator = fork.Process(target=_rotate, args=(file, stop, rewraps), name="rotator")
    for process in (*workers, rotator):
        process.start()
    for process in workers:
        process.join(300)
    stop.set()
    rotator.join(60)
    assert [process.exitcode for process in (*workers, rotator)] == [0] * (processes + 1)
    answers = [pickle.loads(file.with_name(f"answer-{number}").read_bytes()) for number in range(processes)]  # noqa: S301
    return [client for answer in answers for client in answer]


def _work(file: Path, number: int, threads: int, turns: int, begin: Any) -> None:
    # Half of the processes have a store of their own for each thread, in the others threads share one.
    shared = open_fs(file, skip_instance_cache=True)
    clients = [
        Client(open_fs(file, skip_instance_cache=True) if number % 2 else shared, 100 * number + thread)
        for thread in range(threads)
    ]
    begin.wait(60)
    with ThreadPoolExecutor(threads) as pool:
        for client in pool.map(lambda client: client.run(turns), clients):
            del client.fs
    file.with_name(f"answer-{number}").write_bytes(pickle.dumps(clients))


def _rotate(file: Path, stop: Any, rewraps: bool) -> None:
    """Change the keys for as long as the others work."""
    fs, changes = open_fs(file, skip_instance_cache=True), Counter[str]()
    while not stop.is_set() or not changes:
        fs._sync(rotation.rotate_kek, fs.store)
        fs._sync(rotation.new_epoch, fs.store)
        changes["changes"] += 3
        if rewraps:
            for entry in fs._sync(_all, fs.store):
                with suppress(ObjectNotFoundError, ObjectChangedError):
                    changes["rewraps"] += fs._sync(fs.store.rewrap, entry)
        time.sleep(0.05)
    file.with_name("rotated").write_bytes(pickle.dumps(changes))


async def _all(store: Any) -> list[Any]:
    return [entry async for entry in rotation.objects(store)]


def check(file: Path, clients: list[Client], *, name: str, one_winner: bool) -> None:
    """Compare what the clients were told, and what is there now, with what can have been."""
    after = Client(open_fs(file, skip_instance_cache=True), 9998)
    found = after.fs.find("")
    for path in {*PATHS, *found} - {"kept"}:
        after._read(path)
    done = [note for client in (*clients, after) for note in client.done]
    history = History(done)
    checked = history.check()
    created: dict[str, list[Done]] = {}
    for note in done:
        if note.what == "create" and note.path.startswith("once/"):
            created.setdefault(note.path, []).append(note)
    # What is there in the end was read by `after`, and so is of a winner.
    assert {path for path in found if path.startswith("once/")} == set(created)
    assert not one_winner or all(len(winners) == 1 for winners in created.values())
    if one_winner:
        history.check_creates()
    ran = sum((client.ran for client in clients), Counter())
    refused = sum((client.refused for client in clients), Counter())
    rotated = pickle.loads(file.with_name("rotated").read_bytes())  # noqa: S301  # our own
    figures = {"clients": len(clients), "operations": ran.total(), "checked": checked, **rotated, "refused": refused}
    print(name, figures, ran)
    record(f"races: {name}", **figures)
    assert set(ran) == set(ACTIONS)
    assert rotated["changes"] >= 3
    # Else nobody met anybody.
    assert refused["create: ObjectExistsError"]
    assert checked > len(clients) * 5


@pytest.mark.parametrize(("processes", "threads"), [(4, 2), (1, 8)])
def test_everything_at_once(tmp_path: Path, processes: int, threads: int) -> None:
    file = make_store(tmp_path)
    clients = race(file, processes=processes, threads=threads, turns=amount(60, 300), rewraps=True)
    assert len(clients) == 8
    check(file, clients, name=f"local, {processes} x {threads}", one_winner=True)
    assert Host(open_fs(file)).unfinished() == []


HOSTS = {"s3": ("s3_server", on_s3), "azurite": ("azurite_server", on_azure)}


@pytest.mark.parametrize("host", [pytest.param(name, marks=pytest.mark.server(name)) for name in HOSTS])
def test_everything_at_once_at_a_host(
    tmp_path: Path, host: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = HOSTS[host][1](request.getfixturevalue(HOSTS[host][0]))
    for name, value in place.pop("environment").items():
        monkeypatch.setenv(name, value)
    file = make_store(tmp_path, **place)
    # Ceph keeps no condition on replacing, so a rewrap could bring an overwritten version back (docs/threat-model.md).
    clients = race(file, processes=4, threads=2, turns=amount(15, 300), rewraps=host == "azurite")
    check(file, clients, name=host, one_winner=True)

"""What a manifest finds of a hostile host, and what is done to manifests: what docs/spec/manifest.md promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sovstore import rotation, walk
from sovstore.backends.base import Stat
from sovstore.errors import FormatError, IntegrityError
from sovstore.format.body import OVERHEAD, WIRE_CHUNK
from sovstore.format.header import HEADER
from sovstore.format.manifest import PATH
from sovstore.testing import HostileBackend, Request, hostile_hosts
from tests.hostile.test_tamper import flipped, noise
from tests.hostile.victim import NOT_AUTHENTIC, Victim, make_victim
from tests.hosts import cheap_key_files

CHUNK = 16384


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def at() -> Iterator[Callable[[str], HostileBackend]]:
    with hostile_hosts() as at:
        yield at


@pytest.fixture
def victim(tmp_path: Path, at: Any, capsysbinary: Any) -> Victim:
    made = make_victim(tmp_path, at, capsysbinary)
    made.fs.pipe({"a/one": noise(3 * CHUNK, 1), "a/two": noise(3 * CHUNK, 2), "b": b"b"})
    record(made)
    return made


def record(victim: Victim, name: str = "manifest") -> bytes:
    file = victim.folder / name
    code, _, err = victim.command("manifest", victim.name, "--out", str(file), "--force")
    assert code == 0, err
    return file.read_bytes()


def verify(victim: Victim, *, name: str = "manifest") -> tuple[int, list[str]]:
    """Return the exit code, and what is said of objects."""
    code, out, _ = victim.command("verify", victim.name, "--manifest", str(victim.folder / name))
    return code, out.decode().splitlines()[1:]


def alone(victim: Victim) -> int:
    """Return the exit code of a verification without a manifest."""
    return victim.command("verify", victim.name)[0]


def test_an_honest_host(victim: Victim) -> None:
    # Everything below says "found"; this says that it is not found for another reason.
    assert verify(victim) == (0, [])
    code, out, _ = victim.command("verify", victim.name, "--manifest", str(victim.folder / "manifest"))
    assert (code, out[:19]) == (0, b"3 objects, 98.3 kB:")


# What a host does to objects


def test_an_object_that_was_deleted(victim: Victim) -> None:
    del victim.host.objects[victim.named("a/one")]
    assert alone(victim) == 0
    assert verify(victim) == (NOT_AUTHENTIC, ["a/one: MISSING"])


def test_everything_was_deleted(victim: Victim) -> None:
    for path in ("a/one", "a/two", "b"):
        del victim.host.objects[victim.named(path)]
    assert alone(victim) == 0
    assert verify(victim) == (NOT_AUTHENTIC, ["a/one: MISSING", "a/two: MISSING", "b: MISSING"])


def test_an_object_that_is_left_out_of_the_listing(victim: Victim) -> None:
    # Served when it is asked for: whoever lists and then reads still never sees it.
    hidden = victim.named("b")
    with victim.host.lying("list", lambda request, found: [stat for stat in found if stat.name != hidden]):
        assert alone(victim) == 0
        assert verify(victim) == (NOT_AUTHENTIC, ["b: MISSING"])


def test_a_folder_that_is_left_out_of_the_listing(victim: Victim) -> None:
    folder = victim.named("a")
    with victim.host.lying("list", lambda request, found: [s for s in found if not s.name.startswith(folder)]):
        assert verify(victim) == (NOT_AUTHENTIC, ["a/one: MISSING", "a/two: MISSING"])


def test_an_object_that_is_listed_and_not_served(victim: Victim) -> None:
    name = victim.named("b")

    def listed(request: Request, found: Any) -> list[Stat]:
        return [*found, Stat(name, OVERHEAD + 17)] if request.name == "" else list(found)

    del victim.host.objects[name]
    with victim.host.lying("list", listed):
        assert verify(victim) == (NOT_AUTHENTIC, ["b: MISSING"])


def test_a_folder_in_place_of_an_object(victim: Victim) -> None:
    name = victim.named("b")
    del victim.host.objects[name]
    victim.host.objects[f"{name}/{name}"] = b"x" * 300
    code, said = verify(victim)
    assert code == NOT_AUTHENTIC
    assert "b: MISSING" in said


def test_an_older_version(victim: Victim) -> None:
    victim.fs.pipe_file("b", b"newer")
    record(victim)
    assert verify(victim) == (0, [])
    victim.host.replay(victim.named("b"))
    victim.whole("b", b"b")
    assert alone(victim) == 0
    assert verify(victim) == (NOT_AUTHENTIC, ["b: REPLACED OR OLDER"])


def test_an_older_version_of_the_same_size_and_content(victim: Victim) -> None:
    victim.fs.pipe_file("b", b"b")
    record(victim)
    victim.host.replay(victim.named("b"))
    assert verify(victim) == (NOT_AUTHENTIC, ["b: REPLACED OR OLDER"])


def test_a_deleted_object_that_is_served_again(victim: Victim) -> None:
    victim.fs.rm("b")
    record(victim)
    victim.host.replay(victim.named("b"), -1)
    victim.whole("b", b"b")
    # It was there once, so nothing but the manifest tells; and the owner may have written it since.
    assert verify(victim) == (0, ["b: extra: not in the manifest"])


def test_objects_exchanged(victim: Victim) -> None:
    victim.host.exchange(victim.named("a/one"), victim.named("a/two"))
    said = [f"a/{name}: NOT AUTHENTIC (IntegrityError)" for name in ("one", "two")]
    assert verify(victim) == (NOT_AUTHENTIC, said)


@pytest.mark.parametrize("where", [8, 24, HEADER, OVERHEAD + 1, OVERHEAD + WIRE_CHUNK + 5, -1])
def test_an_object_altered_after_the_fact(victim: Victim, where: int) -> None:
    good = victim.get("a/one")
    victim.set("a/one", flipped(good, 8 * (where % len(good))))
    assert verify(victim) == (NOT_AUTHENTIC, ["a/one: NOT AUTHENTIC (IntegrityError)"])


def test_an_object_cut_and_extended(victim: Victim) -> None:
    good = victim.get("a/one")
    for raw in (good[:-1], good[: OVERHEAD + WIRE_CHUNK], good[:100], b"", good + b"\0", good + good[OVERHEAD:]):
        victim.set("a/one", raw)
        code, (said,) = verify(victim)
        assert code == NOT_AUTHENTIC
        assert said.startswith("a/one: NOT AUTHENTIC (")


def test_an_old_header_is_no_other_version(victim: Victim) -> None:
    """The version is that of the body, so a new epoch makes no alarm, and an old header hides nothing."""
    victim.fs._sync(lambda: rotation.new_epoch(victim.fs.store))
    assert victim.command("keys", "rewrap", victim.name)[0] == 0
    assert victim.command("keys", "rotate-kek", victim.name)[0] == 0
    assert verify(victim) == (0, [])
    victim.host.replay(victim.named("b"))
    assert verify(victim) == (0, [])


def test_a_listing_that_repeats_names_and_lies_about_sizes(victim: Victim) -> None:
    def twice(request: Request, found: Any) -> list[Stat]:
        return [replace(stat, size=stat.size if stat.folder else 201) for stat in [*found, *found]][::-1]

    with victim.host.lying("list", twice):
        assert verify(victim) == (0, [])
        record(victim, "again")
    assert verify(victim, name="again") == (0, [])


def test_a_listing_without_end(victim: Victim, tmp_path: Path, at: Any, capsysbinary: Any, monkeypatch: Any) -> None:
    def invented(request: Request, found: Any) -> Iterator[Stat]:
        yield from found
        yield from (Stat(f"invented-{number}", 300) for number in count())

    with victim.host.lying("list", invented):
        code, out, err = victim.command("verify", victim.name, "--manifest", str(victim.folder / "manifest"))
    assert (code, out) == (NOT_AUTHENTIC, b"")
    assert "names that are not of this store" in err
    # With plain names they may be the store's own, and memory is what ends it.
    monkeypatch.setattr(walk, "_MOST_HELD", 1000)
    plain = make_victim(tmp_path, at, capsysbinary, "plain", names="plain")
    with plain.host.lying("list", invented):
        code, _, err = plain.command("manifest", "plain", "--out", str(tmp_path / "plain.manifest"))
    assert (code, "more than 1,000 names to sort" in err) == (1, True)


def test_what_is_listed_and_not_served_is_not_recorded(victim: Victim) -> None:
    name = victim.named("b")

    def listed(request: Request, found: Any) -> list[Stat]:
        return [*found, Stat(name, OVERHEAD + 17)] if request.name == "" else list(found)

    del victim.host.objects[name]
    with victim.host.lying("list", listed):
        code, _, err = victim.command("manifest", victim.name, "--out", str(victim.folder / "new"))
    assert code == 1
    assert "sovstore: error: b: no such object" in err
    assert "or the host lists what it does not have" in err
    assert not (victim.folder / "new").exists()


def test_names_of_the_hosts_own(victim: Victim) -> None:
    victim.host.objects |= {"x": b"x" * 300, "folder/x": b"", f"{victim.named('a')}/x": b"x"}
    lines = [f"{path}: foreign: a name that this store did not make" for path in ("a/x", "folder/", "x")]
    assert verify(victim) == (0, lines)
    # Another object's bytes under a name of the store's own.
    victim.host.objects[victim.named("new")] = victim.get("b")
    assert verify(victim) == (NOT_AUTHENTIC, [*lines, "new: NOT AUTHENTIC (IntegrityError)"])


def test_what_is_recorded_is_what_is_authentic(victim: Victim) -> None:
    """No manifest is made of a store that is attacked: it would make the attack the truth."""
    before = (victim.folder / "manifest").read_bytes()
    good = victim.get("b")
    for raw in (flipped(good, 8 * 200), good[:-1], victim.get("a/one"), b"plaintext"):
        victim.set("b", raw)
        code, _, err = victim.command("manifest", victim.name, "--out", str(victim.folder / "manifest"), "--force")
        assert (code, err.startswith("sovstore: error: b: ")) == (NOT_AUTHENTIC, True)
        assert (victim.folder / "manifest").read_bytes() == before


# What is done to manifests


def refused(victim: Victim, raw: bytes) -> str:
    """Check that bytes are refused as a manifest, before anything is said of an object; return what was said."""
    (victim.folder / "forged").write_bytes(raw)
    code, out, err = victim.command("verify", victim.name, "--manifest", str(victim.folder / "forged"))
    assert (code, out) == (NOT_AUTHENTIC, b""), err
    assert err.startswith(f"sovstore: error: {victim.folder / 'forged'}: ")
    return err


def test_a_manifest_that_was_cut_extended_or_altered(victim: Victim) -> None:
    victim.fs.pipe({f"{number:03}": b"" for number in range(300)})
    good = record(victim)
    assert len(good) > OVERHEAD + 2 * WIRE_CHUNK
    for end in (
        0,
        7,
        HEADER,
        OVERHEAD,
        OVERHEAD + 16,
        OVERHEAD + WIRE_CHUNK,
        OVERHEAD + WIRE_CHUNK + 16,
        len(good) - 1,
    ):
        refused(victim, good[:end])
    for tail in (b"\0", good[OVERHEAD:], bytes(WIRE_CHUNK)):
        refused(victim, good + tail)
    for bit in range(0, 8 * len(good), 8 * len(good) // 40):
        (victim.folder / "forged").write_bytes(flipped(good, bit))
        code, out, _ = victim.command("verify", victim.name, "--manifest", str(victim.folder / "forged"))
        # Chunks in front of the flipped one are authentic; nobody is told that all is well.
        assert (code, out) == (NOT_AUTHENTIC, b"")
    one, two = (good[OVERHEAD + n * WIRE_CHUNK : OVERHEAD + (n + 1) * WIRE_CHUNK] for n in range(2))
    refused(victim, good[:OVERHEAD] + two + one + good[OVERHEAD + 2 * WIRE_CHUNK :])


def test_manifests_exchanged_and_mixed(victim: Victim, tmp_path: Path, at: Any, capsysbinary: Any) -> None:
    second = make_victim(tmp_path, at, capsysbinary, "second")
    assert second.fs.store.config.kek == victim.fs.store.config.kek
    second.fs.pipe_file("b", b"b")
    theirs, ours = record(second, "theirs"), record(victim)
    assert "it belongs to another store, or was altered" in refused(victim, theirs)
    refused(victim, ours[:HEADER] + theirs[HEADER:])
    refused(victim, theirs[:HEADER] + ours[HEADER:])
    # An older one of the same store is authentic: that is why it stays with its user, and why its moment is shown.
    victim.fs.pipe_file("b", b"newer")
    record(victim, "newer")
    victim.host.replay(victim.named("b"))
    assert verify(victim) == (0, [])
    assert verify(victim, name="newer") == (NOT_AUTHENTIC, ["b: REPLACED OR OLDER"])


def test_objects_are_no_manifests(victim: Victim) -> None:
    # One that holds the very lines of a manifest, too.
    lines = victim.fs._sync(_plain, victim)
    assert lines.startswith(b'{"below":"","created":"')
    victim.fs.pipe_file("lines", lines)
    for path in ("lines", "b"):
        assert "failed authentication" in refused(victim, victim.get(path))
    refused(victim, lines)
    refused(victim, victim.host.objects[".sovstore/keyset.json"])


async def _plain(victim: Victim) -> bytes:
    from sovstore.backends.local import LocalBackend

    store = victim.fs.store
    reader = await store.reader_outside(LocalBackend(str(victim.folder)), "manifest", PATH, what="m")
    return await reader.read(0, reader.plain_size)


def test_manifests_are_no_objects(victim: Victim) -> None:
    raw = record(victim)
    victim.set("b", raw)
    victim.refused("b", by=IntegrityError)
    # Not at a name that a host would make for it, either; and nobody can ask for its path.
    victim.host.objects |= {PATH: raw, "manifest": raw, victim.named("new"): raw}
    victim.refused("new", by=IntegrityError)
    for read in (victim.fs.cat_file, victim.fs.open, victim.fs.info):
        with pytest.raises((FormatError, ValueError)):
            read(PATH)
    with pytest.raises(ValueError, match="reserved"):
        victim.fs.pipe_file(PATH, b"")
    assert PATH not in victim.fs.find("")


def test_nothing_of_a_manifest_is_told_to_the_host(victim: Victim) -> None:
    before = len(victim.host.received)
    raw = record(victim)
    verify(victim)
    asked = victim.host.received[before:]
    assert {request.method for request in asked} <= {"list", "read", "stat"}
    assert not any(request.name.startswith(".sovstore/manifest") for request in asked)
    assert b"a/one" not in raw


def test_a_manifest_under_a_destroyed_epoch(victim: Victim) -> None:
    record(victim)
    old = victim.fs._sync(victim.fs.store.keyset).primary.id
    victim.fs._sync(lambda: rotation.new_epoch(victim.fs.store))
    assert victim.command("keys", "rewrap", victim.name)[0] == 0
    assert verify(victim) == (0, [])
    assert victim.command("keys", "destroy-epoch", victim.name, old.hex(), "--yes")[0] == 0
    said = refused(victim, (victim.folder / "manifest").read_bytes())
    assert "sealed under an epoch that is destroyed" in said
    assert "a manifest is made anew by 'sovstore manifest'" in said
    record(victim)
    assert verify(victim) == (0, [])

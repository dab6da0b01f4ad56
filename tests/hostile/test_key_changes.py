"""Attacks on changes of a keyset: what gets lost, what is left behind, what a second run does."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sovstore import config, keysets, rotation
from sovstore.errors import ConfigError, KMSUnavailableError, ObjectChangedError, SovstoreError
from sovstore.format.keyset import parse
from sovstore.format.recovery import RecoveryKey
from sovstore.kms.local import LocalKey
from tests.hosts import cheap_key_files
from tests.integration.test_rotation import Site


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.open().pipe({"a": b"one"})
    return site


class _KilledError(Exception):
    """Stands for the end of a process."""


def raw_of(site: Site) -> bytes:
    return (site.folder / "cohortes" / keysets.LOCATION).read_bytes()


def recipient(site: Site, name: str = "rescue") -> str:
    key = RecoveryKey.generate()
    (site.folder / name).write_bytes(key.dump())
    (site.folder / f"{name}.pub").write_bytes(key.recipient.dump())
    return str(site.folder / f"{name}.pub")


# Lost


def test_another_client_does_not_drop_a_recovery_recipient(site: Site) -> None:
    """Whoever does not know of the recovery key takes it away by the next change, without a word."""
    site.do(rotation.add_recovery, recipient(site), site.record)
    seals = set(parse(raw_of(site)).seals)
    assert seals
    config.write_settings(site.file, "cohortes", {"recovery": []})  # the configuration of another client
    with suppress(ConfigError):
        site.do(rotation.rotate_kek)
    assert set(parse(raw_of(site)).seals) == seals


def test_another_client_does_not_bring_a_removed_kek_back(site: Site) -> None:
    """The configuration of every other client still names it, and their next change would wrap to it again."""
    site.do(rotation.add_kek, site.second, site.record)
    others = site.file.read_text()
    site.do(rotation.remove_kek, site.second, site.record)
    site.file.write_text(others)
    with suppress(ConfigError):
        site.do(rotation.rotate_kek)
    assert site.labels() == [site.first]


def test_rewrap_does_not_undo_an_overwrite(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of a large file takes a while, and somebody may write the object meanwhile."""
    from sovstore.backends.local import _LocalUpload

    site.do(rotation.new_epoch)
    writer = site.open()
    writer.ls("")
    real = _LocalUpload.append_now

    def overtaken(self: Any, *args: int) -> None:
        real(self, *args)
        monkeypatch.setattr(_LocalUpload, "append_now", real)
        writer.pipe_file("a", b"two")

    monkeypatch.setattr(_LocalUpload, "append_now", overtaken)

    async def rewrap(store: Any) -> None:
        await store.rewrap(await store.stat("a"))

    with pytest.raises(ObjectChangedError):
        site.do(rewrap)
    assert site.open().cat_file("a") == b"two"


def test_a_local_store_is_changed_through_another_driver(site: Site) -> None:
    """The same bytes are valid everywhere, and the local driver leaves a file where the lock wants its folder."""
    site.do(rotation.rotate_kek)
    config.write_settings(site.file, "cohortes", {"provider": "fsspec", "root": f"file://{site.folder / 'cohortes'}"})
    assert site.do(rotation.rotate_kek).version == 3


def test_a_store_with_a_lock_folder_is_changed_through_the_local_driver(tmp_path: Path) -> None:
    site = Site(tmp_path, provider="fsspec", root=f"file://{tmp_path / 'cohortes'}")
    site.do(rotation.rotate_kek)
    text = site.file.read_text().replace('"fsspec"', '"local"').replace("file://", "")
    site.file.write_text(text)
    assert site.do(rotation.rotate_kek).version == 3


# Left behind


def test_older_keysets_include_those_that_lost_a_race(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client writes its version under its own name first; if it loses, that one still holds the destroyed key."""
    first = site.do(lambda store: store.keyset()).primary.id
    site.do(rotation.new_epoch)
    # A rotation is killed between its two writes, at the same version that destroys the epoch.
    real = keysets._write

    async def killed(backend: Any, name: str, *args: Any, **options: Any) -> None:
        if name == keysets.LOCATION:
            raise _KilledError
        await real(backend, name, *args, **options)

    monkeypatch.setattr(keysets, "_write", killed)
    with pytest.raises(_KilledError):
        site.do(rotation.rotate_kek)
    monkeypatch.setattr(keysets, "_write", real)
    after = site.do(rotation.destroy_epoch, first)
    copies = site.do(rotation.copies_of, after)
    site.do(rotation.delete_copies, copies)
    left = {path.name for path in (site.folder / "cohortes" / keysets.HISTORY).iterdir()}
    holding = set()
    for name in left:
        raw = (site.folder / "cohortes" / keysets.HISTORY / name).read_bytes()
        if any(epoch.id == first and epoch.sealed is not None for epoch in parse(raw)._epochs):
            holding.add(name)
    assert holding == set()


def test_only_keysets_are_deleted_as_older_ones(site: Site) -> None:
    folder = next((site.folder / "backup").iterdir())
    (folder / "notes.json").write_text("{}")
    site.do(rotation.rotate_kek)

    async def copies(store: Any) -> rotation.Copies:
        return await rotation.copies_of(store, await store.keyset())

    assert "notes.json" not in {path.name for path in site.do(copies).here}


# The configuration, and a second run


def test_remove_kek_that_fails_leaves_a_store_that_opens(site: Site) -> None:
    """The KEK that is left was written into the file by hand, and the keyset was never wrapped to it."""
    site.do(rotation.add_kek, site.second, site.record)
    site.do(rotation.remove_kek, site.second, site.record)
    config.write_settings(site.file, "cohortes", {"other_keks": [site.second]})
    with pytest.raises(SovstoreError):
        site.do(rotation.remove_kek, site.first, site.record)
    assert site.open().cat_file("a") == b"one"


def test_remove_kek_while_the_other_service_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.do(rotation.add_kek, site.second, site.record)
    real = LocalKey._decrypt

    def away(key: LocalKey, *args: bytes) -> bytes:
        if key.uri == site.second:
            raise KMSUnavailableError("down", path=key.uri)
        return real(key, *args)

    monkeypatch.setattr(LocalKey, "_decrypt", away)
    with pytest.raises(KMSUnavailableError):
        site.do(rotation.remove_kek, site.first, site.record)
    assert site.open().cat_file("a") == b"one"


def test_remove_kek_of_none_of_them_is_an_error_with_keep_old_too(site: Site) -> None:
    with pytest.raises(ConfigError, match="is none of its KEKs"):
        site.do(rotation.remove_kek, site.second, site.record, keep_old=True)
    assert site.described.old_keks == ()


def test_add_kek_does_not_make_another_key_for_a_kek_that_is_there(site: Site) -> None:
    """On another machine, or when its file was lost: a key is made that opens nothing, and all is said to be well."""
    site.do(rotation.add_kek, site.second, site.record)
    Path(site.second.removeprefix("keyfile:")).unlink()
    try:
        site.do(rotation.add_kek, site.second, site.record)
    except SovstoreError:
        return
    described = site.described
    keks = keysets.Keks(described, config.access(described))
    parsed = parse(raw_of(site))
    assert keks.open(site.second).unwrap(parsed.wraps[site.second], parsed.context(described.identity))


def test_a_recipient_is_added_once_whatever_its_file_is_called(site: Site) -> None:
    file = recipient(site)
    site.do(rotation.add_recovery, file, site.record)
    shutil.copy(file, site.folder / "copy.pub")
    site.do(rotation.add_recovery, str(site.folder / "copy.pub"), site.record)
    site.do(rotation.rotate_kek)


def test_too_many_keks_is_an_error_of_ours(site: Site) -> None:
    for n in range(15):
        site.do(rotation.add_kek, f"keyfile:{site.folder / f'k{n}.key'}", site.record)
    with pytest.raises(SovstoreError):
        site.do(rotation.add_kek, f"keyfile:{site.folder / 'one-more.key'}", site.record)


def test_an_epoch_that_is_destroyed_while_it_becomes_primary(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    other = site.open()

    async def work(store: Any) -> None:
        real = store.change_keyset

        async def overtaken(change: Any, **options: Any) -> Any:
            if change.what == "promote-epoch":
                made = (await store.keyset(reload=True)).epochs[-1].id
                await asyncio.to_thread(other._sync, lambda: rotation.destroy_epoch(other.store, made))
            return await real(change, **options)

        monkeypatch.setattr(store, "change_keyset", overtaken)
        await rotation.new_epoch(store)

    with pytest.raises(SovstoreError):
        site.do(work)


def test_the_hint_at_another_kek_works(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what somebody does at night when the first service is down."""
    site.do(rotation.add_kek, site.second, site.record)
    described = site.described
    error = keysets._with_others(KMSUnavailableError("down", path=described.kek), parse(raw_of(site)), described)
    assert error.hint is not None
    for assignment in error.hint.partition("too: ")[2].split("' "):
        name, _, value = assignment.partition("=")
        monkeypatch.setenv(name, value.strip("'"))
    assert site.open().cat_file("a") == b"one"


def test_a_kek_that_only_reads_old_keysets_cannot_make_a_newer_one(site: Site) -> None:
    """A KEK is often taken away because somebody else has it; kept for old copies, it still decides all that is new."""
    site.do(rotation.add_kek, site.second, site.record)
    described = site.described
    stolen = keysets.Keks(described, config.access(described)).open(site.first)
    known = keysets.unlock(raw_of(site), described, config.access(described))
    site.do(rotation.remove_kek, site.first, site.record, keep_old=True)
    # Whoever has the old KEK and an old keyset, and is the host or with it.
    forged = known.add_epoch(now=1)
    forged = forged.promote(forged.epochs[-1].id, now=1)
    for _ in range(10):
        forged = forged.next_version(now=1)
    (site.folder / "cohortes" / keysets.LOCATION).write_bytes(keysets.wrap_anew(forged, [stolen], []))
    fs = site.open()
    with pytest.raises(SovstoreError):
        fs.pipe_file("secret", b"readable by whoever forged it")


# The command line


def test_a_passphrase_that_is_asked_for_does_not_record_twice(site: Site) -> None:
    """The work is begun anew after the answer, and had written into the file before it asked."""
    from sovstore.cli import keys_keks
    from sovstore.cli import run as run_module
    from sovstore.cli.output import Output

    file = recipient(site)
    text = "\n".join(line for line in site.file.read_text().splitlines() if "passphrase_file" not in line)
    site.file.write_text(text)
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(run_module, "_somebody_is_there", lambda: True)
        patched.setattr(run_module, "_ask", lambda prompt: "canary-passphrase-4f1d")
        with run_module.Run(Output(), str(site.file)) as run:
            keys_keks.recovery_add(run, "cohortes", file)
    assert site.described.recovery == (file,)


def test_no_change_while_a_variable_of_any_case_overrides(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from sovstore.cli import keys_keks

    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__other_keks", json.dumps([site.second]))
    described = config.load(site.file).store("cohortes")
    assert described.other_keks == (site.second,)
    with pytest.raises(ConfigError, match="which this command cannot change"):
        keys_keks._refuse_variables(described)


def test_two_removals_at_once_keep_both(site: Site) -> None:
    """Both commands read the file before either writes it: the second one puts the first one's KEK back."""
    from sovstore.cli import keys_keks

    third = f"keyfile:{site.folder / 'third.key'}"
    site.do(rotation.add_kek, site.second, site.record)
    site.do(rotation.add_kek, third, site.record)
    before = site.described
    site.do(rotation.remove_kek, site.second, site.record)
    with pytest.raises(ConfigError, match="was changed meanwhile"):
        keys_keks._write(before, {"other_keks": [site.second]})


def test_nobody_can_confirm_without_an_input(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager may have closed it."""
    import sys

    from sovstore.cli import keys_epochs
    from sovstore.cli.output import Output
    from sovstore.cli.run import Run

    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="nobody is there to confirm"):
        keys_epochs._confirm(Run(Output(), str(site.file)), "cohortes")

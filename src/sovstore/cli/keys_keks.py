"""``keys rotate-kek``, ``add-kek``, ``remove-kek``, ``recovery-add``, ``recovery-remove``: who opens a store."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sovstore.cli.app import command
from sovstore.cli.arguments import File, StoreName, argument
from sovstore.cli.keys import keys
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name
from sovstore.errors import ConfigError

if TYPE_CHECKING:
    from sovstore.config import StoreConfig
    from sovstore.format.keyset import Keyset
    from sovstore.kms.base import Access
    from sovstore.rotation import Record
    from sovstore.store import Store

T = TypeVar("T")
_Uri = Annotated[str, argument("URI")]
#: Settings that these commands write.
_WRITTEN = ("kek", "other_keks", "old_keks", "recovery")


@command(keys, "rotate-kek", examples=["keys rotate-kek cohortes"])
def rotate_kek(run: Run, store: StoreName) -> None:
    """Wrap the keys of a store anew, by the newest version of every KEK.

    For after a key was rotated inside its KMS. Writes one small object and no data; one call to each KEK. Where a
    rotated key has a URI of its own (OVHcloud, KMIP, PKCS#11), use add-kek and remove-kek. Revokes nobody who kept
    keys.
    """
    from sovstore import rotation

    _report(run, store, "wrapped anew", changing(run, store, lambda opened, _: rotation.rotate_kek(opened)))


@command(
    keys,
    "add-kek",
    examples=[
        "keys add-kek cohortes openbao://bao.example.fr:8200/transit/cohortes",
        "keys add-kek cohortes 'pkcs11:token=hospital;object=cohortes-2026'",
    ],
)
def add_kek(run: Run, store: StoreName, uri: _Uri) -> None:
    """Let one more KEK open a store: that of another KMS, in another company say.

    Writes one small object, no data, and 'other_keks' in the table of the store. Each client opens the store with the
    KEK that its own configuration names as 'kek'. A local key is made if there is none.
    """
    from sovstore import rotation

    keyset = changing(run, store, lambda opened, record: rotation.add_kek(opened, uri, record))
    _report(run, store, f"opened by {uri} too", keyset)


@command(
    keys,
    "remove-kek",
    examples=[
        "keys remove-kek cohortes openbao://bao.example.fr:8200/transit/cohortes",
        "keys remove-kek cohortes okms://eu-west-par/… --keep-old",
    ],
)
def remove_kek(
    run: Run,
    store: StoreName,
    uri: _Uri,
    *,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Name it in 'old_keks': it may still unwrap older keysets.")
    ] = False,
) -> None:
    """Let a KEK open a store no more. Its service is not asked, and may be gone.

    Writes one small object, no data, and the table of the store: if it was 'kek', the first of 'other_keks' takes its
    place. The host keeps old keysets, which that KEK still opens, so whoever holds it and has an old one can read what
    was written until now: only data written anew under a new epoch is out of their reach.
    """
    from sovstore import rotation

    keyset = changing(run, store, lambda opened, record: rotation.remove_kek(opened, uri, record, keep_old=keep_old))
    _report(run, store, f"no longer opened by {uri}", keyset)


@command(keys, "recovery-add", examples=["keys recovery-add cohortes rescue.pub"])
def recovery_add(run: Run, store: StoreName, file: File) -> None:
    """Seal the keys of a store to one more recovery key, whose recipient is FILE.

    Writes one small object, no data, and 'recovery' in the table of the store. The recovery key then opens all that is
    in the store, read-only, without any KMS.
    """
    from sovstore import rotation

    keyset = changing(run, store, lambda opened, record: rotation.add_recovery(opened, file, record))
    _report(run, store, f"opened by the recovery key of {file} too", keyset)


@command(keys, "recovery-remove", examples=["keys recovery-remove cohortes 3f0c2a"])
def recovery_remove(run: Run, store: StoreName, recipient: Annotated[str, argument("ID")]) -> None:
    """Seal the keys of a store to a recovery key no more; ID is what 'sovstore keys list' shows, or its beginning.

    Writes one small object, no data, and 'recovery' in the table of the store. Older keysets, which the host and backup
    copies keep, are still sealed to it: whoever has that key and one of them reads what was written until now.
    """
    from sovstore import rotation

    keyset = changing(run, store, lambda opened, record: rotation.remove_recovery(opened, recipient, record))
    _report(run, store, f"no longer opened by recovery key {recipient}", keyset)


def changing(run: Run, name: str, work: Callable[[Store, Record], Coroutine[Any, Any, T]]) -> T:
    """Return what some work on an opened store returns, given a way to write into its table."""
    from sovstore.store import Store

    described = run.config.store(store_name(name))
    _refuse_variables(described)

    def record(settings: Mapping[str, str | list[str]]) -> None:
        _write(described, settings)

    async def opened(access: Access) -> T:
        store = Store(described, access)
        try:
            return await work(store, record)
        finally:
            await store.close()

    return run.asking(described, opened)


def _refuse_variables(described: StoreConfig) -> None:
    """Refuse to write settings that a variable would override."""
    from sovstore.config import variable_of

    # In any case, as they are read.
    set_here = {name.upper() for name in os.environ}
    for setting in _WRITTEN:
        if (variable := variable_of(described.name, setting)) in set_here:
            hint = f"unset {variable}, and write its value into the configuration file"
            message = f"store {described.name!r}: {setting!r} comes from {variable}, which this command cannot change"
            raise ConfigError(message, path=described.name, hint=hint)
    if described.source is None:
        hint = "write its table [stores.NAME] into a configuration file"
        raise ConfigError(f"store {described.name!r}: is not in a file", path=described.name, hint=hint)


def _write(described: StoreConfig, settings: Mapping[str, str | list[str]]) -> None:
    from sovstore import config

    assert described.source is not None  # noqa: S101  # nosec B101  # `_refuse_variables` saw to it
    before = tomllib.loads(described.source.read_text(encoding="utf-8"))["stores"][described.name]
    written = dict(settings)
    if isinstance(recovery := written.get("recovery"), list):
        written["recovery"] = _recovery_files(described, before.get("recovery", []), recovery)
    for key in written.keys() - {"recovery"}:
        found = before.get(key, [] if key != "kek" else None)
        mine = getattr(described, key)
        # Another command may have changed it since this one read it, and what it took out must not come back.
        if found not in (written[key], mine if isinstance(mine, str) else list(mine)):
            hint = "another process changed this store just now: look at it, then run this again if needed"
            message = f"{described.source}: {key!r} of store {described.name!r} was changed meanwhile"
            raise ConfigError(message, path=str(described.source), hint=hint)
    config.write_settings(described.source, described.name, written, replaces={key: before.get(key) for key in written})


def _recovery_files(described: StoreConfig, found: list[str], wanted: list[str]) -> list[str]:
    """Return the list to write: what stands there stays as it is written, relative to the file perhaps."""
    assert described.source is not None  # noqa: S101  # nosec B101  # `_refuse_variables` saw to it
    base = described.source.parent
    absolute = {file: str((base / Path(file).expanduser()).absolute()) for file in found}
    # Also what another command wrote there meanwhile.
    kept = [file for file in found if absolute[file] in wanted or absolute[file] not in described.recovery]
    return [*kept, *(file for file in wanted if file not in absolute.values())]


def _report(run: Run, name: str, what: str, keyset: Keyset) -> None:
    name = store_name(name)
    if run.out.as_json:
        run.out.result({"store": name, "version": keyset.version})
        return
    run.out.line(f"store {name!r}: {what}; keyset version {keyset.version}")

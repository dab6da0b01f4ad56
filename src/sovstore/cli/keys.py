"""``keys``: the keyset of a store, its backup copies, and recovery keys."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import command, group
from sovstore.cli.arguments import File, StoreName
from sovstore.cli.output import time_text
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name
from sovstore.errors import ConfigError

if TYPE_CHECKING:
    from sovstore.backends.base import Backend
    from sovstore.config import StoreConfig
    from sovstore.format.keyset import Keyset
    from sovstore.kms.base import Access

keys = group("keys", "Show and keep the keys of a store; make recovery keys.")


@command(keys, "list", reading=True, examples=["keys list cohortes", "keys list cohortes --json"])
def list_keys(run: Run, store: StoreName) -> None:
    """Show what the keyset holds, never the keys themselves."""
    described = run.config.store(store_name(store))
    keyset, raw = _open(run, described)
    shown = _shown(described, keyset, raw)
    if run.out.as_json:
        run.out.result(shown)
        return
    run.out.line(f"store {described.name!r}, keyset version {keyset.version} of {time_text(shown['created'])}")
    run.out.fields([("store_id", shown["store_id"]), ("auth_fingerprint", shown["auth_fingerprint"])])
    run.out.line("opened by")
    for uri in shown["keks"]:
        run.out.line(f"  {uri}{_role(described, uri)}")
    for recipient in shown["recovery"]:
        run.out.line(
            f"  recovery key {recipient['recipient']}" + (f"  ({recipient['file']})" if recipient["file"] else "")
        )
    if not shown["recovery"]:
        run.out.line("  no recovery key")
    run.out.line("epochs")
    for epoch in shown["epochs"]:
        run.out.line(f"  {epoch['key_id']}  {epoch['state']:<9}  since {time_text(epoch['created'])}")


def _role(described: StoreConfig, label: str) -> str:
    from sovstore.kms import registry

    if label == registry.label(described.kek):
        return "  (configured here)"
    if label in map(registry.label, described.other_keks):
        return "  (in other_keks)"
    return "  (in old_keks)" if label in map(registry.label, described.old_keks) else "  (not configured here)"


def _open(run: Run, described: StoreConfig) -> tuple[Keyset, bytes]:
    """Return the authenticated keyset of a store, and its bytes."""
    from sovstore import keysets

    key = run.recovery()

    async def work(access: Access) -> tuple[Keyset, bytes]:
        def unlock(raw: bytes) -> Keyset:
            if key is not None:
                return keysets.unlock_with_recovery(raw, described, key)
            return keysets.unlock(raw, described, access)

        async with _backend(described, access) as backend:
            return await keysets.fetch_opened(backend, described, unlock)

    return run.asking(described, work)


@asynccontextmanager
async def _backend(described: StoreConfig, access: Access) -> AsyncIterator[Backend]:
    """Give the backend of a store whose keyset is not opened."""
    from sovstore.store import Store

    store = Store(described, access)
    try:
        yield store.backend
    finally:
        await store.close()


def _shown(described: StoreConfig, keyset: Keyset, raw: bytes) -> dict[str, Any]:
    from sovstore import keysets
    from sovstore.format.keyset import parse

    parsed = parse(raw)
    files = {r.id: file for file, r in zip(described.recovery, keysets.recipients(described), strict=True)}
    return {
        "store": described.name,
        "version": keyset.version,
        "created": _moment(keyset.created),
        "store_id": keyset.store_id.hex(),
        "auth_fingerprint": keyset.auth_fingerprint,
        "names": keyset.names_mode,
        "keks": list(parsed.wraps),
        "recovery": [{"recipient": seal.hex(), "file": files.get(seal)} for seal in parsed.seals],
        "epochs": [{"key_id": e.id.hex(), "state": e.state, "created": _moment(e.created)} for e in keyset.epochs],
    }


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@command(keys, "recovery-new", examples=["keys recovery-new rescue"])
def recovery_new(
    run: Run,
    file: File,
) -> None:
    """Make a recovery key FILE, and its recipient FILE.pub.

    FILE opens, read-only, every store whose keys are sealed to FILE.pub. It is hybrid post-quantum (ML-KEM-1024
    and P-384) and not encrypted: keep it offline. No file is overwritten.
    """
    from sovstore.format.recovery import RecoveryKey

    private, public = Path(file), Path(f"{file}.pub")
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path}: exists already", path=str(path), hint="choose another name")
    key = RecoveryKey.generate()
    _write_new(private, key.dump(), 0o600)
    try:
        _write_new(public, key.recipient.dump(), 0o644)
    except BaseException:
        private.unlink()
        raise
    if run.out.as_json:
        run.out.result({"private": str(private), "recipient": str(public), "id": key.recipient.id.hex()})
        return
    run.out.line(f"made recovery key {key.recipient.id.hex()}")
    run.out.fields([("private", f"{private}: keep it offline, in two places"), ("recipient", f"{public}: not secret")])
    run.out.line("what to do with it:")
    run.out.line(f"  1. give --recovery {public} to 'sovstore init'; for a store that is there already, run")
    run.out.line(f"     sovstore keys recovery-add STORE {public}")
    run.out.line(f"  2. keep the store_id and auth_fingerprint that 'sovstore init' prints beside {private}")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot be written: {exc.strerror}", path=str(path), hint="check its folder"
        ) from exc
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


@command(keys, "backup", examples=["keys backup cohortes", "keys backup cohortes --to /media/usb/cohortes.json"])
def backup(
    run: Run,
    store: StoreName,
    *,
    to: Annotated[str | None, typer.Option(metavar="FILE", help="A new file, instead of the backup folder.")] = None,
) -> None:
    """Copy the keyset from the host, authenticated.

    The copy is as sealed as the original: whoever holds it needs the KEK too.
    """
    from sovstore import keyset_copies

    described = run.config.store(store_name(store))
    keyset, raw = _open(run, described)
    if to is None:
        path = keyset_copies.save_backup(described, keyset, raw)
    else:
        path = Path(to).absolute()
        _write_new(path, raw, 0o644)
    if run.out.as_json:
        run.out.result({"store": described.name, "version": keyset.version, "file": str(path)})
        return
    run.out.line(f"copied keyset version {keyset.version} of store {described.name!r} to {path}")


@command(keys, "restore", examples=["keys restore cohortes", "keys restore cohortes --from /media/usb/cohortes.json"])
def restore(
    run: Run,
    store: StoreName,
    *,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="This copy, instead of the newest in the backup folder."),
    ] = None,
) -> None:
    """Put a backup copy of the keyset back to the host.

    For a host that lost it. The KEK must open the copy, and a keyset that is there is never replaced.
    """
    from sovstore import keysets

    described = run.config.store(store_name(store))

    async def work(access: Access) -> tuple[Keyset, Path]:
        async with _backend(described, access) as backend:
            return await keysets.restore(backend, described, access, Path(source) if source else None)

    keyset, path = run.asking(described, work)
    if run.out.as_json:
        run.out.result({"store": described.name, "version": keyset.version, "file": str(path)})
        return
    run.out.line(f"put keyset version {keyset.version} of store {described.name!r} back, from {path}")

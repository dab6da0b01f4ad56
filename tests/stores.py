"""Makes stores for tests: a configuration file, a key file with a known passphrase, and the store itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sovstore import config, store
from sovstore.filesystem import SovFileSystem

#: Looked for in everything that is printed, logged, pickled or stored: it must be nowhere.
PASSPHRASE = "canary-passphrase-4f1d"  # a canary, not a secret


def make_store(
    folder: Path,
    name: str = "cohortes",
    *,
    provider: str = "local",
    root: str | None = None,
    **settings: Any,
) -> Path:
    """Make a store and return its configuration file; several stores may share one."""
    passphrase = folder / "passphrase"
    passphrase.write_text(PASSPHRASE)
    file = folder / "sovstore.toml"
    default_root = {"local": str(folder / name), "memory": f"/{name}"}.get(provider, name)
    table: Mapping[str, Any] = {
        "provider": provider,
        "root": root or default_root,
        "kek": f"keyfile:{folder / 'kek.key'}",
        "backup": str(folder / "backup"),
        "passphrase_file": str(passphrase),
        **settings,
    }
    config.write_settings(file, name, table)
    described = config.load(file).store(name)
    asyncio.run(store.create(described, config.access(described), lambda made: config.write_settings(file, name, made)))
    return file


def open_fs(file: Path, name: str = "cohortes", **options: Any) -> SovFileSystem:
    """Return the filesystem of a store that `make_store` made."""
    return SovFileSystem(name, config=str(file), **options)

"""Makes stores for tests: a configuration file, a key file with a known passphrase, and the store itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from sovstore import config, store_creation
from sovstore.filesystem import SovFileSystem

#: A self-hosted service has to say who runs it: `controller = "tests"` in its table.
CONTROLLERS = """
[controllers.tests]
legal_entity = "the tests"
jurisdiction = "FR"
parent = "none"
technology_origin = "open-source"
as_of = 2026-11-25
source = "tests"
"""
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
    asyncio.run(
        store_creation.create(described, config.access(described), lambda made: config.write_settings(file, name, made))
    )
    return file


def describe_twin(file: Path, folder: Path, name: str = "cohortes", **place: Any) -> None:
    """Describe a store of a configuration once more, as ``twin``: the same one, at another host."""
    described = config.load(file).store(name)
    twin = {
        "root": str(folder / "twin"),
        "kek": described.kek,
        "passphrase_file": described.passphrase_file,
        "store_id": described.store_id,
        "auth_fingerprint": described.auth_fingerprint,
        **place,
    }
    config.write_settings(file, "twin", twin)


def on_s3(server: Any, prefix: str = "root", **settings: Any) -> dict[str, Any]:
    """Return the settings of a store in a new bucket of a server; the credentials are for the environment."""
    bucket = server.create_bucket(f"b{uuid4().hex[:12]}")
    environment = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    place = {"provider": "s3", "root": f"{bucket}/{prefix}", "endpoint": server.endpoint_url}
    return {**place, "environment": environment, **settings}


def on_azure(server: Any, prefix: str = "root", **settings: Any) -> dict[str, Any]:
    """Return the settings of a store in a new container of a server; the credentials are for the environment."""
    container = server.create_container(f"c{uuid4().hex[:12]}")
    environment = {"AZURE_STORAGE_CONNECTION_STRING": server.connection_string}
    return {"provider": "azurite", "root": f"{container}/{prefix}", "environment": environment, **settings}


def read_all(file: Path, name: str = "cohortes") -> dict[str, bytes]:
    """Return all objects of a store, by path."""
    fs = open_fs(file, name, skip_instance_cache=True)
    try:
        found = fs.find("")
        return dict(fs.cat(found)) if found else {}
    finally:
        fs.close()


def open_fs(file: Path, name: str = "cohortes", **options: Any) -> SovFileSystem:
    """Return the filesystem of a store that `make_store` made."""
    return SovFileSystem(name, config=str(file), **options)

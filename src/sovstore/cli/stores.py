"""``init`` and ``config``: making a store, and what the configuration says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command, group, usage
from sovstore.cli.arguments import OptionalStoreName, StoreName
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name
from sovstore.errors import ConfigError, ObjectExistsError

if TYPE_CHECKING:
    from sovstore.config import StoreConfig
    from sovstore.format.keyset import Keyset
    from sovstore.kms.base import Access

_ONE_MACHINE = ("keyring", "keyfile")
_WORDS_OF_SECRETS = ("secret", "token", "password", "passphrase", "credential", "connection_string", "account_key")


@command(
    app,
    "init",
    examples=[
        "init cohortes --provider local --root /srv/cohortes --kek keyfile:~/cohortes.key",
        "init cohortes --provider s3 --root bucket/cohortes --kek keyring://sovstore/cohortes --recovery rescue.pub",
        "init cohortes",
    ],
)
def init(
    run: Run,
    store: StoreName,
    *,
    provider: Annotated[
        str | None, typer.Option(help="Who holds the bytes: local, s3, azure, fsspec or memory.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Where: a folder, bucket/prefix or container/prefix.")] = None,
    kek: Annotated[str | None, typer.Option(help="URI of the key that opens it; made if it is local.")] = None,
    names: Annotated[
        str | None, typer.Option(help="encrypted (default), or plain: the host then reads all names.")
    ] = None,
    recovery: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A recovery recipient (.pub); may be repeated.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="fsspec protocol, with provider fsspec.")] = None,
) -> None:
    """Make a store: its keys, a backup copy of them, a local KEK.

    The store is described by the table [stores.STORE] of the configuration; with --provider, --root and --kek it is
    written first. Whatever the host of the bytes, it never sees the KEK.
    """
    name = store_name(store)
    table = {"provider": provider, "root": root, "kek": kek, "names": names, "protocol": protocol}
    given: dict[str, Any] = {key: value for key, value in table.items() if value is not None}
    if recovery:
        given["recovery"] = [str(Path(file).absolute()) for file in recovery]
    if given:
        _describe_store(run, name, given)
    elif name not in run.config.stores:
        hint = f"describe it: sovstore init {name} --provider local --root FOLDER --kek keyfile:~/{name}.key"
        raise ConfigError(f"store {name!r}: not configured in {_config_file(run)}", path=name, hint=hint)
    described = run.config.store(name)
    keyset, new_kek = _create(run, described)
    _report(run, described, keyset, new_kek=new_kek)


def _describe_store(run: Run, name: str, given: Mapping[str, Any]) -> None:
    """Write the table of a new store, unless the same is there already."""
    from sovstore import config

    path = _config_file(run)
    known = config.load(str(path)).stores.get(name) if path.exists() else None
    if known is not None:
        for key, value in given.items():
            same = list(known.recovery) == value if key == "recovery" else _same(key, getattr(known, key), value)
            if not same:
                hint = f"change [stores.{name}] there, then run 'sovstore init {name}'"
                raise ConfigError(f"store {name!r}: {path} says otherwise of {key!r}", path=name, hint=hint)
        return
    if missing := [f"--{key}" for key in ("provider", "root", "kek") if key not in given]:
        usage(
            f"store {name!r}: is not configured in {path}, and {', '.join(missing)} is missing",
            f"sovstore init {name} --help",
        )
    before = path.read_bytes() if path.exists() else None
    if given["provider"] == "local" and path.parent != Path.cwd():
        # In the file a folder is relative to the file; on the command line, to where the person is.
        given = {**given, "root": os.path.abspath(os.path.expanduser(given["root"]))}
    config.write_settings(path, name, given)
    try:
        config.load(str(path))
    except ConfigError:
        # What was given is wrong; the file must not be left so.
        path.write_bytes(before) if before is not None else path.unlink()
        raise
    run.config_file = str(path)
    run.out.note(f"wrote [stores.{name}] into {path}")


def _same(key: str, known: object, given: str) -> bool:
    return known == given or (key == "root" and known == os.path.abspath(os.path.expanduser(given)))


def _config_file(run: Run) -> Path:
    from sovstore import config

    named = run.config_file or os.environ.get("SOVSTORE_CONFIG")
    if named:
        return Path(named).expanduser().absolute()
    return config.find() or config.default_path()


def _create(run: Run, described: StoreConfig) -> tuple[Keyset, bool]:
    """Make the store; return its keyset, and whether its KEK is new."""
    from sovstore import config, keyset_copies, store_creation
    from sovstore.kms import registry

    if described.store_id and keyset_copies.newest_backup(described):
        url, restore = f"sov://{described.name}/", f"sovstore keys restore {described.name}"
        hint = f"'sovstore ls {url}' opens it; if the host lost its keyset, '{restore}' puts it back"
        raise ObjectExistsError(f"store {described.name!r}: was made already", path=described.name, hint=hint)
    file = described.source or _config_file(run)

    def record(made: Mapping[str, str]) -> None:
        config.write_settings(file, described.name, dict(made), replaces={"store_id": described.store_id})

    async def work(access: Access) -> Keyset:
        return await store_creation.create(described, access, record)

    new_kek = not registry.key_exists(described.kek)
    return run.asking(described, work), new_kek


def _report(run: Run, described: StoreConfig, keyset: Keyset, *, new_kek: bool) -> None:
    backup = described.backup_folder / keyset.store_id.hex() / f"{keyset.version}.json"
    made = {
        "store": described.name,
        "url": f"sov://{described.name}/",
        "provider": described.provider,
        "root": described.root,
        "kek": described.kek,
        "kek_is_new": new_kek,
        "names": keyset.names_mode,
        "store_id": keyset.store_id.hex(),
        "auth_fingerprint": keyset.auth_fingerprint,
        "recovery": list(described.recovery),
        "backup": str(backup),
    }
    if run.out.as_json:
        run.out.result(made)
    else:
        _print(run, described, made)
    scheme = described.kek.partition(":")[0]
    if scheme in _ONE_MACHINE:
        run.out.warn(
            f"a {scheme}: KEK is for one machine and for trying out",
            "for real data hold the KEK in a KMS or HSM of your own jurisdiction",
        )
    if not described.recovery:
        run.out.warn(
            "no recovery key: whoever loses the KEK loses the data",
            "'sovstore keys recovery-new FILE' makes one, 'sovstore keys recovery-add' seals the store to it",
        )


def _print(run: Run, described: StoreConfig, made: Mapping[str, Any]) -> None:
    run.out.line(f"made store {described.name!r}")
    run.out.fields(
        [
            ("held by", f"{described.provider}, in {described.root}"),
            ("opened by", described.kek + (" (made now)" if made["kek_is_new"] else "")),
            ("names", made["names"]),
            ("recovery", ", ".join(described.recovery) or "none"),
            ("backup copy", made["backup"]),
        ]
    )
    beside = "beside the recovery key, since nobody but you has it" if described.recovery else "somewhere else too"
    run.out.line(f"keep {beside}:")
    run.out.fields([("store_id", made["store_id"]), ("auth_fingerprint", made["auth_fingerprint"])])


# config

_config = group("config", "Show where the configuration is and what it says.")


@command(_config, "path", examples=["config path"])
def path(run: Run) -> int:
    """Print the path of the configuration file that is read, or would be."""
    from sovstore import config

    found = config.find(run.config_file)
    if run.out.as_json:
        run.out.result({"path": str(found or config.default_path()), "exists": found is not None})
        return 0
    run.out.line(str(found or config.default_path()))
    if found is None:
        run.out.note("there is no such file yet; 'sovstore init' makes it")
    return 0


@command(_config, "show", examples=["config show", "config show cohortes", "config show --json"])
def show(
    run: Run,
    store: OptionalStoreName = None,
) -> None:
    """Print what is configured, defaults and variables of the environment included. It holds no secret."""
    loaded = run.config
    chosen = [loaded.store(store_name(store))] if store else list(loaded.stores.values())
    if run.out.as_json:
        run.out.result({"path": loaded.path and str(loaded.path), "stores": {c.name: _settings(c) for c in chosen}})
        return
    run.out.line(f"# {loaded.path or 'no configuration file'}")
    for described in chosen:
        run.out.line()
        run.out.line(f"[stores.{described.name}]")
        for key, value in _settings(described).items():
            run.out.line(f"{key} = {_toml(value)}")


def _settings(described: StoreConfig) -> dict[str, Any]:
    from sovstore.config import SETTINGS

    settings = {key: value for key, value in vars(described).items() if key in SETTINGS and value}
    return {key: _without_secrets(list(v) if isinstance(v, tuple) else v) for key, v in settings.items()}


def _without_secrets(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: "(hidden)" if any(word in key.lower() for word in _WORDS_OF_SECRETS) else _without_secrets(inner)
        for key, inner in value.items()
    }


def _toml(value: object) -> str:
    import tomlkit

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return tomlkit.item(value).as_string()

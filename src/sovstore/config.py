"""The TOML file that says where each store lies and which KEK opens it, and its overrides from the environment.

The file holds references only. `load` reads it; `write_settings` changes values and keeps the rest, comments too.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import platformdirs

from sovstore.backends.registry import PROVIDERS
from sovstore.errors import ConfigError
from sovstore.kms.base import Access

FILE = "sovstore.toml"
_PREFIX = "SOVSTORE_STORES__"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HEX = re.compile(r"[0-9a-f]+")
_SECRET_OPTIONS = frozenset(
    {
        *("key", "secret", "token", "password", "passphrase", "credential", "secret_key", "client_secret"),
        *("account_key", "sas_token", "connection_string", "aws_secret_access_key", "aws_session_token"),
        *("api_key", "apikey", "authorization"),
    }
)


@dataclass(frozen=True)
class StoreConfig:
    """What the configuration says of one store. References only, so it may be logged and pickled.

    Parameters
    ----------
    name : str
        Name of the store in ``sov://NAME/…``.
    provider : str
        Who holds the ciphertext.
    root : str
        Folder, bucket/prefix or container/prefix.
    kek : str
        Key URI.
    names : str
        ``encrypted`` or ``plain``.
    store_id : str or None
        32 hexadecimal digits; written by ``sovstore init``.
    auth_fingerprint : str or None
        64 hexadecimal digits; written by ``sovstore init``, needed to open with a recovery key.
    recovery : tuple of str
        Files of recovery recipients.
    protocol : str or None
        fsspec protocol, for the provider ``fsspec``.
    options : mapping
        Options of the filesystem of the provider.
    passphrase_file : str or None
        File that holds the passphrase of the key file.
    backup : str or None
        Folder for the backup copies of the keyset; the user's data folder by default.
    source : Path or None
        The file that it was read from.
    """

    name: str
    provider: str = ""
    root: str = ""
    kek: str = ""
    names: str = "encrypted"
    store_id: str | None = None
    auth_fingerprint: str | None = None
    recovery: tuple[str, ...] = ()
    protocol: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    passphrase_file: str | None = None
    backup: str | None = None
    source: Path | None = None

    @property
    def identity(self) -> bytes:
        """The store id, 16 bytes.

        Raises
        ------
        ConfigError
            When the store was never made.
        """
        if self.store_id is None:
            raise ConfigError(
                f"store {self.name!r}: has no store_id",
                path=self.name,
                hint=f"'sovstore init {self.name}' makes it; one made elsewhere needs its 'store_id' from there",
            )
        return bytes.fromhex(self.store_id)

    @property
    def backup_folder(self) -> Path:
        """Where backup copies of the keyset go."""
        if self.backup is not None:
            return Path(self.backup)
        return Path(platformdirs.user_data_path("sovstore")) / "backup"


_SETTINGS = {f.name: f for f in fields(StoreConfig) if f.name not in ("name", "source")}


@dataclass(frozen=True)
class Config:
    """All stores that one file and the environment describe.

    Parameters
    ----------
    path : Path or None
        The file; None when there is none.
    stores : mapping of str to StoreConfig
        By name.
    """

    path: Path | None
    stores: Mapping[str, StoreConfig]

    def store(self, name: str) -> StoreConfig:
        """Return the configuration of one store.

        Raises
        ------
        ConfigError
            When there is none of that name; names the nearest, and the file that was read.
        """
        if name in self.stores:
            return self.stores[name]
        where = f"in {self.path}" if self.path else "since no configuration file was found"
        hint = _nearest(name, self.stores) or f"add a table [stores.{name}] to {self.path or default_path()}"
        raise ConfigError(f"store {name!r}: not configured {where}", path=name, hint=hint)


def default_path() -> Path:
    """Return the configuration file of the user, whether or not it exists."""
    return Path(platformdirs.user_config_path("sovstore")) / FILE


def find(explicit: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the file to read: `explicit`, ``SOVSTORE_CONFIG``, ``./sovstore.toml`` or the user's; None without any.

    Raises
    ------
    ConfigError
        When a file that was named does not exist.
    """
    named = explicit or os.environ.get("SOVSTORE_CONFIG")
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            origin = "" if explicit else " (from SOVSTORE_CONFIG)"
            raise ConfigError(f"{path}: no such configuration file{origin}", path=str(path), hint="check the path")
        return path
    # A working folder that was deleted, or one that may not be read, holds no file for us.
    for folder in (Path(), default_path().parent):
        with suppress(OSError):
            path = (folder / FILE).absolute()
            if path.is_file():
                return path
    return None


def load(explicit: str | os.PathLike[str] | None = None) -> Config:
    """Return the configuration: the file, overridden by ``SOVSTORE_STORES__NAME__SETTING`` variables.

    Raises
    ------
    ConfigError
        When the file is no TOML, or it or the environment holds a setting that is unknown or of the wrong type;
        names the nearest known one.
    """
    path = find(explicit)
    tables = _read(path) if path else {}
    _override(tables, os.environ)
    return Config(path, {name: _store(name, table, path) for name, table in tables.items()})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: {exc}", path=str(path), hint="correct that line") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}", path=str(path)) from exc
    _known(content, ["stores"], str(path))
    stores = content.get("stores", {})
    for name, table in stores.items() if isinstance(stores, dict) else [("stores", None)]:
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is not a table", path=str(path), hint="write [stores.NAME]")
        if not _NAME.fullmatch(name):
            hint = "use lower-case letters, digits, '-' and '_', at most 63"
            raise ConfigError(f"{path}: {name!r} is not a store name", path=str(path), hint=hint)
    return dict(stores)


def _override(tables: dict[str, dict[str, Any]], environ: Mapping[str, str]) -> None:
    names = {name.upper().replace("-", "_"): name for name in tables}
    for variable in sorted(v for v in environ if v.startswith(_PREFIX)):
        store, separator, setting = variable.removeprefix(_PREFIX).partition("__")
        if not separator or not store or not setting:
            hint = f"write {_PREFIX}NAME__SETTING, for example {_PREFIX}COHORTES__ROOT"
            raise ConfigError(f"{variable}: not the name of a setting", path=variable, hint=hint)
        name = names.setdefault(store, store.lower())
        table = tables[name] = dict(tables.get(name, {}))
        _known({setting.lower(): None}, _SETTINGS, variable)
        value: Any = environ[variable]
        if setting.lower() in ("options", "recovery"):
            value = _toml_value(variable, value)
        table[setting.lower()] = value


def _toml_value(variable: str, text: str) -> Any:  # TOML has several types
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as exc:
        hint = 'write it as in TOML, for example {endpoint_url = "https://…"}'
        raise ConfigError(f"{variable}: not a TOML value", path=variable, hint=hint) from exc


def _known(table: Mapping[str, Any], known: Any, where: str) -> None:  # any collection of names
    for key in table:
        if key not in known:
            hint = _nearest(key, known) or f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown setting {key!r}", path=where, hint=hint)


def _nearest(word: str, known: Any) -> str | None:  # any collection of names
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _store(name: str, table: Mapping[str, Any], source: Path | None) -> StoreConfig:
    where = f"stores.{name} in {source}" if source else f"stores.{name}"
    _known(table, _SETTINGS, where)
    values = {key: _typed(key, value, where) for key, value in table.items()}
    for key in ("root", "kek"):
        if not values.get(key):
            raise ConfigError(f"{where}: {key!r} is missing", path=where, hint=_EXAMPLES[key])
    scheme, url, _ = values["root"].partition("://")
    # A folder is local and a URL says whose it is, so that one line can be all that a change of host takes.
    values.setdefault("provider", _BY_SCHEME.get(scheme, "fsspec") if url else "local")
    _choice(values["provider"], PROVIDERS, "provider", where)
    _choice(values.get("names", "encrypted"), ("encrypted", "plain"), "names", where)
    _refuse_secrets(values.get("options", {}), where)
    for key, length in (("store_id", 32), ("auth_fingerprint", 64)):
        if key in values and (len(values[key]) != length or not _HEX.fullmatch(values[key])):
            hint = "copy it from where the store was made"
            raise ConfigError(f"{where}: {key} is not {length} lower-case hexadecimal digits", path=where, hint=hint)
    base = source.parent if source else Path.cwd()
    _place(values, where, base)
    for key in ("passphrase_file", "backup"):
        if key in values:
            values[key] = _absolute(values[key], base)
    values["recovery"] = tuple(_absolute(file, base) for file in values.get("recovery", ()))
    return StoreConfig(name=name, source=source, **values)


def _place(values: dict[str, Any], where: str, base: Path) -> None:
    """Check provider, root and protocol against each other, and make a folder's path absolute."""
    scheme, url, rest = values["root"].partition("://")
    if url and values["provider"] not in (_BY_SCHEME.get(scheme, "fsspec"), "fsspec"):
        hint = f"write {_BY_SCHEME.get(scheme, 'fsspec')!r}, or leave 'provider' out: the URL says it"
        message = f"{where}: provider {values['provider']!r} does not go with a root of {scheme}://"
        raise ConfigError(message, path=where, hint=hint)
    if url and _has_password(values["root"], where):
        hint = "put the password where that filesystem looks for it: its environment, agent or key files"
        raise ConfigError(f"{where}: 'root' holds a password, and the file is no place for one", path=where, hint=hint)
    if values["provider"] == "fsspec" and url:
        values.setdefault("protocol", scheme)
    if (values["provider"] == "fsspec") != ("protocol" in values):
        hint = 'with provider = "fsspec", and only there, write root = "sftp://…", or protocol = "sftp" beside it'
        raise ConfigError(f"{where}: 'protocol' goes with provider \"fsspec\"", path=where, hint=hint)
    if values["provider"] == "local" or values.get("protocol") in ("file", "local"):
        # Not the folder that a process happens to be in: another one would find no store, or make a second.
        values["root"] = _absolute(rest if url else values["root"], base)


#: Provider of a root that is a URL, where it is not any other fsspec filesystem.
_BY_SCHEME = {"s3": "s3", "s3a": "s3", "abfs": "azure", "abfss": "azure", "az": "azure", "memory": "memory"}
_EXAMPLES = {
    "root": 'write root = "/srv/cohortes", "bucket/prefix" or "container/prefix"',
    "kek": 'write kek = "keyring://sovstore/cohortes" or "keyfile:/path"',
}


def _typed(key: str, value: object, where: str) -> Any:  # settings have several types
    if key == "options":
        good, what = isinstance(value, dict), "a table"
    elif key == "recovery":
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
        what = "a list of file names"
    else:
        good, what = isinstance(value, str), "a string"
    if not good:
        raise ConfigError(f"{where}: {key} is not {what}", path=where, hint="correct its type")
    return value


def _choice(value: str, allowed: tuple[str, ...], key: str, where: str) -> None:
    if value not in allowed:
        hint = _nearest(value, allowed) or f"known: {', '.join(allowed)}"
        raise ConfigError(f"{where}: unknown {key} {value!r}", path=where, hint=hint)


def _has_password(url: str, where: str) -> bool:
    try:
        return "://" in url and urlsplit(url).password is not None
    except ValueError as exc:
        raise ConfigError(f"{where}: a URL in it is not valid", path=where, hint="correct 'root' or 'options'") from exc


def _refuse_secrets(options: Mapping[str, Any], where: str) -> None:
    for key, value in options.items():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                _refuse_secrets(inner, where)
        if key.lower() in _SECRET_OPTIONS or (isinstance(value, str) and _has_password(value, where)):
            hint = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AZURE_STORAGE_CONNECTION_STRING in the environment"
            )
            message = f"{where}: option {key!r} is a secret, and the file is no place for one"
            raise ConfigError(message, path=where, hint=hint)


def _absolute(path: str, base: Path) -> str:
    if "\0" in path:
        raise ConfigError("a path in the configuration holds the character U+0000", path=str(base), hint="remove it")
    try:
        return str((base / Path(path).expanduser()).absolute())
    except RuntimeError as exc:
        raise ConfigError(f"{path}: there is no such user", path=path, hint="correct the part behind '~'") from exc


def access(store: StoreConfig, ask: Callable[[str], str] | None = None) -> Access:
    """Return how the drivers of KEKs get a passphrase: ``SOVSTORE_PASSPHRASE``, a file, else `ask`.

    Parameters
    ----------
    store : StoreConfig
        Its `passphrase_file` is used after ``SOVSTORE_PASSPHRASE`` and ``SOVSTORE_PASSPHRASE_FILE``.
    ask : callable, optional
        Asks a person; None where there is none.
    """

    def passphrase(prompt: str) -> str:
        value = os.environ.get("SOVSTORE_PASSPHRASE")
        if value is not None:
            return value
        if file := os.environ.get("SOVSTORE_PASSPHRASE_FILE") or store.passphrase_file:
            return _read_passphrase(file)
        if ask is None:
            hint = "set SOVSTORE_PASSPHRASE, or SOVSTORE_PASSPHRASE_FILE or 'passphrase_file' to a file that holds it"
            raise ConfigError(f"store {store.name!r}: needs a passphrase", path=store.name, hint=hint)
        return ask(prompt)

    return Access(passphrase=passphrase)


def _read_passphrase(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{file}: the passphrase file cannot be read", path=file, hint="check its path and rights"
        ) from exc


def write_settings(
    path: Path,
    store: str,
    settings: Mapping[str, str | list[str]],
    *,
    replaces: Mapping[str, str | None] | None = None,
) -> None:
    """Set values in the table of one store, keeping comments and order; replaces the file at once.

    Parameters
    ----------
    replaces : mapping, optional
        Settings that must still have these values, None for absent: another process may be at the same store.

    Raises
    ------
    ConfigError
        When the file cannot be read or written, or a setting is not what `replaces` says.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            _rewrite(path, store, settings, replaces or {})
    except OSError as exc:
        settings_text = ", ".join(f'{key} = "{value}"' for key, value in settings.items())
        hint = f"write into [stores.{store}] yourself: {settings_text}"
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}", path=str(path), hint=hint) from exc


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: two processes that change one file in it would each undo the other's change."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rewrite(
    path: Path, store: str, settings: Mapping[str, str | list[str]], replaces: Mapping[str, str | None]
) -> None:
    import tomlkit

    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    stores = document.setdefault("stores", tomlkit.table(is_super_table=True))
    table = stores.setdefault(store, tomlkit.table())
    for key, value in replaces.items():
        if table.get(key) != value:
            hint = "another process made or changed this store just now: look at it, then run this again if needed"
            raise ConfigError(f"{path}: {key!r} of store {store!r} was changed meanwhile", path=str(path), hint=hint)
    table.update(settings)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_text(tomlkit.dumps(document), encoding="utf-8")
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

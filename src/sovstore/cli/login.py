"""``login`` and ``logout``: the credentials of a host, in the keyring of the operating system.

They come from a person, from stdin or from a file that should never have held them; never from an argument, which every
process of the machine can read.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sovstore.cli.answers import With, ask, read
from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import StoreName
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name
from sovstore.errors import ConfigError

if TYPE_CHECKING:
    from sovstore.backends.credentials import Kind
    from sovstore.config import StoreConfig
    from sovstore.config_secrets import Stray
    from sovstore.secret import Secret

_SERVICE = "keyring://sovstore-host"


@command(
    app,
    "login",
    examples=[
        "login cohortes",
        "login cohortes --with sas-token",
        "login cohortes --stdin < credentials.json",
        "login cohortes --move",
    ],
)
def login(
    run: Run,
    store: StoreName,
    *,
    chosen: Annotated[With | None, typer.Option("--with", help="What opens the storage account (Azure Blob).")] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read them from stdin: a JSON object, or one value per line.")
    ] = False,
    entry: Annotated[
        str | None, typer.Option("--as", metavar="URI", help=f"Entry instead of {_SERVICE}/STORE.")
    ] = None,
    move: Annotated[bool, typer.Option("--move", help="Take them out of the configuration file.")] = False,
) -> None:
    """Keep the credentials of a store's host in the keyring of the operating system.

    Asks for them and writes the name of the entry, credentials = "keyring://…", into the table [stores.STORE]. Asks the
    host nothing.
    """
    name = store_name(store)
    if move:
        if stdin or chosen:
            usage("--move takes what is in the file: it goes with neither --stdin nor --with")
        _move(run, name, entry)
        return
    described = run.config.store(name)
    kinds = _kinds(described, chosen)
    uri = _entry(described, entry)
    _must_be_in_file(run, described)
    _must_be_free(described, uri, chosen=entry is not None or described.credentials is not None)
    values = read(described, kinds) if stdin else ask(described, kinds)
    _keep(described, uri, values)
    _report(run, described, uri, values, ())


def _kinds(described: StoreConfig, chosen: With | None) -> Sequence[Kind]:
    """Return what the store's driver takes, as far as it is chosen."""
    from sovstore.backends.credentials import KINDS

    driver = _driver(described)
    if driver not in KINDS:
        hint = "that filesystem looks for them by itself" if driver == "fsspec" else "nothing to do"
        message = f"store {described.name!r}: provider {described.provider!r} has no credentials to keep"
        raise ConfigError(message, path=described.name, hint=hint)
    if chosen is None:
        return KINDS[driver]
    if driver != "azure":
        usage(f"store {described.name!r}: --with goes with Azure Blob", f"'sovstore login {described.name}' is enough")
    return [kind for kind in KINDS[driver] if kind.needed == (chosen.value_name,)]


def _driver(described: StoreConfig) -> str:
    return described.place.provider.driver


def _entry(described: StoreConfig, given: str | None) -> str:
    """Return the entry to keep them in."""
    from sovstore import os_keyring

    _refuse_variable(described)
    if given is not None:
        os_keyring.parse(given)
    if described.credentials is not None and given not in (None, described.credentials):
        message = f"store {described.name!r}: has its credentials in {described.credentials}"
        raise ConfigError(message, path=described.name, hint=f"'sovstore logout {described.name}' deletes them first")
    return described.credentials or given or f"{_SERVICE}/{described.name}"


def _refuse_variable(described: StoreConfig) -> None:
    from sovstore import config

    variable = config.variable_of(described.name, "credentials")
    if variable in os.environ:
        message = f"store {described.name!r}: {variable} says where its credentials are, whatever the file says"
        raise ConfigError(message, path=described.name, hint=f"unset {variable}, then run this again")


def _must_be_in_file(run: Run, described: StoreConfig) -> None:
    """Refuse a store that only the environment describes: a table with one setting would be no store without it."""
    from sovstore import config

    config.with_secrets(run.config_file, described.name)


def _must_be_free(described: StoreConfig, uri: str, *, chosen: bool, same: Mapping[str, Secret] | None = None) -> None:
    """Refuse to replace an entry that nobody named; finds out, before anybody types, that there is no keyring.

    Parameters
    ----------
    same : mapping, optional
        Values that may stand there already: a run that was interrupted kept them.
    """
    from sovstore.backends import credentials

    if not credentials.exists(uri) or chosen:
        return
    if same is not None and _equal(credentials.look(uri), same):
        return
    hint = f"'--as {uri}' replaces it; '--as {_SERVICE}/{described.name}-2', say, leaves it alone"
    raise ConfigError(f"{uri}: the OS keyring has such an entry already", path=uri, hint=hint)


def _equal(one: Mapping[str, Secret] | None, other: Mapping[str, Secret]) -> bool:
    if one is None or one.keys() != other.keys():
        return False
    return all(hmac.compare_digest(one[name].reveal(), other[name].reveal()) for name in other)


def _keep(described: StoreConfig, uri: str, values: Mapping[str, Secret], strays: Sequence[Stray] = ()) -> None:
    """Put the values into the keyring, then its name into the file and the strays out of it."""
    from sovstore import config
    from sovstore.backends import credentials

    credentials.keep(uri, values)
    if strays and not _equal(credentials.look(uri), values):
        hint = "nothing was taken out of the file; look at what your keyring does"
        raise ConfigError(f"{uri}: the OS keyring did not keep what it was given", path=uri, hint=hint)
    if described.source is None or (described.credentials == uri and not strays):
        return
    config.write_settings(
        described.source,
        described.name,
        {"credentials": uri},
        replaces={"credentials": described.credentials},
        removes={stray.place: stray.value for stray in strays},
    )


def _report(run: Run, described: StoreConfig, uri: str, values: Mapping[str, Secret], moved: Sequence[str]) -> None:
    name, file = described.name, str(described.source)
    if run.out.as_json:
        run.out.result({"store": name, "credentials": uri, "values": list(values), "file": file, "moved": list(moved)})
        return
    run.out.line(f"kept the credentials of store {name!r} in the keyring of the operating system")
    rows = [("entry", uri), ("values", ", ".join(values)), ("named in", f"[stores.{name}] of {file}")]
    run.out.fields([*rows, *([("taken out", ", ".join(moved))] if moved else [])])
    run.out.note(f"'sovstore check {name}' tells whether the host takes them")


def _move(run: Run, name: str, given: str | None) -> None:
    """Take the secrets of a store out of the file that `config.load` refuses for them."""
    from sovstore import config, config_secrets

    described, strays = config.with_secrets(run.config_file, name)
    if not strays:
        _report_nothing(run, described)
        return
    values = config_secrets.movable(strays, _driver(described))
    if values is None:
        raise config_secrets.unmovable(name, strays, described.place.provider)
    uri = _entry(described, given)
    _must_be_free(described, uri, chosen=given is not None, same=values)
    _keep(described, uri, values, strays)
    _report(run, described, uri, values, [stray.dotted for stray in strays])
    run.out.warn(
        f"{described.source} held secrets, and backups or older versions of it still do",
        f"have the provider make new ones and withdraw these; 'sovstore login {name}' then keeps the new ones",
    )


def _report_nothing(run: Run, described: StoreConfig) -> None:
    if run.out.as_json:
        shown = {"store": described.name, "credentials": described.credentials, "file": str(described.source)}
        run.out.result({**shown, "values": [], "moved": []})
        return
    run.out.line(f"[stores.{described.name}] of {described.source} holds no secret: nothing was moved")


@command(app, "logout", examples=["logout cohortes"])
def logout(run: Run, store: StoreName) -> None:
    """Delete the credentials of a store's host from the keyring, and their name from the configuration.

    The credentials stay valid at the provider. An entry that another store of the file uses is left.
    """
    from sovstore import config
    from sovstore.backends import credentials

    described = run.config.store(store_name(store))
    name, uri = described.name, described.credentials
    _refuse_variable(described)
    if uri is None or described.source is None:
        hint = "they come from the environment, or the files of the host's own tools"
        raise ConfigError(f"store {name!r}: has no credentials in the keyring", path=name, hint=hint)
    others = [other.name for other in run.config.stores.values() if other.credentials == uri and other.name != name]
    # First the entry: when that fails, the file still says where it is.
    deleted = not others and credentials.forget(uri)
    config.write_settings(described.source, name, {}, removes={("credentials",): uri})
    if run.out.as_json:
        run.out.result({"store": name, "credentials": uri, "deleted": deleted, "file": str(described.source)})
        return
    run.out.line(f"store {name!r} has no credentials in the keyring any more")
    left = f"left: {', '.join(others)} uses it" if others else "there was none"
    run.out.fields([("entry", f"{uri} ({'deleted' if deleted else left})")])

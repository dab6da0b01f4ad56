"""``demo``: the whole of it in half a minute, on this machine alone."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sovstore.cli.app import app, command, usage
from sovstore.cli.run import Run
from sovstore.errors import ConfigError, MissingDependencyError


@command(app, "demo", examples=["demo", "demo --keep somewhere"])
def demo(
    run: Run,
    *,
    keep: Annotated[str | None, typer.Option(metavar="FOLDER", help="Work in this new folder, and leave it.")] = None,
) -> None:
    """See it work: seal a cohort, change the host, tamper with it.

    Needs no server, no network and no answer, and touches nothing but a folder of its own. Takes less than a minute.
    """
    if run.out.as_json:
        usage("demo: has no JSON form")
    try:
        from sovstore.cli.tour import Tour
    except ImportError as exc:
        raise MissingDependencyError(
            f"demo: {exc.name} is not installed", path="demo", hint="pip install 'sovstore[parquet]'"
        ) from exc
    passphrase = secrets.token_urlsafe(24)
    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sovstore-demo-")))
        else:
            folder = _new_folder(keep)
        stack.enter_context(_own_environment(folder, passphrase))
        stack.enter_context(chdir(folder))
        Tour(folder).take()
        if keep is not None:
            _leave(run, folder, passphrase)


def _new_folder(name: str) -> Path:
    folder = Path(name).absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError as exc:
        raise ConfigError(f"{folder}: exists already", path=str(folder), hint="name a new folder") from exc
    except OSError as exc:
        raise ConfigError(f"{folder}: cannot be made: {exc.strerror}", path=str(folder)) from exc
    return folder


@contextmanager
def _own_environment(folder: Path, passphrase: str) -> Iterator[None]:
    """Keep this process away from the user's configuration, keys and records, for a while."""
    before = dict(os.environ)
    own = {
        "SOVSTORE_CONFIG": str(folder / "sovstore.toml"),
        "SOVSTORE_PASSPHRASE": passphrase,
        "XDG_CONFIG_HOME": str(folder / "user"),
        "XDG_DATA_HOME": str(folder / "user"),
        "XDG_STATE_HOME": str(folder / "user"),
    }
    others = {name: value for name, value in before.items() if not name.startswith("SOVSTORE_")}
    try:
        _set_environment({**others, **own})
        yield
    finally:
        _set_environment(before)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    os.environ.update(wanted)


def _leave(run: Run, folder: Path, passphrase: str) -> None:
    """Leave a folder that can be used: the passphrase would be gone with this process."""
    from sovstore import config

    file = folder / "passphrase"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(passphrase)
    config.write_settings(folder / "sovstore.toml", "cohortes", {"passphrase_file": file.name})
    run.out.line(f"kept: cd {folder} && sovstore ls -R sov://cohortes/")

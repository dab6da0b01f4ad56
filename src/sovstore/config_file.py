"""Changes of the configuration file: one store's settings, with comments and order kept and the file replaced at once.

Does not check what is written; `sovstore.config.load` does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sovstore import beside
from sovstore.errors import ConfigError

#: Where a value lies below the table of a store: keys of tables, numbers of list items.
Place = tuple[str | int, ...]
#: Of a new file; one that exists keeps its own.
_NEW_MODE = 0o600


def write_settings(
    path: Path,
    store: str,
    settings: Mapping[str, str | list[str]],
    *,
    replaces: Mapping[str, str | None] | None = None,
    removes: Mapping[Place, object] | None = None,
) -> None:
    """Set values in the table of one store, keeping comments and order; replaces the file at once.

    Parameters
    ----------
    replaces : mapping, optional
        Settings that must still have these values, None for absent: another process may be at the same store.
    removes : mapping, optional
        Values to take out, and what each must still be. Tables that are left empty go too.

    Raises
    ------
    ConfigError
        When the file cannot be read or written, or a setting is not what `replaces` or `removes` says.
    """
    expected = {(key,): value for key, value in (replaces or {}).items()} | dict(removes or {})
    # A link, to a file kept among dotfiles, is not replaced itself: what is taken out would stay in its target.
    file = Path(os.path.realpath(path))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent) as folder:
            document = _parsed(file)
            _change(document, path, store, settings, expected, list(removes or {}))
            _replace(file, document, folder)
    except OSError as exc:
        hint = _by_hand(store, settings, list(removes or {}))
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}", path=str(path), hint=hint) from exc


def value_at(table: Any, place: Place) -> Any:  # of TOML, and of tomlkit
    """Return the value at a place; None when there is none."""
    for step in place:
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            return None
    return table


def take_out(table: Any, place: Place) -> None:  # of TOML, and of tomlkit
    """Delete the value at a place, and the tables that are empty without it."""
    *outer, key = place
    inner = value_at(table, tuple(outer))
    del inner[key]
    if outer and isinstance(inner, Mapping) and not inner and isinstance(outer[-1], str):
        take_out(table, tuple(outer))


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder, and yield its descriptor: two processes would each undo the other's change."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _parsed(path: Path) -> Any:  # tomlkit's, which is imported only to write
    import tomlkit

    return tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()


def _change(
    document: Any,
    path: Path,
    store: str,
    settings: Mapping[str, str | list[str]],
    expected: Mapping[Place, object],
    removed: list[Place],
) -> None:
    import tomlkit

    stores = document.setdefault("stores", tomlkit.table(is_super_table=True))
    table = stores.setdefault(store, tomlkit.table())
    for place, value in expected.items():
        if value_at(table, place) != value:
            hint = "another process made or changed this store just now: look at it, then run this again if needed"
            message = f"{path}: {dotted(place)!r} of store {store!r} was changed meanwhile"
            raise ConfigError(message, path=str(path), hint=hint)
    # From the last on, so that the numbers of list items stay what they are.
    for place in reversed(removed):
        take_out(table, place)
    table.update(settings)


def _replace(path: Path, document: Any, folder: int) -> None:
    import tomlkit

    content = tomlkit.dumps(document).encode()
    mode = path.stat().st_mode & 0o777 if path.exists() else _NEW_MODE
    # Never open to more readers than the file itself, not even for a moment: it may still hold secrets.
    with beside.temporary(path, mode=mode & _NEW_MODE) as (made, descriptor):
        os.fchmod(descriptor, mode)
        # Both, or a crash could leave an empty file, or the old one with the secrets that were taken out.
        beside.write_all(descriptor, content)
        os.replace(made, path)
        os.fsync(folder)


def _by_hand(store: str, settings: Mapping[str, str | list[str]], removed: list[Place]) -> str:
    """Return what a person can do instead."""
    steps = []
    if settings:
        steps.append(f"write into [stores.{store}] yourself: {_toml(settings)}")
    if removed:
        steps.append(f"take out of [stores.{store}] yourself: {', '.join(map(dotted, removed))}")
    return "; ".join(steps)


def _toml(settings: Mapping[str, str | list[str]]) -> str:
    return ", ".join(f'{key} = "{value}"' for key, value in settings.items())


def dotted(place: Place) -> str:
    """Return a place as a person writes it."""
    return ".".join(map(str, place))

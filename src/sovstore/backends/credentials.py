"""Credentials of hosts in the keyring of the operating system: one entry per store, a JSON object of named values.

Does not look anywhere else: the environment and the files of the clouds' own tools are read by their SDKs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sovstore.errors import ConfigError, StoreError, StoreUnavailableError
from sovstore.os_keyring import Entry, Use
from sovstore.secret import Secret

_USE = Use(
    StoreError,
    StoreUnavailableError,
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (S3) or AZURE_STORAGE_CONNECTION_STRING (Azure Blob)"
    " in the environment",
)


@dataclass(frozen=True)
class Kind:
    """One way to prove to a host who is asking.

    Parameters
    ----------
    needed, optional : tuple of str
        Names of its values, in the order in which they are asked for.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def fits(self, names: Collection[str]) -> bool:
        """Return whether `names` are those of its values."""
        return set(self.needed) <= set(names) <= {*self.needed, *self.optional}


#: What a store may keep in the keyring, by driver. Drivers that are not here have no credentials of their own.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "s3": (Kind(("access_key_id", "secret_access_key"), ("session_token",)),),
    "azure": (Kind(("connection_string",)), Kind(("account_key",)), Kind(("sas_token",))),
}


def fetch(uri: str, driver: str | None = None) -> dict[str, Secret]:
    """Return the values that the keyring holds under `uri`, UTF-8, by name. Waits for the keyring.

    Parameters
    ----------
    uri : str
        ``keyring://SERVICE/NAME``.
    driver : str, optional
        Refuse an entry for another driver.

    Raises
    ------
    ConfigError
        When the URI is malformed, the keyring protects nothing, or the entry is none of `KINDS`, or not of `driver`.
    StoreError
        When there is no such entry, or the keyring is locked.
    StoreUnavailableError
        When the keyring does not answer.
    """
    found = look(uri)
    if found is None:
        hint = "'sovstore login STORE' keeps the credentials of a store there"
        raise StoreError(f"{uri}: the OS keyring has no such entry", path=uri, hint=hint)
    if driver is not None and not any(kind.fits(found.keys()) for kind in KINDS[driver]):
        hint = "'sovstore login STORE --as …' keeps those of this host in another entry"
        raise ConfigError(f"{uri}: the entry holds credentials of another kind of host", path=uri, hint=hint)
    return found


def look(uri: str) -> dict[str, Secret] | None:
    """Return what `fetch` does; None when there is no such entry.

    Raises
    ------
    ConfigError, StoreError, StoreUnavailableError
        As `fetch`.
    """
    text = Entry(uri, _USE).read()
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not _is_well_formed(values):
        # Neither the entry nor what is wrong with it is quoted, nor kept as a cause: it may be anybody's secret.
        hint = "'sovstore login STORE' keeps new ones; --as chooses another entry"
        raise ConfigError(f"{uri}: the entry holds no credentials of a host", path=uri, hint=hint)
    return {name: Secret(value.encode()) for name, value in values.items()}


def exists(uri: str) -> bool:
    """Return whether anything is kept under `uri`, of whatever kind.

    Raises
    ------
    ConfigError, StoreError, StoreUnavailableError
        As `fetch`, but for what the entry holds.
    """
    return Entry(uri, _USE).read() is not None


def keep(uri: str, values: Mapping[str, Secret]) -> None:
    """Keep values under `uri`, in place of any others.

    Raises
    ------
    ConfigError
        When the values are none of `KINDS`, the URI is malformed or the keyring protects nothing.
    StoreError, StoreUnavailableError
        When the keyring is locked or does not answer.
    """
    try:
        texts = {name: value.reveal().decode() for name, value in values.items()}
    except UnicodeDecodeError:
        texts = {}
    if not _is_well_formed(texts):
        hint = f"one of: {'; '.join(' with '.join(kind.needed) for kinds in KINDS.values() for kind in kinds)}"
        raise ConfigError(f"{uri}: these are no credentials of a host", path=uri, hint=hint)
    Entry(uri, _USE).write(json.dumps(texts))


def forget(uri: str) -> bool:
    """Delete what is kept under `uri`, and return whether there was anything.

    Raises
    ------
    ConfigError, StoreError, StoreUnavailableError
        As `exists`.
    """
    return Entry(uri, _USE).delete()


def _is_well_formed(values: Mapping[str, object]) -> bool:
    if not any(kind.fits(values.keys()) for kinds in KINDS.values() for kind in kinds):
        return False
    # All of them travel in headers or URLs, where a line break or another control character is a mistake or an attack.
    return all(isinstance(value, str) and value and value.isprintable() for value in values.values())

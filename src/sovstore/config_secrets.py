"""Secrets where the configuration has no place for them: how they are found and refused, and which can be moved.

Knows them by the names of options and by passwords in URLs. A secret under any other name is not found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sovstore.backends.credentials import KINDS
from sovstore.backends.providers import Provider
from sovstore.config_file import Place, dotted, take_out
from sovstore.errors import ConfigError
from sovstore.secret import Secret

#: What s3fs, adlfs and botocore call the values of `sovstore.backends.credentials.KINDS`, by driver.
_ALIASES: Mapping[str, Mapping[str, str]] = {
    "s3": {
        **dict.fromkeys(("key", "access_key", "access_key_id", "aws_access_key_id"), "access_key_id"),
        **dict.fromkeys(
            ("secret", "secret_key", "secret_access_key", "aws_secret_access_key"),
            "secret_access_key",
        ),
        **dict.fromkeys(("token", "session_token", "aws_session_token"), "session_token"),
    },
    "azure": {name: name for name in ("connection_string", "account_key", "sas_token")},
}
_NAMES = frozenset(
    {
        *(alias for aliases in _ALIASES.values() for alias in aliases),
        *("password", "passphrase", "credential", "client_secret", "api_key", "apikey", "authorization"),
    }
)
#: Tables in which an alias means what it says; in another one, of headers say, it is something else.
_MOVABLE_FROM: tuple[Place, ...] = ((), ("options",), ("options", "client_kwargs"))
#: Where the credentials of a driver can be instead.
ELSEWHERE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
    "azure": (
        "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or"
        " AZURE_STORAGE_SAS_TOKEN, in the environment"
    ),
    "fsspec": "put it where that filesystem looks for it: its environment, agent or key files",
}


@dataclass(frozen=True)
class Stray:
    """One secret that is where none may be.

    Parameters
    ----------
    place : tuple of str and int
        Where it lies below the table of its store.
    value : object
        What it is; never shown.
    """

    place: Place
    value: object = field(repr=False)

    @property
    def name(self) -> str:
        """Its option, as the file has it."""
        return next(step for step in reversed(self.place) if isinstance(step, str))

    @property
    def dotted(self) -> str:
        """Its place as a person writes it."""
        return dotted(self.place)


def has_password(url: str, where: str) -> bool:
    """Return whether a text is a URL with a password in it.

    Raises
    ------
    ConfigError
        When it starts like a URL and is none.
    """
    try:
        return "://" in url and urlsplit(url).password is not None
    except ValueError as exc:
        raise ConfigError(f"{where}: a URL in it is not valid", path=where, hint="correct 'root' or 'options'") from exc


def find(table: Mapping[str, Any], where: str) -> list[Stray]:
    """Return the secrets in the table of a store: in its options, and where only settings may be.

    Raises
    ------
    ConfigError
        When it holds a URL that is not valid.
    """
    own = {key: value for key, value in table.items() if _is_name(key)}
    return [*_walk(own, (), where), *_walk(table.get("options"), ("options",), where)]


def _walk(value: object, place: Place, where: str) -> Iterator[Stray]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _is_name(key):
                yield Stray((*place, key), inner)
            else:
                yield from _walk(inner, (*place, key), where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, (*place, number), where)
    elif isinstance(value, str) and has_password(value, where):
        yield Stray(place, value)


def _is_name(key: str) -> bool:
    return key.lower().replace("-", "_") in _NAMES


def without(table: Mapping[str, Any], strays: Sequence[Stray]) -> Mapping[str, Any]:
    """Return a table without these secrets."""
    if not strays:
        return table
    clean = copy.deepcopy(dict(table))
    for stray in reversed(strays):
        take_out(clean, stray.place)
    return clean


def movable(strays: Sequence[Stray], driver: str) -> dict[str, Secret] | None:
    """Return what the keyring would keep in place of these secrets, by name; None when it cannot keep all of them."""
    values: dict[str, str] = {}
    for stray in strays:
        name = _ALIASES.get(driver, {}).get(stray.name.lower().replace("-", "_"))
        if name is None or stray.place[:-1] not in _MOVABLE_FROM or not isinstance(stray.value, str):
            return None
        if not stray.value or values.setdefault(name, stray.value) != stray.value:
            return None
    if not any(kind.fits(values.keys()) for kind in KINDS.get(driver, ())):
        return None
    return {name: Secret(value.encode()) for name, value in values.items()}


def refusal(
    store: str, strays: Sequence[Stray], provider: Provider, where: str, variables: Mapping[str, str]
) -> ConfigError:
    """Return the error for secrets in the configuration of a store; it quotes none of them.

    Parameters
    ----------
    store : str
        Name of the store.
    strays : sequence of Stray
        At least one.
    provider : Provider
        Who holds the ciphertext.
    where : str
        The table and its file, for the message.
    variables : mapping of str to str
        Settings that come from the environment, and their variables.
    """
    first = strays[0]
    variable = variables.get(str(first.place[0]))
    origin, holder = (variable, "a setting") if variable else (where, "the file")
    message = f"{origin}: option {first.name!r} is a secret, and {holder} is no place for one"
    return ConfigError(message, path=origin, hint=_hint(store, strays, provider, variable))


def _hint(store: str, strays: Sequence[Stray], provider: Provider, variable: str | None) -> str:
    elsewhere = ELSEWHERE.get(provider.driver, f"provider {provider.name!r} needs none")
    if variable is not None:
        return f"take it out of {variable}, from where nothing can be moved; then {elsewhere}"
    if movable(strays, provider.driver) is not None:
        return (
            f"'sovstore login {store} --move' puts it into the keyring of the operating system"
            " and takes it out of the file"
        )
    if provider.driver in KINDS:
        return f"take it out of the file; then 'sovstore login {store}' asks for the credentials, or {elsewhere}"
    return f"take it out of the file; {elsewhere}"


def unmovable(store: str, strays: Sequence[Stray], provider: Provider) -> ConfigError:
    """Return the error for secrets that the keyring cannot keep in their place."""
    names = ", ".join(stray.dotted for stray in strays)
    message = f"store {store!r}: the keyring cannot keep what its table holds: {names}"
    return ConfigError(message, path=store, hint=_hint(store, strays, provider, None))

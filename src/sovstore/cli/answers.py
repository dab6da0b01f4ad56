"""The credentials of a host, as a person types them or stdin holds them."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sovstore.cli.app import usage
from sovstore.errors import ConfigError

if TYPE_CHECKING:
    from sovstore.backends.credentials import Kind
    from sovstore.config import StoreConfig
    from sovstore.secret import Secret

#: More than any credentials; stdin may be a device that never ends.
_STDIN_MAX = 64 * 1024
#: How a person is asked for a value.
_PROMPTS = {
    "access_key_id": "access key id",
    "secret_access_key": "secret access key",  # nosec B105  # a prompt
    "session_token": "session token (empty if there is none)",  # nosec B105  # a prompt
    "connection_string": "connection string",
    "account_key": "account key",
    "sas_token": "SAS token",  # nosec B105  # a prompt
}
#: No secrets: mistyped unseen, they would be hard to find.
_SHOWN = ("access_key_id",)


class With(StrEnum):
    """What opens a storage account of Azure."""

    CONNECTION_STRING = "connection-string"
    ACCOUNT_KEY = "account-key"
    SAS_TOKEN = "sas-token"  # noqa: S105  # nosec B105  # the name of a choice

    @property
    def value_name(self) -> str:
        """The value of that kind, as in `sovstore.backends.credentials.KINDS`."""
        return self.value.replace("-", "_")


# A person


def ask(described: StoreConfig, kinds: Sequence[Kind]) -> dict[str, Secret]:
    """Return what a person types, secrets unseen.

    Parameters
    ----------
    described : StoreConfig
        The store that they are for.
    kinds : sequence of Kind
        What it takes; with several, the person is asked which.

    Raises
    ------
    ConfigError
        When there is no terminal, or nothing was typed.
    """
    from sovstore.config_secrets import ELSEWHERE
    from sovstore.secret import Secret

    if sys.stdin is None or not sys.stdin.isatty():
        message = f"store {described.name!r}: there is no terminal to ask for its credentials at"
        elsewhere = ELSEWHERE[described.place.provider.driver]
        hint = f"give them to 'sovstore login {described.name} --stdin', or {elsewhere}"
        raise ConfigError(message, path=described.name, hint=hint)
    try:
        kind = kinds[0] if len(kinds) == 1 else _ask_kind(kinds)
        values = {name: _typed(name) for name in kind.needed}
        values |= {name: text for name in kind.optional if (text := _typed(name))}
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
    for name, text in values.items():
        if not text:
            raise ConfigError(f"no {_PROMPTS[name]} was given", path=described.name, hint="nothing was kept; try again")
    return {name: Secret(text.encode(errors="surrogateescape")) for name, text in values.items()}


def _ask_kind(kinds: Sequence[Kind]) -> Kind:
    numbers = {str(number): kind for number, kind in enumerate(kinds, 1)}
    for number, kind in numbers.items():
        sys.stderr.write(f"  {number}  {_PROMPTS[kind.needed[0]]}\n")
    while (answer := _line("which do you have? ")) not in numbers:
        sys.stderr.write(f"sovstore: one of {', '.join(numbers)}\n")
    return numbers[answer]


def _typed(name: str) -> str:
    prompt = f"{_PROMPTS[name]}: "
    if name in _SHOWN:
        return _line(prompt)
    try:
        return _cleaned(name, getpass.getpass(prompt))
    except EOFError:
        return ""


def _line(prompt: str) -> str:
    """Return a line that is typed, and seen. Not by `input`, which would print on stdout."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise ConfigError("no credentials were given", hint="nothing was kept")
    return line.strip()


def _cleaned(name: str, text: str) -> str:
    # The portal shows a SAS token with the mark that begins a query.
    return text.strip().removeprefix("?") if name == "sas_token" else text.strip()


# Stdin


def read(described: StoreConfig, kinds: Sequence[Kind]) -> dict[str, Secret]:
    """Return what stdin holds: a JSON object, or one value per line in the order in which a person is asked.

    Parameters
    ----------
    described : StoreConfig
        The store that they are for.
    kinds : sequence of Kind
        What it takes; lines need exactly one.

    Raises
    ------
    ConfigError
        When stdin is a terminal or holds something else; nothing of it is quoted.
    """
    from sovstore.secret import Secret

    if sys.stdin is not None and sys.stdin.isatty():
        usage("stdin is a terminal, which would show them", f"'sovstore login {described.name}' asks for them unseen")
    try:
        text = sys.stdin.buffer.read(_STDIN_MAX).decode().strip() if sys.stdin is not None else ""
    except UnicodeDecodeError:
        text = ""
    values = _from_json(text) if text.startswith("{") else _from_lines(described, text, kinds)
    if not any(kind.fits(values.keys()) for kind in kinds) or not all(values.values()):
        hint = f"write one of {'; '.join(_forms(kinds))}"
        raise ConfigError(f"store {described.name!r}: stdin holds no credentials", path=described.name, hint=hint)
    return {name: Secret(value.encode(errors="surrogatepass")) for name, value in values.items()}


def _from_json(text: str) -> dict[str, str]:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    if not all(isinstance(value, str) for value in found.values()):
        return {}
    return {name: _cleaned(name, value) for name, value in found.items()}


def _from_lines(described: StoreConfig, text: str, kinds: Sequence[Kind]) -> dict[str, str]:
    if text and len(kinds) > 1:
        hint = f"add --with and one of {', '.join(With)}, or write JSON"
        message = f"store {described.name!r}: a line of stdin does not say what it is"
        raise ConfigError(message, path=described.name, hint=hint)
    names, lines = (*kinds[0].needed, *kinds[0].optional), text.splitlines()
    if len(lines) > len(names):
        return {}
    return {name: _cleaned(name, line) for name, line in zip(names, lines, strict=False)}


def _forms(kinds: Sequence[Kind]) -> list[str]:
    """Return the JSON objects that are taken."""
    return ["{" + ", ".join(f'"{name}": "…"' for name in kind.needed) + "}" for kind in kinds]

"""How the services that hold KEKs are reached: the tables ``[kms.NAME]`` of the configuration.

They hold references only. A secret is named by where it is: ``env:VARIABLE``, ``file:/path`` or ``keyring://SERVICE/NAME``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sovstore.errors import ConfigError, KeyDeniedError, KMSUnavailableError
from sovstore.os_keyring import Entry, Use
from sovstore.secret import Secret

#: Seconds that one call of a service may take, its retries included.
TIMEOUT_S = 10.0
LEVELS = ("software", "hsm")
_USE = Use(KeyDeniedError, KMSUnavailableError, "name a variable or a file: env:VARIABLE, file:/path")
_TLS = frozenset({"ca_file"})
_MTLS = _TLS | {"cert_file", "key_file"}
#: What each kind of service takes besides `_ANY`, by the scheme of its key URIs.
TAKES: Mapping[str, frozenset[str]] = {
    "openbao": _MTLS | {"auth", "auth_mount", "token", "role", "role_id", "secret_id", "jwt", "plain_http"},
    "vault": _MTLS | {"auth", "auth_mount", "token", "role", "role_id", "secret_id", "jwt", "plain_http"},
    "pkcs11": frozenset({"module", "pin"}),
    "kmip": _MTLS,
    "okms": _MTLS | {"token"},
    "scw-kms": _TLS | {"token"},
    "eviden-kms": _MTLS | {"token", "plain_http"},
    "keyring": frozenset(),
    "keyfile": frozenset(),
}
_ANY = frozenset({"uri", "controller", "protection_level", "timeout_s"})
_FILES = ("ca_file", "cert_file", "key_file", "module")
_SECRETS = ("token", "secret_id", "jwt", "pin")
#: Characters after which a KEK may begin below the URI of its service.
_BORDERS = "/;?"


@dataclass(frozen=True)
class Service:
    """One table ``[kms.NAME]``. References only, so it may be logged and pickled.

    Parameters
    ----------
    name : str
        Name of the table; '' when there is none for a KEK.
    uri : str
        What the key URIs of its KEKs begin with.
    controller : str or None
        Who runs it: a name of the catalogue, or of a table ``[controllers.NAME]``.
    protection_level : str or None
        ``software`` or ``hsm``, as declared.
    timeout_s : float
        Seconds that one call may take, its retries included.
    ca_file, cert_file, key_file : str or None
        PEM files: authorities to trust in place of the system's, and the client's certificate and its key.
    auth : str or None
        How to log in: ``token``, ``approle``, ``cert`` or ``jwt``.
    auth_mount : str or None
        Where that method is mounted, if not under its own name.
    role, role_id : str or None
        Who logs in.
    token, secret_id, jwt, pin : str or None
        Where the secret is: ``env:VARIABLE``, ``file:/path`` or ``keyring://SERVICE/NAME``.
    module : str or None
        Library of a PKCS#11 token.
    plain_http : bool
        Speak HTTP without TLS; to this machine only.
    """

    name: str = ""
    uri: str = ""
    controller: str | None = None
    protection_level: str | None = None
    timeout_s: float = TIMEOUT_S
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    auth: str | None = None
    auth_mount: str | None = None
    role: str | None = None
    role_id: str | None = None
    token: str | None = None
    secret_id: str | None = None
    jwt: str | None = None
    pin: str | None = None
    module: str | None = None
    plain_http: bool = False

    def secret(self, setting: str, *variables: str) -> Secret | None:
        """Return the secret that a setting refers to; None when neither it nor a variable says where it is.

        Parameters
        ----------
        setting : str
            ``token``, ``secret_id``, ``jwt`` or ``pin``.
        variables : str
            Variables of the environment to look into when the setting is not there: those of the service's own tools.

        Raises
        ------
        ConfigError
            When what it refers to is not there or is empty.
        KeyDeniedError, KMSUnavailableError
            When the keyring is locked or does not answer.
        """
        reference: str | None = getattr(self, setting)
        if reference is None:
            reference = next((f"env:{name}" for name in variables if os.environ.get(name)), None)
            if reference is None:
                return None
        value = _look_up(reference).strip()
        # Most of them travel in headers, where a line break or another control character is a mistake or an attack.
        if not value or not value.isprintable():
            what = "is empty" if not value else "holds a character that cannot be printed"
            raise ConfigError(f"{reference}: the secret {what}", path=reference, hint=f"correct {setting!r}, or it")
        return Secret(value.encode())


def _look_up(reference: str) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env":
        if (value := os.environ.get(name)) is None:
            raise ConfigError(f"{reference}: the variable is not set", path=reference, hint=f"export {name}=…")
        return value
    if kind == "file":
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            hint = "check its path and rights"
            raise ConfigError(f"{reference}: the file cannot be read", path=reference, hint=hint) from exc
    found = Entry(reference, _USE).read()
    if found is None:
        raise ConfigError(f"{reference}: the OS keyring has no such entry", path=reference, hint="make it, then retry")
    return found


def service_of(uri: str, services: Iterable[Service]) -> Service:
    """Return the service that holds the KEK at a key URI: of all whose URI it begins with the longest."""
    found = [service for service in services if _holds(service.uri, uri)]
    return max(found, key=lambda service: len(service.uri), default=Service())


def _holds(service: str, uri: str) -> bool:
    # At a border only: the token of openbao://bao.example.fr must not go to openbao://bao.example.fr.evil.example.
    return uri == service or (
        uri.startswith(service) and (service[-1:] in _BORDERS or uri[len(service) :][:1] in _BORDERS)
    )


def parse(name: str, table: Mapping[str, Any], base: Path, where: str) -> Service:
    """Return what a table ``[kms.NAME]`` says.

    Parameters
    ----------
    base : Path
        What the files in it are relative to.
    where : str
        The table and its file, for messages.

    Raises
    ------
    ConfigError
        When a setting is unknown or wrong. Never quotes a value, which may be a secret in the wrong place.
    """
    uri = table.get("uri")
    scheme = uri.partition(":")[0] if isinstance(uri, str) else ""
    if scheme not in TAKES:
        hint = 'write what the key URIs begin with: uri = "openbao://bao.example.fr:8200"; schemes: ' + ", ".join(TAKES)
        raise ConfigError(f"{where}: 'uri' is missing, or of no known scheme", path=where, hint=hint)
    known = _ANY | TAKES[scheme]
    for key in table:
        if key not in known:
            hint = f"{scheme}: takes {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown setting {key!r}", path=where, hint=hint)
    values = {key: _typed(key, value, where) for key, value in table.items()}
    for key in _FILES:
        if key in values:
            values[key] = absolute(values[key], base)
    for key in _SECRETS:
        if key in values:
            values[key] = _reference(key, values[key], base, where)
    if ("cert_file" in values) != ("key_file" in values):
        hint = "they may name the same file"
        raise ConfigError(f"{where}: 'cert_file' and 'key_file' go together", path=where, hint=hint)
    if values.get("protection_level", LEVELS[0]) not in LEVELS:
        raise ConfigError(f"{where}: unknown protection_level", path=where, hint=f"known: {', '.join(LEVELS)}")
    return Service(name=name, **values)


_TYPES = {f.name: f.type for f in fields(Service)}


def _typed(key: str, value: object, where: str) -> Any:  # settings have several types
    if key == "timeout_s":
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 600:
            return float(value)
        raise ConfigError(f"{where}: timeout_s is not a number of seconds", path=where, hint="above 0, at most 600")
    wanted = bool if _TYPES[key] == "bool" else str
    if type(value) is not wanted or (value == "" and wanted is str):
        what = "true or false" if wanted is bool else "a text"
        raise ConfigError(f"{where}: {key} is not {what}", path=where, hint="correct it")
    return value


def _reference(key: str, value: str, base: Path, where: str) -> str:
    kind, colon, rest = value.partition(":")
    if colon and rest and kind == "file":
        return f"file:{absolute(rest, base)}"
    if colon and rest and (kind == "env" or value.startswith("keyring://")):
        return value
    hint = f'say where it is: {key} = "env:VARIABLE", "file:/path" or "keyring://SERVICE/NAME"'
    raise ConfigError(
        f"{where}: {key!r} is not a reference, and the file is no place for a secret", path=where, hint=hint
    )


def absolute(path: str, base: Path) -> str:
    """Return a path of the configuration, which may be relative to its file or begin with ``~``.

    Raises
    ------
    ConfigError
        When no file can have it.
    """
    if "\0" in path:
        raise ConfigError("a path in the configuration holds the character U+0000", path=str(base), hint="remove it")
    try:
        return str((base / Path(path).expanduser()).absolute())
    except RuntimeError as exc:
        raise ConfigError(f"{path}: there is no such user", path=path, hint="correct the part behind '~'") from exc

"""``keyring://service/name``: a KEK in the keyring of the operating system, for one machine.

Implements the Secret Service, KWallet, macOS Keychain and Windows Credential Locker through `keyring`. Does not
implement keyrings that store plaintext or nothing: they are refused, with the reason.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sovstore.errors import (
    ConfigError,
    KeyDeniedError,
    KMSUnavailableError,
    MissingDependencyError,
    NoMatchingKeyError,
)
from sovstore.kms.base import Access
from sovstore.kms.local import KEK, LocalKey
from sovstore.secret import Secret

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

_REFUSED = {
    "keyring.backends.null": "it stores nothing",
    "keyring.backends.fail": "no keyring of the operating system was found",
    "keyrings.alt.file.PlaintextKeyring": "it keeps secrets in a readable file",
    "keyrings.alt.Windows.RegistryKeyring": "it keeps secrets in the registry, readable by any process of the user",
    "keyrings.alt.Gnome": "it is obsolete and unmaintained",
    "keyrings.alt.Google": "it keeps secrets at a host under US law",
    "keyrings.alt.multi": "it can fall back to a plaintext keyring",
    "keyrings.alt.pyfs": "it can keep secrets in a readable file",
}
_HINT = (
    "unlock or install the keyring of the desktop (gnome-keyring, KWallet), or use 'keyfile:/path' with a passphrase"
)


def open_key(uri: str, access: Access) -> LocalKey:
    """Return the KEK that the OS keyring holds under `uri`.

    Raises
    ------
    ConfigError
        When the URI is malformed or the keyring is one that does not protect secrets.
    NoMatchingKeyError
        When the keyring has no such entry.
    KeyDeniedError, KMSUnavailableError
        When the keyring is locked or does not answer.
    """
    del access
    service, name = _parse(uri)
    stored = _call(uri, "get_password", service, name)
    if stored is None:
        hint = "'sovstore init STORE' makes it; on another machine, open the store with its recovery key"
        raise NoMatchingKeyError(f"{uri}: the OS keyring has no such entry", path=uri, hint=hint)
    try:
        key = base64.b64decode(stored, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEK:
        raise ConfigError(f"{uri}: the entry is not a key that sovstore made", path=uri, hint="choose another name")
    return LocalKey(uri, Secret(key))


def create_key(uri: str, access: Access) -> LocalKey:
    """Make a new KEK in the OS keyring and return it.

    Raises
    ------
    ConfigError
        When an entry of that name exists already, besides the causes of `open_key`.
    """
    service, name = _parse(uri)
    if _call(uri, "get_password", service, name) is not None:
        raise ConfigError(f"{uri}: the OS keyring has such an entry already", path=uri, hint="choose another name")
    _call(uri, "set_password", service, name, base64.b64encode(os.urandom(KEK)).decode())
    return open_key(uri, access)


def key_exists(uri: str) -> bool:
    """Return whether the OS keyring has an entry for `uri`."""
    service, name = _parse(uri)
    return _call(uri, "get_password", service, name) is not None


def _parse(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    name = unquote(parts.path.removeprefix("/"))
    if not parts.netloc or not name or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"{uri}: not a keyring URI", path=uri, hint="write keyring://SERVICE/NAME")
    return unquote(parts.netloc), name


def _call(uri: str, method: str, *args: str) -> str | None:  # each keyring method returns another type
    try:
        import keyring
        import keyring.errors
    except ImportError as exc:
        raise MissingDependencyError(f"{uri}: keyring is not installed", path=uri, hint="pip install keyring") from exc
    call: Callable[..., str | None] = getattr(usable_backend(keyring.get_keyring(), uri), method)
    try:
        return call(*args)
    except keyring.errors.KeyringLocked as exc:
        raise KeyDeniedError(
            f"{uri}: the OS keyring is locked", path=uri, hint="unlock it, then run this again"
        ) from exc
    except keyring.errors.KeyringError as exc:
        # The text of the cause stays in the chain only: backends may quote what they were given.
        raise KMSUnavailableError(f"{uri}: the OS keyring did not answer", path=uri, hint=_HINT) from exc


def usable_backend(backend: KeyringBackend, uri: str) -> KeyringBackend:
    """Return the keyring to use: `backend`, or the first member of a chain that protects secrets.

    Raises
    ------
    ConfigError
        When there is none; names the keyring and says why it is refused.
    """
    # A chain asks its members in turn and would fall through to a plaintext one without a word.
    members = list(getattr(backend, "backends", None) or [backend])
    reasons = []
    for member in members:
        label = f"{type(member).__module__}.{type(member).__qualname__}"
        why = next((why for prefix, why in _REFUSED.items() if f"{label}.".startswith(f"{prefix}.")), None)
        if why is None:
            found: KeyringBackend = member
            return found
        reasons.append(f"{label} is refused: {why}")
    raise ConfigError(f"{uri}: {'; '.join(reasons)}", path=uri, hint=_HINT)

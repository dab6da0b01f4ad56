"""One entry in the keyring of the operating system, named ``keyring://SERVICE/NAME``.

Implements the Secret Service, KWallet, macOS Keychain and Windows Credential Locker through `keyring`. Does not
implement keyrings that store plaintext or nothing: they are refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sovstore.errors import ConfigError, MissingDependencyError, SovstoreError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SCHEME = "keyring://"
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


@dataclass(frozen=True)
class Use:
    """What entries are for: it decides the errors that their user sees.

    Parameters
    ----------
    locked : type
        Raised when the keyring is locked.
    unavailable : type
        Raised when the keyring does not answer.
    instead : str
        What works without a keyring, as the end of a hint.
    """

    locked: type[SovstoreError]
    unavailable: type[SovstoreError]
    instead: str

    @property
    def hint(self) -> str:
        """What to do where there is no keyring that protects secrets."""
        return f"unlock or install the keyring of the desktop (gnome-keyring, KWallet), or {self.instead}"


def parse(uri: str) -> tuple[str, str]:
    """Return the service and the name of an entry.

    Raises
    ------
    ConfigError
        When the URI is not ``keyring://SERVICE/NAME``.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    name = unquote(parts.path.removeprefix("/"))
    if (
        not uri.startswith(SCHEME)
        or not parts.netloc
        or not name
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ConfigError(f"{uri}: not a keyring URI", path=uri, hint=f"write {SCHEME}SERVICE/NAME")
    return unquote(parts.netloc), name


class Entry:
    """One entry of the OS keyring.

    Parameters
    ----------
    uri : str
        ``keyring://SERVICE/NAME``.
    use : Use
        What it is for.

    Raises
    ------
    ConfigError
        When the URI is malformed; `read`, `write` and `delete`: when no keyring protects secrets.
    SovstoreError
        `read`, `write` and `delete`: the classes that `use` names.
    """

    def __init__(self, uri: str, use: Use) -> None:
        self._uri, self._use = uri, use
        self._service, self._name = parse(uri)

    def read(self) -> str | None:
        """Return the text of the entry; None when there is none."""
        return self._call("get_password")

    def write(self, text: str) -> None:
        """Make the entry, or replace its text."""
        self._call("set_password", text)

    def delete(self) -> bool:
        """Delete the entry and return whether there was one."""
        if self.read() is None:
            return False
        self._call("delete_password")
        return True

    def _call(self, method: str, *args: str) -> str | None:  # each keyring method returns another type
        uri, use = self._uri, self._use
        try:
            import keyring
            import keyring.errors
        except ImportError as exc:
            hint = "pip install keyring"
            raise MissingDependencyError(f"{uri}: keyring is not installed", path=uri, hint=hint) from exc
        backend = usable_backend(keyring.get_keyring(), uri, use)
        call: Callable[..., str | None] = getattr(backend, method)
        try:
            return call(self._service, self._name, *args)
        except keyring.errors.KeyringLocked as exc:
            hint = "unlock it, then run this again"
            raise use.locked(f"{uri}: the OS keyring is locked", path=uri, hint=hint) from exc
        except keyring.errors.KeyringError as exc:
            # The text of the cause stays in the chain only: backends may quote what they were given.
            raise use.unavailable(f"{uri}: the OS keyring did not answer", path=uri, hint=use.hint) from exc


def usable_backend(backend: KeyringBackend, uri: str, use: Use) -> KeyringBackend:
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
    raise ConfigError(f"{uri}: {'; '.join(reasons)}", path=uri, hint=use.hint)

"""``keyring://service/name``: a KEK in the keyring of the operating system, for one machine.

Implements what `sovstore.os_keyring` reaches. Does not implement keyrings that store plaintext or nothing: they are
refused, with the reason.
"""

from __future__ import annotations

import base64
import os
from functools import partial

from sovstore import os_keyring
from sovstore.errors import ConfigError, KeyDeniedError, KMSUnavailableError, NoMatchingKeyError
from sovstore.kms.base import Access
from sovstore.kms.local import KEK, LocalKey
from sovstore.os_keyring import Entry, Use
from sovstore.secret import Secret

_USE = Use(KeyDeniedError, KMSUnavailableError, "use 'keyfile:/path' with a passphrase")

#: `sovstore.os_keyring.usable_backend` with the hints of a KEK.
usable_backend = partial(os_keyring.usable_backend, use=_USE)


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
    stored = Entry(uri, _USE).read()
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
    entry = Entry(uri, _USE)
    if entry.read() is not None:
        raise ConfigError(f"{uri}: the OS keyring has such an entry already", path=uri, hint="choose another name")
    entry.write(base64.b64encode(os.urandom(KEK)).decode())
    return open_key(uri, access)


def key_exists(uri: str) -> bool:
    """Return whether the OS keyring has an entry for `uri`."""
    return Entry(uri, _USE).read() is not None

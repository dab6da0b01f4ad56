"""Notes every key that sovstore holds while a test runs: what no host, file, log or pickle may show."""

from __future__ import annotations

import base64
import functools
from typing import Any

import pytest

from sovstore.format import cobblestone, keyset, recovery
from sovstore.format.header import ID
from sovstore.format.names import EncryptedNames
from sovstore.kms import keyfile
from sovstore.secret import Secret
from tests.hostile.canaries import Canary

#: Bytes that are derived for a body: the AES key and the base nonce. The commitment after them is published.
_DERIVED = 44


class KeySpy:
    """The keys so far; `spy_on_keys` makes it."""

    def __init__(self) -> None:
        self.values: dict[bytes, str] = {}

    def note(self, label: str, value: bytes | None) -> None:
        """Note one key."""
        if value is None or len(value) < ID:
            return
        # A connection string holds an address beside the key.
        if b"AccountKey=" in value:
            value = value.partition(b"AccountKey=")[2].partition(b";")[0]
            self.values.setdefault(base64.b64decode(value), label)
        else:
            self.values.setdefault(bytes(value), label)

    def canaries(self) -> list[Canary]:
        """Return what to search for."""
        return [Canary("key", f"{label} {number}", value) for number, (value, label) in enumerate(self.values.items())]


def spy_on_keys(patch: pytest.MonkeyPatch) -> KeySpy:
    """Note, from now on, the keys that are made, opened and derived.

    All of them pass through `Secret`, but for recovery keys, the keys of names, what a passphrase becomes and what is
    derived for a body that is read.
    """
    spy = KeySpy()
    _after(patch, Secret, "__init__", lambda _, self, *rest: spy.note("secret", self.reveal()))
    _after(patch, recovery.RecoveryKey, "__init__", lambda _, self, *parts: [spy.note("recovery", p) for p in parts])
    _after(patch, EncryptedNames, "__init__", lambda _, self, key, *rest: spy.note("names", key))
    _after(patch, keyfile, "_stretch", lambda made, *rest: spy.note("stretched", made))
    _after(patch, keyset, "hkdf_expand", lambda made, _, info, *rest: _note_derived(spy, made, info))
    _after(patch, cobblestone, "hkdf_expand", lambda made, *rest: spy.note("derived", made[:_DERIVED]))
    return spy


def _note_derived(spy: KeySpy, made: bytes, info: bytes) -> None:
    # The fingerprint is for showing: it pins the auth key in the configuration.
    if b"fingerprint" not in info:
        spy.note("derived", made)


def _after(patch: pytest.MonkeyPatch, owner: Any, name: str, look: Any) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def spied(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        look(made, *arguments)
        return made

    patch.setattr(owner, name, spied)

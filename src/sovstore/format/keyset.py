"""The keyset of a store (docs/spec/format.md, 6): its keys, encrypted under a KSK that the KEKs wrap.

This module makes, parses and authenticates the bytes. It calls no KEK: the caller wraps and unwraps the KSK
with `sovstore.kms`, between `parse` and `ParsedKeyset.unlock`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sovstore.errors import FormatError, IntegrityError
from sovstore.format import canonical
from sovstore.format.cobblestone import hkdf_expand, open_message, seal_message
from sovstore.format.header import ID, KEY
from sovstore.format.names import EncryptedNames, Names, PlainNames
from sovstore.format.recovery import Recipient
from sovstore.secret import Secret

MAX_FILE = 2 * 2**20
MAX_BODY = 2**20
MAX_WRAPS = 16
MAX_WRAPPED = 4096
MAX_VERSION = 2**53 - 1
NAME_KEY = 64
#: Bytes that a sealed key is longer than the key.
_SEALED = 72
_TAG = 64
_WHAT = "keyset"


@dataclass(frozen=True)
class Epoch:
    """One store key and what it may be used for.

    Parameters
    ----------
    id : bytes
        Key id, 16 bytes.
    state : str
        ``primary`` wraps new DEKs, ``readable`` unwraps only, ``destroyed`` is refused.
    created : int
        Seconds since 1970-01-01 UTC.
    key : Secret or None
        32 bytes; None exactly when destroyed.
    """

    id: bytes
    state: str
    created: int
    key: Secret | None


@dataclass(frozen=True)
class Keyset:
    """The opened keyset of a store.

    Parameters
    ----------
    store_id : bytes
        16 bytes.
    version : int
        1 for a new store, one more at each change.
    created : int
        When this version was made, in seconds since 1970-01-01 UTC.
    names_mode : str
        ``encrypted`` or ``plain``.
    epochs : tuple of Epoch
        In the order of their making; exactly one is primary.
    """

    store_id: bytes
    version: int
    created: int
    names_mode: str
    names_id: bytes
    names_key: Secret
    auth_id: bytes
    auth_key: Secret
    epochs: tuple[Epoch, ...]

    @classmethod
    def create(cls, *, now: int, names_mode: str, store_id: bytes | None = None) -> Keyset:
        """Return the first version for a new store, with fresh keys.

        Parameters
        ----------
        now : int
            Seconds since 1970-01-01 UTC.
        names_mode : str
            ``encrypted`` or ``plain``.
        store_id : bytes, optional
            16 bytes; random by default.
        """
        first = Epoch(os.urandom(ID), "primary", now, Secret(os.urandom(KEY)))
        return cls(
            store_id=store_id or os.urandom(ID),
            version=1,
            created=now,
            names_mode=names_mode,
            names_id=os.urandom(ID),
            names_key=Secret(os.urandom(NAME_KEY)),
            auth_id=os.urandom(ID),
            auth_key=Secret(os.urandom(KEY)),
            epochs=(first,),
        )

    @property
    def primary(self) -> Epoch:
        """The epoch that wraps new DEKs."""
        return next(epoch for epoch in self.epochs if epoch.state == "primary")

    def epoch(self, key_id: bytes) -> Epoch | None:
        """Return the epoch of a key id, or None when this version does not know it."""
        return next((epoch for epoch in self.epochs if epoch.id == key_id), None)

    def names(self) -> Names:
        """Return the coder of this store's names."""
        if self.names_mode == "plain":
            return PlainNames()
        return EncryptedNames(self.names_key.reveal(), self.store_id)

    @property
    def auth_fingerprint(self) -> str:
        """Hex of 32 bytes that pin the auth key beside a recovery key."""
        info = b"sovstore/1 auth fingerprint\x00" + self.store_id
        return hkdf_expand(self.auth_key, info, 32).hex()

    @property
    def pin_key(self) -> Secret:
        """32 bytes under which a client keeps the paths of its record of versions seen; they never leave it."""
        return Secret(hkdf_expand(self.auth_key, b"sovstore/1 pins\x00" + self.store_id, KEY))

    def next_version(self, *, now: int) -> Keyset:
        """Return the same keys as the next version."""
        return replace(self, version=self.version + 1, created=now)

    def add_epoch(self, *, now: int) -> Keyset:
        """Return the next version, with one more epoch that is ``readable``."""
        epoch = Epoch(os.urandom(ID), "readable", now, Secret(os.urandom(KEY)))
        return replace(self.next_version(now=now), epochs=(*self.epochs, epoch))

    def promote(self, key_id: bytes, *, now: int) -> Keyset:
        """Return the next version, with this epoch as primary and the old primary readable.

        Raises
        ------
        ValueError
            When the epoch is unknown or destroyed.
        """
        target = self.epoch(key_id)
        if target is None or target.state == "destroyed":
            raise ValueError(f"epoch {key_id.hex()} cannot become primary")
        states = {"primary": "readable"}
        epochs = tuple(
            replace(e, state="primary" if e.id == key_id else states.get(e.state, e.state)) for e in self.epochs
        )
        return replace(self.next_version(now=now), epochs=epochs)

    def destroy(self, key_id: bytes, *, now: int) -> Keyset:
        """Return the next version, without the key of this epoch.

        Raises
        ------
        ValueError
            When the epoch is unknown or primary.
        """
        target = self.epoch(key_id)
        if target is None or target.state == "primary":
            raise ValueError(f"epoch {key_id.hex()} cannot be destroyed")
        epochs = tuple(replace(e, state="destroyed", key=None) if e.id == key_id else e for e in self.epochs)
        return replace(self.next_version(now=now), epochs=epochs)

    def draft(self, recipients: Sequence[Recipient] = ()) -> Draft:
        """Return the body of this version under a fresh KSK, to be wrapped by every KEK."""
        ksk = Secret(os.urandom(KEY))

        def encrypted(key: Secret, key_id: bytes, purpose: str) -> str:
            return canonical.to_base64(seal_message(ksk, _key_context(self.store_id, key_id, purpose), key))

        epochs = []
        for epoch in self.epochs:
            entry = {"created": epoch.created, "id": epoch.id.hex(), "state": epoch.state}
            if epoch.key is not None:
                entry["key"] = encrypted(epoch.key, epoch.id, "epoch")
            epochs.append(entry)
        seals = [
            {"recipient": r.id.hex(), "seal": canonical.to_base64(r.seal(ksk, self.store_id))}
            for r in sorted(recipients, key=lambda r: r.id)
        ]
        names_key = encrypted(self.names_key, self.names_id, "names")
        body = canonical.dump(
            {
                "format": 1,
                "store_id": self.store_id.hex(),
                "version": self.version,
                "created": self.created,
                "names": {"id": self.names_id.hex(), "key": names_key, "mode": self.names_mode},
                "auth": {"id": self.auth_id.hex(), "key": encrypted(self.auth_key, self.auth_id, "auth")},
                "epochs": epochs,
                "recovery": seals,
            }
        )
        return Draft(self, body, ksk)


@dataclass(frozen=True)
class Draft:
    """A keyset whose KSK still has to be wrapped.

    Parameters
    ----------
    keyset : Keyset
        What it holds.
    body : bytes
        Canonical JSON.
    ksk : Secret
        32 bytes; wrap it with `context` under every KEK.
    """

    keyset: Keyset
    body: bytes
    ksk: Secret

    @property
    def context(self) -> bytes:
        """What every wrap of the KSK binds, 32 bytes."""
        return wrap_context(self.keyset.store_id, self.body)

    def finish(self, wraps: Mapping[str, bytes]) -> bytes:
        """Return the bytes of ``keyset.json``.

        Parameters
        ----------
        wraps : mapping of str to bytes
            KEK URI to wrapped KSK, 1 to 16 of them.

        Raises
        ------
        ValueError
            When the result would not be a keyset that a reader accepts.
        """
        entries = [{"kek": uri, "wrapped": canonical.to_base64(wraps[uri])} for uri in sorted(wraps)]
        tag = _tag(self.keyset.auth_key, self.keyset.store_id, self.body, canonical.dump(entries))
        raw = canonical.dump({"body": self.body.decode(), "tag": canonical.to_base64(tag), "wraps": entries})
        try:
            parse(raw)
        except FormatError as exc:
            raise ValueError(f"the keyset would not be readable: {exc.message}") from exc
        return raw


def wrap_context(store_id: bytes, body: bytes) -> bytes:
    """Return the 32 bytes that a wrap of the KSK binds: the store and every byte of the body."""
    return hashlib.sha256(b"sovstore/1 keyset\x00" + store_id + body).digest()


def _key_context(store_id: bytes, key_id: bytes, purpose: str) -> bytes:
    return b"sovstore/1 key\x00" + store_id + key_id + purpose.encode()


def _tag(auth_key: Secret, store_id: bytes, body: bytes, wraps: bytes) -> bytes:
    tag_key = hkdf_expand(auth_key, b"sovstore/1 tag\x00" + store_id, _TAG)
    return hmac.digest(tag_key, body + b"\x00" + wraps, "sha512")


@dataclass(frozen=True)
class _SealedEpoch:
    id: bytes
    state: str
    created: int
    sealed: bytes | None


@dataclass(frozen=True)
class ParsedKeyset:
    """A keyset of good form. Nothing in it may be believed before `unlock` returns.

    Parameters
    ----------
    store_id, version, created, names_mode
        As in `Keyset`; claims of the host.
    wraps : mapping of str to bytes
        KEK URI to wrapped KSK.
    seals : mapping of bytes to bytes
        Recipient id (16 bytes) to seal.
    """

    store_id: bytes
    version: int
    created: int
    names_mode: str
    wraps: Mapping[str, bytes]
    seals: Mapping[bytes, bytes]
    body: bytes
    _tag: bytes
    _wraps_json: bytes
    _names: tuple[bytes, bytes]
    _auth: tuple[bytes, bytes]
    _epochs: tuple[_SealedEpoch, ...]

    def context(self, store_id: bytes) -> bytes:
        """Return what the wraps must bind for the store of the caller's configuration.

        Raises
        ------
        IntegrityError
            When this is the keyset of another store.
        """
        self._check_store(store_id)
        return wrap_context(store_id, self.body)

    def _check_store(self, store_id: bytes) -> None:
        if store_id != self.store_id:
            raise IntegrityError(
                f"keyset: it is the keyset of store {self.store_id.hex()}, not of {store_id.hex()}",
                path=_WHAT,
                hint="check 'root' and 'store_id' in the configuration; the host may have swapped two stores",
            )

    def unlock(self, ksk: Secret, store_id: bytes, *, auth_fingerprint: str | None = None) -> Keyset:
        """Return the keyset, authenticated.

        Parameters
        ----------
        ksk : Secret
            The 32 bytes that a KEK unwrapped with `context(store_id)`, or that a recovery key unsealed.
        store_id : bytes
            16 bytes, from the caller's configuration.
        auth_fingerprint : str, optional
            Required when the KSK comes from a recovery key: HPKE does not say who sealed.

        Raises
        ------
        IntegrityError
            When any key, the tag, the store or the fingerprint is not the right one.
        """
        self._check_store(store_id)
        if len(ksk) != KEY:
            raise IntegrityError("keyset: failed authentication", path=_WHAT)

        def opened(key_id: bytes, sealed: bytes, purpose: str) -> Secret:
            return open_message(ksk, _key_context(store_id, key_id, purpose), sealed, what=_WHAT)

        keyset = Keyset(
            store_id=store_id,
            version=self.version,
            created=self.created,
            names_mode=self.names_mode,
            names_id=self._names[0],
            names_key=opened(*self._names, "names"),
            auth_id=self._auth[0],
            auth_key=opened(*self._auth, "auth"),
            epochs=tuple(
                Epoch(e.id, e.state, e.created, None if e.sealed is None else opened(e.id, e.sealed, "epoch"))
                for e in self._epochs
            ),
        )
        if auth_fingerprint is not None and not hmac.compare_digest(keyset.auth_fingerprint, auth_fingerprint):
            raise IntegrityError("keyset: its auth key is not the one that was pinned", path=_WHAT)
        expected = _tag(keyset.auth_key, store_id, self.body, self._wraps_json)
        if not hmac.compare_digest(expected, self._tag):
            raise IntegrityError("keyset: failed authentication", path=_WHAT)
        return keyset


def parse(raw: bytes) -> ParsedKeyset:
    """Return the parts of a ``keyset.json``.

    Raises
    ------
    FormatError
        When it is not byte for byte what the specification says.
    """
    file = canonical.Fields(canonical.load(raw, limit=MAX_FILE, what=_WHAT), "body tag wraps", what=_WHAT)
    body = file.text("body").encode()
    wraps = _parse_wraps(file.array("wraps", 1))
    members = canonical.Fields(
        canonical.load(body, limit=MAX_BODY, what=_WHAT),
        "format store_id version created names auth epochs recovery",
        what=_WHAT,
    )
    if members.integer("format", 0, MAX_VERSION) != 1:
        raise FormatError(
            f"keyset: unknown format {members['format']}", path=_WHAT, hint="a newer sovstore may read it"
        )
    names = canonical.Fields(members["names"], "id key mode", what=_WHAT)
    auth = canonical.Fields(members["auth"], "id key", what=_WHAT)
    parsed = ParsedKeyset(
        store_id=members.identifier("store_id"),
        version=members.integer("version", 1, MAX_VERSION),
        created=members.integer("created", 0, MAX_VERSION),
        names_mode=names.choice("mode", "encrypted", "plain"),
        wraps=wraps,
        seals=_parse_seals(members.array("recovery")),
        body=body,
        _tag=file.base64("tag", _TAG, _TAG),
        _wraps_json=canonical.dump(file["wraps"]),
        _names=(names.identifier("id"), names.base64("key", NAME_KEY + _SEALED, NAME_KEY + _SEALED)),
        _auth=(auth.identifier("id"), auth.base64("key", KEY + _SEALED, KEY + _SEALED)),
        _epochs=_parse_epochs(members.array("epochs", 1)),
    )
    ids = [parsed._names[0], parsed._auth[0], *(epoch.id for epoch in parsed._epochs)]
    if len(set(ids)) != len(ids):
        raise FormatError("keyset: a key id occurs twice", path=_WHAT)
    return parsed


def _parse_wraps(entries: list[object]) -> dict[str, bytes]:
    if len(entries) > MAX_WRAPS:
        raise FormatError(f"keyset: more than {MAX_WRAPS} wraps", path=_WHAT)
    fields = [canonical.Fields(entry, "kek wrapped", what=_WHAT) for entry in entries]
    if not all(f.text("kek").isascii() and f.text("kek").isprintable() for f in fields):
        raise FormatError("keyset: a KEK URI is not printable ASCII", path=_WHAT)
    wraps = {f.text("kek"): f.base64("wrapped", 1, MAX_WRAPPED) for f in fields}
    _ascending([f.text("kek") for f in fields], "wraps")
    return wraps


def _parse_seals(entries: list[object]) -> dict[bytes, bytes]:
    fields = [canonical.Fields(entry, "recipient seal", what=_WHAT) for entry in entries]
    _ascending([f.text("recipient") for f in fields], "recovery")
    return {f.identifier("recipient"): f.base64("seal", 1, MAX_BODY) for f in fields}


def _ascending(values: list[str], member: str) -> None:
    if any(a >= b for a, b in pairwise(values)):
        raise FormatError(f"keyset: {member} is not in ascending order", path=_WHAT)


def _parse_epochs(entries: list[object]) -> tuple[_SealedEpoch, ...]:
    epochs = []
    for entry in entries:
        destroyed = isinstance(entry, dict) and entry.get("state") == "destroyed"
        fields = canonical.Fields(entry, "created id state" if destroyed else "created id key state", what=_WHAT)
        epochs.append(
            _SealedEpoch(
                id=fields.identifier("id"),
                state=fields.choice("state", "primary", "readable", "destroyed"),
                created=fields.integer("created", 0, MAX_VERSION),
                sealed=None if destroyed else fields.base64("key", KEY + _SEALED, KEY + _SEALED),
            )
        )
    if [epoch.state for epoch in epochs].count("primary") != 1:
        raise FormatError("keyset: exactly one epoch must be primary", path=_WHAT)
    return tuple(epochs)

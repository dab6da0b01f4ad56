"""The opened keyset of one store, held in memory for a limited time: after it the KMS is asked again."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from sovstore import keyset_changes, keysets
from sovstore.backends.base import Backend
from sovstore.config import StoreConfig
from sovstore.errors import (
    FormatError,
    IntegrityError,
    KeyDeniedError,
    KMSError,
    KMSUnavailableError,
    NoMatchingKeyError,
    SovstoreError,
)
from sovstore.format.keyset import Keyset, parse
from sovstore.format.names import Names
from sovstore.format.recovery import RecoveryKey
from sovstore.keyset_changes import Change
from sovstore.keysets import Keks
from sovstore.kms.base import Access

_log = logging.getLogger("sovstore")


#: Seconds after which bytes that were no keyset are looked at again.
_REJECTED_S = 60.0


def _now() -> float:
    """Return seconds of a clock that nobody sets and that counts while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class Keys:
    """A keyset as it was opened.

    Parameters
    ----------
    keyset : Keyset
        Authenticated.
    names : Names
        The coder of its names.
    raw : bytes
        As the host sent it.
    opened_s : float
        When the KMS was asked, as `_now` counts.
    read_only : bool
        Whether only a KEK that is kept for older keysets opens it.
    """

    keyset: Keyset
    names: Names
    raw: bytes
    opened_s: float
    read_only: bool


class HeldKeys:
    """The keys of one store and its KEKs. Usable from several threads and event loops, and after a fork.

    Parameters
    ----------
    config : StoreConfig
        Says how long they may be used.
    access : Access
        How KEKs are reached.
    recovery_key : RecoveryKey or None
        Opens it instead of a KEK.
    """

    def __init__(self, config: StoreConfig, access: Access, recovery_key: RecoveryKey | None) -> None:
        self.recovery_key = recovery_key
        self._config = config
        self._keks = Keks(config, access)
        self._keys: Keys | None = None
        #: What the host last showed that was no keyset of ours, and when: it must not cost a call to the KMS each time.
        self._rejected: tuple[bytes, float, SovstoreError] | None = None
        #: How often the KMS did not answer, and what was said of it last.
        self._silences, self._silence = 0, KMSUnavailableError()

    async def get(self, backend: Backend, lock: asyncio.Lock, *, reload: bool = False) -> Keys:
        """Return the keys; `lock` keeps two tasks of a loop from asking the KMS at once.

        Raises
        ------
        ObjectNotFoundError, FormatError, IntegrityError, KMSError, PolicyError, ConfigError
            As `sovstore.keysets.unlock` and `fetch`.
        """
        known, silences = self._keys, self._silences
        if known is not None and not reload and not self._is_old(known):
            return known
        async with lock:
            # Another task may have opened it meanwhile, or have waited for a KMS that does not answer: each of many
            # would wait for as long again.
            if self._keys is not known and self._keys is not None:
                return self._keys
            if self._silences != silences:
                return self._bridged(self._silence)
            self._keys = await self._open_again(backend)
            return self._keys

    def are_young(self) -> bool:
        """Return whether `get` would return at once."""
        return self._keys is not None and not self._is_old(self._keys)

    async def _open_again(self, backend: Backend) -> Keys:
        known, began = self._keys, _now()
        if known is not None and not self._is_old(known):
            # Headers with made-up key ids must not cost a call to the KMS each.
            shown = await keysets.fetch(backend, self._config)
            if known.raw == shown:
                return known
            if self._rejected is not None and self._rejected[0] == shown and began < self._rejected[1] + _REJECTED_S:
                raise self._rejected[2]
            try:
                return await self._ask(backend, known, began)
            except (IntegrityError, FormatError, NoMatchingKeyError) as exc:
                self._rejected = shown, began, exc
                raise
        return await self._ask(backend, known, began)

    async def _ask(self, backend: Backend, known: Keys | None, began: float) -> Keys:
        try:
            keyset, raw = await keysets.fetch_opened(backend, self._config, self._unlock)
        except KMSUnavailableError as exc:
            self._silences, self._silence = self._silences + 1, exc
            return self._bridged(exc)
        except (KMSError, IntegrityError) as exc:
            # What was refused is not bridged when the KMS is silent later: whoever was refused could see to that. While
            # the keys are young, anything else may be the host's doing.
            if isinstance(exc, KeyDeniedError) or known is None or self._is_old(known):
                self._keys = None
            raise
        return Keys(keyset, keyset.names(), raw, began, read_only=self._keks.is_old(parse(raw).wraps))

    def _bridged(self, error: KMSUnavailableError) -> Keys:
        """Return the keys that were known, where their time is over and somebody said that silence is bridged."""
        known, now = self._keys, _now()
        # Where it is not over, another keyset was asked for, and this one is no answer.
        if (
            known is None
            or not self._is_old(known)
            or now > known.opened_s + self._config.cache_s + self._config.grace_s
        ):
            raise KMSUnavailableError(
                error.message, path=error.path, hint=error.hint, provider=error.provider, request_id=error.request_id
            ) from error
        _log.warning("%s: its keys are used beyond their time: %s", self._config.name, error.message)
        return known

    def _is_old(self, keys: Keys) -> bool:
        # A recovery key is no service that could be asked again.
        return self.recovery_key is None and _now() > keys.opened_s + self._config.cache_s

    def _unlock(self, raw: bytes) -> Keyset:
        if self.recovery_key is not None:
            return keysets.unlock_with_recovery(raw, self._config, self.recovery_key)
        return keysets.unlock(raw, self._config, self._keks)

    async def change(self, backend: Backend, config: StoreConfig, change: Change, *, make: str | None = None) -> Keyset:
        """Change the keyset, as `sovstore.keyset_changes.make`; the new one is opened when it is next needed."""
        keks = self._keks if config == self._config else Keks(config, self._keks.access)
        if make is not None:
            await asyncio.to_thread(keks.open, make, make=True)
        keyset = await keyset_changes.make(backend, config, keks, change)
        self._config, self._keks, self._keys = config, keks, None
        return keyset

    def close(self) -> None:
        """Forget the keys, and close the connections to the KMS."""
        self._keys = None
        self._keks.close()

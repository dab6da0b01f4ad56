"""How a token of OpenBao or Vault is had, kept and renewed.

A token that the configuration refers to is used as it is, and looked up again when it is refused: an agent may have
replaced it. A token from a login is renewed before its lease ends, where it can be, and else had by a new login.
"""

from __future__ import annotations

import hmac
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sovstore.errors import ConfigError, KMSError, KMSUnavailableError
from sovstore.kms import uri as key_uri
from sovstore.kms.service import Errors
from sovstore.kms.settings import Service
from sovstore.secret import Secret

if TYPE_CHECKING:
    from sovstore.kms.openbao_wire import Call, Outcome

METHODS = ("token", "approle", "cert", "jwt")
#: What each method needs of [kms.NAME].
_NEEDS = {"token": (), "approle": ("role_id", "secret_id"), "cert": ("cert_file",), "jwt": ("role", "jwt")}
#: Variables that the service's own tools read.
_VARIABLES = ("BAO_TOKEN", "VAULT_TOKEN")
#: The part of a lease after which it is renewed: the rest is for clocks, queues and retries.
_DUE = 2 / 3
_LONGEST_TOKEN = 2**14
_LONGEST_LEASE_S = 2**40


@dataclass(frozen=True)
class _Held:
    """A token and its lease, by the monotonic clock; without one it does not end, as far as is known."""

    token: Secret
    due: float = math.inf
    ends: float = math.inf
    #: Seconds that the login gave.
    full_s: float = 0
    renewable: bool = False


class Login:
    """The token of one KEK's service. Usable from several threads, and after a fork.

    Parameters
    ----------
    service : Service
        Says how to log in.
    errors : Errors
        Makes the errors.
    call : callable
        Returns the service for a token and a deadline.

    Raises
    ------
    ConfigError
        When a setting that the method needs is not there, or what it refers to.
    """

    def __init__(self, service: Service, errors: Errors, call: Callable[[Secret | None, float], Call]) -> None:
        self._service, self._errors, self._call = service, errors, call
        self._method = service.auth or "token"
        self._mount = service.auth_mount or self._method
        self._held: _Held | None = None
        self._check()
        self._lock, self._pid = threading.Lock(), os.getpid()

    def token(self, end: float) -> tuple[Secret, bool]:
        """Return a token, and whether it is new; logs in or renews when it must.

        Parameters
        ----------
        end : float
            When the monotonic clock says so, there is no more time.

        Raises
        ------
        KMSError
            When the service refuses or does not answer.
        """
        with self._locked(end):
            held, now = self._held, time.monotonic()
            if held is not None and now < held.due:
                return held.token, False
            renewed = self._renewed(held, end) if held is not None and held.renewable and now < held.ends else None
            self._held = renewed or self._logged_in(end)
            return self._held.token, renewed is None

    def another(self, refused: Secret, end: float) -> Secret | None:
        """Return another token than one that was refused; None when there is no other."""
        with self._locked(end):
            if self._held is None or self._held.token is refused:
                self._held = self._replaced(refused) if self._method == "token" else self._logged_in(end)
            return None if self._held.token is refused else self._held.token

    @contextmanager
    def _locked(self, end: float) -> Iterator[None]:
        if self._pid != os.getpid():
            # Another thread of the parent may have held the lock at the fork.
            self._lock, self._pid = threading.Lock(), os.getpid()
        lock = self._lock
        if not lock.acquire(timeout=max(end - time.monotonic(), 0)):
            raise self._errors.out_of_time(self._service.timeout_s)
        try:
            yield
        finally:
            lock.release()

    def _check(self) -> None:
        if self._method not in METHODS:
            raise self._wrong("'auth' is of no known kind", f"known: {', '.join(METHODS)}")
        if not all(key_uri.NAME.fullmatch(part) and ".." not in part for part in self._mount.split("/")):
            raise self._wrong("'auth_mount' is not the path of a mount", 'write it as in auth_mount = "ci/jwt"')
        for setting in _NEEDS[self._method]:
            if getattr(self._service, setting) is None:
                hint = f"auth = {self._method!r} needs {' and '.join(map(repr, _NEEDS[self._method]))} in [kms.NAME]"
                raise self._wrong(f"{setting!r} is missing", hint)
        if self._method == "cert" and self._service.plain_http:
            raise self._wrong("a login by certificate needs TLS", "take 'plain_http' out of [kms.NAME]")
        if self._method == "token":
            self._held = _Held(self._secret("token"))
        elif self._method != "cert":
            self._secret({"approle": "secret_id", "jwt": "jwt"}[self._method])

    def _wrong(self, what: str, hint: str) -> ConfigError:
        return ConfigError(f"{self._errors.uri}: {what}", path=self._errors.uri, hint=hint)

    def _secret(self, setting: str) -> Secret:
        """Return what a setting refers to, looked up now: tokens and secret ids are replaced while we run."""
        found = self._service.secret(setting, *(_VARIABLES if setting == "token" else ()))
        if found is None:
            hint = (
                "set 'token' in [kms.NAME] to env:VARIABLE, file:/path or keyring://SERVICE/NAME, or export BAO_TOKEN"
            )
            raise self._wrong("no token to show", f"{hint}; or log in: auth = 'approle', 'cert' or 'jwt'")
        if not found.reveal().isascii():
            # Checked, not tried: the error of a header that cannot be encoded would carry it.
            raise self._wrong(f"what {setting!r} refers to is not ASCII", "correct it")
        return found

    def _replaced(self, refused: Secret) -> _Held:
        """Return the token that the setting refers to by now; the same one when there is no other."""
        try:
            found = self._secret("token")
        except ConfigError:
            # That the service refused the token is what there is to say.
            return _Held(refused)
        return _Held(refused if hmac.compare_digest(found.reveal(), refused.reveal()) else found)

    def _logged_in(self, end: float) -> _Held:
        held = self._granted(self._log_in(self._call(None, end)))
        if held is None:
            raise self._errors.denied("did not accept the login", self._hint())
        return held

    def _log_in(self, call: Call) -> Outcome:
        service = self._service
        if self._method == "approle":
            return call.log_in_by_approle(self._mount, service.role_id or "", self._secret("secret_id"))
        if self._method == "jwt":
            return call.log_in_by_jwt(self._mount, service.role or "", self._secret("jwt"))
        return call.log_in_by_certificate(self._mount, service.role)

    def _renewed(self, held: _Held, end: float) -> _Held | None:
        """Return a token with a longer lease; None when a login is due: it cannot be renewed, or hardly any more."""
        outcome = self._call(held.token, end).renew()
        if isinstance(outcome, KMSUnavailableError):
            # OpenBao says 500 to who asks too late (seen in 2.7.2). Where it is away indeed, the login will say so.
            return None
        renewed = self._granted(outcome)
        # At its greatest age the last lease is cut short, and each one after it would be shorter.
        if renewed is None or renewed.full_s < held.full_s / 2:
            return None
        return replace(renewed, full_s=held.full_s)

    def _granted(self, outcome: Outcome) -> _Held | None:
        """Return the token of an answer; None when it was refused."""
        if isinstance(outcome, KMSError):
            raise outcome
        if outcome.status != 200:
            return None
        grant: Any = outcome.member("auth")
        if not isinstance(grant, dict):
            raise self._errors.garbled(outcome.request_id)
        token, lease_s, now = _token(grant.get("client_token")), grant.get("lease_duration"), time.monotonic()
        if token is None or type(lease_s) is not int or not 0 <= lease_s <= _LONGEST_LEASE_S:
            # Not in a local variable of a traceback.
            del grant
            raise self._errors.garbled(outcome.request_id)
        if lease_s == 0:
            return _Held(token)
        return _Held(token, now + lease_s * _DUE, now + lease_s, lease_s, grant.get("renewable") is True)

    def _hint(self) -> str:
        settings = {
            "approle": "'role_id' and 'secret_id' of [kms.NAME]: a secret id may have expired or been used up",
            "cert": "'cert_file' and 'role' of [kms.NAME]: the certificate may have expired or not be of the role",
            "jwt": "'jwt' and 'role' of [kms.NAME]: the token may have expired or not be of the role",
        }[self._method]
        return f"check {settings}; that the method is mounted at auth/{self._mount}, in the namespace of the key URI"


def _token(value: object) -> Secret | None:
    good = isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) <= _LONGEST_TOKEN
    return Secret(str(value).encode()) if good else None

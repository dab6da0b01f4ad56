"""One secret key of a PKCS#11 token: how it is found, what it must be, and how it is used again after a loss.

Raises the errors of python-pkcs11 and those of `sovstore.kms.service.Errors`; `sovstore.kms.pkcs11` maps the former.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sovstore.errors import ConfigError, KMSError, SovstoreError
from sovstore.kms import pkcs11_module
from sovstore.kms.pkcs11_module import Login, Module, same
from sovstore.kms.pkcs11_uri import KeyName
from sovstore.kms.service import Errors
from sovstore.secret import Secret

T = TypeVar("T")
_log = logging.getLogger("sovstore")
#: Names of the attributes that a KEK must have, with why. One that the token does not tell counts as another value.
_MUST: Mapping[str, tuple[bool, str]] = {
    "PRIVATE": (True, "it can be used without the PIN (CKA_PRIVATE)"),
    "SENSITIVE": (True, "it can be read in the clear (CKA_SENSITIVE)"),
    "ALWAYS_SENSITIVE": (True, "it has not always been sensitive (CKA_ALWAYS_SENSITIVE)"),
    "EXTRACTABLE": (False, "it can be taken out of the token (CKA_EXTRACTABLE)"),
    "NEVER_EXTRACTABLE": (True, "it could once be taken out of the token (CKA_NEVER_EXTRACTABLE)"),
}
#: Of what a KEK should rather not have it is only warned, since some tools can make no other. A key that wraps and
#: decrypts reads any extractable key of the token, and one that unwraps and encrypts plants known keys there (Clulow,
#: CHES 2003, 2.2). That does not harm what sovstore wraps; it harms the token's other keys.
_SHOULD_NOT = ("WRAP", "UNWRAP")
_KEK_BYTES = 32


@dataclass(frozen=True)
class Found:
    """The key, as it was found with one login.

    Parameters
    ----------
    key : object
        Of python-pkcs11.
    login : Login
        What it is used with.
    token : object
        Of python-pkcs11.
    encrypts, decrypts : bool
        What the token lets it do.
    """

    key: Any
    login: Login
    token: Any
    encrypts: bool
    decrypts: bool


class TokenKey:
    """One key of one token. Usable from several threads, and after a fork.

    Parameters
    ----------
    name : KeyName
        Which.
    path : str
        Absolute path of the library.
    pin : Secret
        Of the token's user, not of its security officer.
    errors : Errors
        Makes the errors.
    timeout_s : float
        Seconds for one call.
    hsm : bool
        Refuse a token that is no hardware.
    """

    def __init__(self, name: KeyName, path: str, pin: Secret, errors: Errors, *, timeout_s: float, hsm: bool) -> None:
        self._name, self._path, self._pin, self._errors = name, path, pin, errors
        self._timeout_s, self._hsm = timeout_s, hsm
        self._found: Found | None = None
        self._ticket = object()
        # A key that nobody closes is logged out too, when it is gone.
        weakref.finalize(self, _give_back, path, self._ticket).atexit = False

    def use(self, work: Callable[[Found], T]) -> T:
        """Return what `work` returns, given the key. Once more with a new login, if the one there was is lost.

        Raises
        ------
        KMSUnavailableError
            When there is no answer in time.
        """
        module = pkcs11_module.module_at(self._path)
        try:
            return module.run(lambda: self._attempt(module, work), self._timeout_s)
        except TimeoutError as exc:
            raise self._errors.out_of_time(self._timeout_s) from exc

    def close(self) -> None:
        """Log out, unless another key of this process is logged in with the same token."""
        module = pkcs11_module.loaded(self._path)
        if module is not None and module.logins:
            # When it takes too long, somebody else's call is under way; the login ends with the process.
            with contextlib.suppress(TimeoutError):
                module.run(lambda: module.leave(self._ticket), self._timeout_s)

    def _attempt(self, module: Module, work: Callable[[Found], T]) -> T:
        from pkcs11 import PKCS11Error

        try:
            return work(self._current(module))
        except PKCS11Error as exc:
            if type(exc) not in _lost():
                raise
        if self._found is not None:
            module.drop(self._found.token.slot.slot_id, self._found.login)
            self._found = None
        # What an HSM's library needs after it lost the network; nothing where somebody else is logged in through it.
        module.restart()
        return work(self._current(module))

    def _current(self, module: Module) -> Found:
        found = self._found
        # A handle is a small number that another key has after a restart: it is used with its own login only.
        if found is None or module.logins.get(found.token.slot.slot_id) is not found.login:
            self._found = None
            found = self._found = self._find(module)
        # Again, after `close` or for a login that another key of this process opened.
        found.login.users.add(self._ticket)
        return found

    def _find(self, module: Module) -> Found:
        from pkcs11 import PKCS11Error

        token = self._token(module)
        login = self._logged_in(module, token)
        try:
            return self._checked(token, login, self._key(login.session))
        except PKCS11Error:
            module.drop(token.slot.slot_id, login)
            raise
        except SovstoreError:
            module.leave(self._ticket)
            raise

    def _token(self, module: Module) -> Any:
        found, error = self._tokens(module)
        # Some libraries look for tokens when they start, and never again.
        if not found and module.restart():
            found, error = self._tokens(module)
        if len(found) > 1:
            hint = "add 'serial' to the URI"
            raise ConfigError(f"{self._errors.uri}: several tokens match", path=self._errors.uri, hint=hint)
        if found:
            return found[0]
        # The libraries of network HSMs do not list a token that they cannot reach, so that this may pass.
        hint = "check the token's name in the URI, that it is plugged in or reached, and its library's own settings"
        raise self._errors.unavailable("is not there", hint) from error

    def _tokens(self, module: Module) -> tuple[list[Any], Exception | None]:
        tokens, error = module.tokens()
        return [token for token in tokens if self._is_named(token)], error

    def _is_named(self, token: Any) -> bool:
        serial = token.serial.rstrip(b"\0 ").decode(errors="replace")
        said = (token.label, serial, token.manufacturer_id, token.model)
        name = self._name
        named = (name.token, name.serial, name.manufacturer, name.model)
        return all(wanted in (None, given) for wanted, given in zip(named, said, strict=True))

    def _logged_in(self, module: Module, token: Any) -> Login:
        slot_id, identity = token.slot.slot_id, token.serial + b"\0" + token.label.encode()
        login = module.logins.get(slot_id)
        if login is not None and not _is_alive(login):
            module.drop(slot_id, login)
            login = None
        if login is None:
            if module.refused_before(identity, self._pin):
                raise self._wrong_pin()
            login = Login(self._open(module, token, identity), self._pin)
            module.logins[slot_id] = login
        elif not same(login.pin, self._pin):
            # A token does not compare PINs while it is logged in, so any would do.
            hint = "correct 'pin' of [kms.NAME]; if the PIN was changed, start this process again"
            raise self._errors.denied("is open in this process with another PIN", hint)
        login.users.add(self._ticket)
        return login

    def _open(self, module: Module, token: Any, identity: bytes) -> Any:
        import pkcs11

        try:
            return token.open(user_pin=self._pin.reveal().decode())
        except pkcs11.UserAlreadyLoggedIn:
            # By somebody else in this process: a login is for all of it. Without a PIN, closing does not log them out.
            return token.open()
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as exc:
            # Never tried again in this process: a token locks after a few.
            module.wrong.append((identity, self._pin))
            raise self._wrong_pin() from exc

    def _wrong_pin(self) -> KMSError:
        """Return the error for a PIN that the token refused."""
        hint = "correct 'pin' of [kms.NAME], then start this process again: it is not tried twice, since tokens lock"
        return self._errors.denied("refused the PIN", hint)

    def _key(self, session: Any) -> Any:
        from pkcs11 import Attribute, ObjectClass

        wanted = {Attribute.TOKEN: True, **self._template()}
        keys = _objects(session, {**wanted, Attribute.CLASS: ObjectClass.SECRET_KEY})
        if len(keys) > 1:
            hint = "add 'id' to the URI, or give each key a label of its own"
            raise ConfigError(f"{self._errors.uri}: several keys match", path=self._errors.uri, hint=hint)
        if not keys:
            if _objects(session, wanted):
                raise self._errors.unsuitable("it is no secret key, and with a public key anyone could make a keyset")
            raise self._errors.missing("check 'object' and 'id' in the URI, and that this user of the token sees it")
        return keys[0]

    def _template(self) -> dict[Any, Any]:
        from pkcs11 import Attribute

        named = {Attribute.LABEL: self._name.object, Attribute.ID: self._name.id}
        return {attribute: value for attribute, value in named.items() if value is not None}

    def _checked(self, token: Any, login: Login, key: Any) -> Found:
        from pkcs11 import Attribute, KeyType, Mechanism

        if _read(key, Attribute.KEY_TYPE) != KeyType.AES:
            raise self._errors.unsuitable("it is no AES key")
        if _read(key, Attribute.VALUE_LEN) not in (None, _KEK_BYTES):
            raise self._errors.unsuitable("it is shorter than 256 bits")
        for attribute, (value, why) in _MUST.items():
            if _read(key, Attribute[attribute]) is not value:
                raise self._errors.unsuitable(why)
        if any(_read(key, Attribute[attribute]) is True for attribute in _SHOULD_NOT):
            _log.warning(
                "%s: the key may wrap other keys of its token; make one for encryption alone", self._errors.uri
            )
        if Mechanism.AES_GCM not in token.slot.get_mechanisms():
            raise self._errors.unsuitable("its token has no AES-GCM (CKM_AES_GCM)")
        if self._hsm and not is_hardware(token):
            raise self._errors.unsuitable("'protection_level' is hsm, and its token says that it is software")
        # As python-pkcs11 read them: it gives a key the methods that its attributes allow.
        return Found(key, login, token, encrypts=hasattr(key, "encrypt"), decrypts=hasattr(key, "decrypt"))

    def confirm(self, found: Found) -> None:
        """Raise what `use` takes for a loss, unless the key still answers to its name."""
        import pkcs11

        for attribute, value in self._template().items():
            if _read(found.key, attribute) != value:
                raise pkcs11.ObjectHandleInvalid


def is_hardware(token: Any) -> bool:
    """Return whether a token says that it is hardware (``CKF_HW_SLOT``; PKCS#11 2.40, 3.2)."""
    from pkcs11 import SlotFlag

    return bool(token.slot.flags & SlotFlag.HW_SLOT)


def _lost() -> tuple[type[Exception], ...]:
    """Return the errors after which the key is looked for again."""
    import pkcs11

    return (
        # Itself, and not what derives from it: among others, that the library was not initialised.
        pkcs11.PKCS11Error,
        pkcs11.DeviceError,
        pkcs11.DeviceRemoved,
        pkcs11.KeyHandleInvalid,
        pkcs11.ObjectHandleInvalid,
        # A call that failed did not end its operation, and a session has one at a time.
        pkcs11.OperationActive,
        pkcs11.SessionClosed,
        pkcs11.SessionHandleInvalid,
        pkcs11.SlotIDInvalid,
        pkcs11.TokenNotPresent,
        pkcs11.UserNotLoggedIn,
    )


def _is_alive(login: Login) -> bool:
    """Return whether a session that another key opened is there still."""
    from pkcs11 import PKCS11Error

    try:
        # The cheapest call that needs the session. A search in a session that is gone would leave an object of
        # python-pkcs11 that complains on standard error.
        login.session.generate_random(64)
    except PKCS11Error as exc:
        return type(exc) not in _lost()
    return True


def _objects(session: Any, template: Mapping[Any, Any]) -> list[Any]:
    """Return the objects that match, two at most."""
    with contextlib.closing(session.get_objects(template)) as found:
        try:
            return list(itertools.islice(found, 2))
        except ValueError:
            # Of a class that python-pkcs11 does not know, so no secret key.
            return [None]


def _read(key: Any, attribute: Any) -> Any:
    """Return an attribute; None where the token does not tell it, or not as the standard says."""
    import pkcs11

    try:
        return key[attribute]
    except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, pkcs11.FunctionFailed, ValueError):
        return None


def _give_back(path: str, ticket: object) -> None:
    module = pkcs11_module.loaded(path)
    if module is not None:
        module.give_back(ticket)

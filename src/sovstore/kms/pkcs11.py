"""``pkcs11:token=…;object=…``: a KEK in an HSM (Eviden Proteccio, Thales Luna) or any other PKCS#11 token.

Wraps by CKM_AES_GCM, with the context as AAD where the token takes it. Keeps what the token returned: one that makes
its own IV, as Luna in FIPS mode, appends it. Does not implement CKM_AES_KEY_WRAP, which would need an extractable
object in the token for each wrap.

A wrapped secret is a byte that says how it was made, then ``IV (12) ‖ ciphertext ‖ tag (16)`` or, where the token made
the IV, ``ciphertext ‖ tag (16) ‖ IV (16)``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from sovstore.errors import ConfigError, KeyDeniedError, KMSError
from sovstore.kms.base import CONTEXT, Access, WrappingKey
from sovstore.kms.pkcs11_module import Module, module
from sovstore.kms.pkcs11_uri import PKCS11URI, parse
from sovstore.kms.service import Errors, missing_extra
from sovstore.kms.settings import Service
from sovstore.secret import Secret

if TYPE_CHECKING:
    import pkcs11

T = TypeVar("T")
_IV, _OWN_IV, _TAG = 12, 16, 16
#: How a wrap was made: whether the token took AAD, and whose the IV is.
_WITH_AAD, _WITHOUT_AAD, _OWN_IV_WITH_AAD, _OWN_IV_WITHOUT_AAD = 1, 2, 3, 4
_LEAST, _MOST = 48, 96
#: Names of PKCS#11's return values, as python-pkcs11 calls their classes.
_PIN = frozenset(("PinIncorrect", "PinInvalid", "PinLenRange"))
_LOCKED = frozenset(("PinLocked", "PinExpired", "UserPinNotInitialized"))
_GONE = frozenset(("TokenNotPresent", "TokenNotRecognised", "SlotIDInvalid", "NoSuchToken"))
_LOST = frozenset(("SessionHandleInvalid", "SessionClosed", "DeviceRemoved", "UserNotLoggedIn", "KeyHandleInvalid"))
#: What tokens answer to a ciphertext that does not authenticate; SoftHSM says CKR_GENERAL_ERROR.
_NOT_AUTHENTIC = frozenset(
    ("EncryptedDataInvalid", "EncryptedDataLenRange", "GeneralError", "DataInvalid", "DataLenRange", "FunctionFailed")
)
#: What tokens answer to AAD that they do not take.
_NO_AAD = frozenset(("MechanismParamInvalid", "ArgumentsBad", "FunctionRejected", "FunctionNotSupported"))
_log = logging.getLogger("sovstore")


def label(uri: str) -> str:
    """Return the part of a key URI that names the key, in its one spelling: all that a host may see of it."""
    return parse(uri).label


def open_key(uri: str, access: Access) -> PKCS11Key:
    """Return the KEK at `uri`; asks nothing of the token.

    Raises
    ------
    ConfigError
        When the URI or a setting is wrong, or no module or PIN can be had.
    MissingDependencyError
        When python-pkcs11 is not installed.
    """
    named = parse(uri)
    service = access.service(uri)
    try:
        import pkcs11  # noqa: F401  # whether it is there
    except ImportError as exc:
        raise missing_extra(named.label, "python-pkcs11", "pkcs11") from exc
    path = named.module or service.module
    if path is None or not os.path.isabs(path):
        hint = "set 'module' in [kms.NAME] to the library of the token: /usr/lib/softhsm/libsofthsm2.so"
        raise ConfigError(f"{named.label}: no module of the token", path=named.label, hint=hint)
    return PKCS11Key(named, service, path, _pin(named, service, access))


def _pin(named: PKCS11URI, service: Service, access: Access) -> Secret:
    if named.pin_file is not None and service.pin is None:
        service = Service(pin=f"file:{named.pin_file}")
    pin = service.secret("pin")
    if pin is None and access.passphrase is not None:
        pin = Secret(access.passphrase(f"PIN of {named.token or named.serial}: ").encode())
    if pin is None or not len(pin):
        hint = 'set \'pin\' in [kms.NAME] to where it is: "file:/path" or "keyring://SERVICE/NAME"'
        raise ConfigError(f"{named.label}: no PIN", path=named.label, hint=hint)
    return pin


class PKCS11Key(WrappingKey):
    """A secret key in a token.

    Parameters
    ----------
    named : PKCS11URI
        Which.
    service : Service
        How long a call may take, and what was declared.
    path : str
        The library.
    pin : Secret
        Of the user.
    """

    provider = "pkcs11"

    def __init__(self, named: PKCS11URI, service: Service, path: str, pin: Secret) -> None:
        self._named, self._service, self._path, self._pin = named, service, path, pin
        self._errors = Errors(named.label, self.provider, "the token")
        self._wrong_pin = False
        self._takes_aad = True
        self._lock = threading.Lock()
        self._forget()

    @property
    def uri(self) -> str:
        """The key URI, without what only says how this machine reaches the token."""
        return self._named.label

    def describe(self) -> Mapping[str, str]:
        """Return what the token says of the key."""
        return self._ask(lambda key: {**self._level(key), "algorithm": f"AES-{8 * _value(key, 'VALUE_LEN')}"})

    def close(self) -> None:
        """Close the session."""
        session = self._session
        self._forget()
        if session is not None:
            try:
                module(self._path).call(lambda _library: session.close(), self._service.timeout_s)
            except (TimeoutError, RuntimeError):
                # It was lost already; python-pkcs11's errors are RuntimeErrors.
                return

    def _forget(self) -> None:
        self._session: Any = None
        self._key: pkcs11.SecretKey | None = None
        self._pid = os.getpid()

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        return self._ask(lambda key: self._sealed(key, payload, aad))

    def _sealed(self, key: Any, payload: bytes, aad: bytes) -> bytes:
        iv = os.urandom(_IV)
        made = b""
        if self._takes_aad:
            try:
                made = bytes(key.encrypt(payload, **_gcm(iv, aad)))
            except RuntimeError as exc:
                if type(exc).__name__ not in _NO_AAD:
                    raise
                # The context is in the payload too, so nothing is lost but the token's own check of it.
                self._takes_aad = False
        if not self._takes_aad:
            made = bytes(key.encrypt(payload, **_gcm(iv, None)))
        extra = len(made) - len(payload) - _TAG
        if extra == 0:
            return bytes([_WITH_AAD if self._takes_aad else _WITHOUT_AAD]) + iv + made
        if extra == _OWN_IV:
            # The token ignored our IV, made its own and appended it (Luna in FIPS mode).
            return bytes([_OWN_IV_WITH_AAD if self._takes_aad else _OWN_IV_WITHOUT_AAD]) + made
        raise self._errors.garbled()

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        form = wrapped[0] if wrapped else 0
        own = form in (_OWN_IV_WITH_AAD, _OWN_IV_WITHOUT_AAD)
        length = len(wrapped) - 1 - _TAG - (_OWN_IV if own else _IV)
        if not _WITH_AAD <= form <= _OWN_IV_WITHOUT_AAD or not _LEAST <= length <= _MOST or len(aad) != CONTEXT:
            raise self.refused()
        body = wrapped[1:]
        iv, sealed = (body[-_OWN_IV:], body[:-_OWN_IV]) if own else (body[:_IV], body[_IV:])
        bound = aad if form in (_WITH_AAD, _OWN_IV_WITH_AAD) else None
        return self._ask(lambda key: bytes(key.decrypt(sealed, **_gcm(iv, bound))), decrypting=True)

    # The token

    def _ask(self, work: Callable[[Any], T], *, decrypting: bool = False) -> T:
        """Return what some work with the key returns; a session that was lost is opened again, once."""
        with self._lock_of_process():
            for last in (False, True):
                opened = self._session is not None
                try:
                    return self._library().call(lambda library: work(self._opened(library)), self._service.timeout_s)
                except TimeoutError as exc:
                    raise self._errors.out_of_time(self._service.timeout_s) from exc
                except RuntimeError as exc:
                    lost = type(exc).__name__ in _LOST
                    if lost:
                        self._forget()
                    if not lost or last or not opened:
                        raise self._mapped(exc, decrypting=decrypting) from exc
        raise AssertionError("the second try returns or raises")

    def _lock_of_process(self) -> threading.Lock:
        if self._pid != os.getpid():
            # Sessions of the parent are not ours, and another thread of it may have held the lock.
            self._lock = threading.Lock()
            self._forget()
        return self._lock

    def _library(self) -> Module:
        if self._wrong_pin:
            raise self._pin_refused()
        return module(self._path)

    def _opened(self, library: Any) -> Any:
        if self._key is None:
            session = self._open_session(library)
            try:
                key = self._find(session)
                self._check(key)
            except BaseException:
                session.close()
                raise
            self._session, self._key = session, key
        return self._key

    def _open_session(self, library: Any) -> Any:
        wanted = {"label": self._named.token, "manufacturer_id": self._named.manufacturer, "model": self._named.model}
        serial = self._named.serial
        tokens = [
            token
            for token in library.get_tokens()
            if all(value is None or getattr(token, name).strip() == value for name, value in wanted.items())
            and (serial is None or token.serial.decode("utf-8", "replace").strip() == serial)
        ]
        if len(tokens) != 1:
            raise self._absent() if not tokens else self._ambiguous("tokens")
        try:
            return tokens[0].open(user_pin=self._pin.reveal().decode())
        except RuntimeError as exc:
            # The login is of the process and the token, not of a session (PKCS#11 v3.1, 5.6).
            if type(exc).__name__ != "UserAlreadyLoggedIn":
                raise
            return tokens[0].open()

    def _find(self, session: Any) -> Any:
        from pkcs11 import Attribute, ObjectClass

        wanted: dict[Any, Any] = {Attribute.CLASS: ObjectClass.SECRET_KEY}
        if self._named.object is not None:
            wanted[Attribute.LABEL] = self._named.object
        if self._named.id is not None:
            wanted[Attribute.ID] = self._named.id
        found = list(session.get_objects(wanted))
        if not found:
            hint = "check the label or id: 'pkcs11-tool --login --list-objects --type secrkey' shows them"
            raise self._errors.missing(hint)
        if len(found) > 1:
            raise self._ambiguous("keys")
        return found[0]

    def _check(self, key: Any) -> None:
        """Refuse a key that is no AES key, or that could ever have left the token."""
        from pkcs11 import KeyType

        if key.key_type != KeyType.AES:
            raise self._errors.unsuitable("it is not an AES key")
        for name in ("SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"):
            if _value(key, name) is not True:
                raise self._errors.unsuitable(f"CKA_{name} is not true: it could have been read")
        if _value(key, "EXTRACTABLE") is not False:
            raise self._errors.unsuitable("CKA_EXTRACTABLE is not false: it could be read")
        if not (_value(key, "ENCRYPT") is True and _value(key, "DECRYPT") is True):
            raise self._errors.unsuitable("CKA_ENCRYPT and CKA_DECRYPT are not both true")
        if _value(key, "WRAP") is True or _value(key, "UNWRAP") is True:
            # A key that both wraps keys and decrypts data lays open every other key that it may wrap (Clulow 2003).
            _log.warning("%s: the key may wrap other keys of the token too; make one for encryption alone", self.uri)
        if self._service.protection_level == "hsm" and self._level(key)["protection_level"] != "hsm":
            raise self._errors.unsuitable("[kms.NAME] says protection_level = 'hsm', and the token is in software")

    def _level(self, key: Any) -> dict[str, str]:
        from pkcs11 import SlotFlag

        hardware = bool(key.session.token.slot.flags & SlotFlag.HW_SLOT)
        return {"protection_level": "hsm" if hardware else "software"}

    # Errors

    def _absent(self) -> KMSError:
        hint = "check that the HSM is connected and its client is configured; any other KEK opens the store meanwhile"
        return self._errors.unavailable("is not there", hint)

    def _ambiguous(self, what: str) -> ConfigError:
        hint = "name it more closely: serial=… for a token, id=%… for a key"
        return ConfigError(f"{self.uri}: more than one of the {what} has that name", path=self.uri, hint=hint)

    def _pin_refused(self) -> KeyDeniedError:
        # Not asked for again by this object: after a few wrong ones a token locks itself.
        hint = (
            "correct what 'pin' of [kms.NAME] refers to; the token locks after a few wrong ones, so it was tried once"
        )
        return self._errors.denied("does not accept the PIN", hint)

    def _mapped(self, exc: RuntimeError, *, decrypting: bool) -> KMSError | ConfigError:
        name = type(exc).__name__
        if name in _PIN:
            self._wrong_pin = True
            return self._pin_refused()
        if name in _LOCKED:
            self._wrong_pin = True
            return self._errors.denied("has locked its PIN", "its security officer sets a new one")
        if name in _GONE or name in _LOST:
            return self._absent()
        if name == "PKCS11Error":
            hint = "check 'module' of [kms.NAME], and that it is built for this system"
            return ConfigError(f"{self.uri}: {self._path} cannot be loaded", path=self.uri, hint=hint)
        if decrypting and name in _NOT_AUTHENTIC:
            return self.refused()
        if name == "MechanismInvalid":
            return self._errors.unsuitable("the token does not offer CKM_AES_GCM for it")
        if name in ("KeyTypeInconsistent", "FunctionRejected", "FunctionNotPermitted"):
            return self._errors.denied(
                "does not let the key be used so", "check its attributes and the partition's policy"
            )
        return self._errors.failed(f"answered CKR {name}", "see the log of its client, then ask its operator")


def _gcm(iv: bytes, aad: bytes | None) -> dict[str, Any]:
    from pkcs11 import GCMParams, Mechanism

    parameters = GCMParams(iv[:_IV], aad, 8 * _TAG)
    # Its check of the length knows nothing of IVs that a token made.
    parameters.nonce = iv
    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": parameters}


def _value(key: Any, name: str) -> Any:  # attributes have several types
    from pkcs11 import Attribute

    try:
        return key[getattr(Attribute, name)]
    except RuntimeError as exc:
        if type(exc).__name__ in ("AttributeTypeInvalid", "AttributeSensitive"):
            return None
        raise

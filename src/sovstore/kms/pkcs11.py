"""``pkcs11:token=…;object=…``: a KEK in an HSM or another token behind a PKCS#11 library (RFC 7512).

Implements AES-GCM with an AES-256 key that never leaves the token. Does not implement AES-KW and KWP: for these the
secret would have to become an extractable object of the token, which many HSMs refuse to be given in the clear, and
the KEK would have to be allowed to wrap any key. Does not make keys.

What is stored is one byte that says the form, then the IV and the ciphertext with its tag of 16 bytes; where the token
chose the IV itself (Thales Luna in FIPS mode), the IV of 16 bytes stands at the end, as the token gives it.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sovstore.errors import ConfigError, KMSError, UnwrapError
from sovstore.kms import pkcs11_module
from sovstore.kms.base import Access, WrappingKey
from sovstore.kms.pkcs11_token import Found, TokenKey, is_hardware
from sovstore.kms.pkcs11_uri import KeyURI, parse
from sovstore.kms.service import Errors, missing_extra
from sovstore.kms.settings import LEVELS, Service
from sovstore.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAG = 16
#: Bytes of an IV: ours, and one that a token made (Thales Luna 7, CKM_AES_GCM, "If the HSM is in FIPS mode").
_IV, _OWN_IV = 12, 16
#: Bytes of a payload.
_LEAST, _MOST = 48, 96


@dataclass(frozen=True)
class Form:
    """A way to use AES-GCM that some tokens need.

    Parameters
    ----------
    mark : bytes
        The first byte of what is stored.
    own_iv : bool
        The token makes the IV and appends it.
    aad : bool
        The token takes AAD.
    """

    mark: bytes
    own_iv: bool
    aad: bool

    @property
    def extra(self) -> int:
        """Bytes that are stored besides those of the payload."""
        return len(self.mark) + _TAG + (_OWN_IV if self.own_iv else _IV)


#: In the order in which a wrap tries them. The context is part of the payload too, so that no form is without it.
FORMS = (
    Form(b"\x01", own_iv=False, aad=True),
    Form(b"\x02", own_iv=True, aad=True),
    Form(b"\x03", own_iv=False, aad=False),
    Form(b"\x04", own_iv=True, aad=False),
)


def label(uri: str) -> str:
    """Return the part of a key URI that names the key, in its one spelling: all that a host may see of it."""
    return parse(uri).key.uri


def open_key(uri: str, access: Access) -> PKCS11Key:
    """Return the KEK that a token holds. Asks the token nothing yet.

    Raises
    ------
    ConfigError
        When the URI is malformed, its library cannot be loaded, or there is no PIN.
    MissingDependencyError
        When python-pkcs11 is not installed.
    """
    parsed = parse(uri)
    try:
        import pkcs11
    except ImportError as exc:
        raise missing_extra(parsed.key.uri, "python-pkcs11", "pkcs11") from exc
    service = access.service(parsed.key.uri)
    service = service if service.uri else access.service(uri)
    path = parsed.module or service.module
    if path is None:
        hint = "set 'module' of [kms.NAME] to the library of the token, or add ?module-path=/path to the URI"
        raise ConfigError(f"{parsed.key.uri}: no library is named", path=parsed.key.uri, hint=hint)
    try:
        pkcs11_module.module_at(path)
    except pkcs11.PKCS11Error as exc:
        hint = f"check that {path} is a PKCS#11 library for this machine, and what it needs"
        raise ConfigError(f"{parsed.key.uri}: its library cannot be loaded", path=path, hint=hint) from exc
    return PKCS11Key(parsed, service, path, _pin(parsed, service, access))


def _pin(parsed: KeyURI, service: Service, access: Access) -> Secret:
    if service.pin is None and parsed.pin_file is not None:
        service = replace(service, pin=f"file:{parsed.pin_file}")
    if (pin := service.secret("pin")) is not None:
        return pin
    uri = parsed.key.uri
    if access.passphrase is None:
        hint = 'set pin = "env:VARIABLE", "file:/path" or "keyring://SERVICE/NAME" in [kms.NAME]'
        raise ConfigError(f"{uri}: needs a PIN and there is no terminal to ask on", path=uri, hint=hint)
    return _typed(uri, access.passphrase(f"PIN of {uri}: "))


def _typed(uri: str, pin: str) -> Secret:
    # Checked, not tried: the error of `encode` would carry the PIN.
    if not pin or not pin.isprintable():
        raise ConfigError(f"{uri}: the PIN is empty or cannot be printed", path=uri, hint="type it again")
    return Secret(pin.encode())


class PKCS11Key(WrappingKey):
    """A KEK in a PKCS#11 token.

    Parameters
    ----------
    parsed : KeyURI
        What is to be opened.
    service : Service
        How it is reached.
    path : str
        Absolute path of its library.
    pin : Secret
        Of the token's user.
    """

    provider = "pkcs11"

    def __init__(self, parsed: KeyURI, service: Service, path: str, pin: Secret) -> None:
        self._uri = parsed.key.uri
        self._errors = Errors(self._uri, self.provider, "the token")
        self._key = TokenKey(
            parsed.key,
            path,
            pin,
            self._errors,
            timeout_s=service.timeout_s,
            hsm=service.protection_level == "hsm",
        )

    @property
    def uri(self) -> str:
        """The canonical URI, without its query."""
        return self._uri

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        with self._mapped():
            return self._key.use(lambda found: self._wrapped(found, payload, aad))

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        form = next((form for form in FORMS if wrapped[:1] == form.mark), None)
        if form is None or not _LEAST <= len(wrapped) - form.extra <= _MOST:
            raise self.refused()
        with self._mapped():
            return self._key.use(lambda found: self._unwrapped(found, form, wrapped, aad))

    def describe(self) -> Mapping[str, str]:
        """Return what the token says of the key."""
        with self._mapped():
            return self._key.use(_description)

    def close(self) -> None:
        """Log out, unless another key of this process uses the same token."""
        self._key.close()

    def _wrapped(self, found: Found, payload: bytes, aad: bytes) -> bytes:
        from pkcs11 import ArgumentsBad, FunctionNotSupported, MechanismParamInvalid

        if not found.encrypts:
            raise self._errors.denied("does not let this key encrypt", "make a key with CKA_ENCRYPT; docs/kms says how")
        self._key.confirm(found)
        for form in FORMS:
            try:
                wrapped = _encrypted(found.key, form, payload, aad)
            except (ArgumentsBad, FunctionNotSupported, MechanismParamInvalid):
                continue
            if wrapped is not None and self._opens(found, *wrapped, payload, aad):
                return wrapped[1]
        hint = "ask its vendor for CKM_AES_GCM with an IV of 12 bytes and a tag of 16, and report it to sovstore"
        raise self._errors.failed("does not do AES-GCM in any way that is known here", hint)

    def _opens(self, found: Found, form: Form, wrapped: bytes, payload: bytes, aad: bytes) -> bool:
        """Return whether a wrap opens: a token with an IV of its own kind would make what nothing ever opens."""
        try:
            return not found.decrypts or hmac.compare_digest(self._unwrapped(found, form, wrapped, aad), payload)
        except UnwrapError:
            return False

    def _unwrapped(self, found: Found, form: Form, wrapped: bytes, aad: bytes) -> bytes:
        from pkcs11 import PKCS11Error

        if not found.decrypts:
            raise self._errors.denied("does not let this key decrypt", "make a key with CKA_DECRYPT; docs/kms says how")
        try:
            payload = _decrypted(found.key, form, wrapped, aad)
        except PKCS11Error as exc:
            if not _says_refused(exc):
                raise
            # A token that lost the key may say the same as for a wrong tag. If it did, the key is looked for again.
            self._key.confirm(found)
            raise self.refused() from exc
        if len(payload) != len(wrapped) - form.extra:
            raise self._errors.garbled()
        return payload

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Give the errors of python-pkcs11 as ours. Their texts are left out, but for the name of the class."""
        import pkcs11

        try:
            yield
        except pkcs11.PKCS11Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: Exception) -> KMSError:
        import pkcs11

        errors = self._errors
        if isinstance(exc, pkcs11.PinLocked):
            hint = "its security officer sets the PIN anew; find out first who sent it wrong ones"
            return errors.denied("has locked its PIN", hint)
        if isinstance(exc, pkcs11.PinExpired | pkcs11.UserPinNotInitialized):
            return errors.denied("wants a PIN to be set first", "set it with the HSM's own tool, then 'pin'")
        if isinstance(exc, pkcs11.AnotherUserAlreadyLoggedIn | pkcs11.UserTooManyTypes | pkcs11.UserNotLoggedIn):
            return errors.denied("is used by another user in this process", "use it in a process of its own")
        if isinstance(exc, pkcs11.MechanismInvalid | pkcs11.KeyTypeInconsistent | pkcs11.KeySizeRange):
            hint = "use a token and a key that do AES-GCM (CKM_AES_GCM) for encryption"
            return errors.failed("does not do AES-GCM with this key", hint)
        name = type(exc).__name__
        hint = "try again; if it stays, ask the HSM's operator; any other KEK of the store opens it meanwhile"
        if isinstance(exc, _away()):
            return errors.unavailable(f"or its library does not work now ({name})", hint)
        return errors.failed(f"refused the call ({name})", "ask the HSM's operator what that means with this token")


def _away() -> tuple[type[Exception], ...]:
    """Return the errors of a device, a connection or a machine that may be well again."""
    import pkcs11

    return (
        pkcs11.DeviceError,
        pkcs11.DeviceMemory,
        pkcs11.DeviceRemoved,
        pkcs11.FunctionCancelled,
        pkcs11.FunctionFailed,
        pkcs11.GeneralError,
        pkcs11.HostMemory,
        pkcs11.KeyHandleInvalid,
        pkcs11.ObjectHandleInvalid,
        pkcs11.OperationActive,
        pkcs11.SessionClosed,
        pkcs11.SessionCount,
        pkcs11.SessionHandleInvalid,
        pkcs11.SlotIDInvalid,
        pkcs11.TokenNotPresent,
        pkcs11.TokenNotRecognised,
    )


def _says_refused(exc: Exception) -> bool:
    """Return whether an error of C_Decrypt may mean a wrong tag, for which PKCS#11 2.40 has no code of its own."""
    import pkcs11

    # SoftHSM says GeneralError. What python-pkcs11 has no class for comes as PKCS11Error itself, such as the codes
    # of vendors and CKR_AEAD_DECRYPT_FAILED.
    return type(exc) is pkcs11.PKCS11Error or isinstance(
        exc,
        pkcs11.ArgumentsBad
        | pkcs11.DataInvalid
        | pkcs11.DataLenRange
        | pkcs11.EncryptedDataInvalid
        | pkcs11.EncryptedDataLenRange
        | pkcs11.FunctionFailed
        | pkcs11.FunctionRejected
        | pkcs11.GeneralError
        | pkcs11.MechanismParamInvalid
        | pkcs11.SignatureInvalid
        | pkcs11.SignatureLenRange,
    )


def _encrypted(key: Any, form: Form, payload: bytes, aad: bytes) -> tuple[Form, bytes] | None:
    """Return what is stored and the form it has in fact; None when the token's answer is none that is known."""
    params = _parameters(b"" if form.own_iv else os.urandom(_IV), aad if form.aad else None)
    made = key.encrypt(payload, mechanism_param=params, **_gcm())
    if len(made) == len(payload) + _TAG and not form.own_iv:
        # What the token was given after the call: some write their own IV there.
        return form, form.mark + params.nonce + made
    if len(made) == len(payload) + _TAG + _OWN_IV:
        own = next(other for other in FORMS if other.own_iv and other.aad == form.aad)
        return own, own.mark + made
    return None


def _decrypted(key: Any, form: Form, wrapped: bytes, aad: bytes) -> bytes:
    body = wrapped[len(form.mark) :]
    iv, sealed = (body[-_OWN_IV:], body[:-_OWN_IV]) if form.own_iv else (body[:_IV], body[_IV:])
    payload: bytes = key.decrypt(sealed, mechanism_param=_parameters(iv, aad if form.aad else None), **_gcm())
    return payload


def _parameters(iv: bytes, aad: bytes | None) -> Any:
    from pkcs11 import GCMParams

    params = GCMParams(b"", aad, _TAG * 8)
    # Not through the constructor, which takes 12 bytes at most.
    params.nonce = iv
    return params


def _gcm() -> dict[str, Any]:
    from pkcs11 import Mechanism

    return {"mechanism": Mechanism.AES_GCM}


def _description(found: Found) -> dict[str, str]:
    state = "enabled" if found.decrypts else "disabled"
    return {"protection_level": LEVELS[is_hardware(found.token)], "algorithm": "AES-256-GCM", "state": state}

"""URI scheme to driver. Nothing is imported before a URI asks for it, and nothing is ever guessed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from sovstore.errors import ConfigError, PolicyError
from sovstore.kms.base import Access, WrappingKey

#: Scheme to module; the one table of the library.
_DRIVERS = {
    "openbao": "sovstore.kms.openbao",
    "vault": "sovstore.kms.openbao",
    "pkcs11": "sovstore.kms.pkcs11",
    "kmip": "sovstore.kms.kmip",
    "okms": "sovstore.kms.okms",
    "scw-kms": "sovstore.kms.scaleway",
    "eviden-kms": "sovstore.kms.eviden",
    "keyring": "sovstore.kms.keyring",
    "keyfile": "sovstore.kms.keyfile",
}
#: KEKs under the law that the product exists to escape: recognised only to be refused.
_REFUSED = ("awskms", "aws-kms", "arn", "gcpkms", "gcp-kms", "azurekeyvault")


def is_refused(scheme: str) -> bool:
    """Return whether no policy allows key URIs of a scheme."""
    return scheme.lower() in _REFUSED


def refusal(uri: str) -> PolicyError | None:
    """Return the error for a key URI whose scheme no policy allows; None for any other.

    Raises
    ------
    ConfigError
        When the scheme is unknown.
    """
    scheme, colon, _ = uri.partition(":")
    if is_refused(scheme):
        return PolicyError(
            f"{scheme}: the key would be held by a company under US law, which can be ordered to use it",
            path=scheme,
            hint="hold the KEK in a KMS or HSM of your own jurisdiction",
        )
    if not colon or scheme not in _DRIVERS:
        # The URI itself is not quoted: what somebody mistook for a URI may be a key.
        known = ", ".join(f"{name}:" for name in _DRIVERS)
        raise ConfigError("kek: not a key URI of a known scheme", path="kek", hint=f"known schemes: {known}")
    return None


def _driver(uri: str) -> ModuleType:
    if (refused := refusal(uri)) is not None:
        raise refused
    return import_module(_DRIVERS[uri.partition(":")[0]])


def open_key(uri: str, access: Access) -> WrappingKey:
    """Return the KEK that a key URI names.

    Raises
    ------
    ConfigError
        When the scheme is unknown or the URI malformed.
    PolicyError
        When the scheme is one that no policy allows.
    KMSError
        As the driver says.
    """
    key: WrappingKey = _driver(uri).open_key(uri, access)
    key.trail = access.trail
    return key


def label(uri: str) -> str:
    """Return what a KEK is called in a keyset: its URI, without what only says how this machine reaches it.

    Raises
    ------
    ConfigError, PolicyError
        As `open_key`.
    """
    driver = _driver(uri)
    return str(driver.label(uri)) if hasattr(driver, "label") else uri


def create_key(uri: str, access: Access) -> WrappingKey:
    """Make a new KEK where the driver can, and return it.

    Raises
    ------
    ConfigError
        When it exists already, or keys of this service are made by its administrator.
    """
    driver = _driver(uri)
    if not hasattr(driver, "create_key"):
        raise ConfigError(
            f"{uri}: keys are made in the service itself", path=uri, hint="make it there, then run this again"
        )
    key: WrappingKey = driver.create_key(uri, access)
    key.trail = access.trail
    return key


def key_exists(uri: str) -> bool:
    """Return whether a KEK that `create_key` could make is there already; True where it makes none."""
    driver = _driver(uri)
    return not hasattr(driver, "key_exists") or bool(driver.key_exists(uri))

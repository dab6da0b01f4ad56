"""``pkcs11:token=…;object=…``: RFC 7512, as far as it names one secret key and how its module is reached.

Implements the path attributes token, serial, manufacturer, model, object, id and type, and the query attributes
module-path and pin-source. Does not implement the attributes of a library or slot, nor ``pin-value``, which would put
the PIN into the URI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from sovstore.errors import ConfigError

_SCHEME = "pkcs11:"
_EXAMPLE = "pkcs11:token=hospital;object=cohortes-2026"
#: In the order of a canonical URI.
_PATH = ("token", "serial", "manufacturer", "model", "object", "id", "type")
_QUERY = ("module-path", "pin-source")
#: RFC 7512, 2.3: pk11-pchar and pk11-qchar, an escape taken for one.
_VALUE = re.compile(r"(?:[A-Za-z0-9._~:\[\]@!$'()*+,=&/-]|%[0-9A-Fa-f]{2})+")
#: Characters that a canonical URI has unescaped, besides letters, digits and ``_.-~``.
_PLAIN = ":@!$()*+,="


@dataclass(frozen=True)
class PKCS11URI:
    """A key of a token, and what the URI says of how it is reached.

    Parameters
    ----------
    token, serial, manufacturer, model : str or None
        Of the token, without the blanks at their ends.
    object : str or None
        CKA_LABEL of the key.
    id : bytes or None
        CKA_ID of the key.
    module : str or None
        The library.
    pin_file : str or None
        The file that holds the PIN.
    """

    token: str | None
    serial: str | None
    manufacturer: str | None
    model: str | None
    object: str | None
    id: bytes | None
    module: str | None = None
    pin_file: str | None = None

    @property
    def label(self) -> str:
        """The URI that names the key and nothing of this machine, in one spelling."""
        values: dict[str, str | bytes | None] = {name: getattr(self, name) for name in _PATH[:-1]}
        parts = [f"{name}={_escaped(value)}" for name, value in values.items() if value is not None]
        return _SCHEME + ";".join(parts)


def _escaped(value: str | bytes) -> str:
    # RFC 7512, 2.3: the bytes of an id are all escaped.
    return "".join(f"%{byte:02X}" for byte in value) if isinstance(value, bytes) else quote(value, safe=_PLAIN)


def parse(uri: str) -> PKCS11URI:
    """Return what a URI names.

    Raises
    ------
    ConfigError
        When it is no such URI, or names more than one key could be. Never quotes it: it may hold a PIN.
    """
    path, mark, query = uri.removeprefix(_SCHEME).partition("?")
    if not uri.startswith(_SCHEME) or "#" in uri or (mark and not query):
        raise _wrong("not a pkcs11: URI")
    named = _attributes(path, ";", _PATH)
    reached = _attributes(query, "&", _QUERY) if mark else {}
    if named.pop("type", b"secret-key") != b"secret-key":
        raise _wrong("the type of a KEK is secret-key")
    texts = {name: _text(value) for name, value in named.items() if name != "id"}
    if not ("token" in texts or "serial" in texts):
        raise _wrong("no token or serial")
    if not ("object" in texts or "id" in named):
        raise _wrong("no object or id")
    pin = _text(reached.get("pin-source", b"file:/"))
    if not pin.startswith("file:/"):
        raise _wrong("pin-source is not file:/…")
    return PKCS11URI(
        **{name: texts.get(name) for name in _PATH[:5]},
        id=named.get("id"),
        module=_text(reached["module-path"]) if "module-path" in reached else None,
        pin_file=pin.removeprefix("file:") if "pin-source" in reached else None,
    )


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for attribute in text.split(separator):
        name, equals, value = attribute.partition("=")
        if name == "pin-value":
            raise _wrong("the PIN must not stand in the URI")
        if name not in known or not equals or not _VALUE.fullmatch(value):
            raise _wrong("an attribute is unknown, empty or not escaped")
        if name in found:
            raise _wrong("an attribute occurs twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    if not text.strip() or not text.isprintable():
        raise _wrong("an attribute is not printable UTF-8")
    return text


def _wrong(why: str) -> ConfigError:
    hint = f"write {_EXAMPLE}; module and PIN belong into [kms.NAME]"
    return ConfigError(f"kek: not a key of a PKCS#11 token: {why}", path="kek", hint=hint)

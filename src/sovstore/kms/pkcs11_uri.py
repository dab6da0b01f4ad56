"""Key URIs of PKCS#11 tokens (RFC 7512): ``pkcs11:token=…;object=…``.

Implements the attributes that name a token and a secret key, ``module-path`` and ``pin-source=file:``. Does not
implement ``pin-value`` (a PIN in a URI is a PIN in every log), ``slot-id`` (the library numbers its slots anew each
time it starts) and what names the library by other means than its path.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from sovstore.errors import ConfigError

EXAMPLE = "pkcs11:token=sovstore;object=kek-2026"
#: Attributes of a token and of a key, in the order of a canonical URI: what names the token comes first.
_TOKEN = ("token", "serial", "manufacturer", "model")
_KEY = ("object", "id")
_PATH = (*_TOKEN, *_KEY, "type")
_QUERY = ("module-path", "pin-source")
#: RFC 7512, 2.3: what stands for itself in a value, besides letters and digits.
_PATH_SAFE = "-._~:[]@!$'()*+,=&"
_QUERY_SAFE = "-._~:[]@!$'()*+,=/?|"
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")


@dataclass(frozen=True)
class KeyName:
    """What a URI names: one secret key of one token.

    Parameters
    ----------
    token, serial, manufacturer, model : str or None
        Of the token, as it says itself.
    object : str or None
        Label of the key.
    id : bytes or None
        ``CKA_ID`` of the key.
    """

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    object: str | None = None
    id: bytes | None = None

    @property
    def uri(self) -> str:
        """The canonical URI: all URIs of one name are written alike, and none holds a path of this machine."""
        named = [(name, getattr(self, name)) for name in (*_TOKEN, *_KEY)]
        # RFC 7512, 2.3: every byte of an id is escaped.
        return "pkcs11:" + ";".join(
            f"{name}=" + ("".join(f"%{b:02X}" for b in value) if name == "id" else quote(value, safe=_PATH_SAFE))
            for name, value in named
            if value is not None
        )


@dataclass(frozen=True)
class KeyURI:
    """A URI, taken apart.

    Parameters
    ----------
    key : KeyName
        What it names.
    module : str or None
        Absolute path of the library.
    pin_file : str or None
        Absolute path of the file that holds the PIN.
    """

    key: KeyName
    module: str | None
    pin_file: str | None


def parse(uri: str) -> KeyURI:
    """Return a URI taken apart.

    Raises
    ------
    ConfigError
        When it is anything else. Never quotes the URI, which may hold a PIN.
    """
    path, mark, query = uri.removeprefix("pkcs11:").partition("?")
    values = _pairs(path, ";", _PATH, _PATH_SAFE)
    more = _pairs(query, "&", _QUERY, _QUERY_SAFE) if mark else {}
    if not values.keys() & {"token", "serial"}:
        raise _wrong("it names no token: 'token' or 'serial' is missing")
    if not values.keys() & set(_KEY):
        raise _wrong("it names no key: 'object' or 'id' is missing")
    if values.pop("type", b"secret-key") != b"secret-key":
        raise _wrong("its type is not secret-key: with a public-key KEK anyone could make a keyset")
    key_id = values.pop("id", None)
    return KeyURI(
        KeyName(**{name: _text(name, value) for name, value in values.items()}, id=key_id),
        _text("module-path", more["module-path"], absolute=True) if "module-path" in more else None,
        _file(_text("pin-source", more["pin-source"])) if "pin-source" in more else None,
    )


def _pairs(text: str, border: str, known: Collection[str], safe: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for pair in text.split(border):
        name, equals, value = pair.partition("=")
        if name in ("pin-value", "pin-source") and name not in known:
            raise _wrong("a PIN has no place in it")
        if name not in known:
            # Neither the name nor the value is shown: either may be a PIN.
            raise _wrong(f"it has an attribute that is not known; known here: {', '.join(known)}")
        if name in found:
            raise _wrong(f"it has {name!r} twice")
        found[name] = _decoded(name, value if equals else "", safe)
    return found


def _decoded(name: str, value: str, safe: str) -> bytes:
    plain = _ESCAPED.sub("", value)
    if not value or not all(char.isascii() and (char.isalnum() or char in safe) for char in plain):
        raise _wrong(f"the value of {name!r} is empty, or a character in it is not escaped as %XX")
    return unquote_to_bytes(value)


def _text(name: str, value: bytes, *, absolute: bool = False) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        # Not as its cause, which would carry the value.
        raise _wrong(f"the value of {name!r} is not UTF-8") from None
    if "\0" in text or (absolute and not text.startswith("/")):
        raise _wrong(f"the value of {name!r} is not an absolute path" if absolute else f"{name!r} holds U+0000")
    return text


def _file(source: str) -> str:
    kind, _, path = source.partition(":")
    path = path.removeprefix("//") if path.startswith("///") else path
    if kind != "file" or not path.startswith("/") or path.startswith("//"):
        raise _wrong("its pin-source is not file:/absolute/path")
    return path


def _wrong(why: str) -> ConfigError:
    hint = f'write {EXAMPLE}; the PIN goes into [kms.NAME], as a reference: pin = "env:VARIABLE" or "file:/path"'
    return ConfigError(f"kek: not a pkcs11: URI (RFC 7512): {why}", path="kek", hint=hint)

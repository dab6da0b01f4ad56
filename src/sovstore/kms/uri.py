"""Key URIs that name a host, ``scheme://host:port/segments?query``: how they are taken apart, and what is refused.

A URI is the identity of a key and never holds a secret; what looks like one is refused without quoting it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from sovstore.errors import ConfigError

#: What a name in a path may be: no ``..``, no ``/``, nothing that has to be escaped.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True)
class KeyURI:
    """A key URI, taken apart.

    Parameters
    ----------
    scheme, host : str
        The host without brackets or port.
    port : int or None
        None where the URI has none.
    segments : tuple of str
        Of the path.
    query : mapping
        Parameters, each at most once.
    """

    scheme: str
    host: str
    port: int | None
    segments: tuple[str, ...]
    query: Mapping[str, str]

    @property
    def address(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def parse(uri: str, example: str, *, segments: Collection[int], query: Collection[str] = ()) -> KeyURI:
    """Return a key URI taken apart.

    Parameters
    ----------
    uri : str
        As configured.
    example : str
        A good one, for the hint.
    segments : collection of int
        How many the path may have.
    query : collection of str
        Parameters that it may have.

    Raises
    ------
    ConfigError
        When it is anything else. Quotes the URI only when nothing in it can be a secret.
    """
    scheme = uri.partition(":")[0]
    hint = f"write {example}; credentials belong into [kms.NAME], as references"
    if not uri.isascii() or not uri.isprintable() or " " in uri:
        raise ConfigError("kek: a key URI has only printable ASCII characters", path="kek", hint=hint)
    try:
        parts = urlsplit(uri)
        port, pairs = parts.port, parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as exc:
        raise ConfigError(f"kek: not a {scheme}: URI", path="kek", hint=hint) from exc
    # In a parameter too: it may be the URL of an endpoint.
    if "@" in parts.netloc or any("@" in value for _, value in pairs) or parts.fragment or "#" in uri:
        raise ConfigError(f"kek: a {scheme}: URI holds no user, password or fragment", path="kek", hint=hint)
    if unknown := [name for name, _ in pairs if name not in query]:
        # Its value may be a token or a PIN, and so may its name.
        known = f"known: {', '.join(query)}" if query else "it takes none"
        raise ConfigError(f"kek: unknown parameter of a {scheme}: URI ({len(unknown)}); {known}", path="kek", hint=hint)
    if len({name for name, _ in pairs}) != len(pairs):
        raise ConfigError(f"{uri}: a parameter occurs twice", path=uri, hint=hint)
    names = tuple(parts.path.removeprefix("/").split("/"))
    if not parts.hostname or not _HOST.fullmatch(parts.netloc.removesuffix(f":{port}")):
        raise ConfigError(f"{uri}: not a {scheme}: URI: no host", path=uri, hint=hint)
    if len(names) not in segments or not all(NAME.fullmatch(name) and ".." not in name for name in names):
        raise ConfigError(f"{uri}: not a {scheme}: URI: the part behind the host is wrong", path=uri, hint=hint)
    return KeyURI(scheme, parts.hostname, port, names, dict(pairs))


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def base_url(given: str, *, uri: str) -> str:
    """Return the URL of a service that a key URI or a setting names, checked: TLS, but to this machine.

    Raises
    ------
    ConfigError
        When it is no URL of a host and a path, or would speak HTTP without TLS to another machine.
    """
    try:
        parts = urlsplit(given)
        host = parts.netloc.removesuffix(f":{parts.port}")
        good = parts.scheme in ("https", "http") and _HOST.fullmatch(host) is not None and parts.port != 0
        # What `urlsplit` drops or a request line cannot hold.
        good = good and given.isascii() and given.isprintable() and not set(given) & set(' "#<>?\\^`{|}')
    except ValueError:
        parts, good = urlsplit(""), False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        hint = "write https://HOST or https://HOST:PORT, without user, password or query"
        raise ConfigError("kek: the endpoint of its service is not a URL", path="kek", hint=hint)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        hint = "use https://; TLS can be done without on this machine only"
        raise ConfigError(f"{uri}: its service would be asked without TLS", path=uri, hint=hint)
    return given.removesuffix("/")

"""How the way to a host is protected: TLS version and certificate, by one connection of our own."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import SplitResult, urlsplit

from sovstore.backends.base import Place
from sovstore.check.report import Finding

_TIMEOUT_S = 10
_SOON = timedelta(days=14)
_NAME = "TLS"


async def check_tls(place: Place, endpoint: str) -> Finding:
    """Return whether the way to `endpoint` (a URL) is protected as it should be."""
    url = urlsplit(endpoint)
    if url.scheme != "https":
        return _plain(url)
    trusted = _trusted(place)
    if trusted is False:
        cost = "whoever is on the way can answer in the host's name: set 'ca_file', and do not switch it off"
        return Finding(_NAME, "failed", "the options of the store switch the verification of certificates off", cost)
    try:
        return _certificate(*await asyncio.wait_for(_handshake(url, trusted), 2 * _TIMEOUT_S))
    except ssl.SSLCertVerificationError as exc:
        cost = "set 'ca_file' to the certificates of a private authority"
        return Finding(_NAME, "failed", f"the certificate was not accepted: {exc.verify_message}", cost)
    except ssl.SSLError as exc:
        return Finding(_NAME, "failed", f"no TLS 1.2 or newer: {exc.reason}", "the provider has to switch it on")
    except (OSError, TimeoutError) as exc:
        # A proxy may be the only way out, and the requests then go through it.
        return Finding(_NAME, "unknown", f"no direct connection: {type(exc).__name__}", "look at it from elsewhere")


def _plain(url: SplitResult) -> Finding:
    host = url.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if loopback:
        return Finding(_NAME, "ok", "none, and none needed: the host is this machine")
    cost = "whoever is on the way sees every name and access, and can change requests: write https:// in 'endpoint'"
    return Finding(_NAME, "failed", "plain HTTP", cost)


def _trusted(place: Place) -> Any:  # a file, True or False, as the SDKs take it
    given = place.options.get("client_kwargs", {})
    verify = given.get("verify", True) if isinstance(given, Mapping) else True
    if place.options.get("use_ssl") is False:
        return False
    return place.ca_file if verify is True and place.ca_file else verify


async def _handshake(url: SplitResult, trusted: Any) -> tuple[str, Mapping[str, Any]]:  # as the standard library
    context = ssl.create_default_context(cafile=trusted if isinstance(trusted, str) else None)
    _, writer = await asyncio.open_connection(
        url.hostname, url.port or 443, ssl=context, ssl_handshake_timeout=_TIMEOUT_S, ssl_shutdown_timeout=1
    )
    try:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return connection.version() or "", connection.getpeercert() or {}
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _certificate(version: str, certificate: Mapping[str, Any]) -> Finding:
    began, expires = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate[end]), UTC) for end in ("notBefore", "notAfter")
    )
    detail = f"{version}, certificate valid until {expires:%Y-%m-%d}"
    # There are certificates for six days, renewed in time.
    if expires - datetime.now(UTC) > min(_SOON, (expires - began) / 3):
        return Finding(_NAME, "ok", detail)
    return Finding(_NAME, "missing", detail, "it expires soon; the store is out of reach then unless it is renewed")

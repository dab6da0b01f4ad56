"""Every provider of the catalogue, in each of its regions: the client is made as it would be, and nobody is asked."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from sovstore.backends.base import Place
from sovstore.backends.providers import ANY_ACCOUNT, Provider, catalogue
from sovstore.backends.registry import open_backend
from sovstore.errors import ConfigError

ACCOUNT = "acme"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")


def _regions(provider: Provider) -> list[str | None]:
    """Return the regions with a known endpoint; None where there is none to choose."""
    found: list[str | None] = []
    for region in provider.get("regions") or [None]:
        try:
            provider.endpoint(region, ANY_ACCOUNT, where="test")
        except ConfigError as exc:
            assert "is unknown" in str(exc)  # noqa: PT017
            continue
        found.append(region)
    return found


PLACES = [
    pytest.param(provider, region, id=f"{name}-{region}")
    for name, provider in catalogue().items()
    if provider.driver in ("s3", "azure")
    for region in _regions(provider)
]


@pytest.mark.parametrize(("provider", "region"), PLACES)
@pytest.mark.parametrize("transport", [None, "obstore"])
def test_the_client_is_made(provider: Provider, region: str | None, transport: str | None) -> None:
    own = provider.endpoint(region, ACCOUNT, where="test")
    endpoint = own or "https://s3.example.org"
    place = Place(provider, "bucket/prefix", endpoint=endpoint, region=region, account=ACCOUNT, transport=transport)
    if transport == "obstore" and provider.driver == "s3" and provider.get("signature") != "s3v4":
        with pytest.raises(ConfigError, match="cannot sign"):
            open_backend(place)
        return
    backend = open_backend(place)
    assert backend.conditions >= provider.conditions
    if transport is None:
        made = asyncio.run(_client_url(backend, provider))
        assert urlsplit(made).netloc == urlsplit(endpoint).netloc
        assert made.startswith(endpoint)


async def _client_url(backend: Any, provider: Provider) -> str:
    """Make the SDK's client, check its configuration, and return where it would go."""

    async def make() -> str:
        if provider.driver == "azure":
            return str((await backend._client.open()).url)
        client = await backend.client._fs.set_session()
        config = client.meta.config
        assert config.s3["addressing_style"] == provider.get("addressing")
        assert config.s3["payload_signing_enabled"] == provider.get("signed_payload")
        assert config.signature_version == provider.get("signature")
        assert config.request_checksum_calculation == provider.get("checksums")
        assert backend.sizes.part >= provider.get("part_min")
        assert backend.sizes.parts_max == provider.get("parts_max")
        return str(client.meta.endpoint_url)

    return str(await backend.on_loop(make()))


def test_nothing_was_left_out() -> None:
    tried = {place.values[0].name for place in PLACES}
    assert tried == {name for name, p in catalogue().items() if p.driver in ("s3", "azure")}
    assert len(PLACES) > 30

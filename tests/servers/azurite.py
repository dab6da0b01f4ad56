"""Azurite, the Azure Blob server of the tests, with its data in memory."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.servers.require import missing_parts

_SCRIPT = Path(__file__).parent / "azurite/node_modules/azurite/dist/src/blob/main.js"

# The SDK speaks a newer API version than Azurite knows; what the tests use of it is the same.
_OPTIONS = ("--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck")


@dataclass(frozen=True, slots=True)
class AzuriteServer:
    """A running Azure Blob endpoint with one account."""

    blob_endpoint: str
    account_name: str
    account_key: str = field(repr=False)

    @property
    def connection_string(self) -> str:
        """The connection string of the Azure SDK."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account_name};"
            f"AccountKey={self.account_key};BlobEndpoint={self.blob_endpoint};"
        )

    @property
    def storage_options(self) -> dict[str, str]:
        """The arguments of `adlfs.AzureBlobFileSystem`."""
        return {"connection_string": self.connection_string}

    def create_container(self, name: str) -> str:
        """Create a container (at least three characters) and return its name."""
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.create_container(name).close()
        return name


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    absent = missing_parts(commands=["node"], modules=["adlfs"])
    return absent if _SCRIPT.is_file() else [*absent, "azurite"]


@contextlib.contextmanager
def start() -> Iterator[AzuriteServer]:
    """Run Azurite's blob service on loopback."""
    with process_group("azurite") as group:
        (port,) = free_ports(1)
        account, key = "sovtest", base64.b64encode(secrets.token_bytes(64)).decode()
        group.start(
            "azurite",
            ["node", str(_SCRIPT), *_OPTIONS, "--blobHost", LOOPBACK, "--blobPort", str(port)],
            environment={"AZURITE_ACCOUNTS": f"{account}:{key}"},
        )
        group.wait_until(lambda: accepts_connections(port), what="Azurite accepts connections")
        yield AzuriteServer(f"http://{LOOPBACK}:{port}/{account}", account, key)

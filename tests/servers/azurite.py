"""Azurite, the Azure Blob server of the tests, with its data in memory or on the disk."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tests.servers.ports import LOOPBACK, accepts_connections, free_ports
from tests.servers.process import process_group
from tests.servers.require import missing_parts
from tests.servers.tls import make_certificate

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

_SCRIPT = Path(__file__).parent / "azurite/node_modules/azurite/dist/src/blob/main.js"

# The SDK speaks a newer API version than Azurite knows; what the tests use of it is the same.
_OPTIONS = ("--silent", "--disableTelemetry", "--skipApiVersionCheck")


@dataclass(frozen=True, slots=True)
class AzuriteServer:
    """A running Azure Blob endpoint with one account."""

    blob_endpoint: str
    account_name: str
    account_key: str = field(repr=False)
    #: the authority of an https endpoint, which no system trusts
    ca_file: Path | None = None

    @property
    def port(self) -> int:
        """The port of the endpoint."""
        return urlsplit(self.blob_endpoint).port or 0

    @property
    def connection_string(self) -> str:
        """The connection string of the Azure SDK."""
        scheme = urlsplit(self.blob_endpoint).scheme
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={self.account_name};"
            f"AccountKey={self.account_key};BlobEndpoint={self.blob_endpoint};"
        )

    @property
    def storage_options(self) -> dict[str, str]:
        """The arguments of `adlfs.AzureBlobFileSystem`.

        It takes no authority, and aiohttp reads `SSL_CERT_FILE` when it is imported: over TLS, only in a child process.
        """
        return {"connection_string": self.connection_string}

    def at(self, endpoint_url: str, ca_file: Path | None = None) -> AzuriteServer:
        """Return this server as it is reached at another address, such as a proxy's with its own authority."""
        return replace(self, blob_endpoint=f"{endpoint_url}/{self.account_name}", ca_file=ca_file or self.ca_file)

    def client(self, **options: Any) -> BlobServiceClient:
        """Return a client of the Azure SDK; the caller closes it."""
        from azure.storage.blob import BlobServiceClient

        if self.ca_file is not None:
            options["connection_verify"] = str(self.ca_file)
        return BlobServiceClient.from_connection_string(self.connection_string, **options)

    def create_container(self, name: str) -> str:
        """Create a container (at least three characters) and return its name."""
        from azure.core.exceptions import ResourceExistsError

        # Names are new. On a busy machine the SDK asks twice, and the first time it was made.
        with self.client() as client, contextlib.suppress(ResourceExistsError):
            client.create_container(name).close()
        return name

    def read_target(self, target: str) -> bytes:
        """Return the whole blob that a request target (account, container, name; any query) names."""
        _, container, name = unquote(urlsplit(target).path).removeprefix("/").split("/", 2)
        with self.client() as client, client.get_blob_client(container, name) as blob:
            return blob.download_blob().readall()


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    absent = missing_parts(commands=["node"], modules=["adlfs"])
    return absent if _SCRIPT.is_file() else [*absent, "azurite"]


@contextlib.contextmanager
def start(*, tls: bool = False, on_disk: bool = False) -> Iterator[AzuriteServer]:
    """Run Azurite's blob service on loopback, over plain HTTP or over TLS: a process has only one of them.

    In memory it takes half of the machine's at most, and deleted data counts for minutes: more than a few GB goes on
    the disk.
    """
    with process_group("azurite") as group:
        (port,) = free_ports(1)
        account, key = "sovtest", base64.b64encode(secrets.token_bytes(64)).decode()
        command = ["node", str(_SCRIPT), *_OPTIONS, "--blobHost", LOOPBACK, "--blobPort", str(port)]
        command += ["--location", str(group.directory / "data")] if on_disk else ["--inMemoryPersistence"]
        ca_file = None
        if tls:
            files = make_certificate(group.directory)
            ca_file = files.ca_file
            command += ["--cert", str(files.certificate), "--key", str(files.certificate)]
        group.start("azurite", command, environment={"AZURITE_ACCOUNTS": f"{account}:{key}"})
        group.wait_until(lambda: accepts_connections(port), what="Azurite accepts connections")
        scheme = "https" if tls else "http"
        yield AzuriteServer(f"{scheme}://{LOOPBACK}:{port}/{account}", account, key, ca_file)

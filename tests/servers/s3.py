"""What every S3 server of the tests offers to a test."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit


@functools.cache
def read_models_once() -> None:
    """Let all of botocore's sessions share what they read from its files: a client takes a third of the time then."""
    import botocore.loaders

    loader = botocore.loaders.JSONFileLoader
    shared = functools.cache(functools.partial(loader.load_file, loader()))
    loader.load_file = lambda self, file_path: shared(file_path)
    services, known = botocore.loaders.Loader.list_available_services, {}

    def list_available_services(self: Any, type_name: str) -> Any:
        key = (type_name, *self.search_paths)
        if key not in known:
            known[key] = services(self, type_name)
        return known[key]

    botocore.loaders.Loader.list_available_services = list_available_services


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 endpoint and the keys of its one user."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    #: the authority of an https endpoint, which no system trusts
    ca_file: Path | None = field(default=None, kw_only=True)

    @property
    def port(self) -> int:
        """The port of the endpoint."""
        return urlsplit(self.endpoint_url).port or 0

    @property
    def config_kwargs(self) -> dict[str, Any]:
        """The botocore settings this server needs."""
        return {
            # Ceph 16 returns no checksum, and refuses the trailer that "when_supported" sends over TLS.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path", "payload_signing_enabled": False},
        }

    @property
    def client_kwargs(self) -> dict[str, Any]:
        """The arguments of the botocore client, but for the endpoint and the keys."""
        # No region_name: s3fs would send it as a location constraint, which Ceph and moto refuse.
        return {"verify": str(self.ca_file)} if self.ca_file and self.endpoint_url.startswith("https:") else {}

    @property
    def storage_options(self) -> dict[str, Any]:
        """The arguments of `s3fs.S3FileSystem`."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint_url,
            "client_kwargs": self.client_kwargs,
            "config_kwargs": self.config_kwargs,
        }

    def at(self, endpoint_url: str, ca_file: Path | None = None) -> Self:
        """Return this server as it is reached at another address, such as a proxy's with its own authority."""
        return replace(self, endpoint_url=endpoint_url, ca_file=ca_file or self.ca_file)

    def client(self, **config_kwargs: Any) -> Any:
        """Return a botocore client; the caller closes it."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            # Needed to sign; unlike s3fs, botocore does not make it a location constraint.
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(**self.config_kwargs | config_kwargs),
            **self.client_kwargs,
        )

    def create_bucket(self, name: str) -> str:
        """Create a bucket and return its name."""
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def read_target(self, target: str) -> bytes:
        """Return the whole object that a request target (path-style, any query) names."""
        bucket, _, name = unquote(urlsplit(target).path).removeprefix("/").partition("/")
        with contextlib.closing(self.client()) as client:
            content: bytes = client.get_object(Bucket=bucket, Key=name)["Body"].read()
        return content

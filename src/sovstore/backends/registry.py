"""Provider name to driver. Nothing is imported before a store asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sovstore.backends.base import Backend
from sovstore.errors import ConfigError, MissingDependencyError

#: Provider to fsspec protocol, the module it needs and the extra that installs it.
_SERVICES = {"s3": ("s3", "s3fs", "s3"), "azure": ("abfs", "adlfs", "azure")}
PROVIDERS = ("local", "memory", "fsspec", *_SERVICES)


def open_backend(provider: str, root: str, options: Mapping[str, Any], protocol: str | None) -> Backend:
    """Return the backend of a store. Makes no request.

    Parameters
    ----------
    provider : str
        One of `PROVIDERS`.
    root : str
        Folder, bucket/prefix or container/prefix.
    options : mapping
        Options of the filesystem under it.
    protocol : str or None
        fsspec protocol, for the provider ``fsspec``.

    Raises
    ------
    ConfigError
        When the options are not those of the filesystem.
    MissingDependencyError
        When the package of the service is not installed.
    """
    if provider == "local":
        from sovstore.backends.local import LocalBackend

        return LocalBackend(root)
    from sovstore.backends.generic import GenericBackend

    if provider == "memory" or protocol == "memory":
        from sovstore.backends.memory import MemoryBackend

        return MemoryBackend(root)
    name, module, extra = _SERVICES.get(provider, (protocol or "", protocol or "", ""))
    try:
        return GenericBackend(name, root, {**_defaults(provider), **options})
    except ImportError as exc:
        hint = f"pip install 'sovstore[{extra}]'" if extra else f"install the fsspec filesystem of {name!r}"
        raise MissingDependencyError(
            f"provider {provider!r}: {module} is not installed", path=provider, hint=hint
        ) from exc
    except (TypeError, ValueError) as exc:
        # The options are not quoted: somebody may have put a secret among them.
        hint = f"check 'root' and 'options' against the options of {module}"
        raise ConfigError(f"provider {provider!r}: its options are not valid", path=provider, hint=hint) from exc


def _defaults(provider: str) -> dict[str, Any]:
    if provider != "s3":
        return {}
    # Hosts other than AWS refuse botocore's checksum trailers, and the fix for that alone makes it hash every body
    # with SHA-256 again to sign it. Our bytes authenticate themselves, so neither is needed.
    return {
        "config_kwargs": {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path", "payload_signing_enabled": False},
        }
    }

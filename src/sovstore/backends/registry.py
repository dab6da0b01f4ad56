"""Driver of a place. Nothing is imported before a store asks for it."""

from __future__ import annotations

from dataclasses import replace

from sovstore.backends.base import Backend, Place
from sovstore.errors import ConfigError, MissingDependencyError

#: What a driver or transport needs, and the extra that installs it.
_NEEDS = {"s3": ("s3fs", "s3"), "azure": ("azure-storage-blob", "azure"), "obstore": ("obstore", "fast")}


def open_backend(place: Place) -> Backend:
    """Return the backend of a store. Makes no request.

    Raises
    ------
    ConfigError
        When the options are not those of the driver.
    MissingDependencyError
        When the package of the driver is not installed.
    """
    driver = place.transport or place.provider.driver
    module, extra = _NEEDS.get(driver, (place.protocol or "", ""))
    try:
        return _open(driver, place)
    except ImportError as exc:
        hint = f"pip install 'sovstore[{extra}]'" if extra else f"install the fsspec filesystem of {module!r}"
        raise MissingDependencyError(
            f"provider {place.provider.name!r}: {module} is not installed", path=place.provider.name, hint=hint
        ) from exc
    except ConfigError:
        raise
    except (TypeError, ValueError) as exc:
        # The options are not quoted: somebody may have put a secret among them.
        hint = f"check 'root' and 'options' against the options of {module}"
        raise ConfigError(
            f"provider {place.provider.name!r}: its options are not valid", path=place.provider.name, hint=hint
        ) from exc


def _open(driver: str, place: Place) -> Backend:
    if driver == "local":
        from sovstore.backends.local import LocalBackend

        return LocalBackend(place.root)
    if driver == "memory" or place.protocol == "memory":
        from sovstore.backends.memory import MemoryBackend

        return MemoryBackend(place.root)
    if driver == "s3":
        from sovstore.backends.s3 import S3Backend

        return S3Backend(place)
    if driver == "azure":
        from sovstore.backends.azure import AzureBackend

        return AzureBackend(place)
    if driver == "obstore":
        from sovstore.backends.obstore import ObstoreBackend

        # Drivers do not know each other; what obstore cannot do is asked of the provider's own.
        return ObstoreBackend(place, lambda: open_backend(replace(place, transport=None)))
    from sovstore.backends.generic import GenericBackend

    return GenericBackend(place.protocol or "", place.root, place.options)

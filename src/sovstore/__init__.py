"""Sealed storage on any host: data, names and keys leave this machine as ciphertext only.

``sovstore.open_store("cohortes")`` returns an fsspec filesystem; ``sov://cohortes/…`` works wherever fsspec does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sovstore.errors import IntegrityError, SovstoreError
    from sovstore.filesystem import SovFileSystem, open_store
    from sovstore.migration import migrate

__version__ = "0.1.0.dev0"
__all__ = ["IntegrityError", "SovFileSystem", "SovstoreError", "__version__", "migrate", "open_store"]

_HOME = {
    "IntegrityError": "sovstore.errors",
    "SovstoreError": "sovstore.errors",
    "SovFileSystem": "sovstore.filesystem",
    "migrate": "sovstore.migration",
    "open_store": "sovstore.filesystem",
}


def __getattr__(name: str) -> Any:  # functions and classes
    # Loaded on use: `import sovstore` stays cheap and pulls in no SDK.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sovstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

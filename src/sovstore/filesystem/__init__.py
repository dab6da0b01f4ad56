"""``sov://STORE/PATH``: the fsspec filesystem of a sealed store.

Paths are relative to the store. Listings cost what the host's own listing costs; sizes are plaintext sizes. Nothing is
cached on disk, and the options hold references only: a store's name, and the paths of a configuration and of a
recovery key.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from sovstore.errors import UnsupportedError
from sovstore.filesystem.moving import Moving


class SovFileSystem(Moving):
    """One sealed store as a filesystem, for sync and async use.

    Parameters
    ----------
    store : str
        Name of the store in the configuration.
    config : path, optional
        Configuration file; ``SOVSTORE_CONFIG``, ``./sovstore.toml`` or the user's by default.
    recovery_key : path, optional
        File of a recovery key to open the store with, instead of its KEK; read-only then.
    asynchronous : bool
        Whether the coroutines are awaited by the caller, in the caller's event loop.
    default_block_size : int, optional
        Bytes that files opened without ``block_size`` read ahead over a network, as other filesystems take it: fewer
        and larger requests. Without it they read what is asked for, and more only when a reader goes on.

    Raises
    ------
    ConfigError
        When the configuration is wrong. No request is made before the first use.
    """

    @property
    def transaction(self) -> NoReturn:
        """Refused: every write is complete or absent by itself, and several cannot be made one at any host."""
        raise _no_transactions()

    def start_transaction(self) -> NoReturn:
        """Refused, as `transaction`."""
        raise _no_transactions()

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> NoReturn:
        """Refused: whoever followed the link would get ciphertext."""
        raise UnsupportedError(f"{path}: a signed link would only give ciphertext", path=path, hint="use get")


def _no_transactions() -> UnsupportedError:
    hint = "write to new paths, then rename; each write is atomic by itself"
    return UnsupportedError("sov: transactions are not supported", path="transaction", hint=hint)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def open_store(
    store: str,
    *,
    config: str | os.PathLike[str] | None = None,
    recovery_key: str | os.PathLike[str] | None = None,
) -> SovFileSystem:
    """Return the filesystem of a store, opened: its keyset is read and its KEK is asked, now.

    Parameters
    ----------
    store : str
        Name of the store in the configuration.
    config : path, optional
        Configuration file.
    recovery_key : path, optional
        File of a recovery key to open the store with.

    Raises
    ------
    ConfigError, ObjectNotFoundError, FormatError, IntegrityError, KMSError
        When it cannot be opened; the hint says what to do.
    """
    fs = SovFileSystem(store, config=_text(config), recovery_key=_text(recovery_key))
    fs._sync(fs.store.keyset)
    return fs

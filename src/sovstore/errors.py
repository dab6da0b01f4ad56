"""The exception tree of sovstore.

Every error carries a `path` (what it happened to), a `hint` (what to do next) and says whether trying again
can help. None of them ever holds key bytes, passphrases or tokens, and all of them pickle, so that dask and
multiprocessing can carry them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SovstoreError(Exception):
    """Root of all errors that sovstore raises on purpose.

    It derives from plain `Exception`, so that ``except ValueError`` or ``except OSError`` in a pipeline can
    never swallow an `IntegrityError`.

    Parameters
    ----------
    message : str
        What happened, object first, lower case, no full stop.
    path : str, optional
        The object, file or setting it happened to.
    hint : str, optional
        What the reader of the message can do next.
    """

    #: Whether the same call can succeed when it is simply made again.
    retryable: bool = False
    #: Exit code of the command line for this class of error.
    exit_code: int = 1

    def __init__(self, message: str = "", *, path: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint

    def __str__(self) -> str:
        """Return the message and, on a second line, the hint."""
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle needs; keyword-only arguments do not survive the default."""
        return _rebuild, (type(self), self.message, self._keywords())

    def _keywords(self) -> dict[str, str | None]:
        return {"path": self.path, "hint": self.hint}


def _rebuild(cls: type[SovstoreError], message: str, keywords: dict[str, str | None]) -> SovstoreError:
    return cls(message, **keywords)


class ConfigError(SovstoreError, ValueError):
    """The caller can fix it before any I/O: a setting, an option or an argument."""

    exit_code = 2


class PathError(ConfigError):
    """A path that the format does not allow (docs/spec/format.md, 5.1)."""


class UnsupportedError(ConfigError, NotImplementedError):
    """A call that fsspec has and a sealed store does not; says what to do instead."""


class MissingDependencyError(SovstoreError, ImportError):
    """An optional package is not installed; the hint holds the command that installs it."""

    exit_code = 2


class FormatError(SovstoreError):
    """Bytes that are not ours: no magic, truncated header, unknown version or suite."""

    exit_code = 3


class IntegrityError(SovstoreError):
    """Any authentication failure of an object, a name or a keyset."""

    exit_code = 3


class PolicyError(SovstoreError):
    """A rule of the policy refuses; names the rule, the fact and its date."""

    exit_code = 4


class KMSError(SovstoreError):
    """The KEK, or the service that holds it, did not do what was asked.

    Parameters
    ----------
    message, path, hint : str
        As `SovstoreError`; `path` is the key URI.
    provider : str, optional
        The kind of service, such as ``openbao``.
    request_id : str, optional
        What the service calls the request, for its operator.
    """

    exit_code = 4

    def __init__(
        self,
        message: str = "",
        *,
        path: str | None = None,
        hint: str | None = None,
        provider: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.provider = provider
        self.request_id = request_id

    def _keywords(self) -> dict[str, str | None]:
        return {**super()._keywords(), "provider": self.provider, "request_id": self.request_id}


class NoMatchingKeyError(KMSError):
    """No configured KEK opens the keyset; lists the KEK URIs found in it."""


class KeyDeniedError(KMSError, PermissionError):
    """The key exists and its use is refused: wrong passphrase, locked keyring, missing right."""


class UnwrapError(KMSError):
    """A KEK did not unwrap what it was given; never says why."""


class KMSUnavailableError(KMSError):
    """The service that holds the KEK did not answer."""

    retryable = True


class StoreError(SovstoreError):
    """The host did not do what was asked."""


class ObjectNotFoundError(StoreError, FileNotFoundError):
    """No object, or no keyset, of that name."""


class ObjectExistsError(StoreError, FileExistsError):
    """There is one already, and the call asked to create it."""


class ObjectChangedError(StoreError):
    """The object is no longer the one that was read or expected; read it again."""

    retryable = True


class IsFolderError(StoreError, IsADirectoryError):
    """A folder stands where an object was asked for."""


class NotFolderError(StoreError, NotADirectoryError):
    """An object stands where a folder was asked for."""


class StoreUnavailableError(StoreError):
    """The host did not answer, or not in time."""

    retryable = True


@contextmanager
def named(path: str, name: str) -> Iterator[None]:
    """Say the path in an error where a driver could only say the name at the host."""
    try:
        yield
    except StoreError as exc:
        if exc.path != name or name == path:
            raise
        raise type(exc)(exc.message.replace(name, path, 1), path=path, hint=exc.hint) from exc

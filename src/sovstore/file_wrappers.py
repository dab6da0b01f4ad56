"""Compression and text over the files of a store: losing one gives the write up, as with the file itself."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any, Self

from sovstore.files import SovWriter


class CompressedFile:
    """A compressor over a file of a store: closing it closes both. Like the file itself, losing it gives the write up.

    Parameters
    ----------
    wrapped : binary file
        The compressor; most of them leave what they wrap open when they are closed.
    file : SovReader or SovWriter
        The file of the store.
    """

    def __init__(self, wrapped: Any, file: Any) -> None:
        self._wrapped, self._file = wrapped, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __iter__(self) -> Any:
        return iter(self._wrapped)

    def __next__(self) -> Any:
        return next(self._wrapped)

    def close(self) -> None:
        """Close both; what was written becomes visible."""
        try:
            self._wrapped.close()
        except BaseException:
            self.discard()
            raise
        self._file.close()

    def discard(self) -> None:
        """Give the write up; what was at the path before stays."""
        self._file.discard()
        # It wants to write its end into the file, which takes no more.
        with suppress(Exception):
            self._wrapped.close()

    def _dealloc_warn(self, source: object) -> None:
        """Give the write up: as with the file itself, `io.TextIOWrapper` says so when it is lost without a close."""
        if isinstance(self._file, SovWriter):
            self._file._dealloc_warn(source)

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        """Close both, or give the write up after an exception."""
        if exc_type is not None:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        """Give the write up: nobody said that it was complete."""
        self._file.__del__()
        with suppress(Exception):
            self._wrapped.close()


class TextFile(io.TextIOWrapper):
    """Text over a file of a store. Like the file itself, losing it gives the write up.

    Parameters
    ----------
    buffer : binary file
        What is wrapped; it may be a compressor around `file`.
    file : SovReader or SovWriter
        The file of the store.
    """

    def __init__(self, buffer: Any, file: Any, **kwargs: Any) -> None:  # as io.TextIOWrapper
        self._file = file
        super().__init__(buffer, **kwargs)

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        """Close the file, or give the write up after an exception."""
        if exc_type is not None and isinstance(self._file, SovWriter):
            self.buffer.discard()  # type: ignore[attr-defined]  # a SovWriter, or a CompressedFile over it
            return
        self.close()

    def __del__(self) -> None:
        """Give the write up, without the flush that the base class would do."""
        if isinstance(self._file, SovWriter) and not self._file.closed:
            self._file.__del__()

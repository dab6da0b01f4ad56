"""Paths, and the names under which objects lie at the host (docs/spec/format.md, 5)."""

from __future__ import annotations

import base64
import unicodedata
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from sovstore.errors import FormatError, IntegrityError, PathError

RESERVED = ".sovstore"
MAX_NAME = 900
MAX_SEGMENT = 159
MAX_PLAIN_SEGMENT = 255
_BLOCK = 16


def check_path(path: str) -> None:
    """Check a path against the grammar.

    Raises
    ------
    PathError
        When the format does not allow it; the message says which rule and the hint what to do.
    """
    segments = path.split("/")
    for segment in segments:
        check_segment(segment, path)
    if segments[0].lower() == RESERVED:
        raise PathError(
            f"{path!r}: {RESERVED!r} is reserved for the store itself", path=path, hint="choose another name"
        )


def check_segment(segment: str, path: str) -> None:
    """Check one segment of a path.

    Raises
    ------
    PathError
        As `check_path`.
    """
    if segment == "":
        raise PathError(
            f"{path!r}: empty path or segment",
            path=path,
            hint="write 'a/b': no leading, trailing or double '/'",
        )
    if segment in (".", ".."):
        raise PathError(
            f"{path!r}: segment {segment!r} is not allowed",
            path=path,
            hint="write the path that it stands for",
        )
    if "\0" in segment:
        raise PathError(f"{path!r}: a path cannot hold the character U+0000", path=path)
    try:
        segment.encode()
    except UnicodeEncodeError as exc:
        raise PathError(
            f"{path!r}: not valid Unicode (a lone surrogate)", path=path, hint="rename the file in UTF-8"
        ) from exc
    if not unicodedata.is_normalized("NFC", segment):
        hint = "unicodedata.normalize('NFC', path) gives the name to use"
        raise PathError(f"{path!r}: not in Unicode normalisation form C", path=path, hint=hint)


class Names(Protocol):
    """Maps paths to names at the host and back."""

    mode: str

    def encode(self, path: str) -> str:
        """Return the name at the host of a path; '' (the root) gives ''."""

    def decode_segment(self, parent: str, name: str) -> str:
        """Return the plaintext segment of one name segment below the plaintext path `parent`."""


def _shown(path: str) -> str:
    return path if len(path) <= 80 else f"{path[:77]}..."


def _too_long(path: str, what: str, size: int, limit: int) -> PathError:
    return PathError(
        f"{_shown(path)!r}: {what} of {size} bytes; the limit is {limit}", path=path, hint="shorten the name"
    )


def _check_length(path: str, most: int) -> None:
    """Refuse what is longer than any name, before the grammar is looked at: that takes as long as the path is."""
    if len(path) > MAX_NAME:
        size = max(len(segment.encode(errors="surrogatepass")) for segment in path.split("/"))
        if size > most:
            raise _too_long(path, "segment", size, most)
        raise _too_long(path, "path", len(path.encode(errors="surrogatepass")), MAX_NAME)


class PlainNames:
    """Names that the host can read: the path itself. Leaks every name."""

    mode = "plain"

    def encode(self, path: str) -> str:
        """Return the path itself, checked.

        Raises
        ------
        PathError
            When the path breaks the grammar or a limit.
        """
        if not path:
            return ""
        _check_length(path, MAX_PLAIN_SEGMENT)
        check_path(path)
        for segment in path.split("/"):
            if (size := len(segment.encode())) > MAX_PLAIN_SEGMENT:
                raise _too_long(path, "segment", size, MAX_PLAIN_SEGMENT)
        if (size := len(path.encode())) > MAX_NAME:
            raise _too_long(path, "path", size, MAX_NAME)
        return path

    def decode_segment(self, parent: str, name: str) -> str:
        """Return the segment itself, checked.

        Raises
        ------
        FormatError
            When the host lists a name that no path has.
        """
        if len(name) > MAX_NAME:
            # Before the grammar is looked at, which takes as long as the name is.
            raise _not_ours(name)
        try:
            if name and self.encode(_join(parent, name)).rpartition("/")[2] == name:
                return name
        except PathError as exc:
            raise _not_ours(name) from exc
        raise _not_ours(name)


class EncryptedNames:
    """AES-256-SIV of every segment, bound to the store and to the plaintext parent.

    Parameters
    ----------
    name_key : bytes
        64 bytes.
    store_id : bytes
        16 bytes.
    """

    mode = "encrypted"

    def __init__(self, name_key: bytes, store_id: bytes) -> None:
        self._siv = AESSIV(name_key)
        self._store_id = store_id
        # Folders are asked for again and again; a bounded memo keeps listings from encrypting them each time.
        self._segment = lru_cache(maxsize=4096)(self._encode_segment)

    def _encode_segment(self, parent: str, segment: str) -> str:
        raw = segment.encode() + b"\x80"
        padded = raw + bytes(-len(raw) % _BLOCK)
        sealed = self._siv.encrypt(padded, [self._store_id, parent.encode()])
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def encode(self, path: str) -> str:
        """Return the name at the host of a path.

        Raises
        ------
        PathError
            When the path breaks the grammar or a limit.
        """
        if not path:
            return ""
        _check_length(path, MAX_SEGMENT)
        check_path(path)
        parent, encoded = "", []
        for segment in path.split("/"):
            if (size := len(segment.encode())) > MAX_SEGMENT:
                raise _too_long(path, "segment", size, MAX_SEGMENT)
            encoded.append(self._segment(parent, segment))
            parent = _join(parent, segment)
        name = "/".join(encoded)
        if len(name) > MAX_NAME:
            raise _too_long(path, "encrypted path", len(name), MAX_NAME)
        return name

    def decode_segment(self, parent: str, name: str) -> str:
        """Return the plaintext of one segment.

        Parameters
        ----------
        parent : str
            Plaintext path of the folder it is in; '' at the root.
        name : str
            The segment as the host lists it.

        Raises
        ------
        IntegrityError
            When it was not encrypted by this key for this store and folder.
        FormatError
            When it is no encoded name, or an alias of one.
        """
        if len(name) > MAX_NAME:
            raise _not_ours(name)
        try:
            sealed = base64.b64decode(name + "=" * (-len(name) % 4), altchars=b"-_", validate=True)
        except ValueError as exc:
            raise _not_ours(name) from exc
        if len(sealed) < 2 * _BLOCK:
            raise _not_ours(name)
        try:
            padded = self._siv.decrypt(sealed, [self._store_id, parent.encode()])
        except InvalidTag as exc:
            raise IntegrityError(f"{_shown(name)!r}: the name failed authentication", path=name) from exc
        try:
            segment = padded.rstrip(b"\0").removesuffix(b"\x80").decode()
            # One path has one name: base64 with other spare bits, another padding, or a path that breaks the grammar or
            # a limit is refused here.
            if self.encode(_join(parent, segment)).rpartition("/")[2] == name:
                return segment
        except (UnicodeDecodeError, PathError) as exc:
            raise _not_ours(name) from exc
        raise _not_ours(name)


def _not_ours(name: str) -> FormatError:
    return FormatError(f"{_shown(name)!r}: not the name of any path", path=name, hint="sovstore did not write it")


def _join(parent: str, segment: str) -> str:
    return f"{parent}/{segment}" if parent else segment

"""``keyfile:/path``: a KEK in a file under a passphrase, for one machine (docs/spec/format.md, 7).

The passphrase goes through Argon2id (RFC 9106). It comes from a prompt, from ``SOVSTORE_PASSPHRASE`` or from a file,
never from an argument or a URI.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from urllib.parse import unquote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sovstore import beside
from sovstore.errors import ConfigError, FormatError, KeyDeniedError, NoMatchingKeyError
from sovstore.format import canonical
from sovstore.kms.base import Access
from sovstore.kms.local import KEK, LocalKey
from sovstore.secret import Secret

_FORMAT = "sovstore key file 1"
_SALT, _NONCE, _TAG = 16, 12, 16
#: RFC 9106, 4, second recommended option: 64 MiB, 3 passes, 4 lanes.
_MEMORY_KIB, _PASSES, _LANES = 65536, 3, 4
#: A key file that asks for more is refused, not obeyed: it could be somebody else's.
_MOST_MEMORY_KIB, _MOST_PASSES, _MOST_LANES = 2**20, 16, 16
_FILE_LIMIT = 4096


def open_key(uri: str, access: Access) -> LocalKey:
    """Return the KEK in the key file at `uri`.

    Raises
    ------
    ConfigError
        When the URI is malformed, the file is not a key file, or no passphrase can be had.
    NoMatchingKeyError
        When there is no such file.
    KeyDeniedError
        When the passphrase is wrong or the file may not be read.
    """
    path = _parse(uri)
    try:
        with path.open("rb") as file:
            # One byte more than is allowed: a longer file is refused without reading all of it.
            raw = file.read(_FILE_LIMIT + 2)
    except FileNotFoundError as exc:
        hint = "'sovstore init STORE' makes it; if it was moved, correct 'kek' in the configuration"
        raise NoMatchingKeyError(f"{uri}: no such key file", path=uri, hint=hint) from exc
    except OSError as exc:
        raise KeyDeniedError(
            f"{uri}: cannot be read: {exc.strerror}", path=uri, hint=f"check the rights of {path}"
        ) from exc
    try:
        fields = _read(raw, uri)
    except FormatError as exc:
        raise ConfigError(
            f"{uri}: not a key file of sovstore", path=uri, hint="correct 'kek' in the configuration"
        ) from exc
    salt, sealed = (
        fields.base64("salt", _SALT, _SALT),
        fields.base64("key", _NONCE + KEK + _TAG, _NONCE + KEK + _TAG),
    )
    if fields.integer("memory_kib", 8, _MOST_MEMORY_KIB) < 8 * fields.integer("lanes", 1, _MOST_LANES):
        raise ConfigError(f"{uri}: not a key file of sovstore: too little memory for its lanes", path=uri)
    # Nothing secret is in a local variable: a wrong passphrase, or an altered file, puts this frame into a traceback.
    cipher = AESGCM(
        _stretch(
            _passphrase(uri, access, f"Passphrase of {path}: "),
            salt,
            fields.integer("memory_kib", 8, _MOST_MEMORY_KIB),
            fields.integer("passes", 1, _MOST_PASSES),
            fields.integer("lanes", 1, _MOST_LANES),
        )
    )
    try:
        key = Secret(cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], _aad(salt)))
    except InvalidTag as exc:
        raise KeyDeniedError(
            f"{uri}: wrong passphrase, or the key file was altered",
            path=uri,
            hint="try again; a forgotten passphrase can only be bypassed with the recovery key of the store",
        ) from exc
    return LocalKey(uri, key)


def create_key(uri: str, access: Access) -> LocalKey:
    """Make a new KEK in a new key file, readable by its owner only, and return it.

    Raises
    ------
    ConfigError
        When the file exists already or cannot be written, besides the causes of `open_key`.
    """
    path = _parse(uri)
    if path.exists():
        raise ConfigError(f"{uri}: exists already", path=uri, hint="choose another path")
    key, salt, nonce = Secret(os.urandom(KEK)), os.urandom(_SALT), os.urandom(_NONCE)
    prompt = f"New passphrase for {path}: "
    # As in `open_key`, nothing secret is in a local variable: the file may not be writable.
    cipher = AESGCM(_stretch(_passphrase(uri, access, prompt), salt, _MEMORY_KIB, _PASSES, _LANES))
    content = canonical.dump(
        {
            "format": _FORMAT,
            "cipher": "AES-256-GCM",
            "kdf": "argon2id",
            "memory_kib": _MEMORY_KIB,
            "passes": _PASSES,
            "lanes": _LANES,
            "salt": canonical.to_base64(salt),
            "key": canonical.to_base64(nonce + cipher.encrypt(nonce, key.reveal(), _aad(salt))),
        }
    )
    try:
        beside.create(path, content, mode=0o600)
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = f"free some room in {path.parent}, then run it again" if full else f"check {path.parent}"
        raise ConfigError(f"{uri}: cannot be written: {exc.strerror}", path=uri, hint=hint) from exc
    return LocalKey(uri, key)


def key_exists(uri: str) -> bool:
    """Return whether there is a file at `uri`."""
    return _parse(uri).exists()


def _parse(uri: str) -> Path:
    path = unquote(uri.removeprefix("keyfile:"))
    if "?" in path or "#" in path or not path.startswith(("/", "~")) or path.startswith("//"):
        hint = "write keyfile:/absolute/path or keyfile:~/path; the passphrase is never part of it"
        raise ConfigError(f"{uri}: not a key file URI", path=uri, hint=hint)
    if "\0" in path:
        raise ConfigError("kek: a key file path cannot hold the character U+0000", path="kek", hint="correct 'kek'")
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        raise ConfigError(f"{uri}: there is no such user", path=uri, hint="correct the part behind '~'") from exc


def _read(raw: bytes, uri: str) -> canonical.Fields:
    members = "cipher format kdf key lanes memory_kib passes salt"
    fields = canonical.Fields(canonical.load(raw.removesuffix(b"\n"), limit=_FILE_LIMIT, what=uri), members, what=uri)
    fields.choice("format", _FORMAT)
    fields.choice("cipher", "AES-256-GCM")
    fields.choice("kdf", "argon2id")
    return fields


def _aad(salt: bytes) -> bytes:
    return b"sovstore/1 key file\x00" + salt


#: Two derivations with several lanes at once wait for each other for ever (cryptography 50.0 with OpenSSL 3.5).
_one_at_a_time = threading.Lock()


def _after_fork() -> None:
    global _one_at_a_time  # a child must not inherit a lock that another thread of its parent held
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _stretch(passphrase: str, salt: bytes, memory_kib: int, passes: int, lanes: int) -> bytes:
    kdf = Argon2id(salt=salt, length=KEK, iterations=passes, lanes=lanes, memory_cost=memory_kib)
    with _one_at_a_time:
        return kdf.derive(passphrase.encode())


def _passphrase(uri: str, access: Access, prompt: str) -> str:
    if access.passphrase is None:
        hint = "set SOVSTORE_PASSPHRASE, or SOVSTORE_PASSPHRASE_FILE or 'passphrase_file' to a file that holds it"
        raise ConfigError(f"{uri}: needs a passphrase and there is no terminal to ask on", path=uri, hint=hint)
    passphrase = access.passphrase(prompt)
    if not passphrase.isascii() and any("\ud800" <= char <= "\udfff" for char in passphrase):
        # Checked, not tried: the error of `encode` would carry the whole passphrase. Nor does this one, in a variable.
        del passphrase
        hint = "set it in a terminal or file that uses UTF-8"
        raise ConfigError(f"{uri}: the passphrase is not valid UTF-8", path=uri, hint=hint)
    if not passphrase:
        raise ConfigError(f"{uri}: the passphrase is empty", path=uri, hint="an empty passphrase protects nothing")
    return passphrase

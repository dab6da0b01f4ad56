#!/usr/bin/env python3
"""Read a byte copy of a sovstore store, with the standard library and `cryptography` alone.

Written from docs/spec/format.md and nothing else; its sections are cited. tools/sovkeys.py makes keys.json.
"""

import base64
import hmac
import io
import json
import re
import sys
import tempfile
import unicodedata
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

EPILOG = """\
  sovread.py list COPY --keys keys.json
  sovread.py cat COPY some/path --keys keys.json > plaintext      (whole only if the exit code is 0)
  sovread.py extract COPY NEW_FOLDER --keys keys.json

keys.json: {"store_id": hex, "names_mode": "encrypted" or "plain", "name_key": hex, "epochs": {id: key hex}}
exit codes: 0 done, 1 failed, 2 usage, 3 not authentic or not of this store"""
EXIT_CODES = {"format": 1, "integrity": 3}


class RefusedError(Exception):
    """What was read is refused: the arguments are one of EXIT_CODES and the reason."""


class Keys(NamedTuple):
    """The unwrapped keys of a store; `epochs` maps key ids (16 bytes) to store keys (32 bytes)."""

    store_id: bytes
    names_mode: str
    name_key: bytes
    epochs: dict[bytes, bytes]


def require(condition: object, kind: str, reason: str) -> None:
    """Raise RefusedError unless the condition holds."""
    if not condition:
        raise RefusedError(kind, reason)


def decrypt_chunks(file: BinaryIO, key: bytes, context: bytes) -> Iterator[bytes]:
    """Yield the authenticated chunks of a Cobblestone message, which ends with the file (section 3)."""
    salt, commitment = file.read(24), file.read(32)
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    derived = HKDFExpand(SHA512(), 76, info).derive(key)
    require(hmac.compare_digest(derived[44:], commitment) and len(key) == 32, "integrity", "wrong key")
    aead, base_nonce = AESGCM(derived[:32]), int.from_bytes(derived[32:44])
    for number in range(1 << 38):
        chunk = file.read(16400)
        try:
            plaintext = aead.decrypt((base_nonce ^ number).to_bytes(12), chunk, None)
        except InvalidTag as exc:
            raise RefusedError("integrity", f"chunk {number} failed authentication") from exc
        yield plaintext
        # Only the last chunk is short: after a full one the next must follow, and an absent one has no tag.
        if len(chunk) < 16400:
            return
    raise RefusedError("integrity", "more than 2^38 chunks")


def plain_size(wire_size: int) -> int:
    """Return the plaintext size of an object (section 4.3)."""
    full_chunks, rest = divmod(wire_size - 184, 16400)
    require(wire_size >= 200 and rest >= 16 and full_chunks < 1 << 38, "format", "no object has this size")
    return wire_size - 184 - 16 * (full_chunks + 1)


def open_header(header: bytes, keys: Keys, path: str) -> bytes:
    """Return the DEK (32 bytes) of an object (section 4.1)."""
    require(len(header) == 128 and header[:7] == b"\x89SOV\r\n\x1a", "format", "not an object of a store")
    require(header[7] == 1, "format", f"unknown format version {header[7]}")
    key_id, wrapped = header[8:24], io.BytesIO(header[24:])
    require(key_id in keys.epochs, "integrity", f"no key {key_id.hex()}")
    context = b"sovstore/1 wrap\0" + keys.store_id + key_id + path.encode()
    return b"".join(decrypt_chunks(wrapped, keys.epochs[key_id], context))


def open_object(file: BinaryIO, keys: Keys, path: str) -> Iterator[bytes]:
    """Return an iterator over the plaintext of an object, having authenticated its header (section 4)."""
    return decrypt_chunks(file, open_header(file.read(128), keys, path), b"sovstore/1 body")


def encode_path(keys: Keys, path: str) -> str:
    """Return the name below the root of a path, which it checks (section 5)."""
    bad = re.search(r"[\0\ud800-\udfff]|(\A|/)\.{0,2}(/|\Z)|\A\.(?ai:sovstore)(/|\Z)", path)
    require(not bad, "format", "path has a character or a segment that no path has")
    require(unicodedata.is_normalized("NFC", path), "format", "path is not in NFC")
    plain = path.split("/")
    longest = 159 if keys.names_mode == "encrypted" else 255
    require(max(len(s.encode()) for s in plain) <= longest, "format", "segment too long")
    encoded: list[str] = []
    for number, segment in enumerate(plain if keys.names_mode == "encrypted" else ()):
        padded = segment.encode() + b"\x80" + bytes(15 - len(segment.encode()) % 16)
        parent = "/".join(plain[:number]).encode()
        sealed = AESSIV(keys.name_key).encrypt(padded, [keys.store_id, parent])
        encoded.append(base64.urlsafe_b64encode(sealed).decode().rstrip("="))
    name = "/".join(encoded) or path
    require(len(name.encode()) <= 900, "format", "path too long")
    return name


def decode_path(keys: Keys, name: str) -> str:
    """Return the path of a name below the root (section 5)."""
    segments = name.split("/")
    for number, segment in enumerate(segments if keys.names_mode == "encrypted" else ()):
        require(re.fullmatch(r"(?:[\w-]{4})*[\w-]{2,4}", segment, re.A), "format", "name is not base64url")
        sealed = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        # What is not UTF-8 becomes surrogates, which encode_path refuses.
        parent = "/".join(segments[:number]).encode(errors="surrogateescape")
        try:
            padded = AESSIV(keys.name_key).decrypt(sealed, [keys.store_id, parent])
        except InvalidTag as exc:
            raise RefusedError("integrity", "name failed authentication") from exc
        segments[number] = padded.rpartition(b"\x80")[0].decode(errors="surrogateescape")
    path = "/".join(segments)
    require(encode_path(keys, path) == name, "format", "name is not the one encoding of its path")
    return path


def extract(chunks: Iterator[bytes], dest: Path, path: str) -> None:
    """Write chunks to a file below dest, which appears when all of them were authentic."""
    target = dest / path
    # The grammar of paths keeps them below dest; a link that lies there already could lead one out.
    require(not target.exists() and dest.resolve() in target.resolve().parents, "format", "path is taken")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sovread-", dir=dest) as folder:
        with Path(folder, "part").open("wb") as part:
            part.writelines(chunks)
        Path(part.name).rename(target)


def read_tree(keys: Keys, root: Path, dest: Path | None) -> int:
    """List the objects below root, and extract them to dest if there is one; return an exit code."""
    code = 0
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if name.startswith(".sovstore/") or file.is_dir():
            continue
        try:
            path, size = decode_path(keys, name), plain_size(file.stat().st_size)
            with file.open("rb") as stream:
                chunks = open_object(stream, keys, path)
                if dest:
                    extract(chunks, dest, path)
            sys.stdout.write(f"{size}\t{path if path.isprintable() else ascii(path)}\n")
        except RefusedError as exc:
            sys.stderr.write(f"sovread: {name!r}: {exc.args[1]}\n")
            code = EXIT_CODES["integrity"]
    return code


def run(command: str, root: Path, target: str, text: bytes) -> int:
    """Run a command with the keys in a JSON text; return its exit code."""
    given, unhex = json.loads(text), bytes.fromhex
    require(given["names_mode"] in {"encrypted", "plain"}, "format", "no such names_mode")
    epochs = {unhex(key_id): unhex(key) for key_id, key in given["epochs"].items()}
    keys = Keys(unhex(given["store_id"]), given["names_mode"], unhex(given["name_key"]), epochs)
    if command == "cat":
        with (root / encode_path(keys, target)).open("rb") as file:
            sys.stdout.buffer.writelines(open_object(file, keys, target))
        return 0
    return read_tree(keys, root, Path(target) if command == "extract" else None)


def main() -> int:
    """Read the arguments, run the command, and say what went wrong."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("list", "cat", "extract"))
    parser.add_argument("root", type=Path, help="folder with the bytes of the store as they lie at the host")
    parser.add_argument("target", nargs="?", help="cat: path of the object; extract: folder to write to")
    parser.add_argument("--keys", type=Path, required=True, help="JSON file of the unwrapped keys")
    args = parser.parse_args()
    if (args.command == "list") != (args.target is None):
        parser.error("cat needs a path, extract needs a folder, list needs neither")
    try:
        return run(args.command, args.root.resolve(strict=True), args.target, args.keys.read_bytes())
    except RefusedError as exc:
        sys.stderr.write(f"sovread: {exc.args[1]}\n")
        return EXIT_CODES[exc.args[0]]
    except (OSError, AttributeError, LookupError, TypeError, ValueError) as exc:
        sys.stderr.write(f"sovread: {exc!r}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

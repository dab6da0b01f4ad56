"""Load test vectors, and expand their compact representation. README.md describes both.

Nothing here uses sovstore: Cobblestone is written out once more, so that a mistake in the library is not in
its vectors as well.
"""

import hashlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

FOLDER = Path(__file__).resolve().parent
EXPECTS = frozenset({"ok", "format", "integrity", "no_matching_key"})
#: How many vectors each file has. It stands here and not in the files: a file that lost some must not pass.
COUNTS = {
    "sovstore/header": 45,
    "sovstore/body": 64,
    "sovstore/names": 130,
    "sovstore/sizes": 62,
    "sovstore/keyset": 193,
    "sovstore/recovery": 37,
    "wycheproof/c2sp_chunked_encryption_aes_256_gcm_test": 35,
    "wycheproof/aes_siv_cmac_test": 442,
    "wycheproof/aead_aes_siv_cmac_test": 900,
    "rfc5297": 2,
}
CHUNK = 16384


@dataclass(frozen=True)
class Vector:
    """One vector of sovstore's own: one cause, one expectation."""

    file: str
    id: int
    cause: str
    comment: str
    expect: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        """Return a name for the report of a test run."""
        return f"{self.file}-{self.id}-{self.cause}"

    def __getitem__(self, name: str) -> Any:
        """Return a field as it stands in the file, or what the file has in common."""
        return self.fields[name]

    def get(self, name: str) -> Any:
        """Return a field, or None."""
        return self.fields.get(name)

    def data(self, name: str) -> bytes:
        """Return the bytes that a field describes."""
        return expand(self.fields[name])


def load(file: str) -> list[Vector]:
    """Return the vectors of `sovstore/<file>.json`; `file` is e.g. "header"."""
    content = _read(f"sovstore/{file}")
    vectors = []
    for number, fields in enumerate(content["vectors"], start=1):
        own = {name: fields.pop(name) for name in ("id", "cause", "comment", "expect")}
        assert own["id"] == number, f"{file}: vector {number} has id {own['id']}"
        assert own["expect"] in EXPECTS, f"{file}-{number}: expects {own['expect']}"
        vectors.append(Vector(file=file, fields={**content["common"], **fields}, **own))
    _check_count(f"sovstore/{file}", len(vectors))
    return vectors


def load_wycheproof(file: str) -> list[dict[str, Any]]:
    """Return the tests of `wycheproof/<file>.json`, each with the attributes of its group."""
    groups = _read(f"wycheproof/{file}")["testGroups"]
    tests = [{**group, "tests": None, **test} for group in groups for test in group["tests"]]
    _check_count(f"wycheproof/{file}", len(tests))
    return tests


def load_rfc5297() -> list[dict[str, Any]]:
    """Return the examples of RFC 5297, appendix A."""
    vectors: list[dict[str, Any]] = _read("rfc5297")["vectors"]
    _check_count("rfc5297", len(vectors))
    return vectors


def load_tool(name: str) -> ModuleType:
    """Return `tools/<name>.py` as a module."""
    path = FOLDER.parent.parent / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def expand(value: Any) -> bytes:
    """Return the bytes that a value describes, in the language of README.md."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    if isinstance(value, list):
        return b"".join(map(expand, value))
    if "text" in value:
        return str(value["text"]).encode()
    if "fill" in value:
        return bytes([value["fill"]]) * int(value["n"])
    if "repeat" in value:
        return expand(value["repeat"]) * int(value["n"])
    if "cobblestone" in value:
        return encrypt(**value["cobblestone"])
    if "edit" in value:
        return _edited(expand(value["edit"]), value["ops"])
    data = expand(value["of"])
    digest = hashlib.sha256(data).hexdigest()
    assert digest == value["sha256"], f"expanded to SHA-256 {digest}, not {value['sha256']}"
    return data


def derive(key: bytes, salt: bytes, context: bytes) -> bytes:
    """Return key (32 bytes), base nonce (12) and commitment (32) of a Cobblestone-256 message."""
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    return HKDFExpand(SHA512(), 76, info).derive(key)


def encrypt(
    *,
    key: str,
    context: Any,
    salt: str,
    plaintext: Any,
    layout: list[dict[str, int]] | None = None,
    aad: str = "",
) -> bytes:
    """Return a Cobblestone-256 message; `layout` and `aad` make messages that no writer makes.

    `layout` lists the index and the plaintext size of each chunk. Without it the chunks are those of the
    specification. `aad` is the hex of associated data, which the specification leaves empty.
    """
    data, header = expand(plaintext), expand(salt)
    derived = derive(expand(key), header, expand(context))
    if layout is None:
        layout = [{"index": i, "size": CHUNK} for i in range(len(data) // CHUNK)]
        layout.append({"index": len(layout), "size": len(data) % CHUNK})
    message, start, aead = [header, derived[44:]], 0, AESGCM(derived[:32])
    for chunk in layout:
        nonce = (int.from_bytes(derived[32:44]) ^ chunk["index"]).to_bytes(12)
        message.append(aead.encrypt(nonce, data[start : start + chunk["size"]], expand(aad)))
        start += chunk["size"]
    assert start == len(data), "the layout does not cover the plaintext"
    return b"".join(message)


def _edited(data: bytes, ops: list[dict[str, Any]]) -> bytes:
    """Return data after the operations, each on the result of the one before; spans are half open."""
    for op in ops:
        match op["op"]:
            case "truncate":
                assert op["to"] < len(data), "nothing to truncate"
                data = data[: op["to"]]
            case "append":
                data += expand(op["data"])
            case "flip":
                changed = bytearray(data)
                changed[op["bit"] // 8] ^= 0x80 >> op["bit"] % 8
                data = bytes(changed)
            case "delete":
                start, end = op["span"]
                data = data[:start] + data[end:]
            case "copy":
                start, end = op["span"]
                data = data[: op["to"]] + data[start:end] + data[op["to"] :]
            case "swap":
                (a, b), (c, d) = op["a"], op["b"]
                data = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
            case unknown:
                raise ValueError(f"unknown operation {unknown}")
    return data


def _read(file: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{file}.json").read_text(encoding="ascii")))


def _check_count(file: str, found: int) -> None:
    assert found == COUNTS[file], f"{file}: found {found} vectors, not {COUNTS[file]}"

"""Make keysets from their parts, right and wrong (sections 6 and 7)."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.vectors.load import expand
from tests.vectors.make_objects import STORE_ID, Made, draw, vector

KSK, KEK, AUTH_KEY, OTHER_AUTH = (draw(label, 32) for label in ("ksk", "kek", "auth key", "other auth key"))
URI, OTHER_URI = "keyfile:store.key", "keyring://sovstore/store"
BOTH = ["kek", "ksk"]
STATES = ("destroyed", "readable", "primary")
Change = Callable[[dict[str, Any]], None]


def b64(data: bytes) -> str:
    """Return base64 with padding."""
    return base64.b64encode(data).decode()


def canonical(value: Any) -> str:
    """Return canonical JSON (section 6.1), which differs from that of `json` in control characters."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{canonical(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, str):
        return '"' + re.sub(r"[^ !#-\[\]-~]", _escaped, value) + '"'
    return str(value)


def _escaped(match: re.Match[str]) -> str:
    if match[0] in '"\\':
        return "\\" + match[0]
    return re.sub("(....)", r"\\u\1", match[0].encode("utf-16-be").hex())


def expand_key(key: bytes, label: bytes, store_id: bytes, size: int) -> bytes:
    """Return HKDF-Expand for a label of section 6."""
    return HKDFExpand(SHA512(), size, label + b"\0" + store_id).derive(key)


def fingerprint(auth_key: bytes = AUTH_KEY) -> str:
    """Return the hex of an auth fingerprint."""
    return expand_key(auth_key, b"sovstore/1 auth fingerprint", STORE_ID, 32).hex()


def key_id(name: str) -> str:
    """Return the hex of the id of the key of this name."""
    return draw(f"id of {name}", 16).hex()


def encrypted(
    name: str,
    purpose: str,
    size: int = 32,
    *,
    key: bytes | None = None,
    bound_id: str | None = None,
    store_id: bytes = STORE_ID,
    ksk: bytes = KSK,
) -> str:
    """Return an encrypted key of section 6.2."""
    ids = store_id.hex() + (bound_id or key_id(name))
    message = {
        "key": ksk.hex(),
        "context": [{"text": "sovstore/1 key"}, "00", ids, {"text": purpose}],
        "salt": draw(f"salt of {name} {purpose}", 24).hex(),
        "plaintext": (key or draw(f"key of {name}", size)).hex(),
    }
    return b64(expand({"cobblestone": message}))


def epoch(name: str, state: str, number: int = 0) -> dict[str, Any]:
    """Return the entry of an epoch."""
    entry = {"created": 1767225600 + number, "id": key_id(name), "state": state}
    return entry if state == "destroyed" else {**entry, "key": encrypted(name, "epoch")}


def body_of(mode: str = "encrypted", states: tuple[str, ...] = STATES) -> dict[str, Any]:
    """Return the body of a good keyset."""
    return {
        "format": 1,
        "store_id": STORE_ID.hex(),
        "version": 7,
        "created": 1767312000,
        "names": {"id": key_id("names"), "key": encrypted("names", "names", 64), "mode": mode},
        "auth": {"id": key_id("auth"), "key": encrypted("auth", "auth", key=AUTH_KEY)},
        "epochs": [epoch(f"epoch {number}", state, number) for number, state in enumerate(states)],
        "recovery": [],
    }


def context_of(body: str, store_id: bytes = STORE_ID) -> bytes:
    """Return the context of a wrapped KSK (section 6.3)."""
    return hashlib.sha256(b"sovstore/1 keyset\0" + store_id + body.encode()).digest()


def wrap(body: str, *, plaintext: bytes | None = None, aad: bytes | None = None, kek: bytes = KEK) -> bytes:
    """Return the KSK wrapped by a local KEK (section 6.3)."""
    context, nonce = context_of(body), draw(f"nonce {body}", 12)
    aad = context if aad is None else aad
    return nonce + AESGCM(kek).encrypt(nonce, KSK + context if plaintext is None else plaintext, aad or None)


def entry(uri: str, wrapped: bytes) -> dict[str, str]:
    """Return an entry of wraps."""
    return {"kek": uri, "wrapped": b64(wrapped)}


def wraps_of(body: str, **changes: Any) -> list[dict[str, str]]:
    """Return a wrap by the local KEK, and one by a KEK that nobody here has."""
    return [entry(URI, wrap(body, **changes)), entry(OTHER_URI, draw("other wrap", 108))]


def tag_of(body: str, wraps: Any, auth_key: bytes = AUTH_KEY) -> bytes:
    """Return the tag of a keyset (section 6.3)."""
    tag_key = expand_key(auth_key, b"sovstore/1 tag", STORE_ID, 64)
    return hmac.digest(tag_key, body.encode() + b"\0" + canonical(wraps).encode(), "sha512")


def outer_of(body: str, wraps: Any = None, tag: bytes | None = None) -> dict[str, Any]:
    """Return the file as a value, with a right tag unless another is given."""
    wraps = wraps_of(body) if wraps is None else wraps
    return {"body": body, "tag": b64(tag or tag_of(body, wraps)), "wraps": wraps}


def file_of(body: dict[str, Any] | str, **changes: Any) -> str:
    """Return the text of a keyset."""
    return canonical(outer_of(body if isinstance(body, str) else canonical(body), **changes))


def changed(*changes: Change, mode: str = "encrypted") -> dict[str, Any]:
    """Return a body after changes to it."""
    body = body_of(mode)
    for change in changes:
        change(body)
    return body


def setting(member: str, value: Any) -> Change:
    """Return a change that sets a member; a dot leads into an object or list."""

    def change(body: dict[str, Any]) -> None:
        *way, last = member.split(".")
        place: Any = body
        for step in way:
            place = place[int(step)] if step.isdigit() else place[step]
        place[int(last) if last.isdigit() else last] = value

    return change


def removing(member: str) -> Change:
    """Return a change that removes a member."""

    def change(body: dict[str, Any]) -> None:
        *way, last = member.split(".")
        place: Any = body
        for step in way:
            place = place[int(step)] if step.isdigit() else place[step]
        del place[last]

    return change


def opened(body: dict[str, Any]) -> Made:
    """Return what a reader learns from a good keyset."""
    keys = {
        "store_id": STORE_ID.hex(),
        "names_mode": body["names"]["mode"],
        "name_key": draw("key of names", 64).hex(),
        "epochs": {},
    }
    for number, item in enumerate(body["epochs"]):
        if "key" in item:
            keys["epochs"][item["id"]] = draw(f"key of epoch {number}", 32).hex()
    states = {item["id"]: item["state"] for item in body["epochs"]}
    return {"keys": keys, "states": states, "version": body["version"], "auth_key": AUTH_KEY.hex()}


def compact(text: str) -> Any:
    """Return a description of a text that is short if the text is a repetition."""
    start = 0
    parts: list[dict[str, Any]] = []
    for run in re.finditer(r"(.)\1{255,}", text):
        parts.append({"text": text[start : run.start()]})
        parts.append({"repeat": {"text": run[1]}, "n": len(run[0])})
        start = run.end()
    if not parts:
        return {"text": text}
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"sha256": digest, "of": [*parts, {"text": text[start:]}]}


def refused(cause: str, comment: str, text: str, expect: str = "format", **fields: Any) -> Made:
    """Return a vector of a text that is refused."""
    return vector(cause, comment, expect, file=compact(text), **{"ways": BOTH, **fields})

"""Targets: keysets, before and after they are authenticated, and the files of recovery."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sovstore.config_store import StoreConfig
from sovstore.errors import ConfigError, FormatError, IntegrityError, NoMatchingKeyError
from sovstore.format import canonical, keyset
from sovstore.format.keyset import MAX_BODY, MAX_FILE, Epoch, Keyset
from sovstore.format.recovery import Recipient, RecoveryKey
from sovstore.keysets import Keks, unlock, unlock_with_recovery
from sovstore.kms.base import Access
from sovstore.kms.local import LocalKey
from tests.fuzz.secrets import AUTH_KEY, KEK, KEY_ID, KSK, NAME_KEY, RECOVERY_KEY, STORE_ID, STORE_KEY, draw
from tests.fuzz.target import Target, hold
from tests.vectors.keyset_parts import encrypted

_URI = "keyfile:/kek"
_FIRST = Keyset(
    store_id=STORE_ID,
    version=7,
    created=1_800_000_000,
    names_mode="encrypted",
    names_id=draw("id of names", 16),
    names_key=NAME_KEY,
    auth_id=draw("id of auth", 16),
    auth_key=AUTH_KEY,
    epochs=(
        Epoch(draw("old id", 16), "destroyed", 1, None),
        Epoch(KEY_ID, "primary", 2, STORE_KEY),
        Epoch(draw("new id", 16), "readable", 3, STORE_KEY),
    ),
)
_CONFIG = StoreConfig(
    "fuzz",
    provider="local",
    root="/nowhere",
    kek=_URI,
    store_id=STORE_ID.hex(),
    auth_fingerprint=_FIRST.auth_fingerprint,
    source=Path("/nowhere/sovstore.toml"),
)
_LOCAL = LocalKey(_URI, KEK)
_KEKS = Keks(_CONFIG, Access())
_KEKS._opened[_URI] = _LOCAL


def _body() -> bytes:
    """Return the body of a good keyset under the KSK of the targets, so that mutations of it can be authenticated."""
    made = _FIRST.draft([RECOVERY_KEY.recipient])
    body = json.loads(made.body)
    for part, purpose, key in (
        (body["names"], "names", NAME_KEY),
        (body["auth"], "auth", AUTH_KEY),
        (body["epochs"][1], "epoch", STORE_KEY),
        (body["epochs"][2], "epoch", STORE_KEY),
    ):
        # By a fixed salt: what a run finds must be what it was in another process.
        bound = {"bound_id": part["id"], "store_id": STORE_ID, "ksk": KSK.reveal()}
        part["key"] = encrypted(part["id"], purpose, key=key.reveal(), **bound)
    body["recovery"][0]["seal"] = canonical.to_base64(RECOVERY_KEY.recipient.seal(KSK, STORE_ID))
    return canonical.dump(body)


def _file(body: bytes) -> bytes:
    """Return the file that somebody with the KEK and the auth key would make of a body."""
    wrapped = _LOCAL.wrap(KSK.reveal(), keyset.wrap_context(STORE_ID, body))
    wraps = [{"kek": _URI, "wrapped": canonical.to_base64(wrapped)}]
    tag = keyset._tag(AUTH_KEY, STORE_ID, body, canonical.dump(wraps))
    text = body.decode("ascii", "replace")
    return canonical.dump({"body": text, "tag": canonical.to_base64(tag), "wraps": wraps})


def parse_keyset(data: bytes) -> None:
    """Open a file as it came, or a body that is wrapped and tagged first, by a KEK or by the recovery key."""
    kind, rest = data[:1], data[1:]
    trusted = kind in (b"B", b"R")
    raw = _file(_reordered(rest)) if trusted else data
    parsed = keyset.parse(raw)
    wraps = [{"kek": uri, "wrapped": canonical.to_base64(wrapped)} for uri, wrapped in parsed.wraps.items()]
    again = {"body": parsed.body.decode(), "tag": canonical.to_base64(parsed._tag), "wraps": wraps}
    hold(canonical.dump(again) == raw, "a keyset comes out otherwise than it went in")
    opened = unlock_with_recovery(raw, _CONFIG, RECOVERY_KEY) if kind == b"R" else unlock(raw, _CONFIG, _KEKS)
    _hold_opened(opened, parsed)
    hold(trusted or parsed.body == _GENUINE, "a forged keyset opened")


def _reordered(body: bytes) -> bytes:
    """Return a body in canonical form, where a change left it JSON: what the change did is then looked at."""
    try:
        return canonical.dump(json.loads(body))
    except (ValueError, RecursionError):
        return body


def _hold_opened(opened: Keyset, parsed: keyset.ParsedKeyset) -> None:
    epochs = []
    for epoch, sealed in zip(opened.epochs, parsed._epochs, strict=True):
        entry = {"created": epoch.created, "id": epoch.id.hex(), "state": epoch.state}
        hold((epoch.key is None) == (epoch.state == "destroyed"), "a destroyed epoch has a key, or another has none")
        epochs.append(entry if sealed.sealed is None else {**entry, "key": canonical.to_base64(sealed.sealed)})
    again = {
        "format": 1,
        "store_id": opened.store_id.hex(),
        "version": opened.version,
        "created": opened.created,
        "names": {"id": opened.names_id.hex(), "key": canonical.to_base64(parsed._names[1]), "mode": opened.names_mode},
        "auth": {"id": opened.auth_id.hex(), "key": canonical.to_base64(parsed._auth[1])},
        "epochs": epochs,
        "recovery": [{"recipient": i.hex(), "seal": canonical.to_base64(s)} for i, s in parsed.seals.items()],
    }
    hold(canonical.dump(again) == parsed.body, "a keyset was read otherwise than it says")
    hold(opened.store_id == STORE_ID and opened.epoch(opened.primary.id) is opened.primary, "it is another store's")
    # Whatever was accepted can be used.
    hold(opened.names().encode("a/b"), "its names cannot be used")


_BODY = _body()
#: The one that the host has. Without its seal, which cannot be made the same twice.
_GENUINE = canonical.dump({**json.loads(_BODY), "recovery": []})


def _keysets() -> list[bytes]:
    body = json.loads(_BODY)
    changes = [{}, {"version": 1}, {"epochs": body["epochs"][1:2]}, {"format": 2}]
    changes += [{"names": {**body["names"], "mode": "plain"}}, {"version": 2**53}, {"created": -1}, {"epochs": []}]
    bodies = [_BODY, *(canonical.dump({**body, "recovery": [], **change}) for change in changes)]
    # Few with a seal, which takes ten times as long to open as all else.
    seeds = [b"R" + bodies[0], b"B" + bodies[0], *(b"B" + raw for raw in bodies[1:])]
    return [
        *seeds,
        _file(_GENUINE),
        _file(_GENUINE).replace(b"keyfile", b"keyring"),
        b"{}",
        b'{"body":"","tag":"","wraps":[]}',
    ]


def _filled(front: bytes, piece: bytes, end: bytes, most: int) -> bytes:
    return front + piece * ((most - len(front) - len(end)) // len(piece)) + end


def _keyset_bombs() -> Iterator[tuple[str, bytes]]:
    yield "one byte more than a file has", b" " * (MAX_FILE + 1)
    pieces = {
        "empty objects": b"{},",
        "empty lists": b"[],",
        "objects of one member": b'{"":0},',
        "zeros": b"0,",
        "numbers": b"1000,",
        "texts": b'"ab",',
        "escapes": b'"\\u0100",',
        "nested objects": b'{"":' * 400 + b"0" + b"}" * 400 + b",",
        "nested lists": b"[" * 400 + b"]" * 400 + b",",
        "long numbers": b"1" * 4300 + b",",
        "numbers that are too long": b"1" * 5000 + b",",
        "fractions": b"1e999999999,",
        "quotes": b'"\\"",',
    }
    for name, piece in pieces.items():
        yield f"2 MiB of {name} as wraps", _filled(b'{"body":"","tag":"","wraps":[', piece, b"0]}", MAX_FILE)
        if not piece.startswith((b"{", b"[")):
            yield f"1 MiB of {name} as epochs", b"B" + _filled(b'{"epochs":[', piece, b"0]}", MAX_BODY)
        if brackets := piece.count(b"[") + piece.count(b"{"):
            few = piece * (canonical.MOST_BRACKETS // brackets - 2)
            yield f"as many {name} as are parsed", b'{"body":[' + few + b"0]}"
    yield "2 MiB of members", b"{" + b",".join(b'"%07d":0' % n for n in range(MAX_FILE // 13)) + b"}"
    yield "a member 10^5 times", b"{" + b'"body":"",' * 10**5 + b'"tag":""}'
    yield "a text of 2 MiB", b'{"body":"' + b"x" * (MAX_FILE - 20) + b'"}'
    yield "a text of 2 MiB of escapes", b'{"body":"' + b"\\ud800" * (MAX_FILE // 6 - 4) + b'"}'
    yield "a body that is no text", b'{"body":' + b"[" * 10**5 + b"]" * 10**5 + b',"tag":"","wraps":[]}'
    yield "2 MiB of lists that do not end", b"[" * MAX_FILE
    # At every depth around the deepest that Python goes, since each step behind the parser has a limit of its own.
    for depth in range(sys.getrecursionlimit() - 120, sys.getrecursionlimit() + 5, 2):
        format_ = b"[" * depth + b"]" * depth
        yield f"a format that is {depth} deep", b"B" + _GENUINE.replace(b'"format":1', b'"format":' + format_)
    yield "a format of 4300 digits", b"B" + _BODY.replace(b'"format":1', b'"format":' + b"1" * 4300)
    yield "a format of 4301 digits", b"B" + _BODY.replace(b'"format":1', b'"format":' + b"1" * 4301)
    body = json.loads(_BODY)
    destroyed = [{"created": 1, "id": f"{n:032x}", "state": "destroyed"} for n in range(12_000)]
    yield "12 000 destroyed epochs", b"B" + canonical.dump({**body, "epochs": [body["epochs"][1], *destroyed]})
    seals = [{"recipient": f"{n:032x}", "seal": "AA=="} for n in range(14_000)]
    yield "14 000 recovery seals", b"B" + canonical.dump({**body, "recovery": seals})
    long_uri = {"kek": "k" * (MAX_FILE - len(_BODY) - 2000), "wrapped": "AA=="}
    yield (
        "a KEK of 2 MiB",
        canonical.dump({"body": _BODY.decode(), "tag": canonical.to_base64(bytes(64)), "wraps": [long_uri]}),
    )


def parse_recovery(data: bytes) -> None:
    """Load a recovery key or a recipient, or open a seal."""
    kind, rest = data[:1], data[1:]
    if kind == b"S":
        opened = RECOVERY_KEY.unseal(rest, STORE_ID)
        hold(opened.reveal() == KSK.reveal(), "a forged seal opened")
    else:
        loaded = (Recipient if kind == b"P" else RecoveryKey).load(rest, what="/nowhere/file")
        hold(loaded.dump() == rest.removesuffix(b"\n"), "a file comes out otherwise than it went in")


def _recoveries() -> list[bytes]:
    private, public = RECOVERY_KEY.dump(), RECOVERY_KEY.recipient.dump()
    zero = private.replace(canonical.to_base64(RECOVERY_KEY._scalar).encode(), canonical.to_base64(bytes(48)).encode())
    most = private.replace(
        canonical.to_base64(RECOVERY_KEY._scalar).encode(), canonical.to_base64(b"\xff" * 48).encode()
    )
    infinity = replace(RECOVERY_KEY.recipient, p384=bytes(97)).dump()
    seal = RECOVERY_KEY.recipient.seal(KSK, STORE_ID)
    seeds = [b"K" + raw for raw in (private, public, private + b"\n", zero, most)]
    seeds += [b"P" + raw for raw in (public, private, infinity, public + b"\n\n")]
    return [*seeds, b"S", b"S" + seal, b"S" + seal[:-1], b"S" + seal + b"\0", b"S" + bytes(1713), b"S" + bytes(1665)]


def _recovery_bombs() -> Iterator[tuple[str, bytes]]:
    for kind in (b"K", b"P"):
        yield f"{kind!r}: 16 KiB of lists", kind + b"[" * 16384
        yield f"{kind!r}: 2 MiB", kind + b"x" * MAX_FILE
    yield "a seal of 1 MiB", b"S" + bytes(MAX_BODY)


_MEMBERS = (
    b"body tag wraps kek wrapped format store_id version created names auth epochs recovery id key mode state recipient"
)
_VALUES = b"primary readable destroyed encrypted plain"
KEYSET = Target(
    "keyset",
    parse_keyset,
    (FormatError, IntegrityError, NoMatchingKeyError),
    _keysets,
    _keyset_bombs,
    [b'"%s"' % word for word in (_MEMBERS + b" " + _VALUES).split()] + [b"[]", b"{}", b"null", b"true", b"1e9", b"-1"],
    8192,
)
RECOVERY = Target(
    "recovery",
    parse_recovery,
    (ConfigError, IntegrityError),
    _recoveries,
    _recovery_bombs,
    [b'"format"', b'"mlkem1024"', b'"p384"', b"sovstore recovery key 1", b"sovstore recovery recipient 1"],
    4096,
)

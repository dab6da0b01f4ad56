"""Make the vectors of keysets that a KEK, or the KSK itself, opens."""

import base64
from typing import Any

from tests.vectors.keyset_parts import (
    AUTH_KEY,
    BOTH,
    KEK,
    KSK,
    OTHER_AUTH,
    OTHER_URI,
    URI,
    b64,
    body_of,
    canonical,
    changed,
    compact,
    context_of,
    encrypted,
    entry,
    file_of,
    key_id,
    opened,
    refused,
    removing,
    setting,
    tag_of,
    wrap,
    wraps_of,
)
from tests.vectors.make_keyset_texts import make_texts
from tests.vectors.make_objects import OTHER_STORE, STORE_ID, Made, draw, vector

MIB = 1 << 20


def make_keyset() -> tuple[Made, list[Made]]:
    """Return what the vectors of keysets have in common, and the vectors."""
    common = {"store_id": STORE_ID.hex(), "kek_uri": URI, "kek": KEK.hex(), "ksk": KSK.hex()}
    made = [
        *_good(),
        *make_texts(),
        *_members(),
        *_values(),
        *_wraps(),
        *_limits(),
        *_keys(),
        *_opening(),
    ]
    return common, made


def _good() -> list[Made]:
    bodies = {
        "three epochs, two KEKs": body_of(),
        "plain names": body_of("plain"),
        "one epoch": body_of(states=("primary",)),
        "the primary is the first of two epochs": body_of(states=("primary", "readable")),
        "two destroyed epochs": body_of(states=("destroyed", "primary", "destroyed")),
        "version 1": changed(setting("version", 1)),
        "version 2^53 - 1": changed(setting("version", (1 << 53) - 1)),
        "created at 0": changed(setting("created", 0)),
        "two recipients": changed(setting("recovery", _recipients("0", "f"))),
    }
    made = []
    for comment, body in bodies.items():
        made.append(vector("ok", comment, "ok", file=compact(file_of(body)), ways=BOTH, **opened(body)))
    text = canonical(body_of())
    wraps = {
        "one KEK": [entry(URI, wrap(text))],
        "16 KEKs": sorted([entry(URI, wrap(text)), *_other_wraps(15)], key=lambda item: item["kek"]),
        "4096 bytes in the wrap of another KEK": [entry(URI, wrap(text)), entry(OTHER_URI, bytes(4096))],
    }
    for comment, uri in {
        "a quotation mark and a backslash in a URI": 'keyring://"\\',
    }.items():
        wraps[comment] = [entry(URI, wrap(text)), entry(uri, draw("other wrap", 108))]
    for comment, value in wraps.items():
        file = compact(file_of(text, wraps=value))
        made.append(vector("ok", comment, "ok", file=file, ways=BOTH, **opened(body_of())))
    return made


def _recipients(*names: str) -> list[dict[str, str]]:
    return [{"recipient": name * 32, "seal": b64(bytes(1713))} for name in names]


def _other_wraps(count: int) -> list[dict[str, str]]:
    return [entry(f"keyring://sovstore/{n:02}", draw(f"other wrap {n}", 108)) for n in range(count)]


def _members() -> list[Made]:
    """Return bodies with a member too many or too few."""
    made = []
    for place in ("zone", "names.zone", "auth.zone", "epochs.2.zone"):
        made.append(refused("unknown-member", f"{place} in the body", file_of(changed(setting(place, 1)))))
    recipients = [{**_recipients("0")[0], "zone": 1}]
    made.append(refused("unknown-member", "zone of a recipient", file_of(changed(setting("recovery", recipients)))))
    entries = (
        "names.id",
        "names.key",
        "names.mode",
        "auth.id",
        "auth.key",
        "epochs.0.id",
        "epochs.2.created",
    )
    for place in (*body_of(), *entries, "epochs.1.key", "epochs.2.state"):
        made.append(refused("missing-member", f"{place} of the body", file_of(changed(removing(place)))))
    key = encrypted("epoch 0", "epoch")
    made.append(
        refused(
            "destroyed-with-key",
            "a destroyed epoch has a key",
            file_of(changed(setting("epochs.0.key", key))),
        )
    )
    return made


def _values() -> list[Made]:
    """Return bodies with a value that the members do not allow."""
    made = []
    twice = key_id("epoch 2")
    for cause, place, value, comment in (
        ("format-number", "format", 2, "format 2"),
        ("format-number", "format", 0, "format 0"),
        ("format-number", "format", "1", "format as a string"),
        ("version-number", "version", 0, "version 0"),
        ("version-number", "version", -1, "version -1"),
        ("version-number", "version", 1 << 53, "version 2^53"),
        ("version-number", "version", "7", "version as a string"),
        ("created", "created", "1767312000", "created as a string"),
        ("mode", "names.mode", "hidden", "an unknown mode"),
        ("mode", "names.mode", "Plain", "a mode in capitals"),
        ("state", "epochs.1.state", "retired", "an unknown state"),
        ("state", "epochs.1.state", "", "an empty state"),
        ("store-id", "store_id", STORE_ID.hex()[2:], "a store id of 15 bytes"),
        ("two-primaries", "epochs.1.state", "primary", "two primary epochs"),
        ("no-primary", "epochs.2.state", "readable", "no primary epoch"),
        ("no-epochs", "epochs", [], "no epoch"),
        ("type", "epochs", {}, "epochs is an object"),
        ("type", "recovery", {}, "recovery is an object"),
        ("type", "auth", [], "auth is an array"),
        ("same-key-id", "epochs.0.id", twice, "two epochs have one key id"),
        ("recipient", "recovery", _recipients("f", "0"), "recipients out of order"),
        ("recipient", "recovery", _recipients("0", "0"), "a recipient twice"),
        ("recipient", "recovery", [{"recipient": "00" * 15, "seal": b64(bytes(1713))}], "an id of 15 bytes"),
    ):
        made.append(refused(cause, comment, file_of(changed(setting(place, value)))))
    same = {"id": twice, "key": encrypted("auth", "auth", bound_id=twice, key=draw("auth key", 32))}
    made.append(refused("same-key-id", "auth has the key id of an epoch", file_of(changed(setting("auth", same)))))
    same = {"id": twice, "key": encrypted("names", "names", 64, bound_id=twice), "mode": "encrypted"}
    made.append(refused("same-key-id", "names has the key id of an epoch", file_of(changed(setting("names", same)))))
    for name, purpose, size in (("auth", "auth", 31), ("names", "names", 32), ("epoch 2", "epoch", 33)):
        place = {"auth": "auth.key", "names": "names.key", "epoch 2": "epochs.2.key"}[name]
        text = canonical(changed(setting(place, encrypted(name, purpose, size))))
        auth_key = draw("key of auth", 31) if name == "auth" else AUTH_KEY
        file = file_of(text, tag=tag_of(text, wraps_of(text), auth_key))
        made.append(refused("key-size", f"an authentic {name} key of {size} bytes", file))
    return made


def _wraps() -> list[Made]:
    """Return files whose wraps break a rule of section 6.1, under a right tag."""
    text = canonical(body_of())
    own, other = wraps_of(text)
    third = entry("keyring://sovstore/zone", draw("third wrap", 108))
    made = []
    for cause, comment, wraps in (
        ("wraps-order", "kek in descending order", [other, own]),
        ("wraps-twice", "a kek twice, with the same wrap", [own, own]),
        ("wraps-twice", "a kek twice, with other wraps", [own, other, {**third, "kek": OTHER_URI}]),
        ("wraps-count", "no wrap", []),
        ("wraps-count", "17 wraps", [own, *_other_wraps(16)]),
        ("wrapped-size", "4097 bytes wrapped", [own, entry(OTHER_URI, bytes(4097))]),
        ("type", "a kek is a number", [own, {**other, "kek": 1}]),
    ):
        made.append(refused(cause, comment, file_of(text, wraps=wraps)))
    return made


def _limits() -> list[Made]:
    made = []
    for size, expect in ((MIB, "ok"), (MIB + 1, "format")):
        body = next(
            b for b in (changed(setting("created", 10**n)) for n in range(4)) if not (size - _sealed_size(b, 0)) % 4
        )
        body["recovery"] = [{"recipient": "0" * 32, "seal": "A" * (size - _sealed_size(body, 0))}]
        fields = {"ways": BOTH, **(opened(body) if expect == "ok" else {})}
        cause, comment = ("ok" if expect == "ok" else "body-size"), f"a body of {size} bytes"
        made.append(vector(cause, comment, expect, file=compact(file_of(body)), **fields))
    text = canonical(body_of())
    for size, expect in ((2 * MIB, "ok"), (2 * MIB + 1, "format")):
        short = [entry(URI, wrap(text)), entry("keyring://", draw("other wrap", 108))]
        short[1]["kek"] += "k" * (size - len(file_of(text, wraps=short)))
        fields = {"ways": BOTH, **(opened(body_of()) if expect == "ok" else {})}
        cause, comment = ("ok" if expect == "ok" else "file-size"), f"a file of {size} bytes"
        made.append(vector(cause, comment, expect, file=compact(file_of(text, wraps=short)), **fields))
    return made


def _sealed_size(body: dict[str, Any], size: int) -> int:
    return len(canonical({**body, "recovery": [{"recipient": "0" * 32, "seal": "A" * size}]}))


def _keys() -> list[Made]:
    """Return keysets with an encrypted key that does not open, under a right tag and in right wraps."""
    made = []
    flip = base64.b64decode(encrypted("epoch 2", "epoch"))
    swapped = changed(
        setting("epochs.1.key", encrypted("epoch 2", "epoch")),
        setting("epochs.2.key", encrypted("epoch 1", "epoch")),
    )
    for cause, comment, body in (
        (
            "purpose",
            "an epoch's key made for names",
            changed(setting("epochs.2.key", encrypted("epoch 2", "names"))),
        ),
        (
            "purpose",
            "an epoch's key made for auth",
            changed(setting("epochs.1.key", encrypted("epoch 1", "auth"))),
        ),
        (
            "purpose",
            "the auth key made for an epoch",
            changed(setting("auth.key", encrypted("auth", "epoch"))),
        ),
        (
            "purpose",
            "the name key made for an epoch",
            changed(setting("names.key", encrypted("names", "epoch", 64))),
        ),
        ("swapped-keys", "the keys of two epochs are exchanged", swapped),
        ("other-key-id", "an epoch under another key id", changed(setting("epochs.2.id", "00" * 16))),
        (
            "other-store-key",
            "a key of another store",
            changed(setting("epochs.2.key", encrypted("epoch 2", "epoch", store_id=OTHER_STORE))),
        ),
        (
            "other-ksk",
            "an epoch's key under another KSK",
            changed(setting("epochs.2.key", encrypted("epoch 2", "epoch", ksk=draw("other ksk", 32)))),
        ),
        ("flip", "first bit of an encrypted key", changed(setting("epochs.2.key", b64(_flipped(flip, 0))))),
        ("flip", "commitment of an encrypted key", changed(setting("epochs.2.key", b64(_flipped(flip, 55))))),
        ("flip", "last bit of an encrypted key", changed(setting("epochs.2.key", b64(_flipped(flip, -1))))),
    ):
        made.append(refused(cause, comment, file_of(body), "integrity"))
    return made


def _flipped(data: bytes, byte: int) -> bytes:
    changed_data = bytearray(data)
    changed_data[byte] ^= 0x80 if byte == 0 else 1
    return bytes(changed_data)


def _opening() -> list[Made]:
    """Return files that are right but for a tag, a wrap, a KEK, or the store they are for."""
    text = canonical(body_of())
    own, other = wraps_of(text)
    tag = tag_of(text, [own, other])
    third = entry("keyring://sovstore/zone", draw("third wrap", 108))
    newer, unsigned = changed(setting("version", 8)), changed(setting("created", 1))
    made = []
    for cause, comment, file in (
        ("tag", "first bit of the tag", file_of(text, tag=_flipped(tag, 0))),
        ("tag", "last bit of the tag", file_of(text, tag=_flipped(tag, -1))),
        ("tag", "a tag by another auth key", file_of(text, tag=tag_of(text, [own, other], OTHER_AUTH))),
        ("tag", "a tag without wraps", file_of(text, tag=tag_of(text, []))),
        ("tag", "the tag of the version before", file_of(newer, tag=tag)),
        ("tag", "a body changed under its old tag", file_of(unsigned, tag=tag)),
        (
            "other-wrap",
            "another KEK's wrap is changed",
            file_of(text, tag=tag, wraps=[own, entry(OTHER_URI, bytes(108))]),
        ),
        (
            "other-wrap",
            "another KEK's URI is changed",
            file_of(text, tag=tag, wraps=[own, {**other, "kek": OTHER_URI + "2"}]),
        ),
        ("other-wrap", "another KEK's wrap is removed", file_of(text, tag=tag, wraps=[own])),
        ("other-wrap", "another KEK's wrap is added", file_of(text, tag=tag, wraps=[own, other, third])),
        (
            "store-id",
            "the body names another store, all else is of this one",
            file_of(changed(setting("store_id", OTHER_STORE.hex()))),
        ),
    ):
        made.append(refused(cause, comment, file, "integrity"))
    other_ksk = draw("other ksk", 32).hex()
    made.append(
        refused(
            "configured-store",
            "a right keyset of a store that is not the configured one",
            file_of(text),
            "integrity",
            store_id=OTHER_STORE.hex(),
        )
    )
    made.append(refused("ksk", "another KSK", file_of(text), "integrity", ways=["ksk"], ksk=other_ksk))
    older = wraps_of(canonical(changed(setting("version", 6))))[0]
    for comment, wrapped, expect in (
        ("first bit of the own wrap", _flipped(wrap(text), 0), "integrity"),
        ("last bit of the own wrap", _flipped(wrap(text), -1), "integrity"),
        ("the own wrap is of the version before", base64.b64decode(older["wrapped"]), "integrity"),
        ("wrapped by another KEK", wrap(text, kek=draw("other kek", 32)), "integrity"),
        ("wrapped without AAD", wrap(text, aad=b""), "integrity"),
        ("wrapped with the store id as AAD", wrap(text, aad=STORE_ID), "integrity"),
        ("another context behind the KSK", wrap(text, plaintext=KSK + bytes(32)), "integrity"),
        ("no context behind the KSK", wrap(text, plaintext=KSK), "integrity"),
        ("half a context behind the KSK", wrap(text, plaintext=KSK + context_of(text)[:16]), "integrity"),
        (
            "another KSK in the wrap",
            wrap(text, plaintext=bytes.fromhex(other_ksk) + context_of(text)),
            "integrity",
        ),
        ("12 bytes: a nonce alone", bytes(12), "integrity"),
        ("11 bytes", bytes(11), "integrity"),
    ):
        file = file_of(text, wraps=[entry(URI, wrapped), other])
        made.append(refused("own-wrap", comment, file, expect, ways=["kek"]))
    for comment, uri in {
        "a letter outside ASCII in a URI": "keyring://\u00e9",
        "a character beyond the basic plane in a URI": "keyring://\U0001f512",
        "a line feed in a URI": "keyring://\n",
        "a delete character in a URI": "keyring://\x7f",
    }.items():
        file = file_of(text, wraps=[own, entry(uri, draw("other wrap", 108))])
        made.append(refused("uri", comment, file, "format"))
    made.append(
        refused("no-wrap", "no wrap by this KEK", file_of(text, wraps=[other]), "no_matching_key", ways=["kek"])
    )
    longer = file_of(text, wraps=[{**own, "kek": URI + "2"}, other])
    made.append(refused("no-wrap", "a wrap by this KEK under a longer URI", longer, "no_matching_key", ways=["kek"]))
    return made

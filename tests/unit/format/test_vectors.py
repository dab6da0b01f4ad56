"""`sovstore.format` on every own vector; tools/sovread.py is the second verifier."""

from __future__ import annotations

import pytest

from sovstore.errors import FormatError, IntegrityError, NoMatchingKeyError, PathError, UnwrapError
from sovstore.format import body, header, keyset
from sovstore.format.cobblestone import CHUNK, WIRE_CHUNK
from sovstore.format.keyset import Keyset
from sovstore.format.names import EncryptedNames, PlainNames
from sovstore.format.recovery import RecoveryKey
from sovstore.kms.local import LocalKey
from sovstore.secret import Secret
from tests.bodies import open_in_order
from tests.vectors.load import load

KINDS = {
    FormatError: "format",
    PathError: "format",
    IntegrityError: "integrity",
    UnwrapError: "integrity",
    NoMatchingKeyError: "no_matching_key",
}


def outcome(function, *arguments):
    """Return "ok" and the result, or the kind of refusal and None."""
    try:
        return "ok", function(*arguments)
    except tuple(KINDS) as exc:
        return KINDS[type(exc)], None


@pytest.mark.parametrize("vector", load("header"), ids=str)
def test_header(vector):
    def opened():
        key_id = header.header_key_id(vector.data("header"), what="object")
        keys = {bytes.fromhex(e["id"]): Secret(bytes.fromhex(e["key"])) for e in vector["epochs"] if "key" in e}
        if key_id not in keys:
            raise IntegrityError("unknown epoch: `Store` says so in the same words")
        store_id = bytes.fromhex(vector["store_id"])
        return header.open_header(keys[key_id], store_id, vector["path"], vector.data("header"), what="object")

    kind, dek = outcome(opened)
    assert kind == vector.expect
    assert (dek and dek.reveal()) == (vector.data("dek") if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("body"), ids=str)
def test_body_streamed(vector):
    for at_once in (64, 1):
        kind, plaintext = outcome(open_in_order, Secret(vector.data("dek")), vector.data("message"), at_once)
        # A size that no object has is told by the size.
        assert kind == vector.expect or (kind, vector.expect) == ("format", "integrity")
        assert plaintext == (vector.data("plaintext") if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("body"), ids=str)
def test_body_by_chunks(vector):
    def opened():
        message = vector.data("message")
        size = body.plain_size(header.HEADER + len(message))
        opener = body.body_opener(Secret(vector.data("dek")), message[:56], what="object")
        out = bytearray(size)
        # The last chunk first, as a reader does that wants some bytes only.
        for chunk_no in reversed(range(size // CHUNK + 1)):
            start = 56 + chunk_no * WIRE_CHUNK
            target = memoryview(out)[chunk_no * CHUNK : (chunk_no + 1) * CHUNK]
            opener.open_into(chunk_no, memoryview(message)[start : start + WIRE_CHUNK], target)
        return bytes(out)

    kind, plaintext = outcome(opened)
    # A size that no object has is told before anything is decrypted.
    assert kind == vector.expect or (kind, vector.expect) == ("format", "integrity")
    assert (kind == "ok") == (vector.expect == "ok")
    assert plaintext == (vector.data("plaintext") if kind == "ok" else None)


def _decode(names, name):
    path = ""
    for segment in name.split("/"):
        plain = names.decode_segment(path, segment)
        path = f"{path}/{plain}" if path else plain
    return path


@pytest.mark.parametrize("vector", load("names"), ids=str)
def test_names(vector):
    store_id, name_key = bytes.fromhex(vector["store_id"]), bytes.fromhex(vector["name_key"])
    names = PlainNames() if vector["mode"] == "plain" else EncryptedNames(name_key, store_id)
    if vector["direction"] in ("encode", "both"):
        # The empty path is the root to the library; that it is no object's is checked in `Store`.
        kind, name = ("format", None) if vector["path"] == "" else outcome(names.encode, vector["path"])
        assert (kind, name) == (vector.expect, vector["name"] if kind == "ok" else None)
    if vector["direction"] in ("decode", "both"):
        kind, path = outcome(_decode, names, vector["name"])
        assert (kind, path) == (vector.expect, vector["path"] if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("sizes"), ids=str)
def test_sizes(vector):
    if vector["direction"] in ("plain_to_wire", "both"):
        if vector.expect == "ok":
            assert body.wire_size(vector["plain_size"]) == vector["wire_size"]
        else:
            with pytest.raises(ValueError, match="an object holds"):
                body.wire_size(vector["plain_size"])
    if vector["direction"] in ("wire_to_plain", "both"):
        kind, size = outcome(body.plain_size, vector["wire_size"])
        assert (kind, size) == (vector.expect, vector["plain_size"] if kind == "ok" else None)


def _assert_keys(vector, opened: Keyset):
    expected = vector["keys"]
    assert opened.store_id.hex() == expected["store_id"]
    assert opened.names_mode == expected["names_mode"]
    assert opened.names_key.reveal().hex() == expected["name_key"]
    assert {e.id.hex(): e.key.reveal().hex() for e in opened.epochs if e.key} == expected["epochs"]
    assert {e.id.hex(): e.state for e in opened.epochs} == vector["states"]
    assert (opened.version, opened.auth_key.reveal().hex()) == (vector["version"], vector["auth_key"])


def _by_kek(vector):
    parsed = keyset.parse(vector.data("file"))
    store_id = bytes.fromhex(vector["store_id"])
    context = parsed.context(store_id)
    if vector["kek_uri"] not in parsed.wraps:
        raise NoMatchingKeyError("no wrap")
    kek = LocalKey(vector["kek_uri"], Secret(bytes.fromhex(vector["kek"])))
    return parsed.unlock(Secret(kek.unwrap(parsed.wraps[vector["kek_uri"]], context)), store_id)


def _by_ksk(vector):
    return keyset.parse(vector.data("file")).unlock(Secret(vector.data("ksk")), bytes.fromhex(vector["store_id"]))


@pytest.mark.parametrize("vector", load("keyset"), ids=str)
def test_keyset(vector):
    for way in vector["ways"]:
        kind, opened = outcome({"kek": _by_kek, "ksk": _by_ksk}[way], vector)
        assert kind == vector.expect, way
        if kind == "ok":
            _assert_keys(vector, opened)


@pytest.mark.parametrize("vector", load("recovery"), ids=str)
def test_recovery(vector):
    def opened():
        parsed, store_id = keyset.parse(vector.data("file")), bytes.fromhex(vector["store_id"])
        parsed.context(store_id)
        key = RecoveryKey.load(vector["recovery_key"].encode(), what="recovery key")
        if key.recipient.id not in parsed.seals:
            raise NoMatchingKeyError("no seal")
        ksk = key.unseal(parsed.seals[key.recipient.id], store_id)
        return parsed.unlock(ksk, store_id, auth_fingerprint=vector["auth_fingerprint"])

    try:
        kind, result = outcome(opened)
    except ValueError:  # ConfigError: a recovery key file that is none is the caller's mistake
        kind, result = "format", None
    assert kind == vector.expect
    if kind == "ok":
        _assert_keys(vector, result)

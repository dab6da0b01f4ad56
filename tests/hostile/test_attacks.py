"""What a hostile host does, one test for each attack, through fsspec's API and the command line.

Each says which real system fell to it, and is numbered as in docs/security-tests.md. Breadth (every bit, every size,
every way of reading, every host) is in `test_tamper.py` and `test_keyset_tamper.py`.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from sovstore import keysets, listing, rotation
from sovstore.backends.base import Stat
from sovstore.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    KeyDeniedError,
    KMSUnavailableError,
    NoMatchingKeyError,
    ObjectChangedError,
    PathError,
    StoreError,
)
from sovstore.format.body import OVERHEAD, WIRE_CHUNK, BodySealer, wire_size
from sovstore.format.header import HEADER, seal_header
from sovstore.format.keyset import Keyset
from sovstore.format.recovery import RecoveryKey
from sovstore.kms.local import LocalKey
from sovstore.secret import Secret
from sovstore.testing import HostileBackend, Request, hostile_hosts
from tests import stress
from tests.hostile.test_tamper import chunks, flipped, noise
from tests.hostile.victim import NOT_AUTHENTIC, REFUSED, Victim, make_victim
from tests.hosts import cheap_key_files

CHUNK = 16384
SIZE = 5 * CHUNK + 777
KEYSET = keysets.LOCATION


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


@pytest.fixture
def at() -> Iterator[Callable[[str], HostileBackend]]:
    with hostile_hosts() as at:
        yield at


@pytest.fixture
def victim(tmp_path: Path, at: Any, capsysbinary: Any) -> Victim:
    return make_victim(tmp_path, at, capsysbinary)


@pytest.fixture
def pinned(tmp_path: Path, at: Any, capsysbinary: Any) -> Victim:
    return make_victim(tmp_path, at, capsysbinary, freshness="pinned")


def test_an_honest_host(victim: Victim) -> None:
    # Everything below says "refused"; this says that it is not refused for another reason.
    for size in (0, 1, CHUNK, SIZE, 20 * CHUNK):
        victim.fs.pipe_file("a/b", noise(size))
        victim.whole("a/b", noise(size))


# 1 to 5: what is inside of an object


@pytest.mark.parametrize("size", [100, 3 * CHUNK, SIZE, 300 * CHUNK])
def test_01_truncated(victim: Victim, size: int) -> None:
    # azure-storage-blob 12.31 accepts it at 4 MiB, rclone crypt and Crypt4GH 1.8 at any of their chunks.
    victim.fs.pipe_file("object", noise(size))
    good = victim.get("object")
    for end in {
        0,
        HEADER,
        OVERHEAD,
        OVERHEAD + WIRE_CHUNK,
        len(good) - WIRE_CHUNK,
        len(good) - 16,
        wire_size(size // 2),
    }:
        if 0 <= end < len(good):
            victim.set("object", good[:end])
            victim.refused("object")


def test_02_extended(victim: Victim) -> None:
    # Crypt4GH 1.8 takes another segment at the end for data.
    victim.fs.pipe_file("object", noise(SIZE))
    good = victim.get("object")
    for tail in (b"\0", noise(16), good[-(16 + 777) :], bytes(WIRE_CHUNK), good[OVERHEAD : OVERHEAD + WIRE_CHUNK]):
        victim.set("object", good + tail)
        victim.refused("object")


def test_03_one_byte_cut(victim: Victim) -> None:
    # fsspec-encrypted 0.8 has no authentication: AES-CBC takes whatever is left, as long as it is whole blocks.
    victim.fs.pipe_file("object", noise(SIZE))
    good = victim.get("object")
    for at in (0, 8, 24, HEADER, OVERHEAD - 1, OVERHEAD, OVERHEAD + WIRE_CHUNK, len(good) - 1):
        victim.set("object", good[:at] + good[at + 1 :])
        victim.refused("object")


def test_04_an_old_chunk_appended(victim: Victim) -> None:
    # Crypt4GH 1.8: segments carry neither a number nor an end.
    victim.fs.pipe_file("object", noise(SIZE, 1))
    older = chunks(victim.get("object"))
    for size in (SIZE, SIZE // CHUNK * CHUNK):
        victim.fs.pipe_file("object", noise(size, 2))
        good = victim.get("object")
        for piece in older[1:]:
            victim.set("object", good + piece)
            victim.refused("object")


_REARRANGED: dict[str, Callable[[list[bytes], list[bytes]], list[bytes]]] = {
    "swapped": lambda new, old: [new[0], new[2], new[1], *new[3:]],
    "duplicated": lambda new, old: [*new[:2], *new[1:]],
    "one in place of another": lambda new, old: [new[0], new[2], new[2], *new[3:]],
    "dropped": lambda new, old: [new[0], *new[2:]],
    "the first dropped": lambda new, old: new[1:],
    "the last dropped": lambda new, old: new[:-1],
    "of another version": lambda new, old: [*new[:2], old[2], *new[3:]],
    "all of another version": lambda new, old: list(old),
}


@pytest.mark.parametrize("how", _REARRANGED)
def test_05_chunks_rearranged(victim: Victim, how: str) -> None:
    # Crypt4GH 1.8 accepts swapped, dropped and duplicated segments; so did pCloud and Seafile (Hofmann, Truong 2024).
    victim.fs.pipe_file("object", noise(SIZE, 1))
    _, *old = chunks(victim.get("object"))
    victim.fs.pipe_file("object", noise(SIZE, 2))
    head, *new = chunks(victim.get("object"))
    parts = _REARRANGED[how](new, old)
    victim.set("object", head + b"".join(parts))
    # Where the first and the last chunk and the length are right, what is before the change is what was written.
    inner = parts[0] == new[0] and parts[-1] == new[-1] and len(parts) == len(new)
    victim.refused("object", beginning=noise(SIZE, 2) if inner else b"")


# 6 to 8: one object for another


def test_06_objects_exchanged(victim: Victim, tmp_path: Path, at: Any, capsysbinary: Any) -> None:
    # azure-storage-blob 12.31, Amazon S3 Encryption Client for Python 4.0 and PyArrow 26 accept it; MinIO once did too,
    # with keys that customers provide (SSE-C), since its key was not bound to the path.
    second = make_victim(tmp_path, at, capsysbinary, "second")
    assert second.fs.store.config.kek == victim.fs.store.config.kek
    for path, seed in (("one", 1), ("two", 2), ("folder/one", 3)):
        victim.fs.pipe_file(path, noise(SIZE, seed))
        second.fs.pipe_file(path, noise(SIZE, 10 + seed))
    for other in ("two", "folder/one"):
        victim.host.exchange(victim.named("one"), victim.named(other))
        victim.refused("one")
        victim.refused(other)
        victim.host.exchange(victim.named("one"), victim.named(other))
    victim.whole("one", noise(SIZE, 1))
    victim.set("one", second.get("one"))
    victim.refused("one")
    # And at a name that was never written: a host cannot make an object appear.
    victim.host.objects[victim.named("new")] = victim.get("two")
    victim.refused("new")


def test_07_header_of_one_on_the_body_of_another(victim: Victim) -> None:
    # The shape of the attack on the Amazon S3 Encryption Client and on azure-storage-blob: the wrapped key lies in
    # metadata, apart from the body, and the host pairs them as it likes.
    victim.fs.pipe({"one": noise(SIZE, 1), "two": noise(SIZE, 2)})
    one, two = victim.get("one"), victim.get("two")
    for path, raw in {"one": one[:HEADER] + two[HEADER:], "two": two[:HEADER] + one[HEADER:]}.items():
        victim.set(path, raw)
        victim.refused(path)
        # The same with the salt and the commitment of the other one.
        victim.set(path, raw[:HEADER] + (one if path == "one" else two)[HEADER:OVERHEAD] + raw[OVERHEAD:])
        victim.refused(path)


def test_08_plaintext_in_place_of_an_object(victim: Victim) -> None:
    # azure-storage-blob 12.31 takes it once the metadata is gone; PyArrow 26 takes a plaintext Parquet file.
    frame, parquet = pd.DataFrame({"person_id": range(3000), "name": "somebody"}), io.BytesIO()
    frame.to_parquet(parquet)
    csv = frame.to_csv().encode()
    frame.to_parquet("sov://cohortes/table.parquet", storage_options={"config": str(victim.file)})
    for raw in (parquet.getvalue(), csv, csv[: wire_size(1000)], b"", bytes(wire_size(10))):
        victim.set("table.parquet", raw)
        victim.refused("table.parquet", by=FormatError)
        with pytest.raises(FormatError):
            pd.read_parquet("sov://cohortes/table.parquet", storage_options={"config": str(victim.file)})


# 9 to 12: objects that were made to deceive


def test_09_versions_sizes_and_magic(victim: Victim) -> None:
    # ZIP bombs and length fields that are believed: a reader allocates what a stranger's header says.
    victim.fs.pipe_file("object", noise(SIZE))
    good = victim.get("object")
    for version in (0, 2, 255):
        victim.set("object", good[:7] + bytes([version]) + good[8:])
        victim.refused("object", by=FormatError)
    for magic in (b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"PAR1", b"\x89PNG", b"age-"):
        victim.set("object", magic + good[len(magic) :])
        victim.refused("object", by=FormatError)
    victim.set("object", good)
    for size in (0, 199, wire_size(0), wire_size(2**30), wire_size(2**38 * CHUNK - 1), 2**63, 2**70):
        lie = _about(victim, "object", lambda stat, size=size: replace(stat, size=size))
        with victim.host.lying("stat", lie), victim.host.lying("list", _each(lie)):
            for read in (victim.fs.info, lambda path: victim.fs.ls("")):
                read("object")
            with pytest.raises(REFUSED), victim.fs.open("object") as file:
                file.read(10)
            code, out, _ = victim.command("cat", victim.url("object"))
            # A size is not even asked for where one request brings all of the object.
            assert (code, out) in ((NOT_AUTHENTIC, b""), (0, noise(SIZE)))


def test_10_bits_flipped_everywhere(victim: Victim) -> None:
    # fsspec-encrypted 0.8 returns other plaintext: CBC turns a flipped bit into one of the reader's choice.
    for size in (0, 1, SIZE):
        victim.fs.pipe_file("object", noise(size))
        good = victim.get("object")
        read = range(0, 8 * len(good), 8 * len(good) // 100)
        for bit in read:
            victim.set("object", flipped(good, bit))
            with pytest.raises(REFUSED):
                victim.fs.cat_file("object")
        used = (0, 8 * 8, 8 * 24, 8 * HEADER, 8 * OVERHEAD, 8 * len(good) - 1)
        for bit in used:
            victim.set("object", flipped(good, bit))
            victim.refused("object", beginning=b"")
        stress.record("Flips", of="object, by fsspec and the command line", flips=len(read) + len(used))


def test_11_sealed_under_the_attackers_keys(victim: Victim) -> None:
    # Sync.com and pCloud encrypted to keys that their server handed out (Hofmann, Truong 2024); Nextcloud too (2024).
    victim.fs.pipe_file("object", b"the user's own")
    good, keyset = victim.get("object"), victim.fs._sync(victim.fs.store.keyset)
    mine = Keyset.create(now=1, names_mode="encrypted", store_id=keyset.store_id)
    for key_id in (mine.primary.id, keyset.primary.id):
        dek, sealed = Secret(noise(32)), bytearray(1000)
        header = seal_header(mine.primary.key, keyset.store_id, key_id, "object", dek)
        sealer = BodySealer(dek)
        written = sealer.update_into(b"made by the host", sealed)
        victim.set("object", header + bytes(sealed[:written]) + sealer.finalize())
        assert len(victim.get("object")) == wire_size(16)
        victim.refused("object", by=IntegrityError)
    victim.set("object", good)
    victim.whole("object", b"the user's own")


def _times(x: int, y: int) -> int:
    """Return the product in the field of GHASH (NIST SP 800-38D, 6.3); the leftmost bit is the lowest power."""
    z = 0
    for bit in range(127, -1, -1):
        if y >> bit & 1:
            z ^= x
        x = x >> 1 ^ (0xE1 << 120 if x & 1 else 0)
    return z


def _power(x: int, n: int) -> int:
    result = 1 << 127
    for bit in bin(n)[2:]:
        result = _times(result, result)
        if bit == "1":
            result = _times(result, x)
    return result


def _two_keys(keys: list[bytes], nonces: list[bytes], body: bytes) -> bytes:
    """Return one AES-GCM ciphertext with its tag that is authentic under two keys (Dodis et al. 2018, Albertini 2020).

    `body` is what it begins with; one block behind it is chosen so that both tags agree.
    """
    assert len(body) % 16 == 0
    blocks = [int.from_bytes(body[i : i + 16], "big") for i in range(0, len(body), 16)]
    size, tags, hashes = 8 * (len(body) + 16), [], []
    for key, nonce in zip(keys, nonces, strict=True):
        encrypt = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # noqa: S305  # one block
        h = int.from_bytes(encrypt(bytes(16)), "big")
        y = 0
        for block in (*blocks, 0, size):
            y = _times(y ^ block, h)
        hashes.append(h)
        tags.append(y ^ int.from_bytes(encrypt(nonce + b"\0\0\0\1"), "big"))
    # The block stands two multiplications before the end: T1 + X H1^2 = T2 + X H2^2.
    factor = _power(hashes[0], 2) ^ _power(hashes[1], 2)
    chosen = _times(tags[0] ^ tags[1], _power(factor, 2**128 - 2))
    tag = tags[0] ^ _times(chosen, _power(hashes[0], 2))
    return body + chosen.to_bytes(16, "big") + tag.to_bytes(16, "big")


def test_12_one_ciphertext_for_two_keys(victim: Victim) -> None:
    # Facebook's message franking ("invisible salamanders", Dodis et al. 2018); the AWS Encryption SDK before 2.0
    # (CVE-2020-8897): AES-GCM alone does not commit to its key.
    keyset = victim.fs._sync(victim.fs.store.keyset)
    deks, salt = [noise(32, 1), noise(32, 2)], noise(24)
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + b"sovstore/1 body"
    derived = [HKDFExpand(SHA512(), 76, info).derive(dek) for dek in deks]
    keys, nonces = [d[:32] for d in derived], [d[32:44] for d in derived]
    chunk = _two_keys(keys, nonces, noise(64))
    # The attack works on what an object is made of.
    plain = [AESGCM(key).decrypt(nonce, chunk, None) for key, nonce in zip(keys, nonces, strict=True)]
    assert plain[0] != plain[1]
    with pytest.raises(InvalidTag):
        AESGCM(keys[0]).decrypt(nonces[0], flipped(chunk, 1), None)
    for commits_to in (0, 1):
        body = salt + derived[commits_to][44:] + chunk
        for opened_with in (0, 1):
            header = seal_header(
                keyset.primary.key, keyset.store_id, keyset.primary.id, "object", Secret(deks[opened_with])
            )
            victim.set("object", header + body)
            if opened_with == commits_to:
                victim.whole("object", plain[commits_to])
            else:
                victim.refused("object", by=IntegrityError)


# 13 and 14: the keyset


def _edited(raw: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    file = json.loads(raw)
    change(file)
    return json.dumps(file, separators=(",", ":"), sort_keys=True).encode()


def _reversed(file: dict[str, Any]) -> None:
    body = json.loads(file["body"])
    body["epochs"].reverse()
    file["body"] = json.dumps(body, separators=(",", ":"), sort_keys=True)


def test_13_the_keyset_replaced(victim: Victim, tmp_path: Path, at: Any, capsysbinary: Any) -> None:
    # Nextcloud and MEGA: whoever hands out unauthenticated keys reads everything (Albrecht et al., Backendal et al.).
    victim.fs.pipe_file("object", b"data")
    second = make_victim(tmp_path, at, capsysbinary, "second")
    keyset = victim.fs._sync(victim.fs.store.keyset)
    older = victim.host.objects[KEYSET]
    victim.fs._sync(lambda: rotation.new_epoch(victim.fs.store))
    victim.whole("object", b"data")
    good = victim.host.objects[KEYSET]
    own = LocalKey(victim.fs.store.config.kek, Secret(noise(32)))
    forged = Keyset.create(now=1, names_mode="encrypted", store_id=keyset.store_id)
    attacks = {
        "forged": keysets.wrap_anew(forged, [own], []),
        "replayed": older,
        "foreign": second.host.objects[KEYSET],
        "truncated": good[:-100],
        "nothing": b"",
        "reordered": _edited(good, _reversed),
        "names in the clear": good.replace(rb"\"mode\":\"encrypted\"", rb"\"mode\":\"plain\""),
        "an older body": _edited(good, lambda file: file.update(body=json.loads(older)["body"])),
        "older wraps": _edited(good, lambda file: file.update(wraps=json.loads(older)["wraps"])),
        "wrapped by somebody else too": _edited(
            good, lambda file: file["wraps"].append({"kek": "keyfile:/zzz", "wrapped": file["wraps"][0]["wrapped"]})
        ),
    }
    for what, raw in attacks.items():
        assert raw != good, what
        victim.host.objects[KEYSET] = raw
        with pytest.raises((IntegrityError, FormatError)):
            victim.fresh.cat_file("object")
        with pytest.raises((IntegrityError, FormatError)):
            victim.fresh.pipe_file("new", b"to whom?")
        for command in (("ls", victim.url("")), ("cat", victim.url("object")), ("keys", "rotate-kek", "cohortes")):
            code, out, err = victim.command(*command)
            assert (code, out) == (NOT_AUTHENTIC, b""), (what, err)
        assert victim.host.objects[KEYSET] == raw
    # What is open already goes on with what it has: nothing is written to keys of the host's choice.
    assert victim.fs.cat_file("object") == b"data"
    victim.host.objects[KEYSET] = good
    victim.whole("object", b"data")


def test_14_a_keyset_for_a_recovery_key_alone(tmp_path: Path, at: Any, capsysbinary: Any) -> None:
    # HPKE says nothing of its sender: anybody can seal to a public key, as anybody can write a PGP message to you.
    recovery = RecoveryKey.generate()
    (tmp_path / "rescue.pub").write_bytes(recovery.recipient.dump())
    (tmp_path / "rescue").write_bytes(recovery.dump())
    victim = make_victim(tmp_path, at, capsysbinary, recovery=[str(tmp_path / "rescue.pub")])
    victim.fs.pipe_file("object", b"data")
    keyset = victim.fs._sync(victim.fs.store.keyset)
    forged = Keyset.create(now=1, names_mode="encrypted", store_id=keyset.store_id).next_version(now=1)
    own = LocalKey("keyfile:/of/the/host", Secret(noise(32)))
    victim.host.objects[KEYSET] = keysets.wrap_anew(forged, [own], [recovery.recipient])
    with pytest.raises(NoMatchingKeyError):
        victim.fresh.cat_file("object")
    code, out, err = victim.command("cat", "--recovery-key", str(tmp_path / "rescue"), victim.url("object"))
    assert (code, out) == (NOT_AUTHENTIC, b""), err
    assert "not the one that was pinned" in err


# 15 to 17: old objects, and listings


def test_15_an_older_version_at_its_own_path(victim: Victim) -> None:
    # Every store without a manifest or a counter; documented in docs/threat-model.md.
    victim.fs.pipe_file("object", b"one")
    victim.fs.pipe_file("object", b"two")
    victim.host.replay(victim.named("object"))
    victim.whole("object", b"one")


def test_15_an_older_version_where_versions_are_pinned(pinned: Victim) -> None:
    # TUF and The Update Framework's ancestors: package managers that were served old, signed, vulnerable packages.
    pinned.fs.pipe_file("object", b"one")
    pinned.fs.pipe_file("object", b"two")
    pinned.host.replay(pinned.named("object"))
    pinned.refused("object", by=IntegrityError)
    with pytest.raises(IntegrityError, match="older than a version that was seen here"):
        pinned.fresh.cat_file("object")
    # One that was only read here and written elsewhere; and one that was deleted.
    pinned.host.objects[pinned.named("object")] = pinned.host.versions[pinned.named("object")][-1]
    pinned.whole("object", b"two")
    pinned.fs.rm("object")
    pinned.host.replay(pinned.named("object"), -1)
    pinned.refused("object", by=IntegrityError)
    # The owner of a backup says so.
    code, _, err = pinned.command("accept", pinned.url("object"))
    assert (code, err[:22]) == (0, "accepted 1 object, 3 B")
    pinned.whole("object", b"two")


def test_15_a_pinned_version_is_written_again_under_every_change(pinned: Victim) -> None:
    """What the owner does to an object is no replay: renames, copies, new epochs, rewraps, other loops and clients."""
    pinned.fs.pipe({"a": noise(SIZE, 1), "b": b"b"})
    pinned.fs.mv("a", "c")
    pinned.fs.cp_file("c", "a")
    pinned.fs.mv("c", "a")
    pinned.whole("a", noise(SIZE, 1))
    assert pinned.command("keys", "new-epoch", "cohortes")[0] == 0
    assert pinned.command("keys", "rewrap", "cohortes")[0] == 0
    pinned.whole("a", noise(SIZE, 1))
    for n in range(5):
        pinned.fresh.pipe_file("a", noise(n, n))
        assert pinned.fs.cat_file("a") == noise(n, n)
    pinned.whole("b", b"b")
    for version in pinned.host.versions[pinned.named("a")][:-1]:
        pinned.set("a", version)
        with pytest.raises(IntegrityError):
            pinned.fs.cat_file("a")


def test_15_what_accept_needs(victim: Victim) -> None:
    code, _, err = victim.command("accept", victim.url("object"))
    assert (code, "no version is refused as older" in err) == (2, True)


def _about(victim: Victim, path: str, change: Callable[[Stat], Stat]) -> Callable[[Request, Any], Any]:
    name = victim.named(path)
    return lambda request, stat: change(stat) if isinstance(stat, Stat) and stat.name == name else stat


def _each(lie: Callable[[Request, Any], Any]) -> Callable[[Request, Any], Any]:
    return lambda request, stats: [lie(request, stat) for stat in stats]


def test_16_listings_that_omit_repeat_and_invent(victim: Victim) -> None:
    # Tresorit, MEGA, Nextcloud and more let the server move, hide and invent entries (Hofmann, Truong 2024).
    victim.fs.pipe({f"folder/{n}": bytes([n]) for n in range(5)})
    honest = victim.fs.find("folder")
    with victim.host.lying("list", lambda request, stats: [*stats, *stats, *stats]):
        assert victim.fs.find("folder") == honest
        assert victim.fs.ls("folder", detail=False) == honest
        assert victim.fs.du("folder") == 5
        code, out, _ = victim.command("ls", "-R", victim.url("folder"))
        assert (code, out.count(b"\n")) == (0, 5)
    with victim.host.lying("list", lambda request, stats: [s for s in stats if s.size != wire_size(1)][:0]):
        # Not detected, and said to be so.
        assert victim.fs.find("folder") == []
    folder, inner = victim.named("folder"), victim.named("folder/1").rpartition("/")[2]
    invented = [
        "evil",
        "../../etc/passwd",
        "..",
        ".",
        "a/b",
        inner[:-1],
        inner + "A",
        victim.named("folder"),
        "%2e%2e",
        "\0",
        "é" * 400,
    ]
    for name in invented:
        with victim.host.lying(
            "list", lambda request, stats, name=name: [*stats, Stat(f"{folder}/{name}", wire_size(5))]
        ):
            found = (
                victim.fs.ls("folder", detail=True)
                if "/" not in name
                else victim.fs.find("folder", detail=True).values()
            )
            foreign = [info for info in found if info["foreign"]]
            assert len(foreign) == 1, name
            assert not {".", ".."} & set(foreign[0]["name"].split("/"))
            assert foreign[0]["name"].startswith("folder/")
            code, _, err = victim.command("verify", "cohortes")
            assert code == 0, err
            # Some are longer than any path.
            with pytest.raises((*REFUSED, PathError)):
                victim.fs.cat_file(foreign[0]["name"])
    # Of another folder than was asked for.
    for name in ("evil", "folderevil", f"{folder}x/evil", "../evil", "/etc/passwd"):
        with victim.host.lying("list", lambda request, stats, name=name: [*stats, Stat(name, wire_size(5))]):
            with pytest.raises(IntegrityError, match="which is not in this folder"):
                victim.fs.ls("folder")
            assert victim.command("ls", victim.url("folder"))[0] == NOT_AUTHENTIC


def _endless(victim: Victim, what: str) -> Callable[[Request, Any], Any]:
    folder, honest = victim.named("folder"), [Stat(victim.named(f"folder/{n}"), wire_size(1)) for n in range(5)]

    def names() -> Iterator[Stat]:
        for n in count():
            if what == "the same for ever":
                yield honest[n % 5]
            elif what == "always new":
                yield Stat(f"{folder}/{n:x}", wire_size(1))
            else:
                yield Stat(f"{folder}/{n:x}", 0, folder=True)

    return lambda request, stats: names()


def test_17_a_listing_without_end(victim: Victim) -> None:
    """As many as is allowed, and then no more."""
    with (
        victim.host.lying("list", _endless(victim, "always new")),
        pytest.raises(IntegrityError, match="100,000 names"),
    ):
        victim.fs.du("folder")


@pytest.mark.parametrize("what", ["the same for ever", "always new", "always new folders"])
def test_17_listings_without_end(victim: Victim, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # ListObjectsV2 goes on as long as the server says IsTruncated: boto3's paginator has no bound of its own.
    monkeypatch.setattr(listing, "_MOST_FOREIGN", 500)
    victim.fs.pipe({f"folder/{n}": bytes([n]) for n in range(5)})
    with victim.host.lying("list", _endless(victim, what)):
        for call in (victim.fs.ls, victim.fs.find, victim.fs.du, lambda path: list(victim.fs.walk(path))):
            with pytest.raises(IntegrityError, match="listing"):
                call("folder")
        for command in ("ls", "verify", "rm -r", "get -r"):
            word, *options = command.split()
            target = [str(victim.folder / "target")] if word == "get" else []
            code, _, err = victim.command(word, *options, victim.url("folder"), *target)
            assert code == NOT_AUTHENTIC, (command, err)
    assert victim.fs.find("folder") == [f"folder/{n}" for n in range(5)] or what == "the same for ever"


# 18 and 19: what a reply says of itself


_SAID: dict[str, Callable[[Stat], Stat]] = {
    "smaller": lambda stat: replace(stat, size=stat.size - WIRE_CHUNK),
    "larger": lambda stat: replace(stat, size=stat.size + WIRE_CHUNK),
    "a byte more": lambda stat: replace(stat, size=stat.size + 1),
    "empty": lambda stat: replace(stat, size=wire_size(0)),
    "a folder": lambda stat: replace(stat, size=0, folder=True),
    "another ETag": lambda stat: replace(stat, etag="0" * 32),
    "no ETag": lambda stat: replace(stat, etag=None),
    "from the future": lambda stat: replace(stat, modified=datetime(9999, 12, 31, tzinfo=UTC)),
    "without a time": lambda stat: replace(stat, modified=None),
}


@pytest.mark.parametrize("what", _SAID)
def test_18_what_the_host_says_of_an_object(victim: Victim, what: str) -> None:
    # Hadoop S3A's client-side encryption was unusable for years, since listed sizes were not those of the data.
    data = noise(40 * CHUNK)
    victim.fs.pipe_file("object", data)
    lie = _about(victim, "object", _SAID[what])
    with victim.host.lying("stat", lie), victim.host.lying("list", _each(lie)):
        for way in victim.ways("object"):
            # The truth or an error, whatever is said; and nothing of it is taken for data.
            # A folder is fetched by making one, where there is a file.
            with suppress(*REFUSED, StoreError, FileExistsError):
                assert way() in (data, data[:10])
        code, out, err = victim.command("cat", victim.url("object"))
        assert (code == 0 and out == data) or (code != 0 and not out), err
        assert victim.command("ls", "-l", victim.url(""))[0] == 0
        if what in ("smaller", "larger", "a byte more", "empty"):
            victim.refused("object")
    victim.whole("object", data)


_GIVEN: dict[str, Callable[[Request, bytes], bytes]] = {
    "everything in place of a range": lambda request, whole: whole,
    "another range": lambda request, whole: whole[request.start + 1 : request.end + 1],
    "less": lambda request, whole: whole[request.start : request.end][:-1],
    "more": lambda request, whole: whole[request.start : request.end + 1] + b"x",
    "nothing": lambda request, whole: b"",
    "gzip": lambda request, whole: gzip.compress(whole[request.start : request.end]),
    "base64": lambda request, whole: base64.b64encode(whole[request.start : request.end]),
}


@pytest.mark.parametrize("what", _GIVEN)
def test_18_another_range_than_was_asked_for(victim: Victim, what: str) -> None:
    # rclone serve s3 answers ranges with 200; gcsfs, opendal and DuckDB met bodies that were unpacked on the way
    # (Content-Encoding). On the wire, of real servers behind a proxy: tests/integration/test_faults.py.
    data = noise(40 * CHUNK)
    victim.fs.pipe_file("object", data)
    name, whole = victim.named("object"), victim.get("object")
    with victim.host.lying("read", lambda request, truth: _GIVEN[what](request, whole), name=name):
        victim.refused("object")
    with victim.fs.open("object") as file:
        file.read(10)
        with victim.host.lying("read", lambda request, truth: _GIVEN[what](request, whole), name=name):
            file.seek(20 * CHUNK)
            with pytest.raises(REFUSED):
                file.read(10)
    victim.whole("object", data)


@pytest.mark.parametrize("with_etags", [True, False])
def test_19_an_object_that_changes_between_two_reads(victim: Victim, with_etags: bool) -> None:
    # Readers that open, seek and read make several requests: a Parquet reader takes the footer of one version and the
    # columns of another (the reason for If-Match in s3fs and PyArrow).
    first, second = noise(60 * CHUNK, 1), noise(60 * CHUNK, 2)
    hide = _about(victim, "object", lambda stat: replace(stat, etag=None))
    with ExitStack() as stack:
        if not with_etags:
            stack.enter_context(victim.host.lying("stat", hide))
        victim.fs.pipe_file("object", first)
        with victim.fs.open("object") as file:
            assert file.read(10) == first[:10]
            victim.fs.pipe_file("object", second)
            for start in (20 * CHUNK, 30 * CHUNK + 5):
                file.seek(start)
                with pytest.raises((IntegrityError, ObjectChangedError)):
                    file.read(2 * CHUNK)
        # One that changes at every request is never opened as a mixture.
        versions = [*victim.host.versions[victim.named("object")], victim.get("object")]
        turn = count()
        mixed = victim.host.lying(
            "read",
            lambda request, truth: versions[next(turn) % 2][request.start : request.end],
            name=victim.named("object"),
        )
        with mixed:
            for way in victim.ways("object"):
                with suppress(*REFUSED, ObjectChangedError):
                    assert way() in (first, second, first[:10], second[:10])
            code, out, _ = victim.command("cat", victim.url("object"))
            assert any(version.startswith(out) for version in (first, second))
            assert code == 0 or out not in (first, second)


# 20 to 22: headers, metadata, names


def test_20_an_old_header_after_a_rename(victim: Victim) -> None:
    # Systems that wrap a key per file and not per name: whoever has the old wrapped key puts it back (S3EC, CSE).
    victim.fs.pipe_file("before", noise(SIZE))
    old = victim.get("before")[:HEADER]
    victim.fs.mv("before", "after")
    victim.set("after", old + victim.get("after")[HEADER:])
    victim.refused("after")
    # At the old path it is the old object: nothing says that a path was given up, but a pinned record.
    victim.host.objects[victim.named("before")] = victim.host.versions[victim.named("before")][-1]
    victim.whole("before", noise(SIZE))


def test_20_an_old_header_after_a_rename_where_versions_are_pinned(pinned: Victim) -> None:
    pinned.fs.pipe_file("before", noise(SIZE))
    pinned.fs.mv("before", "after")
    pinned.host.objects[pinned.named("before")] = pinned.host.versions[pinned.named("before")][-1]
    pinned.refused("before", by=IntegrityError)
    pinned.whole("after", noise(SIZE))


def test_21_metadata_altered(victim: Victim) -> None:
    # azure-storage-blob 12.31 and the S3 Encryption Client keep key and algorithm in metadata: without it, or with
    # other, the client takes ciphertext for plaintext or another algorithm for its own. There is none here to alter.
    victim.fs.pipe_file("object", noise(SIZE))
    lie = _about(victim, "object", lambda stat: Stat(stat.name, stat.size))
    with victim.host.lying("stat", lie), victim.host.lying("list", _each(lie)):
        victim.whole("object", noise(SIZE))
        info = victim.fs.info("object")
        assert (info["size"], info["type"]) == (SIZE, "file")
    for option in ("content_type", "ContentType", "metadata", "Metadata", "tags", "ACL"):
        for write in (victim.fs.pipe_file, lambda path, data, **options: victim.fs.open(path, "wb", **options)):
            with pytest.raises(ConfigError, match="a sealed object has no metadata at the host"):
                write("object", b"x", **{option: "canary"})
    victim.whole("object", noise(SIZE))


def test_22_names_altered(victim: Victim) -> None:
    # All of Sync, pCloud, Icedrive, Seafile and Tresorit let the server rename or move files (Hofmann, Truong 2024);
    # rclone crypt decrypts an object under any name.
    names = ["folder/one", "folder/two", "other/one", f"folder/{unicodedata.normalize('NFC', 'é')}"]
    victim.fs.pipe({name: name.encode() for name in names})
    good = dict(victim.host.objects)
    one = victim.named("folder/one")
    folder, _, inner = one.rpartition("/")
    moved = {
        "swapped": victim.named("folder/two"),
        "to another folder": f"{victim.named('other')}/{inner}",
        "to the root": inner,
        "case-folded": f"{folder}/{inner.lower()}",
        "upper": f"{folder}/{inner.upper()}",
        "with padding": f"{folder}/{inner}==",
        "over-long": f"{folder}/{inner * 20}",
        "undecryptable": f"{folder}/{'A' * len(inner)}",
        "dots": f"{folder}/../{inner}",
        "the store's own": f".SOVSTORE/{inner}",
        "plain": "folder/one",
        "NFD": f"{folder}/e\u0301",
    }
    for what, name in moved.items():
        victim.host.objects = {other: data for other, data in good.items() if other not in (one, name)} | {
            name: good[one]
        }
        listed = victim.fs.find("", detail=True)
        ours = {path for path, info in listed.items() if not info["foreign"]}
        assert ours <= set(names), what
        for path in ours - {"folder/one"}:
            if victim.host.objects[victim.named(path)] == good[one]:
                victim.refused(path)
            else:
                victim.whole(path, path.encode())
        for path in set(listed) - ours:
            assert not {"..", "."} & set(path.split("/")), what
            with pytest.raises((*REFUSED, PathError)):
                victim.fs.cat_file(path)
            code, out, _ = victim.command("cat", victim.url(path))
            # To a process that did not list it, it is a path that is not there.
            assert (code in (1, 2, NOT_AUTHENTIC), out) == (True, b""), what
        # Not there, or a foreign name that looks like it.
        with pytest.raises((FileNotFoundError, FormatError)):
            victim.fs.cat_file("folder/one")
        # Nothing of a hostile name reaches the disk outside of the folder that it is fetched into.
        target = victim.folder / f"fetched {len(what)}"
        victim.command("get", "-r", victim.url("folder"), str(target))
        outside = [p for p in victim.folder.rglob("*") if p.is_file() and p.read_bytes() == good[one]]
        assert outside == [], what
    victim.host.objects = good
    assert victim.fs.find("") == sorted(names)


# 23 and 24: the KMS, and parts that are sent again


def test_23_the_kms_is_down_wrong_or_slow(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    # A client that goes on without its KMS goes on without keys: some fall back to a cached or to no key at all. Real
    # servers, stopped, sealed and slow: tests/integration/test_kms_*.
    victim.fs.pipe_file("object", b"data")
    before = dict(victim.host.objects)
    real = LocalKey.unwrap
    answers: dict[str, tuple[Callable[..., bytes], type[Exception], int]] = {
        "down": (_raising(KMSUnavailableError("kms: does not answer", path="kms")), KMSUnavailableError, 4),
        "denied": (_raising(KeyDeniedError("kms: no", path="kms")), KeyDeniedError, 4),
        "another key": (lambda self, wrapped, context: noise(32), IntegrityError, NOT_AUTHENTIC),
        "no key": (lambda self, wrapped, context: b"", IntegrityError, NOT_AUTHENTIC),
        "too much": (lambda self, wrapped, context: real(self, wrapped, context) * 2, IntegrityError, NOT_AUTHENTIC),
    }
    for what, (answer, error, code) in answers.items():
        monkeypatch.setattr(LocalKey, "unwrap", answer)
        for call in (lambda fs: fs.cat_file("object"), lambda fs: fs.pipe_file("new", b"x"), lambda fs: fs.ls("")):
            with pytest.raises(error):
                call(victim.fresh)
        assert victim.command("cat", victim.url("object"))[:2] == (code, b""), what
        assert victim.command("put", str(victim.file), victim.url("new"))[0] == code, what
        assert victim.host.objects == before, what
    monkeypatch.setattr(LocalKey, "unwrap", real)
    victim.whole("object", b"data")


def _raising(error: Exception) -> Callable[..., bytes]:
    def answer(*args: object) -> bytes:
        raise error

    return answer


def test_24_a_part_that_is_asked_for_again(victim: Victim) -> None:
    # A retry that encrypts again under the same nonce gives the host two plaintexts' difference (GCM): AWS S3EC and
    # Crypt4GH re-read the source on a retry. Here what was sealed is sent again, or nothing; on the wire, with parts
    # that the host loses: tests/hostile/test_parts.py.
    refusals = iter([StoreError("the host lost it"), None, None])

    def once(request: Request, truth: Any) -> Any:
        error = next(refusals, None)
        return error if error is not None else truth

    with victim.host.lying("write", once), pytest.raises(StoreError, match="the host lost it"):
        victim.fs.pipe_file("object", noise(SIZE, 1))
    victim.fs.pipe_file("object", noise(SIZE, 2))
    written = [request.data for request in victim.host.received if request.method == "write"]
    grams = [{data[i : i + 16] for i in range(len(data) - 16)} for data in written]
    assert len(written) >= 2
    # Nothing that was sent once is sent again with other bytes behind it: neither header, salt nor key stream.
    assert not grams[0] & grams[-1]
    victim.whole("object", noise(SIZE, 2))


# 27: erasure (25 and 26, what leaks, is test_leaks.py)


def test_27_a_destroyed_epoch(victim: Victim) -> None:
    # Cryptographic erasure that forgets a copy of the key: backups that restore it, caches that go on serving it.
    cohort = [f"cohort/{n}" for n in range(5)]
    victim.fs.pipe({path: noise(SIZE, n) for n, path in enumerate(cohort)})
    first = victim.fs._sync(victim.fs.store.keyset).primary.id
    old_keyset = victim.host.objects[KEYSET]
    assert victim.command("keys", "new-epoch", "cohortes")[0] == 0
    fs = victim.fresh
    fs.pipe({"kept/new": b"new", "kept/moved": b"moved"})
    assert victim.command("keys", "destroy-epoch", "cohortes", first.hex(), "--yes")[0] == 0
    victim.fs._sync(victim.fs.store.close)
    for path in cohort:
        victim.refused(path, by=IntegrityError)
        with pytest.raises(IntegrityError, match="destroyed"):
            victim.fresh.cat_file(path)
    for path, data in {"kept/new": b"new", "kept/moved": b"moved"}.items():
        victim.whole(path, data)
    # The host puts the keyset back that still has the key; and old headers under it on what is new.
    victim.host.objects[KEYSET] = old_keyset
    for path in (*cohort, "kept/new"):
        with pytest.raises(IntegrityError):
            victim.fresh.cat_file(path)
    assert victim.command("cat", victim.url(cohort[0]))[0] == NOT_AUTHENTIC

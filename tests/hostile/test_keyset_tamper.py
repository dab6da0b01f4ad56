"""What a host can do to the keyset: every change is refused, whichever KEK opens it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sovstore import keysets
from sovstore.config import StoreConfig
from sovstore.errors import ConfigError, FormatError, IntegrityError, NoMatchingKeyError
from sovstore.filesystem import SovFileSystem
from sovstore.format import canonical
from sovstore.format.keyset import Keyset
from sovstore.format.recovery import RecoveryKey
from sovstore.kms.base import Access
from sovstore.kms.local import LocalKey
from sovstore.secret import Secret
from tests import stress
from tests.hosts import PROVIDERS, Host, cheap_key_files, open_host
from tests.stores import open_fs

REFUSED = (IntegrityError, FormatError)
#: Two KEKs whose URIs differ in one bit, and one whose URI comes before and one that comes after them.
URIS = ("keyfile:/keys/b0", "keyfile:/keys/b1", "keyfile:/a", "keyring://store/z")


@pytest.fixture
def keks(monkeypatch: pytest.MonkeyPatch) -> dict[str, LocalKey]:
    """KEKs that cost nothing to open, in place of those that the drivers would open by their URIs."""
    made = {uri: LocalKey(uri, Secret(os.urandom(32))) for uri in URIS}
    monkeypatch.setattr(keysets.registry, "open_key", lambda uri, access: made[uri])
    return made


def _config(keyset: Keyset, uri: str) -> StoreConfig:
    return StoreConfig("cohortes", kek=uri, store_id=keyset.store_id.hex(), auth_fingerprint=keyset.auth_fingerprint)


def _sealed(keyset: Keyset, keks: list[LocalKey], recovery: RecoveryKey | None = None) -> bytes:
    return keysets.wrap_anew(keyset, keks, [recovery.recipient] if recovery else [])


def _unlock(raw: bytes, config: StoreConfig) -> Keyset:
    return keysets.unlock(raw, config, Access())


def _keyset(names: str = "encrypted") -> Keyset:
    """Return a keyset with an epoch in every state."""
    keyset = Keyset.create(now=1, names_mode=names)
    first = keyset.primary.id
    keyset = keyset.add_epoch(now=2)
    keyset = keyset.promote(keyset.epochs[1].id, now=3).destroy(first, now=4).add_epoch(now=5)
    assert [epoch.state for epoch in keyset.epochs] == ["destroyed", "primary", "readable"]
    return keyset


def _flips(raw: bytes) -> Any:
    changed = bytearray(raw)
    for bit in range(8 * len(raw)):
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


def _recovery(raw: bytes) -> Any:
    return json.loads(json.loads(raw)["body"])["recovery"]


@pytest.mark.parametrize("uris", [URIS[:1], URIS[:2], URIS[1::-1], (URIS[0], URIS[2]), (URIS[0], URIS[3])])
def test_every_bit(keks: dict[str, LocalKey], uris: tuple[str, ...]) -> None:
    """With one KEK and with two, the second one's label before and after ours: its wrap is authentic as well."""
    keyset = _keyset()
    raw, config = _sealed(keyset, [keks[uri] for uri in uris]), _config(keyset, uris[0])
    assert _unlock(raw, config).version == keyset.version
    found = Counter[type]()
    for _, changed in _flips(raw):
        with pytest.raises(REFUSED) as caught:
            _unlock(changed, config)
        found[type(caught.value)] += 1
    assert found.total() == 8 * len(raw) > 10_000
    stress.record("Flips", of="keyset", flips=found.total())
    assert set(found) == {IntegrityError, FormatError}


def test_every_bit_with_a_recovery_recipient(keks: dict[str, LocalKey]) -> None:
    keyset, recovery = Keyset.create(now=1, names_mode="plain"), RecoveryKey.generate()
    raw, config = _sealed(keyset, [keks[URIS[0]]], recovery), _config(keyset, URIS[0])
    refused = 0
    for bit, changed in _flips(raw):
        with pytest.raises(REFUSED):
            _unlock(changed, config)
        refused += 1
        # The same by recovery key, which costs more: a sample. An id that was changed is that of nobody.
        if bit % 41 == 0:
            with pytest.raises((*REFUSED, NoMatchingKeyError)) as caught:
                keysets.unlock_with_recovery(changed, config, recovery)
            if isinstance(caught.value, NoMatchingKeyError):
                assert (
                    json.loads(json.loads(changed)["body"])["recovery"]
                    != json.loads(json.loads(raw)["body"])["recovery"]
                )
    assert refused == 8 * len(raw)
    stress.record("Flips", of="keyset", flips=refused)
    assert keysets.unlock_with_recovery(raw, config, recovery).version == 1


def test_a_flip_in_any_of_many_wraps(keks: dict[str, LocalKey]) -> None:
    """Each KEK refuses a change of any other one's wrap or label."""
    keyset = _keyset()
    raw = _sealed(keyset, list(keks.values()))
    start = raw.index(b'"wraps"')
    refused = 0
    for uri in URIS:
        config = _config(keyset, uri)
        assert _unlock(raw, config).epochs
        for bit, changed in _flips(raw[start:]):
            if bit % 3 == 0:
                with pytest.raises(REFUSED):
                    _unlock(raw[:start] + changed, config)
                refused += 1
    assert refused > 4 * 8 * 300 // 3


def _edited(raw: bytes, edit: Any) -> bytes:
    """Return the keyset with its parts changed, in canonical form again: what a host with a JSON library can do."""
    file = json.loads(raw)
    body = json.loads(file["body"])
    edit(file, body)
    file["body"] = canonical.dump(body).decode()
    return canonical.dump(file)


def _edits() -> dict[str, Any]:
    """Return changes of well-formed keysets that leave them well formed."""

    def wraps(change: Any) -> Any:
        return lambda file, body: change(file["wraps"])

    def relabel(entries: list[dict[str, str]]) -> None:
        entries[0]["kek"] = "keyfile:/another"

    def swap(entries: list[dict[str, str]]) -> None:
        entries[0]["wrapped"], entries[1]["wrapped"] = entries[1]["wrapped"], entries[0]["wrapped"]

    def copy(entries: list[dict[str, str]]) -> None:
        entries[1]["wrapped"] = entries[0]["wrapped"]

    def add(entries: list[dict[str, str]]) -> None:
        entries.append({"kek": "keyring://zzz/evil", "wrapped": entries[0]["wrapped"]})

    def promote(file: Any, body: Any) -> None:
        body["epochs"][1]["state"], body["epochs"][2]["state"] = "readable", "primary"

    def destroy(file: Any, body: Any) -> None:
        body["epochs"][2]["state"] = "destroyed"
        del body["epochs"][2]["key"]

    def revive(file: Any, body: Any) -> None:
        body["epochs"][0] |= {"state": "readable", "key": body["epochs"][1]["key"]}

    def exchange(file: Any, body: Any) -> None:
        first, second = body["epochs"][1], body["epochs"][2]
        first["key"], second["key"] = second["key"], first["key"]

    return {
        "no wrap but ours": wraps(lambda entries: entries.pop()),
        "no wrap of ours": wraps(lambda entries: entries.pop(0)),
        "one more wrap": wraps(add),
        "our wrap under another label": wraps(relabel),
        "two wraps exchanged": wraps(swap),
        "our wrap twice": wraps(copy),
        "version": lambda file, body: body.update(version=body["version"] + 1),
        "created": lambda file, body: body.update(created=0),
        "names in the clear": lambda file, body: body["names"].update(mode="plain"),
        "another epoch is primary": promote,
        "an epoch destroyed": destroy,
        "a destroyed epoch revived": revive,
        "keys exchanged": exchange,
        "keys of another purpose": lambda file, body: body["auth"].update(key=body["epochs"][1]["key"]),
        "ids exchanged": lambda file, body: body["auth"].update(
            {"id": body["epochs"][0]["id"]}
        ) or body["epochs"][0].update(id="00" * 16),
        "an epoch dropped": lambda file, body: body["epochs"].pop(0),
        "epochs in another order": lambda file, body: body["epochs"].reverse(),
        "a recipient": lambda file, body: body["recovery"].append({"recipient": "00" * 16, "seal": "AAAA"}),
        "another tag": lambda file, body: file.update(tag=canonical.to_base64(bytes(64))),
        "another store": lambda file, body: body.update(store_id="00" * 16),
        "another format": lambda file, body: body.update(format=2),
    }  # fmt: skip


@pytest.mark.parametrize("what", _edits())
def test_well_formed_changes(keks: dict[str, LocalKey], what: str) -> None:
    keyset = _keyset()
    raw, config = _sealed(keyset, [keks[URIS[2]], keks[URIS[3]]]), _config(keyset, URIS[2])
    assert _edited(raw, lambda file, body: None) == raw
    changed = _edited(raw, _edits()[what])
    assert changed != raw
    # Without any wrap that the KEK made, that it does not open is all that can be said.
    expected = NoMatchingKeyError if what == "no wrap of ours" else REFUSED
    with pytest.raises(expected):
        _unlock(changed, config)


def test_parts_of_two_versions(keks: dict[str, LocalKey]) -> None:
    """Body, wraps and tag of an older version do not mix with those of a newer one."""
    keyset = _keyset()
    both = [keks[URIS[0]], keks[URIS[1]]]
    older, newer = _sealed(keyset, both), _sealed(keyset.next_version(now=9), both)
    config, cases = _config(keyset, URIS[0]), 0
    for parts in range(1, 7):
        mixed = json.loads(newer)
        for index, part in enumerate(("body", "tag", "wraps")):
            if parts >> index & 1:
                mixed[part] = json.loads(older)[part]
        with pytest.raises(IntegrityError):
            _unlock(canonical.dump(mixed), config)
        cases += 1
    assert cases == 6
    # A wrap of the older version for the other KEK.
    mixed = json.loads(newer)
    mixed["wraps"][1] = json.loads(older)["wraps"][1]
    with pytest.raises(IntegrityError):
        _unlock(canonical.dump(mixed), config)


def test_what_is_not_canonical(keks: dict[str, LocalKey]) -> None:
    keyset = _keyset()
    raw, config = _sealed(keyset, [keks[URIS[0]]]), _config(keyset, URIS[0])
    file = json.loads(raw)
    cases = [
        b"",
        b"{}",
        b"null",
        b"[]",
        raw + b"\n",
        b" " + raw,
        raw + raw,
        raw.replace(b'{"body"', b'{ "body"', 1),
        raw.replace(b'"tag":', b'"tag":"","tag":', 1),
        raw[:-1] + b',"z":1}',
        json.dumps({key: file[key] for key in ("wraps", "tag", "body")}, separators=(",", ":")).encode(),
        b"\xef\xbb\xbf" + raw,
        raw.decode().encode("utf-16"),
        b"[" * 5000,
        b"\0" * 1000,
        bytes(3 * 2**20),
        raw[:-1] + b" " * 3 * 2**20 + b"}",
    ]
    for case in cases:
        with pytest.raises(FormatError):
            _unlock(case, config)
    assert len(cases) == 17
    for end in range(len(raw)):
        with pytest.raises(FormatError):
            _unlock(raw[:end], config)


def test_a_keyset_forged_for_a_recovery_key(keks: dict[str, LocalKey]) -> None:
    """Anyone can seal to a recipient. The pinned fingerprint says that it was not the owner of the store."""
    recovery, keyset = RecoveryKey.generate(), Keyset.create(now=1, names_mode="encrypted")
    forged = Keyset.create(now=1, names_mode="encrypted", store_id=keyset.store_id)
    config = _config(keyset, URIS[0])
    raw = _sealed(forged, [keks[URIS[3]]], recovery)
    with pytest.raises(IntegrityError, match="not the one that was pinned"):
        keysets.unlock_with_recovery(raw, config, recovery)
    with pytest.raises(ConfigError, match="fingerprint"):
        keysets.unlock_with_recovery(raw, replace(config, auth_fingerprint=None), recovery)


# The same through an open store.


@pytest.fixture(params=PROVIDERS)
def host(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    cheap_key_files(monkeypatch)
    return open_host(tmp_path, request.param)


#: Calls that each open the store.
_USES: list[Callable[[SovFileSystem], Any]] = [
    lambda fs: fs.cat_file("object"),
    lambda fs: fs.ls(""),
    lambda fs: fs.exists("object"),
    lambda fs: fs.pipe_file("new", b"1"),
    lambda fs: fs.find(""),
    lambda fs: fs.rm("object"),
    lambda fs: list(fs.walk("")),
    lambda fs: fs.open("new", "wb"),
]


def test_a_sample_through_the_filesystem(host: Host) -> None:
    host.fs.pipe_file("object", b"data")
    raw, file = host.get_file(keysets.LOCATION), host.fs.store.config.source
    rng, refused = random.Random(1), 0
    for _ in range(150):
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        host.set_file(keysets.LOCATION, bytes(changed))
        with pytest.raises(REFUSED):
            rng.choice(_USES)(open_fs(file, skip_instance_cache=True))
        refused += 1
    assert refused == 150
    stress.record("Flips", of="keyset, by every use of it", flips=refused)
    host.set_file(keysets.LOCATION, raw)
    fs = open_fs(file, skip_instance_cache=True)
    assert fs.find("") == ["object"]
    assert fs.cat_file("object") == b"data"


def test_an_open_store_meets_an_altered_keyset(host: Host) -> None:
    """A header that names an unknown epoch makes the store read the keyset again; a bad one is refused then."""
    host.fs.pipe_file("object", b"data")
    raw, header = host.get_file(keysets.LOCATION), bytearray(host.get("object"))
    header[10] ^= 1
    host.set("object", bytes(header))
    host.set_file(keysets.LOCATION, raw.replace(b'"tag":"', b'"tag":"AAAA', 1))
    with pytest.raises(REFUSED):
        host.fs.cat_file("object")
    # What was opened before goes on working with the keys that it has.
    host.fs.pipe_file("other", b"1")
    assert host.fs.cat_file("other") == b"1"


def test_a_host_that_alters_the_keyset_while_it_is_published(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    keyset = host.fs._sync(host.fs.store.keyset)
    config = host.fs.store.config

    async def publish() -> None:
        backend = host.fs.store.backend
        etag = (await backend.stat(keysets.LOCATION)).etag
        real = backend.read

        async def altered(name: str, start: int, end: int, **kwargs: Any) -> bytes:
            return (await real(name, start, end, **kwargs)).replace(b"a", b"b", 1)

        monkeypatch.setattr(backend, "read", altered)
        kek = await asyncio.to_thread(keysets.registry.open_key, config.kek, host.fs.store.access)
        await keysets.publish(backend, config, keyset.next_version(now=9), [kek], replaces=etag)

    with pytest.raises(IntegrityError, match="does not return the keyset that was written"):
        host.fs._sync(publish)

"""The life of a keyset, without I/O."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovstore.errors import ConfigError, FormatError, IntegrityError, UnwrapError
from sovstore.format import canonical, keyset
from sovstore.format.keyset import Draft, Keyset
from sovstore.format.recovery import Recipient, RecoveryKey
from sovstore.kms.local import LocalKey
from sovstore.secret import Secret

KEKS = [LocalKey(f"keyfile:/kek-{n}", Secret(bytes([n]) * 32)) for n in range(3)]


def sealed(opened: Keyset, keks=KEKS[:1], recipients=()):
    draft = opened.draft(recipients)
    return draft.finish({kek.uri: kek.wrap(draft.ksk.reveal(), draft.context) for kek in keks})


def opened_by(raw: bytes, kek: LocalKey, store_id: bytes) -> Keyset:
    parsed = keyset.parse(raw)
    return parsed.unlock(Secret(kek.unwrap(parsed.wraps[kek.uri], parsed.context(store_id))), store_id)


def secrets_of(opened: Keyset):
    return [s and s.reveal() for s in (opened.names_key, opened.auth_key, *(e.key for e in opened.epochs))]


@pytest.fixture
def first() -> Keyset:
    return Keyset.create(now=1_800_000_000, names_mode="encrypted")


def test_create_wrap_parse_unlock(first):
    again = opened_by(sealed(first), KEKS[0], first.store_id)
    assert secrets_of(again) == secrets_of(first)
    assert (again.version, again.names_mode, again.auth_fingerprint) == (1, "encrypted", first.auth_fingerprint)
    assert [len(s) for s in secrets_of(again)] == [64, 32, 32]


def test_every_version_has_a_fresh_ksk_and_the_same_keys(first):
    assert first.draft().ksk.reveal() != first.draft().ksk.reveal()
    assert secrets_of(first.next_version(now=2)) == secrets_of(first)


def test_several_keks_each_open_it(first):
    raw = sealed(first, KEKS)
    for kek in KEKS:
        assert secrets_of(opened_by(raw, kek, first.store_id)) == secrets_of(first)


def test_another_kek_does_not_open_it(first):
    parsed = keyset.parse(sealed(first, KEKS[:1]))
    with pytest.raises(UnwrapError):
        KEKS[1].unwrap(parsed.wraps[KEKS[0].uri], parsed.context(first.store_id))


def test_the_wrap_of_another_version_does_not_open_it(first):
    old, new = keyset.parse(sealed(first)), keyset.parse(sealed(first.next_version(now=2)))
    with pytest.raises(UnwrapError):
        KEKS[0].unwrap(old.wraps[KEKS[0].uri], new.context(first.store_id))


def test_add_promote_destroy(first):
    added = first.add_epoch(now=2)
    new = added.epochs[1]
    assert (added.version, new.state, added.primary.id) == (2, "readable", first.primary.id)
    promoted = added.promote(new.id, now=3)
    assert (promoted.version, promoted.primary.id, promoted.epochs[0].state) == (3, new.id, "readable")
    destroyed = opened_by(sealed(promoted.destroy(first.primary.id, now=4)), KEKS[0], first.store_id)
    assert destroyed.epochs[0].key is None
    assert (destroyed.epochs[0].state, destroyed.primary.id) == ("destroyed", new.id)
    with pytest.raises(ValueError, match="cannot become primary"):
        destroyed.promote(first.primary.id, now=5)
    with pytest.raises(ValueError, match="cannot be destroyed"):
        destroyed.destroy(new.id, now=5)


def test_of_another_store(first):
    other = Keyset.create(now=1, names_mode="encrypted")
    with pytest.raises(IntegrityError, match="keyset of store"):
        opened_by(sealed(other), KEKS[0], first.store_id)


def test_recovery(first):
    keys = [RecoveryKey.generate() for _ in range(2)]
    parsed = keyset.parse(sealed(first, recipients=[k.recipient for k in keys]))
    for key in keys:
        ksk = key.unseal(parsed.seals[key.recipient.id], first.store_id)
        again = parsed.unlock(ksk, first.store_id, auth_fingerprint=first.auth_fingerprint)
        assert secrets_of(again) == secrets_of(first)
    with pytest.raises(IntegrityError, match="pinned"):
        parsed.unlock(ksk, first.store_id, auth_fingerprint="0" * 64)
    with pytest.raises(IntegrityError):
        keys[0].unseal(parsed.seals[keys[1].recipient.id], first.store_id)


def test_a_host_that_knows_a_recipient_cannot_make_a_keyset(first):
    """Whoever has the public key can seal to it; only who has the auth key can pass the fingerprint."""
    key = RecoveryKey.generate()
    forged = Keyset.create(now=1, names_mode="encrypted", store_id=first.store_id)
    parsed = keyset.parse(sealed(forged, KEKS[1:2], [key.recipient]))
    ksk = key.unseal(parsed.seals[key.recipient.id], first.store_id)
    with pytest.raises(IntegrityError, match="pinned"):
        parsed.unlock(ksk, first.store_id, auth_fingerprint=first.auth_fingerprint)


@pytest.mark.parametrize("count", [0, 17])
def test_one_to_sixteen_wraps(first, count):
    draft = first.draft()
    with pytest.raises(ValueError, match="not be readable"):
        draft.finish({f"keyfile:/{n:02}": b"x" for n in range(count)})


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_parsed(raw):
    with pytest.raises(FormatError):
        keyset.parse(raw)


@given(st.data())
def test_any_change_is_refused(data):
    first = Keyset.create(now=1, names_mode="plain")
    raw = bytearray(sealed(first))
    at = data.draw(st.integers(0, len(raw) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda b: b != raw[at]))
    raw[at] = new
    with pytest.raises((FormatError, IntegrityError, UnwrapError, KeyError)):
        opened_by(bytes(raw), KEKS[0], first.store_id)


@pytest.mark.parametrize("piece", ["[],", "{},", "[" * 400 + "]" * 400 + ",", '{"":' * 400 + "0" + "}" * 400 + ","])
def test_lists_and_objects_are_counted_before_they_are_made(piece):
    raw = ('{"body":"","tag":"","wraps":[' + piece * (2**21 // len(piece) - 20) + "0]}").encode()
    assert len(raw) <= keyset.MAX_FILE
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="more objects and lists"):
            keyset.parse(raw)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_largest_keyset_has_fewer(first):
    """The limit refuses none that the format allows: 1 MiB of the least objects that a body may hold."""
    draft = first.draft()
    body = json.loads(draft.body)
    body["recovery"] = [{"recipient": f"{n:032x}", "seal": "AA=="} for n in range(16_600)]
    made = Draft(first, canonical.dump(body), draft.ksk)
    assert keyset.MAX_BODY - 2000 < len(made.body) <= keyset.MAX_BODY
    raw = made.finish({kek.uri: kek.wrap(made.ksk.reveal(), made.context) for kek in KEKS})
    assert len(keyset.parse(raw).seals) == 16_600


@pytest.mark.parametrize("format_", [2, "1", None, True, [1], -1])
def test_an_unknown_format_is_refused_by_number(first, format_):
    draft = first.draft()
    body = canonical.dump({**json.loads(draft.body), "format": format_})
    with pytest.raises(ValueError, match="unknown format 2" if format_ == 2 else "format is not an integer"):
        Draft(first, body, draft.ksk).finish({"keyfile:/x": b"x"})


@pytest.mark.parametrize("load", [RecoveryKey.load, Recipient.load])
@pytest.mark.parametrize(
    "change", [(b"recovery key 1", b"recovery key\xff1"), (b"}", b""), (b'"p384":"', b'"p384":"?')]
)
def test_a_recovery_key_is_not_in_the_error_for_its_file(load, change):
    """Not in what led to it either: the errors of parsers hold the whole text."""
    raw = RecoveryKey.generate().dump()
    with pytest.raises(ConfigError) as caught:
        load(raw.replace(*change), what="file")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_scalar_that_is_none_is_not_in_the_error():
    raw = json.loads(RecoveryKey.generate().dump())
    with pytest.raises(ConfigError, match="not a recovery key") as caught:
        RecoveryKey.load(canonical.dump({**raw, "p384": canonical.to_base64(b"\xff" * 48)}), what="file")
    assert caught.value.__context__ is None

"""The life of a keyset, without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovstore.errors import FormatError, IntegrityError, UnwrapError
from sovstore.format import keyset
from sovstore.format.keyset import Keyset
from sovstore.format.recovery import RecoveryKey
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

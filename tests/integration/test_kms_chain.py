"""One store goes from KMS to KMS: its data never moves, and each service is asked as rarely as it can be."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import tomlkit

from sovstore import config, keysets, rotation
from sovstore.filesystem import SovFileSystem
from sovstore.format.keyset import parse
from sovstore.kms import registry
from tests import stress
from tests.stores import CONTROLLERS, make_store, open_fs

#: The order in which the KEKs open the store.
SERVICES = ("openbao", "softhsm", "kmip", "okms")
RIGHTS = {"transit/encrypt/*": "update", "transit/decrypt/*": "update", "transit/keys/*": "read"}


@pytest.fixture
def keks(openbao_server, softhsm_token, pykmip_server, okms_fake, tmp_path, monkeypatch) -> dict[str, str]:
    """A KEK in each of the services, and a configuration that reaches them."""
    monkeypatch.setenv("BAO_TOKEN", openbao_server.make_token(RIGHTS))
    monkeypatch.setenv("HSM_PIN", softhsm_token.pin)
    monkeypatch.setenv("OKMS_TOKEN", okms_fake.token())
    hsm_key = f"chain-{uuid4().hex[:8]}"
    softhsm_token.make_key(hsm_key)
    kmip = pykmip_server.service
    uris = {
        "openbao": f"openbao://{openbao_server.address}/transit/{openbao_server.make_key()}",
        "softhsm": f"pkcs11:token={softhsm_token.label};object={hsm_key}",
        "kmip": pykmip_server.key_uri(pykmip_server.create_keys(1)[0]),
        "okms": okms_fake.uri(okms_fake.add_key()),
    }
    tables = {
        "openbao": {"uri": f"openbao://{openbao_server.address}", "ca_file": str(openbao_server.ca_file)},
        "softhsm": {"uri": f"pkcs11:token={softhsm_token.label}", "module": softhsm_token.module, "pin": "env:HSM_PIN"},
        "kmip": {
            "uri": uris["kmip"].rpartition("/")[0],
            **{name: getattr(kmip, name) for name in ("ca_file", "cert_file", "key_file")},
        },
        "okms": {"uri": "okms://", "token": "env:OKMS_TOKEN", "ca_file": str(okms_fake.files.ca_file)},
    }
    kms = {name: {**table, "controller": "tests"} for name, table in tables.items()}
    (tmp_path / "sovstore.toml").write_text(tomlkit.dumps({"kms": kms, "audit": {"file": "audit.jsonl"}}) + CONTROLLERS)
    return uris


class Site:
    """The store, what lies at its host, and what the services were asked."""

    def __init__(self, folder: Path, kek: str) -> None:
        self.folder = folder
        self.file = make_store(folder, kek=kek)

    def open(self) -> SovFileSystem:
        return open_fs(self.file, skip_instance_cache=True)

    def record(self, settings: Any) -> None:
        config.write_settings(self.file, "cohortes", dict(settings))

    def do(self, work: Any, *args: Any) -> Any:
        fs = self.open()
        try:
            return fs._sync(lambda: work(fs.store, *args))
        finally:
            fs.close()

    def data(self) -> dict[str, tuple[bytes, int]]:
        files = [p for p in (self.folder / "cohortes").rglob("*") if p.is_file() and ".sovstore" not in p.parts]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    def labels(self) -> set[str]:
        return set(parse((self.folder / "cohortes" / keysets.LOCATION).read_bytes()).wraps)

    def asked(self) -> Counter[tuple[str, str]]:
        """Return the calls since this was last asked, by the audit trail, by action and service."""
        trail = self.folder / "audit.jsonl"
        lines = [json.loads(line) for line in trail.read_text().splitlines()]
        trail.unlink()
        assert {line["outcome"] for line in lines} == {"done"}
        return Counter((line["action"], line["provider"]) for line in lines if "provider" in line)


def test_a_store_goes_from_kms_to_kms(keks, tmp_path):
    site = Site(tmp_path, keks["openbao"])
    site.open().pipe({f"2026/{n}": bytes([n % 256]) * (n * 37) for n in range(200)})
    before = site.data()
    provider = {"softhsm": "pkcs11"}
    site.asked()
    for old, new in pairwise(SERVICES):
        site.do(rotation.add_kek, keks[new], site.record)
        assert site.labels() == {registry.label(keks[old]), registry.label(keks[new])}
        first, second = provider.get(old, old), provider.get(new, new)
        # One call opens it, and each KEK wraps the new version once.
        assert site.asked() == {("unwrap", first): 1, ("wrap", first): 1, ("wrap", second): 1}
        site.do(rotation.rotate_kek)
        assert site.asked() == {("unwrap", first): 1, ("wrap", first): 1, ("wrap", second): 1}
        site.do(rotation.remove_kek, keks[old], site.record)
        assert site.labels() == {registry.label(keks[new])}
        # The one that goes is not asked: it may be gone.
        assert site.asked() == {("unwrap", second): 1, ("wrap", second): 1}
        assert config.load(site.file).store("cohortes").kek == keks[new]
        assert site.data() == before
        assert site.open().cat("2026/199") == bytes([199]) * (199 * 37)
        assert site.asked() == {("unwrap", second): 1}


def test_all_of_them_open_it(keks, tmp_path, monkeypatch):
    site = Site(tmp_path, keks["openbao"])
    site.open().pipe_file("a", b"content")
    for name in SERVICES[1:]:
        site.do(rotation.add_kek, keks[name], site.record)
    site.asked()
    site.do(rotation.rotate_kek)
    providers = ("openbao", "pkcs11", "kmip", "okms")
    assert site.asked() == {("unwrap", "openbao"): 1, **{("wrap", name): 1 for name in providers}}
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OTHER_KEKS", "[]")
    for name, uri in keks.items():
        monkeypatch.setenv("SOVSTORE_STORES__COHORTES__KEK", uri)
        assert site.open().cat("a") == b"content", name


@pytest.mark.stress
def test_one_call_opens_all_objects(keks, tmp_path, monkeypatch):
    others = [keks[name] for name in SERVICES[1:]]
    file = make_store(tmp_path, provider="memory", kek=keks["openbao"], other_keks=others)
    count = stress.amount(1_000, 10_000)
    open_fs(file).pipe({f"{n % 100}/{n}": b"x" for n in range(count)})
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OTHER_KEKS", "[]")
    for uri in keks.values():
        monkeypatch.setenv("SOVSTORE_STORES__COHORTES__KEK", uri)
        (tmp_path / "audit.jsonl").unlink()
        fs = open_fs(file, skip_instance_cache=True)
        assert len(fs.find("")) == count
        assert len(fs.cat([f"{n % 100}/{n}" for n in range(0, count, 9)])) == -(-count // 9)
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert [(line["action"], line["kek"]) for line in lines] == [("unwrap", registry.label(uri))]

"""``sovstore check``: what it prints, as a table and as JSON."""

from __future__ import annotations

import json

import pytest

from sovstore.config import write_settings
from tests.stores import make_store, on_s3

pytestmark = pytest.mark.usefixtures("small_parts")

_SECRET = "canary-secret-key-91c2"
_LOCAL = """\
store 'cohortes': local, in DIR/cohortes

check                        result   detail, and what it costs
─────────────────────────────────────────────────────────────────────────────────────────────────
connection                   ok       endpoint and credentials are accepted
rights needed                ok       writes, reads, lists and deletes
clock                        ok       within 60 s of this machine's
write and read               ok       objects of 0, 1, 8388608 bytes
ranges                       ok       also at and beyond the end
upload in parts              ok       20 MiB
abort                        ok       leaves no unfinished upload
header replacement           ok       at a new name, in place, and again
consistency                  ok       reads and listings see the newest at once
listing                      ok       one level, and all below
delete                       ok       several at once, and of what is not there
odd names                    ok       spaces, %, +, ?, #, quotes, accents in both forms, Japanese
race to create               ok       one of 4 writers won, and the others were told
race to replace              ok       one of 4 writers won, and the others were told
condition put:create         ok       kept by the driver
condition put:replace        ok       kept by the driver
condition complete:create    ok       kept by the driver
condition complete:replace   ok       kept by the driver

18 ok
"""


def test_a_folder_of_this_machine(cli, config, tmp_path, usual_parts):
    before = sorted((tmp_path / "cohortes").rglob("*"))
    assert cli("check", "cohortes").transcript == (0, _LOCAL, "")
    assert sorted((tmp_path / "cohortes").rglob("*")) == before


def test_it_needs_no_key_and_no_store(cli, config, tmp_path, monkeypatch):
    (tmp_path / "kek.key").unlink()
    (tmp_path / "passphrase").unlink()
    monkeypatch.setenv("SOVSTORE_STORES__NEW__ROOT", str(tmp_path / "new"))
    monkeypatch.setenv("SOVSTORE_STORES__NEW__KEK", f"keyfile:{tmp_path / 'no.key'}")
    assert cli("check", "cohortes").code == 0
    assert cli("check", "sov://new/").code == 0
    assert not list((tmp_path / "new").iterdir())


def test_json(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SOVSTORE_CONFIG", str(make_store(tmp_path, provider="memory")))
    ran = cli("check", "cohortes", "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.raw_out)
    assert list(report) == ["store", "provider", "endpoint", "ok", "checks", "measured", "entry"]
    assert (report["store"], report["provider"], report["endpoint"], report["ok"]) == ("cohortes", "memory", None, True)
    assert {tuple(item) for item in report["checks"]} == {("check", "result", "detail", "cost")}
    missing = [item["check"] for item in report["checks"] if item["result"] == "missing"]
    assert missing[0] == "condition put:create"
    assert report["measured"] == {"conditions": {}, "abilities": {}}


def test_what_is_missing_says_its_cost(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SOVSTORE_CONFIG", str(make_store(tmp_path, provider="memory")))
    ran = cli("check", "cohortes")
    assert ran.code == 0
    assert "condition put:create         missing   the driver looks first, which can race" in ran.out
    assert "=> two writers that create one small object at the same time" in ran.out
    assert ran.out.endswith("12 ok, 4 missing\n")


def test_a_folder_that_is_read_only(cli, config, tmp_path, monkeypatch):
    from sovstore.backends.local import LocalBackend
    from sovstore.errors import StoreError

    async def refuse(self, name, **conditions):
        raise StoreError(f"{name}: the system refused: Permission denied", path=name)

    monkeypatch.setattr(LocalBackend, "upload", refuse)
    ran = cli("check", "cohortes")
    assert ran.code == 1
    assert "connection   failed   the host refuses to write" in ran.out
    assert ran.out.endswith("1 failed\n")


def _on_ceph(tmp_path, monkeypatch, server, **environment):
    """Configure a store on a server; it is not made."""
    place = on_s3(server)
    for name, value in {**place.pop("environment"), **environment}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "sovstore.toml"
    write_settings(file, "cohortes", {**place, "kek": f"keyfile:{tmp_path / 'no.key'}"})
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))


def test_a_host_of_which_nothing_is_known(cli, tmp_path, monkeypatch, s3_server):
    _on_ceph(tmp_path, monkeypatch, s3_server)
    ran = cli("check", "cohortes")
    assert ran.code == 0
    assert ran.out.endswith(
        "2 facts measured that the catalogue does not have, or has otherwise.\n"
        "To have sovstore go by what was measured, write into the configuration:\n"
        "\n"
        "[providers.cohortes-host]\n"
        'like = "s3"\n'
        'conditions = ["read:match", "put:create", "put:replace"]\n'
        'etag_quotes = "bare"\n'
        "\n"
        "[stores.cohortes]\n"
        'provider = "cohortes-host"\n'
    )


def test_the_printed_entry_is_one(cli, tmp_path, monkeypatch, s3_server):
    _on_ceph(tmp_path, monkeypatch, s3_server)
    entry = cli("check", "cohortes").raw_out.partition("configuration:\n")[2].partition("[stores.")[0]
    file = tmp_path / "sovstore.toml"
    file.write_text(file.read_text().replace('provider = "s3"', 'provider = "cohortes-host"') + entry)
    ran = cli("check", "cohortes")
    assert ran.code == 0
    assert "write into the configuration" not in ran.out


@pytest.mark.parametrize("options", [[], ["--json"], ["--debug"]])
def test_a_wrong_secret_key(cli, tmp_path, monkeypatch, s3_server, options):
    _on_ceph(tmp_path, monkeypatch, s3_server, AWS_SECRET_ACCESS_KEY=_SECRET)
    ran = cli("check", "cohortes", *options)
    assert ran.code == 1
    assert "the host refused: SignatureDoesNotMatch" in ran.out
    assert "'sovstore login STORE' stores new ones" in ran.out
    assert _SECRET not in ran.raw_out + ran.raw_err
    assert "Traceback" not in ran.raw_err


def test_a_store_that_is_not_configured(cli, config):
    ran = cli("check", "cohort")
    assert ran.code == 2
    assert "did you mean 'cohortes'?" in ran.err

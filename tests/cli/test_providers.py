"""Transcripts of providers."""

from __future__ import annotations

import json
import re

import pytest

from sovstore.backends import providers

OURS = """
[providers.garage]
title = "Garage in our machine room"
like = "s3"
endpoint = "https://s3.garage.example"
controller = "CHU of Example"
conditions = ["put:create", "put:replace"]
part_min = 16_777_216
hds = { value = "yes: all", source = "certificate 1", as_of = 2026-09-30 }
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    file = tmp_path / "sovstore.toml"
    file.write_text(OURS)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    return file


def _rows(text):
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_all_without_a_configuration(cli):
    ran = cli("providers")
    assert ran.code == 0
    assert ran.err == "'sovstore providers NAME' shows all that is known of one, with source and date\n"
    rows = _rows(ran.out)
    assert set(providers.catalogue()) <= set(rows)
    assert rows["ovhcloud"] == ["ovhcloud", "s3", "OVH", "SAS", "FR", "yes", "partly", "claimed"]
    assert rows["outscale"] == ["outscale", "s3", "OUTSCALE", "SAS", "FR", "?", "partly", "?"]
    assert rows["memory"][-4:] == ["-", "no", "-", "-"]
    assert "*" not in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


def test_all_with_ones_own(cli, own):
    ran = cli("providers", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert _rows(ran.out)["garage"] == ["garage", "*", "s3", "CHU", "of", "Example", "?", "partly", "?", "yes"]
    assert ran.out.endswith("*                   from DIR/sovstore.toml\n")


def test_one(cli):
    ran = cli("providers", "orange")
    assert (ran.code, ran.err) == (0, "")
    head, _, rest = ran.out.partition("endpoints, 1 region [7]\n")
    assert head.startswith("orange: Orange Business Cloud Avenue Object Storage\n\nfact ")
    rows = _rows(head)
    assert set(providers.expected("s3")) - {"endpoint"} <= set(rows)
    assert rows["driver"] == ["driver", "s3"]
    assert rows["jurisdiction"] == ["jurisdiction", "FR", "[2]"]
    assert rows["part_min"] == ["part_min", "unknown;", "taken:", "5", "MiB", "[10]"]
    assert rows["upload_seconds"] == ["upload_seconds", "unknown", "[10]"]
    assert rest.startswith(
        "  region01  https://s3-region01.cloudavenue.orange-business.com\n\nsources, and when it was true\n"
    )
    assert "\n   [2] 2020-05-26  https://fdocuments.fr/" in rest
    assert "\n   [7] 2026-11-22  https://github.com/orange-cloudavenue/cloudavenue-sdk-go\n" in rest


def test_one_of_the_configuration(cli, own):
    code, out, err = cli("providers", "garage").transcript
    # A long path of the file does not fit beside its words.
    assert (code, re.sub(r"in\n +DIR", "in DIR", out), err) == (
        0,
        """\
garage: Garage in our machine room
from DIR/sovstore.toml

fact                  value                           source
────────────────────────────────────────────────────────────
driver                s3
controller            CHU of Example                  [1]
parent                unknown                         [2]
jurisdiction          unknown                         [2]
parent_jurisdiction   unknown                         [2]
technology            unknown                         [2]
secnumcloud           unknown                         [2]
hds                   yes: all                        [3]
regions               unknown                         [2]
tls                   unknown                         [2]
addressing            unknown; taken: path            [2]
signature             unknown; taken: s3v4            [2]
checksums             unknown; taken: when_required   [2]
signed_payload        unknown; taken: no              [2]
part_min              16 MiB                          [1]
part_max              unknown; taken: 5 GiB           [2]
parts_max             unknown; taken: 10,000          [2]
equal_parts           unknown; taken: no              [2]
put_max               unknown; taken: 5 GiB           [2]
object_max            unknown; taken: 5 TiB           [2]
upload_seconds        unknown                         [2]
listing_page          1,000                           [4]
batch_delete          unknown; taken: 1,000           [2]
conditions            put:create, put:replace         [1]
etag_quotes           unknown; taken: quoted          [2]

endpoints, any region [1]
  https://s3.garage.example

sources, and when it was true
   [1] -           provider 'garage' in DIR/sovstore.toml
   [2] 2026-11-22  depends on the host
   [3] 2026-09-30  certificate 1
   [4] 2026-11-22  https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
""",
        "",
    )


@pytest.mark.parametrize("name", providers.catalogue())
def test_each_is_shown_with_all_its_sources(cli, name):
    ran = cli("providers", name)
    assert (ran.code, ran.err) == (0, "")
    provider = providers.catalogue()[name]
    shown = " ".join(ran.out.split())
    for fact in provider.facts.values():
        assert f"{fact.as_of} {' '.join(fact.source.split())}" in shown
    for region in provider.get("regions"):
        assert f"\n  {region} " in ran.out
    if provider.known("endpoint"):
        assert "\nendpoints, " in ran.out


def test_an_endpoint_that_nobody_knows(cli):
    assert "\n  parhds        unknown\n" in cli("providers", "clever-cloud").out
    assert (
        '\nendpoint: unknown; write endpoint = "https://…" into the table of the store [' in cli("providers", "s3").out
    )


def test_json(cli, own):
    ran = cli("providers", "--json")
    assert (ran.code, ran.err) == (0, "")
    listed = json.loads(ran.raw_out)
    assert [one["name"] for one in listed] == [*providers.catalogue(), "garage"]
    assert [one["name"] for one in listed if not one["shipped"]] == ["garage"]
    one = json.loads(cli("providers", "clever-cloud", "--json").raw_out)
    assert one == next(other for other in listed if other["name"] == "clever-cloud")
    assert list(one) == ["name", "title", "driver", "shipped", "endpoints", "facts"]
    assert one["endpoints"]["par"] == "https://cellar-c2.services.clever-cloud.com"
    assert one["endpoints"]["parhds"] is None
    assert one["facts"]["region_name"]["value"] == "default"
    assert one["facts"]["hds"]["as_of"] == "2025-03-19"
    ours = json.loads(cli("providers", "garage", "--json").raw_out)
    assert ours["endpoints"] == {"": "https://s3.garage.example"}
    assert ours["facts"]["part_min"] == {
        "value": 2**24,
        "source": f"provider 'garage' in {own}",
        "as_of": None,
    }
    assert json.loads(cli("providers", "s3", "--json").raw_out)["endpoints"] == {}


def test_an_unknown_name(cli, own):
    ran = cli("providers", "garaje")
    assert (ran.code, ran.out) == (2, "")
    known = ", ".join([*providers.catalogue(), "garage"])
    assert ran.err == (
        "sovstore: error: provider 'garaje': there is none of that name\n"
        f"sovstore: hint: did you mean 'garage'? known: {known}\n"
    )
    error = json.loads(cli("providers", "zzz", "--json").raw_err)["error"]
    assert (error["type"], error["hint"]) == ("ConfigError", f"known: {known}")


def test_the_regions_are_shown_when_the_one_of_a_store_is_wrong(cli, own):
    own.write_text(OURS + '[stores.s]\nprovider = "scaleway"\nregion = "paris"\nroot = "b"\nkek = "keyfile:k"\n')
    ran = cli("providers", "scaleway")
    assert ran.code == 0
    assert "  fr-par  https://s3.fr-par.scw.cloud\n" in ran.out
    assert "provider 'scaleway' has no region 'paris'; only the shipped providers are shown\n" in ran.err
    assert "known regions: fr-par, nl-ams, pl-waw, it-mil\n" in ran.err
    ran = cli("providers", "garage")
    assert (ran.code, ran.out) == (2, "")
    assert "has no region 'paris'" in ran.err


def test_an_entry_that_is_wrong(cli, own):
    own.write_text(OURS.replace("part_min", "part_mix"))
    ran = cli("providers", "garage")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "sovstore: error: provider 'garage' in DIR/sovstore.toml: unknown fact 'part_mix'\n"
        "sovstore: hint: did you mean 'part_min'?\n"
    )
    assert cli("providers").code == 0

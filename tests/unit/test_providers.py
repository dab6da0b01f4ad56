"""The provider catalogue: what is shipped, what a user adds, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from datetime import date
from importlib import resources
from pathlib import Path

import pytest

from sovstore import config
from sovstore.backends import providers
from sovstore.backends.local import LocalBackend
from sovstore.backends.memory import MemoryBackend
from sovstore.errors import ConfigError
from tests import snippets

ROOT = Path(__file__).parents[2]
SHIPPED = providers.catalogue()
#: No endpoint is known of these zones: only the console of the provider shows it.
WITHOUT_ENDPOINT = {("clever-cloud", "parhds"), ("clever-cloud", "rbxhds")}
HOSTED = [provider for provider in SHIPPED.values() if provider.driver in ("s3", "azure")]
FACTS = [(provider, name) for provider in SHIPPED.values() for name in provider.facts]


def _id(value):
    return getattr(value, "name", value)


def _user(text, name="x"):
    return providers.extended(tomllib.loads(text)["providers"], "sovstore.toml")[name]


def _refused(text, message, hint=""):
    with pytest.raises(ConfigError, match=message) as caught:
        providers.extended(tomllib.loads(text)["providers"], "sovstore.toml")
    assert hint in (caught.value.hint or "")


# What is shipped


def test_the_shipped_providers():
    assert set(SHIPPED) == {
        *("ovhcloud", "outscale", "scaleway", "numspot", "cloud-temple", "clever-cloud", "orange"),
        *("azure", "bleu", "s3", "azurite", "local", "memory", "fsspec"),
    }
    assert all(provider.name == name for name, provider in SHIPPED.items())
    assert len(HOSTED) == 11


@pytest.mark.parametrize("provider", HOSTED, ids=_id)
def test_a_hosted_provider_states_every_fact_of_its_driver(provider):
    assert set(providers.expected(provider.driver)) - set(provider.facts) == set()
    assert provider.title != provider.name


@pytest.mark.parametrize(("provider", "name"), FACTS, ids=_id)
def test_every_fact_has_a_source_and_a_date(provider, name):
    fact = provider.facts[name]
    assert len(fact.source) > 10
    assert type(fact.as_of) is date
    assert date(2019, 1, 1) <= fact.as_of <= date(2026, 11, 30)


@pytest.mark.parametrize("provider", SHIPPED.values(), ids=_id)
def test_every_region_has_its_endpoint(provider):
    seen = set()
    for region in provider.get("regions"):
        if (provider.name, region) in WITHOUT_ENDPOINT:
            with pytest.raises(ConfigError, match=f"endpoint of region '{region}' of provider 'clever-cloud' is unk"):
                provider.endpoint(region, None, where="stores.s")
            continue
        url = provider.endpoint(region, "acc", where="stores.s")
        assert url.startswith("https://")
        assert not set("{}* ") & set(url)
        seen.add(url)
    assert len(seen) == len([r for r in provider.get("regions") if (provider.name, r) not in WITHOUT_ENDPOINT])


@pytest.mark.parametrize(
    ("name", "region", "account", "endpoint"),
    [
        ("ovhcloud", "gra", None, "https://s3.gra.io.cloud.ovh.net"),
        ("ovhcloud", "us-east-va", None, "https://s3.us-east-va.io.cloud.ovh.us"),
        ("outscale", "cloudgouv-eu-west-1", None, "https://oos.cloudgouv-eu-west-1.outscale.com"),
        ("scaleway", "fr-par", None, "https://s3.fr-par.scw.cloud"),
        ("numspot", "eu-west-2", "1f2e", "https://objectstorage.eu-west-2.numspot.com/spaces/1f2e"),
        ("cloud-temple", "fr1", "chu", "https://chu.s3.fr1.cloud-temple.com"),
        ("clever-cloud", "par", None, "https://cellar-c2.services.clever-cloud.com"),
        ("clever-cloud", "fr-north-hds", None, "https://cellar-fr-north-hds-c1.services.clever-cloud.com"),
        ("orange", "region01", None, "https://s3-region01.cloudavenue.orange-business.com"),
        ("azure", None, "chu", "https://chu.blob.core.windows.net"),
        ("bleu", None, "chu", "https://chu.blob.core.sovcloud-api.fr"),
        ("azurite", None, None, "http://127.0.0.1:10000/devstoreaccount1"),
        ("s3", "anywhere", None, None),
        ("local", None, None, None),
    ],
)
def test_endpoints(name, region, account, endpoint):
    assert SHIPPED[name].endpoint(region, account, where="stores.s") == endpoint


@pytest.mark.parametrize(("name", "fact", "value"), [
    ("scaleway", "parts_max", 1000),
    ("outscale", "upload_seconds", 180),
    ("azure", "part_max", 4000 * 2**20),
    ("azure", "parts_max", 50_000),
    ("azure", "object_max", 50_000 * 4000 * 2**20),
    ("azure", "listing_page", 5000),
    ("ovhcloud", "etag_quotes", "bare"),
    ("ovhcloud", "object_max", 48 * 2**40),
    ("cloud-temple", "addressing", "path"),
    ("cloud-temple", "signed_payload", False),
    ("cloud-temple", "region_name", "fr1"),
    ("clever-cloud", "region_name", "default"),
    ("bleu", "authority", "https://login.sovcloud-identity.fr"),
])  # fmt: skip
def test_quirks_that_the_drivers_go_by(name, fact, value):
    assert SHIPPED[name].known(fact)
    assert SHIPPED[name].get(fact) == value


def test_what_is_unknown_is_taken_safely_by_driver():
    assert not SHIPPED["bleu"].known("part_max")
    assert SHIPPED["bleu"].get("part_max") == 4000 * 2**20
    assert SHIPPED["bleu"].get("signature") == "sas, entra, shared key"
    assert not SHIPPED["s3"].known("part_max")
    assert SHIPPED["s3"].get("part_max") == 5 * 2**30
    assert SHIPPED["s3"].get("checksums") == "when_required"
    assert SHIPPED["s3"].conditions == SHIPPED["bleu"].conditions == frozenset()


def test_conditions_of_our_own_drivers_are_theirs():
    assert SHIPPED["local"].conditions == LocalBackend.conditions
    assert SHIPPED["memory"].conditions == MemoryBackend.conditions


def test_the_data_is_in_the_package():
    # A wheel has what lies in the package; the loader reads it as a resource, so it works from one.
    assert resources.files("sovstore.backends").joinpath("providers.toml").is_file()
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert built == {"packages": ["src/sovstore"]}


# Regions and accounts


@pytest.mark.parametrize(("given", "near"), [("gre", "gra"), ("eu-west-pr", "eu-west-par"), ("GRA", None)])
def test_a_wrong_region_names_the_nearest_and_all(given, near):
    with pytest.raises(ConfigError, match=rf"stores\.s: provider 'ovhcloud' has no region '{given}'") as caught:
        SHIPPED["ovhcloud"].endpoint(given, None, where="stores.s")
    assert "known regions: gra, rbx, sbg, eu-west-par, " in caught.value.hint
    assert (f"did you mean '{near}'?" in caught.value.hint) == (near is not None)


@pytest.mark.parametrize("name", ["ovhcloud", "scaleway", "clever-cloud", "orange", "numspot"])
def test_a_missing_region(name):
    provider = SHIPPED[name]
    with pytest.raises(ConfigError, match=f"provider '{name}' needs a region") as caught:
        provider.endpoint(None, "a", where="stores.s")
    assert all(region in caught.value.hint for region in provider.get("regions"))


@pytest.mark.parametrize(
    ("name", "region"), [("azure", None), ("bleu", None), ("cloud-temple", "fr1"), ("numspot", "eu-west-2")]
)
def test_a_missing_account(name, region):
    with pytest.raises(ConfigError, match=f"provider '{name}' needs an account"):
        SHIPPED[name].endpoint(region, None, where="stores.s")


@pytest.mark.parametrize("account", ["a/b", "a@evil.example", "a?x", "a#", "", " ", "é", "..", "{region}"])
def test_an_account_never_changes_the_host(account):
    with pytest.raises(ConfigError, match="is not a name of account"):
        SHIPPED["azure"].endpoint(None, account, where="stores.s")


def test_an_account_that_is_not_known_yet_stays_in_the_endpoint():
    url = SHIPPED["azure"].endpoint(None, providers.ANY_ACCOUNT, where="w")
    assert url == "https://{account}.blob.core.windows.net"


@pytest.mark.parametrize("region", ["a/b", "evil.example/", "", "a b"])
def test_a_region_never_changes_the_host(region):
    provider = _user('[providers.x]\ndriver = "s3"\nendpoint = "https://s3.{region}.example"')
    with pytest.raises(ConfigError, match="is not a name of region"):
        provider.endpoint(region, None, where="stores.s")
    assert provider.endpoint("nord", None, where="stores.s") == "https://s3.nord.example"


# A user's own


def test_a_provider_of_the_configuration():
    provider = _user("""
        [providers.x]
        like = "s3"
        title = "ours"
        endpoint = "https://s3.example"
        part_min = 16_777_216
        hds = { value = "yes: all", source = "certificate 1", as_of = 2026-09-30 }
    """)
    assert (provider.name, provider.title, provider.driver) == ("x", "ours", "s3")
    assert provider.endpoint(None, None, where="w") == "https://s3.example"
    assert provider.get("part_min") == 2**24
    assert provider.facts["part_min"].as_of is None
    assert provider.facts["part_min"].source == "provider 'x' in sovstore.toml"
    assert provider.facts["hds"] == providers.Fact("yes: all", "certificate 1", date(2026, 9, 30))
    assert provider.facts["listing_page"] == SHIPPED["s3"].facts["listing_page"]


def test_like_takes_over_what_fits_the_driver():
    provider = _user('[providers.x]\nlike = "azure"\ndriver = "s3"\nendpoint = "https://s3.example"')
    assert provider.driver == "s3"
    assert "authority" not in provider.facts
    assert provider.get("controller") == "Microsoft"


def test_a_provider_without_like_or_title():
    provider = _user('[providers.x]\ndriver = "s3"')
    assert (provider.title, provider.facts) == ("x", {})


def test_endpoints_by_region():
    provider = _user("""
        [providers.x]
        driver = "s3"
        regions = ["a", "b", "c"]
        endpoint = { "*" = "https://{region}.example", b = "https://other.example", c = "unknown" }
    """)
    assert provider.endpoint("a", None, where="w") == "https://a.example"
    assert provider.endpoint("b", None, where="w") == "https://other.example"
    with pytest.raises(ConfigError, match="endpoint of region 'c' of provider 'x' is unknown") as caught:
        provider.endpoint("c", None, where="w")
    assert "write endpoint =" in caught.value.hint


def test_a_store_at_a_provider_of_the_configuration(tmp_path):
    file = tmp_path / "sovstore.toml"
    file.write_text("""
        [providers.x]
        like = "scaleway"
        controller = "somebody else"
        [stores.s]
        provider = "x"
        region = "nl-ams"
        root = "bucket"
        kek = "keyfile:k"
    """)
    place = config.load(file).store("s").place
    assert (place.endpoint, place.provider.get("parts_max")) == ("https://s3.nl-ams.scw.cloud", 1000)
    assert place.provider.get("controller") == "somebody else"


# What is refused


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ('partmin = 5', "unknown fact 'partmin'", "did you mean 'part_min'?"),
        ('zzzz = 5', "unknown fact 'zzzz'", "known: controller, "),
        ('part_min = "5 MiB"', "part_min is not a whole number above 0", ""),
        ("part_min = -1", "part_min is not a whole number above 0", ""),
        ("part_min = 0", "part_min is not a whole number above 0", ""),
        ("part_min = true", "part_min is not a whole number above 0", ""),
        ("part_min = 1.5", "part_min is not a whole number above 0", ""),
        ("signed_payload = 1", "signed_payload is not true or false", ""),
        ('signed_payload = "no"', "signed_payload is not true or false", ""),
        ('regions = "gra"', "regions is not a list of texts", ""),
        ("regions = [1]", "regions is not a list of texts", ""),
        ('regions = ["a/b"]', "'a/b' is not a name of region", ""),
        ('addressing = "dns"', "addressing is not one of path, virtual, auto", ""),
        ('conditions = ["put:append"]', "conditions is not one of read:match, ", ""),
        ('conditions = "put:create"', "conditions is not one of read:match, ", ""),
        ('hds = "certified"', "hds is not ", ""),
        ("controller = { }", "controller is not a text", ""),
        ("controller = 5", "controller is not a text", ""),
        ('authority = "https://login.example"', "authority does not go with driver 's3'", "the driver azure"),
        ('endpoint = "s3.example"', "endpoint is not a URL", "{region}"),
        ('endpoint = "https://{bucket}.example"', "endpoint is not a URL", "{region}"),
        ('endpoint = "https://user:secret@s3.example"', "endpoint is not a URL", ""),
        ("endpoint = { a = 5 }", "endpoint of 'a', which is not in 'regions'", "add it to 'regions'"),
        ('endpoint = { "*" = 5 }', "endpoint is not a URL", ""),
        ('hds = { value = "yes: a", as_of = "2026" }', "source or as_of of hds", "a date"),
        ('hds = { value = "yes: a", as_of = 2026-01-01T00:00:00 }', "source or as_of of hds", "a date"),
        ('hds = { value = "yes: a", source = 5 }', "source or as_of of hds", "a date"),
        ('hds = { value = "yes: a", sources = "b" }', "hds is not a fact", "write {"),
        ("title = 5", "'driver' or 'title' is missing", ""),
        ('driver = "ftp"', "'driver' or 'title' is missing", "one of s3, azure"),
    ],
)  # fmt: skip
def test_a_fact_that_is_wrong(line, message, hint):
    _refused(f'[providers.x]\nlike = "s3"\n{line}', f"provider 'x' in sovstore.toml: {message}", hint)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[providers.ovhcloud]\nlike = "s3"', "provider 'ovhcloud' is shipped", 'like = "ovhcloud"'),
        ('[providers.OVH]\nlike = "s3"', "'OVH' is not a provider name", "lower-case"),
        ('[providers."a b"]\nlike = "s3"', "'a b' is not a provider name", "lower-case"),
        ('[providers.x]\nlike = "skaleway"', "no provider 'skaleway' to be like", "did you mean 'scaleway'?"),
        ("[providers.x]\nlike = 5", "no provider 5 to be like", "known: ovhcloud"),
        ("[providers.x]\ntitle = 'ours'", "'driver' or 'title' is missing", "driver = "),
        ("[providers]\nx = 5", "not a table", "write \\[providers.x]".replace("\\", "")),
    ],
)
def test_an_entry_that_is_wrong(text, message, hint):
    _refused(text, message, hint)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("OVH SAS", "controller has no source"),
        ({"value": "OVH SAS"}, "source or as_of of controller is missing"),
        ({"value": "OVH SAS", "source": "page"}, "source or as_of of controller is missing"),
        ({"value": "OVH SAS", "source": " ", "as_of": date(2026, 1, 1)}, "source or as_of of controller is missing"),
        ({"value": "OVH SAS", "as_of": date(2026, 1, 1)}, "source or as_of of controller is missing"),
        ({"source": "page", "as_of": date(2026, 1, 1)}, "controller is not a fact"),
    ],
)
def test_a_shipped_fact_needs_its_source_and_date(fact, message):
    with pytest.raises(ConfigError, match=message):
        providers.parse("x", {"driver": "s3", "controller": fact}, "providers.toml")


def test_a_shipped_entry_is_like_no_other():
    with pytest.raises(ConfigError, match="no provider 's3' to be like"):
        providers.parse("x", {"like": "s3"}, "providers.toml")


# The page


def test_the_page_has_every_provider_region_fact_and_condition():
    page = (ROOT / "docs/providers.md").read_text()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for name, provider in SHIPPED.items():
        assert f"| {provider.title} |" in rows[name]
        regions = provider.get("regions")
        assert (", ".join(f"`{region}`" for region in regions) or "| |") in rows[name] or name == "s3"
    for word in (*providers.FACTS, *providers.CONDITIONS):
        assert f"`{word}`" in page, word


def test_the_snippets_of_the_page_run(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    count = 0
    for language, text in snippets.snippets(ROOT / "docs/providers.md"):
        count += 1
        if language == "toml":
            (tmp_path / "sovstore.toml").write_text(text)
            assert config.load(tmp_path / "sovstore.toml").store("cohortes").place.endpoint.startswith("https://s3.")
            continue
        done = subprocess.run(
            ["bash", "-eu", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert "s3.garage.example" in done.stdout
    assert count == 3

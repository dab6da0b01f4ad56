"""The policy: a table of configurations with what is found, the deny list and its evasions, and that it is pure."""

from __future__ import annotations

import asyncio
import builtins
import io
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from sovstore import config, countries, keysets, parties, policy, rules, store_creation
from sovstore.backends import providers
from sovstore.config_policy import CONTROLLER, SETTINGS, Policy
from sovstore.errors import ConfigError, PolicyError
from sovstore.kms.base import Access
from tests.hosts import cheap_key_files
from tests.stores import make_store

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 25)
OVH = "okms://eu-west-rbx/305db938-331f-454d-83a7-3a0a29291661/6c1d4b4e-0f5e-4f2e-9b43-d4a3c1f5a001"
SCW = "scw-kms://fr-par/6c1d4b4e-0f5e-4f2e-9b43-d4a3c1f5a002"
CLEVER = "openbao://kms.eu-fr-1.services.clever-cloud.com:8200/transit/kek?dialect=clever"
BAO = "openbao://bao.example.fr:8200/transit/kek"
HSM = "pkcs11:token=sovstore;object=kek-2026"
AZURE = 'provider = "azure"\naccount = "chu"\nroot = "c/p"'
OVH_HOST = 'provider = "ovhcloud"\nregion = "gra"\nroot = "b/p"'
BLEU = 'provider = "bleu"\naccount = "chu"\nroot = "c/p"'
S3 = 'provider = "s3"\nendpoint = "https://s3.example.org"\nroot = "b/p"'
DECLARED = f'[kms.bao]\nuri = "openbao://bao.example.fr:8200"\ncontroller = "chu"\n[kms.hsm]\nuri = "{HSM}"\n'
DECLARED += 'controller = "chu"\nprotection_level = "hsm"\n'


def controller(name="chu", **changed):
    """Return a table [controllers.NAME] of a French hospital, but for what is given."""
    table = {
        "legal_entity": "CHU of Example",
        "jurisdiction": "FR",
        "parent": "none",
        "technology_origin": "open-source",
        "source": "register of hospitals",
        **changed,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None]
    return "\n".join([f"[controllers.{name}]", "as_of = 2026-10-01", *lines, ""])


def on(host, kek, *, policy="", own="", tables=""):
    """Return a configuration of a store s."""
    general = f"[policy]\n{policy}\n" if policy else ""
    mine = f"[stores.s.policy]\n{own}\n" if own else ""
    return f'{general}{tables}\n[stores.s]\n{host}\nkek = "{kek}"\n{mine}'


def load(folder, text, name="s"):
    file = folder / "sovstore.toml"
    file.write_text(text, encoding="utf-8")
    return config.load(file).store(name)


def bad(findings):
    """Return what is not ok, as rule and action, in its order."""
    return [(finding.rule, finding.action) for finding in findings if finding.action != policy.OK]


SEPARATE, LAW, PARENT = "separate_from_storage", "key_holder_jurisdiction", "key_holder_parent"
LOCAL = "local_plaintext"
TECHNOLOGY, STALE, LEVEL, NAMES = "key_holder_technology", "stale_facts", "protection_level", "plain_names"
US_PARENT = controller(parent="Example Inc", parent_jurisdiction="US")
OWN_S3 = '[providers.own]\nlike = "s3"\nendpoint = "https://s3.example.org"\n'
OWN_S3 += 'controller = { value = "CHU of Example", source = "we run it", as_of = 2026-10-01 }\n'
AT_OWN = 'provider = "own"\nroot = "b"'

TABLE = {
    "azure with azure key vault": (on(AZURE, "azurekeyvault:https://v.vault.azure.net/k"), [("endpoint", "refuse")]),
    "azure with ovhcloud kms": (on(AZURE, OVH), []),
    "azure with scaleway kms": (on(AZURE, SCW), []),
    "azure with a declared openbao": (on(AZURE, BAO, tables=DECLARED + controller()), []),
    "azure with a declared hsm": (on(AZURE, HSM, tables=DECLARED + controller()), []),
    "ovhcloud with ovhcloud kms": (on(OVH_HOST, OVH), [(SEPARATE, "warn")]),
    "ovhcloud with ovhcloud kms, refused": (
        on(OVH_HOST, OVH, policy='separate_from_storage = "refuse"'),
        [(SEPARATE, "refuse")],
    ),
    "ovhcloud with ovhcloud kms, allowed": (on(OVH_HOST, OVH, policy='separate_from_storage = "allow"'), []),
    "ovhcloud with scaleway kms": (on(OVH_HOST, SCW, policy='separate_from_storage = "refuse"'), []),
    "scaleway with scaleway kms": (
        on('provider = "scaleway"\nregion = "nl-ams"\nroot = "b"', SCW),
        [(SEPARATE, "warn")],
    ),
    "ovhcloud in the us with ovhcloud kms": (
        on('provider = "ovhcloud"\nregion = "us-east-va"\nroot = "b"', OVH),
        [(SEPARATE, "refuse")],
    ),
    "ovhcloud in the us, by its endpoint, with ovhcloud kms": (
        on(f'{OVH_HOST}\nendpoint = "https://s3.us-east-va.io.cloud.ovh.us"', OVH),
        [(SEPARATE, "refuse")],
    ),
    "ovhcloud in canada with ovhcloud kms, separation only warned of": (
        on('provider = "ovhcloud"\nregion = "bhs"\nroot = "b"', OVH, policy='separate_from_storage = "warn"'),
        [(SEPARATE, "warn")],
    ),
    "ovhcloud in the us with scaleway kms": (on('provider = "ovhcloud"\nregion = "us-east-va"\nroot = "b"', SCW), []),
    "ovhcloud kms in the us": (on(AZURE, OVH.replace("eu-west-rbx", "us-east-vin")), [(LAW, "refuse")]),
    "ovhcloud kms in canada": (on(AZURE, OVH.replace("eu-west-rbx", "ca-east-bhs")), [(LAW, "refuse")]),
    "ovhcloud kms in poland": (on(AZURE, OVH.replace("eu-west-rbx", "eu-central-waw")), []),
    "ovhcloud kms in poland, france asked for": (
        on(AZURE, OVH.replace("eu-west-rbx", "eu-central-waw"), policy='key_holder_jurisdiction = ["FR"]'),
        [(LAW, "refuse")],
    ),
    "ovhcloud kms in a region that nobody knows": (on(AZURE, OVH.replace("rbx", "zzz")), [(LAW, "refuse")]),
    "ovhcloud kms by its own endpoint": (on(AZURE, f"{OVH}?endpoint=https://eu-west-rbx.okms.ovh.net"), []),
    "ovhcloud kms by its endpoint in the us": (
        on(AZURE, f"{OVH}?endpoint=https://us-east-vin.okms.ovh.us"),
        [(LAW, "refuse")],
    ),
    "ovhcloud kms by an endpoint elsewhere": (
        on(AZURE, f"{OVH}?endpoint=https://okms.ovh.net.evil.example"),
        [("controller", "refuse")],
    ),
    "openbao undeclared": (on(AZURE, BAO), [("controller", "refuse")]),
    "openbao undeclared on this machine": (
        on(AZURE, "openbao://127.0.0.1:8200/transit/kek"),
        [("controller", "refuse")],
    ),
    "openbao undeclared, only warned of": (
        on(AZURE, BAO, policy='on_violation = { controller = "warn" }'),
        [("controller", "warn"), (LAW, "refuse"), (PARENT, "refuse"), (TECHNOLOGY, "warn"), (SEPARATE, "warn")],
    ),
    "vault undeclared": (on(AZURE, BAO.replace("openbao", "vault")), [("controller", "refuse")]),
    "kmip undeclared": (on(AZURE, "kmip://kmip.example.fr:5696/uid"), [("controller", "refuse")]),
    "eviden undeclared": (on(AZURE, "eviden-kms://kms.example.fr:9998/kid"), [("controller", "refuse")]),
    "pkcs11 undeclared": (on(AZURE, HSM), [("controller", "refuse")]),
    "clever kms": (on(AZURE, CLEVER), []),
    "clever kms on clever cloud": (
        on('provider = "clever-cloud"\nregion = "par"\nroot = "b"', CLEVER),
        [(SEPARATE, "warn")],
    ),
    "the dialect of clever kms elsewhere": (
        on(AZURE, "openbao://bao.example.fr/transit/k?dialect=clever"),
        [("controller", "refuse")],
    ),
    "clever cloud without the dialect": (on(AZURE, CLEVER.partition("?")[0]), [("controller", "refuse")]),
    "vault at amazonaws.com, declared french": (
        on(
            AZURE,
            "vault://ec2-1-2-3-4.eu-west-3.compute.amazonaws.com:8200/transit/k",
            tables='[kms.v]\nuri = "vault://ec2-1-2-3-4.eu-west-3.compute.amazonaws.com:8200"\ncontroller = "chu"\n'
            + controller(),
            policy='key_holder_jurisdiction = "any"\nkey_holder_parent = "any"\nseparate_from_storage = "allow"',
        ),
        [("endpoint", "refuse")],
    ),
    "declared, with a parent in the us": (on(OVH_HOST, BAO, tables=DECLARED + US_PARENT), [(PARENT, "refuse")]),
    "declared, with a parent in the us, only warned of": (
        on(OVH_HOST, BAO, tables=DECLARED + US_PARENT, policy='on_violation = { key_holder_parent = "warn" }'),
        [(PARENT, "warn")],
    ),
    "declared, with a parent that nobody places": (
        on(OVH_HOST, BAO, tables=DECLARED + controller(parent="Example SE")),
        [(PARENT, "refuse")],
    ),
    "declared, without a word on a parent": (on(OVH_HOST, BAO, tables=DECLARED + controller(parent=None)), []),
    "declared in the us": (on(OVH_HOST, BAO, tables=DECLARED + controller(jurisdiction="US")), [(LAW, "refuse")]),
    "declared in france and the us": (
        on(OVH_HOST, BAO, tables=DECLARED + controller(jurisdiction="FR, US")),
        [(LAW, "refuse")],
    ),
    "declared in switzerland, which is allowed": (
        on(
            AZURE,
            BAO,
            tables=DECLARED + controller(jurisdiction="CH"),
            policy='key_holder_jurisdiction = ["EU", "CH"]',
        ),
        [],
    ),
    "declared without its technology": (
        on(AZURE, BAO, tables=DECLARED + controller(technology_origin=None)),
        [(TECHNOLOGY, "warn")],
    ),
    "declared on technology of the us": (
        on(AZURE, BAO, tables=DECLARED + controller(technology_origin="US")),
        [(TECHNOLOGY, "warn")],
    ),
    "declared on technology of the us, refused": (
        on(
            AZURE,
            BAO,
            tables=DECLARED + controller(technology_origin="US"),
            policy='on_violation = { key_holder_technology = "refuse" }',
        ),
        [(TECHNOLOGY, "refuse")],
    ),
    "declared as a provider": (
        on(OVH_HOST, BAO, tables=DECLARED.replace('"chu"', '"outscale"')),
        [(TECHNOLOGY, "warn")],
    ),
    "declared as the host": (
        on(OVH_HOST, BAO, tables=DECLARED.replace('"chu"', '"ovhcloud"')),
        [(SEPARATE, "warn")],
    ),
    "declared as azure": (
        on(OVH_HOST, BAO, tables=DECLARED.replace('"chu"', '"azure"')),
        [(LAW, "refuse"), (PARENT, "refuse"), (TECHNOLOGY, "warn")],
    ),
    "declared as a provider that is nobody": (
        on(OVH_HOST, BAO, tables=DECLARED.replace('"chu"', '"s3"')),
        [("controller", "refuse")],
    ),
    "a subsidiary of the host": (
        on(
            'provider = "scaleway"\nregion = "fr-par"\nroot = "b"',
            BAO,
            tables=DECLARED + controller(legal_entity="Free Pro SAS", parent="Iliad S.A.", parent_jurisdiction="FR"),
        ),
        [(SEPARATE, "warn")],
    ),
    "a sister of the host": (
        on(
            'provider = "numspot"\nregion = "eu-west-2"\naccount = "1"\nroot = "b"',
            BAO,
            tables=DECLARED.replace('"chu"', '"outscale"'),
        ),
        [(TECHNOLOGY, "warn"), (SEPARATE, "warn")],
    ),
    "a subsidiary of a provider by its name": (
        on(OVH_HOST, BAO, tables=DECLARED + controller(parent="ovhcloud", parent_jurisdiction="FR")),
        [(SEPARATE, "warn")],
    ),
    "bleu with a key of bleu": (
        on(BLEU, BAO, tables=DECLARED.replace('"chu"', '"bleu"')),
        [(TECHNOLOGY, "warn"), (SEPARATE, "warn")],
    ),
    "bleu with a key of its parent": (
        on(
            BLEU,
            BAO,
            tables=DECLARED + controller(legal_entity="Capgemini SE", parent="none", technology_origin="FR"),
        ),
        [(SEPARATE, "warn")],
    ),
    "bleu with ovhcloud kms": (on(BLEU, OVH), []),
    "a key at a domain of bleu": (
        on(
            AZURE,
            "vault://v.sovcloud-api.fr/transit/k",
            tables=f'[kms.v]\nuri = "vault://v.sovcloud-api.fr"\ncontroller = "chu"\n{controller()}',
        ),
        [("endpoint", "warn"), (TECHNOLOGY, "warn")],
    ),
    "a key at a domain of s3ns, any technology": (
        on(
            AZURE,
            "vault://kms.s3nsapis.fr/transit/k",
            tables=f'[kms.v]\nuri = "vault://kms.s3nsapis.fr"\ncontroller = "chu"\n{controller()}',
            policy='key_holder_technology = "any"',
        ),
        [("endpoint", "warn")],
    ),
    "hsm asked for and not declared": (on(AZURE, OVH, policy='protection_level = "hsm"'), [(LEVEL, "refuse")]),
    "hsm asked for and declared": (
        on(AZURE, HSM, policy='protection_level = "hsm"', tables=DECLARED + controller()),
        [],
    ),
    "hsm asked for and declared of a managed service": (
        on(
            AZURE,
            OVH,
            policy='protection_level = "hsm"',
            tables='[kms.o]\nuri = "okms://eu-west-rbx"\nprotection_level = "hsm"\n',
        ),
        [],
    ),
    "hsm asked for, only warned of": (
        on(AZURE, OVH, policy='protection_level = "hsm"\non_violation = { protection_level = "warn" }'),
        [(LEVEL, "warn")],
    ),
    "hsm asked for, a key file": (on(AZURE, "keyfile:/k", policy='protection_level = "hsm"'), [(LEVEL, "refuse")]),
    "plain names on azure": (on(f'{AZURE}\nnames = "plain"', OVH), [(NAMES, "refuse")]),
    "plain names on azure, warned of": (
        on(f'{AZURE}\nnames = "plain"', OVH, policy='plain_names = "warn"'),
        [(NAMES, "warn")],
    ),
    "plain names on azure, allowed": (on(f'{AZURE}\nnames = "plain"', OVH, policy='plain_names = "allow"'), []),
    "plain names on azure with a key file": (on(f'{AZURE}\nnames = "plain"', "keyfile:/k"), [(NAMES, "refuse")]),
    "plain names at ovhcloud": (on(f'{OVH_HOST}\nnames = "plain"', SCW), []),
    "plain names at ovhcloud in canada": (
        on('provider = "ovhcloud"\nregion = "bhs"\nroot = "b"\nnames = "plain"', SCW),
        [(NAMES, "refuse")],
    ),
    "plain names at nobody knows whom": (
        on(f'{S3}\nnames = "plain"', "keyfile:/k"),
        [(NAMES, "refuse")],
    ),
    "plain names in a folder": (on('root = "/srv/x"\nnames = "plain"', "keyfile:/k"), []),
    "key file in a folder": (on('root = "/srv/x"', "keyfile:/k"), []),
    "key file in memory": (on('provider = "memory"\nroot = "/x"', "keyfile:/k"), []),
    "key file on azure": (on(AZURE, "keyfile:/k"), []),
    "keyring on any s3": (on(S3, "keyring://sovstore/x"), []),
    "key file on any filesystem": (on('root = "sftp://host/x"', "keyfile:/k"), []),
    "key file in a folder by fsspec": (on('provider = "fsspec"\nroot = "file:///srv/x"', "keyfile:/k"), []),
    "key file on azurite": (on('provider = "azurite"\nroot = "c"', "keyfile:/k"), []),
    "key file in a folder, separation refused": (
        on('root = "/srv/x"', "keyfile:/k", policy='separate_from_storage = "refuse"'),
        [(SEPARATE, "refuse")],
    ),
    "ovhcloud kms in a folder": (on('root = "/srv/x"', OVH), []),
    "any s3 with ovhcloud kms": (on(S3, OVH), [(SEPARATE, "warn")]),
    "any s3 with ovhcloud kms, separation refused": (
        on(S3, OVH, policy='separate_from_storage = "refuse"'),
        [(SEPARATE, "refuse")],
    ),
    "any filesystem with ovhcloud kms": (on('root = "sftp://host/x"', OVH), [(SEPARATE, "warn")]),
    "ones own s3, declared, with ovhcloud kms": (on(AT_OWN, OVH, tables=OWN_S3), []),
    "ones own s3 with ones own key": (
        on(AT_OWN, BAO, tables=OWN_S3 + DECLARED + controller()),
        [(SEPARATE, "refuse")],
    ),
    "ovhcloud by an endpoint elsewhere": (
        on(f'{OVH_HOST}\nendpoint = "https://proxy.example"', SCW),
        [(SEPARATE, "warn")],
    ),
    "any s3 that is ovhcloud, by its endpoint": (
        on(S3.replace("s3.example.org", "s3.gra.io.cloud.ovh.net"), OVH),
        [(SEPARATE, "warn")],
    ),
    "any s3 that is ovhcloud in the us, by its endpoint": (
        on(S3.replace("s3.example.org", "s3.us-west-or.io.cloud.ovh.us"), OVH),
        [(SEPARATE, "refuse")],
    ),
    "ovhcloud by an endpoint of scaleway": (
        on(f'{OVH_HOST}\nendpoint = "https://s3.fr-par.scw.cloud"', SCW),
        [(SEPARATE, "warn")],
    ),
    "plain names at azure by another name": (
        on('provider = "bleu"\nendpoint = "https://chu.blob.core.windows.net"\nroot = "c"\nnames = "plain"', OVH),
        [(NAMES, "refuse")],
    ),
    "amazon, by its endpoint": (on(S3.replace("s3.example.org", "s3.eu-west-3.amazonaws.com"), OVH), []),
    "host in the eu asked for": (
        on(AZURE, OVH, policy='host_jurisdiction = ["EU"]'),
        [("host_jurisdiction", "refuse")],
    ),
    "parent of the host in the eu asked for": (
        on(AZURE, OVH, policy='host_parent = ["EU"]\non_violation = { host_parent = "warn" }'),
        [("host_parent", "warn")],
    ),
    "technology of the host asked for": (
        on(BLEU, OVH, policy='host_technology = ["FR"]'),
        [("host_technology", "refuse")],
    ),
    "unknown host where the law is asked for": (
        on(S3, "keyfile:/k", policy='host_jurisdiction = ["EU"]'),
        [("host_jurisdiction", "refuse")],
    ),
    "overridden by the store": (
        on(OVH_HOST, OVH, policy='separate_from_storage = "refuse"', own='separate_from_storage = "allow"'),
        [],
    ),
    "made stricter by the store, the rest kept": (
        on(
            OVH_HOST,
            OVH,
            policy='separate_from_storage = "allow"\nprotection_level = "hsm"',
            own='on_violation = { protection_level = "warn" }',
        ),
        [(LEVEL, "warn")],
    ),
    "several keys": (
        on(f'{AZURE}\nother_keks = ["{BAO}"]\nold_keks = ["awskms:arn"]', OVH),
        [("controller", "refuse"), ("endpoint", "refuse")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_the_table(tmp_path, case):
    text, expected = TABLE[case]
    described = load(tmp_path, text)
    findings = policy.evaluate(described, today=TODAY)
    assert bad(findings) == expected
    if any(action == "refuse" for _, action in expected):
        with pytest.raises(PolicyError):
            policy.enforce(described, today=TODAY)
    else:
        policy.enforce(described, today=TODAY)


def test_the_table_is_long_enough():
    assert len(TABLE) >= 80


@pytest.mark.parametrize("case", TABLE)
def test_a_finding_says_all_of_it(tmp_path, case):
    for finding in policy.evaluate(load(tmp_path, TABLE[case][0]), today=TODAY):
        assert finding.rule in policy.RULES
        assert finding.action in ("refuse", "warn", "ok")
        for name in ("subject", "fact", "value", "source", "message", "setting", "origin"):
            assert getattr(finding, name), name
        assert bool(finding.hint) == (finding.action != "ok")
        assert not finding.message.endswith(".")
        assert finding.subject in ("host of s", "this machine") or ":" in finding.subject


def test_the_order_is_the_one_of_the_rules(tmp_path):
    findings = policy.evaluate(load(tmp_path, on(OVH_HOST, OVH)), today=TODAY)
    order = [finding.rule for finding in findings]
    assert order == [
        *("endpoint", "controller", LAW, PARENT, TECHNOLOGY, LEVEL, SEPARATE, STALE),
        *("host_jurisdiction", "host_parent", "host_technology", NAMES, STALE, "local_plaintext"),
    ]
    assert list(policy.RULES)[:7] == order[:7]


# Ages

LATER = date(2028, 6, 1)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", [(STALE, "warn"), (STALE, "warn")]),
        ('stale_facts = "refuse"', [(STALE, "refuse"), (STALE, "refuse")]),
        ('stale_facts = "allow"', []),
        ('max_age = "3650d"', []),
    ],
)
def test_facts_older_than_a_year(tmp_path, setting, expected):
    described = load(tmp_path, on(AZURE, OVH, policy=setting))
    assert bad(policy.evaluate(described, today=LATER)) == expected
    assert bad(policy.evaluate(described, today=TODAY)) == []


def test_a_stale_fact_is_named_with_its_date(tmp_path):
    found = policy.evaluate(load(tmp_path, on(AZURE, OVH)), today=LATER)
    first = next(finding for finding in found if finding.rule == STALE)
    assert first.message.startswith(
        "facts about ovhcloud are older than 365d, or without a date: controller (2026-11-25)"
    )
    assert (first.fact, first.as_of) == ("technology", date(2026, 8, 6))


@pytest.mark.parametrize(
    ("as_of", "action"),
    [("2026-10-01", "ok"), ("2025-11-25", "ok"), ("2025-11-24", "warn"), ("9999-01-01", "warn"), ("2027-11-25", "ok")],
)
def test_the_age_of_what_is_declared(tmp_path, as_of, action):
    text = on(AZURE, BAO, tables=DECLARED + controller().replace("2026-10-01", as_of))
    found = policy.evaluate(load(tmp_path, text), today=TODAY)
    assert next(finding.action for finding in found if finding.rule == STALE) == action


def test_a_fact_without_a_date_is_stale(tmp_path):
    own = '[providers.own]\nlike = "s3"\nendpoint = "https://s3.example.org"\ncontroller = "CHU"\n'
    found = policy.evaluate(load(tmp_path, on(AT_OWN, OVH, tables=own)), today=TODAY)
    assert bad(found) == [(STALE, "warn")]
    assert "controller (without a date)" in next(f.message for f in reversed(found) if f.rule == STALE)


def test_the_facts_of_a_host_do_not_matter_to_a_key_on_this_machine(tmp_path):
    assert bad(policy.evaluate(load(tmp_path, on(AZURE, "keyfile:/k")), today=LATER)) == []


# The deny list

DENIED = [
    *("kms.eu-west-3.amazonaws.com", "amazonaws.com", "KMS.EU-WEST-3.AMAZONAWS.COM", "kms.amazonaws.com."),
    *("kms.cn-north-1.amazonaws.com.cn", "kms.eusc-de-east-1.amazonaws.eu", "kms.eu-west-3.api.aws"),
    *("v.vault.azure.net", "v.managedhsm.azure.net", "v.vault.azure.cn", "v.vault.usgovcloudapi.net"),
    *("cloudkms.googleapis.com", "vault.googleapis.com", "x.kms.eu-paris-1.oraclecloud.com"),
    *("c.vault.11eb.aws.hashicorp.cloud", "eu-fr2.kms.cloud.ibm.com"),
]
#: Of an endpoint, which may be written as a URL can.
EVASIONS = [
    *(
        "kms.amazonaws.com..",
        "kms\uff0eamazonaws\uff0ecom",
        "kms\u3002amazonaws\u3002com",
        "kms\uff61amazonaws\uff61com",
    ),
    *("kms.\uff41mazonaws.com", "kms.ama\u00adzonaws.com", "kms.amazon\u200baws.com", "kms.%61mazonaws.com"),
    *("kms.amazonaws%2ecom", "kms.amazonaws.com:443", "user@kms.amazonaws.com", "kms.AMAZONAWS.com.:8443"),
    *("evil.example\\.amazonaws.com", "kms.amazonaws.com/%2e%2e", "kms.amazonaws.com#x"),
]
NOT_DENIED = [
    "amazonaws.com.example.fr",
    "notamazonaws.com",
    "amazonaws.co",
    "vault.azure.net.fr",
    "hashicorp-cloud.fr",
]


@pytest.mark.parametrize("scheme", ["openbao", "vault", "eviden-kms", "kmip"])
@pytest.mark.parametrize("at", DENIED)
def test_no_key_at_a_denied_domain(tmp_path, scheme, at):
    lax = 'key_holder_jurisdiction = "any"\nkey_holder_parent = "any"\nseparate_from_storage = "allow"\n'
    lax += 'on_violation = { controller = "warn" }'
    described = load(tmp_path, on(AZURE, f"{scheme}://{at}:8200/k", policy=lax))
    found = policy.evaluate(described, today=TODAY)
    assert (found[0].rule, found[0].action) == ("endpoint", "refuse")
    assert "under the law of US, which can be ordered to use the key" in found[0].message
    assert found[0].as_of is not None
    with pytest.raises(PolicyError, match="rule endpoint; fact host of 2026-"):
        policy.enforce(described, today=TODAY)


@pytest.mark.parametrize("at", [*DENIED, *EVASIONS])
@pytest.mark.parametrize("form", ["okms://eu-west-rbx/1/2?endpoint=https://{}", "vault://bao.example.fr/k?endpoint={}"])
def test_no_endpoint_at_a_denied_domain(tmp_path, at, form):
    found = policy.evaluate(replace(load(tmp_path, on(AZURE, OVH)), kek=form.format(at)), today=TODAY)
    assert (found[0].rule, found[0].action) == ("endpoint", "refuse")


@pytest.mark.parametrize("at", ["kms\u3002amazonaws\u3002com", "kms\uff0eamazonaws\uff0ecom", "KMS.%61mazonaws.com."])
def test_no_host_that_becomes_a_denied_domain(tmp_path, at):
    found = policy.evaluate(replace(load(tmp_path, on(AZURE, OVH)), kek=f"vault://{at}/transit/k"), today=TODAY)
    assert (found[0].rule, found[0].action) == ("endpoint", "refuse")


@pytest.mark.parametrize("at", NOT_DENIED)
def test_the_end_of_a_name_is_no_domain(tmp_path, at):
    found = policy.evaluate(load(tmp_path, on(AZURE, f"openbao://{at}/transit/k")), today=TODAY)
    assert found[0].rule == "endpoint"
    assert found[0].action == "ok"


@pytest.mark.parametrize("at", ["b\u00e4o.example.fr", "xn--b_o.example", "bao .fr", "bao.example.fr\\x"])
def test_a_host_that_clients_may_read_otherwise(tmp_path, at):
    described = replace(load(tmp_path, on(AZURE, OVH)), kek=f"{OVH}?endpoint=https://{at}")
    assert bad(policy.evaluate(described, today=TODAY))[0] == ("endpoint", "refuse")


@pytest.mark.parametrize("scheme", ["awskms", "aws-kms", "arn", "gcpkms", "gcp-kms", "azurekeyvault", "AWSKMS", "Arn"])
def test_schemes_that_are_recognised_to_be_refused(tmp_path, scheme):
    found = policy.evaluate(load(tmp_path, on(AZURE, f"{scheme}:x/y")), today=TODAY)
    assert (found[0].rule, found[0].action, found[0].value) == ("endpoint", "refuse", scheme)
    assert "the key would be held by a company under US law, which can be ordered to use it" in found[0].message


@pytest.mark.parametrize("name", sorted(domain.name for domain in parties._DOMAINS))
def test_every_domain_has_who_and_since_when(name):
    domain = parties.domain_of(f"x.{name}")
    assert domain.name == name
    assert countries.parse(domain.technology.value)
    assert len(domain.controller.source) > 10
    assert date(2026, 1, 1) <= domain.controller.as_of <= date(2026, 11, 30)


# What may not be said


@pytest.mark.parametrize(
    ("kek", "service", "message"),
    [
        (OVH, 'uri = "okms://eu-west-rbx"\ncontroller = "scaleway"', "its keys are held by ovhcloud, whatever"),
        (OVH, 'uri = "okms://eu-west-rbx"\ncontroller = "chu"', "its keys are held by ovhcloud, whatever"),
        (SCW, 'uri = "scw-kms://fr-par"\ncontroller = "ovhcloud"', "its keys are held by scaleway, whatever"),
        (CLEVER, f'uri = "{CLEVER.partition("/transit")[0]}"\ncontroller = "chu"', "its keys are held by clever-cloud"),
        ("keyring://a/b", 'uri = "keyring://a"\ncontroller = "chu"', "says that somebody else holds it"),
    ],
)
def test_what_is_declared_does_not_override_what_the_uri_says(tmp_path, kek, service, message):
    described = load(tmp_path, on(AZURE, kek, tables=f"[kms.x]\n{service}\n{controller()}"))
    with pytest.raises(ConfigError, match=message):
        policy.evaluate(described, today=TODAY)
    with pytest.raises(ConfigError, match=message):
        policy.enforce(described, today=TODAY)


def test_the_same_may_be_said(tmp_path):
    tables = '[kms.x]\nuri = "okms://eu-west-rbx"\ncontroller = "ovhcloud"\n'
    assert bad(policy.evaluate(load(tmp_path, on(AZURE, OVH, tables=tables)), today=TODAY)) == []


CANARY = "hvs.CANARYsecret9"


@pytest.mark.parametrize(
    "kek",
    [
        f"openbao://user:{CANARY}@bao.example.fr/transit/k",
        f"openbao://{CANARY}@vault.amazonaws.com/transit/k",
        f"openbao://bao.example.fr/transit/k?token={CANARY}",
        f"openbao://bao.example.fr/transit/k#{CANARY}",
        f"okms://eu-west-rbx/1/2?endpoint={CANARY}",
        f"okms://eu-west-rbx/1/2?endpoint=https://u:{CANARY}@x.example/",
        f"pkcs11:token=a;object=b;pin-value={CANARY}",
        f"pkcs11:token=a;object=b?pin-value={CANARY}",
        f"openbao://[{CANARY}",
        f"unknown:{CANARY}",
    ],
)
def test_a_secret_in_a_key_uri_is_never_shown(tmp_path, kek, caplog):
    described = load(tmp_path, on(AZURE, kek, policy='on_violation = { controller = "warn" }'))
    shown = ""
    for attempt in (lambda: policy.evaluate(described, today=TODAY), lambda: policy.enforce(described, today=TODAY)):
        try:
            shown += repr(attempt())
        except (ConfigError, PolicyError) as exc:
            shown += f"{exc} {exc.path} {exc!r} {exc.__cause__!r}"
    shown += policy.declaration(described, kek, TODAY) + caplog.text
    assert CANARY.lower() not in shown.lower()


# Declaring


def test_the_hint_holds_the_toml_to_write(tmp_path):
    described = load(tmp_path, on(AZURE, BAO))
    refused = next(f for f in policy.evaluate(described, today=TODAY) if f.action == "refuse")
    assert 'controller = "NAME" into a table [kms.NAME] with uri = "openbao://bao.example.fr:8200"' in refused.hint
    assert 'jurisdiction = "FR", parent = "none"' in refused.hint
    text = policy.declaration(described, BAO, TODAY).replace("NAME", "chu").replace("…", "x")
    assert bad(policy.evaluate(load(tmp_path, on(AZURE, BAO, tables=f"{text}\n")), today=TODAY)) == []


def test_the_hint_names_the_table_that_is_there(tmp_path):
    described = load(tmp_path, on(AZURE, BAO, tables='[kms.bao]\nuri = "openbao://bao.example.fr:8200"\n'))
    refused = next(f for f in policy.evaluate(described, today=TODAY) if f.action == "refuse")
    assert refused.hint.startswith('write controller = "NAME" into [kms.bao], and [controllers.NAME] with legal_entity')


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[policy]\nseparate_from_storge = 'warn'", "policy in .*unknown setting 'separate_from_storge'", "did you"),
        ("[stores.s.policy]\nplain_name = 'warn'", r"stores\.s\.policy in .*unknown setting 'plain_name'", "plain_na"),
        ("[stores.s]\npolcy = 5", "unknown setting 'polcy'", "did you mean 'policy'?"),
        ("[policy]\nseparate_from_storage = true", "separate_from_storage is none of its values", "known: refuse, "),
        ("[policy]\nseparate_from_storage = 'yes'", "separate_from_storage is none of its values", "warn-in-eu"),
        ("[policy]\nprotection_level = 'HSM'", "protection_level is none of its values", "software, hsm"),
        ("[policy]\nplain_names = 'refused'", "plain_names is none of its values", "did you mean 'refuse'?"),
        ("[policy]\nstale_facts = 1", "stale_facts is none of its values", "known:"),
        ("[policy]\nmax_age = 365", "max_age is not a number of days", '"365d"'),
        ("[policy]\nmax_age = '0d'", "max_age is not a number of days", '"365d"'),
        ("[policy]\nmax_age = '1h'", "max_age is not a number of days", '"365d"'),
        ("[policy]\nkey_holder_jurisdiction = 'FR'", "key_holder_jurisdiction is not a list of countries", '["FR", '),
        ("[policy]\nkey_holder_jurisdiction = []", "key_holder_jurisdiction is not a list of countries", '"any"'),
        ("[policy]\nkey_holder_jurisdiction = [1]", "key_holder_jurisdiction is not a list of countries", '"any"'),
        ("[policy]\nkey_holder_jurisdiction = ['UK']", "names 'UK', which is no country", "ISO"),
        ("[policy]\nkey_holder_parent = ['fr']", "key_holder_parent names 'fr', which is no country", "capitals"),
        ("[policy]\nhost_jurisdiction = ['any']", "host_jurisdiction names 'any', which is no country", "ISO"),
        ("[policy]\non_violation = 'warn'", "on_violation is not a table", "write on_violation = {"),
        ("[policy]\non_violation = { key_holder = 'warn' }", "unknown setting 'key_holder'", "did you mean"),
        ("[policy]\non_violation = { host_parent = 'allow' }", r"on_violation\.host_parent is none", "refuse, warn"),
        ("policy = 5", "not a table", "[policy]"),
        ("[stores.s]\npolicy = 5", "not a table", "[stores.NAME.policy]"),
        ("[controllers.chu]\nlegal_entity = 'x'", "'jurisdiction' is missing", "write [controllers.chu]"),
        (controller(jurisdiction="France"), "jurisdiction is not a country", "write [controllers.chu]"),
        (controller(jurisdiction="UK"), "jurisdiction is not a country", ""),
        (controller(technology_origin="OpenBao"), "technology_origin is not a country", "open-source"),
        (controller(legal_entity=""), "legal_entity is not a text", ""),
        (controller(source=None), "'source' is missing", "source ="),
        (controller().replace("as_of = 2026-10-01", ""), "'as_of' is missing", "as_of = "),
        (controller().replace("2026-10-01", "'2026-10-01'"), "as_of is not a date", ""),
        (controller().replace("2026-10-01", "2026-10-01T00:00:00"), "as_of is not a date", ""),
        (controller(parent_jurisdiction="FR"), "has no parent, but its jurisdiction", "name the parent"),
        (controller(countr="FR"), "unknown setting 'countr'", ""),
        (controller("ovhcloud"), "controllers.ovhcloud in .*the name is taken", "choose another"),
        (controller("self"), "controllers.self in .*the name is taken", "choose another"),
        (OWN_S3 + controller("own"), "controllers.own in .*the name is taken", "choose another"),
        (DECLARED, "kms.bao in .*no controller or provider", "[controllers.chu]"),
        (DECLARED.replace('"chu"', '"ovhclud"'), "kms.bao in .*no controller or provider", "did you mean 'ovhcloud'?"),
        ("[providers.p]\nlike = 's3'\njurisdiction = 'France'", "jurisdiction is not a country", ""),
        ("[providers.p]\nlike = 's3'\ntechnology = 'Dell'", "technology is not a country", ""),
        ("[providers.p]\nlike = 's3'\ngroup = 'x'", "group is not a list of texts", ""),
        ("[providers.p]\nlike = 's3'\nregion_jurisdiction = { a = 'Paris' }", "region_jurisdiction is not a table", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_configuration(tmp_path, text, message, hint):
    head = "" if "[stores.s]" in text or text.startswith("policy") else "[stores.s]\n"
    body = 'root = "/x"\nkek = "keyfile:/k"\n'
    whole = f"{head}{body}{text}" if head else text + ("\n[stores.s]\n" if text.startswith("policy") else "\n") + body
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, whole)
    assert hint in caught.value.hint


def test_the_environment_does_not_set_a_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__S__POLICY", "{}")
    with pytest.raises(ConfigError, match="unknown setting 'policy'"):
        load(tmp_path, on(AZURE, OVH))


def test_where_a_setting_stands(tmp_path):
    text = on(
        OVH_HOST,
        OVH,
        policy='plain_names = "warn"\nmax_age = "30d"',
        own='on_violation = { key_holder_parent = "warn" }',
    )
    found = {finding.rule: finding for finding in policy.evaluate(load(tmp_path, text), today=TODAY)}
    file = tmp_path / "sovstore.toml"
    assert (found[LAW].setting, found[LAW].origin) == ("FR, EU; else refuse", "default")
    assert (found[NAMES].setting, found[NAMES].origin) == ("warn", f"policy in {file}")
    assert (found[PARENT].setting, found[PARENT].origin) == ("FR, EU; else warn", f"stores.s.policy in {file}")
    assert (found[STALE].setting, found[STALE].origin) == ("warn, after 30d", f"policy in {file}")
    assert (found["endpoint"].setting, found["endpoint"].origin) == ("always on", "no setting")


# Enforcing


def test_a_refusal_names_rule_fact_source_and_date_and_all_others(tmp_path):
    text = on(f'{AZURE}\nnames = "plain"', OVH.replace("eu-west-rbx", "us-east-vin"), policy='protection_level = "hsm"')
    with pytest.raises(PolicyError) as caught:
        policy.enforce(load(tmp_path, text), today=TODAY)
    error = caught.value
    assert error.message.startswith(
        "store 's': ovhcloud is under the law of FR, US; allowed: FR, EU (rule key_holder_ju"
    )
    assert "fact jurisdiction of 2026-11-22: https://" in error.message
    assert (
        "also refused: the key is kept in software, as far as is declared; asked for: hsm (rule protection_level"
        in error.hint
    )
    assert (
        "also refused: azure reads all names, and is outside the EU or nobody says where (rule plain_names"
        in error.hint
    )
    assert error.hint.endswith("'sovstore policy s' explains all of it")
    assert error.exit_code == 4
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  # ours


def test_a_warning_is_logged_once_in_a_process_and_store(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "sovstore")
    described = load(tmp_path, on(OVH_HOST, OVH))
    for _ in range(3):
        policy.enforce(described, today=TODAY)
    policy.enforce(replace(described, name="t"), today=TODAY)
    assert caplog.messages == [
        f"store {name!r}: ovhcloud holds both the key and the ciphertext; 'sovstore policy {name}' explains it"
        for name in ("s", "t")
    ]


def test_only_the_keys_that_are_named_are_looked_at(tmp_path):
    described = load(tmp_path, on(f'{AZURE}\nother_keks = ["{BAO}"]', OVH))
    policy.enforce(described, keks=[OVH], today=TODAY)
    policy.enforce(described, keks=(), today=TODAY)
    with pytest.raises(PolicyError, match="rule controller"):
        policy.enforce(described, keks=[OVH, BAO], today=TODAY)
    with pytest.raises(PolicyError, match="rule controller"):
        policy.enforce(described, today=TODAY)
    assert bad(policy.evaluate(described, today=TODAY, kek=OVH)) == []


@pytest.fixture
def made(tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    return make_store(tmp_path)


def _strict(file, text='[stores.cohortes.policy]\nprotection_level = "hsm"\n'):
    file.write_text(f"{file.read_text()}\n{text}")
    return config.load(file).store("cohortes")


def test_opening_is_refused_before_the_key_is_asked_for(made):
    described = _strict(made)
    raw = (Path(described.root) / keysets.LOCATION).read_bytes()
    with pytest.raises(PolicyError, match="rule protection_level"):
        keysets.unlock(raw, described, Access())


def test_making_is_refused_before_anything_is_there(tmp_path):
    described = load(
        tmp_path, f'[policy]\nprotection_level = "hsm"\n[stores.s]\nroot = "host"\nkek = "keyfile:{tmp_path}/k"\n'
    )
    with pytest.raises(PolicyError, match="rule protection_level"):
        asyncio.run(store_creation.create(described, Access(lambda _: "secret"), lambda _: pytest.fail("recorded")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sovstore.toml"]


def test_the_keyset_says_how_names_were_made(tmp_path, monkeypatch):
    cheap_key_files(monkeypatch)
    described = config.load(make_store(tmp_path, names="plain")).store("cohortes")
    raw = (Path(described.root) / keysets.LOCATION).read_bytes()
    moved = replace(described, names="encrypted", provider="azure", facts=providers.catalogue()["azure"])
    with pytest.raises(PolicyError, match="rule plain_names"):
        keysets.unlock(raw, moved, config.access(moved))
    assert keysets.unlock(raw, described, config.access(described)).names_mode == "plain"


# Purity


def test_it_is_pure(tmp_path, monkeypatch):
    described = [load(tmp_path, text) for text, _ in TABLE.values()]
    expected = [policy.evaluate(one, today=TODAY) for one in described]

    def refused(*_args, **_options):
        raise AssertionError("not pure")

    class NoEnvironment(dict):
        __getitem__ = __contains__ = get = keys = items = __iter__ = refused

    with monkeypatch.context() as patch:
        for module, name in (
            *((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "getcwd"), (os, "getenv")),
            *((socket, "socket"), (socket, "getaddrinfo"), (time, "time"), (time, "monotonic")),
        ):
            patch.setattr(module, name, refused)
        patch.setattr(os, "environ", NoEnvironment())
        patch.setattr(policy, "datetime", SimpleNamespace(now=refused))
        found = [policy.evaluate(one, today=TODAY) for one in described]
    assert found == expected


def test_it_is_deterministic(tmp_path):
    load(tmp_path, on(f'{AZURE}\nother_keks = ["{SCW}", "{BAO}"]', OVH, tables=DECLARED + controller()))
    script = (
        "from datetime import date\nfrom sovstore import config, policy\n"
        f"print(policy.evaluate(config.load({str(tmp_path / 'sovstore.toml')!r}).store('s'), today=date(2026, 11, 25)))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_a_described_store_still_pickles(tmp_path):
    described = load(tmp_path, on(AZURE, BAO, tables=DECLARED + controller(), policy='plain_names = "warn"'))
    assert pickle.loads(pickle.dumps(described)) == described  # noqa: S301  # ours


# The data


@pytest.mark.parametrize("name", providers.catalogue())
@pytest.mark.parametrize("fact", ["controller", "parent_jurisdiction", "technology"])
def test_every_provider_has_the_facts_with_source_and_date(name, fact):
    stated = providers.catalogue()[name].facts[fact]
    assert stated.source.strip()
    assert date(2020, 1, 1) <= stated.as_of <= date(2026, 11, 30)
    if fact != "controller":
        assert stated.value in ("unknown", "open-source") or countries.parse(stated.value)


@pytest.mark.parametrize("name", ["ovhcloud", "outscale", "scaleway"])
def test_every_region_abroad_has_its_law(name):
    provider = providers.catalogue()[name]
    assert set(provider.facts["region_jurisdiction"].value) == set(provider.get("regions"))


@pytest.mark.parametrize("entry", parties._DATA["services"].values(), ids=lambda entry: entry["provider"])
def test_every_managed_service_is_of_a_provider_and_its_facts_have_source_and_date(entry):
    facts = providers.catalogue()[entry["provider"]].facts
    for fact in (facts["controller"], facts["jurisdiction"], facts["parent"], facts["parent_jurisdiction"]):
        assert fact.value != "unknown"
        assert fact.as_of > date(2025, 11, 25)
    for key in {"technology", "regions"} & set(entry):
        assert entry[key]["as_of"] > date(2026, 1, 1)
        assert len(entry[key]["source"]) > 10


def test_a_controller_of_ones_own_takes_over_no_law():
    text = {"x": {"like": "scaleway", "controller": "somebody else"}}
    facts = providers.extended(text, "f")["x"].facts
    assert not {"parent", "jurisdiction", "parent_jurisdiction", "group", "region_jurisdiction"} & set(facts)
    assert providers.extended({"x": {"like": "scaleway"}}, "f")["x"].get("jurisdiction") == "FR"


def test_the_members_of_the_european_union():
    assert len(countries.MEMBERS) == 27
    assert countries.MEMBERS < countries.CODES
    assert len(countries.CODES) == 249
    assert not {"GB", "CH", "NO", "EU"} & countries.MEMBERS


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("FR", ("FR",)),
        ("FR, US", ("FR", "US")),
        ("EU", ("EU",)),
        ("fr", ()),
        ("FR,", ()),
        ("", ()),
        ("UK", ()),
        ("FR US", ()),
    ],
)
def test_parse(text, codes):
    assert countries.parse(text) == codes


@pytest.mark.parametrize(
    ("codes", "allowed", "inside"),
    [
        (["FR"], ["FR"], True),
        (["DE"], ["FR"], False),
        (["DE"], ["EU"], True),
        (["FR", "US"], ["FR", "EU"], False),
        (["EU"], ["EU"], True),
        (["EU"], ["FR"], False),
        (["GB"], ["EU"], False),
        (["GB"], ["EU", "GB"], True),
        ([], ["FR"], False),
    ],
)
def test_within(codes, allowed, inside):
    assert countries.within(codes, allowed) is inside


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("OVH SAS", "OVH Groupe SA", True),
        ("Iliad S.A.", "iliad", True),
        ("Dassault Systèmes SE", "DASSAULT SYSTEMES", True),
        ("Orange SA", "Orange Bank", False),
        ("SA", "SAS", False),
    ],
)
def test_names_of_companies(one, other, same):
    assert (bool(parties._normal(one)) and parties._normal(one) == parties._normal(other)) is same


# This machine


@pytest.mark.parametrize(
    ("own", "setting", "action", "text"),
    [
        ("", "allow", "ok", "may keep plaintext"),
        ('local_plaintext = "warn"', "warn", "warn", "are warned of"),
        ('local_plaintext = "refuse"', "refuse", "refuse", "are refused"),
    ],
)
def test_layers_that_keep_plaintext(tmp_path, own, setting, action, text):
    """Opening a store is never refused for them: only their use shows them."""
    described = load(tmp_path, on(AZURE, OVH, policy='local_plaintext = "refuse"', own=own or f'{LOCAL} = "allow"'))
    found = policy.evaluate(described, today=TODAY)[-1]
    assert (found.rule, found.action, found.subject, found.setting) == (LOCAL, "ok", "this machine", setting)
    assert text in found.message
    assert "stores.s.policy" in found.origin
    policy.enforce(described, today=TODAY)
    used = rules.of_layer(described, "SimpleCacheFileSystem", "fsspec.implementations.cached")
    assert (used.action, used.fact, used.value) == (action, "layer", "SimpleCacheFileSystem")
    if action == "refuse":
        with pytest.raises(PolicyError, match="SimpleCacheFileSystem would keep plaintext") as caught:
            policy.act(described, [used])
        assert "rule local_plaintext; fact layer: fsspec.implementations.cached" in str(caught.value)
    else:
        policy.act(described, [used])


def test_a_wrong_value_names_the_right_ones(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, on(AZURE, OVH, policy='local_plaintext = "refused"'))
    assert "did you mean 'refuse'?" in caught.value.hint
    assert "known: refuse, warn, allow" in caught.value.hint


# The page


def test_every_setting_rule_and_domain_is_documented():
    page = (ROOT / "docs/policy.md").read_text()
    for word in (*SETTINGS, *CONTROLLER, *policy.RULES):
        assert f"`{word}`" in page, word
    for domain in parties._DOMAINS:
        assert f"`{domain.name}`" in page, domain.name


def test_the_defaults_of_the_page_are_those_of_the_code(tmp_path):
    from tests import snippets

    blocks = [text for language, text in snippets.snippets(ROOT / "docs/policy.md") if language == "toml"]
    assert len(blocks) >= 4
    described = load(tmp_path, f'{blocks[0]}\n[stores.s]\nroot = "/x"\nkek = "keyfile:/k"\n')
    assert replace(described.policy, origins={}) == Policy()
    for number, text in enumerate(blocks[1:]):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        for name in config.load(file).stores:
            assert bad(policy.evaluate(config.load(file).store(name), today=TODAY)) == []


def test_rules_are_reached_by_the_findings(tmp_path):
    seen = {f.rule for text, _ in TABLE.values() for f in policy.evaluate(load(tmp_path, text), today=TODAY)}
    assert seen == set(policy.RULES) == set(rules.RULES)

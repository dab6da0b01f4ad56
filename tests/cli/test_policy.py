"""Transcripts of policy."""

from __future__ import annotations

import json
import re
import socket
from datetime import UTC, datetime

import pytest

OVH = "okms://eu-west-rbx/305db938-331f-454d-83a7-3a0a29291661/6c1d4b4e-0f5e-4f2e-9b43-d4a3c1f5a001"
BAO = "openbao://bao.example.fr:8200/transit/kek"
TABLES = f"""
[policy]
separate_from_storage = "warn"

[kms.bao]
uri = "openbao://bao.example.fr:8200"

[stores.ovh]
provider = "ovhcloud"
region = "gra"
root = "bucket"
kek = "{OVH}"

[stores.bao]
provider = "azure"
account = "chu"
root = "container"
kek = "{BAO}"

[stores.here]
root = "host"
kek = "keyfile:/k"
names = "plain"

[stores.here.policy]
protection_level = "hsm"
"""


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "sovstore.toml"
    path.write_text(TABLES)
    monkeypatch.setenv("SOVSTORE_CONFIG", str(path))

    def refused(*_args, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    return path


def _flat(text):
    return " ".join(text.split())


def test_what_is_refused_on_this_machine(cli):
    code, out, err = cli("policy", "here").transcript
    assert (code, err) == (4, "")
    text = re.sub(r"─+", "─", re.sub(r"  +", "  ", out.replace("in\n   DIR", "in DIR")))
    findings, _, rest = text.partition("\nrule  what it asks  set to\n─\n")
    assert (
        findings
        == """\
keyfile:/k

result  rule  because  fact
─
ok  controller  the key is held by this machine (self)  [1]
ok  key_holder_jurisdiction  this machine: its own user  [1]
ok  key_holder_parent  this machine: its own user  [1]
ok  key_holder_technology  this machine: its own user  [1]
refuse  protection_level  the key is kept in software, as far as is declared; asked for: hsm  [2]
  => use a key in an HSM, and write protection_level = "hsm" into its table
  [kms.NAME]
warn  separate_from_storage  this machine holds both the key and the ciphertext  [1]
  => hold the KEK with somebody else than the host, or set separate_from_storage
  in [policy]: refuse, warn-in-eu, warn, allow

host of here

result  rule  because  fact
─
ok  host_jurisdiction  this machine: its own user  [3]
ok  host_parent  this machine: its own user  [3]
ok  host_technology  this machine: its own user  [3]
ok  plain_names  this machine: its own user  [3]

this machine

result  rule  because  fact
─
ok  local_plaintext  caches and generic copies of fsspec may keep plaintext on this machine: its own user  [4]

1 refuse, 1 warn, 9 ok
"""
    )
    rules, _, facts = rest.partition("\nfacts, when they were true, and who says so\n")
    assert "controller  somebody is known to run the service that  declared; else refuse (default)" in rules
    assert (
        facts
        == """\
  [1] -  controller = self: the key is kept on this machine
  [2] -  protection_level = software: not declared, which counts as software
  [3] -  controller = self: the host is this machine
  [4] -  controller = self: what is read is read on this machine
"""
    )


def test_a_warning_is_no_failure(cli):
    ran = cli("policy", "ovh")
    assert (ran.code, ran.err) == (0, "")
    assert "warn     separate_from_storage     ovhcloud holds both the key and the ciphertext" in ran.out
    flat = _flat(ran.out)
    assert "=> hold the KEK with somebody else than the host, or set separate_from_storage in [policy]" in flat
    assert "\n1 warn, 13 ok\n" in ran.out
    assert re.search(r"^separate_from_storage +the host and the key holder .* +warn \(policy", ran.out, re.MULTILINE)
    assert "key_holder_jurisdiction the law that whoever runs it is under FR, EU; else refuse (default)" in flat
    assert "[2] 2026-11-25 controller = OVH SAS: https://" in flat
    assert ran.out.index("facts, when they were true, and who says so") > ran.out.index("what it asks")


def test_who_is_missing_is_shown_as_toml(cli):
    ran = cli("policy", "bao")
    assert (ran.code, ran.err) == (4, "")
    assert "refuse   controller   nobody says who holds the key: whoever runs bao.example.fr" in ran.out
    today = datetime.now(UTC).date().isoformat()
    assert (
        f"""
to say who holds the key, write into the configuration:

[kms.bao]
controller = "NAME"

[controllers.NAME]
legal_entity = "…"
jurisdiction = "FR"
parent = "none"
technology_origin = "open-source"
as_of = {today}
source = "…"
"""
        in ran.out
    )


def test_another_key(cli):
    ran = cli("policy", "bao", "--kek", OVH)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{OVH}\n")
    assert cli("policy", "bao", "--kek", "arn:aws:kms").code == 4


def test_json(cli):
    ran = cli("policy", "ovh", "--json")
    assert (ran.code, ran.err) == (0, "")
    shown = json.loads(ran.raw_out)
    assert (shown["store"], shown["refused"]) == ("ovh", False)
    warned = [finding for finding in shown["findings"] if finding["action"] == "warn"]
    assert [finding["rule"] for finding in warned] == ["separate_from_storage"]
    assert list(warned[0]) == [
        *("rule", "action", "subject", "fact", "value", "source", "as_of", "message", "hint", "setting", "origin"),
    ]
    assert warned[0]["as_of"] == "2026-11-25"
    ran = cli("policy", "bao", "--json")
    assert ran.code == 4
    assert json.loads(ran.raw_out)["refused"] is True


@pytest.mark.parametrize("width", [80, 120])
def test_no_rule_is_cut_in_a_terminal(cli, monkeypatch, width):
    from rich.console import Console

    from sovstore.cli.output import Output

    monkeypatch.setattr(Output, "console", lambda self: Console(width=width, markup=False, highlight=False))
    out = cli("policy", "ovh").out
    assert max(len(line) for line in out.splitlines() if "://" not in line) <= width
    for rule in ("key_holder_jurisdiction", "key_holder_technology", "separate_from_storage"):
        assert len(re.findall(rf"^(?:ok|warn) +{rule}  ", out, re.MULTILINE)) == 1
        assert len(re.findall(rf"^{rule}  ", out, re.MULTILINE)) == 1


def test_what_is_wrong(cli, file):
    ran = cli("policy", "nobody")
    assert (ran.code, ran.out) == (2, "")
    file.write_text(TABLES.replace("separate_from_storage", "separate_from_store"))
    ran = cli("policy", "ovh")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "sovstore: error: policy in DIR/sovstore.toml: unknown setting 'separate_from_store'\n"
        "sovstore: hint: did you mean 'separate_from_storage'?\n"
    )
    file.write_text(TABLES.replace('"openbao://bao.example.fr:8200"', '"okms://eu-west-rbx"\ncontroller = "scaleway"'))
    ran = cli("policy", "ovh")
    assert (ran.code, ran.out) == (2, "")
    assert "kms.bao: its keys are held by ovhcloud, whatever 'controller' says" in ran.err


def test_opening_a_store_that_is_refused(cli, tmp_path):
    made = tmp_path / "own.toml"
    made.write_text(f'[stores.s]\nroot = "host"\nkek = "keyfile:{tmp_path}/k"\nbackup = "{tmp_path}/backup"\n')
    ran = cli("init", "s", "--config", made)
    assert (ran.code, "needs a passphrase" in ran.err) == (2, True)
    made.write_text(f'{made.read_text()}[policy]\nprotection_level = "hsm"\n')
    ran = cli("init", "s", "--config", made)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == (
        "sovstore: error: store 's': the key is kept in software, as far as is declared; asked for: hsm (rule "
        "protection_level; fact protection_level: not declared, which counts as software)\n"
        'sovstore: hint: use a key in an HSM, and write protection_level = "hsm" into its table [kms.NAME]; '
        "'sovstore policy s' explains all of it\n"
    )
    assert not (tmp_path / "host").exists()


def test_help(cli):
    ran = cli("policy", "--help")
    assert ran.code == 0
    assert "sovstore policy cohortes" in ran.out

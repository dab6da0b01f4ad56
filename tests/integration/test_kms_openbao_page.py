"""The page on OpenBao: its commands make, on an empty server, all that a store and its readers need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sovstore.cli import main
from sovstore.errors import KeyDeniedError
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.settings import Service
from tests.servers import openbao
from tests.stores import CONTROLLERS

_PAGE = Path(__file__).parent.parent.parent / "docs/kms/openbao.md"
_STORE = """
[stores.cohortes]
provider = "local"
root     = "{root}"
kek      = "{uri}/transit/cohortes"
[kms.bao]
controller = "tests"
uri     = "{uri}"
ca_file = "{ca_file}"
"""
CONTEXT = bytes(range(32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def server(folder):
    with openbao.start(empty=True) as running:
        (folder / "pipelines-ca.pem").write_bytes(running.clients.ca_file.read_bytes())
        (folder / "issuer.pem").write_text(running.jwt_issuer)
        yield running


@pytest.fixture(scope="module")
def said(openbao_server, server, folder):
    """What each command of the page printed, by the command."""
    del openbao_server  # It skips where there is no OpenBao.
    return {command: server.shell(command, folder) for command in _commands() if command.startswith("bao ")}


def _commands():
    """Return the commands of the page, each with its further lines."""
    blocks = re.findall(r"^```console\n(.*?)^```$", _PAGE.read_text(), re.MULTILINE | re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    return [re.sub(r"^> ", "", part, flags=re.MULTILINE) for part in parts]


def _value(said, command, name):
    (text,) = (text for known, text in said.items() if known.strip() == command)
    return re.search(rf"^{name} +(\S+)$", text, re.MULTILINE)[1]


def _open(server, **settings):
    base = f"openbao://{server.address}"
    service = Service(uri=base, ca_file=str(server.ca_file), **settings)
    return registry.open_key(f"{base}/transit/cohortes", Access(services=(service,)))


def test_every_command_was_run(said):
    assert len(said) == 17


def test_each_way_to_log_in_gives_a_reader(server, said, monkeypatch, folder):
    role = "auth/approle/role/cohortes-reader"
    monkeypatch.setenv("SECRET_ID", _value(said, f"bao write -force {role}/secret-id", "secret_id"))
    monkeypatch.setenv("JWT", server.sign_jwt())
    monkeypatch.setenv(
        "BOTH", _value(said, "bao token create -policy=cohortes-reader -policy=cohortes-writer -ttl=8h", "token")
    )
    writer = _open(server, token="env:BOTH")
    wrapped = writer.wrap(bytes(32), CONTEXT)
    assert wrapped.startswith(b"vault:v2:")
    file = str(server.client_certificate)
    for settings in (
        {
            "auth": "approle",
            "role_id": _value(said, f"bao read {role}/role-id", "role_id"),
            "secret_id": "env:SECRET_ID",
        },
        {"auth": "cert", "cert_file": file, "key_file": file},
        {"auth": "jwt", "role": "cohortes-reader", "jwt": "env:JWT"},
    ):
        reader = _open(server, **settings)
        assert reader.unwrap(wrapped, CONTEXT) == bytes(32)
        with pytest.raises(KeyDeniedError):
            reader.wrap(bytes(32), CONTEXT)
        reader.close()
    writer.close()


def test_a_store_is_made_by_a_writer_and_read_by_a_reader(server, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"root": tmp_path / "host", "uri": f"openbao://{server.address}", "ca_file": server.ca_file}
    Path("sovstore.toml").write_text(_STORE.format(**settings) + CONTROLLERS)
    Path("person.csv").write_text("a sensitive line\n")
    both = _value(said, "bao token create -policy=cohortes-reader -policy=cohortes-writer -ttl=8h", "token")
    only = server.shell("bao token create -policy=cohortes-reader -field=token", tmp_path)
    monkeypatch.setenv("BAO_TOKEN", both)
    assert main(["init", "cohortes"]) == 0
    # A pipeline that writes objects needs no right to wrap.
    monkeypatch.setenv("BAO_TOKEN", only)
    before = len(server.requests())
    assert main(["put", "person.csv", "sov://cohortes/person.csv"]) == 0
    assert [path for _, path in server.requests()[before:]] == ["transit/decrypt/cohortes"]
    capsys.readouterr()
    assert main(["cat", "sov://cohortes/person.csv"]) == 0
    assert capsys.readouterr().out == "a sensitive line\n"
    monkeypatch.setenv("BAO_TOKEN", "of nobody")
    assert main(["cat", "sov://cohortes/person.csv"]) == 4
    assert "does not let us unwrap" in capsys.readouterr().err

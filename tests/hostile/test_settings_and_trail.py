"""Attacks on the settings of services and on the audit trail."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from sovstore import config, rotation
from sovstore.errors import ConfigError
from sovstore.trail import Trail
from tests.hosts import cheap_key_files
from tests.integration.test_rotation import Site


@pytest.mark.parametrize(
    "text",
    [
        '[audit]\nfile = "~nobody-of-this-name/audit.jsonl"\n',
        '[audit]\nfile = "a\\u0000b"\n',
        '[kms.x]\nuri = "openbao://h"\nca_file = "~nobody-of-this-name/ca.pem"\n',
        '[kms.x]\nuri = "openbao://h"\ntoken = "file:~nobody-of-this-name/token"\n',
        '[kms.x]\nuri = "openbao://h"\nca_file = "a\\u0000b"\n',
    ],
)
def test_a_path_that_cannot_be_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sovstore.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        config.load(file)


def test_a_line_that_is_written_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up takes the beginning of the line: the next one would be glued to it."""
    real, left = os.write, [10]

    def full(descriptor: int, content: bytes) -> int:
        if not content:
            return real(descriptor, content)
        taken, left[0] = content[: left[0]], 0
        if not taken:
            raise OSError(errno.ENOSPC, "no space left")
        return real(descriptor, taken)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigError):
        Trail("store", tmp_path / "audit.jsonl").record("unwrap", "done")


def test_the_trail_says_which_kek_went_and_which_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)
    (tmp_path / "sovstore.toml").write_text('[audit]\nfile = "audit.jsonl"\n')
    site = Site(tmp_path)
    first = site.do(lambda store: store.keyset()).primary.id
    site.do(rotation.add_kek, site.second, site.record)
    site.do(rotation.remove_kek, site.first, site.record)
    site.do(rotation.new_epoch)
    site.do(rotation.destroy_epoch, first)
    lines = {}
    for text in (tmp_path / "audit.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines[line["action"]] = text
    assert site.first in lines["remove-kek"]
    assert first.hex() in lines["destroy-epoch"]


def test_a_restored_keyset_is_a_line_of_the_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from sovstore import keysets
    from sovstore.backends.registry import open_backend

    cheap_key_files(monkeypatch)
    (tmp_path / "sovstore.toml").write_text('[audit]\nfile = "audit.jsonl"\n')
    site = Site(tmp_path)
    (tmp_path / "cohortes" / keysets.LOCATION).unlink()
    described = site.described
    asyncio.run(keysets.restore(open_backend(described.place), described, config.access(described), None))
    actions = [json.loads(line)["action"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert "restore" in actions

"""SoftHSM, the PKCS#11 token of the tests: a real module, with its tokens in a directory of its own.

A process has one set of tokens: the module reads `SOFTHSM2_CONF` when it is initialised. Keys are made in a child, so
that the module of the test's process is used by what is tested and by nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.process import ProcessGroup, process_group
from tests.servers.require import missing_parts

#: Where Debian has it, and other systems.
_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)

#: Makes keys in a child: arguments are the module, token, PIN and a list of templates, as names and values.
_MAKE = """
import json, sys
import pkcs11
from pkcs11 import Attribute, KeyType
module, token, pin, wanted = *sys.argv[1:4], json.loads(sys.argv[4])
with pkcs11.lib(module).get_token(token_label=token).open(user_pin=pin, rw=True) as session:
    for key in wanted:
        kind, bits = getattr(KeyType, key["type"]), key["bits"]
        template = {getattr(Attribute, name): value for name, value in key["attributes"].items()}
        options = {"label": key["label"], "id": bytes.fromhex(key["id"]), "store": True, "template": template}
        if kind == KeyType.RSA:
            session.generate_keypair(kind, bits, store=True, label=key["label"])
        elif key["value"]:
            template |= {
                Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: kind, Attribute.TOKEN: True,
                Attribute.LABEL: key["label"], Attribute.VALUE: bytes.fromhex(key["value"]),
            }
            session.create_object(template)
        else:
            session.generate_key(kind, bits, **options)
"""
#: What a KEK should be.
KEK = {
    "SENSITIVE": True,
    "EXTRACTABLE": False,
    "ENCRYPT": True,
    "DECRYPT": True,
    "WRAP": False,
    "UNWRAP": False,
    "SIGN": False,
    "VERIFY": False,
}


@dataclass(frozen=True, slots=True)
class SoftHSMToken:
    """An initialised token, and the means to make others beside it."""

    group: ProcessGroup = field(repr=False)
    label: str
    pin: str = field(repr=False)
    so_pin: str = field(repr=False)

    @property
    def module(self) -> str:
        """The library."""
        return next(module for module in _MODULES if Path(module).is_file())

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make the module use these tokens, for a child process or `monkeypatch.setenv`."""
        return {"SOFTHSM2_CONF": str(self.group.directory / "softhsm2.conf")}

    def make_key(
        self, label: str, *, kind: str = "AES", bits: int = 256, key_id: str = "", value: str = "", **attributes: bool
    ) -> None:
        """Make a key, a good KEK unless attributes say otherwise; one with a `value` is imported."""
        template = {**KEK, **attributes} if kind != "RSA" else {}
        wanted = {"label": label, "type": kind, "bits": bits, "id": key_id, "value": value, "attributes": template}
        command = [sys.executable, "-c", _MAKE, self.module, self.label, self.pin, json.dumps([wanted])]
        subprocess.run(command, env={**os.environ, **self.environment}, check=True, capture_output=True)

    def add_token(self, label: str) -> SoftHSMToken:
        """Make another token."""
        _initialise(self.group, self.environment, label, self.so_pin, self.pin)
        return SoftHSMToken(self.group, label, self.pin, self.so_pin)

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """Take the files of all tokens away while a block runs."""
        tokens = self.group.directory / "tokens"
        away = self.group.directory / "away"
        tokens.rename(away)
        tokens.mkdir()
        try:
            yield
        finally:
            tokens.rmdir()
            away.rename(tokens)


def missing() -> list[str]:
    """Return what is not installed of all that this token and its client need."""
    absent = missing_parts(commands=["softhsm2-util"], modules=["pkcs11"])
    return absent if any(Path(module).is_file() for module in _MODULES) else [*absent, "libsofthsm2.so"]


@contextlib.contextmanager
def start() -> Iterator[SoftHSMToken]:
    """Make a token."""
    with process_group("softhsm") as group:
        (group.directory / "tokens").mkdir()
        config = f"directories.tokendir = {group.directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        (group.directory / "softhsm2.conf").write_text(config)
        token = SoftHSMToken(group, "sovstore-tests", "canary-pin-48151", "canary-so-pin-62342")
        _initialise(group, token.environment, token.label, token.so_pin, token.pin)
        yield token


def _initialise(group: ProcessGroup, environment: dict[str, str], label: str, so_pin: str, pin: str) -> None:
    command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", so_pin, "--pin", pin]
    subprocess.run(
        command, cwd=group.directory, env={"PATH": os.environ["PATH"], **environment}, check=True, capture_output=True
    )

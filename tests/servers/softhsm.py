"""SoftHSM, the PKCS#11 token of the tests: a real library, its tokens in a directory of their own.

The library is one for a process and reads `SOFTHSM2_CONF` from the environment when it is initialised, at a time that
no test chooses. So all tokens of a run share one configuration, which is put where C reads it and `os.environ` does
not show it: there the isolation of each test would remove it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.process import ProcessGroup, process_group
from tests.servers.require import missing_parts

_VARIABLE = "SOFTHSM2_CONF"
_PLACES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
_MAKE_KEYS = Path(__file__).with_name("softhsm_keys.py")
#: What a KEK must be; `make_key` changes single attributes.
KEK = {"ENCRYPT": True, "DECRYPT": True, "SENSITIVE": True, "EXTRACTABLE": False, "PRIVATE": True}


@dataclass(frozen=True, slots=True)
class SoftHSMToken:
    """An initialised token."""

    label: str
    module: str
    pin: str = field(repr=False)
    so_pin: str = field(repr=False)
    group: ProcessGroup = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs that is given an environment of its own."""
        return {_VARIABLE: str(_configuration(self.group))}

    def uri(self, label: str) -> str:
        """Return the key URI of a key, by its label."""
        return f"pkcs11:token={self.label};object={label}"

    def make_key(self, label: str, kind: str = "AES", **attributes: Any) -> str:
        """Make a key in a process of its own and return its URI.

        Parameters
        ----------
        kind : str
            ``AES``, ``AES-128``, ``DES3``, ``GENERIC_SECRET``, ``RSA`` (a pair), or ``imported`` (AES, its value set).
        attributes : object
            Attributes that are not those of `KEK`; `ID` as hexadecimal digits.
        """
        request = {
            "module": self.module,
            "token": self.label,
            "pin": self.pin,
            "label": label,
            "kind": kind,
            "attributes": {**KEK, **attributes},
        }
        self.python(str(_MAKE_KEYS), stdin=json.dumps(request))
        return self.uri(label)

    def python(self, *arguments: str, stdin: str = "") -> str:
        """Run Python with the library's configuration and return its standard output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise self.group.failure(f"{arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def make_token(self, label: str | None = None) -> SoftHSMToken:
        """Make one more token, with PINs of its own. A library that is initialised already does not see it."""
        return _make_token(self.group, self.module, label)

    def remove(self) -> None:
        """Delete the token, also while it is in use."""
        _util(self.group, "--delete-token", "--token", self.label)


def missing() -> list[str]:
    """Return what is not installed of all that this token and its client need."""
    absent = missing_parts(commands=["softhsm2-util"], modules=["pkcs11"])
    return absent if _library() else [*absent, "libsofthsm2.so"]


@contextlib.contextmanager
def start() -> Iterator[SoftHSMToken]:
    """Make a token, and make the library of this process and of its children look for it."""
    module = _library()
    with process_group("softhsm") as group:
        (group.directory / "tokens").mkdir()
        _configuration(group).write_text(
            f"directories.tokendir = {group.directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        # Out of `os.environ`, whose clean-up for a test would also remove it for C.
        before = os.environ.pop(_VARIABLE, None)
        os.putenv(_VARIABLE, str(_configuration(group)))
        try:
            yield _make_token(group, module or "")
        finally:
            os.unsetenv(_VARIABLE)
            if before is not None:
                os.environ[_VARIABLE] = before


def _library() -> str | None:
    return next((path for path in _PLACES if Path(path).is_file()), None)


def _configuration(group: ProcessGroup) -> Path:
    return group.directory / "softhsm2.conf"


def _make_token(group: ProcessGroup, module: str, label: str | None = None) -> SoftHSMToken:
    label = label or f"tests-{secrets.token_hex(4)}"
    token = SoftHSMToken(label, module, secrets.token_hex(8), secrets.token_hex(8), group)
    _util(group, "--init-token", "--free", "--label", token.label, "--so-pin", token.so_pin, "--pin", token.pin)
    return token


def _util(group: ProcessGroup, *arguments: str) -> None:
    group.run(["env", f"{_VARIABLE}={_configuration(group)}", "softhsm2-util", *arguments])

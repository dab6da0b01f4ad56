"""The audit trail: one structured line for each call of a KMS and each change of a keyset.

It says who, which key, which store and what came of it; never what was wrapped. Each line is one JSON object, logged to
``sovstore.audit`` at INFO and appended to a file where the configuration names one.
"""

from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sovstore.errors import ConfigError

_log = logging.getLogger("sovstore.audit")


@dataclass(frozen=True)
class Trail:
    """Where the lines of one store go.

    Parameters
    ----------
    store : str
        Name of the store.
    file : Path or None
        JSON lines are appended here too.
    """

    store: str
    file: Path | None = None

    def record(self, action: str, outcome: str, **facts: str | int | None) -> None:
        """Write one line.

        Parameters
        ----------
        action : str
            ``wrap``, ``unwrap`` or what was done to the keyset.
        outcome : str
            ``done``, or the class of the error.
        facts : str or int
            What else is known: the key URI, the request id of the service; never content.

        Raises
        ------
        ConfigError
            When the file cannot be written: what must be recorded and cannot be is an error.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": f"{_user()}@{socket.gethostname()}",
            "pid": os.getpid(),
            "store": self.store,
            "action": action,
            "outcome": outcome,
            **{name: value for name, value in facts.items() if value is not None},
        }
        text = json.dumps(line)
        _log.info("%s", text)
        if self.file is not None:
            self._append(self.file, f"{text}\n".encode())

    def check(self) -> None:
        """Refuse a file that cannot be written, before there is anything to record.

        Raises
        ------
        ConfigError
            When it cannot.
        """
        if self.file is not None:
            self._append(self.file, b"")

    def _append(self, file: Path, content: bytes) -> None:
        try:
            # One write to a file that was opened for appending is one piece, also beside other processes.
            descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            hint = "free some room on its disk" if full else "correct 'file' in [audit], or the rights of its folder"
            message = f"{file}: the audit trail cannot be written: {exc.strerror}"
            raise ConfigError(message, path=str(file), hint=hint) from exc
        if written != len(content):
            # A disk that fills up takes the beginning of a line.
            message = f"{file}: the audit trail cannot be written: only a part of a line was"
            raise ConfigError(message, path=str(file), hint="free some room on its disk")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that no user has.
        return str(os.getuid())

"""A headless Secret Service: GNOME Keyring, unlocked, on a session bus of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import ProcessGroup, process_group
from tests.servers.require import missing_parts

_KEYRING_COMMAND = ("gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets")
_COMMANDS = ("dbus-daemon", "dbus-send", _KEYRING_COMMAND[0])

# The stock session configuration starts services on demand; this one has none, so that a test reaches the
# keyring started here and no prompt can open.
_BUS_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@dataclass(frozen=True, slots=True)
class SecretService:
    """A running Secret Service, reached through the variables in `environment` and only through them."""

    bus_address: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make `keyring` use this service, for a child process or `monkeypatch.setenv`."""
        return {
            "DBUS_SESSION_BUS_ADDRESS": self.bus_address,
            "PYTHON_KEYRING_BACKEND": "keyring.backends.SecretService.Keyring",
        }


def missing() -> list[str]:
    """Return what is not installed of all that this server and its client need."""
    return missing_parts(commands=_COMMANDS, modules=["keyring", "secretstorage"])


@contextlib.contextmanager
def start() -> Iterator[SecretService]:
    """Run a session bus and an unlocked, empty keyring on it."""
    with process_group("keyring") as group:
        socket = group.directory / "bus"
        address = f"unix:path={socket}"
        _start_bus(group, address, socket)
        _start_keyring(group, address)
        yield SecretService(address)


def _start_bus(group: ProcessGroup, address: str, socket: Path) -> None:
    config = group.directory / "bus.conf"
    config.write_text(_BUS_CONFIG.format(address=address))
    group.start("dbus", ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"])
    group.wait_until(socket.exists, what="the session bus listens")


def _start_keyring(group: ProcessGroup, address: str) -> None:
    run, share = group.directory / "run", group.directory / "share"
    run.mkdir(mode=0o700)
    share.mkdir(mode=0o700)
    group.start(
        "gnome-keyring",
        [*_KEYRING_COMMAND, f"--control-directory={run}"],
        environment={
            "DBUS_SESSION_BUS_ADDRESS": address,
            "XDG_RUNTIME_DIR": str(run),
            "XDG_DATA_HOME": str(share),
        },
        stdin=b"password of the test keyring",
    )
    group.wait_until(lambda: _owns_secrets(address), what="the keyring is on the bus")


def _owns_secrets(address: str) -> bool:
    command = ["dbus-send", f"--bus={address}", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/"]
    command += ["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=10)
    return "true" in done.stdout

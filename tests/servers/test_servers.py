"""Smoke tests: each real server starts, keeps what a client gives it, and is gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import adlfs
import keyring
import pytest
import s3fs

from tests.servers.ports import accepts_connections, free_ports
from tests.servers.process import ServerStartError, process_group
from tests.servers.require import missing_parts, parse_required, skip_or_fail

_CONTENT = bytes(range(256)) * 100


def test_s3_keeps_an_object(s3_server):
    bucket = s3_server.create_bucket("smoke")
    fs = s3fs.S3FileSystem(**s3_server.storage_options)
    fs.pipe_file(f"{bucket}/folder/object", _CONTENT)
    assert fs.cat_file(f"{bucket}/folder/object", start=10, end=300) == _CONTENT[10:300]
    assert fs.find(bucket) == [f"{bucket}/folder/object"]


def test_s3_refuses_a_wrong_secret(s3_server):
    bucket = s3_server.create_bucket("smoke-refused")
    options = s3_server.storage_options | {"secret": "wrong"}
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(**options).pipe_file(f"{bucket}/object", _CONTENT)


def test_azurite_keeps_an_object(azurite_server):
    container = azurite_server.create_container("smoke")
    fs = adlfs.AzureBlobFileSystem(**azurite_server.storage_options)
    fs.pipe_file(f"{container}/folder/object", _CONTENT)
    assert fs.cat_file(f"{container}/folder/object", start=10, end=300) == _CONTENT[10:300]
    assert fs.find(container) == [f"{container}/folder/object"]


def test_secret_service_keeps_a_secret_for_a_child_process(secret_service):
    script = (
        "import keyring\n"
        "keyring.set_password('sovstore-smoke', 'child', 'canary')\n"
        "print(keyring.get_keyring().__module__, keyring.get_password('sovstore-smoke', 'child'))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | secret_service.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["keyring.backends.SecretService", "canary"]


def test_secret_service_keeps_a_secret_for_this_process(os_keyring):
    keyring.set_password("sovstore-smoke", "self", "canary")
    assert keyring.get_password("sovstore-smoke", "self") == "canary"


def test_no_keyring_without_the_fixture():
    with pytest.raises(keyring.errors.NoKeyringError):
        keyring.get_password("sovstore-smoke", "self")


def _start_web_server(group):
    (port,) = free_ports(1)
    group.start("web", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)])
    group.wait_until(lambda: accepts_connections(port), what="the server accepts connections")
    return port


def test_processes_are_stopped_and_their_directory_is_removed():
    with process_group("web") as group:
        port, directory = _start_web_server(group), group.directory
    assert not accepts_connections(port)
    assert not directory.exists()


def test_a_failed_start_shows_the_log():
    with process_group("broken") as group:
        group.start("broken", [sys.executable, "-c", "import sys; print('no disk'); sys.exit(3)"])
        with pytest.raises(ServerStartError, match=r"exited with 3 before it serves\n.*\nno disk"):
            group.wait_until(lambda: False, what="it serves")


def test_a_failed_start_stops_what_it_started():
    ports = []

    def start():
        with process_group("half") as group:
            ports.append(_start_web_server(group))
            group.wait_until(lambda: False, what="the rest", timeout_s=0.1)

    with pytest.raises(ServerStartError, match=r"half: the rest: not within 0\.1 s"):
        start()
    assert not accepts_connections(*ports)


def test_a_missing_server_skips_unless_it_is_required():
    missing = missing_parts(commands=["sh", "no-such-command"], modules=["json", "no_such_module"])
    assert missing == ["no-such-command", "Python module no_such_module"]
    with pytest.raises(pytest.skip.Exception, match="s3: not installed: no-such-command"):
        skip_or_fail("s3", missing, frozenset())
    with pytest.raises(pytest.fail.Exception, match="s3: not installed: no-such-command"):
        skip_or_fail("s3", missing, parse_required("azurite, s3"))


def test_an_unknown_required_server_is_refused():
    with pytest.raises(pytest.UsageError, match="unknown server minio"):
        parse_required("s3,minio")


def test_home_and_configuration_belong_to_the_test(tmp_path):
    assert Path.home().parent == tmp_path.parent
    assert Path(os.environ["XDG_CONFIG_HOME"]).parent == Path.home()
    assert list(tmp_path.iterdir()) == []
    assert not [name for name in os.environ if name.startswith("SOVSTORE_") and "_TEST_" not in name]


def test_omop_sample_has_its_tables(omop_dir):
    assert {"person.parquet", "measurement.parquet"} <= {path.name for path in omop_dir.iterdir()}

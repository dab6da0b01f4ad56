"""Smoke tests: each real server starts, keeps what a client gives it, and is gone afterwards."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import adlfs
import keyring
import pytest
import s3fs
from botocore.exceptions import ClientError

from tests.servers.ports import accepts_connections, free_ports
from tests.servers.process import ServerStartError, process_group
from tests.servers.require import SERVERS, missing_parts, parse_required, skip_or_fail
from tests.servers.tls import make_certificate

_ROOT = Path(__file__).parent.parent.parent
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


def test_s3_has_the_same_objects_over_tls(s3_server):
    bucket = s3_server.create_bucket("smoke-tls")
    s3fs.S3FileSystem(**s3_server.over_tls.storage_options).pipe_file(f"{bucket}/object", _CONTENT)
    assert s3fs.S3FileSystem(**s3_server.storage_options).cat_file(f"{bucket}/object") == _CONTENT


def test_s3_over_tls_is_refused_without_its_authority(s3_server):
    _assert_only_its_authority_is_enough(s3_server.tls_endpoint_url, s3_server.ca_file)


def test_moto_keeps_an_object(moto_server):
    bucket = moto_server.create_bucket("smoke")
    fs = s3fs.S3FileSystem(**moto_server.storage_options)
    fs.pipe_file(f"{bucket}/folder/object", _CONTENT)
    assert fs.cat_file(f"{bucket}/folder/object", start=10, end=300) == _CONTENT[10:300]
    assert fs.find(bucket) == [f"{bucket}/folder/object"]


def test_moto_completes_an_upload_only_where_nothing_is(moto_server):
    bucket = moto_server.create_bucket("smoke-conditions")
    with contextlib.closing(moto_server.client()) as client:
        names = {"Bucket": bucket, "Key": "object"}
        client.put_object(**names, Body=b"first")
        upload = names | {"UploadId": client.create_multipart_upload(**names)["UploadId"]}
        part = client.upload_part(**upload, PartNumber=1, Body=b"second")
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*")


def test_azurite_keeps_an_object(azurite_server):
    container = azurite_server.create_container("smoke")
    fs = adlfs.AzureBlobFileSystem(**azurite_server.storage_options)
    fs.pipe_file(f"{container}/folder/object", _CONTENT)
    assert fs.cat_file(f"{container}/folder/object", start=10, end=300) == _CONTENT[10:300]
    assert fs.find(container) == [f"{container}/folder/object"]


def test_azurite_keeps_an_object_over_tls(azurite_tls_server):
    container = azurite_tls_server.create_container("smoke")
    assert azurite_tls_server.connection_string.startswith("DefaultEndpointsProtocol=https;")
    with azurite_tls_server.client() as client, client.get_blob_client(container, "folder/object") as blob:
        blob.upload_blob(_CONTENT)
        assert blob.download_blob().readall() == _CONTENT


def test_azurite_over_tls_is_refused_without_its_authority(azurite_tls_server):
    _assert_only_its_authority_is_enough(azurite_tls_server.blob_endpoint, azurite_tls_server.ca_file)


def _assert_only_its_authority_is_enough(url, ca_file):
    address = urlsplit(url)
    with (
        contextlib.closing(http.client.HTTPSConnection(address.netloc, context=ssl.create_default_context())) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        plain.request("GET", "/")
    context = ssl.create_default_context(cafile=str(ca_file))
    # What Python 3.13 asks for by itself.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in (address.hostname, "localhost"):
        with contextlib.closing(http.client.HTTPSConnection(host, address.port, context=context)) as trusting:
            trusting.request("GET", "/")
            assert trusting.getresponse().status < 500


def test_the_key_of_a_certificate_is_private(tmp_path):
    files = make_certificate(tmp_path)
    assert files.certificate.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in files.ca_file.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {files.ca_file.name, files.certificate.name}


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


def test_what_a_killed_run_left_is_removed_by_the_next():
    script = (
        "import os, signal, sys\n"
        "from tests.servers.process import process_group\n"
        "with process_group('killed') as group:\n"
        "    group.start('sleep', ['sleep', '60'])\n"
        "    print(group.directory, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    directory = Path(killed.stdout.strip())
    with process_group("first") as first, process_group("second"):
        assert first.directory.is_dir()
        assert (killed.returncode, directory.name[:11]) == (-signal.SIGKILL, "sov-killed-")
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


def test_the_marker_names_every_server(pytestconfig):
    (described,) = (line for line in pytestconfig.getini("markers") if line.startswith("server(name)"))
    assert f"({', '.join(SERVERS)})" in described


def test_home_and_configuration_belong_to_the_test(tmp_path):
    assert Path.home().parent == tmp_path.parent
    assert Path(os.environ["XDG_CONFIG_HOME"]).parent == Path.home()
    assert list(tmp_path.iterdir()) == []
    assert not [name for name in os.environ if name.startswith("SOVSTORE_") and "_TEST_" not in name]


def test_omop_sample_has_its_tables(omop_dir):
    assert {"person.parquet", "measurement.parquet"} <= {path.name for path in omop_dir.iterdir()}

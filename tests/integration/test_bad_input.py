"""What users and hosts do wrong: each has an error of its own that says what to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import keyring.backends.fail
import keyring.backends.null
import pytest

from sovstore import config, keysets
from sovstore import store as store_module
from sovstore.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    KeyDeniedError,
    NoMatchingKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    PathError,
    PolicyError,
    StoreError,
)
from sovstore.format.recovery import RecoveryKey
from sovstore.kms import registry
from sovstore.kms.base import Access
from sovstore.kms.keyring import usable_backend
from tests.hosts import PROVIDERS, Host, cheap_key_files
from tests.stores import PASSPHRASE, make_store, open_fs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    cheap_key_files(monkeypatch)


@pytest.fixture(params=PROVIDERS)
def fs(request, tmp_path):
    fs = open_fs(make_store(tmp_path, provider=request.param))
    fs.pipe_file("here", b"1")
    return fs


def refused(kind, message, hint, function, *args, **kwargs):
    with pytest.raises(kind, match=message) as caught:
        function(*args, **kwargs)
    assert type(caught.value) is kind
    assert hint in (caught.value.hint or ""), caught.value.hint
    assert PASSPHRASE not in str(caught.value)


# Keys


def test_wrong_passphrase(tmp_path, monkeypatch):
    file = make_store(tmp_path)
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "wrong")
    refused(KeyDeniedError, "wrong passphrase", "recovery key", open_fs(file).ls, "")


def test_empty_passphrase(tmp_path, monkeypatch):
    file = make_store(tmp_path)
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "")
    refused(ConfigError, "passphrase is empty", "protects nothing", open_fs(file).ls, "")


def test_no_passphrase(tmp_path):
    file = make_store(tmp_path)
    text = "".join(line for line in file.read_text().splitlines(keepends=True) if "passphrase_file" not in line)
    file.write_text(text)
    refused(ConfigError, "needs a passphrase", "SOVSTORE_PASSPHRASE_FILE", open_fs(file).ls, "")


def test_missing_key_file(tmp_path):
    file = make_store(tmp_path)
    (tmp_path / "kek.key").unlink()
    refused(NoMatchingKeyError, "no such key file", "correct 'kek'", open_fs(file).ls, "")


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 5000, b'{"cipher":"AES-256-GCM"}'])
def test_not_a_key_file(tmp_path, content):
    file = make_store(tmp_path)
    (tmp_path / "kek.key").write_bytes(content)
    refused(ConfigError, "not a key file", "'kek'", open_fs(file).ls, "")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("keyfile:relative", "not a key file URI"),
        ("keyfile:/x?passphrase=y", "not a key file URI"),
        ("keyring://only-service", "not a keyring URI"),
        ("keyring://user@service/name", "not a keyring URI"),
        ("vault-ish", "not a key URI of a known scheme"),
        ("sftp://x/y", "not a key URI of a known scheme"),
    ],
)
def test_bad_key_uris(uri, message):
    refused(ConfigError, message, "", registry.open_key, uri, Access())


@pytest.mark.parametrize("scheme", ["awskms", "gcpkms", "azurekeyvault"])
def test_keys_under_us_law(scheme):
    refused(PolicyError, "US law", "your own jurisdiction", registry.open_key, f"{scheme}://x/y", Access())


class PlaintextKeyring:
    """Stands where `keyrings.alt` keeps its own, which need not be installed for this."""


PlaintextKeyring.__module__ = "keyrings.alt.file"


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (keyring.backends.null.Keyring(), "stores nothing"),
        (keyring.backends.fail.Keyring(), "no keyring of the operating system"),
        (PlaintextKeyring(), "readable file"),
    ],
)
def test_keyrings_that_protect_nothing(backend, why):
    refused(ConfigError, f"is refused: .*{why}", "keyfile:", usable_backend, backend, "keyring://s/n")


def test_a_chain_never_falls_through_to_a_plaintext_keyring():
    class Chain:
        backends = (PlaintextKeyring(), keyring.backends.null.Keyring())

    refused(ConfigError, "readable file.*stores nothing", "keyfile:", usable_backend, Chain(), "keyring://s/n")


def test_a_keyring_without_the_entry(monkeypatch):
    class Empty:
        def get_password(self, service, name):
            return None

    monkeypatch.setattr("keyring.get_keyring", Empty)
    refused(NoMatchingKeyError, "no such entry", "sovstore init", registry.open_key, "keyring://s/n", Access())


# Keysets


def test_no_keyset_and_no_backup(tmp_path):
    fs = open_fs(make_store(tmp_path, backup=str(tmp_path / "b")))
    os.unlink(tmp_path / "cohortes" / keysets.LOCATION)
    for path in (tmp_path / "b").rglob("*.json"):
        path.unlink()
    refused(ObjectNotFoundError, "keyset is not at the host", "check 'root'", fs.ls, "")


def test_a_keyset_that_is_gone_comes_back_from_the_backup(tmp_path):
    file = make_store(tmp_path)
    fs = open_fs(file)
    fs.pipe_file("a", b"1")
    os.unlink(tmp_path / "cohortes" / keysets.LOCATION)
    fs = open_fs(file, skip_instance_cache=True)
    refused(ObjectNotFoundError, "gone from the host", "sovstore keys restore cohortes", fs.cat, "a")
    described = config.load(file).store("cohortes")

    def again():
        asyncio.run(keysets.restore(_backend(described), described, _access(described), None))

    again()
    assert fs.cat("a") == b"1"
    with pytest.raises(ObjectExistsError, match="has a keyset"):
        again()


def _backend(described):
    return store_module.open_backend(described.place)


def _access(described):
    return config.access(described)


def test_init_over_a_store(tmp_path):
    make_store(tmp_path)
    with pytest.raises(ObjectExistsError, match="there is a store"):
        make_store(tmp_path)


def test_init_of_a_store_whose_keyset_is_gone(tmp_path):
    make_store(tmp_path)
    os.unlink(tmp_path / "cohortes" / keysets.LOCATION)
    with pytest.raises(ObjectExistsError, match="was made before") as caught:
        make_store(tmp_path)
    assert "keys restore" in caught.value.hint


def _swap_keysets(tmp_path, **second):
    file = make_store(tmp_path, "one")
    (tmp_path / "two").mkdir()
    other = make_store(tmp_path / "two" if second else tmp_path, "two", root=str(tmp_path / "two-root"))
    stolen = (tmp_path / "two-root" / keysets.LOCATION).read_bytes()
    (tmp_path / "one" / keysets.LOCATION).write_bytes(stolen)
    assert other.exists()
    return open_fs(file, "one")


def test_the_keyset_of_another_store_under_the_same_kek(tmp_path):
    refused(IntegrityError, "it is the keyset of store", "'root' and 'store_id'", _swap_keysets(tmp_path).ls, "")


def test_somebody_elses_keyset(tmp_path):
    """Made by another KEK, with the store id of the victim: that is all the host knows."""
    file = make_store(tmp_path, "one")
    store_id = config.load(file).store("one").store_id
    (tmp_path / "evil").mkdir()
    make_store(tmp_path / "evil", "one", store_id=store_id)
    forged = (tmp_path / "evil" / "one" / keysets.LOCATION).read_bytes()
    (tmp_path / "one" / keysets.LOCATION).write_bytes(forged)
    refused(NoMatchingKeyError, "does not open its keyset", "evil/kek.key", open_fs(file, "one").ls, "")


def test_an_old_keyset_is_refused(tmp_path):
    file = make_store(tmp_path)
    described = config.load(file).store("cohortes")
    old = (tmp_path / "cohortes" / keysets.LOCATION).read_bytes()

    async def next_version():
        backend, access = _backend(described), _access(described)
        keyset = await asyncio.to_thread(keysets.unlock, old, described, access)
        kek = await asyncio.to_thread(registry.open_key, described.kek, access)
        etag = (await backend.stat(keysets.LOCATION)).etag
        await keysets.publish(backend, described, keyset.add_epoch(now=2), [kek], replaces=etag)

    asyncio.run(next_version())
    assert open_fs(file, skip_instance_cache=True).ls("") == []
    (tmp_path / "cohortes" / keysets.LOCATION).write_bytes(old)
    fs = open_fs(file, skip_instance_cache=True)
    refused(IntegrityError, "version 1 is older than version 2", "old keyset back", fs.ls, "")


def test_a_new_epoch_of_another_client_is_found(tmp_path):
    """A reader that meets an unknown key id loads the keyset once more."""
    file = make_store(tmp_path)
    described = config.load(file).store("cohortes")
    reader = open_fs(file, skip_instance_cache=True)
    assert reader.ls("") == []

    async def rotate():
        backend, access = _backend(described), _access(described)
        kek = await asyncio.to_thread(registry.open_key, described.kek, access)
        for step in ("add", "promote"):
            raw = await keysets.fetch(backend, described)
            keyset = await asyncio.to_thread(keysets.unlock, raw, described, access)
            changed = keyset.add_epoch(now=2) if step == "add" else keyset.promote(keyset.epochs[-1].id, now=3)
            etag = (await backend.stat(keysets.LOCATION)).etag
            await keysets.publish(backend, described, changed, [kek], replaces=etag)

    asyncio.run(rotate())
    open_fs(file, skip_instance_cache=True).pipe_file("new", b"1")
    assert reader.cat("new") == b"1"


@pytest.mark.parametrize(("at", "message"), [(7, "unknown format version 9"), (0, "not an object of a store")])
def test_an_object_of_another_version_or_kind(fs, at, message):
    host = Host(fs)
    sealed = bytearray(host.get("here"))
    sealed[at] = 9
    host.set("here", bytes(sealed))
    refused(FormatError, message, "", fs.cat_file, "here")


def test_a_keyset_of_another_version(tmp_path):
    fs = open_fs(make_store(tmp_path))
    keyset = tmp_path / "cohortes" / keysets.LOCATION
    keyset.write_bytes(keyset.read_bytes().replace(b'\\"format\\":1', b'\\"format\\":2'))
    refused(FormatError, "unknown format 2", "newer sovstore", fs.ls, "")


# Recovery


@pytest.fixture
def with_recovery(tmp_path):
    key = RecoveryKey.generate()
    (tmp_path / "key").write_bytes(key.dump())
    (tmp_path / "pub").write_bytes(key.recipient.dump())
    (tmp_path / "other").write_bytes(RecoveryKey.generate().dump())
    return make_store(tmp_path, recovery=["pub"])


def test_a_recovery_key_reads_and_never_writes(with_recovery, tmp_path):
    open_fs(with_recovery).pipe_file("a", b"1")
    fs = open_fs(with_recovery, recovery_key=str(tmp_path / "key"))
    assert fs.cat("a") == b"1"
    for call in (
        lambda: fs.pipe_file("b", b""),
        lambda: fs.rm("a"),
        lambda: fs.mv("a", "b"),
        lambda: fs.open("b", "wb"),
    ):
        refused(KeyDeniedError, "read-only under a recovery key", "KEK", call)


def test_another_recovery_key(with_recovery, tmp_path):
    fs = open_fs(with_recovery, recovery_key=str(tmp_path / "other"))
    refused(NoMatchingKeyError, "recovery key does not open it", "sealed to", fs.ls, "")


def test_a_recipient_for_a_recovery_key(with_recovery, tmp_path):
    refused(
        ConfigError, "not a recovery key", "recovery-new", open_fs, with_recovery, recovery_key=str(tmp_path / "pub")
    )


def test_a_recovery_key_without_the_fingerprint(with_recovery, tmp_path):
    lines = with_recovery.read_text().splitlines(keepends=True)
    with_recovery.write_text("".join(line for line in lines if "auth_fingerprint" not in line))
    fs = open_fs(with_recovery, recovery_key=str(tmp_path / "key"))
    refused(ConfigError, "needs the auth fingerprint", "kept beside", fs.ls, "")


# Paths


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("a/../b", r"segment '\.\.'", "write the path"),
        ("./a", r"segment '\.'", "write the path"),
        ("a//b", "empty path or segment", "'a/b'"),
        ("//a", "empty path or segment", "'a/b'"),
        ("a\0b", "U\\+0000", ""),
        ("a\ud800", "lone surrogate", "UTF-8"),
        ("e\u0301.txt", "normalisation form C", "unicodedata.normalize"),
        ("x" * 10_000, "10000 bytes; the limit is 159", "shorten"),
        ("x" * 160, "160 bytes; the limit is 159", "shorten"),
        ("/".join(["x" * 150] * 4), "the limit is 900", "shorten"),
        (".sovstore/keyset.json", "reserved", "another name"),
        (".SovStore/x", "reserved", "another name"),
    ],
)
def test_paths_that_are_not_allowed(fs, path, message, hint):
    for call in (
        lambda: fs.pipe_file(path, b""),
        lambda: fs.cat_file(path),
        lambda: fs.open(path),
        lambda: fs.info(path),
        lambda: fs.exists(path),
        lambda: fs.ls(path),
        lambda: fs.cp("here", path),
        lambda: fs.mv("here", path),
        lambda: fs.rm(path),
        lambda: fs.mkdir(path),
    ):
        refused(PathError, message, hint, call)
    assert fs.find("") == ["here"]


def test_the_longest_names(fs, tmp_path):
    fs.pipe_file("x" * 159, b"1")
    assert fs.cat("x" * 159) == b"1"
    plain = open_fs(make_store(tmp_path, "plain", names="plain"), "plain")
    plain.pipe_file("é" * 127, b"1")
    assert plain.find("") == ["é" * 127]
    refused(PathError, "256 bytes; the limit is 255", "shorten", plain.pipe_file, "é" * 128, b"")


def test_the_stores_own_folder_is_no_path(fs):
    assert fs.ls("", detail=False) == ["here"]
    assert fs.find("", withdirs=True) == ["here"]
    assert fs.glob("**") == ["here"]


# What is not ours


@pytest.mark.parametrize("names", ["encrypted", "plain"])
def test_an_object_that_is_not_ours(tmp_path, names, caplog):
    fs = open_fs(make_store(tmp_path, names=names))
    fs.pipe_file("ours", b"12")
    (tmp_path / "cohortes" / "README.txt").write_text("hello")
    listed = {info["name"]: info for info in fs.ls("")}
    assert set(listed) == {"ours", "README.txt"}
    assert (listed["README.txt"]["size"], listed["README.txt"]["foreign"]) == (None, True)
    assert fs.du("") == 2
    refused(FormatError, "README.txt", "", fs.cat_file, "README.txt")
    if names == "encrypted":
        assert "did not make" in caplog.text


def test_hostile_names_in_a_flat_listing_stay_inside(fs):
    class Lying(type(fs._sync(_backend_of, fs))):
        async def list(self, folder, *, recursive=False):
            for name in ("..", "../../etc/passwd", "%2E%2E", "a\nb", "\x1b[31m"):
                yield store_module.Stat(name, 300)

    backend = fs._sync(_backend_of, fs)
    backend.__class__ = Lying
    names = fs.find("")
    assert len(names) == 5
    for name in names:
        assert ".." not in name.split("/")
        assert name.isprintable()


async def _backend_of(fs):
    return fs.store.backend


# This machine


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    root = str(tmp_path / "file" / "below")
    refused(StoreError, "file/below: the store's folder cannot be written", "'root'", make_store, tmp_path, root=root)


def test_reading_a_folder_that_is_not_there(tmp_path):
    file = make_store(tmp_path)
    config.write_settings(file, "cohortes", {"root": str(tmp_path / "elsewhere")})
    refused(ObjectNotFoundError, "gone from the host", "keys restore", open_fs(file).ls, "")


def test_a_full_disk(tmp_path):
    file = make_store(tmp_path)
    open_fs(file).pipe_file("a", b"old")
    code = f"""
import os, resource, signal
from sovstore.errors import StoreError
from tests.stores import open_fs
fs = open_fs({str(file)!r})
fs.ls("")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for write in (lambda: fs.pipe_file("a", bytes(3 << 20)), lambda: fs.open("a", "wb").write(bytes(5 << 20)),
              lambda: fs.get_file("big", {str(tmp_path / "local")!r})):
    try:
        write()
    except StoreError as exc:
        print("room" in exc.hint, str(exc).splitlines()[0])
"""
    open_fs(file).pipe_file("big", bytes(3 << 20))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["True"] * 3, done.stdout
    fs = open_fs(file)
    assert fs.cat("a") == b"old"
    assert not (tmp_path / "local").exists()
    assert not list(tmp_path.glob("*.part"))
    assert not list((tmp_path / "cohortes" / ".sovstore" / "tmp").iterdir())

"""The configuration file, its overrides, and what is wrong with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sovstore import config
from sovstore.backends import providers
from sovstore.errors import ConfigError
from sovstore.kms import registry
from sovstore.kms.base import Access

GOOD = """
# kept
[stores.cohortes]
provider = "local"   # kept too
root = "host"
kek = "keyfile:~/k"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sovstore.toml"
    path.write_text(GOOD)
    return path


def _refused(path: Path, text: str, message: str, hint: str = "") -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(path)
    assert hint in (caught.value.hint or "")


def test_defaults(file):
    store = config.load(file).store("cohortes")
    assert (store.provider, store.names, store.store_id, store.recovery) == ("local", "encrypted", None, ())
    assert store.source == file


def test_paths_are_relative_to_the_file(file, monkeypatch):
    monkeypatch.chdir("/")
    file.write_text(GOOD + 'backup = "b"\nrecovery = ["r.pub"]\npassphrase_file = "~/p"\n')
    store = config.load(file).store("cohortes")
    assert store.root == str(file.parent / "host")
    assert store.backup_folder == file.parent / "b"
    assert store.recovery == (str(file.parent / "r.pub"),)
    assert store.passphrase_file == str(Path.home() / "p")


def test_search_order(file, tmp_path, monkeypatch):
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert config.find() is None
    config.default_path().parent.mkdir(parents=True)
    config.default_path().write_text(GOOD)
    assert config.find() == config.default_path()
    (folder / "sovstore.toml").write_text(GOOD)
    assert config.find() == folder / "sovstore.toml"
    monkeypatch.setenv("SOVSTORE_CONFIG", str(file))
    assert config.find() == file
    other = tmp_path / "other.toml"
    other.write_text(GOOD)
    assert config.find(other) == other


@pytest.mark.parametrize("explicit", [True, False])
def test_a_file_that_is_not_there(tmp_path, monkeypatch, explicit):
    missing = tmp_path / "no.toml"
    if not explicit:
        monkeypatch.setenv("SOVSTORE_CONFIG", str(missing))
    with pytest.raises(ConfigError, match="no such configuration file"):
        config.load(missing if explicit else None)


def test_overrides_from_the_environment(file, monkeypatch):
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__ROOT", "/elsewhere")
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OPTIONS", '{ endpoint_url = "http://127.0.0.1:1" }')
    monkeypatch.setenv("SOVSTORE_STORES__NEW__PROVIDER", "memory")
    monkeypatch.setenv("SOVSTORE_STORES__NEW__ROOT", "/m")
    monkeypatch.setenv("SOVSTORE_STORES__NEW__KEK", "keyfile:/k")
    loaded = config.load(file)
    assert loaded.store("cohortes").root == "/elsewhere"
    assert loaded.store("cohortes").options == {"endpoint_url": "http://127.0.0.1:1"}
    assert loaded.store("new").provider == "memory"


def test_a_dash_in_a_store_name_is_an_underscore_in_the_environment(file, monkeypatch):
    file.write_text(GOOD.replace("stores.cohortes", "stores.my-store"))
    monkeypatch.setenv("SOVSTORE_STORES__MY_STORE__ROOT", "/elsewhere")
    assert config.load(file).store("my-store").root == "/elsewhere"


@pytest.mark.parametrize(
    ("variable", "message", "hint"),
    [
        ("SOVSTORE_STORES__COHORTES__ROOTT", "unknown setting 'roott'", "did you mean 'root'"),
        ("SOVSTORE_STORES__COHORTES", "not the name of a setting", "NAME__SETTING"),
        ("SOVSTORE_STORES__COHORTES__OPTIONS", "not a TOML value", "as in TOML"),
    ],
)
def test_bad_overrides(file, monkeypatch, variable, message, hint):
    monkeypatch.setenv(variable, "{ x")
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(file)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("root =", "rot =", "unknown setting 'rot'", "did you mean 'root'"),
        ("[stores.", "[store.", "unknown setting 'store'", "did you mean 'stores'"),
        ('"local"', '"locall"', "unknown provider 'locall'", "did you mean 'local'"),
        ('"host"', "3", "root is not a string", "type"),
        ('root = "host"\n', "", "'root' is missing", "bucket/prefix"),
        ('kek = "keyfile:~/k"\n', "", "'kek' is missing", "keyring://"),
        ("# kept\n", "x = [\n", "sovstore.toml", "correct that line"),
        ("stores.cohortes", "stores.Cohortes", "not a store name", "lower-case"),
        ("# kept too", '\nnames = "hidden"', "unknown names 'hidden'", "known: encrypted, plain"),
        ("# kept too", '\nstore_id = "xyz"', "store_id is not 32", "copy it"),
        ("# kept too", '\nprotocol = "sftp"', "'protocol' goes with", "fsspec"),
        ("# kept too", '\nrecovery = "x"', "recovery is not a list", "type"),
        ("# kept too", "\noptions = 3", "options is not a table", "type"),
        (
            "# kept too",
            '\noptions = { secret = "canary-9" }',
            "option 'secret' is a secret",
            "provider 'local' needs none",
        ),
        (
            "# kept too",
            '\noptions = { client_kwargs = { aws_secret_access_key = "canary-9" } }',
            "is a secret",
            "take it out of the file",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(file, old, new, message, hint):
    assert old in GOOD
    _refused(file, GOOD.replace(old, new, 1), message, hint)


def test_stores_must_be_tables(file):
    _refused(file, "stores = 3\n", "not a table", "[stores.NAME]")
    _refused(file, "[stores]\ncohortes = 3\n", "not a table", "[stores.NAME]")


def test_a_refused_secret_is_not_repeated(file):
    file.write_text(GOOD + 'options = { secret = "canary-9" }\n')
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert "canary-9" not in str(caught.value)


def test_an_unknown_store_names_the_nearest(file):
    with pytest.raises(ConfigError, match="not configured in") as caught:
        config.load(file).store("cohorts")
    assert caught.value.hint == "did you mean 'cohortes'?"
    with pytest.raises(ConfigError) as caught:
        config.load(file).store("xyz")
    assert "[stores.xyz]" in caught.value.hint


def test_a_store_without_an_id_says_how_to_make_it(file):
    with pytest.raises(ConfigError, match="no store_id") as caught:
        _ = config.load(file).store("cohortes").identity
    assert "sovstore init cohortes" in caught.value.hint


def test_write_settings_keeps_the_rest(file):
    file.chmod(0o600)
    config.write_settings(file, "cohortes", {"root": "other", "store_id": "0" * 32})
    text = file.read_text()
    assert "# kept\n" in text
    assert "# kept too" in text
    assert config.load(file).store("cohortes").identity == bytes(16)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_write_settings_makes_the_file(tmp_path):
    path = tmp_path / "new" / "sovstore.toml"
    config.write_settings(path, "a", {"provider": "memory", "root": "/x", "kek": "keyfile:/k"})
    assert config.load(path).store("a").provider == "memory"


def test_write_settings_writes_through_a_link(file, tmp_path):
    folder = tmp_path / "config"
    folder.mkdir()
    link = folder / "sovstore.toml"
    link.symlink_to(Path("..") / file.name)
    file.write_text(GOOD + "options = { token = 'canary-9' }\n")
    config.write_settings(link, "cohortes", {}, removes={("options", "token"): "canary-9"})
    assert link.is_symlink()
    assert "canary-9" not in file.read_text()
    assert [p.name for p in folder.iterdir()] == [link.name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config", file.name]


@pytest.mark.parametrize(("mode", "made"), [(None, 0o600), (0o600, 0o600), (0o664, 0o600), (0o400, 0o400)])
def test_write_settings_shows_the_file_to_nobody_else(file, monkeypatch, mode, made):
    """Not even for a moment; and it is on the disk before the old one is gone."""
    steps, replace, sync, create = [], os.replace, os.fsync, os.open

    def opened(path, flags, *mode):
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            steps.append(*mode)
        return create(path, flags, *mode)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
    if mode is None:
        file.unlink()
    else:
        file.chmod(mode)
    config.write_settings(file, "cohortes", {"root": "other"})
    assert steps == [made, "sync", "replace", "sync"]
    assert file.stat().st_mode & 0o777 == (mode or 0o600)


def test_write_settings_says_what_to_write_when_it_cannot(tmp_path):
    (tmp_path / "in-the-way").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        config.write_settings(tmp_path / "in-the-way" / "sovstore.toml", "a", {"store_id": "0" * 32})
    assert "store_id" in caught.value.hint


@pytest.mark.parametrize(
    ("root", "protocol", "expected"),
    [("file://x/y", None, "x/y"), ("x/y", "file", "x/y"), ("sftp://h/x", None, "sftp://h/x")],
)
def test_fsspec_roots(file, root, protocol, expected):
    text = GOOD.replace('"local"', '"fsspec"').replace('"host"', f'"{root}"')
    file.write_text(text + (f'protocol = "{protocol}"\n' if protocol else ""))
    store = config.load(file).store("cohortes")
    assert store.protocol == (protocol or root.split(":")[0])
    assert store.root == (expected if "://" in expected else str(file.parent / expected))


def test_passphrase_sources(file, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("from a file\n")
    file.write_text(GOOD + f'passphrase_file = "{secret}"\n')
    store = config.load(file).store("cohortes")
    ask = config.access(store, lambda _prompt: "asked").passphrase
    assert ask("?") == "from a file"
    other = tmp_path / "other"
    other.write_text("from another file")
    monkeypatch.setenv("SOVSTORE_PASSPHRASE_FILE", str(other))
    assert ask("?") == "from another file"
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "from the environment")
    assert ask("?") == "from the environment"


def test_no_passphrase_at_all(file):
    store = config.load(file).store("cohortes")
    assert config.access(store, lambda _prompt: "asked").passphrase("?") == "asked"
    with pytest.raises(ConfigError, match="needs a passphrase") as caught:
        config.access(store).passphrase("?")
    assert "SOVSTORE_PASSPHRASE" in caught.value.hint


def test_a_passphrase_file_that_is_not_there(file):
    file.write_text(GOOD + 'passphrase_file = "gone"\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        config.access(config.load(file).store("cohortes")).passphrase("?")


def test_write_settings_of_two_processes_do_not_undo_each_other(tmp_path):
    code = """
import sys
from pathlib import Path
from sovstore import config
config.write_settings(Path(sys.argv[1]), sys.argv[2], {"provider": "memory", "root": "/x", "kek": "keyfile:/k"})
"""
    path = tmp_path / "sovstore.toml"
    names = [f"store-{n}" for n in range(8)]
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in names]
    assert [process.wait(60) for process in started] == [0] * 8
    assert sorted(config.load(path).stores) == names


def test_write_settings_refuses_what_changed_meanwhile(file):
    config.write_settings(file, "cohortes", {"store_id": "0" * 32}, replaces={"store_id": None})
    with pytest.raises(ConfigError, match="was changed meanwhile"):
        config.write_settings(file, "cohortes", {"store_id": "1" * 32}, replaces={"store_id": None})
    assert config.load(file).store("cohortes").store_id == "0" * 32


def test_a_password_in_a_root_is_refused(file):
    text = GOOD.replace('"local"', '"fsspec"').replace('"host"', '"sftp://bob:canary-9@h/p"')
    file.write_text(text)
    with pytest.raises(ConfigError, match="holds a password") as caught:
        config.load(file)
    assert "canary-9" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"local"', '"fsspec"', "a URL in it is not valid"),
        ('"host"', '"~no-such-user-9/x"', "there is no such user"),
        ("# kept too", '\noptions = { endpoint_url = "https://u:canary-9@h" }', "is a secret"),
        ("# kept too", '\noptions = { headers = [{ Authorization = "canary-9" }] }', "is a secret"),
    ],
)
def test_odd_values_have_typed_errors(file, old, new, message):
    text = GOOD.replace(old, new, 1)
    if message.startswith("a URL"):
        text = text.replace('"host"', '"s3://[x"')
    _refused(file, text, message)


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert config.find() is None


def test_a_passphrase_that_is_not_utf8_is_not_shown():
    for uri in ("keyfile:/tmp/never-made-9",):
        with pytest.raises(ConfigError, match="not valid UTF-8") as caught:
            registry.create_key(uri, Access(lambda _prompt: "canary-9\udce9"))
        error = caught.value
        assert error.__cause__ is error.__context__ is None
        assert "canary-9" not in str(error)


@pytest.mark.parametrize("uri", ["keyfile:~no-such-user-9/k", "keyfile:/tmp/a%00b"])
def test_odd_key_file_paths(uri):
    with pytest.raises(ConfigError):
        registry.open_key(uri, Access())


@pytest.mark.parametrize(
    ("root", "provider", "protocol"),
    [
        ("host", "local", None),
        ("/srv/host", "local", None),
        ("s3://bucket/prefix", "s3", None),
        ("abfs://container/prefix", "azure", None),
        ("memory://x", "memory", None),
        ("file://host", "fsspec", "file"),
        ("sftp://h/x", "fsspec", "sftp"),
    ],
)
def test_a_root_says_its_provider(file, root, provider, protocol):
    file.write_text(GOOD.replace('provider = "local"', "").replace('"host"', f'"{root}"'))
    store = config.load(file).store("cohortes")
    assert (store.provider, store.protocol) == (provider, protocol)


def test_a_provider_that_its_root_contradicts(file):
    _refused(file, GOOD.replace('"host"', '"s3://b/x"'), "does not go with a root of s3://", "'s3'")


# How a host is reached

S3 = """
[stores.s]
provider = "s3"
root = "bucket/prefix"
kek = "keyfile:~/k"
"""
AZURE = S3.replace('"s3"', '"azure"').replace("bucket", "container")
#: A provider of the user's own, with what those of the catalogue may have.
OWN = """
[providers.own]
driver = "s3"
endpoint = "https://{account}.s3.{region}.example.org"
regions = ["par", "gra"]
"""


def _loaded(file: Path, text: str) -> config.StoreConfig:
    file.write_text(text)
    return config.load(file).store("s")


def test_what_reaches_a_host(file):
    text = """region = "gra"
endpoint = "https://s3.example.org"
account = "a"
ca_file = "ca.pem"
credentials = "keyring://sovstore-host/s"
transport = "obstore"
"""
    place = _loaded(file, S3 + text).place
    assert place.provider == providers.catalogue()["s3"]
    assert (place.root, place.region, place.endpoint) == ("bucket/prefix", "gra", "https://s3.example.org")
    assert (place.account, place.ca_file) == ("a", str(file.parent / "ca.pem"))
    assert (place.credentials, place.transport) == ("keyring://sovstore-host/s", "obstore")


def test_the_settings_can_come_from_the_environment(file, monkeypatch):
    for name in ("region", "endpoint", "account", "ca_file", "credentials", "transport"):
        value = {"endpoint": "http://h:1", "credentials": "keyring://a/b", "transport": "obstore"}.get(name, "/x")
        monkeypatch.setenv(config.variable_of("s", name), value)
    place = _loaded(file, S3).place
    assert (place.region, place.endpoint, place.credentials) == ("/x", "http://h:1", "keyring://a/b")


def test_without_them_the_driver_finds_its_host(file):
    place = _loaded(file, S3).place
    assert (place.endpoint, place.region, place.credentials, place.transport) == (None, None, None, None)


@pytest.mark.parametrize("root", ["s3://bucket/prefix", "s3a://bucket/prefix"])
def test_the_driver_gets_a_root_without_a_scheme(file, root):
    assert _loaded(file, S3.replace("bucket/prefix", root)).place.root == "bucket/prefix"


def test_a_provider_of_the_user(file):
    place = _loaded(file, OWN + S3.replace('"s3"', '"own"') + 'region = "gra"\naccount = "me"\n').place
    assert place.endpoint == "https://me.s3.gra.example.org"
    assert place.provider.get("parts_max") == 10_000
    liked = OWN.replace('driver = "s3"', 'like = "s3"\nparts_max = 7')
    place = _loaded(file, liked + S3.replace('"s3"', '"own"') + 'region = "par"\naccount = "me"\n').place
    assert (place.provider.driver, place.provider.get("parts_max")) == ("s3", 7)


def test_an_endpoint_of_the_user_needs_no_region_of_the_provider(file):
    text = OWN + S3.replace('"s3"', '"own"') + 'endpoint = "https://elsewhere.example.org"\n'
    assert _loaded(file, text).place.endpoint == "https://elsewhere.example.org"


@pytest.mark.parametrize(
    ("added", "message", "hint"),
    [
        ('region = "grav"\naccount = "a"', "has no region 'grav'", "did you mean 'gra'\\? known regions: par, gra"),
        ('account = "a"', "needs a region", "par, gra"),
        ('region = "par"', "needs an account", "account = "),
    ],
)
def test_region_and_account_of_a_provider(file, added, message, hint):
    file.write_text(OWN + S3.replace('"s3"', '"own"') + added)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(file)
    assert re.search(hint, caught.value.hint)


def test_the_account_of_azure_may_come_with_its_credentials(file):
    assert _loaded(file, AZURE).place.endpoint is None
    assert _loaded(file, AZURE + 'account = "acc"\n').place.endpoint is None
    assert _loaded(file, AZURE + 'endpoint = "http://127.0.0.1:1/dev"\n').place.endpoint == "http://127.0.0.1:1/dev"


@pytest.mark.parametrize("host", ["10.0.0.1:10000", "blobs.example.org/dev", "127.0.0.1.example.org"])
def test_azure_over_http_is_said(file, host):
    endpoint = f'endpoint = "http://{host}"\n'
    _refused(file, AZURE + endpoint, "in clear", "allow_http = true")
    _refused(file, AZURE + endpoint + "options = { allow_http = 1 }\n", "in clear")
    assert _loaded(file, AZURE + endpoint + "options = { allow_http = true }\n").place.endpoint == f"http://{host}"
    # What is in a signature of S3 does not open anything else.
    assert _loaded(file, S3 + endpoint).place.endpoint == f"http://{host}"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.2", "[::1]:10000"])
def test_azure_over_http_on_this_machine(file, host):
    assert _loaded(file, AZURE + f'endpoint = "http://{host}"\n').place.endpoint == f"http://{host}"


@pytest.mark.parametrize("setting", ["region", "endpoint", "account", "ca_file", "credentials", "transport"])
def test_settings_of_a_host_are_strings(file, setting):
    _refused(file, S3 + f"{setting} = 3\n", f"{setting} is not a string", "type")


@pytest.mark.parametrize("setting", ["region", "endpoint", "account", "ca_file", "credentials", "transport"])
@pytest.mark.parametrize("provider", ["local", "memory", "fsspec"])
def test_settings_that_go_with_a_host_only(file, setting, provider):
    text = S3.replace('"s3"', f'"{provider}"') + ('protocol = "sftp"\n' if provider == "fsspec" else "")
    _refused(file, text + f'{setting} = "x"\n', f"'{setting}' goes with", f"provider '{provider}' has none")


@pytest.mark.parametrize(
    ("added", "message", "hint"),
    [
        ('endpoint = "s3.example.org"', "'endpoint' is not a URL", "https://"),
        ('endpoint = "ftp://s3.example.org"', "'endpoint' is not a URL", "https://"),
        ('endpoint = "https://"', "'endpoint' is not a URL", "https://"),
        ('endpoint = "https://[canary-9"', "'endpoint' is not a URL", "https://"),
        ('endpoint = "https://h:canary-9"', "'endpoint' is not a URL", "https://"),
        ('endpoint = "https://me:canary-9@h"', "'endpoint' holds a password", "sovstore login"),
        ('endpoint = "https://canary-9@h"', "'endpoint' holds a password", "sovstore login"),
        ('endpoint = "https://h/?sig=canary-9"', "no place for a token", "sovstore login"),
        ('credentials = "canary-9"', "'credentials' is not keyring://", "sovstore login"),
        ('credentials = "keyring://canary-9"', "'credentials' is not keyring://", "sovstore login"),
        ('credentials = "keyring://canary-9@h/n"', "'credentials' is not keyring://", "sovstore login"),
        ('transport = "obstorr"', "unknown transport 'obstorr'", "did you mean 'obstore'"),
        ('ca_file = "~no-such-user-9/ca"', "there is no such user", "correct"),
    ],
)
def test_what_is_wrong_with_a_host_is_named_and_not_quoted(file, added, message, hint):
    file.write_text(S3 + added)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(file)
    assert hint in caught.value.hint
    error = caught.value
    while error is not None:
        assert "canary-9" not in str(error)
        error = error.__cause__


def test_a_root_with_an_account_in_it(file):
    text = AZURE.replace("container/", "abfs://container@acc.dfs.core.windows.net/")
    _refused(file, text, "names more than a container", "abfs://container/prefix")


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ("providers = 3", "providers is not a table", "[providers.NAME]"),
        ("[providers]\nown = 3", "not a table", "[providers.own]"),
        ('[providers.s3]\ndriver = "s3"', "is shipped", "like"),
        ("[providers.own]\n", "'driver' or 'title'", "driver = one of"),
        (
            '[providers.own]\ndriver = "s3"\nendpoints = "canary-9"',
            "unknown fact 'endpoints'",
            "did you mean 'endpoint'",
        ),
        ('[providers.own]\ndriver = "s3"\nsecret_access_key = "canary-9"', "unknown fact 'secret_access_key'", "known"),
        ('[providers.own]\ndriver = "s3"\nparts_max = "canary-9"', "parts_max is not ", "correct"),
    ],
)
def test_providers_of_the_user_that_are_wrong(file, table, message, hint):
    _refused(file, table + S3, message, hint)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert "canary-9" not in str(caught.value)


# Secrets in the file

_MOVE = "'sovstore login s --move' puts it into the keyring of the operating system and takes it out of the file"


@pytest.mark.parametrize(
    "added",
    [
        'options = { key = "a", secret = "canary-9" }',
        'options = { key = "a", secret = "canary-9", token = "canary-9" }',
        'options = { client_kwargs = { aws_access_key_id = "a", aws_secret_access_key = "canary-9" } }',
        'access_key_id = "a"\nsecret_access_key = "canary-9"',
    ],
)
def test_the_refusal_of_a_secret_is_the_command_that_moves_it(file, added):
    file.write_text(S3 + added)
    with pytest.raises(ConfigError, match="is a secret, and the file is no place for one") as caught:
        config.load(file)
    assert caught.value.hint == _MOVE
    assert "canary-9" not in str(caught.value)


@pytest.mark.parametrize("name", ["connection_string", "account_key", "sas_token"])
@pytest.mark.parametrize("form", ['{} = "canary-9"', 'options = {{ {} = "canary-9" }}'])
def test_secrets_of_azure_can_be_moved(file, name, form):
    _refused(file, AZURE + form.format(name), f"option '{name}' is a secret", _MOVE)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (S3 + 'options = { key = "a" }', "take it out of the file; then 'sovstore login s' asks"),
        (S3 + 'options = { key = "a", secret = 3 }', "AWS_SECRET_ACCESS_KEY"),
        (S3 + 'options = { key = "a", secret = "b", aws_secret_access_key = "c" }', "take it out"),
        (S3 + 'options = { headers = { key = "a", secret = "b" } }', "take it out"),
        (S3 + 'options = { key = "a", secret = "b", password = "c" }', "take it out"),
        (S3 + 'options = { proxies = ["http://u:canary-9@h"] }', "take it out"),
        (AZURE + 'options = { client_secret = "b" }', "AZURE_STORAGE_CONNECTION_STRING"),
        (AZURE + 'options = { account_key = "b", sas_token = "c" }', "take it out"),
        (S3.replace('"s3"', '"fsspec"') + 'protocol = "sftp"\noptions = { password = "b" }', "agent or key files"),
    ],
)
def test_secrets_that_cannot_be_moved_have_another_hint(file, text, hint):
    file.write_text(text)
    with pytest.raises(ConfigError, match="is a secret") as caught:
        config.load(file)
    assert hint in caught.value.hint
    assert "--move" not in caught.value.hint


def test_a_secret_in_a_variable_cannot_be_moved(file, monkeypatch):
    file.write_text(S3)
    monkeypatch.setenv("SOVSTORE_STORES__S__OPTIONS", '{ key = "a", secret = "canary-9" }')
    with pytest.raises(ConfigError, match=r"^SOVSTORE_STORES__S__OPTIONS: option 'key' is a secret") as caught:
        config.load(file)
    assert "from where nothing can be moved" in caught.value.hint
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert "canary-9" not in str(caught.value)


def test_a_store_with_secrets_can_be_looked_at_without_them(file, monkeypatch):
    file.write_text(S3 + 'options = { key = "a", secret = "canary-9", client_kwargs = { region_name = "r" } }\n' + GOOD)
    monkeypatch.setenv("SOVSTORE_STORES__S__REGION", "gra")
    described, strays = config.with_secrets(file, "s")
    assert described.options == {"client_kwargs": {"region_name": "r"}}
    assert described.region == "gra"
    assert [(stray.dotted, stray.value) for stray in strays] == [("options.key", "a"), ("options.secret", "canary-9")]
    assert "canary-9" not in repr((described, strays))
    assert config.with_secrets(file, "cohortes")[1] == []
    with pytest.raises(ConfigError, match="not configured in"):
        config.with_secrets(file, "t")


def test_write_settings_takes_values_out(file):
    file.write_text(
        """# kept
[stores.s]
options = { key = "k", client_kwargs = { aws_secret_access_key = "s" }, list = [{ a = 1, token = "t" }] } # kept too
root = "r"

[stores.t]
root = "r"
[stores.t.options]
secret = "s"

[stores.u.options]
secret = "s"
# kept as well
x = 1
"""
    )
    steps = {
        "s": {
            ("options", "key"): "k",
            ("options", "client_kwargs", "aws_secret_access_key"): "s",
            ("options", "list", 0, "token"): "t",
        },
        "t": {("options", "secret"): "s"},
        "u": {("options", "secret"): "s"},
    }
    for store, removes in steps.items():
        config.write_settings(file, store, {"credentials": "keyring://a/b"}, removes=removes)
    text = file.read_text()
    assert [line for line in text.splitlines() if "kept" in line] == [
        "# kept",
        next(line for line in text.splitlines() if line.endswith("# kept too")),
        "# kept as well",
    ]
    assert tomllib.loads(text)["stores"] == {
        "s": {"options": {"list": [{"a": 1}]}, "root": "r", "credentials": "keyring://a/b"},
        "t": {"root": "r", "credentials": "keyring://a/b"},
        "u": {"options": {"x": 1}, "credentials": "keyring://a/b"},
    }


@pytest.mark.parametrize("place", [("root",), ("options", "key"), ("root", 0, "x")])
def test_write_settings_takes_out_only_what_it_was_told(file, place):
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="was changed meanwhile") as caught:
        config.write_settings(file, "cohortes", {}, removes={place: "canary-9"})
    assert "canary-9" not in str(caught.value)
    assert file.read_bytes() == before


def test_write_settings_says_what_to_take_out_when_it_cannot(tmp_path):
    (tmp_path / "in-the-way").write_text("")
    path = tmp_path / "in-the-way" / "sovstore.toml"
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        config.write_settings(path, "a", {"credentials": "keyring://a/b"}, removes={("options", "key"): "canary-9"})
    assert caught.value.hint == (
        'write into [stores.a] yourself: credentials = "keyring://a/b"; take out of [stores.a] yourself: options.key'
    )


def test_a_region_decides_the_endpoint_of_the_catalogue(file):
    ovh = S3.replace('"s3"', '"ovhcloud"')
    assert _loaded(file, ovh + 'region = "gra"\n').place.endpoint == "https://s3.gra.io.cloud.ovh.net"
    _refused(file, ovh, "needs a region", "gra")
    _refused(file, ovh + 'region = "grra"\n', "has no region 'grra'", "gra")


# What would take any time or memory


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("[" * 9 + "]" * 9, "more than 8 tables and lists"),
        ("{x = " * 9 + "1" + "}" * 9, "more than 8 tables and lists"),
        ("[" * 100_000, "more than 131072|more than 8 tables and lists"),
        ("1" * 4301, "4300 digits"),
        ("0x" + "f" * 65, "more than 64 digits"),
        ('"' + "x" * 131_072 + '"', "more than 131072 characters"),
    ],
)
def test_bombs_are_refused_in_the_file_and_in_variables(file, monkeypatch, value, why):
    _refused(file, f"{GOOD}\noptions = {{ a = {value} }}", why)
    file.write_text(GOOD)
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OPTIONS", f"{{ a = {value} }}")
    with pytest.raises(ConfigError, match="not a TOML value"):
        config.load(file)


@pytest.mark.parametrize("key", ["a" + ".a" * 17, "a . 'b'" * 1 + ".c" * 16, '"."' + ".a" * 17])
def test_a_key_of_many_parts_is_refused(file, key):
    _refused(file, f"{GOOD}\noptions.{key} = 1", "more than 16 dots")


@pytest.mark.parametrize(
    "text",
    [
        'options = { a = "' + "[" * 50 + "." * 50 + '" }',
        "options = { a = '" + "{" * 50 + "." * 50 + "' }",
        "# " + "[" * 50 + "." * 50,
        'options.a = """' + '["' * 50 + "." * 50 + '\\""\n"""""',
        "options.a = '''" + "['" * 50 + "." * 50 + "\n'" + "''''",
        "options = { a = [[[[[[1]]]]]] }",
        "options = { a = 0x" + "f" * 64 + " }",
    ],
)
def test_what_stands_in_a_string_or_comment_is_no_bomb(file, text):
    file.write_text(f"{GOOD}\n{text}\n")
    loaded = config.load(file).store("cohortes")
    # Whatever was let through can be shown.
    assert repr(loaded)


@pytest.mark.parametrize("text", ['a = """x"""" , b', "a = '''x'''' , b", 'a = """x\\\\"""'])
def test_a_string_hides_no_bomb_behind_it(file, text):
    """The end of a string is where tomllib finds it, also where quotes stand before it."""
    _refused(file, f"{GOOD}\noptions = {{ {text}{'.b' * 20} = 1 }}", "more than 16 dots")


def test_a_variable_has_one_value(file, monkeypatch):
    file.write_text(GOOD)
    monkeypatch.setenv("SOVSTORE_STORES__COHORTES__OPTIONS", "{}\nother = 1")
    with pytest.raises(ConfigError, match="more than one TOML value"):
        config.load(file)


def test_a_file_without_end_is_not_read_to_its_end(file):
    file.write_text(GOOD)
    with file.open("r+b") as opened:
        opened.truncate(2**30)
    with pytest.raises(ConfigError, match="more than 131072 characters"):
        config.load(file)

"""Only the modules listed here may see raw bytes of a key, and a `Secret` shows its own to nobody who does not ask.

The list is exact both ways: a module that is not on it fails, and so does one on it that needs it no more. What the
source says is one half; what is seen in the local variables of each function while a store is used is the other.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import copy
import dataclasses
import functools
import gc
import json
import logging
import pickle
import pprint
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console
from rich.traceback import Traceback

import sovstore
from sovstore import config, rotation
from sovstore.format.keyset import Epoch, Keyset
from sovstore.format.recovery import RecoveryKey
from sovstore.keysets import Keks
from sovstore.kms.settings import Service
from sovstore.secret import Secret
from sovstore.store import Store
from tests.hosts import cheap_key_files
from tests.servers import eviden_fake, scaleway_fake
from tests.servers.http_fake import running
from tests.servers.opened import opener
from tests.stores import make_store

SOURCE = Path(sovstore.__file__).parent

#: Module -> what it may do with raw bytes of keys, as `marks` calls it, and why.
KEYS: dict[str, tuple[set[str], str]] = {
    "cli.keys": ({"recovery key"}, "writes a new recovery key to the file that the person names"),
    "cli.run": ({"recovery key"}, "reads the recovery key that the command line names"),
    "filesystem.base": ({"recovery key"}, "reads the recovery key that an argument names, as a path"),
    "format.body": ({"cipher", "reveal"}, "gives a DEK to the cipher of a body"),
    "format.cobblestone": ({"Secret", "cipher", "reveal"}, "the one construction that wraps keys"),
    "format.keyset": ({"Secret", "mac", "random", "reveal"}, "makes the keys of a store, and the tag of its keyset"),
    "format.names": ({"cipher"}, "holds the cipher of names"),
    "format.recovery": (
        {"Secret", "cipher", "defines unseal", "random", "reveal"},
        "is the private half of a recovery key; seals and unseals the KSK",
    ),
    "keysets": ({"Secret", "reveal", "unseal", "unwrap", "wrap"}, "takes the KSK to and from the KEK"),
    "pins": ({"mac", "reveal"}, "digests of paths, under a key that is derived for them alone"),
    "kms.base": ({"_decrypt", "_encrypt", "defines kek"}, "puts the context behind the KSK and takes it off again"),
    "kms.eviden": ({"defines kek", "reveal"}, "sends the KSK to the service; its token travels in a header"),
    "kms.keyfile": ({"Secret", "cipher", "random", "reveal"}, "makes a KEK, and opens it by a passphrase"),
    "kms.keyring": ({"Secret", "random"}, "makes a KEK, and reads it from the keyring of the OS"),
    "kms.kmip": ({"defines kek", "random"}, "sends the KSK to the service; random is the IV"),
    "kms.local": ({"cipher", "defines kek", "random", "reveal"}, "is a KEK of this machine; random is the nonce"),
    "kms.okms": ({"defines kek", "reveal"}, "sends the KSK to the service; its token travels in a header"),
    "kms.openbao": ({"defines kek"}, "sends the KSK to the service"),
    "kms.pkcs11": ({"Secret", "defines kek", "random"}, "gives the KSK to the token; the PIN that was typed; the IV"),
    "kms.scaleway": ({"defines kek", "reveal"}, "sends the KSK to the service; its token travels in a header"),
    "secret": ({"defines reveal", "names it in a text"}, "holds them"),
    "store": ({"Secret", "random"}, "makes the DEK of each write"),
    "testing.wrapping_key": ({"unwrap", "wrap"}, "the shipped tests of drivers, with a canary"),
}
#: Modules that see a key as it passes, as bytes or in the text of a message, and do nothing else with it: a recovery
#: key that is read from its file, and the KSK on its way to a service and back. That goes over TLS to the service that
#: holds the KEK, which is trusted with the KSK.
CARRIERS: dict[str, str] = {
    "format.canonical": "reads and writes the file of a recovery key",
    "kms.http": "JSON over HTTPS: retries",
    "kms.http_wire": "JSON over HTTPS: one request",
    "kms.kmip_connection": "KMIP over TLS",
    "kms.kmip_messages": "makes and reads messages of KMIP",
    "kms.kmip_ttlv": "their encoding",
    "kms.openbao_wire": "hvac over HTTPS",
    "kms.pkcs11_module": "runs a call of a PKCS#11 library in a thread, and returns what it returned",
    "kms.pkcs11_token": "finds the key in the token, and returns what the call with it returned",
    "kms.service": "retries, and returns what the call returned",
}
#: Modules that hold credentials or PINs in a `Secret`, and never a key of a store.
CREDENTIALS: dict[str, tuple[set[str], str]] = {
    "backends.azure_credentials": ({"Secret", "reveal"}, "of a storage account"),
    "backends.credentials": ({"Secret", "reveal"}, "of a storage provider, in the keyring of the OS"),
    "backends.obstore_client": ({"reveal"}, "of a storage provider, for obstore"),
    "backends.s3_client": ({"reveal"}, "of a storage provider, for botocore"),
    "cli.answers": ({"Secret"}, "what a person types"),
    "cli.login": ({"reveal"}, "compared in constant time, to see whether they are stored already"),
    "config_secrets": ({"Secret"}, "found in a configuration, where they must not be"),
    "kms.openbao_login": ({"Secret", "reveal"}, "tokens of a service"),
    "kms.openbao_wire": ({"reveal"}, "tokens of a service, on their way"),
    "kms.pkcs11_module": ({"reveal"}, "PINs, compared in constant time"),
    "kms.pkcs11_token": ({"reveal"}, "the PIN, to log in"),
    "kms.settings": ({"Secret"}, "what a reference in the configuration leads to"),
}
#: Modules that use random bytes, and make no key of them.
RANDOM: dict[str, tuple[set[str], str]] = {
    "backends.azure": ({"random"}, "the ids of the blocks of an upload"),
    "backends.azure_probe": ({"random"}, "the id of a block in a trial"),
    "backends.local": ({"random"}, "the name of a temporary file"),
    "backends.s3_probe": ({"random"}, "the name of an object in a trial"),
    "check.run": ({"random"}, "the name of a folder of trials"),
    "check.trials": ({"random"}, "made-up data for trials"),
    "cli.demo": ({"random"}, "the passphrase of a store that is thrown away"),
    "keyset_lock": ({"random"}, "the name of a lock"),
}
#: Of `cryptography`, what no key goes through.
_HARMLESS = {"cryptography.exceptions", "cryptography.x509"}
_KEK_METHODS = {"_encrypt", "_decrypt"}
_KEK_CALLS = {"wrap", "unwrap", "unseal", *_KEK_METHODS}


def marks(tree: ast.Module) -> set[str]:
    """Return what the source of a module does that can have to do with raw bytes of keys."""
    return {mark for node in ast.walk(tree) for mark in _marks(node)}


def _marks(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name="reveal" | "unseal"):
            yield f"defines {node.name}"
        case ast.FunctionDef() if node.name in _KEK_METHODS:
            yield "defines kek"
        # Not only where it is called: a reference that is handed on is called elsewhere.
        case ast.Attribute(attr="reveal"):
            yield "reveal"
        case ast.Attribute(attr="_value", value=value) if not (isinstance(value, ast.Name) and value.id == "self"):
            yield "looks into a secret"
        case ast.Attribute(attr="urandom" | "randbytes" | "getrandom" | "SystemRandom"):
            if not ast.unparse(node).startswith("random.Random("):
                yield "random"
        case ast.Attribute(value=ast.Name(id="secrets"), attr=attr) if attr.startswith(("token_", "rand", "choice")):
            yield "random"
        case ast.Attribute(value=ast.Name(id="hmac"), attr=attr) if attr != "compare_digest":
            yield "mac"
        case ast.Attribute(value=ast.Name(id="hashlib"), attr="pbkdf2_hmac" | "scrypt"):
            yield "cipher"
        case ast.Call(func=ast.Attribute(attr=attr)) if attr in _KEK_CALLS:
            yield attr
        case ast.Call(func=ast.Name(id="Secret")):
            yield "Secret"
        case ast.Attribute(value=ast.Name(id="RecoveryKey"), attr="generate" | "load"):
            yield "recovery key"
        case ast.Constant(value="reveal" | "_value" | "urandom" | "compare_digest"):
            yield "names it in a text"
        case ast.Import() | ast.ImportFrom():
            yield from _imported(node)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for name in node.names:
        if isinstance(node, ast.Import):
            module, full = name.name, name.name
        else:
            module, full = node.module or "", f"{node.module}.{name.name}"
        if module.split(".")[0] == "cryptography" and module not in _HARMLESS and full not in _HARMLESS:
            yield "cipher"
        if full == "os.urandom" or full.startswith("secrets."):
            yield "random"
        if full in ("hmac.digest", "hmac.new", "hmac.HMAC"):
            yield "mac"
        if full == "sovstore.secret.Secret" and name.asname is not None:
            yield "hides it by an import"


@functools.cache
def _sources() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    assert len(found) > 100
    return found


def _listed() -> dict[str, set[str]]:
    return {name: allowed for table in (KEYS, CREDENTIALS, RANDOM) for name, (allowed, _) in table.items()}


def test_only_the_listed_modules_handle_raw_keys() -> None:
    found = {name: done for name, tree in _sources().items() if (done := marks(tree))}
    assert found == _listed()


def test_no_module_is_listed_twice_and_each_has_a_reason() -> None:
    tables: list[Mapping[str, Any]] = [KEYS, CREDENTIALS, RANDOM]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    assert all(reason for table in tables for _, reason in table.values())
    assert all(CARRIERS.values())
    assert not CARRIERS.keys() & KEYS.keys()
    assert CARRIERS.keys() <= _sources().keys()


@pytest.mark.parametrize(
    ("code", "mark"),
    [
        ("key.reveal()", "reveal"),
        ("give = key.reveal", "reveal"),
        ("getattr(key, 'reveal')()", "names it in a text"),
        ("key._value", "looks into a secret"),
        ("vars(Secret)['_value'].__get__(key)", "names it in a text"),
        ("Secret(b'')", "Secret"),
        ("from sovstore.secret import Secret as Box", "hides it by an import"),
        ("os.urandom(32)", "random"),
        ("from os import urandom", "random"),
        ("random.SystemRandom().randbytes(32)", "random"),
        ("secrets.token_bytes(32)", "random"),
        ("from secrets import token_bytes", "random"),
        ("from cryptography.hazmat.primitives.ciphers.aead import AESGCM", "cipher"),
        ("from cryptography.hazmat.primitives.keywrap import aes_key_wrap", "cipher"),
        ("import cryptography.hazmat.primitives.hmac", "cipher"),
        ("hmac.new(key, data, 'sha512')", "mac"),
        ("hashlib.scrypt(b'')", "cipher"),
        ("kek.unwrap(wrapped, context)", "unwrap"),
        ("RecoveryKey.load(raw, what='')", "recovery key"),
        ("class K:\n def _decrypt(self, wrapped, aad): ...", "defines kek"),
    ],
)
def test_each_way_to_a_raw_key_is_noticed(code: str, mark: str) -> None:
    assert mark in marks(ast.parse(code))


# What is seen while a store is used


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_key_files(monkeypatch)


class Watched:
    """The text and bytes in the local variables of every function of sovstore, and the keys that were held."""

    def __init__(self) -> None:
        self.seen: dict[str, set[bytes]] = {}
        self.keys: set[bytes] = set()
        self.askers: set[str] = set()

    def look(self, frame: FrameType, event: str, arg: object) -> None:
        """Note what a function was given, had at its end, and returned."""
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("sovstore.") or event not in ("call", "return"):
            return
        name = module.removeprefix("sovstore.")
        if frame.f_code.co_name == "reveal" and name == "secret" and event == "call" and frame.f_back is not None:
            self.askers.add(frame.f_back.f_globals.get("__name__", "?").removeprefix("sovstore."))
        if frame.f_code.co_name == "__init__" and name == "secret" and event == "call":
            self.keys.add(bytes(frame.f_locals["value"]))
        if frame.f_code.co_name == "hkdf_expand" and event == "return" and b"fingerprint" not in frame.f_locals["info"]:
            # Of a message: the key of AES-GCM in front of nonce and commitment.
            self.keys.add(bytes(arg)[:32])  # type: ignore[call-overload]
        notes = self.seen.setdefault(name, set())
        values = list(frame.f_locals.values())
        for value in [*values, arg] if event == "return" else values:
            if (raw := _raw(value)) is not None and 16 <= len(raw) <= 2**16:
                notes.add(raw)

    def who_saw(self, *keys: bytes) -> set[str]:
        """Return the modules in whose local variables one of these was."""
        return {name for name, notes in self.seen.items() if any(key in raw for raw in notes for key in keys)}


def _raw(value: object) -> bytes | None:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode(errors="replace")
    # Of containers, what they would print: a message on its way is a dict or an item in a tree.
    if isinstance(value, dict | tuple | list) or dataclasses.is_dataclass(value):
        return _printed(value)
    return None


def _printed(value: object) -> bytes | None:
    parts = [part for part in _parts(value, 6) if part]
    return b"\0".join(parts) if parts else None


def _parts(value: object, depth: int) -> Iterator[bytes]:
    if isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, str):
        yield value.encode(errors="replace")
    elif depth == 0:
        return
    elif isinstance(value, dict):
        for each in value.values():
            yield from _parts(each, depth - 1)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _parts(each, depth - 1)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name, None), depth - 1)


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Look on while a block runs, in this thread and in those that it starts."""
    watched = Watched()
    threading.setprofile(watched.look)
    sys.setprofile(watched.look)
    try:
        yield watched
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


async def _use(file: Path, folder: Path) -> None:
    """Write, read, list, rename, rewrap, rotate, add a KEK, an epoch and a recovery key, and recover."""
    described = config.load(file).store("cohortes")
    store = Store(described, config.access(described))
    await store.put("folder/one", b"one" * 10000)
    await store.put("two", b"")
    assert (await (await store.reader("folder/one")).read(2, 5)) == b"eon"
    assert bytes(await (await store.reader("folder/one", whole=True)).read(0, 30000)) == b"one" * 10000
    assert {entry.path async for entry in store.list("", recursive=True)} == {"folder", "folder/one", "two"}
    await store.copy("two", "three")
    await store.move("three", "four")
    record: Callable[[Mapping[str, Any]], None] = lambda made: config.write_settings(file, "cohortes", made)  # noqa: E731
    await rotation.rotate_kek(store)
    await rotation.new_epoch(store)
    async for entry in rotation.objects(store):
        await store.rewrap(entry)
    await rotation.add_kek(store, f"keyfile:{folder / 'second.key'}", record)
    await rotation.add_recovery(store, str(folder / "rescue.pub"), record)
    await store.close()
    described = config.load(file).store("cohortes")
    key = RecoveryKey.load((folder / "rescue").read_bytes(), what="rescue")
    rescued = Store(described, config.access(described), key)
    assert (await (await rescued.reader("four")).read(0, 1)) == b""
    await rescued.close()


def test_what_a_store_shows_of_its_keys_while_it_is_used(tmp_path: Path) -> None:
    recovery = RecoveryKey.generate()
    (tmp_path / "rescue").write_bytes(recovery.dump())
    (tmp_path / "rescue.pub").write_bytes(recovery.recipient.dump())
    with watching() as watched:
        asyncio.run(_use(make_store(tmp_path), tmp_path))
    # The keys of the store, a DEK of each write, a KSK of each version.
    assert len(watched.keys) >= 15
    assert watched.askers == {
        "format.body",
        "format.cobblestone",
        "format.keyset",
        "format.recovery",
        "keysets",
        "kms.keyfile",
        "kms.local",
    }
    assert watched.askers <= KEYS.keys()
    saw = watched.who_saw(*watched.keys, recovery._seed, recovery._scalar)
    # Fewer than may see them: `store` and `keysets`, for one, never have them in a variable.
    assert saw == {
        "format.canonical",
        "format.cobblestone",
        "format.keyset",
        "format.names",
        "format.recovery",
        "kms.base",
        "kms.local",
        "secret",
    }
    assert saw <= KEYS.keys() | CARRIERS.keys()


CANARY = b"canary-secret-77a0-of-key-bytes!"
CONTEXT = bytes(range(32))
HTTP = {"kms.http", "kms.http_wire", "kms.service"}


@contextlib.contextmanager
def _scaleway(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    fake = scaleway_fake.ScalewayFake()
    request.getfixturevalue("monkeypatch").setenv("SCW_SECRET_KEY", "writer-5cc8e1f4")
    with running(fake, folder):
        yield fake.uri(fake.add(scaleway_fake.Key())), Service(uri="scw-kms://fr-par", ca_file=str(fake.ca_file))


@contextlib.contextmanager
def _eviden(folder: Path, api: str) -> Iterator[tuple[str, Service]]:
    fake, certificate = eviden_fake.EvidenFake(), eviden_fake.make_client_certificate(folder)
    fake.add(eviden_fake.Key("cohortes"))
    with running(fake, folder, client_ca=certificate):
        files = {"cert_file": str(certificate), "key_file": str(certificate), "ca_file": str(fake.ca_file)}
        yield fake.uri("cohortes", api), Service(uri=f"eviden-kms://127.0.0.1:{fake.port}", **files)


@contextlib.contextmanager
def _openbao(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    server = request.getfixturevalue("openbao_server")
    key = server.make_key()
    rights = {"keys": "read", "encrypt": "update", "decrypt": "update"}
    token = server.make_token({f"transit/{what}/{key}": right for what, right in rights.items()})
    (folder / "token").write_text(token)
    base = f"openbao://{server.address}"
    yield f"{base}/transit/{key}", Service(uri=base, ca_file=str(server.ca_file), token=f"file:{folder / 'token'}")


@contextlib.contextmanager
def _kmip(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    server = request.getfixturevalue("pykmip_server")
    yield server.key_uri(server.create_keys(1)[0]), server.service


@contextlib.contextmanager
def _okms(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    fake = request.getfixturevalue("okms_fake")
    request.getfixturevalue("monkeypatch").setenv("OF_THE_TESTS", fake.token())
    files = str(fake.files.ca_file)
    yield (
        fake.uri(fake.add_key()),
        Service(name="ovh", uri="okms://eu-west-par", ca_file=files, token="env:OF_THE_TESTS"),
    )


@contextlib.contextmanager
def _pkcs11(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    token = request.getfixturevalue("softhsm_token")
    request.getfixturevalue("monkeypatch").setenv("TOKEN_PIN", token.pin)
    service = Service("hsm", f"pkcs11:token={token.label}", module=token.module, pin="env:TOKEN_PIN")
    yield token.make_key(f"watched-{time.monotonic_ns()}"), service


@pytest.mark.parametrize(
    ("driver", "place", "carriers"),
    [
        ("kms.scaleway", _scaleway, HTTP),
        ("kms.eviden", lambda folder, _: _eviden(folder, "jose"), HTTP),
        ("kms.eviden", lambda folder, _: _eviden(folder, "kmip"), HTTP),
        pytest.param("kms.openbao", _openbao, {"kms.openbao_wire", "kms.service"}, marks=pytest.mark.server("openbao")),
        pytest.param(
            "kms.kmip",
            _kmip,
            {"kms.kmip_connection", "kms.kmip_messages", "kms.kmip_ttlv", "kms.service"},
            marks=pytest.mark.server("kmip"),
        ),
        pytest.param("kms.okms", _okms, HTTP, marks=pytest.mark.server("okms")),
        pytest.param(
            "kms.pkcs11", _pkcs11, {"kms.pkcs11_module", "kms.pkcs11_token"}, marks=pytest.mark.server("softhsm")
        ),
    ],
    ids=["scaleway", "eviden-jose", "eviden-kmip", "openbao", "kmip", "okms", "pkcs11"],
)
def test_who_carries_the_ksk_to_a_service(
    driver: str, place: Any, carriers: set[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with contextlib.ExitStack() as stack:
        uri, service = stack.enter_context(place(tmp_path, request))
        # Watching every call makes a fake that checks its own answers slow.
        kek = stack.enter_context(opener(dataclasses.replace(service, timeout_s=120)))(uri)
        with watching() as watched:
            assert kek.unwrap(kek.wrap(CANARY, CONTEXT), CONTEXT) == CANARY
    # In base64, 30 bytes give 40 characters whatever follows; or behind the 8 bytes that Eviden's driver puts in front.
    forms = [CANARY[:30], CANARY[1:31], CANARY[2:32]]
    texts = [text for form in forms for text in (base64.b64encode(form), base64.urlsafe_b64encode(form))]
    hexes = [CANARY.hex().encode(), CANARY.hex().upper().encode()]
    saw = watched.who_saw(CANARY, *texts, *hexes)
    assert saw == {"kms.base", driver, *carriers}
    assert saw <= KEYS.keys() | CARRIERS.keys()


def test_every_carrier_is_met_by_a_driver() -> None:
    met = {
        name
        for mark in test_who_carries_the_ksk_to_a_service.pytestmark  # type: ignore[attr-defined]
        for case in mark.args[1]
        for name in (case.values if hasattr(case, "values") else case)[2]
    }
    # The store that is used above meets the other one.
    assert met | {"format.canonical"} == CARRIERS.keys()


# What a secret shows


@dataclasses.dataclass
class Box:
    """Something that holds a secret."""

    key: Secret


def _traceback(secret: Secret) -> BaseException:
    def fail(key: Secret) -> None:
        held = Box(key)
        raise RuntimeError("on purpose", held, key)

    try:
        fail(secret)
    except RuntimeError as exc:
        return exc
    raise AssertionError


def _rich(secret: Secret) -> str:
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115  # for this process only
    exc = _traceback(secret)
    console.print(Traceback.from_exception(type(exc), exc, exc.__traceback__, show_locals=True))
    console.print(secret, {"key": secret}, Box(secret))
    console.file.close()
    return console.export_text()


def _pytest(secret: Secret) -> str:
    return str(pytest.ExceptionInfo.from_exception(_traceback(secret)).getrepr(showlocals=True, style="long"))


def _logged(secret: Secret) -> str:
    record = logging.LogRecord("sovstore", logging.INFO, __file__, 1, "key %s %r", (secret, secret), None)
    return logging.Formatter().format(record)


def _printed_traceback(secret: Secret) -> str:
    exc = _traceback(secret)
    shown = traceback.TracebackException(type(exc), exc, exc.__traceback__, capture_locals=True)
    return "".join(shown.format())


SHOWS: dict[str, Callable[[Secret], str]] = {
    "repr": repr,
    "str": str,
    "format": lambda secret: f"{secret} {secret!s} {secret!r} {secret:}",
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031  # it is what is tested
    "pprint": lambda secret: pprint.pformat({"key": [secret]}),
    "dataclass": lambda secret: repr(Box(secret)),
    "keyset": lambda secret: repr(Epoch(bytes(16), "primary", 0, secret)),
    "json default=str": lambda secret: json.dumps({"key": secret}, default=str),
    "exception": lambda secret: repr(ValueError(secret)) + str(ValueError(secret)),
    "log": _logged,
    "traceback with locals": _printed_traceback,
    "rich": _rich,
    "pytest --showlocals": _pytest,
    "dir": lambda secret: repr([getattr(type(secret), name, None) for name in dir(secret)]),
}
REFUSES: dict[str, Callable[[Secret], object]] = {
    **{f"pickle {n}": lambda secret, n=n: pickle.dumps(secret, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "pickle inside": lambda secret: pickle.dumps({"key": Box(secret)}),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": lambda secret: dataclasses.asdict(Box(secret)),
    "astuple": lambda secret: dataclasses.astuple(Box(secret)),
    "json": lambda secret: json.dumps({"key": secret}),
    "hash": hash,
    "set": lambda secret: {secret},
    "==": lambda secret: secret == secret,  # it is what is tested
    "!=": lambda secret: secret != Secret(b"other"),
    "== bytes": lambda secret: secret == b"x",
    "bytes ==": lambda secret: b"x" == secret,  # noqa: SIM300  # the other way round
    "in": lambda secret: secret in [Secret(b"x")],
    "dataclass ==": lambda secret: Box(secret) == Box(Secret(b"x")),
    "<": lambda secret: secret < secret,  # type: ignore[operator]  # it is what is tested
    "bytes": bytes,
    "memoryview": memoryview,
    "iter": iter,
    "index": lambda secret: secret[0],  # type: ignore[index]
    "join": lambda secret: b"".join([secret]),  # type: ignore[list-item]
    "vars": vars,
    "getstate": lambda secret: secret.__getstate__(),
    "reduce": lambda secret: secret.__reduce__(),
    "reduce_ex": lambda secret: secret.__reduce_ex__(2),
    "object.reduce_ex": lambda secret: object.__reduce_ex__(secret, 2),
    "setattr": lambda secret: setattr(secret, "other", 1),
}
VALUE = b"canary-key-bytes-91f7-in-a-holder"


def _forms(value: bytes) -> list[str]:
    return [value.decode(), value.hex(), base64.b64encode(value).decode(), str(list(value))]


@pytest.mark.parametrize("how", SHOWS)
def test_a_secret_does_not_show(how: str) -> None:
    shown = SHOWS[how](Secret(VALUE))
    assert not [form for form in _forms(VALUE) if form in shown]
    # What is shown is that it is a secret, or the test looks at nothing.
    assert "secret" in shown.lower() or how == "dir"


@pytest.mark.parametrize("how", REFUSES)
def test_a_secret_refuses(how: str) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        REFUSES[how](Secret(VALUE))
    assert not [form for form in _forms(VALUE) if form in str(caught.value) + repr(caught.value)]


def test_a_secret_has_no_dict() -> None:
    assert not hasattr(Secret(VALUE), "__dict__")
    assert Secret.__slots__ == ("_value",)


@pytest.mark.parametrize("value", [32, [1, 2, 3], "text", None])
def test_only_bytes_become_a_secret(value: Any) -> None:
    with pytest.raises(TypeError):
        Secret(value)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_secret_keeps_a_copy(kind: Any) -> None:
    given = bytearray(VALUE)
    secret = Secret(kind(given))
    given[:] = bytes(len(given))
    assert secret.reveal() == VALUE
    assert type(secret.reveal()) is bytes
    assert len(secret) == len(VALUE)


def test_those_who_hold_keys_refuse_to_travel(tmp_path: Path) -> None:
    """A keyset, a recovery key, a KEK, an open store and what holds them."""
    described = config.load(make_store(tmp_path)).store("cohortes")
    access = config.access(described)
    keks = Keks(described, access)
    kek = keks.primary()
    keyset = Keyset.create(now=0, names_mode="encrypted")
    recovery = RecoveryKey.generate()
    for holder in (keyset, keyset.draft(), recovery, kek, Store(described, access)):
        for carry in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError):
                carry(holder)
        shown = repr(holder)
        for key in (keyset.names_key, keyset.auth_key, keyset.primary.key):
            assert key is not None
            assert not [form for form in _forms_of(key.reveal()) if form in shown]
        for raw in (recovery._seed, recovery._scalar):
            assert not [form for form in _forms_of(raw) if form in shown]
    kek.close()
    gc.collect()


def _forms_of(raw: bytes) -> list[str]:
    return [repr(raw)[2:-1], raw.hex(), base64.b64encode(raw).decode(), str(list(raw))]

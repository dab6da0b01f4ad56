"""Targets: the configuration with its environment, and key URIs."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from sovstore import config, config_text, os_keyring, policy
from sovstore.config_store import StoreConfig
from sovstore.errors import ConfigError, PolicyError
from sovstore.kms import keyfile, pkcs11_uri, registry, uri
from tests.fuzz.secrets import shown_in
from tests.fuzz.target import Finding, Target, hold

_PREFIX = "SOVSTORE_STORES__"
#: Stores of one configuration that are looked at closely.
_LOOKED_AT = 2
_FILE = Path("/nowhere/sovstore.toml")


class _File(type(_FILE)):  # type: ignore[misc]  # the class of paths of this system
    """A file that is not there, with these bytes: a million real ones take longer than all else that is measured."""

    content: bytes

    def is_file(self) -> bool:
        return True

    def absolute(self) -> _File:
        return self

    def expanduser(self) -> _File:
        return self

    def open(self, *_: object, encoding: str) -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(self.content), encoding=encoding)


def parse_config(data: bytes) -> None:
    """Load a file; what stands behind each NUL is a variable, NAME=VALUE, that overrides it."""
    content, *overrides = data.split(b"\0")
    pairs = [override.partition(b"=") for override in overrides]
    variables = {_PREFIX + os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    file = _File(_FILE)
    file.content = content
    with _found(file, variables):
        loaded = config.load(file)
    for described in list(loaded.stores.values())[:_LOOKED_AT]:
        _look_at(described)
    try:
        loaded.store("no such store")
    except ConfigError:
        return
    hold("no such store" in loaded.stores, "a store was found that is not there")


@contextmanager
def _found(file: _File, variables: dict[str, str]) -> Iterator[None]:
    find, environ = config.find, os.environ
    config.find = lambda _explicit=None: file  # type: ignore[assignment]  # a path of ours
    # A copy: the C library never frees the name of a variable, and a million of them look like a leak of the parser.
    os.environ = {**environ, **variables}  # type: ignore[assignment]  # noqa: B003  # a mapping
    try:
        yield
    finally:
        config.find, os.environ = find, environ


def _look_at(described: StoreConfig) -> None:
    # By its text: TOML has `nan`, which is not equal to itself.
    again = pickle.loads(pickle.dumps(described))  # noqa: S301  # our own
    hold(repr(again) == repr(described), "a store does not come back from a pickle")
    hold(described.cache_s >= 0 and described.grace_s >= 0, "a duration is negative")
    hold(described.backup_folder.is_absolute(), "a folder is relative")
    for look in (lambda: described.identity, lambda: described.place, lambda: policy.evaluate(described, today=_TODAY)):
        try:
            look()
        except (ConfigError, PolicyError):
            continue


_TODAY = date(2026, 11, 25)
_STORE = b'[stores.a]\nroot = "/srv/a"\nkek = "keyfile:/kek"\n'
_FILES = [
    _STORE,
    b"""
[audit]
file = "audit.jsonl"

[policy]
key_holder_jurisdiction = ["FR", "EU"]
host_parent = "any"
separate_from_storage = "warn"
protection_level = "hsm"
max_age = "365d"
on_violation = { key_holder_parent = "warn" }

[kms.bao]
uri = "openbao://bao.example.fr:8200"
controller = "hospital"
timeout_s = 2.5
auth = "approle"
role_id = "r"
secret_id = "file:secret"
ca_file = "ca.pem"

[controllers.hospital]
legal_entity = "CHU"
jurisdiction = "FR"
parent = "none"
technology_origin = "open-source"
as_of = 2026-11-25
source = "us"

[providers.own]
like = "ovhcloud"
title = "Ours"
regions = ["par", "gra"]
endpoint = { value = { par = "https://par.example.fr", others = "unknown" }, source = "us", as_of = 2026-11-01 }

[stores.cohortes]
provider = "own"
root = "bucket/prefix"
region = "par"
kek = "openbao://bao.example.fr:8200/transit/kek"
other_keks = ["keyring://sovstore/a"]
old_keks = []
cache = "15m"
grace = "1h"
names = "plain"
store_id = "000102030405060708090a0b0c0d0e0f"
recovery = ["a.pub"]
credentials = "keyring://sovstore/own"
[stores.cohortes.options]
config_kwargs = { s3 = { addressing_style = "path" }, retries = { max_attempts = 3 } }
[stores.cohortes.policy]
max_age = "9d"
""",
    b"""
[stores.b]
root = "abfs://container/x"
account = "acc"
kek = "pkcs11:token=t;object=k"
options.allow_http = true
""",
    b"""
[stores.c]
root = "sftp://host/x"
kek = "kmip://h:5696/k"
[kms.k]
uri = "kmip://h:5696"
cert_file = "a"
key_file = "a"
""",
    b'''
[stores.d]
root = "s3://b"
endpoint = "http://127.0.0.1:9"
provider = "s3"
kek = "okms://x/y"
options = { a = [[1, 2.5], [1979-05-27T07:32:00Z, """x"""]] }
''',
    b'[stores.e]\nroot = "/"\nkek = "keyfile:/k"\npassphrase_file = "~/p"\noptions.secret = "s"\n',
    _STORE + b"\0A__CACHE=1d\0A__OPTIONS={x = [1, {y = 'z'}]}\0NEW__ROOT=memory://x\0NEW__KEK=keyring://a/b",
    _STORE + b"\0A__OTHER_KEKS=['keyfile:/2']\0A__RECOVERY=['r.pub']\0A__REGION=gra",
    b"[policy]\nmax_age = 1\n",
    b"",
]


def _filled(front: bytes, piece: bytes, end: bytes = b"", most: int = config_text.MOST) -> bytes:
    """Return as many pieces as go into a file; ``%x`` in one is its number."""
    out, size, number = [front], len(front) + len(end), 0
    while (size := size + len(new := piece.replace(b"%x", b"%x" % number))) <= most:
        out.append(new)
        number += 1
    return b"".join([*out, end])


def _config_bombs() -> Iterator[tuple[str, bytes]]:
    options = _STORE + b"[stores.a.options]\n"
    yield "64 MiB of spaces", b" " * 2**26
    yield "64 MiB of a comment", b"#".ljust(2**26, b"x")
    yield "one character more than a file has", b"#" * (config_text.MOST + 1)
    yield "characters of four bytes", b"#" + "😀".encode() * (config_text.MOST - 1)
    for name, piece in {
        "tables": b"[a%x]\n",
        "stores": b"[stores.%x]\n",
        "whole stores": b'[stores.a%x]\nroot="/"\nkek="keyfile:/"\n',
        "stores at S3": b'[stores.a%x]\nroot="b"\nprovider="ovhcloud"\nregion="gra"\nkek="keyfile:/"\n',
        "providers": b'[providers.a%x]\nlike="ovhcloud"\n',
        "controllers": b'[controllers.a%x]\nlegal_entity="a"\njurisdiction="FR"\nas_of=2026-01-01\nsource="a"\n',
        "services": b'[kms.a%x]\nuri="kmip:%x"\n',
        "lists of tables": b"[[a]]\n",
    }.items():
        yield f"nothing but {name}", _filled(b"", piece)
    for name, piece in {
        "keys": b"k%x=1\n",
        "tables": b"k%x={}\n",
        "nested tables": b"k%x={a={b={c={}}}}\n",
        "dotted keys": b"k%x.a=1\n",
        "long dotted keys": b"k%x" + b".a" * 16 + b"=1\n",
        "dotted keys, as many as are parsed": b"k%x.a= 1111\n",
        "long dotted keys, as many as are parsed": b"k%x" + b".a" * 16 + b"=" + b"1" * 60 + b"\n",
        "headers with dots, as many as are parsed": b"[stores.a.options.k%x" + b".a" * 13 + b"]\n" + b"#" * 70 + b"\n",
        "long comments": b"k%x=1#" + b"." * 1000 + b"\n",
    }.items():
        yield f"{name} of options", _filled(options, piece)
    for name, piece in {
        "zeros": b"0,",
        "tables": b"{},",
        "tables of tables": b"{a={b={}}},",
        "lists": b"[],",
        "dates": b"1979-05-27,",
        "times": b"00:00:00.1,\n",
        "fractions": b"1e999,",
        "quotes": b'"\\"",',
        "long texts": b'"""' + b'"\\"' * 100 + b'""",',
        "text": b"'''a''''',",
        "URLs": b"'://',",
        "URLs with users": b"'a://b:@',",
        "bad URLs": b"'://[',",
    }.items():
        yield f"a list of {name}", _filled(options + b"a=[", piece, b"]\n")
    # Linux has no longer variables.
    yield "a list in a variable", _STORE + b"\0A__OPTIONS=" + _filled(b"{a=[", b"{},", b"]}", 2**17 - 40)
    yield "a secret beside a large list", _filled(options + b"b={password=1}\na=[", b"[],", b"]\n")
    yield "a secret deep down", options + b"a={password='x',b=[[[[[[]]]]]]}\n"
    for depth in (8, 9, 490, 10**5):
        yield f"{depth} lists", options + b"a=" + b"[" * depth + b"]" * depth + b"\n"
        yield f"{depth} tables", options + b"a=" + b"{a=" * depth + b"1" + b"}" * depth + b"\n"
        yield (
            f"{depth} lists in a variable",
            _STORE + b"\0A__OPTIONS=" + b"[" * min(depth, 2**16) + b"]" * min(depth, 2**16),
        )
        yield f"a key of {depth} parts", options + b"a." * depth + b"password=1\n"
        yield (
            f"a key of {depth} parts in a variable",
            _STORE + b"\0A__OPTIONS={" + b"a." * min(depth, 6 * 10**4) + b"a=1}",
        )
        yield f"a table of {depth} parts", b"[stores.a" + b".a" * depth + b"]\n"
        yield f"a key of {depth} quoted parts", options + b'"."."\\"".\'\'' + b'."."' * depth + b"=1\n"
    # Seven tables, each below a key of as many parts as a line may have dots; a list lets the line end in each.
    deep, levels = b"", 3
    for _ in range(levels):
        deep = b"[\n{a" + b".a" * 16 + b"=" + (deep or b"1") + b"}\n]"
    yield "tables, lists and dots, as deep as goes", options + b"b={password=1}\na=" + deep + b"\n"
    yield "a number of 4300 digits", options + b"a=" + b"1" * 4300 + b"\n"
    yield "a number of 4301 digits", options + b"a=" + b"1" * 4301 + b"\n"
    yield "a number of 10^5 hexadecimal digits", options + b"a=0x" + b"f" * 10**5 + b"\n"
    yield "a fraction of 10^5 digits", options + b"a=1." + b"1" * 10**5 + b"\n"
    yield "a setting of 2^17 letters", _filled(_STORE, b"k", b"=1\n")
    yield "a setting of 2^17 letters that is nearly one", _filled(_STORE, b"root", b"=1\n")
    yield "a provider of 2^17 letters", _filled(_STORE + b'provider="', b"ovh", b'"\n')
    yield (
        "a region of 2^17 letters",
        _filled(b'[stores.a]\nroot="b"\nkek="k:"\nprovider="ovhcloud"\nregion="', b"gra", b'"\n'),
    )
    yield "a root of 10^5 folders", _filled(b'[stores.a]\nkek="keyfile:/k"\nroot="', b"../", b'"\n')
    yield "a root of combining marks", _filled(b'[stores.a]\nkek="keyfile:/k"\nroot="', "\u0327\u0300".encode(), b'"\n')
    yield "quotes that do not close", b"a=" + b'"""\\' * 2**15
    yield "apostrophes that do not close", b"a='''" + b"''a" * 40_000
    yield "escapes", _filled(options + b'a="', b"\\U0001f600", b'"\n')
    yield "carriage returns", b"\r" * 2**17
    yield "1000 variables", _STORE + b"".join(b"\0V%d__ROOT=/" % n for n in range(1000))


def parse_uri(data: bytes) -> None:
    """Take apart a text as every kind of key URI that there is."""
    text = data.decode(errors="surrogateescape")
    refused: list[ConfigError | PolicyError] = []
    parsers = (_generic, _base_url, _pkcs11, os_keyring.parse, keyfile._parse, registry.label, registry.refusal)
    for parse in parsers:
        try:
            parse(text)
        except (ConfigError, PolicyError) as exc:
            if (secret := shown_in(exc)) is not None:
                raise Finding(f"a refusal shows a secret: {secret}") from exc
            refused.append(exc)
    if len(refused) == len(parsers):
        raise refused[0]


def _generic(text: str) -> None:
    found = uri.parse(text, "x://y", segments=(1, 2, 3), query=("endpoint", "api"))
    hold(not {"", ".", ".."} & set(found.segments), "a segment leads elsewhere")
    hold(not set(found.address) & set("@/?# "), "a host holds more than a host")
    hold(urlsplit(f"https://{found.address}/").hostname == found.host, "a host is another one in a URL")


def _base_url(text: str) -> None:
    checked = uri.base_url(text, uri="x://y")
    parts = urlsplit(checked)
    hold(parts.scheme == "https" or uri.is_loopback(parts.hostname or ""), "TLS would be done without")
    hold(parts.username is None and not parts.query and not parts.fragment, "a URL holds more than host and path")


def _pkcs11(text: str) -> None:
    found = pkcs11_uri.parse(text)
    again = pkcs11_uri.parse(found.key.uri)
    hold(again.key == found.key, "a token is another one in the canonical URI")
    hold(again.key.uri == found.key.uri, "a canonical URI is not canonical")


def _uris() -> list[bytes]:
    return [
        b"openbao://bao.example.fr:8200/transit/kek?namespace=x",
        b"okms://eu-west-rbx.okms.ovh.net/1-2/3?endpoint=https://x",
        b"x://[::1]:80/a/b?api=kmip&endpoint=https%3A%2F%2Fh",
        b"https://kms.example.fr:443/base",
        b"http://127.0.0.1:1",
        b"http://localhost.evil.example/",
        b"pkcs11:token=t;serial=1;manufacturer=m;model=m;object=%c3%a9;id=%00%FF;type=secret-key?module-path=/l.so&pin-source=file:/p",
        b"keyring://sovstore/cohortes",
        b"keyfile:~nobody-here/k",
        b"keyfile:/a%00b",
        b"awskms:///arn",
        b"kmip://u:p@h/k#f",
        b"",
    ]


def _uri_bombs() -> Iterator[tuple[str, bytes]]:
    most = config_text.MOST
    for front in (
        b"openbao://",
        b"openbao://h/",
        b"x://h/a?",
        b"http://",
        b"https://h/",
        b"pkcs11:token=",
        b"keyring://",
        b"keyfile:/",
    ):
        for piece in (
            b"a",
            b"a/",
            b"a.",
            b"%41",
            b"a=b&",
            b"a=b;",
            b"[",
            b":1",
            b"@",
            b"~",
            b"\xff",
            b"1",
            "é".encode(),
        ):
            yield f"{front!r} and {piece!r}", front + piece * (most // len(piece))
    yield "a port of 10^5 digits", b"openbao://h:" + b"1" * 10**5 + b"/a/b"


_WORDS = [
    *(b"[stores.a]", b"[kms.a]", b"[policy]", b"[providers.a]", b"[controllers.a]", b"[[", b'"""', b"'''", b"\0A__"),
    *(name.encode() for name in config.SETTINGS),
    *(b"uri", b"controller", b"timeout_s", b"like", b"driver", b"endpoint", b"regions", b"value", b"source", b"as_of"),
    *(b"1979-05-27", b"inf", b"nan", b"true", b"0x", b"unknown", b"any", b"://", b"password"),
]
CONFIG = Target("config", parse_config, (ConfigError,), lambda: _FILES, _config_bombs, _WORDS, 4096)
URI = Target(
    "uri",
    parse_uri,
    (ConfigError, PolicyError),
    _uris,
    _uri_bombs,
    [
        b"openbao://",
        b"pkcs11:",
        b"keyring://",
        b"http://",
        b"module-path=",
        b"pin-source=file:",
        b"pin-value=",
        b"%00",
        b"[::1]",
    ],
    1024,
)

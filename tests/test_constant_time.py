"""Tags, digests, fingerprints, commitments, contexts and keys are compared in constant time.

`==` on bytes stops at the first difference, and the time that it takes tells where that is. The source of the modules
through which they go is searched for every plain comparison that could be of bytes or text; each that is left is listed
with the reason why it may stay. The list is exact.
"""

from __future__ import annotations

import ast
import functools
import hmac
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

import sovstore
from sovstore.errors import IntegrityError, UnwrapError
from sovstore.format import cobblestone
from sovstore.format import keyset as keyset_format
from sovstore.format.cobblestone import PREFIX, ChunkOpener, seal_message
from sovstore.format.keyset import Keyset
from sovstore.kms import base
from sovstore.kms.base import WrappingKey
from sovstore.kms.local import LocalKey
from sovstore.secret import Secret

SOURCE = Path(sovstore.__file__).parent
#: Where keys, tags and contexts are.
SEARCHED = (
    "format/*.py",
    "held_keys.py",
    "keyset_changes.py",
    "keyset_copies.py",
    "keysets.py",
    "kms/*.py",
    "manifests.py",
    "object_reader.py",
    "object_writer.py",
    "os_keyring.py",
    "secret.py",
    "store.py",
)
#: Why plain comparisons may stay, and which they are, by module.
LISTED: dict[str, dict[str, list[str]]] = {
    "ids and names of epochs, stores, KEKs and recipients: no secrets, the host has them in the clear": {
        "format.keyset": ["store_id != self.store_id", "epoch.id == key_id", "e.id == key_id"],
        "manifests": ["parser.head.store_id != (await store.keyset()).store_id"],
        "keyset_changes": [
            "absent == [registry.label(config.kek)]",
            "label not in configured",
            "label not in change.removed",
            "label not in parsed.wraps",
            "label not in change.added",
            "i not in known",
            "i not in change.removed",
            "i not in sealed",
            "i not in change.added",
        ],
        "keysets": [
            "uri not in self._opened",
            "registry.label(uri) in labels",
            "registry.label(u) in parsed.wraps",
            "registry.label(u) != error.path",
        ],
        "kms.eviden": [
            "used != kid",
            "kid.startswith(self._kid)",
            "reply.text('kid') != self._kid_in(sealed.name)",
            "self._kid_in(sealed.name) == self._kid",
        ],
        "kms.kmip": ["about != self._uid"],
        "kms.okms": [
            "given != (f'okms://{parts.host}/{okms_id}/{key_id}', endpoint is not None)",
            "(reply.text('id') or '').lower() != self._key_id",
        ],
        "kms.scaleway": [
            "reply.text('id') != self._key_id",
            "reply.text('key_id') != self._key_id",
            "uri.startswith(f'{_SCHEME}://{region}/')",
        ],
        "kms.settings": ["uri == service", "uri.startswith(service)"],
        "store": ["keyset.primary.id != key_id", "await self.key_id(entry) == (await self.keyset()).primary.id"],
    },
    "salts and commitments in front of bodies, which were opened before: the host has all of them in the clear": {
        "manifests": ["reader.version == entry.version"],
    },
    "what the host sent against what it sent before: it knows both": {
        "object_reader": ["(kept[0].etag, kept[0].size, kept[1]) != (stat.etag, stat.size, start)"],
        "held_keys": ["known.raw == shown", "self._rejected[0] == shown"],
        "keyset_changes": ["await keysets.fetch(backend, config) != raw"],
        "keysets": ["found != raw"],
    },
    "the context, which says what the service takes for AAD: a digest of the keyset, which the host has": {
        "kms.eviden": ["reply.text('aad') != asked['aad']"],
    },
    "a text against its own decoding, encoded again: they differ by its form, and by nothing of another secret": {
        "format.canonical": ["dump(value) == raw", "to_base64(raw) != value"],
        "format.names": [
            "self.encode(_join(parent, segment)).rpartition('/')[2] == name",
            "self.encode(_join(parent, name)).rpartition('/')[2] == name",
        ],
        "kms.eviden": [
            "_base64url(raw) == value",
            "raw.hex().upper() == value",
            "json.dumps(header, separators=(',', ':')).encode() == name",
        ],
        "kms.okms": ["again.decode() == text"],
        "kms.openbao": ["found[2] in (again, again.rstrip(b'='))", "found[2] == again"],
        "kms.scaleway": ["_base64(raw) == value"],
    },
    "tags of a message's structure (TTLV), marks of a form, and names of members: public, and no tags of a cipher": {
        "format.canonical": ["value not in allowed", "set(value) != set(names.split())"],
        "kms.eviden": ["wrapped[0] != self._mark", "reply.text('tag') == f'{operation}Response'"],
        "kms.kmip": [
            "reply.version != self._version",
            "reply.operation != operation",
            "operation == reply.operation",
        ],
        "kms.kmip_messages": [
            "item.tag != tag",
            "inner.tag in known",
            "item.tag in found",
            "inner.tag in found",
            "inner.tag not in ignored",
        ],
        "kms.kmip_ttlv": [
            "header[:4] != tag.to_bytes(3, 'big') + bytes([Type.STRUCTURE])",
            "raw[3] not in Type.__members__.values()",
        ],
        "kms.okms": ["name in operations"],
        "kms.pkcs11": ["wrapped[:1] == form.mark", "other.aad == form.aad"],
    },
    "configuration, attributes of a key, handles and counters": {
        "held_keys": ["self._silences != silences", "config == self._config"],
        "kms.kmip_connection": ["key != pid"],
        "kms.openbao_wire": ["self._pool[0] != pid"],
        "kms.pkcs11_module": [
            "self._library not in (None, self._functions)",
            "self.path in getattr(pkcs11, '_loaded', {})",
            "ticket in login.users",
            "known == token",
        ],
        "kms.pkcs11_token": ["_read(found.key, attribute) != value", "wanted in (None, given)"],
        "kms.pkcs11_uri": [
            "values.pop('type', b'secret-key') != b'secret-key'",
            "name not in known",
            "name in found",
            "char in safe",
        ],
        "kms.settings": ["('cert_file' in values) != ('key_file' in values)", "key not in known", "key in values"],
        "kms.uri": ["name not in query"],
        "os_keyring": ["f'{label}.'.startswith(f'{prefix}.')"],
    },
    "lengths and paths": {
        "object_reader": [
            "got != wanted",
            "edge in span[1:]",
            "order.next == span.start",
        ],
        "format.manifest": ["entry.path.startswith(self._prefix)", "totals != counted"],
        "manifests": [
            "reader.plain_size == entry.size",
            "path != below",
            "path.startswith(prefix)",
            "entry.path.startswith(prefix)",
        ],
        "store": [
            "path in self._foreign",
            "source == target",
            "inner == stat.name",
            "await self.name(entry.path) == entry.name",
        ],
    },
}
#: Every comparison in constant time there is: module -> what is compared.
CONSTANT: dict[str, list[str]] = {
    "cli.login": ["credentials"],
    "format.cobblestone": ["the key commitment of a message"],
    "format.keyset": ["the fingerprint of the auth key", "the tag"],
    "kms.base": ["the context behind the KSK"],
    "kms.okms": ["the context behind the KSK, to see whether the key is fit to wrap"],
    "kms.openbao_login": ["the token that was refused"],
    "kms.pkcs11": ["the KSK, unwrapped to see whether the wrap opens"],
    "kms.pkcs11_module": ["PINs"],
}
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
_PLAIN = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
_METHODS = {"startswith", "endswith", "__eq__", "__ne__", "__contains__"}


def plain_comparisons(tree: ast.Module) -> set[str]:
    """Return every comparison of a source that stops early and could be of bytes or text that is not in the source."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
                    if isinstance(op, _PLAIN) and not _is_known(left) and not _is_known(right):
                        found.add(ast.unparse(ast.Compare(left, [op], [right])))
            case ast.Call(func=ast.Attribute(attr=attr), args=[argument]) if attr in _METHODS:
                if not _is_known(argument):
                    found.add(ast.unparse(node))
            case ast.Attribute(value=ast.Name(id="operator"), attr="eq" | "ne" | "contains") | ast.Match():
                found.add(ast.unparse(node))
            case ast.ImportFrom(module="operator" | "hmac"):
                found.add(ast.unparse(node))
    return found


def _is_known(node: ast.expr) -> bool:
    """Return whether an expression is a constant of the source, or a number."""
    match node:
        case ast.Constant(value=value):
            return not isinstance(value, bytes)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _CONSTANT.fullmatch(name) is not None
        case (
            ast.Call(func=ast.Name(id="len" | "type"))
            | ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="getpid"))
        ):
            return True
        case ast.BinOp(left=left, right=right):
            return any(isinstance(side, ast.Call) and _is_known(side) for side in (left, right)) or (
                _is_known(left) and _is_known(right)
            )
        case ast.Tuple(elts=elements) | ast.Set(elts=elements) | ast.List(elts=elements):
            return all(_is_known(element) for element in elements)
        case _:
            return False


def _parsed(*patterns: str) -> Iterator[tuple[str, ast.Module]]:
    for pattern in patterns:
        paths = sorted(SOURCE.glob(pattern))
        assert paths, pattern
        for path in paths:
            name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
            yield name, _tree(path)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _listed(module: str) -> set[str]:
    return {text for modules in LISTED.values() for text in modules.get(module, [])}


def _compared(tree: ast.Module) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "compare_digest"]


def test_every_plain_comparison_is_listed() -> None:
    found = {name: plain for name, tree in _parsed(*SEARCHED) if (plain := plain_comparisons(tree))}
    listed = {name for modules in LISTED.values() for name in modules}
    assert found == {name: _listed(name) for name in sorted(listed)}


def test_every_comparison_in_constant_time_is_listed() -> None:
    found = {name: len(calls) for name, tree in _parsed("**/*.py") if (calls := _compared(tree))}
    assert found == {name: len(what) for name, what in CONSTANT.items()}


#: What somebody could write in the place of `hmac.compare_digest(a, b)`.
INSTEAD: dict[str, Callable[[ast.expr, ast.expr], ast.expr]] = {
    "==": lambda a, b: ast.Compare(a, [ast.Eq()], [b]),
    "not !=": lambda a, b: ast.UnaryOp(ast.Not(), ast.Compare(b, [ast.NotEq()], [a])),
    "in": lambda a, b: ast.Compare(a, [ast.In()], [ast.Tuple([b], ast.Load())]),
    "__eq__": lambda a, b: ast.Call(ast.Attribute(a, "__eq__", ast.Load()), [b], []),
    "startswith": lambda a, b: ast.Call(ast.Attribute(a, "startswith", ast.Load()), [b], []),
    "operator": lambda a, b: ast.Call(ast.Attribute(ast.Name("operator", ast.Load()), "eq", ast.Load()), [a, b], []),
}


@pytest.mark.parametrize("instead", INSTEAD)
def test_the_search_notices_each_comparison_that_stops_being_constant(instead: str) -> None:
    mutants = 0
    for name, tree in _parsed(*SEARCHED):
        for number in range(len(_compared(tree))):
            copy = ast.parse(ast.unparse(tree))
            call = _compared(copy)[number]

            class Mutation(ast.NodeTransformer):
                def visit_Call(self, node: ast.Call, call: ast.Call = call) -> ast.AST:
                    return INSTEAD[instead](*node.args) if node is call else self.generic_visit(node)

            mutated = ast.parse(ast.unparse(ast.fix_missing_locations(Mutation().visit(copy))))
            assert plain_comparisons(mutated) - _listed(name), f"{name}: comparison {number}"
            mutants += 1
    assert mutants == sum(len(what) for name, what in CONSTANT.items() if name != "cli.login")


@pytest.mark.parametrize(
    "code",
    [
        "tag == expected",
        "tag != self._tag",
        "tag in (expected,)",
        "digest[:16] == found",
        "bytes(a) == bytes(b)",
        "a == b'constant bytes'",
        "PREFIX + tag == found",
        "a < b == tag",
        "from hmac import compare_digest",
        "match tag:\n case other: pass",
    ],
)
def test_the_search_finds(code: str) -> None:
    assert plain_comparisons(ast.parse(code))


# What happens to bytes that cannot be compared


class TouchedError(AssertionError):
    """Bytes were compared in the plain way."""


class _Untouchable:
    def __eq__(self, other: object) -> NoReturn:
        raise TouchedError

    __ne__ = __eq__
    __lt__ = __gt__ = __le__ = __ge__ = __contains__ = startswith = endswith = find = index = count = __eq__

    def __hash__(self) -> NoReturn:
        raise TouchedError

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)  # type: ignore[misc]
        return type(self)(part) if isinstance(at, slice) else part  # type: ignore[call-arg]


class UntouchableBytes(_Untouchable, bytes):
    """Bytes that raise where `==` or a hash looks at them; a slice of them does too."""


class UntouchableText(_Untouchable, str):
    """Text that does the same."""

    __slots__ = ()


@pytest.mark.parametrize("kind", [UntouchableBytes, UntouchableText])
def test_what_is_untouchable(kind: Any) -> None:
    plain = b"bytes" if kind is UntouchableBytes else "bytes"
    held = kind(plain)
    assert hmac.compare_digest(held, plain)
    for touch in (lambda: held == plain, lambda: plain == held, lambda: held[1:] != plain, lambda: hash(held)):
        with pytest.raises(TouchedError):
            touch()


KEY, CONTEXT, STORE = Secret(bytes(range(32))), bytes(range(32)), bytes(16)


def _commitment(patch: pytest.MonkeyPatch, *, right: bool) -> None:
    derive = cobblestone._derive

    def untouchable(*args: Any) -> Any:
        aead, nonce, expected = derive(*args)
        return aead, nonce, UntouchableBytes(expected)

    patch.setattr(cobblestone, "_derive", untouchable)
    prefix = seal_message(KEY, b"context", Secret(b"message"))[:PREFIX]
    ChunkOpener(KEY, b"context" if right else b"other", prefix, what="object")


def _tag(patch: pytest.MonkeyPatch, *, right: bool) -> None:
    keyset = Keyset.create(now=0, names_mode="plain", store_id=STORE)
    draft = keyset.draft()
    parsed = keyset_format.parse(draft.finish({"keyfile:/k": b"wrapped"}))
    real = keyset_format._tag
    patch.setattr(keyset_format, "_tag", lambda *args: UntouchableBytes(real(*args)))
    found = parsed._tag if right else bytes(64)
    replace(parsed, _tag=UntouchableBytes(found)).unlock(draft.ksk, STORE)


def _fingerprint(patch: pytest.MonkeyPatch, *, right: bool) -> None:
    keyset = Keyset.create(now=0, names_mode="plain", store_id=STORE)
    draft = keyset.draft()
    pinned = UntouchableText(keyset.auth_fingerprint if right else "00" * 32)
    keyset_format.parse(draft.finish({"keyfile:/k": b"wrapped"})).unlock(draft.ksk, STORE, auth_fingerprint=pinned)


class _Careless(WrappingKey):
    """A KEK that binds nothing, so that the comparison in the base is all there is; of untouchable bytes."""

    provider = "careless"
    uri = "careless:"

    def _encrypt(self, payload: bytes, aad: bytes) -> bytes:
        return payload

    def _decrypt(self, wrapped: bytes, aad: bytes) -> bytes:
        return UntouchableBytes(wrapped)


def _context(patch: pytest.MonkeyPatch, *, right: bool) -> None:
    kek = _Careless()
    wrapped = kek.wrap(KEY.reveal(), UntouchableBytes(CONTEXT))
    kek.unwrap(wrapped, UntouchableBytes(CONTEXT if right else CONTEXT[::-1]))


def _context_of_a_real_one(patch: pytest.MonkeyPatch, *, right: bool) -> None:
    kek = LocalKey("local:", KEY)
    wrapped = kek.wrap(KEY.reveal(), UntouchableBytes(CONTEXT))
    kek.unwrap(wrapped, UntouchableBytes(CONTEXT if right else CONTEXT[::-1]))


CHECKS: dict[str, tuple[Callable[..., None], Any, type[Exception]]] = {
    "commitment": (_commitment, cobblestone, IntegrityError),
    "tag": (_tag, keyset_format, IntegrityError),
    "fingerprint": (_fingerprint, keyset_format, IntegrityError),
    "context": (_context, base, UnwrapError),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_touches_nothing_by_a_plain_comparison(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, refusal = CHECKS[check]
    run(monkeypatch, right=True)
    with pytest.raises(refusal):
        run(monkeypatch, right=False)


@pytest.mark.parametrize("check", CHECKS)
def test_these_checks_would_notice(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, module, _ = CHECKS[check]
    monkeypatch.setattr(module, "hmac", SimpleNamespace(compare_digest=operator.eq, digest=hmac.digest))
    with pytest.raises(TouchedError):
        run(monkeypatch, right=True)


def test_a_kek_of_this_machine_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _context_of_a_real_one(monkeypatch, right=True)
    with pytest.raises(UnwrapError):
        _context_of_a_real_one(monkeypatch, right=False)

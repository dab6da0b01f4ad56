"""tools/sovread.py and tools/sovkeys.py, the second implementation of the format, on every own vector."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest

from tests.vectors import generate
from tests.vectors.keyset_parts import compact
from tests.vectors.load import COUNTS, FOLDER, encrypt, expand, load, load_tool
from tests.vectors.make_names import NAME_KEY, encode_path
from tests.vectors.make_objects import BODY_CONTEXT, EPOCHS, STORE_ID, draw, header

TOOLS = FOLDER.parent.parent / "tools"
sovread, sovkeys = load_tool("sovread"), load_tool("sovkeys")


def outcome(function, *arguments):
    """Return "ok" and the result, or the kind of refusal and None."""
    try:
        return "ok", function(*arguments)
    except (sovread.RefusedError, sovkeys.RefusedError) as exc:
        kind, reason = exc.args
        assert reason
        return kind, None


def keys_of(vector, mode="encrypted"):
    epochs = {bytes.fromhex(e["id"]): bytes.fromhex(e["key"]) for e in vector.get("epochs") or () if "key" in e}
    return sovread.Keys(
        bytes.fromhex(vector["store_id"]), mode, bytes.fromhex(vector.get("name_key") or "00" * 64), epochs
    )


# The vectors


@pytest.mark.parametrize("vector", load("header"), ids=str)
def test_header(vector):
    kind, dek = outcome(sovread.open_header, vector.data("header"), keys_of(vector), vector["path"])
    assert kind == vector.expect
    assert dek == (vector.data("dek") if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("body"), ids=str)
def test_body(vector):
    def read():
        return b"".join(sovread.decrypt_chunks(io.BytesIO(vector.data("message")), vector.data("dek"), context))

    context = expand(BODY_CONTEXT)
    kind, plaintext = outcome(read)
    assert kind == vector.expect
    assert plaintext == (vector.data("plaintext") if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("names"), ids=str)
def test_name(vector):
    keys, direction = keys_of(vector, vector["mode"]), vector["direction"]
    if direction in {"both", "encode"}:
        kind, name = outcome(sovread.encode_path, keys, vector["path"])
        assert (kind, name) == (vector.expect, vector["name"] if kind == "ok" else None)
    if direction in {"both", "decode"}:
        kind, path = outcome(sovread.decode_path, keys, vector["name"])
        assert (kind, path) == (vector.expect, vector["path"] if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("sizes"), ids=str)
def test_size(vector):
    # The reader has no other direction, so a plaintext size is tried as the wire size that it would have.
    plain_size, wire_size = vector.get("plain_size"), vector.get("wire_size")
    if vector["direction"] == "plain_to_wire":
        wire_size = 184 + plain_size + 16 * (plain_size // 16384 + 1)
    kind, size = outcome(sovread.plain_size, wire_size)
    assert kind == vector.expect
    assert size == (plain_size if kind == "ok" else None)


def unlock(vector, way):
    file, store_id = vector.data("file"), bytes.fromhex(vector["store_id"])
    if way == "ksk":
        return sovkeys.unlock(file, store_id, vector.data("ksk"), None)
    if way == "kek":
        ksk = sovkeys.ksk_from_kek(file, store_id, vector["kek_uri"], vector.data("kek"))
        return sovkeys.unlock(file, store_id, ksk, None)
    ksk = sovkeys.ksk_from_recovery_key(file, store_id, vector["recovery_key"].encode())
    return sovkeys.unlock(file, store_id, ksk, vector.data("auth_fingerprint"))


@pytest.mark.parametrize("vector", load("keyset"), ids=str)
def test_keyset(vector):
    assert vector["ways"]
    for way in vector["ways"]:
        kind, keys = outcome(unlock, vector, way)
        assert kind == vector.expect, way
        assert keys == (vector["keys"] if kind == "ok" else None)


@pytest.mark.parametrize("vector", load("recovery"), ids=str)
def test_recovery(vector):
    kind, keys = outcome(unlock, vector, "recovery")
    assert kind == vector.expect
    assert keys == (vector["keys"] if kind == "ok" else None)


# The vectors themselves


def test_generator_reproduces_the_vectors():
    files, new = generate.build()
    assert new == []
    for name, text in files.items():
        assert (FOLDER / "sovstore" / name).read_text(encoding="ascii") == text, name


def test_every_file_of_vectors_is_loaded():
    # Those of KMIP are messages of a service, and no part of the format.
    found = {str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.json") if p.parent.name != "kmip"}
    assert found == set(COUNTS)


def test_loader_refuses_a_file_that_lost_vectors(monkeypatch):
    monkeypatch.setitem(COUNTS, "sovstore/sizes", COUNTS["sovstore/sizes"] + 1)
    with pytest.raises(AssertionError, match="found"):
        load("sizes")


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("00ff", b"\0\xff"),
        ({"text": "\u00e9"}, b"\xc3\xa9"),
        ({"fill": 7, "n": 3}, b"\7\7\7"),
        ({"repeat": {"text": "ab"}, "n": 2}, b"abab"),
        ([{"text": "a"}, "62", []], b"ab"),
        ({"edit": {"text": "abcdef"}, "ops": [{"op": "truncate", "to": 2}]}, b"ab"),
        ({"edit": {"text": "ab"}, "ops": [{"op": "append", "data": "63"}]}, b"abc"),
        ({"edit": "0000", "ops": [{"op": "flip", "bit": 0}, {"op": "flip", "bit": 15}]}, b"\x80\x01"),
        ({"edit": {"text": "abcdef"}, "ops": [{"op": "delete", "span": [1, 3]}]}, b"adef"),
        ({"edit": {"text": "abcdef"}, "ops": [{"op": "copy", "span": [0, 2], "to": 5}]}, b"abcdeabf"),
        ({"edit": {"text": "abcdef"}, "ops": [{"op": "swap", "a": [0, 1], "b": [3, 6]}]}, b"defbca"),
    ],
)
def test_expand(value, data):
    assert expand(value) == data


def test_expand_checks_digests_and_operations():
    with pytest.raises(AssertionError, match="SHA-256"):
        expand({"sha256": "00" * 32, "of": "00"})
    with pytest.raises(ValueError, match="unknown operation"):
        expand({"edit": "00", "ops": [{"op": "reverse"}]})


def test_compact_texts_expand_to_themselves():
    text = "a" + "[" * 300 + "b" + "x" * 1000 + "\u00e9"
    assert expand(compact(text)) == text.encode()


# The tools


@pytest.mark.parametrize("name", ["sovread", "sovkeys"])
def test_tool_is_small_and_stands_alone(name):
    text = (TOOLS / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    foreign = {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names}
    assert foreign
    assert {m.split(".")[0] for m in foreign} == {"cryptography"}
    # A second implementation that called the first one's Cobblestone would verify nothing.
    assert not any("cobblestone" in m for m in foreign)


@pytest.fixture
def run(monkeypatch, capfdbinary):
    """Return a function that runs a tool and returns exit code, output and errors."""

    def run_tool(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            code = {"sovread": sovread, "sovkeys": sovkeys}[name].main()
        except SystemExit as exc:
            code = exc.code
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run_tool


FILES = {"a": b"", "data/b.csv": b"b" * 16384, "data/caf\u00e9/c": b"c" * 40000}


class Store:
    """A byte copy of a store with FILES in it."""

    def __init__(self, folder, mode):
        self.root, self.mode = folder / "store", mode
        self.keys = folder / "keys.json"
        epochs = {epoch["id"]: epoch["key"] for epoch in EPOCHS[1:]}
        fields = {
            "store_id": STORE_ID.hex(),
            "names_mode": mode,
            "name_key": NAME_KEY.hex(),
            "epochs": epochs,
        }
        self.keys.write_text(json.dumps(fields), encoding="ascii")
        for path, plaintext in FILES.items():
            body = {"key": draw(f"dek {path}", 32).hex(), "context": BODY_CONTEXT, "salt": "00" * 24}
            self.write(self.name(path), header(path) + encrypt(plaintext=plaintext.hex(), **body))
        self.write(".sovstore/keyset.json", b"not read by sovread")

    def name(self, path):
        return encode_path(path) if self.mode == "encrypted" else path

    def file(self, path):
        return self.root / self.name(path)

    def write(self, name, data):
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


@pytest.fixture(params=["encrypted", "plain"])
def store(request, tmp_path):
    return Store(tmp_path, request.param)


def files_below(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_list(run, store):
    code, out, err = run("sovread", "list", store.root, "--keys", store.keys)
    assert (code, err) == (0, "")
    lines = sorted(out.decode().splitlines())
    assert lines == sorted(f"{len(data)}\t{path}" for path, data in FILES.items())


def test_cat(run, store):
    for path, data in FILES.items():
        assert run("sovread", "cat", store.root, path, "--keys", store.keys) == (0, data, "")


def test_extract(run, store, tmp_path):
    dest = tmp_path / "dest"
    code, _, err = run("sovread", "extract", store.root, dest, "--keys", store.keys)
    assert (code, err) == (0, "")
    assert files_below(dest) == FILES


@pytest.mark.parametrize(("name", "data"), [("README.md", b"foreign"), ("x" * 43, bytes(200)), ("zz.bin", b"")])
def test_foreign_files_are_reported(run, store, name, data):
    store.write(name, data)
    code, out, err = run("sovread", "list", store.root, "--keys", store.keys)
    assert code == 3
    assert name in err
    assert len(out.splitlines()) == len(FILES)


def test_cat_of_a_truncated_object_emits_authentic_chunks_and_fails(run, store):
    path = "data/caf\u00e9/c"
    file = store.file(path)
    file.write_bytes(file.read_bytes()[:-1])
    code, out, err = run("sovread", "cat", store.root, path, "--keys", store.keys)
    assert code == 3
    assert out == FILES[path][:32768]
    assert "chunk 2" in err


def test_cat_of_an_object_without_its_last_chunk_fails(run, store):
    file = store.file("data/b.csv")
    file.write_bytes(file.read_bytes()[:-16])
    code, _, err = run("sovread", "cat", store.root, "data/b.csv", "--keys", store.keys)
    assert (code, err) == (3, "sovread: chunk 1 failed authentication\n")


def test_cat_of_a_moved_object_emits_nothing(run, store):
    store.file("a").write_bytes(store.file("data/b.csv").read_bytes())
    code, out, _ = run("sovread", "cat", store.root, "a", "--keys", store.keys)
    assert (code, out) == (3, b"")


@pytest.mark.parametrize("path", ["../keys.json", "/etc/passwd", ".sovstore/keyset.json", "a/../a", "", "cafe\u0301"])
def test_cat_refuses_what_is_no_path(run, store, path):
    code, out, err = run("sovread", "cat", store.root, path, "--keys", store.keys)
    assert (code, out) == (1, b"")
    assert err.startswith("sovread: path")


def test_cat_of_nothing(run, store):
    code, _, err = run("sovread", "cat", store.root, "missing", "--keys", store.keys)
    assert code == 1
    assert "FileNotFoundError" in err


def test_list_of_a_missing_folder(run, store):
    code, out, err = run("sovread", "list", store.root / "missing", "--keys", store.keys)
    assert (code, out) == (1, b"")
    assert "FileNotFoundError" in err


def test_cat_without_the_key_of_the_epoch(run, store):
    fields = json.loads(store.keys.read_text(encoding="ascii"))
    fields["epochs"] = {}
    store.keys.write_text(json.dumps(fields), encoding="ascii")
    code, out, err = run("sovread", "cat", store.root, "a", "--keys", store.keys)
    assert (code, out) == (3, b"")
    assert EPOCHS[2]["id"] in err


def test_extract_keeps_nothing_of_an_object_that_is_not_authentic(run, store, tmp_path):
    file, dest = store.file("data/b.csv"), tmp_path / "dest"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    code, _, err = run("sovread", "extract", store.root, dest, "--keys", store.keys)
    assert code == 3
    assert "chunk 1 failed" in err
    assert files_below(dest) == {path: data for path, data in FILES.items() if path != "data/b.csv"}


def test_extract_neither_replaces_files_nor_follows_links_out(run, store, tmp_path):
    dest, outside = tmp_path / "dest", tmp_path / "outside"
    dest.mkdir()
    outside.mkdir()
    (dest / "a").write_bytes(b"mine")
    (dest / "data").symlink_to(outside)
    code, _, _ = run("sovread", "extract", store.root, dest, "--keys", store.keys)
    assert code == 3
    assert (dest / "a").read_bytes() == b"mine"
    assert files_below(outside) == {}


@pytest.mark.parametrize("change", [{"names_mode": "none"}, {"store_id": "x"}, {"epochs": None}])
def test_wrong_keys_file(run, store, change):
    fields = {**json.loads(store.keys.read_text(encoding="ascii")), **change}
    store.keys.write_text(json.dumps(fields), encoding="ascii")
    code, out, err = run("sovread", "list", store.root, "--keys", store.keys)
    assert (code, out) == (1, b"")
    assert err.startswith("sovread: ")


@pytest.mark.parametrize("arguments", [("cat",), ("extract",), ("list", "x"), ("remove", "x")])
def test_sovread_usage(run, store, arguments):
    command, *rest = arguments
    code, _, err = run("sovread", command, store.root, *rest, "--keys", store.keys)
    assert code == 2
    assert "usage:" in err


@pytest.mark.parametrize("name", ["sovread", "sovkeys"])
def test_help_shows_how(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"{name}.py" in out.decode()
    assert "exit codes" in out.decode()


@pytest.fixture
def keyset(tmp_path):
    """Return paths of a keyset and its recovery key, and the vector that they come from."""
    vector = load("recovery")[0]
    file, key = tmp_path / "keyset.json", tmp_path / "recovery.json"
    file.write_bytes(vector.data("file"))
    key.write_text(vector["recovery_key"], encoding="ascii")
    return file, key, vector


def test_keys_by_recovery_key(run, keyset):
    file, key, vector = keyset
    options = ("--recovery-key", key, "--auth-fingerprint", vector["auth_fingerprint"])
    code, out, err = run("sovkeys", file, vector["store_id"], *options)
    assert (code, err) == (0, "")
    assert json.loads(out) == vector["keys"]


def test_keys_by_ksk_and_kek_from_a_file_of_arguments(run, tmp_path):
    vector = load("keyset")[0]
    file, arguments = tmp_path / "keyset.json", tmp_path / "arguments"
    file.write_bytes(vector.data("file"))
    for line in (f"--ksk={vector['ksk']}", f"--kek={vector['kek']}\n--uri={vector['kek_uri']}"):
        arguments.write_text(line + "\n", encoding="ascii")
        code, out, _ = run("sovkeys", file, vector["store_id"], f"@{arguments}")
        assert code == 0
        assert json.loads(out) == vector["keys"]


def test_keys_need_the_fingerprint(run, keyset):
    file, key, vector = keyset
    code, out, err = run("sovkeys", file, vector["store_id"], "--recovery-key", key)
    assert (code, out) == (2, b"")
    assert "--auth-fingerprint" in err
    code, out, _ = run("sovkeys", file, vector["store_id"], "--recovery-key", key, "--auth-fingerprint", "00" * 32)
    assert (code, out) == (3, b"")


def test_keys_of_a_missing_file(run, keyset):
    _, key, vector = keyset
    options = ("--recovery-key", key, "--auth-fingerprint", vector["auth_fingerprint"])
    code, _, err = run("sovkeys", Path("missing.json"), vector["store_id"], *options)
    assert code == 1
    assert "missing.json" in err

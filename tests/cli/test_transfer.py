"""Transcripts of put and get."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.conftest import at_host, damage


@pytest.fixture
def tables(tmp_path):
    folder = tmp_path / "tables"
    (folder / "sub").mkdir(parents=True)
    (folder / "person.csv").write_bytes(b"id\n1\n")
    (folder / "empty").write_bytes(b"")
    (folder / "sub" / "big.bin").write_bytes(os.urandom(3 * 2**20 + 7))
    return folder


def test_put_a_file(cli, fs, tables):
    ran = cli("put", tables / "person.csv", "sov://cohortes/2026/")
    assert ran.transcript == (0, "", "sealed 1 object, 5 B\n")
    assert fs.cat("2026/person.csv") == b"id\n1\n"


def test_put_under_another_name(cli, fs, tables):
    assert cli("put", tables / "person.csv", "sov://cohortes/2026/p.csv").code == 0
    assert fs.find("") == ["2026/p.csv"]


def test_put_into_a_folder_that_exists(cli, fs, tables):
    fs.pipe_file("2026/x", b"")
    assert cli("put", tables / "person.csv", "sov://cohortes/2026").code == 0
    assert fs.find("2026") == ["2026/person.csv", "2026/x"]


def test_put_a_folder(cli, fs, tables):
    assert cli("put", tables, "sov://cohortes/2026").transcript == (
        1,
        "",
        "sovstore: error: DIR/tables: is a folder\nsovstore: hint: -r takes all that is in it\n",
    )
    ran = cli("put", "-r", tables, "sov://cohortes/2026")
    assert ran.transcript == (0, "", "sealed 3 objects, 3.1 MB\n")
    assert fs.find("") == ["2026/empty", "2026/person.csv", "2026/sub/big.bin"]
    assert fs.cat("2026/sub/big.bin") == (tables / "sub" / "big.bin").read_bytes()
    assert cli("put", "-r", tables, "sov://cohortes/").code == 0
    assert fs.exists("tables/sub/big.bin")


def test_put_leaves_out_what_is_no_file(cli, fs, tables):
    (tables / "link").symlink_to(tables / "sub")
    (tables / "to-file").symlink_to(tables / "person.csv")
    os.mkfifo(tables / "pipe")
    ran = cli("put", "-r", tables, "sov://cohortes/t")
    assert ran.transcript == (
        0,
        "",
        (
            "sovstore: warning: DIR/tables/link: a link to a folder; left out\n"
            "sovstore: warning: DIR/tables/pipe: not a file; left out\n"
            "sealed 4 objects, 3.1 MB\n"
        ),
    )
    assert fs.cat("t/to-file") == b"id\n1\n"


def test_put_some_that_are_not_there(cli, fs, tables):
    ran = cli("put", tables / "nope", tables / "person.csv", "sov://cohortes/")
    assert ran.transcript == (
        5,
        "",
        "sovstore: error: DIR/tables/nope: no such file or directory\nsealed 1 object, 5 B; 1 failed\n",
    )
    assert cli("put", tables / "nope", "sov://cohortes/").transcript == (
        1,
        "",
        "sovstore: error: DIR/tables/nope: no such file or directory\n",
    )


def test_put_a_name_that_no_path_may_have(cli, fs, tables):
    (tables / os.fsdecode(b"\xff")).write_bytes(b"x")
    ran = cli("put", "-r", tables, "sov://cohortes/t")
    assert ran.code == 5
    assert "not valid Unicode" in ran.err
    assert ran.err.endswith("sealed 3 objects, 3.1 MB; 1 failed\n")


def test_put_as_json(cli, fs, tables):
    ran = cli("put", "--json", "-r", tables, tables / "nope", "sov://cohortes/t")
    assert json.loads(ran.raw_out)["objects"] == 3
    assert [f["path"] for f in json.loads(ran.raw_out)["failed"]] == [str(tables / "nope")]
    assert json.loads(ran.raw_err)["error"]["exit_code"] == 1


def test_get_a_file(cli, fs, tmp_path):
    fs.pipe_file("2026/person.csv", b"id\n1\n")
    assert cli("get", "sov://cohortes/2026/person.csv", ".").transcript == (
        0,
        "",
        "fetched 1 object, 5 B\n",
    )
    assert (tmp_path / "desk" / "person.csv").read_bytes() == b"id\n1\n"
    assert cli("get", "sov://cohortes/2026/person.csv", "other.csv").code == 0
    assert (tmp_path / "desk" / "other.csv").read_bytes() == b"id\n1\n"


def test_get_a_folder(cli, fs, tables, tmp_path):
    cli("put", "-r", tables, "sov://cohortes/2026")
    assert cli("get", "sov://cohortes/2026", "out").transcript == (
        1,
        "",
        "sovstore: error: 2026: is a folder\nsovstore: hint: -r takes all that is in it\n",
    )
    assert cli("get", "-r", "sov://cohortes/2026", "out").transcript == (
        0,
        "",
        "fetched 3 objects, 3.1 MB\n",
    )
    out = tmp_path / "desk" / "out"
    assert (out / "sub" / "big.bin").read_bytes() == (tables / "sub" / "big.bin").read_bytes()
    assert cli("get", "-r", "sov://cohortes/2026", "out").code == 0
    assert (out / "2026" / "person.csv").exists()
    assert cli("get", "-r", "sov://cohortes/", "all").code == 0
    assert (tmp_path / "desk" / "all" / "2026" / "person.csv").exists()


def test_get_a_pattern(cli, fs, tmp_path):
    fs.pipe({"a/x.csv": b"1", "b/x.csv": b"2", "b/y.csv": b"3"})
    assert cli("get", "sov://cohortes/b/*.csv", "out").code == 0
    assert sorted(os.listdir(tmp_path / "desk" / "out")) == ["x.csv", "y.csv"]
    ran = cli("get", "sov://cohortes/*/x.csv", "out")
    assert ran.code == 2
    assert "a/x.csv and b/x.csv would both become out/x.csv" in ran.err


def test_get_to_stdout(cli, fs):
    fs.pipe_file("a", b"content\n")
    assert cli("get", "sov://cohortes/a", "-").transcript == (0, "content\n", "fetched 1 object, 8 B\n")
    assert cli("get", "--json", "sov://cohortes/a", "-").code == 2
    fs.pipe_file("b", b"b")
    assert cli("get", "sov://cohortes/a", "sov://cohortes/b", "-").code == 2


def test_get_does_not_write_what_is_not_authentic(cli, fs, tables, tmp_path):
    cli("put", "-r", tables, "sov://cohortes/2026")
    damage(at_host(tmp_path, fs, "2026/sub/big.bin"), 2 * 2**20)
    (tmp_path / "desk" / "sub").mkdir()
    (tmp_path / "desk" / "sub" / "big.bin").write_bytes(b"what was there before")
    ran = cli("get", "-r", "sov://cohortes/2026", "out")
    assert ran.transcript == (
        3,
        "",
        ("sovstore: error: 2026/sub/big.bin: chunk 127 failed authentication\nfetched 2 objects, 5 B; 1 failed\n"),
    )
    assert sorted(os.listdir(tmp_path / "desk" / "out")) == ["empty", "person.csv", "sub"]
    assert os.listdir(tmp_path / "desk" / "out" / "sub") == []
    assert cli("get", "sov://cohortes/2026/sub/big.bin", "sub").code == 3
    assert (tmp_path / "desk" / "sub" / "big.bin").read_bytes() == b"what was there before"


def test_get_reports_a_foreign_name_and_goes_on(cli, fs, tmp_path):
    fs.pipe_file("2026/a", b"a")
    folder = tmp_path / "cohortes" / fs.info("2026")["wire_name"]
    (folder / "\x1b[31mREADME").write_bytes(b"x" * 300)
    ran = cli("get", "-r", "sov://cohortes/2026", "out")
    assert ran.code == 5
    assert "2026/%1B%5B31mREADME: not an object of this store" in ran.err
    assert ran.err.endswith("fetched 1 object, 1 B; 1 failed\n")
    assert "\x1b" not in ran.raw_err


def test_get_where_the_local_folder_is_a_file(cli, fs, tmp_path):
    fs.pipe_file("a/b", b"b")
    (tmp_path / "desk" / "out").write_bytes(b"")
    ran = cli("get", "-r", "sov://cohortes/a", "out")
    assert ran.code == 1
    assert ran.err.startswith("sovstore: error: ")
    assert "Traceback" not in ran.err


def test_a_local_path_where_a_url_must_be(cli, config):
    assert cli("put", "a", "b").transcript == (
        2,
        "",
        "sovstore: error: b: not in a store\nsovstore: hint: write sov://STORE/b\n",
    )
    assert cli("get", "sov://cohortes/a", "sov://cohortes/b").transcript == (
        2,
        "",
        (
            "sovstore: error: sov://cohortes/b: is in a store\n"
            "sovstore: hint: 'sovstore cp' copies inside and between stores\n"
        ),
    )
    assert cli("cat", "sov:/cohortes/a").code == 2
    assert cli("cat", "sov:///a").code == 2

"""Transcripts of ls, cat, rm, cp and mv."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import at_host, damage
from tests.stores import make_store, open_fs


@pytest.fixture
def filled(fs):
    fs.pipe({"2026/person.csv": b"id\n1\n", "2026/notes/a.txt": b"a" * 20000, "top.txt": b"top\n"})
    return fs


def test_ls_without_a_url_lists_the_stores(cli, config):
    assert cli("ls").transcript == (0, "sov://cohortes/\n", "")
    assert json.loads(cli("ls", "--json").out) == ["sov://cohortes/"]


def test_ls_without_a_configuration(cli):
    assert cli("ls").transcript == (
        0,
        "",
        "no store is configured; 'sovstore init --help' says how to make one\n",
    )


def test_ls(cli, filled):
    assert cli("ls", "sov://cohortes").transcript == (0, "2026/\ntop.txt\n", "")
    assert cli("ls", "sov://cohortes/2026/").transcript == (0, "notes/\nperson.csv\n", "")
    assert cli("ls", "sov://cohortes/top.txt").transcript == (0, "top.txt\n", "")
    assert cli("ls", "-R", "sov://cohortes/").transcript == (
        0,
        "2026/notes/a.txt\n2026/person.csv\ntop.txt\n",
        "",
    )


def test_ls_long(cli, filled):
    ran = cli("ls", "-l", "sov://cohortes/")
    assert ran.transcript == (0, "-  MOMENT  2026/\n4  MOMENT  top.txt\n", "1 object, 4 B\n")
    assert cli("-q", "ls", "-l", "sov://cohortes/").err == ""


def test_ls_of_several(cli, filled):
    ran = cli("ls", "sov://cohortes/top.txt", "sov://cohortes/2026")
    assert ran.transcript == (0, "top.txt\n\nsov://cohortes/2026:\nnotes/\nperson.csv\n", "")


def test_ls_of_a_pattern(cli, filled):
    assert cli("ls", "sov://cohortes/*/*.csv").transcript == (0, "2026/person.csv\n", "")
    ran = cli("ls", "sov://cohortes/*/*.parquet")
    assert ran.transcript == (1, "", "sovstore: error: */*.parquet: nothing in store 'cohortes' matches\n")


def test_a_path_that_looks_like_a_pattern_is_a_path_first(cli, filled):
    filled.pipe_file("t*", b"star")
    assert cli("cat", "sov://cohortes/t*").transcript == (0, "star", "")
    assert cli("rm", "sov://cohortes/t*").code == 0
    assert filled.exists("top.txt")


def test_ls_as_json(cli, filled):
    [entry] = json.loads(cli("ls", "--json", "sov://cohortes/2026/person.csv").out)
    assert entry["url"] == "sov://cohortes/2026/person.csv"
    assert entry["type"] == "object"
    assert entry["size"] == 5
    assert entry["host_size"] == 184 + 5 + 16
    assert entry["host_name"] == filled.info("2026/person.csv")["wire_name"]


def test_ls_of_what_is_not_there(cli, config):
    assert cli("ls", "sov://cohortes/nope").transcript == (
        1,
        "",
        "sovstore: error: nope: no such object in store 'cohortes'\n",
    )


def test_cat(cli, filled):
    assert cli("cat", "sov://cohortes/top.txt", "sov://cohortes/2026/person.csv").transcript == (
        0,
        "top\nid\n1\n",
        "",
    )


def test_cat_ends_before_what_is_not_authentic(cli, filled, tmp_path):
    damage(at_host(tmp_path, filled, "2026/notes/a.txt"), 400)
    ran = cli("cat", "sov://cohortes/top.txt", "sov://cohortes/2026/notes/a.txt")
    assert ran.transcript == (
        3,
        "top\n",
        "sovstore: error: 2026/notes/a.txt: chunk 0 failed authentication\n",
    )


def test_cat_of_a_folder(cli, filled):
    assert cli("cat", "sov://cohortes/2026").transcript == (1, "", "sovstore: error: 2026: is a folder\n")


def test_rm(cli, filled):
    assert cli("rm", "sov://cohortes/top.txt").transcript == (0, "", "deleted 1 object, 4 B\n")
    assert not filled.exists("top.txt")


def test_rm_of_a_folder(cli, filled):
    ran = cli("rm", "sov://cohortes/2026")
    assert ran.transcript == (
        1,
        "",
        "sovstore: error: 2026: is a folder\nsovstore: hint: -r takes all that is in it\n",
    )
    assert cli("rm", "-r", "sov://cohortes/2026").transcript == (0, "", "deleted 2 objects, 20.0 kB\n")
    assert filled.ls("", detail=False) == ["top.txt"]


def test_rm_of_a_whole_store_needs_yes(cli, filled):
    ran = cli("rm", "-r", "sov://cohortes/")
    assert ran.transcript == (
        2,
        "",
        (
            "sovstore: error: sov://cohortes/: this would delete all objects of the store\n"
            "sovstore: hint: add --yes if that is what you want\n"
        ),
    )
    assert len(filled.find("")) == 3
    assert cli("rm", "-r", "--yes", "sov://cohortes/").code == 0
    assert filled.find("") == []


def test_rm_of_some_that_are_not_there(cli, filled):
    ran = cli("rm", "sov://cohortes/nope", "sov://cohortes/top.txt")
    assert ran.transcript == (
        5,
        "",
        "sovstore: error: nope: no such object in store 'cohortes'\ndeleted 1 object, 4 B; 1 failed\n",
    )


def test_cp_inside_a_store_writes_a_new_header_only(cli, filled, tmp_path):
    assert cli("cp", "sov://cohortes/top.txt", "sov://cohortes/2026/").transcript == (
        0,
        "",
        "copied 1 object, 4 B\n",
    )
    one, two = (at_host(tmp_path, filled, path).read_bytes() for path in ("top.txt", "2026/top.txt"))
    assert one[128:] == two[128:]
    assert one[:128] != two[:128]


def test_cp_of_a_folder(cli, filled):
    assert cli("cp", "-r", "sov://cohortes/2026", "sov://cohortes/2027").code == 0
    assert filled.find("2027") == ["2027/notes/a.txt", "2027/person.csv"]
    assert cli("cp", "-r", "sov://cohortes/2026", "sov://cohortes/2027").code == 0
    assert "2027/2026/person.csv" in filled.find("2027")


def test_cp_to_another_store(cli, config, filled, tmp_path):
    make_store(tmp_path, "archive", kek=f"keyfile:{tmp_path / 'other.key'}")
    ran = cli("cp", "-r", "sov://cohortes/2026", "sov://archive/")
    assert ran.transcript == (0, "", "copied 2 objects, 20.0 kB\n")
    other = open_fs(config, "archive")
    assert other.cat("2026/notes/a.txt") == b"a" * 20000
    held = (tmp_path / "archive" / other.info("2026/notes/a.txt")["wire_name"]).read_bytes()
    assert held[128:] != at_host(tmp_path, filled, "2026/notes/a.txt").read_bytes()[128:]


def test_cp_into_itself(cli, filled):
    ran = cli("cp", "-r", "sov://cohortes/2026", "sov://cohortes/2026/again")
    assert ran.transcript == (
        1,
        "",
        "sovstore: error: sov://cohortes/2026: cannot become itself, or go into itself\n",
    )


def test_cp_of_two_to_one_name(cli, filled):
    filled.pipe_file("2025/person.csv", b"x")
    ran = cli("cp", "sov://cohortes/2025/person.csv", "sov://cohortes/2026/person.csv", "sov://cohortes/all/")
    assert ran.code == 2
    assert "would both become all/person.csv" in ran.err
    assert not filled.exists("all")


def test_mv(cli, filled):
    assert cli("mv", "sov://cohortes/top.txt", "sov://cohortes/renamed.txt").transcript == (
        0,
        "",
        "renamed 1 object, 4 B\n",
    )
    assert filled.cat("renamed.txt") == b"top\n"
    assert not filled.exists("top.txt")


def test_mv_of_a_folder(cli, filled):
    assert cli("mv", "sov://cohortes/2026", "sov://cohortes/2027").code == 1
    assert cli("mv", "-r", "sov://cohortes/2026", "sov://cohortes/2027").code == 0
    assert filled.find("") == ["2027/notes/a.txt", "2027/person.csv", "top.txt"]
    assert not filled.exists("2026")


def test_mv_of_what_is_not_authentic_leaves_it(cli, filled, tmp_path):
    damage(at_host(tmp_path, filled, "top.txt"))
    ran = cli("mv", "sov://cohortes/top.txt", "sov://cohortes/x.txt")
    assert ran.transcript == (3, "", "sovstore: error: top.txt: chunk 0 failed authentication\n")
    assert filled.exists("top.txt")
    assert not filled.exists("x.txt")


def test_mv_to_another_store(cli, filled, tmp_path):
    make_store(tmp_path, "archive", kek=f"keyfile:{tmp_path / 'other.key'}")
    ran = cli("mv", "sov://cohortes/top.txt", "sov://archive/top.txt")
    assert ran.transcript == (
        2,
        "",
        (
            "sovstore: error: sov://cohortes/top.txt: is in another store than sov://archive/top.txt\n"
            "sovstore: hint: 'sovstore cp' copies between stores\n"
        ),
    )

"""`make audit`, the software bill of materials, what is pinned, what bandit is told to pass over, and SECURITY.md."""

from __future__ import annotations

import ensurepip
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.servers import loopback
from tests.servers.http_fake import Answer, Fault, running
from tests.servers.osv_fake import Advisory, OSVFake
from tests.servers.ports import LOOPBACK, free_ports
from tools import audit, sbom

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADVISORY = Advisory("PYSEC-2026-1", "idna", ("3.0", "3.1"), "3.7", aliases=("CVE-2026-0001",))


def make_audit(folder: Path, text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Audit one file of pins as `make audit` does."""
    file = folder / "pins.txt"
    file.write_text(text)
    command = [sys.executable, str(ROOT / "tools/audit.py"), str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture
def osv(tmp_path: Path) -> Iterator[OSVFake]:
    fake = OSVFake(ADVISORY, Advisory("GHSA-none-of-ours", "idna", ("3.20",), None))
    with running(fake, tmp_path, tls=False):
        yield fake


def ask(osv: OSVFake, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    return make_audit(folder, text, "--service", "osv", "--osv-url", osv.query_url)


def test_a_clean_set_passes(osv: OSVFake, tmp_path: Path) -> None:
    done = ask(osv, tmp_path, "# two\nSix==1.17.0\n\nidna==3.15\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "audited: 2 of 2 pins, by osv; known vulnerabilities: 0\n"
    assert sorted(osv.asked) == [("idna", "3.15"), ("six", "1.17.0")]


def test_a_known_vulnerability_fails_and_is_named(osv: OSVFake, tmp_path: Path) -> None:
    done = ask(osv, tmp_path, "six==1.17.0\nidna==3.1\n")
    assert done.returncode == 1
    assert done.stderr == "vulnerable: idna 3.1: PYSEC-2026-1, CVE-2026-0001, fixed in 3.7\n"
    assert done.stdout == "audited: 2 of 2 pins, by osv; known vulnerabilities: 1\n"


def test_one_without_a_fix_fails_too(osv: OSVFake, tmp_path: Path) -> None:
    done = ask(osv, tmp_path, "idna==3.20\n")
    assert done.returncode == 1
    assert done.stderr == "vulnerable: idna 3.20: GHSA-none-of-ours, fixed in no version\n"


def test_a_service_that_cannot_be_reached_is_no_pass(tmp_path: Path) -> None:
    url = f"http://{LOOPBACK}:{free_ports(1)[0]}/v1/query"
    done = make_audit(tmp_path, "six==1.17.0\nidna==3.20\n", "--service", "osv", "--osv-url", url)
    assert done.returncode == 1
    assert "not audited: none of the 2 pins of " in done.stderr
    assert "osv did not answer" in done.stderr
    assert "Connection refused" in done.stderr
    assert done.stdout == "audited: 0 of 2 pins, by osv; known vulnerabilities: 0\n"


def test_the_default_service_that_cannot_be_reached_is_no_pass(tmp_path: Path) -> None:
    done = make_audit(tmp_path, "six==1.17.0\n", HTTPS_PROXY=f"http://{LOOPBACK}:{free_ports(1)[0]}")
    assert done.returncode == 1
    assert "not audited: none of the 1 pins of " in done.stderr
    assert "pypi did not answer" in done.stderr


@pytest.mark.parametrize(
    "fault",
    [
        Fault(answer=Answer(503, {"code": 14, "message": "unavailable"})),
        Fault(answer=Answer(200, "<html>log in to the network</html>", "text/html")),
        Fault(answer=Answer(200, {"vulnerabilities": []})),
        Fault(half=True),
    ],
    ids=["503", "a portal", "another interface", "half"],
)
def test_an_answer_that_is_none_is_no_pass(fault: Fault, osv: OSVFake, tmp_path: Path) -> None:
    # For the second package: the first was answered for, and nothing of that may count as all.
    osv.faults.extend([Fault(), fault])
    done = ask(osv, tmp_path, "six==1.17.0\nidna==3.1\nattrs==26.1.0\n")
    assert done.returncode == 1
    assert "not audited: " in done.stderr
    assert "audited: 0 of 3 pins" in done.stdout


def test_a_service_that_hangs_is_no_pass(tmp_path: Path) -> None:
    with loopback.serve(lambda connection: server.wait(5)) as server:
        options = ("--service", "osv", "--osv-url", f"{server.url}/v1/query", "--timeout-s", "1")
        done = make_audit(tmp_path, "six==1.17.0\n", *options)
    assert done.returncode == 1
    assert "not audited: none of the 1 pins of " in done.stderr


def test_an_advisory_that_cannot_be_read_is_no_pass(tmp_path: Path) -> None:
    """pip-audit passes over those of a schema that it does not know."""
    fake = OSVFake(Advisory("X-1", "idna", ("3.1",), "3.7", schema_version="2.0.0"))
    with running(fake, tmp_path, tls=False):
        done = ask(fake, tmp_path, "idna==3.1\n")
    assert done.returncode == 1
    assert "Unsupported OSV schema version: 2.0.0" in done.stderr


def test_what_is_not_pinned_is_not_audited(osv: OSVFake, tmp_path: Path) -> None:
    done = ask(osv, tmp_path, "six==1.17.0\nidna>=3\n")
    assert done.returncode == 1
    assert f"not audited: {tmp_path / 'pins.txt'}: idna>=3: not pinned by ==\n" in done.stderr
    # pip-audit then audits nothing of the file.
    assert "not audited: none of the 1 pins of " in done.stderr
    for line in (
        "idna",
        "idna>=3",
        "idna==3.*",
        "idna==3.1 ; python_version < '3'",
        "-r other.txt",
        "https://e.org/a.whl",
    ):
        assert audit.pins(f"six==1.17.0\n{line}\n") == ({"six": "1.17.0"}, [line])


def test_an_empty_file_is_no_pass(osv: OSVFake, tmp_path: Path) -> None:
    assert ask(osv, tmp_path, "# nothing\n").returncode == 1


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "does not mention it"),
        ({"name": "idna", "skip_reason": "not found"}, "not found"),
        ({"name": "idna", "version": "3.2", "vulns": []}, "3.2 was audited instead"),
    ],
)
def test_a_package_that_pip_audit_leaves_out_is_not_audited(told: dict[str, Any] | None, said: str) -> None:
    assert said in str(audit._missing("idna", "3.1", told))
    assert audit._missing("idna", "3.1", {"name": "idna", "version": "3.1", "vulns": []}) is None


def test_make_audit_looks_at_everything_that_is_pinned() -> None:
    # Without what a `make` that runs this was told.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "ARGS"))}
    done = subprocess.run(["make", "-n", "audit"], cwd=ROOT, env=clean, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if "tools/audit.py" in line)
    wanted = ["constraints.txt", *(f"tests/servers/{name}/requirements.txt" for name in ("moto", "openbao", "pykmip"))]
    assert line.split()[2:] == wanted
    assert wanted[1:] == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/requirements.txt"))
    for file in wanted:
        found, others = audit.pins((ROOT / file).read_text())
        assert found, file
        assert not others, file


def test_the_environment_is_pinned() -> None:
    pinned, others = audit.pins((ROOT / "constraints.txt").read_text())
    assert others == []
    installed = {canonicalize_name(found.metadata["Name"]): found.version for found in distributions()}
    # What is tested, and what Python 3.11 puts into an environment that was made before `make` took it out again.
    ours = {"sovstore": PROJECT["version"], "setuptools": getattr(ensurepip, "_SETUPTOOLS_VERSION", "")}
    assert {name: at for name, at in installed.items() if pinned.get(name, ours.get(name)) != at} == {}
    # Besides it, only the build backend, which is installed apart.
    assert pinned.keys() - installed.keys() <= {"editables", "hatchling", "trove-classifiers"}


# The bill of materials


def make_sbom(file: Path, **environment: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools/sbom.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    described: dict[str, Any] = json.loads(file.read_text())
    return described


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    file = tmp_path_factory.mktemp("sbom") / "dist" / "sbom.cdx.json"
    return file, make_sbom(file, PYTHONHASHSEED="1")


def _declared() -> dict[str, str | None]:
    """Return each runtime dependency in pyproject.toml, and the first extra that brings it."""
    found = {canonicalize_name(Requirement(line).name): None for line in PROJECT["dependencies"]}
    for extra, lines in PROJECT["optional-dependencies"].items():
        if extra not in ("dev", "all"):
            for line in lines:
                found.setdefault(canonicalize_name(Requirement(line).name), extra)
    return found


def test_the_sbom_has_each_declared_dependency(materials: tuple[Path, dict[str, Any]]) -> None:
    listed = {canonicalize_name(each["name"]): each for each in materials[1]["components"]}
    declared = _declared()
    assert len(declared) >= 18
    for name, extra in declared.items():
        assert listed[name]["version"] == version(name)
        assert listed[name]["purl"] == f"pkg:pypi/{name}@{version(name)}"
        assert listed[name]["licenses"]
        # One that an extra names may be needed without it too.
        assert listed[name]["scope"] == "required" or extra


def test_the_sbom_has_what_these_need_and_nothing_of_development(materials: tuple[Path, dict[str, Any]]) -> None:
    described = materials[1]
    listed = {canonicalize_name(each["name"]): each for each in described["components"]}
    assert listed.keys() >= {"cffi", "aiobotocore", "botocore", "msal", "numpy", "jeepney", "h11"}
    only_dev = {"atheris", "bandit", "cyclonedx-bom", "hypothesis", "mypy", "pip-audit", "pytest", "ruff"}
    assert not listed.keys() & only_dev
    assert not listed.keys() & {"sovstore", "pip", "setuptools"}
    for each in listed.values():
        # partd has BSD-3-Clause in a file, and in no field that is read.
        assert each.get("licenses") or each["name"] == "partd", each["name"]
        name, _, at = each["purl"].removeprefix("pkg:pypi/").partition("@")
        assert (canonicalize_name(name), at) == (canonicalize_name(each["name"]), each["version"])
    refs = {each["bom-ref"] for each in listed.values()}
    edges = {each["ref"]: each["dependsOn"] for each in described["dependencies"]}
    assert edges.keys() == refs | {described["metadata"]["component"]["bom-ref"]}
    assert all(set(needs) <= refs for needs in edges.values())
    root = edges[described["metadata"]["component"]["bom-ref"]]
    assert {canonicalize_name(ref.partition("==")[0]) for ref in root} == _declared().keys()
    assert described["metadata"]["component"]["purl"] == f"pkg:pypi/sovstore@{PROJECT['version']}"


def test_the_sbom_is_valid_and_says_nothing_of_this_machine(materials: tuple[Path, dict[str, Any]]) -> None:
    text = materials[0].read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    # The validator notices something.
    broken = {**materials[1], "components": [{"name": "no type"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None
    assert not {"serialNumber"} & materials[1].keys()
    assert "timestamp" not in materials[1]["metadata"]
    for private in (str(ROOT), str(Path(sys.prefix).resolve()), "file://", str(Path.home())):
        assert private not in text


def test_the_sbom_is_the_same_each_time(materials: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    make_sbom(tmp_path / "again.json", PYTHONHASHSEED="2", TZ="Asia/Tokyo")
    assert (tmp_path / "again.json").read_bytes() == materials[0].read_bytes()


def test_a_dependency_that_is_not_installed_is_no_sbom() -> None:
    project = {**PROJECT, "optional-dependencies": {}}
    root = {"bom-ref": "root-component", "name": "sovstore"}
    with pytest.raises(LookupError, match=r"not installed: .*cffi, cryptography, fsspec"):
        sbom.shipped({"components": [], "metadata": {"component": root}}, project)


def test_git_ignores_the_sbom() -> None:
    subprocess.run(["git", "check-ignore", "-q", "dist/sbom.cdx.json"], cwd=ROOT, check=True)


# bandit

_AUDITED = [path for folder in ("src", "tools", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_line_that_bandit_passes_over_has_its_check_and_a_reason() -> None:
    found = [line for path in _AUDITED for line in path.read_text().splitlines() if "nosec" in line]
    assert len(found) >= 20
    for line in found:
        assert re.search(r"  # nosec B\d{3}  # \S+ \S+", line), line


def test_bandit_passes_over_no_check_and_no_folder() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bandit"]
    assert settings == {"assert_used": {"skips": ["*/sovstore/testing/*.py"]}}
    recipe = (ROOT / "Makefile").read_text()
    assert re.search(r"^AUDITED := src tools benchmarks$", recipe, re.MULTILINE)
    command = "$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(AUDITED)"
    assert command in recipe.partition("\nlint:")[2].partition("\n\n")[0]


@pytest.mark.parametrize(
    ("code", "check"),
    [
        ("import pickle\n", "B403"),
        ("import telnetlib\n", "B401"),
        ("x = 1  # \u202e\n", "B613"),
        ("eval(input())\n", "B307"),
        ("import random\nkey = random.random()\n", "B311"),
    ],
)
def test_bandit_finds(code: str, check: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(code)
    command = [BIN / "bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert check in done.stdout


# SECURITY.md


def _page() -> str:
    return (ROOT / "SECURITY.md").read_text()


def test_what_the_page_names_exists() -> None:
    page = _page()
    targets = set(re.findall(r"`make (\w+)", page))
    assert targets >= {"audit", "check"}
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= known
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if not link.startswith("https://")]
    files = [name for name in re.findall(r"`([\w./-]+)`", page) if "/" in name or name.endswith((".txt", ".md"))]
    assert len(links) >= 2
    assert len(files) >= 6
    for name in [*links, *files]:
        assert name.startswith("dist/") or (ROOT / name).exists(), name
    assert "dist/sbom.cdx.json" in (ROOT / "Makefile").read_text()


def test_the_page_sends_nobody_to_an_address_that_does_not_exist() -> None:
    page = _page()
    assert "Report a vulnerability" in page
    assert "no e-mail" in page.lower().replace("\n", " ")
    assert not re.search(r"[\w.]+@[\w.]+\.\w+", page)
    hosts = {"c2sp.org", "cryptography.io", "www.rfc-editor.org", "datatracker.ietf.org"}
    assert set(re.findall(r"https://([^/)]+)", page)) == hosts


def test_the_page_maps_to_the_threat_model() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/threat-model.md").read_text(), re.MULTILINE)
    quoted = re.findall(r'"(What [^"]+)"', _page())
    assert len(quoted) >= 2
    assert set(quoted) <= set(headings)


def test_the_page_names_the_constructions_of_the_format() -> None:
    page, spec = _page(), (ROOT / "docs/spec/format.md").read_text()
    for name in ("chunked-encryption", "draft-ietf-hpke-pq", "AES-256-GCM", "HKDF-SHA512", "Argon2id"):
        assert name in page, name
        assert name in spec, name
    for number in (5297, 5869, 9106, 9180):
        assert f"rfc{number}" in page


def test_the_page_is_in_the_source_distribution() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "SECURITY.md" in settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]

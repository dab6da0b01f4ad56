"""Every command, extra, setting, provider and error class is documented, and every snippet runs."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from datetime import date
from importlib import import_module
from pathlib import Path

import pytest

from sovstore import config, errors, policy
from sovstore.backends.providers import catalogue
from sovstore.kms import registry, settings
from tests import snippets
from tests.hosts import cheap_key_files_of_commands

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("page", "count"),
    [("README.md", 14), ("docs/configuration.md", 8), ("docs/migration.md", 11), ("docs/security-tests.md", 1)],
)
def test_snippets_run(
    page: str, count: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOVSTORE_PASSPHRASE", "of the documentation tests")
    cheap_key_files_of_commands(monkeypatch, tmp_path_factory.mktemp("cheap"))
    if page != "README.md":
        # The other pages go on where the README's first recipe ends.
        config.write_settings(
            tmp_path / "sovstore.toml",
            "cohortes",
            {"provider": "local", "root": "first-host", "kek": "keyfile:~/cohortes.key"},
        )
        subprocess.run(
            [Path(sys.executable).parent / "sovstore", "init", "cohortes"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    assert snippets.run(ROOT / page, tmp_path) == count


def test_the_two_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in ("demo", "test"):
        assert re.search(rf"^make {target}\b", readme, re.MULTILINE)
        # Without what a `make` that runs this was told.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "ARGS"))}
        subprocess.run(["make", "-n", target], cwd=ROOT, env=clean, check=True, capture_output=True)
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_every_error_class_is_documented() -> None:
    page = (ROOT / "docs/errors.md").read_text()
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.SovstoreError)]
    assert len(classes) == 20
    for cls in classes:
        if cls is not errors.SovstoreError:
            assert f"| `{cls.__name__}` |" in page, cls.__name__
            row = next(line for line in page.splitlines() if line.startswith(f"| `{cls.__name__}` |"))
            assert int(row.split("|")[3]) == cls.exit_code, cls.__name__


def test_every_setting_provider_and_extra_is_documented() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in (*config.SETTINGS, *catalogue(), *project["optional-dependencies"]):
        assert f"`{name}`" in page, name


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(pages) >= 9
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("kms/*.md")), ROOT / "docs/keys.md"], ids=lambda p: p.stem
)
def test_the_configurations_of_the_pages_on_keys_load(page: Path, tmp_path: Path) -> None:
    blocks = [text for language, text in snippets.snippets(page) if language == "toml"]
    assert blocks
    for text in blocks:
        file = tmp_path / "sovstore.toml"
        file.write_text(text)
        loaded = config.load(file)
        for described in loaded.stores.values():
            # What a page shows can be opened: its service is the one of its KEK, and the default policy allows it.
            assert settings.service_of(described.kek, described.services).name
            found = policy.evaluate(described, today=date(2026, 11, 25))
            assert [finding.message for finding in found if finding.action == "refuse"] == []


def test_every_setting_of_a_service_is_documented() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    for scheme, taken in settings.TAKES.items():
        assert f"{scheme}:" in page, scheme
        for name in taken:
            assert f"`{name}`" in page, name


def test_every_service_has_a_page_and_a_driver() -> None:
    pages = {page.stem for page in (ROOT / "docs/kms").glob("*.md")}
    assert pages >= {"openbao", "pkcs11", "kmip", "ovhcloud", "scaleway", "eviden"}
    for scheme, module in registry._DRIVERS.items():
        assert hasattr(import_module(module), "open_key"), scheme

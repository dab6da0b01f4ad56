"""fsspec's own conformance suite, unmodified, by subclassing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec.tests.abstract as abstract
import pytest

from tests import stress
from tests.hosts import cheap_key_files
from tests.stores import make_store, on_azure, on_s3, open_fs

#: Tests of the suite per filesystem in fsspec 2026.9: a smaller number would mean that some are not collected.
EXPECTED = 137
SUITES = (
    abstract.AbstractCopyTests,
    abstract.AbstractGetTests,
    abstract.AbstractPutTests,
    abstract.AbstractPipeTests,
    abstract.AbstractOpenTests,
)


class _Fixtures(abstract.AbstractFixtures):
    @staticmethod
    def place(request: pytest.FixtureRequest) -> dict[str, Any]:
        """Return the settings of the store, and with credentials the variables for the environment."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
        folder = tmp_path_factory.mktemp("abstract")
        with pytest.MonkeyPatch.context() as patch:
            cheap_key_files(patch)
            patch.setenv("XDG_STATE_HOME", str(folder))
            settings = cls.place(request)
            for name, value in settings.pop("environment", {}).items():
                patch.setenv(name, value)
            # Opened here, with its keys: the memory filesystem is emptied between tests, the keyset with it; and a
            # client keeps the credentials that it found when it connected.
            fs = open_fs(make_store(folder, **settings))
            fs.ls("")
        return fs

    @pytest.fixture
    def fs_path(self) -> str:
        return "inside"

    @pytest.fixture
    def fs_join(self) -> Any:
        return lambda *parts: "/".join(parts)


class MemoryFixtures(_Fixtures):
    @staticmethod
    def place(request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"provider": "memory"}


class LocalFixtures(_Fixtures):
    @staticmethod
    def place(request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"provider": "local"}


class CephFixtures(_Fixtures):
    @pytest.fixture(autouse=True)
    def _some_patterns(self, request: pytest.FixtureRequest) -> None:
        """Leave most of the patterns to the long form: they are 32 in each of three suites, and take most of the time.

        What they match is fsspec's and the store's to say, and is seen in memory and in a folder.
        """
        glob = "glob_edge_cases" in request.node.name
        if glob and not stress.is_long() and request.node.callspec.indices["path"] % 4 != 1:
            pytest.skip("left to `make stress`")

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @staticmethod
    def place(request: pytest.FixtureRequest) -> dict[str, Any]:
        return on_s3(request.getfixturevalue("s3_server"))


class AzuriteFixtures(_Fixtures):
    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @staticmethod
    def place(request: pytest.FixtureRequest) -> dict[str, Any]:
        return on_azure(request.getfixturevalue("azurite_server"))


KINDS = (MemoryFixtures, LocalFixtures, CephFixtures, AzuriteFixtures)
for _fixtures in KINDS:
    for _suite in SUITES:
        _name = f"Test{_fixtures.__name__.removesuffix('Fixtures')}{_suite.__name__.removeprefix('Abstract')}"
        _tests = type(_name, (_suite, _fixtures), {"__module__": __name__})
        # The filesystem is the same, and what is below it passes `BackendTests` on Azurite; this takes minutes there.
        if _fixtures is AzuriteFixtures:
            _tests = stress.long_only(_tests)
        globals()[_name] = pytest.mark.stress(_tests) if _fixtures is CephFixtures else _tests


def test_the_whole_suite_was_collected(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("keyword") or request.config.getoption("markexpr") or "::" in str(request.config.args):
        pytest.skip("a selection of the tests was asked for")
    here = Path(__file__).name
    for kind in (kind.__name__.removesuffix("Fixtures") for kind in KINDS):
        found = [i for i in request.session.items if here in i.nodeid and f"::Test{kind}" in i.nodeid]
        assert len(found) == EXPECTED, kind
    assert os.path.basename(__file__) == here

"""Importing costs little and pulls in no SDK; a missing extra says how to install it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

SDKS = ["adlfs", "aiobotocore", "aiohttp", "azure", "boto3", "botocore", "hvac", "keyring", "pandas", "pyarrow", "s3fs"]


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["sovstore", "sovstore.filesystem", "sovstore.cli"])
def test_no_sdk_is_imported(module: str) -> None:
    loaded = json.loads(_python(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"))
    assert [name for name in SDKS if name in loaded] == []


def test_import_takes_at_most_100_ms() -> None:
    code = "import time; a = time.perf_counter(); import sovstore; print(time.perf_counter() - a)"
    assert statistics.median(float(_python(code)) for _ in range(5)) <= 0.1


@pytest.mark.parametrize(
    ("provider", "transport", "module", "extra"),
    [
        ("s3", None, "s3fs", "s3"),
        ("azure", None, "azure.storage.blob", "azure"),
        ("s3", "obstore", "obstore", "fast"),
        ("azure", "obstore", "obstore", "fast"),
    ],
)
def test_a_missing_extra_says_how_to_install_it(provider: str, transport: str | None, module: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from sovstore.backends.base import Place
from sovstore.backends.providers import catalogue
from sovstore.backends.registry import open_backend
from sovstore.errors import MissingDependencyError
try:
    open_backend(Place(catalogue()[{provider!r}], "bucket/prefix", transport={transport!r}, region="r", account="a"))
except MissingDependencyError as exc:
    print(exc)
"""
    assert _python(code).strip().endswith(f"hint: pip install 'sovstore[{extra}]'")

#!/usr/bin/env python3
"""Ask an advisory service about every pinned package, and say of which it did not answer.

pip-audit alone counts a package that the service does not know, or that it cannot be asked about, as one without
known vulnerabilities; with --strict it stops at the first. Here each is named, and the end is never success.
"""

from __future__ import annotations

import json
import re
import subprocess  # nosec B404  # pip-audit has no interface but its command
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")


@dataclass(frozen=True)
class Answer:
    """What came of one file of pins.

    Parameters
    ----------
    pinned, audited : int
        Packages, and those that the service answered for.
    vulnerable, missing : tuple of str
        A line for each known vulnerability, and for each package that is not audited.
    """

    pinned: int
    audited: int
    vulnerable: tuple[str, ...]
    missing: tuple[str, ...]


def pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Return the pinned version of each package in a requirements file, and the lines that are no pin."""
    lines = [line.strip() for line in text.splitlines()]
    found: dict[str, str] = {}
    others: list[str] = []
    for line in lines:
        if pin := _PIN.fullmatch(line):
            found[canonicalize_name(pin[1])] = pin[2]
        elif line and not line.startswith("#"):
            others.append(line)
    return found, others


def audit(file: Path, options: Namespace) -> Answer:
    """Return what the service says of the packages that a file pins."""
    wanted, others = pins(file.read_text(encoding="utf-8"))
    loose = [f"{file}: {line}: not pinned by ==" for line in others]
    if not wanted:
        return Answer(0, 0, (), (*loose, f"{file}: pins nothing"))
    done = _run(file, options)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = f"{options.service} did not answer: {_last(done.stderr)}"
        return Answer(len(wanted), 0, (), (*loose, f"none of the {len(wanted)} pins of {file}: {why}"))
    known: dict[str, dict[str, Any]] = {canonicalize_name(each["name"]): each for each in told}
    missing = [line for name, version in wanted.items() if (line := _missing(name, version, known.get(name)))]
    vulnerable = [line for each in told for line in _vulnerabilities(each)]
    # An advisory that pip-audit cannot read, it passes over.
    unread = [f"{file}: {line}" for line in done.stderr.splitlines() if line.startswith("WARNING:pip_audit._service")]
    return Answer(len(wanted), len(wanted) - len(missing), tuple(vulnerable), (*loose, *missing, *unread))


def _run(file: Path, options: Namespace) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    # What is pinned is audited, and nothing is resolved or installed for it.
    command += ["--no-deps", "--disable-pip", "--requirement", str(file), "--vulnerability-service", options.service]
    if options.osv_url:
        command += ["--osv-url", options.osv_url]
    command += ["--timeout", str(options.timeout_s)]
    return subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # nosec B603  # no shell


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _missing(name: str, version: str, told: dict[str, Any] | None) -> str | None:
    if told is None:
        return f"{name} {version}: pip-audit does not mention it"
    if "skip_reason" in told:
        return f"{name} {version}: {told['skip_reason']}"
    same = Version(told["version"]) == Version(version)
    return None if same else f"{name} {version}: {told['version']} was audited instead"


def _vulnerabilities(told: dict[str, Any]) -> Iterator[str]:
    for found in told.get("vulns", ()):
        names = ", ".join([found["id"], *found.get("aliases", ())])
        fixed = ", ".join(found["fix_versions"]) or "no version"
        yield f"{told['name']} {told['version']}: {names}, fixed in {fixed}"


def main(arguments: list[str]) -> int:
    """Audit the files that are named, and return the exit code: 0 when all is audited and nothing known."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="requirements of the form NAME==VERSION")
    # PyPI says when it does not know a release; OSV's answer is the same as for one without vulnerabilities.
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="default: %(default)s")
    parser.add_argument("--osv-url", metavar="URL", help="another place of the OSV interface")
    parser.add_argument("--timeout-s", type=int, default=15, metavar="SECONDS", help="default: %(default)s")
    options = parser.parse_args(arguments)
    answers = [audit(file, options) for file in options.files]
    vulnerable = sorted({line for answer in answers for line in answer.vulnerable})
    missing = sorted({line for answer in answers for line in answer.missing})
    for what, lines in (("vulnerable", vulnerable), ("not audited", missing)):
        for line in lines:
            print(f"{what}: {line}", file=sys.stderr)
    pinned, audited = sum(answer.pinned for answer in answers), sum(answer.audited for answer in answers)
    print(f"audited: {audited} of {pinned} pins, by {options.service}; known vulnerabilities: {len(vulnerable)}")
    return 1 if vulnerable or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

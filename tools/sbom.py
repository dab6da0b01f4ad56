#!/usr/bin/env python3
"""Write the software bill of materials of the wheel, with every extra: CycloneDX JSON, the same bytes each time.

cyclonedx-py describes the whole environment; what only development needs is left out here. Which packages those are
is resolved from pyproject.toml for the Python and the machine that run this, with the versions that are installed.
"""

from __future__ import annotations

import json
import platform
import subprocess  # nosec B404  # cyclonedx-py is a command
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
#: Extras that are no part of what users install.
_NOT_SHIPPED = {"dev"}
#: A package and the extras of it that are wanted.
Wanted = tuple[str, frozenset[str]]


class Graph:
    """Which package needs which, by their normalised names."""

    def __init__(self) -> None:
        self.needs: dict[str, set[str]] = {}
        self._done: set[Wanted] = set()

    def add(self, requirement: Requirement) -> str:
        """Add what a requirement brings, and return the name of its package."""
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        edges = self.needs.setdefault(name, set())
        if (name, extras) not in self._done:
            self._done.add((name, extras))
            for line in requires(name) or ():
                inner = Requirement(line)
                if applies(inner, extras):
                    edges.add(self.add(inner))
        return name


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Return whether a requirement counts here, for a package that is wanted with some extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def resolve(project: dict[str, Any]) -> tuple[Graph, set[str], set[str]]:
    """Return the graph of what a project needs, the direct requirements, and all that is needed without an extra."""
    base, whole = Graph(), Graph()
    direct = {
        graph.add(r) for r in map(Requirement, project["dependencies"]) if applies(r, ()) for graph in (base, whole)
    }
    for extra, lines in project["optional-dependencies"].items():
        for requirement in map(Requirement, lines):
            # `all` names the other extras.
            if extra not in _NOT_SHIPPED and requirement.name != project["name"] and applies(requirement, ()):
                direct.add(whole.add(requirement))
    return whole, direct, set(base.needs)


def environment() -> dict[str, Any]:
    """Return what cyclonedx-py says of the environment that runs this."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    # Without times and serial numbers, which would differ each time. What is left of it is validated below.
    command += [
        "--mc-type",
        "library",
        "--output-reproducible",
        "--no-validate",
        "--spec-version",
        "1.6",
        sys.executable,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # nosec B603  # no shell
    if done.returncode != 0:
        raise RuntimeError(f"cyclonedx-py failed: {done.stderr}")
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def shipped(described: dict[str, Any], project: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of materials of an environment without what users do not install."""
    graph, direct, base = resolve(project)
    components: dict[str, Any] = {canonicalize_name(each["name"]): each for each in described["components"]}
    if absent := sorted(graph.needs.keys() - components.keys()):
        raise LookupError(f"not installed: {', '.join(absent)}")
    # Links to web pages say nothing that a scanner of vulnerabilities or licences reads, and the addresses alone take
    # the validator longer than everything else.
    bare = {name: {k: v for k, v in components[name].items() if k != "externalReferences"} for name in graph.needs}
    kept = [{**bare[name], "scope": "required" if name in base else "optional"} for name in sorted(bare)]
    refs = {name: each["bom-ref"] for name, each in bare.items()}
    root = described["metadata"]["component"]
    root = {**root, "purl": f"pkg:pypi/{project['name']}@{project['version']}"}
    resolved = (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    properties = [*described["metadata"].get("properties", []), {"name": "sovstore:resolved-for", "value": resolved}]
    edges = [(root["bom-ref"], direct), *((refs[name], graph.needs[name]) for name in sorted(graph.needs))]
    return {
        **described,
        "components": kept,
        "dependencies": [{"ref": ref, "dependsOn": sorted(refs[name] for name in names)} for ref, names in edges],
        "metadata": {**described["metadata"], "component": root, "properties": properties},
    }


def main(arguments: list[str]) -> int:
    """Write the file that is named."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="FILE")
    out: Path = parser.parse_args(arguments).out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    described = shipped(environment(), project)
    text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        print(f"sbom: not valid CycloneDX: {error}", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    generator = version("cyclonedx-bom")
    print(f"{out}: {len(described['components'])} packages, CycloneDX 1.6, by cyclonedx-py {generator}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

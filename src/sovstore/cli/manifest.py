"""``manifest``, and what ``verify --manifest`` does: what a listing alone cannot show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command
from sovstore.cli.arguments import JOBS, Jobs, argument, complete_stores
from sovstore.cli.output import Bar, count_text, describe, size_text, time_text
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import in_store, on_this_machine, parse
from sovstore.errors import IntegrityError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.format.manifest import ManifestEntry, ManifestHead
    from sovstore.manifests import Finding

#: What is said of a path that the host withholds or has otherwise.
_SAID = {
    "missing": "missing: the manifest has it, and the host does not",
    "replaced": "is not the version that the manifest has",
}


@command(
    app,
    "manifest",
    examples=[
        "manifest cohortes --out cohortes-2026-11.manifest",
        "verify cohortes --manifest cohortes-2026-11.manifest",
        "manifest sov://cohortes/2026 --out 2026.manifest --force",
    ],
)
def manifest(
    run: Run,
    what: Annotated[str, argument("STORE|URL", complete_stores)],
    *,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where the manifest goes, on this machine.")],
    force: Annotated[bool, typer.Option("--force", help="Put it in place of a FILE that is there.")] = False,
    jobs: Jobs = JOBS,
) -> int:
    """Record what a store holds now, as evidence for later.

    A host can leave objects out of a listing and put older versions back; what it serves is authentic all the
    same. A manifest tells: sovstore verify --manifest FILE finds what is missing, replaced or older. Make one when
    a delivery is complete, and keep it where the host cannot exchange it for an older one: with you.

    It holds path, size and version of every object: each is opened, none is read whole. The file is sealed by the
    keys of the store. It is complete or not there at all: one object that is not authentic, and there is no manifest.
    """
    file = on_this_machine(out).path
    target, store = in_store(what) if parse(what).store else in_store(f"sov://{what}/")
    fs = run.open(store)
    foreign: list[str] = []
    with run.out.progress("recorded") as bar:
        totals = run.wait(_write(fs, target.path, file, foreign, bar, jobs=jobs, replace=force))
    if run.out.as_json:
        found: dict[str, Any] = {"store": store, "below": target.path, "file": file}
        run.out.result({**found, "objects": totals.objects, "bytes": totals.size, "foreign": sorted(foreign)})
        return 0
    run.out.note(f"recorded {count_text(totals.objects)}, {size_text(totals.size)} in {file}")
    for path in sorted(foreign):
        run.out.line(f"{path}: foreign: a name that this store did not make; not in the manifest")
    return 0


async def _write(
    fs: SovFileSystem, path: str, file: str, foreign: list[str], bar: Bar, *, jobs: int, replace: bool
) -> Any:
    from sovstore import manifests

    async def counted() -> AsyncIterator[ManifestEntry]:
        async with aclosing(manifests.record(fs.store, path, jobs=jobs, foreign=foreign.append)) as entries:
            async for entry in entries:
                bar.advance(entry.size)
                bar.finish()
                yield entry

    return await manifests.write(fs.store, counted(), file, path=path, replace=replace)


@dataclass
class _Report(Outcome):
    """What a verification against a manifest found, as lists of paths."""

    missing: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """3 when anything is missing or replaced, too."""
        return 3 if self.missing or self.replaced else super().exit_code


def verify_against(run: Run, fs: SovFileSystem, path: str, file: str, jobs: int) -> int:
    """Read all objects of a folder, hold them against a manifest, print what was found, and return the exit code."""
    report = _Report()
    with run.out.progress("verified") as bar:
        head = run.wait(_check(run, fs, path, on_this_machine(file).path, report, bar, jobs))
    created = head.created.isoformat().replace("+00:00", "Z")
    if run.out.as_json:
        found = {"store": fs.store_name, "manifest": file, "created": created, "below": head.below}
        kinds = {kind: getattr(report, kind) for kind in ("failed", "missing", "replaced", "extra", "foreign")}
        run.out.result({**found, "objects": report.objects, "bytes": report.size, **kinds})
        return report.exit_code
    counted = f"{count_text(report.objects)}, {size_text(report.size)}"
    run.out.line(f"{counted}: authentic, and as in the manifest of {time_text(head.created)}")
    for text in _lines(report):
        run.out.line(text)
    return report.exit_code


def _lines(report: _Report) -> list[str]:
    return [
        *(f"{path}: foreign: a name that this store did not make" for path in report.foreign),
        *(f"{path}: extra: not in the manifest" for path in report.extra),
        *(f"{path}: MISSING" for path in report.missing),
        *(f"{path}: REPLACED OR OLDER" for path in report.replaced),
        *(f"{error['path']}: {_reason(error)} ({error['type']})" for error in report.failed),
    ]


def _reason(error: dict[str, Any]) -> str:
    return "NOT AUTHENTIC" if error["exit_code"] == 3 else "could not be read"


async def _check(
    run: Run, fs: SovFileSystem, path: str, file: str, report: _Report, bar: Bar, jobs: int
) -> ManifestHead:
    from sovstore import manifests

    loaded = await manifests.load(fs.store, file)
    async with aclosing(loaded.check(path, content=True, jobs=jobs, advance=bar.advance)) as findings:
        async for finding in findings:
            _note(run, report, finding)
            if finding.kind in ("same", "extra", "replaced"):
                bar.finish()
    return loaded.head


def _note(run: Run, report: _Report, finding: Finding) -> None:
    if finding.kind == "same":
        report.objects += 1
        report.size += finding.size
    elif finding.kind in _SAID:
        getattr(report, finding.kind).append(finding.path)
        run.out.failure(describe(IntegrityError(f"{finding.path}: {_SAID[finding.kind]}", path=finding.path)))
    elif finding.error is not None:
        run.fail(report, finding.path, finding.error)
    else:
        getattr(report, finding.kind).append(finding.path)

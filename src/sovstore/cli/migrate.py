"""``migrate``: all objects from one place to another."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import JOBS, Jobs, argument, complete_urls
from sovstore.cli.output import Bar, count_text, size_text
from sovstore.cli.run import Run

if TYPE_CHECKING:
    from sovstore.migration import Failure, Job, Plan, Report
    from sovstore.migration.ends import End
    from sovstore.store import Store

#: Seconds between two lines in a log, and between two events.
_LINE_S, _EVENT_S = 10.0, 1.0
#: Bytes per second for which the plan says how long it would take.
_ASSUMED = 100_000_000
#: Refused and foreign paths that the plan shows.
_SHOWN = 20
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?(?:/s)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    match = _RATE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        usage(f"--limit {text}: not a rate", "write 200MB/s, 1.5GB/s or 800kB/s: bytes, in decimal units")
    return float(match[1]) * _UNITS[match[2].upper()]


@command(
    app,
    "migrate",
    examples=[
        "migrate plain://warehouse/ sov://cohortes/ --dry-run",
        "migrate plain://warehouse/ sov://cohortes/ --verify --report report.html --manifest 2026.manifest",
        "migrate sov://cohortes/ sov://copy/ --no-keys",
        "migrate sov://cohortes/2026 /srv/way-out --verify",
        "migrate plain://warehouse/ sov://cohortes/ --dask tls://scheduler:8786",
    ],
)
def migrate(
    run: Run,
    source: Annotated[str, argument("SOURCE", complete_urls)],
    dest: Annotated[str, argument("DEST", complete_urls)],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and move nothing.")] = False,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="seal, reencrypt, copy or open, where more than one fits.")
    ] = None,
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Open no store: copy ciphertext as it is.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only paths that match; * also matches /.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Not paths that match.")] = None,
    only_newer: Annotated[
        bool, typer.Option("--only-newer", help="Leave what is as new at the destination already.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace objects there that this job did not write.")
    ] = False,
    delete_extra: Annotated[
        bool, typer.Option("--delete-extra", help="Then delete what only the destination has; asks before.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Then read every object at both ends, and compare.")] = False,
    limit: Annotated[str | None, typer.Option(metavar="RATE", help="At most this fast, such as 200MB/s.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Then write a manifest of the destination here.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report here, as JSON; a page if it ends with .html.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Journal of this job instead of one in the user's state folder.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Do the work in N processes of this machine.")
    ] = None,
    jobs: Jobs = JOBS,
) -> int:
    """Move all objects from one place to another: into a store, out of one, or from one to the next.

    SOURCE and DEST are sov://STORE/FOLDER, plain://LOCATION/FOLDER of a table [locations.LOCATION] of the
    configuration, a local folder, or a URL of another fsspec filesystem. The source stays as it is.

    Into a store, objects are sealed; from one store to another, opened and sealed anew; to the same store
    elsewhere (same store_id), copied as ciphertext; out of a store, opened: the host there can read them.

    Workers of a Dask cluster (--dask) find the configuration for themselves, and ask the KMS themselves.

    Killed at any moment, the same command goes on where it was. With --json, events are printed as JSON lines.
    """
    from sovstore.migration import Options, Workers, prepare

    options = Options(
        tuple(include or ()),
        tuple(exclude or ()),
        overwrite=overwrite,
        only_newer=only_newer,
        verify=verify,
        limit=_rate(limit),
        jobs=jobs,
    )
    for option, file in (("report", report), ("manifest", manifest)):
        if file is not None and not file.absolute().parent.is_dir():
            usage(f"--{option} {file}: no such folder", "make it first")
    if manifest is not None and manifest.exists():
        usage(f"--manifest {manifest}: is there already", "give another name, or move it away: it is evidence")

    spread = Workers.of(dask, workers, run.config_file)
    if delete_extra and not yes and not dry_run and not sys.stdin.isatty():
        usage("--delete-extra: nobody can be asked", "--yes says that what only the destination has may be deleted")

    def opened(end: End) -> Store:
        return run.open(end.config.name).store

    watcher = _Shown(run)
    job = prepare(
        source,
        dest,
        opened,
        config=run.config,
        mode=mode,
        no_keys=no_keys,
        options=options,
        journal=journal,
        watcher=watcher,
        workers=spread,
    )
    try:
        if manifest is not None:
            job.manifested()
        plan = run.wait(job.plan())
        _show_plan(run, plan, options.limit)
        if dry_run:
            return 0
        with run.out.progress("moved") as bar:
            watcher.bar = bar
            done = run.wait(job.run(plan))
        watcher.bar = None
        if delete_extra:
            done.deleted = _delete_extra(run, job, done, yes=yes)
        if manifest is not None:
            with run.out.progress("recorded") as bar:
                watcher.bar = bar
                run.wait(job.manifest(manifest.absolute(), done))
            watcher.bar = None
    finally:
        run.wait(job.close())
    if report is not None:
        _write(report, done)
    _show_report(run, done)
    return done.exit_code


def _delete_extra(run: Run, job: Job, done: Report, *, yes: bool) -> int:
    if done.failures.count:
        run.out.warn("nothing is deleted at the destination: not all objects were moved")
        return 0
    extra = run.wait(job.extra())
    if not extra:
        return 0
    for path in extra[:_SHOWN]:
        run.out.note(f"  {path}")
    if len(extra) > _SHOWN:
        run.out.note(f"  and {len(extra) - _SHOWN:,} more")
    if not yes:
        typer.confirm(f"Delete {count_text(len(extra))} at the destination?", abort=True, err=True)
    run.wait(job.delete(extra))
    return len(extra)


def _show_plan(run: Run, plan: Plan, limit: float | None) -> None:
    rest = plan.size - plan.done_size
    seconds = rest / (limit or _ASSUMED)
    if run.out.as_json:
        _event(
            "plan",
            mode=plan.mode,
            source=plan.source,
            destination=plan.dest,
            objects=plan.objects,
            bytes=plan.size,
            moved_before={"objects": plan.done, "bytes": plan.done_size},
            refused=[{"path": f.path, "message": f.message, "hint": f.hint} for f in plan.refused.first],
            refused_objects=plan.refused.count,
            foreign=plan.foreign,
            foreign_objects=plan.foreign_count,
            policy=[{"rule": f.rule, "action": f.action, "message": f.message} for f in plan.policy],
            journal=str(plan.journal),
        )
        return
    pace = "at the limit" if limit else f"at {size_text(_ASSUMED)}/s"
    rows = [
        ("mode", f"{plan.mode}: {plan.what}"),
        ("from", plan.source),
        ("to", plan.dest),
        ("objects", f"{plan.objects:,}, {size_text(plan.size)}"),
        ("moved before", f"{plan.done:,}, {size_text(plan.done_size)}" if plan.done else ""),
        ("to transfer", f"{size_text(rest)} in and {size_text(rest)} out; {_time_text(seconds)} {pace}"),
        ("journal", str(plan.journal)),
    ]
    for name, value in rows:
        if value:
            run.out.note(f"  {name:<12}  {value}")
    for finding in plan.policy:
        if finding.action != "ok":
            run.out.note(f"  policy        {finding.action}: {finding.message}")
    _show_some(run, [f"{f.message}" for f in plan.refused.first], plan.refused.count, "cannot be moved")
    _show_some(run, plan.foreign, plan.foreign_count, "left out: not of the store")


def _show_some(run: Run, lines: list[str], count: int, what: str) -> None:
    if not count:
        return
    run.out.note(f"  {what:<12}  {count_text(count)}")
    for line in lines[:_SHOWN]:
        run.out.note(f"    {line}")


def _time_text(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} days {clock}" if days else clock


def _show_report(run: Run, done: Report) -> None:
    if run.out.as_json:
        _event("report", **done.as_dict())
        return
    text = f"moved {count_text(done.moved)}, {size_text(done.moved_size)} in {_time_text(done.seconds)}"
    if done.moved and done.seconds:
        text += f" ({size_text(int(done.moved_size / done.seconds))}/s)"
    if done.at_host:
        text += f"; {done.at_host:,} of them copied at the host"
    if done.plan.done:
        text += f"; {done.plan.done:,} before"
    if done.left:
        text += f"; {done.left:,} left as new"
    if done.deleted:
        text += f"; {done.deleted:,} deleted"
    if done.failures.count:
        text += f"; {done.failures.count:,} failed"
    run.out.note(text)
    if done.manifest is not None:
        run.out.note(f"recorded in {done.manifest}: 'sovstore verify' finds by it what is missing or older")
    if done.verified_how is not None:
        run.out.note(f"verified {count_text(done.verified)}, {size_text(done.verified_size)}: {done.verified_how}")


def _write(file: Path, done: Report) -> None:
    from sovstore import beside
    from sovstore.migration.page import page

    text = page(done) if file.suffix in (".html", ".htm") else json.dumps(done.as_dict(), indent=2) + "\n"
    beside.replace(file.absolute(), text.encode(errors="backslashreplace"))


def _event(kind: str, **what: Any) -> None:
    sys.stdout.write(json.dumps({"event": kind, **what}) + "\n")
    sys.stdout.flush()


class _Shown:
    """Shows a migration: a bar on a terminal, lines in a log, events for scripts."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.bar: Bar | None = None
        self._phase, self._of, self._size = "listing", 0, 0
        self._done = self._bytes = self._failed = 0
        self._began = self._told = time.monotonic()

    def phase(self, name: str, objects: int | None = None, size: int | None = None) -> None:
        self._phase, self._of, self._size = name, objects or 0, size or 0
        self._done = self._bytes = 0
        self._began = self._told = time.monotonic()
        if self._run.out.as_json:
            _event("phase", phase=name, objects=objects, bytes=size)
        elif self.bar is not None and objects is not None:
            self.bar.restart(_PAST.get(name, name), objects, size)

    def advance(self, size: int) -> None:
        self._bytes += size
        if self.bar is not None:
            self.bar.advance(size)
        self._tell()

    def finished(self, path: str, what: str) -> None:  # noqa: ARG002  # as `Watcher`
        self._done += 1
        if self.bar is not None:
            self.bar.finish()
        self._tell()

    def failed(self, failure: Failure) -> None:
        self._failed += 1
        if self.bar is not None:
            self.bar.fail()
        error = {"type": failure.type, "message": failure.message, "path": failure.path, "hint": failure.hint}
        self._run.out.failure(error)

    def _tell(self) -> None:
        now = time.monotonic()
        out = self._run.out
        if now - self._told < (_EVENT_S if out.as_json else _LINE_S):
            return
        self._told = now
        pace = self._bytes / (now - self._began)
        if out.as_json:
            done = {"objects": self._done, "bytes": self._bytes, "failed": self._failed}
            _event("progress", phase=self._phase, **done, of={"objects": self._of, "bytes": self._size})
        elif not sys.stderr.isatty():
            left = f", {_time_text((self._size - self._bytes) / pace)} to go" if pace and self._size else ""
            out.note(
                f"{self._phase}: {self._done:,} of {count_text(self._of)}, {size_text(self._bytes)} of"
                f" {size_text(self._size)}, {size_text(int(pace))}/s{left}, {self._failed} failed"
            )


_PAST = {"moving": "moved", "verifying": "verified", "deleting": "deleted", "recording": "recorded"}

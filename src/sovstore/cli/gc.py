"""``gc``: what killed writes left behind."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import typer

from sovstore.cli.app import app, command, usage
from sovstore.cli.arguments import StoreName
from sovstore.cli.run import Run
from sovstore.cli.targets import store_name

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGE = re.compile(r"(\d{1,6})([smhd])")


@command(app, "gc", examples=["gc cohortes --dry-run", "gc cohortes", "gc cohortes --older-than 12h"])
def gc(
    run: Run,
    store: StoreName,
    *,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Leave younger ones alone: 30m, 12h, 7d.")
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and delete nothing.")] = False,
) -> None:
    """Delete what commands that were killed left at the host: unfinished uploads, temporary files, locks of the keyset.

    They are invisible and cost storage. A host cannot tell whether the writer of an upload is alive, so a write that
    is older than the limit is given up too. Folders of this machine tell; there the age does not count. Azure deletes
    unfinished blocks by itself, with the next write to the same path or a week after the last one. Locks count for
    nothing after five minutes, and are deleted after twenty, whatever AGE says. Needs no key.
    """
    from sovstore import keyset_lock
    from sovstore.backends.registry import open_backend

    described = run.config.store(store_name(store))
    age = _age(older_than)

    async def work() -> int:
        backend = open_backend(described.place)
        try:
            uploads = await backend.sweep(age, dry_run=dry_run)
            return uploads + await keyset_lock.sweep(backend, dry_run=dry_run)
        finally:
            await backend.close()

    swept = run.wait(work())
    if run.out.as_json:
        run.out.result({"store": described.name, "unfinished": swept, "deleted": 0 if dry_run else swept})
        return
    what = f"{swept:,} unfinished write{'' if swept == 1 else 's'}"
    run.out.line(f"would delete {what}" if dry_run else f"deleted {what}")


def _age(text: str) -> timedelta:
    parsed = _AGE.fullmatch(text)
    if parsed is None:
        usage(f"--older-than {text}: not an age", "write 30m, 12h or 7d")
    return timedelta(**{_UNITS[parsed[2]]: int(parsed[1])})

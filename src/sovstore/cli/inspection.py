"""``info`` and ``verify``: what the host sees, and whether all of it is authentic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sovstore.cli.app import app, command
from sovstore.cli.arguments import JOBS, Jobs, Url, argument, complete_stores
from sovstore.cli.output import Bar, count_text, describe, size_text, time_text
from sovstore.cli.run import Outcome, Run
from sovstore.cli.targets import expand, in_store, parse
from sovstore.cli.transfer import has_foreign_name
from sovstore.concurrency import for_each
from sovstore.errors import SovstoreError

if TYPE_CHECKING:
    from sovstore.filesystem import SovFileSystem
    from sovstore.format.keyset import Keyset
    from sovstore.store import Entry

#: Bytes of an object that ``info`` shows: the magic, the key id and the start of the wrapped DEK.
_SHOWN = 32
#: What a column of ``info`` holds, by the name of the field in JSON.
_LABELS = {
    "name": "name",
    "size": "bytes",
    "modified": "modified",
    "created": "created",
    "etag": "ETag",
    "first_bytes": "first bytes",
    "key_id": "key id",
    "epoch": "epoch",
    "state": "state of the epoch",
    "authentic": "authentic",
}
_PLAIN_VIEW = (
    "the host sees:",
    "  all names, the URIs of the keys that open it, sizes and times, and each access",
    "the host does not see:",
    "  content, keys",
)
_ENCRYPTED_VIEW = (
    "the host sees:",
    "  the URIs of the keys that open it, how many objects and folders there are, which is in which,",
    "  how long their names are (in steps of 16 bytes), their sizes and times, and each access",
    "the host does not see:",
    "  content, names, keys",
)


@command(
    app,
    "info",
    reading=True,
    examples=["info sov://cohortes/2026/person.parquet", "info sov://cohortes/", "info --json sov://cohortes/2026"],
)
def info(
    run: Run,
    url: Url,
) -> int:
    """Show what the host sees, beside what you see.

    Of an object, a folder or a whole store.

    An object is opened for it: its header, key and length are checked; its content is not (sovstore verify does).
    """
    target, store = in_store(url)
    fs = run.open(store)
    if not target.path:
        return _show_store(run, fs)
    shown = run.wait(_object(fs, target.path))
    if run.out.as_json:
        run.out.result(shown)
    else:
        rows = [(label, _cell(shown["host"].get(key)), _cell(shown["you"].get(key))) for key, label in _LABELS.items()]
        run.out.table(["", "the host sees", "you see"], [row for row in rows if row[1] or row[2]])
    if shown["error"] is not None:
        run.out.failure(shown["error"])
        return int(shown["error"]["exit_code"])
    return 0


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return time_text(value)
    return "" if value is None else str(value)


async def _object(fs: SovFileSystem, path: str) -> dict[str, Any]:
    """Return both views of an object or a folder, and why it is refused where it is."""
    entry = (await expand(fs, path))[0]
    host: dict[str, Any] = {
        "name": entry.name,
        "modified": entry.modified,
        "created": entry.created,
        "etag": entry.etag,
    }
    you: dict[str, Any] = {"name": entry.path}
    shown = {"url": f"sov://{fs.store_name}/{entry.path}", "type": "object", "host": host, "you": you, "error": None}
    if entry.folder:
        return {**shown, "type": "folder"}
    host["size"] = entry.wire_size
    host["first_bytes"] = (await fs.store.backend.read(entry.name, 0, _SHOWN)).hex(" ", -4)
    try:
        you |= await _opened(fs, entry)
    except SovstoreError as exc:
        you["authentic"] = False
        return {**shown, "error": describe(exc)}
    return shown


async def _opened(fs: SovFileSystem, entry: Entry) -> dict[str, Any]:
    from sovstore.format.header import header_key_id

    reader = await fs.store.reader(entry.path)
    keyset = await fs.store.keyset()
    key_id = header_key_id(reader.header, what=entry.path)
    number = next(n for n, epoch in enumerate(keyset.epochs, 1) if epoch.id == key_id)
    return {
        "size": reader.plain_size,
        "key_id": key_id.hex(),
        "epoch": f"{number} of {len(keyset.epochs)}",
        "state": keyset.epochs[number - 1].state,
        "authentic": True,
    }


def _show_store(run: Run, fs: SovFileSystem) -> int:
    config = fs.store.config
    keyset = run.wait(fs.store.keyset())
    shown = {
        "url": f"sov://{fs.store_name}/",
        "type": "store",
        "provider": config.provider,
        "root": config.root,
        "kek": config.kek,
        "names": keyset.names_mode,
        "store_id": keyset.store_id.hex(),
        "keyset_version": keyset.version,
        "epochs": [{"key_id": e.id.hex(), "state": e.state} for e in keyset.epochs],
    }
    if run.out.as_json:
        run.out.result(shown)
        return 0
    run.out.line(f"store {fs.store_name!r}")
    run.out.fields(
        [
            ("held by", f"{config.provider}, in {config.root}"),
            ("opened by", "a recovery key" if run.recovery_key else config.kek),
            ("store id", keyset.store_id.hex()),
            ("keyset", f"version {keyset.version}, {_epochs(keyset)}"),
            ("names", keyset.names_mode),
        ]
    )
    for line in _PLAIN_VIEW if keyset.names_mode == "plain" else _ENCRYPTED_VIEW:
        run.out.line(line)
    return 0


def _epochs(keyset: Keyset) -> str:
    return f"{count_text(len(keyset.epochs), 'epoch')}, primary {keyset.primary.id.hex()}"


@dataclass
class _Report(Outcome):
    """What a verification found; `foreign` are names that the store did not make."""

    foreign: list[str] = field(default_factory=list)


@command(
    app,
    "verify",
    reading=True,
    examples=[
        "verify cohortes",
        "verify cohortes --manifest cohortes-2026-11.manifest",
        "verify sov://cohortes/2026 --jobs 16",
        "verify cohortes --json > report.json",
    ],
)
def verify(
    run: Run,
    what: Annotated[str, argument("STORE|URL", complete_stores)],
    *,
    manifest: Annotated[
        str | None, typer.Option("--manifest", metavar="FILE", help="Hold all of it against this manifest, too.")
    ] = None,
    jobs: Jobs = JOBS,
) -> int:
    """Read every object to its end and authenticate all of it.

    Exit code 3 when anything is not what was stored, 5 when something could not be read. By itself it finds objects
    that were altered, swapped, cut or replaced by others; not those that the host no longer lists, nor an older one
    put back. With --manifest, which sovstore manifest makes, it finds these too: MISSING, and REPLACED OR OLDER,
    which is what an object that you wrote again since then is as well. What was added since is extra, and no failure.
    """
    target, store = in_store(what) if parse(what).store else in_store(f"sov://{what}/")
    fs = run.open(store)
    if manifest is not None:
        # Not at the top: its own command stands behind this one in the list of commands.
        from sovstore.cli.manifest import verify_against

        return verify_against(run, fs, target.path, manifest, jobs)
    report = _Report()
    with run.out.progress("verified") as bar:
        run.wait(_verify(run, fs, target.path, report, jobs, bar))
    report.failed.sort(key=lambda error: str(error["path"]))
    if run.out.as_json:
        found = {"store": store, "objects": report.objects, "bytes": report.size}
        run.out.result({**found, "failed": report.failed, "foreign": sorted(report.foreign)})
        return report.exit_code
    run.out.line(f"{count_text(report.objects)}, {size_text(report.size)}: authentic")
    for path in sorted(report.foreign):
        run.out.line(f"{path}: foreign: a name that this store did not make")
    for error in report.failed:
        reason = "NOT AUTHENTIC" if error["exit_code"] == 3 else "could not be read"
        run.out.line(f"{error['path']}: {reason} ({error['type']})")
    return report.exit_code


async def _verify(run: Run, fs: SovFileSystem, path: str, report: _Report, jobs: int, bar: Bar) -> None:
    async def one(entry: Entry) -> None:
        if await has_foreign_name(fs, entry):
            report.foreign.append(entry.path)
            return
        size = 0
        try:
            reader = await fs.store.reader(entry.path)
            async for piece in reader.stream():
                size += len(piece)
                bar.advance(len(piece))
        except SovstoreError as exc:
            run.fail(report, entry.path, exc)
            return
        report.objects += 1
        report.size += size
        bar.finish()

    await for_each(_objects(fs, path), one, jobs)


async def _objects(fs: SovFileSystem, path: str) -> AsyncIterator[Entry]:
    for top in await expand(fs, path):
        if not top.folder:
            yield top
            continue
        async for entry in fs.store.list(top.path, recursive=True):
            if not entry.folder:
                yield entry

"""Runs a check: trials through the driver, measurements by raw requests, and the cleaning up after both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from secrets import token_hex

from sovstore.backends.base import Backend, Place
from sovstore.backends.probe import Probe
from sovstore.backends.registry import open_backend
from sovstore.check import trials, verdicts
from sovstore.check.report import Finding, Report
from sovstore.check.tls import check_tls
from sovstore.errors import SovstoreError

#: Below the root of the store; each check has a folder of its own in it.
SCRATCH = ".sovstore/check"
#: Looks at what is left, and the seconds between two of them: a request that was cancelled may still arrive.
_LOOKS, _PAUSE_S = 4, 0.3

_log = logging.getLogger(__name__)


async def check(place: Place, *, progress: Callable[[str], None] | None = None) -> Report:
    """Try what a store needs of its host, in a scratch folder below its root, and report.

    Moves up to 200 MB each way on hosts that are reached over a network. No key is needed, and nothing outside of the
    scratch folder is touched but one object beside the root, written to see whether that is allowed, and deleted.
    What it wrote is deleted, also when it fails or is cancelled; a finding, or a warning in the log, says if it could
    not be.

    Parameters
    ----------
    place : Place
        Where the store lies, or shall lie.
    progress : callable, optional
        Called with the name of each step before it begins.

    Raises
    ------
    ConfigError, MissingDependencyError
        When the driver cannot be made. What the host does wrong is a finding.
    """
    scratch = f"{SCRATCH}/{token_hex(8)}"
    say = progress or (lambda _: None)
    # The driver's own transport: conditions are the host's, and what is left is found without names being refused.
    whole = open_backend(replace(place, transport=None))
    try:
        async with _cleaned(whole, place, scratch) as cleaning:
            findings, probe = await _checked(whole, place, scratch, say)
            cleaning.needed = findings[0].result == "ok"
        findings += cleaning.findings
    finally:
        with suppress(SovstoreError):
            await whole.close()
    endpoint = probe.endpoint or _endpoint(place)
    if endpoint:
        say("TLS")
        findings.insert(1, await check_tls(place, endpoint))
    return Report(place.provider.name, endpoint, findings, probe, verdicts.entry(place.provider, probe))


async def _checked(
    whole: Backend, place: Place, scratch: str, say: Callable[[str], None]
) -> tuple[list[Finding], Probe]:
    backend = open_backend(_scratch_place(place, scratch))
    try:
        say("connection")
        findings = [await trials.tried("connection", trials.connection, backend)]
        if findings[0].result == "failed":
            return findings, Probe()
        for name, trial in trials.TRIALS.items():
            say(name)
            findings.append(await trials.tried(name, trial, backend))
        findings += await _races(backend, say)
        kept = backend.conditions
    finally:
        with suppress(SovstoreError):
            await backend.close()
    say("conditions and permissions")
    # Emptied before: the probe ends with deleting the old versions of what is not there any more.
    await _emptied(whole, scratch)
    try:
        probe = await whole.probe(scratch)
    except SovstoreError as exc:
        return [*findings, replace(trials.failed("conditions", exc), result="unknown")], Probe()
    findings += verdicts.conditions(place.provider, probe, kept)
    findings += verdicts.abilities(place.provider, probe)
    return findings, probe


async def _races(backend: Backend, say: Callable[[str], None]) -> list[Finding]:
    found = []
    for name, (condition, trial) in trials.RACES.items():
        if condition in backend.conditions:
            say(name)
            found.append(await trials.tried(name, trial, backend))
    return found


def _scratch_place(place: Place, scratch: str) -> Place:
    # With parts of the usual size, so that an object of several is not a huge one.
    options = {key: value for key, value in place.options.items() if key != "part_size"}
    return replace(place, root=f"{place.root.rstrip('/')}/{scratch}", options=options)


def _endpoint(place: Place) -> str | None:
    given = place.options.get("client_kwargs")
    inner = given.get("endpoint_url") if isinstance(given, dict) else None
    found = place.endpoint or place.options.get("endpoint_url") or inner
    return str(found) if found else None


# Cleaning up


@dataclass
class _Cleaning:
    """What could not be cleaned up; not `needed` where nothing could be written."""

    needed: bool = True
    findings: list[Finding] = field(default_factory=list)


@asynccontextmanager
async def _cleaned(whole: Backend, place: Place, scratch: str) -> AsyncIterator[_Cleaning]:
    """Clean up after a block, however it ends."""
    cleaning = _Cleaning()
    try:
        yield cleaning
    except BaseException:
        if left := await _clean(whole, place, scratch, looks=_LOOKS, versions=True):
            _log.warning("%s/%s: could not be cleaned up: %s", place.root, scratch, left)
        raise
    left = await _clean(whole, place, scratch, looks=1)
    if left and cleaning.needed:
        cost = f"delete {place.root}/{scratch}/ and its unfinished uploads at the provider"
        cleaning.findings.append(Finding("clean-up", "failed", left, cost))


async def _clean(whole: Backend, place: Place, scratch: str, *, looks: int, versions: bool = False) -> str:
    """Delete all that lies in the scratch folder; return what kept it from that, or ''.

    With `versions` also what lay there, which the probe does at its end where it came so far.
    """
    try:
        for look in range(looks):
            if look:
                await asyncio.sleep(_PAUSE_S)
            await _emptied(whole, scratch)
            await _sweep(place, scratch)
        if versions:
            await _without_versions(whole, place, scratch)
        await _without_folders(whole, scratch)
        left = [found async for found in whole.list(scratch, recursive=True)]
        return f"{len(left)} objects are left" if left else ""
    except SovstoreError as exc:
        return exc.message


async def _emptied(whole: Backend, scratch: str) -> None:
    """Delete the objects of the scratch folder."""
    names = [found.name async for found in whole.list(scratch, recursive=True) if not found.folder]
    with suppress(SovstoreError):
        await whole.delete(names)


async def _without_versions(whole: Backend, place: Place, scratch: str) -> None:
    if place.provider.driver != "s3":
        return
    from sovstore.backends.s3 import S3Backend
    from sovstore.backends.s3_probe import purge_versions

    if isinstance(whole, S3Backend):
        # Not every host knows the question, and one that keeps no versions has none to delete.
        with suppress(SovstoreError):
            await whole.on_loop(purge_versions(whole, scratch))


async def _sweep(place: Place, scratch: str) -> None:
    backend = open_backend(replace(_scratch_place(place, scratch), transport=None))
    try:
        await backend.sweep(trials.ANY_AGE)
    finally:
        await backend.close()


async def _without_folders(whole: Backend, scratch: str) -> None:
    if not whole.real_folders:
        return
    folders = [found.name async for found in whole.list(scratch, recursive=True) if found.folder]
    # The deepest first and one by one: a driver may delete what it is given side by side.
    for name in sorted([*folders, scratch], key=lambda name: -name.count("/")):
        await whole.delete([f"{name}/"])
    with suppress(SovstoreError):
        # Another check, or the store, may be in there.
        await whole.delete([f"{SCRATCH}/"])
        await whole.delete([f"{SCRATCH.partition('/')[0]}/"])

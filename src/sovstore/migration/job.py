"""A whole migration: list, plan, move, verify, and say what became of it."""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import platformdirs

from sovstore import manifests, policy
from sovstore.errors import ConfigError, IntegrityError, ObjectNotFoundError, SovstoreError
from sovstore.format.manifest import ManifestEntry
from sovstore.format.names import RESERVED
from sovstore.migration import journal as states
from sovstore.migration.cluster import Cluster, Workers
from sovstore.migration.ends import COPY, OPEN, REENCRYPT, SEAL, Pair
from sovstore.migration.journal import Journal
from sovstore.migration.moving import How, Mover
from sovstore.migration.report import Chart, Plan, Report
from sovstore.migration.sides import Found, Sealed
from sovstore.migration.watching import Failure, Failures, Silent, Watcher
from sovstore.store import Store

#: Listings after which a source that keeps changing is left to the next run.
_LISTINGS = 3
#: Names that are noted in the journal at a time.
_BATCH = 1000
#: Foreign names that are kept for the report; the others are counted.
_MOST_FOREIGN = 10_000


@dataclass(frozen=True)
class Options:
    """How a migration is done.

    Parameters
    ----------
    include, exclude : tuple of str
        Patterns of paths below the source, as of a shell; ``*`` also matches ``/``. All without `include`.
    overwrite : bool
        Replace objects at the destination that this job did not write.
    only_newer : bool
        Leave objects at the destination that are as new as those at the source.
    verify : bool
        Read every object at both ends afterwards, and compare.
    limit : float or None
        Bytes per second.
    jobs : int
        Objects under way at a time.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overwrite: bool = False
    only_newer: bool = False
    verify: bool = False
    limit: float | None = None
    jobs: int = 8

    @property
    def how(self) -> How:
        """What of it a mover needs to know."""
        return How(self.jobs, overwrite=self.overwrite, only_newer=self.only_newer, limit=self.limit)

    def takes(self, path: str) -> bool:
        """Return whether a path is migrated."""
        if self.include and not any(fnmatch.fnmatchcase(path, pattern) for pattern in self.include):
            return False
        return not any(fnmatch.fnmatchcase(path, pattern) for pattern in self.exclude)


#: How each mode was verified.
_HOW = {
    SEAL: "each object was opened at the destination, authenticated, and compared with the source, byte by byte",
    REENCRYPT: "each object was opened and authenticated at both ends, and compared, byte by byte",
    COPY: "the ciphertext was compared, byte by byte; it was not authenticated",
    OPEN: "each object was opened at the source, authenticated, and compared with the destination, byte by byte",
}


class Job:
    """One migration. `plan` first, then `run`; `close` at the end.

    Parameters
    ----------
    pair : Pair
        The two ends, and how objects get from one to the other.
    options : Options
        How it is done.
    journal : Path, optional
        Its journal; one in the user's state folder by default, the same for the same ends and mode.
    watcher : Watcher
        Told of each step.
    workers : Workers, optional
        Processes that do the work; this one by default.
    """

    def __init__(
        self,
        pair: Pair,
        options: Options,
        *,
        journal: Path | None = None,
        watcher: Watcher | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._pair, self._source, self._dest, self._named = pair, pair.source, pair.dest, pair.named
        self.mode, self.options = pair.mode, options
        self._watcher = Chart(watcher or Silent())
        self._workers = workers
        self._journal = Journal(journal or default_journal(pair.identity), pair.identity)
        self._refused = Failures()
        self._foreign: list[str] = []
        self._foreign_count = 0

    async def close(self) -> None:
        """Let others have the journal, and close what the two ends hold. May be called twice."""
        self._journal.close()
        await self._source.close()
        await self._dest.close()

    async def plan(self) -> Plan:
        """List the source, note it, and return what is to be done.

        Raises
        ------
        SovstoreError
            When the source cannot be listed, or either end is not what it is taken for.
        """
        await self._source.check()
        await self._dest.check()
        await self._list()
        totals = self._journal.totals()
        if not (totals or self._refused.count or self._foreign_count):
            # Not "all is done": a path that is mistyped, or a disk that is not mounted, looks the same.
            hint = "check the path, and --include and --exclude; a folder is meant, not one object"
            raise ObjectNotFoundError(
                f"{self._source.url}: nothing is there to migrate", path=self._source.url, hint=hint
            )
        done, done_size = totals.get(states.DONE, (0, 0))
        return Plan(
            mode=self.mode,
            source=self._source.url,
            dest=self._dest.url,
            objects=sum(count for count, _ in totals.values()) + self._refused.count,
            size=sum(size for _, size in totals.values()),
            done=done,
            done_size=done_size,
            refused=self._refused,
            foreign=self._foreign,
            foreign_count=self._foreign_count,
            policy=self._policies(),
            journal=self._journal.file,
        )

    def _policies(self) -> list[policy.Finding]:
        today: date = datetime.now(UTC).date()
        stores = [end.config for end in self._pair.ends if end.sealed]
        return [finding for store in stores for finding in policy.evaluate(store, today=today)]

    async def _list(self, *, again: bool = False) -> None:
        self._watcher.phase("listing")
        self._journal.begin(again=again)
        self._refused, self._foreign, self._foreign_count = Failures(), [], 0
        batch: list[tuple[str, Found]] = []
        async for found in self._source.list():
            if not self.options.takes(found.path):
                continue
            if found.foreign is not None:
                self._foreign_count += 1
                if len(self._foreign) < _MOST_FOREIGN:
                    self._foreign.append(found.path)
                continue
            try:
                batch.append((await self._named.name(found.path), found))
            except ConfigError as exc:
                # A path that the format does not allow: no other one would be the same object.
                self._refused.add(Failure.of(found.path, exc))
                continue
            if len(batch) == _BATCH:
                self._journal.note(batch)
                batch.clear()
        self._journal.note(batch)

    async def run(self, plan: Plan) -> Report:
        """Do what the plan says, and return what became of it.

        Raises
        ------
        SovstoreError
            When nothing more can be moved: keys that may be used no longer, a full journal.
        """
        report = Report(plan)
        start = time.monotonic()
        self._watcher.start(report.samples)
        async with self._mover() as mover:
            report.failures = mover.failures
            for failure in plan.refused.first:
                self._watcher.failed(failure)
            self._watcher.phase("moving", plan.objects - plan.done, plan.size - plan.done_size)
            await mover.run()
            await self._again(mover)
            if self.options.verify:
                report.verified_how = _HOW[self.mode]
                totals, (count, size) = self._journal.totals(), self._journal.verified_totals()
                there, there_size = totals.get(states.DONE, (0, 0))
                self._watcher.phase("verifying", there - count, there_size - size)
                await mover.verify()
        mover.failures.count += plan.refused.count
        mover.failures.first[:0] = plan.refused.first
        report.moved, report.moved_size, report.left = mover.moved, mover.moved_size, mover.left
        report.at_host = mover.at_host
        report.verified, report.verified_size = self._journal.verified_totals()
        report.seconds = time.monotonic() - start
        self._watcher.stop()
        self._journal.end()
        return report

    @asynccontextmanager
    async def _mover(self) -> AsyncIterator[Mover | Cluster]:
        how = self.options.how
        if self._workers is None:
            yield Mover(self._pair, self._journal, self._watcher, how)
            return
        async with self._workers.open(self._pair, self._journal, self._watcher, how) as cluster:
            yield cluster

    async def _again(self, mover: Mover | Cluster) -> None:
        """Move what changed at the source while others were moved; report what keeps changing."""
        for _ in range(_LISTINGS - 1):
            await self._list(again=True)
            count, size = self._journal.totals().get(states.TODO, (0, 0))
            if not count:
                return
            self._watcher.phase("moving", count, size)
            await mover.run()

    async def manifest(self, file: Path, report: Report) -> None:
        """Write a manifest of the destination, each object of which is the one that this job wrote there.

        Objects that are missing by now, or are others, are failures, as is what keeps the manifest from being made.

        Raises
        ------
        ConfigError
            When the destination is no store, or no key is used.
        """
        store, folder = self.manifested()
        self._watcher.phase("recording", *self._journal.totals().get(states.DONE, (0, 0)))
        same = 0

        async def entries() -> AsyncIterator[ManifestEntry]:
            nonlocal same
            async with aclosing(manifests.record(store, folder, jobs=self.options.jobs)) as recorded:
                async for entry in recorded:
                    path = self._dest.below(entry.path)
                    expected = self._journal.version(await self._named.name(path))
                    if expected == entry.version:
                        same += 1
                    elif expected is not None:
                        error = IntegrityError(f"{path}: is not what this job wrote there", path=path)
                        self._fail(report, path, error)
                    self._watcher.finished(path, "recorded")
                    yield entry

        try:
            await manifests.write(store, entries(), file, path=folder)
        except SovstoreError as exc:
            self._fail(report, exc.path or str(file), exc)
            return
        report.manifest = file
        if same < self._journal.totals().get(states.DONE, (0, 0))[0]:
            await self._missing(report)

    def manifested(self) -> tuple[Store, str]:
        """Return the store and the folder that a manifest would be of.

        Raises
        ------
        ConfigError
            As `manifest`.
        """
        if isinstance(self._dest, Sealed):
            return self._dest.store, self._dest.folder
        hint = "'sovstore manifest STORE --out FILE' makes one of a store, with its keys"
        raise ConfigError(f"{self._dest.url}: no manifest of it without keys", path=self._dest.url, hint=hint)

    async def _missing(self, report: Report) -> None:
        for row in self._journal.rows(states.DONE):
            path = await self._named.path(row.name)
            if await self._dest.find(path) is None:
                error = ObjectNotFoundError(f"{path}: is not at the destination any more", path=path)
                self._fail(report, path, error)

    def _fail(self, report: Report, path: str, error: SovstoreError) -> None:
        failure = Failure.of(path, error)
        report.failures.add(failure)
        self._watcher.failed(failure)

    async def extra(self) -> list[str]:
        """Return what is at the destination and not at the source, of the paths that are taken."""
        found = []
        async for there in self._dest.list():
            own = self.mode == COPY and there.path.startswith(f"{RESERVED}/")
            if not own and there.foreign is None and self.options.takes(there.path) and not await self._knows(there):
                found.append(there.path)
        return sorted(found)

    async def _knows(self, there: Found) -> bool:
        try:
            return self._journal.knows(await self._named.name(there.path))
        except ConfigError:
            # A path that the source cannot have.
            return False

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete objects of the destination."""
        self._watcher.phase("deleting", len(paths))
        for path in paths:
            await self._dest.delete([path])
            self._watcher.finished(path, "deleted")


def default_journal(identity: str) -> Path:
    """Return where the journal of a job lies when nobody says."""
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return Path(platformdirs.user_state_path("sovstore")) / "migrations" / f"{digest}.sqlite"

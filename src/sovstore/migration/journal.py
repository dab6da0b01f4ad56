"""What a migration has done so far, in one SQLite file: after any kill, the same command goes on from it.

It holds what the host of the sealed side sees anyway, and nothing else: names as they are at that host, sizes, times
and marks of versions. No plaintext path, no key, no byte of data and no text of an error, which could quote a path.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from sovstore.errors import ConfigError, FormatError
from sovstore.migration.sides import Found

_FORMAT = "sovstore journal 1"
#: Rows that are read at a time while others are written.
_PAGE = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, etag TEXT, modified TEXT, state TEXT NOT NULL,
    version BLOB, previous BLOB, verified INTEGER NOT NULL DEFAULT 0, seen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (name TEXT PRIMARY KEY, mark TEXT NOT NULL, token TEXT NOT NULL) WITHOUT ROWID;
"""

#: States of an object: to be moved; about to become visible; there, whole; not there, with the reason in the report;
#: left as it is at the destination on purpose.
TODO, ENDING, DONE, FAILED, LEFT = "todo", "ending", "done", "failed", "left"


@dataclass(frozen=True)
class Row:
    """One object of a migration.

    Parameters
    ----------
    name : str
        As it is at the host of the sealed side.
    found : Found
        What the source said of it when it was listed; its path is left to the caller, ''.
    state : str
        One of those above.
    version, previous : bytes or None
        What tells the last two writes of this job to it from every other write.
    """

    name: str
    found: Found
    state: str
    version: bytes | None
    previous: bytes | None

    @property
    def written(self) -> bool:
        """Whether this job has written it, as far as it came."""
        return self.version is not None or self.previous is not None


class Noted(Protocol):
    """What a mover needs of a journal; `Journal` says what each call does."""

    def rows(self, *states: str, unverified: bool = False) -> Iterator[Row]:
        """Yield objects."""

    def begun(self, name: str, mark: str, token: str) -> None:
        """Note a write that can be gone on with."""

    def upload(self, name: str, mark: str) -> str | None:
        """Return what `begun` noted for this version."""

    def ending(self, name: str, version: bytes | None) -> None:
        """Note that an object is about to become visible."""

    def done(self, name: str, found: Found, version: bytes | None) -> None:
        """Note that an object is there."""

    def set(self, name: str, state: str) -> None:
        """Note another state."""

    def verified(self, name: str) -> None:
        """Note that an object is the same at both ends."""


class Journal:
    """The journal of one job. One process at a time; used from one thread.

    Parameters
    ----------
    file : Path
        Where it lies; made if it is not there.
    identity : str
        Of the job: both ends and the mode.

    Raises
    ------
    ConfigError
        When it is of another job, another process has it, or it cannot be read.
    """

    def __init__(self, file: Path, identity: str) -> None:
        self.file = file
        with self._mapped():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(file, isolation_level=None, timeout=0)
        try:
            with self._mapped():
                # Held until the process ends, however it ends.
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.execute("BEGIN EXCLUSIVE")
                for statement in _SCHEMA.split(";"):
                    self._database.execute(statement)
                known = dict(self._database.execute("SELECT name, value FROM job"))
                self._check(known, identity)
                if not known:
                    started = [("format", _FORMAT), ("identity", identity), ("runs", "0")]
                    self._database.executemany("INSERT INTO job VALUES (?, ?)", started)
                if known.get("ended"):
                    self._database.execute("UPDATE objects SET verified = 0")
                    self._database.execute("DELETE FROM job WHERE name = 'ended'")
                self._database.execute("COMMIT")
        except BaseException:
            self._database.close()
            raise
        self._run, self._again = int(known.get("runs", "0")), False

    def _check(self, known: dict[str, str], identity: str) -> None:
        if not known:
            return
        if known.get("format") != _FORMAT:
            hint = "use the version of sovstore that began this migration"
            raise FormatError(f"{self.file}: not a journal of this version", path=str(self.file), hint=hint)
        if known.get("identity") != identity:
            hint = "the ends or the mode have changed; go on with those of before, or give another --journal"
            raise ConfigError(f"{self.file}: is the journal of another job", path=str(self.file), hint=hint)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorname.startswith("SQLITE_BUSY"):
                hint = "wait for it, or end it; one process at a time moves the objects of a job"
                raise ConfigError(f"{self.file}: another process has it", path=str(self.file), hint=hint) from exc
            hint = "check the folder, its rights and its room; what was moved is noted"
            raise ConfigError(f"{self.file}: cannot be written: {exc}", path=str(self.file), hint=hint) from exc
        except (sqlite3.DatabaseError, OSError) as exc:
            hint = "give another --journal; what is at the destination already is then found by --only-newer"
            raise FormatError(f"{self.file}: not a journal", path=str(self.file), hint=hint) from exc

    def close(self) -> None:
        """Let another process have it. May be called twice."""
        self._database.close()

    # Inventory

    def begin(self, *, again: bool = False) -> None:
        """Begin a new listing: objects that are not noted again were not in it.

        Parameters
        ----------
        again : bool
            Leave what failed, and what was left as it is, in this run: only what changed since is to be moved.
        """
        self._run += 1
        self._again = again
        with self._mapped():
            self._database.execute("UPDATE job SET value = ? WHERE name = 'runs'", (str(self._run),))

    def note(self, listed: Iterable[tuple[str, Found]]) -> None:
        """Note objects of the listing, by their names; one that changed since it was moved is to be moved again."""
        rows = [(name, f.size, f.etag, time_text(f.modified), TODO, self._run, not self._again) for name, f in listed]
        with self._mapped():
            self._database.execute("BEGIN")
            self._database.executemany(
                """
                INSERT INTO objects (name, size, etag, modified, state, seen) VALUES (?, ?, ?, ?, ?, ?)
                ON CONFLICT (name) DO UPDATE SET
                    state = CASE
                        WHEN objects.size IS excluded.size AND objects.etag IS excluded.etag
                            AND (objects.etag IS NOT NULL OR objects.modified IS excluded.modified)
                        THEN CASE WHEN ? AND objects.state IN ('failed', 'left') THEN 'todo' ELSE objects.state END
                        ELSE 'todo' END,
                    verified = objects.verified AND objects.size IS excluded.size AND objects.etag IS excluded.etag,
                    size = excluded.size, etag = excluded.etag, modified = excluded.modified,
                    seen = excluded.seen
                """,
                rows,
            )
            self._database.execute("COMMIT")

    def end(self) -> None:
        """Note that the run went through: the next one verifies everything again."""
        with self._mapped():
            self._database.execute("INSERT OR REPLACE INTO job VALUES ('ended', '1')")

    # Work

    def rows(self, *states: str, unverified: bool = False) -> Iterator[Row]:
        """Yield the objects of the last listing that are in one of some states, in the order of their names.

        States may change meanwhile.

        Parameters
        ----------
        unverified : bool
            Only those that were not verified.
        """
        last = ""
        while True:
            with self._mapped():
                page = self._database.execute(
                    "SELECT name, size, etag, modified, state, version, previous FROM objects"
                    " WHERE name > ? AND state IN (SELECT value FROM json_each(?)) AND seen = ?"
                    " AND NOT (? AND verified) ORDER BY name LIMIT ?",
                    (last, json.dumps(states), self._run, unverified, _PAGE),
                ).fetchall()
            for name, size, etag, modified, *rest in page:
                yield Row(name, Found("", size, etag, parsed_time(modified)), *rest)
            if len(page) < _PAGE:
                return
            last = page[-1][0]

    def begun(self, name: str, mark: str, token: str) -> None:
        """Note by what the host finds a write that can be gone on with, and of which version of the source it is."""
        with self._mapped():
            self._database.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (name, mark, token))

    def upload(self, name: str, mark: str) -> str | None:
        """Return by what the host finds a write that was begun of this version; None for none."""
        with self._mapped():
            query = "SELECT token FROM uploads WHERE name = ? AND mark = ?"
            row = self._database.execute(query, (name, mark)).fetchone()
            return row[0] if row else None

    def ending(self, name: str, version: bytes | None) -> None:
        """Note that an object is about to become visible, and what will tell it from every other write."""
        with self._mapped():
            # The write before the last counts as long as the last one may not have become visible.
            self._database.execute(
                "UPDATE objects SET previous = CASE WHEN state = 'ending' THEN previous ELSE version END,"
                " state = 'ending', version = ? WHERE name = ?",
                (version, name),
            )

    def done(self, name: str, found: Found, version: bytes | None) -> None:
        """Note that an object is there, whole, and which version of the source it is."""
        with self._mapped():
            self._database.execute(
                "UPDATE objects SET state = ?, version = ?, size = ?, etag = ?, modified = ?, verified = 0"
                " WHERE name = ?",
                (DONE, version, found.size, found.etag, time_text(found.modified), name),
            )
            self._database.execute("DELETE FROM uploads WHERE name = ?", (name,))

    def set(self, name: str, state: str) -> None:
        """Note another state of an object; what is known of its version stays."""
        with self._mapped():
            self._database.execute("UPDATE objects SET state = ? WHERE name = ?", (state, name))

    def verified(self, name: str) -> None:
        """Note that an object was read at both ends and is the same."""
        with self._mapped():
            self._database.execute("UPDATE objects SET verified = 1 WHERE name = ?", (name,))

    def knows(self, name: str) -> bool:
        """Return whether the last listing of the source had an object."""
        with self._mapped():
            query = "SELECT 1 FROM objects WHERE name = ? AND seen = ?"
            return self._database.execute(query, (name, self._run)).fetchone() is not None

    def version(self, name: str) -> bytes | None:
        """Return what tells what this job wrote from every other write; None where it wrote nothing."""
        with self._mapped():
            row = self._database.execute("SELECT version FROM objects WHERE name = ?", (name,)).fetchone()
            return row[0] if row else None

    def totals(self) -> dict[str, tuple[int, int]]:
        """Return the number of objects and their bytes, by state, of the last listing."""
        with self._mapped():
            query = "SELECT state, COUNT(*), SUM(size) FROM objects WHERE seen = ? GROUP BY state"
            return {state: (count, size) for state, count, size in self._database.execute(query, (self._run,))}

    def verified_totals(self) -> tuple[int, int]:
        """Return how many objects were verified, and their bytes."""
        with self._mapped():
            query = "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM objects WHERE verified AND seen = ?"
            count, size = self._database.execute(query, (self._run,)).fetchone()
            return count, size


def time_text(moment: datetime | None) -> str | None:
    """Return a time as it is noted."""
    return moment.isoformat() if moment else None


def parsed_time(text: str | None) -> datetime | None:
    """Return what `time_text` was given."""
    return datetime.fromisoformat(text) if text else None

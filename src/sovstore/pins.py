"""Which version of each object was seen last on this machine: what was replaced is refused (docs/adr/0010).

A host can serve any version that was ever at a path, and each is authentic there. The record tells an older one from
the newest one as far as this machine has seen both. It holds no path and no key, and lies in the user's state folder.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import platformdirs

from sovstore.errors import ConfigError, IntegrityError
from sovstore.format.keyset import Keyset

#: Bytes that are kept of the digest of a path and of a version.
_KEPT = 16
#: Seconds to wait for another process that writes.
_WAIT_S = 30
_NEWEST, _REPLACED = 1, 0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    path BLOB NOT NULL, tag BLOB NOT NULL, state INTEGER NOT NULL, moment INTEGER NOT NULL,
    PRIMARY KEY (path, tag)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (moment INTEGER NOT NULL);
INSERT INTO clock SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM clock);
"""


class Pins:
    """The record of one store. Usable from several threads and processes, and after a fork.

    A *moment* is a number that grows with each note. Every call that takes one wants the moment before the request to
    the host: what another thread or process noted since then is no replay, but a race.

    Parameters
    ----------
    keyset : Keyset
        Any version of the store's keyset; gives the key under which paths are kept.
    store : str
        Name of the store, for messages.
    """

    def __init__(self, keyset: Keyset, store: str) -> None:
        self._key = keyset.pin_key
        self._store = store
        self.file = Path(platformdirs.user_state_path("sovstore")) / "pins" / f"{keyset.store_id.hex()}.sqlite"
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()

    def now(self) -> int:
        """Return the moment.

        Raises
        ------
        ConfigError
            When the record cannot be used, as every call here.
        """
        with self._database() as database:
            return _moment(database)

    def check(self, path: str, version: bytes, since: int) -> None:
        """Refuse a version that was replaced before `since`; note it otherwise.

        Parameters
        ----------
        path : str
            Of the object.
        version : bytes
            The 56 bytes in front of its body, authenticated.
        since : int
            The moment before it was asked for.

        Raises
        ------
        IntegrityError
            When a newer version was seen here.
        """
        key, tag = self._digest(path), _tag(version)
        with self._transaction() as database:
            found = database.execute("SELECT state, moment FROM versions WHERE path = ? AND tag = ?", (key, tag))
            state, moment = found.fetchone() or (None, 0)
            if state == _REPLACED:
                if moment > since:
                    return
                hint = f"the host put it back; if you did, 'sovstore accept sov://{self._store}/{path}' takes it"
                raise IntegrityError(f"{path}: is older than a version that was seen here", path=path, hint=hint)
            if state is None and _changed(database, key, since):
                # It may be the one that was replaced in between, or the one that replaced it.
                return
            _replace(database, key, tag, since)
            if state is None:
                _note(database, key, tag)

    def wrote(self, path: str, version: bytes, since: int) -> None:
        """Note a version that this process wrote; those that were there at `since` are replaced by it."""
        key, tag = self._digest(path), _tag(version)
        with self._transaction() as database:
            _replace(database, key, tag, since)
            _note(database, key, tag)

    def deleted(self, paths: Iterable[str], since: int) -> None:
        """Note that what was at some paths at `since` is gone."""
        with self._transaction() as database:
            for path in paths:
                _replace(database, self._digest(path), b"", since)

    def accept(self, path: str, version: bytes) -> None:
        """Take a version for the newest one, whatever was seen before."""
        key, tag = self._digest(path), _tag(version)
        with self._transaction() as database:
            _replace(database, key, tag, _moment(database))
            _note(database, key, tag)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._pid == os.getpid():
                connection.close()

    def _digest(self, path: str) -> bytes:
        return hmac.digest(self._key.reveal(), path.encode(), "sha256")[:_KEPT]

    def __del__(self) -> None:
        """Close the file of a store that nobody closed."""
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._database() as database, database:
            database.execute("BEGIN IMMEDIATE")
            yield database

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._open()
        except (sqlite3.Error, OSError) as exc:
            hint = (
                "make room or correct its rights; if it is damaged, delete it: older versions seen are forgotten then"
            )
            message = f"{self.file}: the record of versions seen cannot be used: {exc}"
            raise ConfigError(message, path=str(self.file), hint=hint) from exc

    def _open(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            # SQLite forbids what was opened before a fork; it is not even closed here, which would drop its locks.
            _inherited.append(self._connection)
            self._connection, self._pid = None, os.getpid()
        if self._connection is None:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = sqlite3.connect(self.file, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                # A crash of the system may lose the last notes, not the file: as if they had not been seen.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


#: Connections of a parent process, kept from being finalised.
_inherited: list[sqlite3.Connection | None] = []


def _tag(version: bytes) -> bytes:
    return hashlib.sha256(version).digest()[:_KEPT]


def _moment(database: sqlite3.Connection) -> int:
    with closing(database.execute("SELECT moment FROM clock")) as cursor:
        return int(cursor.fetchone()[0])


def _next(database: sqlite3.Connection) -> int:
    database.execute("UPDATE clock SET moment = moment + 1")
    return _moment(database)


def _changed(database: sqlite3.Connection, key: bytes, since: int) -> bool:
    found = database.execute("SELECT 1 FROM versions WHERE path = ? AND moment > ?", (key, since))
    return found.fetchone() is not None


def _replace(database: sqlite3.Connection, key: bytes, tag: bytes, since: int) -> None:
    """Mark the newest versions that were noted up to `since`, but the one of `tag`, as replaced."""
    found = database.execute(
        "SELECT 1 FROM versions WHERE path = ? AND state = ? AND tag != ? AND moment <= ?", (key, _NEWEST, tag, since)
    )
    if found.fetchone() is not None:
        database.execute(
            "UPDATE versions SET state = ?, moment = ? WHERE path = ? AND state = ? AND tag != ? AND moment <= ?",
            (_REPLACED, _next(database), key, _NEWEST, tag, since),
        )


def _note(database: sqlite3.Connection, key: bytes, tag: bytes) -> None:
    database.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET state = excluded.state, moment = excluded.moment",
        (key, tag, _NEWEST, _next(database)),
    )

"""The metadata store in one SQLite file.

Two tables: `entities` (key → protobuf bytes) and `state` with one row, the metadata version. Write-ahead log with
synchronous=FULL: a commit returns once it is on disk. One transaction for each commit, which begins by
comparing the version.

The file says whose it is (`application_id`) and how it is laid out (`user_version`), so a file of another program, or of
a newer version of this one, is refused before anything is read from it, and a damaged one by SQLite's own check.

A failed commit may, after a crash that follows at once, be found in the write-ahead log nevertheless. That does no harm:
its content was published to no one, so it is as though it had been committed and the answers were lost.

It must then be as durable as any commit. Where the sync of the write-ahead log failed, the system took the pages for
clean: the next process would read that commit from the cache, add its own behind it, and lose them all where power fails
and the log ends at what never reached the disk. So the write-ahead log that a process finds (a few MB at most) is written
again and synced before it is opened. Within one process the next commit writes over the same place.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from fencepost_controller.store import CommitFailed, StoreError, VersionMismatch
from fencepost_proto.protocol.metadata import Changes, Entity, encoded, from_proto
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.runtime.fsync import redirty

APPLICATION_ID = 0x46504D44  # "FPMD"
SCHEMA_VERSION = 1
CACHED_STATEMENTS = 16


def connect(path: str) -> sqlite3.Connection:
    """Calls come from worker threads, one at a time, hence check_same_thread; transactions are begun by hand.

    Raises StoreError where the write-ahead log cannot be put on disk.
    """
    try:
        _sync_again(f"{path}-wal")
    except OSError as error:
        raise StoreError(f"metadata store {path!r}: {error}") from error
    return sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=1.0, cached_statements=CACHED_STATEMENTS
    )


def _sync_again(path: str) -> None:
    """Put all of the file on disk, as it is; no process has it open. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        redirty(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SqliteStore:
    """A `Store`. `connect` is the seam for the simulation, which passes a database in memory."""

    def __init__(self, path: str, connect: Callable[[str], sqlite3.Connection] = connect) -> None:
        """Opens or creates the file. Raises StoreError."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = connect(path)
            self._open(self._connection)
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"metadata store {path!r}: {error}") from error
        except StoreError:
            self.close()
            raise

    def load(self) -> tuple[int, Sequence[Entity]]:
        connection = self._opened()
        try:
            damage = [text for (text,) in connection.execute("PRAGMA quick_check(1)") if text != "ok"]
            if damage:
                raise StoreError(f"metadata store {self._path!r} is damaged: {damage[0]}")
            version = self._version(connection)
            rows = connection.execute("SELECT key, value FROM entities ORDER BY key").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"metadata store {self._path!r}: {error}") from error
        return version, [self._decoded(key, value) for key, value in rows]

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        connection = self._opened()
        puts = [(key, encoded(entity)) for key, entity in changes.items() if entity is not None]
        deletes = [(key,) for key, entity in changes.items() if entity is None]
        self._roll_back_what_is_left(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
            found = self._version(connection)
            if found != expected_version:
                raise VersionMismatch(f"metadata store {self._path!r} is at version {found}, not {expected_version}")
            connection.executemany("INSERT OR REPLACE INTO entities (key, value) VALUES (?, ?)", puts)
            connection.executemany("DELETE FROM entities WHERE key = ?", deletes)
            connection.execute("UPDATE state SET version = ?", (version,))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise CommitFailed(f"metadata store {self._path!r}: {error}") from error
        finally:
            self._roll_back_what_is_left(connection)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"metadata store {self._path!r} is closed")
        return self._connection

    def _open(self, connection: sqlite3.Connection) -> None:
        """Check whose file this is, before writing to it; make the tables where it is new."""
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        schema_version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application_id != APPLICATION_ID and (application_id or schema_version or tables):
            raise StoreError(f"{self._path!r} is a database of another program (application id {application_id:#x})")
        if schema_version > SCHEMA_VERSION:
            raise StoreError(
                f"metadata store {self._path!r} has schema version {schema_version}, "
                f"written by a newer version of this program, which knows {SCHEMA_VERSION}"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if schema_version == 0:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE entities (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            connection.execute("CREATE TABLE state (version INTEGER NOT NULL)")
            connection.execute("INSERT INTO state (version) VALUES (0)")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")

    def _version(self, connection: sqlite3.Connection) -> int:
        rows = connection.execute("SELECT version FROM state").fetchall()
        if len(rows) != 1:
            raise StoreError(f"metadata store {self._path!r} is damaged: {len(rows)} rows where one holds the version")
        return int(rows[0][0])

    def _decoded(self, key: str, value: bytes) -> Entity:
        try:
            entity = from_proto(common_pb2.Entity.FromString(value))
        except (DecodeError, ValueError, TypeError) as error:
            raise StoreError(f"metadata store {self._path!r}: {key!r} cannot be read: {error}") from error
        if entity.key != key:
            raise StoreError(f"metadata store {self._path!r} is damaged: {key!r} holds {entity.key!r}")
        return entity

    def _roll_back_what_is_left(self, connection: sqlite3.Connection) -> None:
        """A transaction still open after a commit is one that failed."""
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise CommitFailed(f"metadata store {self._path!r}: cannot roll back: {error}") from error

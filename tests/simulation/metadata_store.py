"""The controller's store in a simulated world: the production SQLite store over a database in memory.

The database belongs to the machine and outlives its processes; what is committed is durable. When a process dies, its
connection is rolled back and closed. Commits can be made to fail, before or (seldom) after they have been made.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.process import SimProcess

from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.metadata import Changes, Entity, MetadataImage

_names = itertools.count()


class MetadataDatabase:
    """One machine's database file."""

    def __init__(self, on_commit: Callable[[MetadataImage], None]) -> None:
        self.failing_commits = 0  # so many of the next commits fail
        self._uri = f"file:fencepost-simulation-{next(_names)}?mode=memory&cache=shared"
        self._keeper = sqlite3.connect(self._uri, uri=True)
        self._image = MetadataImage()
        self._on_commit = on_commit

    def open(self, process: SimProcess) -> MetadataStore:
        return MetadataStore(self, process)

    def committed(self, version: int, changes: Changes) -> None:
        self._image = self._image.with_changes(version, changes)
        self._on_commit(self._image)

    def connect(self, process: SimProcess) -> sqlite3.Connection:
        database = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                process.check_alive()
                if sql == "COMMIT" and database.failing_commits:
                    database.failing_commits -= 1
                    raise sqlite3.OperationalError("simulated: disk I/O error")
                return super().execute(sql, *parameters)

        connection = sqlite3.connect(
            self._uri, uri=True, isolation_level=None, check_same_thread=False, factory=Connection
        )

        def let_go() -> None:
            connection.rollback()
            connection.close()

        process.on_end.append(let_go)
        return connection

    def close(self) -> None:
        self._keeper.close()


class MetadataStore:
    """Implements fencepost_controller.store.Store: the production store, and the judge looking on."""

    def __init__(self, database: MetadataDatabase, process: SimProcess) -> None:
        self._database = database
        self._process = process
        self._store = SqliteStore("simulated", lambda _: database.connect(process))

    def load(self) -> tuple[int, Sequence[Entity]]:
        self._process.check_alive()
        return self._store.load()

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        self._process.check_alive()
        self._store.commit(expected_version, version, changes)
        self._database.committed(version, changes)

    def close(self) -> None:
        self._process.check_alive()
        self._store.close()

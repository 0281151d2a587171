"""The controller's store in a simulated world: the production SQLite store over a database in memory.

The database belongs to the machine and outlives its processes; what is committed is durable. When a process dies, its
connection is rolled back and closed. Commits can be made to fail, before or (seldom) after they have been made. And the
database can be put back from a copy: if a broker knows a version that the copy does not have, what is committed from then on
is not the cluster's metadata, until a recovery.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol.metadata import Changes, Entity, MetadataImage
from tests.simulation.process import SimProcess

_names = itertools.count()


@dataclass(frozen=True, slots=True)
class MetadataCopy:
    """A backup."""

    content: sqlite3.Connection
    image: MetadataImage
    is_foreign: bool  # of a store that had gone back itself, and was not recovered


class MetadataDatabase:
    """One machine's database file."""

    def __init__(
        self,
        on_commit: Callable[[MetadataImage], None],
        on_recovery: Callable[[MetadataImage], None] = lambda image: None,
        on_undone: Callable[[MetadataImage], None] = lambda image: None,
        on_unheard: Callable[[int], None] = lambda known_version: None,
    ) -> None:
        self.gone_back = False  # put back from a copy that lacks what a broker knows, and not recovered
        self.failing_commits = 0  # so many of the next commits fail
        self._uri = f"file:fencepost-simulation-{next(_names)}?mode=memory&cache=shared"
        self._keeper = sqlite3.connect(self._uri, uri=True)
        self._image = MetadataImage()
        self._on_commit = on_commit
        self._on_recovery = on_recovery
        self._on_undone = on_undone
        self._on_unheard = on_unheard

    def open(self, process: SimProcess, *, recovers: bool = False) -> MetadataStore:
        return MetadataStore(self, process, recovers)

    def committed(self, version: int, changes: Changes, *, recovers: bool) -> None:
        if recovers:
            kept = {key: entity for key, entity in changes.items() if entity is not None}
            self._image = MetadataImage().with_changes(version, kept)
            self.gone_back = False
            self._on_recovery(self._image)
        else:
            self._image = self._image.with_changes(version, changes)
            if not self.gone_back:
                self._on_commit(self._image)

    def back_up(self) -> MetadataCopy:
        content = sqlite3.connect(":memory:")
        self._keeper.backup(content)
        return MetadataCopy(content, self._image, self.gone_back)

    def put_back(self, copy: MetadataCopy, known_version: int) -> None:
        """No process has it open. `known_version`: the newest that any broker knows. If the copy has that one, the versions
        that are lost were never used, and the cluster's metadata is the copy's."""
        copy.content.backup(self._keeper)
        self._image = copy.image
        if copy.is_foreign or copy.image.version < known_version:
            self.gone_back = True
            self._on_unheard(known_version)
        elif not self.gone_back:
            self._on_undone(copy.image)

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

    def __init__(self, database: MetadataDatabase, process: SimProcess, recovers: bool) -> None:
        self._database = database
        self._recovers = recovers
        self._process = process
        self._store = SqliteStore("simulated", lambda _: database.connect(process))

    def load(self) -> tuple[int, Sequence[Entity]]:
        self._process.check_alive()
        return self._store.load()

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        self._process.check_alive()
        self._store.commit(expected_version, version, changes)
        self._database.committed(version, changes, recovers=self._recovers)

    def close(self) -> None:
        self._process.check_alive()
        self._store.close()

"""The SQLite store: one state at a time, whole after any crash, and refused where it is not what it should be."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fencepost_controller.store import CommitFailed, StoreError, VersionMismatch
from fencepost_controller.store.sqlite import SCHEMA_VERSION, SqliteStore
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    NamedProducer,
    NextProducerId,
    Partition,
    Topic,
    TopicConfig,
)

ONE_OF_EACH: list[Entity] = [
    BrokerRegistration(1, "host:1", 2, "life", fenced=True, shutting_down=True),
    ClusterIdentity("the-cluster"),
    NextProducerId(1_000),
    Partition("id", 3, (1, 2, 3), (2,), 2, 5, 9, adding=(3,), removing=(1,)),
    Partition("id", 4, (1, 2), (), -1, 5, 9, last_known_isr=(2, 1)),
    NamedProducer("loader/with/slashes", 7, 3, (5, 6), bumped_by_holder=True),
    Topic("id", "a", TopicConfig(2, -1, 10**15, 4096, 1000, flush_always=True)),
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "metadata.sqlite")


@pytest.fixture
def store(path: str) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


def by_key(*entities: Entity) -> dict[str, Entity | None]:
    return {entity.key: entity for entity in entities}


def test_what_was_committed_is_loaded_again_by_the_next_process(path: str, store: SqliteStore) -> None:
    assert store.load() == (0, [])
    store.commit(0, 3, by_key(*ONE_OF_EACH))
    store.close()
    again = SqliteStore(path)
    version, entities = again.load()
    assert version == 3
    assert list(entities) == sorted(ONE_OF_EACH, key=lambda entity: entity.key)
    again.close()


def test_a_commit_puts_and_deletes(store: SqliteStore) -> None:
    topic = Topic("id", "a")
    store.commit(0, 1, by_key(topic, ClusterIdentity("c")))
    store.commit(1, 2, {topic.key: None, "cluster": ClusterIdentity("d")})
    assert store.load() == (2, [ClusterIdentity("d")])


def test_a_store_that_somebody_else_wrote_to_is_not_overwritten(path: str, store: SqliteStore) -> None:
    other = SqliteStore(path)
    other.commit(0, 1, by_key(ClusterIdentity("theirs")))
    with pytest.raises(VersionMismatch, match="version 1, not 0"):
        store.commit(0, 1, by_key(ClusterIdentity("ours")))
    assert store.load() == (1, [ClusterIdentity("theirs")])
    store.commit(1, 2, by_key(ClusterIdentity("ours")))
    assert other.load() == (2, [ClusterIdentity("ours")])
    other.close()


def test_commits_are_durable_and_write_ahead(path: str, store: SqliteStore) -> None:
    connection = store._opened()
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_copy_of_the_files_at_any_moment_is_a_whole_commit(path: str, store: SqliteStore, tmp_path: Path) -> None:
    """What a crash leaves behind: the files as they are, nothing closed."""
    for version in range(1, 20):
        store.commit(version - 1, version, by_key(NextProducerId(version), ClusterIdentity(f"c{version}")))
        crashed = tmp_path / f"crash-{version}"
        crashed.mkdir()
        for file in tmp_path.glob("metadata.sqlite*"):
            shutil.copy(file, crashed / file.name)
        survivor = SqliteStore(str(crashed / "metadata.sqlite"))
        assert survivor.load() == (version, [ClusterIdentity(f"c{version}"), NextProducerId(version)])
        survivor.close()


def test_a_torn_write_ahead_log_is_an_earlier_commit_never_half_of_one(
    path: str, store: SqliteStore, tmp_path: Path
) -> None:
    for version in range(1, 6):
        store.commit(version - 1, version, by_key(NextProducerId(version), ClusterIdentity(f"c{version}")))
    wal = Path(f"{path}-wal").read_bytes()
    seen = set()
    for cut in range(0, len(wal), 997):
        crashed = tmp_path / f"cut-{cut}"
        crashed.mkdir()
        shutil.copy(path, crashed / "metadata.sqlite")
        (crashed / "metadata.sqlite-wal").write_bytes(wal[:cut])
        survivor = SqliteStore(str(crashed / "metadata.sqlite"))
        version, entities = survivor.load()
        expected = [ClusterIdentity(f"c{version}"), NextProducerId(version)] if version else []
        assert list(entities) == expected
        seen.add(version)
        survivor.close()
    assert {0, 5} & seen
    assert len(seen) > 3


def test_killed_in_the_middle_of_commits_it_holds_everything_that_was_answered(path: str) -> None:
    program = (
        "import sys\n"
        "from fencepost_controller.store.sqlite import SqliteStore\n"
        "from fencepost_proto.protocol.metadata import ClusterIdentity, NextProducerId\n"
        "store = SqliteStore(sys.argv[1])\n"
        "for version in range(1, 100_000):\n"
        "    changes = {'cluster': ClusterIdentity(f'c{version}'), 'next-producer-id': NextProducerId(version)}\n"
        "    store.commit(version - 1, version, changes)\n"
        "    print(version, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        process.kill()
        answered = [int(line) for line in process.stdout.read().splitlines() if line]
    survivor = SqliteStore(path)
    version, entities = survivor.load()
    survivor.close()
    assert version >= max([30, *answered])
    assert list(entities) == [ClusterIdentity(f"c{version}"), NextProducerId(version)]


class FullDisk(sqlite3.Connection):
    """Fails at the statement named by `fails_at`."""

    fails_at = ""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        if self.fails_at and sql.startswith(self.fails_at):
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, *parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("fails_at", ["BEGIN", "UPDATE", "COMMIT"])
def test_a_commit_that_fails_leaves_the_state_before_it_and_the_next_one_succeeds(path: str, fails_at: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None, factory=FullDisk)
    store = SqliteStore(path, lambda _: connection)
    store.commit(0, 1, by_key(ClusterIdentity("c")))
    connection.fails_at = fails_at
    with pytest.raises(CommitFailed, match=r"metadata\.sqlite.* disk is full"):
        store.commit(1, 2, by_key(ClusterIdentity("d")))
    connection.fails_at = ""
    assert store.load() == (1, [ClusterIdentity("c")])
    store.commit(1, 2, by_key(ClusterIdentity("e")))
    assert store.load() == (2, [ClusterIdentity("e")])
    store.close()


def test_a_commit_whose_sync_failed_is_durable_before_the_next_process_adds_its_own(
    path: str, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process reads it from the cache; the disk has the write-ahead log from before it, until it is written
    again. Then power fails."""

    def wal(folder: Path) -> Path:
        return folder / "metadata.sqlite-wal"

    cache, medium = tmp_path / "cache", tmp_path / "disk"
    cache.mkdir()
    medium.mkdir()
    store.commit(0, 1, by_key(NextProducerId(1_000)))
    synced = wal(tmp_path).stat().st_size
    store.commit(1, 2, by_key(NextProducerId(2_000)))  # its sync failed, and the process is killed
    shutil.copy(path, cache)
    shutil.copy(wal(tmp_path), cache)
    found = wal(cache).stat().st_size
    written: set[int] = set()  # bytes of the file that are to be synced
    saved: set[int] = set()  # … and have been

    def pwrite(descriptor: int, data: bytes, position: int, write=os.pwrite) -> int:  # type: ignore[no-untyped-def]
        written.update(range(position, position + len(data)))
        return int(write(descriptor, data, position))

    def fsync(descriptor: int) -> None:
        saved.update(written)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    again = SqliteStore(str(cache / "metadata.sqlite"))
    assert again.load() == (2, [NextProducerId(2_000)])
    again.commit(2, 3, by_key(NextProducerId(3_000)))

    shutil.copy(cache / "metadata.sqlite", medium)
    content = bytearray(wal(cache).read_bytes())
    assert len(content) > found > synced
    for position in range(synced, found):
        if position not in saved:
            content[position] = 0
    wal(medium).write_bytes(content)
    again.close()
    assert SqliteStore(str(medium / "metadata.sqlite")).load() == (3, [NextProducerId(3_000)])


def test_a_write_ahead_log_that_cannot_be_synced_is_not_opened(
    path: str, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(0, 1, by_key(NextProducerId(1_000)))

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match=r"metadata\.sqlite"):
        SqliteStore(path)


def test_a_really_full_disk_fails_the_commit(path: str, store: SqliteStore) -> None:
    store.commit(0, 1, by_key(ClusterIdentity("c")))
    connection = store._opened()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    too_much = by_key(*[Topic(f"id-{n}", "x" * 200) for n in range(500)])
    with pytest.raises(CommitFailed, match="full"):
        store.commit(1, 2, too_much)
    assert store.load() == (1, [ClusterIdentity("c")])
    store.commit(1, 2, by_key(ClusterIdentity("d")))
    assert store.load() == (2, [ClusterIdentity("d")])


def test_a_database_in_memory_will_do() -> None:
    store = SqliteStore(":memory:")
    store.commit(0, 1, by_key(*ONE_OF_EACH))
    assert store.load()[0] == 1
    store.close()


# ---- Files that cannot be used ----


def test_a_store_of_a_newer_version_is_refused(path: str, store: SqliteStore) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}.*newer"):
        SqliteStore(path)


def test_another_programs_database_is_refused_and_not_written_to(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = Path(path).read_bytes()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)
    assert Path(path).read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: str) -> None:
    Path(path).write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match=r"metadata\.sqlite.*not a database"):
        SqliteStore(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        SqliteStore(str(tmp_path / "nowhere" / "metadata.sqlite"))


def test_a_damaged_page_is_found_at_load(path: str, store: SqliteStore) -> None:
    store.commit(0, 1, by_key(*[Topic(f"id-{n}", f"topic-{n}") for n in range(2_000)]))
    store.close()
    content = bytearray(Path(path).read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 2000] = os.urandom(2000)
    Path(path).write_bytes(content)
    with pytest.raises(StoreError, match=r"metadata\.sqlite"):
        SqliteStore(path).load()


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("cluster", b"\xff\xff\xff", "'cluster' cannot be read"),
        ("cluster", b"", "'cluster' cannot be read"),
        ("brokers/9", b"\x0a\x03\x0a\x01c", "'brokers/9' holds 'cluster'"),
    ],
)
def test_an_entity_that_cannot_be_right_is_named(
    path: str, store: SqliteStore, key: str, value: bytes, names: str
) -> None:
    store._opened().execute("INSERT INTO entities VALUES (?, ?)", (key, value))
    with pytest.raises(StoreError, match=names):
        store.load()


def test_a_store_without_its_version_is_damaged(store: SqliteStore) -> None:
    store._opened().execute("DELETE FROM state")
    with pytest.raises(StoreError, match="0 rows"):
        store.load()

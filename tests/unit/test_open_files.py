"""The bounded number of open files: what stays open, what is closed for others, what readers keep."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from fencepost_node.log.disk import RealDisk
from fencepost_node.log.open_files import CLOSED, OpenFiles, PooledFile, open_files_for
from tests.unit.logs import content, fill, open_log, produce


def made(pool: OpenFiles, folder: Path, count: int, *, synced: bool = True) -> list[PooledFile]:
    """Files with their number as content."""
    files = []
    for number in range(count):
        file = PooledFile(pool, str(folder / f"{number}"), create=True)
        file.append(b"%d" % number)
        if synced:
            file.sync()
        files.append(file)
    return files


def test_files_beyond_the_budget_are_closed_and_opened_again_when_they_are_used(tmp_path: Path) -> None:
    pool = OpenFiles(budget=3, limit=10)
    files = made(pool, tmp_path, 8)
    assert pool.count == 3
    assert [file.read(0, 10) for file in files] == [b"%d" % number for number in range(8)]
    assert pool.count == 3
    assert [file.descriptor != CLOSED for file in files] == [False] * 5 + [True] * 3, "the last ones used stay open"
    files[0].append(b"!")
    files[0].sync()
    assert (files[0].read(0, 10), files[0].size) == (b"0!", 2)
    for file in files:
        file.close()
    assert pool.count == 0


def test_a_file_that_no_one_has_used_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    pool = OpenFiles(budget=3, limit=10)
    file = PooledFile(pool, str(tmp_path / "a"), create=False)
    assert (file.size, pool.count) == (7, 0)
    with pytest.raises(FileNotFoundError):
        PooledFile(pool, str(tmp_path / "b"), create=False)


def test_a_file_with_unsynced_data_stays_open_and_its_folder_is_named(tmp_path: Path) -> None:
    pool = OpenFiles(budget=2, limit=10)
    files = made(pool, tmp_path, 5, synced=False)
    assert pool.count == 5
    assert pool.crowding_folders() == [str(tmp_path)]
    for file in files[:3]:
        file.sync()
    files[4].read(0, 1)
    assert pool.count == 2
    assert pool.crowding_folders() == []


def test_beyond_the_limit_an_open_is_refused_and_the_process_keeps_descriptors(tmp_path: Path) -> None:
    pool = OpenFiles(budget=2, limit=4)
    files = made(pool, tmp_path, 4, synced=False)
    with pytest.raises(OSError, match="4 files are open") as refused:
        PooledFile(pool, str(tmp_path / "one-more"), create=True)
    assert refused.value.errno == errno.EMFILE
    files[0].sync()
    PooledFile(pool, str(tmp_path / "one-more"), create=True)


def test_a_held_file_is_read_though_it_was_removed_and_another_stands_in_its_place(tmp_path: Path) -> None:
    pool = OpenFiles(budget=1, limit=10)
    first, second = made(pool, tmp_path, 2)
    first.hold()
    (tmp_path / "0").rename(tmp_path / "0.deleted")
    (tmp_path / "0.deleted").unlink()
    (tmp_path / "0").write_bytes(b"another")
    second.read(0, 1)
    assert first.read(0, 10) == b"0"
    first.close()
    assert first.descriptor != CLOSED, "closed when its reader has gone"
    first.release()
    assert first.descriptor == CLOSED


def test_another_file_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    pool = OpenFiles(budget=1, limit=10)
    first, second = made(pool, tmp_path, 2)
    (tmp_path / "new").write_bytes(b"x")
    (tmp_path / "new").replace(tmp_path / "0")
    second.read(0, 1)
    with pytest.raises(OSError, match="another file stands in its place"):
        first.read(0, 1)


def test_threads_that_use_more_files_than_may_be_open_read_what_they_should(tmp_path: Path) -> None:
    pool = OpenFiles(budget=2, limit=40)
    files = made(pool, tmp_path, 12)
    wrong: list[object] = []

    def read(shift: int) -> None:
        for turn in range(600):
            number = (turn * 7 + shift) % 12
            if files[number].read(0, 10) != b"%d" % number:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files[0].read(0, 1)
    assert (wrong, pool.count) == ([], 2)


def test_a_log_of_many_segments_is_written_and_read_with_few_files(tmp_path: Path) -> None:
    disk = RealDisk(OpenFiles(budget=2, limit=12))
    log = open_log(disk, str(tmp_path / "orders-0"), segment_bytes=300)
    for _ in range(30):
        fill(log, 2)
        log.maintain()
    stored = content(log)
    assert len([name for name in os.listdir(log.directory) if name.endswith(".log")]) == 20
    assert disk.open_files.count <= 3, "the budget, and the segment that is written to"
    log.close(clean=True)
    again = open_log(disk, str(tmp_path / "orders-0"), segment_bytes=300)
    assert content(again) == stored
    produce(again)
    again.close(clean=False)
    assert disk.open_files.count == 0


@pytest.mark.parametrize("call", ["append", "overwrite"])
def test_a_sync_that_runs_beside_a_write_does_not_vouch_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It has begun before the bytes were there; what may be closed then must not have unsynced data."""
    pool = OpenFiles(budget=1, limit=10)
    (file,) = made(pool, tmp_path, 1)
    write = os.pwrite

    def overtaken(descriptor: int, data: bytes, position: int) -> int:
        file.sync()
        return write(descriptor, data, position)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", overtaken)
        file.append(b"!") if call == "append" else file.overwrite(0, b"!")
    other = PooledFile(pool, str(tmp_path / "other"), create=True)
    other.append(b"")
    assert file.unsynced
    assert file.descriptor != CLOSED
    file.sync()
    assert not file.unsynced


def test_an_idle_log_has_no_file_open(tmp_path: Path) -> None:
    disk = RealDisk(OpenFiles(budget=100, limit=200))
    log = open_log(disk, str(tmp_path / "orders-0"))
    fill(log)
    log.close(clean=True)
    again = [open_log(disk, str(tmp_path / "orders-0"))]
    for number in range(1, 20):
        again.append(open_log(disk, str(tmp_path / f"orders-{number}")))
    crowded = RealDisk(OpenFiles(budget=2, limit=200))
    for number in range(20, 60):
        again.append(open_log(crowded, str(tmp_path / f"orders-{number}")))
    assert crowded.open_files.count <= 2
    for log in again:
        log.close(clean=False)
    assert (disk.open_files.count, crowded.open_files.count) == (0, 0)


def test_more_open_files_than_the_system_allows_are_refused_by_value() -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with pytest.raises(ValueError, match=f"max_open_files = {allowed}: at most"):
        open_files_for(allowed)
    assert open_files_for(40).budget == 40
    assert 0 < open_files_for().budget < open_files_for().limit < allowed

"""The log in peace: appending, reading, rolling, snapshots, time, and what other readers make of its files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.record.memory_records import MemoryRecords

from fencepost_node.log.disk import RealDisk
from fencepost_node.log.log import Log
from fencepost_node.log.names import LOG_SUFFIX, SNAPSHOT_SUFFIX, offsets_with, read_identity
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.protocol.errors import (
    CorruptMessage,
    FencepostError,
    InvariantBroken,
    OffsetOutOfRange,
    StorageError,
)
from fencepost_proto.protocol.record_batch import BatchHeader, check_batch, iter_batches
from tests.unit.batches import batch, with_field
from tests.unit.logs import assert_lawful, content, fill, headers, open_log, produce


@pytest.fixture(autouse=True)
def _no_waiting_for_the_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    """What syncs are for is tested on a simulated disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)


@pytest.fixture
def disk() -> RealDisk:
    return RealDisk()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "orders-0")


@pytest.fixture
def log(disk: RealDisk, folder: str) -> Iterator[Log]:
    log = open_log(disk, folder)
    yield log
    log.close(clean=False)


def bases(disk: RealDisk, log: Log) -> list[int]:
    return offsets_with(disk.list(log.directory), LOG_SUFFIX)


def snapshots(disk: RealDisk, log: Log) -> list[int]:
    return offsets_with(disk.list(log.directory), SNAPSHOT_SUFFIX)


# ---- Appending ----


def test_a_new_log_is_empty_and_knows_its_topic(log: Log, disk: RealDisk) -> None:
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes, log.last_epoch) == (0, 0, 0, -1)
    assert not log.ever_held_records
    assert not log.maintenance_due
    assert log.read_batches(0, 100) == b""
    identity = read_identity(disk, log.directory)
    assert identity is not None
    assert identity.topic_id == "T"
    assert_lawful(log)


def test_a_folder_of_another_topic_is_refused(log: Log, disk: RealDisk) -> None:
    with pytest.raises(StorageError, match="belongs to topic id T, not other"):
        open_log(disk, log.directory, topic_id="other")


def test_a_leaders_append_stamps_offset_and_epoch_and_nothing_else(log: Log) -> None:
    data = batch(3, producer_id=7)
    stored = [produce(log, 7, 3, leader_epoch=4), produce(log, 7, 2, leader_epoch=6)]
    assert stored[0][16:] == data[16:]
    first, second = (check_batch(each) for each in stored)
    assert (first.base_offset, first.leader_epoch, second.base_offset, second.leader_epoch) == (0, 4, 3, 6)
    assert log.log_end_offset == 5
    assert log.read_batches(0, 10_000) == b"".join(stored)
    assert log.last_epoch == 6
    assert log.ever_held_records


def test_a_follower_stores_the_leaders_bytes(log: Log, disk: RealDisk, tmp_path: Path) -> None:
    fill(log, 40)
    follower = open_log(disk, str(tmp_path / "follower"))
    for at in range(0, log.log_end_offset, 1):
        if at == follower.log_end_offset:
            follower.append_as_follower(log.read_batches(at, 300))
    assert content(follower) == content(log)
    assert follower.states[PRODUCERS] == log.states[PRODUCERS]
    assert follower.leader_epochs == log.leader_epochs
    assert_lawful(follower)
    follower.close(clean=True)


def test_a_push_of_nothing_changes_nothing(log: Log) -> None:
    log.append_as_follower(b"")
    assert log.log_end_offset == 0


def test_a_damaged_push_is_refused_whole(log: Log) -> None:
    good, bad = batch(1, base_offset=0), bytearray(batch(1, base_offset=1))
    bad[-1] ^= 1
    with pytest.raises(CorruptMessage, match="CRC"):
        log.append_as_follower(good + bytes(bad))
    with pytest.raises(CorruptMessage):
        log.append_as_follower(good + good[:40])
    assert (log.log_end_offset, log.size_bytes) == (0, 0)


@pytest.mark.parametrize(
    "push",
    [
        batch(2, base_offset=3),
        batch(2, base_offset=1),
        batch(2, base_offset=2) + batch(1, base_offset=5),
        batch(1, base_offset=2, leader_epoch=3),
        batch(1, base_offset=2, leader_epoch=5) + batch(1, base_offset=3, leader_epoch=4),
        batch(1, base_offset=2, leader_epoch=7),
    ],
    ids=["gap", "overlap", "gap-inside", "older-epoch", "older-epoch-inside", "later-epoch"],
)
def test_a_push_whose_offsets_or_epochs_do_not_continue_the_log_is_damaged_and_changes_nothing(
    log: Log, disk: RealDisk, push: bytes
) -> None:
    """Both are outside the CRC of a batch."""
    produce(log, 1, 2, leader_epoch=4)
    before = content(log)
    with pytest.raises(CorruptMessage):
        log.append_as_follower(push, 6)
    assert content(log) == before
    assert log.log_end_offset == 2
    assert_lawful(log)


def test_a_push_whose_sequences_do_not_continue_the_log_breaks_an_invariant_and_changes_nothing(log: Log) -> None:
    produce(log, 1, 2, leader_epoch=4)
    before = content(log)
    with pytest.raises(InvariantBroken):
        log.append_as_follower(batch(1, base_offset=2, leader_epoch=4, producer_id=1, sequence=5))
    assert content(log) == before
    assert log.log_end_offset == 2
    assert_lawful(log)


def test_an_older_epoch_is_not_assigned(log: Log) -> None:
    produce(log, leader_epoch=5)
    log.assign_epoch(5)
    log.assign_epoch(9)
    assert log.last_epoch == 5  # an epoch begins with its first batch
    with pytest.raises(InvariantBroken, match="leader epoch 4"):
        log.assign_epoch(4)


# ---- Rolling ----


def test_a_full_segment_is_followed_by_one_named_by_its_base_offset(log: Log, disk: RealDisk) -> None:
    fill(log, 60)
    found = bases(disk, log)
    assert len(found) > 4
    for base in found:
        data = disk.read_bytes(f"{log.directory}/{base:020d}.log")
        assert len(data) <= 1_000
        assert check_batch(data).base_offset == base
    assert_lawful(log)


def test_a_batch_larger_than_a_segment_gets_one_of_its_own(log: Log, disk: RealDisk) -> None:
    produce(log)
    produce(log, value=b"x" * 5_000)
    produce(log)
    assert bases(disk, log) == [0, 1, 2]
    assert_lawful(log)


# ---- Reading ----


def test_a_read_begins_with_the_batch_that_holds_the_offset(log: Log) -> None:
    fill(log, 50)
    for header in headers(log):
        for offset in range(header.base_offset, header.end_offset):
            data = log.read_batches(offset, 1)
            assert check_batch(data) == header
            assert len(data) == header.size_bytes


@pytest.mark.parametrize("max_bytes", [0, 1, 90, 200, 450, 999, 100_000])
def test_a_read_returns_as_many_whole_batches_as_fit_below_the_end(log: Log, max_bytes: int) -> None:
    fill(log, 40)
    all_headers = headers(log)
    last_of_segment = {segment.end_offset for segment in log._row.all}
    for first in all_headers:
        for end_offset in {first.base_offset, first.end_offset, first.end_offset + 2, first.end_offset + 9, 10_000}:
            found = [header for _, header in iter_batches(log.read_batches(first.base_offset, max_bytes, end_offset))]
            expected: list[BatchHeader] = []
            room = max_bytes
            for header in all_headers:
                if header.base_offset < first.base_offset:
                    continue
                if header.end_offset > end_offset or (expected and header.size_bytes > room):
                    break
                expected.append(header)
                room -= header.size_bytes
                if header.end_offset in last_of_segment:
                    break
            assert found == expected


def test_a_read_at_the_end_is_empty_and_outside_of_the_log_refused(log: Log) -> None:
    fill(log, 3)
    assert log.read_batches(log.log_end_offset, 100) == b""
    assert log.read_batches(0, 100, 0) == b""
    for offset in (-1, log.log_end_offset + 1):
        with pytest.raises(OffsetOutOfRange, match=f"offset {offset} is outside"):
            log.read_batches(offset, 100)


def test_reads_in_threads_see_whole_batches_while_the_log_grows(log: Log) -> None:
    stop, failures = threading.Event(), []

    def read_on() -> None:
        offset = 0
        try:
            while not stop.is_set():
                data = log.read_batches(offset, 2_000)
                for _, header in iter_batches(data):
                    assert header.base_offset == offset
                    offset = header.end_offset
                log.maintain()
        except (AssertionError, FencepostError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    fill(log, 400)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_index_entry_that_points_nowhere_slows_a_read_but_does_not_spoil_it(disk: RealDisk, folder: str) -> None:
    log = open_log(disk, folder, segment_bytes=100_000)
    fill(log, 40)
    before = content(log)
    log.close(clean=True)
    index = Path(folder) / f"{0:020d}.index"
    data = bytearray(index.read_bytes())
    data[16 * 5 + 15] ^= 0x55  # the position of one entry in the middle
    index.write_bytes(bytes(data))
    log = open_log(disk, folder, segment_bytes=100_000)
    assert content(log) == before
    assert content(log, max_bytes=1_500) == before
    log.close(clean=False)


# ---- Time ----


def test_an_offset_is_found_by_time(log: Log) -> None:
    times = [10, 50, 30, 70, 60, 200, 90, 100, 210, 205, 300] * 3
    for number, timestamp_ms in enumerate(times):
        produce(log, 1, 2, timestamp_ms=timestamp_ms + 400 * (number // 11))
    stored = headers(log)
    for timestamp_ms in range(0, 1_200, 7):
        expected = next(((h.base_offset, h.max_timestamp) for h in stored if h.max_timestamp >= timestamp_ms), None)
        assert log.offset_for_timestamp(timestamp_ms) == expected


def test_time_is_found_after_a_restart_and_after_a_cut(disk: RealDisk, folder: str) -> None:
    log = open_log(disk, folder)
    for number in range(40):
        produce(log, timestamp_ms=1_000 + number)
    log.close(clean=True)
    log = open_log(disk, folder)
    assert log.offset_for_timestamp(1_017) == (17, 1_017)
    log.truncate_to(20)
    assert log.offset_for_timestamp(1_019) == (19, 1_019)
    assert log.offset_for_timestamp(1_020) is None
    log.close(clean=False)


# ---- Maintenance ----


def test_maintenance_is_due_after_the_snapshot_interval_and_done_once(log: Log, disk: RealDisk) -> None:
    while not log.maintenance_due:
        produce(log)
    assert 700 <= log.size_bytes < 900
    log.maintain()
    assert not log.maintenance_due
    assert snapshots(disk, log) == [log.log_end_offset]
    assert_lawful(log)


def test_a_snapshot_at_a_roll_holds_the_state_at_the_roll(log: Log, disk: RealDisk) -> None:
    fill(log, 60)
    assert log.maintenance_due
    log.maintain()
    assert set(bases(disk, log)[1:]) <= set(snapshots(disk, log))
    assert_lawful(log)


def test_snapshots_do_not_pile_up(log: Log, disk: RealDisk) -> None:
    for _ in range(100):
        fill(log, 3)
        log.maintain()
        assert len(snapshots(disk, log)) <= len(bases(disk, log)) + 2
    assert_lawful(log)


def test_a_sync_returns_the_end_that_is_on_the_medium(log: Log) -> None:
    assert log.sync() == 0
    fill(log, 20)
    assert log.sync() == log.log_end_offset


def test_a_clean_close_leaves_a_snapshot_at_the_end(disk: RealDisk, folder: str) -> None:
    log = open_log(disk, folder)
    fill(log, 25)
    before, state, end = content(log), log.states[PRODUCERS], log.log_end_offset
    log.close(clean=True)
    assert snapshots(disk, log)[-1] == end
    log = open_log(disk, folder)
    assert (content(log), log.states[PRODUCERS]) == (before, state)
    log.close(clean=False)


def test_a_closed_log_refuses_everything(log: Log) -> None:
    produce(log)
    log.close(clean=True)
    log.close(clean=True)
    for refused in (lambda: produce(log), lambda: log.read_batches(0, 100), log.sync, lambda: log.assign_epoch(1)):
        with pytest.raises(StorageError, match="is closed"):
            refused()


# ---- Others ----


def test_a_third_party_reader_parses_the_segment_files(log: Log, disk: RealDisk) -> None:
    for number in range(30):
        produce(log, 5, 2, value=f"value {number}".encode())
    offsets, values = [], []
    for base in bases(disk, log):
        records = MemoryRecords(disk.read_bytes(f"{log.directory}/{base:020d}.log"))
        while (parsed := records.next_batch()) is not None:
            assert parsed.validate_crc()
            assert (parsed.producer_id, parsed.producer_epoch) == (5, 0)
            for record in parsed:
                offsets.append(record.offset)
                values.append(record.value)
    assert offsets == list(range(60))
    assert values == [f"value {number // 2}".encode() for number in range(60)]


def test_a_batch_whose_count_spans_many_offsets_keeps_the_log_in_order(log: Log, disk: RealDisk) -> None:
    wide = with_field(with_field(batch(1), 23, ">i", 2**31 - 2), 57, ">i", 2**31 - 1)
    log.append_as_leader(check_batch(wide), wide, 0)
    produce(log)
    assert log.log_end_offset == 2**31
    assert check_batch(log.read_batches(2**31 - 2, 10)).base_offset == 0
    assert_lawful(log)

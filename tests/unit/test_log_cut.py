"""Truncation, reset and retention, and that the state goes with the batches."""

from __future__ import annotations

from typing import Any

import pytest

from fencepost_node.log.disk import Disk
from fencepost_node.log.log import CorruptLog, Log
from fencepost_node.log.names import LOG_SUFFIX, SNAPSHOT_SUFFIX, offsets_with
from fencepost_node.log.retention import SegmentFacts, segments_to_delete
from fencepost_node.producers.producer_state import Duplicate
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import CorruptMessage, DuplicateSequenceNumber, OffsetOutOfRange
from fencepost_proto.protocol.record_batch import iter_batches
from tests.unit.logs import (
    FOLDER,
    NOW_MS,
    Machine,
    assert_lawful,
    content,
    fill,
    headers,
    open_log,
    produce,
    producers_in,
    settings,
    snapshot_bytes,
)


def reopened(disk: Disk, log: Log, **changes: Any) -> Log:
    log.close(clean=False)
    return open_log(disk, **changes)


def offsets_of(disk: Disk, suffix: str) -> list[int]:
    return offsets_with(disk.list(FOLDER), suffix)


# ---- Truncation ----


@pytest.mark.parametrize("maintained", [True, False])
def test_a_truncation_to_any_offset_leaves_what_is_below_and_its_state(maintained: bool) -> None:
    machine = Machine()
    disk = machine.mount()
    log = open_log(disk)
    fill(log, 40)
    whole, end = headers(log), log.log_end_offset
    log.close(clean=False)
    for cut in range(0, end + 1):
        fresh = Machine()
        disk = fresh.mount()
        log = open_log(disk)
        fill(log, 40)
        if maintained:
            log.maintain()
        log.truncate_to(cut)
        expected = [header for header in whole if header.end_offset <= cut]
        assert headers(log) == expected
        assert log.log_end_offset == (expected[-1].end_offset if expected else 0)
        assert_lawful(log)
        before = content(log)
        if cut % 5 == 0:
            log = reopened(disk, log)
            assert content(log) == before
            assert_lawful(log)
            fill(log, 10, seed=cut)
            log.maintain()
            assert_lawful(log)


def test_many_truncations_and_appends_keep_every_law() -> None:
    disk = Machine().mount()
    log = open_log(disk)
    for step in range(60):
        fill(log, 7, seed=step)
        if step % 3 == 0:
            log.maintain()
        log.truncate_to(max(log.log_end_offset - step % 23, 0))
        produce(log, 1, leader_epoch=log.last_epoch + 1)
        if step % 7 == 0:
            log = reopened(disk, log)
        assert_lawful(log)


def test_a_truncated_batch_is_new_again_and_one_that_stays_is_a_duplicate() -> None:
    log = open_log(Machine().mount())
    for _ in range(8):
        produce(log, 1, 2)
    stays, goes = headers(log)[4], headers(log)[5]
    log.truncate_to(10)
    assert log.states[PRODUCERS].check(stays, ever_held_records=True) == Duplicate(8, 9)
    assert not isinstance(log.states[PRODUCERS].check(goes, ever_held_records=True), Duplicate)
    produce(log, 1, 2)
    with pytest.raises(DuplicateSequenceNumber):  # five batches are remembered, those at 2 to 11
        log.states[PRODUCERS].check(headers(log)[0], ever_held_records=True)


def test_a_truncation_to_the_end_or_beyond_changes_nothing() -> None:
    disk = Machine().mount()
    log = open_log(disk)
    fill(log, 10)
    before = content(log)
    log.truncate_to(log.log_end_offset)
    log.truncate_to(log.log_end_offset + 5)
    assert content(log) == before


def test_a_log_cut_to_its_start_knows_under_which_epoch_the_batch_before_it_was_written() -> None:
    disk = Machine().mount()
    log = open_log(disk, retention_bytes=0)
    for _ in range(40):
        produce(log, leader_epoch=4)
        if log.log_end_offset == log._row.active.base_offset + 1 > 10:
            break
    produce(log, leader_epoch=5)
    log.truncate_to(log._row.active.base_offset)
    produce(log, leader_epoch=5)
    log.apply_retention(NOW_MS, log.log_end_offset)
    assert log.log_start_offset == log.log_end_offset - 1
    for _ in range(2):
        log.truncate_to(log.log_start_offset)
        assert (log.size_bytes, log.last_epoch) == (0, 4)
        log = reopened(disk, log)


def test_a_truncation_below_the_log_start_is_refused() -> None:
    log = open_log(Machine().mount())
    log.reset_to(50, snapshot_bytes(50))
    fill(log, 3)
    with pytest.raises(OffsetOutOfRange, match="starts at 50: no cut at 49"):
        log.truncate_to(49)
    log.truncate_to(50)
    assert log.log_end_offset == 50


def test_epochs_are_cut_with_the_batches_and_derived_again_after_a_restart() -> None:
    disk = Machine().mount()
    log = open_log(disk)
    for epoch in (1, 1, 3, 3, 4):
        produce(log, leader_epoch=epoch)
    log.maintain()
    log.truncate_to(3)
    assert [tuple(entry) for entry in log.leader_epochs.entries] == [(1, 0), (3, 2)]
    produce(log, leader_epoch=7)
    log = reopened(disk, log)
    assert [tuple(entry) for entry in log.leader_epochs.entries] == [(1, 0), (3, 2), (7, 3)]
    assert log.leader_epochs.end_offset_for(4, log.log_end_offset) == (3, 3)


# ---- Reset ----


def test_a_reset_log_is_empty_and_has_the_leaders_state() -> None:
    leader_disk, disk = Machine().mount(), Machine().mount()
    leader, log = open_log(leader_disk), open_log(disk)
    fill(leader, 60)
    leader.maintain()
    leader.apply_retention(NOW_MS, leader.log_end_offset)
    leader.config = open_log(Machine().mount(), retention_bytes=1_200).config
    leader.apply_retention(NOW_MS, leader.log_end_offset)
    start = leader.log_start_offset
    assert start > 0
    fill(log, 70, seed=3)
    log.maintain()
    log.reset_to(start, leader.snapshot_at_base())
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes, log.last_epoch) == (
        start,
        start,
        0,
        leader.leader_epochs.epoch_before(start),
    )
    assert log.ever_held_records
    assert_lawful(log)
    for again in (False, True):
        if again:
            log = reopened(disk, log)
        log.append_as_follower(leader.read_batches(log.log_end_offset, 300))
    while log.log_end_offset < leader.log_end_offset:
        log.append_as_follower(leader.read_batches(log.log_end_offset, 300))
    assert content(log) == content(leader)
    assert log.states[PRODUCERS] == leader.states[PRODUCERS]
    assert_lawful(log)


def test_a_reset_with_what_is_no_snapshot_for_that_offset_changes_nothing() -> None:
    disk = Machine().mount()
    log = open_log(disk)
    fill(log, 10)
    before, names = content(log), disk.list(FOLDER)
    good = snapshot_bytes(20)
    for offset, data in ((21, good), (20, good[:-1]), (20, b""), (20, good[:-1] + b"\1")):
        with pytest.raises(CorruptMessage):
            log.reset_to(offset, data)
    assert (content(log), disk.list(FOLDER)) == (before, names)


def test_a_reset_to_where_a_segment_began_before_does_not_keep_that_segment() -> None:
    disk = Machine().mount()
    log = open_log(disk)
    fill(log, 40)
    base = offsets_of(disk, LOG_SUFFIX)[2]
    log.reset_to(base, snapshot_bytes(base))
    log = reopened(disk, log)
    assert (log.log_start_offset, log.log_end_offset) == (base, base)


# ---- Retention ----


def facts(*segments: tuple[int, int, int]) -> list[SegmentFacts]:
    return [SegmentFacts(*segment) for segment in segments]


FOUR = facts((10, 100, 1_000), (20, 100, 2_000), (30, 100, 3_000), (40, 50, 4_000))


@pytest.mark.parametrize(
    ("now_ms", "retention_ms", "retention_bytes", "high_watermark", "deleted"),
    [
        (9_000, -1, -1, 40, 0),
        (2_500, 1_000, -1, 40, 1),
        (3_000, 1_000, -1, 40, 1),
        (3_001, 1_000, -1, 40, 2),
        (99_000, 1_000, -1, 40, 3),
        (99_000, 1_000, -1, 25, 2),
        (99_000, 1_000, -1, 20, 2),
        (0, -1, 350, 40, 0),
        (0, -1, 250, 40, 1),
        (0, -1, 251, 40, 0),
        (0, -1, 0, 40, 3),
        (0, -1, 0, 9, 0),
    ],
)
def test_retention_deletes_the_oldest_segments_by_time_and_size_below_the_high_watermark(
    now_ms: int, retention_ms: int, retention_bytes: int, high_watermark: int, deleted: int
) -> None:
    assert segments_to_delete(FOUR, now_ms, retention_ms, retention_bytes, high_watermark) == deleted


def test_a_young_segment_protects_older_looking_ones_behind_it() -> None:
    mixed = facts((10, 100, 9_000), (20, 100, 1_000), (30, 100, 1_000))
    assert segments_to_delete(mixed, 9_500, 1_000, -1, 30) == 0


def test_retention_moves_the_start_to_a_segments_base_and_keeps_the_state() -> None:
    disk = Machine().mount()
    log = open_log(disk, retention_bytes=2_000)
    fill(log, 100)
    before, state, end = headers(log), log.states[PRODUCERS].copy(), log.log_end_offset
    log.apply_retention(NOW_MS, high_watermark=end)
    assert 0 < log.log_start_offset == offsets_of(disk, LOG_SUFFIX)[0]
    assert 2_000 <= log.size_bytes < 3_000
    assert headers(log) == [header for header in before if header.base_offset >= log.log_start_offset]
    assert log.states[PRODUCERS] == state
    assert_lawful(log)
    with pytest.raises(OffsetOutOfRange):
        log.read_batches(log.log_start_offset - 1, 100)
    assert all(offset >= log.log_start_offset for offset in offsets_of(disk, SNAPSHOT_SUFFIX))
    log = reopened(disk, log)
    assert log.states[PRODUCERS] == state
    assert_lawful(log)


def test_a_producer_whose_batches_retention_removed_is_known_from_the_snapshot_alone() -> None:
    disk = Machine().mount()
    log = open_log(disk, retention_bytes=0)
    for _ in range(7):
        produce(log, 42, 2)
    fill(log, 60)
    log.apply_retention(NOW_MS, log.log_end_offset)
    assert all(header.producer_id != 42 for header in headers(log))
    log = reopened(disk, log)
    entry = log.states[PRODUCERS].get(42)
    assert entry is not None
    assert [batch.first_sequence for batch in entry.batches] == [4, 6, 8, 10, 12]
    at_start = producers_in(log.snapshot_at_base())
    assert at_start.get(42) == entry


def test_retention_does_not_pass_the_high_watermark() -> None:
    disk = Machine().mount()
    log = open_log(disk, retention_bytes=0, retention_ms=1)
    fill(log, 60)
    bases = offsets_of(disk, LOG_SUFFIX)
    log.apply_retention(NOW_MS, high_watermark=bases[3] - 1)
    assert log.log_start_offset == bases[2]
    log.apply_retention(NOW_MS, high_watermark=bases[3])
    assert log.log_start_offset == bases[3]
    assert_lawful(log)


def test_an_idle_log_empties_by_time_and_remembers_its_epoch() -> None:
    disk = Machine().mount()
    log = open_log(disk, retention_ms=5_000)
    log.clock = lambda: 1_000
    for epoch in (3, 3, 8):
        produce(log, leader_epoch=epoch, timestamp_ms=1_000)
    end = log.log_end_offset
    log.apply_retention(6_000, end)
    assert log.log_start_offset == 0
    log.apply_retention(6_001, end)
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes, log.last_epoch) == (end, end, 0, 8)
    log.apply_retention(NOW_MS, end)
    assert len(offsets_of(disk, LOG_SUFFIX)) == 1
    assert_lawful(log)
    log = reopened(disk, log)
    assert (log.log_start_offset, log.log_end_offset, log.last_epoch) == (end, end, 8)
    produce(log)
    assert_lawful(log)


DAY_MS = 24 * 3600 * 1000
LATER_MS = NOW_MS + 100 * DAY_MS


@pytest.mark.parametrize(
    ("timestamp_ms", "appended_ms", "gone_at_ms"),
    [
        (NOW_MS, NOW_MS, NOW_MS + 1_001),
        (NOW_MS + 300, NOW_MS, NOW_MS + 1_301),  # the producer's clock is a little ahead
        (1_000, NOW_MS, NOW_MS + 1_001),  # a backfill
        (2**62, NOW_MS, NOW_MS + 1_001),  # the far future
        (NOW_MS + 5_000, NOW_MS, NOW_MS + 1_001),  # a future that has not come by then
        (NOW_MS, -1, NOW_MS + 1_001),
        (1_000, NOW_MS + DAY_MS, NOW_MS + DAY_MS + 1_001),
    ],
)
def test_retention_counts_from_the_newest_record_or_the_last_append_and_not_from_the_future(
    timestamp_ms: int, appended_ms: int, gone_at_ms: int
) -> None:
    segments = [SegmentFacts(10, 100, timestamp_ms, appended_ms), SegmentFacts(20, 100, LATER_MS, LATER_MS)]
    assert segments_to_delete(segments, gone_at_ms - 1, 1_000, -1, 20) == 0
    assert segments_to_delete(segments, gone_at_ms, 1_000, -1, 20) == 1
    assert segments_to_delete(segments, LATER_MS, 1_000, -1, 20) == 1


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.mark.parametrize("timestamp_ms", [1_000, 2**62], ids=["a backfill", "the far future"])
def test_a_segment_stays_for_its_time_whatever_its_timestamps_say_over_a_restart_too(timestamp_ms: int) -> None:
    machine, clock = Machine(), Clock()
    machine.disk.clock = clock
    disk = machine.mount()
    log = open_log(disk, retention_ms=5_000)
    log.clock = clock
    for _ in range(30):
        produce(log, timestamp_ms=timestamp_ms)
    end = log.log_end_offset
    clock.now_ms += 3_000
    produce(log)  # the last segment is younger
    log.apply_retention(clock.now_ms, end + 1)
    assert log.log_start_offset == 0
    log.close(clean=True)
    log = Log.open(disk, FOLDER, settings(retention_ms=5_000), clock.now_ms, STATE_MACHINES)
    log.clock = clock
    clock.now_ms += 1_999
    log.apply_retention(clock.now_ms, end + 1)
    assert log.log_start_offset == 0, "acknowledged five seconds ago, and gone already"
    clock.now_ms += 2
    log.apply_retention(clock.now_ms, end + 1)
    assert 0 < log.log_start_offset < log.log_end_offset
    assert_lawful(log)
    clock.now_ms += 5_000
    log.apply_retention(clock.now_ms, end + 1)
    assert log.log_start_offset == log.log_end_offset


def test_a_clock_that_was_ahead_keeps_segments_no_longer_than_retention_from_then_on() -> None:
    machine, clock = Machine(), Clock()
    machine.disk.clock = clock
    log = open_log(machine.mount(), retention_ms=5_000)
    log.clock = clock
    clock.now_ms = NOW_MS + 365 * DAY_MS
    produce(log)
    clock.now_ms = NOW_MS
    for _ in range(2):
        log.apply_retention(clock.now_ms, 1)
        assert log.log_start_offset == 0
        clock.now_ms += 2_500
    clock.now_ms += 1
    log.apply_retention(clock.now_ms, 1)
    assert log.log_start_offset == 1


def test_retention_waits_for_a_snapshot_that_can_be_read() -> None:
    machine = Machine()
    disk = machine.mount()
    log = open_log(disk, retention_bytes=0)
    fill(log, 60)
    log.maintain()
    bases = offsets_of(disk, LOG_SUFFIX)
    for base in bases[2:]:
        machine.disk.corrupt(f"{FOLDER}/{base:020d}.snapshot", 12)
    log.apply_retention(NOW_MS, log.log_end_offset)
    assert log.log_start_offset == bases[1]
    assert fold_is_live(log)


def fold_is_live(log: Log) -> bool:
    state = producers_in(log.snapshot_at_base())
    for _, header in iter_batches(content(log)):
        state.record(header, header.base_offset)
    return state == log.states[PRODUCERS]


def test_a_damaged_snapshot_at_the_log_start_is_an_error_for_who_asks_for_it() -> None:
    machine = Machine()
    disk = machine.mount()
    log = open_log(disk, retention_bytes=0)
    fill(log, 60)
    log.apply_retention(NOW_MS, log.log_end_offset)
    machine.disk.corrupt(f"{FOLDER}/{log.log_start_offset:020d}.snapshot", 12)
    with pytest.raises(CorruptLog, match="snapshot at the log's start"):
        log.snapshot_at_base()


def test_a_segment_that_is_being_read_is_closed_when_its_reader_has_gone() -> None:
    disk = Machine().mount()
    log = open_log(disk, retention_bytes=0)
    fill(log, 60)
    oldest = log._row.all[0]
    with log._row.pinned(oldest):
        log.apply_retention(NOW_MS, log.log_end_offset)
        assert oldest.retired
        assert oldest.file.read(0, 8) == bytes(8)
    with pytest.raises(OSError, match="closed"):
        oldest.file.read(0, 8)

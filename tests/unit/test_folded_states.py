"""A log with two state machines: both are the fold of its batches, whatever happens to it."""

from __future__ import annotations

import pytest

from fencepost_node.log.disk import Disk
from fencepost_node.log.log import CorruptLog, Log
from fencepost_node.log.snapshot import decode_snapshot
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.protocol.errors import CorruptMessage, InvariantBroken
from fencepost_proto.protocol.record_batch import check_produced
from tests.unit.batches import batch
from tests.unit.counted_batches import BATCHES_COUNTED, UNFOLDABLE_MS
from tests.unit.logs import FOLDER, NOW_MS, Machine, fill, headers, produce, producers_in, settings, snapshot_bytes

BOTH = (PRODUCERS, BATCHES_COUNTED)


def opened(disk: Disk, **changes: int) -> Log:
    return Log.open(disk, FOLDER, settings(**changes), NOW_MS, BOTH)


def assert_both_are_folds(log: Log, before: int = 0) -> None:
    """`before`: batches below the log's start."""
    assert log.states[BATCHES_COUNTED].batches == before + len(headers(log))
    at_start = decode_snapshot(log.snapshot_at_base(), BOTH).states
    assert at_start[BATCHES_COUNTED].batches == before
    for header in headers(log):
        at_start[PRODUCERS].record(header, header.base_offset)
    assert at_start[PRODUCERS] == log.states[PRODUCERS]


def test_both_states_follow_appends_cuts_restarts_and_kills() -> None:
    machine = Machine()
    log = opened(machine.mount())
    fill(log, 30)
    assert_both_are_folds(log)
    log.truncate_to(headers(log)[20].base_offset)
    assert_both_are_folds(log)
    for clean in (True, False):
        fill(log, 10, seed=2)
        log.maintain()
        produce(log)
        log.close(clean)
        log = opened(machine.mount())
        assert_both_are_folds(log)


def test_both_states_are_in_the_snapshot_at_the_logs_start() -> None:
    log = opened(Machine().mount(), retention_bytes=1_500)
    fill(log, 40)
    log.maintain()
    log.apply_retention(NOW_MS, log.log_end_offset)
    gone = log.states[BATCHES_COUNTED].batches - len(headers(log))
    assert gone > 0
    assert_both_are_folds(log, gone)
    follower = opened(Machine().mount())
    follower.reset_to(log.log_start_offset, log.snapshot_at_base())
    follower.append_as_follower(log.read_batches(log.log_start_offset, 10**6))
    assert_both_are_folds(follower, gone)


def test_a_batch_that_one_machine_cannot_fold_changes_no_state_and_no_log() -> None:
    log = opened(Machine().mount())
    produce(log)
    bad = batch(producer_id=1, sequence=1, timestamp_ms=UNFOLDABLE_MS)
    with pytest.raises(InvariantBroken, match="offset 1 cannot be counted"):
        log.append_as_leader(check_produced(bad), bad, 0)
    assert log.log_end_offset == 1
    assert_both_are_folds(log)


def test_a_log_that_was_folded_otherwise_is_not_opened_above_offset_0() -> None:
    """A newer version's, after a downgrade, or another topic's: its state is not guessed. From offset 0 on it is folded."""
    machine = Machine()
    log = opened(machine.mount(), retention_bytes=1_500)
    fill(log, 40)
    state = log.states[PRODUCERS].copy()
    log.close(clean=True)
    log = Log.open(machine.mount(), FOLDER, settings(), NOW_MS, (PRODUCERS,))
    assert log.states[PRODUCERS] == state
    log.close(clean=True)
    log = opened(machine.mount(), retention_bytes=1_500)
    log.apply_retention(NOW_MS, log.log_end_offset)
    assert log.log_start_offset > 0
    log.close(clean=True)
    with pytest.raises(CorruptLog, match="no snapshot can be read, and the log starts above 0"):
        Log.open(machine.mount(), FOLDER, settings(), NOW_MS, (PRODUCERS,))


def test_a_replica_does_not_start_over_with_a_snapshot_that_lacks_a_part() -> None:
    log = opened(Machine().mount())
    fill(log, 5)
    with pytest.raises(CorruptMessage, match="lacks the part 'batch-count'"):
        log.reset_to(50, snapshot_bytes(50))
    assert producers_in(snapshot_bytes(50)).ids() == []
    assert_both_are_folds(log)

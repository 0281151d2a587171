"""Deleted records: the log begins behind them, whatever happens to it, and nothing that comes later is hidden."""

from __future__ import annotations

import asyncio

import pytest

from fencepost_node.log.log import Log
from fencepost_node.replication.reconciliation import FollowerPosition, Push, answer_subscribe
from fencepost_node.requests.list_offsets import first_record
from fencepost_proto.protocol.errors import OffsetOutOfRange
from fencepost_proto.protocol.metadata import Partition
from fencepost_proto.protocol.record_batch import stamp
from fencepost_proto.protocol.records import BatchBuilder, Compression
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.logs import NOW_MS, Machine, open_log, snapshot_bytes
from tests.unit.replicas import following, leading, open_replica

ALL = -1


def follow(log: Log, count: int, *, leader_epoch: int = 0, timestamp_ms: int = 1_000) -> None:
    end = log.log_end_offset
    log.append_as_follower(batch(count, base_offset=end, leader_epoch=leader_epoch, timestamp_ms=timestamp_ms))


def filled(*counts: int, leader_epoch: int = 0) -> Log:
    log = open_log(Machine().mount())
    for count in counts:
        follow(log, count, leader_epoch=leader_epoch)
    return log


def test_the_log_begins_behind_what_is_deleted_also_within_a_batch_and_never_behind_its_end() -> None:
    log = filled(5, 5, 5)
    log.delete_below(7, 0)
    assert (log.base_offset, log.log_start_offset, log.log_end_offset) == (0, 7, 15)
    log.delete_below(100, 0)
    assert log.log_start_offset == 15
    follow(log, 5)
    assert log.log_start_offset == 20, "what was deleted elsewhere, and comes here later, is deleted"


def test_what_a_later_leader_writes_at_deleted_offsets_is_not_deleted() -> None:
    log = filled(5, 5, leader_epoch=2)
    log.delete_below(100, 4)
    follow(log, 5, leader_epoch=4)
    assert log.log_start_offset == 15
    follow(log, 5, leader_epoch=7)  # elected uncleanly: the rest was lost
    assert (log.log_start_offset, log.log_end_offset) == (15, 20)
    log.delete_below(18, 7)
    assert log.log_start_offset == 18
    newer = filled(5, leader_epoch=9)
    newer.delete_below(100, 4)
    assert newer.log_start_offset == 0, "nothing of it is as old as the deletion"


def test_a_cut_below_what_is_deleted_lets_the_log_begin_at_its_end() -> None:
    log = filled(5, 5, leader_epoch=1)
    follow(log, 5, leader_epoch=2)
    log.delete_below(12, 3)
    log.truncate_to(5)
    assert (log.log_start_offset, log.log_end_offset) == (5, 5)
    follow(log, 10, leader_epoch=3)
    assert log.log_start_offset == 12


def test_a_log_that_is_started_over_goes_on_to_begin_behind_what_is_deleted() -> None:
    log = filled(5, 5)
    log.delete_below(8, 3)
    log.reset_to(6, snapshot_bytes(6, last_epoch=0))
    assert (log.base_offset, log.log_start_offset, log.log_end_offset) == (6, 6, 6)
    follow(log, 5)
    assert log.log_start_offset == 8


def test_files_of_deleted_records_go_with_retention_also_the_last_one_and_states_stay() -> None:
    machine = Machine()
    log = open_log(machine.mount(), segment_bytes=300)
    for number in range(6):
        log.append_as_follower(
            batch(5, base_offset=5 * number, producer_id=7, epoch=0, sequence=5 * number, value=b"x" * 30)
        )
    states = str(log.states)
    log.delete_below(17, 0)
    log.apply_retention(NOW_MS, high_watermark=30)
    assert (log.base_offset, log.log_start_offset) == (15, 17)
    log.delete_below(30, 0)
    log.apply_retention(NOW_MS, high_watermark=29)
    assert log.base_offset == 25, "nothing above the high watermark goes"
    log.apply_retention(NOW_MS, high_watermark=30)
    assert (log.base_offset, log.log_start_offset, log.log_end_offset, log.size_bytes) == (30, 30, 30, 0)
    assert str(log.states) == states
    log.close(clean=True)
    again = open_log(machine.mount(), segment_bytes=300)
    assert (again.base_offset, again.log_end_offset, str(again.states)) == (30, 30, states)


def test_a_search_by_time_finds_nothing_that_is_deleted() -> None:
    log = open_log(Machine().mount())
    for timestamp_ms in (1_000, 3_000, 2_000, 4_000):
        follow(log, 5, timestamp_ms=timestamp_ms)
    assert log.offset_for_timestamp(2_500) == (5, 3_000)
    log.delete_below(7, 0)
    assert log.offset_for_timestamp(2_500) == (7, 3_000)
    log.delete_below(10, 0)
    assert log.offset_for_timestamp(2_500) == (15, 4_000)
    log.delete_below(20, 0)
    assert log.offset_for_timestamp(0) is None


def test_a_search_by_time_passes_over_a_batch_of_which_the_records_that_would_do_are_deleted() -> None:
    log = open_log(Machine().mount())
    falling = BatchBuilder(Compression.NONE, 1 << 20)
    for timestamp_ms in (3_000, 1_000, 2_000, 500):
        assert falling.append(timestamp_ms, None, b"value", [])
    log.append_as_follower(stamp(falling.build(-1, -1, -1), 0, 0))
    follow(log, 2, timestamp_ms=2_500)
    assert first_record(log, 2_100, 6) == (0, 3_000)
    log.delete_below(1, 0)
    assert first_record(log, 1_500, 6) == (2, 2_000)
    assert first_record(log, 2_100, 6) == (4, 2_500)
    assert first_record(log, 2_100, 4) is None
    assert first_record(log, 2_600, 6) is None


def test_a_follower_that_ends_within_what_is_deleted_is_pushed_to_and_does_not_start_over() -> None:
    log = filled(5, 5)
    log.delete_below(9, 0)
    answer = answer_subscribe(FollowerPosition(5, 0), log.leader_epochs, log.base_offset, log.log_end_offset)
    assert isinstance(answer, Push)


def partition(leader: int, epoch: int, deleted: int, deleted_in: int, partition_epoch: int = 5) -> Partition:
    return Partition(
        "T", 0, (1, 2), (1, 2), leader, epoch, partition_epoch, deleted_end_offset=deleted, deleted_in_epoch=deleted_in
    )


@asynchronous
async def test_a_leader_serves_nothing_that_is_deleted_and_wakes_who_waits_for_that() -> None:
    replica = open_replica(leader=1)
    leadership = leading(replica)
    now = asyncio.get_running_loop().time()
    for _ in range(3):
        leadership.append_batch(batch(5), ALL, now)
    leadership.state.high_watermark = 10  # as if the follower had acknowledged so much
    waiting = asyncio.create_task(leadership.wait_for_start(8))
    await asyncio.sleep(0)
    replica.apply(partition(1, 0, 8, 0))
    await waiting
    assert replica.leadership is leadership
    with pytest.raises(OffsetOutOfRange, match="offset 7 of orders-0 is outside of 8 to 15"):
        await leadership.read_committed(7, 1000)
    assert await leadership.read_committed(8, 1000), "the batch with offset 8, whole"


@asynchronous
async def test_a_replica_that_was_restarted_leads_with_its_start_and_its_high_watermark_behind_what_is_deleted() -> (
    None
):
    replica = open_replica(leader=2)
    for number in range(3):
        replica.append_as_follower(following(replica), 5 * number, batch(5, base_offset=5 * number))
    assert replica.high_watermark == 0
    replica.apply(partition(1, 1, 12, 0))
    assert (replica.log.log_start_offset, replica.high_watermark, replica.log.log_end_offset) == (12, 12, 15)
    opened = open_log(Machine().mount())
    follow(opened, 5)
    replica.recovered(opened)
    assert replica.log.log_start_offset == 5

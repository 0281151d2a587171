"""A follower's log is cut or started over: its high watermark lies within it; a contradiction fails the replica alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fencepost_node.replication.replica import CONTRADICTION, Replica
from fencepost_proto.protocol.errors import CorruptMessage, StorageError
from fencepost_proto.protocol.metadata import Partition
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.logs import snapshot_bytes
from tests.unit.replicas import following, leading, open_replica


def follower_of(counts: list[int], *, leader_epoch: int = 3, **settings: Any) -> Replica:
    """Of broker 2 under epoch 4, with one batch for each count, all below its high watermark."""
    replica = open_replica(leader=2, epoch=4, **settings)
    for count in counts:
        end = replica.log.log_end_offset
        data = batch(count, base_offset=end, leader_epoch=leader_epoch)
        replica.append_as_follower(following(replica), end, data)
    replica.leader_told(following(replica), replica.log.log_end_offset)
    return replica


def snapshot_at(offset: int, last_epoch: int = 2) -> bytes:
    return snapshot_bytes(offset, last_epoch=last_epoch)


@asynchronous
async def test_a_log_that_starts_over_below_its_high_watermark_does_not_keep_it() -> None:
    replica = follower_of([5, 5])
    assert replica.high_watermark == 10
    await replica.start_over(following(replica), 4, snapshot_at(4))
    assert (replica.log.log_start_offset, replica.log.log_end_offset, replica.high_watermark) == (4, 4, 4)
    assert replica.log.last_epoch == 2
    replica.leader_told(following(replica), 10)
    assert replica.high_watermark == 4


@asynchronous
async def test_a_log_that_starts_over_above_its_end_has_all_below_its_start_committed() -> None:
    replica = follower_of([5])
    await replica.start_over(following(replica), 40, snapshot_at(40))
    assert (replica.log.log_end_offset, replica.high_watermark) == (40, 40)


@asynchronous
async def test_a_cut_within_a_batch_takes_the_high_watermark_to_the_border_below_it() -> None:
    replica = follower_of([5, 5])
    await replica.truncate(following(replica), 7)
    assert (replica.log.log_end_offset, replica.high_watermark) == (5, 5)


@asynchronous
async def test_a_cut_that_is_refused_leaves_the_high_watermark() -> None:
    replica = follower_of([5, 5])
    role = following(replica)
    replica.apply(Partition("T", 0, (1, 2), (1, 2), 3, 5, 2))  # another leader meanwhile
    with pytest.raises(Exception, match="does not follow under epoch 4"):
        await replica.truncate(role, 5)
    assert replica.high_watermark == 10


@asynchronous
async def test_who_leads_next_takes_over_the_high_watermark_after_a_cut_that_was_under_way() -> None:
    replica = follower_of([5, 5])
    cut = asyncio.ensure_future(replica.truncate(following(replica), 7))
    await asyncio.sleep(0)
    replica.apply(Partition("T", 0, (1, 2), (1,), 1, 5, 2))
    await cut
    assert replica.is_leader
    assert replica.high_watermark == leading(replica).high_watermark == 5


@asynchronous
async def test_a_snapshot_that_cannot_be_read_changes_nothing() -> None:
    replica = follower_of([5])
    with pytest.raises(CorruptMessage):
        await replica.start_over(following(replica), 7, snapshot_at(7)[:-1] + b"?")
    assert not replica.failure
    assert replica.log.log_end_offset == 5


@pytest.mark.parametrize(
    "pushed",
    [
        pytest.param(batch(1, base_offset=6, leader_epoch=2), id="older-leader-epoch"),
        pytest.param(batch(1, base_offset=6, leader_epoch=5), id="later-leader-epoch"),
        pytest.param(batch(3, base_offset=4, leader_epoch=4), id="begins-within-a-batch"),
        pytest.param(batch(1, base_offset=6 | 0xFF << 40, leader_epoch=4), id="a-byte-of-its-offset-is-wrong"),
    ],
)
@asynchronous
async def test_a_push_with_an_offset_or_epoch_that_cannot_be_fails_nothing_and_is_not_sound(pushed: bytes) -> None:
    """A leader whose disk has changed these, which no CRC covers, has a replica that is whole beside it."""
    replica = follower_of([5])
    replica.append_as_follower(following(replica), 5, batch(1, base_offset=5, leader_epoch=3))
    with pytest.raises(CorruptMessage):
        replica.append_as_follower(following(replica), 6, pushed)
    assert not replica.failure
    assert replica.log.log_end_offset == 6


@asynchronous
async def test_a_push_that_contradicts_the_log_fails_this_replica_and_says_why() -> None:
    pushed = batch(1, base_offset=6, leader_epoch=4, producer_id=7, sequence=9)
    told_failures: list[bool] = []
    replica = follower_of([5], failures_changed=lambda: told_failures.append(True))
    first = batch(1, base_offset=5, leader_epoch=3, producer_id=7, sequence=0)
    replica.append_as_follower(following(replica), 5, first)
    end = replica.log.log_end_offset
    with pytest.raises(StorageError, match="sequence 9"):
        replica.append_as_follower(following(replica), end, pushed)
    assert replica.failure.startswith(CONTRADICTION)
    assert "broker 2" in replica.failure
    assert told_failures == [True]
    assert replica.log.log_end_offset == end
    assert replica.role is None


@asynchronous
async def test_a_leadership_older_than_the_log_fails_this_replica_and_says_why() -> None:
    replica = follower_of([5], leader_epoch=4)
    replica.apply(Partition("T", 0, (1, 2), (1,), 1, 3, 9))
    assert not replica.is_leader
    assert "leader epoch 3 is older than 4" in replica.failure

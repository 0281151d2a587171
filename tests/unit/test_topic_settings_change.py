"""A replica whose topic's settings change while it leads or follows goes by the new ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol.errors import (
    FencepostError,
    MessageTooLarge,
    NotEnoughReplicas,
    NotEnoughReplicasAfterAppend,
    RequestTimedOut,
)
from fencepost_proto.protocol.metadata import Partition, TopicConfig
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.replicas import TOPIC, leading, open_replica

ALL = -1


def settings(replica: Replica, **changes: Any) -> None:
    replica.take_settings(replace(TOPIC, config=TopicConfig(**changes)))


@asynchronous
async def test_a_leader_refuses_by_the_settings_of_now() -> None:
    replica = open_replica(leader=1)
    leadership = leading(replica)
    now = asyncio.get_running_loop().time()
    leadership.append_batch(batch(1, value=b"x" * 500), ALL, now)
    settings(replica, max_message_bytes=300, min_insync_replicas=3)
    with pytest.raises(MessageTooLarge, match="topic orders takes at most 300"):
        leadership.append_batch(batch(1, value=b"x" * 500), ALL, now)
    with pytest.raises(NotEnoughReplicas, match="2 replicas in sync, 3 are needed"):
        leadership.append_batch(batch(1), ALL, now)
    settings(replica)
    leadership.append_batch(batch(1, value=b"x" * 500), ALL, now)
    assert replica.log.log_end_offset == 2
    assert replica.leadership is leadership


@asynchronous
async def test_the_log_rolls_and_retains_by_the_settings_of_now() -> None:
    replica = open_replica(leader=1, segment_bytes=1 << 20)
    settings(replica, segment_bytes=600, retention_ms=7, retention_bytes=11)
    config = replica.log.config
    assert (config.segment_bytes, config.retention_ms, config.retention_bytes) == (600, 7, 11)
    assert config.snapshot_interval_bytes == open_replica(leader=1).log.config.snapshot_interval_bytes
    for _ in range(3):
        leading(replica).append_batch(batch(1, value=b"x" * 500), ALL, asyncio.get_running_loop().time())
    replica.log.maintain()
    replica.log.apply_retention(replica.log.now_ms(), replica.log.log_end_offset)
    assert replica.log.log_start_offset == 2


@asynchronous
async def test_what_waits_for_a_sync_is_committed_once_no_sync_is_asked_for_any_more() -> None:
    replica = open_replica(leader=1, replicas=(1,))
    leadership = leading(replica)
    now = asyncio.get_running_loop().time()
    settings(replica, flush_always=True)
    told: list[FencepostError | None] = []
    appended = leadership.append_batch(batch(1), ALL, now)
    leadership.when_committed(appended.end_offset, told.append)
    assert (told, replica.high_watermark) == ([], 0)
    settings(replica)
    assert (told, replica.high_watermark) == ([None], 1)
    leadership.durable(0)  # of a sync that began before
    appended = leadership.append_batch(batch(1), ALL, now)
    leadership.when_committed(appended.end_offset, told.append)
    assert (told, replica.high_watermark) == ([None, None], 2)


@asynchronous
async def test_who_waits_for_a_commit_is_answered_once_too_few_are_in_sync_and_the_patient_wait_on() -> None:
    replica = open_replica(leader=1)
    leadership = leading(replica)
    told: list[FencepostError | None] = []
    waited: list[FencepostError | None] = []
    appended = leadership.append_batch(batch(1), ALL, asyncio.get_running_loop().time())
    leadership.when_committed(appended.end_offset, told.append)
    leadership.when_committed(appended.end_offset, waited.append, patient=True)
    settings(replica, min_insync_replicas=2)
    assert told == []
    partition = replace(replica.partition, isr=(1,), eligible=(2,), partition_epoch=2)
    replica.apply(partition)
    assert [type(error) for error in told] == [NotEnoughReplicasAfterAppend]
    leadership.when_committed(appended.end_offset, told.append)
    assert [type(error) for error in told] == [NotEnoughReplicasAfterAppend] * 2
    assert (waited, replica.high_watermark) == ([], 0)
    replica.apply(partition, replace(TOPIC, config=TopicConfig()))
    assert (waited, replica.high_watermark) == ([None], 1)


@asynchronous
async def test_a_leader_that_is_none_any_more_commits_nothing_by_a_setting_that_came_with_that() -> None:
    """The whole image of another leader, and of a lower min.insync.replicas: alone, it would commit what that one lacks."""
    replica = open_replica(leader=1)
    leadership = leading(replica)
    settings(replica, min_insync_replicas=2)
    told: list[FencepostError | None] = []
    appended = leadership.append_batch(batch(1), ALL, asyncio.get_running_loop().time())
    leadership.when_committed(appended.end_offset, told.append, patient=True)
    replica.apply(replace(replica.partition, isr=(1,), eligible=(2,), partition_epoch=2))
    replica.apply(Partition("T", 0, (1, 2), (2,), 2, 1, 3), replace(TOPIC, config=TopicConfig()))
    assert [type(error) for error in told] == [RequestTimedOut]
    assert replica.high_watermark == 0


@asynchronous
async def test_a_higher_setting_holds_for_the_in_sync_set_that_comes_with_it() -> None:
    replica = open_replica(leader=1)
    leading(replica).append_batch(batch(1), ALL, asyncio.get_running_loop().time())
    partition = replace(replica.partition, isr=(1,), eligible=(2,), partition_epoch=2)
    replica.apply(partition, replace(TOPIC, config=TopicConfig(min_insync_replicas=2)))
    assert replica.high_watermark == 0

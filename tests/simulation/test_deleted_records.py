"""Deleted records are deleted from every replica, whatever each one's own retention has done."""

from __future__ import annotations

import pytest

from fencepost_proto.protocol.v1 import broker_pb2
from tests.gauntlet.story import Story, tale


@pytest.mark.parametrize("end_offset", [1, 5])
@tale()
async def test_what_only_the_leaders_retention_has_removed_is_deleted_everywhere(story: Story, end_offset: int) -> None:
    """The leader's log began behind those records already, and it said so without a deletion: the next leader, whose
    retention came later, showed them again (seed 960540 of commit 5f3b8dc: G10)."""
    await story.create_topic("orders", [[1, 2]], segment_bytes=300, retention_bytes=900, min_insync_replicas=1)
    client = await story.producer()
    for number in range(30):
        await story.acked(await client.send(f"r{number}"))
    await story.in_sync("orders-0", 1, 2)
    story.kill("broker-2")
    await story.until(lambda: story.replica(1, "orders-0").log.log_start_offset > end_offset, "retention on the leader")
    story.start("broker-2")
    await story.in_sync("orders-0", 1, 2)
    start = story.replica(1, "orders-0").log.log_start_offset
    assert story.replica(2, "orders-0").log.log_start_offset < end_offset
    request = broker_pb2.DeleteRecordsRequest(
        topic_id=story.partition("orders-0").topic_id, partition=0, leader_epoch=-1, end_offset=end_offset
    )
    assert await story.cluster.ask_broker(1, "DeleteRecords", request) == "ok"
    assert story.partition("orders-0").deleted_end_offset == start
    story.kill("broker-1")
    await story.led(by=2)
    assert story.replica(2, "orders-0").log.log_start_offset >= start
    await story.leave()

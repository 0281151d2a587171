"""What the leader of a partition says that only the verdict asks: where its log begins, and who holds all of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fencepost_proto.kafka.messages.describe_topic_partitions import (
    Cursor,
    DescribeTopicPartitionsRequest,
    TopicRequest,
)
from fencepost_proto.kafka.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from fencepost_testing import topic_control
from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.kafka_request import NoAnswer, ask_broker
from fencepost_testing.waiting import until

_EARLIEST = -2
_POLL_S = 0.02
_OLD_METADATA_S = 1.0  # for a leader's broker to tell of an in-sync set by which it leads already


async def log_start(cluster: ClusterFolder, topic: str, partition: int, timeout_s: float) -> int:
    """The first offset that can be read: what is below has been deleted."""
    part = ListOffsetsPartition(partition_index=partition, timestamp=_EARLIEST)
    request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=topic, partitions=[part])])
    deadline = time.monotonic() + timeout_s

    async def told() -> int | None:
        answer = await _ask(cluster, topic, partition, request, deadline)
        return None if answer is None or answer.error_code else int(answer.offset)

    what = f"the leader of {topic}-{partition} tells where its log begins"
    return await until(told, what, timeout_s, holds=lambda _: True, poll_s=_POLL_S)


async def counts_on(cluster: ClusterFolder, topic: str, partition: int, broker: int, timeout_s: float) -> bool:
    """Whether the leader counts on that replica for everything that is committed: it is in sync, or eligible.

    It is asked twice, for what its broker tells may be a moment older than that by which it leads.
    """
    if broker not in await _holders(cluster, topic, partition, timeout_s):
        return False
    await asyncio.sleep(_OLD_METADATA_S)
    return broker in await _holders(cluster, topic, partition, timeout_s)


async def _holders(cluster: ClusterFolder, topic: str, partition: int, timeout_s: float) -> set[int]:
    request = DescribeTopicPartitionsRequest(
        topics=[TopicRequest(name=topic)],
        response_partition_limit=1,
        cursor=Cursor(topic_name=topic, partition_index=partition),
    )
    deadline = time.monotonic() + timeout_s

    async def told() -> set[int] | None:
        answer = await _ask(cluster, topic, partition, request, deadline)
        return None if answer is None else {*answer.isr_nodes, *(answer.eligible_leader_replicas or ())}

    what = f"the leader of {topic}-{partition} tells who is in sync"
    return await until(told, what, timeout_s, holds=lambda _: True, poll_s=_POLL_S)


async def _ask(cluster: ClusterFolder, topic: str, partition: int, request: object, deadline: float) -> Any:
    """What the leader answers of the one partition that is asked about; None where it does not."""
    broker = await topic_control.leader(cluster, topic, partition, max(0.0, deadline - time.monotonic()))
    try:
        answer = await ask_broker(cluster.member(broker).kafka_address, request, topic_control.LOOK_TIMEOUT_S)
    except NoAnswer:
        return None
    (found,) = answer.topics or (None,)
    return found.partitions[0] if found is not None and found.partitions else None

"""DescribeLogDirs (key 35), versions 1 to 5: what the replicas on this broker take on its disk.

Supports: all of them, or those of some partitions; the broker has one folder. `offset_lag` is how far the log is behind the
high watermark that the replica knows. The size of the disk is not told (-1). A replica that has failed is left out.

Errors: none.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.kafka.messages.describe_log_dirs import (
    DescribeLogDirsPartition,
    DescribeLogDirsRequest,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.runtime.turns import Turns


async def handle(context: KafkaContext, request: DescribeLogDirsRequest, version: int) -> DescribeLogDirsResponse:
    wanted: frozenset[PartitionKey] | None = None
    if request.topics is not None:
        ids = context.manager.image.topic_ids
        wanted = frozenset(
            (ids[topic.topic], index) for topic in request.topics if topic.topic in ids for index in topic.partitions
        )
    topics: dict[str, DescribeLogDirsTopic] = {}
    turns = Turns()
    for key, replica in sorted(context.manager.replicas.items()):
        await turns.step()
        if (wanted is not None and key not in wanted) or replica.failure:
            continue
        topic = topics.setdefault(key[0], DescribeLogDirsTopic(name=replica.topic.name))
        lag = max(0, replica.high_watermark - replica.log.log_end_offset)
        topic.partitions.append(
            DescribeLogDirsPartition(partition_index=key[1], partition_size=replica.log.size_bytes, offset_lag=lag)
        )
    folder = DescribeLogDirsResult(log_dir=context.config.data_dir, topics=list(topics.values()))
    return DescribeLogDirsResponse(results=[folder])

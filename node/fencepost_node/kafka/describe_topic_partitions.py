"""DescribeTopicPartitions (key 75), version 0: topics and their partitions, a page at a time.

Supports: named topics, or all; sorted by name. A page has at most `response_partition_limit` partitions, 2,000 at the most;
where there is more, `next_cursor` says where to go on. Eligible leader replicas are those of the metadata (KIP-966); the
last known ones are who may have lost records of a partition without a leader. Empty lists rather than null: Java's tools
cannot take that.

Errors of a topic: UNKNOWN_TOPIC_OR_PARTITION, INVALID_TOPIC_EXCEPTION. Of a partition: LEADER_NOT_AVAILABLE.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import SHOWN_NAME
from fencepost_node.kafka.authorized_operations import ON_TOPICS
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.metadata_answers import live_brokers, offline_replicas
from fencepost_proto.kafka.messages.describe_topic_partitions import (
    Cursor,
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse,
    DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
)
from fencepost_proto.protocol.errors import ErrorCode, InvalidTopic
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS
from fencepost_proto.protocol.metadata import NO_LEADER, BrokerRegistration, Partition, check_topic_name
from fencepost_proto.protocol.topic_ids import to_wire
from fencepost_proto.runtime.turns import Turns

MAX_PARTITIONS = 2_000  # of one answer


async def handle(
    context: KafkaContext, request: DescribeTopicPartitionsRequest, version: int
) -> DescribeTopicPartitionsResponse:
    image = context.feed.image
    live = live_brokers(image)
    response = DescribeTopicPartitionsResponse()
    left = max(1, min(request.response_partition_limit, MAX_PARTITIONS))
    cursor = request.cursor or Cursor(topic_name="", partition_index=0)
    turns = Turns()
    for name in sorted({topic.name for topic in request.topics} or image.topic_ids):
        if name < cursor.topic_name:
            continue
        first = max(0, cursor.partition_index) if name == cursor.topic_name else 0
        if left == 0:
            response.next_cursor = Cursor(topic_name=name, partition_index=first)
            break
        topic_id = image.topic_ids.get(name)
        if topic_id is None:
            response.topics.append(_unknown(name))
            continue
        found = image.partitions_of(topic_id)[first:]
        response.topics.append(
            DescribeTopicPartitionsResponseTopic(
                name=name,
                topic_id=to_wire(topic_id),
                is_internal=name in INTERNAL_TOPICS,
                partitions=[_partition(partition, live) for partition in found[:left]],
                topic_authorized_operations=ON_TOPICS,
            )
        )
        if len(found) > left:
            response.next_cursor = Cursor(topic_name=name, partition_index=first + left)
            break
        left -= len(found)
        await turns.step(1 + len(found))
    return response


def _unknown(name: str) -> DescribeTopicPartitionsResponseTopic:
    try:
        check_topic_name(name)
    except InvalidTopic:
        code = ErrorCode.INVALID_TOPIC_EXCEPTION
    else:
        code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    return DescribeTopicPartitionsResponseTopic(error_code=code, name=name[:SHOWN_NAME])


def _partition(partition: Partition, live: dict[int, BrokerRegistration]) -> DescribeTopicPartitionsResponsePartition:
    has_leader = partition.leader in live
    return DescribeTopicPartitionsResponsePartition(
        error_code=ErrorCode.NONE if has_leader else ErrorCode.LEADER_NOT_AVAILABLE,
        partition_index=partition.index,
        leader_id=partition.leader if has_leader else NO_LEADER,
        leader_epoch=partition.leader_epoch,
        replica_nodes=list(partition.replicas),
        isr_nodes=list(partition.isr),
        eligible_leader_replicas=list(partition.eligible),
        last_known_elr=list(partition.last_known_isr),
        offline_replicas=offline_replicas(partition, live),
    )

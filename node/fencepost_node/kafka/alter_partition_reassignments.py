"""AlterPartitionReassignments (key 45), versions 0 and 1: move partitions to other brokers, or cancel a move (KIP-455).

Supports: each partition on its own; null replicas cancel. With `allow_replication_factor_change` false (version 1) a move to
more or fewer replicas is refused (KIP-860). The answer comes when the move is under way.

Errors of a partition: UNKNOWN_TOPIC_OR_PARTITION, INVALID_REPLICA_ASSIGNMENT, INVALID_REPLICATION_FACTOR,
NO_REASSIGNMENT_IN_PROGRESS, REQUEST_TIMED_OUT, NOT_CONTROLLER where the controller is away. Of the request:
INVALID_REQUEST for more than `admin.MAX_CHANGES` partitions.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import check_changes, code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    AlterPartitionReassignmentsResponse,
    ReassignablePartition,
    ReassignablePartitionResponse,
    ReassignableTopicResponse,
)
from fencepost_proto.protocol.errors import (
    FencepostError,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    UnknownTopicOrPartition,
)


async def handle(
    context: KafkaContext, request: AlterPartitionReassignmentsRequest, version: int
) -> AlterPartitionReassignmentsResponse:
    changes = TopicChanges(context.link, context.feed, request.timeout_ms)
    response = AlterPartitionReassignmentsResponse(
        allow_replication_factor_change=request.allow_replication_factor_change
    )
    try:
        check_changes(sum(len(topic.partitions) for topic in request.topics))
    except FencepostError as error:
        response.error_code, response.error_message = code_and_message(error)
        return response
    for topic in request.topics:
        results = ReassignableTopicResponse(name=topic.name)
        response.responses.append(results)
        for asked in topic.partitions:
            result = ReassignablePartitionResponse(partition_index=asked.partition_index)
            results.partitions.append(result)
            try:
                _check(changes, topic.name, asked, may_change_factor=request.allow_replication_factor_change)
                await changes.reassign(topic.name, asked.partition_index, asked.replicas or ())
            except FencepostError as error:
                result.error_code, result.error_message = code_and_message(error)
    return response


def _check(changes: TopicChanges, topic_name: str, asked: ReassignablePartition, *, may_change_factor: bool) -> None:
    image = changes.image
    partition = image.partitions.get((image.topic_ids.get(topic_name, ""), asked.partition_index))
    if partition is None:
        raise UnknownTopicOrPartition(f"topic {topic_name!r} has no partition {asked.partition_index}")
    if asked.replicas is None:
        return
    if not asked.replicas:
        raise InvalidReplicaAssignment(f"{topic_name}-{asked.partition_index}: a partition needs a broker")
    factor = len(partition.replicas) - len(partition.adding)
    if not may_change_factor and len(asked.replicas) != factor:
        raise InvalidReplicationFactor(
            f"{topic_name}-{asked.partition_index}: {len(asked.replicas)} replicas, and it has {factor}"
        )

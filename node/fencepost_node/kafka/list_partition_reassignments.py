"""ListPartitionReassignments (key 46), version 0: the moves of partitions that are under way (KIP-455).

Supports: all of them, or those among some partitions; one that is not being moved is left out. It is answered from what this
broker has applied.

Errors: none.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.topic_changes import under_way
from fencepost_proto.kafka.messages.list_partition_reassignments import (
    ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse,
    OngoingPartitionReassignment,
    OngoingTopicReassignment,
)


async def handle(
    context: KafkaContext, request: ListPartitionReassignmentsRequest, version: int
) -> ListPartitionReassignmentsResponse:
    image = context.feed.image
    found = under_way(image)
    if request.topics is not None:
        wanted = {
            (image.topic_ids.get(topic.name, ""), index)
            for topic in request.topics
            for index in topic.partition_indexes
        }
        found = [key for key in found if key in wanted]
    topics: dict[str, OngoingTopicReassignment] = {}
    for key in found:
        partition = image.partitions[key]
        topic = topics.setdefault(key[0], OngoingTopicReassignment(name=image.topics[key[0]].name))
        topic.partitions.append(
            OngoingPartitionReassignment(
                partition_index=partition.index,
                replicas=list(partition.replicas),
                adding_replicas=list(partition.adding),
                removing_replicas=list(partition.removing),
            )
        )
    return ListPartitionReassignmentsResponse(topics=list(topics.values()))

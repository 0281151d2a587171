"""ListPartitionReassignments (key 46): moves of replicas that are under way (KIP-455).

`topics` null asks for all.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import INT32, array, int16, int32, message, string


@message
class ListPartitionReassignmentsTopics:
    name: str = string()
    partition_indexes: list[int] = array(INT32)


@message
class ListPartitionReassignmentsRequest:
    timeout_ms: int = int32(default=60000)
    topics: list[ListPartitionReassignmentsTopics] | None = array(
        ListPartitionReassignmentsTopics, nullable=0, default=None
    )


@message
class OngoingPartitionReassignment:
    partition_index: int = int32()
    replicas: list[int] = array(INT32)
    adding_replicas: list[int] = array(INT32)
    removing_replicas: list[int] = array(INT32)


@message
class OngoingTopicReassignment:
    name: str = string()
    partitions: list[OngoingPartitionReassignment] = array(OngoingPartitionReassignment)


@message
class ListPartitionReassignmentsResponse:
    throttle_time_ms: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    topics: list[OngoingTopicReassignment] = array(OngoingTopicReassignment)

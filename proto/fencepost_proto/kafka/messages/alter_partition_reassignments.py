"""AlterPartitionReassignments (key 45): move a partition's replicas, or cancel a move (KIP-455).

`replicas` null cancels. Version 1 can forbid that a move changes the replication factor (KIP-860).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import INT32, array, boolean, int16, int32, message, string


@message
class ReassignablePartition:
    partition_index: int = int32()
    replicas: list[int] | None = array(INT32, nullable=0, default=None)


@message
class ReassignableTopic:
    name: str = string()
    partitions: list[ReassignablePartition] = array(ReassignablePartition)


@message
class AlterPartitionReassignmentsRequest:
    timeout_ms: int = int32(default=60000)
    allow_replication_factor_change: bool = boolean(since=1, default=True)
    topics: list[ReassignableTopic] = array(ReassignableTopic)


@message
class ReassignablePartitionResponse:
    partition_index: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)


@message
class ReassignableTopicResponse:
    name: str = string()
    partitions: list[ReassignablePartitionResponse] = array(ReassignablePartitionResponse)


@message
class AlterPartitionReassignmentsResponse:
    throttle_time_ms: int = int32()
    allow_replication_factor_change: bool = boolean(since=1, default=True)
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    responses: list[ReassignableTopicResponse] = array(ReassignableTopicResponse)

"""DescribeTopicPartitions (key 75): a page of topics and partitions (KIP-966).

A response that stops at the limit names in `next_cursor` where the next request goes on.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import (
    INT32,
    UNKNOWN_OPERATIONS,
    array,
    boolean,
    int16,
    int32,
    message,
    string,
    struct,
    uuid,
)


@message
class TopicRequest:
    name: str = string()


@message
class Cursor:
    """Where a page begins."""

    topic_name: str = string()
    partition_index: int = int32()


@message
class DescribeTopicPartitionsRequest:
    topics: list[TopicRequest] = array(TopicRequest)
    response_partition_limit: int = int32(default=2000)
    cursor: Cursor | None = struct(Cursor, nullable=0, default=None)


@message
class DescribeTopicPartitionsResponsePartition:
    error_code: int = int16()
    partition_index: int = int32()
    leader_id: int = int32()
    leader_epoch: int = int32(default=-1)
    replica_nodes: list[int] = array(INT32)
    isr_nodes: list[int] = array(INT32)
    eligible_leader_replicas: list[int] | None = array(INT32, nullable=0, default=None)
    last_known_elr: list[int] | None = array(INT32, nullable=0, default=None)
    offline_replicas: list[int] = array(INT32)


@message
class DescribeTopicPartitionsResponseTopic:
    error_code: int = int16()
    name: str | None = string(nullable=0)
    topic_id: bytes = uuid()
    is_internal: bool = boolean()
    partitions: list[DescribeTopicPartitionsResponsePartition] = array(DescribeTopicPartitionsResponsePartition)
    topic_authorized_operations: int = int32(default=UNKNOWN_OPERATIONS)


@message
class DescribeTopicPartitionsResponse:
    throttle_time_ms: int = int32()
    topics: list[DescribeTopicPartitionsResponseTopic] = array(DescribeTopicPartitionsResponseTopic)
    next_cursor: Cursor | None = struct(Cursor, nullable=0, default=None)

"""DescribeProducers (key 61): producers that a partition has state for (KIP-664)."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import INT32, array, int16, int32, int64, message, string


@message
class TopicRequest:
    name: str = string()
    partition_indexes: list[int] = array(INT32)


@message
class DescribeProducersRequest:
    topics: list[TopicRequest] = array(TopicRequest)


@message
class ProducerState:
    producer_id: int = int64()
    producer_epoch: int = int32()
    last_sequence: int = int32(default=-1)
    last_timestamp: int = int64(default=-1)
    coordinator_epoch: int = int32()
    current_txn_start_offset: int = int64(default=-1)


@message
class PartitionResponse:
    partition_index: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    active_producers: list[ProducerState] = array(ProducerState)


@message
class TopicResponse:
    name: str = string()
    partitions: list[PartitionResponse] = array(PartitionResponse)


@message
class DescribeProducersResponse:
    throttle_time_ms: int = int32()
    topics: list[TopicResponse] = array(TopicResponse)

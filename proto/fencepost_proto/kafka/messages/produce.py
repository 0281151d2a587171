"""Produce (key 0): record batches to append.

From version 8 a refusal may name single records (KIP-467), from 10 the answer has the address of the new leader
(KIP-951), from 13 topics go by id (KIP-516). Versions 11 and 12 have the layout of 10: they state what the client
knows of transactions (KIP-890). Versions 0 to 2 carry message sets of magic 0 and 1 and are not here.
"""

from __future__ import annotations

from fencepost_proto.kafka.messages.leaders import LeaderIdAndEpoch, NodeEndpoint
from fencepost_proto.kafka.schema.fields import (
    Buffer,
    array,
    int16,
    int32,
    int64,
    message,
    record_batches,
    string,
    struct,
    uuid,
)


@message
class PartitionProduceData:
    index: int = int32()
    records: Buffer | None = record_batches(nullable=0)


@message
class TopicProduceData:
    name: str = string(until=12)
    topic_id: bytes = uuid(since=13)
    partition_data: list[PartitionProduceData] = array(PartitionProduceData)


@message
class ProduceRequest:
    transactional_id: str | None = string(nullable=0, default=None)
    acks: int = int16()
    timeout_ms: int = int32()
    topic_data: list[TopicProduceData] = array(TopicProduceData)


@message
class BatchIndexAndErrorMessage:
    """One record that made its batch fail; the index counts inside the batch."""

    batch_index: int = int32()
    batch_index_error_message: str | None = string(nullable=0, default=None)


@message
class PartitionProduceResponse:
    index: int = int32()
    error_code: int = int16()
    base_offset: int = int64()
    log_append_time_ms: int = int64(default=-1)
    log_start_offset: int = int64(since=5, default=-1)
    record_errors: list[BatchIndexAndErrorMessage] = array(BatchIndexAndErrorMessage, since=8)
    error_message: str | None = string(since=8, nullable=8, default=None)
    current_leader: LeaderIdAndEpoch | None = struct(LeaderIdAndEpoch, since=10, tag=0, default=None)


@message
class TopicProduceResponse:
    name: str = string(until=12)
    topic_id: bytes = uuid(since=13)
    partition_responses: list[PartitionProduceResponse] = array(PartitionProduceResponse)


@message
class ProduceResponse:
    responses: list[TopicProduceResponse] = array(TopicProduceResponse)
    throttle_time_ms: int = int32()
    node_endpoints: list[NodeEndpoint] = array(NodeEndpoint, since=10, tag=0)

"""Fetch (key 1): record batches from an offset on, for clients and followers.

From version 7 there are fetch sessions (KIP-227), from 9 leader epochs (KIP-320), from 12 tagged fields, from 13
topic ids in place of names (KIP-516), from 16 addresses of new leaders (KIP-951). No records are zero bytes, never
null: librdkafka takes null for damage.
"""

from __future__ import annotations

from fencepost_proto.kafka.messages.leaders import LeaderIdAndEpoch, NodeEndpoint
from fencepost_proto.kafka.schema.fields import (
    INT32,
    Buffer,
    array,
    int8,
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
class ReplicaState:
    """Of a follower; a client leaves the defaults."""

    replica_id: int = int32(default=-1)
    replica_epoch: int = int64(default=-1)


@message
class FetchPartition:
    partition: int = int32()
    current_leader_epoch: int = int32(since=9, default=-1)
    fetch_offset: int = int64()
    last_fetched_epoch: int = int32(since=12, default=-1)
    log_start_offset: int = int64(since=5, default=-1)
    partition_max_bytes: int = int32()
    replica_directory_id: bytes = uuid(since=17, tag=0)


@message
class FetchTopic:
    topic: str = string(until=12)
    topic_id: bytes = uuid(since=13)
    partitions: list[FetchPartition] = array(FetchPartition)


@message
class ForgottenTopic:
    """What a fetch session no longer wants."""

    topic: str = string(until=12)
    topic_id: bytes = uuid(since=13)
    partitions: list[int] = array(INT32)


@message
class FetchRequest:
    cluster_id: str | None = string(since=12, nullable=12, tag=0, default=None)
    replica_id: int = int32(until=14, default=-1)
    replica_state: ReplicaState = struct(ReplicaState, since=15, tag=1)
    max_wait_ms: int = int32()
    min_bytes: int = int32()
    max_bytes: int = int32(default=2147483647)
    isolation_level: int = int8()
    session_id: int = int32(since=7)
    session_epoch: int = int32(since=7, default=-1)
    topics: list[FetchTopic] = array(FetchTopic)
    forgotten_topics_data: list[ForgottenTopic] = array(ForgottenTopic, since=7)
    rack_id: str = string(since=11)


@message
class EpochEndOffset:
    """The last epoch that the leader shares with the follower, and where it ends (KIP-595)."""

    epoch: int = int32(default=-1)
    end_offset: int = int64(default=-1)


@message
class SnapshotId:
    """Of metadata logs only."""

    end_offset: int = int64(default=-1)
    epoch: int = int32(default=-1)


@message
class AbortedTransaction:
    """For readers of committed records: what to leave out from `first_offset` on."""

    producer_id: int = int64()
    first_offset: int = int64()


@message
class PartitionData:
    partition_index: int = int32()
    error_code: int = int16()
    high_watermark: int = int64()
    last_stable_offset: int = int64(default=-1)
    log_start_offset: int = int64(since=5, default=-1)
    diverging_epoch: EpochEndOffset | None = struct(EpochEndOffset, since=12, tag=0, default=None)
    current_leader: LeaderIdAndEpoch | None = struct(LeaderIdAndEpoch, since=12, tag=1, default=None)
    snapshot_id: SnapshotId | None = struct(SnapshotId, since=12, tag=2, default=None)
    aborted_transactions: list[AbortedTransaction] | None = array(AbortedTransaction, nullable=0)
    preferred_read_replica: int = int32(since=11, default=-1)
    records: Buffer | None = record_batches(nullable=0)  # whole batches


@message
class FetchableTopicResponse:
    topic: str = string(until=12)
    topic_id: bytes = uuid(since=13)
    partitions: list[PartitionData] = array(PartitionData)


@message
class FetchResponse:
    throttle_time_ms: int = int32()
    error_code: int = int16(since=7)
    session_id: int = int32(since=7)
    responses: list[FetchableTopicResponse] = array(FetchableTopicResponse)
    node_endpoints: list[NodeEndpoint] = array(NodeEndpoint, since=16, tag=0)

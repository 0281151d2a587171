"""ElectLeaders (key 43): elect preferred leaders, or leaders outside the in-sync set (KIP-460).

`topic_partitions` null means all. `election_type`: 0 preferred, 1 unclean.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import INT32, array, int8, int16, int32, message, string


@message
class TopicPartitions:
    topic: str = string()
    partitions: list[int] = array(INT32)


@message
class ElectLeadersRequest:
    election_type: int = int8(since=1)
    topic_partitions: list[TopicPartitions] | None = array(TopicPartitions, nullable=0, default=None)
    timeout_ms: int = int32(default=60000)


@message
class PartitionResult:
    partition_id: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)


@message
class ReplicaElectionResult:
    topic: str = string()
    partition_result: list[PartitionResult] = array(PartitionResult)


@message
class ElectLeadersResponse:
    throttle_time_ms: int = int32()
    error_code: int = int16(since=1)
    replica_election_results: list[ReplicaElectionResult] = array(ReplicaElectionResult)

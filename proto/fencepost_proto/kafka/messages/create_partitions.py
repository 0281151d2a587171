"""CreatePartitions (key 37): raise a topic's number of partitions.

`count` is the new total; `assignments` null leaves the placement to the cluster.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import INT32, array, boolean, int16, int32, message, string


@message
class CreatePartitionsAssignment:
    """The replicas of one new partition."""

    broker_ids: list[int] = array(INT32)


@message
class CreatePartitionsTopic:
    name: str = string()
    count: int = int32()
    assignments: list[CreatePartitionsAssignment] | None = array(CreatePartitionsAssignment, nullable=0)


@message
class CreatePartitionsRequest:
    topics: list[CreatePartitionsTopic] = array(CreatePartitionsTopic)
    timeout_ms: int = int32()
    validate_only: bool = boolean()


@message
class CreatePartitionsTopicResult:
    name: str = string()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)


@message
class CreatePartitionsResponse:
    throttle_time_ms: int = int32()
    results: list[CreatePartitionsTopicResult] = array(CreatePartitionsTopicResult)

"""ConsumerGroupHeartbeat (key 68): membership of a group whose coordinator assigns (KIP-848).

A member states what changed since its last heartbeat, null for the rest; `member_epoch` is 0 to join, -1 to leave, -2
to leave for a while as a static member. In version 1 the client makes its member id, and may subscribe by a regular
expression. The answer has an `assignment` only where it differs from the member's last one.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import INT32, STRING, array, int16, int32, message, string, struct, uuid


@message
class TopicPartitions:
    """Partitions of one topic: what a member owns, or is to own."""

    topic_id: bytes = uuid()
    partitions: list[int] = array(INT32)


@message
class ConsumerGroupHeartbeatRequest:
    group_id: str = string()
    member_id: str = string()
    member_epoch: int = int32()
    instance_id: str | None = string(nullable=0, default=None)
    rack_id: str | None = string(nullable=0, default=None)
    rebalance_timeout_ms: int = int32(default=-1)
    subscribed_topic_names: list[str] | None = array(STRING, nullable=0, default=None)
    subscribed_topic_regex: str | None = string(since=1, nullable=1, default=None)
    server_assignor: str | None = string(nullable=0, default=None)
    topic_partitions: list[TopicPartitions] | None = array(TopicPartitions, nullable=0, default=None)


@message
class Assignment:
    topic_partitions: list[TopicPartitions] = array(TopicPartitions)


@message
class ConsumerGroupHeartbeatResponse:
    throttle_time_ms: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    member_id: str | None = string(nullable=0, default=None)
    member_epoch: int = int32()
    heartbeat_interval_ms: int = int32()
    assignment: Assignment | None = struct(Assignment, nullable=0, default=None)

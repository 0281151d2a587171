"""ConsumerGroupDescribe (key 69): state, epochs and members of groups whose coordinator assigns (KIP-848).

Version 1 says of each member whether it speaks the classic protocol (`member_type` 0) or the new one (1).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import (
    INT32,
    STRING,
    UNKNOWN_OPERATIONS,
    array,
    boolean,
    int8,
    int16,
    int32,
    message,
    string,
    struct,
    uuid,
)


@message
class ConsumerGroupDescribeRequest:
    group_ids: list[str] = array(STRING)
    include_authorized_operations: bool = boolean()


@message
class TopicPartitions:
    topic_id: bytes = uuid()
    topic_name: str = string()
    partitions: list[int] = array(INT32)


@message
class Assignment:
    topic_partitions: list[TopicPartitions] = array(TopicPartitions)


@message
class Member:
    """`assignment` is what the member has now, `target_assignment` what it is to have."""

    member_id: str = string()
    instance_id: str | None = string(nullable=0, default=None)
    rack_id: str | None = string(nullable=0, default=None)
    member_epoch: int = int32()
    client_id: str = string()
    client_host: str = string()
    subscribed_topic_names: list[str] = array(STRING)
    subscribed_topic_regex: str | None = string(nullable=0, default=None)
    assignment: Assignment = struct(Assignment)
    target_assignment: Assignment = struct(Assignment)
    member_type: int = int8(since=1, default=-1)


@message
class DescribedGroup:
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    group_id: str = string()
    group_state: str = string()
    group_epoch: int = int32()
    assignment_epoch: int = int32()
    assignor_name: str = string()
    members: list[Member] = array(Member)
    authorized_operations: int = int32(default=UNKNOWN_OPERATIONS)


@message
class ConsumerGroupDescribeResponse:
    throttle_time_ms: int = int32()
    groups: list[DescribedGroup] = array(DescribedGroup)

"""DescribeGroups (key 15): state and members of classic groups.

From version 6 a group that is not there is GROUP_ID_NOT_FOUND, with a message; before it is an answer with the state
"Dead" (KIP-1043).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import (
    STRING,
    UNKNOWN_OPERATIONS,
    array,
    boolean,
    bytestring,
    int16,
    int32,
    message,
    string,
)


@message
class DescribeGroupsRequest:
    groups: list[str] = array(STRING)
    include_authorized_operations: bool = boolean(since=3)


@message
class DescribedGroupMember:
    member_id: str = string()
    group_instance_id: str | None = string(since=4, nullable=4, default=None)
    client_id: str = string()
    client_host: str = string()
    member_metadata: bytes = bytestring()
    member_assignment: bytes = bytestring()


@message
class DescribedGroup:
    error_code: int = int16()
    error_message: str | None = string(since=6, nullable=6, default=None)
    group_id: str = string()
    group_state: str = string()
    protocol_type: str = string()
    protocol_data: str = string()
    members: list[DescribedGroupMember] = array(DescribedGroupMember)
    authorized_operations: int = int32(since=3, default=UNKNOWN_OPERATIONS)


@message
class DescribeGroupsResponse:
    throttle_time_ms: int = int32(since=1)
    groups: list[DescribedGroup] = array(DescribedGroup)

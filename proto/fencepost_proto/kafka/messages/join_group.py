"""JoinGroup (key 11): enter a classic group, or its next generation.

From version 4 a new member is first told its id, with MEMBER_ID_REQUIRED (KIP-394); from 5 members may be static
(KIP-345); version 9 tells a leader that the assignment of a running generation stands (`skip_assignment`, KIP-814).
`metadata` is the clients' own.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import array, boolean, bytestring, int16, int32, message, string


@message
class JoinGroupRequestProtocol:
    name: str = string()
    metadata: bytes = bytestring()


@message
class JoinGroupRequest:
    group_id: str = string()
    session_timeout_ms: int = int32()
    rebalance_timeout_ms: int = int32(since=1, default=-1)
    member_id: str = string()
    group_instance_id: str | None = string(since=5, nullable=5, default=None)
    protocol_type: str = string()
    protocols: list[JoinGroupRequestProtocol] = array(JoinGroupRequestProtocol)
    reason: str | None = string(since=8, nullable=8, default=None)


@message
class JoinGroupResponseMember:
    member_id: str = string()
    group_instance_id: str | None = string(since=5, nullable=5, default=None)
    metadata: bytes = bytestring()


@message
class JoinGroupResponse:
    throttle_time_ms: int = int32(since=2)
    error_code: int = int16()
    generation_id: int = int32(default=-1)
    protocol_type: str | None = string(since=7, nullable=7, default=None)
    protocol_name: str | None = string(nullable=7)
    leader: str = string()
    skip_assignment: bool = boolean(since=9)
    member_id: str = string()
    members: list[JoinGroupResponseMember] = array(JoinGroupResponseMember)

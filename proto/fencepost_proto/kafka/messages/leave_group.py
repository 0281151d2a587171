"""LeaveGroup (key 13): leave a classic group; from version 3 several members at once (KIP-345)."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import array, int16, int32, message, string


@message
class MemberIdentity:
    member_id: str = string()
    group_instance_id: str | None = string(nullable=0, default=None)
    reason: str | None = string(since=5, nullable=5, default=None)


@message
class LeaveGroupRequest:
    group_id: str = string()
    member_id: str = string(until=2)
    members: list[MemberIdentity] = array(MemberIdentity, since=3)


@message
class MemberResponse:
    member_id: str = string()
    group_instance_id: str | None = string(nullable=0)
    error_code: int = int16()


@message
class LeaveGroupResponse:
    throttle_time_ms: int = int32(since=1)
    error_code: int = int16()
    members: list[MemberResponse] = array(MemberResponse, since=3)

"""SyncGroup (key 14): the leader of a generation gives the assignments, every member receives its own.

From version 5 a member states the protocol that it believes in (KIP-559). `assignment` is the clients' own.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import array, bytestring, int16, int32, message, string


@message
class SyncGroupRequestAssignment:
    member_id: str = string()
    assignment: bytes = bytestring()


@message
class SyncGroupRequest:
    group_id: str = string()
    generation_id: int = int32()
    member_id: str = string()
    group_instance_id: str | None = string(since=3, nullable=3, default=None)
    protocol_type: str | None = string(since=5, nullable=5, default=None)
    protocol_name: str | None = string(since=5, nullable=5, default=None)
    assignments: list[SyncGroupRequestAssignment] = array(SyncGroupRequestAssignment)


@message
class SyncGroupResponse:
    throttle_time_ms: int = int32(since=1)
    error_code: int = int16()
    protocol_type: str | None = string(since=5, nullable=5, default=None)
    protocol_name: str | None = string(since=5, nullable=5, default=None)
    assignment: bytes = bytestring()

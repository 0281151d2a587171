"""Heartbeat (key 12): a member of a classic group is alive, and learns whether it has to join again."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import int16, int32, message, string


@message
class HeartbeatRequest:
    group_id: str = string()
    generation_id: int = int32()
    member_id: str = string()
    group_instance_id: str | None = string(since=3, nullable=3, default=None)


@message
class HeartbeatResponse:
    throttle_time_ms: int = int32(since=1)
    error_code: int = int16()

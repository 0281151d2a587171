"""FindCoordinator (key 10): the broker that leads a group (key type 0) or a transactional id (1).

Up to version 3 one key is asked for and answered in the response's own fields, from 4 on many (KIP-699). Version 6
knows share groups (key type 2).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import STRING, array, int8, int16, int32, message, string


@message
class FindCoordinatorRequest:
    key: str = string(until=3)
    key_type: int = int8(since=1)
    coordinator_keys: list[str] = array(STRING, since=4)


@message
class Coordinator:
    key: str = string()
    node_id: int = int32()
    host: str = string()
    port: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)


@message
class FindCoordinatorResponse:
    throttle_time_ms: int = int32(since=1)
    error_code: int = int16(until=3)
    error_message: str | None = string(since=1, until=3, nullable=1, default=None)
    node_id: int = int32(until=3)
    host: str = string(until=3)
    port: int = int32(until=3)
    coordinators: list[Coordinator] = array(Coordinator, since=4)

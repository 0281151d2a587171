"""DeleteGroups (key 42): forget groups without members, their offsets included (KIP-229)."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import STRING, array, int16, int32, message, string


@message
class DeleteGroupsRequest:
    groups_names: list[str] = array(STRING)


@message
class DeletableGroupResult:
    group_id: str = string()
    error_code: int = int16()


@message
class DeleteGroupsResponse:
    throttle_time_ms: int = int32()
    results: list[DeletableGroupResult] = array(DeletableGroupResult)

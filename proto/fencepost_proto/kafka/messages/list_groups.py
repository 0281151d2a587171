"""ListGroups (key 16): the groups that this broker coordinates, by state (from version 4) and type (from 5)."""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import STRING, array, int16, int32, message, string


@message
class ListGroupsRequest:
    states_filter: list[str] = array(STRING, since=4)
    types_filter: list[str] = array(STRING, since=5)


@message
class ListedGroup:
    group_id: str = string()
    protocol_type: str = string()
    group_state: str = string(since=4)
    group_type: str = string(since=5)


@message
class ListGroupsResponse:
    throttle_time_ms: int = int32(since=1)
    error_code: int = int16()
    groups: list[ListedGroup] = array(ListedGroup)

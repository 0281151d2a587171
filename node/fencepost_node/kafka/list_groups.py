"""ListGroups (key 16), versions 0 to 5: the groups that this broker coordinates. A client asks every broker.

Filters by state (from version 4) and by type (from version 5, "classic" or "consumer"); their case does not matter.

Errors: COORDINATOR_LOAD_IN_PROGRESS, with what is known already; COORDINATOR_NOT_AVAILABLE.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import code_of
from fencepost_proto.kafka.messages.list_groups import ListedGroup, ListGroupsRequest, ListGroupsResponse


async def handle(context: KafkaContext, request: ListGroupsRequest, version: int) -> ListGroupsResponse:
    found, trouble = context.groups.list_groups()
    states = {state.lower() for state in request.states_filter}
    types = {each.lower() for each in request.types_filter}
    return ListGroupsResponse(
        error_code=code_of(trouble),
        groups=[
            ListedGroup(
                group_id=group.group_id,
                protocol_type=group.protocol_type,
                group_state=group.state,
                group_type=group.type,
            )
            for group in found
            if (not states or group.state.lower() in states) and (not types or group.type in types)
        ],
    )

"""ListGroups: the groups of one partition of the topic of groups, by id. A client asks the leader of each partition.

Limits: MAX_GROUPS groups an answer, and whether there are more. Errors: NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS.
"""

from __future__ import annotations

from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.groups import list_groups as list_them
from fencepost_proto.protocol.v1 import groups_pb2

MAX_GROUPS = 2_000  # in one answer


async def list_groups(
    groups: GroupCoordinators, request: groups_pb2.ListGroupsRequest
) -> groups_pb2.ListGroupsResponse:
    found, more = list_them(groups, request.partition, request.after, MAX_GROUPS)
    return groups_pb2.ListGroupsResponse(
        groups=[
            groups_pb2.ListedGroup(
                group_id=group.group_id, type=group.type, state=group.state, protocol_type=group.protocol_type
            )
            for group in found
        ],
        more=more,
    )

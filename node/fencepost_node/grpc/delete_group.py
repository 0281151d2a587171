"""DeleteGroup: forget a group without members, and its offsets. It answers when that is committed.

Errors: GROUP_ID_NOT_FOUND, NON_EMPTY_GROUP, INVALID_GROUP_ID, NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS,
COORDINATOR_NOT_AVAILABLE.
"""

from __future__ import annotations

from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.groups import delete_group as delete
from fencepost_proto.protocol.v1 import groups_pb2


async def delete_group(
    groups: GroupCoordinators, request: groups_pb2.DeleteGroupRequest
) -> groups_pb2.DeleteGroupResponse:
    await delete(groups, request.group_id)
    return groups_pb2.DeleteGroupResponse()

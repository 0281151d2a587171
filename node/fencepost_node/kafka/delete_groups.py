"""DeleteGroups (key 42), versions 0 to 2: forget groups without members, and their offsets.

Errors, of a group: GROUP_ID_NOT_FOUND, NON_EMPTY_GROUP, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
NOT_COORDINATOR, INVALID_GROUP_ID. While a large group is being deleted whoever else asks for it is told
COORDINATOR_LOAD_IN_PROGRESS. MAX_GROUPS_IN_A_REQUEST groups at most: INVALID_REQUEST for the others.
"""

from __future__ import annotations

from fencepost_node.coordination.messages import Deleted, DeleteGroup
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import error_of
from fencepost_proto.kafka.messages.delete_groups import DeletableGroupResult, DeleteGroupsRequest, DeleteGroupsResponse
from fencepost_proto.protocol.errors import ErrorCode

MAX_GROUPS_IN_A_REQUEST = 1_000


async def handle(context: KafkaContext, request: DeleteGroupsRequest, version: int) -> DeleteGroupsResponse:
    response = DeleteGroupsResponse()
    for number, group_id in enumerate(request.groups_names):
        if number >= MAX_GROUPS_IN_A_REQUEST:
            code = ErrorCode.INVALID_REQUEST
        else:
            answer = await context.groups.ask(DeleteGroup(group_id))
            code = ErrorCode.NONE if isinstance(answer, Deleted) else error_of(answer)
        response.results.append(DeletableGroupResult(group_id=group_id, error_code=code))
    return response

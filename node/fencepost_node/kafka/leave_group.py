"""LeaveGroup (key 13), versions 0 to 5: members leave a classic group, and it rebalances without them.

From version 3 a request names many members, static ones by their instance id alone.

Errors: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, INVALID_GROUP_ID, UNKNOWN_MEMBER_ID (there
is no such group); of a member: UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID.
"""

from __future__ import annotations

from fencepost_node.coordination.messages import Leave, Leaver, Left
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import code_of, error_of
from fencepost_proto.kafka.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberResponse

FIRST_WITH_MANY = 3


async def handle(context: KafkaContext, request: LeaveGroupRequest, version: int) -> LeaveGroupResponse:
    if version >= FIRST_WITH_MANY:
        leavers = tuple(Leaver(member.member_id, member.group_instance_id) for member in request.members)
    else:
        leavers = (Leaver(request.member_id, None),)
    answer = await context.groups.ask(Leave(request.group_id, leavers))
    if not isinstance(answer, Left):
        return LeaveGroupResponse(error_code=error_of(answer))
    if version < FIRST_WITH_MANY:
        return LeaveGroupResponse(error_code=code_of(answer.errors[0]))
    return LeaveGroupResponse(
        members=[
            MemberResponse(member_id=leaver.member_id, group_instance_id=leaver.instance_id, error_code=code_of(error))
            for leaver, error in zip(leavers, answer.errors, strict=True)
        ]
    )

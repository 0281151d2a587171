"""SyncGroup (key 14), versions 0 to 5: ask for one's assignment; the leader brings everyone's.

The answer comes when the leader's assignment is stored on every in-sync replica.

Errors: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR; UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID,
ILLEGAL_GENERATION, REBALANCE_IN_PROGRESS (join again), INCONSISTENT_GROUP_PROTOCOL, INVALID_GROUP_ID, GROUP_MAX_SIZE_REACHED
(assignments of more than MAX_GROUP_BYTES).
"""

from __future__ import annotations

from fencepost_node.coordination.messages import Sync, Synced
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import error_of
from fencepost_proto.kafka.messages.sync_group import SyncGroupRequest, SyncGroupResponse


async def handle(context: KafkaContext, request: SyncGroupRequest, version: int) -> SyncGroupResponse:
    answer = await context.groups.ask(
        Sync(
            group_id=request.group_id,
            generation=request.generation_id,
            member_id=request.member_id,
            instance_id=request.group_instance_id,
            protocol_type=request.protocol_type,
            protocol=request.protocol_name,
            assignments=tuple((each.member_id, bytes(each.assignment)) for each in request.assignments),
        )
    )
    if not isinstance(answer, Synced):
        return SyncGroupResponse(error_code=error_of(answer))
    return SyncGroupResponse(
        protocol_type=answer.protocol_type, protocol_name=answer.protocol, assignment=answer.assignment
    )

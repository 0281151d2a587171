"""Heartbeat (key 12), versions 0 to 4: a member of a classic group lives.

Errors: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR; UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID,
ILLEGAL_GENERATION, REBALANCE_IN_PROGRESS (join again), INVALID_GROUP_ID.
"""

from __future__ import annotations

from fencepost_node.coordination.messages import Alive, Heartbeat
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import error_of
from fencepost_proto.kafka.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from fencepost_proto.protocol.errors import ErrorCode


async def handle(context: KafkaContext, request: HeartbeatRequest, version: int) -> HeartbeatResponse:
    answer = await context.groups.ask(
        Heartbeat(request.group_id, request.generation_id, request.member_id, request.group_instance_id)
    )
    return HeartbeatResponse(error_code=ErrorCode.NONE if isinstance(answer, Alive) else error_of(answer))

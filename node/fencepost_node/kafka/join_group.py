"""JoinGroup (key 11), versions 0 to 9: become a member of the next generation of a classic group.

The answer comes with that generation, so it may take as long as the longest rebalance timeout in the group; an empty group
waits `group_initial_rebalance_delay_ms` for more members. From version 4 a member is given its id first (KIP-394). Static
members (KIP-345) from version 5; their leader is told to skip the assignment from version 9 (KIP-814).

Errors: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR; MEMBER_ID_REQUIRED, UNKNOWN_MEMBER_ID,
FENCED_INSTANCE_ID; INVALID_GROUP_ID, INVALID_SESSION_TIMEOUT, INCONSISTENT_GROUP_PROTOCOL (also for a group of KIP-848 that
has members), GROUP_MAX_SIZE_REACHED, INVALID_REQUEST; REBALANCE_IN_PROGRESS where the member has asked again.

Limits: `coordination/limits.py`.
"""

from __future__ import annotations

from fencepost_node.coordination.classic_rules import MemberIdGiven
from fencepost_node.coordination.messages import Join, Joined
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import client_host, error_of
from fencepost_proto.kafka.messages.join_group import JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember

ID_FIRST_FROM = 4
SKIPS_FROM = 9
PROTOCOL_MAY_BE_NULL_FROM = 7


async def handle(context: KafkaContext, request: JoinGroupRequest, version: int) -> JoinGroupResponse:
    rebalance_timeout_ms = request.rebalance_timeout_ms if version >= 1 else request.session_timeout_ms
    instance_id = request.group_instance_id
    client_id = context.client_id or ""
    answer = await context.groups.ask(
        Join(
            group_id=request.group_id,
            member_id=request.member_id,
            instance_id=instance_id,
            protocol_type=request.protocol_type,
            protocols=tuple((protocol.name, bytes(protocol.metadata)) for protocol in request.protocols),
            session_timeout_ms=request.session_timeout_ms,
            rebalance_timeout_ms=rebalance_timeout_ms,
            client_id=client_id,
            client_host=client_host(context),
            fresh_member_id=context.groups.fresh_member_id(client_id if instance_id is None else instance_id),
            needs_id_first=version >= ID_FIRST_FROM,
            may_skip_assignment=version >= SKIPS_FROM,
        )
    )
    if not isinstance(answer, Joined):
        return JoinGroupResponse(
            error_code=error_of(answer),
            protocol_name=None if version >= PROTOCOL_MAY_BE_NULL_FROM else "",
            member_id=answer.member_id if isinstance(answer, MemberIdGiven) else request.member_id,
        )
    return JoinGroupResponse(
        generation_id=answer.generation,
        protocol_type=answer.protocol_type,
        protocol_name=answer.protocol,
        leader=answer.leader,
        skip_assignment=answer.skip_assignment,
        member_id=answer.member_id,
        members=[
            JoinGroupResponseMember(
                member_id=member.member_id, group_instance_id=member.instance_id, metadata=member.subscription
            )
            for member in answer.members
        ],
    )

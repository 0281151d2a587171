"""DescribeGroups (key 15), versions 0 to 6: state, protocol and members of classic groups.

A group that no one knows, or that is one of KIP-848, is "Dead"; from version 6 with GROUP_ID_NOT_FOUND. Subscriptions and
assignments are told while the group is stable.

Errors, of a group: GROUP_ID_NOT_FOUND, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR,
INVALID_GROUP_ID. MAX_GROUPS_IN_A_REQUEST groups at most: INVALID_REQUEST for the others.
"""

from __future__ import annotations

from fencepost_node.coordination.messages import Describe, Description
from fencepost_node.kafka.authorized_operations import ON_GROUPS
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import error_of
from fencepost_proto.kafka.messages.describe_groups import (
    DescribedGroup,
    DescribedGroupMember,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError

NOT_FOUND_FROM = 6
MAX_GROUPS_IN_A_REQUEST = 1_000
DEAD = "Dead"


async def handle(context: KafkaContext, request: DescribeGroupsRequest, version: int) -> DescribeGroupsResponse:
    response = DescribeGroupsResponse()
    for number, group_id in enumerate(request.groups):
        if number >= MAX_GROUPS_IN_A_REQUEST:
            response.groups.append(DescribedGroup(error_code=ErrorCode.INVALID_REQUEST, group_id=group_id))
        else:
            response.groups.append(await _describe(context, group_id, version))
            if request.include_authorized_operations and response.groups[-1].error_code == ErrorCode.NONE:
                response.groups[-1].authorized_operations = ON_GROUPS
    return response


async def _describe(context: KafkaContext, group_id: str, version: int) -> DescribedGroup:
    answer = await context.groups.ask(Describe(group_id))
    if isinstance(answer, Description):
        return DescribedGroup(
            group_id=group_id,
            group_state=answer.state,
            protocol_type=answer.protocol_type,
            protocol_data=answer.protocol,
            members=[
                DescribedGroupMember(
                    member_id=member.member_id,
                    group_instance_id=member.instance_id,
                    client_id=member.client_id,
                    client_host=member.client_host,
                    member_metadata=member.subscription,
                    member_assignment=member.assignment,
                )
                for member in answer.members
            ],
        )
    code = error_of(answer)
    if code == ErrorCode.GROUP_ID_NOT_FOUND and version < NOT_FOUND_FROM:
        return DescribedGroup(group_id=group_id, group_state=DEAD)
    state = DEAD if code == ErrorCode.GROUP_ID_NOT_FOUND else ""
    message = answer.message if isinstance(answer, FencepostError) else None
    return DescribedGroup(error_code=code, error_message=message, group_id=group_id, group_state=state)

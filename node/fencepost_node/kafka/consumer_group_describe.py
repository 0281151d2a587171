"""ConsumerGroupDescribe (key 69), versions 0 and 1: groups of KIP-848, with what each member has and is to have.

Errors, of a group: GROUP_ID_NOT_FOUND (also for a classic group), COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
NOT_COORDINATOR, INVALID_GROUP_ID. MAX_GROUPS_IN_A_REQUEST groups at most: INVALID_REQUEST for the others.
"""

from __future__ import annotations

from fencepost_node.coordination.messages import ConsumerDescription, DescribeConsumer
from fencepost_node.kafka.authorized_operations import ON_GROUPS
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.group_members import by_topic, error_of
from fencepost_proto.kafka.messages.consumer_group_describe import (
    Assignment,
    ConsumerGroupDescribeRequest,
    ConsumerGroupDescribeResponse,
    DescribedGroup,
    Member,
    TopicPartitions,
)
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.topic_ids import from_wire

MAX_GROUPS_IN_A_REQUEST = 1_000
CONSUMER_MEMBER = 1  # a member's type, from version 1


async def handle(
    context: KafkaContext, request: ConsumerGroupDescribeRequest, version: int
) -> ConsumerGroupDescribeResponse:
    response = ConsumerGroupDescribeResponse()
    for number, group_id in enumerate(request.group_ids):
        if number >= MAX_GROUPS_IN_A_REQUEST:
            response.groups.append(DescribedGroup(error_code=ErrorCode.INVALID_REQUEST, group_id=group_id))
        else:
            response.groups.append(await _describe(context, group_id))
            if request.include_authorized_operations and response.groups[-1].error_code == ErrorCode.NONE:
                response.groups[-1].authorized_operations = ON_GROUPS
    return response


async def _describe(context: KafkaContext, group_id: str) -> DescribedGroup:
    answer = await context.groups.ask(DescribeConsumer(group_id))
    if not isinstance(answer, ConsumerDescription):
        message = answer.message if isinstance(answer, FencepostError) else None
        return DescribedGroup(error_code=error_of(answer), error_message=message, group_id=group_id)
    image = context.manager.image
    return DescribedGroup(
        group_id=group_id,
        group_state=answer.state,
        group_epoch=answer.epoch,
        assignment_epoch=answer.assignment_epoch,
        assignor_name=answer.assignor,
        members=[
            Member(
                member_id=member.member_id,
                instance_id=member.instance_id,
                rack_id=member.rack_id,
                member_epoch=member.epoch,
                client_id=member.client_id,
                client_host=member.client_host,
                subscribed_topic_names=list(member.topics),
                assignment=_assignment(image, member.assigned),
                target_assignment=_assignment(image, member.target),
                member_type=CONSUMER_MEMBER,
            )
            for member in answer.members
        ],
    )


def _assignment(image: MetadataImage, partitions: tuple[tuple[bytes, int], ...]) -> Assignment:
    """Topics that have gone are left out."""
    found = []
    for topic_id, indexes in by_topic(partitions).items():
        topic = image.topics.get(from_wire(topic_id))
        if topic is not None:
            found.append(TopicPartitions(topic_id=topic_id, topic_name=topic.name, partitions=indexes))
    return Assignment(found)

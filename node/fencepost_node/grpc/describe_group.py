"""DescribeGroup: state, members and their partitions of one group, of either kind.

Partitions of topics that have gone are left out, and so are those of a classic group while it is not stable.

Errors: GROUP_ID_NOT_FOUND, INVALID_GROUP_ID, NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE.
"""

from __future__ import annotations

from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.groups import describe_group as describe
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import common_pb2, groups_pb2


async def describe_group(
    groups: GroupCoordinators, image: MetadataImage, request: groups_pb2.DescribeGroupRequest
) -> groups_pb2.DescribeGroupResponse:
    view = await describe(groups, image, request.group_id)
    return groups_pb2.DescribeGroupResponse(
        type=view.type,
        state=view.state,
        protocol_type=view.protocol_type,
        assignor=view.assignor,
        epoch=view.epoch,
        members=[
            groups_pb2.GroupMember(
                member_id=member.member_id,
                instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                member_epoch=member.epoch,
                assigned=[
                    common_pb2.PartitionRef(topic_id=topic_id, partition=index) for topic_id, index in member.assigned
                ],
            )
            for member in view.members
        ],
    )

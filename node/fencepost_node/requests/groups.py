"""Groups as those who operate them see them, of either kind, free of any protocol."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from fencepost_node.coordination.messages import (
    ConsumerDescription,
    Deleted,
    DeleteGroup,
    Describe,
    DescribeConsumer,
    Description,
    ListedGroup,
)
from fencepost_node.coordination.offset_rules import CONSUMER_PROTOCOL
from fencepost_node.coordination.subscriptions import assigned_partitions
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.requests.group_offsets import as_error
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey
from fencepost_proto.protocol.topic_ids import from_wire


@dataclass(frozen=True, slots=True)
class MemberView:
    member_id: str
    instance_id: str
    client_id: str
    client_host: str
    epoch: int  # of a member of a classic group: -1
    assigned: tuple[PartitionKey, ...]  # of topics that are there


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group, whichever of the two kinds it is."""

    type: str  # "classic" or "consumer"
    state: str
    protocol_type: str
    assignor: str  # of a classic group: the protocol that its members have agreed on
    epoch: int  # of a classic group: -1
    members: tuple[MemberView, ...]


async def describe_group(coordinators: GroupCoordinators, image: MetadataImage, group_id: str) -> GroupView:
    """Raises GroupIdNotFound, InvalidGroupId, and what says that this broker does not coordinate the group now."""
    answer = await coordinators.ask(DescribeConsumer(group_id))
    if isinstance(answer, ConsumerDescription):
        return _of_consumer_group(image, answer)
    if not isinstance(answer, errors.GroupIdNotFound):
        raise as_error(answer)
    answer = await coordinators.ask(Describe(group_id))
    if isinstance(answer, errors.GroupIdNotFound):
        raise errors.GroupIdNotFound(f"there is no group {group_id!r}")
    if not isinstance(answer, Description):
        raise as_error(answer)
    return _of_classic_group(image, answer)


def _of_consumer_group(image: MetadataImage, answer: ConsumerDescription) -> GroupView:
    members = []
    for member in answer.members:
        keys = ((from_wire(topic_id), index) for topic_id, index in member.assigned)
        there = tuple(key for key in keys if key[0] in image.topics)
        members.append(
            MemberView(
                member.member_id, member.instance_id or "", member.client_id, member.client_host, member.epoch, there
            )
        )
    return GroupView("consumer", answer.state, CONSUMER_PROTOCOL, answer.assignor, answer.epoch, tuple(members))


def _of_classic_group(image: MetadataImage, answer: Description) -> GroupView:
    members = []
    for member in answer.members:
        is_consumer = answer.protocol_type == CONSUMER_PROTOCOL
        named = (assigned_partitions(member.assignment) if is_consumer else None) or []
        keys = ((image.topic_ids[topic], index) for topic, index in named if topic in image.topic_ids)
        members.append(
            MemberView(
                member.member_id, member.instance_id or "", member.client_id, member.client_host, -1, tuple(keys)
            )
        )
    return GroupView("classic", answer.state, answer.protocol_type, answer.protocol, -1, tuple(members))


async def delete_group(coordinators: GroupCoordinators, group_id: str) -> None:
    """Raises GroupIdNotFound, NonEmptyGroup, InvalidGroupId, and what says that this broker does not coordinate it now."""
    answer = await coordinators.ask(DeleteGroup(group_id))
    if not isinstance(answer, Deleted):
        raise as_error(answer)


def list_groups(
    coordinators: GroupCoordinators, partition: int, after: str, most: int
) -> tuple[list[ListedGroup], bool]:
    """The first groups above that id of one partition of the internal topic, by id, and whether there are more.

    Raises NotCoordinator, CoordinatorLoadInProgress.
    """
    wanted = (group for group in coordinators.list_of_partition(partition) if group.group_id > after)
    first = heapq.nsmallest(most + 1, wanted, key=lambda group: group.group_id)
    return first[:most], len(first) > most

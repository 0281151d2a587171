"""What the admin client does with groups: list, describe, their offsets and lag, resets, deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from fencepost.cluster import ClusterClient
from fencepost.concurrent import for_each
from fencepost.consuming.partition import EARLIEST, LATEST, TopicPartition
from fencepost.group_descriptions import (
    Bounds,
    CommittedOffset,
    GroupDescription,
    GroupListing,
    GroupMemberDescription,
    GroupPartition,
    OffsetReset,
    ResetTo,
    plan_reset,
)
from fencepost.group_requests import GroupRequests
from fencepost.log_queries import first_record_from, list_offset
from fencepost_proto.protocol.errors import (
    FencepostError,
    GroupIdNotFound,
    InvalidRequest,
    NonEmptyGroup,
    UnknownMemberId,
    UnknownTopicOrPartition,
    from_proto,
)
from fencepost_proto.protocol.internal_topics import OFFSETS_TOPIC
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import groups_pb2, groups_pb2_grpc

TIMEOUT_S = 30.0  # for an answer, through failures
OFFSET_TIMEOUT_S = 5.0  # for one log's start and end, where they are only shown
MAX_COMMITTED_AT_ONCE = 2_000  # offsets of one request
NOT_KNOWN = -1
NO_MEMBER = ""

Request = TypeVar("Request")


class GroupAdmin:
    """Of one admin client."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster
        self._requests = GroupRequests(cluster)

    # ---- Looking ----

    async def list_groups(self) -> list[GroupListing]:
        """Raises the last retriable error where a coordinator does not answer in time."""
        image = self._cluster.image
        partitions = image.partitions_of(image.topic_ids.get(OFFSETS_TOPIC, ""))
        parts = await for_each([partition.id for partition in partitions], self._groups_of)
        groups = (group for part in parts for group in part)
        return sorted(groups, key=lambda group: group.group_id)

    async def _groups_of(self, key: PartitionKey) -> list[GroupListing]:
        groups: list[GroupListing] = []
        more = True
        while more:
            request = groups_pb2.ListGroupsRequest(partition=key[1], after=groups[-1].group_id if groups else "")
            answer = await self._cluster.ask_leader(
                key,
                lambda channel: groups_pb2_grpc.GroupsStub(channel).ListGroups,
                _always(request),
                timeout_s=TIMEOUT_S,
            )
            groups += [GroupListing(g.group_id, g.type, g.state, g.protocol_type) for g in answer.groups]
            more = answer.more and bool(answer.groups)
        return groups

    async def describe_group(self, group_id: str) -> GroupDescription:
        """Raises GroupIdNotFound."""
        key = self._requests.partition_of(group_id)
        if key is None:
            raise _unknown(group_id)
        request = groups_pb2.DescribeGroupRequest(group_id=group_id)
        answer = await self._requests.ask(group_id, lambda groups: groups.DescribeGroup, lambda: request, TIMEOUT_S)
        leader = self._cluster.leader(key)
        members = tuple(
            GroupMemberDescription(
                m.member_id,
                m.instance_id,
                m.client_id,
                m.client_host,
                m.member_epoch,
                tuple(sorted(self._names((each.topic_id, each.partition) for each in m.assigned))),
            )
            for m in answer.members
        )
        return GroupDescription(
            group_id,
            answer.type,
            answer.state,
            answer.protocol_type,
            answer.assignor,
            answer.epoch,
            leader.leader_id if leader is not None else NOT_KNOWN,
            members,
        )

    async def offsets(self, group_id: str) -> dict[TopicPartition, CommittedOffset]:
        """All that a group has committed, of topics that are there; of one that is not known nothing."""
        if self._requests.partition_of(group_id) is None:
            return {}
        request = groups_pb2.FetchOffsetsRequest(group_id=group_id)
        answer = await self._requests.ask(group_id, lambda groups: groups.FetchOffsets, lambda: request, TIMEOUT_S)
        found: dict[TopicPartition, CommittedOffset] = {}
        for each in answer.offsets:
            for tp in self._names([(each.topic_id, each.partition)]):
                epoch = each.leader_epoch if each.HasField("leader_epoch") else NOT_KNOWN
                found[tp] = CommittedOffset(each.offset, epoch, each.metadata)
        return found

    async def partitions(self, group: GroupDescription) -> list[GroupPartition]:
        """Every partition that it has a commit for or a member reads, with its lag, sorted."""
        committed = await self.offsets(group.group_id)
        owners = {tp: member for member in group.members for tp in member.assigned}

        async def look(tp: TopicPartition) -> GroupPartition:
            bounds = Bounds(NOT_KNOWN, NOT_KNOWN)
            try:
                bounds = await self._bounds(tp, OFFSET_TIMEOUT_S)
            except FencepostError as error:
                if not error.retriable:
                    raise
            offset = committed[tp].offset if tp in committed else NOT_KNOWN
            owner = owners.get(tp)
            ids = (owner.member_id, owner.client_id) if owner is not None else (NO_MEMBER, "")
            return GroupPartition(tp.topic, tp.partition, offset, bounds.start, bounds.end, *ids)

        return await for_each(sorted({*committed, *owners}), look)

    # ---- Changes ----

    async def delete_group(self, group_id: str) -> None:
        """Raises GroupIdNotFound, NonEmptyGroup."""
        if self._requests.partition_of(group_id) is None:
            raise _unknown(group_id)
        request = groups_pb2.DeleteGroupRequest(group_id=group_id)
        attempts = 0

        def counted() -> groups_pb2.DeleteGroupRequest:
            nonlocal attempts
            attempts += 1
            return request

        try:
            await self._requests.ask(group_id, lambda groups: groups.DeleteGroup, counted, TIMEOUT_S)
        except GroupIdNotFound:
            if attempts == 1:
                raise  # else an earlier attempt, whose answer was lost, has done it

    async def plan_reset(
        self, group_id: str, partitions: Iterable[TopicPartition] | None, to: ResetTo, *, create: bool
    ) -> list[OffsetReset]:
        """What a reset would do, sorted. `partitions` None: all that the group has committed offsets for.

        `create`: a group that is not there has no offsets yet, and is no error. Raises GroupIdNotFound, NonEmptyGroup,
        UnknownTopicOrPartition, InvalidRequest.
        """
        try:
            group = await self.describe_group(group_id)
        except GroupIdNotFound:
            if not create:
                raise
        else:
            if group.members:
                raise NonEmptyGroup(
                    f"group {group_id!r} has {len(group.members)} members: offsets are reset while it has none"
                )
        committed = await self.offsets(group_id)
        wanted = sorted(set(committed if partitions is None else partitions))
        if not wanted:
            raise InvalidRequest(f"group {group_id!r} has no committed offsets: name the topics to reset")

        async def plan(tp: TopicPartition) -> OffsetReset:
            bounds = await self._bounds(tp, TIMEOUT_S)
            if to.kind == "time":
                record = await first_record_from(self._cluster, await self._key(tp), to.value, TIMEOUT_S)
                bounds = bounds._replace(at_time=record.offset if record is not None else NOT_KNOWN)
            return plan_reset(tp, to, committed[tp].offset if tp in committed else NOT_KNOWN, bounds)

        return await for_each(wanted, plan)

    async def commit_offsets(self, group_id: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit for a group that has no members. Raises NonEmptyGroup, UnknownTopicOrPartition."""
        keys = {tp: await self._key(tp) for tp in offsets}
        ordered = sorted(offsets.items())
        for first in range(0, len(ordered), MAX_COMMITTED_AT_ONCE):
            request = groups_pb2.CommitOffsetsRequest(
                group_id=group_id,
                offsets=[
                    groups_pb2.OffsetOfPartition(topic_id=keys[tp][0], partition=tp.partition, offset=offset)
                    for tp, offset in ordered[first : first + MAX_COMMITTED_AT_ONCE]
                ],
            )
            try:
                answer = await self._requests.ask(
                    group_id, lambda groups: groups.CommitOffsets, _always(request), TIMEOUT_S
                )
            except UnknownMemberId as error:  # someone has joined it
                raise NonEmptyGroup(error.message) from error
            for refused in answer.refused:
                raise from_proto(refused.error)

    # ---- Inside ----

    def _names(self, keys: Iterable[PartitionKey]) -> list[TopicPartition]:
        """Of topics that are there."""
        topics = self._cluster.image.topics
        return [TopicPartition(topics[topic_id].name, index) for topic_id, index in keys if topic_id in topics]

    async def _key(self, tp: TopicPartition) -> PartitionKey:
        topic_id = (await self._cluster.topic(tp.topic)).topic_id
        if (topic_id, tp.partition) not in self._cluster.image.partitions:
            count = len(self._cluster.image.partitions_of(topic_id))
            raise UnknownTopicOrPartition(f"topic {tp.topic!r} has no partition {tp.partition}: it has {count}")
        return topic_id, tp.partition

    async def _bounds(self, tp: TopicPartition, timeout_s: float) -> Bounds:
        key = await self._key(tp)
        start, _ = await list_offset(self._cluster, key, EARLIEST, timeout_s)
        end, _ = await list_offset(self._cluster, key, LATEST, timeout_s)
        return Bounds(start, end)


def _always(request: Request) -> Callable[..., Request]:
    return lambda *_: request


def _unknown(group_id: str) -> GroupIdNotFound:
    return GroupIdNotFound(f"there is no group {group_id!r}")

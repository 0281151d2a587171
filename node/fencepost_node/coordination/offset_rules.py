"""Committed offsets of one group: who may commit, what is refused, and when offsets are forgotten. Pure.

A commit by a member names its generation; one of an older generation is refused, for its member may have lost the
partition since. While a group waits for its leader's assignment nobody commits. A commit by no member (generation -1)
is for groups without members: an application that assigns its partitions itself.

An offset counts for one topic id. A topic that is made again under the same name has none of it.

Offsets are forgotten `retention_ms` after the group was left by its last member, or after the commit where that is later;
and when their topic is gone. Both are records without a value, appended and committed like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fencepost_node.coordination import consumer_rules, limits
from fencepost_node.coordination.classic_group import ClassicGroup, State
from fencepost_node.coordination.classic_rules import member_of, require_generation
from fencepost_node.coordination.consumer_group import ConsumerGroup
from fencepost_node.coordination.messages import (
    NO_GENERATION,
    Commit,
    FetchedOffset,
    FetchOffsets,
    OffsetToCommit,
)
from fencepost_node.coordination.records import NO_TOPIC_ID, OffsetKey, OffsetRecord
from fencepost_node.coordination.subscriptions import subscribed_topics
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

TopicPartition = tuple[str, int]
Offsets = Mapping[TopicPartition, OffsetRecord]  # of one group

NO_OFFSET = -1
CONSUMER_PROTOCOL = "consumer"  # the protocol type whose subscriptions name topics


def check_committer(group: ClassicGroup | ConsumerGroup, request: Commit) -> None:
    """Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress, StaleMemberEpoch."""
    if request.generation == NO_GENERATION and not request.member_id and request.instance_id is None:
        if group.members:
            raise errors.UnknownMemberId(
                f"group {group.group_id!r} has members: no one else commits offsets to it meanwhile"
            )
        return
    if isinstance(group, ConsumerGroup):
        partitions = [(each.topic_id, each.partition) for each in request.offsets]
        consumer_rules.check_committer(group, request.member_id, request.generation, partitions)
        return
    if not group.members:
        raise errors.IllegalGeneration(
            f"generation {request.generation} of group {group.group_id!r}, which has no members, commits nothing"
        )
    member_of(group, request.member_id, request.instance_id)
    require_generation(group, request.generation)
    if group.state is State.COMPLETING:
        raise errors.RebalanceInProgress(
            f"group {group.group_id!r} has no assignment yet in generation {group.generation}"
        )


def check_offset(offset: OffsetToCommit, held: Offsets, new: int) -> FencepostError | None:
    """What is wrong with one of a commit's offsets. `new`: how many of those before it the group has not had yet."""
    if len(offset.metadata) > limits.MAX_OFFSET_METADATA_CHARACTERS:
        return errors.OffsetMetadataTooLarge(
            f"metadata of {len(offset.metadata)} characters for {offset.topic}-{offset.partition}: at most "
            f"{limits.MAX_OFFSET_METADATA_CHARACTERS} are kept"
        )
    if offset.offset < 0:
        return errors.InvalidRequest(f"offset {offset.offset} of {offset.topic}-{offset.partition} is negative")
    if (offset.topic, offset.partition) not in held and len(held) + new >= limits.MAX_OFFSETS_OF_A_GROUP:
        return errors.InvalidCommitOffsetSize(
            f"{offset.topic}-{offset.partition} would be one more than {limits.MAX_OFFSETS_OF_A_GROUP} offsets of a group"
        )
    return None


def commit(
    group_id: str, request: Commit, held: Offsets, wall_ms: int
) -> tuple[list[tuple[OffsetKey, OffsetRecord]], list[FencepostError | None]]:
    """What is to be written, and each offset's error or None."""
    records: list[tuple[OffsetKey, OffsetRecord]] = []
    found: list[FencepostError | None] = []
    new: set[TopicPartition] = set()
    for each in request.offsets:
        error = check_offset(each, held, len(new))
        found.append(error)
        if error is None:
            key = OffsetKey(group_id, each.topic, each.partition)
            records.append((key, OffsetRecord(each.offset, each.leader_epoch, each.metadata, wall_ms, each.topic_id)))
            if (each.topic, each.partition) not in held:
                new.add((each.topic, each.partition))
    return records, found


def fetch(request: FetchOffsets, held: Offsets) -> tuple[FetchedOffset, ...]:
    """A partition without a committed offset has NO_OFFSET."""
    wanted = list(held) if request.partitions is None else request.partitions
    found = []
    for topic, partition in wanted:
        record = held.get((topic, partition))
        if record is None:
            found.append(FetchedOffset(topic, partition, NO_TOPIC_ID, NO_OFFSET, -1, ""))
        else:
            found.append(
                FetchedOffset(topic, partition, record.topic_id, record.offset, record.leader_epoch, record.metadata)
            )
    return tuple(found)


def check_deletable(group: ClassicGroup | ConsumerGroup, topic: str) -> None:
    """Whether offsets of that topic may be deleted. Raises NonEmptyGroup, GroupSubscribedToTopic."""
    if isinstance(group, ConsumerGroup):
        if any(topic in member.topics for member in group.members.values()):
            raise errors.GroupSubscribedToTopic(f"group {group.group_id!r} is subscribed to topic {topic!r}")
        return
    if not group.members:
        return
    if group.protocol_type != CONSUMER_PROTOCOL:
        raise errors.NonEmptyGroup(
            f"group {group.group_id!r} of protocol type {group.protocol_type!r} has members, which may use its offsets"
        )
    for member in group.members.values():
        for _, subscription in member.protocols:
            topics = subscribed_topics(subscription)
            if topics is None or topic in topics:
                raise errors.GroupSubscribedToTopic(f"group {group.group_id!r} is subscribed to topic {topic!r}")


def forgotten(
    held: Offsets,
    *,
    left_ms: int | None,  # wall clock, when the last member left; None: it has members
    wall_ms: int,
    retention_ms: int,
    is_gone: Callable[[str, bytes], bool],  # whether the topic of that name and id is known not to be there
) -> list[TopicPartition]:
    """The offsets that are to be forgotten now."""
    found = []
    for place, record in held.items():
        expired = left_ms is not None and max(left_ms, record.committed_ms) + retention_ms <= wall_ms
        if expired or is_gone(place[0], record.topic_id):
            found.append(place)
    return found

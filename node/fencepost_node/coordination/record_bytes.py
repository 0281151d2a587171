"""Records of a coordinator as the bytes of Kafka's `__consumer_offsets`, and back.

Offsets are written in version 4 of their value, which has the topic's id; classic groups in version 3, the one that Kafka
writes. All versions are read. What this version of Fencepost has no use for, a record of another type, stays in the table
as it is, and out of the coordinator's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fencepost_node.coordination.assignors import TopicPartition
from fencepost_node.coordination.consumer_records import partitions_by_topic
from fencepost_node.coordination.records import (
    ConsumerGroupKey,
    ConsumerGroupRecord,
    ConsumerMemberKey,
    ConsumerMemberRecord,
    CurrentKey,
    CurrentRecord,
    GroupKey,
    GroupRecord,
    Key,
    MemberRecord,
    MemberTargetKey,
    MemberTargetRecord,
    OffsetKey,
    OffsetRecord,
    Record,
    TargetKey,
    TargetRecord,
    Value,
)
from fencepost_node.coordination.table import Entry
from fencepost_proto.kafka import consumer_offsets as layouts
from fencepost_proto.kafka.schema.primitives import MalformedFrame
from fencepost_proto.protocol.errors import CorruptMessage

CLASSIC_GROUP_VERSION: Final = 3


def encode_record(record: Record) -> Entry:
    """Key and value of a record, or a tombstone."""
    key, value = record
    return _encode_key(key), None if value is None else _encode_value(value)


def _encode_key(key: Key) -> bytes:
    match key:
        case OffsetKey():
            return layouts.encode_key(layouts.OffsetCommitKey(key.group_id, key.topic, key.partition))
        case GroupKey():
            return layouts.encode_key(layouts.GroupMetadataKey(key.group_id))
        case ConsumerGroupKey():
            return layouts.encode_key(layouts.ConsumerGroupMetadataKey(key.group_id))
        case ConsumerMemberKey():
            return layouts.encode_key(layouts.ConsumerGroupMemberMetadataKey(key.group_id, key.member_id))
        case TargetKey():
            return layouts.encode_key(layouts.ConsumerGroupTargetAssignmentMetadataKey(key.group_id))
        case MemberTargetKey():
            return layouts.encode_key(layouts.ConsumerGroupTargetAssignmentMemberKey(key.group_id, key.member_id))
        case CurrentKey():
            return layouts.encode_key(layouts.ConsumerGroupCurrentMemberAssignmentKey(key.group_id, key.member_id))


def _encode_value(value: Value) -> bytes:
    match value:
        case OffsetRecord():
            return layouts.encode_value(
                layouts.OffsetCommitValue(
                    offset=value.offset,
                    leader_epoch=value.leader_epoch,
                    metadata=value.metadata,
                    commit_timestamp=value.committed_ms,
                    topic_id=value.topic_id,
                )
            )
        case GroupRecord():
            return layouts.encode_value(
                layouts.GroupMetadataValue(
                    protocol_type=value.protocol_type,
                    generation=value.generation,
                    protocol=value.protocol,
                    leader=value.leader,
                    current_state_timestamp=value.state_since_ms,
                    members=[
                        layouts.MemberMetadata(
                            member_id=member.member_id,
                            group_instance_id=member.instance_id,
                            client_id=member.client_id,
                            client_host=member.client_host,
                            rebalance_timeout=member.rebalance_timeout_ms,
                            session_timeout=member.session_timeout_ms,
                            subscription=member.subscription,
                            assignment=member.assignment,
                        )
                        for member in value.members
                    ],
                ),
                CLASSIC_GROUP_VERSION,
            )
        case _:
            return layouts.encode_value(_consumer_value(value))


def _consumer_value(
    value: ConsumerGroupRecord | ConsumerMemberRecord | TargetRecord | MemberTargetRecord | CurrentRecord,
) -> object:
    match value:
        case ConsumerGroupRecord():
            return layouts.ConsumerGroupMetadataValue(value.epoch, value.topics_hash)
        case ConsumerMemberRecord():
            return layouts.ConsumerGroupMemberMetadataValue(
                instance_id=value.instance_id,
                rack_id=value.rack_id,
                client_id=value.client_id,
                client_host=value.client_host,
                subscribed_topic_names=list(value.topics),
                rebalance_timeout_ms=value.rebalance_timeout_ms,
                server_assignor=value.assignor,
                classic_member_metadata=None,
            )
        case TargetRecord():
            return layouts.ConsumerGroupTargetAssignmentMetadataValue(value.assignment_epoch)
        case MemberTargetRecord():
            by_topic = partitions_by_topic(dict.fromkeys(value.partitions, 0))
            return layouts.ConsumerGroupTargetAssignmentMemberValue(
                [layouts.TargetTopicPartitions(topic_id, list(indexes)) for topic_id, indexes in by_topic.items()]
            )
        case CurrentRecord():
            return layouts.ConsumerGroupCurrentMemberAssignmentValue(
                member_epoch=value.epoch,
                previous_member_epoch=value.previous_epoch,
                state=value.state,
                assigned_partitions=_with_epochs(value.assigned),
                partitions_pending_revocation=_with_epochs(value.revoking),
            )


def _with_epochs(partitions: tuple[tuple[TopicPartition, int], ...]) -> list[layouts.CurrentTopicPartitions]:
    return [
        layouts.CurrentTopicPartitions(topic_id, list(indexes), list(indexes.values()))
        for topic_id, indexes in partitions_by_topic(dict(partitions)).items()
    ]


def decode_entry(key: bytes, value: bytes) -> tuple[Key, Value] | None:
    """None: of a type that is not used here. Raises CorruptMessage."""
    try:
        decoded = layouts.decode_key(key)
        take = _TAKEN.get(type(decoded))
        return None if take is None else take(decoded, layouts.decode_value(decoded, value))
    except MalformedFrame as error:
        raise CorruptMessage(f"a record of a coordinator cannot be read: {error}") from error


def _offset(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.OffsetCommitKey)
    assert isinstance(value, layouts.OffsetCommitValue)
    record = OffsetRecord(value.offset, value.leader_epoch, value.metadata, value.commit_timestamp, value.topic_id)
    return OffsetKey(key.group, key.topic, key.partition), record


def _group(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.GroupMetadataKey)
    assert isinstance(value, layouts.GroupMetadataValue)
    members = tuple(
        MemberRecord(
            member_id=member.member_id,
            instance_id=member.group_instance_id,
            client_id=member.client_id,
            client_host=member.client_host,
            rebalance_timeout_ms=member.rebalance_timeout,
            session_timeout_ms=member.session_timeout,
            subscription=member.subscription,
            assignment=member.assignment,
        )
        for member in value.members
    )
    record = GroupRecord(
        protocol_type=value.protocol_type,
        generation=value.generation,
        protocol=value.protocol,
        leader=value.leader,
        state_since_ms=value.current_state_timestamp,
        members=members,
    )
    return GroupKey(key.group), record


def _consumer_group(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.ConsumerGroupMetadataKey)
    assert isinstance(value, layouts.ConsumerGroupMetadataValue)
    return ConsumerGroupKey(key.group_id), ConsumerGroupRecord(value.epoch, value.metadata_hash)


def _consumer_member(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.ConsumerGroupMemberMetadataKey)
    assert isinstance(value, layouts.ConsumerGroupMemberMetadataValue)
    record = ConsumerMemberRecord(
        instance_id=value.instance_id,
        rack_id=value.rack_id,
        client_id=value.client_id,
        client_host=value.client_host,
        topics=tuple(value.subscribed_topic_names),
        rebalance_timeout_ms=value.rebalance_timeout_ms,
        assignor=value.server_assignor,
    )
    return ConsumerMemberKey(key.group_id, key.member_id), record


def _target(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.ConsumerGroupTargetAssignmentMetadataKey)
    assert isinstance(value, layouts.ConsumerGroupTargetAssignmentMetadataValue)
    return TargetKey(key.group_id), TargetRecord(value.assignment_epoch)


def _member_target(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.ConsumerGroupTargetAssignmentMemberKey)
    assert isinstance(value, layouts.ConsumerGroupTargetAssignmentMemberValue)
    partitions = frozenset((each.topic_id, index) for each in value.topic_partitions for index in each.partitions)
    return MemberTargetKey(key.group_id, key.member_id), MemberTargetRecord(partitions)


def _current(key: object, value: object) -> tuple[Key, Value]:
    assert isinstance(key, layouts.ConsumerGroupCurrentMemberAssignmentKey)
    assert isinstance(value, layouts.ConsumerGroupCurrentMemberAssignmentValue)
    record = CurrentRecord(
        epoch=value.member_epoch,
        previous_epoch=value.previous_member_epoch,
        state=value.state,
        assigned=_without_layout(value.assigned_partitions, value.member_epoch),
        revoking=_without_layout(value.partitions_pending_revocation, value.member_epoch),
    )
    return CurrentKey(key.group_id, key.member_id), record


def _without_layout(topics: list[layouts.CurrentTopicPartitions], epoch: int) -> tuple[tuple[TopicPartition, int], ...]:
    """`epoch`: of partitions beside which no epoch stands."""
    found: list[tuple[TopicPartition, int]] = []
    for each in topics:
        epochs = each.assignment_epochs or [epoch] * len(each.partitions)
        found += [((each.topic_id, index), given) for index, given in zip(each.partitions, epochs, strict=False)]
    return tuple(sorted(found))


_TAKEN: dict[type[object], Callable[[object, object], tuple[Key, Value]]] = {
    layouts.OffsetCommitKey: _offset,
    layouts.GroupMetadataKey: _group,
    layouts.ConsumerGroupMetadataKey: _consumer_group,
    layouts.ConsumerGroupMemberMetadataKey: _consumer_member,
    layouts.ConsumerGroupTargetAssignmentMetadataKey: _target,
    layouts.ConsumerGroupTargetAssignmentMemberKey: _member_target,
    layouts.ConsumerGroupCurrentMemberAssignmentKey: _current,
}

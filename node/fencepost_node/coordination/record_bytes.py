"""Records of a coordinator as the bytes of Kafka's `__consumer_offsets`, and back.

Offsets are written in version 4 of their value, which has the topic's id; classic groups in version 3, the one that Kafka
writes. All versions are read. What this version of Fencepost has no use for, a record of another type, stays in the table
as it is, and out of the coordinator's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fencepost_node.coordination.records import (
    GroupKey,
    GroupRecord,
    Key,
    MemberRecord,
    OffsetKey,
    OffsetRecord,
    Record,
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


_TAKEN: dict[type[object], Callable[[object, object], tuple[Key, Value]]] = {
    layouts.OffsetCommitKey: _offset,
    layouts.GroupMetadataKey: _group,
}

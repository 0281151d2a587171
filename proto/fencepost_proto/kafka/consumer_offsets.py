"""The records of `__consumer_offsets`: groups and their offsets, in the layouts that Kafka's own tools read.

A record's key is an int16 that says the record's type, then the key's fields; its value is an int16 version, then the
fields of that version. A record without a value (a tombstone) takes back what its key named. Types 3 to 8 and 16 are
of groups whose coordinator assigns (KIP-848).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fencepost_proto.kafka.schema.fields import (
    INT32,
    STRING,
    array,
    bytestring,
    int8,
    int32,
    int64,
    message,
    string,
    uuid,
)
from fencepost_proto.kafka.schema.fields import struct as struct_field
from fencepost_proto.kafka.schema.primitives import MalformedFrame
from fencepost_proto.kafka.schema.reading import Reader, compile_reader
from fencepost_proto.kafka.schema.writing import Writer, compile_writer

# ---- Offsets ----


@message
class OffsetCommitKey:
    group: str = string()
    topic: str = string()
    partition: int = int32()


@message
class OffsetCommitValue:
    """Times are milliseconds of the wall clock. An offset of another topic id than the topic's is of a deleted
    topic."""

    offset: int = int64()
    leader_epoch: int = int32(since=3, default=-1)
    metadata: str = string()
    commit_timestamp: int = int64()
    expire_timestamp: int = int64(since=1, until=1, default=-1)
    topic_id: bytes = uuid(since=4, tag=0)


# ---- Classic groups ----


@message
class GroupMetadataKey:
    group: str = string()


@message
class MemberMetadata:
    """Timeouts are milliseconds; subscription and assignment are the clients' own bytes."""

    member_id: str = string()
    group_instance_id: str | None = string(since=3, nullable=3, default=None)
    client_id: str = string()
    client_host: str = string()
    rebalance_timeout: int = int32(since=1, default=-1)
    session_timeout: int = int32()
    subscription: bytes = bytestring()
    assignment: bytes = bytestring()


@message
class GroupMetadataValue:
    """A generation with its members, as the leader's SyncGroup made it."""

    protocol_type: str = string()
    generation: int = int32()
    protocol: str | None = string(nullable=0, default=None)
    leader: str | None = string(nullable=0, default=None)
    current_state_timestamp: int = int64(since=2, default=-1)
    members: list[MemberMetadata] = array(MemberMetadata)


# ---- Groups of KIP-848 ----


@message
class ConsumerGroupMetadataKey:
    group_id: str = string()


@message
class ConsumerGroupMetadataValue:
    """The group's epoch, and a hash of the topics that its members subscribe to."""

    epoch: int = int32()
    metadata_hash: int = int64(tag=0)


@message
class ConsumerGroupPartitionMetadataKey:
    """Kafka writes only tombstones of this type since 4.1: the hash above replaces it."""

    group_id: str = string()


@message
class PartitionMetadata:
    partition: int = int32()
    racks: list[str] = array(STRING)


@message
class TopicMetadata:
    topic_id: bytes = uuid()
    topic_name: str = string()
    num_partitions: int = int32()
    partition_metadata: list[PartitionMetadata] = array(PartitionMetadata)


@message
class ConsumerGroupPartitionMetadataValue:
    topics: list[TopicMetadata] = array(TopicMetadata)


@message
class ConsumerGroupMemberMetadataKey:
    group_id: str = string()
    member_id: str = string()


@message
class ClassicProtocol:
    name: str = string()
    metadata: bytes = bytestring()


@message
class ClassicMemberMetadata:
    """Of a member that speaks the classic protocol in a group of KIP-848."""

    session_timeout_ms: int = int32()
    supported_protocols: list[ClassicProtocol] = array(ClassicProtocol)


@message
class ConsumerGroupMemberMetadataValue:
    """What a member said of itself."""

    instance_id: str | None = string(nullable=0, default=None)
    rack_id: str | None = string(nullable=0, default=None)
    client_id: str = string()
    client_host: str = string()
    subscribed_topic_names: list[str] = array(STRING)
    subscribed_topic_regex: str | None = string(nullable=0, default=None)
    rebalance_timeout_ms: int = int32(default=-1)
    server_assignor: str | None = string(nullable=0, default=None)
    classic_member_metadata: ClassicMemberMetadata | None = struct_field(ClassicMemberMetadata, nullable=0, tag=0)


@message
class ConsumerGroupTargetAssignmentMetadataKey:
    group_id: str = string()


@message
class ConsumerGroupTargetAssignmentMetadataValue:
    """The group epoch that the target assignment was made for."""

    assignment_epoch: int = int32()
    assignment_timestamp: int = int64(tag=0)


@message
class ConsumerGroupTargetAssignmentMemberKey:
    group_id: str = string()
    member_id: str = string()


@message
class TargetTopicPartitions:
    topic_id: bytes = uuid()
    partitions: list[int] = array(INT32)


@message
class ConsumerGroupTargetAssignmentMemberValue:
    """What a member is to have."""

    topic_partitions: list[TargetTopicPartitions] = array(TargetTopicPartitions)


@message
class ConsumerGroupCurrentMemberAssignmentKey:
    group_id: str = string()
    member_id: str = string()


@message
class CurrentTopicPartitions:
    """`assignment_epochs` has, per partition, the epoch in which the member received it (KIP-1251)."""

    topic_id: bytes = uuid()
    partitions: list[int] = array(INT32)
    assignment_epochs: list[int] | None = array(INT32, nullable=0, tag=0)


@message
class ConsumerGroupCurrentMemberAssignmentValue:
    """What a member has. The previous epoch is good too: its answer may have been lost."""

    member_epoch: int = int32()
    previous_member_epoch: int = int32()
    state: int = int8()
    assigned_partitions: list[CurrentTopicPartitions] = array(CurrentTopicPartitions)
    partitions_pending_revocation: list[CurrentTopicPartitions] = array(CurrentTopicPartitions)


@message
class ConsumerGroupRegularExpressionKey:
    group_id: str = string()
    regular_expression: str = string()


@message
class ConsumerGroupRegularExpressionValue:
    """The topics that a regular expression meant at a version of the metadata."""

    topics: list[str] = array(STRING)
    version: int = int64()
    timestamp: int = int64()


# ---- Bytes ----


class RecordType(NamedTuple):
    """One type of record: the classes of key and value, and the value's versions (from 0 on)."""

    number: int
    key: type[object]
    value: type[object]
    last_version: int = 0
    first_flexible: int = 0


RECORD_TYPES = (
    RecordType(1, OffsetCommitKey, OffsetCommitValue, last_version=4, first_flexible=4),
    RecordType(2, GroupMetadataKey, GroupMetadataValue, last_version=4, first_flexible=4),
    RecordType(3, ConsumerGroupMetadataKey, ConsumerGroupMetadataValue),
    RecordType(4, ConsumerGroupPartitionMetadataKey, ConsumerGroupPartitionMetadataValue),
    RecordType(5, ConsumerGroupMemberMetadataKey, ConsumerGroupMemberMetadataValue),
    RecordType(6, ConsumerGroupTargetAssignmentMetadataKey, ConsumerGroupTargetAssignmentMetadataValue),
    RecordType(7, ConsumerGroupTargetAssignmentMemberKey, ConsumerGroupTargetAssignmentMemberValue),
    RecordType(8, ConsumerGroupCurrentMemberAssignmentKey, ConsumerGroupCurrentMemberAssignmentValue),
    RecordType(16, ConsumerGroupRegularExpressionKey, ConsumerGroupRegularExpressionValue),
)
_BY_NUMBER = {of.number: of for of in RECORD_TYPES}
_BY_KEY = {of.key: of for of in RECORD_TYPES}
_BY_VALUE = {of.value: of for of in RECORD_TYPES}
_NUMBER = struct.Struct(">h")
_ANY_NUMBER_OF_ELEMENTS = 2**62  # this cluster wrote them

_readers: dict[tuple[type[object], int], Reader] = {}
_writers: dict[tuple[type[object], int], Writer] = {}


def encode_key(key: object) -> bytes:
    """A record's key: one of the classes above. Raises ValueError where a field cannot hold its value."""
    return _encode(key, _BY_KEY[type(key)].number, 0, flexible=False)


def encode_value(value: object, version: int | None = None) -> bytes:
    """A record's value in a version, without one in the last. Raises ValueError where a field cannot hold its value."""
    of = _BY_VALUE[type(value)]
    version = of.last_version if version is None else version
    return _encode(value, version, version, flexible=version >= of.first_flexible)


def decode_key(data: bytes | memoryview) -> object:
    """The key of one of the classes above. Raises MalformedFrame, also for a type that is not here."""
    of = _BY_NUMBER.get(_number(data))
    if of is None:
        raise MalformedFrame(f"no record of __consumer_offsets has type {_number(data)}")
    return _decode(data, of.key, 0, flexible=False)


def decode_value(key: object, data: bytes | memoryview) -> object:
    """The value of a record with this key, which was decoded before. Raises MalformedFrame."""
    of = _BY_KEY[type(key)]
    version = _number(data)
    if not 0 <= version <= of.last_version:
        raise MalformedFrame(f"{of.value.__name__} has no version {version}; the last is {of.last_version}")
    return _decode(data, of.value, version, flexible=version >= of.first_flexible)


def _number(data: bytes | memoryview) -> int:
    if len(data) < _NUMBER.size:
        raise MalformedFrame(f"{len(data)} bytes are no key and no value of __consumer_offsets")
    number: int = _NUMBER.unpack_from(data)[0]
    return number


def _encode(of: object, number: int, version: int, *, flexible: bool) -> bytes:
    cls = type(of)
    write = _writers.get((cls, version))
    if write is None:
        write = _writers[cls, version] = compile_writer(cls, version, flexible)
    try:
        return _NUMBER.pack(number) + b"".join(write(of))
    except (struct.error, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{cls.__name__} v{version} cannot be written: {error}") from error


def _decode(data: bytes | memoryview, cls: type[object], version: int, *, flexible: bool) -> object:
    read = _readers.get((cls, version))
    if read is None:
        read = _readers[cls, version] = compile_reader(cls, version, flexible)
    try:
        decoded, end = read(memoryview(data), _NUMBER.size, len(data), _ANY_NUMBER_OF_ELEMENTS)
    except (MalformedFrame, struct.error, IndexError, UnicodeDecodeError) as error:
        raise MalformedFrame(f"{cls.__name__} v{version} of {len(data)} bytes: {error}") from error
    if end != len(data):
        raise MalformedFrame(f"{cls.__name__} v{version}: {len(data) - end} bytes are left after it")
    return decoded

"""What a coordinator writes, as values; `record_bytes` has their bytes. One record is one change of one key's value."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_node.coordination.assignors import Assignment, TopicPartition

NO_TOPIC_ID = bytes(16)


@dataclass(frozen=True, slots=True)
class OffsetKey:
    group_id: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Of a classic group."""

    group_id: str


@dataclass(frozen=True, slots=True)
class OffsetRecord:
    """A committed offset. `topic_id` says which topic of that name it counts in; NO_TOPIC_ID: not known."""

    offset: int
    leader_epoch: int
    metadata: str
    committed_ms: int  # wall clock
    topic_id: bytes


@dataclass(frozen=True, slots=True)
class MemberRecord:
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A classic group at the start of a generation, or with its assignment, or without members."""

    protocol_type: str
    generation: int
    protocol: str | None
    leader: str | None
    state_since_ms: int  # wall clock
    members: tuple[MemberRecord, ...]


# ---- Consumer groups of KIP-848 ----


@dataclass(frozen=True, slots=True)
class ConsumerGroupKey:
    group_id: str


@dataclass(frozen=True, slots=True)
class ConsumerGroupRecord:
    epoch: int
    topics_hash: int


@dataclass(frozen=True, slots=True)
class ConsumerMemberKey:
    group_id: str
    member_id: str


@dataclass(frozen=True, slots=True)
class ConsumerMemberRecord:
    """What a member has said of itself."""

    instance_id: str | None
    rack_id: str | None
    client_id: str
    client_host: str
    topics: tuple[str, ...]
    rebalance_timeout_ms: int
    assignor: str | None


@dataclass(frozen=True, slots=True)
class TargetKey:
    group_id: str


@dataclass(frozen=True, slots=True)
class TargetRecord:
    assignment_epoch: int


@dataclass(frozen=True, slots=True)
class MemberTargetKey:
    group_id: str
    member_id: str


@dataclass(frozen=True, slots=True)
class MemberTargetRecord:
    partitions: Assignment


@dataclass(frozen=True, slots=True)
class CurrentKey:
    group_id: str
    member_id: str


@dataclass(frozen=True, slots=True)
class CurrentRecord:
    """What a member has, and in which epoch each partition was given to it."""

    epoch: int
    previous_epoch: int
    state: int
    assigned: tuple[tuple[TopicPartition, int], ...]
    revoking: tuple[tuple[TopicPartition, int], ...]


Key = OffsetKey | GroupKey | ConsumerGroupKey | ConsumerMemberKey | TargetKey | MemberTargetKey | CurrentKey
Value = (
    OffsetRecord
    | GroupRecord
    | ConsumerGroupRecord
    | ConsumerMemberRecord
    | TargetRecord
    | MemberTargetRecord
    | CurrentRecord
)
Record = tuple[Key, Value | None]  # None: a tombstone

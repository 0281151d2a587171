"""What a coordinator writes, as values; `record_bytes` has their bytes. One record is one change of one key's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

NO_TOPIC_ID = bytes(16)


class OffsetKey(NamedTuple):
    group_id: str
    topic: str
    partition: int


class GroupKey(NamedTuple):
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


Key = OffsetKey | GroupKey
Value = OffsetRecord | GroupRecord
Record = tuple[Key, Value | None]  # None: a tombstone

"""What the admin client returns about groups, and where a reset moves their offsets: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fencepost.consuming.partition import TopicPartition
from fencepost_proto.protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class GroupListing:
    """One group, of either kind."""

    group_id: str
    type: str  # "classic" or "consumer" (KIP-848)
    state: str  # Kafka's name
    protocol_type: str  # "consumer", where its members are consumers; empty: it has had none


@dataclass(frozen=True, slots=True)
class GroupMemberDescription:
    """One member, and what it is assigned."""

    member_id: str
    instance_id: str  # of a static member; empty: it is none
    client_id: str
    client_host: str
    epoch: int  # of a classic group: -1
    assigned: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """One group and its members, in the order in which they came."""

    group_id: str
    type: str
    state: str
    protocol_type: str
    assignor: str
    epoch: int  # of a classic group: -1
    coordinator: int  # broker id
    members: tuple[GroupMemberDescription, ...]


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """How far a group has come in one partition."""

    offset: int  # of the next record to read
    leader_epoch: int  # of the record before it; -1: not known
    metadata: str


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """One partition that a group reads, or has read."""

    topic: str
    partition: int
    committed: int  # -1: nothing is committed
    log_start: int  # -1: the leader does not answer, and so for the next one
    log_end: int  # the high watermark: up to there records can be read
    member_id: str  # that has it; empty: nobody
    client_id: str

    @property
    def lag(self) -> int | None:
        """Records between what is committed and the end; of a partition without a commit all. None: not known."""
        if self.log_end < 0:
            return None
        return max(0, self.log_end - max(self.committed, self.log_start))


# ---- Resets ----

ResetKind = Literal["earliest", "latest", "offset", "shift", "time"]


class ResetTo(NamedTuple):
    """Where a group's offsets go: the log's start or end, an offset, so many records on (or back, below 0), or the first
    record of that time (ms since 1970) or later."""

    kind: ResetKind
    value: int = 0


class Bounds(NamedTuple):
    """Where a log starts, where it ends, and the first record of the time that was asked for (-1: there is none)."""

    start: int
    end: int
    at_time: int = -1


@dataclass(frozen=True, slots=True)
class OffsetReset:
    """One partition's part of a reset."""

    topic: str
    partition: int
    before: int  # -1: nothing is committed
    after: int
    note: str = ""  # why it is not what was asked for


def plan_reset(tp: TopicPartition, to: ResetTo, committed: int, bounds: Bounds) -> OffsetReset:
    """As Kafka's tool has it: an offset beyond the log becomes the nearest one in it. Raises InvalidRequest."""
    wanted = bounds.end
    match to.kind:
        case "earliest":
            wanted = bounds.start
        case "latest":
            wanted = bounds.end
        case "offset":
            wanted = to.value
        case "shift":
            if committed < 0:
                raise InvalidRequest(f"{tp.topic}-{tp.partition} has no committed offset that could be shifted")
            wanted = committed + to.value
        case "time":
            wanted = bounds.at_time if bounds.at_time >= 0 else bounds.end
    after = min(max(wanted, bounds.start), bounds.end)
    note = (
        "" if after == wanted else f"{wanted} is {'below the start' if after > wanted else 'beyond the end'} of the log"
    )
    return OffsetReset(tp.topic, tp.partition, committed, after, note)

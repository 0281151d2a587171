"""What a coordinator is asked, and what it answers: plain values, of no protocol's version.

A question is answered once: by the value that stands beside it here, or by a FencepostError. Times are in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fencepost_proto.protocol.errors import FencepostError

NO_GENERATION = -1  # of a commit by someone who is no member

# ---- Classic groups ----


@dataclass(frozen=True, slots=True)
class Join:
    """Join a group, or rejoin it; answered by Joined once the next generation is there."""

    group_id: str
    member_id: str  # "": none yet
    instance_id: str | None  # of a static member (KIP-345)
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]  # name and subscription, the preferred one first
    session_timeout_ms: int
    rebalance_timeout_ms: int
    client_id: str
    client_host: str
    fresh_member_id: str  # for who has none
    needs_id_first: bool = False  # join with an id that was given out before, or be given one and join again (KIP-394)
    may_skip_assignment: bool = False  # the leader understands that it is to assign nothing (KIP-814)


class JoinedMember(NamedTuple):
    member_id: str
    instance_id: str | None
    subscription: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    generation: int
    protocol_type: str
    protocol: str
    leader: str
    member_id: str
    members: tuple[JoinedMember, ...] = ()  # for the leader alone
    skip_assignment: bool = False


@dataclass(frozen=True, slots=True)
class Sync:
    """Ask for one's assignment, and from the leader: give everyone's. Answered by Synced."""

    group_id: str
    generation: int
    member_id: str
    instance_id: str | None
    protocol_type: str | None = None  # None: not said
    protocol: str | None = None
    assignments: tuple[tuple[str, bytes], ...] = ()  # by member id


@dataclass(frozen=True, slots=True)
class Synced:
    protocol_type: str
    protocol: str
    assignment: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Answered by Alive."""

    group_id: str
    generation: int
    member_id: str
    instance_id: str | None


@dataclass(frozen=True, slots=True)
class Alive: ...


class Leaver(NamedTuple):
    member_id: str  # "": whoever has that instance id
    instance_id: str | None


@dataclass(frozen=True, slots=True)
class Leave:
    """Answered by Left."""

    group_id: str
    members: tuple[Leaver, ...]


@dataclass(frozen=True, slots=True)
class Left:
    errors: tuple[FencepostError | None, ...]  # in the order of the question


# ---- Consumer groups of KIP-848 ----


@dataclass(frozen=True, slots=True)
class ConsumerHeartbeat:
    """A member says what has changed; None: nothing. Answered by ConsumerAlive."""

    group_id: str
    member_id: str
    member_epoch: int  # 0: it joins; -1: it leaves; -2: it leaves for a while, being static
    instance_id: str | None = None
    rack_id: str | None = None
    rebalance_timeout_ms: int = -1  # -1: not said
    topics: tuple[str, ...] | None = None  # that it subscribes to
    assignor: str | None = None
    owned: tuple[tuple[bytes, int], ...] | None = None  # partitions that it has, by topic id
    client_id: str = ""
    client_host: str = ""

    @property
    def is_full(self) -> bool:
        """It says everything: it wants to be told everything."""
        return self.rebalance_timeout_ms > 0 and self.topics is not None and self.owned is not None


@dataclass(frozen=True, slots=True)
class ConsumerAlive:
    member_id: str
    member_epoch: int
    heartbeat_interval_ms: int
    session_timeout_ms: int  # not heard of for so long, the member is removed
    assignment: tuple[tuple[bytes, int], ...] | None  # partitions, by topic id; None: as it was told before


@dataclass(frozen=True, slots=True)
class DescribeConsumer:
    """Of a consumer group; answered by ConsumerDescription."""

    group_id: str


class DescribedConsumer(NamedTuple):
    member_id: str
    instance_id: str | None
    rack_id: str | None
    epoch: int
    client_id: str
    client_host: str
    topics: tuple[str, ...]
    assigned: tuple[tuple[bytes, int], ...]
    target: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class ConsumerDescription:
    group_id: str
    state: str
    epoch: int
    assignment_epoch: int
    assignor: str
    members: tuple[DescribedConsumer, ...]


# ---- Offsets ----


class OffsetToCommit(NamedTuple):
    topic: str
    partition: int
    topic_id: bytes  # 16; which topic has that name now
    offset: int
    leader_epoch: int  # -1: not known
    metadata: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Answered by Committed."""

    group_id: str
    generation: int  # of a consumer group: the member's epoch; NO_GENERATION: by no member
    member_id: str
    instance_id: str | None
    offsets: tuple[OffsetToCommit, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    errors: tuple[FencepostError | None, ...]  # in the order of the question


@dataclass(frozen=True, slots=True)
class FetchOffsets:
    """Answered by FetchedOffsets."""

    group_id: str
    partitions: tuple[tuple[str, int], ...] | None  # topic and partition; None: all that the group has
    member_id: str = ""  # of a consumer group; "": nothing is checked
    member_epoch: int = NO_GENERATION


class FetchedOffset(NamedTuple):
    """`offset` -1: nothing is committed."""

    topic: str
    partition: int
    topic_id: bytes
    offset: int
    leader_epoch: int
    metadata: str


@dataclass(frozen=True, slots=True)
class FetchedOffsets:
    offsets: tuple[FetchedOffset, ...]


@dataclass(frozen=True, slots=True)
class DeleteOffsets:
    """Answered by Committed: an error, or none, for each."""

    group_id: str
    partitions: tuple[tuple[str, int], ...]


# ---- Looking at groups, and deleting them ----


@dataclass(frozen=True, slots=True)
class Describe:
    """Of a classic group; answered by Description."""

    group_id: str


class DescribedMember(NamedTuple):
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    subscription: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True)
class Description:
    group_id: str
    state: str
    protocol_type: str
    protocol: str
    members: tuple[DescribedMember, ...]


class ListedGroup(NamedTuple):
    group_id: str
    protocol_type: str
    state: str
    type: str  # "classic" or "consumer"


@dataclass(frozen=True, slots=True)
class DeleteGroup:
    """Answered by Deleted."""

    group_id: str


@dataclass(frozen=True, slots=True)
class Deleted:
    is_complete: bool = True  # otherwise some offsets are left, and it is to be asked again

"""One classic group as a value: who its members are, and where it stands between two generations.

States (Kafka's names)::

    EMPTY        no members; offsets, and the generation of the last that were
    PREPARING    a rebalance has begun: waits until every member has joined again, or the deadline
    COMPLETING   the generation is there: waits for the leader's assignment, and for everyone to ask for their own
    STABLE       everyone's assignment is there

What of it is in the log is its last record: generation, protocol, leader, members with subscription and assignment. It is
written when a generation begins (before anyone is told of it) and when its assignment is there; and when a member leaves
or expires, which is marked in it by a session timeout of 0: so the next leader waits for nobody who is gone, and begins
the rebalance that this one had begun. Who waits, timers, and members that have not come to a generation yet are of this
process alone: the next leader has none of them.

No method changes a group; `dataclasses.replace` makes the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from fencepost_node.coordination.messages import Joined, JoinedMember
from fencepost_node.coordination.records import GroupRecord, MemberRecord

Token = int  # of one question; the shell knows who asks

FOREVER = float("inf")


class State(Enum):
    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(frozen=True, slots=True)
class Member:
    """`join` and `sync`: the question that waits; a member waits for one answer at most, and does not expire meanwhile."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocols: tuple[tuple[str, bytes], ...]
    expires_at: float
    assignment: bytes = b""
    has_synced: bool = False  # has asked for its assignment in this generation
    join: Token | None = None
    sync: Token | None = None

    @property
    def waits(self) -> bool:
        return self.join is not None or self.sync is not None

    @property
    def size_bytes(self) -> int:
        """Of its subscriptions."""
        return sum(len(name) + len(subscription) for name, subscription in self.protocols)

    def subscription(self, protocol: str | None) -> bytes:
        return next((subscription for name, subscription in self.protocols if name == protocol), b"")

    def alive(self, now: float) -> Member:
        """It has been heard of."""
        return replace(self, expires_at=now + self.session_timeout_ms / 1000)


@dataclass(frozen=True, slots=True)
class ClassicGroup:
    """Invariants: EMPTY is without members; a leader is a member; instance ids differ; the generation never goes back."""

    group_id: str
    state: State = State.EMPTY
    generation: int = 0
    protocol_type: str | None = None  # None: it never had a member, only offsets
    protocol: str | None = None
    leader: str | None = None
    members: Mapping[str, Member] = field(default_factory=dict)  # by member id, in the order in which they came
    pending: Mapping[str, float] = field(default_factory=dict)  # ids given out, and when they are forgotten
    state_since_ms: int = -1  # wall clock
    # PREPARING: the generation begins at the latest. COMPLETING, STABLE: who has not synced is removed.
    deadline: float = FOREVER
    grows_until: float = 0.0  # PREPARING from EMPTY: the deadline moves, up to here, while members come
    has_grown: bool = False  # a member has come since the deadline was set
    recorded: GroupRecord | None = None  # the log's record of it

    @property
    def is_recorded(self) -> bool:
        return self.recorded is not None

    @property
    def rebalance_timeout_s(self) -> float:
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0) / 1000

    @property
    def size_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members.values())

    def with_instance(self, instance_id: str) -> Member | None:
        return next((member for member in self.members.values() if member.instance_id == instance_id), None)

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        sessions = (member.expires_at for member in self.members.values() if not member.waits)
        return min((self.deadline, *self.pending.values(), *sessions))

    # ---- Protocols ----

    def common_protocols(self, members: Iterable[Member] | None = None) -> set[str]:
        """Those that every member supports."""
        supported = [
            {name for name, _ in member.protocols} for member in (self.members.values() if members is None else members)
        ]
        return set.intersection(*supported) if supported else set()

    def select_protocol(self) -> str:
        """Each member votes for the first of its protocols that all support; the first name with most votes wins."""
        common = self.common_protocols()
        votes: dict[str, int] = {}
        for member in self.members.values():
            choice = next(name for name, _ in member.protocols if name in common)
            votes[choice] = votes.get(choice, 0) + 1
        return max(votes, key=lambda name: (votes[name], name))

    # ---- What a member is told ----

    def joined(self, member_id: str) -> Joined:
        return Joined(
            generation=self.generation,
            protocol_type=self.protocol_type or "",
            protocol=self.protocol or "",
            leader=self.leader or "",
            member_id=member_id,
            members=self.joined_members() if member_id == self.leader else (),
        )

    def joined_members(self) -> tuple[JoinedMember, ...]:
        return tuple(
            JoinedMember(member.member_id, member.instance_id, member.subscription(self.protocol))
            for member in self.members.values()
        )

    # ---- The log ----

    def as_record(self) -> GroupRecord:
        return GroupRecord(
            protocol_type=self.protocol_type or "",
            generation=self.generation,
            protocol=self.protocol,
            leader=self.leader,
            state_since_ms=self.state_since_ms,
            members=tuple(
                MemberRecord(
                    member_id=member.member_id,
                    instance_id=member.instance_id,
                    client_id=member.client_id,
                    client_host=member.client_host,
                    rebalance_timeout_ms=member.rebalance_timeout_ms,
                    session_timeout_ms=member.session_timeout_ms,
                    subscription=member.subscription(self.protocol),
                    assignment=member.assignment,
                )
                for member in self.members.values()
            ),
        )


def without_sessions(record: GroupRecord, member_ids: Iterable[str]) -> GroupRecord:
    """The same, where these members are gone: they expire as soon as a leader has loaded it."""
    gone = set(member_ids)
    members = (replace(each, session_timeout_ms=0) if each.member_id in gone else each for each in record.members)
    return replace(record, members=tuple(members))


def group_from_record(group_id: str, record: GroupRecord, now: float) -> ClassicGroup:
    """The group as a new leader finds it: timers start at `now`.

    Where no member has an assignment, the leader's never came to the log: the group still waits for it.
    """
    members = {
        each.member_id: Member(
            member_id=each.member_id,
            instance_id=each.instance_id,
            client_id=each.client_id,
            client_host=each.client_host,
            session_timeout_ms=each.session_timeout_ms,
            rebalance_timeout_ms=each.rebalance_timeout_ms,
            protocols=((record.protocol or "", each.subscription),),
            expires_at=now + each.session_timeout_ms / 1000,
            assignment=each.assignment,
        )
        for each in record.members
    }
    group = ClassicGroup(
        group_id,
        State.EMPTY,
        record.generation,
        record.protocol_type or None,
        record.protocol if members else None,
        record.leader if members else None,
        members,
        state_since_ms=record.state_since_ms,
        recorded=record,
    )
    if not members:
        return group
    if any(member.assignment for member in members.values()):
        synced = {member_id: replace(member, has_synced=True) for member_id, member in members.items()}
        return replace(group, state=State.STABLE, members=synced)
    return replace(group, state=State.COMPLETING, deadline=now + group.rebalance_timeout_s)

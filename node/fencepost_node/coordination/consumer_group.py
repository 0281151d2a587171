"""One consumer group of KIP-848 as a value: the coordinator assigns, and each member moves to its target by itself.

Three epochs. The *group epoch* rises when members, subscriptions or topics change. The *assignment epoch* is the group epoch
that the target assignment was made for. A *member epoch* is the assignment epoch that a member has reached: it has given up
whatever its target does not have.

Member states::

    STABLE       it has reached its epoch, and has all of its target
    REVOKING     it is to give up partitions first; they stay its own until it says that it has
    WAITING      it has reached its epoch, and some of its target is still another member's

A partition is `assigned` to a member, or being revoked from it, or nobody's. It is given to a member only while it is
nobody's: so no two have it, in whatever epochs they are (G12). With each assigned partition stands the epoch in which it was
given (KIP-1251): a commit of an older epoch may be of someone else's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from fencepost_node.coordination.assignors import NOTHING, Assignment, TopicPartition

FOREVER = float("inf")

JOINING = 0  # member epochs with a meaning of their own: a member joins …
LEAVING = -1
STATIC_LEAVING = -2  # … or a static member leaves for a while


class MemberState(IntEnum):
    """Numbers of Kafka's records."""

    STABLE = 0
    REVOKING = 1
    WAITING = 2


@dataclass(frozen=True, slots=True)
class ConsumerMember:
    member_id: str
    instance_id: str | None
    rack_id: str | None
    client_id: str
    client_host: str
    topics: tuple[str, ...]  # names, sorted
    rebalance_timeout_ms: int
    assignor: str | None
    epoch: int = JOINING
    previous_epoch: int = JOINING
    state: MemberState = MemberState.STABLE
    assigned: Mapping[TopicPartition, int] = field(default_factory=dict)  # and the epoch in which it was given
    revoking: Mapping[TopicPartition, int] = field(default_factory=dict)
    expires_at: float = FOREVER
    revoked_by: float = FOREVER  # the latest moment for it to have given up what it is to give up

    @property
    def has_left_for_a_while(self) -> bool:
        return self.epoch == STATIC_LEAVING


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """Invariant: no partition is assigned to, or being revoked from, two members."""

    group_id: str
    epoch: int = 0
    topics_hash: int = 0  # of the subscribed topics' ids and partition counts, as of `epoch`
    assignment_epoch: int = 0
    members: Mapping[str, ConsumerMember] = field(default_factory=dict)  # in the order in which they came
    target: Mapping[str, Assignment] = field(default_factory=dict)  # by member id
    topics_version: int = -1  # of the metadata that `topics_hash` was last compared with
    is_recorded: bool = False
    state_since_ms: int = -1  # wall clock, when the last member left; -1: before this leader began

    def target_of(self, member_id: str) -> Assignment:
        return self.target.get(member_id, NOTHING)

    def with_instance(self, instance_id: str) -> ConsumerMember | None:
        return next((member for member in self.members.values() if member.instance_id == instance_id), None)

    def owners(self) -> dict[TopicPartition, str]:
        """Whose each partition is, or still is."""
        return {
            partition: member.member_id
            for member in self.members.values()
            for partitions in (member.assigned, member.revoking)
            for partition in partitions
        }

    @property
    def state(self) -> str:
        """Kafka's name."""
        if not self.members:
            return "Empty"
        if self.epoch > self.assignment_epoch:
            return "Assigning"
        for member in self.members.values():
            if member.epoch != self.assignment_epoch or member.state is not MemberState.STABLE:
                return "Reconciling"
        return "Stable"

    def next_deadline(self) -> float:
        return min(
            (min(member.expires_at, member.revoked_by) for member in self.members.values()),
            default=FOREVER,
        )

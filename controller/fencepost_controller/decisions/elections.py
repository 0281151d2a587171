"""Elections that are asked for: the preferred leader, by an operator or in the background, and the unclean one.

A **preferred** leader is the first replica of the assignment. It takes over only where it serves and is in sync, so no
record is at stake.

An **unclean** election makes a replica the leader that may miss acknowledged records. It happens on an operator's explicit
command, only where the partition has no leader. The chosen broker becomes the whole in-sync set, and no other one is
eligible; from then on its log is what is committed. The choice is not made here: metadata does not say who holds what. The
admin client asks the replicas and takes the longest log (KIP-966); it names the broker epoch of the one that it asked, so
that a process which has restarted since, and may hold less, is not elected in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.partitions import recompute
from fencepost_proto.protocol.errors import (
    ElectionNotNeeded,
    EligibleLeadersNotAvailable,
    InvalidRequest,
    PreferredLeaderNotAvailable,
)
from fencepost_proto.protocol.metadata import NO_LEADER

ANY_EPOCH = 0  # below every broker epoch: whichever incarnation is live
MOVES_PER_ROUND = 100  # leaderships restored at a time, at least: each costs its clients a redirect …
PART_PER_ROUND = 10  # … and of all partitions at most a tenth, so that a large cluster is done after as many rounds


@dataclass(frozen=True, slots=True)
class ElectPreferredLeader(Command[None]):
    topic_name: str
    index: int

    def decide(self, draft: Draft) -> None:
        partition = draft.partition_of(self.topic_name, self.index)
        preferred = partition.replicas[0]
        if partition.leader == preferred:
            raise ElectionNotNeeded(f"{self.topic_name}-{self.index}: broker {preferred} leads already")
        if preferred not in partition.isr or not draft.serves(preferred, partition.id):
            raise PreferredLeaderNotAvailable(
                f"{self.topic_name}-{self.index}: broker {preferred} is not live and in sync; in sync: {partition.isr}"
            )
        recompute(draft, partition, replace(partition, leader=preferred))


@dataclass(frozen=True, slots=True)
class ElectUncleanLeader(Command[None]):
    topic_name: str
    index: int
    leader: int
    broker_epoch: int = ANY_EPOCH

    def decide(self, draft: Draft) -> None:
        partition = draft.partition_of(self.topic_name, self.index)
        name = f"{self.topic_name}-{self.index}"
        if partition.leader != NO_LEADER:
            raise ElectionNotNeeded(f"{name}: broker {partition.leader} leads")
        if self.leader not in partition.replicas:
            raise InvalidRequest(f"{name}: broker {self.leader} is none of its replicas {partition.replicas}")
        broker = draft.broker(self.leader)
        if broker is None or not draft.serves(self.leader, partition.id):
            raise EligibleLeadersNotAvailable(f"{name}: broker {self.leader} is not live")
        if self.broker_epoch not in (ANY_EPOCH, broker.broker_epoch):
            raise EligibleLeadersNotAvailable(
                f"{name}: broker {self.leader} has restarted (broker epoch {broker.broker_epoch}, not "
                f"{self.broker_epoch}) and may hold less than it did"
            )
        others = [broker_id for broker_id in partition.replicas if broker_id != self.leader]
        elected = replace(partition, isr=(self.leader,), leader=self.leader, eligible=())
        recompute(draft, partition, elected, lost=others)


@dataclass(frozen=True, slots=True)
class RestorePreferredLeaders(Command[int]):
    """Give leaderships back to preferred leaders. Answers how many moved."""

    settled: frozenset[int]  # brokers that have been live for some time: one that flaps gets nothing back yet

    def decide(self, draft: Draft) -> int:
        elsewhere = sorted(
            key
            for key, partition in draft.image.partitions.items()
            if partition.leader not in (NO_LEADER, partition.replicas[0]) and partition.replicas[0] in self.settled
        )
        most = max(MOVES_PER_ROUND, len(draft.image.partitions) // PART_PER_ROUND)
        moved = 0
        for key in elsewhere:
            partition = draft.image.partitions[key]
            preferred = partition.replicas[0]
            if preferred in partition.isr and draft.serves(preferred, key):
                recompute(draft, partition, replace(partition, leader=preferred))
                moved += 1
                if moved == most:
                    break
        return moved

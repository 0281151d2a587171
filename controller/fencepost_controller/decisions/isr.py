"""AlterPartition: a leader proposes the in-sync set of a partition it leads.

The proposal is the leader's, since only it knows who holds what; the decision is the controller's, since only it knows
who is alive. It is a compare-and-set on the partition epoch, made by the current leader under the current leader epoch.
Every member must serve, and be the very incarnation that the leader saw catch up (KIP-903): one that has restarted since
may have less.

The controller may have done more than was asked (completed a reassignment, moved the leadership off a broker that is
leaving); the answer is then still a success, and the session brings the rest.

A broker sends all its proposals of the moment in one request (as Kafka's AlterPartition does): after a restart there are
thousands. Each is decided on its own, and one that is refused does not touch the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.partitions import recompute
from fencepost_proto.protocol.errors import (
    EligibleLeadersNotAvailable,
    FencedLeaderEpoch,
    FencepostError,
    IneligibleReplica,
    InvalidRequest,
    InvalidUpdateVersion,
    NotLeaderOrFollower,
    UnknownLeaderEpoch,
    UnknownTopicId,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import NO_LEADER, Partition, PartitionKey


def led_partition(draft: Draft, key: PartitionKey, broker_id: int, leader_epoch: int) -> Partition:
    """A partition that this broker leads under this leader epoch. Raises the FencepostError that says what is not so."""
    topic_id, index = key
    if topic_id not in draft.image.topics:
        raise UnknownTopicId(f"topic id {topic_id!r} is not known")
    partition = draft.partition(key)
    if partition is None:
        raise UnknownTopicOrPartition(f"topic {topic_id!r} has no partition {index}")
    hint = draft.image.current_leader(partition)
    text = f"{partition.key}: broker {broker_id} proposes under leader epoch {leader_epoch}"
    if leader_epoch < partition.leader_epoch:
        raise FencedLeaderEpoch(f"{text}; it is {partition.leader_epoch} now", current_leader=hint)
    if leader_epoch > partition.leader_epoch:
        raise UnknownLeaderEpoch(f"{text}; it is only {partition.leader_epoch}", current_leader=hint)
    if broker_id != partition.leader:
        raise NotLeaderOrFollower(f"{text}; the leader is {partition.leader}", current_leader=hint)
    return partition


@dataclass(frozen=True, slots=True)
class AlterPartition(Command[None]):
    broker_id: int
    broker_epoch: int
    partition: PartitionKey
    leader_epoch: int
    partition_epoch: int
    new_isr: tuple[tuple[int, int], ...]  # (broker id, broker epoch as the leader saw it)

    def decide(self, draft: Draft) -> None:
        draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        partition = led_partition(draft, self.partition, self.broker_id, self.leader_epoch)
        members = tuple(broker_id for broker_id, _ in self.new_isr)
        if self.partition_epoch != partition.partition_epoch:
            if self.partition_epoch == partition.partition_epoch - 1 and set(members) == set(partition.isr):
                return  # the leader repeats a proposal whose answer it did not get
            raise InvalidUpdateVersion(
                f"{partition.key}: partition epoch {self.partition_epoch} is not the current {partition.partition_epoch}"
            )
        self._check_members(draft, partition, members)
        recompute(draft, partition, replace(partition, isr=members))

    def _check_members(self, draft: Draft, partition: Partition, members: tuple[int, ...]) -> None:
        if self.broker_id not in members:
            raise InvalidRequest(f"{partition.key}: in-sync set {members} without its leader {self.broker_id}")
        if len(set(members)) != len(members):
            raise InvalidRequest(f"{partition.key}: in-sync set {members} names a broker twice")
        for broker_id, broker_epoch in self.new_isr:
            if broker_id not in partition.replicas:
                raise InvalidRequest(f"{partition.key}: {broker_id} is none of the replicas {partition.replicas}")
            if broker_id == self.broker_id:
                continue  # it is checked already, and may go on leading while it shuts down
            if not draft.serves(broker_id, partition.id):
                raise IneligibleReplica(f"{partition.key}: broker {broker_id} is fenced, shutting down or failed")
            broker = draft.broker(broker_id)
            if broker is None or broker.broker_epoch != broker_epoch:
                raise IneligibleReplica(
                    f"{partition.key}: broker {broker_id} caught up with broker epoch {broker_epoch}, "
                    f"and has been registered again since"
                )


@dataclass(frozen=True, slots=True)
class AlterPartitions(Command[tuple[FencepostError | None, ...]]):
    """Answers, for each proposal, with the error that refuses it; None: the in-sync set is as proposed."""

    broker_id: int
    broker_epoch: int
    proposals: tuple[AlterPartition, ...]  # of this broker

    def decide(self, draft: Draft) -> tuple[FencepostError | None, ...]:
        draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        return tuple(self._decide(draft, proposal) for proposal in self.proposals)

    def _decide(self, draft: Draft, proposal: AlterPartition) -> FencepostError | None:
        try:
            proposal.decide(draft)  # refuses before it changes anything
        except FencepostError as error:
            return error
        return None


@dataclass(frozen=True, slots=True)
class StartReplicaOver(Command[None]):
    """A broker's replica has failed, its log is damaged, and the broker is about to give up what it holds.

    Allowed only where another broker leads, from the version of the answer on. Then the replica is neither in sync nor
    eligible, and a new leader epoch begins, as after a removal: whatever a leader knows of the replica from before, and
    every proposal that rests on it, is of an older epoch. The replica joins under the new one, with what it holds then.
    """

    broker_id: int
    broker_epoch: int
    partition: PartitionKey

    def decide(self, draft: Draft) -> None:
        draft.check_broker_epoch(self.broker_id, self.broker_epoch)
        partition = draft.partition(self.partition)
        if partition is None:
            raise UnknownTopicOrPartition(f"partition {self.partition[0]}-{self.partition[1]} is not known")
        if self.broker_id not in partition.replicas:
            raise InvalidRequest(f"{partition.key}: {self.broker_id} is none of the replicas {partition.replicas}")
        others = tuple(member for member in partition.isr if member != self.broker_id)
        if partition.leader in (NO_LEADER, self.broker_id) or not others:
            raise EligibleLeadersNotAvailable(
                f"{partition.key}: no other broker leads than {self.broker_id}, which keeps what it has "
                f"(leader {partition.leader}, in sync {partition.isr})"
            )
        after = recompute(draft, partition, lost=(self.broker_id,))
        if after.leader_epoch == partition.leader_epoch:
            epochs = (partition.leader_epoch + 1, partition.partition_epoch + 1)
            draft.put(replace(after, leader_epoch=epochs[0], partition_epoch=epochs[1]))

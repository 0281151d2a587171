"""Recompute in-sync set, leader and epochs of a partition after its replicas, its in-sync set or a broker changed.

Every change of a partition goes through `recompute`, so there is one place that keeps these rules:

1. **The in-sync set.** Remove members that do not serve (dead, shutting down, their disk failed). If that would empty the
   set: keep those in controlled shutdown that can still lead; failing that, keep all: nothing was acknowledged meanwhile,
   so each still holds every acknowledged record, and no other replica is sure to. The set is in assignment order.
2. **A reassignment completes** as soon as its target is in sync (KIP-455): every added replica is in the in-sync set, one
   of the target can lead, and dropping the others does not by itself bring the set below min.insync.replicas.
3. **The leader** stays while it serves. Otherwise the first in-sync replica in assignment order that serves takes over. A
   leader in controlled shutdown stays if no other replica can lead. Otherwise there is none: the partition is offline
   until an in-sync replica returns. No replica outside the in-sync set becomes leader here.
4. **Epochs**: the partition epoch rises by one with every change; the leader epoch with every change of leader, also to
   none, and with every removal of a replica. For a replica may be removed and soon added again: a broker that has received
   neither still holds the log that it is about to delete, and must not join the in-sync set with it; under a new epoch the
   leader does not talk to it. A change of the in-sync set alone does not touch the leader epoch: a leader counts as in
   sync everyone who may be, by what it proposed or by what it last received, so until it receives a removal its high
   watermark only waits longer than it must.
"""

from __future__ import annotations

from dataclasses import replace

from fencepost_controller.decisions.draft import Draft
from fencepost_proto.protocol.metadata import NO_LEADER, Partition


def recompute(draft: Draft, before: Partition, after: Partition | None = None) -> Partition:
    """Recompute ISR, leader and epochs after a change, and stage the result in `draft`.

    `after`: the partition as the command changed it; None where only a broker changed. Returns the staged partition.
    """
    settled = _in_sync(draft, after or before)
    settled = _complete_reassignment(draft, settled)
    leader = _leader(draft, settled)
    last_known_isr = () if settled.isr else settled.last_known_isr
    if settled == before and (leader, last_known_isr) == (before.leader, before.last_known_isr):
        return before
    removes = settled.replicas != before.replicas and not set(before.replicas) <= set(settled.replicas)
    settled = Partition(  # not `replace`: a broker's death makes thousands
        topic_id=before.topic_id,
        index=before.index,
        replicas=settled.replicas,
        isr=settled.isr,
        leader=leader,
        leader_epoch=before.leader_epoch + (leader != before.leader or removes),
        partition_epoch=before.partition_epoch + 1,
        adding=settled.adding,
        removing=settled.removing,
        last_known_isr=last_known_isr,
        deleted_end_offset=before.deleted_end_offset,
        deleted_in_epoch=before.deleted_in_epoch,
    )
    draft.put(settled)
    return settled


def recompute_all_of(draft: Draft, broker_id: int) -> None:
    """Recompute each partition with this broker in its in-sync set, after a change in what the broker may do."""
    for partition in draft.partitions_in_sync_on(broker_id):
        recompute(draft, partition)


def target_of(partition: Partition) -> tuple[int, ...]:
    """Its replicas once the reassignment under way is complete."""
    return tuple(b for b in partition.replicas if b not in partition.removing)


def _in_sync(draft: Draft, partition: Partition) -> Partition:
    members = tuple(b for b in partition.replicas if b in partition.isr)
    isr = tuple(b for b in members if draft.serves(b, partition.id))
    isr = isr or tuple(b for b in members if draft.can_go_on(b, partition.id)) or members
    if isr == partition.isr:
        return partition
    p = partition
    return Partition(
        p.topic_id, p.index, p.replicas, isr, p.leader, p.leader_epoch, p.partition_epoch,
        p.adding, p.removing, p.last_known_isr, p.deleted_end_offset, p.deleted_in_epoch,
    )  # fmt: skip


def _complete_reassignment(draft: Draft, partition: Partition) -> Partition:
    if not partition.adding and not partition.removing:
        return partition
    target = target_of(partition)
    kept = tuple(b for b in target if b in partition.isr)
    enough = min(draft.image.topics[partition.topic_id].config.min_insync_replicas, len(partition.isr))
    if (
        not set(partition.adding) <= set(partition.isr)
        or not any(draft.serves(b, partition.id) for b in kept)
        or len(kept) < enough
    ):
        return partition
    return replace(partition, replicas=target, isr=kept, adding=(), removing=())


def _leader(draft: Draft, partition: Partition) -> int:
    key, leader = partition.id, partition.leader
    if leader in partition.isr and draft.serves(leader, key):
        return leader
    for broker_id in partition.isr:
        if draft.serves(broker_id, key):
            return broker_id
    if leader in partition.isr and draft.can_go_on(leader, key):
        return leader
    return NO_LEADER

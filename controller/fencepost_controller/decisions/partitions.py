"""Recompute in-sync set, eligible replicas, leader and epochs of a partition after something it rests on has changed.

Every change of a partition goes through `recompute`, so there is one place that keeps these rules:

1. **The in-sync set.** Remove members that do not serve (dead, shutting down, their disk failed). If that would empty the
   set: keep those in controlled shutdown that can still lead; failing that, an eligible replica that serves takes its place,
   or one that leaves the set by this very change; failing that, keep all: nothing was acknowledged meanwhile. The set is
   in assignment order.
2. **Eligible replicas** (KIP-966) are those that hold all that is committed and are not in sync. Whoever leaves the in-sync
   set becomes one, unless it may have lost records. All of them cease to be as soon as a leader may commit without them:
   when the partition has a leader, and `min.insync.replicas` in sync; or when one that may lead is of a version that commits
   with fewer (`features.py`).
3. **A reassignment completes** as soon as its target is in sync (KIP-455): every added replica is in the in-sync set, one
   of the target can lead, and dropping the others does not by itself bring the set below min.insync.replicas.
4. **The leader** stays while it serves. Otherwise the first in-sync replica in assignment order that serves takes over. A
   leader in controlled shutdown stays if no other replica can lead. Otherwise there is none: the partition is offline
   until an in-sync or eligible replica returns. No other replica becomes leader here.
5. **Epochs**: the partition epoch rises by one with every change; the leader epoch with every change of leader, also to
   none, and with every removal of a replica. For a replica may be removed and soon added again: a broker that has received
   neither still holds the log that it is about to delete, and must not join the in-sync set with it; under a new epoch the
   leader does not talk to it. A change of the in-sync set alone does not touch the leader epoch: a leader counts as in
   sync everyone who may be, by what it proposed or by what it last received, so until it receives a removal its high
   watermark only waits longer than it must.

**Why each of them holds every committed record.** The claim: at each metadata version, every in-sync and every eligible
replica holds all that any leader has committed so far, or will commit by metadata older than that version. (Committed:
below a leader's high watermark, so acknowledged with acks=all, or shown to a reader.) A leader commits a record only while
the newest metadata that it knows has `min.insync.replicas` in sync, and once all of the *maximal* in-sync set hold it: the
members that it knows of, and those that it has proposed (the broker's `leader_state.py`). The claim then survives each
step:

- *A leader commits, by older metadata than the controller's.* What it knew had enough in sync, so no one was eligible at
  that version; all that are in sync or eligible now were in sync then, or proposed by it, or have joined a later leader.
  The former hold the record. So does the later leader, which was one of them, and led with its whole log; and who joins it
  has reached the end of that log first.
- *Someone leaves the in-sync set*: it held everything as a member. From then on, with fewer than `min.insync.replicas` in
  sync, no one commits by this metadata or newer; with enough, it is no longer eligible.
- *An eligible replica is elected.* It has all; what it holds beyond may become committed later. The one that led before
  keeps its log, is eligible in turn, and cuts what the new leader does not have: nothing committed (`reconciliation.py`).
- *min.insync.replicas is lowered*: the same version that makes a leader commit with fewer ends the eligibility (the command
  recomputes all partitions of the topic). A leader that is none any more receives both at once, and ends before it
  takes the setting (`replica.py`). *It is raised*: a leader by the older setting counted everyone who left since.
- *Records are lost*: with the page cache (the machine went down, and the topic acknowledges before it syncs), with the
  folder (new, older, a copy), with a log (damaged, removed by hand). The broker tells so when it registers, and before that
  it leads nothing: its elections took no effect. It stops being a member and eligible (`lost`), and only following brings
  it back. A process that was killed has lost nothing: the page cache outlives it.
- *A broker of an older version leads*: it commits with fewer in sync, so whoever is in no such set may lack that. No one is
  eligible from the version on at which it may be elected, which is before it leads.
- *A replica is removed*: it is neither, and its return is that of a new one.
- *An operator elects uncleanly*: the elected log becomes what is committed; no one else is eligible.

So where all in sync are gone, the partition waits for the first of several to come back, not for one in particular. Readers
lose nothing by that (G10): what only a lone member holds was shown to none of them.

`last_known_isr` is for the operator: of a partition without a leader, who was in sync or eligible and may have lost records.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fencepost_controller.decisions.draft import Draft
from fencepost_proto.protocol.features import ELIGIBLE_REPLICAS
from fencepost_proto.protocol.metadata import NO_LEADER, Partition


def recompute(
    draft: Draft, before: Partition, after: Partition | None = None, *, lost: Collection[int] = ()
) -> Partition:
    """Recompute a partition after a change, and stage the result in `draft`.

    `after`: the partition as the command changed it; None where only a broker, or the topic's settings, changed. `lost`:
    replicas that may lack what is committed, so that they are neither in sync nor eligible. Returns the staged partition.
    """
    settled = _in_sync(draft, before, after or before, lost)
    settled = _complete_reassignment(draft, settled)
    leader = _leader(draft, settled)
    eligible = _eligible(draft, before, settled, leader, lost)
    last_known_isr = _last_known(before, settled, leader, lost)
    if settled == before and (leader, eligible, last_known_isr) == (
        before.leader,
        before.eligible,
        before.last_known_isr,
    ):
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
        eligible=eligible,
    )
    draft.put(settled)
    return settled


def recompute_all_of(draft: Draft, broker_id: int) -> None:
    """Recompute each partition that this broker is in sync or eligible for, after a change in what the broker may do."""
    for partition in draft.partitions_electing(broker_id):
        recompute(draft, partition)


def target_of(partition: Partition) -> tuple[int, ...]:
    """Its replicas once the reassignment under way is complete."""
    return tuple(b for b in partition.replicas if b not in partition.removing)


def _in_sync(draft: Draft, before: Partition, partition: Partition, lost: Collection[int]) -> Partition:
    key = partition.id
    members = tuple(b for b in partition.replicas if b in partition.isr and b not in lost)
    isr = tuple(b for b in members if draft.serves(b, key))
    isr = isr or tuple(b for b in members if draft.can_go_on(b, key))
    isr = isr or tuple(b for b in _sound_eligible(before, partition, lost) if draft.serves(b, key))[:1]
    isr = isr or members
    if isr == partition.isr:
        return partition
    p = partition
    return Partition(
        p.topic_id, p.index, p.replicas, isr, p.leader, p.leader_epoch, p.partition_epoch,
        p.adding, p.removing, p.last_known_isr, p.deleted_end_offset, p.deleted_in_epoch, p.eligible,
    )  # fmt: skip


def _sound_eligible(before: Partition, partition: Partition, lost: Collection[int]) -> tuple[int, ...]:
    """Who leaves the in-sync set by this very change is one, too: no leader knows yet that it may do without it."""
    holds_all = {*before.isr, *partition.eligible}.difference(lost)
    return tuple(b for b in partition.replicas if b in holds_all)


def _eligible(
    draft: Draft, before: Partition, settled: Partition, leader: int, lost: Collection[int]
) -> tuple[int, ...]:
    """Rule 2, for a partition that has that leader now."""
    if leader != NO_LEADER and len(settled.isr) >= min_insync_replicas(draft, before):
        return ()
    if settled.isr == before.isr and not settled.eligible:
        return ()
    eligible = tuple(
        b
        for b in settled.replicas
        if (b in before.isr or b in settled.eligible) and b not in settled.isr and b not in lost
    )
    return eligible if all(_waits_for_enough(draft, b) for b in (*settled.isr, *eligible)) else ()


def _waits_for_enough(draft: Draft, broker_id: int) -> bool:
    """Whether it commits nothing, as a leader, while fewer than `min.insync.replicas` are in sync."""
    broker = draft.broker(broker_id)
    return broker is not None and broker.feature_level >= ELIGIBLE_REPLICAS


def _last_known(before: Partition, settled: Partition, leader: int, lost: Collection[int]) -> tuple[int, ...]:
    if leader != NO_LEADER or not (lost or before.last_known_isr):
        return ()
    known = {*before.last_known_isr, *(b for b in lost if b in before.isr or b in before.eligible)}
    return tuple(b for b in settled.replicas if b in known)


def min_insync_replicas(draft: Draft, partition: Partition) -> int:
    """The topic's, as it is with what the command has changed so far."""
    return draft.topic(partition.topic_id).config.min_insync_replicas


def _complete_reassignment(draft: Draft, partition: Partition) -> Partition:
    if not partition.adding and not partition.removing:
        return partition
    target = target_of(partition)
    kept = tuple(b for b in target if b in partition.isr)
    enough = min(min_insync_replicas(draft, partition), len(partition.isr))
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

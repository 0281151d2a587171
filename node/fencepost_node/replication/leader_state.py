"""What a leader knows of its followers, and what follows from it. Pure: no I/O, no clock; times are given, in seconds.

**High watermark.** The least log end offset over the *maximal* in-sync set: the members that the controller has committed
and those that are proposed and not yet decided. A member that is being added counts from the moment it is proposed, for
the controller may have added it before this broker knows; a member that is being removed counts until its removal is
committed. The high watermark never goes back.

**Nothing is committed with fewer than `min.insync.replicas` in sync**, as the controller has committed the set, whatever
acks asks for (KIP-966). For then replicas outside the set are eligible: they have all that was committed before, and may be
elected with just that (the controller's `decisions/partitions.py` has the whole argument).

**Proposals** (AlterPartition, compare-and-set on the partition epoch). At most one is open. It is closed by metadata with
a higher partition epoch, or by a definite refusal; not by a lost answer, since then it may have been applied.

- A follower joins when it follows, does not lag, and has all that is committed: its end has reached the high watermark and
  the start of this leader's epoch (KIP-497). One that lags would leave at once: while too few are in sync the high watermark
  stands still, so that it has all that is committed, however far behind it is.
- A follower leaves when it has not caught up for `lag_max_s`. It has caught up at the latest moment at which its end was
  at least the leader's end of that moment; one that has everything never lags, however long nothing happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.metadata import Partition

UNKNOWN_END = -1  # the follower has not reported to this leader where its log ends


@dataclass(slots=True)
class FollowerProgress:
    """One other replica, as this leader knows it. 0 <= end_offset <= the leader's end, or UNKNOWN_END."""

    broker_epoch: int = -1  # of the incarnation that reported its end
    end_offset: int = UNKNOWN_END
    caught_up_at: float = 0.0
    mark_offset: int = 0  # the leader's end at mark_at: reaching it means having caught up at mark_at
    mark_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """An in-sync set that the controller has been asked for."""

    isr: tuple[int, ...]
    partition_epoch: int  # the one it is based on


class LeaderState:
    """State of one leadership: one partition, one leader epoch."""

    def __init__(
        self,
        broker_id: int,
        partition: Partition,
        log_end_offset: int,
        high_watermark: int,
        now: float,
        *,
        durable_end_offset: int | None = None,
        min_insync_replicas: int = 1,
    ) -> None:
        """`durable_end_offset`: below it this replica's own log is known to be synced; None: it need not be."""
        self.broker_id = broker_id
        self.partition = partition
        self.min_insync_replicas = min_insync_replicas
        self.epoch_start_offset = log_end_offset
        self.log_end_offset = log_end_offset
        # What this replica itself counts for; lags with flush=always.
        self.durable_end_offset = log_end_offset if durable_end_offset is None else durable_end_offset
        self.high_watermark = high_watermark
        self.proposal: Proposal | None = None
        self.maximal_isr: tuple[int, ...] = ()  # everyone who is, or may be, in sync; follows from these two
        self._followers = {
            other: FollowerProgress(caught_up_at=now, mark_offset=log_end_offset, mark_at=now)
            for other in partition.replicas
            if other != broker_id
        }
        self.maximal_isr = self._maximal_isr()
        self._advance()

    # ---- What happens ----

    def appended(self, log_end_offset: int, durable_end_offset: int, now: float) -> bool:
        """This replica's log has grown, or more of it is durable. True where the high watermark moved."""
        if durable_end_offset > log_end_offset or log_end_offset < self.log_end_offset:
            raise InvariantBroken(
                f"leader's log end {self.log_end_offset} -> {log_end_offset}, durable {durable_end_offset}"
            )
        for follower in self._followers.values():
            if follower.end_offset == self.log_end_offset:
                follower.caught_up_at = follower.mark_at = now
                follower.mark_offset = log_end_offset
        self.log_end_offset = log_end_offset
        self.durable_end_offset = durable_end_offset
        return self._advance()

    def follower_joined(self, broker_id: int, broker_epoch: int, end_offset: int, now: float) -> bool:
        """A follower's log agrees with ours up to `end_offset`, where it ends. True where the high watermark moved."""
        follower = self._followers[broker_id]
        follower.broker_epoch = broker_epoch
        follower.end_offset = UNKNOWN_END
        return self.follower_acked(broker_id, end_offset, now)

    def follower_acked(self, broker_id: int, end_offset: int, now: float) -> bool:
        """A follower holds all below `end_offset`. True where the high watermark moved."""
        follower = self._followers[broker_id]
        if end_offset > self.log_end_offset or end_offset < follower.end_offset:
            raise InvariantBroken(
                f"broker {broker_id} acknowledges {end_offset} after {follower.end_offset}; "
                f"the leader's log ends at {self.log_end_offset}"
            )
        follower.end_offset = end_offset
        if end_offset == self.log_end_offset:
            follower.caught_up_at = now
        elif end_offset >= follower.mark_offset:
            follower.caught_up_at = max(follower.caught_up_at, follower.mark_at)
            follower.mark_offset, follower.mark_at = self.log_end_offset, now
        return self._advance()

    def partition_changed(self, partition: Partition, now: float) -> bool:
        """The controller changed replicas or in-sync set within this leader epoch. True where the high watermark moved."""
        if partition.leader_epoch != self.partition.leader_epoch:
            raise InvariantBroken(f"leader epoch {partition.leader_epoch} in the state of another: {self.partition}")
        self.partition = partition
        if self.proposal is not None and partition.partition_epoch > self.proposal.partition_epoch:
            self.proposal = None
        for other in partition.replicas:
            if other != self.broker_id and other not in self._followers:
                self._followers[other] = FollowerProgress(
                    caught_up_at=now, mark_offset=self.log_end_offset, mark_at=now
                )
        for other in [other for other in self._followers if other not in partition.replicas]:
            del self._followers[other]
        self.maximal_isr = self._maximal_isr()
        return self._advance()

    def settings_changed(self, min_insync_replicas: int) -> bool:
        """The controller changed the topic's settings within this leader epoch. True where the high watermark moved."""
        self.min_insync_replicas = min_insync_replicas
        return self._advance()

    def proposal_refused(self, proposal: Proposal) -> bool:
        """The controller has definitely not applied it, and never will. True where the high watermark moved."""
        if self.proposal == proposal:
            self.proposal = None
            self.maximal_isr = self._maximal_isr()
        return self._advance()

    # ---- What follows ----

    def _maximal_isr(self) -> tuple[int, ...]:
        proposed = self.proposal.isr if self.proposal else ()
        return self.partition.isr + tuple(member for member in proposed if member not in self.partition.isr)

    @property
    def at_rest(self) -> bool:
        """Is every replica in sync, at the leader's end? Then there is nothing to propose, however long nothing happens."""
        return len(self.partition.isr) == len(self.partition.replicas) and all(
            follower.end_offset == self.log_end_offset for follower in self._followers.values()
        )

    @property
    def can_commit(self) -> bool:
        """Are enough in sync?"""
        return len(self.partition.isr) >= self.min_insync_replicas

    @property
    def electable_joined(self) -> bool:
        """Has everyone who may be in sync, or is eligible, agreed with this leader's log since it leads? From then on none
        of them holds a batch that this log does not: the next one elected has this log's history, or more of it."""
        members = (*self.maximal_isr, *self.partition.eligible)
        return all(member == self.broker_id or self._end_of(member) != UNKNOWN_END for member in members)

    def lags(self, now: float) -> list[tuple[int, int, float]]:
        """(broker, records, seconds) behind this leader of every follower that is; of one that has not reported to this
        leader yet, all records."""
        return [
            (other, self.log_end_offset - max(follower.end_offset, 0), now - follower.caught_up_at)
            for other, follower in self._followers.items()
            if follower.end_offset < self.log_end_offset
        ]

    def follows(self, broker_id: int) -> bool:
        return broker_id in self._followers

    def broker_epoch_of(self, broker_id: int) -> int:
        return self._followers[broker_id].broker_epoch

    def propose(self, eligible: frozenset[int], lag_max_s: float, now: float) -> Proposal | None:
        """Open a proposal where the in-sync set should change; None where it should not, or one is open.

        `eligible`: replicas that follow now and that the controller would accept (live, not shutting down).
        """
        if self.proposal is not None:
            return None
        isr = self.partition.isr
        joining = [other for other in eligible if other not in isr and self._may_join(other, lag_max_s, now)]
        leaving = [other for other in isr if other != self.broker_id and self._lags(other, lag_max_s, now)]
        if not joining and not leaving:
            return None  # almost always, and asked for thousands of partitions at a time
        isr = tuple(
            other
            for other in self.partition.replicas
            if (other in isr and other not in leaving) or other in joining or other == self.broker_id
        )
        if set(isr) == set(self.partition.isr):
            return None
        self.proposal = Proposal(isr, self.partition.partition_epoch)
        self.maximal_isr = self._maximal_isr()
        return self.proposal

    def _may_join(self, broker_id: int, lag_max_s: float, now: float) -> bool:
        has_all_committed = self._followers[broker_id].end_offset >= max(self.high_watermark, self.epoch_start_offset)
        return has_all_committed and not self._lags(broker_id, lag_max_s, now)

    def _lags(self, broker_id: int, lag_max_s: float, now: float) -> bool:
        follower = self._followers[broker_id]
        return follower.end_offset < self.log_end_offset and now - follower.caught_up_at > lag_max_s

    def _advance(self) -> bool:
        if not self.can_commit:
            return False
        reached = self.log_end_offset
        for member in self.maximal_isr:
            if member == self.broker_id:
                end_offset = self.durable_end_offset
            else:
                follower = self._followers.get(member)
                end_offset = UNKNOWN_END if follower is None else follower.end_offset
            reached = min(reached, end_offset)
        if reached <= self.high_watermark:
            return False
        self.high_watermark = reached
        return True

    def _end_of(self, member: int) -> int:
        follower = self._followers.get(member)
        return UNKNOWN_END if follower is None else follower.end_offset

"""The high watermark and the in-sync set, as a leader sees them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fencepost_node.replication.leader_state import LeaderState, Proposal
from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.protocol.metadata import Partition

LAG_MAX_S = 5.0
EVERYONE = frozenset((1, 2, 3))


def partition(isr: tuple[int, ...] = (1, 2, 3), partition_epoch: int = 7) -> Partition:
    return Partition("topic", 0, (1, 2, 3), isr, leader=1, leader_epoch=4, partition_epoch=partition_epoch)


def leader(
    isr: tuple[int, ...] = (1, 2, 3), end: int = 0, high_watermark: int = 0, min_insync_replicas: int = 1
) -> LeaderState:
    return LeaderState(1, partition(isr), end, high_watermark, now=0.0, min_insync_replicas=min_insync_replicas)


def test_the_high_watermark_is_the_least_end_of_the_in_sync_set() -> None:
    state = leader()
    state.appended(10, 10, now=1.0)
    state.follower_joined(2, 20, 10, now=1.0)
    assert state.high_watermark == 0, "broker 3 has not told its end"
    assert state.follower_joined(3, 30, 6, now=1.0)
    assert state.high_watermark == 6
    assert state.follower_acked(3, 10, now=1.1)
    assert state.high_watermark == 10


def test_a_lone_member_commits_at_once() -> None:
    state = leader(isr=(1,))
    assert state.appended(3, 3, now=1.0)
    assert state.high_watermark == 3


def test_a_leader_counts_for_what_it_has_synced() -> None:
    state = leader(isr=(1,))
    assert not state.appended(3, 0, now=1.0)
    assert state.appended(3, 3, now=1.1)


def test_a_proposed_member_holds_the_high_watermark_back_until_the_controller_has_decided() -> None:
    state = leader(isr=(1, 2), end=10, high_watermark=10)
    state.follower_joined(2, 20, 10, now=1.0)
    state.follower_joined(3, 30, 10, now=1.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=1.0) == Proposal((1, 2, 3), partition_epoch=7)
    state.appended(12, 12, now=1.1)
    state.follower_acked(2, 12, now=1.2)
    assert state.high_watermark == 10, "broker 3 may already be in the in-sync set"
    state.proposal_refused(Proposal((1, 2, 3), partition_epoch=7))
    assert state.high_watermark == 12


def test_a_member_that_is_being_removed_counts_until_its_removal_is_committed() -> None:
    state = leader(end=10)
    state.follower_joined(2, 20, 10, now=1.0)
    state.appended(12, 12, now=1.0)
    state.follower_acked(2, 12, now=1.0)
    shrink = state.propose(EVERYONE, LAG_MAX_S, now=9.0)
    assert shrink == Proposal((1, 2), partition_epoch=7)
    assert state.high_watermark == 0
    state.partition_changed(partition((1, 2), partition_epoch=8), now=9.1)
    assert state.high_watermark == 12
    assert state.proposal is None


def test_only_one_proposal_is_open_and_a_lost_answer_does_not_close_it() -> None:
    state = leader(isr=(1,), end=10)
    state.follower_joined(2, 20, 10, now=1.0)
    first = state.propose(EVERYONE, LAG_MAX_S, now=1.0)
    state.follower_joined(3, 30, 10, now=1.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=1.0) is None
    state.partition_changed(partition((1,), partition_epoch=7), now=1.5)
    assert state.proposal == first, "the same partition epoch says nothing new"


def test_a_follower_joins_only_with_all_that_is_committed_and_all_of_earlier_epochs() -> None:
    state = leader(isr=(1, 2), end=10, high_watermark=4)
    state.follower_joined(3, 30, 9, now=1.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=1.0) is None, "its end is below the start of this epoch"
    state.follower_acked(3, 10, now=1.1)
    assert state.propose(frozenset((1, 2)), LAG_MAX_S, now=1.1) is None, "the controller would not take it"
    assert state.propose(EVERYONE, LAG_MAX_S, now=1.1) == Proposal((1, 2, 3), partition_epoch=7)


def test_an_idle_follower_with_everything_never_lags() -> None:
    state = leader(end=10)
    state.follower_joined(2, 20, 10, now=1.0)
    state.follower_joined(3, 30, 10, now=1.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=1000.0) is None
    state.appended(11, 11, now=1000.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=1004.0) is None, "it has lagged for four seconds only"
    assert state.propose(EVERYONE, LAG_MAX_S, now=1006.0) == Proposal((1,), partition_epoch=7)


def test_a_follower_that_always_stays_a_little_behind_a_busy_leader_does_not_lag() -> None:
    state = leader(end=0)
    state.follower_joined(2, 20, 0, now=0.0)
    state.follower_joined(3, 30, 0, now=0.0)
    for second in range(1, 60):
        state.appended(second * 10, second * 10, now=float(second))
        state.follower_acked(2, second * 10 - 5, now=float(second))
        state.follower_acked(3, second * 10, now=float(second))
    assert state.propose(EVERYONE, LAG_MAX_S, now=60.0) is None


def test_an_impossible_acknowledgement_breaks_an_invariant() -> None:
    state = leader(end=10)
    state.follower_joined(2, 20, 8, now=1.0)
    with pytest.raises(InvariantBroken, match="broker 2 acknowledges 11"):
        state.follower_acked(2, 11, now=1.0)
    with pytest.raises(InvariantBroken, match="broker 2 acknowledges 7"):
        state.follower_acked(2, 7, now=1.0)


def test_a_replica_that_is_reassigned_away_is_forgotten_and_a_new_one_is_known() -> None:
    state = leader(end=10)
    moved = replace(partition(isr=(1, 2), partition_epoch=8), replicas=(1, 2, 4))
    state.partition_changed(moved, now=1.0)
    assert not state.follows(3)
    assert state.follows(4)


def test_the_in_sync_set_has_joined_only_when_each_member_has_reported_its_end_under_this_leadership() -> None:
    """Even where all is committed: a member that has not joined may hold an uncommitted batch of an earlier epoch."""
    state = leader(isr=(1, 2), end=10, high_watermark=10)
    assert state.high_watermark == 10
    assert not state.electable_joined
    state.follower_joined(3, 30, 10, now=1.0)
    assert not state.electable_joined
    state.follower_joined(2, 20, 10, now=1.0)
    assert state.electable_joined


def test_nothing_is_committed_with_too_few_in_sync() -> None:
    """KIP-966: who has left is eligible with what was committed until then."""
    state = leader(end=10, min_insync_replicas=2)
    state.follower_joined(2, 20, 10, now=1.0)
    state.follower_joined(3, 30, 10, now=1.0)
    assert state.high_watermark == 10
    state.partition_changed(replace(partition((1,), 8), eligible=(2, 3)), now=2.0)
    assert not state.can_commit
    assert not state.appended(14, 14, now=2.1)
    assert not state.follower_acked(2, 14, now=2.2)
    assert state.propose(frozenset((2,)), LAG_MAX_S, now=2.3) == Proposal((1, 2), partition_epoch=8)
    assert state.high_watermark == 10, "the controller may not have put it in sync"
    assert state.partition_changed(partition((1, 2), 9), now=2.4)
    assert state.high_watermark == 14


def test_one_that_lags_does_not_join_again_at_once_where_nothing_is_committed_meanwhile() -> None:
    """It has all that is committed, since too few are in sync for more; it would leave and join again and again."""
    state = leader(isr=(1, 2), end=10, high_watermark=10, min_insync_replicas=2)
    state.follower_joined(2, 20, 10, now=0.0)
    state.appended(12, 12, now=1.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=7.0) == Proposal((1,), partition_epoch=7)
    state.partition_changed(partition((1,), partition_epoch=8), now=7.1)
    assert state.propose(EVERYONE, LAG_MAX_S, now=7.1) is None
    state.appended(13, 13, now=8.0)
    state.follower_acked(2, 12, now=9.0)
    assert state.propose(EVERYONE, LAG_MAX_S, now=9.0) is None, "it has caught up with what there was long ago"
    state.follower_acked(2, 13, now=9.1)
    assert state.propose(EVERYONE, LAG_MAX_S, now=9.1) == Proposal((1, 2), partition_epoch=8)


def test_a_leader_commits_alone_once_the_setting_allows_it() -> None:
    state = leader(isr=(1,), min_insync_replicas=2)
    state.appended(3, 3, now=1.0)
    assert state.high_watermark == 0
    assert state.settings_changed(1)
    assert state.high_watermark == 3
    assert not state.settings_changed(2)
    assert not state.appended(4, 4, now=1.1)
    assert state.high_watermark == 3


def test_one_that_is_eligible_may_be_elected_before_it_has_joined() -> None:
    state = LeaderState(1, replace(partition(isr=(1,)), eligible=(3,)), 10, 10, now=0.0, min_insync_replicas=2)
    assert not state.electable_joined
    state.follower_joined(3, 30, 10, now=1.0)
    assert state.electable_joined


class LeaderMachine(RuleBasedStateMachine):
    """Arbitrary interleavings of appends, acknowledgements, proposals and decisions."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = leader()
        self.ends = {2: -1, 3: -1}
        self.seen_high_watermark = 0
        self.enough = True  # were there enough in sync at any moment since that was seen?
        self.committed_isr: tuple[int, ...] = (1, 2, 3)
        self.pending: Proposal | None = None

    @rule(minimum=st.integers(1, 3))
    def setting_changes(self, minimum: int) -> None:
        self.state.settings_changed(minimum)

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        self.now += 0.1
        end = self.state.log_end_offset + count
        self.state.appended(end, end, self.now)

    @rule(broker=st.sampled_from((2, 3)), share=st.floats(0, 1))
    def acknowledge(self, broker: int, share: float) -> None:
        self.now += 0.1
        low = max(self.ends[broker], 0)
        end = low + int((self.state.log_end_offset - low) * share)
        if self.ends[broker] < 0:
            self.state.follower_joined(broker, broker * 10, end, self.now)
        else:
            self.state.follower_acked(broker, end, self.now)
        self.ends[broker] = end

    @rule(seconds=st.floats(0, 20))
    def propose(self, seconds: float) -> None:
        self.now += seconds
        self.pending = self.state.propose(EVERYONE, LAG_MAX_S, self.now) or self.pending

    @precondition(lambda self: self.pending is not None)
    @rule()
    def controller_commits(self) -> None:
        """The change may reach the controller long before the leader hears of it."""
        assert self.pending is not None
        if self.pending.partition_epoch == self.state.partition.partition_epoch:
            self.committed_isr = self.pending.isr

    @precondition(lambda self: self.pending is not None)
    @rule()
    def leader_hears(self) -> None:
        assert self.pending is not None
        if self.committed_isr == self.pending.isr:
            epoch = self.state.partition.partition_epoch + 1
            self.state.partition_changed(partition(self.committed_isr, epoch), self.now)
        else:
            self.state.proposal_refused(self.pending)
        self.pending = None

    @invariant()
    def committed_is_on_every_member_that_the_controller_could_elect(self) -> None:
        """Whoever the controller knows as in sync holds all below the high watermark, unless it held it back."""
        for member in self.committed_isr:
            end = self.state.log_end_offset if member == 1 else self.ends[member]
            assert end >= self.state.high_watermark or self.state.high_watermark == 0

    @invariant()
    def nothing_is_committed_with_too_few_in_sync(self) -> None:
        if not self.enough and not self.state.can_commit:
            assert self.state.high_watermark == self.seen_high_watermark
        self.enough = self.state.can_commit

    @invariant()
    def the_high_watermark_never_goes_back(self) -> None:
        assert self.seen_high_watermark <= self.state.high_watermark <= self.state.log_end_offset
        self.seen_high_watermark = self.state.high_watermark


TestLeaderMachine = LeaderMachine.TestCase
TestLeaderMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

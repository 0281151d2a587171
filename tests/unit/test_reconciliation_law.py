"""Two logs of one partition, whatever has happened to them: the exchange ends, and the follower then has the leader's log.

Leaders change, also uncleanly; followers take a part of what they are to get, or all; retention moves
log starts; processes start again. Once on lists of batches, where what is gone is still known, and once on real logs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.log.log import Log
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replication.reconciliation import (
    FollowerPosition,
    Push,
    StartOver,
    Truncate,
    answer_subscribe,
    cut_for,
)
from fencepost_proto.protocol.record_batch import iter_batches
from tests.unit.logs import NOW_MS, Machine, assert_lawful, content, open_log, produce

NODES = 3

# ---- On lists ----


class Batch(NamedTuple):
    """What makes a batch what it is: no two leaders, and no leader twice, append the same one."""

    epoch: int
    base_offset: int
    end_offset: int


@dataclass
class ListLog:
    """A log that remembers what retention took. `known` is the history as the real one would have it."""

    all: list[Batch] = field(default_factory=list)
    start: int = 0
    known: LeaderEpochs = field(default_factory=LeaderEpochs)

    @property
    def end(self) -> int:
        return self.all[-1].end_offset if self.all else 0

    def append(self, batch: Batch) -> None:
        assert batch.base_offset == self.end, "a push that does not begin at the log's end, or within a batch"
        self.known.record(batch.epoch, batch.base_offset)
        self.all.append(batch)

    def truncate(self, offset: int) -> None:
        assert self.start <= offset < self.end
        self.all = [batch for batch in self.all if batch.end_offset <= offset]
        self.known.truncate_to(self.end)

    def retain(self, start: int) -> None:
        self.start = start
        self.known.advance_to(start)

    def start_over(self, leader: ListLog) -> None:
        self.start = leader.start
        self.all = [batch for batch in leader.all if batch.end_offset <= leader.start]
        self.known = LeaderEpochs.before(self.start, leader.known.epoch_before(self.start))


def common_end(one: ListLog, other: ListLog) -> int:
    """Below it the two have always held the same batches."""
    end = 0
    for a, b in zip(one.all, other.all, strict=False):
        if a != b:
            break
        end = a.end_offset
    return end


def reconcile(leader: ListLog, follower: ListLog) -> None:
    """The whole exchange, as the two processes carry it out."""
    common, start = common_end(leader, follower), follower.start
    epochs = len(follower.known.entries)
    nothing_agrees = started_over = False
    for _ in range(epochs + 3):
        end = follower.end
        position = FollowerPosition(end, follower.known.last_epoch, nothing_agrees)
        match answer_subscribe(position, leader.known, leader.start, leader.end):
            case Push():
                break
            case StartOver():
                follower.start_over(leader)
                nothing_agrees, started_over = False, True
            case Truncate() as answer:
                cut = cut_for(answer, follower.known, follower.start, follower.end)
                nothing_agrees = cut is None
                if cut is not None:
                    follower.truncate(cut)
                    assert follower.end < end
    else:
        raise AssertionError(f"no end after {epochs + 3} rounds")
    assert follower.all == leader.all[: len(follower.all)]
    if started_over:
        assert common < max(start, leader.start) or common == 0, "it held something that the leader holds, too"
    else:
        assert follower.end == common
        assert follower.start == start


class Histories(RuleBasedStateMachine):
    """Three replicas, of which any may lead next."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = [ListLog() for _ in range(NODES)]
        self.leader = 0
        self.epoch = 0

    @rule(node=st.integers(0, NODES - 1), skipped=st.integers(1, 2))
    def elect(self, node: int, skipped: int) -> None:
        self.leader, self.epoch = node, self.epoch + skipped

    @rule(counts=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def append(self, counts: list[int]) -> None:
        log = self.logs[self.leader]
        for count in counts:
            log.append(Batch(self.epoch, log.end, log.end + count))

    @rule(step=st.integers(1, NODES - 1), share=st.sampled_from([0.0, 0.4, 1.0]))
    def follow(self, step: int, share: float) -> None:
        leader, follower = self.logs[self.leader], self.logs[(self.leader + step) % NODES]
        reconcile(leader, follower)
        missing = leader.all[len(follower.all) :]
        for batch in missing[: round(len(missing) * share)]:
            follower.append(batch)
        assert follower.all == leader.all or share < 1

    @rule(node=st.integers(0, NODES - 1), share=st.floats(0, 1))
    def retain(self, node: int, share: float) -> None:
        log = self.logs[node]
        borders = [log.start, *(b.end_offset for b in log.all if b.end_offset > log.start)]
        log.retain(borders[round((len(borders) - 1) * share)])


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8).map(sorted), st.integers(0, 9), st.integers(1, 9))
def test_a_cut_of_any_history_by_any_answer_lies_within_the_log_or_is_none(
    epochs: list[int], epoch: int, end_offset: int
) -> None:
    """Whatever a leader says, also one that is wrong: a follower is never cut below its start, nor made longer."""
    known = LeaderEpochs()
    for offset, written in enumerate(epochs):
        known.record(written, offset)
    start = len(epochs) // 2
    known.advance_to(start)
    cut = cut_for(Truncate(epoch, end_offset), known, start, len(epochs))
    assert cut is None or start <= cut <= len(epochs)


# ---- On real logs ----


def rest(log: Log, start: int) -> bytes:
    """All bytes from the batch at `start` on."""
    whole = content(log)
    return next((whole[position:] for position, header in iter_batches(whole) if header.base_offset >= start), b"")


class RealHistories(RuleBasedStateMachine):
    """The same on logs with segments, snapshots and producer states, which are opened again now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.machines = [Machine(node) for node in range(NODES)]
        self.leader = 0
        self.epoch = 0

    @initialize()
    def open(self) -> None:
        self.logs = [self.opened(node) for node in range(NODES)]

    def opened(self, node: int) -> Log:
        return open_log(
            self.machines[node].mount(), retention_bytes=1_500, segment_bytes=400, snapshot_interval_bytes=500
        )

    @rule(node=st.integers(0, NODES - 1))
    def elect(self, node: int) -> None:
        self.leader, self.epoch = node, self.epoch + 1

    @rule(batches=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6))
    def append(self, batches: list[tuple[int, int]]) -> None:
        for producer_id, count in batches:
            produce(self.logs[self.leader], producer_id, count, leader_epoch=self.epoch)

    @rule(
        step=st.integers(1, NODES - 1), pushes=st.sampled_from([0, 1, 3, 1_000]), size=st.sampled_from([1, 300, 2_000])
    )
    def follow(self, step: int, pushes: int, size: int) -> None:
        leader, follower = self.logs[self.leader], self.logs[(self.leader + step) % NODES]
        nothing_agrees = False
        for _ in range(len(follower.leader_epochs.entries) + 3):
            position = FollowerPosition(follower.log_end_offset, follower.last_epoch, nothing_agrees)
            match answer_subscribe(position, leader.leader_epochs, leader.log_start_offset, leader.log_end_offset):
                case Push():
                    break
                case StartOver():
                    follower.reset_to(leader.log_start_offset, leader.snapshot_at_base())
                    nothing_agrees = False
                case Truncate() as answer:
                    cut = cut_for(answer, follower.leader_epochs, follower.log_start_offset, follower.log_end_offset)
                    nothing_agrees = cut is None
                    if cut is not None:
                        follower.truncate_to(cut)
        else:
            raise AssertionError("no end")
        for _ in range(pushes):
            if follower.log_end_offset < leader.log_end_offset:
                follower.append_as_follower(leader.read_batches(follower.log_end_offset, size))
        if follower.log_end_offset == leader.log_end_offset:
            start = max(leader.log_start_offset, follower.log_start_offset)
            assert rest(follower, start) == rest(leader, start)
            assert follower.states[PRODUCERS] == leader.states[PRODUCERS]
            assert follower.last_epoch == leader.last_epoch
        assert_lawful(follower)

    @rule(node=st.integers(0, NODES - 1))
    def retain(self, node: int) -> None:
        self.logs[node].apply_retention(NOW_MS, self.logs[node].log_end_offset)

    @rule(node=st.integers(0, NODES - 1))
    def maintain(self, node: int) -> None:
        self.logs[node].maintain()

    @rule(node=st.integers(0, NODES - 1))
    def restart(self, node: int) -> None:
        """Killed: what was written is there."""
        end, epochs = self.logs[node].log_end_offset, self.logs[node].leader_epochs
        self.logs[node] = self.opened(node)
        assert self.logs[node].log_end_offset == end
        assert self.logs[node].last_epoch == epochs.last_epoch
        assert all(a < b for a, b in pairwise(self.logs[node].leader_epochs.entries))


RealHistories.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestRealHistories = RealHistories.TestCase

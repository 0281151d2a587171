"""A follower's log against its leader's: the tables, case by case."""

from __future__ import annotations

import pytest

from fencepost_node.log.leader_epochs import LeaderEpochs
from fencepost_node.replication.reconciliation import (
    FollowerPosition,
    Push,
    StartOver,
    Truncate,
    answer_subscribe,
    cut_for,
)


def history(*epochs: int, start: int = 0) -> LeaderEpochs:
    """Of a log whose record at offset n was written under epochs[n], and that starts at `start`."""
    found = LeaderEpochs()
    for offset, epoch in enumerate(epochs):
        found.record(epoch, offset)
    found.advance_to(start)
    return found


#  offset      0  1  2  3  4  5  6  7
LEADER = history(1, 1, 3, 3, 3, 6, 6, 6)


@pytest.mark.parametrize(
    ("follower", "start", "answer"),
    [
        pytest.param(FollowerPosition(4, 3), 5, StartOver(), id="ends-below-the-log-start"),
        pytest.param(FollowerPosition(5, 3), 5, Push(), id="ends-at-the-log-start-and-agrees"),
        pytest.param(FollowerPosition(5, 2), 5, StartOver(), id="older-than-all-of-the-leaders-history"),
        pytest.param(FollowerPosition(0, -1), 0, Push(), id="never-held-a-batch"),
        pytest.param(FollowerPosition(0, -1), 5, StartOver(), id="never-held-a-batch-and-the-log-starts-later"),
        pytest.param(FollowerPosition(5, -1), 5, StartOver(), id="does-not-know-its-tip"),
        pytest.param(FollowerPosition(7, -1), 0, StartOver(), id="does-not-know-its-tip-within-the-log"),
        pytest.param(FollowerPosition(8, 6), 0, Push(), id="is-the-same-log"),
        pytest.param(FollowerPosition(6, 6), 0, Push(), id="is-a-beginning-of-it"),
        pytest.param(FollowerPosition(5, 3), 0, Push(), id="is-a-beginning-that-ends-with-an-epoch"),
        pytest.param(FollowerPosition(9, 6), 0, Truncate(6, 8), id="has-more-of-the-last-epoch"),
        pytest.param(FollowerPosition(6, 3), 0, Truncate(3, 5), id="has-more-of-an-epoch"),
        pytest.param(FollowerPosition(3, 5), 0, Truncate(3, 5), id="has-an-epoch-that-the-leader-never-saw"),
        pytest.param(FollowerPosition(3, 9), 0, Truncate(6, 8), id="has-a-newer-epoch"),
        pytest.param(FollowerPosition(6, 6, nothing_agrees=True), 0, StartOver(), id="says-that-nothing-agrees"),
    ],
)
def test_the_leaders_answer(follower: FollowerPosition, start: int, answer: object) -> None:
    epochs = LEADER.copy()
    epochs.advance_to(start)
    assert answer_subscribe(follower, epochs, start, 8) == answer


@pytest.mark.parametrize(
    ("answer", "start", "cut"),
    [
        pytest.param(Truncate(6, 6), 0, 6, id="the-leader-ends-the-epoch-first"),
        pytest.param(Truncate(3, 9), 0, 5, id="the-follower-ends-the-epoch-first"),
        pytest.param(Truncate(4, 9), 0, 5, id="the-follower-does-not-have-the-epoch"),
        pytest.param(Truncate(4, 4), 0, 4, id="nor-that-much-of-an-older-one"),
        pytest.param(Truncate(0, 9), 0, None, id="all-of-the-log-is-newer"),
        pytest.param(Truncate(3, 4), 4, 4, id="they-part-at-the-log-start"),
        pytest.param(Truncate(3, 4), 5, None, id="they-part-below-the-log-start"),
        pytest.param(Truncate(1, 9), 5, None, id="they-part-below-all-that-it-knows"),
    ],
)
def test_where_the_follower_cuts(answer: Truncate, start: int, cut: int | None) -> None:
    epochs = LEADER.copy()
    epochs.advance_to(start)
    assert cut_for(answer, epochs, start, 8) == cut


def test_a_log_that_was_started_over_knows_whose_history_it_continues() -> None:
    started_over = LeaderEpochs.before(5, LEADER.epoch_before(5))
    assert started_over.last_epoch == 3
    assert answer_subscribe(FollowerPosition(5, started_over.last_epoch), LEADER, 2, 8) == Push()
    other = history(1, 1, 2, 2, 2, 7)
    answer = answer_subscribe(FollowerPosition(5, started_over.last_epoch), other, 0, 6)
    assert answer == Truncate(2, 5)
    assert cut_for(answer, started_over, 5, 5) is None


def test_two_logs_of_an_older_version_that_both_do_not_know_their_tips_agree_where_both_start() -> None:
    assert answer_subscribe(FollowerPosition(5, -1), LeaderEpochs(), 5, 5) == Push()
    assert answer_subscribe(FollowerPosition(6, -1), LeaderEpochs(), 5, 9) == StartOver()


def test_the_epoch_before_an_offset_is_that_of_the_batch_that_ends_there() -> None:
    assert [LEADER.epoch_before(offset) for offset in range(9)] == [-1, 1, 1, 3, 3, 3, 6, 6, 6]
    assert LeaderEpochs.before(0, 4) == LeaderEpochs.before(7, -1) == LeaderEpochs()

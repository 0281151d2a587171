"""AlterPartition: what a leader may propose, and what the controller makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fencepost_controller.decisions.isr import AlterPartition, AlterPartitions, StartReplicaOver
from fencepost_proto.protocol import errors
from tests.unit.controller_story import Story

A = ("a-id", 0)


def test_followers_leave_and_join_by_compare_and_set_and_the_leader_epoch_stays() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.proposes(1, A, 1, 3)
    story.proposes(1, A, 1, partition_epoch=0)
    story.proposes(1, A, 3, 1)
    story.proposes(1, A, 2, 3, 1)
    story.reads("""
        broker 1 proposes 1 3 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 3 of 1 2 3, change 1
        broker 1 proposes 1 in sync for a-0
            INVALID_UPDATE_VERSION
        broker 1 proposes 3 1 in sync for a-0
        broker 1 proposes 2 3 1 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 2 3 of 1 2 3, change 2
    """)


def test_a_repeated_proposal_whose_answer_was_lost_is_a_success() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    proposal = story.proposal(1, A, 1, 2)
    story.does(proposal)
    before = story.image
    story.does(proposal)
    assert story.image is before
    story.does(story.proposal(1, A, 1))
    with pytest.raises(errors.InvalidUpdateVersion, match=r"partition epoch 0 .* 2"):
        story.does(proposal)


def test_a_follower_that_restarted_since_the_leader_saw_it_is_refused() -> None:
    """KIP-903: the new incarnation may have less than what the leader saw acknowledged."""
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.dies(2)
    seen_before = story.proposal(1, A, 1, 2)
    story.starts(2)
    story.tell("the leader proposes 2 as it was before", seen_before)
    story.is_ready(2)
    story.tell("the leader proposes 2 as it was before", seen_before)
    story.proposes(1, A, 1, 2)
    story.reads("""
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2, change 1
        broker 2 starts
            broker 2: fenced
        the leader proposes 2 as it was before
            INELIGIBLE_REPLICA
        broker 2 is ready
            broker 2: live
        the leader proposes 2 as it was before
            INELIGIBLE_REPLICA
        broker 1 proposes 1 2 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2, change 2
    """)


def test_a_leader_that_was_replaced_cannot_change_anything() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    old = story.proposal(1, A, 1)
    story.dies(1)
    story.tell("1 proposes itself alone", old)
    story.starts(1)
    story.tell("1 proposes itself alone", old)
    story.reads("""
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 1
        1 proposes itself alone
            FENCED_LEADER_EPOCH
        broker 1 starts
            broker 1: fenced
        1 proposes itself alone
            STALE_BROKER_EPOCH
    """)


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"partition": ("b-id", 0)}, errors.UnknownTopicId, "b-id"),
        ({"partition": ("a-id", 5)}, errors.UnknownTopicOrPartition, "5"),
        ({"leader_epoch": 7}, errors.UnknownLeaderEpoch, "7"),
        ({"leader_epoch": -1}, errors.FencedLeaderEpoch, "-1"),
        ({"broker_epoch": 1}, errors.StaleBrokerEpoch, "1"),
        ({"broker_id": 9}, errors.BrokerIdNotRegistered, "9"),
        ({"partition_epoch": 9}, errors.InvalidUpdateVersion, "9"),
        ({"partition_epoch": -1, "new_isr": ((1, 2),)}, errors.InvalidUpdateVersion, "-1"),
        ({"new_isr": ()}, errors.InvalidRequest, "without its leader 1"),
        ({"new_isr": ((2, 4),)}, errors.InvalidRequest, "without its leader 1"),
        ({"new_isr": ((1, 2), (1, 2))}, errors.InvalidRequest, "twice"),
        ({"new_isr": ((1, 2), (4, 8))}, errors.InvalidRequest, "4 is none of the replicas"),
        ({"new_isr": ((1, 2), (2, 3))}, errors.IneligibleReplica, "broker epoch 3"),
    ],
)
def test_a_proposal_that_makes_no_sense_is_refused(
    change: dict[str, object], error: type[errors.FencepostError], names: str
) -> None:
    story = Story().cluster(1, 2, 3, 4).topic("a", (1, 2, 3))
    before = story.image
    command: AlterPartition = replace(story.proposal(1, A, 1, 2, 3), **change)  # type: ignore[arg-type]
    with pytest.raises(error, match=names):
        story.does(command)
    assert story.image is before


def test_who_is_not_the_leader_is_answered_who_is() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    command = replace(story.proposal(1, A, 1, 2), broker_id=2, broker_epoch=story.epoch(2))
    with pytest.raises(errors.NotLeaderOrFollower) as refusal:
        story.does(command)
    assert refusal.value.current_leader == (1, 0, "host-1:1")


def test_of_several_proposals_a_refused_one_changes_nothing_and_the_others_stand() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3), (1, 2, 3), (1, 2, 3))
    good, stale, foreign = (story.proposal(1, ("a-id", index), 1, 3) for index in (0, 1, 2))
    proposals = (good, replace(stale, partition_epoch=4), replace(foreign, new_isr=((1, story.epoch(1)), (9, 1))), good)
    results = story.does(AlterPartitions(1, story.epoch(1), proposals))
    assert isinstance(results, tuple)
    assert [type(result) for result in results] == [
        type(None),
        errors.InvalidUpdateVersion,
        errors.InvalidRequest,
        type(None),  # again: it is so already
    ]
    assert [story.image.partitions["a-id", index].isr for index in range(3)] == [(1, 3), (1, 2, 3), (1, 2, 3)]
    with pytest.raises(errors.StaleBrokerEpoch):
        story.does(AlterPartitions(1, 1, proposals))


# ---- A damaged replica starts over ----


def over(story: Story, broker_id: int) -> StartReplicaOver:
    return StartReplicaOver(broker_id, story.epoch(broker_id), A)


def test_a_damaged_replica_starts_over_outside_of_the_in_sync_set_under_a_new_leader_epoch() -> None:
    """Whatever a leader has heard of the old log is of an older epoch, also where the replica had left the set before."""
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.tell("2 is damaged, and in sync", over(story, 2))
    proposal = story.proposal(1, A, 1, 2, 3)
    story.tell("2 is damaged again, before it is back", over(story, 2))
    story.tell("the leader proposes what it had seen before", proposal)
    story.proposes(1, A, 1, 2, 3)
    story.reads("""
        2 is damaged, and in sync
            a-0: leader 1 epoch 1, in sync 1 3 of 1 2 3, change 1
        2 is damaged again, before it is back
            a-0: leader 1 epoch 2, in sync 1 3 of 1 2 3, change 2
        the leader proposes what it had seen before
            FENCED_LEADER_EPOCH
        broker 1 proposes 1 2 3 in sync for a-0
            a-0: leader 1 epoch 2, in sync 1 2 3 of 1 2 3, change 3
    """)


def test_nothing_is_given_up_where_no_one_else_leads() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.tell("the leader asks", over(story, 1))
    story.proposes(1, A, 1)
    story.tell("2 asks, out of sync", over(story, 2))
    story.dies(1)
    story.tell("2 asks, and no one leads", over(story, 2))
    story.reads("""
        the leader asks
            ELIGIBLE_LEADERS_NOT_AVAILABLE
        broker 1 proposes 1 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 of 1 2, change 1
        2 asks, out of sync
            a-0: leader 1 epoch 1, in sync 1 of 1 2, change 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 2, in sync 1 of 1 2, change 3
        2 asks, and no one leads
            ELIGIBLE_LEADERS_NOT_AVAILABLE
    """)


def test_starting_over_is_refused_to_an_older_incarnation_a_stranger_and_for_an_unknown_partition() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2))
    old = over(story, 2)
    story.dies(2)
    story.starts(2)
    story.lines.clear()
    story.tell("the incarnation before asks", old)
    story.tell("one without a replica asks", over(story, 3))
    story.tell("for a partition that was deleted", replace(over(story, 1), partition=("b-id", 0)))
    story.reads("""
        the incarnation before asks
            STALE_BROKER_EPOCH
        one without a replica asks
            INVALID_REQUEST
        for a partition that was deleted
            UNKNOWN_TOPIC_OR_PARTITION
    """)

"""Moving partitions between brokers (KIP-455)."""

from __future__ import annotations

import pytest

from fencepost_controller.decisions.elections import ElectUncleanLeader
from fencepost_controller.decisions.reassignment import ReassignPartitions
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import TopicConfig
from tests.unit.controller_story import Story

A = ("a-id", 0)


def reassign(*replicas: int, index: int = 0) -> ReassignPartitions:
    return ReassignPartitions("a", ((index, replicas),))


def test_a_move_adds_first_and_removes_when_the_target_is_in_sync() -> None:
    story = Story().cluster(1, 2, 3, 4).topic("a", (1, 2))
    story.tell("move to 3 4", reassign(3, 4))
    story.proposes(1, A, 1, 2, 3)
    story.proposes(1, A, 1, 2, 3, 4)
    story.reads("""
        move to 3 4
            a-0: leader 1 epoch 0, in sync 1 2 of 3 4 1 2, change 1, adding 3 4, removing 1 2
        broker 1 proposes 1 2 3 in sync for a-0
            a-0: leader 1 epoch 0, in sync 3 1 2 of 3 4 1 2, change 2, adding 3 4, removing 1 2
        broker 1 proposes 1 2 3 4 in sync for a-0
            a-0: leader 3 epoch 1, in sync 3 4 of 3 4, change 3
    """)


def test_a_leader_that_stays_begins_a_new_epoch_with_the_removal_of_a_replica() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2))
    story.tell("move to 1 3", reassign(1, 3))
    story.proposes(1, A, 1, 2, 3)
    story.reads("""
        move to 1 3
            a-0: leader 1 epoch 0, in sync 1 2 of 1 3 2, change 1, adding 3, removing 2
        broker 1 proposes 1 2 3 in sync for a-0
            a-0: leader 1 epoch 1, in sync 1 3 of 1 3, change 2
    """)


def test_removing_alone_and_reordering_are_done_at_once() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.tell("move to 2 1 3", reassign(2, 1, 3))
    story.tell("move to 2 3", reassign(2, 3))
    story.tell("move to 2 3", reassign(2, 3))
    story.reads("""
        move to 2 1 3
            a-0: leader 1 epoch 0, in sync 2 1 3 of 2 1 3, change 1
        move to 2 3
            a-0: leader 2 epoch 1, in sync 2 3 of 2 3, change 2
        move to 2 3
    """)


def test_removing_waits_until_min_insync_replicas_of_those_that_stay_are_in_sync() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3), config=TopicConfig(min_insync_replicas=2))
    story.proposes(1, A, 1, 3)
    story.tell("move to 1 2", reassign(1, 2))
    story.proposes(1, A, 1, 2, 3)
    story.reads("""
        broker 1 proposes 1 3 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 3 of 1 2 3, change 1
        move to 1 2
            a-0: leader 1 epoch 0, in sync 1 3 of 1 2 3, change 2, removing 3
        broker 1 proposes 1 2 3 in sync for a-0
            a-0: leader 1 epoch 1, in sync 1 2 of 1 2, change 3
    """)


def test_the_death_of_a_removed_replica_can_complete_the_move() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3), config=TopicConfig(min_insync_replicas=2))
    story.proposes(1, A, 1, 3)
    story.tell("move to 1 2", reassign(1, 2))
    story.dies(3)
    story.reads("""
        broker 1 proposes 1 3 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 3 of 1 2 3, change 1
        move to 1 2
            a-0: leader 1 epoch 0, in sync 1 3 of 1 2 3, change 2, removing 3
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 1, in sync 1 of 1 2, change 3
    """)


def test_the_leader_dies_in_the_middle_and_the_move_goes_on_under_the_next() -> None:
    story = Story().cluster(1, 2, 3, 4).topic("a", (1, 2))
    story.tell("move to 3 4", reassign(3, 4))
    story.proposes(1, A, 1, 2, 3)
    story.dies(1)
    story.proposes(3, A, 2, 3, 4)
    story.reads("""
        move to 3 4
            a-0: leader 1 epoch 0, in sync 1 2 of 3 4 1 2, change 1, adding 3 4, removing 1 2
        broker 1 proposes 1 2 3 in sync for a-0
            a-0: leader 1 epoch 0, in sync 3 1 2 of 3 4 1 2, change 2, adding 3 4, removing 1 2
        broker 1 dies
            broker 1: fenced
            a-0: leader 3 epoch 1, in sync 3 2 of 3 4 1 2, change 3, adding 3 4, removing 1 2
        broker 3 proposes 2 3 4 in sync for a-0
            a-0: leader 3 epoch 2, in sync 3 4 of 3 4, change 4
    """)


def test_cancelling_drops_what_was_added_and_moves_the_leader_off_it() -> None:
    story = Story().cluster(1, 2, 3, 4).topic("a", (1, 2))
    story.tell("move to 3 4", reassign(3, 4))
    story.proposes(1, A, 1, 2, 3)
    story.dies(1)
    story.tell("cancel", reassign())
    story.tell("cancel", reassign())
    story.reads("""
        move to 3 4
            a-0: leader 1 epoch 0, in sync 1 2 of 3 4 1 2, change 1, adding 3 4, removing 1 2
        broker 1 proposes 1 2 3 in sync for a-0
            a-0: leader 1 epoch 0, in sync 3 1 2 of 3 4 1 2, change 2, adding 3 4, removing 1 2
        broker 1 dies
            broker 1: fenced
            a-0: leader 3 epoch 1, in sync 3 2 of 3 4 1 2, change 3, adding 3 4, removing 1 2
        cancel
            a-0: leader 2 epoch 2, in sync 2 of 1 2, change 4
        cancel
            NO_REASSIGNMENT_IN_PROGRESS
    """)


def test_a_new_target_takes_the_place_of_the_one_under_way() -> None:
    story = Story().cluster(1, 2, 3, 4).topic("a", (1, 2))
    story.tell("move to 3 4", reassign(3, 4))
    story.tell("move to 1 4", reassign(1, 4))
    story.proposes(1, A, 1, 4)
    story.reads("""
        move to 3 4
            a-0: leader 1 epoch 0, in sync 1 2 of 3 4 1 2, change 1, adding 3 4, removing 1 2
        move to 1 4
            a-0: leader 1 epoch 1, in sync 1 2 of 1 4 2, change 2, adding 4, removing 2
        broker 1 proposes 1 4 in sync for a-0
            a-0: leader 1 epoch 2, in sync 1 4 of 1 4, change 3
    """)


def test_a_change_that_would_drop_every_in_sync_replica_is_refused() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2))
    story.tell("move to 3 1", reassign(3, 1))
    story.proposes(1, A, 1, 3)
    story.tell("move back", reassign(1, 2))
    story.tell("move to 3 2", reassign(3, 2))
    story.dies(1)
    story.tell("cancel", reassign())
    story.reads("""
        move to 3 1
            a-0: leader 1 epoch 0, in sync 1 2 of 3 1 2, change 1, adding 3, removing 2
        broker 1 proposes 1 3 in sync for a-0
            a-0: leader 1 epoch 1, in sync 3 1 of 3 1, change 2
        move back
            a-0: leader 1 epoch 1, in sync 1 3 of 1 2 3, change 3, adding 2, removing 3
        move to 3 2
            a-0: leader 1 epoch 1, in sync 3 1 of 3 2 1, change 4, adding 2, removing 1
        broker 1 dies
            broker 1: fenced
            a-0: leader 3 epoch 2, in sync 3 of 3 2 1, change 5, adding 2, removing 1
        cancel
            a-0: leader 3 epoch 3, in sync 3 of 3 1, change 6
    """)


def test_cancelling_is_refused_where_only_an_added_replica_is_in_sync() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1,))
    story.tell("move to 2 3", reassign(2, 3))
    story.proposes(1, A, 1, 2)
    story.dies(1)
    story.tell("cancel", reassign())
    story.tell("move to 1 3", reassign(1, 3))
    story.dies(2)
    story.tell("elect 3", ElectUncleanLeader("a", 0, 3))
    story.reads("""
        move to 2 3
            a-0: leader 1 epoch 0, in sync 1 of 2 3 1, change 1, adding 2 3, removing 1
        broker 1 proposes 1 2 in sync for a-0
            a-0: leader 1 epoch 0, in sync 2 1 of 2 3 1, change 2, adding 2 3, removing 1
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 of 2 3 1, change 3, adding 2 3, removing 1
        cancel
            INVALID_REPLICA_ASSIGNMENT
        move to 1 3
            INVALID_REPLICA_ASSIGNMENT
        broker 2 dies
            broker 2: fenced
            a-0: offline epoch 2, in sync 2 of 2 3 1, change 4, adding 2 3, removing 1
        elect 3
            a-0: leader 3 epoch 3, in sync 3 of 2 3 1, change 5, adding 2 3, removing 1
    """)


def test_all_partitions_of_a_request_change_or_none() -> None:
    story = Story().cluster(1, 2).topic("a", (1,), (1,))
    before = story.image
    with pytest.raises(errors.InvalidReplicaAssignment, match="a-1: broker 9"):
        story.does(ReassignPartitions("a", ((0, (2,)), (1, (9,)))))
    assert story.image is before
    story.does(ReassignPartitions("a", ((0, (2,)), (1, (2,)))))
    assert [p.adding for p in story.image.partitions.values()] == [(2,), (2,)]


@pytest.mark.parametrize(
    ("command", "error", "names"),
    [
        (ReassignPartitions("b", ((0, (1,)),)), errors.UnknownTopicOrPartition, "'b'"),
        (ReassignPartitions("a", ((4, (1,)),)), errors.UnknownTopicOrPartition, "no partition 4"),
        (ReassignPartitions("a", ()), errors.InvalidRequest, "at least one"),
        (ReassignPartitions("a", ((0, (1,)), (0, (2,)))), errors.InvalidRequest, "each once"),
        (reassign(1, 1), errors.InvalidReplicaAssignment, "twice"),
        (reassign(1, 7), errors.InvalidReplicaAssignment, "broker 7"),
        (reassign(1), errors.InvalidReplicaAssignment, "min.insync.replicas=2"),
        (reassign(*range(20)), errors.InvalidReplicaAssignment, "20 replicas"),
    ],
)
def test_a_reassignment_that_makes_no_sense_is_refused(
    command: ReassignPartitions, error: type[errors.FencepostError], names: str
) -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2), config=TopicConfig(min_insync_replicas=2))
    before = story.image
    with pytest.raises(error, match=names):
        story.does(command)
    assert story.image is before

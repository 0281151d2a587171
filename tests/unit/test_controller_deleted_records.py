"""Deletions of records: by the leader of now, for every replica, and never taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fencepost_controller.decisions.deleted_records import DeleteRecords, Deletion
from fencepost_controller.decisions.elections import ElectUncleanLeader
from fencepost_controller.decisions.invariants import check_invariants
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import PartitionKey
from tests.unit.controller_story import Story

KEY: PartitionKey = ("a-id", 0)


def deletes(story: Story, broker_id: int, *deletions: tuple[PartitionKey, int, int]) -> DeleteRecords:
    return DeleteRecords(broker_id, story.epoch(broker_id), tuple(Deletion(*deletion) for deletion in deletions))


def test_a_deletion_outlives_elections_and_only_the_leader_of_now_adds_to_it() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.tell("broker 1 deletes", deletes(story, 1, (KEY, 0, 50)))
    story.tell("broker 1 deletes less", deletes(story, 1, (KEY, 0, 40)))
    story.dies(1)
    assert [e.code for e in story.does(deletes(story, 2, (KEY, 0, 60))) if e] == [errors.ErrorCode.FENCED_LEADER_EPOCH]
    story.tell("broker 2 deletes", deletes(story, 2, (KEY, 1, 60)))
    story.reads("""
        broker 1 deletes
            a-0: leader 1 epoch 0, in sync 1 2 3 of 1 2 3, change 1, deleted below 50 up to epoch 0
        broker 1 deletes less
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 2, deleted below 50 up to epoch 0
        broker 2 deletes
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 3, deleted below 60 up to epoch 1
    """)


def test_each_deletion_of_a_request_is_decided_on_its_own() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2), (2, 1))
    answers = story.does(
        deletes(story, 1, (KEY, 0, 5), (("a-id", 1), 0, 5), (("b-id", 0), 0, 5), (KEY, 7, 9), (KEY, 0, -1), (KEY, 0, 8))
    )
    assert [None if answer is None else type(answer) for answer in answers] == [
        None,
        errors.NotLeaderOrFollower,
        errors.UnknownTopicId,
        errors.UnknownLeaderEpoch,
        errors.OffsetOutOfRange,
        None,
    ]
    assert story.image.partitions[KEY].deleted_end_offset == 8
    with pytest.raises(errors.StaleBrokerEpoch):
        story.does(DeleteRecords(1, 77, (Deletion(KEY, 0, 9),)))


def test_after_an_unclean_election_the_new_leader_may_delete_below_what_was_deleted_before() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.dies(2)
    story.does(deletes(story, 1, (KEY, 0, 100)))
    story.dies(1)
    story.starts(2)
    story.is_ready(2)
    story.does(ElectUncleanLeader("a", 0, 2))
    epoch = story.image.partitions[KEY].leader_epoch
    assert story.does(deletes(story, 2, (KEY, epoch, 30))) == (None,)
    after = story.image.partitions[KEY]
    assert (after.deleted_in_epoch, after.deleted_end_offset) == (epoch, 30)


def test_a_decision_that_takes_a_deletion_back_is_never_committed() -> None:
    story = Story().cluster(1).topic("a", (1,))
    story.does(deletes(story, 1, (KEY, 0, 5)))
    before = story.image.partitions[KEY]
    after = replace(before, deleted_end_offset=4, partition_epoch=before.partition_epoch + 1)
    changes = {after.key: after}
    with pytest.raises(errors.InvariantBroken, match="deleted records go back to 4 of epoch 0"):
        check_invariants({before.key: before}, story.image.with_changes(99, changes), 99, changes)
    ahead = replace(after, deleted_end_offset=9, deleted_in_epoch=1)
    with pytest.raises(errors.InvariantBroken, match="deleted_in_epoch=1 at leader epoch 0"):
        check_invariants({before.key: before}, story.image.with_changes(99, {ahead.key: ahead}), 99, {ahead.key: ahead})

"""Preferred and unclean elections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.elections import (
    MOVES_PER_ROUND,
    ElectPreferredLeader,
    ElectUncleanLeader,
    RestorePreferredLeaders,
)
from fencepost_controller.decisions.partitions import recompute
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage, Partition, Topic
from tests.unit.controller_story import Story

A = ("a-id", 0)


def test_the_preferred_leader_takes_over_once_it_is_in_sync() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    elect = ElectPreferredLeader("a", 0)
    story.tell("elect", elect)
    story.starts(1)
    story.tell("elect", elect)
    story.is_ready(1)
    story.tell("elect", elect)
    story.proposes(2, A, 1, 2)
    story.tell("elect", elect)
    story.reads("""
        elect
            ELECTION_NOT_NEEDED
        broker 1 starts
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 of 1 2, change 1
        elect
            PREFERRED_LEADER_NOT_AVAILABLE
        broker 1 is ready
            broker 1: live
        elect
            PREFERRED_LEADER_NOT_AVAILABLE
        broker 2 proposes 1 2 in sync for a-0
            a-0: leader 2 epoch 1, in sync 1 2 of 1 2, change 2
        elect
            a-0: leader 1 epoch 2, in sync 1 2 of 1 2, change 3
    """)


def test_in_the_background_only_settled_brokers_get_leaderships_back() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2), (2, 1))
    story.does(story.registration(1))
    story.is_ready(1)
    story.proposes(2, A, 1, 2)
    story.tell("restore, 2 has settled", RestorePreferredLeaders(frozenset({2})))
    story.tell("restore, 1 and 2 have settled", RestorePreferredLeaders(frozenset({1, 2})))
    story.tell("restore, 1 and 2 have settled", RestorePreferredLeaders(frozenset({1, 2})))
    story.reads("""
        broker 1 is ready
            broker 1: live
        broker 2 proposes 1 2 in sync for a-0
            a-0: leader 2 epoch 1, in sync 1 2 of 1 2, change 2
        restore, 2 has settled
        restore, 1 and 2 have settled
            a-0: leader 1 epoch 2, in sync 1 2 of 1 2, change 3
        restore, 1 and 2 have settled
    """)


def test_leaderships_are_not_given_to_a_broker_that_shuts_down_or_failed() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2), (3, 2))
    for broker_id in (1, 3):
        story.does(story.registration(broker_id))
        story.is_ready(broker_id)
    story.does(story.proposal(2, ("a-id", 1), 2, 3))
    story.disk_fails(1, A)
    story.shuts_down(3)
    assert story.does(RestorePreferredLeaders(frozenset({1, 2, 3}))) == 0


def test_a_round_moves_a_bounded_number() -> None:
    story = Story().cluster(1, 2).topic("a", *[(1, 2)] * (MOVES_PER_ROUND + 5))
    story.does(story.registration(1))
    story.is_ready(1)
    for index in range(MOVES_PER_ROUND + 5):
        story.does(story.proposal(2, ("a-id", index), 1, 2))
    settled = frozenset({1, 2})
    assert [story.does(RestorePreferredLeaders(settled)) for _ in range(3)] == [MOVES_PER_ROUND, 5, 0]
    assert all(p.leader == 1 for p in story.image.partitions.values())


def test_an_unclean_election_is_an_operators_and_makes_one_replicas_log_the_committed_one() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.tell("elect 2", ElectUncleanLeader("a", 0, 2))
    story.dies(1)
    story.dies(2)
    story.dies(3)
    story.tell("elect no one", ElectUncleanLeader("a", 0, -1))
    story.starts(2)
    story.is_ready(2)
    story.tell("elect 3", ElectUncleanLeader("a", 0, 3))
    story.tell("elect 4", ElectUncleanLeader("a", 0, 4))
    story.tell("elect 2", ElectUncleanLeader("a", 0, 2))
    story.starts(3)
    story.is_ready(3)
    story.reads("""
        elect 2
            ELECTION_NOT_NEEDED
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 3 epoch 2, in sync 3 of 1 2 3, change 2
        broker 3 dies
            broker 3: fenced
            a-0: offline epoch 3, in sync 3 of 1 2 3, change 3
        elect no one
            INVALID_REQUEST
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
        elect 3
            ELIGIBLE_LEADERS_NOT_AVAILABLE
        elect 4
            INVALID_REQUEST
        elect 2
            a-0: leader 2 epoch 4, in sync 2 of 1 2 3, change 4
        broker 3 starts
            broker 3: fenced
        broker 3 is ready
            broker 3: live
    """)


def test_an_unclean_election_is_of_the_incarnation_that_reported_what_it_holds() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.dies(1)
    story.starts(2, lost_tail=True)
    story.is_ready(2)
    asked = story.image.brokers[2].broker_epoch
    story.starts(2)
    story.is_ready(2)
    story.tell("elect 2 as it was asked", ElectUncleanLeader("a", 0, 2, asked))
    story.tell("elect 2 as it is", ElectUncleanLeader("a", 0, 2, story.image.brokers[2].broker_epoch))
    story.reads("""
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 of 1 2, change 1
        broker 2 starts without its last writes
            broker 2: fenced
            a-0: offline epoch 2, in sync none of 1 2, change 3, last in sync 2
        broker 2 is ready
            broker 2: live
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
        elect 2 as it was asked
            ELIGIBLE_LEADERS_NOT_AVAILABLE
        elect 2 as it is
            a-0: leader 2 epoch 3, in sync 2 of 1 2, change 4
    """)


@pytest.mark.parametrize("command", [ElectPreferredLeader, partial(ElectUncleanLeader, leader=1)])
def test_elections_name_what_is_not_there(command: Callable[[str, int], Command[None]]) -> None:
    story = Story().cluster(1).topic("a", (1,))
    with pytest.raises(errors.UnknownTopicOrPartition, match="'b'"):
        story.does(command("b", 0))
    with pytest.raises(errors.UnknownTopicOrPartition, match="no partition 3"):
        story.does(command("a", 3))


def test_what_a_change_of_leader_does_not_concern_stays_as_it_was() -> None:
    brokers = {b: BrokerRegistration(b, f"h:{b}", 1, f"i{b}", fenced=b == 2) for b in (1, 2, 3, 4)}
    image = MetadataImage(version=9, brokers=brokers, topics={"T": Topic("T", "t")})
    fields = {
        "topic_id": "T",
        "index": 3,
        "replicas": (2, 3, 1, 4),
        "isr": (2, 3, 1),
        "leader": 2,
        "leader_epoch": 5,
        "partition_epoch": 8,
        "adding": (4,),
        "removing": (1,),
        "last_known_isr": (),
        "deleted_end_offset": 70,
        "deleted_in_epoch": 4,
        "eligible": (),
    }
    assert fields.keys() == Partition.__dataclass_fields__.keys(), "a new field: say here what becomes of it"
    before = Partition(**fields)  # type: ignore[arg-type]
    after = recompute(Draft(image, {}), before)
    assert after == replace(before, isr=(3, 1), leader=3, leader_epoch=6, partition_epoch=9)

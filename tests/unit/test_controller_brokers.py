"""Brokers come and go: who leads, who is in sync, and when a partition stays offline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fencepost_controller.decisions.brokers import (
    MAX_BROKERS,
    BeginShutdown,
    FailReplicas,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
    UnregisterBroker,
)
from fencepost_controller.decisions.topic_config import AlterTopicConfig
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import NO_LEADER, TopicConfig
from tests.unit.controller_story import CLUSTER_ID, Story

A = ("a-id", 0)


def test_leadership_goes_to_the_first_live_in_sync_replica_and_waits_for_the_last_one() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.dies(1)
    story.dies(3)
    story.dies(2)
    story.starts(1)
    story.is_ready(1)
    story.starts(2)
    story.is_ready(2)
    story.proposes(2, A, 2, 1)
    story.reads("""
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 1
        broker 3 dies
            broker 3: fenced
            a-0: leader 2 epoch 1, in sync 2 of 1 2 3, change 2
        broker 2 dies
            broker 2: fenced
            a-0: offline epoch 2, in sync 2 of 1 2 3, change 3
        broker 1 starts
            broker 1: fenced
        broker 1 is ready
            broker 1: live
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
            a-0: leader 2 epoch 3, in sync 2 of 1 2 3, change 4
        broker 2 proposes 2 1 in sync for a-0
            a-0: leader 2 epoch 3, in sync 1 2 of 1 2 3, change 5
    """)


def test_a_restart_that_no_one_noticed_costs_the_old_life_its_leaderships() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3)).topic("b", (2, 1)).topic("c", (1,))
    story.starts(1)
    story.is_ready(1)
    story.reads("""
        broker 1 starts
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 1
            b-0: leader 2 epoch 0, in sync 2 of 2 1, change 1
            c-0: offline epoch 1, in sync 1 of 1, change 1
        broker 1 is ready
            broker 1: live
            c-0: leader 1 epoch 2, in sync 1 of 1, change 2
    """)


def test_lost_tail_of_the_last_replica_waits_for_an_operator() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2)).topic("synced", (1, 2), config=TopicConfig(flush_always=True))
    story.dies(2)
    story.dies(1)
    story.starts(1, lost_tail=True)
    story.is_ready(1)
    story.starts(2)
    story.is_ready(2)
    story.reads("""
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2, change 1
            synced-0: leader 1 epoch 0, in sync 1 of 1 2, change 1
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2, change 2
            synced-0: offline epoch 1, in sync 1 of 1 2, change 2
        broker 1 starts without its last writes
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1 2, change 3, last in sync 1
        broker 1 is ready
            broker 1: live
            synced-0: leader 1 epoch 2, in sync 1 of 1 2, change 3
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
    """)


def test_a_topic_that_is_synced_from_now_on_has_lost_what_was_not_synced_before() -> None:
    """A machine lost its power, and while it was away the topic was told to sync. What it held then was in no disk."""
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.dies(2)
    story.dies(1)
    story.does(AlterTopicConfig("a", (("flush_always", "true"),)))
    story.starts(1, lost_tail=True)
    story.is_ready(1)
    partition = story.image.partitions[A]
    assert (partition.leader, partition.isr, partition.last_known_isr) == (NO_LEADER, (), (1,))


def test_a_topic_that_was_not_synced_for_a_while_counts_as_that_for_good() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2), config=TopicConfig(flush_always=True))
    assert story.image.topics["a-id"].is_synced
    story.does(AlterTopicConfig("a", (("retention_ms", "1000"),)))
    assert story.image.topics["a-id"].is_synced
    for flush_always in ("false", "true"):
        story.does(AlterTopicConfig("a", (("flush_always", flush_always),)))
        assert not story.image.topics["a-id"].is_synced


def test_lost_tail_is_no_reason_to_leave_where_no_one_was_in_sync_before_it_left() -> None:
    """It leaves as every restarted broker does, and comes back by catching up."""
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.starts(1, lost_tail=True)
    story.is_ready(1)
    story.proposes(2, A, 1, 2)
    story.reads("""
        broker 1 starts without its last writes
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 of 1 2, change 1
        broker 1 is ready
            broker 1: live
        broker 2 proposes 1 2 in sync for a-0
            a-0: leader 2 epoch 1, in sync 1 2 of 1 2, change 2
    """)


def test_an_empty_folder_under_a_known_id_has_lost_everything_synced_or_not() -> None:
    story = Story().cluster(1).topic("a", (1,)).topic("synced", (1,), config=TopicConfig(flush_always=True))
    story.starts(1, new_folder=True)
    story.is_ready(1)
    story.reads("""
        broker 1 starts with an empty folder
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1, change 2, last in sync 1
            synced-0: offline epoch 1, in sync none of 1, change 2, last in sync 1
        broker 1 is ready
            broker 1: live
    """)


def test_an_older_folder_has_lost_everything_synced_or_not() -> None:
    """Broker 1 was the last in sync; its folder is put back from before."""
    story = Story().cluster(1, 2).topic("a", (1, 2)).topic("synced", (1, 2), config=TopicConfig(flush_always=True))
    old = story.epoch(1)
    story.does(story.registration(1))
    story.does(UnfenceBroker(1, story.epoch(1)))
    story.does(story.proposal(2, A, 1, 2))
    story.does(story.proposal(2, ("synced-id", 0), 1, 2))
    story.dies(2)
    story.tell("broker 1 starts with an older folder", story.registration(1, folder_epoch=old))
    story.is_ready(1)
    story.tell("broker 1 starts with the same folder again", story.registration(1, folder_epoch=old))
    story.reads("""
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 2, in sync 1 of 1 2, change 3
            synced-0: leader 1 epoch 2, in sync 1 of 1 2, change 3
        broker 1 starts with an older folder
            broker 1: fenced
            a-0: offline epoch 3, in sync none of 1 2, change 5, last in sync 1
            synced-0: offline epoch 3, in sync none of 1 2, change 5, last in sync 1
        broker 1 is ready
            broker 1: live
        broker 1 starts with the same folder again
            broker 1: fenced
    """)


def test_a_copy_of_a_folder_that_was_in_use_has_lost_everything() -> None:
    story = Story().cluster(1).topic("a", (1,))
    story.tell("broker 1 starts with a copy", story.registration(1, copy=True))
    story.reads("""
        broker 1 starts with a copy
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1, change 2, last in sync 1
    """)


def test_a_broker_that_was_killed_before_it_wrote_its_epoch_lacks_nothing() -> None:
    """Three times registered, and killed; only the first time was it unfenced."""
    story = Story().cluster(1).topic("a", (1,))
    written = story.epoch(1)
    for _ in range(2):
        story.does(story.registration(1, folder_epoch=written))
        assert story.epoch(1) > written
    story.tell("broker 1 starts", story.registration(1, folder_epoch=written))
    story.is_ready(1)
    story.reads("""
        broker 1 starts
            broker 1: fenced
        broker 1 is ready
            broker 1: live
            a-0: leader 1 epoch 2, in sync 1 of 1, change 2
    """)
    story.does(story.registration(1, folder_epoch=written))
    assert story.image.partitions[A].isr == ()


def test_a_damaged_replica_leaves_its_in_sync_set_even_as_the_last_member() -> None:
    story = Story().cluster(1).topic("a", (1,)).topic("b", (1,))
    story.tell("broker 1 starts with a damaged a-0", story.registration(1, damaged=(A,)))
    story.is_ready(1)
    story.reads("""
        broker 1 starts with a damaged a-0
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1, change 2, last in sync 1
            b-0: offline epoch 1, in sync 1 of 1, change 1
        broker 1 is ready
            broker 1: live
            b-0: leader 1 epoch 2, in sync 1 of 1, change 2
    """)


def test_controlled_shutdown_hands_over_what_others_can_lead() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2)).topic("b", (2, 1)).topic("alone", (1,))
    story.shuts_down(1)
    story.proposes(2, A, 1, 2)
    story.dies(2)
    story.dies(1)
    story.starts(1)
    story.is_ready(1)
    story.reads("""
        broker 1 wants to shut down
            broker 1: shutting down
            a-0: leader 2 epoch 1, in sync 2 of 1 2, change 1
            b-0: leader 2 epoch 0, in sync 2 of 2 1, change 1
        broker 2 proposes 1 2 in sync for a-0
            INELIGIBLE_REPLICA
        broker 2 dies
            broker 2: fenced
            a-0: offline epoch 2, in sync 2 of 1 2, change 2
            b-0: offline epoch 1, in sync 2 of 2 1, change 2
        broker 1 dies
            broker 1: fenced
            alone-0: offline epoch 1, in sync 1 of 1, change 1
        broker 1 starts
            broker 1: fenced
        broker 1 is ready
            broker 1: live
            alone-0: leader 1 epoch 2, in sync 1 of 1, change 2
    """)


def test_two_that_shut_down_together_leave_the_last_one_leading_until_another_has_caught_up() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3))
    story.dies(3)
    story.shuts_down(1)
    story.shuts_down(2)
    story.starts(3)
    story.is_ready(3)
    story.proposes(2, A, 2, 3)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 1 wants to shut down
            broker 1: shutting down
            a-0: leader 2 epoch 1, in sync 2 of 1 2 3, change 2
        broker 2 wants to shut down
            broker 2: shutting down
        broker 3 starts
            broker 3: fenced
        broker 3 is ready
            broker 3: live
        broker 2 proposes 2 3 in sync for a-0
            a-0: leader 3 epoch 2, in sync 3 of 1 2 3, change 3
    """)


def test_a_failed_disk_costs_that_replica_only_until_the_broker_restarts() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2)).topic("alone", (1,)).topic("other", (1, 2))
    story.disk_fails(1, A, ("alone-id", 0))
    story.proposes(2, A, 1, 2)
    story.dies(2)
    story.starts(1)
    story.is_ready(1)
    story.reads("""
        broker 1 cannot write a-0 alone-0
            a-0: leader 2 epoch 1, in sync 2 of 1 2, change 1
            alone-0: offline epoch 1, in sync 1 of 1, change 1
        broker 2 proposes 1 2 in sync for a-0
            INELIGIBLE_REPLICA
        broker 2 dies
            broker 2: fenced
            a-0: offline epoch 2, in sync 2 of 1 2, change 2
            other-0: leader 1 epoch 0, in sync 1 of 1 2, change 1
        broker 1 starts
            broker 1: fenced
            other-0: offline epoch 1, in sync 1 of 1 2, change 2
        broker 1 is ready
            broker 1: live
            alone-0: leader 1 epoch 2, in sync 1 of 1, change 2
            other-0: leader 1 epoch 2, in sync 1 of 1 2, change 3
    """)


# ---- Registration ----


def test_a_broker_dies_while_the_news_of_the_others_failed_disk_waits_its_turn() -> None:
    """No one serves any more, and both hold all that was acknowledged: whoever is back first may lead."""
    for first, epoch in ((1, 2), (2, 2)):
        story = Story().cluster(1, 2).topic("a", (1, 2))
        story.failed[2, story.epoch(2)] = frozenset({A})  # a heartbeat has told it; its command is still in the queue
        story.dies(1)
        partition = story.image.partitions[A]
        assert (partition.leader, partition.isr) == (NO_LEADER, (1, 2))
        story.does(FailReplicas(2, story.epoch(2)))
        story.dies(2)
        assert story.image.partitions[A] == partition
        story.does(story.registration(first))
        story.is_ready(first)
        now = story.image.partitions[A]
        assert (now.leader, now.isr, now.leader_epoch) == (first, (first,), epoch)


def test_who_can_only_just_go_on_leading_does_not_wait_for_the_dead() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.failed[2, story.epoch(2)] = frozenset({A})
    story.shuts_down(1)
    story.dies(2)
    partition = story.image.partitions[A]
    assert (partition.leader, partition.isr) == (1, (1,))


def test_the_broker_epoch_is_the_version_of_the_registration() -> None:
    story = Story()
    broker = story.does(story.registration(1))
    assert broker.broker_epoch == story.image.version == 2
    again = story.does(story.registration(1))
    assert again.broker_epoch == story.image.version == 3


def test_the_same_incarnation_registers_again_without_any_change() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    before = story.image
    known = before.brokers[1]
    same = RegisterBroker(1, known.incarnation, CLUSTER_ID, known.address, may_have_lost_tail=True)
    assert story.does(same) == known
    assert story.image is before
    moved = story.does(replace(same, address="elsewhere:2"))
    assert moved == replace(known, address="elsewhere:2")
    assert story.image.partitions == before.partitions


def test_an_id_in_use_is_refused_unless_that_very_registration_was_found_dead() -> None:
    story = Story().cluster(1)
    epoch = story.epoch(1)
    stranger = RegisterBroker(1, "stranger", CLUSTER_ID, "host-9:1")
    with pytest.raises(errors.DuplicateBrokerRegistration, match=r"broker id 1 .* host-1:1") as caught:
        story.does(stranger)
    assert story.image.brokers[1].incarnation not in str(caught.value)  # it would do to take the broker's place
    story.does(story.registration(1))  # another one came in between
    with pytest.raises(errors.DuplicateBrokerRegistration):
        story.does(replace(stranger, replaces=epoch))
    story.does(replace(stranger, replaces=story.epoch(1)))
    assert story.image.brokers[1].incarnation == "stranger"


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"cluster_id": "another"}, errors.InconsistentClusterId, "another"),
        ({"broker_id": -1}, errors.InvalidRequest, "-1"),
        ({"incarnation": ""}, errors.InvalidRequest, "incarnation"),
        ({"incarnation": "x" * 65}, errors.InvalidRequest, "65"),
        ({"address": ""}, errors.InvalidRequest, "address"),
        ({"address": "nowhere"}, errors.InvalidRequest, "nowhere"),
        ({"address": "x" * 255 + ":1"}, errors.InvalidRequest, "address"),
        ({"address": "host:1\n2026-11-28 INFO a forged line"}, errors.InvalidRequest, "address"),
        ({"address": "host\x1b[2K:1"}, errors.InvalidRequest, "characters that no host has"),
        ({"address": "0.0.0.0:9092"}, errors.InvalidRequest, "no one can connect"),
        ({"incarnation": "life\n2026-11-28 INFO a forged line"}, errors.InvalidRequest, "control character"),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(
    change: dict[str, object], error: type[errors.FencepostError], names: str
) -> None:
    story = Story()
    command = replace(RegisterBroker(1, "life", CLUSTER_ID, "host:1"), **change)  # type: ignore[arg-type]
    with pytest.raises(error, match=names):
        story.does(command)


def test_there_is_a_limit_on_brokers() -> None:
    story = Story()
    for broker_id in range(MAX_BROKERS):
        story.does(story.registration(broker_id))
    with pytest.raises(errors.InvalidRequest, match=str(MAX_BROKERS)):
        story.does(story.registration(MAX_BROKERS))
    story.does(story.registration(7))


# ---- Stale epochs, news and no news ----


@pytest.mark.parametrize("command", [UnfenceBroker, BeginShutdown])
def test_a_request_of_an_older_life_is_refused(command: type[UnfenceBroker] | type[BeginShutdown]) -> None:
    story = Story().cluster(1)
    epoch = story.epoch(1)
    story.does(story.registration(1))
    with pytest.raises(errors.StaleBrokerEpoch, match=f"epoch {epoch}"):
        story.does(command(1, epoch))
    with pytest.raises(errors.BrokerIdNotRegistered, match="broker 8"):
        story.does(command(8, epoch))


def test_the_news_of_an_older_lifes_death_does_not_touch_the_new_one() -> None:
    story = Story().cluster(1).topic("a", (1,))
    epoch = story.epoch(1)
    story.does(story.registration(1))
    story.does(UnfenceBroker(1, story.epoch(1)))
    before = story.image
    assert story.does(FenceBroker(1, epoch)) is False
    assert story.does(FenceBroker(8, epoch)) is False
    assert story.image is before


def test_what_is_so_already_commits_nothing() -> None:
    story = Story().cluster(1)
    epoch = story.epoch(1)
    version = story.image.version
    assert story.does(UnfenceBroker(1, epoch)) is False
    assert story.image.version == version
    assert story.does(BeginShutdown(1, epoch)) is True
    assert story.does(BeginShutdown(1, epoch)) is False
    assert story.does(FenceBroker(1, epoch)) is True
    assert story.does(FenceBroker(1, epoch)) is False
    assert story.does(UnfenceBroker(1, epoch)) is False, "a broker that shuts down does not come back in this life"
    assert story.image.version == version + 2


def test_an_offline_partition_is_no_ones_until_its_last_member_is_back() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.does(FenceBroker(1, story.epoch(1)))
    story.does(FenceBroker(2, story.epoch(2)))
    story.does(story.registration(1))
    story.does(UnfenceBroker(1, story.epoch(1)))
    assert story.image.partitions[A].leader == NO_LEADER
    assert story.image.partitions[A].isr == (2,)


def test_a_broker_that_is_down_and_holds_nothing_can_be_removed_and_its_id_is_free_again() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2))
    with pytest.raises(errors.InvalidRequest, match="broker 3 is live"):
        story.does(UnregisterBroker(3))
    story.dies(3)
    story.does(UnregisterBroker(3))
    assert sorted(story.image.brokers) == [1, 2]
    with pytest.raises(errors.BrokerIdNotRegistered, match="broker 3"):
        story.does(UnregisterBroker(3))
    story.starts(3, new_folder=True)
    story.is_ready(3)
    assert not story.image.brokers[3].fenced


def test_a_broker_that_holds_replicas_is_not_removed() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2), (2, 3), (2, 1), (2, 1), (2, 1))
    story.dies(2)
    with pytest.raises(
        errors.InvalidRequest, match="still holds replicas of a-0, a-1, a-2 and 2 more: move them first"
    ):
        story.does(UnregisterBroker(2))


def test_a_removed_broker_frees_a_place() -> None:
    story = Story()
    for broker_id in range(MAX_BROKERS):
        story.does(story.registration(broker_id))
    with pytest.raises(errors.InvalidRequest, match=f"one more than {MAX_BROKERS}"):
        story.does(story.registration(MAX_BROKERS))
    story.does(UnregisterBroker(7))
    story.does(story.registration(MAX_BROKERS))

"""Eligible leader replicas (KIP-966): who may be elected once the last one in sync is gone, and who may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fencepost_controller.decisions.brokers import RegisterBroker
from fencepost_controller.decisions.elections import ElectUncleanLeader
from fencepost_controller.decisions.isr import StartReplicaOver
from fencepost_controller.decisions.reassignment import ReassignPartitions
from fencepost_controller.decisions.topic_config import AlterTopicConfig
from fencepost_controller.decisions.topics import CreateTopic, DeleteTopic
from fencepost_proto.protocol.features import FIRST, NEWEST
from fencepost_proto.protocol.metadata import TopicConfig
from tests.unit.controller_story import CLUSTER_ID, Story

A = ("a-id", 0)
TWO = TopicConfig(min_insync_replicas=2)


def three(config: TopicConfig = TWO) -> Story:
    """Brokers 1 to 3 hold a-0; 1 leads."""
    return Story().cluster(1, 2, 3).topic("a", (1, 2, 3), config=config)


def settings(story: Story, **changes: object) -> None:
    names = ", ".join(f"{name}={value}" for name, value in changes.items())
    set_to = tuple((name, str(value)) for name, value in changes.items())
    story.tell(f"a gets {names}", AlterTopicConfig("a", set_to))


def test_the_first_of_those_that_have_all_leads_whoever_was_the_last_in_sync() -> None:
    story = three()
    for broker_id in (3, 2, 1):
        story.dies(broker_id)
    story.starts(3)
    story.is_ready(3)
    story.starts(2)
    story.is_ready(2)
    story.proposes(2, A, 2, 3)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        broker 3 starts
            broker 3: fenced
        broker 3 is ready
            broker 3: live
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
            a-0: leader 2 epoch 2, in sync 2 of 1 2 3, change 4, eligible 1
        broker 2 proposes 2 3 in sync for a-0
            a-0: leader 2 epoch 2, in sync 2 3 of 1 2 3, change 5
    """)


def test_a_leader_that_proposes_to_go_on_alone_and_has_failed_is_replaced_by_one_that_it_leaves_behind() -> None:
    """Its failure is reported, and waits behind the proposal to be acted on. No one knows yet that others may commit without
    those that leave by it."""
    story = three()
    story.failed[1, story.epoch(1)] = frozenset({A})
    story.proposes(1, A, 1)
    story.disk_fails(1, A)
    story.reads("""
        broker 1 proposes 1 in sync for a-0
            a-0: leader 2 epoch 1, in sync 2 of 1 2 3, change 1, eligible 1 3
        broker 1 cannot write a-0
    """)


def test_one_that_was_left_behind_by_enough_is_not_eligible() -> None:
    story = three()
    story.proposes(1, A, 1, 2)
    story.dies(2)
    story.dies(1)
    story.starts(3)
    story.is_ready(3)
    story.reads("""
        broker 1 proposes 1 2 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        broker 3 starts
            broker 3: fenced
        broker 3 is ready
            broker 3: live
    """)


def test_members_that_lag_stay_eligible_and_lead_when_the_leader_dies() -> None:
    story = three()
    story.proposes(1, A, 1)
    story.dies(1)
    story.starts(1)
    story.is_ready(1)
    story.proposes(2, A, 1, 2)
    story.reads("""
        broker 1 proposes 1 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 1, eligible 2 3
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 of 1 2 3, change 2, eligible 1 3
        broker 1 starts
            broker 1: fenced
        broker 1 is ready
            broker 1: live
        broker 2 proposes 1 2 in sync for a-0
            a-0: leader 2 epoch 1, in sync 1 2 of 1 2 3, change 3
    """)


def test_an_unclean_end_of_the_machine_ends_the_eligibility_and_a_kill_does_not() -> None:
    story = three()
    for broker_id in (3, 2, 1):
        story.dies(broker_id)
    story.starts(1, lost_tail=True)
    story.is_ready(1)
    story.starts(2, lost_tail=True)
    story.is_ready(2)
    story.starts(3)
    story.is_ready(3)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        broker 1 starts without its last writes
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1 2 3, change 4, eligible 2, last in sync 1
        broker 1 is ready
            broker 1: live
        broker 2 starts without its last writes
            broker 2: fenced
            a-0: offline epoch 1, in sync none of 1 2 3, change 5, last in sync 1 2
        broker 2 is ready
            broker 2: live
        broker 3 starts
            broker 3: fenced
        broker 3 is ready
            broker 3: live
    """)


def test_where_all_that_had_everything_may_have_lost_some_an_operator_decides() -> None:
    story = three()
    for broker_id in (3, 2, 1):
        story.dies(broker_id)
    for broker_id in (2, 1):
        story.starts(broker_id, lost_tail=True)
        story.is_ready(broker_id)
    story.tell("2 is elected uncleanly", ElectUncleanLeader("a", 0, 2))
    story.proposes(2, A, 1, 2)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        broker 2 starts without its last writes
            broker 2: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 4, last in sync 2
        broker 2 is ready
            broker 2: live
        broker 1 starts without its last writes
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1 2 3, change 5, last in sync 1 2
        broker 1 is ready
            broker 1: live
        2 is elected uncleanly
            a-0: leader 2 epoch 2, in sync 2 of 1 2 3, change 6
        broker 2 proposes 1 2 in sync for a-0
            a-0: leader 2 epoch 2, in sync 1 2 of 1 2 3, change 7
    """)


def test_a_topic_that_syncs_before_it_acknowledges_loses_nothing_with_the_power() -> None:
    story = three(TopicConfig(min_insync_replicas=2, flush_always=True))
    for broker_id in (3, 2, 1):
        story.dies(broker_id)
    story.starts(2, lost_tail=True)
    story.is_ready(2)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        broker 2 starts without its last writes
            broker 2: fenced
        broker 2 is ready
            broker 2: live
            a-0: leader 2 epoch 2, in sync 2 of 1 2 3, change 4, eligible 1
    """)


def test_a_folder_that_is_older_or_empty_and_a_log_that_is_gone_end_it() -> None:
    story = three()
    for broker_id in (3, 2, 1):
        story.dies(broker_id)
    story.starts(3, older_folder=True)
    story.starts(2, damaged=(A,))
    story.starts(1, new_folder=True)
    for broker_id in (1, 2, 3):
        story.is_ready(broker_id)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        broker 3 starts with an older folder
            broker 3: fenced
        broker 2 starts with damage in a-0
            broker 2: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 4, last in sync 2
        broker 1 starts with an empty folder
            broker 1: fenced
            a-0: offline epoch 1, in sync none of 1 2 3, change 5, last in sync 1 2
        broker 1 is ready
            broker 1: live
        broker 2 is ready
            broker 2: live
        broker 3 is ready
            broker 3: live
    """)


def test_a_log_that_is_given_up_is_not_eligible_from_the_answer_on() -> None:
    story = three()
    story.disk_fails(2, A)
    story.disk_fails(3, A)
    story.tell("broker 2 is about to start over", StartReplicaOver(2, story.epoch(2), A))
    story.dies(1)
    story.reads("""
        broker 2 cannot write a-0
            a-0: leader 1 epoch 0, in sync 1 3 of 1 2 3, change 1
        broker 3 cannot write a-0
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 3
        broker 2 is about to start over
            a-0: leader 1 epoch 1, in sync 1 of 1 2 3, change 3, eligible 3
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 2, in sync 1 of 1 2 3, change 4, eligible 3
    """)


def test_a_disk_that_refuses_yields_to_one_that_is_eligible() -> None:
    story = three()
    story.proposes(1, A, 1)
    story.disk_fails(1, A)
    story.reads("""
        broker 1 proposes 1 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 1, eligible 2 3
        broker 1 cannot write a-0
            a-0: leader 2 epoch 1, in sync 2 of 1 2 3, change 2, eligible 1 3
    """)


def test_a_setting_that_lets_a_leader_commit_alone_ends_it_by_the_same_version() -> None:
    story = three()
    story.dies(3)
    story.dies(2)
    settings(story, min_insync_replicas=1)
    settings(story, min_insync_replicas=2)
    story.dies(1)
    story.starts(2)
    story.is_ready(2)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        a gets min_insync_replicas=1
            topics/a-id
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 3
        a gets min_insync_replicas=2
            topics/a-id
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 4
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
    """)


def test_a_setting_that_comes_while_no_one_leads_takes_no_hope_away() -> None:
    story = three()
    for broker_id in (3, 2, 1):
        story.dies(broker_id)
    settings(story, min_insync_replicas=1)
    story.starts(3)
    story.is_ready(3)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        a gets min_insync_replicas=1
            topics/a-id
        broker 3 starts
            broker 3: fenced
        broker 3 is ready
            broker 3: live
    """)


def test_an_unclean_election_makes_no_one_else_eligible() -> None:
    story = three()
    story.proposes(1, A, 1, 2)
    story.dies(2)
    story.dies(1)
    story.tell("3 is elected uncleanly", ElectUncleanLeader("a", 0, 3))
    story.starts(1)
    story.is_ready(1)
    story.dies(3)
    story.reads("""
        broker 1 proposes 1 2 in sync for a-0
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 1, in sync 1 of 1 2 3, change 3, eligible 2
        3 is elected uncleanly
            a-0: leader 3 epoch 2, in sync 3 of 1 2 3, change 4
        broker 1 starts
            broker 1: fenced
        broker 1 is ready
            broker 1: live
        broker 3 dies
            broker 3: fenced
            a-0: offline epoch 3, in sync 3 of 1 2 3, change 5
    """)


def test_a_replica_that_is_moved_away_is_eligible_no_more_and_not_when_it_comes_back() -> None:
    story = three().cluster(4)
    story.dies(3)
    story.dies(2)
    story.tell("3 is replaced by 4", ReassignPartitions("a", ((0, (1, 2, 4)),)))
    story.tell("4 is in sync", story.proposal(1, A, 1, 4))
    story.dies(4)
    story.tell("2 is replaced by 3", ReassignPartitions("a", ((0, (1, 4, 3)),)))
    story.tell("all that have everything are replaced", ReassignPartitions("a", ((0, (2, 3)),)))
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        3 is replaced by 4
            a-0: leader 1 epoch 0, in sync 1 of 1 2 4 3, change 3, adding 4, removing 3, eligible 2
        4 is in sync
            a-0: leader 1 epoch 1, in sync 1 4 of 1 2 4, change 4
        broker 4 dies
            broker 4: fenced
            a-0: leader 1 epoch 1, in sync 1 of 1 2 4, change 5, eligible 4
        2 is replaced by 3
            a-0: leader 1 epoch 1, in sync 1 of 1 4 3 2, change 6, adding 3, removing 2, eligible 4
        all that have everything are replaced
            a-0: leader 1 epoch 1, in sync 1 of 2 3 1 4, change 7, adding 3, removing 1 4, eligible 4
    """)


def test_a_topic_made_again_knows_nothing_of_the_one_before() -> None:
    story = three()
    story.dies(3)
    story.dies(2)
    story.tell("a is deleted", DeleteTopic("a"))
    story.tell("a is made again", CreateTopic("a", "b-id", assignments=((1, 2, 3),), config=TWO))
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2
        a is deleted
            partitions/a-id/0 deleted
            topics/a-id deleted
        a is made again
            topics/b-id
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 0
    """)


def test_a_controlled_shutdown_of_all_leaves_all_that_left_too_late_eligible() -> None:
    story = three()
    for broker_id in (1, 2, 3):
        story.shuts_down(broker_id)
        story.dies(broker_id)
    story.starts(1)
    story.is_ready(1)
    story.reads("""
        broker 1 wants to shut down
            broker 1: shutting down
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 1
        broker 1 dies
            broker 1: fenced
        broker 2 wants to shut down
            broker 2: shutting down
            a-0: leader 3 epoch 2, in sync 3 of 1 2 3, change 2, eligible 2
        broker 2 dies
            broker 2: fenced
        broker 3 wants to shut down
            broker 3: shutting down
        broker 3 dies
            broker 3: fenced
            a-0: offline epoch 3, in sync 3 of 1 2 3, change 3, eligible 2
        broker 1 starts
            broker 1: fenced
        broker 1 is ready
            broker 1: live
    """)


@pytest.mark.parametrize("minimum", [1, 2, 3])
def test_whoever_left_while_enough_were_in_sync_never_leads_of_itself(minimum: int) -> None:
    story = three(TopicConfig(min_insync_replicas=minimum))
    story.dies(3)
    story.dies(2)
    story.dies(1)
    story.starts(3)
    story.is_ready(3)
    assert (story.image.partitions[A].leader == 3) == (minimum == 3)


# ---- Brokers of an older version, which commit with fewer than min.insync.replicas in sync ----


def older(story: Story, broker_id: int) -> None:
    """Killed, and started again after a step back to the version before."""
    story.dies(broker_id)
    story.starts(broker_id, feature_level=FIRST)
    story.is_ready(broker_id)


def test_beside_an_older_broker_in_sync_no_one_is_eligible() -> None:
    story = three()
    older(story, 1)
    story.proposes(2, A, 2, 3, 1)
    story.dies(3)
    story.dies(2)  # from now on 1 commits alone
    story.dies(1)
    story.starts(2)
    story.is_ready(2)
    story.reads("""
        broker 1 dies
            broker 1: fenced
            a-0: leader 2 epoch 1, in sync 2 3 of 1 2 3, change 1
        broker 1 starts of an older version
            broker 1: fenced
        broker 1 is ready
            broker 1: live
        broker 2 proposes 2 3 1 in sync for a-0
            a-0: leader 2 epoch 1, in sync 1 2 3 of 1 2 3, change 2
        broker 3 dies
            broker 3: fenced
            a-0: leader 2 epoch 1, in sync 1 2 of 1 2 3, change 3
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 2, in sync 1 of 1 2 3, change 4
        broker 1 dies
            broker 1: fenced
            a-0: offline epoch 3, in sync 1 of 1 2 3, change 5
        broker 2 starts
            broker 2: fenced
        broker 2 is ready
            broker 2: live
    """)


def test_an_eligible_one_that_comes_back_as_an_older_version_ends_all_eligibility() -> None:
    story = three(TopicConfig(min_insync_replicas=3))
    story.dies(3)
    story.dies(2)
    story.starts(2, feature_level=FIRST)
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2 3, change 1, eligible 3
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 2, eligible 2 3
        broker 2 starts of an older version
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2 3, change 3
    """)


def test_an_older_broker_that_is_not_in_sync_keeps_no_one_from_being_eligible() -> None:
    story = three()
    older(story, 3)
    story.dies(2)
    assert story.image.partitions[A].eligible == (2,)
    story.proposes(1, A, 1, 3)
    assert story.image.partitions[A].eligible == ()
    story.dies(3)
    assert story.image.partitions[A].eligible == ()


def test_the_controller_is_upgraded_before_or_after_the_brokers() -> None:
    """What it did not keep yet, or the broker did not announce, it learns when the same process registers again."""
    story = three()
    for broker_id in (1, 2, 3):
        story.starts(broker_id, feature_level=FIRST)
        story.is_ready(broker_id)
        known = story.image.brokers[broker_id]
        again = story.does(RegisterBroker(broker_id, known.incarnation, CLUSTER_ID, known.address))
        assert again == replace(known, feature_level=NEWEST)
    leader = story.image.partitions[A].leader
    story.proposes(leader, A, 1, 2, 3)
    others = [b for b in (1, 2, 3) if b != leader]
    for broker_id in others:
        story.dies(broker_id)
    assert story.image.partitions[A].eligible == (others[1],)

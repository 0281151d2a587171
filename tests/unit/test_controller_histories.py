"""A controller's store that was put back, beside brokers that know better: what was removed since stays removed, and what is
only missing is never taken for removed. Each row of the tables of `decisions/recovery.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fencepost_controller.decisions.brokers import UnregisterBroker
from fencepost_controller.decisions.histories import heads, parting
from fencepost_controller.decisions.recovery import RecoveryRefused, recover
from fencepost_controller.decisions.recovery_inputs import BrokerReport, HeldLog
from fencepost_controller.decisions.topics import CreateTopic, DeleteTopic
from fencepost_proto.protocol.metadata import NO_LEADER, MetadataImage, Partition
from tests.unit.controller_recovery_story import EMPTY, LINEAGE, log_of, partition, started, story, told_by
from tests.unit.controller_story import Story


def put_back(image: MetadataImage, starts: int = 1) -> MetadataImage:
    """A backup that controllers have been started with, and ended at the first broker that knew better."""
    for number in range(starts):
        image = started(image, 50 + number)
    return image


def forked(image: MetadataImage) -> Story:
    """A backup that a controller went on with. Its lineage is 60."""
    fork = Story()
    fork.image = started(image, 60)
    fork.topic("of-the-fork", (3,))
    return fork


def without(told: Sequence[BrokerReport], name: str, topic_id: str = "a-id") -> list[BrokerReport]:
    """The same brokers, whose disks hold no log of it."""
    assert any(held.topic_name == name for one in told for held in one.logs), name
    return [replace(one, logs=tuple(held for held in one.logs if held.topic_id != topic_id)) for one in told]


def says(report: Sequence[str], *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in report)


# ---- Which images hold ----


@pytest.mark.parametrize("starts", [0, 1, 3])
def test_a_backup_that_was_only_started_is_an_ancestor(starts: int) -> None:
    cluster = story()
    backup = cluster.image
    cluster.topic("late", (1, 2))
    assert heads([put_back(backup, starts), cluster.image]) == [cluster.image]
    assert heads([cluster.image, put_back(backup, starts)]) == [cluster.image]


def test_one_that_went_on_is_not_and_parts_where_it_was_copied() -> None:
    cluster = story()
    backup = cluster.image
    cluster.topic("late", (1, 2))
    fork = forked(backup).image
    assert len(heads([fork, cluster.image])) == 2
    assert parting(fork, cluster.image) == parting(cluster.image, fork) == backup.version


def test_what_a_recovery_made_is_no_start() -> None:
    """Its lineage begins with it, and all that it decided is in that version. Nor is the cluster's first version one."""
    told = told_by(story().image, 1, 2, 3)
    one, other = (recover(EMPTY, told, (), lineage_id).image for lineage_id in (LINEAGE, LINEAGE + 1))
    assert one.version == other.version
    assert len(heads([one, other])) == 2


# ---- Topics ----


@pytest.mark.parametrize("starts", [0, 1, 3])
def test_a_topic_that_was_deleted_since_the_backup_stays_deleted_and_is_reported(starts: int) -> None:
    """Seed 660024: it came back empty under its own id, and consumers that had read it saw its end go back."""
    cluster = story()
    backup = cluster.image
    cluster.does(DeleteTopic("a"))
    done = recover(put_back(backup, starts), told_by(cluster.image, 1, 2, 3), (), LINEAGE)
    assert not done.image.topics
    assert not done.image.partitions
    assert says(done.report, "topic a (id a-id) was deleted", "no broker that was asked holds a log of it")


def test_one_that_was_deleted_and_made_again_is_the_one_that_was_made_again() -> None:
    cluster = story()
    fork = forked(cluster.image)
    for number in range(5):  # more than the other history has
        fork.topic(f"more-{number}", (3,))
    backup = cluster.image
    cluster.does(DeleteTopic("a"))
    cluster.does(CreateTopic("a", "new-id", assignments=((1, 2, 3),)))
    for store, told in (
        (put_back(backup), told_by(cluster.image, 1, 2, 3)),
        (fork.image, [*told_by(cluster.image, 1, 2), *told_by(fork.image, 3)]),
    ):
        done = recover(store, told, (), LINEAGE)
        assert done.image.topic_ids["a"] == "new-id"
        assert says(done.report, "topic a (id a-id) was deleted")


def test_logs_that_are_left_of_it_are_named() -> None:
    cluster = story()
    before = cluster.image
    cluster.does(DeleteTopic("a"))
    told = [*told_by(cluster.image, 1, 2), *told_by(before, 3)]
    done = recover(put_back(before), told, (), LINEAGE)
    assert not done.image.topics
    assert says(done.report, "topic a (id a-id) was deleted", "logs of it on brokers [3] will be set aside")


def test_where_histories_part_the_version_that_created_a_topic_shows_whether_it_was_deleted_in_the_other_one() -> None:
    cluster = story()
    fork = forked(cluster.image)
    cluster.does(DeleteTopic("a"))
    told = [*told_by(cluster.image, 1, 2), *told_by(fork.image, 3)]
    done = recover(fork.image, told, (), LINEAGE)
    assert {topic.name for topic in done.image.topics.values()} == {"of-the-fork"}
    assert says(done.report, "topic a (id a-id) was deleted", "logs of it on brokers [3]")


def test_where_nothing_is_known_it_stays_and_without_a_log_it_waits_for_an_operator() -> None:
    """A topic of a store that kept no versions of creation. It may have been deleted; or its disks are lost."""
    cluster = story()
    old = replace(cluster.image.topics["a-id"], created_version=0)
    cluster.image = cluster.image.with_changes(cluster.image.version, {old.key: old})
    fork = forked(cluster.image)
    cluster.does(DeleteTopic("a"))
    held = [*told_by(cluster.image, 1, 2), *told_by(fork.image, 3)]
    assert partition(recover(fork.image, held, (), LINEAGE).image).isr == (3,)
    done = recover(fork.image, without(held, "a"), (), LINEAGE)
    waiting = partition(done.image)
    assert (waiting.isr, waiting.leader, waiting.last_known_isr) == ((), NO_LEADER, (1, 2, 3))
    assert says(done.report, "a-0: none of the brokers in sync, [1, 2, 3], holds a log of it", "--unclean")


def test_a_topic_that_only_a_store_without_followers_created_is_not_taken_and_its_numbers_are_not_used_again() -> None:
    cluster = story()
    fork = forked(cluster.image)
    cluster.topic("late", (1, 2, 3))
    done = recover(fork.image, told_by(cluster.image, 1, 2, 3), (), LINEAGE)
    assert {topic.name for topic in done.image.topics.values()} == {"a", "late"}
    assert says(done.report, "topic of-the-fork (id of-the-fork-id) is not taken", "no broker knows it")
    assert done.image.version > fork.image.version


@pytest.mark.parametrize("by", ["image", "version"])
def test_one_that_a_broker_knows_is(by: str) -> None:
    """Its image may lag behind the version that it knows of."""
    cluster = story()
    backup = cluster.image
    fork = forked(backup)
    cluster.topic("late", (1, 2, 3))
    heard = told_by(fork.image if by == "image" else backup, 3)[0]
    heard = replace(heard, known_version=fork.image.version, known_lineage_id=60)
    done = recover(fork.image, [*told_by(cluster.image, 1, 2), heard], (), LINEAGE)
    assert {topic.name for topic in done.image.topics.values()} == {"a", "late", "of-the-fork"}


# ---- Partitions ----


def test_a_topic_of_the_newest_metadata_whose_logs_are_on_no_disk_is_no_deleted_one() -> None:
    """Every disk was replaced. An empty log under the id that consumers know would be a log that went back."""
    told = without(told_by(story().image, 1, 2, 3), "a")
    for store in (EMPTY, put_back(story().image)):
        done = recover(store, told, (), LINEAGE)
        waiting = partition(done.image)
        assert (waiting.isr, waiting.leader, waiting.last_known_isr) == ((), NO_LEADER, (1, 2, 3))
        assert says(done.report, "a-0: none of the brokers in sync", "'fencepost topic elect a 0 --unclean'")
        assert not says(done.report, "was deleted")


def test_with_one_log_left_that_one_is_in_sync() -> None:
    told = told_by(story().image, 1, 2, 3)
    told = [*without(told, "a")[:2], told[2]]
    assert partition(recover(EMPTY, told, (), LINEAGE).image).isr == (3,)


def test_a_member_that_does_not_tell_or_whose_log_is_damaged_is_waited_for() -> None:
    told = told_by(story().image, 1, 2, 3)
    empty = without(told, "a")
    assert partition(recover(EMPTY, empty[:2], {3}, LINEAGE).image).isr == (3,)
    damaged = replace(told[2], logs=tuple(replace(held, failure="it is damaged") for held in told[2].logs))
    assert partition(recover(EMPTY, [*empty[:2], damaged], (), LINEAGE).image).isr == (3,)


def test_a_topic_that_no_broker_knows_keeps_its_set() -> None:
    """The controller died between its commit and the first broker's hearing of it."""
    cluster = story()
    before = cluster.image
    cluster.topic("late", (1, 2, 3))
    done = recover(cluster.image, told_by(before, 1, 2, 3), (), LINEAGE)
    assert partition(done.image, "late").isr == (1, 2, 3)


def test_replicas_that_were_moved_since_the_backup_stay_where_they_are() -> None:
    made = Story().cluster(1, 2, 3, 4)
    made.image = started(made.image, 7)
    made.topic("a", (1, 2))
    backup = made.image
    moved = replace(partition(backup), replicas=(3, 4), isr=(3, 4), leader=3, leader_epoch=1, partition_epoch=4)
    made.image = backup.with_changes(backup.version + 4, {moved.key: moved})
    told = [replace(one, logs=_led(one, moved)) for one in told_by(made.image, 1, 2, 3, 4)]
    after = partition(recover(put_back(backup), told, (), LINEAGE).image)
    assert (after.replicas, after.isr) == ((3, 4), (3, 4))


def _led(one: BrokerReport, of: Partition) -> tuple[HeldLog, ...]:
    return tuple(replace(held, leads=one.broker_id == of.leader) for held in one.logs)


def two_leaders(ends: dict[int, int]) -> tuple[MetadataImage, list[BrokerReport]]:
    """Broker 3 was elected by a store that had gone back, while 1 led on. Logs end so."""
    cluster = story()
    fork = forked(cluster.image)
    alone = replace(partition(fork.image), isr=(3,), leader=3, leader_epoch=1, partition_epoch=2)
    fork.image = fork.image.with_changes(fork.image.version + 1, {alone.key: alone})
    cluster.dies(3)
    true = partition(cluster.image)
    assert (true.leader, true.isr) == (1, (1, 2))
    told = [*told_by(cluster.image, 1, 2), *told_by(fork.image, 3)]
    for at, one in enumerate(told):
        epoch = 1 if one.broker_id == 3 else true.leader_epoch
        a_log = log_of(true, one.broker_id, ends[one.broker_id], 0, leader_epoch=epoch, leads=one.broker_id in (1, 3))
        told[at] = replace(one, logs=(a_log,))
    return fork.image, told


def test_two_leaders_that_both_served_are_for_an_operator_to_choose_from() -> None:
    fork, told = two_leaders({1: 20, 2: 20, 3: 12})
    done = recover(fork, told, (), LINEAGE)
    waiting = partition(done.image)
    assert (waiting.isr, set(waiting.last_known_isr)) == ((), {1, 2, 3})
    assert says(done.report, "a-0: led under epochs [0, 1] of different histories", "--unclean")


def test_where_their_logs_agree_all_are_in_sync() -> None:
    fork, told = two_leaders({1: 12, 2: 12, 3: 12})
    done = recover(fork, told, (), LINEAGE)
    assert set(partition(done.image).isr) == {1, 2, 3}
    assert says(done.report, "a-0: led under epochs [0, 1] of different histories", "whose logs agree")


def test_an_election_that_its_leader_never_received_does_not_count() -> None:
    fork, told = two_leaders({1: 20, 2: 20, 3: 12})
    told[2] = replace(told[2], logs=(replace(told[2].logs[0], leader_epoch=0, leads=False),))
    assert partition(recover(fork, told, (), LINEAGE).image).isr == (1, 2)


# ---- Brokers ----


def test_a_broker_that_was_removed_since_the_backup_is_not_asked_for() -> None:
    made = Story().cluster(1, 2, 3, 4)
    made.image = started(made.image, 7)
    made.topic("a", (1, 2, 3))
    backup, fork = made.image, forked(made.image)
    made.dies(4)
    made.does(UnregisterBroker(4))
    for store, told in (
        (put_back(backup), told_by(made.image, 1, 2, 3)),
        (fork.image, [*told_by(made.image, 1, 2), *told_by(fork.image, 3)]),
    ):
        assert sorted(recover(store, told, (), LINEAGE).image.brokers) == [1, 2, 3]


def test_one_that_registered_with_a_fork_is() -> None:
    made = story()
    fork = forked(made.image)
    fork.cluster(4)
    made.topic("late", (1, 2))
    told = [*told_by(made.image, 1, 2), *told_by(fork.image, 3)]
    with pytest.raises(RecoveryRefused, match="broker 4 has not reported"):
        recover(fork.image, told, (), LINEAGE)

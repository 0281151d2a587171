"""A controller's store made again from what the brokers hold: each rule, and a law over histories that fork."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_controller.decisions.draft import decide
from fencepost_controller.decisions.elections import ElectUncleanLeader
from fencepost_controller.decisions.histories import heads
from fencepost_controller.decisions.producers import AllocateProducerIds, InitProducer, RemoveName
from fencepost_controller.decisions.recovered_partitions import EPOCH_JUMP
from fencepost_controller.decisions.recovery import (
    MAX_SOUND_NAMED_ID,
    MAX_SOUND_PRODUCER_ID,
    NO_INCARNATION,
    PRODUCER_EPOCH_JUMP,
    PRODUCER_ID_JUMP,
    VERSION_JUMP,
    RecoveryRefused,
    recover,
)
from fencepost_controller.decisions.recovery_inputs import BrokerReport, HeldLog
from fencepost_controller.decisions.topics import CreateTopic, DeleteTopic
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.lineage import Lineage, LineageStart, VersionCheck
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    NO_LEADER,
    ClusterIdentity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
)
from fencepost_proto.protocol.record_batch import MAX_EPOCH
from tests.unit.controller_recovery_story import EMPTY, LINEAGE, partition, started, story, told_by
from tests.unit.controller_story import CLUSTER_ID, Story

# ---- What is told decides ----


@pytest.mark.parametrize("lost", [False, True])
def test_a_store_that_is_behind_or_lost_gets_what_the_brokers_have_and_every_number_jumps(lost: bool) -> None:
    cluster = story()
    backup = cluster.image
    for command in (AllocateProducerIds(1, cluster.epoch(1)), InitProducer("loader"), InitProducer("loader")):
        cluster.image = decide(cluster.image, command, {}).image
    cluster.topic("late", (2, 3))
    now = cluster.image
    done = recover(EMPTY if lost else backup, told_by(now, 1, 2, 3), (), LINEAGE).image
    assert done.cluster_id == CLUSTER_ID
    assert done.topics == now.topics
    assert done.version == now.version + VERSION_JUMP
    assert done.next_ids.next_id == now.next_ids.next_id + PRODUCER_ID_JUMP
    assert done.producers["loader"].producer_id == now.producers["loader"].producer_id
    assert done.producers["loader"].epoch == now.producers["loader"].epoch + PRODUCER_EPOCH_JUMP
    for key, before in now.partitions.items():
        after = done.partitions[key]
        assert (after.isr, after.replicas, after.leader) == (before.isr, before.replicas, NO_LEADER)
        assert after.leader_epoch == before.leader_epoch + EPOCH_JUMP
        assert after.partition_epoch > before.partition_epoch
    for broker_id, broker in done.brokers.items():
        assert broker.fenced
        assert broker.incarnation == NO_INCARNATION
        assert broker.broker_epoch == now.brokers[broker_id].broker_epoch  # of its last registration


def test_after_it_a_broker_that_knows_an_older_version_is_behind_and_never_a_fork() -> None:
    cluster = story()
    done = recover(EMPTY, told_by(cluster.image, 1, 2, 3), (), LINEAGE).image
    assert done.lineage.starts == (LineageStart(LINEAGE, done.version),)
    for version, lineage_id in ((cluster.image.version, 7), (cluster.image.version + 5, 1234)):
        assert done.lineage.check(version, lineage_id, done.version) is VersionCheck.SOUND


def test_recovering_twice_is_recovering() -> None:
    cluster = story()
    once = recover(EMPTY, told_by(cluster.image, 1, 2, 3), (), LINEAGE).image
    twice = recover(once, told_by(cluster.image, 1, 2, 3), (), LINEAGE + 1).image
    assert twice.topics == once.topics
    assert twice.version > once.version
    assert partition(twice).isr == partition(once).isr


def test_a_folder_of_before_the_recovery_is_an_older_one_after_it() -> None:
    """Broker 1 has registered since the store was copied, and served under that epoch."""
    made = story()
    store, old = made.image, made.epoch(1)
    made.does(made.registration(1))
    newest = made.epoch(1)
    recovered = recover(store, told_by(made.image, 1, 2, 3), (), LINEAGE).image
    broker = recovered.brokers[1]
    assert broker.served_epoch == newest
    for epoch, lacks in ((old, True), (newest, False)):
        assert bool(made.registration(1, folder_epoch=epoch).folder_problem(broker)) == lacks


def test_ids_in_logs_count_and_one_that_was_never_allocated_does_not() -> None:
    told = told_by(story().image, 1, 2, 3)
    logs = (replace(told[0].logs[0], max_producer_id=77_000, max_named_id=FIRST_NAMED_ID + 99),)
    far = (replace(told[1].logs[0], max_producer_id=MAX_SOUND_PRODUCER_ID + 1, max_named_id=MAX_SOUND_NAMED_ID + 1),)
    done = recover(EMPTY, [replace(told[0], logs=logs), replace(told[1], logs=far), told[2]], (), LINEAGE)
    assert done.image.next_ids.next_id == 77_001 + PRODUCER_ID_JUMP
    assert done.image.next_ids.next_named_id == FIRST_NAMED_ID + 100 + PRODUCER_ID_JUMP
    assert sum("was never allocated" in line for line in done.report) == 2


def test_the_epoch_of_a_name_goes_beyond_what_logs_hold_and_where_none_is_left_its_id_is_retired() -> None:
    cluster = story()
    first = FIRST_NAMED_ID
    used_up = NamedProducer("old", first + 1, MAX_EPOCH - 1)
    gone = NamedProducer("gone", first + 2, 5, expired=True)
    changes = {e.key: e for e in (NextProducerId(0, first + 100, 7), NamedProducer("loader", first, 3), used_up, gone)}
    cluster.image = cluster.image.with_changes(cluster.image.version + 1, changes)
    told = told_by(cluster.image, 1, 2, 3)
    told[1] = replace(told[1], epochs={first: 9})
    done = recover(EMPTY, told, (), LINEAGE).image
    assert done.producers["loader"].epoch == 9 + PRODUCER_EPOCH_JUMP
    successor = done.producers["old"]
    assert successor.retired_ids == (first + 1,)
    assert first + 100 + PRODUCER_ID_JUMP <= successor.producer_id < done.next_ids.next_named_id
    assert (done.expired_producers["gone"], done.next_ids.names_clock_ms) == (gone, 7)


def test_a_name_whose_epochs_a_recovery_uses_up_keeps_that_its_predecessor_is_forgotten() -> None:
    cluster = story()
    first = FIRST_NAMED_ID
    used_up = NamedProducer("old", first + 1, MAX_EPOCH, (first,), predecessor_expired=True, used_at_ms=3)
    changes = {e.key: e for e in (NextProducerId(0, first + 100, 7), used_up)}
    cluster.image = cluster.image.with_changes(cluster.image.version + 1, changes)
    done = recover(EMPTY, told_by(cluster.image, 1, 2, 3), (), LINEAGE).image.producers["old"]
    assert (done.retired_ids, done.predecessor_expired, done.used_at_ms) == ((first, first + 1), True, 3)


# ---- Who has to tell ----


def test_a_broker_that_has_not_reported_is_named_and_may_be_left_out_by_name() -> None:
    told = told_by(story().image, 1, 3)
    with pytest.raises(RecoveryRefused, match=r"broker 2 has not reported what it holds.*--without 2"):
        recover(EMPTY, told, (), LINEAGE)
    done = recover(EMPTY, told, {2}, LINEAGE)
    assert any("broker 2 was not asked" in line for line in done.report)
    assert done.image.brokers[2].fenced


@pytest.mark.parametrize(
    ("store", "cluster_ids", "says"),
    [
        (EMPTY, ("", ""), "no broker has ever been in a cluster"),
        (EMPTY, ("one", "two"), "belong to different clusters"),
    ],
)
def test_brokers_of_no_cluster_or_of_two_are_refused(
    store: MetadataImage, cluster_ids: tuple[str, ...], says: str
) -> None:
    told = [BrokerReport(n, cluster_id, "h:1", 0, 0, MetadataImage()) for n, cluster_id in enumerate(cluster_ids)]
    with pytest.raises(RecoveryRefused, match=says):
        recover(store, told, (), LINEAGE)
    with pytest.raises(RecoveryRefused, match="no broker"):
        recover(store, [], (), LINEAGE)


def test_a_store_that_belongs_to_another_cluster_is_left_alone() -> None:
    cluster = story()
    other = cluster.image.with_changes(cluster.image.version + 1, {"cluster": ClusterIdentity("another")})
    with pytest.raises(RecoveryRefused, match=f"belongs to cluster another, the brokers to {CLUSTER_ID}"):
        recover(other, told_by(cluster.image, 1, 2, 3), (), LINEAGE)


# ---- Who is in sync ----


def test_where_the_leader_leads_under_the_newest_epoch_the_set_is_exact() -> None:
    """A follower whose log was read a moment before the leader's is not out of sync."""
    image = story().image
    told = told_by(image, 1, 2, 3, ends={1: 12, 2: 10, 3: 11})
    told[0] = replace(told[0], logs=tuple(replace(held, leads=True) for held in told[0].logs))
    assert partition(recover(EMPTY, told, (), LINEAGE).image).isr == (1, 2, 3)


def test_where_no_one_leads_the_longest_logs_of_the_set_are_in_sync() -> None:
    image = story().image
    done = recover(EMPTY, told_by(image, 1, 2, 3, ends={1: 10, 2: 12, 3: 12}), (), LINEAGE)
    assert partition(done.image).isr == (2, 3)
    assert any("a-0: in sync [2, 3], by the lengths of their logs" in line for line in done.report)


def test_a_longer_log_outside_of_the_set_does_not_count_unless_it_has_a_later_epoch() -> None:
    cluster = story()
    cluster.dies(3)  # out of the set
    image = cluster.image
    assert partition(image).isr == (1, 2)
    told = told_by(image, 1, 2, 3, ends={1: 10, 2: 10, 3: 15})  # what it never got acknowledged
    assert partition(recover(EMPTY, told, (), LINEAGE).image).isr == (1, 2)
    later = partition(image).leader_epoch + 1  # an election that no image tells of
    told[2] = replace(told[2], logs=tuple(replace(held, last_epoch=later, leader_epoch=later) for held in told[2].logs))
    done = partition(recover(EMPTY, told, (), LINEAGE).image)
    assert done.isr == (3,)
    assert done.leader_epoch == later + EPOCH_JUMP


def test_a_set_of_which_no_one_has_reported_anything_is_waited_for() -> None:
    cluster = story()
    cluster.dies(1)
    cluster.dies(2)
    image = cluster.image
    assert partition(image).isr == (3,)
    done = partition(recover(EMPTY, told_by(image, 1, 2), {3}, LINEAGE).image)
    assert (done.isr, done.leader) == ((3,), NO_LEADER)


def test_a_failed_log_is_no_candidate_and_a_partition_that_waits_for_an_unclean_election_goes_on_waiting() -> None:
    image = story().image
    told = told_by(image, 1, 2, 3, ends={1: 20, 2: 10, 3: 10})
    told[0] = replace(told[0], logs=tuple(replace(held, failure="it is damaged") for held in told[0].logs))
    assert partition(recover(EMPTY, told, (), LINEAGE).image).isr == (2, 3)
    lost = replace(partition(image), isr=(), leader=NO_LEADER, last_known_isr=(1, 2, 3), leader_epoch=1)
    image = image.with_changes(image.version + 1, {lost.key: lost})
    done = recover(EMPTY, told_by(image, 1, 2, 3), (), LINEAGE).image
    assert (partition(done).isr, partition(done).last_known_isr) == ((), (1, 2, 3))


# ---- Topics ----


def test_a_topic_on_disks_that_no_metadata_knows_is_adopted_and_said() -> None:
    image = story().image
    found = [HeldLog("t-9", "lost", index, False, 4, 4, 30) for index in (0, 1)]
    told = told_by(image, 1, 2, 3)
    told[0] = replace(told[0], logs=(*told[0].logs, *found))
    told[1] = replace(told[1], logs=(*told[1].logs, replace(found[0], log_end_offset=31)))
    done = recover(EMPTY, told, (), LINEAGE)
    zero, one = partition(done.image, "lost", 0), partition(done.image, "lost", 1)
    assert (zero.replicas, zero.isr) == ((2, 1), (2,))
    assert (one.replicas, one.isr, one.leader_epoch) == ((1,), (1,), 4 + EPOCH_JUMP)
    assert any("topic lost (id t-9), found on disks and in no metadata, is adopted" in line for line in done.report)


def test_an_adopted_topic_has_no_gap_and_what_no_one_holds_waits_for_an_operator() -> None:
    """Clients count partitions from 0: with a gap none of a topic's partitions could be used."""
    told = told_by(story().image, 1, 2, 3)
    found = HeldLog("t-9", "lost", 2, False, 4, 4, 30)
    told[0] = replace(told[0], logs=(*told[0].logs, found, HeldLog("t-9", "lost", 999_999_999, False, 4, 4, 30)))
    told[2] = replace(told[2], logs=(*told[2].logs, found, HeldLog("t-8", "far", 1_000, False, 4, 4, 30)))
    done = recover(EMPTY, told, (), LINEAGE)
    assert [p.index for p in done.image.partitions_of("t-9")] == [0, 1, 2]
    zero, one, two = done.image.partitions_of("t-9")
    assert [(p.isr, p.leader, p.last_known_isr) for p in (zero, one)] == [((), -1, (1, 3)), ((), -1, (3, 1))]
    assert two.isr == (1, 3)
    assert any("lost-0: no broker holds a log of it" in line for line in done.report)
    assert any("lost-999999999 is not adopted" in line for line in done.report)
    assert "t-8" not in done.image.topics


def test_a_topic_that_was_deleted_while_a_broker_was_away_is_not_adopted() -> None:
    cluster = story()
    before = cluster.image
    cluster.image = decide(cluster.image, DeleteTopic("a"), {}).image
    told = [*told_by(cluster.image, 1, 2), *told_by(before, 3)]
    done = recover(before, told, (), LINEAGE)
    assert not done.image.topics
    assert any("topic a (id " in line and "was deleted" in line for line in done.report)


def test_a_topic_on_disks_whose_name_is_taken_or_is_no_name_is_left_and_said() -> None:
    told = told_by(story().image, 1, 2, 3)
    strange = (HeldLog("t-8", "a", 0, False, 0, 0, 1), HeldLog("t-9", "what ever", 0, False, 0, 0, 1))
    told[0] = replace(told[0], logs=(*told[0].logs, *strange))
    done = recover(EMPTY, told, (), LINEAGE)
    assert "t-8" not in done.image.topics
    assert "t-9" not in done.image.topics
    assert any("topic a (id t-8), found on disks, is not adopted" in line for line in done.report)
    assert any("topic id t-9 are not adopted" in line and "'what ever'" in line for line in done.report)


# ---- Forks ----


def test_what_a_store_that_had_gone_back_sent_to_some_brokers_is_united_with_the_rest() -> None:
    cluster = story()
    backup = cluster.image
    cluster.topic("late", (2, 3))
    true = cluster.image
    fork = Story()
    fork.image = started(backup, 8)
    fork.topic("other", (1, 2))
    assert heads([backup, true, fork.image]) == sorted((true, fork.image), key=lambda image: -image.version)
    done = recover(fork.image, [*told_by(true, 2, 3), *told_by(fork.image, 1)], (), LINEAGE).image
    assert {topic.name for topic in done.topics.values()} == {"a", "late", "other"}


def test_a_name_that_was_given_two_ids_keeps_the_newer_one_and_the_other_is_retired() -> None:
    cluster = story()
    backup = cluster.image
    cluster.image = decide(cluster.image, InitProducer("another"), {}).image
    true = decide(cluster.image, InitProducer("loader"), {}).image
    fork = decide(started(backup, 8), InitProducer("loader"), {}).image
    done = recover(fork, [*told_by(true, 1, 2), *told_by(fork, 3)], (), LINEAGE).image
    newest, other = true.producers["loader"].producer_id, fork.producers["loader"].producer_id
    assert newest != other
    assert done.producers["loader"].producer_id == newest
    assert done.producers["loader"].retired_ids == (other,)
    assert not done.producers["loader"].predecessor_expired


def test_of_a_name_that_one_head_had_forgotten_it_stays_known_that_it_was() -> None:
    cluster = story()
    backup = decide(cluster.image, InitProducer("loader"), {}).image
    lost = decide(backup, RemoveName("loader"), {}).image
    lost = decide(lost, InitProducer("loader"), {}).image
    expired = replace(lost.producers["loader"], expired=True)
    true = lost.with_changes(lost.version + 1, {expired.key: expired})
    fork = decide(started(backup, 8), InitProducer("another"), {}).image
    done = recover(fork, [*told_by(true, 1, 2), *told_by(fork, 3)], (), LINEAGE).image
    assert done.producers["loader"].producer_id == backup.producers["loader"].producer_id
    assert done.producers["loader"].predecessor_expired


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happened_no_number_is_given_out_twice_and_no_topic_is_lost(data: st.DataObject) -> None:
    """Law: a store, a copy of it somewhere on the way, and brokers that are behind by as much as they like, of which one
    has heard everything. What is recovered is beyond everything that the store ever gave out."""
    cluster = story()
    images = [cluster.image]
    for number in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["topic", "delete", "ids", "name", "dies", "start", "unclean"])):
            case "topic":
                command: object = CreateTopic(f"t{number}", f"id-{number}", assignments=((1, 2, 3),))
            case "delete":
                command = DeleteTopic(f"t{data.draw(st.integers(0, 11))}")
            case "ids":
                command = AllocateProducerIds(1, cluster.epoch(1))
            case "name":
                command = InitProducer(f"n{data.draw(st.integers(0, 2))}")
            case "unclean":
                command = ElectUncleanLeader("a", 0, 1)
            case "start":
                images.append(started(images[-1], 100 + number))
                continue
            case _:
                cluster.image = images[-1]
                broker = data.draw(st.integers(1, 3))
                cluster.dies(broker)
                images.append(cluster.image)
                continue
        with suppress(FencepostError):  # a command that is refused changes nothing
            images.append(decide(images[-1], command, {}).image)  # type: ignore[arg-type]
    newest = images[-1]
    behind = [data.draw(st.sampled_from(images)) for _ in range(2)]
    told = [told_by(newest, 1)[0], told_by(behind[0], 2)[0], told_by(behind[1], 3)[0]]
    store = data.draw(st.sampled_from([EMPTY, *images]))
    done = recover(store, told, (), LINEAGE).image
    assert done.topics == newest.topics
    assert done.version > newest.version
    assert done.next_ids.next_id > newest.next_ids.next_id
    assert done.next_ids.next_named_id > newest.next_ids.next_named_id
    for name, producer in newest.producers.items():
        assert (done.producers[name].producer_id, done.producers[name].epoch) > (producer.producer_id, producer.epoch)
    for key, before in newest.partitions.items():
        assert done.partitions[key].leader_epoch > before.leader_epoch
        assert set(done.partitions[key].isr) <= set(before.replicas)
    assert done.lineage == Lineage((LineageStart(LINEAGE, done.version),))

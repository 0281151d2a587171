"""Producer ids and epochs, and how far the fence of named producers stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from controller_story import Story

from fencepost_controller.decisions import producers as producers_module
from fencepost_controller.decisions.fence import standing
from fencepost_controller.decisions.producers import ID_BLOCK_SIZE, AllocateProducerIds, InitProducer
from fencepost_proto import errors
from fencepost_proto.metadata import RETIRED_EPOCH, Changes, MetadataImage, NamedProducer, NextProducerId
from fencepost_proto.record_batch import MAX_EPOCH


def with_producer(story: Story, producer: NamedProducer, next_id: int) -> Story:
    """The image in which this producer has got that far already."""
    changes: Changes = {producer.key: producer, "next-producer-id": NextProducerId(next_id)}
    story.image = story.image.with_changes(story.image.version + 1, changes)
    return story


def test_blocks_of_ids_never_overlap_and_named_producers_take_from_the_same_ids() -> None:
    story = Story().cluster(1, 2)
    first = story.does(AllocateProducerIds(1, story.epoch(1)))
    named = story.does(InitProducer("loader"))
    second = story.does(AllocateProducerIds(2, story.epoch(2)))
    assert (first, named.producer_id, second) == (range(ID_BLOCK_SIZE), 1_000, range(1_001, 2_001))
    assert story.image.next_producer_id == 2_001
    with pytest.raises(errors.StaleBrokerEpoch):
        story.does(AllocateProducerIds(1, 1))
    with pytest.raises(errors.BrokerIdNotRegistered):
        story.does(AllocateProducerIds(7, 1))


def test_ids_end_before_they_overflow() -> None:
    story = Story().cluster(1)
    with_producer(story, NamedProducer("loader", 1, 0), 2**63 - 500)
    with pytest.raises(errors.InvalidRequest, match=str(2**63 - 500)):
        story.does(AllocateProducerIds(1, story.epoch(1)))
    assert story.does(InitProducer("another")).producer_id == 2**63 - 500


def test_the_life_of_a_name() -> None:
    story = Story()
    story.tell("first instance takes over", InitProducer("loader"))
    story.tell("second instance takes over", InitProducer("loader"))
    story.tell("the first recovers", InitProducer("loader", 0, 0))
    story.tell("the second recovers", InitProducer("loader", 0, 1))
    story.tell("the second recovers, having lost the answer", InitProducer("loader", 0, 1))
    story.tell("the second recovers again", InitProducer("loader", 0, 2))
    story.tell("a late copy of its first recovery", InitProducer("loader", 0, 1))
    story.tell("third instance takes over", InitProducer("loader"))
    story.tell("the second recovers", InitProducer("loader", 0, 3))
    story.tell("the third recovers", InitProducer("loader", 0, 4))
    story.tell("somebody with an epoch from the future", InitProducer("loader", 0, 9))
    story.tell("somebody with another id", InitProducer("loader", 7, 5))
    story.tell("somebody under a name that nobody has", InitProducer("unknown", 0, 0))
    story.reads("""
        first instance takes over
            next producer id 1
            loader: id 0 epoch 0
        second instance takes over
            loader: id 0 epoch 1
        the first recovers
            PRODUCER_FENCED
        the second recovers
            loader: id 0 epoch 2
        the second recovers, having lost the answer
        the second recovers again
            loader: id 0 epoch 3
        a late copy of its first recovery
            PRODUCER_FENCED
        third instance takes over
            loader: id 0 epoch 4
        the second recovers
            PRODUCER_FENCED
        the third recovers
            loader: id 0 epoch 5
        somebody with an epoch from the future
            PRODUCER_FENCED
        somebody with another id
            PRODUCER_FENCED
        somebody under a name that nobody has
            PRODUCER_FENCED
    """)


def test_a_repeated_recovery_gets_the_same_answer_and_commits_nothing() -> None:
    story = Story()
    story.does(InitProducer("loader"))
    answer = story.does(InitProducer("loader", 0, 0))
    before = story.image
    assert story.does(InitProducer("loader", 0, 0)) == answer
    assert story.image is before


def test_after_a_take_over_a_lost_recovery_of_the_old_instance_is_fenced() -> None:
    """The same numbers as a repeated recovery: only who asked for the last epoch tells them apart."""
    story = Story()
    story.does(InitProducer("loader"))
    assert story.does(InitProducer("loader")).epoch == 1
    with pytest.raises(errors.ProducerFenced, match=r"id 0 epoch 0 is not the current one \(id 0 epoch 1\)"):
        story.does(InitProducer("loader", 0, 0))


@pytest.mark.parametrize("held", [(-1, -1), (5, MAX_EPOCH)])
def test_the_last_epoch_is_followed_by_a_new_id_and_the_old_one_is_refused_for_good(held: tuple[int, int]) -> None:
    story = with_producer(Story(), NamedProducer("loader", 5, MAX_EPOCH - 1), next_id=40)
    assert story.does(InitProducer("loader")).epoch == MAX_EPOCH
    story.tell("one epoch more", InitProducer("loader", *held))
    story.reads("""
        one epoch more
            next producer id 41
            loader: id 40 epoch 0, retired [5]
    """)
    assert story.image.fences == {5: RETIRED_EPOCH, 40: 0}
    if held != (-1, -1):
        before = story.image
        again = story.does(InitProducer("loader", 5, MAX_EPOCH))
        assert (again.producer_id, again.epoch) == (40, 0)
        assert story.image is before
    else:
        with pytest.raises(errors.ProducerFenced):
            story.does(InitProducer("loader", 5, MAX_EPOCH))


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (InitProducer(""), "0 bytes"),
        (InitProducer("é" * 125), "250 bytes"),
        (InitProducer("a\nb"), "printed"),
        (InitProducer("loader", 3, -1), "both"),
        (InitProducer("loader", -1, 3), "both"),
        (InitProducer("loader", -2, 0), "both"),
        (InitProducer("loader", 1, MAX_EPOCH + 1), "32768"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(command: InitProducer, names: str) -> None:
    story = Story()
    before = story.image
    with pytest.raises(errors.InvalidRequest, match=names):
        story.does(command)
    assert story.image is before


def test_there_is_a_limit_on_names_but_those_known_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers_module, "MAX_NAMED_PRODUCERS", 1)
    story = Story()
    story.does(InitProducer("loader"))
    with pytest.raises(errors.InvalidRequest, match="one more than 1 names"):
        story.does(InitProducer("another"))
    assert story.does(InitProducer("loader")).epoch == 1


# ---- The fence ----


def fenced_cluster() -> Story:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2), (2, 3))
    story.does(InitProducer("loader"))
    return story


def test_the_fence_stands_once_every_in_sync_member_has_applied_it() -> None:
    story = fenced_cluster()
    version = story.image.version
    everyone = {1: version, 2: version, 3: version}
    assert standing(story.image, everyone) == (version, None, -1)
    for late in (1, 2, 3):
        stands = standing(story.image, {**everyone, late: version - 1})
        assert stands.version == version - 1
        assert stands.broker_id == late
        assert f"broker {late}, in sync for partition a-" in stands.why_not(story.image)


def test_a_follower_in_sync_counts_too_for_it_may_believe_that_it_still_leads() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.does(InitProducer("loader"))
    version = story.image.version
    assert story.image.partitions["a-id", 0].leader == 1
    assert standing(story.image, {1: version, 2: version - 1}).version == version - 1


def test_a_broker_without_a_session_holds_the_fence_back_while_it_is_in_sync() -> None:
    story = fenced_cluster()
    version = story.image.version
    assert standing(story.image, {1: version, 3: version}).version == -1
    story.dies(2)
    assert standing(story.image, {1: version, 3: version}).version == version


def test_a_broker_out_of_sync_does_not_count() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.does(story.proposal(1, ("a-id", 0), 1))
    story.does(InitProducer("loader"))
    version = story.image.version
    assert standing(story.image, {1: version}).version == version


def test_a_partition_without_a_leader_holds_the_fence_back_and_is_named() -> None:
    story = Story().cluster(1, 2).topic("a", (1,), (2,))
    story.does(InitProducer("loader"))
    story.dies(2)
    version = story.image.version
    stands = standing(story.image, {1: version, 2: version})
    assert stands.version < 0
    assert stands.why_not(story.image) == "partition a-1 has no leader (in sync: [2])"


def test_without_partitions_everything_stands() -> None:
    image = replace(MetadataImage(), version=7)
    assert standing(image, {}).version == 7
    assert standing(image, {}).why_not(image) == ""

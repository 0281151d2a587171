"""Producer ids and epochs, and how far the fence of named producers stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fencepost_controller.decisions.fence import NO_BROKER, standing
from fencepost_controller.decisions.producers import (
    ID_BLOCK_SIZE,
    AllocateProducerIds,
    ExpireNames,
    InitProducer,
    KeepName,
    RemoveName,
    predecessor,
)
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    RETIRED_EPOCH,
    Changes,
    MetadataImage,
    NamedProducer,
    NextProducerId,
)
from fencepost_proto.protocol.record_batch import MAX_EPOCH
from tests.unit.controller_story import Story


def with_producer(story: Story, producer: NamedProducer, next_id: int) -> Story:
    """The image in which this producer has got that far already."""
    changes: Changes = {producer.key: producer, "next-producer-id": NextProducerId(0, next_id)}
    story.image = story.image.with_changes(story.image.version + 1, changes)
    return story


FIRST = FIRST_NAMED_ID


def test_blocks_of_ids_never_overlap_and_named_producers_have_a_range_of_their_own() -> None:
    story = Story().cluster(1, 2)
    first = story.does(AllocateProducerIds(1, story.epoch(1)))
    named = story.does(InitProducer("loader"))
    second = story.does(AllocateProducerIds(2, story.epoch(2)))
    assert (first, named.producer_id, second) == (range(ID_BLOCK_SIZE), FIRST, range(1_000, 2_000))
    assert story.image.next_ids == NextProducerId(2_000, FIRST + 1)
    with pytest.raises(errors.StaleBrokerEpoch):
        story.does(AllocateProducerIds(1, 1))
    with pytest.raises(errors.BrokerIdNotRegistered):
        story.does(AllocateProducerIds(7, 1))


def test_ids_end_before_they_reach_those_of_the_others() -> None:
    story = Story().cluster(1)
    story.image = story.image.with_changes(9, {"next-producer-id": NextProducerId(FIRST - 500, 2**63 - 1)})
    with pytest.raises(errors.InvalidRequest, match=str(FIRST - 500)):
        story.does(AllocateProducerIds(1, story.epoch(1)))
    with pytest.raises(errors.InvalidRequest, match=str(2**63 - 1)):
        story.does(InitProducer("loader"))


def test_the_life_of_a_name() -> None:
    story = Story()
    story.tell("first instance takes over", InitProducer("loader"))
    story.tell("second instance takes over", InitProducer("loader"))
    story.tell("the first recovers", InitProducer("loader", FIRST, 0))
    story.tell("the second recovers", InitProducer("loader", FIRST, 1))
    story.tell("the second recovers, having lost the answer", InitProducer("loader", FIRST, 1))
    story.tell("the second recovers again", InitProducer("loader", FIRST, 2))
    story.tell("a late copy of its first recovery", InitProducer("loader", FIRST, 1))
    story.tell("third instance takes over", InitProducer("loader"))
    story.tell("the second recovers", InitProducer("loader", FIRST, 3))
    story.tell("the third recovers", InitProducer("loader", FIRST, 4))
    story.tell("someone with an epoch from the future", InitProducer("loader", FIRST, 9))
    story.tell("someone with another id", InitProducer("loader", 7, 5))
    story.tell("someone under a name that no one has", InitProducer("unknown", 0, 0))
    story.reads("""
        first instance takes over
            next ids 0 and, of named producers, 1000000000000001
            loader: id 1000000000000000 epoch 0
        second instance takes over
            loader: id 1000000000000000 epoch 1
        the first recovers
            PRODUCER_FENCED
        the second recovers
            loader: id 1000000000000000 epoch 2
        the second recovers, having lost the answer
        the second recovers again
            loader: id 1000000000000000 epoch 3
        a late copy of its first recovery
            PRODUCER_FENCED
        third instance takes over
            loader: id 1000000000000000 epoch 4
        the second recovers
            PRODUCER_FENCED
        the third recovers
            loader: id 1000000000000000 epoch 5
        someone with an epoch from the future
            PRODUCER_FENCED
        someone with another id
            PRODUCER_FENCED
        someone under a name that no one has
            PRODUCER_FENCED
    """)


def test_a_repeated_recovery_gets_the_same_answer_and_commits_nothing() -> None:
    story = Story()
    story.does(InitProducer("loader"))
    answer = story.does(InitProducer("loader", FIRST, 0))
    before = story.image
    assert story.does(InitProducer("loader", FIRST, 0)) == answer
    assert story.image is before


def test_after_a_take_over_a_lost_recovery_of_the_old_instance_is_fenced() -> None:
    """The same numbers as a repeated recovery: only who asked for the last epoch tells them apart."""
    story = Story()
    story.does(InitProducer("loader"))
    assert story.does(InitProducer("loader")).epoch == 1
    with pytest.raises(errors.ProducerFenced, match="id 1000000000000000 epoch 1"):
        story.does(InitProducer("loader", FIRST, 0))


@pytest.mark.parametrize("held", [(-1, -1), (FIRST + 5, MAX_EPOCH)])
def test_the_last_epoch_is_followed_by_a_new_id_and_the_old_one_is_refused_for_good(held: tuple[int, int]) -> None:
    story = with_producer(Story(), NamedProducer("loader", FIRST + 5, MAX_EPOCH - 1), next_id=FIRST + 40)
    assert story.does(InitProducer("loader")).epoch == MAX_EPOCH
    story.tell("one epoch more", InitProducer("loader", *held))
    story.reads("""
        one epoch more
            next ids 0 and, of named producers, 1000000000000041
            loader: id 1000000000000040 epoch 0, retired [1000000000000005]
    """)
    assert story.image.fences == {FIRST + 5: RETIRED_EPOCH, FIRST + 40: 0}
    if held != (-1, -1):
        before = story.image
        again = story.does(InitProducer("loader", FIRST + 5, MAX_EPOCH))
        assert (again.producer_id, again.epoch) == (FIRST + 40, 0)
        assert story.image is before
    else:
        with pytest.raises(errors.ProducerFenced):
            story.does(InitProducer("loader", FIRST + 5, MAX_EPOCH))


@pytest.mark.parametrize(
    ("retired_ids", "expired", "told"),
    [((), False, (0, False)), ((4,), False, (4, False)), ((4,), True, (4, True)), ((4, 9), False, (9, True))],
)
def test_a_successor_learns_the_newest_id_before_its_own_and_whether_there_were_others(
    retired_ids: tuple[int, ...], expired: bool, told: tuple[int, bool]
) -> None:
    ids = tuple(FIRST + number for number in retired_ids)
    newest, forgotten = predecessor(NamedProducer("a", FIRST + 10, 0, ids, predecessor_expired=expired))
    assert (newest - FIRST if newest else 0, forgotten) == told


def test_of_used_up_ids_the_last_one_is_kept_and_that_there_were_others_is_known() -> None:
    """An id that no name has is refused by every broker: the earlier ones need no memory."""
    producer = NamedProducer("loader", FIRST + 5, MAX_EPOCH, retired_ids=(FIRST + 2,))
    story = with_producer(Story(), producer, next_id=FIRST + 40)
    now = story.does(InitProducer("loader"))
    assert (now.producer_id, now.retired_ids, now.predecessor_expired) == (FIRST + 40, (FIRST + 5,), True)
    assert story.image.fences == {FIRST + 5: RETIRED_EPOCH, FIRST + 40: 0}


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


def test_there_is_a_limit_on_names_but_those_known_go_on() -> None:
    story = Story()
    story.does(InitProducer("loader", max_names=1))
    with pytest.raises(
        errors.InvalidRequest, match=r"one more than 1 names \(max_producer_names\).*producer-name list"
    ):
        story.does(InitProducer("another", max_names=1))
    assert story.does(InitProducer("loader", max_names=1)).epoch == 1


# ---- Names that are not used ----

HOUR_MS = 3_600_000


def after_hours(story: Story, hours: int, max_names: int = 10) -> int:
    """How many names expired, of those that are not used for ten hours."""
    return sum(story.does(ExpireNames(HOUR_MS, 10 * HOUR_MS, max_names)) for _ in range(hours))


def test_a_name_that_is_not_used_expires_and_its_id_is_known_no_more() -> None:
    story = Story()
    first = story.does(InitProducer("loader"))
    assert after_hours(story, 10) == 0
    assert after_hours(story, 1) == 1
    assert (list(story.image.producers), story.image.fences) == ([], {})
    with pytest.raises(errors.ProducerFenced, match="has expired or was removed"):
        story.does(InitProducer("loader", first.producer_id, 0))
    with pytest.raises(errors.ProducerFenced, match="has expired or was removed"):
        story.does(KeepName("loader", first.producer_id, 0))


def test_who_takes_an_expired_name_gets_another_id_and_learns_that_it_had_expired() -> None:
    story = Story()
    first = story.does(InitProducer("loader"))
    assert not first.predecessor_expired
    after_hours(story, 11)
    second = story.does(InitProducer("loader"))
    assert (second.producer_id, second.epoch, second.predecessor_expired) == (first.producer_id + 1, 0, True)
    assert story.image.fences == {second.producer_id: 0}
    assert not story.image.expired_producers
    assert story.does(InitProducer("loader")).predecessor_expired  # its successor cannot know more


@pytest.mark.parametrize(
    "command", [InitProducer("loader"), InitProducer("loader", FIRST, 0), KeepName("loader", FIRST, 0)]
)
def test_each_use_keeps_a_name(command: InitProducer | KeepName) -> None:
    story = Story()
    story.does(InitProducer("loader"))
    assert after_hours(story, 8) == 0
    story.does(command)
    assert after_hours(story, 10) == 0
    assert after_hours(story, 1) == 1


def test_a_name_that_is_kept_costs_one_commit_for_each_step_of_the_clock() -> None:
    story = Story()
    story.does(InitProducer("loader"))
    after_hours(story, 1)
    assert story.does(KeepName("loader", FIRST, 0)).used_at_ms == HOUR_MS
    before = story.image
    story.does(KeepName("loader", FIRST, 0))
    assert story.image is before


def test_only_the_current_instance_keeps_a_name() -> None:
    story = Story()
    story.does(InitProducer("loader"))
    story.does(InitProducer("loader"))
    with pytest.raises(errors.ProducerFenced, match="another instance has taken over"):
        story.does(KeepName("loader", FIRST, 0))


def test_expired_names_are_remembered_while_there_is_room() -> None:
    story = Story()
    for name in "abc":
        story.does(InitProducer(name, max_names=3))
    after_hours(story, 11, max_names=3)
    assert sorted(story.image.expired_producers) == ["a", "b", "c"]
    assert not story.does(InitProducer("d", max_names=3)).predecessor_expired
    assert sorted(story.image.expired_producers) == ["b", "c"]
    assert story.does(InitProducer("b", max_names=3)).predecessor_expired
    assert sorted(story.image.expired_producers) == ["c"]
    after_hours(story, 1, max_names=2)
    assert not story.image.expired_producers


def test_a_removed_name_is_forgotten_whether_it_has_expired_or_not() -> None:
    story = Story()
    for name in "ab":
        story.does(InitProducer(name))
    after_hours(story, 5)
    story.does(KeepName("b", FIRST + 1, 0))
    after_hours(story, 6)
    assert (list(story.image.producers), list(story.image.expired_producers)) == (["b"], ["a"])
    for name in "ab":
        story.does(RemoveName(name))
    assert not story.image.producers
    assert not story.image.expired_producers
    assert not story.image.fences
    with pytest.raises(errors.InvalidRequest, match="'a' is not known"):
        story.does(RemoveName("a"))
    assert story.does(InitProducer("a")).producer_id == FIRST + 2


def test_an_image_made_of_changes_is_the_one_made_of_its_entities() -> None:
    story = Story()
    for name in "abc":
        story.does(InitProducer(name))
    after_hours(story, 6)
    story.does(InitProducer("c"))
    after_hours(story, 6)
    story.does(InitProducer("a"))
    story.does(RemoveName("b"))
    image = story.image
    again = MetadataImage().with_changes(image.version, {entity.key: entity for entity in image.entities()})
    assert again == image


# ---- The fence ----


def fenced_cluster() -> Story:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2), (2, 3))
    story.does(InitProducer("loader"))
    return story


def test_the_fence_stands_once_every_live_broker_has_applied_it() -> None:
    story = fenced_cluster()
    version = story.image.version
    everyone = {1: version, 2: version, 3: version}
    assert standing(story.image, everyone) == (version, NO_BROKER)
    for late in (1, 2, 3):
        stands = standing(story.image, {**everyone, late: version - 1})
        assert stands == (version - 1, late)
        assert f"broker {late} has not applied" in stands.why_not()


def test_a_follower_in_sync_counts_too_for_it_may_believe_that_it_still_leads() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.does(InitProducer("loader"))
    version = story.image.version
    assert story.image.partitions["a-id", 0].leader == 1
    assert standing(story.image, {1: version, 2: version - 1}).version == version - 1


def test_a_broker_without_a_session_holds_the_fence_back_until_it_is_declared_dead() -> None:
    story = fenced_cluster()
    version = story.image.version
    assert standing(story.image, {1: version, 3: version}).version == -1
    story.dies(2)
    assert standing(story.image, {1: version, 3: version}).version == version


def test_a_partition_without_a_leader_holds_nothing_back() -> None:
    """Its last member, declared dead, leads again only by an election behind this version."""
    story = Story().cluster(1, 2).topic("a", (1,), (2,))
    story.dies(2)
    story.does(InitProducer("loader"))
    version = story.image.version
    assert story.image.partitions["a-id", 1].leader == -1
    assert standing(story.image, {1: version}) == (version, NO_BROKER)


def test_without_brokers_everything_stands() -> None:
    image = replace(MetadataImage(), version=7)
    assert standing(image, {}).version == 7
    assert standing(image, {}).why_not() == ""

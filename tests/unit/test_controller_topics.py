"""Topics: placement, limits, creation and deletion in one step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_controller.config import MAX_PRODUCER_NAMES
from fencepost_controller.decisions.brokers import MAX_ADDRESS_LENGTH, MAX_BROKERS, MAX_INCARNATION_LENGTH
from fencepost_controller.decisions.placement import MAX_REPLICATION_FACTOR, place
from fencepost_controller.decisions.producers import MAX_PRODUCER_NAME_BYTES
from fencepost_controller.decisions.topics import (
    MAX_PARTITIONS,
    MAX_PARTITIONS_PER_TOPIC,
    MAX_TOPICS,
    CreateTopic,
    DeleteTopic,
)
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    MAX_TOPIC_NAME,
    BrokerRegistration,
    Entity,
    MetadataImage,
    NamedProducer,
    Partition,
    Topic,
    TopicConfig,
    delta_to_proto,
)
from fencepost_proto.protocol.request_limits import MAX_MESSAGE_BYTES
from tests.unit.controller_story import Story


def test_a_topic_begins_with_all_its_live_replicas_in_sync_and_its_preferred_leaders() -> None:
    story = Story().cluster(1, 2, 3)
    story.tell("create", CreateTopic("a", "a-id", 3, 2))
    story.dies(2)
    story.tell("create", CreateTopic("b", "b-id", assignments=((2, 3), (1, 2))))
    story.tell("delete", DeleteTopic("a"))
    story.tell("delete", DeleteTopic("a"))
    story.tell("create", CreateTopic("a", "a-id-2", 1, 2))
    assert {p.topic_id for p in story.image.partitions.values()} == {"b-id", "a-id-2"}
    assert story.image.topic_ids == {"b": "b-id", "a": "a-id-2"}
    story.reads("""
        create
            topics/a-id
            a-0: leader 1 epoch 0, in sync 1 2 of 1 2, change 0
            a-1: leader 2 epoch 0, in sync 2 3 of 2 3, change 0
            a-2: leader 3 epoch 0, in sync 3 1 of 3 1, change 0
        broker 2 dies
            broker 2: fenced
            a-0: leader 1 epoch 0, in sync 1 of 1 2, change 1
            a-1: leader 3 epoch 1, in sync 3 of 2 3, change 1
        create
            topics/b-id
            b-0: leader 3 epoch 0, in sync 3 of 2 3, change 0
            b-1: leader 1 epoch 0, in sync 1 of 1 2, change 0
        delete
            partitions/a-id/0 deleted
            partitions/a-id/1 deleted
            partitions/a-id/2 deleted
            topics/a-id deleted
        delete
            UNKNOWN_TOPIC_OR_PARTITION
        create
            topics/a-id-2
            a-0: leader 1 epoch 0, in sync 1 3 of 1 3, change 0
    """)


@given(
    brokers=st.integers(1, 7),
    partitions=st.integers(1, 60),
    start=st.integers(0, 1000),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_placement_is_balanced(brokers: int, partitions: int, start: int, data: st.DataObject) -> None:
    factor = data.draw(st.integers(1, brokers))
    placed = place(range(brokers), [], partitions, factor, start)
    assert len(placed) == partitions
    assert all(len(set(replicas)) == factor for replicas in placed)
    leaders = Counter(replicas[0] for replicas in placed)
    assert max(leaders.values()) - min(leaders[b] for b in range(brokers)) <= 1


@given(
    serving=st.integers(1, 5),
    others=st.integers(0, 5),
    partitions=st.integers(1, 60),
    start=st.integers(0, 1000),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_brokers_that_are_down_get_replicas_only_where_the_others_are_too_few(
    serving: int, others: int, partitions: int, start: int, data: st.DataObject
) -> None:
    factor = data.draw(st.integers(1, serving + others))
    down = range(serving, serving + others)
    for replicas in place(range(serving), down, partitions, factor, start):
        assert len(set(replicas)) == factor
        assert replicas[0] < serving, "a broker that serves leads"
        assert sum(broker in down for broker in replicas) == max(0, factor - serving)


def test_a_topic_that_is_created_while_a_broker_is_down_has_a_replica_on_it() -> None:
    story = Story().cluster(1, 2, 3)
    story.dies(2)
    story.does(CreateTopic("a", "a-id", 2, 3))
    story.starts(2)
    story.is_ready(2)
    story.proposes(1, ("a-id", 0), 1, 2, 3)
    assert [(p.leader, p.replicas, p.isr) for p in story.image.partitions_of("a-id")] == [
        (1, (1, 3, 2), (1, 3, 2)),
        (3, (3, 1, 2), (3, 1)),
    ]


def test_the_followers_of_one_leader_rotate() -> None:
    placed = place([1, 2, 3, 4], [], 12, 2, 0)
    assert sorted(replicas[1] for replicas in placed if replicas[0] == 1) == [2, 3, 4]


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"name": "a b"}, errors.InvalidTopic, "a b"),
        ({"name": "there"}, errors.TopicAlreadyExists, "there"),
        ({"partitions": 0}, errors.InvalidPartitions, "0 partitions"),
        ({"partitions": -3}, errors.InvalidPartitions, "-3 partitions"),
        ({"partitions": MAX_PARTITIONS_PER_TOPIC + 1}, errors.InvalidPartitions, "1001"),
        ({"replication_factor": 0}, errors.InvalidReplicationFactor, "factor 0"),
        ({"replication_factor": 5}, errors.InvalidReplicationFactor, "factor 5, but 3 brokers are live and 1 others"),
        ({"replication_factor": 17}, errors.InvalidReplicationFactor, "17"),
        ({"config": TopicConfig(min_insync_replicas=3)}, errors.InvalidConfig, "min_insync_replicas=3"),
        ({"config": TopicConfig(min_insync_replicas=-1)}, errors.InvalidConfig, "min_insync_replicas=-1"),
        ({"config": TopicConfig(retention_ms=-2)}, errors.InvalidConfig, "retention_ms=-2"),
        ({"config": TopicConfig(retention_bytes=-7)}, errors.InvalidConfig, "retention_bytes=-7"),
        ({"config": TopicConfig(segment_bytes=16_383)}, errors.InvalidConfig, "segment_bytes=16383: must be 16384 to"),
        ({"config": TopicConfig(segment_bytes=2**31)}, errors.InvalidConfig, "segment_bytes=2147483648"),
        ({"config": TopicConfig(max_message_bytes=1)}, errors.InvalidConfig, "max_message_bytes=1"),
        ({"config": TopicConfig(max_message_bytes=2**24)}, errors.InvalidConfig, "max_message_bytes=16777216"),
        (
            {"config": TopicConfig(message_timestamp_type="never")},
            errors.InvalidConfig,
            "message_timestamp_type='never': must be 'create' or 'append'",
        ),
        (
            {"config": TopicConfig(message_timestamp_before_max_ms=-2)},
            errors.InvalidConfig,
            "message_timestamp_before_max_ms=-2: must be 1 to 9223372036854775807 or -1",
        ),
        (
            {"config": TopicConfig(message_timestamp_after_max_ms=-3)},
            errors.InvalidConfig,
            "message_timestamp_after_max_ms=-3",
        ),
        ({"assignments": ((1, 2), (1,))}, errors.InvalidReplicaAssignment, "new-1: 1 replicas"),
        ({"assignments": ((1, 1),)}, errors.InvalidReplicaAssignment, "twice"),
        ({"assignments": ((1, 9),)}, errors.InvalidReplicaAssignment, "broker 9"),
        ({"assignments": ((),)}, errors.InvalidReplicaAssignment, "0 replicas"),
        ({"assignments": ((4,),), "replication_factor": 0}, errors.InvalidReplicaAssignment, "live"),
        ({"assignments": ((1, 2), (2, 3)), "partitions": 3}, errors.InvalidReplicaAssignment, "3 partitions"),
    ],
)
def test_a_topic_that_makes_no_sense_is_refused_and_changes_nothing(
    change: dict[str, object], error: type[errors.FencepostError], names: str
) -> None:
    story = Story().cluster(1, 2, 3, 4).topic("there", (1,))
    story.dies(4)
    before = story.image
    command = CreateTopic("new", "new-id", 2, 2)
    if "assignments" in change:
        command = replace(command, partitions=0, replication_factor=0)
    with pytest.raises(error, match=names):
        story.does(replace(command, **change))  # type: ignore[arg-type]
    assert story.image is before


def test_there_is_a_limit_on_all_partitions_together() -> None:
    story = Story().cluster(1)
    for number in range(MAX_PARTITIONS // MAX_PARTITIONS_PER_TOPIC):
        story.does(CreateTopic(f"t{number}", f"t{number}-id", MAX_PARTITIONS_PER_TOPIC, 1))
    with pytest.raises(errors.InvalidPartitions, match="10000"):
        story.does(CreateTopic("one-more", "one-more-id", 1, 1))


def test_the_largest_image_that_the_limits_allow_fits_one_message() -> None:
    """Sizes of the largest entity of each kind, times how many there may be, and then some."""
    ids = tuple(range(10_000, 10_000 + MAX_REPLICATION_FACTOR))
    others = tuple(range(20_000, 20_000 + MAX_REPLICATION_FACTOR))
    largest: list[tuple[int, Entity]] = [
        (
            MAX_BROKERS,
            BrokerRegistration(2**31 - 1, "x" * MAX_ADDRESS_LENGTH, 2**62, "x" * MAX_INCARNATION_LENGTH, True, True),
        ),
        (
            MAX_TOPICS,
            Topic("x" * 22, "x" * MAX_TOPIC_NAME, TopicConfig(2**31 - 1, 2**62, 2**62, 2**62, 2**31 - 1, True)),
        ),
        (
            MAX_PARTITIONS,
            Partition("x" * 22, 999, ids + others, ids + others, 10_000, 2**31 - 1, 2**31 - 1, ids, others),
        ),
        (
            MAX_PRODUCER_NAMES,
            NamedProducer(
                "x" * MAX_PRODUCER_NAME_BYTES, 2**62, 2**15 - 1, (2**62,), True, 2**62, predecessor_expired=True
            ),
        ),
    ]
    total = sum(count * delta_to_proto(0, [entity]).ByteSize() for count, entity in largest)
    assert total < 0.9 * MAX_MESSAGE_BYTES


def test_an_id_that_is_not_fresh_is_never_committed() -> None:
    story = Story().cluster(1).topic("a", (1,))
    with pytest.raises(errors.InvariantBroken, match="a-id"):
        story.does(CreateTopic("b", "a-id", 1, 1))


def test_without_brokers_there_are_no_topics() -> None:
    image = MetadataImage()
    assert not image.brokers
    with pytest.raises(errors.InvalidReplicationFactor, match="0 brokers"):
        Story().does(CreateTopic("a", "a-id", 1, 1))

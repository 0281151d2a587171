"""A topic that changes while it runs: its settings, and its number of partitions."""

from __future__ import annotations

import pytest

from fencepost_controller.decisions.partition_count import CreatePartitions
from fencepost_controller.decisions.reassignment import ReassignPartitions
from fencepost_controller.decisions.topic_config import AlterTopicConfig
from fencepost_controller.decisions.topics import MAX_PARTITIONS, MAX_PARTITIONS_PER_TOPIC, CreateTopic, DeleteTopic
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    TOPIC_SETTINGS,
    TopicConfig,
    default_setting,
    format_setting,
    parse_setting,
)
from tests.unit.controller_story import Story


def test_new_partitions_are_behind_those_that_are_there_with_as_many_replicas_and_live_leaders() -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2), (2, 3))
    before = dict(story.image.partitions)
    story.dies(3)
    story.tell("more partitions", CreatePartitions("a", 4))
    story.tell("more where the operator says", CreatePartitions("a", 5, ((3, 2),)))
    assert {key: story.image.partitions[key].replicas for key in before} == {k: p.replicas for k, p in before.items()}
    story.reads("""
        broker 3 dies
            broker 3: fenced
            a-1: leader 2 epoch 0, in sync 2 of 2 3, change 1
        more partitions
            a-2: leader 1 epoch 0, in sync 1 2 of 1 2, change 0
            a-3: leader 2 epoch 0, in sync 2 1 of 2 1, change 0
        more where the operator says
            a-4: leader 2 epoch 0, in sync 2 of 3 2, change 0
    """)


@pytest.mark.parametrize(
    ("command", "error", "names"),
    [
        (CreatePartitions("b", 3), errors.UnknownTopicOrPartition, "'b'"),
        (CreatePartitions("a", 2), errors.InvalidPartitions, "has 2 partitions: 2 are not more"),
        (CreatePartitions("a", 0), errors.InvalidPartitions, "0 are not more"),
        (CreatePartitions("a", MAX_PARTITIONS_PER_TOPIC + 1), errors.InvalidPartitions, "1001 partitions"),
        (CreatePartitions("a", 4, ((1, 2),)), errors.InvalidReplicaAssignment, "of 1 partitions for 2 new"),
        (CreatePartitions("a", 3, ((1,),)), errors.InvalidReplicaAssignment, "a-2: 1 replicas where a-0 has 2"),
        (CreatePartitions("a", 3, ((1, 9),)), errors.InvalidReplicaAssignment, "broker 9"),
        (CreatePartitions("a", 3, ((1, 1),)), errors.InvalidReplicaAssignment, "twice"),
    ],
)
def test_partitions_that_make_no_sense_are_refused_and_change_nothing(
    command: CreatePartitions, error: type[errors.FencepostError], names: str
) -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2), (2, 1))
    before = story.image
    with pytest.raises(error, match=names):
        story.does(command)
    assert story.image is before


def test_new_partitions_need_a_live_broker_and_count_to_the_limit_of_all() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2))
    story.dies(2)
    story.does(CreatePartitions("a", 2))
    assert [(p.replicas, p.isr) for p in story.image.partitions_of("a-id")] == [((1, 2), (1,)), ((1, 2), (1,))]
    story.dies(1)
    with pytest.raises(errors.InvalidReplicationFactor, match="factor 2, but 0 brokers are live and 2 others"):
        story.does(CreatePartitions("a", 3))
    story = Story().cluster(1)
    for number in range(MAX_PARTITIONS // MAX_PARTITIONS_PER_TOPIC):
        story.does(CreateTopic(f"t{number}", f"t{number}-id", MAX_PARTITIONS_PER_TOPIC - (number == 0), 1))
    story.does(CreatePartitions("t0", MAX_PARTITIONS_PER_TOPIC))
    story = Story().cluster(1).topic("a", (1,))
    for number in range(MAX_PARTITIONS // MAX_PARTITIONS_PER_TOPIC - 1):
        story.does(CreateTopic(f"t{number}", f"t{number}-id", MAX_PARTITIONS_PER_TOPIC, 1))
    story.does(CreateTopic("last", "last-id", MAX_PARTITIONS_PER_TOPIC - 1, 1))
    with pytest.raises(errors.InvalidPartitions, match="1 partitions beside 10000"):
        story.does(CreatePartitions("a", 2))


def test_settings_are_set_and_reset_and_the_others_stay() -> None:
    story = Story().cluster(1, 2).topic("a", (1, 2), config=TopicConfig(retention_bytes=7, segment_bytes=20_000))
    story.does(
        AlterTopicConfig("a", (("retention_ms", "1000"), ("flush_always", "TRUE")), reset=("segment_bytes",)),
    )
    assert story.image.topics["a-id"].config == TopicConfig(retention_bytes=7, retention_ms=1000, flush_always=True)
    version = story.image.version
    story.does(AlterTopicConfig("a", (("retention_ms", "1000"),)))
    assert story.image.version == version, "what is so already is no change"
    assert story.image.topics["a-id"].created_version < version


@pytest.mark.parametrize(
    ("set_to", "reset", "error", "names"),
    [
        ({"cleanup_policy": "compact"}, (), errors.InvalidConfig, "'cleanup_policy' is not known; known: min_insync"),
        ({}, ("colour",), errors.InvalidConfig, "'colour' is not known"),
        ({"retention_ms": "0"}, (), errors.InvalidConfig, "retention_ms=0: must be 1 to"),
        ({"retention_ms": "1 day"}, (), errors.InvalidConfig, "retention_ms='1 day': must be a whole number"),
        ({"retention_ms": "٣"}, (), errors.InvalidConfig, "retention_ms='٣'"),
        ({"retention_ms": "9" * 101}, (), errors.InvalidConfig, "retention_ms: a value of 101 characters"),
        ({"retention_ms": "9" * 30}, (), errors.InvalidConfig, "retention_ms=9999"),
        ({"flush_always": "yes"}, (), errors.InvalidConfig, "flush_always='yes'"),
        ({"min_insync_replicas": "3"}, (), errors.InvalidConfig, r"min_insync_replicas=3: must be 1 to 2 \(the repl"),
        ({"message_timestamp_type": "never"}, (), errors.InvalidConfig, "message_timestamp_type='never'"),
        ({"segment_bytes": "16000"}, (), errors.InvalidConfig, "segment_bytes=16000"),
        ({"retention_ms": "5"}, ("retention_ms",), errors.InvalidRequest, "two changes of 'retention_ms'"),
        ({}, (), errors.InvalidRequest, "no setting"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name_and_changes_nothing(
    set_to: dict[str, str], reset: tuple[str, ...], error: type[errors.FencepostError], names: str
) -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3), (1, 2, 3))
    story.does(ReassignPartitions("a", ((1, (1, 2)),)))  # so it will have two replicas
    before = story.image
    with pytest.raises(error, match=names):
        story.does(AlterTopicConfig("a", tuple(set_to.items()), reset))
    assert story.image is before
    with pytest.raises(errors.UnknownTopicOrPartition, match="'b'"):
        story.does(AlterTopicConfig("b", (("retention_ms", "5"),)))


@pytest.mark.parametrize("name", TOPIC_SETTINGS)
def test_every_setting_is_parsed_from_the_text_that_it_is_shown_as(name: str) -> None:
    default = default_setting(name)
    assert parse_setting(name, format_setting(default)) == default
    assert isinstance(parse_setting(name, format_setting(default)), type(default))


def test_a_topic_is_deleted_by_its_id_only_where_its_name_still_has_that_id() -> None:
    story = Story().cluster(1).topic("a", (1,))
    with pytest.raises(errors.UnknownTopicId, match="'a' has id 'a-id', not 'old'"):
        story.does(DeleteTopic("a", "old"))
    story.does(DeleteTopic("a", "a-id"))
    assert not story.image.topics

"""Kafka's names of topic settings: one table, and nothing that is taken and does nothing."""

from __future__ import annotations

import pytest

from fencepost_node.kafka.topic_settings import (
    FIXED,
    SETTINGS,
    Source,
    describe,
    our_name,
    read_config,
    read_value,
)
from fencepost_proto.protocol.errors import InvalidConfig
from fencepost_proto.protocol.metadata import TOPIC_SETTINGS, TopicConfig

NO_LIMIT = str(2**63 - 1)


def test_every_setting_of_ours_has_one_of_kafkas_names() -> None:
    assert sorted(setting.ours for setting in SETTINGS.values()) == sorted(TOPIC_SETTINGS)
    assert not SETTINGS.keys() & FIXED.keys()


@pytest.mark.parametrize("name", [*SETTINGS, *FIXED])
def test_what_is_described_can_be_set_again(name: str) -> None:
    for config in (TopicConfig(), TopicConfig(2, 5, 6, 70_000, 800, True, "append", 9, -1)):
        (shown,) = [one for one in describe(config) if one.name == name]
        assert shown.read_only == (name in FIXED)
        assert shown.doc
        read = read_value(name, shown.value)
        if name in FIXED:
            assert read is None
            assert our_name(name) is None
        else:
            assert read is not None
            assert getattr(read_config([(name, shown.value)]), read[0]) == getattr(config, read[0])
            assert our_name(name) == read[0]


@pytest.mark.parametrize(
    ("name", "text", "ours"),
    [
        ("retention.ms", "-1", ("retention_ms", "-1")),
        ("flush.messages", "1", ("flush_always", "true")),
        ("flush.messages", NO_LIMIT, ("flush_always", "false")),
        ("message.timestamp.type", "LogAppendTime", ("message_timestamp_type", "append")),
        ("message.timestamp.before.max.ms", NO_LIMIT, ("message_timestamp_before_max_ms", "-1")),
        ("message.timestamp.after.max.ms", "7", ("message_timestamp_after_max_ms", "7")),
        ("cleanup.policy", "delete", None),
        ("unclean.leader.election.enable", "false", None),
    ],
)
def test_values_are_read_in_kafkas_words(name: str, text: str, ours: tuple[str, str] | None) -> None:
    assert read_value(name, text) == ours


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "cleanup.policy",
            "compact",
            "cleanup.policy='compact' is not supported: it is always 'delete'. There is no comp",
        ),
        ("compression.type", "zstd", "compression.type='zstd' is not supported"),
        ("segment.ms", "1000", "segment.ms='1000' is not supported"),
        ("unclean.leader.election.enable", "true", "unclean.leader.election.enable='true'"),
        ("colour", "red", "Unknown topic config name: colour"),
        ("retention_ms", "5", "Unknown topic config name: retention_ms"),
        ("retention.ms", "x", "invalid value 'x' for topic setting retention.ms"),
        ("retention.ms", "0", "retention.ms=0: must be 1 at least"),
        ("flush.messages", "2", "invalid value '2' for topic setting flush.messages"),
        ("message.timestamp.type", "create", "invalid value 'create' for topic setting message.timestamp.type"),
        ("retention.ms", None, "null value not supported for topic setting 'retention.ms'"),
        ("x" * 9_000, "5", f"Unknown topic config name: {'x' * 100}$"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused_by_name(name: str, text: str | None, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        read_value(name, text)


def test_a_value_that_was_set_says_so_and_has_its_default_as_a_synonym() -> None:
    shown = {one.name: one for one in describe(TopicConfig(retention_ms=5))}
    assert shown["retention.ms"].synonyms == [("5", Source.TOPIC), ("604800000", Source.DEFAULT)]
    assert shown["segment.bytes"].synonyms == [("134217728", Source.DEFAULT)]
    assert shown["cleanup.policy"].synonyms == [("delete", Source.DEFAULT)]
    assert list(shown) == sorted(shown)

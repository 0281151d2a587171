"""The records of `__consumer_offsets`: their bytes are those that Kafka's own coordinator reads and writes."""

from __future__ import annotations

import random

import pytest

from fencepost_proto.kafka.consumer_offsets import (
    RECORD_TYPES,
    ConsumerGroupCurrentMemberAssignmentKey,
    ConsumerGroupCurrentMemberAssignmentValue,
    ConsumerGroupMemberMetadataKey,
    ConsumerGroupMemberMetadataValue,
    ConsumerGroupMetadataKey,
    ConsumerGroupMetadataValue,
    ConsumerGroupPartitionMetadataKey,
    ConsumerGroupPartitionMetadataValue,
    ConsumerGroupRegularExpressionKey,
    ConsumerGroupRegularExpressionValue,
    ConsumerGroupTargetAssignmentMemberKey,
    ConsumerGroupTargetAssignmentMemberValue,
    ConsumerGroupTargetAssignmentMetadataKey,
    ConsumerGroupTargetAssignmentMetadataValue,
    CurrentTopicPartitions,
    GroupMetadataKey,
    GroupMetadataValue,
    MemberMetadata,
    OffsetCommitKey,
    OffsetCommitValue,
    PartitionMetadata,
    TargetTopicPartitions,
    TopicMetadata,
    decode_key,
    decode_value,
    encode_key,
    encode_value,
)
from fencepost_proto.kafka.schema.primitives import MalformedFrame
from tests.unit.kafka_messages import plain, random_message

TOPIC_ID = bytes(range(1, 17))
TIME = 1_700_000_000_000

# Kafka 4.4.0's kafka-group-coordinator reads these bytes and writes the same ones again.
KNOWN = [
    (
        OffsetCommitKey(group="billing", topic="orders", partition=3),
        OffsetCommitValue(offset=120, leader_epoch=4, metadata="m", commit_timestamp=TIME, expire_timestamp=-1),
        3,
        "0001000762696c6c696e6700066f726465727300000003",
        "000300000000000000780000000400016d0000018bcfe56800",
    ),
    (
        OffsetCommitKey(group="billing", topic="orders", partition=3),
        OffsetCommitValue(
            offset=120, leader_epoch=4, metadata="m", commit_timestamp=TIME, expire_timestamp=-1, topic_id=TOPIC_ID
        ),
        4,
        "0001000762696c6c696e6700066f726465727300000003",
        "0004000000000000007800000004026d0000018bcfe568000100100102030405060708090a0b0c0d0e0f10",
    ),
    (
        GroupMetadataKey(group="billing"),
        GroupMetadataValue(
            protocol_type="consumer",
            generation=7,
            protocol="range",
            leader="m-1",
            current_state_timestamp=TIME,
            members=[
                MemberMetadata(
                    member_id="m-1",
                    group_instance_id=None,
                    client_id="c",
                    client_host="/127.0.0.1",
                    rebalance_timeout=300000,
                    session_timeout=45000,
                    subscription=b"sub",
                    assignment=b"ass",
                )
            ],
        ),
        3,
        "0002000762696c6c696e67",
        "00030008636f6e73756d657200000007000572616e676500036d2d310000018bcfe568000000000100036d2d31ffff000163000a2f3132372e302e302e31000493e00000afc80000000373756200000003617373",
    ),
    (
        GroupMetadataKey(group="billing"),
        GroupMetadataValue(
            protocol_type="consumer", generation=8, protocol=None, leader=None, current_state_timestamp=TIME, members=[]
        ),
        4,
        "0002000762696c6c696e67",
        "000409636f6e73756d65720000000800000000018bcfe568000100",
    ),
    (
        ConsumerGroupMetadataKey(group_id="billing"),
        ConsumerGroupMetadataValue(epoch=9, metadata_hash=-5),
        0,
        "0003000762696c6c696e67",
        "000000000009010008fffffffffffffffb",
    ),
    (
        ConsumerGroupPartitionMetadataKey(group_id="billing"),
        ConsumerGroupPartitionMetadataValue(
            topics=[
                TopicMetadata(
                    topic_id=TOPIC_ID,
                    topic_name="orders",
                    num_partitions=2,
                    partition_metadata=[PartitionMetadata(partition=1, racks=["a"])],
                )
            ]
        ),
        0,
        "0004000762696c6c696e67",
        "0000020102030405060708090a0b0c0d0e0f10076f7264657273000000020200000001020261000000",
    ),
    (
        ConsumerGroupMemberMetadataKey(group_id="billing", member_id="m-1"),
        ConsumerGroupMemberMetadataValue(
            instance_id=None,
            rack_id=None,
            client_id="c",
            client_host="/127.0.0.1",
            subscribed_topic_names=["orders"],
            subscribed_topic_regex="",
            rebalance_timeout_ms=300000,
            server_assignor="uniform",
            classic_member_metadata=None,
        ),
        0,
        "0005000762696c6c696e6700036d2d31",
        "0000000002630b2f3132372e302e302e3102076f726465727301000493e008756e69666f726d01000100",
    ),
    (
        ConsumerGroupTargetAssignmentMetadataKey(group_id="billing"),
        ConsumerGroupTargetAssignmentMetadataValue(assignment_epoch=9, assignment_timestamp=0),
        0,
        "0006000762696c6c696e67",
        "00000000000900",
    ),
    (
        ConsumerGroupTargetAssignmentMemberKey(group_id="billing", member_id="m-1"),
        ConsumerGroupTargetAssignmentMemberValue(
            topic_partitions=[TargetTopicPartitions(topic_id=TOPIC_ID, partitions=[0, 1])]
        ),
        0,
        "0007000762696c6c696e6700036d2d31",
        "0000020102030405060708090a0b0c0d0e0f100300000000000000010000",
    ),
    (
        ConsumerGroupCurrentMemberAssignmentKey(group_id="billing", member_id="m-1"),
        ConsumerGroupCurrentMemberAssignmentValue(
            member_epoch=9,
            previous_member_epoch=8,
            state=1,
            assigned_partitions=[CurrentTopicPartitions(topic_id=TOPIC_ID, partitions=[0], assignment_epochs=[9])],
            partitions_pending_revocation=[
                CurrentTopicPartitions(topic_id=TOPIC_ID, partitions=[1], assignment_epochs=[])
            ],
        ),
        0,
        "0008000762696c6c696e6700036d2d31",
        "0000000000090000000801020102030405060708090a0b0c0d0e0f1002000000000100050200000009020102030405060708090a0b0c0d0e0f1002000000010000",
    ),
    (
        ConsumerGroupRegularExpressionKey(group_id="billing", regular_expression="ord.*"),
        ConsumerGroupRegularExpressionValue(topics=["orders"], version=3, timestamp=TIME),
        0,
        "0010000762696c6c696e6700056f72642e2a",
        "000002076f726465727300000000000000030000018bcfe5680000",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "version", "key_bytes", "value_bytes"),
    KNOWN,
    ids=[f"{type(k[1]).__name__}-v{k[2]}" for k in KNOWN],
)
def test_bytes_are_those_of_kafka(key: object, value: object, version: int, key_bytes: str, value_bytes: str) -> None:
    assert encode_key(key).hex() == key_bytes
    assert encode_value(value, version).hex() == value_bytes
    assert decode_key(bytes.fromhex(key_bytes)) == key
    assert decode_value(key, memoryview(bytes.fromhex(value_bytes))) == value


def test_every_type_and_version_survives_a_round_trip() -> None:
    host = random.Random(6)
    for of in RECORD_TYPES:
        for version in range(of.last_version + 1):
            key, value = random_message(of.key, 0, host), random_message(of.value, version, host)
            assert decode_key(encode_key(key)) == key
            assert plain(decode_value(key, encode_value(value, version)), version) == plain(value, version)


def test_a_value_is_written_in_the_last_version() -> None:
    assert encode_value(OffsetCommitValue(offset=1))[:2] == b"\x00\x04"


def test_damage_is_malformed() -> None:
    host = random.Random(7)
    malformed = 0
    for of in RECORD_TYPES:
        key = encode_key(random_message(of.key, 0, host))
        value = encode_value(random_message(of.value, of.last_version, host))
        for at in range(len(key)):
            with pytest.raises(MalformedFrame):
                decode_key(key[:at])
        for at in range(len(value)):
            with pytest.raises(MalformedFrame):
                decode_value(of.key(), value[:at])
        for _ in range(100):
            damaged = bytearray(value)
            damaged[host.randrange(2, len(value))] = host.randrange(256)
            try:
                decode_value(of.key(), bytes(damaged))
            except MalformedFrame:
                malformed += 1
    assert malformed > 50


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "0 bytes"), (b"\x00\x63", "type 99"), (b"\x00\x02\x00\x01a!", "1 bytes are left")]
)
def test_a_key_that_is_none_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MalformedFrame, match=words):
        decode_key(data)


def test_a_value_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(MalformedFrame, match="OffsetCommitValue has no version 9"):
        decode_value(OffsetCommitKey(), b"\x00\x09")


def test_a_value_that_its_field_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError, match="GroupMetadataValue v4 cannot be written"):
        encode_value(GroupMetadataValue(generation=2**31))

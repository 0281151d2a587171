"""Partitions are coded as protobuf codes them, only faster."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_proto.protocol.metadata import Partition, Topic, encoded, from_proto, partition_coding, to_proto
from fencepost_proto.protocol.metadata.partition_coding import decode_partition
from fencepost_proto.protocol.v1 import common_pb2

BROKERS = st.lists(st.integers(0, 2**31 - 1), max_size=4, unique=True).map(tuple)
EPOCHS = st.integers(-1, 2**31 - 1)
PARTITIONS = st.builds(
    Partition,
    topic_id=st.text(max_size=200),
    index=st.one_of(st.integers(0, 300), st.integers(-1, 2**31 - 1)),
    replicas=BROKERS,
    isr=BROKERS,
    leader=st.integers(-1, 2**31 - 1),
    leader_epoch=EPOCHS,
    partition_epoch=EPOCHS,
    adding=BROKERS,
    removing=BROKERS,
    last_known_isr=BROKERS,
    deleted_end_offset=st.integers(0, 2**63 - 1),
    deleted_in_epoch=st.integers(0, 2**31 - 1),
    eligible=BROKERS,
)


@given(PARTITIONS)
@settings(max_examples=200, deadline=None)
def test_any_partition_is_encoded_to_protobufs_bytes_and_decoded_to_itself(partition: Partition) -> None:
    expected = to_proto(partition).SerializeToString(deterministic=True)
    assert encoded(partition) == expected
    assert from_proto(common_pb2.Entity.FromString(expected)) == partition


@given(st.binary(max_size=60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_of_any_bytes_nothing_is_decoded_that_protobuf_would_not(data: bytes, of_a_partition: bool) -> None:
    if of_a_partition:
        data = bytes((0x22, len(data))) + data
    try:
        message = common_pb2.Entity.FromString(data)
    except Exception:  # noqa: BLE001  # protobuf refuses it, and so it never gets here
        return
    decoded = decode_partition(data)
    if decoded is not None:
        p = message.partition
        assert (p.topic_id, p.partition, tuple(p.isr), p.leader) == (
            decoded[0],
            decoded[1],
            decoded[2].isr,
            decoded[2].leader,
        )


def test_another_order_of_fields_and_another_kind_are_left_to_protobuf() -> None:
    partition = Partition("t", 7, (1, 2), (1,), 1, 3, 4)
    data = encoded(partition)
    index = bytes((0x10, 7))
    assert index in data
    moved = data.replace(index, b"") + index
    assert decode_partition(moved) is None
    assert from_proto(common_pb2.Entity.FromString(moved)) == partition
    assert decode_partition(encoded(Topic("t", "orders"))) is None


def test_states_are_forgotten_when_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_coding, "MAX_STATES", 10)
    monkeypatch.setattr(partition_coding, "_encoded", {})
    monkeypatch.setattr(partition_coding, "_decoded", {})
    for epoch in range(100):
        partition = Partition("t", 1, (1, 2), (1,), 1, epoch, epoch)
        assert from_proto(common_pb2.Entity.FromString(encoded(partition))) == partition
    assert len(partition_coding._encoded) <= 10
    assert len(partition_coding._decoded) <= 10

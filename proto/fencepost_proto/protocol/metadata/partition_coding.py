"""Partitions on the wire and in the store, quickly: a broker's death changes thousands of them, in few different ways.

The bytes are protobuf's own (`common.proto`, Entity with a PartitionEntity). In front is what differs for each partition:
the topic's id and the index. All that follows, the *state*, is alike for many partitions of one change, and for many
changes of one partition; each state met is coded by protobuf once and remembered.
"""

from __future__ import annotations

from fencepost_proto.protocol.metadata.entities import PartitionState
from fencepost_proto.protocol.v1 import common_pb2

MAX_STATES = 4_096  # remembered each way; then all are forgotten

# Tags: field number and wire type.
_PARTITION = common_pb2.Entity.DESCRIPTOR.fields_by_name["partition"].number << 3 | 2
_TOPIC_ID = common_pb2.PartitionEntity.DESCRIPTOR.fields_by_name["topic_id"].number << 3 | 2
_INDEX = common_pb2.PartitionEntity.DESCRIPTOR.fields_by_name["partition"].number << 3
_ONE_BYTE = 0x80  # numbers below it are one byte
_TWO_BYTES = 0x4000


def state_to_proto(state: PartitionState) -> common_pb2.PartitionEntity:
    """Without the partition's name."""
    return common_pb2.PartitionEntity(
        replicas=state.replicas,
        isr=state.isr,
        leader=state.leader,
        leader_epoch=state.leader_epoch,
        partition_epoch=state.partition_epoch,
        adding_replicas=state.adding,
        removing_replicas=state.removing,
        last_known_isr=state.last_known_isr,
        deleted_end_offset=state.deleted_end_offset,
        deleted_in_epoch=state.deleted_in_epoch,
        eligible=state.eligible,
    )


def state_from_proto(message: common_pb2.PartitionEntity) -> PartitionState:
    return PartitionState(
        tuple(message.replicas),
        tuple(message.isr),
        message.leader,
        message.leader_epoch,
        message.partition_epoch,
        tuple(message.adding_replicas),
        tuple(message.removing_replicas),
        tuple(message.last_known_isr),
        message.deleted_end_offset,
        message.deleted_in_epoch,
        tuple(message.eligible),
    )


_encoded: dict[PartitionState, bytes] = {}
_decoded: dict[bytes, PartitionState] = {}


def encode_partition(topic_id: str, index: int, state: PartitionState) -> bytes | None:
    """The Entity's bytes, as protobuf makes them; None for a name that only protobuf can encode."""
    topic = topic_id.encode()
    if not (0 < len(topic) < _ONE_BYTE and 0 <= index < _TWO_BYTES):
        return None
    data = _encoded.get(state)
    if data is None:
        data = state_to_proto(state).SerializeToString()
        if len(_encoded) >= MAX_STATES:
            _encoded.clear()
        _encoded[state] = data
    # proto3 leaves out a number that is zero
    number = bytes((_INDEX, *_varint(index))) if index else b""
    body = b"".join((bytes((_TOPIC_ID, len(topic))), topic, number, data))
    if len(body) >= _TWO_BYTES:
        return None
    return bytes((_PARTITION, *_varint(len(body)))) + body


def decode_partition(data: bytes) -> tuple[str, int, PartitionState] | None:
    """What `encode_partition` was given, from an Entity's bytes; None where they are of another kind or another layout."""
    if len(data) < 2 or data[0] != _PARTITION:
        return None
    length, at = _small(data, 1)
    if at == 0 or at + length != len(data) or length < 2 or data[at] != _TOPIC_ID or data[at + 1] >= _ONE_BYTE:
        return None
    start = at + 2
    end = start + data[at + 1]
    if end > len(data):
        return None
    index, after = 0, end
    if end < len(data) and data[end] == _INDEX:
        index, after = _small(data, end + 1)
        if after == 0:
            return None
    state = _decoded.get(data[after:])
    if state is None and (state := _decode_state(data[after:])) is None:
        return None
    return data[start:end].decode(), index, state


def _decode_state(data: bytes) -> PartitionState | None:
    p = common_pb2.PartitionEntity.FromString(data)
    if p.topic_id or p.partition:
        return None  # in an order that no encoder of ours makes
    state = state_from_proto(p)
    if len(_decoded) >= MAX_STATES:
        _decoded.clear()
    _decoded[data] = state
    return state


def _varint(value: int) -> tuple[int, ...]:
    """Of a number below _TWO_BYTES."""
    return (value,) if value < _ONE_BYTE else (value & 0x7F | 0x80, value >> 7)


def _small(data: bytes, at: int) -> tuple[int, int]:
    """A number below _TWO_BYTES at this place, and the place behind it; place 0: there is none."""
    if at >= len(data):
        return 0, 0
    first = data[at]
    if first < _ONE_BYTE:
        return first, at + 1
    if at + 1 >= len(data) or data[at + 1] >= _ONE_BYTE:
        return 0, 0
    return first & 0x7F | data[at + 1] << 7, at + 2

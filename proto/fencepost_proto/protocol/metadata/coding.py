"""Entities, and changes of them, on the wire and in the store."""

from __future__ import annotations

from collections.abc import Iterable

from fencepost_proto.protocol.entity import Entity
from fencepost_proto.protocol.metadata.entities import Partition
from fencepost_proto.protocol.metadata.kinds import KINDS_BY_FIELD, KINDS_BY_TYPE
from fencepost_proto.protocol.metadata.partition_coding import decode_partition, encode_partition
from fencepost_proto.protocol.v1 import common_pb2


def to_proto(entity: Entity) -> common_pb2.Entity:
    kind = KINDS_BY_TYPE[type(entity)]
    answer = common_pb2.Entity()
    getattr(answer, kind.field).CopyFrom(kind.coding.encode(entity))
    return answer


def from_proto(message: common_pb2.Entity) -> Entity:
    """Raises ValueError for an entity of a kind that this version does not know."""
    data = message.SerializeToString()
    if (partition := decode_partition(data)) is not None:
        topic_id, index, state = partition
        entity: Entity = Partition(topic_id, index, *state)
    else:
        entity = _from_proto(message)
    entity.keep_bytes(data)
    return entity


def _from_proto(message: common_pb2.Entity) -> Entity:
    field = message.WhichOneof("kind")
    kind = KINDS_BY_FIELD.get(field or "")
    if kind is None:
        raise ValueError(f"metadata entity of unknown kind {field!r}")
    entity: Entity = kind.coding.decode(getattr(message, kind.field))
    return entity


def encoded(entity: Entity) -> bytes:
    """On the wire and in the store; made at the first use."""
    data = entity.kept_bytes
    if data is None:
        data = _encode(entity)
        entity.keep_bytes(data)
    return data


def _encode(entity: Entity) -> bytes:
    if isinstance(entity, Partition):
        quickly = encode_partition(entity.topic_id, entity.index, entity.state)
        if quickly is not None:
            return quickly
    return to_proto(entity).SerializeToString()


def delta_to_proto(
    version: int, changed: Iterable[Entity], deleted: Iterable[str] = (), *, image: bool = False
) -> common_pb2.MetadataDelta:
    return common_pb2.MetadataDelta(version=version, image=image, changed=map(to_proto, changed), deleted_keys=deleted)


def encode_delta(version: int, changed: Iterable[Entity], deleted: Iterable[str] = (), *, image: bool = False) -> bytes:
    """As `delta_to_proto`, serialised: put together from the bytes that each entity keeps."""
    head = common_pb2.MetadataDelta(version=version, image=image, deleted_keys=deleted).SerializeToString()
    parts = [head]
    for entity in changed:
        data = encoded(entity)
        parts += (_PREFIXES[len(data)] if len(data) < len(_PREFIXES) else _prefix(_CHANGED, len(data)), data)
    return b"".join(parts)


_CHANGED = common_pb2.MetadataDelta.DESCRIPTOR.fields_by_name["changed"].number


def length_delimited(field_number: int, data: bytes) -> bytes:
    """A field of a serialised message (protobuf's encoding, wire type 2): messages put together from serialised parts."""
    return _prefix(field_number, len(data)) + data


def _prefix(field_number: int, length: int) -> bytes:
    return _varint(field_number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_PREFIXES = [_prefix(_CHANGED, length) for length in range(256)]  # of entities as long as almost all are

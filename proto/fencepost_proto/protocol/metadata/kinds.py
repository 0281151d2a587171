"""The kinds of entities: one row each.

A new kind is a class in `entities.py`, a message of its own and a field for it in the message Entity (`common.proto`), a
field of the image, and a row here. An image's entities are encoded in the order of the rows, in which they can be put into
another image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from fencepost_proto.protocol.entity import Entity
from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.metadata.entities import (
    FIRST_NAMED_ID,
    NO_CLUSTER,
    NO_IDS_USED,
    BrokerRegistration,
    ClusterIdentity,
    NamedProducer,
    NextProducerId,
    Partition,
    Topic,
)
from fencepost_proto.protocol.metadata.indexes import ById, Index, NamedProducers, Partitions, Single, Topics
from fencepost_proto.protocol.metadata.message_coding import MessageCoding
from fencepost_proto.protocol.metadata.partition_coding import state_from_proto, state_to_proto
from fencepost_proto.protocol.metadata.topic_config import TopicConfig
from fencepost_proto.protocol.v1 import common_pb2

E = TypeVar("E", bound=Entity)


class Coding(Protocol[E]):
    def encode(self, entity: E, /) -> Message: ...

    def decode(self, message: Any, /) -> E: ...


@dataclass(frozen=True, slots=True)
class EntityKind(Generic[E]):
    name: str  # the first part of its entities' keys
    entity: type[E]
    field: str  # of the message Entity
    coding: Coding[E]
    index: Index[E]


class _PartitionCoding:
    """A name, and the state that is alike for many partitions."""

    def encode(self, partition: Partition) -> common_pb2.PartitionEntity:
        message = state_to_proto(partition.state)
        message.topic_id, message.partition = partition.id
        return message

    def decode(self, message: common_pb2.PartitionEntity) -> Partition:
        return Partition(message.topic_id, message.partition, *state_from_proto(message))


def _default(value: object) -> Any:
    """A converter for a field whose zero stands for another value: it is absent then."""
    return lambda found: found or value


_CONFIG = MessageCoding(
    TopicConfig, common_pb2.TopicConfig, read={field.name: _default(field.default) for field in fields(TopicConfig)}
)
config_to_proto, config_from_proto = _CONFIG.encode, _CONFIG.decode

KINDS: tuple[EntityKind[Any], ...] = (
    EntityKind(
        "cluster",
        ClusterIdentity,
        "cluster",
        MessageCoding(ClusterIdentity, common_pb2.ClusterEntity),
        Single("cluster", absent=NO_CLUSTER),
    ),
    EntityKind(
        "lineage",
        Lineage,
        "lineage",
        MessageCoding(
            Lineage,
            common_pb2.LineageEntity,
            write={"starts": lambda starts: [common_pb2.LineageStart(**start._asdict()) for start in starts]},
            read={"starts": lambda starts: tuple(LineageStart(s.lineage_id, s.first_version) for s in starts)},
        ),
        Single("lineage", absent=Lineage()),
    ),
    EntityKind(
        "next-producer-id",
        NextProducerId,
        "next_producer_id",
        MessageCoding(
            NextProducerId,
            common_pb2.NextProducerIdEntity,
            names={"next_id": "next_producer_id"},
            read={"next_named_id": _default(FIRST_NAMED_ID)},
        ),
        Single("next_ids", absent=NO_IDS_USED),
    ),
    EntityKind(
        "brokers",
        BrokerRegistration,
        "broker",
        MessageCoding(BrokerRegistration, common_pb2.BrokerEntity),
        ById("brokers", "id", parse_id=int),
    ),
    EntityKind(
        "topics",
        Topic,
        "topic",
        MessageCoding(
            Topic, common_pb2.TopicEntity, write={"config": config_to_proto}, read={"config": config_from_proto}
        ),
        Topics(),
    ),
    EntityKind("partitions", Partition, "partition", _PartitionCoding(), Partitions()),
    EntityKind(
        "producers",
        NamedProducer,
        "producer",
        MessageCoding(NamedProducer, common_pb2.NamedProducerEntity, read={"retired_ids": tuple}),
        NamedProducers(),
    ),
)

KINDS_BY_TYPE = {kind.entity: kind for kind in KINDS}
KINDS_BY_NAME = {kind.name: kind for kind in KINDS}
KINDS_BY_FIELD = {kind.field: kind for kind in KINDS}

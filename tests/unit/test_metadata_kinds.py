"""Every kind of entity in the table is coded, indexed, deleted and listed as the others are."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Partition,
    Topic,
    TopicConfig,
    config_from_proto,
    config_to_proto,
    delta_to_proto,
    encode_delta,
    encoded,
    from_proto,
    to_proto,
)
from fencepost_proto.protocol.metadata.kinds import KINDS, EntityKind
from fencepost_proto.protocol.metadata.message_coding import MessageCoding
from fencepost_proto.protocol.v1 import common_pb2

SAMPLES: dict[str, Entity] = {
    "cluster": ClusterIdentity("c"),
    "lineage": Lineage((LineageStart(7, 1), LineageStart(9, 12))),
    "next-producer-id": NextProducerId(2_000, 10**15 + 3, 77),
    "brokers": BrokerRegistration(
        3, "h:1", 5, "x", fenced=True, shutting_down=True, served_epoch=4, kafka_address="h:2", feature_level=1
    ),
    "topics": Topic("T", "orders", TopicConfig(retention_ms=5, flush_always=True), 9, was_unsynced=True),
    "partitions": Partition(
        "T",
        2,
        (3, 4),
        (3,),
        3,
        5,
        6,
        adding=(4,),
        removing=(3,),
        last_known_isr=(4,),
        deleted_end_offset=8,
        deleted_in_epoch=2,
        eligible=(3,),
    ),
    "producers": NamedProducer("p", 10**15 + 1, 4, (10**15,), bumped_by_holder=True, used_at_ms=3),
}
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: cast("EntityKind[Any]", kind).name)


def with_entities(*entities: Entity) -> MetadataImage:
    return MetadataImage().with_changes(1, {entity.key: entity for entity in entities})


@EACH
def test_an_entity_comes_back_from_its_bytes_with_every_field(kind: EntityKind[Any]) -> None:
    sample = SAMPLES[kind.name]
    message = getattr(to_proto(sample), kind.field)
    unset = {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    assert from_proto(common_pb2.Entity.FromString(encoded(sample))) == sample
    assert unset <= {"expired", "predecessor_expired"}, "a field of the message that nothing fills in"


@EACH
def test_an_entity_that_is_put_is_listed_and_replaced_under_its_key(kind: EntityKind[Any]) -> None:
    sample = SAMPLES[kind.name]
    image = with_entities(sample)
    assert image.entities() == [sample]
    assert sample.key.partition("/")[0] == kind.name
    assert image.with_changes(2, {sample.key: sample}).entities() == [sample]


@EACH
def test_an_entity_of_many_can_be_deleted_and_leaves_nothing(kind: EntityKind[Any]) -> None:
    sample = SAMPLES[kind.name]
    image = with_entities(sample)
    if "/" in sample.key:
        emptied = image.with_changes(2, {sample.key: None})
        assert replace(emptied, hosted={}) == MetadataImage(version=2)
        assert not any(emptied.hosted.values())
    else:
        with pytest.raises(ValueError, match="cannot be deleted"):
            image.with_changes(2, {sample.key: None})


def test_an_image_is_the_same_after_it_was_encoded_and_applied() -> None:
    image = with_entities(*SAMPLES.values())
    delta = common_pb2.MetadataDelta.FromString(encode_delta(1, image.entities(), image=True))
    assert delta == delta_to_proto(1, image.entities(), image=True)
    assert MetadataImage(version=99, cluster=ClusterIdentity("other")).apply(delta) == image


def test_a_key_of_no_kind_and_a_message_of_no_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="'shapes/1' is of an unknown kind"):
        MetadataImage().with_changes(1, {"shapes/1": None})
    with pytest.raises(ValueError, match="unknown kind None"):
        from_proto(common_pb2.Entity())


def test_a_setting_that_is_absent_takes_its_default() -> None:
    assert config_from_proto(common_pb2.TopicConfig()) == TopicConfig()
    changed = TopicConfig(2, 3, 4, 5, 6, True, "append", 7, 8)
    assert all(getattr(changed, field.name) != field.default for field in fields(TopicConfig))
    assert config_from_proto(config_to_proto(changed)) == changed


def test_a_field_that_the_message_does_not_have_is_refused_when_the_table_is_made() -> None:
    @dataclass
    class Wider:
        address: str
        colour: str

    message = cast("type[Message]", common_pb2.BrokerEntity)
    with pytest.raises(ValueError, match="BrokerEntity has no field colour"):
        MessageCoding(Wider, message)

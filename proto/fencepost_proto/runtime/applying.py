"""A metadata change from the wire, applied in turns: one version may change thousands of partitions."""

from __future__ import annotations

from typing import NamedTuple

from fencepost_proto.protocol.metadata import (
    ImageBuilder,
    MetadataImage,
    Partition,
    PartitionKey,
    Topic,
    from_proto,
    partition_id,
)
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.runtime.turns import Turns


class Applied(NamedTuple):
    image: MetadataImage
    partitions: dict[PartitionKey, None]  # that the change names, and all of a topic whose settings it changes


async def apply_in_turns(image: MetadataImage, delta: common_pb2.MetadataDelta, turns: Turns) -> Applied:
    """As `MetadataImage.apply`, a step for each entity. Raises ValueError for one of a kind that is not known."""
    builder = ImageBuilder(MetadataImage() if delta.image else image)
    changed: dict[PartitionKey, None] = {}
    for message in delta.changed:
        entity = from_proto(message)
        before = builder.put(entity)
        if isinstance(entity, Partition):
            changed[entity.id] = None
        elif isinstance(entity, Topic) and before is not None:
            changed.update((partition.id, None) for partition in builder.image.partitions_of(entity.topic_id))
        await turns.step()
    for key in delta.deleted_keys:
        builder.delete(key)
        if (partition := partition_id(key)) is not None:
            changed[partition] = None
        await turns.step()
    return Applied(builder.at(delta.version), changed)

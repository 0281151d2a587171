"""All metadata at one version, and how the next version is built from changes.

The controller decides changes and persists them; every broker and client holds an image and applies the same changes in
version order. An image is immutable: it is the state at one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fencepost_proto.protocol.entity import Entity
from fencepost_proto.protocol.errors import CurrentLeader
from fencepost_proto.protocol.lineage import Lineage
from fencepost_proto.protocol.metadata.coding import from_proto
from fencepost_proto.protocol.metadata.entities import (
    NO_CLUSTER,
    NO_IDS_USED,
    NO_LEADER,
    BrokerRegistration,
    ClusterIdentity,
    NamedProducer,
    NextProducerId,
    Partition,
    PartitionKey,
    Topic,
)
from fencepost_proto.protocol.metadata.indexes import Copies, parse_partition_key
from fencepost_proto.protocol.metadata.kinds import KINDS, KINDS_BY_NAME, KINDS_BY_TYPE
from fencepost_proto.protocol.v1 import common_pb2

Changes = Mapping[str, Entity | None]  # by key; None: deleted


@dataclass(frozen=True, slots=True)
class MetadataImage:
    """All metadata at one version. The mappings are never changed in place: treat them as frozen."""

    version: int = 0
    cluster: ClusterIdentity = NO_CLUSTER
    lineage: Lineage = field(default_factory=Lineage)
    next_ids: NextProducerId = NO_IDS_USED
    brokers: Mapping[int, BrokerRegistration] = field(default_factory=dict)
    topics: Mapping[str, Topic] = field(default_factory=dict)  # by topic id
    topic_ids: Mapping[str, str] = field(default_factory=dict)  # name -> topic id
    partitions: Mapping[PartitionKey, Partition] = field(default_factory=dict)
    hosted: Mapping[int, Mapping[PartitionKey, None]] = field(default_factory=dict)  # by broker: its replicas
    producers: Mapping[str, NamedProducer] = field(default_factory=dict)
    expired_producers: Mapping[str, NamedProducer] = field(default_factory=dict)
    fences: Mapping[int, int] = field(default_factory=dict)  # producer id -> lowest epoch that may still append

    def entities(self) -> list[Entity]:
        """Everything, in an order in which it can be applied."""
        return [entity for kind in KINDS for entity in kind.index.entities(self)]

    @property
    def cluster_id(self) -> str:
        """Empty: not known."""
        return self.cluster.cluster_id

    def with_changes(self, version: int, changes: Changes) -> MetadataImage:
        """The image after `changes`, at `version`. Only the mappings that change are copied."""
        builder = ImageBuilder(self)
        builder.change(changes)
        return builder.at(version)

    def apply(self, delta: common_pb2.MetadataDelta) -> MetadataImage:
        """The image after a delta from the wire. Raises ValueError for an entity of unknown kind."""
        base = MetadataImage() if delta.image else self
        changes: dict[str, Entity | None] = {entity.key: entity for entity in map(from_proto, delta.changed)}
        changes.update(dict.fromkeys(delta.deleted_keys))
        return base.with_changes(delta.version, changes)

    def current_leader(self, partition: Partition) -> CurrentLeader:
        broker = self.brokers.get(partition.leader)
        return CurrentLeader(partition.leader, partition.leader_epoch, broker.address if broker else "")

    def partitions_of(self, topic_id: str) -> list[Partition]:
        """In index order. A topic's partitions are numbered from 0, without a gap."""
        found: list[Partition] = []
        while (partition := self.partitions.get((topic_id, len(found)))) is not None:
            found.append(partition)
        return found

    def is_led(self, topic_name: str) -> bool:
        """Whether the topic is there, and each of its partitions has a leader."""
        topic_id = self.topic_ids.get(topic_name)
        return topic_id is not None and all(p.leader != NO_LEADER for p in self.partitions_of(topic_id))

    def hosted_by(self, broker_id: int) -> Iterable[PartitionKey]:
        """The partitions of which this broker has a replica."""
        return self.hosted.get(broker_id, {})


class ImageBuilder(Copies[MetadataImage]):
    """Makes the next image: entity by entity, with every index."""

    def change(self, changes: Changes) -> dict[str, Entity | None]:
        """Apply these changes. Returns what was there before, under the same keys."""
        before: dict[str, Entity | None] = {}
        for key, entity in changes.items():
            before[key] = self.delete(key) if entity is None else self.put(entity)
        return before

    def put(self, entity: Entity) -> Entity | None:
        """Returns the entity that was there before."""
        before: Entity | None = KINDS_BY_TYPE[type(entity)].index.put(self, entity)
        return before

    def delete(self, key: str) -> Entity | None:
        """Returns the entity that was there before. Raises ValueError for a key that cannot be deleted."""
        name, _, rest = key.partition("/")
        kind = KINDS_BY_NAME.get(name)
        if kind is None:
            raise ValueError(f"metadata key {key!r} is of an unknown kind")
        before: Entity | None = kind.index.delete(self, rest)
        return before

    def at(self, version: int) -> MetadataImage:
        """The image, at `version`. The builder must not be used after that."""
        return replace(self.image, version=version)


def partition_id(key: str) -> PartitionKey | None:
    """Which partition an entity's key names; None: it is no partition's."""
    kind, _, rest = key.partition("/")
    return parse_partition_key(rest) if kind == "partitions" else None

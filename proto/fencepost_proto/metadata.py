"""Cluster metadata as values: keyed entities, and the image that changes to them are applied to.

The controller decides changes and persists them; every broker and client holds an image and applies the same changes in
version order. An image is immutable: whoever holds one holds one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from fencepost_proto.errors import CurrentLeader, InvalidTopic
from fencepost_proto.lineage import Lineage, LineageStart
from fencepost_proto.v1 import common_pb2

NO_LEADER = -1
RETIRED_EPOCH = 2**15  # above every epoch that fits: a retired producer id is refused for good
MAX_TOPIC_NAME = 249
CREATE_TIME = "create"  # a topic's message_timestamp_type
APPEND_TIME = "append"

_TOPIC_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_topic_name(name: str) -> None:
    """Raises InvalidTopic for a name that could not be a folder's: Kafka's rules."""
    if not name or name in (".", ".."):
        raise InvalidTopic(f"topic name {name!r} is not allowed")
    if len(name) > MAX_TOPIC_NAME:
        raise InvalidTopic(f"topic name of {len(name)} characters; at most {MAX_TOPIC_NAME} are allowed")
    if not _TOPIC_CHARACTERS.issuperset(name):
        raise InvalidTopic(f"topic name {name!r}: only letters, digits, '.', '_' and '-' are allowed")


# ---- Entities ----


@dataclass(frozen=True, slots=True)
class Cluster:
    cluster_id: str

    @property
    def key(self) -> str:
        return "cluster"


@dataclass(frozen=True, slots=True)
class Broker:
    id: int
    address: str
    broker_epoch: int
    incarnation: str
    fenced: bool
    shutting_down: bool = False
    served_epoch: int = 0  # newest broker epoch under which it was unfenced; 0: it never was

    @property
    def key(self) -> str:
        return f"brokers/{self.id}"


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """Settings of one topic; fixed when it is created.

    Records carry their producer's timestamps ("create"), which must lie within the two bounds around the leader's clock,
    or that of the append ("append"). -1: no limit.
    """

    min_insync_replicas: int = 1
    retention_ms: int = 7 * 24 * 3600 * 1000
    retention_bytes: int = -1
    segment_bytes: int = 128 * 1024 * 1024
    max_message_bytes: int = 4 * 1024 * 1024
    flush_always: bool = False
    message_timestamp_type: str = CREATE_TIME
    message_timestamp_before_max_ms: int = -1
    message_timestamp_after_max_ms: int = 3600 * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    topic_id: str
    name: str
    config: TopicConfig = TopicConfig()

    @property
    def key(self) -> str:
        return f"topics/{self.topic_id}"


PartitionKey = tuple[str, int]  # topic id, partition index


@dataclass(frozen=True, slots=True)
class Partition:
    topic_id: str
    index: int
    replicas: tuple[int, ...]  # assignment order; the first is the preferred leader
    isr: tuple[int, ...]
    leader: int  # NO_LEADER: offline
    leader_epoch: int
    partition_epoch: int
    adding: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()
    last_known_isr: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        return f"partitions/{self.topic_id}/{self.index}"

    @property
    def id(self) -> PartitionKey:
        return (self.topic_id, self.index)


@dataclass(frozen=True, slots=True)
class NamedProducer:
    name: str
    producer_id: int
    epoch: int
    retired_ids: tuple[int, ...] = ()
    bumped_by_holder: bool = False  # the holder of the epoch before asked for this one: a repeat of that gets it again

    @property
    def key(self) -> str:
        return f"producers/{self.name}"


@dataclass(frozen=True, slots=True)
class NextProducerId:
    next_id: int

    @property
    def key(self) -> str:
        return "next-producer-id"


Entity = Cluster | Broker | Topic | Partition | NamedProducer | NextProducerId | Lineage
Changes = Mapping[str, Entity | None]  # by key; None: deleted


# ---- On the wire and in the store ----


def to_proto(entity: Entity) -> common_pb2.Entity:
    answer = common_pb2.Entity()
    match entity:
        case Cluster():
            answer.cluster.cluster_id = entity.cluster_id
        case Broker():
            answer.broker.CopyFrom(
                common_pb2.BrokerEntity(
                    id=entity.id,
                    address=entity.address,
                    broker_epoch=entity.broker_epoch,
                    incarnation=entity.incarnation,
                    fenced=entity.fenced,
                    shutting_down=entity.shutting_down,
                    served_epoch=entity.served_epoch,
                )
            )
        case Topic():
            answer.topic.CopyFrom(
                common_pb2.TopicEntity(
                    topic_id=entity.topic_id, name=entity.name, config=config_to_proto(entity.config)
                )
            )
        case Partition():
            answer.partition.CopyFrom(
                common_pb2.PartitionEntity(
                    topic_id=entity.topic_id,
                    partition=entity.index,
                    replicas=entity.replicas,
                    isr=entity.isr,
                    leader=entity.leader,
                    leader_epoch=entity.leader_epoch,
                    partition_epoch=entity.partition_epoch,
                    adding_replicas=entity.adding,
                    removing_replicas=entity.removing,
                    last_known_isr=entity.last_known_isr,
                )
            )
        case NamedProducer():
            answer.producer.CopyFrom(
                common_pb2.NamedProducerEntity(
                    name=entity.name,
                    producer_id=entity.producer_id,
                    epoch=entity.epoch,
                    retired_ids=entity.retired_ids,
                    bumped_by_holder=entity.bumped_by_holder,
                )
            )
        case NextProducerId():
            answer.next_producer_id.next_producer_id = entity.next_id
        case Lineage():
            answer.lineage.starts.extend(common_pb2.LineageStart(**start._asdict()) for start in entity.starts)
        case _:
            assert_never(entity)
    return answer


def from_proto(message: common_pb2.Entity) -> Entity:
    """Raises ValueError for an entity of a kind that this version does not know."""
    match message.WhichOneof("kind"):
        case "cluster":
            return Cluster(message.cluster.cluster_id)
        case "broker":
            b = message.broker
            return Broker(b.id, b.address, b.broker_epoch, b.incarnation, b.fenced, b.shutting_down, b.served_epoch)
        case "topic":
            return Topic(message.topic.topic_id, message.topic.name, config_from_proto(message.topic.config))
        case "partition":
            p = message.partition
            return Partition(
                p.topic_id,
                p.partition,
                tuple(p.replicas),
                tuple(p.isr),
                p.leader,
                p.leader_epoch,
                p.partition_epoch,
                tuple(p.adding_replicas),
                tuple(p.removing_replicas),
                tuple(p.last_known_isr),
            )
        case "producer":
            n = message.producer
            return NamedProducer(n.name, n.producer_id, n.epoch, tuple(n.retired_ids), n.bumped_by_holder)
        case "next_producer_id":
            return NextProducerId(message.next_producer_id.next_producer_id)
        case "lineage":
            return Lineage(tuple(LineageStart(s.lineage_id, s.first_version) for s in message.lineage.starts))
        case kind:
            raise ValueError(f"metadata entity of unknown kind {kind!r}")


def config_to_proto(config: TopicConfig) -> common_pb2.TopicConfig:
    return common_pb2.TopicConfig(
        min_insync_replicas=config.min_insync_replicas,
        retention_ms=config.retention_ms,
        retention_bytes=config.retention_bytes,
        segment_bytes=config.segment_bytes,
        max_message_bytes=config.max_message_bytes,
        flush_always=config.flush_always,
        message_timestamp_type=config.message_timestamp_type,
        message_timestamp_before_max_ms=config.message_timestamp_before_max_ms,
        message_timestamp_after_max_ms=config.message_timestamp_after_max_ms,
    )


def config_from_proto(message: common_pb2.TopicConfig) -> TopicConfig:
    """A field that is zero (absent) takes its default."""
    default = TopicConfig()
    return TopicConfig(
        min_insync_replicas=message.min_insync_replicas or default.min_insync_replicas,
        retention_ms=message.retention_ms or default.retention_ms,
        retention_bytes=message.retention_bytes or default.retention_bytes,
        segment_bytes=message.segment_bytes or default.segment_bytes,
        max_message_bytes=message.max_message_bytes or default.max_message_bytes,
        flush_always=message.flush_always,
        message_timestamp_type=message.message_timestamp_type or default.message_timestamp_type,
        message_timestamp_before_max_ms=(
            message.message_timestamp_before_max_ms or default.message_timestamp_before_max_ms
        ),
        message_timestamp_after_max_ms=message.message_timestamp_after_max_ms or default.message_timestamp_after_max_ms,
    )


# ---- The image ----


@dataclass(frozen=True, slots=True)
class MetadataImage:
    """All metadata at one version. The mappings are never changed in place: treat them as frozen."""

    version: int = 0
    cluster_id: str = ""
    lineage: Lineage = field(default_factory=Lineage)
    next_producer_id: int = 0
    brokers: Mapping[int, Broker] = field(default_factory=dict)
    topics: Mapping[str, Topic] = field(default_factory=dict)  # by topic id
    topic_ids: Mapping[str, str] = field(default_factory=dict)  # name -> topic id
    partitions: Mapping[PartitionKey, Partition] = field(default_factory=dict)
    producers: Mapping[str, NamedProducer] = field(default_factory=dict)
    fences: Mapping[int, int] = field(default_factory=dict)  # producer id -> lowest epoch that may still append

    def entities(self) -> list[Entity]:
        """Everything, in an order in which it can be applied."""
        return [
            *([Cluster(self.cluster_id)] if self.cluster_id else []),
            *([self.lineage] if self.lineage.starts else []),
            *([NextProducerId(self.next_producer_id)] if self.next_producer_id else []),
            *self.brokers.values(),
            *self.topics.values(),
            *self.partitions.values(),
            *self.producers.values(),
        ]

    def with_changes(self, version: int, changes: Changes) -> MetadataImage:
        """The image after `changes`, at `version`. Only the mappings that change are copied."""
        new = _Draft(self)
        for key, entity in changes.items():
            if entity is None:
                new.delete(key)
            else:
                new.put(entity)
        return new.freeze(version)

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
        """In index order."""
        return sorted((p for p in self.partitions.values() if p.topic_id == topic_id), key=lambda p: p.index)


class _Draft:
    """An image being changed: each mapping is copied at its first change."""

    def __init__(self, image: MetadataImage) -> None:
        self._image = image
        self._copies: dict[str, dict[object, object]] = {}
        self._values: dict[str, object] = {}

    def _map(self, name: str) -> dict[object, object]:
        if name not in self._copies:
            self._copies[name] = dict(getattr(self._image, name))
        return self._copies[name]

    def put(self, entity: Entity) -> None:
        match entity:
            case Cluster():
                self._values["cluster_id"] = entity.cluster_id
            case NextProducerId():
                self._values["next_producer_id"] = entity.next_id
            case Lineage():
                self._values["lineage"] = entity
            case Broker():
                self._map("brokers")[entity.id] = entity
            case Topic():
                self._map("topics")[entity.topic_id] = entity
                self._map("topic_ids")[entity.name] = entity.topic_id
            case Partition():
                self._map("partitions")[entity.id] = entity
            case NamedProducer():
                self._map("producers")[entity.name] = entity
                fences = self._map("fences")
                fences[entity.producer_id] = entity.epoch
                fences.update(dict.fromkeys(entity.retired_ids, RETIRED_EPOCH))
            case _:
                assert_never(entity)

    def delete(self, key: str) -> None:
        kind, _, rest = key.partition("/")
        match kind:
            case "brokers":
                self._map("brokers").pop(int(rest), None)
            case "topics":
                topic = self._map("topics").pop(rest, None)
                names = self._map("topic_ids")
                if isinstance(topic, Topic) and names.get(topic.name) == rest:
                    del names[topic.name]
            case "partitions":
                topic_id, _, index = rest.rpartition("/")
                self._map("partitions").pop((topic_id, int(index)), None)
            case _:
                raise ValueError(f"metadata key {key!r} cannot be deleted")

    def freeze(self, version: int) -> MetadataImage:
        return replace(self._image, version=version, **self._copies, **self._values)  # type: ignore[arg-type]


def delta_to_proto(
    version: int, changed: Iterable[Entity], deleted: Iterable[str] = (), *, image: bool = False
) -> common_pb2.MetadataDelta:
    return common_pb2.MetadataDelta(version=version, image=image, changed=map(to_proto, changed), deleted_keys=deleted)

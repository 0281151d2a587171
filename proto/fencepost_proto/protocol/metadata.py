"""Cluster metadata as values: keyed entities, and the image that changes to them are applied to.

The controller decides changes and persists them; every broker and client holds an image and applies the same changes in
version order. An image is immutable: whoever holds one holds one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, assert_never, cast

from fencepost_proto.protocol.errors import CurrentLeader, InvalidTopic
from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.partition_coding import (
    PartitionState,
    decode_partition,
    encode_partition,
    state_from_proto,
    state_to_proto,
)
from fencepost_proto.protocol.v1 import common_pb2

NO_LEADER = -1
RETIRED_EPOCH = 2**15  # above every epoch that fits: a retired producer id is refused permanently
FIRST_NAMED_ID = 10**15  # ids of named producers begin here; those of anonymous ones stay below
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


class _Encoded:
    """An entity's bytes on the wire and in the store, made at their first use: an entity never changes."""

    __slots__ = ("_bytes",)
    _bytes: bytes

    @property
    def encoded(self) -> bytes:
        try:
            return self._bytes
        except AttributeError:
            data = self._encode()
            self.keep_encoded(data)
            return data

    def _encode(self) -> bytes:
        return to_proto(cast("Entity", self)).SerializeToString()

    def keep_encoded(self, data: bytes) -> None:
        object.__setattr__(self, "_bytes", data)  # entities are frozen; this is no part of their value


@dataclass(frozen=True, slots=True)
class ClusterIdentity(_Encoded):
    cluster_id: str

    @property
    def key(self) -> str:
        return "cluster"


@dataclass(frozen=True, slots=True)
class BrokerRegistration(_Encoded):
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


def _setting(default: object, *, choices: tuple[object, ...] = (), doc: str) -> Any:
    """A field of TopicConfig. The controller checks numbers (`decisions/topics.py`); `doc` is for docs/CONFIGURATION.md."""
    return field(default=default, metadata={"choices": choices, "doc": doc})


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """Settings of one topic; fixed when it is created.

    Records carry their producer's timestamps ("create"), which must lie within the two bounds around the leader's clock,
    or that of the append ("append"). -1: no limit.
    """

    min_insync_replicas: int = _setting(
        1, doc="Writes with `acks=all` are refused while fewer replicas are in sync. At most the replication factor."
    )
    retention_ms: int = _setting(
        7 * 24 * 3600 * 1000,
        doc="A segment goes when its newest record, and its last append, are older than this. -1: no limit.",
    )
    retention_bytes: int = _setting(-1, doc="The oldest segments go while what stays is still as large. -1: no limit.")
    segment_bytes: int = _setting(
        128 * 1024 * 1024, doc="Size at which the next segment begins. At least the controller's `min_segment_bytes`."
    )
    max_message_bytes: int = _setting(4 * 1024 * 1024, doc="The largest batch, after compression.")
    flush_always: bool = _setting(
        False, doc="Whether a batch is acknowledged only once every in-sync disk has stored it."
    )
    message_timestamp_type: str = _setting(
        CREATE_TIME,
        choices=(CREATE_TIME, APPEND_TIME),
        doc="Whose time records carry: their producer's, or that of the append, on the leader's clock.",
    )
    message_timestamp_before_max_ms: int = _setting(
        -1, doc="How far before the leader's clock a producer's timestamp may lie. -1: no limit."
    )
    message_timestamp_after_max_ms: int = _setting(
        3600 * 1000, doc="How far after the leader's clock a producer's timestamp may lie. -1: no limit."
    )


@dataclass(frozen=True, slots=True)
class Topic(_Encoded):
    topic_id: str
    name: str
    config: TopicConfig = TopicConfig()
    created_version: int = 0  # the metadata version that created it; 0: not known

    @property
    def key(self) -> str:
        return f"topics/{self.topic_id}"


PartitionKey = tuple[str, int]  # topic id, partition index


@dataclass(frozen=True, slots=True)
class Partition(_Encoded):
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
    def state(self) -> PartitionState:
        return PartitionState(
            self.replicas,
            self.isr,
            self.leader,
            self.leader_epoch,
            self.partition_epoch,
            self.adding,
            self.removing,
            self.last_known_isr,
        )

    def _encode(self) -> bytes:
        return encode_partition(self.topic_id, self.index, self.state) or to_proto(self).SerializeToString()

    @property
    def id(self) -> PartitionKey:
        return (self.topic_id, self.index)


@dataclass(frozen=True, slots=True)
class NamedProducer(_Encoded):
    name: str
    producer_id: int
    epoch: int
    retired_ids: tuple[int, ...] = ()
    bumped_by_holder: bool = False  # the holder of the epoch before asked for this one: a repeat of that gets it again
    used_at_ms: int = 0  # its last use, on the clock of names
    expired: bool = False  # not used for the expiration time: its id is refused permanently
    predecessor_expired: bool = False  # the name had expired before it was given this id

    @property
    def key(self) -> str:
        return f"producers/{self.name}"


@dataclass(frozen=True, slots=True)
class NextProducerId(_Encoded):
    next_id: int
    next_named_id: int = FIRST_NAMED_ID
    names_clock_ms: int = 0  # for how long a controller has run, in coarse steps: the clock by which names expire

    @property
    def key(self) -> str:
        return "next-producer-id"


Entity = ClusterIdentity | BrokerRegistration | Topic | Partition | NamedProducer | NextProducerId | Lineage
Changes = Mapping[str, Entity | None]  # by key; None: deleted


# ---- On the wire and in the store ----


def to_proto(entity: Entity) -> common_pb2.Entity:
    answer = common_pb2.Entity()
    match entity:
        case ClusterIdentity():
            answer.cluster.cluster_id = entity.cluster_id
        case BrokerRegistration():
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
                    topic_id=entity.topic_id,
                    name=entity.name,
                    config=config_to_proto(entity.config),
                    created_version=entity.created_version,
                )
            )
        case Partition():
            answer.partition.CopyFrom(state_to_proto(entity.state))
            answer.partition.topic_id, answer.partition.partition = entity.id
        case NamedProducer():
            answer.producer.CopyFrom(
                common_pb2.NamedProducerEntity(
                    name=entity.name,
                    producer_id=entity.producer_id,
                    epoch=entity.epoch,
                    retired_ids=entity.retired_ids,
                    bumped_by_holder=entity.bumped_by_holder,
                    used_at_ms=entity.used_at_ms,
                    expired=entity.expired,
                    predecessor_expired=entity.predecessor_expired,
                )
            )
        case NextProducerId():
            answer.next_producer_id.next_producer_id = entity.next_id
            answer.next_producer_id.next_named_id = entity.next_named_id
            answer.next_producer_id.names_clock_ms = entity.names_clock_ms
        case Lineage():
            answer.lineage.starts.extend(common_pb2.LineageStart(**start._asdict()) for start in entity.starts)
        case _:
            assert_never(entity)
    return answer


def from_proto(message: common_pb2.Entity) -> Entity:
    """Raises ValueError for an entity of a kind that this version does not know."""
    data = message.SerializeToString()
    if (partition := decode_partition(data)) is not None:
        topic_id, index, state = partition
        entity: Entity = Partition(topic_id, index, *state)
    else:
        entity = _from_proto(message)
    if isinstance(entity, _Encoded):
        entity.keep_encoded(data)
    return entity


def encoded(entity: Entity) -> bytes:
    """On the wire and in the store."""
    return entity.encoded if isinstance(entity, _Encoded) else to_proto(entity).SerializeToString()


def _from_proto(message: common_pb2.Entity) -> Entity:
    match message.WhichOneof("kind"):
        case "cluster":
            return ClusterIdentity(message.cluster.cluster_id)
        case "broker":
            b = message.broker
            return BrokerRegistration(
                b.id, b.address, b.broker_epoch, b.incarnation, b.fenced, b.shutting_down, b.served_epoch
            )
        case "topic":
            t = message.topic
            return Topic(t.topic_id, t.name, config_from_proto(t.config), t.created_version)
        case "partition":
            p = message.partition
            return Partition(p.topic_id, p.partition, *state_from_proto(p))
        case "producer":
            n = message.producer
            return NamedProducer(
                n.name,
                n.producer_id,
                n.epoch,
                tuple(n.retired_ids),
                n.bumped_by_holder,
                n.used_at_ms,
                n.expired,
                n.predecessor_expired,
            )
        case "next_producer_id":
            ids = message.next_producer_id
            return NextProducerId(ids.next_producer_id, ids.next_named_id or FIRST_NAMED_ID, ids.names_clock_ms)
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
    next_named_id: int = FIRST_NAMED_ID
    names_clock_ms: int = 0
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
        return [
            *([ClusterIdentity(self.cluster_id)] if self.cluster_id else []),
            *([self.lineage] if self.lineage.starts else []),
            *([self.next_ids] if self.next_ids != NextProducerId(0) else []),
            *self.brokers.values(),
            *self.topics.values(),
            *self.partitions.values(),
            *self.producers.values(),
            *self.expired_producers.values(),
        ]

    @property
    def next_ids(self) -> NextProducerId:
        return NextProducerId(self.next_producer_id, self.next_named_id, self.names_clock_ms)

    def with_changes(self, version: int, changes: Changes) -> MetadataImage:
        """The image after `changes`, at `version`. Only the mappings that change are copied."""
        draft = ImageDraft(self)
        draft.change(changes)
        return draft.at(version)

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

    def hosted_by(self, broker_id: int) -> Iterable[PartitionKey]:
        """The partitions of which this broker has a replica."""
        return self.hosted.get(broker_id, {})


class ImageDraft:
    """An image being changed. Each mapping is copied once, at its first change, however many changes follow."""

    def __init__(self, image: MetadataImage) -> None:
        self.image = image  # as changed so far; for reading, and only until the next change
        self._copied: dict[str, dict[object, object]] = {}
        self._copied_hosts: set[int] = set()

    def change(self, changes: Changes) -> dict[str, Entity | None]:
        """Apply these changes. Returns what was there before, under the same keys."""
        before: dict[str, Entity | None] = {}
        for key, entity in changes.items():
            before[key] = self.delete(key) if entity is None else self.put(entity)
        return before

    def at(self, version: int) -> MetadataImage:
        """The image, at `version`. The draft must not be used after that."""
        return replace(self.image, version=version)

    def put(self, entity: Entity) -> Entity | None:
        """Returns the entity that was there before."""
        match entity:
            case Partition():
                partitions, key = self._map("partitions"), entity.id
                before = cast("Partition | None", partitions.get(key))
                partitions[key] = entity
                if before is None or before.replicas != entity.replicas:
                    self._host(key, before.replicas if before is not None else (), entity.replicas)
                return before
            case BrokerRegistration():
                return self._put("brokers", entity.id, entity)
            case Topic():
                self._map("topic_ids")[entity.name] = entity.topic_id
                return self._put("topics", entity.topic_id, entity)
            case NamedProducer():
                known = self._forget_producer(entity.name)
                self._map("expired_producers" if entity.expired else "producers")[entity.name] = entity
                if not entity.expired:  # else its id is one that no name has
                    fences = self._map("fences")
                    fences[entity.producer_id] = entity.epoch
                    fences.update(dict.fromkeys(entity.retired_ids, RETIRED_EPOCH))
                return known
            case ClusterIdentity():
                cluster_id = self.image.cluster_id
                self.image = replace(self.image, cluster_id=entity.cluster_id)
                return ClusterIdentity(cluster_id) if cluster_id else None
            case Lineage():
                lineage = self.image.lineage
                self.image = replace(self.image, lineage=entity)
                return lineage if lineage.starts else None
            case NextProducerId():
                ids = self.image.next_ids
                self.image = replace(
                    self.image,
                    next_producer_id=entity.next_id,
                    next_named_id=entity.next_named_id,
                    names_clock_ms=entity.names_clock_ms,
                )
                return ids
            case _:
                assert_never(entity)

    def _forget_producer(self, name: str) -> NamedProducer | None:
        expired = self._map("expired_producers").pop(name, None)
        known = self._map("producers").pop(name, None)
        if isinstance(known, NamedProducer):
            fences = self._map("fences")
            for producer_id in (known.producer_id, *known.retired_ids):
                fences.pop(producer_id, None)
        return cast("NamedProducer | None", known or expired)

    def _put(self, name: str, key: object, entity: Entity) -> Entity | None:
        entities = self._map(name)
        before = entities.get(key)
        entities[key] = entity
        return cast("Entity | None", before)

    def _map(self, name: str) -> dict[object, object]:
        """This draft's own copy of one of the image's mappings."""
        copied = self._copied.get(name)
        if copied is None:
            copied = self._copied[name] = dict(getattr(self.image, name))
            self.image = replace(self.image, **{name: copied})  # type: ignore[arg-type]
        return copied

    def _host(self, key: PartitionKey, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        if before == after:
            return
        for broker_id in before:
            if broker_id not in after:
                self._hosted_by(broker_id).pop(key, None)
        for broker_id in after:
            self._hosted_by(broker_id)[key] = None

    def _hosted_by(self, broker_id: int) -> dict[PartitionKey, None]:
        hosts = self._map("hosted")
        keys = cast("dict[PartitionKey, None]", hosts.get(broker_id, {}))
        if broker_id not in self._copied_hosts:
            self._copied_hosts.add(broker_id)
            hosts[broker_id] = keys = dict(keys)
        return keys

    def delete(self, key: str) -> Entity | None:
        """Returns the entity that was there before."""
        kind, _, rest = key.partition("/")
        match kind:
            case "producers":
                return self._forget_producer(rest)
            case "brokers":
                return cast("BrokerRegistration | None", self._map("brokers").pop(int(rest), None))
            case "topics":
                topic = self._map("topics").pop(rest, None)
                names = self._map("topic_ids")
                if isinstance(topic, Topic) and names.get(topic.name) == rest:
                    del names[topic.name]
                return cast("Topic | None", topic)
            case "partitions":
                topic_id, _, index = rest.rpartition("/")
                partition = self._map("partitions").pop((topic_id, int(index)), None)
                if isinstance(partition, Partition):
                    self._host(partition.id, partition.replicas, ())
                return cast("Partition | None", partition)
            case _:
                raise ValueError(f"metadata key {key!r} cannot be deleted")


def partition_id(key: str) -> PartitionKey | None:
    """Which partition an entity's key names; None: it is no partition's."""
    kind, _, rest = key.partition("/")
    topic_id, _, index = rest.rpartition("/")
    return (topic_id, int(index)) if kind == "partitions" else None


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

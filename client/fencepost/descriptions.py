"""What the admin client returns about a cluster: plain values, each a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.metadata import (
    TOPIC_SETTINGS,
    MetadataImage,
    Partition,
    Topic,
    TopicConfig,
    default_setting,
    format_setting,
)
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.runtime.turns import Turns


@dataclass(frozen=True, slots=True)
class BrokerDescription:
    """One broker that has ever registered."""

    id: int
    address: str  # host:port
    broker_epoch: int  # a new one at every start
    fenced: bool  # not live: leads nothing
    shutting_down: bool
    kafka_address: str = ""  # host:port for Kafka's clients; empty: it serves none


@dataclass(frozen=True, slots=True)
class ClusterDescription:
    """The cluster's identity and its brokers, by id."""

    cluster_id: str
    metadata_version: int
    brokers: tuple[BrokerDescription, ...]

    @staticmethod
    def of(image: MetadataImage) -> ClusterDescription:
        brokers = (image.brokers[broker_id] for broker_id in sorted(image.brokers))
        return ClusterDescription(
            image.cluster_id,
            image.version,
            tuple(
                BrokerDescription(b.id, b.address, b.broker_epoch, b.fenced, b.shutting_down, b.kafka_address)
                for b in brokers
            ),
        )


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition: its replicas, its in-sync replicas, its leader."""

    partition: int
    leader: int  # -1: offline
    leader_epoch: int
    replicas: tuple[int, ...]  # assignment order; the first is the preferred leader
    isr: tuple[int, ...]
    adding: tuple[int, ...]  # by a reassignment under way
    removing: tuple[int, ...]
    last_known_isr: tuple[int, ...]  # without a leader: who held all that was committed, and may have lost some of it
    eligible: tuple[int, ...] = ()  # not in sync, and hold all that is committed: may be elected (KIP-966)

    @staticmethod
    def of(p: Partition) -> PartitionDescription:
        return PartitionDescription(
            p.index, p.leader, p.leader_epoch, p.replicas, p.isr, p.adding, p.removing, p.last_known_isr, p.eligible
        )


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """One topic and its partitions, in order: `partitions[n].partition == n`."""

    name: str
    topic_id: str
    config: TopicConfig
    partitions: tuple[PartitionDescription, ...]

    @staticmethod
    def of(image: MetadataImage, topic: Topic) -> TopicDescription:
        partitions = tuple(map(PartitionDescription.of, image.partitions_of(topic.topic_id)))
        return TopicDescription(topic.name, topic.topic_id, topic.config, partitions)


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One setting of a topic or a broker: its value as text, and where that comes from."""

    name: str
    value: str
    default: str | None  # None: it has none, and has to be set
    doc: str

    @property
    def is_default(self) -> bool:
        return self.value == self.default

    @staticmethod
    def of_topic(config: TopicConfig) -> list[SettingDescription]:
        return [
            SettingDescription(
                name,
                format_setting(getattr(config, name)),
                format_setting(default_setting(name)),
                field.metadata["doc"],
            )
            for name, field in sorted(TOPIC_SETTINGS.items())
        ]

    @staticmethod
    def of_broker(answer: broker_pb2.DescribeBrokerConfigResponse) -> list[SettingDescription]:
        return [
            SettingDescription(s.name, s.value, s.default if s.HasField("default") else None, s.doc)
            for s in answer.settings
        ]


@dataclass(frozen=True, slots=True)
class Reassignment:
    """A change of a partition's replicas that is under way."""

    topic: str
    partition: int
    replicas: tuple[int, ...]  # all that hold it now, including those that are leaving
    adding: tuple[int, ...]
    removing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchDescription:
    """One of a producer's last five batches, as a partition remembers them."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class ProducerDescription:
    """What a partition knows of one producer."""

    producer_id: int
    producer_epoch: int
    batches: tuple[BatchDescription, ...]  # oldest first

    @staticmethod
    def of(info: broker_pb2.ProducerStateInfo) -> ProducerDescription:
        batches = (
            BatchDescription(b.first_sequence, b.last_sequence, b.base_offset, b.timestamp_ms) for b in info.batches
        )
        return ProducerDescription(info.producer_id, info.producer_epoch, tuple(batches))


@dataclass(frozen=True, slots=True)
class PartitionProducers:
    """The producer state of one partition, as its leader holds it."""

    topic: str
    partition: int
    leader_epoch: int
    log_end_offset: int
    high_watermark: int
    producers: tuple[ProducerDescription, ...]  # by producer id

    @staticmethod
    async def of(topic: str, partition: int, answer: broker_pb2.DescribeProducersResponse) -> PartitionProducers:
        """In turns: a partition may have 50,000 producers, of five batches each."""
        producers, turns = [], Turns()
        for producer in answer.producers:
            producers.append(ProducerDescription.of(producer))
            await turns.step()
        producers.sort(key=lambda producer: producer.producer_id)
        return PartitionProducers(
            topic, partition, answer.leader_epoch, answer.log_end_offset, answer.high_watermark, tuple(producers)
        )


@dataclass(frozen=True, slots=True)
class ProducerName:
    """One name of a named producer."""

    name: str
    producer_id: int
    epoch: int  # of its current instance
    idle_ms: int  # since it was last used, by the controller's running time, in coarse steps
    expired: bool  # not used for the expiration time: its producer id is refused, and the next instance gets another


@dataclass(frozen=True, slots=True)
class ReplicaDescription:
    """One partition's log on one broker."""

    topic: str  # its name; the topic's id, where the topic is deleted
    partition: int
    is_leader: bool
    leader_epoch: int
    log_start_offset: int
    log_end_offset: int
    high_watermark: int
    size_bytes: int
    appended_batches: int  # since the broker's start
    deduplicated_batches: int  # repeats recognised, since the broker's start
    failure: str  # why it is offline there; empty: it is not
    last_epoch: int  # the leader epoch of its last batch; -1: it has none


@dataclass(frozen=True, slots=True)
class ElectionCandidate:
    """One replica of a partition that has no leader, and what an unclean election has to know about it."""

    broker_id: int
    broker_epoch: int  # of the incarnation that was asked
    last_epoch: int  # the leader epoch of its last batch; -1: it has none, or could not be asked
    log_end_offset: int  # -1: it could not be asked
    was_in_sync: bool  # when the partition last had an in-sync set
    failure: str  # why it cannot be elected; empty: it can
    kept_end_offset: int = -1  # if it is elected, no acknowledged record below this offset is lost; -1: not known

    @property
    def log_ends(self) -> tuple[int, int]:
        """Sort key (last leader epoch, log end offset): a log with a greater key holds every committed record of one with a
        smaller key."""
        return self.last_epoch, self.log_end_offset


@dataclass(frozen=True, slots=True)
class BrokerReplicas:
    """All that one broker hosts, by topic and partition."""

    broker_id: int
    replicas: tuple[ReplicaDescription, ...]
    metadata_version: int = -1
    recovery_seconds: float = 0.0  # how long its logs' recovery took at its start
    failure: str = ""  # why it could not be asked; empty: it answered

    @staticmethod
    def of(image: MetadataImage, answer: broker_pb2.DescribeLogDirsResponse) -> BrokerReplicas:
        replicas = [_replica(image, info) for info in answer.replicas]
        replicas.sort(key=lambda replica: (replica.topic, replica.partition))
        return BrokerReplicas(answer.broker_id, tuple(replicas), answer.metadata_version, answer.recovery_seconds)


def _replica(image: MetadataImage, info: broker_pb2.ReplicaInfo) -> ReplicaDescription:
    topic = image.topics.get(info.topic_id)
    return ReplicaDescription(
        topic.name if topic is not None else info.topic_id,
        info.partition,
        info.is_leader,
        info.leader_epoch,
        info.log_start_offset,
        info.log_end_offset,
        info.high_watermark,
        info.size_bytes,
        info.appended_batches,
        info.deduplicated_batches,
        info.failure,
        info.last_epoch,
    )

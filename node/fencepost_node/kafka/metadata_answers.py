"""Responses to Metadata, built from a metadata image. What names all topics is encoded once a metadata version.

Brokers are those that serve: registered, not fenced, with a Kafka address. The *controller* that clients are told of is one
of them, the one with the lowest id: every broker relays what is asked of a controller. A partition whose leader is none of
them has the error LEADER_NOT_AVAILABLE, which clients wait out.
"""

from __future__ import annotations

from collections.abc import Iterator

from fencepost_proto.kafka.codec import encode_response
from fencepost_proto.kafka.messages.metadata import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS
from fencepost_proto.protocol.metadata import NO_LEADER, BrokerRegistration, MetadataImage, Partition, Topic
from fencepost_proto.protocol.topic_ids import to_wire
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.streams import split_address

KEY = 3
_WEIGHT_OF_A_PARTITION = 1


def live_brokers(image: MetadataImage) -> dict[int, BrokerRegistration]:
    """Those that Kafka's clients can use, by id, in its order."""
    found = (broker for broker in image.brokers.values() if broker.kafka_address and not broker.fenced)
    return {broker.id: broker for broker in sorted(found, key=lambda broker: broker.id)}


class MetadataAnswers:
    """Of one broker: what was made of the newest image."""

    def __init__(self) -> None:
        self._image: MetadataImage | None = None
        self._live: dict[int, BrokerRegistration] = {}
        self._whole: dict[int, bytes] = {}  # by API version: the frame that names all topics

    def _take(self, image: MetadataImage) -> None:
        if self._image is not image:
            self._image = image
            self._live = live_brokers(image)
            self._whole = {}

    def frame(self, image: MetadataImage) -> MetadataResponse:
        """A response that names no topic yet."""
        self._take(image)
        brokers = []
        for broker in self._live.values():
            host, port = split_address(broker.kafka_address)
            brokers.append(MetadataResponseBroker(node_id=broker.id, host=host, port=port))
        controller = next(iter(self._live), -1)
        return MetadataResponse(brokers=brokers, cluster_id=image.cluster_id or None, controller_id=controller)

    async def whole(self, image: MetadataImage, version: int) -> bytes:
        """The frame that names all topics, with some correlation id."""
        self._take(image)
        frame = self._whole.get(version)
        if frame is None:
            response = self.frame(image)
            turns = Turns()
            for topic in image.topics.values():
                response.topics.append(self.topic(image, topic))
                await turns.step(1 + _WEIGHT_OF_A_PARTITION * len(response.topics[-1].partitions))
            frame = b"".join(encode_response(KEY, version, 0, response))
            if self._image is image:  # it may have changed in a turn
                self._whole[version] = frame
        return frame

    def topic(self, image: MetadataImage, topic: Topic) -> MetadataResponseTopic:
        self._take(image)
        return MetadataResponseTopic(
            name=topic.name,
            topic_id=to_wire(topic.topic_id),
            is_internal=topic.name in INTERNAL_TOPICS,
            partitions=list(self._partitions(image, topic)),
        )

    def _partitions(self, image: MetadataImage, topic: Topic) -> Iterator[MetadataResponsePartition]:
        live = self._live
        for partition in image.partitions_of(topic.topic_id):
            has_leader = partition.leader in live
            yield MetadataResponsePartition(
                error_code=ErrorCode.NONE if has_leader else ErrorCode.LEADER_NOT_AVAILABLE,
                partition_index=partition.index,
                leader_id=partition.leader if has_leader else NO_LEADER,
                leader_epoch=partition.leader_epoch,
                replica_nodes=list(partition.replicas),
                isr_nodes=list(partition.isr),
                offline_replicas=offline_replicas(partition, live),
            )


def offline_replicas(partition: Partition, live: dict[int, BrokerRegistration]) -> list[int]:
    """Those of brokers that Kafka's clients cannot use."""
    return [broker for broker in partition.replicas if broker not in live]

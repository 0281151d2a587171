"""Responses to Metadata, built from a metadata image. What names all topics is encoded once a metadata version.

Brokers that serve are registered, not fenced, and have a Kafka address. The *controller* that clients are told of is one of
them, the one with the lowest id: every broker relays what is asked of a controller. A partition whose leader is none of them
has the error LEADER_NOT_AVAILABLE, which clients wait out.

A broker that has just been fenced goes in two steps: in the first answer of a connection after that it is still among the
brokers, and leads nothing; in the second it is missing. librdkafka (2.15, 2.16) ends its thread for a broker that is missing
while it moves that broker's partitions to their next leaders. Where the thread is quicker, those partitions have no leader
for up to a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence

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
LISTED_S = 30.0  # after a broker was fenced: clients that had a connection to it have asked by then
_MAX_FRAMES = 16  # kept of one image
_WEIGHT_OF_A_PARTITION = 1


def live_brokers(image: MetadataImage) -> dict[int, BrokerRegistration]:
    """Those that Kafka's clients can use, by id, in its order."""
    found = (broker for broker in image.brokers.values() if broker.kafka_address and not broker.fenced)
    return {broker.id: broker for broker in sorted(found, key=lambda broker: broker.id)}


Incarnation = tuple[int, int]  # of a broker: its id and its epoch


class MetadataAnswers:
    """Of one broker: what was made of the newest image."""

    def __init__(self) -> None:
        self._image: MetadataImage | None = None
        self._live: dict[int, BrokerRegistration] = {}
        self._fenced: dict[Incarnation, tuple[float, BrokerRegistration]] = {}  # since when, as first seen here
        self._whole: dict[tuple[object, ...], bytes] = {}  # frames that name all topics, by what they depend on

    def _take(self, image: MetadataImage) -> None:
        if self._image is image:
            return
        now = asyncio.get_running_loop().time()
        self._image = image
        self._live = live_brokers(image)
        fenced = (broker for broker in image.brokers.values() if broker.kafka_address and broker.fenced)
        self._fenced = {
            (broker.id, broker.broker_epoch): self._fenced.get((broker.id, broker.broker_epoch), (now, broker))
            for broker in sorted(fenced, key=lambda broker: broker.id)
        }
        self._whole = {}

    def fenced_lately(self, image: MetadataImage) -> list[Incarnation]:
        self._take(image)
        since = asyncio.get_running_loop().time() - LISTED_S
        return [incarnation for incarnation, (fenced_at, _) in self._fenced.items() if fenced_at > since]

    def frame(self, image: MetadataImage, also: Sequence[Incarnation] = ()) -> MetadataResponse:
        """A response that names no topic yet, with the brokers that serve, and `also` of those that are fenced."""
        self._take(image)
        brokers = []
        for broker in [*self._live.values(), *(self._fenced[incarnation][1] for incarnation in also)]:
            host, port = split_address(broker.kafka_address)
            brokers.append(MetadataResponseBroker(node_id=broker.id, host=host, port=port))
        controller = next(iter(self._live), -1)
        return MetadataResponse(brokers=brokers, cluster_id=image.cluster_id or None, controller_id=controller)

    async def whole(
        self, image: MetadataImage, version: int, also: Sequence[Incarnation] = (), lost: Collection[int] = ()
    ) -> bytes:
        """The frame that names all topics, with some correlation id. `also` and `lost`: as in `frame` and `topic`."""
        self._take(image)
        key = (version, *also, *lost)
        frame = self._whole.get(key)
        if frame is None:
            response = self.frame(image, also)
            turns = Turns()
            for topic in image.topics.values():
                response.topics.append(self.topic(image, topic, lost))
                await turns.step(1 + _WEIGHT_OF_A_PARTITION * len(response.topics[-1].partitions))
            frame = b"".join(encode_response(KEY, version, 0, response))
            if self._image is image and len(self._whole) < _MAX_FRAMES:  # it may have changed in a turn
                self._whole[key] = frame
        return frame

    def topic(self, image: MetadataImage, topic: Topic, lost: Collection[int] = ()) -> MetadataResponseTopic:
        """`lost`: brokers that are not named as leaders, whatever the image says."""
        self._take(image)
        return MetadataResponseTopic(
            name=topic.name,
            topic_id=to_wire(topic.topic_id),
            is_internal=topic.name in INTERNAL_TOPICS,
            partitions=list(self._partitions(image, topic, lost)),
        )

    def _partitions(
        self, image: MetadataImage, topic: Topic, lost: Collection[int]
    ) -> Iterator[MetadataResponsePartition]:
        live = self._live
        for partition in image.partitions_of(topic.topic_id):
            has_leader = partition.leader in live and partition.leader not in lost
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

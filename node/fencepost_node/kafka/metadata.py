"""Metadata (key 3), versions 0 to 13: the brokers, and where the partitions of topics are.

Supports: all topics (a null list; in version 0 an empty one), those named, and from version 10 on those of an id. It is
answered from what this broker has applied, and may be behind the controller.

Where this broker has just lost the stream to a leader of what is asked for, an election is under way: the answer waits
for it, for at most ELECTION_WAIT_S. A client that asks because its leader has gone would find the same leader again,
and pause. Where a topic that is named has a partition without a leader, the answer waits for one for UNLED_WAIT_S: aiokafka
asks again at once, for as long as that takes.

A topic that does not exist is created where the request allows it (up to version 3 every request does) and the broker's
`auto_create_topics` is on, with `default_partitions` and `default_replication_factor`; the answer waits for it for at most
CREATED_WITHIN_S. Internal topics are created by their coordinators only. Only a request that names topics creates any.

Errors of a topic: UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, INVALID_TOPIC_EXCEPTION (a name that could be no topic's),
LEADER_NOT_AVAILABLE (it is being created), and what the controller answers. Of a partition: LEADER_NOT_AVAILABLE.
Authorized operations are not told: nothing is forbidden to anyone.

Limits: MAX_CREATED topics are created by one request; the others are LEADER_NOT_AVAILABLE, which is asked again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fencepost_node.kafka.context import Encoded, KafkaContext
from fencepost_node.requests.auto_creation import create_missing
from fencepost_proto.kafka.messages.metadata import (
    MetadataRequest,
    MetadataRequestTopic,
    MetadataResponse,
    MetadataResponseTopic,
)
from fencepost_proto.protocol.errors import ErrorCode, InvalidTopic
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS
from fencepost_proto.protocol.metadata import NO_LEADER, MetadataImage, Partition, check_topic_name
from fencepost_proto.protocol.topic_ids import NO_TOPIC_ID, from_wire
from fencepost_proto.runtime.turns import Turns

FIRST_IMAGE_WAIT_S = 5.0  # after a broker's start
CREATED_WITHIN_S = 2.0
MAX_CREATED = 16
LOST_WITHIN_S = 1.0  # a leader whose stream ended longer ago is not waited for: it may be cut off from this broker only
ELECTION_WAIT_S = 0.3
UNLED_WAIT_S = 0.05  # not longer: other answers of the connection wait behind this one
SHOWN_NAME = 249  # characters of a name that is refused, as many as are allowed


async def handle(context: KafkaContext, request: MetadataRequest, version: int) -> MetadataResponse | Encoded:
    await context.feed.wait_known(FIRST_IMAGE_WAIT_S)
    asked = request.topics
    await _wait_for_elections(context, asked)
    image = context.feed.image
    if asked is None or (version == 0 and not asked):
        return Encoded(await context.broker.metadata.whole(image, version))
    refused: dict[str, ErrorCode] = {}
    if request.allow_auto_topic_creation and context.config.auto_create_topics:
        missing = _missing(image, asked)
        if missing:
            refused = dict.fromkeys(missing[MAX_CREATED:], ErrorCode.LEADER_NOT_AVAILABLE)
            refused |= await create_missing(
                missing[:MAX_CREATED], context.link, context.feed, context.config, CREATED_WITHIN_S
            )
            image = context.feed.image
    response = context.broker.metadata.frame(image)
    turns = Turns()
    for topic in asked:
        response.topics.append(_answer(context, image, topic, refused))
        await turns.step(1 + len(response.topics[-1].partitions))
    return response


async def _wait_for_elections(context: KafkaContext, asked: list[MetadataRequestTopic] | None) -> None:
    if lost := context.manager.lost_leaders(LOST_WITHIN_S):
        await context.feed.wait_until(lambda image: not _any_led_by(image, asked, lost), ELECTION_WAIT_S)
    elif asked is not None and _any_led_by(context.feed.image, asked, (NO_LEADER,)):
        await context.feed.wait_until(lambda image: not _any_led_by(image, asked, (NO_LEADER,)), UNLED_WAIT_S)


def _any_led_by(image: MetadataImage, asked: list[MetadataRequestTopic] | None, leaders: Collection[int]) -> bool:
    return any(partition.leader in leaders for partition in _partitions(image, asked))


def _partitions(image: MetadataImage, asked: list[MetadataRequestTopic] | None) -> Iterator[Partition]:
    if asked is None:
        yield from image.partitions.values()
        return
    for topic in asked:
        by_id = topic.topic_id != NO_TOPIC_ID
        yield from image.partitions_of(
            from_wire(topic.topic_id) if by_id else image.topic_ids.get(topic.name or "", "")
        )


def _missing(image: MetadataImage, asked: list[MetadataRequestTopic]) -> list[str]:
    names = dict.fromkeys(topic.name for topic in asked if topic.name and topic.topic_id == NO_TOPIC_ID)
    return [
        name
        for name in names
        if name not in image.topic_ids and name not in INTERNAL_TOPICS and not _is_impossible(name)
    ]


def _is_impossible(name: str) -> bool:
    try:
        check_topic_name(name)
    except InvalidTopic:
        return True
    return False


def _answer(
    context: KafkaContext, image: MetadataImage, asked: MetadataRequestTopic, refused: dict[str, ErrorCode]
) -> MetadataResponseTopic:
    if asked.topic_id != NO_TOPIC_ID:
        topic = image.topics.get(from_wire(asked.topic_id))
        if topic is None:
            return MetadataResponseTopic(error_code=ErrorCode.UNKNOWN_TOPIC_ID, name=None, topic_id=asked.topic_id)
        return context.broker.metadata.topic(image, topic)
    name = asked.name or ""
    topic = image.topics.get(image.topic_ids.get(name, ""))
    if topic is not None:
        return context.broker.metadata.topic(image, topic)
    if _is_impossible(name):
        return MetadataResponseTopic(error_code=ErrorCode.INVALID_TOPIC_EXCEPTION, name=name[:SHOWN_NAME])
    return MetadataResponseTopic(error_code=refused.get(name, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION), name=name)

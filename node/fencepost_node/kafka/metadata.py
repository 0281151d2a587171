"""Metadata (key 3), versions 0 to 13: the brokers, and where the partitions of topics are.

Supports: all topics (a null list; in version 0 an empty one), those named, and from version 10 on those of an id. It is
answered from what this broker has applied, and may be behind the controller.

A client also asks because its leader has gone; where it is told of the same leader once more, it pauses (librdkafka for up
to a second). So an answer does not name a leader that has gone:

- Where this broker has just lost the stream to a leader of what is asked for, an election is under way. The answer waits for
  it, for at most ELECTION_WAIT_S, and names no leader where there is none then.
- When a process ends, one peer of it learns of that some milliseconds before the other. So the answer to a client that has
  asked for nothing on its connection for a while, and now does, waits NEWS_WAIT_S for another leader or an ended stream.
- Where a topic that is named has a partition without a leader, the answer waits for one for UNLED_WAIT_S: aiokafka asks
  again at once, for as long as that takes.

A topic that does not exist is created where the request allows it (up to version 3 every request does) and the broker's
`auto_create_topics` is on, with `default_partitions` and `default_replication_factor`; the answer waits for it for at most
CREATED_WITHIN_S. Internal topics are created by their coordinators only. Only a request that names topics creates any.

Errors of a topic: UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, INVALID_TOPIC_EXCEPTION (a name that could be no topic's),
LEADER_NOT_AVAILABLE (it is being created), and what the controller answers. Of a partition: LEADER_NOT_AVAILABLE.
Authorized operations are told where they are asked for (`authorized_operations`).

Limits: MAX_CREATED topics are created by one request; the others are LEADER_NOT_AVAILABLE, which is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from itertools import islice

from fencepost_node.kafka.authorized_operations import ON_THE_CLUSTER, ON_TOPICS
from fencepost_node.kafka.context import Encoded, KafkaContext
from fencepost_node.kafka.metadata_answers import Incarnation
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

CREATED_WITHIN_S = 2.0
SETTLED_S = 1.0  # without a question: a client asks again every few minutes, or for a reason
NEWS_WAIT_S = 0.05
MAX_WATCHED = 1_000  # partitions, in a request that waits for news
MAX_CREATED = 16
LOST_WITHIN_S = 1.0  # a leader whose stream ended longer ago is not waited for: it may be cut off from this broker only
ELECTION_WAIT_S = 0.3
UNLED_WAIT_S = 0.05  # not longer: other answers of the connection wait behind this one
SHOWN_NAME = 249  # characters of a name that is refused, as many as are allowed


async def handle(context: KafkaContext, request: MetadataRequest, version: int) -> MetadataResponse | Encoded:
    asked = request.topics
    if version == 0 and not asked:
        asked = None
    await _wait_for_news(context, asked)
    lost = await _wait_for_elections(context, asked)
    image = context.feed.image
    tells_operations = request.include_topic_authorized_operations or request.include_cluster_authorized_operations
    if asked is None and not tells_operations:
        return Encoded(await context.broker.metadata.whole(image, version, _ending(context, image), lost))
    if asked is None:
        asked = [MetadataRequestTopic(name=name) for name in image.topic_ids]
    refused: dict[str, ErrorCode] = {}
    if request.allow_auto_topic_creation and context.config.auto_create_topics:
        missing = _missing(image, asked)
        if missing:
            refused = dict.fromkeys(missing[MAX_CREATED:], ErrorCode.LEADER_NOT_AVAILABLE)
            refused |= await create_missing(
                missing[:MAX_CREATED], context.link, context.feed, context.config, CREATED_WITHIN_S
            )
            image = context.feed.image
    response = context.broker.metadata.frame(image, _ending(context, image))
    turns = Turns()
    for topic in asked:
        response.topics.append(_answer(context, image, topic, refused, lost))
        if request.include_topic_authorized_operations and response.topics[-1].error_code == ErrorCode.NONE:
            response.topics[-1].topic_authorized_operations = ON_TOPICS
        await turns.step(1 + len(response.topics[-1].partitions))
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = ON_THE_CLUSTER
    return response


def _ending(context: KafkaContext, image: MetadataImage) -> list[Incarnation]:
    """Brokers that have been fenced lately, and of which this connection has not been told since then."""
    lately = context.broker.metadata.fenced_lately(image)
    told, context.told_fenced = context.told_fenced, lately
    return [incarnation for incarnation in lately if incarnation not in told]


async def _wait_for_news(context: KafkaContext, asked: list[MetadataRequestTopic] | None) -> None:
    """Return as soon as there is another leader of a partition that is asked for, or one's stream has ended."""
    now = asyncio.get_running_loop().time()
    since, context.metadata_asked_at = context.metadata_asked_at, now
    if now - since < SETTLED_S:
        return
    before = _leaders(context.feed.image, asked)

    def is_new(image: MetadataImage) -> bool:
        leaders = _leaders(image, asked)
        return leaders != before or any(lost in leaders for lost in context.manager.lost_leaders(LOST_WITHIN_S))

    if 0 < len(before) <= MAX_WATCHED:
        await context.feed.wait_until(is_new, NEWS_WAIT_S)


def _leaders(image: MetadataImage, asked: list[MetadataRequestTopic] | None) -> list[int]:
    return [partition.leader for partition in islice(_partitions(image, asked), MAX_WATCHED + 1)]


async def _wait_for_elections(context: KafkaContext, asked: list[MetadataRequestTopic] | None) -> Collection[int]:
    """Leaders that have gone, as far as is known; what they led has other leaders, or the time is over."""
    if lost := context.manager.lost_leaders(LOST_WITHIN_S):
        await context.feed.wait_until(lambda image: not _any_led_by(image, asked, lost), ELECTION_WAIT_S)
        return context.manager.lost_leaders(LOST_WITHIN_S)  # without those that have come back
    if asked is not None and _any_led_by(context.feed.image, asked, (NO_LEADER,)):
        await context.feed.wait_until(lambda image: not _any_led_by(image, asked, (NO_LEADER,)), UNLED_WAIT_S)
    return ()


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
    context: KafkaContext,
    image: MetadataImage,
    asked: MetadataRequestTopic,
    refused: dict[str, ErrorCode],
    lost: Collection[int],
) -> MetadataResponseTopic:
    if asked.topic_id != NO_TOPIC_ID:
        topic = image.topics.get(from_wire(asked.topic_id))
        if topic is None:
            return MetadataResponseTopic(error_code=ErrorCode.UNKNOWN_TOPIC_ID, name=None, topic_id=asked.topic_id)
        return context.broker.metadata.topic(image, topic, lost)
    name = asked.name or ""
    topic = image.topics.get(image.topic_ids.get(name, ""))
    if topic is not None:
        return context.broker.metadata.topic(image, topic, lost)
    if _is_impossible(name):
        return MetadataResponseTopic(error_code=ErrorCode.INVALID_TOPIC_EXCEPTION, name=name[:SHOWN_NAME])
    return MetadataResponseTopic(error_code=refused.get(name, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION), name=name)

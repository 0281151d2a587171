"""DeleteTopics (key 20), versions 1 to 6: remove topics and all their records.

Supports: by name and, from version 6 on, by id, which a topic of the same name that was made since does not have. The
answer comes when this broker does not know the topic any more.

Errors of a topic: UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, INVALID_REQUEST (named twice; with name and id, or
neither), INVALID_TOPIC_EXCEPTION (an internal one), REQUEST_TIMED_OUT, NOT_CONTROLLER where the controller is away.

Limits: `admin.MAX_CHANGES` topics.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import check_changes, check_not_internal, code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages.delete_topics import (
    DeletableTopicResult,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DeleteTopicState,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, UnknownTopicId
from fencepost_proto.protocol.topic_ids import NO_TOPIC_ID, from_wire

WITH_IDS = 6


async def handle(context: KafkaContext, request: DeleteTopicsRequest, version: int) -> DeleteTopicsResponse:
    changes = TopicChanges(context.link, context.feed, request.timeout_ms)
    asked = request.topics if version >= WITH_IDS else [DeleteTopicState(name=name) for name in request.topic_names]
    response = DeleteTopicsResponse()
    done: dict[tuple[str | None, bytes], None] = {}
    for topic in asked:
        result = DeletableTopicResult(name=topic.name, topic_id=topic.topic_id)
        response.responses.append(result)
        try:
            check_changes(len(asked))
            if (topic.name, topic.topic_id) in done:
                raise InvalidRequest(f"topic {topic.name!r} is named twice")
            done[topic.name, topic.topic_id] = None
            result.name = await _delete(changes, topic)
        except FencepostError as error:
            result.error_code, result.error_message = code_and_message(error)
    return response


async def _delete(changes: TopicChanges, topic: DeleteTopicState) -> str:
    """Its name."""
    if (topic.name is None) == (topic.topic_id == NO_TOPIC_ID):
        raise InvalidRequest("a topic is deleted by its name or by its id")
    name, topic_id = topic.name, ""
    if name is None:
        topic_id = from_wire(topic.topic_id)
        known = changes.image.topics.get(topic_id)
        if known is None:
            raise UnknownTopicId(f"topic id {topic_id!r} is not known")
        name = known.name
    check_not_internal(name)
    await changes.delete_topic(name, topic_id)
    return name

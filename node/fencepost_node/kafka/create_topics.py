"""CreateTopics (key 19), versions 2 to 7: make topics.

Supports: counts, either of which may be -1 for the broker's default (`default_partitions`, `default_replication_factor`), or
an assignment of each partition; settings by Kafka's names (`topic_settings`); `validate_only`. The answer has what came of
it, and comes when this broker knows of the topic.

Errors of a topic: TOPIC_ALREADY_EXISTS, INVALID_TOPIC_EXCEPTION (also for an internal one), INVALID_PARTITIONS,
INVALID_REPLICATION_FACTOR, INVALID_REPLICA_ASSIGNMENT, INVALID_CONFIG, INVALID_REQUEST (named twice; counts beside an
assignment), REQUEST_TIMED_OUT, NOT_CONTROLLER where the controller is away.

Limits: `admin.MAX_CHANGES` topics; the controller's own.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import NamedOnce, check_not_internal, code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.topic_settings import describe, read_config
from fencepost_node.requests.auto_creation import default_replication_factor
from fencepost_node.requests.topic_changes import NewTopic, TopicChanges
from fencepost_proto.kafka.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfigs,
    CreatableTopicResult,
    CreateTopicsRequest,
    CreateTopicsResponse,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidReplicaAssignment, InvalidRequest
from fencepost_proto.protocol.topic_ids import NO_TOPIC_ID, to_wire

DEFAULT = -1


async def handle(context: KafkaContext, request: CreateTopicsRequest, version: int) -> CreateTopicsResponse:
    changes = TopicChanges(context.link, context.feed, request.timeout_ms, validate_only=request.validate_only)
    named = NamedOnce("topic", (topic.name for topic in request.topics))
    response = CreateTopicsResponse()
    for asked in {topic.name: topic for topic in request.topics}.values():
        try:
            named.check(asked.name, asked.name)
            response.topics.append(await _create(context, changes, asked))
        except FencepostError as error:
            code, message = code_and_message(error)
            response.topics.append(
                CreatableTopicResult(name=asked.name, error_code=code, error_message=message, configs=None)
            )
    return response


async def _create(context: KafkaContext, changes: TopicChanges, asked: CreatableTopic) -> CreatableTopicResult:
    check_not_internal(asked.name)
    config = read_config((setting.name, setting.value) for setting in asked.configs)
    assignments = _assignments(asked)
    partitions, factor = len(assignments), len(assignments[0]) if assignments else 0
    if not assignments:
        partitions = context.config.default_partitions if asked.num_partitions == DEFAULT else asked.num_partitions
        factor = asked.replication_factor
        if factor == DEFAULT:
            factor = default_replication_factor(context.config, context.feed.image)
    topic_id = await changes.create_topic(NewTopic(asked.name, partitions, factor, assignments, config))
    return CreatableTopicResult(
        name=asked.name,
        topic_id=to_wire(topic_id) if topic_id else NO_TOPIC_ID,
        num_partitions=partitions,
        replication_factor=factor,
        configs=[
            CreatableTopicConfigs(name=s.name, value=s.value, read_only=s.read_only, config_source=s.source)
            for s in describe(config)
        ],
    )


def _assignments(asked: CreatableTopic) -> list[list[int]]:
    if not asked.assignments:
        return []
    if asked.num_partitions != DEFAULT or asked.replication_factor != DEFAULT:
        raise InvalidRequest(f"topic {asked.name!r}: counts and an assignment; one of them is possible")
    by_index = {one.partition_index: one.broker_ids for one in asked.assignments}
    if sorted(by_index) != list(range(len(asked.assignments))):
        raise InvalidReplicaAssignment(
            f"topic {asked.name!r}: an assignment of partitions {sorted(by_index)}; they are numbered from 0"
        )
    return [by_index[index] for index in range(len(by_index))]

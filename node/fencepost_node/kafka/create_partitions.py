"""CreatePartitions (key 37), versions 0 to 3: raise the number of partitions of topics.

Supports: the new total, placed by the controller or as assigned; `validate_only`. The answer comes when this broker knows
of the new partitions.

Errors of a topic: UNKNOWN_TOPIC_OR_PARTITION, INVALID_PARTITIONS (not more than there are), INVALID_REPLICA_ASSIGNMENT,
INVALID_REPLICATION_FACTOR, INVALID_REQUEST (named twice), INVALID_TOPIC_EXCEPTION (an internal one), REQUEST_TIMED_OUT,
NOT_CONTROLLER where the controller is away.

Limits: `admin.MAX_CHANGES` topics; the controller's own.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import NamedOnce, check_not_internal, code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopicResult,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidReplicaAssignment


async def handle(context: KafkaContext, request: CreatePartitionsRequest, version: int) -> CreatePartitionsResponse:
    changes = TopicChanges(context.link, context.feed, request.timeout_ms, validate_only=request.validate_only)
    named = NamedOnce("topic", (topic.name for topic in request.topics))
    response = CreatePartitionsResponse()
    for asked in {topic.name: topic for topic in request.topics}.values():
        result = CreatePartitionsTopicResult(name=asked.name)
        response.results.append(result)
        try:
            named.check(asked.name, asked.name)
            check_not_internal(asked.name)
            if asked.assignments is not None and not asked.assignments:
                raise InvalidReplicaAssignment(f"topic {asked.name!r}: an assignment of no partition")
            assignments = [one.broker_ids for one in asked.assignments or ()]
            await changes.create_partitions(asked.name, asked.count, assignments)
        except FencepostError as error:
            result.error_code, result.error_message = code_and_message(error)
    return response

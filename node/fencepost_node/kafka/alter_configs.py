"""AlterConfigs (key 33), versions 0 to 2: replace all settings of topics.

Supports: topics. A setting that the request does not name gets its default; IncrementalAlterConfigs, which came after this
API, changes single ones. `validate_only`.

Errors of a resource and limits: as in `incremental_alter_configs.py`.
"""

from __future__ import annotations

from fencepost_node.kafka.admin import check_changes, code_and_message, twice
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.incremental_alter_configs import TIMEOUT_MS, check_alterable
from fencepost_node.kafka.topic_settings import others_than, read_value
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages.alter_configs import (
    AlterConfigsRequest,
    AlterConfigsResourceResponse,
    AlterConfigsResponse,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest


async def handle(context: KafkaContext, request: AlterConfigsRequest, version: int) -> AlterConfigsResponse:
    changes = TopicChanges(context.link, context.feed, TIMEOUT_MS, validate_only=request.validate_only)
    response = AlterConfigsResponse()
    repeated = twice(f"{asked.resource_type}/{asked.resource_name}" for asked in request.resources)
    for asked in request.resources:
        result = AlterConfigsResourceResponse(resource_type=asked.resource_type, resource_name=asked.resource_name)
        response.responses.append(result)
        try:
            check_changes(len(request.resources))
            if f"{asked.resource_type}/{asked.resource_name}" in repeated:
                raise InvalidRequest(f"resource {asked.resource_name!r} is named twice")
            check_alterable(asked.resource_type, asked.resource_name, [one.name for one in asked.configs], changes)
            set_to = [pair for one in asked.configs if (pair := read_value(one.name, one.value)) is not None]
            await changes.alter_topic(asked.resource_name, set_to, others_than([name for name, _ in set_to]))
        except FencepostError as error:
            result.error_code, result.error_message = code_and_message(error)
    return response

"""AlterConfigs (key 33), versions 0 to 2: replace all settings of topics.

Supports: topics. A setting that the request does not name gets its default; IncrementalAlterConfigs, which came after this
API, changes single ones. `validate_only`.

Errors of a resource and limits: as in `incremental_alter_configs.py`.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.incremental_alter_configs import TIMEOUT_MS, alter_each, check_alterable
from fencepost_node.kafka.topic_settings import others_than, read_value
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages.alter_configs import (
    AlterConfigsRequest,
    AlterConfigsResource,
    AlterConfigsResponse,
)


async def handle(context: KafkaContext, request: AlterConfigsRequest, version: int) -> AlterConfigsResponse:
    changes = TopicChanges(context.link, context.feed, TIMEOUT_MS, validate_only=request.validate_only)

    async def alter(asked: AlterConfigsResource) -> None:
        check_alterable(asked.resource_type, asked.resource_name, [one.name for one in asked.configs], changes)
        set_to = [pair for one in asked.configs if (pair := read_value(one.name, one.value)) is not None]
        await changes.alter_topic(asked.resource_name, set_to, others_than([name for name, _ in set_to]))

    return AlterConfigsResponse(responses=await alter_each(request.resources, alter))

"""IncrementalAlterConfigs (key 44), versions 0 and 1: change single settings of topics while they run.

Supports: set, and delete (back to the default), of the settings in `topic_settings`; append and subtract only of
cleanup.policy, a list that is always "delete"; `validate_only`. The settings of a resource change together or not at all.
To delete settings of a broker changes nothing, for none was set while it runs (kafka-reassign-partitions does so).

Errors of a resource: UNKNOWN_TOPIC_OR_PARTITION, INVALID_CONFIG naming the setting and its value, INVALID_REQUEST (named
twice; the settings of a broker, which are in its file; another kind of resource), INVALID_TOPIC_EXCEPTION (an internal
topic), REQUEST_TIMED_OUT, NOT_CONTROLLER where the controller is away.

Limits: `admin.MAX_CHANGES` resources.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import TypeVar

from fencepost_node.kafka.admin import NamedOnce, check_not_internal, code_and_message, twice
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.describe_configs import BROKER, BROKER_LOGGER, TOPIC
from fencepost_node.kafka.topic_settings import FIXED, SHOWN, our_name, read_value
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages import alter_configs
from fencepost_proto.kafka.messages.alter_configs import AlterConfigsResourceResponse
from fencepost_proto.kafka.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidConfig, InvalidRequest, UnknownTopicOrPartition

TIMEOUT_MS = 30_000  # the request has none

R = TypeVar("R", AlterConfigsResource, alter_configs.AlterConfigsResource)


class Operation(IntEnum):
    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


async def handle(
    context: KafkaContext, request: IncrementalAlterConfigsRequest, version: int
) -> IncrementalAlterConfigsResponse:
    changes = TopicChanges(context.link, context.feed, TIMEOUT_MS, validate_only=request.validate_only)

    async def alter(asked: AlterConfigsResource) -> None:
        if not _deletes_of_broker(asked):
            check_alterable(asked.resource_type, asked.resource_name, [one.name for one in asked.configs], changes)
            await _alter(changes, asked)

    return IncrementalAlterConfigsResponse(responses=await alter_each(request.resources, alter))


async def alter_each(
    resources: Sequence[R], alter: Callable[[R], Awaitable[None]]
) -> list[AlterConfigsResourceResponse]:
    """What came of each; `alter` changes one, and raises FencepostError."""
    named = NamedOnce("resource", ((asked.resource_type, asked.resource_name) for asked in resources))
    results = []
    for asked in resources:
        result = AlterConfigsResourceResponse(resource_type=asked.resource_type, resource_name=asked.resource_name)
        results.append(result)
        try:
            named.check((asked.resource_type, asked.resource_name), asked.resource_name)
            await alter(asked)
        except FencepostError as error:
            result.error_code, result.error_message = code_and_message(error)
    return results


def _deletes_of_broker(asked: AlterConfigsResource) -> bool:
    return asked.resource_type == BROKER and all(one.config_operation == Operation.DELETE for one in asked.configs)


def check_alterable(resource_type: int, resource_name: str, names: list[str], changes: TopicChanges) -> None:
    """Raises FencepostError for anything but a topic that is there and settings that are named once."""
    if resource_type in (BROKER, BROKER_LOGGER):
        raise InvalidRequest(
            f"the settings of broker {resource_name!r} are in its file, and cannot be changed while it runs: "
            f"{', '.join(name[:SHOWN] for name in names[:5])}"
        )
    if resource_type != TOPIC:
        raise InvalidRequest(f"resources of type {resource_type} have no settings here")
    check_not_internal(resource_name)
    if resource_name not in changes.image.topic_ids:
        raise UnknownTopicOrPartition(f"topic {resource_name!r} does not exist")
    if repeated := twice(names):
        raise InvalidRequest(f"topic {resource_name!r}: two changes of {min(repeated)[:SHOWN]!r}")


async def _alter(changes: TopicChanges, asked: AlterConfigsResource) -> None:
    set_to: list[tuple[str, str]] = []
    reset: list[str] = []
    for one in asked.configs:
        if one.config_operation == Operation.DELETE:
            if (ours := our_name(one.name)) is not None:
                reset.append(ours)
        elif (pair := _read(one)) is not None:
            set_to.append(pair)
    if set_to or reset:
        await changes.alter_topic(asked.resource_name, set_to, reset)


def _read(one: AlterableConfig) -> tuple[str, str] | None:
    if one.config_operation == Operation.SET:
        return read_value(one.name, one.value)
    if one.config_operation not in (Operation.APPEND, Operation.SUBTRACT):
        raise InvalidRequest(f"topic setting {one.name[:SHOWN]!r}: operation {one.config_operation} is not known")
    if one.name != "cleanup.policy":
        our_name(one.name)
        raise InvalidConfig(
            f"config value append and subtract are not possible for topic setting {one.name}: it is no list"
        )
    only = FIXED[one.name][0]
    if one.config_operation == Operation.SUBTRACT and one.value == only:
        raise InvalidConfig(f"cleanup.policy without {only!r} is not supported: it is always {only!r}")
    return None if one.config_operation == Operation.SUBTRACT else read_value(one.name, one.value)

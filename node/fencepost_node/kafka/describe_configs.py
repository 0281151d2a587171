"""DescribeConfigs (key 32), versions 1 to 4: the settings of topics and of this broker.

Supports: topics, with Kafka's names (`topic_settings`), where each value comes from, synonyms and documentation; this broker
by its id, with the names of docs/CONFIGURATION.md, all read-only; the defaults of all brokers (an empty name), of which
there are none; and groups, which all have this broker's, whether they exist or not. Keys choose among the settings; one
that does not exist is left out.

Errors of a resource: UNKNOWN_TOPIC_OR_PARTITION, INVALID_TOPIC_EXCEPTION, INVALID_REQUEST (another broker's id; a group
without a name; any other kind of resource).

Limits: `admin.MAX_CHANGES` resources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fencepost_node.kafka.admin import check_changes, code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.topic_settings import ConfigType, Shown, Source, describe
from fencepost_node.requests.broker_settings import BrokerSetting, broker_settings
from fencepost_proto.kafka.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    DescribeConfigsSynonym,
)
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, UnknownTopicOrPartition
from fencepost_proto.protocol.metadata import check_topic_name
from fencepost_proto.runtime.turns import Turns

TOPIC = 2
BROKER = 4
BROKER_LOGGER = 8
GROUP = 32
_SETTINGS_OF_GROUPS = {
    "group_consumer_heartbeat_interval_ms": "consumer.heartbeat.interval.ms",
    "group_consumer_session_timeout_ms": "consumer.session.timeout.ms",
}


async def handle(context: KafkaContext, request: DescribeConfigsRequest, version: int) -> DescribeConfigsResponse:
    response = DescribeConfigsResponse()
    turns = Turns()
    for asked in request.resources:
        result = DescribeConfigsResult(resource_type=asked.resource_type, resource_name=asked.resource_name)
        response.results.append(result)
        try:
            check_changes(len(request.resources))
            shown = _settings(context, asked)
        except FencepostError as error:
            result.error_code, result.error_message = code_and_message(error)
        else:
            result.configs = list(_results(shown, asked.configuration_keys, request))
        await turns.step(1 + len(result.configs))
    return response


def _settings(context: KafkaContext, asked: DescribeConfigsResource) -> list[Shown]:
    name = asked.resource_name
    if asked.resource_type == TOPIC:
        check_topic_name(name)
        image = context.manager.image
        if name not in image.topic_ids:
            raise UnknownTopicOrPartition(f"topic {name!r} does not exist")
        return describe(image.topics[image.topic_ids[name]].config)
    if asked.resource_type in (BROKER, BROKER_LOGGER):
        check_this_broker(context, name)
        named = bool(name) and asked.resource_type == BROKER
        return [_shown(setting) for setting in broker_settings(context.config)] if named else []
    if asked.resource_type == GROUP:
        if not name:
            raise InvalidRequest("settings of a group whose name is empty")
        return [
            _shown(setting)._replace(name=_SETTINGS_OF_GROUPS[setting.name], type=ConfigType.INT)
            for setting in broker_settings(context.config)
            if setting.name in _SETTINGS_OF_GROUPS
        ]
    raise InvalidRequest(f"resources of type {asked.resource_type} have no settings here")


def check_this_broker(context: KafkaContext, name: str) -> None:
    """Raises InvalidRequest for the name of a broker that is not this one; empty: all brokers."""
    if name not in ("", str(context.broker.broker_id)):
        raise InvalidRequest(
            f"unexpected broker id {name[:20]!r}: this is broker {context.broker.broker_id}, which knows its own settings"
        )


def _shown(setting: BrokerSetting) -> Shown:
    source = Source.DEFAULT if setting.is_default else Source.STATIC_BROKER
    default = setting.default if setting.default is not None else ""
    return Shown(setting.name, setting.value, default, source, ConfigType.STRING, read_only=True, doc=setting.doc)


def _results(
    shown: Sequence[Shown], keys: Sequence[str] | None, request: DescribeConfigsRequest
) -> Iterator[DescribeConfigsResourceResult]:
    wanted = None if keys is None else frozenset(keys)
    for setting in shown:
        if wanted is None or setting.name in wanted:
            yield DescribeConfigsResourceResult(
                name=setting.name,
                value=setting.value,
                read_only=setting.read_only,
                config_source=setting.source,
                synonyms=[
                    DescribeConfigsSynonym(name=setting.name, value=value, source=source)
                    for value, source in (setting.synonyms if request.include_synonyms else ())
                ],
                config_type=setting.type,
                documentation=setting.doc if request.include_documentation else None,
            )

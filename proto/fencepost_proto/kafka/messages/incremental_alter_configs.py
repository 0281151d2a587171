"""IncrementalAlterConfigs (key 44): change single settings (KIP-339).

`config_operation`: 0 set, 1 delete (back to the default), 2 append, 3 subtract (lists).
"""

from __future__ import annotations

from fencepost_proto.kafka.messages.alter_configs import AlterConfigsResourceResponse
from fencepost_proto.kafka.schema.fields import array, boolean, int8, int32, message, string


@message
class AlterableConfig:
    name: str = string()
    config_operation: int = int8()
    value: str | None = string(nullable=0)


@message
class AlterConfigsResource:
    resource_type: int = int8()
    resource_name: str = string()
    configs: list[AlterableConfig] = array(AlterableConfig)


@message
class IncrementalAlterConfigsRequest:
    resources: list[AlterConfigsResource] = array(AlterConfigsResource)
    validate_only: bool = boolean()


@message
class IncrementalAlterConfigsResponse:
    throttle_time_ms: int = int32()
    responses: list[AlterConfigsResourceResponse] = array(AlterConfigsResourceResponse)

"""AlterConfigs (key 33): replace a resource's whole set of settings.

What the request does not name goes back to its default; IncrementalAlterConfigs changes single settings (KIP-339).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import array, boolean, int8, int16, int32, message, string


@message
class AlterableConfig:
    name: str = string()
    value: str | None = string(nullable=0)


@message
class AlterConfigsResource:
    resource_type: int = int8()
    resource_name: str = string()
    configs: list[AlterableConfig] = array(AlterableConfig)


@message
class AlterConfigsRequest:
    resources: list[AlterConfigsResource] = array(AlterConfigsResource)
    validate_only: bool = boolean()


@message
class AlterConfigsResourceResponse:
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    resource_type: int = int8()
    resource_name: str = string()


@message
class AlterConfigsResponse:
    throttle_time_ms: int = int32()
    responses: list[AlterConfigsResourceResponse] = array(AlterConfigsResourceResponse)

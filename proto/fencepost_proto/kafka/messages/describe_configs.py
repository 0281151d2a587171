"""DescribeConfigs (key 32): settings of topics and brokers, with where each value comes from.

`configuration_keys` null asks for all. `config_source`: 1 topic, 2 broker (dynamic), 4 broker (static), 5 default.
`config_type` (from version 3): 1 boolean, 2 string, 3 int, 4 short, 5 long, 6 double, 7 list.
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import STRING, array, boolean, int8, int16, int32, message, string


@message
class DescribeConfigsResource:
    resource_type: int = int8()
    resource_name: str = string()
    configuration_keys: list[str] | None = array(STRING, nullable=0)


@message
class DescribeConfigsRequest:
    resources: list[DescribeConfigsResource] = array(DescribeConfigsResource)
    include_synonyms: bool = boolean()
    include_documentation: bool = boolean(since=3)


@message
class DescribeConfigsSynonym:
    """A place that the value could come from, the one that counts first."""

    name: str = string()
    value: str | None = string(nullable=0)
    source: int = int8()


@message
class DescribeConfigsResourceResult:
    name: str = string()
    value: str | None = string(nullable=0)
    read_only: bool = boolean()
    config_source: int = int8(default=-1)
    is_sensitive: bool = boolean()
    synonyms: list[DescribeConfigsSynonym] = array(DescribeConfigsSynonym)
    config_type: int = int8(since=3)
    documentation: str | None = string(since=3, nullable=0, default=None)


@message
class DescribeConfigsResult:
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    resource_type: int = int8()
    resource_name: str = string()
    configs: list[DescribeConfigsResourceResult] = array(DescribeConfigsResourceResult)


@message
class DescribeConfigsResponse:
    throttle_time_ms: int = int32()
    results: list[DescribeConfigsResult] = array(DescribeConfigsResult)

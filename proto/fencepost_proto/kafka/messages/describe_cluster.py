"""DescribeCluster (key 60): brokers and controller (KIP-700).

Version 1 can ask for controllers in place of brokers (`endpoint_type` 2), version 2 for fenced brokers too (KIP-1073).
"""

from __future__ import annotations

from fencepost_proto.kafka.schema.fields import UNKNOWN_OPERATIONS, array, boolean, int8, int16, int32, message, string


@message
class DescribeClusterRequest:
    include_cluster_authorized_operations: bool = boolean()
    endpoint_type: int = int8(since=1, default=1)
    include_fenced_brokers: bool = boolean(since=2)


@message
class DescribeClusterBroker:
    broker_id: int = int32()
    host: str = string()
    port: int = int32()
    rack: str | None = string(nullable=0, default=None)
    is_fenced: bool = boolean(since=2)


@message
class DescribeClusterResponse:
    throttle_time_ms: int = int32()
    error_code: int = int16()
    error_message: str | None = string(nullable=0, default=None)
    endpoint_type: int = int8(since=1, default=1)
    cluster_id: str = string()
    controller_id: int = int32(default=-1)
    brokers: list[DescribeClusterBroker] = array(DescribeClusterBroker)
    cluster_authorized_operations: int = int32(default=UNKNOWN_OPERATIONS)

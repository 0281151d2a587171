"""ApiVersions (key 18), versions 0 to 5: what this broker serves.

A version that is not known is answered in the layout of version 0 with UNSUPPORTED_VERSION and the range of ApiVersions
itself; the client asks again with one of it (KIP-511). The rest of the table is left out then, as in Kafka.

Produce is advertised from version 0, and taken from 3: librdkafka before 2.11.1 compresses nothing where 0 is missing
(KAFKA-18659). Telemetry, SASL and transactions are not served, so not advertised.

From version 5 on a client may say which cluster and node it means (KIP-1242): another one answers REBOOTSTRAP_REQUIRED,
and the client looks for its own from its bootstrap addresses again. That is what a port of a cluster that has gone, taken
by another one, is told by.
"""

from __future__ import annotations

from collections.abc import Iterable

from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.messages.api_versions import (
    ApiVersion,
    ApiVersionsRequest,
    ApiVersionsResponse,
    FinalizedFeatureKey,
    SupportedFeatureKey,
)
from fencepost_proto.protocol.errors import ErrorCode

KEY = 18
_ADVERTISED_FROM = {0: 0}  # below what is taken: Produce
_MAX_NODE_ID = 2**31 - 1  # the Java client gives its connection to a coordinator the id MAX - node id
_FEATURES_FROM = 4  # before it a feature whose least level is 0 confuses clients (KAFKA-17011)
GROUP_VERSION = "group.version"  # 1: groups of KIP-848
_KNOWS_CLUSTER = 5  # the first version that names cluster and node


def unsupported() -> ApiVersionsResponse:
    """For a version that is not known; to be written in the layout of version 0."""
    return ApiVersionsResponse(error_code=ErrorCode.UNSUPPORTED_VERSION, api_keys=_ranges([KEY]))


async def handle(
    context: KafkaContext, request: ApiVersionsRequest, version: int, served: Iterable[int]
) -> ApiVersionsResponse:
    if version >= _KNOWS_CLUSTER and _means_another(context, request):
        return ApiVersionsResponse(error_code=ErrorCode.REBOOTSTRAP_REQUIRED)
    response = ApiVersionsResponse(api_keys=_ranges(served))
    if version >= _FEATURES_FROM:
        response.supported_features = [SupportedFeatureKey(GROUP_VERSION, 0, 1)]
        response.finalized_features = [FinalizedFeatureKey(GROUP_VERSION, 1, 1)]
        response.finalized_features_epoch = context.feed.image.version
    return response


def _means_another(context: KafkaContext, request: ApiVersionsRequest) -> bool:
    cluster_id = context.feed.image.cluster_id
    if request.cluster_id is not None and cluster_id and request.cluster_id != cluster_id:
        return True
    return request.node_id not in (-1, context.broker.broker_id, _MAX_NODE_ID - context.broker.broker_id)


def _ranges(keys: Iterable[int]) -> list[ApiVersion]:
    return [
        ApiVersion(key, _ADVERTISED_FROM.get(key, APIS[key].min_version), APIS[key].max_version) for key in sorted(keys)
    ]

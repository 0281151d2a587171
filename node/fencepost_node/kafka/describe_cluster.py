"""DescribeCluster (key 60), versions 0 to 2: the brokers, and whom to ask as the controller.

Supports: brokers that serve; with `include_fenced_brokers` also those that have registered and are not live. The
controller is one of the brokers, as in Metadata: each relays what is asked of a controller.

Errors: MISMATCHED_ENDPOINT_TYPE where controllers are asked for (KIP-919), which have no Kafka listener here;
UNSUPPORTED_ENDPOINT_TYPE for another type.
"""

from __future__ import annotations

from fencepost_node.kafka.authorized_operations import ON_THE_CLUSTER
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.kafka.metadata_answers import live_brokers
from fencepost_proto.kafka.messages.describe_cluster import (
    DescribeClusterBroker,
    DescribeClusterRequest,
    DescribeClusterResponse,
)
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.transport.streams import split_address

BROKERS, CONTROLLERS = 1, 2
NONE = -1


async def handle(context: KafkaContext, request: DescribeClusterRequest, version: int) -> DescribeClusterResponse:
    if request.endpoint_type != BROKERS:
        controllers = request.endpoint_type == CONTROLLERS
        code = ErrorCode.MISMATCHED_ENDPOINT_TYPE if controllers else ErrorCode.UNSUPPORTED_ENDPOINT_TYPE
        text = f"endpoint type {request.endpoint_type}: this is a broker's listener (1)"
        return DescribeClusterResponse(error_code=code, error_message=text, endpoint_type=request.endpoint_type)
    image = context.feed.image
    live = live_brokers(image)
    response = DescribeClusterResponse(cluster_id=image.cluster_id, controller_id=next(iter(live), NONE))
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = ON_THE_CLUSTER
    for broker in sorted(image.brokers.values(), key=lambda broker: broker.id):
        if broker.id in live or (request.include_fenced_brokers and broker.kafka_address):
            host, port = split_address(broker.kafka_address)
            response.brokers.append(
                DescribeClusterBroker(broker_id=broker.id, host=host, port=port, is_fenced=broker.id not in live)
            )
    return response

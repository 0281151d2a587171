"""FindCoordinator (key 10), versions 0 to 6: which broker coordinates a group.

Supports: groups (key type 0). At its first use the topic of groups and offsets is created, and the answer waits for it
for FIND_WITHIN_S at most. From version 4 a request names many groups, MAX_KEYS at most.

Errors: COORDINATOR_NOT_AVAILABLE where the group's partition has no leader, the leader has no address for Kafka's clients,
or the topic cannot be created (all to be tried again); INVALID_GROUP_ID; INVALID_REQUEST for transactional ids and other
key types: there are no transactions, and a client would ask for ever after an error that may pass.
"""

from __future__ import annotations

from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.kafka.messages.find_coordinator import Coordinator, FindCoordinatorRequest, FindCoordinatorResponse
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.transport.streams import split_address

GROUP = 0
FIRST_WITH_MANY = 4
MAX_KEYS = 1_000
FIND_WITHIN_S = 3.0


async def handle(context: KafkaContext, request: FindCoordinatorRequest, version: int) -> FindCoordinatorResponse:
    if version >= FIRST_WITH_MANY:
        found = [
            await _find(context, request.key_type, key, is_one_too_many=number >= MAX_KEYS)
            for number, key in enumerate(request.coordinator_keys)
        ]
        return FindCoordinatorResponse(coordinators=found)
    one = await _find(context, request.key_type, request.key)
    return FindCoordinatorResponse(
        error_code=one.error_code,
        error_message=one.error_message,
        node_id=one.node_id,
        host=one.host,
        port=one.port,
    )


async def _find(context: KafkaContext, key_type: int, key: str, *, is_one_too_many: bool = False) -> Coordinator:
    try:
        if key_type != GROUP:
            raise errors.InvalidRequest(f"key type {key_type}: groups (0) have a coordinator here, and nothing else")
        if is_one_too_many:
            raise errors.InvalidRequest(f"more than {MAX_KEYS} groups in one request")
        node_id = await context.groups.find(key, FIND_WITHIN_S)
        broker = context.manager.image.brokers.get(node_id)
        if broker is None or not broker.kafka_address or broker.fenced:
            raise errors.CoordinatorNotAvailable(f"broker {node_id} cannot be reached by Kafka's clients")
        host, port = split_address(broker.kafka_address)
        return Coordinator(key=key, node_id=node_id, host=host, port=port)
    except FencepostError as error:
        return Coordinator(key=key, node_id=-1, port=-1, error_code=error.code, error_message=error.message)

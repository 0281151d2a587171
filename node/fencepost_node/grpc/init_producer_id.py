"""InitProducerId: an identity for a producer.

Supports: anonymous (no name): a fresh id with epoch 0, from this broker's block; the id and epoch in the request are not
looked at. Named: relayed to the controller, which bumps the epoch and answers once no leader takes the older ones any more,
or with an error at the request's `timeout_ms` (at most 60 s). Either answer says for how long a batch may be retried.

Errors: COORDINATOR_NOT_AVAILABLE where the controller cannot be reached and this broker's block is used up, or for a
named producer at all; what the controller answers (REQUEST_TIMED_OUT, PRODUCER_FENCED, INVALID_REQUEST, …).
"""

from __future__ import annotations

from fencepost_node.controller_link import ControllerLink
from fencepost_node.producers.producer_ids import ProducerIds
from fencepost_proto.protocol.errors import CoordinatorNotAvailable, NotController
from fencepost_proto.protocol.v1 import broker_pb2

MAX_INT32 = 2**31 - 1


async def init_producer_id(
    ids: ProducerIds, link: ControllerLink, request: broker_pb2.InitProducerIdRequest, max_delivery_timeout_ms: int
) -> broker_pb2.InitProducerIdResponse:
    if request.name:
        try:
            answer = await link.init_producer_id(request)
        except NotController as error:
            raise CoordinatorNotAvailable(f"producer {request.name!r}: {error.message}") from error
    else:
        answer = broker_pb2.InitProducerIdResponse(producer_id=await ids.next_id(), producer_epoch=0)
    answer.max_delivery_timeout_ms = min(max_delivery_timeout_ms, MAX_INT32)
    return answer

"""InitProducerId: an identity for a producer.

Supports: anonymous (no name): a fresh id with epoch 0, from this broker's block; the id and epoch in the request are not
looked at. Named: relayed to the controller, which bumps the epoch and answers once the fence stands on every partition's
leader, or with an error at the request's `timeout_ms` (at most 60 s).

Errors: COORDINATOR_NOT_AVAILABLE where the controller cannot be reached and this broker's block is used up, or for a
named producer at all; what the controller answers (REQUEST_TIMED_OUT, PRODUCER_FENCED, INVALID_REQUEST, …).
"""

from __future__ import annotations

from fencepost_node.controller_link import ControllerLink
from fencepost_node.producer_ids import ProducerIds
from fencepost_proto.errors import CoordinatorNotAvailable, NotController
from fencepost_proto.v1 import broker_pb2


async def init_producer_id(
    ids: ProducerIds, link: ControllerLink, request: broker_pb2.InitProducerIdRequest
) -> broker_pb2.InitProducerIdResponse:
    if not request.name:
        return broker_pb2.InitProducerIdResponse(producer_id=await ids.next_id(), producer_epoch=0)
    try:
        return await link.init_producer_id(request)
    except NotController as error:
        raise CoordinatorNotAvailable(f"producer {request.name!r}: {error.message}") from error

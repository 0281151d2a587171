"""InitProducerId (key 22), versions 0 to 5: an id for an idempotent producer.

Supports: producers without a transactional id. Each request gets a fresh id with epoch 0, out of this broker's block of
ids, also where the request names an id and an epoch (KIP-360): such a producer takes its next epochs by itself.

Errors: COORDINATOR_NOT_AVAILABLE where the block is used up and the controller is away, COORDINATOR_LOAD_IN_PROGRESS where
this connection has asked for too many; both are tried again. TRANSACTIONAL_ID_AUTHORIZATION_FAILED for a transactional id:
there are no transactions yet, and a client takes this one for final.

Limits: `max_new_producers_per_second` (`producers/new_producers.py`).
"""

from __future__ import annotations

import asyncio
import logging

from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.kafka.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from fencepost_proto.protocol.errors import ErrorCode, FencepostError, ThrottlingQuotaExceeded

log = logging.getLogger(__name__)


async def handle(context: KafkaContext, request: InitProducerIdRequest, version: int) -> InitProducerIdResponse:
    if request.transactional_id is not None:
        log.info("transactional id refused peer=%s id=%r", context.peer, request.transactional_id[:100])
        return _refusal(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    try:
        await asyncio.sleep(context.broker.new_producers.take_id(context.peer))
        return InitProducerIdResponse(producer_id=await context.ids.next_id(), producer_epoch=0)
    except ThrottlingQuotaExceeded:
        return _refusal(ErrorCode.COORDINATOR_LOAD_IN_PROGRESS)
    except FencepostError as error:
        return _refusal(error.code)


def _refusal(code: ErrorCode) -> InitProducerIdResponse:
    return InitProducerIdResponse(error_code=code, producer_id=-1, producer_epoch=-1)

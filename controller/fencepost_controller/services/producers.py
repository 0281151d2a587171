"""AllocateProducerIds, and InitProducerId for named producers. The rules are in `decisions/producers.py`.

**AllocateProducerIds** answers a block of ids that is on the medium as handed out. Errors: STALE_BROKER_EPOCH,
BROKER_ID_NOT_REGISTERED.

**InitProducerId** bumps the epoch of a name and answers once nothing older can get into any log any more (G9). Errors:
PRODUCER_FENCED (another instance has taken over, before or while this one waited), INVALID_REQUEST, and
COORDINATOR_NOT_AVAILABLE where the fence does not stand within the request's timeout: some partition has no leader, or a
broker does not answer; the message says which. The epoch is bumped all the same, and the caller may ask again.
"""

from __future__ import annotations

from fencepost_controller.commands import Commands
from fencepost_controller.decisions.producers import AllocateProducerIds, InitProducer
from fencepost_controller.fences import Fences
from fencepost_proto.errors import ProducerFenced
from fencepost_proto.v1 import broker_pb2
from fencepost_proto.v1 import controller_pb2 as pb

MAX_TIMEOUT_MS = 60_000  # of one InitProducerId


async def allocate_producer_ids(
    commands: Commands, request: pb.AllocateProducerIdsRequest
) -> pb.AllocateProducerIdsResponse:
    committed = await commands.submit(AllocateProducerIds(request.broker_id, request.broker_epoch))
    ids = committed.answer
    return pb.AllocateProducerIdsResponse(
        first_producer_id=ids.start,
        count=len(ids),
        metadata_version=committed.version,
        lineage_id=commands.image.lineage.current_id,
    )


async def init_producer_id(
    commands: Commands, fences: Fences, request: broker_pb2.InitProducerIdRequest
) -> broker_pb2.InitProducerIdResponse:
    committed = await commands.submit(InitProducer(request.name, request.producer_id, request.producer_epoch))
    timeout_ms = min(max(request.timeout_ms, 0), MAX_TIMEOUT_MS)
    await fences.wait(committed.version, timeout_ms / 1000)
    producer = committed.answer
    now = commands.image.producers[request.name]
    if (now.producer_id, now.epoch) != (producer.producer_id, producer.epoch):
        raise ProducerFenced(
            f"producer {request.name!r}: another instance has taken over (id {now.producer_id} epoch {now.epoch}) "
            f"while id {producer.producer_id} epoch {producer.epoch} waited for its fence"
        )
    return broker_pb2.InitProducerIdResponse(producer_id=producer.producer_id, producer_epoch=producer.epoch)

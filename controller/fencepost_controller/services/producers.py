"""AllocateProducerIds, InitProducerId for named producers, and what operators ask about names.

The rules are in `decisions/producers.py`.

**AllocateProducerIds** answers a block of ids that is on disk as handed out. Errors: STALE_BROKER_EPOCH,
BROKER_ID_NOT_REGISTERED.

**InitProducerId** bumps the epoch of a name and answers once no leader lets anything older in any more (G9). Errors:
PRODUCER_FENCED (another instance has taken over, before or while this one waited), INVALID_REQUEST, and
COORDINATOR_NOT_AVAILABLE where the fence does not stand within the request's timeout: a broker does not answer and is not
declared dead yet; the message says which. The epoch is bumped nevertheless, and the caller may ask again. With `keep_alive`
nothing is bumped: it says whether the id and epoch are still the current ones, and counts as a use of the name.

**ListProducerNames** answers a page, by name. **RemoveProducerName** forgets one; its holder is fenced.
"""

from __future__ import annotations

import heapq

from fencepost_controller.commands import Commands
from fencepost_controller.config import ControllerConfig
from fencepost_controller.decisions.producers import (
    AllocateProducerIds,
    InitProducer,
    KeepName,
    RemoveName,
    predecessor,
)
from fencepost_controller.fences import Fences
from fencepost_proto.protocol.errors import ProducerFenced
from fencepost_proto.protocol.metadata import NamedProducer
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.protocol.v1 import controller_pb2 as pb

MAX_TIMEOUT_MS = 60_000  # of one InitProducerId
MAX_NAMES_IN_A_PAGE = 1_000


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
    commands: Commands, fences: Fences, config: ControllerConfig, request: broker_pb2.InitProducerIdRequest
) -> broker_pb2.InitProducerIdResponse:
    held = (request.name, request.producer_id, request.producer_epoch)
    if request.keep_alive:
        return _identity((await commands.submit(KeepName(*held))).answer, config)
    committed = await commands.submit(InitProducer(*held, config.max_producer_names))
    timeout_ms = min(max(request.timeout_ms, 0), MAX_TIMEOUT_MS)
    await fences.wait(committed.version, timeout_ms / 1000)
    producer = committed.answer
    now = commands.image.producers.get(request.name)
    if now is None:
        raise ProducerFenced(f"producer {request.name!r}: the name was removed while it waited for its fence")
    if (now.producer_id, now.epoch) != (producer.producer_id, producer.epoch):
        raise ProducerFenced(
            f"producer {request.name!r}: another instance has taken over (id {now.producer_id} epoch {now.epoch}) "
            f"while id {producer.producer_id} epoch {producer.epoch} waited for its fence"
        )
    return _identity(producer, config)


def _identity(producer: NamedProducer, config: ControllerConfig) -> broker_pb2.InitProducerIdResponse:
    retired_id, forgotten = predecessor(producer)
    return broker_pb2.InitProducerIdResponse(
        producer_id=producer.producer_id,
        producer_epoch=producer.epoch,
        predecessor_expired=forgotten,
        retired_producer_id=retired_id,
        name_expiration_ms=config.producer_name_expiration_ms,
    )


async def list_producer_names(commands: Commands, request: pb.ListProducerNamesRequest) -> pb.ListProducerNamesResponse:
    await commands.confirm()
    image = commands.image
    limit = min(request.max_names, MAX_NAMES_IN_A_PAGE) if request.max_names > 0 else MAX_NAMES_IN_A_PAGE
    behind = (name for names in (image.producers, image.expired_producers) for name in names if name > request.after)
    page = heapq.nsmallest(limit + 1, behind)
    producers = [image.producers.get(name) or image.expired_producers[name] for name in page[:limit]]
    return pb.ListProducerNamesResponse(
        names=[
            pb.ProducerName(
                name=producer.name,
                producer_id=producer.producer_id,
                epoch=producer.epoch,
                idle_ms=image.next_ids.names_clock_ms - producer.used_at_ms,
                expired=producer.expired,
            )
            for producer in producers
        ],
        more=len(page) > limit,
    )


async def remove_producer_name(
    commands: Commands, request: pb.RemoveProducerNameRequest
) -> pb.RemoveProducerNameResponse:
    return pb.RemoveProducerNameResponse(version=(await commands.submit(RemoveName(request.name))).version)

"""Which function answers which API of Kafka.

A handler has one shape: the connection's context, the request, its version; it returns the response, and puts errors
where its API has them. What it raises ends the connection. Two APIs have shapes of their own, and `connection` calls
them: Produce is answered by a callback, and Fetch writes its answer while it holds the memory for it. Whatever is here
is advertised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from fencepost_node.kafka import api_versions, init_producer_id, list_offsets, metadata, offset_for_leader_epoch
from fencepost_node.kafka.context import KafkaContext
from fencepost_proto.kafka.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse

PRODUCE = 0
FETCH = 1

Handler = Callable[[KafkaContext, object, int], Awaitable[object]]
R = TypeVar("R")


def _taking(handle: Callable[[KafkaContext, R, int], Awaitable[object]]) -> Handler:
    """The codec makes requests of an API's own class, so a handler gets no other."""
    return cast(Handler, handle)


async def _api_versions(context: KafkaContext, request: ApiVersionsRequest, version: int) -> ApiVersionsResponse:
    return await api_versions.handle(context, request, version, SERVED)


HANDLERS: dict[int, Handler] = {
    2: _taking(list_offsets.handle),
    3: _taking(metadata.handle),
    18: _taking(_api_versions),
    22: _taking(init_producer_id.handle),
    23: _taking(offset_for_leader_epoch.handle),
}
SERVED = (PRODUCE, FETCH, *HANDLERS)

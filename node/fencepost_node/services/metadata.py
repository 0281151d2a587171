"""Metadata and WatchMetadata: where the brokers, topics and partition leaders are.

Supports: all topics or those named; names that do not exist come back in `unknown_topics`. A watch sends one image, then
every change as this broker applies it, and when nothing changes an empty change about once a second.

Behaviour: answers from what this broker has applied; it may be behind the controller, and says at which version it is.
Named producers and producer-id blocks are never shown.

Errors: UNAVAILABLE (gRPC) from Metadata while this broker has had no metadata since its start; a watch waits.
Limits: a watcher with 64 changes unsent gets a fresh image instead of them.
"""

from __future__ import annotations

from typing import Protocol

from fencepost_node.metadata_feed import MetadataFeed, client_image
from fencepost_proto.v1 import broker_pb2, common_pb2

FIRST_IMAGE_WAIT_S = 1.0


async def metadata(
    feed: MetadataFeed, broker_id: int, request: broker_pb2.MetadataRequest
) -> broker_pb2.MetadataResponse | None:
    """None: there is no metadata yet."""
    if not await feed.wait_known(FIRST_IMAGE_WAIT_S):
        return None
    image = feed.image
    return broker_pb2.MetadataResponse(
        image=client_image(image, frozenset(request.topic_names)),
        unknown_topics=[name for name in request.topic_names if name not in image.topic_ids],
        answering_broker_id=broker_id,
    )


class WatchContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: common_pb2.MetadataDelta) -> None: ...


async def watch_metadata(feed: MetadataFeed, context: WatchContext) -> None:
    """Ends when the broker shuts down."""
    if not await feed.wait_known():
        return
    with feed.watch() as watcher:
        while (delta := await watcher.next()) is not None:
            await context.write(delta)

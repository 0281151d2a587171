"""Metadata and WatchMetadata: where the brokers, topics and partition leaders are.

Supports: all topics or those named; names that do not exist come back in `unknown_topics`. A watch sends one image, then
every change as this broker applies it, and when nothing changes an empty change about once a second.

Behaviour: answers from what this broker has applied; it may be behind the controller, and says at which version it is.
Named producers and producer-id blocks are never shown.

Errors: UNAVAILABLE (gRPC) from Metadata while this broker has had no metadata since its start; a watch waits.
Limits: an image waits for what `client_limits.AnswerBudget` gives its connection; a watcher with 64 changes unsent gets a
fresh image instead of them.
"""

from __future__ import annotations

from typing import Protocol

from fencepost_node.client_limits import AnswerBudget
from fencepost_node.metadata_feed import MetadataFeed, client_image
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2

FIRST_IMAGE_WAIT_S = 1.0
ENTITY_BYTES = 100  # about as much as an entity takes
SMALL_BYTES = 64 * 1024  # a change of this size waits for no memory


async def metadata(
    feed: MetadataFeed, broker_id: int, request: broker_pb2.MetadataRequest
) -> broker_pb2.MetadataResponse | None:
    """None: there is no metadata yet."""
    if not await feed.wait_known(FIRST_IMAGE_WAIT_S):
        return None
    image = feed.image
    named = dict.fromkeys(request.topic_names)
    return broker_pb2.MetadataResponse(
        image=client_image(image, named) if named else feed.client_image(),
        unknown_topics=[name for name in request.topic_names if name not in image.topic_ids],
        answering_broker_id=broker_id,
    )


class WatchContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: common_pb2.MetadataDelta) -> None: ...

    def peer(self) -> str: ...


async def watch_metadata(feed: MetadataFeed, context: WatchContext, answers: AnswerBudget) -> None:
    """Ends when the broker shuts down."""
    if not await feed.wait_known():
        return
    peer = context.peer()
    with feed.watch() as watcher:
        while (delta := await watcher.next()) is not None:
            size = len(delta.changed) * ENTITY_BYTES
            if size > SMALL_BYTES:
                await answers.wait(peer, size)
            answers.take(peer, size)
            try:
                await context.write(delta)
            finally:
                answers.release(peer, size)

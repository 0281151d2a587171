"""Create topics that a client has asked for and that do not exist, with the broker's default settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fencepost_node.config import BrokerConfig
from fencepost_node.controller_link import ControllerLink
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import controller_pb2

MOST_REPLICAS = 3  # of a topic whose replication factor is left open


async def create_missing(
    names: Sequence[str], link: ControllerLink, feed: MetadataFeed, config: BrokerConfig, within_s: float
) -> dict[str, ErrorCode]:
    """Create these topics, and wait until each has a leader that this broker knows of.

    Returns the errors of those that were refused; LEADER_NOT_AVAILABLE of one that is not there yet.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    refused: dict[str, ErrorCode] = {}
    for name in names:
        try:
            await _create(name, link, feed.image, config, max(0.1, deadline - loop.time()))
        except FencepostError as error:
            if error.code != ErrorCode.TOPIC_ALREADY_EXISTS:
                refused[name] = ErrorCode.LEADER_NOT_AVAILABLE if error.retriable else error.code
    waited = [name for name in names if name not in refused]

    await feed.wait_until(lambda image: all(map(image.is_led, waited)), max(0.0, deadline - loop.time()))
    late = [name for name in waited if not feed.image.is_led(name)]
    return refused | dict.fromkeys(late, ErrorCode.LEADER_NOT_AVAILABLE)


async def _create(
    name: str, link: ControllerLink, image: MetadataImage, config: BrokerConfig, timeout_s: float
) -> None:
    """Raises FencepostError."""
    request = controller_pb2.CreateTopicRequest(
        name=name,
        partitions=config.default_partitions,
        replication_factor=default_replication_factor(config, image),
    )
    await link.create_topic(request, timeout_s)


def default_replication_factor(config: BrokerConfig, image: MetadataImage) -> int:
    """Of a topic for which none is named."""
    live = sum(not broker.fenced for broker in image.brokers.values())
    return config.default_replication_factor or max(1, min(MOST_REPLICAS, live))

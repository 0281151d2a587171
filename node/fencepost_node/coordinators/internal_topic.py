"""Create an internal topic, at its first use, by whichever broker is asked.

Its log is kept short by ordinary retention: what coordinators know is in each snapshot, and a log starts at one. The
replication factor is `offsets_topic_replication_factor`, or as many as there are brokers: those that are down count,
or a topic that is first used while one is down would have a replica too few for as long as it exists.
"""

from __future__ import annotations

import asyncio
import logging

from fencepost_node.config import BrokerConfig
from fencepost_node.controller_link import ControllerLink
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import TopicConfig, config_to_proto
from fencepost_proto.protocol.v1 import controller_pb2

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
RETENTION_BYTES = 2 * SEGMENT_BYTES
MAX_BATCH_BYTES = 8 * 1024 * 1024 - 64 * 1024  # the most that a topic may have


def internal_topic_config(replication_factor: int) -> TopicConfig:
    """Two replicas in sync are needed where there are three: a commit survives one of them."""
    return TopicConfig(
        min_insync_replicas=2 if replication_factor > 2 else 1,
        retention_ms=-1,
        retention_bytes=RETENTION_BYTES,
        segment_bytes=SEGMENT_BYTES,
        max_message_bytes=MAX_BATCH_BYTES,
    )


async def create_internal_topic(
    name: str, link: ControllerLink, feed: MetadataFeed, config: BrokerConfig, timeout_s: float
) -> None:
    """Return once this broker knows the topic and its leaders, or the time is up. Raises CoordinatorNotAvailable."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    brokers = max(1, len(feed.image.brokers))
    factor = min(config.offsets_topic_replication_factor, brokers)
    request = controller_pb2.CreateTopicRequest(
        name=name,
        partitions=config.offsets_topic_partitions,
        replication_factor=factor,
        config=config_to_proto(internal_topic_config(factor)),
    )
    try:
        await link.create_topic(request, timeout_s)
        log.info(
            "internal topic created name=%s partitions=%d factor=%d", name, config.offsets_topic_partitions, factor
        )
    except errors.TopicAlreadyExists:
        pass
    except errors.FencepostError as error:
        raise errors.CoordinatorNotAvailable(f"{name} cannot be created: {error.message}") from error
    await feed.wait_until(lambda image: image.is_led(name), max(0.0, deadline - loop.time()))

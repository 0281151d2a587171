"""What the brokers that run say of the topic, for nemeses that have to know who leads and who is in sync."""

from __future__ import annotations

from collections.abc import Callable

from fencepost_proto.protocol.metadata import MetadataImage, Partition
from fencepost_testing.chaos.faults import SkippedFault
from fencepost_testing.cluster_metadata import newest_image
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until

ASK_TIMEOUT_S = 0.5
_POLL_S = 0.1


class View:
    """Of one topic."""

    def __init__(self, cluster: AsyncLocalCluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic

    async def image(self) -> MetadataImage | None:
        """The newest that a broker has. None: no broker answers."""
        asked = [
            self._cluster.member(broker).address for broker in self._cluster.broker_ids if self._cluster.running(broker)
        ]
        return await newest_image(asked, timeout_s=ASK_TIMEOUT_S)

    async def partition(self, index: int) -> Partition | None:
        """None: no broker answers, or none knows the topic."""
        image = await self.image()
        if image is None:
            return None
        topic = next((topic for topic in image.topics.values() if topic.name == self._topic), None)
        return image.partitions.get((topic.topic_id, index)) if topic is not None else None

    async def until(self, index: int, condition: Callable[[Partition], bool], timeout_s: float, what: str) -> Partition:
        """The partition, once the condition holds. Raises Skipped where it does not in time."""
        return await until(
            lambda: self.partition(index),
            f"{what} of partition {index}",
            timeout_s,
            holds=condition,
            poll_s=_POLL_S,
            error=SkippedFault,
        )

    async def all_in_sync(self, index: int, timeout_s: float) -> Partition:
        """The partition, once it has a leader, every replica is in sync, and none is on its way. Raises Skipped."""

        def holds(partition: Partition) -> bool:
            moves = partition.adding or partition.removing
            return partition.leader >= 0 and not moves and set(partition.isr) == set(partition.replicas)

        return await self.until(index, holds, timeout_s, "all replicas in sync")

"""How far the fence of named producers stands (G9).

InitProducerId may answer at metadata version v once no batch of an older epoch can get into a log any more, neither at
the present leaders nor at later ones. Two things make that so:

- **Every partition has a leader, and all its in-sync members have applied v.** The leader, because it is the one who
  refuses. The other members too, because of one that led a moment ago and does not know yet that it no longer does: it
  would go on accepting the old epoch into its own log, and, still in the in-sync set, could be elected with that log.
- **Whoever is not in the in-sync set** has to follow the leader of the current epoch, which cuts what it has beyond,
  before it can join; and a broker that becomes leader later applies the metadata up to its leadership first, v included.

A partition without a leader holds everything back: its last in-sync member may be cut off from here and still be reached by
old producers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fencepost_proto.metadata import NO_LEADER, MetadataImage, Partition


class Standing(NamedTuple):
    """The newest version whose fence stands everywhere, and the partition that keeps it from being newer."""

    version: int
    blocking: Partition | None  # None: nothing does
    broker_id: int  # which of its in-sync members has not applied more; NO_LEADER: the partition has no leader

    def why_not(self, image: MetadataImage) -> str:
        """For the caller who waits in vain."""
        if self.blocking is None:
            return ""
        topic = image.topics.get(self.blocking.topic_id)
        name = f"{topic.name if topic else self.blocking.topic_id}-{self.blocking.index}"
        if self.broker_id == NO_LEADER:
            return f"partition {name} has no leader (in sync: {list(self.blocking.isr)})"
        return f"broker {self.broker_id}, in sync for partition {name}, has not applied the new epoch yet"


def standing(image: MetadataImage, applied: Mapping[int, int]) -> Standing:
    """`applied`: metadata version applied by each broker that has a live session under its current broker epoch."""
    found = Standing(image.version, None, NO_LEADER)
    for partition in image.partitions.values():
        if partition.leader == NO_LEADER:
            return Standing(-1, partition, NO_LEADER)
        for broker_id in partition.isr:
            version = applied.get(broker_id, -1)
            if version < found.version:
                found = Standing(version, partition, broker_id)
    return found

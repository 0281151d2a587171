"""What the commits have changed about partitions, counted for the metrics since the controller's start."""

from __future__ import annotations

from dataclasses import dataclass, field

from fencepost_proto.protocol.metadata import NO_LEADER, Changes, MetadataImage, Partition


@dataclass(slots=True, eq=False)
class ElectionCounts:
    elections: int = 0  # a partition has another leader than before
    unclean_elections: int = 0  # of those: the new one was neither in sync nor eligible
    eligible_elections: int = 0  # of those: the new one was not in sync, and eligible
    lost_leaders: int = 0  # a partition has none any more
    isr_shrinks: int = 0
    isr_expands: int = 0
    _before: MetadataImage = field(default_factory=MetadataImage)

    def start(self, image: MetadataImage) -> None:
        """What is in there was committed before this process began."""
        self._before = image

    def add(self, image: MetadataImage, changes: Changes) -> None:
        """Count what `changes`, which led to `image`, are to partitions. A new partition's first leader is no election."""
        before, self._before = self._before, image
        for new in changes.values():
            if isinstance(new, Partition) and (old := before.partitions.get(new.id)) is not None:
                self._add(old, new)

    def _add(self, old: Partition, new: Partition) -> None:
        if new.leader != old.leader:
            if new.leader == NO_LEADER:
                self.lost_leaders += 1
            else:
                self.elections += 1
                self.unclean_elections += new.leader not in old.isr and new.leader not in old.eligible
                self.eligible_elections += new.leader in old.eligible
        left = any(member not in new.isr for member in old.isr)
        joined = any(member not in old.isr for member in new.isr)
        self.isr_shrinks += left
        self.isr_expands += joined

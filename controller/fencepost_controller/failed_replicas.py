"""The replicas that registered brokers cannot serve now, as their heartbeats report them.

They are no metadata and are not stored: each broker repeats its own in every heartbeat, under its broker epoch. A new
incarnation begins without any.
"""

from __future__ import annotations

from fencepost_controller.decisions.draft import FailedByBroker
from fencepost_proto.protocol.metadata import PartitionKey

NONE: frozenset[PartitionKey] = frozenset()


class FailedReplicas:
    """Written by the sessions, read by the decisions."""

    def __init__(self) -> None:
        self._reported: dict[tuple[int, int], frozenset[PartitionKey]] = {}

    def has_reported(self, broker_id: int, broker_epoch: int) -> bool:
        """Whether this incarnation has ever reported one, though it may report none now."""
        return (broker_id, broker_epoch) in self._reported

    def of(self, broker_id: int, broker_epoch: int) -> frozenset[PartitionKey]:
        return self._reported.get((broker_id, broker_epoch), NONE)

    @property
    def count(self) -> int:
        """Replicas that are failed now."""
        return sum(map(len, self._reported.values()))

    def report(self, broker_id: int, broker_epoch: int, failed: frozenset[PartitionKey]) -> None:
        """All that are failed now; what is named no more serves again."""
        self._reported[broker_id, broker_epoch] = failed

    def keep_only(self, broker_id: int, broker_epoch: int) -> None:
        """Forget what other incarnations of this broker have reported."""
        for who in [who for who in self._reported if who[0] == broker_id and who[1] != broker_epoch]:
            del self._reported[who]

    def snapshot(self) -> FailedByBroker:
        """As it is now, for a decision in another thread."""
        return dict(self._reported)

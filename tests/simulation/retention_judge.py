"""Whether what is gone from the start of a log was to go: by retention, by an operator, or with the leader's log.

Everything else takes a log's start as it is. So a log that lost its oldest records by mistake would look like one of which
retention has taken them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from fencepost_node.log.config import NO_LIMIT
from fencepost_proto.protocol.metadata import Partition, TopicConfig
from tests.simulation.logview import LogView


@dataclass(slots=True)
class Starts:
    """Of the logs of one partition."""

    looked: bool = False
    justified: int = 0  # so far up a log may begin
    deleted: int = 0  # below this an operator has deleted
    retention_bytes: int = NO_LIMIT  # the smallest that there was: a broker may not have heard of the newest
    retention_ms: int = NO_LIMIT  # likewise
    ends: dict[int, int] = field(default_factory=dict)  # by broker

    def settings(self, partition: Partition, config: TopicConfig) -> None:
        """These hold now."""
        self.deleted = max(self.deleted, partition.deleted_end_offset)
        self.retention_bytes = _smaller(self.retention_bytes, config.retention_bytes)
        self.retention_ms = _smaller(self.retention_ms, config.retention_ms)

    def look(
        self,
        views: Mapping[int, LogView],
        damaged: Set[int],
        age_s: Callable[[int, int], float],
        fail: Callable[[str], None],
    ) -> int:
        """At the logs of these brokers. How much `damaged` ones hold no one can tell. `age_s`: how long ago the youngest
        batch between two offsets was first stored. `fail` is told what is wrong.

        Returns how many have begun later since the last look.
        """
        moved = {broker_id: view for broker_id, view in views.items() if view.start_offset > self.justified}
        if not self.looked:  # a topic that was deleted may be found again, with logs as they are
            self.looked, self.justified = True, max((view.start_offset for view in moved.values()), default=0)
            return 0
        for broker_id, view in moved.items():
            age_ms = age_s(self.justified, view.start_offset) * 1000
            expired = self.retention_ms != NO_LIMIT and age_ms >= self.retention_ms
            surplus = broker_id in damaged or self._is_surplus(broker_id, view)
            if expired or surplus or view.start_offset <= self.deleted:
                self.justified = max(self.justified, view.start_offset)
        for broker_id, view in moved.items():
            if view.start_offset > self.justified:
                keeps = (
                    f"retention keeps {self.retention_bytes} bytes, {self.retention_ms} ms; deleted is {self.deleted}"
                )
                fail(
                    f"broker {broker_id} begins at {view.start_offset}, with {_bytes(view)} bytes; none had to begin above "
                    f"{self.justified}: {keeps}"
                )
        self.ends = {broker_id: view.end_offset for broker_id, view in views.items()}
        return len(moved)

    def _is_surplus(self, broker_id: int, view: LogView) -> bool:
        """What stays is enough, as far as one can tell: its end may have been cut after that."""
        if self.retention_bytes == NO_LIMIT:
            return False
        return _bytes(view) >= self.retention_bytes or view.end_offset < self.ends.get(broker_id, 0)


def _smaller(one: int, other: int) -> int:
    return max(one, other) if NO_LIMIT in (one, other) else min(one, other)


def _bytes(view: LogView) -> int:
    return sum(batch.size_bytes for batch in view.batches)

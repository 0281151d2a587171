"""Log lines about records that are not sent, or not acknowledged, for long; and about batches that fail.

They say why, as far as this client knows, and are few: brokers that are down hold up thousands of partitions at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fencepost.cluster import ClusterClient
from fencepost.producing.accumulator import NOT_WAITING, WARN_AFTER_S, PartitionQueue, RecordBatch
from fencepost.producing.batch import Failed
from fencepost.producing.config import ProducerConfig
from fencepost.producing.connection import BrokerConnection
from fencepost_proto.protocol.metadata import NO_LEADER

log = logging.getLogger(__name__)

MAX_SHOWN = 3  # partitions by name in one line
QUIET_S = 10.0  # after one failed batch is logged, others of its partition are only counted for so long


class DeliveryWarnings:
    """Of one producer. `connections`: the sender's, by address."""

    def __init__(
        self, cluster: ClusterClient, config: ProducerConfig, connections: Mapping[str, BrokerConnection]
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._connections = connections
        self._waiting: list[PartitionQueue] = []  # whose records have waited for long, not logged yet

    @property
    def any_due(self) -> bool:
        """`log_waiting` has something to log."""
        return bool(self._waiting)

    def is_refused(self, queue: PartitionQueue, now: float) -> bool:
        """Its leader is reachable, but has refused its oldest batch for WARN_AFTER_S."""
        oldest = queue.sequencer.oldest
        if oldest is None or oldest.last_error is None:
            return False
        return now >= oldest.deadline - self._config.delivery_timeout_ms / 1000 + WARN_AFTER_S

    def watch(self, queue: PartitionQueue, now: float, up: bool) -> None:
        """Notice records that are not sent; `log_waiting` logs them once, with the reason."""
        refused = up and self.is_refused(queue, now)
        if (up and not refused) or not queue.holds_records:
            if queue.is_warned:
                log.warning("records go out again partition=%s", queue.name)
            queue.waits_since, queue.is_warned = NOT_WAITING, False
            return
        if queue.waits_since == NOT_WAITING:
            queue.waits_since = now
        if not queue.is_warned and (refused or now >= queue.waits_since + WARN_AFTER_S):
            queue.is_warned = True
            self._waiting.append(queue)

    def log_waiting(self) -> None:
        """Log in one line all partitions whose records have begun to wait: when brokers are down they are many."""
        waiting, self._waiting = self._waiting, []
        shown = "; ".join(f"{queue.name}: {self.whereabouts(queue)}" for queue in waiting[:MAX_SHOWN])
        more = f"; and {len(waiting) - MAX_SHOWN} more" if len(waiting) > MAX_SHOWN else ""
        log.warning(
            "records wait, and fail %d s after their send partitions=%d reason=%s%s",
            self._config.delivery_timeout_ms // 1000, len(waiting), shown, more,
        )  # fmt: skip

    def whereabouts(self, queue: PartitionQueue) -> str:
        """Why a partition's records are not acknowledged, for messages."""
        partition = self._cluster.image.partitions.get(queue.key)
        if partition is not None and partition.leader == NO_LEADER and partition.leader_epoch >= queue.leader_epoch:
            electable = (*partition.isr, *partition.eligible)
            if not electable:
                return "it has no leader: no replica is in sync, and an operator must elect one (fencepost topic elect)"
            members = ", ".join(map(str, electable))
            return f"it has no leader: of the replicas that have all records (brokers {members}) none is live"
        if not queue.address:
            return "it has no leader"
        connection = self._connections.get(queue.address)
        oldest = queue.sequencer.oldest
        if connection is None or not connection.up:
            why = f": {connection.reason}" if connection is not None and connection.reason else ""
            return f"its leader at {queue.address} (epoch {queue.leader_epoch}) cannot be reached{why}"
        refusal = f" and answers {oldest.last_error}" if oldest is not None and oldest.last_error is not None else ""
        return f"its leader is at {queue.address} (epoch {queue.leader_epoch}){refusal}"

    def log_failed(self, batch: RecordBatch) -> None:
        """Log a failed batch; then for QUIET_S no other one of its partition, since thousands may fail together."""
        queue, now = batch.queue, asyncio.get_running_loop().time()
        if now < queue.quiet_until:
            queue.failed_unlogged += 1
            return
        error = batch.outcome.error if isinstance(batch.outcome, Failed) else None
        untold = f" (and {queue.failed_unlogged} batches before it)" if queue.failed_unlogged else ""
        queue.quiet_until, queue.failed_unlogged = now + QUIET_S, 0
        log.warning(
            "batch failed partition=%s records=%d may_have_been_appended=%s error=%s%s",
            queue.name, batch.record_count, error and error.may_have_been_appended, error, untold,
        )  # fmt: skip

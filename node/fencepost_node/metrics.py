"""What a broker tells Prometheus: docs/OPERATIONS.md says what to watch of it.

Counts are plain numbers on the objects that do the work, and gauges are read from the state itself, both at a scrape, in
turns. Metrics by partition are those of the `metrics_max_partitions` oldest replicas: the rest are in the totals, and
`fencepost_replicas_without_metrics` says how many they are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from fencepost_node.client_limits import ClientLimits
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.replica import Replica
from fencepost_proto.runtime.metrics.families import (
    Family,
    add_counts,
    counter,
    gauge,
    histogram,
    labels_text,
    requests,
)
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.latencies import CallCounts, Latencies, RequestCounts

WEIGHT_OF_A_REPLICA = 2  # of a turn's steps

_BY_PARTITION = (
    ("fencepost_partition_log_start_offset", "First offset that can be read."),
    ("fencepost_partition_log_end_offset", "Offset of the next record of this replica's log."),
    ("fencepost_partition_high_watermark", "Records below this offset are committed, as far as this replica knows."),
    ("fencepost_partition_size_bytes", "Of this replica's segments."),
    ("fencepost_partition_leader", "1 on the broker that leads the partition, else 0."),
    ("fencepost_partition_leader_epoch", "As the controller last said."),
    ("fencepost_partition_producers", "Producers whose last batches this replica remembers."),
    ("fencepost_partition_in_sync_replicas", "As the controller last said."),
    ("fencepost_partition_under_replicated", "On its leader: 1 while not every replica is in sync, else 0."),
    ("fencepost_partition_lag_records", "On its leader: by how many records the slowest replica is behind."),
)


@dataclass(slots=True)
class _Sums:
    """Over all replicas."""

    replicas: int = 0
    led: int = 0
    under_replicated: int = 0
    producers: int = 0
    size_bytes: int = 0
    without_metrics: int = 0
    lag_records: Counter[int] = field(default_factory=Counter)  # by follower: of the partition where it is most behind
    lag_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BrokerMetrics:
    """Reads what the parts of one broker have counted."""

    manager: ReplicaManager
    limits: ClientLimits
    answered: CallCounts  # unary calls
    sync_times: Latencies
    kafka_connections: Callable[[], int]
    has_session: Callable[[], bool]

    async def families(self) -> AsyncIterator[Family]:
        """All of them, read in turns."""
        by_partition = [gauge(name, help_text) for name, help_text in _BY_PARTITION]
        sums = await self._read_replicas(by_partition)
        for family in (*self._counted(), *self._held(sums), *by_partition):
            yield family

    async def _read_replicas(self, by_partition: Sequence[Family]) -> _Sums:
        manager, sums, turns, now = self.manager, _Sums(), Turns(), asyncio.get_running_loop().time()
        replicas, shown = list(manager.replicas.values()), manager.config.metrics_max_partitions
        for number, replica in enumerate(replicas):
            lag = _add_replica(sums, replica, now)
            if number < shown:
                _add_samples(by_partition, replica, lag)
            await turns.step(WEIGHT_OF_A_REPLICA)
        sums.without_metrics = max(0, len(replicas) - shown)
        return sums

    def _counted(self) -> list[Family]:
        counts = self.manager.local.counts
        refused = counter("fencepost_refused_batches_total", "Batches of clients that were refused: not appended.")
        for error, count in sorted(counts.refused_batches.items()):
            refused.add(count, error=error)
        unsure = counter(
            "fencepost_unsure_batches_total", "Batches of clients that were appended, and not committed in time."
        )
        for error, count in sorted(counts.unsure_batches.items()):
            unsure.add(count, error=error)
        return [
            counter("fencepost_appended_batches_total", "Batches appended as a leader.", counts.appended_batches),
            counter("fencepost_appended_bytes_total", "Of those batches.", counts.appended_bytes),
            counter(
                "fencepost_repeated_batches_total",
                "Batches recognised as repeats of one that is in the log, and not appended.",
                counts.repeated_batches,
            ),
            refused,
            unsure,
            counter("fencepost_followed_bytes_total", "Stored as a follower.", counts.followed_bytes),
            counter("fencepost_leaderships_total", "Leaderships that this broker has begun.", counts.leaderships),
            counter("fencepost_followings_total", "Times that this broker began to follow.", counts.followings),
            counter("fencepost_replica_failures_total", "Times that a replica has failed.", counts.failed_replicas),
            *requests([*self.answered.by_protocol(), *counts.calls.by_protocol(), ("kafka", counts.kafka)]),
            *self._group_requests(counts.groups),
            histogram("fencepost_fsync_duration_seconds", "Of the data of a segment.", self.sync_times),
        ]

    @staticmethod
    def _group_requests(counts: RequestCounts) -> list[Family]:
        """What the coordinators of groups that are here were asked, whichever protocol it came by."""
        durations = histogram(
            "fencepost_group_request_duration_seconds",
            "Until the coordinator's answer, waits for a rebalance included.",
        )
        refused = counter("fencepost_refused_group_requests_total", "Answered by the coordinator with an error.")
        add_counts(durations, refused, counts, "request")
        return [durations, refused]

    def _held(self, sums: _Sums) -> list[Family]:
        manager = self.manager
        lag_records = gauge(
            "fencepost_replication_lag_records", "By how many a follower is behind, in the partition where it is most."
        )
        lag_seconds = gauge(
            "fencepost_replication_lag_seconds", "For how long a follower has not caught up, in the worst partition."
        )
        for follower in sorted(manager.image.brokers):
            if follower != manager.broker_id:
                lag_records.add(sums.lag_records[follower], follower=follower)
                lag_seconds.add(sums.lag_s.get(follower, 0.0), follower=follower)
        streams = gauge("fencepost_client_streams", "Streams of Fencepost's clients that are open, by method.")
        for method, count in sorted(self.limits.streams.items()):
            streams.add(count, method=method)
        return [
            gauge("fencepost_replicas", "Replicas on this broker.", sums.replicas),
            gauge("fencepost_replicas_without_metrics", "Above metrics_max_partitions.", sums.without_metrics),
            gauge("fencepost_led_partitions", "Partitions that this broker leads.", sums.led),
            gauge(
                "fencepost_under_replicated_partitions",
                "Partitions that this broker leads, and not every replica of which is in sync.",
                sums.under_replicated,
            ),
            gauge(
                "fencepost_failed_replicas",
                "Replicas that this broker cannot serve: its disk refuses, or holds what it should not.",
                len(manager.failed_replicas),
            ),
            gauge("fencepost_producers", "Producers that the replicas remember, each once a replica.", sums.producers),
            gauge("fencepost_size_bytes", "Of the segments of all replicas.", sums.size_bytes),
            lag_records,
            lag_seconds,
            gauge(
                "fencepost_has_controller",
                "1 while there is a session with the controller.",
                int(self.has_session()),
            ),
            gauge("fencepost_metadata_version", "Of the newest metadata.", manager.image.version),
            gauge("fencepost_kafka_connections", "Open connections of Kafka's clients.", self.kafka_connections()),
            gauge(
                "fencepost_client_connections",
                "Open connections of Fencepost's clients with streams.",
                self.limits.connection_count,
            ),
            streams,
        ]


def _add_replica(sums: _Sums, replica: Replica, now: float) -> int:
    """Returns by how many records the slowest follower is behind; -1: this broker does not lead."""
    sums.replicas += 1
    sums.producers += len(replica.log.states[PRODUCERS])
    sums.size_bytes += replica.log.size_bytes
    role = replica.role
    if not isinstance(role, Leadership):
        return -1
    sums.led += 1
    sums.under_replicated += _is_under_replicated(replica)
    most = 0
    for follower, records, seconds in role.state.lags(now):
        most = max(most, records)
        sums.lag_records[follower] = max(sums.lag_records[follower], records)
        sums.lag_s[follower] = max(sums.lag_s.get(follower, 0.0), seconds)
    return most


def _is_under_replicated(replica: Replica) -> bool:
    return len(replica.partition.isr) < len(replica.partition.replicas)


def _add_samples(by_partition: Sequence[Family], replica: Replica, lag: int) -> None:
    """In the order of _BY_PARTITION; the last two are a leader's."""
    labels = labels_text((("topic", replica.topic.name), ("partition", replica.key[1])))
    log, leads = replica.log, lag >= 0
    values: tuple[int, ...] = (
        log.log_start_offset,
        log.log_end_offset,
        replica.high_watermark,
        log.size_bytes,
        int(leads),
        replica.leader_epoch,
        len(log.states[PRODUCERS]),
        len(replica.partition.isr),
    )
    if leads:
        values = (*values, int(_is_under_replicated(replica)), lag)
    for family, value in zip(by_partition, values, strict=False):
        family.samples.append((labels, value))

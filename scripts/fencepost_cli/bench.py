"""The benchmark: what a cluster on this machine does, measured from a client. It starts its own cluster.

All is at its defaults: one producer, three brokers, replication 3, acks=all, 3 partitions. Each topic is new, so that
one measurement does not lean on another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import psutil

from fencepost import AdminClient, Consumer, Producer
from fencepost.producing.config import ProducerOptions
from fencepost_cli.small_batches import (
    CLOSED_LOOP_PRODUCERS,
    CLOSED_LOOP_S,
    SMALL_BATCH_BYTES,
    ClosedLoop,
    read_all,
    value_of,
)
from fencepost_testing.cluster_metadata import read_log_dirs
from fencepost_testing.failover import AckWatch, kill_leader
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.workload import Workload, WorkloadSpec, percentile

BROKERS = 3
PARTITIONS = 3
REPLICATION_FACTOR = 3
MIN_INSYNC_REPLICAS = 2
WARM_UP_S = 2.0
THROUGHPUT_S = 8.0
RATE = 500.0  # records a second, for latency and failovers
KEYS = 50
RECORD_BYTES = 100
LARGE_RECORD_BYTES = 1024
LATENCY_S = 10.0
FAILOVERS = 5
_SENDS_BETWEEN_YIELDS = 500
_MEGABYTE = 1_000_000


@dataclass(slots=True)
class BenchResult:
    first_ack_s: float = 0.0
    records_per_s_100b: float = 0.0
    mb_per_s_100b: float = 0.0
    records_per_s_1kb: float = 0.0
    mb_per_s_1kb: float = 0.0
    latency_ms_p50: float = 0.0
    latency_ms_p99: float = 0.0
    closed_loop_acks_per_s: dict[str, float] = field(default_factory=dict)  # by number of producers
    closed_loop_p50_ms: dict[str, float] = field(default_factory=dict)
    cpu_ms_per_ack: float = 0.0  # all brokers together, with the most producers
    client_cpu_ms_per_ack: float = 0.0
    records_per_s_16kb_batches: float = 0.0
    mb_per_s_1kb_16kb_batches: float = 0.0
    read_records_per_s: float = 0.0
    unavailable_ms: list[float] = field(default_factory=list)
    broker_rss_mb: list[float] = field(default_factory=list)  # after the throughput runs
    controller_rss_mb: float = 0.0
    client_rss_mb: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {name: rounded(getattr(self, name)) for name in self.__slots__}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else round(value, 3)


class Bench:
    """Every measurement, in order. `tell` gets a line as each begins."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell
        self.result = BenchResult()

    async def run(self) -> BenchResult:
        result = self.result
        self._tell("starting a cluster")
        started = time.monotonic()
        cluster = AsyncLocalCluster(self._folder, brokers=BROKERS, faults=False)
        async with cluster, AdminClient(cluster.bootstrap) as admin:
            await self._first_ack(cluster, admin)
            result.first_ack_s = time.monotonic() - started
            self._tell(f"throughput, records of {RECORD_BYTES} B, {THROUGHPUT_S:g} s")
            result.records_per_s_100b = await self._throughput(cluster, admin, RECORD_BYTES)
            result.mb_per_s_100b = result.records_per_s_100b * RECORD_BYTES / _MEGABYTE
            self._tell(f"throughput, records of 1 KB, {THROUGHPUT_S:g} s")
            result.records_per_s_1kb = await self._throughput(cluster, admin, LARGE_RECORD_BYTES)
            result.mb_per_s_1kb = result.records_per_s_1kb * LARGE_RECORD_BYTES / _MEGABYTE
            self._memory(cluster)
            self._tell(f"latency at {RATE:g} records/s, {LATENCY_S:g} s")
            await self._latency(cluster, admin)
            await self._small_batches(cluster, admin)
            self._tell(f"unavailability over {FAILOVERS} kills of a leader")
            await self._failovers(cluster, admin)
        return result

    async def _first_ack(self, cluster: AsyncLocalCluster, admin: AdminClient) -> None:
        await self._topic(admin, "first")
        async with Producer(cluster.bootstrap) as producer:
            await (await producer.send("first", b"first"))

    async def _topic(self, admin: AdminClient, name: str) -> None:
        await admin.create_topic(
            name,
            partitions=PARTITIONS,
            replication_factor=REPLICATION_FACTOR,
            min_insync_replicas=MIN_INSYNC_REPLICAS,
        )

    async def _small_batches(self, cluster: AsyncLocalCluster, admin: AdminClient) -> None:
        result = self.result
        self._tell(f"reading the records of {RECORD_BYTES} B")
        result.read_records_per_s = await read_all(cluster.bootstrap, f"throughput-{RECORD_BYTES}")
        self._tell(f"throughput with batches of 16 KB, {THROUGHPUT_S:g} s for each size of records")
        small = SMALL_BATCH_BYTES
        result.records_per_s_16kb_batches = await self._throughput(cluster, admin, RECORD_BYTES, batch_size=small)
        large_records = await self._throughput(cluster, admin, LARGE_RECORD_BYTES, batch_size=small)
        result.mb_per_s_1kb_16kb_batches = large_records * LARGE_RECORD_BYTES / _MEGABYTE
        await self._topic(admin, "closed-loop")
        pids = [cluster.pid(broker) for broker in cluster.broker_ids]
        for producers in CLOSED_LOOP_PRODUCERS:
            self._tell(f"closed loop of {producers}, each with one record on its way")
            loop = ClosedLoop(cluster.bootstrap, "closed-loop", value_of(RECORD_BYTES), pids)
            measured = await loop.measure(producers, CLOSED_LOOP_S)
            result.closed_loop_acks_per_s[str(producers)] = measured.acks_per_s
            result.closed_loop_p50_ms[str(producers)] = measured.p50_ms
            result.cpu_ms_per_ack = measured.brokers_cpu_ms_per_ack
            result.client_cpu_ms_per_ack = measured.client_cpu_ms_per_ack

    async def _throughput(
        self, cluster: AsyncLocalCluster, admin: AdminClient, record_bytes: int, **settings: Unpack[ProducerOptions]
    ) -> float:
        """Acknowledged records a second, after a warm-up, up to the last acknowledgement."""
        topic = "-".join(["throughput", str(record_bytes), *settings])
        await self._topic(admin, topic)
        value = value_of(record_bytes)
        async with Producer(cluster.bootstrap, **settings) as producer:
            await self._send_for(producer, topic, value, WARM_UP_S)
            warm, started = producer.stats.records_acked, time.monotonic()
            await self._send_for(producer, topic, value, THROUGHPUT_S)
            await producer.flush()
            elapsed_s, acked = time.monotonic() - started, producer.stats.records_acked
        await self._check_count(cluster, topic, acked)
        return (acked - warm) / elapsed_s

    async def _check_count(self, cluster: AsyncLocalCluster, topic: str, acked: int) -> None:
        """No figure without the records that it counts."""
        async with Consumer(cluster.bootstrap, topic) as consumer:
            in_log = sum((await consumer.end_offsets(consumer.assignment)).values())
        if in_log != acked:
            raise CommandFailed(f"{acked} records of {topic} were acknowledged, and {in_log} are in the log")

    async def _send_for(self, producer: Producer, topic: str, value: bytes, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(_SENDS_BETWEEN_YIELDS):
                await producer.send(topic, value)
            await asyncio.sleep(0)

    def _memory(self, cluster: AsyncLocalCluster) -> None:
        def rss_mb(pid: int) -> float:
            return psutil.Process(pid).memory_info().rss / _MEGABYTE

        self.result.broker_rss_mb = [rss_mb(cluster.pid(broker)) for broker in cluster.broker_ids]
        self.result.controller_rss_mb = rss_mb(cluster.pid("controller"))
        self.result.client_rss_mb = psutil.Process().memory_info().rss / _MEGABYTE

    async def _latency(self, cluster: AsyncLocalCluster, admin: AdminClient) -> None:
        """From `send` to the acknowledgement, each record on its own."""
        await self._topic(admin, "latency")
        async with Producer(cluster.bootstrap) as producer:
            for seconds in (WARM_UP_S, LATENCY_S):
                spec = WorkloadSpec("latency", RECORD_BYTES, KEYS, RATE, duration_s=seconds)
                workload = Workload(producer, spec, Ledger("latency0"))
                await workload.run(asyncio.Event())
            latencies = sorted(workload.latencies_s)
        self.result.latency_ms_p50 = percentile(latencies, 0.50) * 1000
        self.result.latency_ms_p99 = percentile(latencies, 0.99) * 1000

    async def _failovers(self, cluster: AsyncLocalCluster, admin: AdminClient) -> None:
        await self._topic(admin, "failover")
        acks, stop = AckWatch(), asyncio.Event()
        async with Producer(cluster.bootstrap) as producer:
            spec = WorkloadSpec("failover", RECORD_BYTES, KEYS, RATE)
            workload = Workload(producer, spec, Ledger("failover"), on_acked=acks)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(workload.run(stop))
                for number in range(FAILOVERS):
                    await wait_in_sync(admin, "failover")
                    failover = await kill_leader(cluster, admin, "failover", number % PARTITIONS, acks)
                    self.result.unavailable_ms.append(failover.unavailable_ms)
                    await cluster.restart(failover.killed)
                stop.set()


# ---- Recovery ----


@dataclass(frozen=True, slots=True)
class Recovery:
    """One restart after kill -9."""

    log_mb: float
    recovery_s: float  # of the log, as the broker says
    ready_s: float  # from the start of the process until it listens


RECOVERY_SIZES_MB = (100, 1000)
RECOVERIES = 3  # at each size
_FILL_RECORD_BYTES = 8 * 1024
_RECOVERY_TOPIC = "recovery"
_ANSWER_TIMEOUT_S = 10.0


async def measure_recovery(folder: Path, tell: Callable[[str], None]) -> list[Recovery]:
    """One broker, one partition, filled to each size and killed: what recovery costs must not grow with the log."""
    answers = []
    cluster = AsyncLocalCluster(folder, brokers=1, faults=False)
    async with cluster:
        async with AdminClient(cluster.bootstrap) as admin:
            await admin.create_topic(_RECOVERY_TOPIC, partitions=1, replication_factor=1, min_insync_replicas=1)
        for size_mb in RECOVERY_SIZES_MB:
            tell(f"filling the log up to {size_mb} MB")
            await _fill(cluster, size_mb * _MEGABYTE)
            for _ in range(RECOVERIES):
                answers.append(await _recover(cluster))
    return answers


async def _fill(cluster: AsyncLocalCluster, size_bytes: int) -> None:
    value = bytes(_FILL_RECORD_BYTES)
    async with Producer(cluster.bootstrap) as producer:
        left = size_bytes - await _log_bytes(cluster)
        for _ in range(max(0, left) // _FILL_RECORD_BYTES + 1):
            await producer.send(_RECOVERY_TOPIC, value)
        await producer.flush()


async def _log_bytes(cluster: AsyncLocalCluster) -> int:
    return (await _log_dirs(cluster))[0]


async def _log_dirs(cluster: AsyncLocalCluster) -> tuple[int, float]:
    """(bytes of the log, seconds that its recovery took)."""
    answer = await read_log_dirs(cluster.member(1).address, timeout_s=_ANSWER_TIMEOUT_S)
    assert answer is not None
    return sum(replica.size_bytes for replica in answer.replicas), answer.recovery_seconds


async def _recover(cluster: AsyncLocalCluster) -> Recovery:
    await cluster.kill(1)
    await cluster.wait_gone(1)
    started = time.monotonic()
    await cluster.start(1)
    ready_s = time.monotonic() - started
    await cluster.wait_registered()
    size_bytes, recovery_s = await _log_dirs(cluster)
    return Recovery(size_bytes / _MEGABYTE, recovery_s, ready_s)

"""The benchmark through the Kafka port, with librdkafka as the client.

As the benchmark with Fencepost's own client (`bench.py`): three brokers, replication 3, two replicas in sync needed,
acks=all, 3 partitions, a new topic for each measurement. librdkafka is at its defaults, idempotent, without
compression; where latency is measured its linger is 0, and a reader does not pause when its queue was full. Its
callbacks are served by a thread of their own wherever records are sent at a rate, for its `poll` waits in whole
milliseconds.

Everything, topics too, goes through the Kafka port, so the same rows are measured on any cluster that has one:
`measure` takes one cluster; `measure_beside` takes each row of two clusters in turn, which run side by side.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from fencepost_cli.bench import (
    BROKERS,
    FAILOVERS,
    LARGE_RECORD_BYTES,
    LATENCY_S,
    MIN_INSYNC_REPLICAS,
    PARTITIONS,
    RATE,
    RECORD_BYTES,
    REPLICATION_FACTOR,
    THROUGHPUT_S,
    WARM_UP_S,
    rounded,
)
from fencepost_cli.kafka_load import (
    CLOSED_LOOP_PRODUCERS,
    CLOSED_LOOP_S,
    FLUSH_TIMEOUT_S,
    RESUME_TIMEOUT_S,
    AtARate,
    Counts,
    closed_loop,
    ends_of,
    producer_of,
    read_all,
    send_for,
)
from fencepost_cli.small_batches import value_of
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until
from fencepost_testing.workload import percentile

FAILOVERS_BESIDE = 2  # of each of two clusters: Kafka's take ten seconds each, and as long until all is in sync again
PEER_WARM_UP_S = 30.0  # of load before anything of a peer counts: a JVM compiles what it runs often
ADMIN_TIMEOUT_S = 60.0
_MEGABYTE = 1_000_000


class BenchCluster(Protocol):
    """What is measured. An AsyncLocalCluster is one."""

    @property
    def broker_ids(self) -> list[int]: ...

    @property
    def kafka_bootstrap(self) -> str: ...

    async def up(self) -> None:
        """Start every process; return once all brokers serve."""
        ...

    def pid(self, node: int) -> int: ...

    async def kill(self, node: int) -> None: ...

    async def restart(self, node: int) -> None: ...

    def close(self) -> None:
        """End every process."""
        ...


@dataclass(slots=True)
class KafkaBenchResult:
    kafka_first_ack_s: float = 0.0
    kafka_records_per_s_100b: float = 0.0
    kafka_mb_per_s_1kb: float = 0.0
    kafka_read_records_per_s: float = 0.0
    kafka_latency_ms_p50: float = 0.0
    kafka_latency_ms_p99: float = 0.0
    kafka_closed_loop_acks_per_s: float = 0.0
    kafka_unavailable_ms: list[float] = field(default_factory=list)
    broker_rss_mb: list[float] = field(default_factory=list)  # after throughput and reading

    def to_json(self) -> dict[str, Any]:
        return {name: rounded(getattr(self, name)) for name in self.__slots__}


Tell = Callable[[str], None]
Make = Callable[[], BenchCluster]
Row = Callable[[], Awaitable[None]]


def own_cluster(folder: Path) -> AsyncLocalCluster:
    return AsyncLocalCluster(folder, brokers=BROKERS, faults=False)


async def measure(make: Make, tell: Tell) -> KafkaBenchResult:
    """Every row of one cluster. `tell` gets a line as each begins."""
    async with AsyncExitStack() as stack:
        tell("starting a cluster")
        bench = await KafkaBench.begin(make, stack)
        for name, row in bench.rows(FAILOVERS):
            tell(name)
            tell(f"  {await bench.figures_of(row)}")
    return bench.result


async def measure_beside(
    make: Make, peer_name: str, make_peer: Make, tell: Tell
) -> tuple[KafkaBenchResult, KafkaBenchResult]:
    """Every row of a cluster of Fencepost, and then of its peer; both run all the time. The peer is warmed up first."""
    async with AsyncExitStack() as stack:
        tell("starting a cluster of Fencepost")
        own = await KafkaBench.begin(make, stack)
        tell(f"starting {peer_name}")
        peer = await KafkaBench.begin(make_peer, stack)
        tell(f"warming {peer_name} up, {PEER_WARM_UP_S:g} s")
        await peer.warm_up()
        for (name, row), (_, peers_row) in zip(own.rows(FAILOVERS_BESIDE), peer.rows(FAILOVERS_BESIDE), strict=True):
            tell(name)
            tell(f"  Fencepost: {await own.figures_of(row)}")
            tell(f"  {peer_name}: {await peer.figures_of(peers_row)}")
    return own.result, peer.result


class KafkaBench:
    """The rows of one cluster that runs."""

    def __init__(self, cluster: BenchCluster) -> None:
        self.result = KafkaBenchResult()
        self._cluster = cluster
        self._bootstrap = cluster.kafka_bootstrap
        self._admin = AdminClient({"bootstrap.servers": self._bootstrap})

    @classmethod
    async def begin(cls, make: Make, stack: AsyncExitStack) -> KafkaBench:
        """Start a cluster, which ends with the stack; its first row is the time to an acknowledgement."""
        started = time.monotonic()
        cluster = await asyncio.to_thread(make)
        stack.callback(cluster.close)
        await cluster.up()
        bench = cls(cluster)
        await asyncio.to_thread(bench._send_first)
        bench.result.kafka_first_ack_s = time.monotonic() - started
        return bench

    def rows(self, failovers: int) -> list[tuple[str, Row]]:
        """What each is called, and what measures it."""
        return [
            (f"throughput, records of {RECORD_BYTES} B, {THROUGHPUT_S:g} s", partial(self._in_thread, self._small)),
            (f"throughput, records of 1 KB, {THROUGHPUT_S:g} s", partial(self._in_thread, self._large)),
            (f"reading the records of {RECORD_BYTES} B", partial(self._in_thread, self._read)),
            (f"latency at {RATE:g} records/s, {LATENCY_S:g} s", partial(self._in_thread, self._latency)),
            (
                f"{CLOSED_LOOP_PRODUCERS} producers, each with one record on its way, {CLOSED_LOOP_S:g} s",
                partial(self._in_thread, self._closed_loop),
            ),
            (f"unavailability over {failovers} kills of a leader", partial(self._failovers, failovers)),
        ]

    async def figures_of(self, row: Row) -> str:
        """Measure one row; what it has measured, so that it is seen where a later row fails."""
        before = self.result.to_json()
        await row()
        return ", ".join(f"{name} {told}" for name, told in self.result.to_json().items() if told != before[name])

    async def warm_up(self) -> None:
        await asyncio.to_thread(self._warm_up)

    async def _in_thread(self, row: Callable[[], None]) -> None:
        await asyncio.to_thread(row)

    def _topic(self, name: str) -> None:
        topic = NewTopic(name, PARTITIONS, REPLICATION_FACTOR, config={"min.insync.replicas": f"{MIN_INSYNC_REPLICAS}"})
        try:
            self._admin.create_topics([topic], request_timeout=ADMIN_TIMEOUT_S)[name].result(ADMIN_TIMEOUT_S)
        except KafkaException as error:
            raise CommandFailed(f"the topic {name} could not be made: {error}") from error

    def _drop(self, name: str) -> None:
        """Of much data: Kafka reads all of its logs again after a kill, and would not be back for minutes."""
        try:
            self._admin.delete_topics([name], request_timeout=ADMIN_TIMEOUT_S)[name].result(ADMIN_TIMEOUT_S)
        except KafkaException as error:
            raise CommandFailed(f"the topic {name} could not be deleted: {error}") from error

    def _send_first(self) -> None:
        self._topic("first")
        producer = producer_of(self._bootstrap, linger_ms=0)
        told: list[object] = []
        producer.produce("first", b"first", on_delivery=lambda error, _: told.append(error))
        if producer.flush(FLUSH_TIMEOUT_S) or told != [None]:
            raise CommandFailed(f"the first record was not acknowledged: {told}")

    def _warm_up(self) -> None:
        """Both sizes, and a reader."""
        counts = Counts()
        producer = producer_of(self._bootstrap)
        for size in (RECORD_BYTES, LARGE_RECORD_BYTES):
            send_for(producer, "first", value_of(size), counts, PEER_WARM_UP_S / 2)
        if producer.flush(FLUSH_TIMEOUT_S) or counts.failed:
            raise CommandFailed(f"warming up: {counts.failed} records failed")
        read_all(self._bootstrap, "first")
        self._drop("first")

    def _small(self) -> None:
        self.result.kafka_records_per_s_100b = self._throughput(RECORD_BYTES)

    def _large(self) -> None:
        self.result.kafka_mb_per_s_1kb = self._throughput(LARGE_RECORD_BYTES) * LARGE_RECORD_BYTES / _MEGABYTE

    def _throughput(self, record_bytes: int) -> float:
        """Acknowledged records a second, after a warm-up, up to the last acknowledgement."""
        topic = f"throughput-{record_bytes}"
        self._topic(topic)
        value = value_of(record_bytes)
        producer = producer_of(self._bootstrap)
        counts = Counts()
        send_for(producer, topic, value, counts, WARM_UP_S)
        warm, started = counts.acked, time.monotonic()
        send_for(producer, topic, value, counts, THROUGHPUT_S)
        left = producer.flush(FLUSH_TIMEOUT_S)
        elapsed_s = time.monotonic() - started
        if left or counts.failed:
            raise CommandFailed(f"{topic}: {counts.failed} records failed, {left} are left")
        in_log = sum(ends_of(self._bootstrap, topic).values())
        if in_log != counts.acked:
            raise CommandFailed(f"{counts.acked} records of {topic} were acknowledged, and {in_log} are in the log")
        return (counts.acked - warm) / elapsed_s

    def _read(self) -> None:
        self.result.kafka_read_records_per_s = read_all(self._bootstrap, f"throughput-{RECORD_BYTES}")
        self.result.broker_rss_mb = [
            psutil.Process(self._cluster.pid(broker)).memory_info().rss / _MEGABYTE
            for broker in self._cluster.broker_ids
        ]
        for size in (RECORD_BYTES, LARGE_RECORD_BYTES):
            self._drop(f"throughput-{size}")

    def _latency(self) -> None:
        self._topic("latency")
        producer = producer_of(self._bootstrap, linger_ms=0)
        AtARate(producer, "latency").run(WARM_UP_S)
        measured = AtARate(producer, "latency")
        measured.run(LATENCY_S)
        latencies = sorted(measured.latencies_s)
        if measured.failed or len(latencies) != measured.sent:
            raise CommandFailed(
                f"latency: {measured.sent} sent, {len(latencies)} acknowledged, {measured.failed} failed"
            )
        self.result.kafka_latency_ms_p50 = percentile(latencies, 0.50) * 1000
        self.result.kafka_latency_ms_p99 = percentile(latencies, 0.99) * 1000

    def _closed_loop(self) -> None:
        self._topic("closed-loop")
        self.result.kafka_closed_loop_acks_per_s = closed_loop(self._bootstrap)

    async def _failovers(self, failovers: int) -> None:
        """Each is met by a producer that has not seen one.

        librdkafka connects again to a broker that it lost twice within a short time only after a growing pause (up to
        `reconnect.backoff.max.ms`, 10 s), also where that broker is back and leads. Kills that follow each other as
        fast as here would measure that pause.
        """
        await asyncio.to_thread(self._topic, "failover")
        for number in range(failovers):
            unavailable_s = await self._failover(number % PARTITIONS)
            self.result.kafka_unavailable_ms.append(unavailable_s * 1000)

    async def _failover(self, partition: int) -> float:
        """Seconds from the kill to the first acknowledgement of a record that was sent to that partition after it."""
        workload = AtARate(producer_of(self._bootstrap), "failover")
        stop = threading.Event()
        running = asyncio.create_task(asyncio.to_thread(workload.run, float("inf"), stop))
        try:
            await asyncio.sleep(WARM_UP_S)
            leader = await self._wait_in_sync("failover", partition)
            killed_at = time.monotonic()
            workload.watch(partition, killed_at)
            await self._cluster.kill(leader)
            await until(workload.reached.is_set, f"writes to failover-{partition}", RESUME_TIMEOUT_S)
            await self._cluster.restart(leader)
        finally:
            stop.set()
            await running
        if workload.failed:
            raise CommandFailed(f"failover: {workload.failed} records failed")
        return workload.reached_at - killed_at

    async def _wait_in_sync(self, topic: str, partition: int) -> int:
        """The leader of that partition, once every partition has one and all replicas are in sync."""

        async def leader() -> int | None:
            try:
                metadata = await asyncio.to_thread(self._admin.list_topics, topic, 1.0)
            except KafkaException:
                return None  # it asked a broker that has just been killed
            partitions = metadata.topics[topic].partitions
            settled = all(p.leader >= 0 and set(p.isrs) == set(p.replicas) for p in partitions.values())
            return partitions[partition].leader if settled and len(partitions) == PARTITIONS else None

        what = f"all replicas of {topic} in sync"
        return await until(leader, what, RESUME_TIMEOUT_S, holds=lambda found: found >= 0, poll_s=0.05)

"""The benchmark through the Kafka port, with librdkafka as the client. It starts its own cluster.

As the benchmark with Fencepost's own client (`bench.py`): three brokers, replication 3, two replicas in sync needed,
acks=all, 3 partitions, a new topic for each measurement. librdkafka is at its defaults, idempotent, without
compression; where latency is measured its linger is 0. Its callbacks are served by a thread of their own wherever
records are sent at a rate, for its `poll` waits in whole milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition

from fencepost import AdminClient
from fencepost_cli.bench import MIN_INSYNC_REPLICAS, PARTITIONS, REPLICATION_FACTOR, rounded
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until
from fencepost_testing.workload import percentile

BROKERS = 3
WARM_UP_S = 2.0
THROUGHPUT_S = 8.0
LATENCY_S = 10.0
RATE = 500.0  # records a second, for latency and failovers
KEYS = 50
CLOSED_LOOP_PRODUCERS = 64
CLOSED_LOOP_S = 5.0
FAILOVERS = 5
FLUSH_TIMEOUT_S = 60.0
RESUME_TIMEOUT_S = 60.0
READ_AT_ONCE = 10_000
_SENDS_BETWEEN_POLLS = 500
_MEGABYTE = 1_000_000


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


def value_of(size_bytes: int) -> bytes:
    return (bytes(range(97, 123)) * (size_bytes // 26 + 1))[:size_bytes]


class KafkaBench:
    """Every measurement, in order. `tell` gets a line as each begins."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell
        self.result = KafkaBenchResult()

    async def run(self) -> KafkaBenchResult:
        result = self.result
        self._tell("starting a cluster")
        started = time.monotonic()
        cluster = LocalCluster.create(self._folder, brokers=BROKERS)
        async with cluster, AdminClient(cluster.bootstrap) as admin:
            await self._topic(admin, "first")
            await asyncio.to_thread(self._send_one, cluster)
            result.kafka_first_ack_s = time.monotonic() - started
            self._tell(f"throughput, records of 100 B, {THROUGHPUT_S:g} s")
            await self._topic(admin, "throughput-100")
            result.kafka_records_per_s_100b = await asyncio.to_thread(self._throughput, cluster, 100)
            self._tell(f"throughput, records of 1 KB, {THROUGHPUT_S:g} s")
            await self._topic(admin, "throughput-1024")
            rate = await asyncio.to_thread(self._throughput, cluster, 1024)
            result.kafka_mb_per_s_1kb = rate * 1024 / _MEGABYTE
            self._tell("reading the records of 100 B")
            result.kafka_read_records_per_s = await asyncio.to_thread(self._read, cluster, "throughput-100")
            result.broker_rss_mb = [
                psutil.Process(cluster.pid(broker)).memory_info().rss / _MEGABYTE for broker in cluster.broker_ids
            ]
            self._tell(f"latency at {RATE:g} records/s, {LATENCY_S:g} s")
            await self._topic(admin, "latency")
            await asyncio.to_thread(self._latency, cluster)
            self._tell(f"{CLOSED_LOOP_PRODUCERS} producers, each with one record on its way, {CLOSED_LOOP_S:g} s")
            await self._topic(admin, "closed-loop")
            result.kafka_closed_loop_acks_per_s = await asyncio.to_thread(_closed_loop, cluster.kafka_bootstrap)
            self._tell(f"unavailability over {FAILOVERS} kills of a leader")
            await self._topic(admin, "failover")
            await self._failovers(cluster, admin)
        return result

    async def _topic(self, admin: AdminClient, name: str) -> None:
        await admin.create_topic(
            name,
            partitions=PARTITIONS,
            replication_factor=REPLICATION_FACTOR,
            min_insync_replicas=MIN_INSYNC_REPLICAS,
        )

    def _send_one(self, cluster: LocalCluster) -> None:
        producer = _producer(cluster.kafka_bootstrap, linger_ms=0)
        told: list[object] = []
        producer.produce("first", b"first", on_delivery=lambda error, _: told.append(error))
        if producer.flush(FLUSH_TIMEOUT_S) or told != [None]:
            raise CommandFailed(f"the first record was not acknowledged: {told}")

    def _throughput(self, cluster: LocalCluster, record_bytes: int) -> float:
        """Acknowledged records a second, after a warm-up, up to the last acknowledgement."""
        topic = f"throughput-{record_bytes}"
        value = value_of(record_bytes)
        producer = _producer(cluster.kafka_bootstrap)
        counts = _Counts()
        _send_for(producer, topic, value, counts, WARM_UP_S)
        warm, started = counts.acked, time.monotonic()
        _send_for(producer, topic, value, counts, THROUGHPUT_S)
        left = producer.flush(FLUSH_TIMEOUT_S)
        elapsed_s = time.monotonic() - started
        if left or counts.failed:
            raise CommandFailed(f"{topic}: {counts.failed} records failed, {left} are left")
        in_log = sum(_ends(cluster.kafka_bootstrap, topic).values())
        if in_log != counts.acked:
            raise CommandFailed(f"{counts.acked} records of {topic} were acknowledged, and {in_log} are in the log")
        return (counts.acked - warm) / elapsed_s

    def _read(self, cluster: LocalCluster, topic: str) -> float:
        """Records a second of one consumer that reads a topic from its beginning to its end."""
        ends = _ends(cluster.kafka_bootstrap, topic)
        consumer = _consumer(cluster.kafka_bootstrap)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        wanted, read, started = sum(ends.values()), 0, time.monotonic()
        while read < wanted:
            messages = consumer.consume(READ_AT_ONCE, RESUME_TIMEOUT_S)
            if not messages or any(message.error() for message in messages):
                raise CommandFailed(f"{topic}: {read} of {wanted} records were read, then {messages[:1] or 'nothing'}")
            read += len(messages)
        elapsed_s = time.monotonic() - started
        consumer.close()
        return read / elapsed_s

    def _latency(self, cluster: LocalCluster) -> None:
        producer = _producer(cluster.kafka_bootstrap, linger_ms=0)
        _AtARate(producer, "latency").run(WARM_UP_S)
        measured = _AtARate(producer, "latency")
        measured.run(LATENCY_S)
        latencies = sorted(measured.latencies_s)
        if measured.failed or len(latencies) != measured.sent:
            raise CommandFailed(
                f"latency: {measured.sent} sent, {len(latencies)} acknowledged, {measured.failed} failed"
            )
        self.result.kafka_latency_ms_p50 = percentile(latencies, 0.50) * 1000
        self.result.kafka_latency_ms_p99 = percentile(latencies, 0.99) * 1000

    async def _failovers(self, cluster: LocalCluster, admin: AdminClient) -> None:
        """From the kill to the first acknowledgement of a record that was sent to that partition after it."""
        workload = _AtARate(_producer(cluster.kafka_bootstrap), "failover")
        stop = threading.Event()
        running = asyncio.create_task(asyncio.to_thread(workload.run, float("inf"), stop))
        try:
            await asyncio.sleep(WARM_UP_S)
            for number in range(FAILOVERS):
                await wait_in_sync(admin, "failover")
                partition_number = number % PARTITIONS
                described = await admin.describe_topic("failover")
                leader = described.partitions[partition_number].leader
                killed_at = time.monotonic()
                workload.watch(partition_number, killed_at)
                cluster.kill(leader)
                await until(workload.reached.is_set, f"writes to failover-{partition_number}", RESUME_TIMEOUT_S)
                self.result.kafka_unavailable_ms.append((workload.reached_at - killed_at) * 1000)
                await cluster.restart(leader)
        finally:
            stop.set()
            await running
        if workload.failed:
            raise CommandFailed(f"failover: {workload.failed} records failed")


@dataclass(slots=True)
class _Counts:
    acked: int = 0
    failed: int = 0

    def __call__(self, error: object, _: object) -> None:
        if error is None:
            self.acked += 1
        else:
            self.failed += 1


def _producer(bootstrap: str, linger_ms: int | None = None) -> Producer:
    linger = {} if linger_ms is None else {"linger.ms": linger_ms}
    return Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, **linger})


def _consumer(bootstrap: str) -> Consumer:
    return Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})


def _ends(bootstrap: str, topic: str) -> dict[int, int]:
    consumer = _consumer(bootstrap)
    try:
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=RESUME_TIMEOUT_S)[1]
            for partition in range(PARTITIONS)
        }
    finally:
        consumer.close()


def _send_for(producer: Producer, topic: str, value: bytes, counts: _Counts, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(_SENDS_BETWEEN_POLLS):
            while True:
                try:
                    producer.produce(topic, value, on_delivery=counts)
                    break
                except BufferError:  # its queue is full
                    producer.poll(0.01)
        producer.poll(0)


class _AtARate:
    """Sends single records, each when it is due."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self.sent = 0
        self.failed = 0
        self.latencies_s: list[float] = []
        self.reached = threading.Event()
        self.reached_at = 0.0
        self._producer = producer
        self._topic = topic
        self._watched = (-1, 0.0)  # partition, and since when

    def watch(self, partition: int, since: float) -> None:
        """`reached` is set by the first acknowledgement of a record that was sent to the partition after that."""
        self.reached.clear()
        self._watched = (partition, since)

    def run(self, seconds: float, stop: threading.Event | None = None) -> None:
        done = threading.Event()
        serving = threading.Thread(target=self._serve, args=(done,), daemon=True)
        serving.start()
        value, started = value_of(100), time.monotonic()
        while (now := time.monotonic()) - started < seconds and not (stop and stop.is_set()):
            while started + self.sent / RATE <= now:
                key = b"key-%d" % (self.sent * 7 % KEYS)
                self._producer.produce(
                    self._topic, value, key=key, on_delivery=partial(self._delivered, time.monotonic())
                )
                self.sent += 1
            time.sleep(max(0.0, started + self.sent / RATE - time.monotonic()))
        done.set()
        serving.join()
        self._producer.flush(FLUSH_TIMEOUT_S)

    def _serve(self, done: threading.Event) -> None:
        while not done.is_set():
            self._producer.poll(0.1)

    def _delivered(self, sent_at: float, error: object, message: Any) -> None:
        now = time.monotonic()
        if error is not None:
            self.failed += 1
            return
        self.latencies_s.append(now - sent_at)
        partition, since = self._watched
        if message.partition() == partition and sent_at > since and not self.reached.is_set():
            self.reached_at = now
            self.reached.set()


def _closed_loop(bootstrap: str) -> float:
    """Acknowledgements a second of so many producers, each of which waits for one before it sends the next record."""
    producers = [_producer(bootstrap, linger_ms=0) for _ in range(CLOSED_LOOP_PRODUCERS)]
    value, counts = value_of(100), _Counts()
    begun, end = threading.Barrier(len(producers) + 1), 0.0

    def loop(producer: Producer) -> None:
        producer.produce("closed-loop", value)
        producer.flush(FLUSH_TIMEOUT_S)  # connected, with an id
        begun.wait()
        begun.wait()
        while time.monotonic() < end:
            producer.produce("closed-loop", value, on_delivery=counts)
            producer.flush(FLUSH_TIMEOUT_S)

    threads = [threading.Thread(target=loop, args=(producer,)) for producer in producers]
    for thread in threads:
        thread.start()
    begun.wait()
    started = time.monotonic()
    end = started + CLOSED_LOOP_S
    begun.wait()
    for thread in threads:
        thread.join()
    if counts.failed:
        raise CommandFailed(f"closed loop: {counts.failed} records failed")
    return counts.acked / (time.monotonic() - started)

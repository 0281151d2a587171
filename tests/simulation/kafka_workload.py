"""What Kafka's clients do in the simulation: aiokafka, unmodified and in virtual time, and a pipelining producer.

They have a topic of their own, whose records are in the ledger like all others, so the verdict at a run's end counts them.
A Fencepost consumer reads that topic too.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, OutOfOrderSequenceNumber
from aiokafka.structs import BrokerMetadata

from fencepost_proto.protocol.metadata import TopicConfig
from fencepost_proto.protocol.metadata.kinds import config_to_proto
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from tests.simulation.cluster import SimCluster, broker_kafka_address
from tests.simulation.disk import MountedDisk
from tests.simulation.judge import Judge
from tests.simulation.kafka_pipeline import PipelinedProducer
from tests.simulation.loop import current_process
from tests.simulation.process import SimProcess
from tests.simulation.workload import MAX_PENDING_RECORDS, START_RETRY_S, Entry, Fate, SendLedger
from tests.simulation.world import EPOCH_MS, World

TOPIC = "kafka"
PARTITIONS = 2
MEAN_PAUSE_S = 0.3
LOOK_S = 1e-6
BURST = 4

# Modules of aiokafka that look at the clock, or draw numbers.
_TIMED = (
    "client", "cluster", "conn", "producer.message_accumulator", "consumer.consumer", "consumer.fetcher",
    "consumer.group_coordinator", "consumer.subscription_state",
)  # fmt: skip
_RANDOM = ("client", "conn", "partitioner", "consumer.fetcher")


def topic_request(replication: int) -> controller_pb2.CreateTopicRequest:
    return controller_pb2.CreateTopicRequest(
        name=TOPIC,
        partitions=PARTITIONS,
        replication_factor=replication,
        config=config_to_proto(TopicConfig(min_insync_replicas=2)),
    )


@contextmanager
def aiokafka_in(world: World) -> Iterator[None]:
    """aiokafka with the world's clock and chance in place of the machine's.

    Looking at its clock takes a microsecond: it sleeps for what is left of a time until nothing is, and of two floats a
    rest may stay that is too small to move the world's clock. What it keeps in sets hashes by content, so that they iterate
    alike whatever the interpreter's hash seed.
    """
    now = world.now

    def monotonic() -> float:
        nonlocal now
        now = max(now + LOOK_S, world.now)
        return now

    clock = SimpleNamespace(monotonic=monotonic, time=lambda: EPOCH_MS / 1000 + world.now)
    chance = random.Random(f"{world.seed}/aiokafka")
    with ExitStack() as stack:
        for name in _TIMED:
            module = importlib.import_module(f"aiokafka.{name}")
            if hasattr(module, "time"):
                stack.enter_context(patch.object(module, "time", clock))
        for kind in (TopicPartition, BrokerMetadata):
            stack.enter_context(patch.object(kind, "__hash__", lambda self: zlib.crc32(repr(self).encode())))
        for name in _RANDOM:
            module = importlib.import_module(f"aiokafka.{name}")
            stack.enter_context(patch.object(module, "random", chance))
        yield


class KafkaApps:
    """Their processes: two producers and a consumer."""

    def __init__(self, world: World, cluster: SimCluster, ledger: SendLedger) -> None:
        self.world = world
        self.judge: Judge = cluster.judge
        self.ledger = ledger
        self.bootstrap = [broker_kafka_address(broker) for broker in cluster.settings.broker_ids]
        self.nodes = ["aiokafka-producer", "pipeline", "aiokafka-consumer"]
        self.stopping = False
        self.finished: dict[str, bool] = {}
        self.read: dict[int, dict[int, bytes]] = {index: {} for index in range(PARTITIONS)}  # partition, offset
        self.pipeline: PipelinedProducer | None = None

    def start(self) -> None:
        for node, main in zip(self.nodes, (self._produce, self._pipeline, self._consume), strict=True):
            self.world.start(node, main)

    def topic_id(self) -> str:
        return self.judge.image.topic_ids[TOPIC]

    def look(self) -> None:
        """Raises Violation."""
        for partition, problem in self.pipeline.problems if self.pipeline is not None else ():
            self._told(partition, problem)

    def _told(self, partition: int, problem: str) -> None:
        record = self.judge.record((self.topic_id(), partition))
        if record is not None and not record.tainted and not record.past.elections:
            self.judge.fail("G14", f"{TOPIC}-{partition}: a producer that keeps its order was told {problem}")

    def _entry(self, process: SimProcess, number: int) -> tuple[bytes, Entry]:
        value = f"{process.node}/{process.incarnation}/{number}".encode()
        entry = self.ledger.entries[value] = Entry(TOPIC, None, process, self.world.now)
        entry.topic_id = self.topic_id()
        return value, entry

    # ---- aiokafka ----

    async def _produce(self, host: Host, disk: MountedDisk) -> None:
        process = current_process.get()
        assert isinstance(process, SimProcess)
        producer = await self._started(
            lambda: AIOKafkaProducer(**self._options(), linger_ms=2, enable_idempotence=True)
        )
        number, pending = 0, 0
        fewer = asyncio.Event()  # are pending than before

        def settled(future: asyncio.Future[Any], entry: Entry) -> None:
            nonlocal pending
            pending -= 1
            fewer.set()
            error = future.exception()
            if error is None:
                entry.fate, entry.partition, entry.offset = (
                    Fate.ACKED,
                    future.result().partition,
                    future.result().offset,
                )
                self.judge.count("records acknowledged to aiokafka")
                return
            entry.fate, entry.error = Fate.UNKNOWN, repr(error)
            self.ledger.errors[f"aiokafka: {type(error).__name__}"] += 1
            if isinstance(error, OutOfOrderSequenceNumber):
                self._told(entry.partition, repr(error))

        while not self.stopping:
            for _ in range(1 + host.random.randrange(BURST)):
                value, entry = self._entry(process, number)
                entry.partition, number = number % PARTITIONS, number + 1
                future = await producer.send(TOPIC, value, partition=entry.partition, timestamp_ms=host.wall_clock_ms())
                pending += 1
                future.add_done_callback(lambda future, entry=entry: settled(future, entry))
            await asyncio.sleep(host.random.expovariate(1 / MEAN_PAUSE_S))
            while pending > MAX_PENDING_RECORDS:
                fewer.clear()
                await fewer.wait()
        while pending:
            fewer.clear()
            await fewer.wait()
        self.finished[process.node] = True
        await asyncio.sleep(1e6)

    def _options(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.bootstrap, "request_timeout_ms": 60_000, "retry_backoff_ms": 50}

    async def _started(self, make: Any) -> Any:
        while True:
            client = make()
            try:
                await client.start()
            except KafkaError as error:
                self.ledger.errors[f"aiokafka start: {type(error).__name__}"] += 1
                await client.stop()
                await asyncio.sleep(START_RETRY_S)
            else:
                return client

    async def _consume(self, host: Host, disk: MountedDisk) -> None:
        consumer = await self._started(
            lambda: AIOKafkaConsumer(**self._options(), auto_offset_reset="earliest", enable_auto_commit=False)
        )
        consumer.assign([TopicPartition(TOPIC, index) for index in range(PARTITIONS)])
        async for record in consumer:
            known = self.read[record.partition].setdefault(record.offset, record.value)
            unclean = self.judge.unclean_elections(TOPIC, record.partition)
            if known != record.value and not unclean:
                place = f"{TOPIC}-{record.partition} {record.offset}"
                self.judge.fail("G10", f"aiokafka read {record.value!r} at {place}, where it had read {known!r}")
            self.read[record.partition][record.offset] = record.value
            self.judge.count("records read by aiokafka")

    def position(self, partition: int) -> int:
        return max(self.read[partition], default=-1) + 1

    # ---- The pipelining producer ----

    async def _pipeline(self, host: Host, disk: MountedDisk) -> None:
        process = current_process.get()
        assert isinstance(process, SimProcess)

        def settle(value: bytes, partition: int, offset: int | None) -> None:
            entry = self.ledger.entries[value]
            if offset is None:
                entry.fate, entry.error = Fate.UNKNOWN, "given up"
                return
            entry.fate, entry.partition, entry.offset = Fate.ACKED, partition, offset
            self.judge.count("records acknowledged to the pipeline")

        producer = PipelinedProducer(self.bootstrap, TOPIC, PARTITIONS, settle, host.wall_clock_ms)
        await producer.start()
        self.pipeline = producer
        number = 0
        while not self.stopping:
            values = []
            for _ in range(1 + host.random.randrange(BURST)):
                value, entry = self._entry(process, number)
                entry.partition = number % PARTITIONS
                values.append((entry.partition, value))
                number += 1
            for partition in range(PARTITIONS):
                if own := [value for place, value in values if place == partition]:
                    producer.send(partition, own)
            await asyncio.sleep(host.random.expovariate(1 / MEAN_PAUSE_S))
            await producer.fewer_than(MAX_PENDING_RECORDS)
        await producer.fewer_than(1)
        self.finished[process.node] = True
        await asyncio.sleep(1e6)

    def unfinished(self) -> list[str]:
        return [node for node in self.nodes[:2] if not self.finished.get(node)]

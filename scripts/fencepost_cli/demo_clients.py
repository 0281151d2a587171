"""The clients of the demo: Fencepost's own, or those of Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Final

from fencepost import Consumer, History, Producer
from fencepost.history import Sink
from fencepost_proto.runtime.host import Host
from fencepost_testing.faults import FaultHandle
from fencepost_testing.faults.lossy_wire import LossyWire
from fencepost_testing.kafka_clients import FENCEPOST
from fencepost_testing.kafka_clients.factory import kafka_producer, kafka_reader
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.read_back import STILL_TIMEOUT_S, StandsStill, read_to_end
from fencepost_testing.workload import RecordSender

WRITER: Final = "producer"  # the process, in histories
READER: Final = "reader"
GROUP: Final = "demo"
CUT_EVERY_MS: Final = 500  # so often at most a connection is cut after an append
CUT_PROBABILITY: Final = 0.5  # a client with long pauses before it tries again does not lose every answer


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """What the producer has met. None: its client does not say."""

    retried_batches: int | None = 0
    deduplicated_batches: int | None = 0
    dropped_acks: int = 0


class DemoClients(ABC):
    """One producer, and one consumer that reads along."""

    @abstractmethod
    def producer(self, record: Sink) -> AbstractAsyncContextManager[RecordSender]:
        """It loses acknowledgements, on purpose. `record` gets its history."""

    @abstractmethod
    async def read_along(self, topic: str, record: Sink, written: asyncio.Event) -> int:
        """Read while others write, and to the end once all is `written`; how many different records."""

    @abstractmethod
    def counts(self) -> ClientCounts: ...


@contextlib.asynccontextmanager
async def demo_clients(
    cluster: AsyncLocalCluster, client: str, *, seed: int, drop_acks: float
) -> AsyncIterator[DemoClients]:
    """With Kafka's clients the cluster's brokers lose answers, and cut connections, after appends.

    `seed` and `drop_acks`, a probability, are for the acknowledgements that Fencepost's own client throws away.
    """
    if client == FENCEPOST:
        yield _OwnClients(cluster, seed, drop_acks)
        return
    faults = cluster.faults
    with faults.drop_answers("Produce", protocol="kafka", every_ms=CUT_EVERY_MS, probability=CUT_PROBABILITY) as cuts:
        yield _KafkaClients(cluster, client, cuts)


class _OwnClients(DemoClients):
    def __init__(self, cluster: AsyncLocalCluster, seed: int, drop_acks: float) -> None:
        self._cluster = cluster
        host = Host(random=random.Random(seed))
        self._wire = LossyWire(host.wire, drop_acks=drop_acks, chance=host.random)
        self._host = replace(host, wire=self._wire)
        self._producer: Producer | None = None

    @contextlib.asynccontextmanager
    async def producer(self, record: Sink) -> AsyncIterator[RecordSender]:
        history = History(record, process=WRITER)
        async with Producer(self._cluster.bootstrap, host=self._host, history=history) as self._producer:
            yield self._producer

    async def read_along(self, topic: str, record: Sink, written: asyncio.Event) -> int:
        async with Consumer(self._cluster.bootstrap, topic, history=History(record, process=READER)) as consumer:
            return await read_to_end(consumer, lambda _: None, written)

    def counts(self) -> ClientCounts:
        if self._producer is None:
            return ClientCounts()
        stats = self._producer.stats
        return ClientCounts(stats.retried_batches, stats.deduplicated_batches, self._wire.dropped_acks)


class _KafkaClients(DemoClients):
    def __init__(self, cluster: AsyncLocalCluster, client: str, cuts: FaultHandle) -> None:
        self._cluster = cluster
        self._client = client
        self._cuts = cuts

    def producer(self, record: Sink) -> AbstractAsyncContextManager[RecordSender]:
        return kafka_producer(self._client, self._cluster.kafka_bootstrap, History(record, process=WRITER))

    async def read_along(self, topic: str, record: Sink, written: asyncio.Event) -> int:
        """As a member of a group. What it reads again after a failover of its coordinator counts once."""
        seen: dict[int, set[int]] = {}  # partition → offsets
        history = History(record, process=READER)
        async with kafka_reader(self._client, self._cluster.kafka_bootstrap, topic, GROUP, history) as reader:
            moved_at, ends = time.monotonic(), None
            while ends is None or any(len(seen.get(partition, ())) < end for partition, end in ends.items()):
                if ends is None and written.is_set():
                    ends = await self._ends(topic)
                records = await reader.poll()
                for each in records:
                    seen.setdefault(each.partition, set()).add(each.offset)
                if records or ends is None:
                    moved_at = time.monotonic()
                elif time.monotonic() - moved_at > STILL_TIMEOUT_S:
                    raise StandsStill(f"the group has read nothing for {STILL_TIMEOUT_S:g} s, below the ends {ends}")
        return sum(map(len, seen.values()))

    async def _ends(self, topic: str) -> dict[int, int]:
        async with Consumer(self._cluster.bootstrap, topic) as consumer:
            return {tp.partition: end for tp, end in (await consumer.end_offsets(consumer.assignment)).items()}

    def counts(self) -> ClientCounts:
        return ClientCounts(None, None, self._cuts.fired)

"""The benchmark of many of everything at work: producers, partitions with traffic, connections. What grows with what.

Three brokers, replication 3, on this machine. One of the three numbers grows at a time:

- *producers*: each with connections of its own and one record on its way, to one topic of three partitions;
- *partitions*: one producer with LANES records on their way, each to the next partition in turn, so that all are written to;
- *connections*: that many that have asked for metadata once and are silent from then on, beside LANES / 8 producers.

At each step: what the brokers cost at rest, then a closed loop (`small_batches`), then the brokers' memory.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil

from fencepost import AdminClient, Producer
from fencepost_cli.bench import BROKERS, MIN_INSYNC_REPLICAS, RECORD_BYTES, REPLICATION_FACTOR
from fencepost_cli.bench import PARTITIONS as FEW_PARTITIONS
from fencepost_cli.small_batches import Lane, closed_loop, cpu_s, value_of
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_testing.cluster_metadata import read_log_dirs
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.topic_waits import wait_in_sync
from fencepost_testing.waiting import until

PRODUCERS = (1, 8, 64, 200, 500)
PARTITIONS = (3, 100, 300, 1_000)
CONNECTIONS = (0, 500, 1_000, 2_000)
LANES = 64
LOAD_S = 4.0
REST_S = 3.0
MADE_TIMEOUT_S = 120.0
POLL_S = 0.5
SETTLE_S = 1.0  # after a start, before rest is measured
_AT_ONCE = 50  # producers or connections that are being opened
_ASK_TIMEOUT_S = 30.0
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Step:
    """One number of one thing. Milliseconds and CPU are those of the closed loop, but for the rest."""

    what: str  # "producers", "partitions", "connections"
    number: int
    rest_cpu_percent: float  # of a core, of one broker on average, before the load
    acks_per_s: float
    p50_ms: float
    p99_ms: float
    brokers_cpu_ms_per_ack: float  # all together
    client_cpu_ms_per_ack: float
    broker_rss_mb: float  # the largest, after the load
    broker_connections: int  # of all brokers together, from clients and from each other

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Many:
    """Every step, one after the other, on one cluster. `tell` gets a line as each begins."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell
        self._value = value_of(RECORD_BYTES)
        self._pids: Sequence[int] = ()
        self._bootstrap = ""
        self._addresses: Sequence[str] = ()
        self._partitions = 0  # of all topics

    async def run(
        self,
        producers: Sequence[int] = PRODUCERS,
        partitions: Sequence[int] = PARTITIONS,
        connections: Sequence[int] = CONNECTIONS,
        load_s: float = LOAD_S,
    ) -> list[Step]:
        cluster = AsyncLocalCluster(self._folder, brokers=BROKERS, faults=False)
        async with cluster, AdminClient(cluster.bootstrap) as admin:
            self._bootstrap = cluster.bootstrap
            self._pids = [cluster.pid(broker) for broker in cluster.broker_ids]
            self._addresses = [cluster.member(broker).address for broker in cluster.broker_ids]
            await self._topic(admin, "few", FEW_PARTITIONS)
            steps = []
            for number in producers:
                async with self._producers(number) as opened:
                    lanes = [partial(self._send, producer, "few") for producer in opened]
                    steps.append(await self._step("producers", number, lanes, load_s))
            for number in connections:
                async with self._connections(number), self._producers(LANES // 8) as opened:
                    lanes = [partial(self._send, producer, "few") for producer in opened]
                    steps.append(await self._step("connections", number, lanes, load_s))
            for number in partitions:  # last: they stay
                topic = f"partitions-{number}"
                await self._topic(admin, topic, number)
                async with Producer(self._bootstrap) as producer:
                    turn = itertools.cycle(range(number))
                    lanes = [partial(self._send_in_turn, producer, topic, turn)] * LANES
                    steps.append(await self._step("partitions", number, lanes, load_s))
                await admin.delete_topic(topic)
                self._partitions -= number
        return steps

    async def _topic(self, admin: AdminClient, name: str, partitions: int) -> None:
        await admin.create_topic(
            name,
            partitions=partitions,
            replication_factor=REPLICATION_FACTOR,
            min_insync_replicas=MIN_INSYNC_REPLICAS,
        )
        await wait_in_sync(admin, name)
        self._partitions += partitions
        await until(self._all_made, f"{self._partitions} replicas on each broker", MADE_TIMEOUT_S, poll_s=POLL_S)

    async def _all_made(self) -> bool:
        """Every broker has the logs of the topics that there are, and of no other: making them costs more than the load."""
        answers = [await read_log_dirs(address, timeout_s=_ASK_TIMEOUT_S) for address in self._addresses]
        return all(answer is not None and len(answer.replicas) == self._partitions for answer in answers)

    async def _send(self, producer: Producer, topic: str) -> None:
        await (await producer.send(topic, self._value))

    async def _send_in_turn(self, producer: Producer, topic: str, turn: Iterator[int]) -> None:
        await (await producer.send(topic, self._value, partition=next(turn)))

    async def _step(self, what: str, number: int, lanes: Sequence[Lane], load_s: float) -> Step:
        self._tell(f"{number:,} {what}")
        await asyncio.gather(*(lane() for lane in lanes))  # connected
        await asyncio.sleep(SETTLE_S)
        before_s, began = cpu_s(self._pids), time.monotonic()
        await asyncio.sleep(REST_S)
        rest = (cpu_s(self._pids) - before_s) / (time.monotonic() - began) / BROKERS * 100
        measured = await closed_loop(lanes, load_s, self._pids)
        processes = [psutil.Process(pid) for pid in self._pids]
        return Step(
            what,
            number,
            rest,
            measured.acks_per_s,
            measured.p50_ms,
            measured.p99_ms,
            measured.brokers_cpu_ms_per_ack,
            measured.client_cpu_ms_per_ack,
            max(process.memory_info().rss for process in processes) / _MEGABYTE,
            sum(_accepted(process) for process in processes),
        )

    @asynccontextmanager
    async def _producers(self, number: int) -> AsyncIterator[list[Producer]]:
        async with AsyncExitStack() as stack:
            opened = [Producer(self._bootstrap) for _ in range(number)]
            for first in range(0, number, _AT_ONCE):
                await asyncio.gather(*map(stack.enter_async_context, opened[first : first + _AT_ONCE]))
            yield opened

    @asynccontextmanager
    async def _connections(self, number: int) -> AsyncIterator[None]:
        """Connections over all brokers, each by a channel of its own, as so many clients have."""
        wire = Host().wire
        channels = [wire.connect(address) for address, _ in zip(itertools.cycle(self._addresses), range(number))]
        try:
            for first in range(0, number, _AT_ONCE):
                await asyncio.gather(*map(_ask_once, channels[first : first + _AT_ONCE]))
            yield
        finally:
            for channel in channels:
                await channel.close()


async def _ask_once(channel: grpc.aio.Channel) -> None:
    request = broker_pb2.MetadataRequest(topic_names=["few"])
    await broker_pb2_grpc.BrokerStub(channel).Metadata(request, timeout=_ASK_TIMEOUT_S)


def _accepted(process: psutil.Process) -> int:
    """Connections that others have opened to this process."""
    connections = process.net_connections(kind="tcp")
    listening = {each.laddr for each in connections if each.status == psutil.CONN_LISTEN}
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr in listening for each in connections)

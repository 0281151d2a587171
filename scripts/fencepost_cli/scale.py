"""The benchmark of many partitions: what a cluster does with thousands of them when its brokers die and come back.

Three brokers, replication 3, on this machine; a light load of single records to partitions chosen at random. One broker is
killed and started again, all are, each is restarted in turn, and the cluster goes down and up. For each: how long some
partition had no leader, how long until all replicas are in sync, and the slowest write.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil

from fencepost import AdminClient, Producer
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, common_pb2
from fencepost_proto.runtime.turns import Turns
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.cluster_metadata import read_log_dirs
from fencepost_testing.failures import CommandFailed
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster, Node
from fencepost_testing.waiting import until

BROKERS = 3
REPLICATION_FACTOR = 3
MIN_INSYNC_REPLICAS = 2
MAX_PARTITIONS = 10_000  # of a cluster
PARTITIONS_PER_TOPIC = 1_000
WRITES_PER_S = 20.0
WRITERS = 20  # at the same time, at most
IDLE_S = 5.0
REST_S = 2.0  # between two measurements
SETTLE_TIMEOUT_S = 180.0
START_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.02
_MEGABYTE = 1_000_000
_DECLARED_DEAD = re.compile(r"broker fenced .*reason=(?:silent|has not applied)")  # of a process that lives


@dataclass(slots=True)
class Disturbance:
    """What one kill or restart did. Times in seconds, from the kill or, where all were down, from their start."""

    what: str
    leaders_s: float  # until every partition had a leader again
    in_sync_s: float  # until every replica was in sync again, from the (last) start of a broker
    slowest_write_s: float  # to a partition that had a live leader and enough replicas in sync all the while
    slowest_blocked_write_s: float  # to one that had not, for some of the time
    writes: int
    declared_dead: int  # live brokers that the controller took for dead
    versions: int  # metadata versions made meanwhile


@dataclass(slots=True)
class ScaleResult:
    partitions: int
    create_s: float = 0.0  # until every broker has its replica of each
    idle_cpu_percent: list[float] = field(default_factory=list)  # controller, then brokers
    rss_mb: list[float] = field(default_factory=list)  # likewise
    rss_per_partition_kb: float = 0.0  # a broker's, beyond what it takes without any
    files_per_partition: float = 0.0
    down_s: float = 0.0
    up_s: float = 0.0  # of the same data
    disturbances: list[Disturbance] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> ScaleResult:
        """What `to_json` gave."""
        return cls(**{**told, "disturbances": [Disturbance(**one) for one in told["disturbances"]]})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


class Observer:
    """Follows the metadata of whichever broker answers: which partitions have no leader, which replicas are not in sync."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self.version = 0
        self.leaderless: dict[tuple[str, int], None] = {}
        self.lagging: dict[tuple[str, int], None] = {}
        self.partitions = 0
        self.blocked: dict[tuple[str, int], None] = {}  # can take no writes: no leader, or too few in sync
        self.blocked_until: dict[tuple[str, int], float] = {}  # of the others: the last moment at which that was so
        self._leaders: dict[tuple[str, int], int] = {}
        self._news = asyncio.Event()
        self._turns = Turns()
        self._taking = False  # a change is taken in turns, and what is known is of neither version

    async def run(self) -> None:
        while True:
            for address in self._addresses:
                async with GrpcWire().connect(address) as channel:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        async for delta in broker_pb2_grpc.BrokerStub(channel).WatchMetadata(
                            broker_pb2.WatchMetadataRequest()
                        ):
                            await self._take(delta)
            await asyncio.sleep(_POLL_S)

    async def _take(self, delta: common_pb2.MetadataDelta) -> None:
        if delta.version < self.version:
            return  # of a broker that is behind
        now = time.monotonic()
        self._taking = True
        self.version = delta.version
        if delta.image:
            self.blocked_until |= dict.fromkeys(self.blocked, now)
            self.blocked.clear()
            self.leaderless.clear()
            self.lagging.clear()
        for entity in delta.changed:
            if not entity.HasField("partition"):
                continue
            partition = entity.partition
            key = (partition.topic_id, partition.partition)
            blocked = partition.leader < 0 or len(partition.isr) < MIN_INSYNC_REPLICAS
            if blocked or key in self.blocked:
                self.blocked_until[key] = now
            _put(self.blocked, key, blocked)
            self._leaders[key] = partition.leader
            _put(self.leaderless, key, partition.leader < 0)
            _put(self.lagging, key, len(partition.isr) < len(partition.replicas))
            await self._turns.step()  # the writes that are measured share this loop
        self.partitions = len(self._leaders)
        self._taking = False
        self._news.set()

    def killed(self, broker: int | None = None) -> None:
        """What it led (None: whichever broker led) has no leader from now on, until the metadata names another."""
        for key, leader in self._leaders.items():
            if broker in (None, leader):
                self.leaderless[key] = self.blocked[key] = None

    async def until(self, condition: Callable[[], bool], what: str) -> float:
        """When it was so."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while self._taking or not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise CommandFailed(
                f"not within {SETTLE_TIMEOUT_S:g} s: {what}; {len(self.leaderless)} partitions without a leader, "
                f"{len(self.lagging)} not in sync"
            ) from None
        return time.monotonic()

    async def led(self) -> float:
        return await self.until(lambda: not self.leaderless, "a leader for every partition")

    async def in_sync(self) -> float:
        return await self.until(lambda: not self.leaderless and not self.lagging, "every replica in sync")


def _put(keys: dict[tuple[str, int], None], key: tuple[str, int], wanted: bool) -> None:
    if wanted:
        keys[key] = None
    else:
        keys.pop(key, None)


@dataclass(frozen=True, slots=True)
class _Write:
    key: tuple[str, int]
    began: float
    took_s: float


class Load:
    """Single records to partitions chosen at random."""

    def __init__(self, producer: Producer, topics: dict[str, str], partitions: dict[str, int], seed: int) -> None:
        self._producer = producer
        self._topics = topics  # name -> id
        self._partitions = partitions  # name -> count
        self._random = random.Random(seed)
        self.writes: list[_Write] = []
        self.under_way: dict[asyncio.Task[None], None] = {}

    async def run(self) -> None:
        names = sorted(self._topics)
        while True:
            await asyncio.sleep(1 / WRITES_PER_S)
            if len(self.under_way) < WRITERS:
                name = self._random.choice(names)
                task = asyncio.create_task(self._write(name, self._random.randrange(self._partitions[name])))
                self.under_way[task] = None
                task.add_done_callback(self.under_way.pop)

    async def _write(self, name: str, partition: int) -> None:
        began = time.monotonic()
        await self._producer.send_and_wait(name, b"x", partition=partition)
        self.writes.append(_Write((self._topics[name], partition), began, time.monotonic() - began))


class Scale:
    """Every measurement for one number of partitions, in order. `tell` gets a line as each begins."""

    def __init__(self, folder: Path, partitions: int, seed: int, tell: Callable[[str], None]) -> None:
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise CommandFailed(f"{partitions} partitions: from 1 to {MAX_PARTITIONS}")
        self._tell = tell
        self._partitions = partitions
        self._seed = seed
        self._cluster = AsyncLocalCluster(folder, brokers=BROKERS, faults=False)
        self._observer = Observer([self._cluster.member(broker).address for broker in self._cluster.broker_ids])
        self._load: Load | None = None
        self.result = ScaleResult(partitions)

    async def run(self) -> ScaleResult:
        cluster, result = self._cluster, self.result
        try:
            await cluster.up()
            before = {node: psutil.Process(cluster.pid(node)) for node in cluster.nodes}
            rss = _rss_mb(before)
            files = sum(before[broker].num_fds() for broker in cluster.broker_ids)
            topics, counts = await self._create()
            result.rss_mb = list((now := _rss_mb(before)).values())
            grown = sum(now[broker] - rss[broker] for broker in cluster.broker_ids)
            result.rss_per_partition_kb = grown * 1000 / BROKERS / self._partitions
            files = sum(before[broker].num_fds() for broker in cluster.broker_ids) - files
            result.files_per_partition = files / BROKERS / self._partitions
            await self._idle(before)
            observing = asyncio.create_task(self._observer.run())
            try:
                await self._observer.until(lambda: self._observer.partitions >= self._partitions, "metadata of all")
                await self._observer.in_sync()
                async with Producer(cluster.bootstrap) as producer:
                    self._load = Load(producer, topics, counts, self._seed)
                    loading = asyncio.create_task(self._load.run())
                    await asyncio.sleep(REST_S)
                    await self._disturb("one broker killed and started", self._one)
                    await self._disturb("all brokers killed and started", self._all)
                    await self._disturb("rolling restart", self._rolling)
                    loading.cancel()
                    await asyncio.wait([loading, *self._load.under_way], timeout=SETTLE_TIMEOUT_S)
                await self._down_and_up()
            finally:
                observing.cancel()
                await asyncio.wait([observing])
        finally:
            cluster.close()
        return result

    async def _create(self) -> tuple[dict[str, str], dict[str, int]]:
        """(topics' ids, their numbers of partitions), by name."""
        self._tell(f"making {self._partitions} partitions")
        began = time.monotonic()
        counts: dict[str, int] = {}
        while (left := self._partitions - sum(counts.values())) > 0:
            counts[f"scale-{len(counts)}"] = min(left, PARTITIONS_PER_TOPIC)
        async with AdminClient(self._cluster.bootstrap) as admin:
            topics = {}
            for name, count in counts.items():
                await admin.create_topic(
                    name,
                    partitions=count,
                    replication_factor=REPLICATION_FACTOR,
                    min_insync_replicas=MIN_INSYNC_REPLICAS,
                )
                topics[name] = (await admin.describe_topic(name)).topic_id
        for broker in self._cluster.broker_ids:
            await until(
                partial(self._replicas, broker),
                f"{self._partitions} replicas on broker {broker}",
                max(0.0, SETTLE_TIMEOUT_S - (time.monotonic() - began)),
                holds=lambda made: made >= self._partitions,
                poll_s=0.5,
            )
        self.result.create_s = time.monotonic() - began
        return topics, counts

    async def _replicas(self, broker: int) -> int:
        answer = await read_log_dirs(self._cluster.member(broker).address, timeout_s=_ANSWER_TIMEOUT_S)
        return len(answer.replicas) if answer is not None else 0

    async def _idle(self, processes: dict[Node, psutil.Process]) -> None:
        await asyncio.sleep(REST_S)
        self._tell(f"at rest, {IDLE_S:g} s")
        before = {node: sum(process.cpu_times()[:2]) for node, process in processes.items()}
        await asyncio.sleep(IDLE_S)
        self.result.idle_cpu_percent = [
            100 * (sum(process.cpu_times()[:2]) - before[node]) / IDLE_S for node, process in processes.items()
        ]

    # ---- Disturbances ----

    async def _disturb(self, what: str, disturbance: Callable[[], Awaitable[tuple[float, float]]]) -> None:
        """`disturbance` returns how long it took to all leaders, and to all in sync."""
        assert self._load is not None
        self._tell(what)
        observer, load = self._observer, self._load
        began, version, dead = time.monotonic(), observer.version, self._declared_dead()
        leaders_s, in_sync_s = await disturbance()
        ended = time.monotonic()
        await self._written(began, ended)
        blocked, free = [0.0], [0.0]
        writes = [write for write in load.writes if write.began + write.took_s > began and write.began < ended]
        for write in writes:
            was = write.key in observer.blocked or observer.blocked_until.get(write.key, 0.0) >= write.began
            (blocked if was else free).append(write.took_s)
        self.result.disturbances.append(
            Disturbance(
                what,
                leaders_s,
                in_sync_s,
                max(free),
                max(blocked),
                len(writes),
                self._declared_dead() - dead,
                observer.version - version,
            )
        )
        await asyncio.sleep(REST_S)

    async def _written(self, began: float, ended: float) -> None:
        """Every write that was under way is answered."""
        assert self._load is not None
        under_way = list(self._load.under_way)
        if under_way:
            await asyncio.wait(under_way, timeout=SETTLE_TIMEOUT_S)

    async def _one(self) -> tuple[float, float]:
        cluster, observer = self._cluster, self._observer
        victim = cluster.broker_ids[-1]  # the observer watches the first
        version, killed = observer.version, time.monotonic()
        await cluster.kill(victim)
        observer.killed(victim)
        await observer.until(lambda: observer.version > version and bool(observer.lagging), "the death noticed")
        led = await observer.led()
        await cluster.wait_gone(victim)
        await asyncio.sleep(REST_S)
        started = time.monotonic()
        await cluster.start(victim, timeout_s=START_TIMEOUT_S)
        return led - killed, await observer.in_sync() - started

    async def _all(self) -> tuple[float, float]:
        cluster, observer = self._cluster, self._observer
        version = observer.version
        await cluster.kill(*cluster.broker_ids)
        observer.killed()
        started = time.monotonic()
        await cluster.start(*cluster.broker_ids, timeout_s=START_TIMEOUT_S)
        await observer.until(lambda: observer.version > version, "news")
        led = await observer.led()
        return led - started, await observer.in_sync() - started

    async def _rolling(self) -> tuple[float, float]:
        """A clean restart of each; the times are the longest of one of them."""
        cluster = self._cluster
        longest = 0.0
        for broker in reversed(cluster.broker_ids):
            await cluster.stop(broker, timeout_s=START_TIMEOUT_S)
            await self._observer.until(lambda: bool(self._observer.lagging), "the shutdown noticed")
            started = time.monotonic()
            await cluster.start(broker, timeout_s=START_TIMEOUT_S)
            longest = max(longest, await self._observer.in_sync() - started)
            await cluster.wait_registered(timeout_s=START_TIMEOUT_S)
        return 0.0, longest

    async def _down_and_up(self) -> None:
        cluster = self._cluster
        self._tell("down and up")
        began = time.monotonic()
        for broker in cluster.broker_ids:
            cluster.terminate(broker)
        for broker in cluster.broker_ids:
            await cluster.wait_gone(broker, timeout_s=START_TIMEOUT_S)
        await cluster.stop(CONTROLLER)
        self.result.down_s = time.monotonic() - began
        began = time.monotonic()
        await cluster.up(timeout_s=START_TIMEOUT_S)
        self.result.up_s = time.monotonic() - began

    def _declared_dead(self) -> int:
        return sum(bool(_DECLARED_DEAD.search(line)) for line in self._cluster.log(CONTROLLER).splitlines())


def _rss_mb(processes: dict[Node, psutil.Process]) -> dict[Node, float]:
    return {node: process.memory_info().rss / _MEGABYTE for node, process in processes.items()}
